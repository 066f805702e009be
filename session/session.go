// Package session keeps a signed-in user's tokens on the server, behind a cookie that opens nothing by itself.
//
// A session is a record in a Store. Its key in the store is a hash of the session's id; its value is sealed under a key
// made of two halves: a data key that only the user's cookie holds, and a key derived from the operator's session keys.
// Whoever has the store alone, or the cookie alone, reads nothing.
//
// The Manager is what a server uses: Start at login, Find to look, Fresh for a session whose access token can be used now,
// Touch when the user was active, End at logout, EndAll when the provider says so.
package session

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// ErrNone says that a request has no session: no cookie, one that does not open, or one whose session is unknown, expired
// or ended. The cases are deliberately one: to the caller, and to whoever probes, there is no difference.
var ErrNone = errors.New("no session")

// ErrEnded says that the provider has ended the session just now: it refused to refresh the tokens, or it signed the user out while the login was
// under way. Later requests get ErrNone.
var ErrEnded = errors.New("the provider has ended the session")

// ErrStore says that the store could not be asked. It says nothing about the session, which is to be taken as alive.
var ErrStore = errors.New("session store unavailable")

// Tokens are what the provider issued for one session.
type Tokens struct {
	Access  Secret
	Refresh Secret // empty: the provider issued none, and the session ends with its access token
	ID      Secret
	Scope   string    // as granted, space-separated
	Issued  time.Time // when Access was received
	Expiry  time.Time // when Access expires; zero: the provider did not say

	// RefreshExpiry is when Refresh expires; zero: the provider did not say.
	RefreshExpiry time.Time

	// Superseded are the refresh tokens of sessions of the same user that this one
	// has replaced, the oldest first. They are to be revoked when this one ends,
	// not before: a provider may revoke all grants of a user to a client at once.
	Superseded []Secret

	// Key is the private key that the tokens are bound to (RFC 9449), a scalar of P-256 in base64url; empty: whoever bears them can use them.
	Key Secret
	// Others are access tokens for other targets than Access is for: target → a Tokens with nothing but Access, Scope, Issued and Expiry. What a
	// target is only Config.Refresh knows.
	Others map[string]Tokens
}

// For returns the access token for a target, as a Tokens with nothing else; the empty target is that of Access.
func (t *Tokens) For(target string) Tokens {
	if target != "" {
		return t.Others[target]
	}
	return Tokens{Access: t.Access, Scope: t.Scope, Issued: t.Issued, Expiry: t.Expiry}
}

// Authorization is the value of a header that carries Access (RFC 6750 2.1), or Access as bound to Key (RFC 9449 7.1). It is a secret.
func (t *Tokens) Authorization() string {
	if t.Key != "" {
		return "DPoP " + t.Access.Reveal()
	}
	return "Bearer " + t.Access.Reveal()
}

// Session is one user signed in on one browser. A *Session is shared between requests and must not be modified.
type Session struct {
	// ID names the session in the store and towards its user, operators and logs. It is the hash of the id in the cookie:
	// it opens nothing, and that id cannot be found from it.
	ID      string
	Issuer  string // iss of the ID token
	Subject string // sub of the ID token
	SID     string // sid of the ID token, empty where the provider has none
	Claims  json.RawMessage
	Tokens  Tokens

	CreatedAt time.Time
	// ExpiresAt is the end of the session. It moves only with the refresh token,
	// where that has an end, and never beyond Config.MaxLifetime after CreatedAt
	// or what the provider set as the session's end.
	ExpiresAt     time.Time
	IdleExpiresAt time.Time // moves with Touch, never beyond ExpiresAt

	limit      time.Time                  // ExpiresAt, if the refresh token had no end
	recordEnds time.Time                  // when the store drops the record unless there is another Touch
	more       map[string]json.RawMessage // record.more

	ticket   Ticket
	sealed   []byte // the record as it is in the store
	replaces []byte // the record that this one was made of, which a conditional write expects to find
	reading  *reading
}

// reading is what is known of a session beyond its record, by all who share what was read.
type reading struct {
	touching atomic.Bool // somebody moves the idle time-out
	decoding sync.Once
	claims   map[string]any // decoded
	bearing  sync.Once
	headers  map[string][]string // :: target → an Authorization header
	key      *ecdsa.PrivateKey
}

// Claim returns one of the user's claims as encoding/json decodes it, a number as json.Number; nil if there is none of that name.
func (s *Session) Claim(name string) any {
	s.reading.decoding.Do(func() {
		d := json.NewDecoder(bytes.NewReader(s.Claims))
		d.UseNumber()
		d.Decode(&s.reading.claims) // it was encoded when the session was started
	})
	return s.reading.claims[name]
}

// Format writes the session's ID, whatever the verb: fmt would print the unexported half of the key too.
func (s Session) Format(f fmt.State, _ rune) { io.WriteString(f, "session "+s.ID) }

// LogValue returns the session's ID.
func (s Session) LogValue() slog.Value { return slog.StringValue(s.ID) }

// Authorization returns the values of an Authorization header that carries the access token for a target (RFC 6750 2.1, RFC 9449 7.1); nil when there is
// none. They must not be modified.
func (s *Session) Authorization(target string) []string {
	s.bear()
	return s.reading.headers[target]
}

// Key returns the private key that the tokens are bound to; nil when there is none.
func (s *Session) Key() *ecdsa.PrivateKey {
	s.bear()
	return s.reading.key
}

func (s *Session) bear() {
	s.reading.bearing.Do(func() {
		t := &s.Tokens
		if t.Key != "" {
			scalar, _ := base64.RawURLEncoding.DecodeString(t.Key.Reveal())
			s.reading.key, _ = ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar) // Start has looked at it
		}
		s.reading.headers = map[string][]string{"": {t.Authorization()}}
		for target := range t.Others {
			other := t.For(target)
			other.Key = t.Key
			s.reading.headers[target] = []string{other.Authorization()}
		}
	})
}

// Ticket returns the ticket that opens the session.
func (s *Session) Ticket() Ticket { return s.ticket }

// sameUser reports whether two sessions are the same user's.
func (s *Session) sameUser(other *Session) bool {
	return s.Issuer == other.Issuer && s.Subject == other.Subject
}

// setEnd computes ExpiresAt and IdleExpiresAt.
func (s *Session) setEnd() {
	s.ExpiresAt = s.limit
	if s.Tokens.Refresh != "" && !s.Tokens.RefreshExpiry.IsZero() {
		s.ExpiresAt = earlier(s.limit, s.Tokens.RefreshExpiry)
	}
	s.IdleExpiresAt = earlier(s.recordEnds, s.ExpiresAt)
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
