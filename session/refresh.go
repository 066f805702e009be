package session

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/cloakroom-bff/cloakroom/internal/flight"
	"github.com/cloakroom-bff/cloakroom/internal/span"
)

// ErrRefused means that the provider ended the grant (invalid_grant, RFC 6749,
// section 5.2). Config.Refresh returns ErrRefused. No other response of a
// provider ends a session.
var ErrRefused = errors.New("the provider refused the grant")

// ErrNoResponse means that a request may have reached the provider, but the
// connection failed before the response: the refresh token may have been
// rotated. Config.Refresh returns ErrNoResponse. The Manager then calls
// Config.Ready. If Config.Ready returns no error, the Manager calls
// Config.Refresh once more. If the second call returns ErrNoResponse too, the
// Manager treats the error as transient.
var ErrNoResponse = errors.New("no response from the provider")

// ErrUserRequired means that the provider issues no tokens until the user has
// signed in again, for example because of interaction_required (OpenID Connect
// Core, section 3.1.2.6). Config.Refresh returns ErrUserRequired. The session
// is kept until a login replaces the session.
var ErrUserRequired = errors.New("the provider requires the user to sign in again")

// RefreshError means that the tokens could not be refreshed for now. The
// session is kept.
type RefreshError struct {
	// RetryAfter is how long to wait before a retry, at least a second.
	RetryAfter time.Duration
	// Outage means that the provider fails for all sessions. A Config.Refresh
	// that sets Outage should log the outage once, so that observers need not
	// log the outage for each session.
	Outage bool
	Err    error
}

func (e *RefreshError) Error() string { return e.Err.Error() }

// Unwrap returns e.Err.
func (e *RefreshError) Unwrap() error { return e.Err }

const (
	// The backoff after transient errors doubles from minRetryAfter to
	// maxBackoff. The provider may ask for up to maxRetryAfter.
	minRetryAfter = time.Second
	maxBackoff    = 16 * time.Second
	maxRetryAfter = 30 * time.Second
	// failureMemory is how long after its backoff a failure makes the next
	// backoff longer.
	failureMemory = time.Minute
	// userRequiredPause is how long no refresh is attempted after the provider
	// required the user to sign in.
	userRequiredPause = time.Minute
	// minRenewInterval is the minimum time between two refreshes that were
	// caused by a rejected token.
	minRenewInterval = 10 * time.Second
)

// Fresh returns s with an access token for a target (see Tokens.Others) that
// can be used now. The empty target means Tokens.Access. While the token is
// good, Fresh does not wait: a token that is about to expire is refreshed in
// the background. An expired token is refreshed first, once for all callers.
//
// The error is ErrNone, ErrEnded, the error of ctx or a *RefreshError, or it
// wraps ErrStore or ErrUserRequired.
func (m *Manager) Fresh(ctx context.Context, s *Session, target string) (*Session, error) {
	now := time.Now()
	if !m.due(s, target, now) {
		return s, nil
	}
	if m.usable(s, target, now) {
		if epoch, err := m.ready(ctx, s, 0); err == nil {
			m.startRefresh(ctx, s, target, epoch)
		}
		return s, nil
	}
	s, err := m.awaitRefresh(ctx, s, target)
	if err == nil && s.Tokens.For(target).Access == "" {
		return nil, retryLater(errors.New("the session has changed meanwhile and has no token for the target"))
	}
	return s, err
}

// Refresh refreshes the tokens of s now, even if the access token is still
// good. Refresh joins a refresh that is in flight. Without a refresh token,
// Refresh returns s. The errors are those of Fresh.
func (m *Manager) Refresh(ctx context.Context, s *Session) (*Session, error) {
	if s.Tokens.Refresh == "" {
		return s, nil
	}
	return m.awaitRefresh(ctx, s, "")
}

// joinRefresh joins or starts the refresh of s for a target and waits for the
// result, at most for Config.Wait. After a transient error joinRefresh retries
// within Config.Wait, if the provider has become ready since the error.
func (m *Manager) joinRefresh(ctx context.Context, s *Session, target string) (*Session, error) {
	m.waiting.Add(1)
	defer m.waiting.Add(-1)
	began := time.Now()
	if m.cfg.Waited != nil {
		defer func() { m.cfg.Waited(ctx, time.Since(began)) }()
	}
	deadline := began.Add(m.cfg.wait())
	waiting, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	epoch, err := m.ready(waiting, s, time.Until(deadline))
	for err == nil {
		r := m.startRefresh(waiting, s, target, epoch)
		r.link(trace.SpanFromContext(waiting))
		fresh, failure := r.call.Wait(waiting)
		if failure != nil && failure == waiting.Err() {
			if !r.leased.Load() && ctx.Err() == nil && m.leaseGraceRemaining(began) > 0 {
				return nil, errLeaseGrace
			}
			err = failure
			break
		}
		var retry *RefreshError
		if !errors.As(failure, &retry) {
			return fresh, failure
		}
		before := epoch
		if epoch, err = m.ready(waiting, s, time.Until(deadline)); err != nil || epoch == before {
			return nil, failure
		}
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return nil, ctx.Err()
	}
	return nil, retryLater(fmt.Errorf("no response from the provider within %v: %w", m.cfg.wait(), err))
}

// ready is Config.Ready, for a Config that may lack it.
func (m *Manager) ready(ctx context.Context, s *Session, wait time.Duration) (epoch uint64, err error) {
	if m.cfg.Ready == nil {
		return 0, nil
	}
	return m.cfg.Ready(ctx, s.ID, wait)
}

// RefreshRejected is for an access token that should still be good, but that an
// API has rejected. RefreshRejected refreshes the tokens of the session old.
// The target says which access token was rejected. If another caller has
// refreshed the tokens since old was read, RefreshRejected returns the session
// with those tokens. RefreshRejected returns old itself if there is no refresh
// token, or if this Manager refreshed the token because of a rejection in the
// last ten seconds: an API that rejects every token must not cause a refresh
// with each call. The errors are those of Fresh.
func (m *Manager) RefreshRejected(ctx context.Context, old *Session, target string) (*Session, error) {
	s, err := m.Find(ctx, old.ticket)
	if err != nil {
		return nil, err
	}
	key := refreshKey{s.ID, target}
	switch access := s.Tokens.For(target).Access; {
	case access != "" && access != old.Tokens.For(target).Access:
		return s, nil
	case s.Tokens.Refresh == "" || m.recentlyRenewed(key):
		return old, nil
	}
	if s, err = m.awaitRefresh(ctx, s, target); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.renewed[key] = time.Now()
	return s, nil
}

// recentlyRenewed reports whether the tokens were refreshed less than
// minRenewInterval ago because an API rejected the access token.
func (m *Manager) recentlyRenewed(key refreshKey) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(m.renewed, func(_ refreshKey, at time.Time) bool { return now.Sub(at) > minRenewInterval })
	_, ok := m.renewed[key]
	return ok
}

// Drain blocks until no refresh is in progress, or returns an error when ctx is
// done. Call Drain when no more requests arrive: a process that exits during a
// refresh loses the rotated refresh token.
func (m *Manager) Drain(ctx context.Context) error {
	done := make(chan struct{})
	go func() { // until the last refresh ends
		m.working.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for token refreshes: %w", ctx.Err())
	}
}

// expires returns when an access token expires. A token without expires_in
// expires too, at an unknown time (RFC 6749, section 5.1).
// Config.AccessTokenLifetime is assumed for such a token.
func (m *Manager) expires(t *Tokens) time.Time {
	if t.Expiry.IsZero() {
		return t.Issued.Add(m.cfg.accessTokenLifetime())
	}
	return t.Expiry
}

// unexpired reports whether an access token will still be good when it reaches
// the upstream.
func (m *Manager) unexpired(t *Tokens, now time.Time) bool {
	expires := m.expires(t)
	leeway := min(5*time.Second, expires.Sub(t.Issued)/10)
	return now.Before(expires.Add(-leeway))
}

// usable reports whether s has an access token for a target that can be used.
func (m *Manager) usable(s *Session, target string, now time.Time) bool {
	t := s.Tokens.For(target)
	return t.Access != "" && m.unexpired(&t, now)
}

// due reports whether the access token for a target has to be refreshed, or
// obtained for the first time. Without a refresh token Tokens.Access is never
// refreshed: the session ends when Tokens.Access expires, or continues to use
// Tokens.Access if its expiry is unknown.
func (m *Manager) due(s *Session, target string, now time.Time) bool {
	if target == "" && s.Tokens.Refresh == "" {
		return false
	}
	t := s.Tokens.For(target)
	expires := m.expires(&t)
	ahead := min(m.cfg.refreshAhead(), expires.Sub(t.Issued)/2)
	return !now.Before(expires.Add(-ahead)) || !m.unexpired(&t, now) // the zero Tokens expired long ago
}

// refreshKey is what a refresh is for.
type refreshKey struct{ session, target string }

// refresh is one refresh of one session for one target, shared by all callers
// that need it. A failed refresh is kept until its backoff is over, so that an
// outage of the provider does not cause a storm of requests.
type refresh struct {
	key      refreshKey
	base     *Session // as it was when the refresh began, or failed
	epoch    uint64   // of Config.Ready when the refresh began
	failures int      // in a row, before this refresh
	call     *flight.Call[*Session]
	span     trace.Span
	leased   atomic.Bool // the lease was acquired
	// Set before call finishes:
	retryAt time.Time // no retry before; zero: it did not fail
	unsaved *Session  // with tokens that are to be saved yet; nil: none
}

// stale reports whether a caller that read s must start a new refresh: because
// s is already the result of r, which may have been saved late, or because r
// failed and since then the backoff has ended, the record has changed or the
// provider has become ready.
func (r *refresh) stale(s *Session, epoch uint64) bool {
	result, finished, err := r.call.Result()
	switch {
	case !finished:
		return false
	case err == nil:
		return bytes.Equal(result.sealed, s.sealed)
	case r.unsaved != nil:
		return s.refreshes >= r.unsaved.refreshes
	case r.retryAt.IsZero():
		return false // it ended the session, or the store failed
	}
	return !time.Now().Before(r.retryAt) || r.epoch != epoch || !bytes.Equal(r.base.sealed, s.sealed)
}

// startRefresh returns the refresh of s for a target that is in flight, or
// starts one. startRefresh does not wait. The refresh outlives the request that
// started it.
func (m *Manager) startRefresh(ctx context.Context, s *Session, target string, epoch uint64) *refresh {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := &refresh{key: refreshKey{s.ID, target}, base: s, epoch: epoch, call: flight.NewCall[*Session]()}
	if before := m.refreshes[r.key]; before != nil {
		if !before.stale(s, epoch) {
			return before
		}
		if _, _, err := before.call.Result(); err != nil {
			r.failures = before.failures + 1
		}
	}
	m.refreshes[r.key] = r
	ctx, r.span = span.Start(context.WithoutCancel(ctx), m.tracer, "session.refresh", trace.SpanKindInternal)
	m.working.Go(func() { m.runRefresh(ctx, r) }) // until the session ends at the latest
	return r
}

// runRefresh performs the refresh and wakes all waiters. Per session, at most
// one refresh is in progress across replicas and targets.
func (m *Manager) runRefresh(ctx context.Context, r *refresh) {
	m.refreshing.Add(1)
	defer m.refreshing.Add(-1)
	s, unsaved, release, err := m.leaseAndRefresh(ctx, r)
	r.unsaved = unsaved
	var retry *RefreshError
	switch {
	case errors.As(err, &retry):
		retry.RetryAfter = flight.Jitter(max(retry.RetryAfter, flight.Backoff(minRetryAfter, maxBackoff, r.failures+1)))
		r.retryAt = time.Now().Add(retry.RetryAfter)
		if s != nil { // the failed refresh has rotated the refresh token
			r.base = s
		}
		m.emit(ctx, Event{
			Kind: RefreshFailed, Session: r.key.session, Subject: r.base.Subject, Err: err, Failures: r.failures + 1,
		})
		time.AfterFunc(retry.RetryAfter+failureMemory, func() { m.forget(r) })
	case errors.Is(err, ErrUserRequired):
		r.retryAt = time.Now().Add(userRequiredPause)
		m.emit(ctx, Event{Kind: RefreshFailed, Session: r.key.session, Subject: r.base.Subject, Err: err})
		time.AfterFunc(userRequiredPause, func() { m.forget(r) })
	}
	endSpan(r.span, err)
	r.call.Finish(s, err)

	if unsaved != nil {
		m.log.DebugContext(ctx, "refreshed tokens not saved; retrying until the store is back",
			"session", unsaved.ID, "err", err)
		defer release() // after forget
		m.retrySave(ctx, unsaved)
	}
	if r.retryAt.IsZero() {
		m.forget(r)
	}
}

// leaseAndRefresh takes the lease and refreshes the tokens. If the new tokens
// were obtained but not saved, leaseAndRefresh returns the session with the new
// tokens as unsaved, and the caller has to release the lease.
func (m *Manager) leaseAndRefresh(ctx context.Context, r *refresh) (s, unsaved *Session, release func(), err error) {
	release, elsewhere, err := m.lease(ctx, r.base, r.key.target)
	if err != nil || elsewhere != nil {
		return elsewhere, nil, nil, err
	}
	r.leased.Store(true)
	s, unsaved, err = m.refreshTokens(ctx, r.base, r.key.target)
	if unsaved == nil {
		release() // before the waiters wake, which may want the next refresh
	}
	return s, unsaved, release, err
}

func (m *Manager) forget(r *refresh) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refreshes[r.key] == r {
		delete(m.refreshes, r.key)
	}
}

// refreshTokens refreshes the tokens of s for a target under the lease, and
// returns the session with the new tokens once they are saved. If the new
// tokens were obtained but not saved, refreshTokens returns the session with
// the new tokens as unsaved, together with the error.
func (m *Manager) refreshTokens(ctx context.Context, s *Session, target string) (fresh, unsaved *Session, err error) {
	latest, err := m.reload(ctx, s.ticket, s)
	if err != nil {
		return nil, nil, err
	}
	if latest.tokenChanged(s, target) && m.usable(latest, target, time.Now()) {
		return latest, nil, nil // another caller refreshed it since s was read
	}
	result, err := m.callProvider(ctx, latest, target)
	if errors.Is(err, ErrRefused) {
		fresh, err = m.handleInvalidGrant(ctx, latest, err)
		return fresh, nil, err
	}
	next := *latest
	next.lazy = new(lazy)
	next.replaces = latest.sealed
	next.refreshes++
	next.rotated = err != nil
	var unrefreshed error
	switch {
	case err == nil:
		m.merge(&next, result, target)
	case result.Tokens.Refresh != "": // an unusable response that rotated the refresh token
		unrefreshed = retryLater(err)
		next.Tokens.Refresh = result.Tokens.Refresh
	case errors.Is(err, ErrUserRequired):
		return nil, nil, err
	default:
		return nil, nil, retryLater(err)
	}
	if next.sealed, err = m.sealRefreshed(ctx, latest, &next); err != nil {
		return nil, nil, err
	}
	fresh, err = m.save(ctx, &next)
	if errors.Is(err, ErrStore) {
		return nil, &next, err
	}
	return fresh, nil, cmp.Or(err, unrefreshed)
}

// tokenChanged reports whether s has another access token for a target than
// before, which is an earlier read of the session.
func (s *Session) tokenChanged(before *Session, target string) bool {
	a, b := s.Tokens.For(target), before.Tokens.For(target)
	return a.Access != b.Access || !a.Issued.Equal(b.Issued) // a provider may issue the same token with a later expiry
}

// callProvider sends the refresh request. If the request may have been
// processed and its response was lost, callProvider repeats the request once,
// after Config.Ready has returned without an error.
func (m *Manager) callProvider(ctx context.Context, s *Session, target string) (RefreshResult, error) {
	ctx, cancel := context.WithDeadline(ctx, s.ExpiresAt)
	defer cancel()
	result, err := m.cfg.Refresh(ctx, s, target)
	if !errors.Is(err, ErrNoResponse) {
		return result, err
	}
	m.log.DebugContext(ctx, "response to a refresh lost; repeated when the provider responds",
		"session", s.ID, "err", err)
	if _, notReady := m.ready(ctx, s, time.Until(s.ExpiresAt)); notReady != nil {
		return RefreshResult{}, notReady
	}
	return m.cfg.Refresh(ctx, s, target)
}

// handleInvalidGrant ends a session whose refresh token was refused, unless the
// store shows that another replica has replaced the token.
func (m *Manager) handleInvalidGrant(ctx context.Context, s *Session, cause error) (*Session, error) {
	latest, err := m.load(ctx, s.ticket)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(latest.sealed, s.sealed) {
		return latest, nil
	}
	if err := m.end(ctx, s.ending(ReasonRefused, cause)); err != nil {
		return nil, storeError("delete", err)
	}
	m.removeFromIndexes(ctx, s)
	return nil, ErrEnded
}

// retryLater returns err as a *RefreshError, with a RetryAfter within bounds.
func retryLater(err error) error {
	retry := &RefreshError{Err: err}
	if given := (*RefreshError)(nil); errors.As(err, &given) {
		*retry = *given
	}
	retry.RetryAfter = min(max(retry.RetryAfter, minRetryAfter), maxRetryAfter)
	return retry
}
