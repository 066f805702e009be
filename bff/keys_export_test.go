package bff

import "context"

// Rediscover reads the provider's metadata once more, as happens every ten
// minutes.
func (s *Server) Rediscover(ctx context.Context) error {
	m, err := s.provider.discover(ctx)
	if err == nil {
		s.provider.found.Store(m)
	}
	return err
}
