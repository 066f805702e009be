package session

import (
	"context"
	"strings"
	"sync"
	"time"
)

// Run follows what other replicas do to the sessions, until ctx ends. It is what the cache, streams that end with their session, and a short wait
// for another replica's refresh rest on: without it every request asks the store, and OnEnd never calls. When it returns, all who wait for the end of a session
// have been called, for nobody would tell them any more.
func (m *Manager) Run(ctx context.Context) {
	var all sync.WaitGroup
	all.Go(func() { m.cfg.Store.Watch(ctx, m.changed, m.current) }) // until ctx ends, as the others
	all.Go(func() { m.watchEnds(ctx) })
	all.Go(func() { m.redoMissed(ctx) })
	all.Wait()
	m.cache.clear()
	m.ends.all()
}

// changed is told by the store which record or lease was written; the empty key is all of them.
func (m *Manager) changed(key string) {
	if key == "" {
		m.cache.clear()
		m.waking.all()
		m.mu.Lock()
		m.missedAt = time.Now()
		m.mu.Unlock()
		m.ends.check("")
		wake(m.journal.missed)
		return
	}
	kind, id, _ := strings.Cut(key, ":")
	if kind == "session" {
		m.cache.drop(id)
		m.ends.check(id)
	}
	m.waking.one(id)
}

// current is told by the store until when it vouches that every change is announced.
func (m *Manager) current(until time.Time) {
	lost := m.cache.lost(time.Now())
	m.cache.vouch(until)
	if lost {
		m.waking.all()
	}
}

// waking wakes those who wait for another replica.
type waking struct {
	mu      sync.Mutex
	waiting map[string]chan struct{} // :: Session.ID → where its one waiter is woken
}

// wait returns where changes of a session are announced until stop is called. There is one waiter a session: its flight.
func (w *waking) wait(id string) (woken <-chan struct{}, stop func()) {
	c := make(chan struct{}, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting == nil {
		w.waiting = make(map[string]chan struct{})
	}
	w.waiting[id] = c
	return c, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.waiting, id)
	}
}

func (w *waking) one(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	wake(w.waiting[id])
}

func (w *waking) all() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.waiting {
		wake(c)
	}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // nobody waits, or they are to be woken already
	}
}
