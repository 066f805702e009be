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
				c.put(&Session{ID: id, Claims: make([]byte, size), IdleExpiresAt: time.Now().Add(time.Hour)},
					generation, valid, time.Now())
				if size < cacheShardSize && c.get(id, time.Now()) == nil {
					t.Fatal("get after put: got none")
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
					t.Errorf("shard: got %d bytes, want at most %d", c.shards[i].size, cacheShardSize)
				}
			}
			return n, size
		}
		fill(100_000, 1000)
		n, size := held()
		if limit := cacheShards * cacheShardSize; size > limit {
			t.Errorf("cache: got %d bytes, want at most %d", size, limit)
		}
		if n < 20_000 {
			t.Errorf("cache: got %d sessions, want 20000 or more", n)
		}
		fill(100, cacheShardSize)
		fill(200, cacheShardSize/4)
		time.Sleep(10 * time.Second)
		fill(1000, 1000)
		if n, _ := held(); n > 1000 {
			t.Errorf("cache after ten seconds: got %d sessions, want the 1000 in use", n)
		}
		fill(1000, 1000) // each takes the place of the one before
		for i := range 1000 {
			c.drop(fmt.Sprint(i))
		}
		for i := range c.shards {
			if shard := &c.shards[i]; shard.size != 0 || len(shard.entries) != 0 {
				t.Errorf("shard after drop: got %d sessions and %d bytes", len(shard.entries), shard.size)
			}
		}
	})
}

// The tokens of routes and of replaced sessions count too.
func TestCacheCountsAllTokens(t *testing.T) {
	t.Parallel()
	token := Secret(make([]byte, 10_000))
	none, access := new(Session).size(), &Session{Tokens: Tokens{Access: token}}
	others := &Session{Tokens: Tokens{Others: map[string]Tokens{"a": {Access: token}, "b": {Access: token}}}}
	superseded := &Session{Tokens: Tokens{Superseded: []Secret{token, token}}}
	if got, want := others.size()-none, 2*(access.size()-none); got < want {
		t.Errorf("two tokens of routes: got %d bytes, want %d or more", got, want)
	}
	if got, want := superseded.size()-none, 2*len(token); got < want {
		t.Errorf("two refresh tokens of replaced sessions: got %d bytes, want %d or more", got, want)
	}
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
			t.Errorf("new entry: got %s, want %s", got, want)
		}
		time.Sleep(1500 * time.Millisecond)
		if got, want := got(), "read cached cached "; got != want {
			t.Errorf("entry that expires soon: got %s, want %s", got, want)
		}
		time.Sleep(time.Second) // the caller that got nil has not read the session
		if got, want := got(), "read read read "; got != want {
			t.Errorf("expired entry: got %s, want %s", got, want)
		}
	})
}

func TestReadWhileCacheWasInvalidIsNotCached(t *testing.T) {
	c := newCache(5 * time.Second)
	generation, valid := c.beginRead("id")
	c.setValidUntil(time.Now().Add(time.Hour))
	c.put(&Session{ID: "id", IdleExpiresAt: time.Now().Add(time.Hour)}, generation, valid, time.Now())
	if c.get("id", time.Now()) != nil {
		t.Error("read from before the cache was valid: got it from the cache")
	}
}

func TestCookieCacheIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newCookieCache()
		for i := range 200_000 {
			o.put(fmt.Sprint(i), Ticket{sessionID: fmt.Sprint(i)}, CookieOutdated, time.Now())
			got, state, ok := o.get(fmt.Sprint(i), time.Now())
			if !ok {
				t.Fatalf("cookie %d after put: got none", i)
			}
			if state != CookieOutdated {
				t.Fatalf("cookie %d: got %s, want outdated", i, state)
			}
			if got.sessionID != fmt.Sprint(i) {
				t.Fatalf("cookie %d: got the ticket %s", i, got.sessionID)
			}
		}
		size := 0
		for i := range o.shards {
			size += len(o.shards[i].cookies)
		}
		if size > cacheShards*cookieCacheShardSize {
			t.Errorf("cache: got %d cookies, want at most %d", size, cacheShards*cookieCacheShardSize)
		}
		time.Sleep(cookieCacheAge + time.Second)
		if _, _, ok := o.get("199999", time.Now()); ok {
			t.Error("cookie older than cookieCacheAge: got it from the cache")
		}
	})
}

func TestFollowerIsRemovedOnce(t *testing.T) {
	var fs followers
	first, second := &follower{session: &Session{ID: "a"}}, &follower{session: &Session{ID: "a"}}
	fs.add(first)
	fs.add(second)
	fs.remove(first)
	fs.remove(first)
	if fs.first != second || fs.last != second {
		t.Error("list after one removal: got another one than the second follower")
	}
	fs.remove(second)
	if fs.first != nil || fs.last != nil {
		t.Error("list after both removals: got a follower")
	}
	registered := []*follower{{id: "a", session: &Session{ID: "a"}}, {id: "a", session: &Session{ID: "a"}}}
	for _, f := range registered {
		fs.add(f)
	}
	fs.register(time.Now(), true)
	for i, want := range []int{1, 0} {
		fs.remove(registered[i])
		if got := len(fs.sessions); got != want {
			t.Errorf("followed sessions after %d removals: got %d, want %d", i+1, got, want)
		}
	}
}
