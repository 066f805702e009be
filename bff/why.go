package bff

import (
	"encoding/json"
	"net/http"
	"slices"
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
	var err error
	switch {
	case q.Get("session") != "":
		events, err = a.history.ofSessions(r.Context(), q["session"][:1])
	case q.Get("user") != "":
		events, err = a.history.of(r.Context(), "user", q.Get("user"))
	case q.Get("request") != "":
		if events, err = a.history.of(r.Context(), "request", q.Get("request")); err == nil {
			events = withRecent(events, s.recent.list(), q.Get("request"))
		}
	default:
		http.Error(w, "one of the parameters user, session and request needs a value", http.StatusBadRequest)
		return
	}
	if err != nil {
		a.log.Warn("events not read for cloakroom why", "err", err)
		http.Error(w, "the store cannot be read; the log has the error", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(events)
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
