package session

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func TestCacheIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(5 * time.Second)
		c.setValidUntil(time.Now().Add(time.Hour))
		fill := func(n, size int) {
			for i := range n {
				id := fmt.Sprint(i)
				generation, valid := c.beginRead(id)
				c.put(
					&Session{ID: id, Claims: make([]byte, size), IdleExpiresAt: time.Now().Add(time.Hour)},
					generation, valid, time.Now(),
				)
				if size < cacheShardSize && c.get(id, time.Now()) == nil {
					t.Fatal("an entry is missing right after put")
				}
			}
		}
		held := func() (n, size int) {
			for i := range c.shards {
				n += len(c.shards[i].entries)
				for _, e := range c.shards[i].entries {
					size += e.session.size()
				}
				if c.shards[i].size > cacheShardSize {
					t.Errorf("a shard has %d bytes", c.shards[i].size)
				}
			}
			return n, size
		}
		fill(100_000, 1000)
		if n, size := held(); size > cacheShards*cacheShardSize || n < 20_000 {
			t.Errorf("the cache has %d sessions of %d bytes, want almost %d bytes",
				n, size, cacheShards*cacheShardSize)
		}
		fill(100, cacheShardSize)
		fill(200, cacheShardSize/4)
		time.Sleep(10 * time.Second)
		fill(1000, 1000)
		if n, _ := held(); n > 1000 {
			t.Errorf("the cache has %d sessions ten seconds later, want the 1000 in use", n)
		}
		for i := range 1000 {
			c.drop(fmt.Sprint(i))
		}
		for i := range c.shards {
			if shard := &c.shards[i]; shard.size != 0 || len(shard.entries) != 0 {
				t.Errorf("an empty shard has %d sessions and %d bytes", len(shard.entries), shard.size)
			}
		}
	})
}

func TestCacheReloadsEntryBeforeItIsTooOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(5 * time.Second)
		c.setValidUntil(time.Now().Add(time.Hour))
		generation, valid := c.beginRead("id")
		c.put(&Session{ID: "id", IdleExpiresAt: time.Now().Add(time.Hour)}, generation, valid, time.Now())
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
		time.Sleep(time.Second) // and the caller that got nil has not read it
		if got, want := got(), "read read read "; got != want {
			t.Errorf("too old: %s, want %s", got, want)
		}
	})
}

func TestReadWhileCacheWasInvalidIsNotCached(t *testing.T) {
	c := newCache(5 * time.Second)
	generation, valid := c.beginRead("id")
	c.setValidUntil(time.Now().Add(time.Hour))
	c.put(&Session{ID: "id", IdleExpiresAt: time.Now().Add(time.Hour)}, generation, valid, time.Now())
	if c.get("id", time.Now()) != nil {
		t.Error("a read from before is cached")
	}
}

func TestCookieCacheIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newCookieCache()
		for i := range 200_000 {
			o.put(fmt.Sprint(i), Ticket{sessionID: fmt.Sprint(i)}, CookieOutdated, time.Now())
			got, state, ok := o.get(fmt.Sprint(i), time.Now())
			if !ok {
				t.Fatalf("cookie %d is missing right after put", i)
			}
			if state != CookieOutdated {
				t.Fatalf("cookie %d is %s, want outdated", i, state)
			}
			if got.sessionID != fmt.Sprint(i) {
				t.Fatalf("cookie %d has the ticket %s", i, got.sessionID)
			}
		}
		size := 0
		for i := range o.shards {
			size += len(o.shards[i].cookies)
		}
		if size > cacheShards*cookieCacheShardSize {
			t.Errorf("the cache has %d cookies", size)
		}
		time.Sleep(cookieCacheAge + time.Second)
		if _, _, ok := o.get("199999", time.Now()); ok {
			t.Error("a cookie is older than cookieCacheAge")
		}
	})
}

func TestEndWatcherStopsOnce(t *testing.T) {
	var e endWatchers
	first, second := &endWatcher{session: &Session{ID: "a"}}, &endWatcher{session: &Session{ID: "a"}}
	e.add(first)
	e.add(second)
	e.stop(first)
	e.stop(first)
	if e.first != second || e.last != second {
		t.Error("the second is not in the list")
	}
	e.stop(second)
	if e.first != nil || e.last != nil {
		t.Error("the list is not empty")
	}
}
