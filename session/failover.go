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

// journal is what this replica wrote in the last minute and what must not be lost: that a session has ended, and tokens whose predecessors are
// spent. A store that fails over to a server without the last writes shows what was before them.
type journal struct {
	missed chan struct{} // the store may have failed over

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

// redoMissed repeats the last writes whenever the store may have lost some, until ctx ends.
func (m *Manager) redoMissed(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.journal.missed:
			m.redo(ctx)
		}
	}
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

// heed returns what a record should be, where this replica has written it lately and the store shows what was before.
func (m *Manager) heed(ctx context.Context, id string, w written, sealed []byte) ([]byte, error) {
	if w.ended {
		m.log.WarnContext(ctx, "the store has lost the end of a session; it is ended again", "session", id)
		if err := m.delete(ctx, id); err != nil {
			return nil, storeError("delete", err)
		}
		return nil, ErrNone
	}
	if !slices.ContainsFunc(w.olds, func(old []byte) bool { return bytes.Equal(old, sealed) }) {
		return sealed, nil
	}
	m.log.WarnContext(ctx, "the store has lost refreshed tokens; they are written again", "session", id)
	replaced, err := m.cfg.Store.Replace(ctx, recordKey(id), sealed, w.new)
	if err != nil {
		return nil, storeError("write again", err)
	}
	if !replaced {
		return nil, ErrNone // it has ended since
	}
	return w.new, nil
}
