package bff

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
)

// history keeps the last events of each session in the store, so that an
// operator can learn on any replica what happened to it. Each set under
// "history:" is one of these:
//
//   - the events of a session, sealed under the session keys
//   - the IDs of a user's sessions, each with the time of its start
//   - the ID of the session that a request belongs to
//
// Events without a session are not kept: anonymous requests write nothing to
// the store.
type history struct {
	store session.Store
	ring  *session.Keyring
	codec *session.Codec
	log   *slog.Logger
	life  time.Duration // of a member
	full  refusals      // events that were not kept

	// What run writes: starts, ends and acts of administrators before the rest,
	// which comes in floods.
	important, routine chan Event

	budgets *limiter[string] // :: session → events that a client can cause
}

const (
	// maxHistory and maxRefreshes are about how many events of a session are
	// kept, and how many of them are of refreshes. Each has 600 bytes.
	maxHistory, maxRefreshes = 50, 5
	// trimInterval is after how many events of a session its history is
	// trimmed, on average.
	trimInterval = 10
	// historyAfterEnd is how much longer than a session its history lives.
	historyAfterEnd = 24 * time.Hour
	// historyQueue is how many events of each of the two queues may wait for
	// the store.
	historyQueue = 1000
	// historyTimeout bounds a call to the store.
	historyTimeout = 5 * time.Second
	// maxHistorySessions is of how many sessions one response has the events.
	maxHistorySessions = 200
)

// historyLimit is how many events of one session are kept at most, except for
// its start and end: a user must not fill the store.
var historyLimit = RateLimit{Rate: 1.0 / 60, Burst: 30}

func newHistory(cfg session.Config, ring *session.Keyring, log *slog.Logger) *history {
	life := cmp.Or(cfg.MaxLifetime, session.DefaultMaxLifetime)
	return &history{
		store: cfg.Store, ring: ring, codec: ring.Codec("history", 0), log: log,
		life: life + historyAfterEnd, budgets: newLimiter[string](historyLimit),
		important: make(chan Event, historyQueue), routine: make(chan Event, historyQueue),
	}
}

// add keeps an event of a session. It never waits.
func (h *history) add(e Event) {
	if e.Session == "" {
		return
	}
	queue := h.routine
	switch e.Kind {
	case EventKind(session.SessionStarted), EventKind(session.SessionEnded), AdminSessionRevoked:
		queue = h.important
	case EventKind(session.SessionReturned):
	case EventKind(session.SessionRefreshed):
		e.Request = "" // most events are refreshes, and their request is of no interest
	default:
		if h.budgets.take(e.Session) > 0 {
			return
		}
	}
	select {
	case queue <- e:
	default:
		h.full.add(func(count uint64) {
			h.log.Warn("events not kept for cloakroom why: the store is slow", "count", count)
		})
	}
}

// run writes events until ctx ends, and then those that wait, for at most
// historyTimeout.
func (h *history) run(ctx context.Context) {
	for ctx.Err() == nil {
		if e, ok := h.next(ctx.Done()); ok {
			h.write(context.WithoutCancel(ctx), e)
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), historyTimeout)
	defer cancel()
	for len(h.important)+len(h.routine) > 0 && ctx.Err() == nil {
		e, _ := h.next(nil)
		h.write(ctx, e)
	}
}

// next returns the next event to write. It waits for one until done is closed.
func (h *history) next(done <-chan struct{}) (e Event, ok bool) {
	select {
	case e := <-h.important:
		return e, true
	default:
	}
	select {
	case e := <-h.important:
		return e, true
	case e := <-h.routine:
		return e, true
	case <-done:
		return Event{}, false
	}
}

// write writes an event to the store.
func (h *history) write(ctx context.Context, e Event) {
	ctx, cancel := context.WithTimeout(ctx, historyTimeout)
	defer cancel()
	if err := h.tryWrite(ctx, e); err != nil {
		h.log.DebugContext(ctx, "event not kept for cloakroom why",
			"event", string(e.Kind), "session", e.Session, "err", err)
	}
}

func (h *history) tryWrite(ctx context.Context, e Event) error {
	e.User = e.userHash
	text, err := json.Marshal(e)
	if err != nil {
		return err
	}
	sealed, err := h.codec.Seal("event", text)
	if err != nil {
		return err
	}
	key := h.key("session", e.Session)
	members := map[string]string{key: sealed}
	if e.Request != "" {
		members[h.key("request", e.Request)] = e.Session
	}
	if e.Kind == EventKind(session.SessionStarted) {
		for _, name := range []string{e.subject, e.userHash} { // either finds it
			members[h.key("user", name)] = startedSession(e)
		}
	}
	if err := h.store.Add(ctx, members, h.life); err != nil {
		return err
	}
	if e.trims() {
		return h.trim(ctx, key)
	}
	return nil
}

// trims reports whether the history of the session is trimmed after the event.
// That costs a read of the store, so it happens after some of the events only.
func (e Event) trims() bool {
	switch session.Kind(e.Kind) {
	case session.SessionStarted, session.SessionEnded: // once in a session
		return false
	case session.SessionRefreshed:
		return e.refreshes%trimInterval == 0
	}
	return rand.IntN(trimInterval) == 0
}

// key returns the key of a set under the primary session key.
func (h *history) key(kind, name string) string {
	return "history:" + h.ring.Names("history "+kind, name)[0]
}

// trim removes the oldest events of refreshes beyond maxRefreshes, and then the
// oldest events beyond maxHistory, but not the start.
func (h *history) trim(ctx context.Context, key string) error {
	events, err := h.events(ctx, key)
	if err != nil {
		return err
	}
	var refreshes, others []storedEvent
	for _, e := range events {
		switch session.Kind(e.Kind) {
		case session.SessionRefreshed:
			refreshes = append(refreshes, e)
		case session.SessionStarted:
		default:
			others = append(others, e)
		}
	}
	old := slices.Concat(refreshes[:max(0, len(refreshes)-maxRefreshes)], others[:max(0, len(others)-maxHistory)])
	for _, e := range old {
		if err := h.store.Remove(ctx, map[string]string{key: e.member}); err != nil {
			return err
		}
	}
	return nil
}

// storedEvent is an event with its member in the store.
type storedEvent struct {
	Event
	member string
}

// events returns the events in a set, the oldest first.
func (h *history) events(ctx context.Context, key string) ([]storedEvent, error) {
	members, err := h.store.Members(ctx, key)
	if err != nil {
		return nil, err
	}
	var events []storedEvent
	for _, member := range members {
		text, err := h.codec.Open("event", member)
		if err != nil {
			continue // its session key was removed
		}
		e := storedEvent{member: member}
		if json.Unmarshal(text, &e.Event) == nil {
			events = append(events, e)
		}
	}
	slices.SortStableFunc(events, func(a, b storedEvent) int { return a.Time.Compare(b.Time) })
	return events, nil
}

// members returns the members of the sets with a name under all session keys.
func (h *history) members(ctx context.Context, kind, name string) (all []string, err error) {
	for _, key := range h.ring.Names("history "+kind, name) {
		members, err := h.store.Members(ctx, "history:"+key)
		if err != nil {
			return nil, err
		}
		all = append(all, members...)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// ofSessions returns the events of sessions, the oldest first.
func (h *history) ofSessions(ctx context.Context, ids []string) ([]Event, error) {
	all := []Event{} // [] in JSON
	for _, id := range ids {
		for _, key := range h.ring.Names("history session", id) {
			events, err := h.events(ctx, "history:"+key)
			if err != nil {
				return nil, err
			}
			for _, e := range events {
				all = append(all, e.Event)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b Event) int { return a.Time.Compare(b.Time) })
	return all, nil
}

// startedSession returns the member of a user's set for the start of a session:
// its time in milliseconds, as 11 hexadecimal digits that sort by time, and the
// ID.
func startedSession(e Event) string {
	return fmt.Sprintf("%011x %s", e.Time.UnixMilli(), e.Session)
}

// of returns the events of the sessions that belong to a user or a request, the
// oldest first. It skips the newest offset sessions and reads the next
// maxHistorySessions. more reports whether there are older ones.
func (h *history) of(ctx context.Context, kind, name string, offset int) (events []Event, more bool, err error) {
	members, err := h.members(ctx, kind, name)
	if err != nil {
		return nil, false, err
	}
	slices.Reverse(members) // the newest first
	members = members[min(offset, len(members)):]
	more = len(members) > maxHistorySessions
	var ids []string
	for _, member := range members[:min(len(members), maxHistorySessions)] {
		_, id, ok := strings.Cut(member, " ")
		if !ok {
			id = member // of a request
		}
		ids = append(ids, id)
	}
	events, err = h.ofSessions(ctx, ids)
	return events, more, err
}

// userOf returns the user of a session as its history names it, or "".
func (h *history) userOf(ctx context.Context, id string) string {
	events, _ := h.ofSessions(ctx, []string{id}) // without it the event has no user
	for _, e := range events {
		if e.User != "" {
			return e.User
		}
	}
	return ""
}
