package session

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"
)

// cache holds the sessions that were read lately, so that a session in use costs the store next to nothing. It is never asked unless
// the store has vouched, for this very moment, that every change was announced (Store.Watch), and what was announced is not in it any more.
type cache struct {
	maxAge time.Duration
	start  time.Time
	until  atomic.Int64 // how long after start the store vouches; 0: it never has
	shards [cacheShards]cacheShard
	seed   maphash.Seed
}

const (
	cacheShards      = 64
	cacheShardSize   = 1 << 20 // bytes of sessions in each, 64 MiB in all
	cacheShardLimits = 1024    // absolute ends in each, 6 MiB in all
)

type cacheShard struct {
	mu      sync.Mutex             // guards all below
	changes uint64                 // how many changes were announced: a read that began before the last one is not kept
	entries map[string]*cacheEntry // :: Session.ID → the session, read at most maxAge ago
	size    int                    // of entries, in bytes
	limits  map[string]time.Time   // :: Session.ID → absolute end, of sessions that this replica has seen
	sweepAt time.Time              // when entries that are too old are removed next
}

type cacheEntry struct {
	session  *Session
	read     time.Time
	checking bool // somebody reads it again, because it is about to be too old
}

func newCache(maxAge time.Duration) *cache {
	return &cache{maxAge: maxAge, start: time.Now(), seed: maphash.MakeSeed()}
}

// vouch says that the store vouches until a moment.
func (c *cache) vouch(until time.Time) { c.until.Store(int64(until.Sub(c.start))) }

// current says whether the store vouches.
func (c *cache) current(now time.Time) bool { return int64(now.Sub(c.start)) < c.until.Load() }

// lost says that the store does not vouch any more, but did.
func (c *cache) lost(now time.Time) bool { return c.until.Load() != 0 && !c.current(now) }

// get returns a session, or nil when it has to be read from the store. One caller of many is told to read it again before it is too old, so that
// not all of them have to at once.
func (c *cache) get(id string, now time.Time) *Session {
	if !c.current(now) {
		return nil
	}
	shard := c.shard(id)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	e := shard.entries[id]
	if e == nil || !now.Before(e.session.IdleExpiresAt) { // which somebody may have moved
		return nil
	}
	switch age := now.Sub(e.read); {
	case age > c.maxAge:
		return nil
	case age > c.maxAge*4/5 && !e.checking:
		e.checking = true
		return nil
	}
	return e.session
}

// reading is to be called before a session is read from the store, and what it returns to be handed to put.
func (c *cache) reading(id string) (changes uint64, current bool) {
	shard := c.shard(id)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	return shard.changes, c.current(time.Now())
}

// put keeps a session that was read, unless it may have changed since.
func (c *cache) put(s *Session, changes uint64, current bool, now time.Time) {
	if !current || !c.current(now) {
		return
	}
	shard := c.shard(s.ID)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if shard.changes != changes {
		return
	}
	if shard.entries == nil {
		shard.entries = make(map[string]*cacheEntry)
	}
	if !now.Before(shard.sweepAt) {
		shard.sweepAt = now.Add(c.maxAge)
		for id, e := range shard.entries {
			if now.Sub(e.read) > c.maxAge {
				shard.remove(id)
			}
		}
	}
	shard.remove(s.ID)
	for id := range shard.entries { // any: in a few seconds it would have gone by itself
		if shard.size+s.size() <= cacheShardSize {
			break
		}
		shard.remove(id)
	}
	if shard.size+s.size() <= cacheShardSize {
		shard.entries[s.ID] = &cacheEntry{session: s, read: now}
		shard.size += s.size()
	}
}

// noteLimit remembers the absolute end of a session, for limit.
func (c *cache) noteLimit(id string, limit time.Time) {
	shard := c.shard(id)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if shard.limits == nil || len(shard.limits) >= cacheShardLimits {
		shard.limits = make(map[string]time.Time) // those in use are there again within moments
	}
	shard.limits[id] = limit
}

// limit returns the absolute end of a session that may have expired; ok is false
// if it is not known.
func (c *cache) limit(id string) (limit time.Time, ok bool) {
	shard := c.shard(id)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	limit, ok = shard.limits[id]
	return limit, ok
}

// remove forgets an entry, if it is there. The caller holds mu.
func (s *cacheShard) remove(id string) {
	if e := s.entries[id]; e != nil {
		s.size -= e.session.size()
		delete(s.entries, id)
	}
}

// size is about how many bytes a session takes up in memory.
func (s *Session) size() int {
	return 1024 + len(s.sealed) + 2*len(s.Claims) + 2*len(s.Tokens.Access) + len(s.Tokens.Refresh) + len(s.Tokens.ID)
}

// drop forgets a session, because it has changed.
func (c *cache) drop(id string) {
	shard := c.shard(id)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	shard.changes++
	shard.remove(id)
}

// clear forgets everything: what has changed is not known.
func (c *cache) clear() {
	c.until.Store(min(c.until.Load(), int64(time.Since(c.start))))
	for i := range c.shards {
		shard := &c.shards[i]
		shard.mu.Lock()
		shard.changes++
		clear(shard.entries)
		shard.size = 0
		shard.mu.Unlock()
	}
}

func (c *cache) shard(id string) *cacheShard {
	return &c.shards[maphash.String(c.seed, id)%cacheShards]
}
