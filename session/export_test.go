package session

import (
	"context"
	"testing"
)

// TicketBytes returns the half of the key that only the cookie holds, for a test that looks for it where it must not be.
func (m *Manager) TicketBytes(s *Session) []byte { return s.ticket.dataKey[:] }

// TicketIDBytes returns what the cookie names the session by, of which Session.ID is a hash, and behind it TicketBytes.
func (m *Manager) TicketIDBytes(s *Session) []byte {
	return append(s.ticket.id[:], s.ticket.dataKey[:]...)
}

// SealTicketWithOtherKey returns the value of a cookie with the session's id and a data key that is not its.
func SealTicketWithOtherKey(t *testing.T, s *Session, key []byte) string {
	forged := s.ticket
	forged.dataKey[0] ^= 1
	ring, err := newKeyring([][]byte{key}, App{})
	if err != nil {
		t.Fatal(err)
	}
	value, err := newCookie(Cookie{}, ring).encode(forged)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// Open reads the record of a session that another Manager has started.
func (m *Manager) Open(ctx context.Context, s *Session) (*Session, error) {
	return m.load(ctx, s.ticket)
}
