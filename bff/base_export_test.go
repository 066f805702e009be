package bff

// CookieName returns the name of the session cookie.
func (s *Server) CookieName() string { return s.current.Load().cookie.Name() }
