package session

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
)

// Ticket is what a session cookie carries: a secret random id, whose hash names
// the record, and the browser's half of the key that opens the record. A Ticket
// is as secret as the cookie, and prints as [redacted]. The zero Ticket opens
// nothing.
type Ticket struct {
	id        [16]byte
	dataKey   [32]byte
	sessionID string // Session.ID, a hash of id; empty in the zero Ticket
}

func newTicket() Ticket {
	var t Ticket
	rand.Read(t.id[:]) // never fails: crypto/rand ends the process rather than return a predictable byte
	rand.Read(t.dataKey[:])
	return t.withSessionID()
}

// ParseTicket returns the Ticket whose Secret is text; ok is false if there is
// no such Ticket.
func ParseTicket(text Secret) (t Ticket, ok bool) {
	b, err := base64.RawURLEncoding.DecodeString(text.Reveal())
	if err != nil {
		return Ticket{}, false
	}
	return ticketOf(b)
}

// ticketOf is the reverse of Ticket.bytes.
func ticketOf(b []byte) (t Ticket, ok bool) {
	if len(b) != len(t.id)+len(t.dataKey) {
		return Ticket{}, false
	}
	copy(t.id[:], b)
	copy(t.dataKey[:], b[len(t.id):])
	return t.withSessionID(), true
}

// Secret returns the ticket as text, for ParseTicket. The text is empty for the
// zero Ticket.
func (t Ticket) Secret() Secret {
	if t.sessionID == "" {
		return ""
	}
	return Secret(base64.RawURLEncoding.EncodeToString(t.bytes()))
}

func (t Ticket) bytes() []byte { return append(t.id[:], t.dataKey[:]...) }

// withSessionID sets Session.ID, under which the store, the user and the logs
// know the session. Session.ID is a hash of the secret id, so that the store,
// the user and the logs do not learn the secret id. The hash has as many bits
// as the secret id.
func (t Ticket) withSessionID() Ticket {
	sum := sha256.Sum256(t.id[:])
	t.sessionID = base64.RawURLEncoding.EncodeToString(sum[:len(t.id)])
	return t
}

// SessionID returns the ID of the session that the ticket opens (Session.ID),
// which may have ended; empty for the zero Ticket. It is no secret.
func (t Ticket) SessionID() string { return t.sessionID }

// Equal reports whether both tickets are the same. The duration of the call
// does not depend on the content of the tickets.
func (t Ticket) Equal(other Ticket) bool {
	sameID := subtle.ConstantTimeCompare(t.id[:], other.id[:])
	sameKey := subtle.ConstantTimeCompare(t.dataKey[:], other.dataKey[:])
	return sameID&sameKey == 1
}

// Format writes [redacted], whatever the verb.
func (t Ticket) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// LogValue returns [redacted].
func (t Ticket) LogValue() slog.Value { return slog.StringValue(redacted) }
