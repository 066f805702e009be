package bff

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"

	"github.com/cloakroom-bff/cloakroom/session"
)

// why responds with the events of a session, of a user's sessions, or of the
// session that a request belongs to, the oldest first. The parameter is session
// (an ID as in /bff/session), user (a sub, or its hash as in the log), request
// (an ID of an error response or a log line), or any of them (any).
//
// A response has the events of the newest 200 sessions at most. The header Link
// then refers to the older ones (RFC 8288).
func (a *app) why(w http.ResponseWriter, r *http.Request) error {
	q, offset, err := adminQuery(r, "user", "session", "request", "any")
	if err != nil {
		return err
	}
	var by, value string
	n := 0 // parameters with a value: a form may send the others too
	for name, values := range q {
		if name != "offset" && values[0] != "" {
			by, value, n = name, values[0], n+1
		}
	}
	if n != 1 {
		return badRequest{errors.New("send one of the parameters user, session, request and any")}
	}
	found, err := a.eventsOf(r.Context(), by, value, offset)
	if err != nil {
		return err
	}
	a.emitEventsRead(r, found, value)
	setNext(w, "/admin/why", q, offset+maxHistorySessions, found.more)
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(found.events)
}

// foundEvents are the events of a user, a session or a request, the oldest
// first.
type foundEvents struct {
	by     string // which of them
	events []Event
	more   bool // there are older sessions, whose events are not here
}

// sessionID matches the ID of a session.
var sessionID = regexp.MustCompile(`^[A-Za-z0-9_-]{22}$`)

// eventsOf returns the events of a user, a session or a request, or of what any
// of them is. The error is a badRequest or wraps session.ErrStore.
func (a *app) eventsOf(ctx context.Context, by, value string, offset int) (foundEvents, error) {
	if len(value) > maxSubject {
		return foundEvents{}, badRequest{fmt.Errorf("%s has at most %d bytes", by, maxSubject)}
	}
	kinds := []string{by}
	if by == "any" {
		kinds = []string{"user", "request"}
		if sessionID.MatchString(value) {
			kinds = []string{"session", "user", "request"}
		}
	}
	for _, kind := range kinds {
		found, err := a.eventsOfKind(ctx, kind, value, offset)
		if err != nil {
			return foundEvents{}, fmt.Errorf("%w: read events: %w", session.ErrStore, err)
		}
		if len(found.events) > 0 {
			return found, nil
		}
	}
	return foundEvents{by: kinds[0], events: []Event{}}, nil // [] in JSON
}

func (a *app) eventsOfKind(ctx context.Context, by, value string, offset int) (found foundEvents, err error) {
	found.by = by
	switch by {
	case "session":
		found.events, err = a.history.ofSessions(ctx, []string{value})
	default:
		found.events, found.more, err = a.history.of(ctx, by, value, offset)
	}
	if by == "request" {
		found.events = withRecent(found.events, a.server.recent.list(), value)
	}
	return found, err
}

// emitEventsRead reports that an administrator read events.
func (a *app) emitEventsRead(r *http.Request, found foundEvents, value string) {
	e := Event{Kind: AdminEventsRead, message: "events read"}
	switch found.by {
	case "session":
		if e = a.named(e, "id", value); len(found.events) > 0 {
			e.Session = value
		}
	case "request":
		e = a.named(e, "request", value)
	case "user":
		if len(found.events) > 0 && found.events[0].User == value { // it is the hash of one
			e.By, e.Target, e.userHash = "sub", value, value
		} else {
			e = a.named(e, "sub", value)
		}
	}
	a.emit(r.Context(), e)
}

// withRecent adds to events those of a request that this replica remembers and
// that the store does not keep: they have no session.
func withRecent(events, recent []Event, request string) []Event {
	for _, e := range recent {
		if e.Request == request && e.Session == "" {
			events = append(events, e)
		}
	}
	slices.SortStableFunc(events, func(a, b Event) int { return a.Time.Compare(b.Time) })
	return events
}
