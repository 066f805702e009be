package bearer

import (
	"crypto/sha256"
	"sync"
	"time"
)

// maxCached is the maximum number of entries of each cache.
const maxCached = 4096

// hashOf returns the key of a token in caches, so that they hold no tokens.
func hashOf(raw string) [sha256.Size]byte { return sha256.Sum256([]byte(raw)) }

// cache maps token hashes to values until a time for each. The zero value is
// empty. When the cache is full, an arbitrary entry is evicted.
type cache[V any] struct {
	mu      sync.RWMutex // guards entries
	entries map[[sha256.Size]byte]cached[V]
}

type cached[V any] struct {
	value V
	until time.Time
}

func (c *cache[V]) get(key [sha256.Size]byte) (value V, ok bool) {
	c.mu.RLock()
	found, ok := c.entries[key]
	c.mu.RUnlock()
	if !ok || !time.Now().Before(found.until) {
		return value, false
	}
	return found.value, true
}

func (c *cache[V]) put(key [sha256.Size]byte, value V, until time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries == nil {
		c.entries = make(map[[sha256.Size]byte]cached[V])
	}
	if _, ok := c.entries[key]; !ok && len(c.entries) >= maxCached {
		for k := range c.entries {
			delete(c.entries, k)
			break
		}
	}
	c.entries[key] = cached[V]{value, until}
}
