package bff

import "net"

// SetResolver sets what looks up the names of upstreams.
func (s *Server) SetResolver(r *net.Resolver) {
	for _, route := range s.routes {
		for _, server := range route.upstream.servers {
			server.resolver = r
		}
	}
}
