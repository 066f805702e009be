package bff

import "context"

// Rediscover reads the provider's metadata again, as the server does every ten
// minutes.
func (s *Server) Rediscover(ctx context.Context) error {
	return s.current.Load().provider.Discover(ctx)
}
