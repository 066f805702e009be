package session_test

import (
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
)

// Sessions whose refreshes have failed together are not to be refreshed again together: the pauses differ.
func TestThePausesAfterAFailureAreSpread(t *testing.T) {
	p := &tokenEndpoint{answer: func(int, session.Tokens) (session.Tokens, error) { return session.Tokens{}, errors.New("down") }}
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, session.Config{Refresh: p.refresh})
		var all []*http.Request
		for range 50 {
			_, r := signIn(t, m, minute())
			all = append(all, r)
		}
		time.Sleep(time.Minute)
		pauses := make(map[time.Duration]bool)
		for _, r := range all {
			var retry *session.RefreshError
			if _, err := m.Fresh(t.Context(), r); !errors.As(err, &retry) {
				t.Fatalf("got %v", err)
			}
			pauses[retry.RetryAfter] = true
		}
		if len(pauses) < 10 {
			t.Errorf("50 sessions wait for %v", pauses)
		}
		m.Drain(t.Context())
		time.Sleep(2 * time.Minute)
	})
}
