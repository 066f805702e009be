package session

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
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
	asking atomic.Int64  // calls of WhenEnded that have not been stopped
	wake   chan struct{} // there is something to read

	mu      sync.Mutex                 // guards all below
	over    bool                       // nobody watches any more
	watched map[string]*watchedSession // :: Session.ID
}

type watchedSession struct {
	session   *Session // as it was read last
	checkedAt time.Time
	changed   bool // it may have changed since
	calls     map[*whenEnded]struct{}
}

type whenEnded struct {
	call    func()
	stopped bool // guarded by ends.mu
}

// WhenEnded calls ended once s has ended, by logout, revocation, idle or absolute time-out, on whichever replica: within a second, unless
// stop is called before. It is for those who are long at work for a session: streams.
func (m *Manager) WhenEnded(s *Session, ended func()) (stop func()) {
	m.ends.asking.Add(1)
	call := &whenEnded{call: ended}
	timer := time.AfterFunc(watchAfter, func() { m.ends.add(s, call) })
	return sync.OnceFunc(func() {
		m.ends.asking.Add(-1)
		if !timer.Stop() {
			m.ends.remove(s.ID, call)
		}
	})
}

func (e *ends) add(s *Session, call *whenEnded) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if call.stopped {
		return
	}
	if e.over {
		go call.call()
		return
	}
	if e.watched == nil {
		e.watched = make(map[string]*watchedSession)
	}
	w := e.watched[s.ID]
	if w == nil {
		w = &watchedSession{session: s, calls: make(map[*whenEnded]struct{})}
		e.watched[s.ID] = w
	}
	w.changed = true // since it was read
	w.calls[call] = struct{}{}
	wake(e.wake)
}

func (e *ends) remove(id string, call *whenEnded) {
	e.mu.Lock()
	defer e.mu.Unlock()
	call.stopped = true
	if w := e.watched[id]; w != nil {
		delete(w.calls, call)
		if len(w.calls) == 0 {
			delete(e.watched, id)
		}
	}
}

// WaitForStreams waits until nobody wants to be told of any session's end (see WhenEnded), or until ctx ends.
func (m *Manager) WaitForStreams(ctx context.Context) {
	for m.ends.asking.Load() > 0 {
		select {
		case <-ctx.Done():
			return
		case <-time.After(watchEvery):
		}
	}
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
		due := m.ends.due(now, m.cache.current(now))
		for len(due) > 0 {
			read, err := m.find(ctx, due[0].ticket)
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
