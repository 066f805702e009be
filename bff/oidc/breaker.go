package oidc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
)

// breaker is the circuit breaker of one provider. It has three states:
//
//	closed     token requests are sent
//	half-open  the provider responds, but with errors, or again: one token
//	           request is sent each probeInterval, and its success closes the
//	           breaker; so does the lack of token requests to send, after the
//	           provider has not responded
//	open       the provider does not respond: no token request is sent, but a
//	           harmless request each probeInterval, until one has a response
//
// So an outage costs the provider one request a second of each replica, however
// many sessions wait, and all of them resume with the first success.
type breaker struct {
	log   *slog.Logger
	probe func(context.Context) error // nil: the provider responded, whatever it said
	wake  chan struct{}               // tells run that the breaker became suspicious

	mu      sync.Mutex // guards all below
	state   BreakerState
	changed chan struct{} // closed and replaced at each change that waiting requests have to check
	// suspicious is set between a request without a response and the result of
	// the probe that it causes. Requests wait for that.
	suspicious bool
	epoch      uint64         // see session.Config.Ready
	failures   int            // token requests in a row that failed
	cause      error          // of the outage
	since      time.Time      // when the outage began
	next       time.Time      // half-open: when the next token request is sent
	waiting    map[string]int // session → its requests that wait
	inFlight   int            // token requests
	// responsive is set while the breaker is half-open, and the provider, which
	// had not responded, has responded to a probe. A token request that fails
	// unsets it.
	responsive bool

	openedAt  time.Time // when the breaker opened last
	resumedAt time.Time // when a provider that had not responded did so again
	provenAt  time.Time // of the first response to a token request that was sent after resumedAt
	lastAt    time.Time // of the last response to a token request

	// Of the responses to token requests since resumedAt:
	backlogAt time.Time     // the last one that was sent before openedAt
	slowest   time.Duration // the longest one that was sent after resumedAt
}

// BreakerState is a state of the circuit breaker that holds token requests back
// while the provider is in an outage.
type BreakerState string

const (
	// BreakerClosed: token requests are sent.
	BreakerClosed BreakerState = "closed"
	// BreakerHalfOpen: the provider responds, but with errors. Single token
	// requests are sent.
	BreakerHalfOpen BreakerState = "half-open"
	// BreakerOpen: the provider does not respond. No token request is sent.
	BreakerOpen BreakerState = "open"
)

const (
	// probeInterval is the time between two requests to a provider in an
	// outage, and resumeSpread the time over which the waiting sessions resume
	// after it. Together they are less than two seconds.
	probeInterval = 800 * time.Millisecond
	resumeSpread  = 800 * time.Millisecond
	// idleRecovery is how long after the first response a provider counts as
	// recovered if there is no token request to send.
	idleRecovery = time.Second
	// probeTimeout is the maximum duration of a probe. After silence without a
	// response to one, the provider is in an outage.
	probeTimeout = 5 * time.Second
	silence      = 2 * time.Second
	// failuresToOpen is how many token requests in a row fail before the
	// breaker opens. One may fail because of what is in it.
	failuresToOpen = 2
	// maxProviderPause is the longest Retry-After that delays the next request.
	maxProviderPause = 30 * time.Second

	// A token request that is in flight for suspectAfter has the provider
	// probed.
	suspectAfter = 2 * time.Second
	// lostAfter is how long a token request that was sent before an outage may
	// stay in flight while later ones have responses, and none that was sent
	// before the outage has. Then its response is lost. If later responses take
	// long, the time is lostFactor times the longest of them.
	lostAfter  = time.Second
	lostFactor = 3
	// maxInFlight bounds how long any token request is in flight while the
	// provider responds to other token requests. Responses to probes do not
	// count.
	maxInFlight = 2 * time.Minute
)

// errProviderSilent is the cause of an outage in which the provider accepts
// connections and does not respond.
var errProviderSilent = errors.New("the provider does not respond")

// errUnreachable is wrapped by the error of a request that did not reach the
// provider.
var errUnreachable error = unavailable("the provider cannot be reached")

// errResponseLost cancels a token request whose response will not arrive.
var errResponseLost = errors.New("the provider responded to later requests, but not to this one")

func newBreaker(log *slog.Logger, probe func(context.Context) error) *breaker {
	return &breaker{
		log: log, probe: probe, state: BreakerClosed,
		wake: make(chan struct{}, 1), changed: make(chan struct{}), waiting: make(map[string]int),
	}
}

// admit waits until a token request may be sent for a session, at most for
// wait. Client.Admit calls it.
func (b *breaker) admit(ctx context.Context, sessionID string, wait time.Duration) (epoch uint64, err error) {
	deadline := time.Now().Add(wait)
	var waited, spread bool
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		now := time.Now()
		pause := wait // or until something changes
		switch {
		case b.suspicious:
		case b.state == BreakerClosed && waited && !spread:
			spread = true
			pause = rand.N(min(resumeSpread, max(deadline.Sub(now), 1)))
		case b.state == BreakerClosed:
			return b.epoch, nil
		case b.state == BreakerHalfOpen && !now.Before(b.next):
			b.next = now.Add(probeInterval)
			b.epoch++
			return b.epoch, nil
		case b.state == BreakerHalfOpen && b.next.After(deadline):
			return 0, b.unavailable(b.next.Sub(now))
		case b.state == BreakerHalfOpen:
			pause = b.next.Sub(now)
		}
		if !now.Before(deadline) {
			return 0, b.unavailable(probeInterval)
		}
		waited = waited || b.state != BreakerClosed
		if err := b.wait(ctx, sessionID, min(pause, deadline.Sub(now))); err != nil {
			return 0, err
		}
	}
}

// wait unlocks mu until pause is over or something changes. The error is the
// context's, unless its deadline has passed.
func (b *breaker) wait(ctx context.Context, sessionID string, pause time.Duration) error {
	changed := b.changed
	b.waiting[sessionID]++
	b.mu.Unlock()
	timer := time.NewTimer(pause)
	select {
	case <-changed:
	case <-timer.C:
	case <-ctx.Done():
	}
	timer.Stop()
	b.mu.Lock()
	if b.waiting[sessionID]--; b.waiting[sessionID] == 0 {
		delete(b.waiting, sessionID)
	}
	return ctx.Err()
}

// unavailable is the error of a request that cannot wait for the provider. The
// caller holds mu.
func (b *breaker) unavailable(retryAfter time.Duration) error {
	err := errProviderSilent
	if b.state != BreakerClosed {
		err = fmt.Errorf("the provider is unavailable since %s: %w", b.since.UTC().Format(time.RFC3339), b.cause)
	}
	return &session.RefreshError{RetryAfter: retryAfter, Err: err}
}

// report records the result of a token request that was sent at begun. A
// request that its caller canceled does not count.
func (b *breaker) report(begun time.Time, err error) {
	var refusal *Error
	var transient *session.RefreshError
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, errResponseLost):
	case errors.As(err, &refusal) && !refusal.transient():
		b.succeeded(begun)
		b.measure(begun)
	case errors.As(err, &transient):
		b.failed(err, true, transient.RetryAfter)
		b.measure(begun)
	case errors.Is(err, errUnreachable), errors.Is(err, session.ErrNoResponse):
		b.failed(err, false, 0)
	case err != nil:
		b.failed(err, true, 0)
		b.measure(begun)
	default:
		b.succeeded(begun)
		b.measure(begun)
	}
}

// measure records the response to a token request that was sent at begun, for
// lost.
func (b *breaker) measure(begun time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	switch {
	case begun.Before(b.openedAt):
		b.backlogAt = now
	case begun.After(b.resumedAt):
		b.slowest = max(b.slowest, now.Sub(begun))
	}
}

// succeeded records a valid response to a token request that was sent at begun.
// A refusal of the grant is a valid response.
func (b *breaker) succeeded(begun time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.lastAt, b.failures = now, 0
	if b.state == BreakerOpen {
		b.resumedAt = now
	}
	if begun.After(b.resumedAt) && !b.provenAt.After(b.resumedAt) {
		b.provenAt = now
	}
	if b.state == BreakerClosed {
		return
	}
	if b.state == BreakerHalfOpen && begun.Before(b.since) && !b.responsive {
		return // it proves nothing: the next request, which is sent within a second, does
	}
	b.endOutage(now)
}

// endOutage ends an outage. The caller holds mu.
func (b *breaker) endOutage(now time.Time) {
	b.log.Warn("provider recovered", "after", now.Sub(b.since).Round(time.Millisecond).String(),
		"waiting_sessions", len(b.waiting))
	b.state, b.suspicious, b.responsive, b.cause = BreakerClosed, false, false, nil
	b.epoch++
	b.notify()
}

// recoverIdle ends an outage in which the provider did not respond, but does so
// again, if there is no token request that could show it. It reports whether
// there may be such an outage.
func (b *breaker) recoverIdle() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	idle := b.inFlight == 0 && len(b.waiting) == 0 && !b.suspicious && !now.Before(b.next)
	if b.responsive && idle && now.Sub(b.resumedAt) >= idleRecovery {
		b.endOutage(now)
	}
	return b.responsive
}

// failed records a token request whose response was a transient error, or that
// had no response if responded is false. The next token request is sent after
// retryAfter, within bounds.
func (b *breaker) failed(cause error, responded bool, retryAfter time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.failures++
	b.responsive = false
	if responded {
		b.lastAt = now
	} else {
		b.suspect()
	}
	next := now.Add(min(max(retryAfter, probeInterval), maxProviderPause))
	switch {
	case b.state == BreakerClosed && b.failures >= failuresToOpen:
		b.trip(BreakerHalfOpen, cause)
		b.next = next
	case b.state == BreakerHalfOpen:
		b.cause, b.next = cause, next
	case b.state == BreakerOpen && responded:
		b.state, b.suspicious, b.cause, b.resumedAt, b.next = BreakerHalfOpen, false, cause, now, next
	}
	b.notify()
}

// responded records the response to a probe.
func (b *breaker) responded() {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.suspicious = false
	if b.state == BreakerOpen {
		b.state, b.responsive, b.resumedAt, b.next = BreakerHalfOpen, true, now, now
	}
	b.epoch++ // what failed without a response may be retried
	b.notify()
}

// silent records a probe without a response.
func (b *breaker) silent(cause error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state == BreakerOpen || !b.suspicious {
		return
	}
	b.openedAt, b.slowest, b.responsive = time.Now(), 0, false
	if b.state == BreakerClosed {
		b.trip(BreakerOpen, cause)
	} else {
		b.state, b.cause = BreakerOpen, cause
	}
	b.suspicious = false
	b.notify()
}

// trip starts an outage. The caller holds mu.
func (b *breaker) trip(state BreakerState, cause error) {
	b.state, b.cause, b.since = state, cause, time.Now()
	b.log.Error("provider unavailable; sessions are kept", "since", b.since.UTC(), "err", cause)
}

// suspect starts a probe of the provider. The caller holds mu.
func (b *breaker) suspect() {
	if b.state == BreakerOpen {
		return
	}
	b.suspicious = true
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// outage reports whether the provider fails for all sessions.
func (b *breaker) outage() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state != BreakerClosed
}

// status returns why the provider is in an outage, or nil.
func (b *breaker) status() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state == BreakerClosed {
		return nil
	}
	return b.unavailable(0)
}

// current returns the state.
func (b *breaker) current() BreakerState {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state
}

// notify makes the waiting requests check the state. The caller holds mu.
func (b *breaker) notify() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// run probes the provider when it is suspected not to respond, until ctx ends.
func (b *breaker) run(ctx context.Context) {
	for {
		var again <-chan time.Time
		if b.recoverIdle() {
			again = time.After(probeInterval)
		}
		select {
		case <-ctx.Done():
			return
		case <-again:
		case <-b.wake:
			b.probeUntilResponse(ctx)
		}
	}
}

// probeUntilResponse sends a probe now and each probeInterval, on a connection
// of its own, until the provider has responded to one of them or to a token
// request.
func (b *breaker) probeUntilResponse(ctx context.Context) {
	ctx, stop := context.WithCancel(ctx)
	var probes sync.WaitGroup
	defer probes.Wait()
	defer stop()
	results := make(chan error)
	tick := time.NewTicker(probeInterval)
	defer tick.Stop()
	quiet := time.NewTimer(silence)
	defer quiet.Stop()
	for begun := time.Now(); ; {
		probes.Go(func() { // bounded by probeTimeout
			ctx, cancel := context.WithTimeout(ctx, probeTimeout)
			defer cancel()
			err := b.probe(ctx)
			select {
			case results <- err:
			case <-ctx.Done():
			}
		})
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return
			case err := <-results:
				if err == nil {
					b.responded()
					return
				}
				b.silent(err)
			case <-quiet.C:
				b.silent(errProviderSilent)
			case <-tick.C:
				waiting = false
			}
		}
		if b.respondedSince(begun) {
			return
		}
	}
}

// respondedSince reports whether the provider has responded since begun, and
// the breaker is not open.
func (b *breaker) respondedSince(begun time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state != BreakerOpen && !b.suspicious && b.lastAt.After(begun)
}

// supervise watches a token request in flight until stop is called. After
// suspectAfter without a response it starts a probe. A request stays in flight
// as long as its connection lives, because the refresh token may have been
// rotated. One whose response is lost is canceled with errResponseLost.
func (b *breaker) supervise(begun time.Time, cancel context.CancelCauseFunc) (stop func()) {
	b.mu.Lock()
	b.inFlight++
	b.mu.Unlock()
	done := make(chan struct{})
	timer := time.AfterFunc(suspectAfter, func() {
		tick := time.NewTicker(suspectAfter / 8)
		defer tick.Stop()
		var suspected time.Time
		for {
			if time.Since(suspected) > maxInFlight/8 {
				suspected = time.Now()
				b.mu.Lock()
				b.suspect()
				b.notify()
				b.mu.Unlock()
			}
			select {
			case <-done:
				return
			case <-tick.C:
			}
			if b.lost(begun) {
				cancel(errResponseLost)
				return
			}
		}
	})
	return func() {
		timer.Stop()
		close(done)
		b.mu.Lock()
		b.inFlight--
		b.mu.Unlock()
	}
}

// lost reports whether the response to a token request that was sent at begun
// will not arrive. A provider that was frozen, or is slow, works through the
// requests of before the outage: as long as it responds to them, and as slowly
// as it responds to others, none is lost.
func (b *breaker) lost(begun time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if begun.Before(b.openedAt) && b.resumedAt.After(b.openedAt) && b.provenAt.After(b.resumedAt) {
		last := b.provenAt
		if b.backlogAt.After(last) {
			last = b.backlogAt
		}
		return now.Sub(last) > max(lostAfter, lostFactor*b.slowest)
	}
	return now.Sub(begun) > maxInFlight && b.lastAt.After(begun.Add(maxInFlight/2))
}
