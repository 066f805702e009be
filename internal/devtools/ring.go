package devtools

import (
	"slices"
	"sync"
)

// ring keeps the last values that were added.
type ring[T any] struct {
	max int // set before use

	mu     sync.Mutex // guards values
	values []T        // the oldest first
}

func (r *ring[T]) add(value T) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.values) >= r.max {
		r.values = slices.Delete(r.values, 0, 1)
	}
	r.values = append(r.values, value)
}

// latest returns the values, the latest first.
func (r *ring[T]) latest() []T {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := slices.Clone(r.values)
	slices.Reverse(all)
	return all
}
