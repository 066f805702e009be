package session

import (
	"context"
	"errors"
	"sync"
	"time"
)

const (
	// watchAfter is how long somebody has to be at work for a session before its end is watched for.
	watchAfter = 100 * time.Millisecond
	// watchEvery is how often it is looked which of the watched sessions have to be read although nobody said that they have changed.
	watchEvery = 100 * time.Millisecond
	// watchUnannounced is how often each of them is read while the store does not announce changes.
	watchUnannounced = time.Second
)

// ends are the sessions whose end somebody wants to be told of.
type ends struct {
	wake chan struct{} // there is something to read

	mu          sync.Mutex                 // guards all below
	over        bool                       // nobody watches any more
	asking      int                        // calls of OnEnd that have not been stopped
	first, last *whenEnded                 // those that are not watched for yet, the oldest first: most are stopped before they are
	watched     map[string]*watchedSession // :: Session.ID
}

type watchedSession struct {
	session   *Session // as it was read last
	checkedAt time.Time
	changed   bool // it may have changed since
	calls     map[*whenEnded]struct{}
}

// whenEnded is one call of OnEnd. What is in it is guarded by ends.mu.
type whenEnded struct {
	session        *Session
	call           func()
	asked          time.Time
	stopped        bool
	watched        bool
	previous, next *whenEnded // of those that are not watched for yet
}

// OnEnd calls ended once s has ended, by logout, revocation, idle or absolute time-out, on whichever replica: within a second, unless
// stop is called before. It is for those who are long at work for a session: streams.
func (m *Manager) OnEnd(s *Session, ended func()) (stop func()) {
	w := &whenEnded{session: s, call: ended, asked: time.Now()}
	m.ends.ask(w)
	return func() { m.ends.stop(w) }
}

func (e *ends) ask(w *whenEnded) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asking++
	if e.over {
		go w.call()
		return
	}
	if w.previous = e.last; e.last != nil {
		e.last.next = w
	} else {
		e.first = w
	}
	e.last = w
}

// stop takes back a call of OnEnd. It can be called again.
func (e *ends) stop(w *whenEnded) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if w.stopped {
		return
	}
	w.stopped = true
	e.asking--
	if !w.watched {
		e.unlink(w)
		return
	}
	if session := e.watched[w.session.ID]; session != nil {
		delete(session.calls, w)
		if len(session.calls) == 0 {
			delete(e.watched, w.session.ID)
		}
	}
}

// unlink takes a call from the list. The caller holds mu.
func (e *ends) unlink(w *whenEnded) {
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

// watchOld watches for those that have been asking for watchAfter, or for all.
func (e *ends) watchOld(now time.Time, all bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for w := e.first; w != nil && (all || now.Sub(w.asked) >= watchAfter); w = e.first {
		e.unlink(w)
		w.watched = true
		if e.watched == nil {
			e.watched = make(map[string]*watchedSession)
		}
		session := e.watched[w.session.ID]
		if session == nil {
			session = &watchedSession{session: w.session, calls: make(map[*whenEnded]struct{})}
			e.watched[w.session.ID] = session
		}
		session.changed = true // since it was read
		session.calls[w] = struct{}{}
	}
}

// WaitForStreams waits until nobody wants to be told of any session's end (see OnEnd), or until ctx ends.
func (m *Manager) WaitForStreams(ctx context.Context) {
	for m.ends.anyone() {
		select {
		case <-ctx.Done():
			return
		case <-time.After(watchEvery):
		}
	}
}

func (e *ends) anyone() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.asking > 0
}

// check has a session, or all of them, read again.
func (e *ends) check(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if w := e.watched[id]; w != nil {
		w.changed = true
		wake(e.wake)
	}
	if id == "" {
		for _, w := range e.watched {
			w.changed = true
		}
		wake(e.wake)
	}
}

// again has sessions read in the next round.
func (e *ends) again(sessions []*Session) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range sessions {
		if w := e.watched[s.ID]; w != nil {
			w.changed = true
		}
	}
}

// due returns the sessions that have to be read: they may have changed, they may be idle for too long, or nobody announces changes.
func (e *ends) due(now time.Time, announced bool) []*Session {
	e.mu.Lock()
	defer e.mu.Unlock()
	var due []*Session
	for _, w := range e.watched {
		if w.changed || !now.Before(w.session.IdleExpiresAt) || !announced && now.Sub(w.checkedAt) >= watchUnannounced {
			w.changed = false
			due = append(due, w.session)
		}
	}
	return due
}

// alive says that a session was found.
func (e *ends) alive(s *Session, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if w := e.watched[s.ID]; w != nil {
		w.session, w.checkedAt = s, now
	}
}

// ended calls those who wait for a session's end.
func (e *ends) ended(id string) {
	e.mu.Lock()
	w := e.watched[id]
	delete(e.watched, id)
	e.mu.Unlock()
	if w != nil {
		for call := range w.calls {
			call.call()
		}
	}
}

// all calls everybody who waits.
func (e *ends) all() {
	e.mu.Lock()
	e.over = true
	e.mu.Unlock()
	e.watchOld(time.Now(), true)
	e.check("")
	for _, s := range e.due(time.Now(), true) {
		e.ended(s.ID)
	}
}

// watchEnds looks for the ends of the watched sessions, until ctx ends.
func (m *Manager) watchEnds(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.ends.wake:
		case <-time.After(watchEvery):
		}
		now := time.Now()
		m.ends.watchOld(now, false)
		due := m.ends.due(now, m.cache.current(now))
		for len(due) > 0 {
			read, err := m.Find(ctx, due[0].ticket)
			if err != nil && !errors.Is(err, ErrNone) {
				break // the store cannot be asked
			}
			if err == nil {
				m.ends.alive(read, now)
			} else {
				m.ends.ended(due[0].ID)
			}
			due = due[1:]
		}
		m.ends.again(due)
	}
}
