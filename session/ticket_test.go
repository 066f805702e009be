package session_test

import (
	"testing"

	"github.com/cloakroom-bff/cloakroom/session"
)

// Every byte of ids and data keys is random, and none of them occurs twice (RFC
// 6265bis, section 8.4).
func TestTicketsAreRandom(t *testing.T) {
	m := newManager(t, session.Config{MaxPerUser: 1})
	ids, names := make(map[string]bool), make(map[string]bool)
	var values [16 + 32]map[byte]bool
	for i := range values {
		values[i] = make(map[byte]bool)
	}
	for range 10_000 {
		s, err := m.Start(t.Context(), session.New{Tokens: tokens()})
		if err != nil {
			t.Fatal(err)
		}
		ticket := m.TicketIDBytes(s)
		if len(ticket) != len(values) || ids[string(ticket[:16])] || names[s.ID] {
			t.Fatalf("the ID %s, or the id in its ticket, occurred before", s.ID)
		}
		ids[string(ticket[:16])], names[s.ID] = true, true
		for i, b := range ticket {
			values[i][b] = true
		}
	}
	for i, v := range values {
		if len(v) != 256 { // of 10 000 samples
			t.Errorf("byte %d of the tickets has %d values", i, len(v))
		}
	}
}

func TestTicketSecretRoundTrip(t *testing.T) {
	s, ticket := signIn(t, newManager(t, session.Config{}), tokens())
	got, ok := session.ParseTicket(s.Ticket().Secret())
	if !ok || !got.Equal(ticket) {
		t.Errorf("the ticket came back: %v, want true", ok)
	}
	for _, text := range []session.Secret{"", "noise", "????", ticket.Secret() + "AAAA", session.Ticket{}.Secret()} {
		if _, ok := session.ParseTicket(text); ok {
			t.Errorf("%q was parsed as a ticket", text.Reveal())
		}
	}
}
