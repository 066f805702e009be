package session

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// failoverLog records this replica's deletions and refreshes of the last
// minute, so that they can be repeated if a failover loses them: the new master
// may lack the last writes, and show what was before them. The log does not age
// while the store is away.
type failoverLog struct {
	missed chan struct{} // receives when the store may have failed over

	mu     sync.Mutex             // guards all below
	writes map[string]loggedWrite // :: Session.ID → the last write
	lostAt time.Time              // when the store may have failed over; zero: all was replayed since
}

// loggedWrite is a deletion, or a record with refreshed tokens.
type loggedWrite struct {
	deleted   bool
	ticket    Ticket // opens the records of the session
	refreshes int    // Session.refreshes of record
	replaces  []byte // what record was made of
	record    []byte
	at        time.Time
}

const (
	failoverLogAge  = time.Minute // more than a replica of Redis lags behind its master
	failoverLogSize = 10_000
	replayParallel  = 16 // writes at the same time: the replay has to end within leaseGrace
)

// refreshed records that the store has s, with refreshed tokens.
func (l *failoverLog) refreshed(s *Session) {
	l.add(s.ID, loggedWrite{ticket: s.ticket, refreshes: s.refreshes, replaces: s.replaces, record: s.sealed})
}

// deleted records that a session ended.
func (l *failoverLog) deleted(id string) { l.add(id, loggedWrite{deleted: true}) }

func (l *failoverLog) add(id string, w loggedWrite) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.writes == nil {
		l.writes = make(map[string]loggedWrite)
	}
	w.at = time.Now()
	l.writes[id] = w
	if len(l.writes) <= failoverLogSize {
		return
	}
	for id, w := range l.writes {
		if l.tooOld(w) || len(l.writes) > failoverLogSize {
			delete(l.writes, id)
		}
	}
}

func (l *failoverLog) get(id string) (loggedWrite, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w, ok := l.writes[id]
	if ok && l.tooOld(w) {
		delete(l.writes, id)
		ok = false
	}
	return w, ok
}

// tooOld reports whether the store had w for failoverLogAge before it may have
// failed over. The caller holds mu.
func (l *failoverLog) tooOld(w loggedWrite) bool {
	until := l.lostAt
	if until.IsZero() {
		until = time.Now()
	}
	return until.Sub(w.at) > failoverLogAge
}

// miss causes a replay: the store may have failed over.
func (l *failoverLog) miss() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lostAt.IsZero() {
		l.lostAt = time.Now()
	}
	signal(l.missed)
}

// replayed is called after a replay that repeated all writes.
func (l *failoverLog) replayed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.missed) == 0 {
		l.lostAt = time.Time{}
	}
}

// ids returns the sessions of all writes, the latest first: the latest writes
// are the likeliest to be lost.
func (l *failoverLog) ids() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.SortedFunc(maps.Keys(l.writes), func(a, b string) int {
		return l.writes[b].at.Compare(l.writes[a].at)
	})
}

// replayLoop replays the last writes whenever the store may have failed over,
// until ctx is done. A replay that fails is retried: until it succeeds, another
// replica may use a refresh token that was rotated, which ends the session.
func (m *Manager) replayLoop(ctx context.Context) {
	var ids []string // of the sessions whose writes are still to be replayed
	var retry <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.failover.missed:
			ids = m.failover.ids()
		case <-retry:
		}
		var err error
		if ids, err = m.replay(ctx, ids); err != nil {
			m.log.DebugContext(ctx, "last writes not replayed yet", "sessions", len(ids), "err", err)
			retry = time.After(saveRetryInterval)
			continue
		}
		retry = nil
		m.failover.replayed()
	}
}

// replay repeats the last writes to sessions. Once one has failed, replay
// begins no more, since all are likely to fail. left are the sessions whose
// writes were not repeated. Those that have failed come last, so that they do
// not delay the others again.
func (m *Manager) replay(ctx context.Context, ids []string) (left []string, err error) {
	var mu sync.Mutex // guards failed
	var failed []string
	anyFailed := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(failed) > 0
	}
	var group errgroup.Group
	group.SetLimit(replayParallel)
	for i, id := range ids {
		if anyFailed() {
			left = slices.Clone(ids[i:])
			break
		}
		w, ok := m.failover.get(id)
		if !ok {
			continue // it is too old to be lost
		}
		group.Go(func() error {
			err := m.repeat(ctx, id, w)
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed = append(failed, id)
			}
			return err
		})
	}
	err = group.Wait()
	return append(left, failed...), err
}

// repeat repeats a write. repeat cannot undo later writes of other replicas: a
// session stays ended, and only the record of an earlier refresh is replaced.
func (m *Manager) repeat(ctx context.Context, id string, w loggedWrite) error {
	key := recordKey(id)
	if w.deleted {
		return m.cfg.Store.Delete(ctx, key)
	}
	for old := w.replaces; ; {
		replaced, err := m.cfg.Store.Replace(ctx, key, old, w.record)
		if err != nil || replaced {
			return err
		}
		sealed, _, found, err := m.cfg.Store.Get(ctx, key)
		if err != nil || !found {
			return err
		}
		s, err := m.ring.open(w.ticket, sealed)
		if err != nil || !w.missingIn(s) {
			return nil // of no use to this replica, or later than w
		}
		old = sealed
	}
}

// missingIn reports whether s is from before the write.
func (w loggedWrite) missingIn(s *Session) bool { return w.deleted || s.refreshes < w.refreshes }

// reconcile returns the session that the store should have, if a read of the
// store lacks w, this replica's last write to the session. If the store has
// lost w, reconcile repeats w.
func (m *Manager) reconcile(ctx context.Context, t Ticket, w loggedWrite) (*Session, error) {
	id := t.sessionID
	for repeated := false; ; repeated = true {
		// At first, the store may have been read before the write.
		sealed, _, found, err := m.cfg.Store.Get(ctx, recordKey(id))
		if err != nil {
			return nil, storeError("read", err)
		}
		if !found {
			return nil, ErrNone
		}
		s, err := m.open(ctx, t, sealed)
		if err != nil || repeated || !w.missingIn(s) {
			return s, err
		}
		if w.deleted {
			m.log.WarnContext(ctx, "session reappeared in the store (failover?); deleted again", "session", id)
			if err := m.delete(ctx, id); err != nil {
				return nil, storeError("delete", err)
			}
			return nil, ErrNone
		}
		m.log.WarnContext(ctx, "refreshed tokens disappeared from the store (failover?); written again", "session", id)
		if err := m.repeat(ctx, id, w); err != nil {
			return nil, storeError("write again", err)
		}
	}
}
