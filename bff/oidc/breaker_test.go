package oidc

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
)

// A token request stays in flight as long as no other one is answered. That the
// provider answers probes, or a cache in front of it does, proves nothing: a
// refresh that is repeated then can be taken for the reuse of a refresh token.
func TestOnlyTokenResponsesTellThatAResponseIsLost(t *testing.T) {
	t.Parallel()
	b := newBreaker(slog.New(slog.DiscardHandler), nil)
	begun := time.Now().Add(-maxInFlight - time.Second)
	b.responded()
	if b.lost(begun) {
		t.Error("a probe was answered: the token request counts as lost")
	}
	b.succeeded(time.Now())
	if !b.lost(begun) {
		t.Error("a later token request was answered: the one before does not count as lost")
	}
}

// A provider that was frozen works through the requests of before. As long as
// it responds to them, or is slow with all requests, their responses are not
// lost.
func TestSlowProviderLosesNoResponse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(slog.New(slog.DiscardHandler), nil)
		first, second, third := time.Now(), time.Now(), time.Now()
		time.Sleep(suspectAfter)
		b.suspicious = true
		b.silent(errProviderSilent)
		time.Sleep(time.Second)
		b.responded()
		time.Sleep(time.Millisecond)
		later := time.Now()
		time.Sleep(10 * time.Millisecond)
		b.report(later, nil)
		time.Sleep(lostAfter - time.Millisecond)
		if b.lost(second) {
			t.Error("lost before lostAfter")
		}
		b.report(first, nil)
		time.Sleep(lostAfter - time.Millisecond)
		if b.lost(second) {
			t.Error("lost though the provider has just responded to a request of before the outage")
		}
		later = time.Now()
		time.Sleep(lostAfter)
		b.report(second, nil)
		b.report(later, nil)
		time.Sleep(lostFactor*lostAfter - time.Millisecond)
		if b.lost(third) {
			t.Errorf("lost after %v though responses take %v", lostFactor*lostAfter, lostAfter)
		}
		time.Sleep(2 * time.Millisecond)
		if !b.lost(third) {
			t.Error("not lost though the provider responds to later requests only")
		}
	})
}

// silentProvider is a breaker in an outage in which the provider does not
// respond. The function ends the outage.
func silentProvider(t *testing.T, log *slog.Logger) (b *breaker, respond func()) {
	t.Helper()
	var down atomic.Bool
	down.Store(true)
	b = newBreaker(log, func(context.Context) error {
		if down.Load() {
			return errors.New("connection refused")
		}
		return nil
	})
	ctx, stop := context.WithCancel(t.Context())
	t.Cleanup(stop)
	go b.run(ctx)
	b.report(time.Now(), session.ErrNoResponse)
	time.Sleep(time.Minute)
	if state := b.current(); state != BreakerOpen {
		t.Fatalf("in the outage: got %s, want open", state)
	}
	return b, func() { down.Store(false) }
}

// Nothing but a token request shows that a provider has recovered. If there is
// none to send, it counts as recovered soon after it has responded again.
func TestIdleBreakerCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		b, respond := silentProvider(t, slog.New(slog.NewTextHandler(&log, nil)))
		respond()
		time.Sleep(probeInterval)
		synctest.Wait()
		if state := b.current(); state != BreakerHalfOpen {
			t.Errorf("after the first response: got %s, want half-open", state)
		}
		time.Sleep(idleRecovery + probeInterval)
		synctest.Wait()
		if state := b.current(); state != BreakerClosed {
			t.Errorf("without a token request: got %s, want closed", state)
		}
		if n := strings.Count(log.String(), "provider recovered"); n != 1 {
			t.Errorf("%d lines of the recovery, want 1:\n%s", n, log.String())
		}
	})
}

func TestBreakerStaysHalfOpenForTokenRequests(t *testing.T) {
	quiet := slog.New(slog.DiscardHandler)
	admit := func(t *testing.T, b *breaker) {
		t.Helper()
		if _, err := b.admit(t.Context(), "x", time.Second); err != nil {
			t.Fatal(err)
		}
	}
	wantState := func(t *testing.T, b *breaker, want BreakerState) {
		t.Helper()
		synctest.Wait()
		if state := b.current(); state != want {
			t.Errorf("got %s, want %s", state, want)
		}
	}
	t.Run("that fail", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b, respond := silentProvider(t, quiet)
			respond()
			time.Sleep(probeInterval)
			admit(t, b)
			b.report(time.Now(), &session.RefreshError{Err: errors.New("503")})
			time.Sleep(time.Hour)
			wantState(t, b, BreakerHalfOpen)
		})
	})
	t.Run("that are in flight", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b, respond := silentProvider(t, quiet)
			respond()
			time.Sleep(probeInterval)
			admit(t, b)
			stop := b.supervise(time.Now(), func(error) {})
			time.Sleep(time.Minute)
			wantState(t, b, BreakerHalfOpen)
			stop()
			time.Sleep(2 * probeInterval)
			wantState(t, b, BreakerClosed)
		})
	})
}

// A frozen provider responds to requests of before, perhaps after a probe.
func TestResponseToARequestOfBeforeClosesTheBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		time.Sleep(time.Second)
		b, respond := silentProvider(t, slog.New(slog.DiscardHandler))
		stop := b.supervise(begun, func(error) {})
		respond()
		time.Sleep(2 * probeInterval)
		synctest.Wait()
		if state := b.current(); state != BreakerHalfOpen {
			t.Errorf("after the first response: got %s, want half-open", state)
		}
		b.report(begun, nil)
		stop()
		if state := b.current(); state != BreakerClosed {
			t.Errorf("got %s, want closed", state)
		}
	})
}
