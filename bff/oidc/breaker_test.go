package oidc

import (
	"log/slog"
	"testing"
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
