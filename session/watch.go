package session

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// watchAfter is how long somebody has to be at work for a session before its end is watched for.
	watchAfter = 100 * time.Millisecond
	// watchEvery is how often it is looked which of the watched sessions have to be read although nobody said that they have changed.
	watchEvery = 100 * time.Millisecond
	// watchUnannounced is how often each of them is read while the store does not announce changes.
	watchUnannounced = time.Second
)

// Watch follows what other replicas do to the sessions, until ctx ends. It is what the cache, streams that end with their session, and a short wait
// for another replica's refresh rest on: without it every request asks the store, and WhenEnded never calls. When it returns, all who wait for the end of a session
// have been called, for nobody would tell them any more.
func (m *Manager) Watch(ctx context.Context) {
	var both sync.WaitGroup
	both.Go(func() { m.cfg.Store.Watch(ctx, m.changed, m.cache.vouch) }) // until ctx ends, as the other
	both.Go(func() { m.watchEnds(ctx) })
	both.Wait()
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
		m.working.Go(func() { m.redo(context.Background()) }) // bounded by the store's time-outs
		return
	}
	kind, id, _ := strings.Cut(key, ":")
	if kind == "session" {
		m.cache.drop(id)
		m.ends.check(id)
	}
	m.waking.one(id)
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

// journal is what this replica wrote in the last minute and what must not be lost: that a session has ended, and tokens whose predecessors are
// spent. A store that fails over to a server without the last writes shows what was before them.
type journal struct {
	mu      sync.Mutex
	written map[string]written // :: Session.ID
}

type written struct {
	ended bool
	olds  [][]byte // what the record was before, the oldest first
	new   []byte
	at    time.Time
}

const (
	journalFor  = time.Minute // more than a replica is ever behind its master
	journalSize = 10_000
	journalOlds = 8
	redoAtOnce  = 16 // writes at once: all have to be made before leaseGrace is over
)

// replaced notes that a record was replaced.
func (j *journal) replaced(id string, old, new []byte) {
	w := written{new: new}
	if before, ok := j.get(id); ok {
		w.olds = before.olds[max(0, len(before.olds)-journalOlds+1):]
	}
	w.olds = append(slices.Clip(w.olds), old)
	j.add(id, w)
}

// ended notes that a session was ended.
func (j *journal) ended(id string) { j.add(id, written{ended: true}) }

func (j *journal) add(id string, w written) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.written == nil {
		j.written = make(map[string]written)
	}
	w.at = time.Now()
	j.written[id] = w
	if len(j.written) <= journalSize {
		return
	}
	for id, w := range j.written {
		if time.Since(w.at) > journalFor || len(j.written) > journalSize {
			delete(j.written, id)
		}
	}
}

func (j *journal) get(id string) (written, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	w, ok := j.written[id]
	if ok && time.Since(w.at) > journalFor {
		delete(j.written, id)
		ok = false
	}
	return w, ok
}

// ids returns the sessions that were written, the last one first: what is youngest is likeliest to be lost.
func (j *journal) ids() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.SortedFunc(maps.Keys(j.written), func(a, b string) int { return j.written[b].at.Compare(j.written[a].at) })
}

// redo writes again what the store may have lost. None of it can undo what others have written since: an end is final, and a
// record is replaced only where it shows what it was before.
func (m *Manager) redo(ctx context.Context) {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(redoAtOnce)
	for _, id := range m.journal.ids() {
		w, ok := m.journal.get(id)
		if !ok || ctx.Err() != nil {
			break // the rest is older; or the store is away again, and when it is back this is called again
		}
		group.Go(func() error {
			if w.ended {
				return m.cfg.Store.Delete(ctx, recordKey(id))
			}
			for _, old := range slices.Backward(w.olds) {
				if _, err := m.cfg.Store.Replace(ctx, recordKey(id), old, w.new); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		m.log.DebugContext(ctx, "the last writes were not repeated; they will be when they are needed", "err", err)
	}
}
