// Package session keeps a signed-in user's tokens on the server, behind a cookie that opens nothing by itself.
//
// A session is a record in a Store. Its key in the store is a hash of the session's id; its value is sealed under a key
// made of two halves: a data key that only the user's cookie holds, and a key derived from the operator's session keys.
// Whoever has the store alone, or the cookie alone, reads nothing.
//
// The Manager is what a server uses: Start at login, Get to look, Fresh for a session whose access token can be used now,
// Touch when the user was active, End at logout, EndAll when the provider says so. Each concern has one file:
//
//	session.go   what a session is, the Store, and what a Manager does
//	ticket.go    the cookie
//	seal.go      a record in the store; pack.go makes it small
//	refresh.go   the only place that decides to refresh, takes the lease, refreshes and saves
//	index.go     the sessions of a user, and of a session at the provider
//	watch.go     what other replicas do: it keeps cache.go right, ends streams (ends.go), and repeats what a failover has lost (journal.go)
package session

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
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

	ticket   ticket
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

// Ticket returns what opens the session's record, for Login.Replaces. It is as
// secret as the session's cookie.
func (s *Session) Ticket() Secret {
	return Secret(base64.RawURLEncoding.EncodeToString(append(s.ticket.id[:], s.ticket.dataKey[:]...)))
}

// setEnd computes ExpiresAt and IdleExpiresAt.
func (s *Session) setEnd() {
	s.ExpiresAt = s.limit
	if s.Tokens.Refresh != "" && !s.Tokens.RefreshExpiry.IsZero() {
		s.ExpiresAt = earlier(s.limit, s.Tokens.RefreshExpiry)
	}
	s.IdleExpiresAt = earlier(s.recordEnds, s.ExpiresAt)
}

// moveEnd moves ExpiresAt after a refresh. A refresh token that came without an
// end has none that is known. The provider's end of the session is final: a
// later one does not move it back.
func (s *Session) moveEnd(r Renewal) {
	if r.Tokens.Refresh != "" || !r.Tokens.RefreshExpiry.IsZero() {
		s.Tokens.RefreshExpiry = r.Tokens.RefreshExpiry
	}
	if !r.ExpiresAt.IsZero() {
		s.limit = earlier(s.limit, r.ExpiresAt)
	}
	s.setEnd()
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// Store keeps records: opaque bytes under a key, each with a time to live; and sets of names, which have one too. A Store is safe for concurrent
// use, and every method is atomic and sees all that was written before it began. What has outlived its time does not exist.
//
// An error is a fault of the store (it is out of reach, full, or misconfigured), never an answer: a record that is not
// there is not an error. After an error of a writing method the write may or may not have happened. Each of them can be called
// again with the same arguments, and then says what it would have said the first time.
type Store interface {
	// Get returns the value under key and how much longer it lives; found is false when there is none.
	Get(ctx context.Context, key string) (value []byte, ttl time.Duration, found bool, err error)
	// Create writes a record under a key that has none, to live for ttl, which is positive. It returns false and writes nothing when there is
	// one with another value.
	Create(ctx context.Context, key string, value []byte, ttl time.Duration) (created bool, err error)
	// Replace writes value in the place of old and leaves the time to live as it is. It returns false and writes nothing
	// when the record is gone or holds neither: a late writer can neither revive nor overwrite.
	Replace(ctx context.Context, key string, old, value []byte) (replaced bool, err error)
	// Touch lets a record live for ttl, which is positive, from now on. It returns false when there is none.
	Touch(ctx context.Context, key string, ttl time.Duration) (found bool, err error)
	// Delete removes a record. That there is none is not an error.
	Delete(ctx context.Context, key string) error

	// Acquire makes owner the holder of the lease under key for ttl from now on, unless somebody else holds it, and says whether it did. The
	// holder renews its lease by acquiring it again. A lease that is not renewed ends by itself.
	Acquire(ctx context.Context, key, owner string, ttl time.Duration) (acquired bool, err error)
	// Release ends the lease under key if owner holds it. That it does not is not an error.
	Release(ctx context.Context, key, owner string) error

	// Add puts a member into the set under key, to be in it for ttl from now on.
	// A member that is in it already stays at least as long as before. The set
	// lives as long as the member that stays longest.
	Add(ctx context.Context, key, member string, ttl time.Duration) error
	// Members returns the members of the set under key, in any order; none when
	// there is no such set. A member whose time is over may be returned for some
	// minutes more while the set has others.
	Members(ctx context.Context, key string) ([]string, error)
	// Remove takes a member out of the set under key. That it is not in it is not an error.
	Remove(ctx context.Context, key, member string) error

	// Watch calls changed with the key of every record under "session:" and every lease under "refresh:" that anybody writes, soon after they
	// did, until ctx ends; with the empty key when any of them may have been written without an announcement. It calls
	// current to vouch, until a moment, that all that was written before the call has been announced; when it
	// cannot, it does not. It may call for what has not changed, and from several goroutines at once.
	Watch(ctx context.Context, changed func(key string), current func(until time.Time))
}

// Config is what a Manager needs.
type Config struct {
	Store Store

	// Keys are the operator's secrets of 32 bytes each. The first seals, all open, so that a key can be rotated without a logout.
	Keys [][]byte
	// App is whose sessions these are: those of another one are not seen.
	App App

	IdleTimeout  time.Duration // a session ends after so long without Touch; zero means 30 minutes
	MaxLifetime  time.Duration // a session ends so long after Start at the latest; zero means 12 hours
	RefreshAhead time.Duration // tokens are refreshed in the background so long before they expire, at most half their life; zero means a minute

	// CacheMaxAge bounds for how long a session is used without asking the store although nobody announced a change (see Watch). Zero means 5 seconds.
	CacheMaxAge time.Duration
	// MaxPerUser is how many sessions a user may have; a login beyond it ends the oldest. Zero means any number.
	MaxPerUser int

	Cookie Cookie
	// CookieRefused is called with a request whose session cookie is not used,
	// each time that it is read, and why that is. It is not called for the cookie
	// of a session that has ended. Nil: nothing is called.
	CookieRefused func(r *http.Request, state CookieState)

	// Refresh obtains an access token for a target, which is empty or what FreshFor was called with, mostly by trading the tokens' refresh token for
	// new ones. It wraps ErrRefused when the provider says that the grant is over, ErrUserRequired when it requires the user, and ErrNoAnswer when the request
	// may have been processed but no answer arrived. A refresh token beside another error was issued all the same, in the place of the one that was
	// spent. Its context does not end with the request that caused it.
	Refresh func(ctx context.Context, s *Session, target string) (Renewal, error)

	// Ready waits until the provider can be asked, at most for wait. The epoch that
	// it returns changes when the provider may be asked again although it failed
	// before: a refresh that failed in an earlier epoch is retried at once. The
	// error, which wraps a *RefreshError, says why it cannot be asked. id is the
	// session's. Nil: the provider can always be asked.
	Ready func(ctx context.Context, id string, wait time.Duration) (epoch uint64, err error)
	// Wait is how long a caller waits for a refresh. Zero means 5 seconds.
	Wait time.Duration
	// AccessTokenLifetime is how long an access token is used whose expiry is
	// unknown. Zero means 5 minutes.
	AccessTokenLifetime time.Duration

	// Revoke tells the provider that the tokens are not needed any more. It is called for tokens that were obtained for a
	// session which ended meanwhile. Nil: they are dropped.
	Revoke func(ctx context.Context, t Tokens) error

	Logger *slog.Logger // nil means slog.Default()
}

func (c *Config) idleTimeout() time.Duration  { return orDefault(c.IdleTimeout, 30*time.Minute) }
func (c *Config) maxLifetime() time.Duration  { return orDefault(c.MaxLifetime, 12*time.Hour) }
func (c *Config) refreshAhead() time.Duration { return orDefault(c.RefreshAhead, time.Minute) }

func (c *Config) wait() time.Duration { return orDefault(c.Wait, 5*time.Second) }

func (c *Config) accessTokenLifetime() time.Duration {
	return orDefault(c.AccessTokenLifetime, 5*time.Minute)
}

func (c *Config) cacheMaxAge() time.Duration { return orDefault(c.CacheMaxAge, 5*time.Second) }

func orDefault(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

// Manager starts, finds, refreshes and ends sessions. It is safe for concurrent use.
type Manager struct {
	cfg    Config
	log    *slog.Logger
	ring   keyring
	cookie cookie
	cache  *cache

	waking  waking
	ends    ends
	journal journal
	working sync.WaitGroup // refreshes under way, for Drain

	mu       sync.Mutex           // guards all below
	flights  map[errand]*flight   // a refresh under way, or its failure while it is too early to try again
	renewed  map[errand]time.Time // when it was refreshed because an API rejected the token
	missedAt time.Time            // when the store last said that changes may have gone unannounced
}

// Renewal is what a refresh brought. An empty field means that the provider sent none, and what was there stays.
type Renewal struct {
	Tokens Tokens          // Access, Scope, Issued and Expiry are of the target that was asked for; another Key binds them from now on, and makes an end of Others
	Claims json.RawMessage // as Session.Claims is to be

	ExpiresAt time.Time // when the provider ends the session
}

// FieldError is a mistake in one field of a Config.
type FieldError struct {
	Field string // as in Go: "MaxLifetime", "Keys[1]"
	Err   error
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Err.Error() }
func (e *FieldError) Unwrap() error { return e.Err }

// NewManager returns a Manager. It does no I/O. The error joins a *FieldError for every mistake in cfg.
func NewManager(cfg Config) (*Manager, error) {
	var errs []error
	if cfg.Store == nil {
		errs = append(errs, &FieldError{"Store", errors.New("missing")})
	}
	if cfg.Refresh == nil {
		errs = append(errs, &FieldError{"Refresh", errors.New("missing")})
	}
	for name, d := range map[string]time.Duration{
		"RefreshAhead": cfg.RefreshAhead, "CacheMaxAge": cfg.CacheMaxAge, "Wait": cfg.Wait, "AccessTokenLifetime": cfg.AccessTokenLifetime,
	} {
		if d < 0 {
			errs = append(errs, &FieldError{name, fmt.Errorf("%v is negative", d)})
		}
	}
	for name, d := range map[string]time.Duration{"IdleTimeout": cfg.idleTimeout(), "MaxLifetime": cfg.maxLifetime()} {
		if d < time.Second {
			errs = append(errs, &FieldError{name, fmt.Errorf("%v is shorter than a second", d)})
		}
	}
	if cfg.MaxPerUser < 0 {
		errs = append(errs, &FieldError{"MaxPerUser", fmt.Errorf("%d is negative", cfg.MaxPerUser)})
	}
	ring, err := newKeyring(cfg.Keys, cfg.App)
	if err != nil {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	m := &Manager{cfg: cfg, log: cfg.Logger, ring: ring, cache: newCache(cfg.cacheMaxAge()), flights: make(map[errand]*flight), renewed: make(map[errand]time.Time), ends: ends{wake: make(chan struct{}, 1)}, journal: journal{missed: make(chan struct{}, 1)}}
	if m.log == nil {
		m.log = slog.Default()
	}
	m.cookie = newCookie(cfg.Cookie, ring)
	return m, nil
}

// Login is how a session came about.
type Login struct {
	Began time.Time // when the user was sent to the provider; zero means now
	// Replaces are the tickets of the sessions that this login takes the place
	// of, which are ended. Empty ones are ignored.
	Replaces []Secret
	// Replaced is called with each session that was ended so. Its tokens are to be
	// revoked, unless they are kept: in Tokens.Superseded of the new session,
	// because it is the same user's. It must not block. Nil: nothing is called.
	Replaced func(old *Session, kept bool)
}

// maxSuperseded is how many refresh tokens a session keeps for others. Beyond
// that the oldest are left to expire.
const maxSuperseded = 16

// Start begins a session for s (Issuer, Subject, SID, Claims, Tokens and
// ExpiresAt are read) and gives the browser its cookie. ExpiresAt is when the
// provider ends the session; zero: it did not say. The session has a new id and
// a new data key, whatever the browser brought: there is nothing to fixate.
//
// The error is ErrEnded when the provider has ended the session before it began (see EndAll); it may wrap ErrStore.
func (m *Manager) Start(ctx context.Context, w http.ResponseWriter, s Session, login Login) (*Session, error) {
	now := time.Now()
	if login.Began.IsZero() {
		login.Began = now
	}
	s.ticket = newTicket()
	s.ID = s.ticket.sessionID
	s.CreatedAt = now
	s.limit = now.Add(m.cfg.maxLifetime())
	if !s.ExpiresAt.IsZero() {
		s.limit = earlier(s.limit, s.ExpiresAt)
	}
	s.reading = new(reading)
	if s.Tokens.Key != "" && s.Key() == nil {
		return nil, errors.New("start session: the key of its tokens is not one of P-256")
	}
	if s.Tokens.Refresh == "" && !s.Tokens.Expiry.IsZero() {
		s.limit = earlier(s.limit, s.Tokens.Expiry) // nothing can come after the only access token
	}
	old, err := m.openReplaced(ctx, &s, login.Replaces)
	if err != nil {
		return nil, err
	}
	ttl := m.idleTTL(&s, now)
	s.recordEnds = now.Add(ttl)
	s.setEnd()
	switch {
	case s.ExpiresAt.After(now):
	case !s.limit.After(now) && s.limit.Equal(s.Tokens.Expiry):
		return nil, errors.New("start session: the access token is expired already and there is no refresh token")
	default:
		return nil, fmt.Errorf("%w: it ended the session, or lets it end, at %v", ErrEnded, s.ExpiresAt)
	}
	sealed, err := m.ring.seal(&s)
	if err != nil {
		return nil, err
	}
	s.sealed = sealed
	value, err := m.cookie.encode(s.ticket)
	if err != nil {
		return nil, err
	}
	// In this order a logout at the provider that happens meanwhile either finds
	// the session in the index or is found by checkEnded.
	if err := m.enlist(ctx, &s); err != nil {
		return nil, storeError("enlist", err)
	}
	created, err := m.cfg.Store.Create(ctx, recordKey(s.ID), sealed, ttl)
	if err != nil {
		return nil, storeError("create", err)
	}
	if !created {
		return nil, errors.New("start session: its random id is taken")
	}
	if err := m.checkEnded(ctx, &s, login.Began); err != nil {
		return nil, err
	}
	for _, o := range old { // before endOldest: they do not count any more
		if err := m.delete(ctx, o.ID); err != nil {
			return nil, storeError("end the session before", err)
		}
		m.delist(ctx, o)
		if login.Replaced != nil {
			login.Replaced(o, o.sameUser(&s))
		}
	}
	if m.cfg.MaxPerUser > 0 {
		if err := m.endOldest(ctx, &s); err != nil {
			return nil, storeError("end the oldest session", err)
		}
	}
	m.cookie.set(w, value, s.limit.Sub(now))
	return &s, nil
}

// openReplaced returns the sessions that tickets open, and puts the refresh
// tokens of those of the same user into s.
func (m *Manager) openReplaced(ctx context.Context, s *Session, tickets []Secret) ([]*Session, error) {
	var all []*Session
	for _, text := range tickets {
		b, err := base64.RawURLEncoding.DecodeString(text.Reveal())
		t, ok := parseTicket(b)
		if err != nil || !ok || slices.ContainsFunc(all, func(o *Session) bool { return o.ID == t.sessionID }) {
			continue
		}
		o, err := m.load(ctx, t)
		if errors.Is(err, ErrNone) {
			continue // it has ended
		}
		if err != nil {
			return nil, err
		}
		all = append(all, o)
		if !o.sameUser(s) {
			continue
		}
		kept := append(s.Tokens.Superseded, o.Tokens.Superseded...)
		if o.Tokens.Refresh != "" {
			kept = append(kept, o.Tokens.Refresh)
		}
		s.Tokens.Superseded = kept[max(0, len(kept)-maxSuperseded):]
	}
	return all, nil
}

// sameUser reports whether two sessions are the same user's.
func (s *Session) sameUser(other *Session) bool {
	return s.Issuer == other.Issuer && s.Subject == other.Subject
}

// Get returns the request's session. It changes nothing: neither does it refresh tokens, nor does it count as activity.
// The error is ErrNone or wraps ErrStore.
func (m *Manager) Get(ctx context.Context, r *http.Request) (*Session, error) {
	t, _, err := m.ticket(r)
	if err != nil {
		return nil, err
	}
	return m.find(ctx, t)
}

// Touch counts as activity of the session's user and moves the idle time-out. It writes at most sixty times in an idle
// time-out, so a session may end up to a sixtieth of it early.
func (m *Manager) Touch(ctx context.Context, s *Session) error {
	now := time.Now()
	ttl := m.idleTTL(s, now)
	if ttl <= 0 {
		return ErrNone
	}
	if ttl-s.recordEnds.Sub(now) < m.cfg.idleTimeout()/60 {
		return nil
	}
	if !s.reading.touching.CompareAndSwap(false, true) {
		return nil // another request with this very reading of the session does it
	}
	found, err := m.cfg.Store.Touch(ctx, recordKey(s.ID), ttl)
	if err != nil {
		s.reading.touching.Store(false)
		return storeError("touch", err)
	}
	m.cache.drop(s.ID)
	if !found {
		return ErrNone
	}
	m.reseal(ctx, s)
	return nil
}

// reseal lets the first of the session keys seal a record that another one has sealed. It leaves a session alone that is being refreshed, whose new tokens
// would not find the record that they replace. If it fails there is another Touch.
func (m *Manager) reseal(ctx context.Context, s *Session) {
	if m.ring.first(s.sealed) {
		return
	}
	owner := rand.Text()
	acquired, err := m.cfg.Store.Acquire(ctx, leaseKey(s.ID), owner, leaseTTL)
	if err == nil && !acquired {
		return
	}
	var sealed []byte
	if err == nil {
		err = m.enlist(ctx, s)
	}
	if err == nil {
		sealed, err = m.ring.seal(s)
	}
	if err == nil {
		_, err = m.cfg.Store.Replace(ctx, recordKey(s.ID), s.sealed, sealed)
		m.cache.drop(s.ID)
	}
	if acquired {
		err = errors.Join(err, m.cfg.Store.Release(ctx, leaseKey(s.ID), owner))
	}
	if err != nil {
		m.log.WarnContext(ctx, "session not sealed with the new key yet", "session", s.ID, "err", err)
	}
}

// sealRefreshed seals next, which a refresh made of s. Where that moves the
// record to another key, the session is put into the indexes that this key
// names first, so that they list it when the old key is gone. While that fails
// the record stays with the old key, and is moved by a later refresh or Touch.
func (m *Manager) sealRefreshed(ctx context.Context, s, next *Session) ([]byte, error) {
	k, ok := m.ring.sealer(s.sealed)
	if !ok || m.ring.first(s.sealed) {
		return m.ring.seal(next)
	}
	if err := m.enlist(ctx, next); err != nil {
		m.log.WarnContext(ctx, "session not sealed with the new key yet", "session", s.ID, "err", err)
		return k.seal(next)
	}
	return m.ring.seal(next)
}

// RenewCookie gives the browser its cookie again if it was sealed with a session key that is not the first any more, so that the old key can be
// taken away before the session ends, and says whether it did. s is the request's session; if it has ended meanwhile, the browser may have the cookie of another.
func (m *Manager) RenewCookie(ctx context.Context, w http.ResponseWriter, r *http.Request, s *Session) bool {
	t, first, err := m.ticket(r)
	if err != nil || first || !t.equal(s.ticket) {
		return false
	}
	if _, err := m.find(ctx, t); err != nil {
		return false
	}
	value, err := m.cookie.encode(t)
	if err != nil {
		return false
	}
	m.cookie.set(w, value, time.Until(s.limit))
	return true
}

// End ends the request's session, takes the cookie from the browser, and returns the session as it was, so that the
// provider can be told; nil when there was none, which is not an error. When the store cannot be asked the session lives on and the
// cookie stays, for nothing else would be true. A cookie of another App stays
// too.
func (m *Manager) End(ctx context.Context, w http.ResponseWriter, r *http.Request) (*Session, error) {
	s, err := m.Get(ctx, r)
	if err != nil && !errors.Is(err, ErrNone) {
		return nil, err
	}
	if s != nil {
		if err := m.delete(ctx, s.ID); err != nil {
			return nil, storeError("delete", err)
		}
		m.delist(ctx, s)
	}
	if !errors.Is(err, ErrForeign) {
		m.cookie.clear(w)
	}
	return s, nil
}

// delete ends the session with an ID: nobody finds it any more when it returns, and other replicas forget it within moments.
func (m *Manager) delete(ctx context.Context, id string) error {
	if err := m.cfg.Store.Delete(ctx, recordKey(id)); err != nil {
		return err
	}
	m.journal.ended(id)
	m.cache.drop(id)
	m.ends.check(id)
	return nil
}

// ClearCookie takes the cookie of a session that has ended from the browser.
func (m *Manager) ClearCookie(w http.ResponseWriter) { m.cookie.clear(w) }

// CookieName returns the name of the session cookie, which must not reach an upstream.
func (m *Manager) CookieName() string { return m.cookie.name }

// recordKey is the key in the store of the session with an ID, leaseKey that of the right to refresh it.
func recordKey(id string) string { return "session:" + id }
func leaseKey(id string) string  { return "refresh:" + id }

// find returns the session that a ticket opens, from the cache if it is there.
func (m *Manager) find(ctx context.Context, t ticket) (*Session, error) {
	if s := m.cache.get(t.sessionID, time.Now()); s != nil && s.ticket.equal(t) {
		return s, nil
	}
	return m.load(ctx, t)
}

// load reads the session that a ticket opens from the store.
func (m *Manager) load(ctx context.Context, t ticket) (*Session, error) {
	id := t.sessionID
	changes, current := m.cache.reading(id)
	sealed, ttl, found, err := m.cfg.Store.Get(ctx, recordKey(id))
	if err != nil {
		return nil, storeError("read", err)
	}
	if !found {
		return nil, ErrNone
	}
	if w, ok := m.journal.get(id); ok {
		if sealed, err = m.heed(ctx, id, w, sealed); err != nil {
			return nil, err
		}
	}
	s, err := m.ring.open(t, sealed)
	if err != nil {
		// A record that does not open under the cookie that names it was sealed with a key that has been removed, or
		// tampered with. Either way there is no session in it.
		m.log.WarnContext(ctx, "session record does not open", "session", id, "err", err)
		return nil, ErrNone
	}
	now := time.Now()
	if !now.Before(s.ExpiresAt) {
		return nil, ErrNone
	}
	s.recordEnds = now.Add(ttl)
	s.setEnd()
	s.reading = new(reading)
	m.cache.put(s, changes, current, now)
	return s, nil
}

// idleTTL is how long the session's record lives from now if nothing touches
// it: the idle timeout, cut at the absolute end. The end of the refresh token
// does not count here, because a refresh moves it without a Touch.
func (m *Manager) idleTTL(s *Session, now time.Time) time.Duration {
	return min(m.cfg.idleTimeout(), s.limit.Sub(now))
}

func storeError(op string, err error) error {
	return fmt.Errorf("%w: %s: %w", ErrStore, op, err)
}
