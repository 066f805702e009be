package bff

import "net"

// SetResolver sets what looks up the names of upstreams.
func (s *Server) SetResolver(r *net.Resolver) { s.current.Load().upstreams.Resolver = r }
