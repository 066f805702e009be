package session

// TicketBytes returns the half of the key that only the cookie holds, for a test that looks for it where it must not be.
func (m *Manager) TicketBytes(s *Session) []byte { return s.ticket.dataKey[:] }
