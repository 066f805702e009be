package session

import (
	"context"
	"strings"
	"sync"
	"time"
)

// Run follows the writes of other replicas until ctx is done. Without Run every
// Find reads the store, no function of OnEnd is called, and a refresh by
// another replica is noticed late. Before Run returns, it calls all functions
// of OnEnd, because nothing would call them later.
func (m *Manager) Run(ctx context.Context) {
	var all sync.WaitGroup
	all.Go(func() { m.cfg.Store.Watch(ctx, m.onChange, m.onValid) }) // until ctx is done, as the others
	all.Go(func() { m.runFollowers(ctx) })
	all.Go(func() { m.replayLoop(ctx) })
	all.Wait()
	m.cache.clear()
	m.followers.close()
}

// onChange handles the announcement of a record or a lease that was written;
// the empty key means all records and leases.
func (m *Manager) onChange(key string) {
	if key == "" {
		m.cache.clear()
		m.notifier.wakeAll()
		m.mu.Lock()
		m.missedAt = time.Now()
		m.mu.Unlock()
		m.followers.markChanged("")
		m.failover.miss()
		return
	}
	kind, id, _ := strings.Cut(key, ":")
	if revoked, ok := strings.CutPrefix(id, revokedPrefix); ok {
		m.revokeCached(revoked)
		return
	}
	if kind == "session" {
		m.cache.drop(id)
		m.followers.markChanged(id)
	}
	m.notifier.wake(id)
}

// onValid handles the store's promise that all writes have been announced.
func (m *Manager) onValid(until time.Time) {
	invalidated := m.cache.invalidated(time.Now())
	m.cache.setValidUntil(until)
	if invalidated {
		m.notifier.wakeAll()
	}
}

// CacheValid reports whether the store announces the changes by other replicas
// to this Manager. While CacheValid returns false, each Find reads the store,
// and OnEnd reads the store once a second.
func (m *Manager) CacheValid() bool { return m.cache.valid(time.Now()) }

// notifier wakes refreshes that wait for another replica, or for a refresh of
// the same session for another target.
type notifier struct {
	mu      sync.Mutex                            // guards waiting
	waiting map[string]map[chan struct{}]struct{} // :: Session.ID → the channels of those that wait
}

// wait returns a channel that receives when the session changes, until stop is
// called.
func (n *notifier) wait(id string) (woken <-chan struct{}, stop func()) {
	c := make(chan struct{}, 1)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.waiting == nil {
		n.waiting = make(map[string]map[chan struct{}]struct{})
	}
	if n.waiting[id] == nil {
		n.waiting[id] = make(map[chan struct{}]struct{})
	}
	n.waiting[id][c] = struct{}{}
	return c, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if delete(n.waiting[id], c); len(n.waiting[id]) == 0 {
			delete(n.waiting, id)
		}
	}
}

func (n *notifier) wake(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.waiting[id] {
		signal(c)
	}
}

func (n *notifier) wakeAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, all := range n.waiting {
		for c := range all {
			signal(c)
		}
	}
}

// signal sends on c unless a signal is pending.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
