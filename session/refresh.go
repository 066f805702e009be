package session

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/flight"
)

// ErrRefused is what Config.Refresh wraps when the provider says that the grant is over (RFC 6749 5.2: invalid_grant).
// No other answer of a provider ends a session.
var ErrRefused = errors.New("the provider refused the refresh token")

// ErrNoAnswer is what Config.Refresh wraps when the request may have reached the
// provider, and its connection failed before a response came back: the refresh
// token may have been rotated. The request is repeated once, after the provider
// has responded to something else (see Config.Ready).
var ErrNoAnswer = errors.New("no answer from the provider")

// ErrUserRequired is what Config.Refresh wraps when the provider issues no
// tokens until the user has signed in again, for example interaction_required
// (OpenID Connect Core 3.1.2.6). The session is kept: a login replaces it.
var ErrUserRequired = errors.New("the provider requires the user to sign in again")

// RefreshError says that the tokens could not be refreshed for now. The session is kept.
type RefreshError struct {
	RetryAfter time.Duration // how long to wait before the next try, at least a second
	// Outage is set if the provider fails for all sessions. Config.Refresh has
	// logged that once, so it is not logged for each session.
	Outage bool
	Err    error
}

func (e *RefreshError) Error() string { return e.Err.Error() }

func (e *RefreshError) Unwrap() error { return e.Err }

const (
	// Between two tries of a refresh that fails for reasons that may pass there is a pause, which doubles; longer ones only if the provider asks for them.
	minRetryAfter = time.Second
	maxBackoff    = 16 * time.Second
	maxRetryAfter = 30 * time.Second
	// A failure is remembered for so long after the pause, for the next one to be longer.
	failureMemory = time.Minute
	// userRequiredPause is how long the provider is not asked again after it has
	// required the user to sign in.
	userRequiredPause = time.Minute
)

// Fresh returns s with an access token for a target that can be used now. The
// empty target is that of Tokens.Access; see Tokens.Others for the rest. While the
// token is good Fresh does not wait: a token that is about to expire is refreshed
// in the background. An expired one is refreshed first, once for all callers.
//
// The error is ErrNone, ErrEnded or the context's, wraps ErrStore or
// ErrUserRequired, or is a *RefreshError.
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
		return nil, retryLater(errors.New("the session was changed meanwhile, and has no token for the target"))
	}
	return s, err
}

// Refresh refreshes the tokens of s now, even if the access token is still good.
// It joins a refresh that is in flight. Without a refresh token it returns s. Its
// errors are those of Fresh.
func (m *Manager) Refresh(ctx context.Context, s *Session) (*Session, error) {
	if s.Tokens.Refresh == "" {
		return s, nil
	}
	return m.awaitRefresh(ctx, s, "")
}

// awaitRefresh joins the refresh of s for a target, or starts it, and waits for
// the result, at most Config.Wait. Within that time it retries a transient
// failure if the provider became ready again after it.
func (m *Manager) awaitRefresh(ctx context.Context, s *Session, target string) (*Session, error) {
	deadline := time.Now().Add(m.cfg.wait())
	waiting, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	epoch, err := m.ready(waiting, s, time.Until(deadline))
	for err == nil {
		fresh, failure := m.startRefresh(waiting, s, target, epoch).call.Wait(waiting)
		if failure != nil && failure == waiting.Err() {
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

// renewAgain is how long nobody refreshes tokens because an API does not take them, after that was done.
const renewAgain = 10 * time.Second

// RefreshRejected refreshes the tokens of rejected, because an API rejected its
// access token for a target although that should still be good. If another caller
// has done so meanwhile, it returns that result. It returns rejected itself if the
// tokens were refreshed for this reason a moment ago: an API that rejects every
// token must not cause a refresh with each call. Its errors are those of Fresh.
func (m *Manager) RefreshRejected(ctx context.Context, rejected *Session, target string) (*Session, error) {
	s, err := m.Find(ctx, rejected.ticket)
	if err != nil {
		return nil, err
	}
	e := refreshKey{s.ID, target}
	switch access := s.Tokens.For(target).Access; {
	case access != "" && access != rejected.Tokens.For(target).Access:
		return s, nil
	case s.Tokens.Refresh == "" || m.renewedLately(e):
		return rejected, nil
	}
	if s, err = m.awaitRefresh(ctx, s, target); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.renewed[e] = time.Now()
	return s, nil
}

// renewedLately says whether a session was refreshed moments ago because its token was rejected.
func (m *Manager) renewedLately(e refreshKey) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(m.renewed, func(_ refreshKey, at time.Time) bool { return now.Sub(at) > renewAgain })
	_, lately := m.renewed[e]
	return lately
}

// Drain waits until no refresh is under way, or until ctx ends. Call it when no more requests come in: a process that
// leaves in the middle of a refresh takes a rotated refresh token with it.
func (m *Manager) Drain(ctx context.Context) error {
	done := make(chan struct{})
	go func() { // ends with the last refresh
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

// expires returns when the access token is taken as expired. A provider that
// sends no expires_in leaves it unknown, not endless (RFC 6749 5.1).
func (m *Manager) expires(t *Tokens) time.Time {
	if t.Expiry.IsZero() {
		return t.Issued.Add(m.cfg.accessTokenLifetime())
	}
	return t.Expiry
}

// unexpired reports whether the access token will still be good when it arrives
// upstream.
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

// due says whether the access token for a target is to be refreshed by now, or obtained. Without a refresh token that of no target never is: the session
// ends with it, or, where its end is unknown, lives on with it.
func (m *Manager) due(s *Session, target string, now time.Time) bool {
	if target == "" && s.Tokens.Refresh == "" {
		return false
	}
	t := s.Tokens.For(target)
	expires := m.expires(&t)
	ahead := min(m.cfg.refreshAhead(), expires.Sub(t.Issued)/2)
	return !now.Before(expires.Add(-ahead)) || !m.unexpired(&t, now) // one that is not there expired long ago
}

// refreshKey is what a refresh is for.
type refreshKey struct{ session, target string }

// refresh is one refresh of one session for one target, shared by all callers that
// need it. A failed refresh is kept until its backoff is over, so that an outage of
// the provider does not cause a storm of requests.
type refresh struct {
	key      refreshKey
	base     *Session // as it was when the refresh began
	epoch    uint64   // of Config.Ready when the refresh began
	failures int      // in a row, before this refresh
	call     *flight.Call[*Session]
	retryAt  time.Time // set before call finishes: nobody retries before; zero: it did not fail
}

// stale reports whether a caller that read s must start a new refresh: this one
// failed and its backoff is over, the record has changed or the provider has
// become ready again since; or s is already its result.
func (r *refresh) stale(s *Session, epoch uint64) bool {
	result, finished, err := r.call.Result()
	switch {
	case !finished:
		return false
	case err == nil:
		return bytes.Equal(result.sealed, s.sealed)
	case r.retryAt.IsZero():
		return false // it ended the session, or the store failed
	}
	return !time.Now().Before(r.retryAt) || r.epoch != epoch || !bytes.Equal(r.base.sealed, s.sealed)
}

// startRefresh returns the refresh of s for a target that is in flight, or starts
// one. It does not wait. The refresh outlives the request that started it.
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
	ctx = context.WithoutCancel(ctx)
	m.working.Go(func() { m.runRefresh(ctx, r) }) // until the session ends at the latest
	return r
}

// runRefresh performs the refresh and wakes all waiters. Per session, at most one
// refresh is in progress across replicas and targets.
func (m *Manager) runRefresh(ctx context.Context, r *refresh) {
	s, unsaved, release, err := m.leaseAndRefresh(ctx, r)
	var retry *RefreshError
	switch {
	case errors.As(err, &retry):
		retry.RetryAfter = flight.Jitter(max(retry.RetryAfter, flight.Backoff(minRetryAfter, maxBackoff, r.failures+1)))
		r.retryAt = time.Now().Add(retry.RetryAfter)
		m.emit(ctx, Event{Kind: RefreshFailed, Session: r.key.session, Err: err})
		time.AfterFunc(retry.RetryAfter+failureMemory, func() { m.forget(r) })
	case errors.Is(err, ErrUserRequired):
		r.retryAt = time.Now().Add(userRequiredPause)
		m.emit(ctx, Event{Kind: RefreshFailed, Session: r.key.session, Err: err})
		time.AfterFunc(userRequiredPause, func() { m.forget(r) })
	}
	r.call.Finish(s, err)

	if unsaved != nil {
		m.log.ErrorContext(ctx, "refreshed tokens not saved; retrying until the store is back", "session", unsaved.ID, "err", err)
		defer release() // after forget
		m.retrySave(ctx, unsaved)
	}
	if r.retryAt.IsZero() {
		m.forget(r)
	}
}

// leaseAndRefresh takes the lease and refreshes the tokens. If they were obtained
// but not saved, it returns them as unsaved, and the caller has to release the
// lease.
func (m *Manager) leaseAndRefresh(ctx context.Context, r *refresh) (s, unsaved *Session, release func(), err error) {
	release, elsewhere, err := m.lease(ctx, r.base, r.key.target)
	if err != nil || elsewhere != nil {
		return elsewhere, nil, nil, err
	}
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

// refreshTokens replaces the access token of s for a target, which somebody found to be due, and returns the session with the new one once it
// is saved, with all that came along. When they were obtained but the store did not take them, they are returned as unsaved beside the error.
func (m *Manager) refreshTokens(ctx context.Context, s *Session, target string) (fresh, unsaved *Session, err error) {
	now, err := m.load(ctx, s.ticket)
	if err != nil {
		return nil, nil, err
	}
	if now.differs(s, target) && m.usable(now, target, time.Now()) {
		return now, nil, nil // somebody else refreshed it since s was read
	}
	renewal, err := m.askProvider(ctx, now, target)
	if errors.Is(err, ErrRefused) {
		fresh, err = m.refused(ctx, now, err)
		return fresh, nil, err
	}
	next := *now
	next.reading = new(reading)
	next.replaces = now.sealed
	var unrefreshed error
	switch {
	case err == nil:
		m.take(&next, renewal, target)
	case renewal.Tokens.Refresh != "": // the answer was no good, and the refresh token before it is spent
		unrefreshed = retryLater(err)
		next.Tokens.Refresh = renewal.Tokens.Refresh
	case errors.Is(err, ErrUserRequired):
		return nil, nil, err
	default:
		return nil, nil, retryLater(err)
	}
	if next.sealed, err = m.sealRefreshed(ctx, now, &next); err != nil {
		return nil, nil, err
	}
	fresh, err = m.save(ctx, &next)
	if errors.Is(err, ErrStore) {
		return nil, &next, err
	}
	return fresh, nil, cmp.Or(err, unrefreshed)
}

// differs says whether a session has another access token for a target than s, which was read before.
func (now *Session) differs(s *Session, target string) bool {
	a, b := now.Tokens.For(target), s.Tokens.For(target)
	return a.Access != b.Access || !a.Issued.Equal(b.Issued) // a provider may give the same one again, to live longer
}

// askProvider refreshes at the provider. Where the request may have been
// processed and its response was lost, it repeats the request once, after the
// provider has responded to something else.
func (m *Manager) askProvider(ctx context.Context, s *Session, target string) (RefreshResult, error) {
	ctx, cancel := context.WithDeadline(ctx, s.ExpiresAt)
	defer cancel()
	renewal, err := m.cfg.Refresh(ctx, s, target)
	if !errors.Is(err, ErrNoAnswer) {
		return renewal, err
	}
	m.log.WarnContext(ctx, "response to a refresh lost; repeated when the provider responds",
		"session", s.ID, "err", err)
	if _, notReady := m.ready(ctx, s, time.Until(s.ExpiresAt)); notReady != nil {
		return RefreshResult{}, notReady
	}
	return m.cfg.Refresh(ctx, s, target)
}

// refused ends a session whose refresh token the provider does not take, unless the store shows that the token was replaced meanwhile.
func (m *Manager) refused(ctx context.Context, s *Session, cause error) (*Session, error) {
	now, err := m.load(ctx, s.ticket)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(now.sealed, s.sealed) {
		return now, nil
	}
	if err := m.end(ctx, s.ID, ReasonRefused, s.limit, cause); err != nil {
		return nil, storeError("delete", err)
	}
	m.delist(ctx, s)
	return nil, ErrEnded
}

// retryLater makes a fault of the provider into a RefreshError, whose RetryAfter is within bounds.
func retryLater(err error) error {
	retry := &RefreshError{Err: err}
	if given := (*RefreshError)(nil); errors.As(err, &given) {
		*retry = *given
	}
	retry.RetryAfter = min(max(retry.RetryAfter, minRetryAfter), maxRetryAfter)
	return retry
}
