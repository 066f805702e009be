package oidc

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
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
