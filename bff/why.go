package bff

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/cloakroom-bff/cloakroom/session"
)

// why responds with the events of a session, of a user's sessions, or of the
// session that a request belongs to, the oldest first. The parameter is session
// (an ID as in /bff/session), user (a sub, or its hash as in the log), or
// request (an ID of an error response or a log line).
func (s *Server) why(w http.ResponseWriter, r *http.Request) {
	a := s.current.Load()
	q := r.URL.Query()
	if len(q) != 1 {
		http.Error(w, "one of the parameters user, session and request is needed", http.StatusBadRequest)
		return
	}
	var events []Event
	err := error(badRequest{errors.New("one of the parameters user, session and request needs a value")})
	for _, by := range []string{"user", "session", "request"} {
		if value := q.Get(by); value != "" {
			if events, err = a.eventsOf(r.Context(), by, value); err == nil {
				a.emitEventsRead(r, by, value)
			}
		}
	}
	if err != nil {
		a.adminError(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(events)
}

// eventsOf returns the events of a user, a session or a request, the oldest
// first. The error wraps session.ErrStore.
func (a *app) eventsOf(ctx context.Context, by, value string) (events []Event, err error) {
	if len(value) > maxSubject {
		return nil, badRequest{fmt.Errorf("%s has at most %d bytes", by, maxSubject)}
	}
	switch by {
	case "session":
		events, err = a.history.ofSessions(ctx, []string{value})
	case "user":
		events, err = a.history.of(ctx, "user", value)
	case "request":
		if events, err = a.history.of(ctx, "request", value); err == nil {
			events = withRecent(events, a.server.recent.list(), value)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: read events: %w", session.ErrStore, err)
	}
	return events, nil
}

// emitEventsRead reports that an administrator read what eventsOf returns.
func (a *app) emitEventsRead(r *http.Request, by, value string) {
	e := Event{Kind: AdminEventsRead, message: "events read"}
	switch by {
	case "session":
		e.Session = value
	case "user":
		e.subject = value
	}
	a.emitAdmin(r, e)
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
