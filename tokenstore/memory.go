// Package tokenstore implements session.Store: [Redis] for any number of
// replicas, [File] for a single one on a disk, and [Memory] for tests and
// demonstrations.
//
//	store, err := tokenstore.NewRedis(tokenstore.RedisConfig{URL: "redis://localhost:6379/0"})
//
// Values are encrypted and keys are hashes before they get here, so a store
// cannot read what it holds. Package storetest checks that a store meets the
// contract of session.Store.
package tokenstore

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"sync"
	"time"
)

// Memory is a store in the memory of this process, for development, tests and a
// single replica. Its sessions end with the process. The zero value is ready to
// use. A Memory must not be copied.
type Memory struct {
	mu      sync.Mutex        // guards the fields up to sweepAt
	records map[string]record // :: key → record
	sets    map[string]set    // :: key → set
	sweepAt time.Time         // the first write after it removes expired records

	watching sync.RWMutex // guards watchers; mu is never held at the same time
	watchers map[*func(key string)]struct{}
}

type record struct {
	value   []byte
	expires time.Time
}

// set maps each member to the time at which it expires. Empty sets are removed.
type set map[string]time.Time

// sweepEvery is the minimum time between two removals of expired records.
const sweepEvery = time.Minute

// Get is part of session.Store.
func (m *Memory) Get(_ context.Context, key string) ([]byte, time.Duration, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	rec, ok := m.live(key)
	if !ok {
		return nil, 0, false, nil
	}
	return slices.Clone(rec.value), time.Until(rec.expires), true, nil
}

// Create is part of session.Store.
func (m *Memory) Create(_ context.Context, key string, value []byte, ttl time.Duration) (created bool, _ error) {
	defer m.announceIf(&created, key)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sweep()
	if rec, ok := m.live(key); ok {
		return bytes.Equal(rec.value, value), nil
	}
	m.put(key, record{slices.Clone(value), time.Now().Add(ttl)})
	return true, nil
}

// Replace is part of session.Store.
func (m *Memory) Replace(_ context.Context, key string, old, value []byte) (replaced bool, _ error) {
	defer m.announceIf(&replaced, key)
	m.mu.Lock()
	defer m.mu.Unlock()
	rec, ok := m.live(key)
	if !ok || !bytes.Equal(rec.value, old) {
		return ok && bytes.Equal(rec.value, value), nil
	}
	rec.value = slices.Clone(value)
	m.records[key] = rec
	return true, nil
}

// Touch is part of session.Store.
func (m *Memory) Touch(_ context.Context, key string, ttl time.Duration) (found bool, _ error) {
	defer m.announceIf(&found, key)
	m.mu.Lock()
	defer m.mu.Unlock()
	rec, ok := m.live(key)
	if !ok {
		return false, nil
	}
	rec.expires = time.Now().Add(ttl)
	m.records[key] = rec
	return true, nil
}

// Delete is part of session.Store.
func (m *Memory) Delete(_ context.Context, keys ...string) error {
	for _, key := range keys {
		m.mu.Lock()
		_, found := m.records[key]
		delete(m.records, key)
		m.mu.Unlock()
		m.announceIf(&found, key)
	}
	return nil
}

// Acquire is part of session.Store.
func (m *Memory) Acquire(_ context.Context, key, owner string, ttl time.Duration) (acquired bool, _ error) {
	defer m.announceIf(&acquired, key)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sweep()
	if rec, ok := m.live(key); ok && string(rec.value) != owner {
		return false, nil
	}
	m.put(key, record{[]byte(owner), time.Now().Add(ttl)})
	return true, nil
}

// Release is part of session.Store.
func (m *Memory) Release(_ context.Context, key, owner string) error {
	var held bool
	defer m.announceIf(&held, key)
	m.mu.Lock()
	defer m.mu.Unlock()
	rec, ok := m.live(key)
	if held = ok && string(rec.value) == owner; held {
		delete(m.records, key)
	}
	return nil
}

// Add is part of session.Store.
func (m *Memory) Add(_ context.Context, members map[string]string, ttl time.Duration) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sweep()
	if m.sets == nil {
		m.sets = make(map[string]set)
	}
	now := time.Now()
	for key, member := range members {
		s := m.sets[key]
		if s == nil {
			s = make(set)
			m.sets[key] = s
		}
		s.expire(now)
		if expires := now.Add(ttl); expires.After(s[member]) {
			s[member] = expires
		}
	}
	return nil
}

// Members is part of session.Store.
func (m *Memory) Members(_ context.Context, keys ...string) (members []string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, key := range keys {
		s := m.sets[key]
		s.expire(time.Now())
		members = append(members, slices.Sorted(maps.Keys(s))...)
	}
	return members, nil
}

// Remove is part of session.Store.
func (m *Memory) Remove(_ context.Context, members map[string]string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, member := range members {
		s := m.sets[key]
		delete(s, member)
		if len(s) == 0 {
			delete(m.sets, key)
		}
	}
	return nil
}

// expire removes the members that have expired.
func (s set) expire(now time.Time) {
	maps.DeleteFunc(s, func(_ string, expires time.Time) bool { return !now.Before(expires) })
}

// Watch is part of session.Store. It calls onChange before the writing method
// returns.
func (m *Memory) Watch(ctx context.Context, onChange func(key string), onValid func(until time.Time)) {
	m.watching.Lock()
	if m.watchers == nil {
		m.watchers = make(map[*func(key string)]struct{})
	}
	m.watchers[&onChange] = struct{}{}
	m.watching.Unlock()
	onValid(time.Now().Add(100 * 365 * 24 * time.Hour))
	<-ctx.Done()
	m.watching.Lock()
	defer m.watching.Unlock()
	delete(m.watchers, &onChange)
}

// announceIf calls the watchers if a record or lease was written. The caller
// must not hold mu.
func (m *Memory) announceIf(written *bool, key string) {
	if !*written {
		return
	}
	m.watching.RLock()
	defer m.watching.RUnlock()
	for onChange := range m.watchers {
		(*onChange)(key)
	}
}

// Len returns the number of records and sets in memory, including expired ones
// that are not removed yet.
func (m *Memory) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.records) + len(m.sets)
}

// Ping returns nil.
func (m *Memory) Ping(context.Context) error { return nil }

// Close does nothing and returns nil.
func (m *Memory) Close() error { return nil }

// live returns the record under key unless it has expired. The caller holds mu.
func (m *Memory) live(key string) (record, bool) {
	rec, ok := m.records[key]
	if !ok || !time.Now().Before(rec.expires) {
		return record{}, false
	}
	return rec, true
}

// put writes a record. The caller holds mu.
func (m *Memory) put(key string, rec record) {
	if m.records == nil {
		m.records = make(map[string]record)
	}
	m.records[key] = rec
}

// sweep removes expired records, at most once in sweepEvery. The caller holds
// mu.
func (m *Memory) sweep() {
	now := time.Now()
	if now.Before(m.sweepAt) {
		return
	}
	m.sweepAt = now.Add(sweepEvery)
	for key, rec := range m.records {
		if !now.Before(rec.expires) {
			delete(m.records, key)
		}
	}
	for key, s := range m.sets {
		if s.expire(now); len(s) == 0 {
			delete(m.sets, key)
		}
	}
}
