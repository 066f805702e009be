package bff

// SetWrongTokenLimit sets how often one address can guess the admin token. Call
// it before the first request.
func (s *Server) SetWrongTokenLimit(limit RateLimit) { s.wrongTokens = newLimiter[[16]byte](limit) }
