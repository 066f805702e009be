// Package session keeps the tokens of signed-in users on the server. The
// browser gets a cookie that opens nothing by itself.
//
// A session is a record in a [Store]. The record's key in the store contains
// Session.ID, a hash of a secret id that only the cookie has. The record's
// value is encrypted under a key with two halves: a data key that only the
// cookie has, and a key derived from the operator's session keys. Neither the
// store alone nor the cookie alone reveals anything.
//
// A server uses a [Manager] and, for each application, a [Cookie]:
//
//   - After a login, [Manager.Start] starts a session. [Cookie.Write] sends its
//     [Ticket] to the browser.
//   - With each request, [Cookie.Read] returns the ticket, and [Manager.Find]
//     the session. [Manager.Fresh] returns the session with an access token
//     that can be used. [Manager.Touch] records activity.
//   - [Manager.End] ends a session. [Manager.EndAll] ends the sessions of a
//     user, or those of one session at the provider.
//   - [Manager.Run] follows what other replicas do.
//   - Config.Observe receives an [Event] for each start, refresh and end that a
//     replica notices.
//
// Any number of replicas share a store. Per session at most one refresh is in
// progress at a time. All replicas reject requests of an ended session within
// 100 ms; open streams learn of the end within a second (see [Manager.OnEnd]).
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

// ErrNone means that there is no session: no ticket, a ticket that opens no
// record, or a session that is unknown, expired or ended. All these cases have
// one error, so that a client cannot distinguish them.
var ErrNone = errors.New("no session")

// ErrEnded means that the provider has just ended the session: the provider
// refused to refresh the tokens, or ended the session while the login was in
// progress (see Manager.Start). Later calls return ErrNone.
var ErrEnded = errors.New("the provider has ended the session")

// ErrStore means that the store failed. The session may still exist.
var ErrStore = errors.New("session store unavailable")

// Tokens are what the provider issued for one session.
type Tokens struct {
	// Access is the access token.
	Access Secret
	// Refresh is the refresh token. Without a refresh token the session ends
	// when Access expires, if Expiry is known.
	Refresh Secret
	// ID is the ID token.
	ID Secret
	// Scope is the scope of Access as granted, separated by spaces.
	Scope string
	// Issued is when Access was received.
	Issued time.Time
	// Expiry is when Access expires. Zero means unknown.
	Expiry time.Time
	// RefreshExpiry is when Refresh expires. Zero means unknown.
	RefreshExpiry time.Time

	// Superseded are the refresh tokens of the same user's sessions that this
	// session replaced, the oldest first. A caller of Manager.End that revokes
	// Refresh must also revoke Superseded. Do not revoke Superseded earlier:
	// when one token is revoked, a provider may revoke all of the user's tokens
	// for this client, including those of this session.
	Superseded []Secret

	// Key is the private key that the tokens are bound to (RFC 9449): a scalar
	// of P-256 in base64url. Empty means bearer tokens.
	Key Secret
	// Others are the access tokens for other targets: target → a Tokens with
	// Access, Scope, Issued and Expiry only. A target is a name that the caller
	// of Manager.Fresh and Config.Refresh agree on, for example the name of an
	// API. This package does not interpret targets.
	Others map[string]Tokens
}

// For returns the access token for a target, as a Tokens with Access, Scope,
// Issued and Expiry only. The empty target means Access. If there is no token
// for the target, For returns the zero Tokens.
func (t *Tokens) For(target string) Tokens {
	if target != "" {
		return t.Others[target]
	}
	return Tokens{Access: t.Access, Scope: t.Scope, Issued: t.Issued, Expiry: t.Expiry}
}

// Authorization returns the value of an Authorization header with Access, as a
// bearer token (RFC 6750, section 2.1) or bound to Key (RFC 9449, section 7.1).
// The value is a secret.
func (t *Tokens) Authorization() string {
	if t.Key != "" {
		return "DPoP " + t.Access.Reveal()
	}
	return "Bearer " + t.Access.Reveal()
}

// Session is a user who is signed in on one browser. Callers share a *Session
// and must not modify it.
type Session struct {
	// ID names the session in the store, and for its user, operators and logs.
	// The ID is a hash of the secret id in the ticket. The ID opens nothing,
	// and the secret id cannot be computed from the ID.
	ID      string
	Issuer  string          // iss of the ID token
	Subject string          // sub of the ID token
	SID     string          // sid of the ID token, empty where the provider has none
	Claims  json.RawMessage // of the user, a JSON object; see Claim
	Tokens  Tokens          // the latest ones when the session was read

	CreatedAt time.Time // when Manager.Start was called
	// ExpiresAt is the absolute end. A refresh that changes RefreshExpiry of
	// the tokens moves ExpiresAt, but never beyond CreatedAt plus
	// Config.MaxLifetime, and never beyond the end that the provider set.
	ExpiresAt time.Time
	// IdleExpiresAt is when the session ends if Manager.Touch is not called
	// again. IdleExpiresAt is never after ExpiresAt.
	IdleExpiresAt time.Time

	limit      time.Time                  // ExpiresAt as it would be without RefreshExpiry
	recordEnds time.Time                  // when the record expires in the store unless there is another Touch
	refreshes  int                        // refreshes since Start: of two records the one with more is newer
	more       map[string]json.RawMessage // record.more

	// rotated means that the last refresh obtained nothing but a refresh token.
	// It is not in the record.
	rotated bool

	ticket   Ticket
	sealed   []byte // the record as it is in the store
	replaces []byte // the record that this one was made of, which a conditional write expects
	lazy     *lazy
}

// lazy holds values computed on first use. All users of one store read share
// one lazy.
type lazy struct {
	touching atomic.Bool // one of the users calls Store.Touch

	claimsOnce sync.Once
	claims     map[string]any

	credentialsOnce sync.Once
	headers         map[string][]string // :: target → values of an Authorization header
	key             *ecdsa.PrivateKey
}

// Claim returns a claim of the user as encoding/json decodes it, with numbers
// as json.Number; nil if there is no such claim.
func (s *Session) Claim(name string) any {
	l := s.shared()
	l.claimsOnce.Do(func() {
		d := json.NewDecoder(bytes.NewReader(s.Claims))
		d.UseNumber()
		d.Decode(&l.claims) // it was encoded when the session started
	})
	return l.claims[name]
}

// shared returns the values that are shared by all users of a read. A Session
// that no Manager has made, such as one in a test, has none.
func (s *Session) shared() *lazy {
	if s.lazy == nil {
		return new(lazy)
	}
	return s.lazy
}

// Format writes the session's ID, whatever the verb: fmt would print the data
// key too.
func (s Session) Format(f fmt.State, _ rune) { io.WriteString(f, "session "+s.ID) }

// LogValue returns the session's ID.
func (s Session) LogValue() slog.Value { return slog.StringValue(s.ID) }

// Authorization returns the values of an Authorization header with the access
// token for a target (see Tokens.Authorization); nil if there is no such token.
// The values must not be modified.
func (s *Session) Authorization(target string) []string {
	return s.credentials().headers[target]
}

// Key returns the private key that the tokens are bound to; nil if they are
// bearer tokens.
func (s *Session) Key() *ecdsa.PrivateKey {
	return s.credentials().key
}

// credentials returns the values with headers and key set.
func (s *Session) credentials() *lazy {
	l := s.shared()
	l.credentialsOnce.Do(func() {
		t := &s.Tokens
		if t.Key != "" {
			scalar, _ := base64.RawURLEncoding.DecodeString(t.Key.Reveal())
			l.key, _ = ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar) // Start has checked it
		}
		l.headers = map[string][]string{"": {t.Authorization()}}
		for target := range t.Others {
			other := t.For(target)
			other.Key = t.Key
			l.headers[target] = []string{other.Authorization()}
		}
	})
	return l
}

// Ticket returns the ticket that opens the session.
func (s *Session) Ticket() Ticket { return s.ticket }

// sameUser reports whether two sessions are of the same user.
func (s *Session) sameUser(other *Session) bool {
	return s.Issuer == other.Issuer && s.Subject == other.Subject
}

// setEnd sets ExpiresAt and IdleExpiresAt.
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
