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
		if len(ticket) != len(values) {
			t.Fatalf("ticket: got %d bytes, want %d", len(ticket), len(values))
		}
		if ids[string(ticket[:16])] {
			t.Fatalf("id in the ticket of %s: got it twice", s.ID)
		}
		if names[s.ID] {
			t.Fatalf("ID %s: got it twice", s.ID)
		}
		ids[string(ticket[:16])], names[s.ID] = true, true
		for i, b := range ticket {
			values[i][b] = true
		}
	}
	for i, v := range values {
		if len(v) != 256 { // of 10 000 samples
			t.Errorf("byte %d of the tickets: got %d values, want 256", i, len(v))
		}
	}
}

func TestTicketSecretRoundTrip(t *testing.T) {
	s, ticket := signIn(t, newManager(t, session.Config{}), tokens())
	got, ok := session.ParseTicket(s.Ticket().Secret())
	if !ok {
		t.Error("ParseTicket: got no ticket")
	}
	if !got.Equal(ticket) {
		t.Error("ParseTicket: got another ticket")
	}
	for _, text := range []session.Secret{"", "noise", "????", ticket.Secret() + "AAAA", session.Ticket{}.Secret()} {
		if _, ok := session.ParseTicket(text); ok {
			t.Errorf("%q: got a ticket, want none", text.Reveal())
		}
	}
}
