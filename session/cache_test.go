package session

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func TestTheCacheIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(5 * time.Second)
		c.vouch(time.Now().Add(time.Hour))
		fill := func(n int) {
			for i := range n {
				id := fmt.Sprint(i)
				changes, current := c.reading(id)
				c.put(&Session{ID: id, IdleExpiresAt: time.Now().Add(time.Hour)}, changes, current, time.Now())
				if c.get(id, time.Now()) == nil {
					t.Fatal("what was read just now is not cached")
				}
			}
		}
		held := func() (n int) {
			for i := range c.shards {
				n += len(c.shards[i].entries)
			}
			return n
		}
		fill(3 * cacheShards * cacheShardSize)
		if n := held(); n > cacheShards*cacheShardSize {
			t.Errorf("%d sessions are held, want %d at most", n, cacheShards*cacheShardSize)
		}
		time.Sleep(10 * time.Second)
		fill(1000)
		if n := held(); n > 1000 {
			t.Errorf("%d sessions are held ten seconds later, want the 1000 in use", n)
		}
	})
}
