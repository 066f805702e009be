package session

import (
	"context"
	"encoding/json"
)

// TicketBytes returns the data key in the session's ticket.
func (m *Manager) TicketBytes(s *Session) []byte { return s.ticket.dataKey[:] }

// TicketIDBytes returns the id in the session's ticket, followed by
// TicketBytes.
func (m *Manager) TicketIDBytes(s *Session) []byte {
	return s.ticket.bytes()
}

// TicketWithOtherKey returns a ticket with the session's id and another data
// key.
func TicketWithOtherKey(s *Session) Ticket {
	forged := s.ticket
	forged.dataKey[0] ^= 1
	return forged
}

// Open reads the record of a session that another Manager started.
func (m *Manager) Open(ctx context.Context, s *Session) (*Session, error) {
	return m.load(ctx, s.ticket)
}

// Kept returns for how many sessions a refresh, or a wait for one, is kept.
func (m *Manager) Kept() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.notifier.mu.Lock()
	defer m.notifier.mu.Unlock()
	return len(m.refreshes) + len(m.notifier.waiting)
}

// RecordJSON returns the JSON in a session's record.
func (m *Manager) RecordJSON(ctx context.Context, s *Session) ([]byte, error) {
	s, err := m.load(ctx, s.ticket)
	if err != nil {
		return nil, err
	}
	k, _ := m.ring.keyOf(s.sealed)
	packed, err := k.aead(s.ticket).Open(nil, nil, s.sealed[5:], k.associated(recordVersion, s.ID))
	for range 3 {
		if err == nil {
			_, packed, err = cutSized(packed)
		}
	}
	if err != nil {
		return nil, err
	}
	return unpack(packed)
}

// AddMember adds a member to the JSON in a session's record, as a later release
// may.
func (m *Manager) AddMember(ctx context.Context, s *Session, name string, value json.RawMessage) error {
	s, err := m.load(ctx, s.ticket)
	if err != nil {
		return err
	}
	changed := *s
	changed.more = map[string]json.RawMessage{name: value}
	sealed, err := m.ring.seal(&changed)
	if err != nil {
		return err
	}
	_, err = m.cfg.Store.Replace(ctx, recordKey(s.ID), s.sealed, sealed)
	return err
}
