package bff

import "context"

// Rediscover reads the provider's metadata once more, as happens every ten
// minutes.
func (s *Server) Rediscover(ctx context.Context) error {
	return s.current.Load().provider.Discover(ctx)
}
