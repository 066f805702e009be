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

// endWatchers holds the callbacks to run when a session changes or ends.
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

// endWatcher is one call of Follow. endWatchers.mu guards it.
type endWatcher struct {
	id             string   // Session.ID
	session        *Session // that changed was last called with; nil without changed, once it is registered
	changed        func(latest *Session)
	ended          func(reason Reason)
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
	return m.Follow(s, nil, func(Reason) { ended() })
}

// Follow is OnEnd, and also says why the session ended. The reason is empty if
// the session may still exist, because Run has returned.
//
// Until the end, Run calls changed with the session within a second after it
// was read again: after a refresh or a Touch on any replica, for example. The
// session may be the same as before in all fields. A nil changed is not called.
// changed and ended must not block. They may be in progress when stop returns.
func (m *Manager) Follow(s *Session, changed func(latest *Session), ended func(reason Reason)) (stop func()) {
	w := &endWatcher{id: s.ID, session: s, changed: changed, ended: ended, since: time.Now()}
	m.ends.add(w)
	return func() { m.ends.stop(w) }
}

func (e *endWatchers) add(w *endWatcher) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		go w.ended("") // until it returns, which is soon
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
	if session := e.watched[w.id]; session != nil {
		delete(session.watchers, w)
		if len(session.watchers) == 0 {
			delete(e.watched, w.id)
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
		session := e.watched[w.id]
		if session == nil {
			session = &watchedSession{session: w.session, watchers: make(map[*endWatcher]struct{})}
			e.watched[w.id] = session
		}
		session.changed = true // perhaps, since it was read
		session.watchers[w] = struct{}{}
		if w.changed == nil {
			w.session = nil // it may be an old copy
		}
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

// markAlive records that a session was found, and tells the watchers that have
// not seen this state of it.
func (e *endWatchers) markAlive(s *Session, now time.Time) {
	for _, changed := range e.seen(s, now) {
		changed(s)
	}
}

// seen records that a session was found, and returns the functions to call.
func (e *endWatchers) seen(s *Session, now time.Time) (changed []func(*Session)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	session := e.watched[s.ID]
	if session == nil {
		return nil
	}
	session.session, session.readAt = s, now
	for w := range session.watchers {
		if w.changed != nil && w.session != s {
			w.session = s
			changed = append(changed, w.changed)
		}
	}
	return changed
}

// notify calls the watchers of a session that has ended for a reason.
func (e *endWatchers) notify(id string, reason Reason) {
	e.mu.Lock()
	session := e.watched[id]
	delete(e.watched, id)
	e.mu.Unlock()
	if session != nil {
		for w := range session.watchers {
			w.ended(reason)
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
		e.notify(s.ID, "")
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
			latest, err := m.find(ctx, due[0].ticket)
			if err != nil && !errors.Is(err, ErrNone) {
				break // the store is unavailable
			}
			if err == nil {
				m.ends.markAlive(latest, now)
			} else {
				m.ends.notify(due[0].ID, m.endReason(ctx, due[0].ID))
			}
			due = due[1:]
		}
		m.ends.requeue(due)
	}
}

// endReason returns why a session ended.
func (m *Manager) endReason(ctx context.Context, id string) Reason {
	reason, err := m.buriedReason(ctx, id)
	if err != nil || reason == "" { // the store has failed since, or has lost the tombstone
		return m.expiryReason(id, time.Now())
	}
	return reason
}
