package bff

import "context"

// AddToHistory adds an event to the history of its session.
func AddToHistory(s *Server, e Event) { s.current.Load().history.write(context.Background(), e) }
