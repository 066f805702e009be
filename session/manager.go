package session

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/cloakroom-bff/cloakroom/internal/configerr"
	"github.com/cloakroom-bff/cloakroom/internal/span"
)

// Config configures a Manager.
type Config struct {
	// Store keeps the sessions, and is required.
	Store Store
	// Keys are the operator's secrets of 32 bytes each (see Keyring). At least
	// one is required.
	Keys [][]byte
	// App is the application that the sessions belong to. The zero value is
	// enough for a single application.
	App App

	// IdleTimeout is the time after the last Touch at which a session ends.
	// Zero means DefaultIdleTimeout.
	IdleTimeout time.Duration
	// MaxLifetime is the absolute lifetime of a session. Zero means
	// DefaultMaxLifetime.
	MaxLifetime time.Duration
	// RefreshAhead is how long before the expiry of an access token
	// Manager.Fresh refreshes the token in the background. Manager.Fresh never
	// does so in the first half of the token's lifetime. Zero means a minute.
	RefreshAhead time.Duration
	// CacheMaxAge is the maximum age of a cached session, even if the store
	// announces no change of that session (see Manager.Run). Zero means 5
	// seconds.
	CacheMaxAge time.Duration
	// MaxPerUser is how many sessions a user may have. A login that exceeds
	// MaxPerUser ends the oldest session. Zero means any number.
	MaxPerUser int

	// Refresh obtains an access token for a target (see Tokens.Others), usually
	// with the session's refresh token. Refresh is required. The empty target
	// means Tokens.Access. ctx does not end with the request that caused the
	// refresh. The error wraps
	//
	//   - ErrRefused if the provider says that the grant is over,
	//   - ErrUserRequired if the provider requires the user to sign in again,
	//   - ErrNoResponse if the provider may have processed the request, but the
	//     response was lost,
	//   - a *RefreshError to say when to retry.
	//
	// Any other error is transient. If the provider rotated the refresh token
	// and the refresh fails nevertheless, return the new refresh token in
	// RefreshResult.Tokens.Refresh, together with an error that wraps neither
	// ErrRefused nor ErrNoResponse. The Manager then stores the new refresh
	// token.
	Refresh func(ctx context.Context, s *Session, target string) (RefreshResult, error)
	// Ready waits until a request can be sent to the provider, at most for
	// wait. id is the ID of the session. The error wraps a *RefreshError, or is
	// the error of ctx. A nil Ready means that requests can always be sent.
	//
	// After Refresh has returned ErrNoResponse, Ready must wait until the
	// provider responds to some other request. That request may be for any
	// session, or for none, such as a fetch of the provider's metadata. If
	// Ready returns no error, the Manager repeats the refresh.
	//
	// The epoch is a number that changes when the provider has recovered. If
	// the epoch has changed since a refresh failed, the next refresh does not
	// wait for the backoff.
	Ready func(ctx context.Context, id string, wait time.Duration) (epoch uint64, err error)
	// Revoke revokes new tokens that a refresh obtained but cannot store
	// because the session has ended meanwhile, and the tokens of a session that
	// was ended for ReasonRevoked (see Manager.EndByID). No request waits for
	// Revoke, so it may repeat what fails. Manager.End does not call Revoke. A
	// nil Revoke means that such tokens are dropped.
	Revoke func(ctx context.Context, t Tokens) error

	// Wait is how long a caller waits for a refresh. Zero means 5 seconds.
	Wait time.Duration
	// AccessTokenLifetime is the lifetime of access tokens whose expiry is
	// unknown. Zero means 5 minutes.
	AccessTokenLifetime time.Duration

	// Observe is called with each event, and must not block. If a request
	// caused or noticed the event, ctx has the values of the request's context.
	// A nil Observe means that events are dropped.
	Observe func(ctx context.Context, e Event)
	// Waited is called after Fresh, Refresh or RefreshRejected has waited for a
	// refresh. ctx is the ctx of the caller, and d the duration of the wait.
	// Waited must not block, and may be nil.
	Waited func(ctx context.Context, d time.Duration)

	// TracerProvider makes the OpenTelemetry spans of reads of a session from
	// the store, of refreshes, and of callers that wait for one. Nil means no
	// spans.
	TracerProvider trace.TracerProvider

	Logger *slog.Logger // nil means slog.Default()
}

// DefaultMaxLifetime is the absolute lifetime of a session if
// Config.MaxLifetime is zero.
const DefaultMaxLifetime = 12 * time.Hour

// DefaultIdleTimeout is the idle timeout if Config.IdleTimeout is zero.
const DefaultIdleTimeout = 30 * time.Minute

func (c *Config) idleTimeout() time.Duration { return orDefault(c.IdleTimeout, DefaultIdleTimeout) }

func (c *Config) maxLifetime() time.Duration { return orDefault(c.MaxLifetime, DefaultMaxLifetime) }

func (c *Config) refreshAhead() time.Duration { return orDefault(c.RefreshAhead, time.Minute) }
func (c *Config) cacheMaxAge() time.Duration  { return orDefault(c.CacheMaxAge, 5*time.Second) }

func (c *Config) wait() time.Duration { return orDefault(c.Wait, 5*time.Second) }

func (c *Config) accessTokenLifetime() time.Duration {
	return orDefault(c.AccessTokenLifetime, 5*time.Minute)
}

func orDefault(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

// ConfigError is a mistake in one field of a Config. Key names the field, such
// as MaxLifetime or Keys[1]. Value is the value of the field, empty for a
// secret. Err says what is wrong.
type ConfigError = configerr.Error

// Manager starts, finds, refreshes and ends the sessions in a Store. A Manager
// is safe for concurrent use.
type Manager struct {
	cfg    Config
	id     string // of this Manager, random
	log    *slog.Logger
	tracer trace.Tracer // nil: no spans
	ring   *Keyring
	cache  *cache

	notifier  notifier
	followers followers
	failover  failoverLog
	working   sync.WaitGroup // refreshes in progress, for Drain

	refreshing, waiting atomic.Int64 // of Stats

	reported sessionSet // whose end this replica has reported, or another one as far as this one knows
	revoked  sessionSet // whose tokens need no revocation any more
	returned sessionSet // whose cookie came back to this replica
	unopened sessionSet // whose record did not open on this replica
	seen     lastSeen

	mu        sync.Mutex               // guards all below
	refreshes map[refreshKey]*refresh  // in flight, and failed ones until they are forgotten
	renewed   map[refreshKey]time.Time // when tokens were last refreshed because an API rejected them
	missedAt  time.Time                // when the store last said that changes may not have been announced
}

// NewManager returns a Manager, and does no I/O. The error joins a *ConfigError
// for every mistake in cfg.
func NewManager(cfg Config) (*Manager, error) {
	var errs []error
	if cfg.Store == nil {
		errs = append(errs, configerr.New("Store", nil, errors.New("missing")))
	}
	if cfg.Refresh == nil {
		errs = append(errs, configerr.New("Refresh", nil, errors.New("missing")))
	}
	for name, d := range map[string]time.Duration{
		"RefreshAhead": cfg.RefreshAhead, "CacheMaxAge": cfg.CacheMaxAge,
		"Wait": cfg.Wait, "AccessTokenLifetime": cfg.AccessTokenLifetime,
	} {
		if d < 0 {
			errs = append(errs, configerr.New(name, d, fmt.Errorf("%v is negative", d)))
		}
	}
	for name, d := range map[string]time.Duration{"IdleTimeout": cfg.idleTimeout(), "MaxLifetime": cfg.maxLifetime()} {
		if d < time.Second {
			errs = append(errs, configerr.New(name, d, fmt.Errorf("%v is shorter than a second", d)))
		}
	}
	if cfg.MaxPerUser < 0 {
		err := fmt.Errorf("%d is negative", cfg.MaxPerUser)
		errs = append(errs, configerr.New("MaxPerUser", cfg.MaxPerUser, err))
	}
	ring, err := NewKeyring(cfg.Keys, cfg.App)
	if err != nil {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Manager{
		cfg: cfg, id: rand.Text(), log: cfg.Logger, tracer: span.Tracer(cfg.TracerProvider), ring: ring,
		cache:     newCache(cfg.cacheMaxAge()),
		followers: followers{changed: make(chan struct{}, 1)},
		failover:  failoverLog{missed: make(chan struct{}, 1)},
		refreshes: make(map[refreshKey]*refresh), renewed: make(map[refreshKey]time.Time),
	}, nil
}

// Keyring returns the keyring of Config.Keys and Config.App.
func (m *Manager) Keyring() *Keyring { return m.ring }

// Stats are numbers of a Manager, for metrics.
type Stats struct {
	CacheHits   uint64 // calls of Find whose session was in the cache
	CacheMisses uint64 // calls of Find that read the store
	Refreshing  int    // refreshes in progress, those that wait for another replica included
	Waiting     int    // callers that wait for a refresh
}

// Stats returns the numbers of this Manager, and does not call the store.
func (m *Manager) Stats() Stats {
	hits, misses := m.cache.stats()
	return Stats{
		CacheHits: hits, CacheMisses: misses,
		Refreshing: int(m.refreshing.Load()), Waiting: int(m.waiting.Load()),
	}
}

// Find returns the session that a ticket opens. Find neither refreshes tokens
// nor counts as activity. The error is ErrNone, or wraps ErrStore.
func (m *Manager) Find(ctx context.Context, t Ticket) (*Session, error) {
	if t.sessionID == "" {
		return nil, ErrNone
	}
	s, err := m.find(ctx, t)
	if errors.Is(err, ErrNone) {
		m.noticeReturn(ctx, t.sessionID)
	}
	return s, err
}

// find is Find for a ticket that no request has brought.
func (m *Manager) find(ctx context.Context, t Ticket) (*Session, error) {
	if s := m.cache.get(t.sessionID, time.Now()); s != nil && s.ticket.Equal(t) {
		return s, nil
	}
	return m.load(ctx, t)
}

// load reads the session that a ticket opens from the store.
func (m *Manager) load(ctx context.Context, t Ticket) (*Session, error) { return m.reload(ctx, t, nil) }

// reload is load for a caller with an earlier read of the session, which may be
// nil. A record that has not changed since is not opened again: to decrypt,
// decompress and parse it is much of the work of a read.
func (m *Manager) reload(ctx context.Context, t Ticket, earlier *Session) (*Session, error) {
	id := t.sessionID
	if id == "" {
		return nil, ErrNone
	}
	generation, valid := m.cache.beginRead(id)
	sealed, ttl, found, err := m.readRecord(ctx, id)
	if err != nil {
		return nil, err
	}
	if !found {
		m.noticeEnd(ctx, ending{id: id, reason: m.expiryReason(id, time.Now())})
		m.revokeKept(ctx, t)
		return nil, ErrNone
	}
	s, err := m.openAgain(ctx, t, sealed, earlier)
	if err != nil {
		return nil, err
	}
	if w, ok := m.failover.get(id); ok && w.missingIn(s) {
		if s, err = m.reconcile(ctx, t, w); err != nil {
			return nil, err
		}
	}
	now := time.Now()
	if !now.Before(s.ExpiresAt) {
		m.noticeEnd(ctx, s.ending(ReasonLifetime, nil))
		return nil, ErrNone
	}
	s.recordEnds = now.Add(ttl)
	s.setEnd()
	s.lazy = new(lazy)
	m.cache.noteLimit(id, s.limit)
	m.cache.put(s, generation, valid, now)
	return s, nil
}

// openAgain is open for a caller with an earlier read of the session, which may
// be nil. Equal records are of the same seal, whose nonce is random.
func (m *Manager) openAgain(ctx context.Context, t Ticket, sealed []byte, earlier *Session) (*Session, error) {
	if earlier == nil || !earlier.ticket.Equal(t) || !bytes.Equal(earlier.sealed, sealed) {
		return m.open(ctx, t, sealed)
	}
	s := *earlier
	s.replaces = nil
	return &s, nil
}

// open opens a record with the session's ticket. The error is ErrNone.
func (m *Manager) open(ctx context.Context, t Ticket, sealed []byte) (*Session, error) {
	s, err := m.ring.open(t, sealed)
	if err == nil {
		return s, nil
	}
	// The record was sealed with a key that has been removed, or modified, or
	// the cookie was made up. In no case is there a session.
	// A browser goes on sending its cookie, so not each read is logged.
	if m.unopened.add(t.sessionID) {
		m.log.WarnContext(ctx, "session record does not open", "session", t.sessionID, "err", err)
	}
	if errors.Is(err, errKeyRemoved) {
		m.noticeEnd(ctx, ending{id: t.sessionID, reason: ReasonKeyRemoved})
	}
	return nil, ErrNone
}

// Touch records activity of the user and moves the idle timeout. Touch writes
// at most sixty times per idle timeout. So a session may end early, by up to a
// sixtieth of the idle timeout. If Config.IdleTimeout has changed since the
// last Touch, the new one counts. The error is ErrNone if the session has
// ended, or wraps ErrStore.
func (m *Manager) Touch(ctx context.Context, s *Session) error {
	now := time.Now()
	ttl := m.idleTTL(s, now)
	if ttl <= 0 {
		return ErrNone
	}
	interval, longer := m.touchInterval(), ttl-s.recordEnds.Sub(now)
	switch {
	case longer >= interval:
	case longer <= -interval && m.seen.due(s.ID, now, interval):
		// The idle timeout has been shortened. Replicas with another one do not
		// cause more writes than usual.
	default:
		if ttl < m.cfg.idleTimeout() && m.seen.due(s.ID, now, interval) {
			m.touchInfo(ctx, s.ID) // the record itself cannot live longer
		}
		return nil
	}
	if !s.lazy.touching.CompareAndSwap(false, true) {
		return nil // another request that shares this read of the session does it
	}
	found, err := m.cfg.Store.Touch(ctx, recordKey(s.ID), ttl)
	if err != nil {
		s.lazy.touching.Store(false)
		return storeError("touch", err)
	}
	m.cache.drop(s.ID)
	if !found {
		return ErrNone
	}
	m.touchInfo(ctx, s.ID)
	m.reseal(ctx, s)
	return nil
}

// touchInterval is the minimum time between two writes of Touch.
func (m *Manager) touchInterval() time.Duration { return m.cfg.idleTimeout() / 60 }

// End ends a session. If the error wraps ErrStore, the session may still exist,
// and the caller must keep the cookie. Ending a session that has already ended
// is not an error. End is completed also if ctx is done, as all methods that
// end sessions: the context of a request ends when the browser goes away.
func (m *Manager) End(ctx context.Context, s *Session, reason Reason) error {
	ctx = context.WithoutCancel(ctx)
	if err := m.end(ctx, s.ending(reason, nil)); err != nil {
		return storeError("delete", err)
	}
	m.removeFromIndexes(ctx, s)
	return nil
}

// delete deletes the record and the info of the session with an ID. When delete
// returns without an error, no replica finds the session in the store. Shortly
// afterwards no replica finds the session in a cache.
func (m *Manager) delete(ctx context.Context, id string) error {
	if m.cfg.Store.Delete(ctx, recordKey(id), infoKey(id)) != nil {
		return m.deleteApart(ctx, id)
	}
	m.noteDeleted(id)
	return nil
}

// deleteApart is delete for a store that has just failed. In a Redis Cluster,
// that may be a failure of other keys than the record. So the record is deleted
// alone, and first: each call of a store that does not respond takes seconds.
func (m *Manager) deleteApart(ctx context.Context, id string) error {
	if err := m.cfg.Store.Delete(ctx, recordKey(id)); err != nil {
		return err
	}
	m.noteDeleted(id)
	if err := m.cfg.Store.Delete(ctx, infoKey(id)); err != nil {
		m.log.DebugContext(ctx, "info of an ended session not deleted; it expires", "session", id, "err", err)
	}
	return nil
}

// noteDeleted takes note that this replica has deleted a session.
func (m *Manager) noteDeleted(id string) {
	m.failover.deleted(id)
	m.cache.drop(id)
	m.followers.markChanged(id)
}

// recordKey and leaseKey are the keys in the store of a session's record, and
// of the lease to refresh the session.
func recordKey(id string) string { return "session:" + id }
func leaseKey(id string) string  { return "refresh:" + id }

// idleTTL is how long the session's record lives from now if nothing touches
// it: the idle timeout, cut at the absolute end. The expiry of the refresh
// token does not count here, because a refresh changes that expiry without a
// Touch.
func (m *Manager) idleTTL(s *Session, now time.Time) time.Duration {
	return min(m.cfg.idleTimeout(), s.limit.Sub(now))
}
