package session

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"
)

// cache holds the sessions that were read recently, so that a session in use
// causes few reads of the store. The cache is used only while the store
// promises that every change has been announced (Watcher), and an announced
// change removes the session from the cache.
type cache struct {
	maxAge time.Duration
	start  time.Time
	until  atomic.Int64 // how long after start the cache is valid; 0: it never was
	shards [cacheShards]cacheShard
	seed   maphash.Seed
}

const (
	cacheShards      = 64
	cacheShardSize   = 1 << 20 // bytes of sessions in each, 64 MiB in all
	cacheShardLimits = 1024    // absolute ends in each, 6 MiB in all
)

type cacheShard struct {
	mu         sync.Mutex             // guards all below
	generation uint64                 // increases with each change: a value that was read before is discarded
	hits       uint64                 // of get
	misses     uint64                 // of get
	entries    map[string]*cacheEntry // :: Session.ID → the session, read at most maxAge ago
	size       int                    // of entries, in bytes
	limits     map[string]time.Time   // :: Session.ID → absolute end, of sessions that this replica has seen
	sweepAt    time.Time              // when entries older than maxAge are removed next
}

type cacheEntry struct {
	session   *Session
	read      time.Time
	reloading bool // one caller reads it again, before it is too old
}

func newCache(maxAge time.Duration) *cache {
	return &cache{maxAge: maxAge, start: time.Now(), seed: maphash.MakeSeed()}
}

// setValidUntil makes the cache valid until a time.
func (c *cache) setValidUntil(until time.Time) { c.until.Store(int64(until.Sub(c.start))) }

// valid reports whether the cache can be used.
func (c *cache) valid(now time.Time) bool { return int64(now.Sub(c.start)) < c.until.Load() }

// invalidated reports whether the cache was valid, and is not any more.
func (c *cache) invalidated(now time.Time) bool { return c.until.Load() != 0 && !c.valid(now) }

// get returns a session, or nil if it has to be read from the store. Shortly
// before an entry is too old, get returns nil to one caller, so that not all
// callers read the store at once.
func (c *cache) get(id string, now time.Time) *Session {
	shard := c.shard(id)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	s := c.getFrom(shard, id, now)
	if s != nil {
		shard.hits++
	} else {
		shard.misses++
	}
	return s
}

// getFrom is get, with the mutex of the shard held.
func (c *cache) getFrom(shard *cacheShard, id string, now time.Time) *Session {
	if !c.valid(now) {
		return nil
	}
	e := shard.entries[id]
	if e == nil || !now.Before(e.session.IdleExpiresAt) { // which another replica may have moved
		return nil
	}
	switch age := now.Sub(e.read); {
	case age > c.maxAge:
		return nil
	case age > c.maxAge*4/5 && !e.reloading:
		e.reloading = true
		return nil
	}
	return e.session
}

// peek returns a session that is in the cache, or nil, for a caller that needs
// the session's ticket or tokens and does not read the store otherwise.
func (c *cache) peek(id string, now time.Time) *Session {
	shard := c.shard(id)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if e := shard.entries[id]; e != nil && c.valid(now) && now.Sub(e.read) <= c.maxAge {
		return e.session
	}
	return nil
}

// stats returns how many calls of get found a session, and how many did not.
func (c *cache) stats() (hits, misses uint64) {
	for i := range c.shards {
		shard := &c.shards[i]
		shard.mu.Lock()
		hits, misses = hits+shard.hits, misses+shard.misses
		shard.mu.Unlock()
	}
	return hits, misses
}

// beginRead returns a generation for put, which discards a session that may
// have changed after it was read. valid is false if the cache cannot be used
// now.
func (c *cache) beginRead(id string) (generation uint64, valid bool) {
	shard := c.shard(id)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	return shard.generation, c.valid(time.Now())
}

// put adds a session that was read, unless it may have changed since beginRead.
func (c *cache) put(s *Session, generation uint64, valid bool, now time.Time) {
	if !valid || !c.valid(now) {
		return
	}
	shard := c.shard(s.ID)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if shard.generation != generation {
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
	for id := range shard.entries { // any entry: it would expire in a few seconds
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
		shard.limits = make(map[string]time.Time) // sessions in use are added again soon
	}
	shard.limits[id] = limit
}

// limit returns the absolute end of a session that may have expired; ok is
// false if it is not known.
func (c *cache) limit(id string) (limit time.Time, ok bool) {
	shard := c.shard(id)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	limit, ok = shard.limits[id]
	return limit, ok
}

// remove removes an entry, if there is one. The caller holds mu.
func (s *cacheShard) remove(id string) {
	if e := s.entries[id]; e != nil {
		s.size -= e.session.size()
		delete(s.entries, id)
	}
}

// size returns about how many bytes a session takes in memory.
func (s *Session) size() int {
	t := &s.Tokens
	size := 1024 + len(s.sealed) + 2*len(s.Claims) + 2*len(t.Access) + len(t.Refresh) + len(t.ID)
	for target, other := range t.Others { // each access token is there once more, in a header
		size += 512 + len(target) + 2*len(other.Access) + len(other.Scope)
	}
	for _, token := range t.Superseded {
		size += len(token)
	}
	return size
}

// drop removes a session that has changed.
func (c *cache) drop(id string) {
	shard := c.shard(id)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	shard.generation++
	shard.remove(id)
}

// clear removes all sessions, because any of them may have changed.
func (c *cache) clear() {
	c.until.Store(min(c.until.Load(), int64(time.Since(c.start))))
	for i := range c.shards {
		shard := &c.shards[i]
		shard.mu.Lock()
		shard.generation++
		clear(shard.entries)
		shard.size = 0
		shard.mu.Unlock()
	}
}

func (c *cache) shard(id string) *cacheShard {
	return &c.shards[maphash.String(c.seed, id)%cacheShards]
}
