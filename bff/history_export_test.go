package bff

import (
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
)

// AddToHistory adds an event to the history of its session.
func AddToHistory(s *Server, e Event) { s.current.Load().history.add(e) }

// AddRefreshToHistory adds the nth refresh of a session to its history.
func AddRefreshToHistory(s *Server, id string, n int, at time.Time) {
	s.current.Load().history.add(Event{
		Kind: EventKind(session.SessionRefreshed), Session: id, Time: at, refreshes: n,
	})
}

// AddStartToHistory adds the start of a user's session to its history.
func AddStartToHistory(s *Server, subject, id string, at time.Time) {
	a := s.current.Load()
	a.history.add(Event{
		Kind: EventKind(session.SessionStarted), Session: id, Time: at,
		subject: subject, userHash: a.users.hash(subject),
	})
}
