package bff

import "time"

// SetPaceWindow sets the time over which the rate of bodies is measured.
func (s *Server) SetPaceWindow(d time.Duration) {
	a := s.current.Load()
	a.pace.Window, a.upstreams.BodyWindow = d, d
}
