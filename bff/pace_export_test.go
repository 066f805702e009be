package bff

import "time"

// SetPaceWindow sets the time over which the rate of bodies is measured.
func (s *Server) SetPaceWindow(d time.Duration) { s.pace.Window, s.upstreams.BodyWindow = d, d }
