package bff

// AddToHistory adds an event to the history of its session.
func AddToHistory(s *Server, e Event) { s.current.Load().history.add(e) }
