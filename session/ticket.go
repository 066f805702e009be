package session

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
)

// ticket is what the cookie carries: which record, and this half of the key that opens it.
type ticket struct {
	id        [16]byte
	dataKey   [32]byte
	sessionID string
}

func newTicket() ticket {
	var t ticket
	rand.Read(t.id[:]) // never fails: crypto/rand ends the process rather than return a predictable byte
	rand.Read(t.dataKey[:])
	return t.named()
}

// parseTicket reads what was in a cookie.
func parseTicket(b []byte) (t ticket, ok bool) {
	if len(b) != len(t.id)+len(t.dataKey) {
		return ticket{}, false
	}
	copy(t.id[:], b)
	copy(t.dataKey[:], b[len(t.id):])
	return t.named(), true
}

// named adds the hash of the id by which the store, the user and the logs know the session. None of them learns the id. It has
// as many bits as the id.
func (t ticket) named() ticket {
	sum := sha256.Sum256(t.id[:])
	t.sessionID = base64.RawURLEncoding.EncodeToString(sum[:len(t.id)])
	return t
}

func (t ticket) equal(other ticket) bool {
	return subtle.ConstantTimeCompare(t.id[:], other.id[:])&subtle.ConstantTimeCompare(t.dataKey[:], other.dataKey[:]) == 1
}
