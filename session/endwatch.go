package session

import (
	"context"
	"errors"
	"sync"
	"time"
)

const (
	// watchAfter is the delay before a watcher is registered. Most requests
	// finish earlier and never need a registered watcher.
	watchAfter = 100 * time.Millisecond
	// watchInterval is how often watched sessions are examined for an idle
	// timeout, and for changes that were not announced.
	watchInterval = 100 * time.Millisecond
	// unannouncedInterval is how often each watched session is read while the
	// store does not announce changes.
	unannouncedInterval = time.Second
)

// endWatchers holds the callbacks to run when a session ends.
type endWatchers struct {
	changed chan struct{} // receives when a watched session has changed

	mu     sync.Mutex // guards all below
	closed bool       // no session is watched any more
	// first and last are the ends of the list of watchers that are not
	// registered yet, the oldest first. Most watchers are stopped before they
	// are registered.
	first, last *endWatcher
	watched     map[string]*watchedSession // :: Session.ID
}

type watchedSession struct {
	session  *Session // as it was last read
	readAt   time.Time
	changed  bool // it may have changed since
	watchers map[*endWatcher]struct{}
}

// endWatcher is one call of OnEnd. endWatchers.mu guards it.
type endWatcher struct {
	session        *Session
	ended          func()
	since          time.Time
	stopped        bool
	registered     bool
	previous, next *endWatcher // in the list of those that are not registered
}

// OnEnd registers the function ended. Run calls ended within a second after s
// has ended, for any reason and on any replica, unless stop was called before.
// After Run has returned, OnEnd calls ended at once. OnEnd is for streams and
// other long work for a session. ended must not block.
func (m *Manager) OnEnd(s *Session, ended func()) (stop func()) {
	w := &endWatcher{session: s, ended: ended, since: time.Now()}
	m.ends.add(w)
	return func() { m.ends.stop(w) }
}

func (e *endWatchers) add(w *endWatcher) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		go w.ended() // until it returns, which is soon
		return
	}
	if w.previous = e.last; e.last != nil {
		e.last.next = w
	} else {
		e.first = w
	}
	e.last = w
}

// stop undoes add. A second call does nothing.
func (e *endWatchers) stop(w *endWatcher) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if w.stopped {
		return
	}
	w.stopped = true
	if !w.registered {
		e.unlink(w)
		return
	}
	if session := e.watched[w.session.ID]; session != nil {
		delete(session.watchers, w)
		if len(session.watchers) == 0 {
			delete(e.watched, w.session.ID)
		}
	}
}

// unlink removes a watcher from the list. The caller holds mu.
func (e *endWatchers) unlink(w *endWatcher) {
	if w.previous != nil {
		w.previous.next = w.next
	} else if e.first == w {
		e.first = w.next
	}
	if w.next != nil {
		w.next.previous = w.previous
	} else if e.last == w {
		e.last = w.previous
	}
	w.previous, w.next = nil, nil
}

// promote registers the watchers that are older than watchAfter, or all.
func (e *endWatchers) promote(now time.Time, all bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for w := e.first; w != nil && (all || now.Sub(w.since) >= watchAfter); w = e.first {
		e.unlink(w)
		w.registered = true
		if e.watched == nil {
			e.watched = make(map[string]*watchedSession)
		}
		session := e.watched[w.session.ID]
		if session == nil {
			session = &watchedSession{session: w.session, watchers: make(map[*endWatcher]struct{})}
			e.watched[w.session.ID] = session
		}
		session.changed = true // perhaps, since it was read
		session.watchers[w] = struct{}{}
	}
}

// markChanged has a session read again, or all sessions if id is empty.
func (e *endWatchers) markChanged(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if session := e.watched[id]; session != nil {
		session.changed = true
		signal(e.changed)
	}
	if id == "" {
		for _, session := range e.watched {
			session.changed = true
		}
		signal(e.changed)
	}
}

// requeue has sessions read in the next round.
func (e *endWatchers) requeue(sessions []*Session) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range sessions {
		if session := e.watched[s.ID]; session != nil {
			session.changed = true
		}
	}
}

// due returns the sessions that have to be read: they may have changed, their
// idle timeout may have come, or the store does not announce changes.
func (e *endWatchers) due(now time.Time, announced bool) []*Session {
	e.mu.Lock()
	defer e.mu.Unlock()
	var due []*Session
	for _, session := range e.watched {
		unannounced := !announced && now.Sub(session.readAt) >= unannouncedInterval
		if session.changed || unannounced || !now.Before(session.session.IdleExpiresAt) {
			session.changed = false
			due = append(due, session.session)
		}
	}
	return due
}

// markAlive records that a session was found.
func (e *endWatchers) markAlive(s *Session, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if session := e.watched[s.ID]; session != nil {
		session.session, session.readAt = s, now
	}
}

// notify calls the watchers of a session that has ended.
func (e *endWatchers) notify(id string) {
	e.mu.Lock()
	session := e.watched[id]
	delete(e.watched, id)
	e.mu.Unlock()
	if session != nil {
		for w := range session.watchers {
			w.ended()
		}
	}
}

// notifyAll calls all watchers, those that are added later included.
func (e *endWatchers) notifyAll() {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.promote(time.Now(), true)
	e.markChanged("")
	for _, s := range e.due(time.Now(), true) {
		e.notify(s.ID)
	}
}

// watchEnds looks for ends of watched sessions until ctx is done.
func (m *Manager) watchEnds(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.ends.changed:
		case <-time.After(watchInterval):
		}
		now := time.Now()
		m.ends.promote(now, false)
		due := m.ends.due(now, m.cache.valid(now))
		for len(due) > 0 {
			latest, err := m.Find(ctx, due[0].ticket)
			if err != nil && !errors.Is(err, ErrNone) {
				break // the store is unavailable
			}
			if err == nil {
				m.ends.markAlive(latest, now)
			} else {
				m.ends.notify(due[0].ID)
			}
			due = due[1:]
		}
		m.ends.requeue(due)
	}
}
