package session

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// failoverLog records this replica's deletions and token rotations of the last
// minute, so that they can be replayed if a failover loses them: the new master
// may lack the last writes, and show what was before them.
type failoverLog struct {
	missed chan struct{} // receives when the store may have failed over

	mu     sync.Mutex             // guards writes
	writes map[string]loggedWrite // :: Session.ID → the last write
}

// loggedWrite is a deletion, or a record with its previous versions.
type loggedWrite struct {
	deleted  bool
	previous [][]byte // the oldest first
	record   []byte
	at       time.Time
}

const (
	failoverLogAge  = time.Minute // more than a replica of Redis lags behind its master
	failoverLogSize = 10_000
	maxPrevious     = 8
	replayParallel  = 16 // writes at the same time: the replay has to end within leaseGrace
)

// replaced records that a record was replaced.
func (l *failoverLog) replaced(id string, old, record []byte) {
	w := loggedWrite{record: record}
	if before, ok := l.get(id); ok {
		w.previous = before.previous[max(0, len(before.previous)-maxPrevious+1):]
	}
	w.previous = append(slices.Clip(w.previous), old)
	l.add(id, w)
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
		if time.Since(w.at) > failoverLogAge || len(l.writes) > failoverLogSize {
			delete(l.writes, id)
		}
	}
}

func (l *failoverLog) get(id string) (loggedWrite, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w, ok := l.writes[id]
	if ok && time.Since(w.at) > failoverLogAge {
		delete(l.writes, id)
		ok = false
	}
	return w, ok
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
// until ctx is done.
func (m *Manager) replayLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.failover.missed:
			m.replay(ctx)
		}
	}
}

// replay repeats the last writes. replay cannot undo later writes of other
// replicas: a session stays ended, and a record is replaced only where the
// store shows a previous version.
func (m *Manager) replay(ctx context.Context) {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(replayParallel)
	for _, id := range m.failover.ids() {
		w, ok := m.failover.get(id)
		if !ok || ctx.Err() != nil {
			break // the rest is older, or the store is away again and its return causes another replay
		}
		group.Go(func() error {
			if w.deleted {
				return m.cfg.Store.Delete(ctx, recordKey(id))
			}
			for _, old := range slices.Backward(w.previous) {
				if _, err := m.cfg.Store.Replace(ctx, recordKey(id), old, w.record); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		m.log.DebugContext(ctx, "last writes not replayed; they are when a session is read", "err", err)
	}
}

// outdated reports whether a record is from before the write.
func (w loggedWrite) outdated(record []byte) bool {
	return w.deleted || slices.ContainsFunc(w.previous, func(old []byte) bool { return bytes.Equal(old, record) })
}

// reconcile returns the record that the store should have, if the store has
// sealed and w is this replica's last write to the session. If the store has
// lost w, reconcile repeats w.
func (m *Manager) reconcile(ctx context.Context, id string, w loggedWrite, sealed []byte) ([]byte, error) {
	if !w.outdated(sealed) {
		return sealed, nil
	}
	// The store may have been read before the write.
	sealed, _, found, err := m.cfg.Store.Get(ctx, recordKey(id))
	switch {
	case err != nil:
		return nil, storeError("read", err)
	case !found:
		return nil, ErrNone
	case !w.outdated(sealed):
		return sealed, nil
	}
	if w.deleted {
		m.log.WarnContext(ctx, "session reappeared in the store (failover?); deleted again", "session", id)
		if err := m.delete(ctx, id); err != nil {
			return nil, storeError("delete", err)
		}
		return nil, ErrNone
	}
	m.log.WarnContext(ctx, "refreshed tokens disappeared from the store (failover?); written again", "session", id)
	replaced, err := m.cfg.Store.Replace(ctx, recordKey(id), sealed, w.record)
	if err != nil {
		return nil, storeError("write again", err)
	}
	if !replaced {
		return nil, ErrNone // the session has ended since
	}
	return w.record, nil
}
