package bearer

import (
	"crypto/sha256"
	"sync"
	"time"
)

// maxCached bounds each cache of tokens.
const maxCached = 4096

// hashOf stands for a token where it is kept, so that it is not.
func hashOf(raw string) [sha256.Size]byte { return sha256.Sum256([]byte(raw)) }

// cache remembers what is known of tokens, until a time for each. Its zero value is empty. When it is full, any one has to go.
type cache[V any] struct {
	mu sync.RWMutex // guards of
	of map[[sha256.Size]byte]cached[V]
}

type cached[V any] struct {
	value V
	until time.Time
}

func (c *cache[V]) get(key [sha256.Size]byte) (value V, ok bool) {
	c.mu.RLock()
	found, ok := c.of[key]
	c.mu.RUnlock()
	if !ok || !time.Now().Before(found.until) {
		return value, false
	}
	return found.value, true
}

func (c *cache[V]) put(key [sha256.Size]byte, value V, until time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil {
		c.of = make(map[[sha256.Size]byte]cached[V])
	}
	if _, there := c.of[key]; !there && len(c.of) >= maxCached {
		for any := range c.of { // in no order
			delete(c.of, any)
			break
		}
	}
	c.of[key] = cached[V]{value, until}
}
