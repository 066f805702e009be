package bff

import "time"

// SetUserTimeout sets how long a client of a new connection may acknowledge
// nothing.
func (s *Server) SetUserTimeout(d time.Duration) {
	s.conns.mu.Lock()
	defer s.conns.mu.Unlock()
	s.conns.userTimeout = d
}
