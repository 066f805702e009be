package bff

// User returns the form of a subject that logs show.
func (s *Server) User(subject string) string { return s.current.Load().user(subject) }
