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

func TestASessionIsReadAgainByOneBeforeItIsTooOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(5 * time.Second)
		c.vouch(time.Now().Add(time.Hour))
		changes, current := c.reading("id")
		c.put(&Session{ID: "id", IdleExpiresAt: time.Now().Add(time.Hour)}, changes, current, time.Now())
		got := func() (got string) {
			for range 3 {
				if c.get("id", time.Now()) != nil {
					got += "cached "
				} else {
					got += "read "
				}
			}
			return got
		}
		time.Sleep(3 * time.Second)
		if got, want := got(), "cached cached cached "; got != want {
			t.Errorf("young: %s, want %s", got, want)
		}
		time.Sleep(1500 * time.Millisecond)
		if got, want := got(), "read cached cached "; got != want {
			t.Errorf("almost too old: %s, want %s", got, want)
		}
		time.Sleep(time.Second) // and whoever was to read it has not
		if got, want := got(), "read read read "; got != want {
			t.Errorf("too old: %s, want %s", got, want)
		}
	})
}

func TestWhatWasReadWhileNobodyVouchedIsNotCached(t *testing.T) {
	c := newCache(5 * time.Second)
	changes, current := c.reading("id")
	c.vouch(time.Now().Add(time.Hour)) // for what changes from now on
	c.put(&Session{ID: "id", IdleExpiresAt: time.Now().Add(time.Hour)}, changes, current, time.Now())
	if c.get("id", time.Now()) != nil {
		t.Error("it is cached")
	}
}
