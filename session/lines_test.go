package session_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

// RFC 6265bis 8.4: what a session is known by, and its data key, is random in
// every byte, and never the same.
func TestWhatIsInATicketIsRandom(t *testing.T) {
	m := newManager(t, session.Config{MaxPerUser: 1})
	ids, names := make(map[string]bool), make(map[string]bool)
	var values [16 + 32]map[byte]bool
	for i := range values {
		values[i] = make(map[byte]bool)
	}
	for range 10_000 {
		s, err := m.Start(t.Context(), session.New{Tokens: tokens()})
		if err != nil {
			t.Fatal(err)
		}
		ticket := m.TicketIDBytes(s)
		if len(ticket) != len(values) || ids[string(ticket[:16])] || names[s.ID] {
			t.Fatalf("the ID %s, or what it is a hash of, came before", s.ID)
		}
		ids[string(ticket[:16])], names[s.ID] = true, true
		for i, b := range ticket {
			values[i][b] = true
		}
	}
	for i, v := range values {
		if len(v) != 256 { // of 10 000 samples
			t.Errorf("byte %d of the tickets has %d values", i, len(v))
		}
	}
}

// RFC 10017 6.1.2.2: where a lease was lost another replica may have rotated
// the refresh token that is refused here. Its tokens are the session's.
func TestARefusalOfATokenThatWasReplacedMeanwhileEndsNothing(t *testing.T) {
	store := leaselessStore{new(tokenstore.Memory)}
	p := new(tokenEndpoint)
	slow := func(context.Context, *session.Session, string) (session.RefreshResult, error) {
		time.Sleep(time.Second) // the other one is faster
		return session.RefreshResult{}, session.ErrRefused
	}
	withProvider(t, p, session.Config{Store: store}, func(t *testing.T, m *session.Manager, ticket session.Ticket) {
		other := newManager(t, session.Config{Store: store, Refresh: slow})
		time.Sleep(time.Minute)
		done := make(chan struct{})
		go func() {
			defer close(done)
			fresh(t, other, ticket, "access-2")
		}()
		time.Sleep(100 * time.Millisecond)
		fresh(t, m, ticket, "access-2")
		<-done
		wantAlive(t, m, ticket, "after the refusal")
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
	withProvider(t, p, session.Config{MaxLifetime: 10 * time.Minute, IdleTimeout: 10 * time.Minute}, func(t *testing.T, m *session.Manager, ticket session.Ticket) {
		want := wantAlive(t, m, ticket, "at first").ExpiresAt
		for range 9 {
			time.Sleep(time.Minute)
			s, err := findFresh(t.Context(), m, ticket, "")
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
		wantNone(t, m, ticket, "after max_lifetime")
	})
}

// Sessions whose refreshes have failed together are not to be refreshed again
// together: the pauses differ.
func TestThePausesAfterAFailureAreSpread(t *testing.T) {
	p := &tokenEndpoint{answer: func(int, session.Tokens) (session.Tokens, error) { return session.Tokens{}, errors.New("down") }}
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, session.Config{Refresh: p.refresh})
		var all []session.Ticket
		for range 50 {
			_, ticket := signIn(t, m, minute())
			all = append(all, ticket)
		}
		time.Sleep(time.Minute)
		pauses := make(map[time.Duration]bool)
		for _, ticket := range all {
			var retry *session.RefreshError
			if _, err := findFresh(t.Context(), m, ticket, ""); !errors.As(err, &retry) {
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

// Who has what came of a refresh and asks for another gets another, however
// soon.
func TestEachRefreshThatIsAskedForInTurnIsMade(t *testing.T) {
	var calls atomic.Int32
	m := newManager(t, session.Config{Refresh: func(context.Context, *session.Session, string) (session.RefreshResult, error) {
		n := calls.Add(1)
		tk := minute()
		tk.Access = session.Secret(fmt.Sprint("access-", n))
		return session.RefreshResult{Tokens: tk}, nil
	}})
	_, ticket := signIn(t, m, minute())
	const n = 2000
	for i := range n {
		s, err := findRefresh(t.Context(), m, ticket)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := s.Tokens.Access.Reveal(), fmt.Sprint("access-", i+1); got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
	}
	if err := m.Drain(t.Context()); err != nil {
		t.Error(err)
	}
}
