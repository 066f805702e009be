package session

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"
)

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

func (c *Config) idleTimeout() time.Duration { return orDefault(c.IdleTimeout, 30*time.Minute) }

func (c *Config) maxLifetime() time.Duration { return orDefault(c.MaxLifetime, 12*time.Hour) }

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

// FieldError is a mistake in one field of a Config.
type FieldError struct {
	Field string // as in Go: "MaxLifetime", "Keys[1]"
	Err   error
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Err.Error() }

func (e *FieldError) Unwrap() error { return e.Err }

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

func leaseKey(id string) string { return "refresh:" + id }

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
