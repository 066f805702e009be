package session

import (
	"context"
	"errors"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// registerAfter is the delay before a follower is registered. Most requests
	// finish earlier and never need a registered follower.
	registerAfter = 100 * time.Millisecond
	// followInterval is how often followed sessions are examined for an idle
	// timeout, and for changes that were not announced.
	followInterval = 100 * time.Millisecond
	// unannouncedInterval is how often each followed session is read while the
	// store does not announce changes.
	unannouncedInterval = time.Second
	// followBatch is how many followed sessions are read until those are looked
	// for whose change was announced, and followParallel how many of them at
	// the same time. All are read after a lost connection to the store.
	followBatch    = 512
	followParallel = 16
)

// followers are the calls of Follow that were not stopped.
type followers struct {
	changed chan struct{} // receives when a followed session may have changed

	mu     sync.Mutex // guards all below
	closed bool       // no session is followed any more
	// first and last are the ends of the list of followers that are not
	// registered yet, the oldest first. Most followers are stopped before they
	// are registered.
	first, last *follower
	sessions    map[string]*followedSession // :: Session.ID
}

// followedSession is a session with registered followers. followers.mu guards
// it.
type followedSession struct {
	latest    *Session // as it was last read
	readAt    time.Time
	changed   bool // it may have changed since
	announced bool // it has changed since; it is read before the others
	followers map[*follower]struct{}
}

// follower is one call of Follow. followers.mu guards it.
type follower struct {
	id             string   // Session.ID
	session        *Session // that changed was last called with; nil without changed, once it is registered
	changed        func(latest *Session)
	ended          func(reason Reason)
	since          time.Time
	stopped        bool
	registered     bool
	previous, next *follower // in the list of those that are not registered
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
// Those of different sessions may be called at the same time.
func (m *Manager) Follow(s *Session, changed func(latest *Session), ended func(reason Reason)) (stop func()) {
	f := &follower{id: s.ID, session: s, changed: changed, ended: ended, since: time.Now()}
	m.followers.add(f)
	return func() { m.followers.remove(f) }
}

func (fs *followers) add(f *follower) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.closed {
		go f.ended("") // until it returns, which is soon
		return
	}
	if f.previous = fs.last; fs.last != nil {
		fs.last.next = f
	} else {
		fs.first = f
	}
	fs.last = f
}

// remove undoes add. A second call does nothing.
func (fs *followers) remove(f *follower) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f.stopped {
		return
	}
	f.stopped = true
	if !f.registered {
		fs.unlink(f)
		return
	}
	if followed := fs.sessions[f.id]; followed != nil {
		delete(followed.followers, f)
		if len(followed.followers) == 0 {
			delete(fs.sessions, f.id)
		}
	}
}

// unlink removes a follower from the list. The caller holds mu.
func (fs *followers) unlink(f *follower) {
	if f.previous != nil {
		f.previous.next = f.next
	} else if fs.first == f {
		fs.first = f.next
	}
	if f.next != nil {
		f.next.previous = f.previous
	} else if fs.last == f {
		fs.last = f.previous
	}
	f.previous, f.next = nil, nil
}

// register registers the followers that are older than registerAfter, or all.
func (fs *followers) register(now time.Time, all bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for f := fs.first; f != nil && (all || now.Sub(f.since) >= registerAfter); f = fs.first {
		fs.unlink(f)
		f.registered = true
		if fs.sessions == nil {
			fs.sessions = make(map[string]*followedSession)
		}
		followed := fs.sessions[f.id]
		if followed == nil {
			followed = &followedSession{latest: f.session, followers: make(map[*follower]struct{})}
			fs.sessions[f.id] = followed
		}
		followed.changed = true // perhaps, since it was read
		followed.followers[f] = struct{}{}
		if f.changed == nil {
			f.session = nil // it may be an old copy
		}
	}
}

// markChanged has a session read again, or all sessions if id is empty.
func (fs *followers) markChanged(id string) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if followed := fs.sessions[id]; followed != nil {
		followed.announced = true
		signal(fs.changed)
	}
	if id == "" {
		for _, followed := range fs.sessions {
			followed.changed = true
		}
		signal(fs.changed)
	}
}

// requeue has sessions read in the next round.
func (fs *followers) requeue(sessions []*Session) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, s := range sessions {
		if followed := fs.sessions[s.ID]; followed != nil {
			followed.changed = true
		}
	}
}

// due returns up to limit of the sessions that have to be read: they have
// changed, which come first, they may have changed, their idle timeout may have
// come, or the store does not announce changes. more reports whether there are
// others.
func (fs *followers) due(now time.Time, announces bool, limit int) (due []*Session, more bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	var others []*Session
	for _, followed := range fs.sessions {
		unannounced := !announces && now.Sub(followed.readAt) >= unannouncedInterval
		if followed.announced {
			due = append(due, followed.latest)
		} else if followed.changed || unannounced || !now.Before(followed.latest.IdleExpiresAt) {
			others = append(others, followed.latest)
		}
	}
	due = append(due, others...)
	more = len(due) > limit
	due = due[:min(limit, len(due))]
	for _, s := range due {
		followed := fs.sessions[s.ID]
		followed.changed, followed.announced = false, false
	}
	return due, more
}

// update records that a session was found, and calls changed of the followers
// that have not seen this state of it.
func (fs *followers) update(s *Session, now time.Time) {
	for _, changed := range fs.seen(s, now) {
		changed(s)
	}
}

// seen records that a session was found, and returns the functions to call.
func (fs *followers) seen(s *Session, now time.Time) (changed []func(*Session)) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	followed := fs.sessions[s.ID]
	if followed == nil {
		return nil
	}
	followed.latest, followed.readAt = s, now
	for f := range followed.followers {
		if f.changed != nil && f.session != s {
			f.session = s
			changed = append(changed, f.changed)
		}
	}
	return changed
}

// end calls ended of the followers of a session that has ended for a reason.
func (fs *followers) end(id string, reason Reason) {
	fs.mu.Lock()
	followed := fs.sessions[id]
	delete(fs.sessions, id)
	fs.mu.Unlock()
	if followed != nil {
		for f := range followed.followers {
			f.ended(reason)
		}
	}
}

// close calls ended of all followers, those that are added later included.
func (fs *followers) close() {
	fs.mu.Lock()
	fs.closed = true
	fs.mu.Unlock()
	fs.register(time.Now(), true)
	fs.markChanged("")
	all, _ := fs.due(time.Now(), true, math.MaxInt)
	for _, s := range all {
		fs.end(s.ID, "")
	}
}

// runFollowers looks for changes and ends of followed sessions, and calls their
// followers, until ctx is done.
func (m *Manager) runFollowers(ctx context.Context) {
	for more := false; ctx.Err() == nil; {
		if !more {
			select {
			case <-ctx.Done():
				return
			case <-m.followers.changed:
			case <-time.After(followInterval):
			}
		}
		now := time.Now()
		m.followers.register(now, false)
		var due []*Session
		due, more = m.followers.due(now, m.cache.valid(now), followBatch)
		if unread := m.readFollowed(ctx, due, now); len(unread) > 0 {
			m.followers.requeue(unread)
			more = false // the store is unavailable
		}
	}
}

// readFollowed reads sessions and calls their followers. Once a read has failed
// it begins no more, since all are likely to fail. It returns the sessions that
// were not read.
func (m *Manager) readFollowed(ctx context.Context, due []*Session, now time.Time) (unread []*Session) {
	var failed atomic.Bool
	var mu sync.Mutex // guards unread
	skip := func(sessions ...*Session) {
		failed.Store(true)
		mu.Lock()
		defer mu.Unlock()
		unread = append(unread, sessions...)
	}
	var group errgroup.Group
	group.SetLimit(followParallel)
	for i, s := range due {
		if failed.Load() {
			skip(due[i:]...)
			break
		}
		group.Go(func() error {
			latest, err := m.find(ctx, s.ticket)
			switch {
			case err == nil:
				m.followers.update(latest, now)
			case errors.Is(err, ErrNone):
				m.followers.end(s.ID, m.endReason(ctx, s.ID))
			default:
				skip(s)
			}
			return nil
		})
	}
	group.Wait() // its error is always nil
	return unread
}

// endReason returns why a session ended.
func (m *Manager) endReason(ctx context.Context, id string) Reason {
	reason, err := m.buriedReason(ctx, id)
	if err != nil || reason == "" { // the store has failed since, or has lost the tombstone
		return m.expiryReason(id, time.Now())
	}
	return reason
}
