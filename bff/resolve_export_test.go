package bff

import "net"

// SetResolver sets the resolver for the host names of upstreams.
func (s *Server) SetResolver(r *net.Resolver) { s.current.Load().upstreams.Resolver = r }
