package session_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

// RFC 6265bis 8.4: a session's ID is random in every place, and never the same.
func TestTheIDsOfSessionsAreRandom(t *testing.T) {
	m := newManager(t, session.Config{MaxPerUser: 1})
	const n = 10_000
	seen := make(map[string]bool)
	var values [22]map[byte]bool
	for i := range values {
		values[i] = make(map[byte]bool)
	}
	for range n {
		s, err := m.Start(t.Context(), httptest.NewRecorder(), session.Session{Tokens: tokens()}, session.Login{})
		if err != nil {
			t.Fatal(err)
		}
		if seen[s.ID] || len(s.ID) != len(values) { // 128 bits in base64url
			t.Fatalf("the ID %s", s.ID)
		}
		seen[s.ID] = true
		for i := range values {
			values[i][s.ID[i]] = true
		}
	}
	for i, v := range values {
		if want := 64; i < len(values)-1 && len(v) != want || len(v) < 4 { // the last one holds two bits
			t.Errorf("position %d of the IDs has %d values", i, len(v))
		}
	}
}

// RFC 10017 6.1.2.2: where a lease was lost another replica may have rotated the refresh token that is refused here. Its tokens are the session's.
func TestARefusalOfATokenThatWasReplacedMeanwhileEndsNothing(t *testing.T) {
	store := leaselessStore{new(tokenstore.Memory)}
	p := new(tokenEndpoint)
	slow := func(context.Context, *session.Session, string) (session.Renewal, error) {
		time.Sleep(time.Second) // the other one is faster
		return session.Renewal{}, session.ErrRefused
	}
	withProvider(t, p, session.Config{Store: store}, func(t *testing.T, m *session.Manager, r *http.Request) {
		other := newManager(t, session.Config{Store: store, Refresh: slow})
		time.Sleep(time.Minute)
		done := make(chan struct{})
		go func() {
			defer close(done)
			fresh(t, other, r, "access-2")
		}()
		time.Sleep(100 * time.Millisecond)
		fresh(t, m, r, "access-2")
		<-done
		wantAlive(t, m, r, "after the refusal")
		other.Drain(t.Context())
	})
}

// leaselessStore gives a lease to whoever asks.
type leaselessStore struct{ session.Store }

func (leaselessStore) Acquire(context.Context, string, string, time.Duration) (bool, error) {
	return true, nil
}

func TestARefreshDoesNotMoveTheMaxLifetime(t *testing.T) {
	p := new(tokenEndpoint)
	withProvider(t, p, session.Config{MaxLifetime: 10 * time.Minute, IdleTimeout: 10 * time.Minute}, func(t *testing.T, m *session.Manager, r *http.Request) {
		want := wantAlive(t, m, r, "at first").ExpiresAt
		for range 9 {
			time.Sleep(time.Minute)
			s, err := m.Fresh(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			if err := m.Touch(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			if !s.ExpiresAt.Equal(want) {
				t.Fatalf("it ends at %v, want %v", s.ExpiresAt, want)
			}
		}
		if n := p.calls.Load(); n < 9 {
			t.Errorf("%d refreshes", n)
		}
		time.Sleep(time.Minute)
		wantNone(t, m, r, "after max_lifetime")
	})
}
