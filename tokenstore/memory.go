// Package tokenstore keeps session records: in Redis, for any number of replicas, or in memory, for one. Both are a
// session.Store, under the contract that the package storetest checks. They see sealed bytes, keys that are hashes, and times to live.
package tokenstore

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"time"
)

// Memory is a store in this process's memory: for development, tests and a single replica whose sessions may end with it. The
// zero value is ready to use.
type Memory struct {
	mu      sync.Mutex        // guards all below
	records map[string]record // :: key → record
	sweepAt time.Time         // when expired records are removed next, by whichever write comes then
}

type record struct {
	value   []byte
	expires time.Time
}

// sweepEvery is how long an expired record may take up memory.
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
func (m *Memory) Create(_ context.Context, key string, value []byte, ttl time.Duration) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sweep()
	if _, ok := m.live(key); ok {
		return false, nil
	}
	m.put(key, record{slices.Clone(value), time.Now().Add(ttl)})
	return true, nil
}

// Replace is part of session.Store.
func (m *Memory) Replace(_ context.Context, key string, old, value []byte) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	rec, ok := m.live(key)
	if !ok || !bytes.Equal(rec.value, old) {
		return false, nil
	}
	rec.value = slices.Clone(value)
	m.records[key] = rec
	return true, nil
}

// Touch is part of session.Store.
func (m *Memory) Touch(_ context.Context, key string, ttl time.Duration) (bool, error) {
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
func (m *Memory) Delete(_ context.Context, key string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.records, key)
	return nil
}

// Acquire is part of session.Store.
func (m *Memory) Acquire(_ context.Context, key, owner string, ttl time.Duration) (bool, error) {
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
	m.mu.Lock()
	defer m.mu.Unlock()
	if rec, ok := m.live(key); ok && string(rec.value) == owner {
		delete(m.records, key)
	}
	return nil
}

// Len returns how many records take up memory, expired ones that have not been removed yet among them.
func (m *Memory) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.records)
}

// Ping says that the store answers: always.
func (m *Memory) Ping(context.Context) error { return nil }

// Close does nothing: what Memory holds goes with the process.
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

// sweep removes what has expired, at most once in sweepEvery. The caller holds mu.
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
}
