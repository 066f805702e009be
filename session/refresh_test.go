package session_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

// tokenEndpoint is a provider that rotates refresh tokens and accepts each
// once.
type tokenEndpoint struct {
	takes   time.Duration
	respond func(n int, next session.Tokens) (session.Tokens, error) // nil: next
	calls   atomic.Int32
	reused  atomic.Int32 // refresh tokens that were used twice

	mu      sync.Mutex // guards all below
	spent   map[string]bool
	revoked []string
}

func (p *tokenEndpoint) refresh(ctx context.Context, s *session.Session, target string) (session.RefreshResult, error) {
	n := int(p.calls.Add(1))
	time.Sleep(p.takes)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.spent == nil {
		p.spent = make(map[string]bool)
	}
	old := s.Tokens.Refresh.Reveal()
	if p.spent[old] {
		p.reused.Add(1)
	}
	now := time.Now()
	suffix := string(rune('1' + n))
	next := session.Tokens{
		Access: session.Secret("access-" + suffix + target), Refresh: session.Secret("refresh-" + suffix),
		Issued: now, Expiry: now.Add(time.Minute),
	}
	if p.respond != nil {
		var err error
		if next, err = p.respond(n, next); err != nil {
			p.spent[old] = next.Refresh != ""
			return session.RefreshResult{Tokens: next}, err
		}
	}
	p.spent[old] = true
	return session.RefreshResult{Tokens: next}, ctx.Err()
}

func (p *tokenEndpoint) revoke(_ context.Context, t session.Tokens) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.revoked = append(p.revoked, t.Refresh.Reveal())
	return nil
}

// minute returns tokens that expire in a minute.
func minute() session.Tokens {
	t := tokens()
	t.Expiry = t.Issued.Add(time.Minute)
	return t
}

// withProvider runs a test in a bubble of fake time. alice is signed in, with
// tokens that expire in a minute.
func withProvider(t *testing.T, p *tokenEndpoint, cfg session.Config, test func(
	t *testing.T, m *session.Manager, ticket session.Ticket,
)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		cfg.Refresh, cfg.Revoke = p.refresh, p.revoke
		m := newManager(t, cfg)
		watch(t, m)
		_, ticket := signIn(t, m, minute())
		test(t, m, ticket)
		if n := p.reused.Load(); n > 0 {
			t.Errorf("got %d refreshes with a spent token, want none", n)
		}
		if err := m.Drain(t.Context()); err != nil {
			t.Error(err)
		}
		time.Sleep(2 * time.Minute) // until failed refreshes are forgotten
		if n := m.Kept(); n > 0 {
			t.Errorf("got %d refreshes that are kept, want none", n)
		}
	})
}

// watch calls m.Run until the test, or its bubble, ends.
func watch(t *testing.T, m *session.Manager) {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		m.Run(ctx)
		close(done)
	}()
	t.Cleanup(func() {
		stop()
		<-done
	})
}

func fresh(t *testing.T, m *session.Manager, ticket session.Ticket, wantAccess string) *session.Session {
	t.Helper()
	s, err := findFresh(t.Context(), m, ticket, "")
	if err != nil {
		t.Fatalf("Fresh: got %v, want %s", err, wantAccess)
	}
	if got := s.Tokens.Access.Reveal(); got != wantAccess {
		t.Errorf("Fresh: got %s, want %s", got, wantAccess)
	}
	return s
}

func TestOneRefreshForManyRequests(t *testing.T) {
	p := &tokenEndpoint{takes: 150 * time.Millisecond}
	withProvider(t, p, session.Config{}, func(t *testing.T, m *session.Manager, ticket session.Ticket) {
		time.Sleep(time.Minute)
		began := time.Now()
		var all sync.WaitGroup
		for range 200 {
			all.Go(func() { fresh(t, m, ticket, "access-2") })
		}
		all.Wait()
		if took := time.Since(began); took != p.takes {
			t.Errorf("waited %v, want %v as the provider takes", took, p.takes)
		}
		if n := p.calls.Load(); n != 1 {
			t.Errorf("got %d refreshes for 200 requests, want 1", n)
		}
		fresh(t, m, ticket, "access-2")
	})
}

func TestFreshDoesNotWaitWhileTokenIsGood(t *testing.T) {
	p := &tokenEndpoint{takes: 7 * time.Second}
	withProvider(t, p, session.Config{}, func(t *testing.T, m *session.Manager, ticket session.Ticket) {
		time.Sleep(29 * time.Second)
		fresh(t, m, ticket, "access-1")
		if n := p.calls.Load(); n != 0 {
			t.Errorf("got %d refreshes in the first half of the token's lifetime, want none", n)
		}
		time.Sleep(2 * time.Second)
		for range 10 {
			began := time.Now()
			fresh(t, m, ticket, "access-1")
			if waited := time.Since(began); waited > 0 {
				t.Errorf("waited %v for a good token, want no wait", waited)
			}
		}
		time.Sleep(8 * time.Second)
		fresh(t, m, ticket, "access-2")
		if n := p.calls.Load(); n != 1 {
			t.Errorf("got %d refreshes, want 1", n)
		}
	})
}

func TestRefreshOutlivesItsRequest(t *testing.T) {
	p := &tokenEndpoint{takes: time.Second}
	withProvider(t, p, session.Config{}, func(t *testing.T, m *session.Manager, ticket session.Ticket) {
		time.Sleep(time.Minute)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			time.Sleep(100 * time.Millisecond)
			cancel()
		}()
		if _, err := findFresh(ctx, m, ticket, ""); !errors.Is(err, context.Canceled) {
			t.Errorf("Fresh with a cancelled context: got %v, want context.Canceled", err)
		}
		if err := m.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		fresh(t, m, ticket, "access-2")
		if n := p.calls.Load(); n != 1 {
			t.Errorf("got %d refreshes, want 1", n)
		}
	})
}

func TestOnlyInvalidGrantEndsSession(t *testing.T) {
	fault := errors.New("502 bad gateway")
	for name, test := range map[string]struct {
		err   error
		calls int32 // refresh requests until the failure is reported
		ends  bool
	}{
		"invalid_grant":     {session.ErrRefused, 1, true},
		"fault":             {fault, 1, false},
		"fault with a hint": {&session.RefreshError{RetryAfter: 3 * time.Second, Err: fault}, 1, false},
		"no response twice": {session.ErrNoResponse, 2, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := &tokenEndpoint{
				respond: func(int, session.Tokens) (session.Tokens, error) { return session.Tokens{}, test.err },
			}
			withProvider(t, p, session.Config{}, func(t *testing.T, m *session.Manager, ticket session.Ticket) {
				time.Sleep(50 * time.Second)
				fresh(t, m, ticket, "access-1") // which is still good
				time.Sleep(50 * time.Second)
				p.calls.Store(0)
				_, err := findFresh(t.Context(), m, ticket, "")
				if n := p.calls.Load(); !test.ends && n != test.calls {
					t.Errorf("got %d refresh requests, want %d", n, test.calls)
				}
				if test.ends {
					if !errors.Is(err, session.ErrNone) { // the refresh in the background ended it
						t.Errorf("Fresh: got %v, want ErrNone", err)
					}
					wantNone(t, m, ticket, "after the refusal")
					return
				}
				var retry *session.RefreshError
				if !errors.As(err, &retry) || retry.RetryAfter < time.Second {
					t.Errorf("Fresh: got %v, want a RefreshError", err)
				}
				wantAlive(t, m, ticket, "after the fault")
				p.respond = nil
				time.Sleep(retry.RetryAfter + time.Millisecond)
				if _, err := findFresh(t.Context(), m, ticket, ""); err != nil {
					t.Errorf("Fresh after the outage: %v", err)
				}
			})
		})
	}
}

func TestRefusedRefreshReturnsErrEnded(t *testing.T) {
	p := &tokenEndpoint{
		respond: func(int, session.Tokens) (session.Tokens, error) { return session.Tokens{}, session.ErrRefused },
	}
	withProvider(t, p, session.Config{}, func(t *testing.T, m *session.Manager, ticket session.Ticket) {
		time.Sleep(time.Minute)
		if _, err := findFresh(t.Context(), m, ticket, ""); !errors.Is(err, session.ErrEnded) {
			t.Errorf("Fresh: got %v, want ErrEnded", err)
		}
		wantNone(t, m, ticket, "after the refusal")
	})
}

func TestLostResponseIsRequestedOnceMore(t *testing.T) {
	p := &tokenEndpoint{respond: func(n int, next session.Tokens) (session.Tokens, error) {
		if n == 1 {
			return session.Tokens{}, session.ErrNoResponse
		}
		return next, nil
	}}
	withProvider(t, p, session.Config{}, func(t *testing.T, m *session.Manager, ticket session.Ticket) {
		time.Sleep(time.Minute)
		fresh(t, m, ticket, "access-3")
	})
}

func TestFailedRefreshIsNotRetriedByEveryRequest(t *testing.T) {
	p := &tokenEndpoint{respond: func(int, session.Tokens) (session.Tokens, error) {
		return session.Tokens{}, errors.New("down")
	}}
	withProvider(t, p, session.Config{}, func(t *testing.T, m *session.Manager, ticket session.Ticket) {
		time.Sleep(time.Minute)
		for range 100 {
			if _, err := findFresh(t.Context(), m, ticket, ""); err == nil {
				t.Error("Fresh: no error")
			}
			time.Sleep(100 * time.Millisecond)
		}
		if n := p.calls.Load(); n > 11 {
			t.Errorf("got %d requests in ten seconds of outage, want at most one a second", n)
		}
	})
}

func TestMissingResponseMembersKeepTheirValue(t *testing.T) {
	p := &tokenEndpoint{respond: func(n int, next session.Tokens) (session.Tokens, error) {
		next.Refresh, next.Expiry = "", time.Time{}
		if n == 2 {
			next.Scope = "openid"
		}
		return next, nil
	}}
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, session.Config{Refresh: p.refresh})
		_, ticket := signIn(t, m, minute())
		time.Sleep(time.Minute)
		s := fresh(t, m, ticket, "access-2")
		wantEqual(t, "Refresh", s.Tokens.Refresh.Reveal(), "refresh-1")
		wantEqual(t, "ID", s.Tokens.ID.Reveal(), "idtoken-1")
		wantEqual(t, "Scope", s.Tokens.Scope, "openid api")
		time.Sleep(time.Minute)
		fresh(t, m, ticket, "access-2")
		time.Sleep(5 * time.Minute) // without expires_in a token still expires
		s = fresh(t, m, ticket, "access-3")
		wantEqual(t, "Scope", s.Tokens.Scope, "openid")
	})
}

func TestSessionEndedDuringRefreshStaysEnded(t *testing.T) {
	p := &tokenEndpoint{takes: time.Second}
	withProvider(t, p, session.Config{}, func(t *testing.T, m *session.Manager, ticket session.Ticket) {
		time.Sleep(time.Minute)
		go func() {
			time.Sleep(500 * time.Millisecond)
			if err := findEnd(t.Context(), m, ticket); err != nil {
				t.Error(err)
			}
		}()
		if _, err := findFresh(t.Context(), m, ticket, ""); !errors.Is(err, session.ErrNone) {
			t.Errorf("Fresh: got %v, want ErrNone", err)
		}
		wantNone(t, m, ticket, "after the refresh")
		synctest.Wait()
		if !slices.Equal(p.revoked, []string{"refresh-2"}) {
			t.Errorf("revoked: got %v, want the new refresh token", p.revoked)
		}
	})
}

// The session ends while one replica refreshes it and another one waits for
// that refresh.
func TestSessionEndedDuringRefreshElsewhere(t *testing.T) {
	p := &tokenEndpoint{takes: 3 * time.Second}
	replicas(t, 2, session.Config{Refresh: p.refresh, Revoke: p.revoke}, func(
		t *testing.T, _ *tappedStore, all []*session.Manager, s *session.Session, ticket session.Ticket,
	) {
		go all[0].Refresh(context.Background(), s)
		synctest.Wait() // until the provider has its request
		waiting := make(chan error)
		go func() {
			_, err := findRefresh(context.Background(), all[1], ticket)
			waiting <- err
		}()
		time.Sleep(time.Second)
		began := time.Now()
		if err := all[0].End(t.Context(), s, session.ReasonLogout); err != nil {
			t.Fatal(err)
		}
		if err := <-waiting; !errors.Is(err, session.ErrNone) {
			t.Errorf("Refresh that waited: got %v, want ErrNone", err)
		}
		if waited := time.Since(began); waited > 100*time.Millisecond {
			t.Errorf("Refresh returned %v after the end, want at most 100ms", waited)
		}
		for _, m := range all {
			if err := m.Drain(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if n := p.calls.Load(); n != 1 {
			t.Errorf("got %d refreshes, want 1", n)
		}
	})
}

func TestRefreshIsNoActivity(t *testing.T) {
	p := new(tokenEndpoint)
	withProvider(t, p, session.Config{IdleTimeout: 3 * time.Minute}, func(
		t *testing.T, m *session.Manager, ticket session.Ticket,
	) {
		for range 3 {
			time.Sleep(55 * time.Second)
			if _, err := findFresh(t.Context(), m, ticket, ""); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(15 * time.Second)
		wantNone(t, m, ticket, "three minutes without Touch")
	})
}

func TestUnsavedTokensAreNotLost(t *testing.T) {
	p := new(tokenEndpoint)
	store := &brokenStore{Store: new(tokenstore.Memory)}
	withProvider(t, p, session.Config{Store: store}, func(t *testing.T, m *session.Manager, ticket session.Ticket) {
		time.Sleep(time.Minute)
		store.fail(nil, errors.New("OOM command not allowed"))
		for range 20 { // the new token is not used before it is saved, and the old one is not spent twice
			if _, err := findFresh(t.Context(), m, ticket, ""); !errors.Is(err, session.ErrStore) {
				t.Errorf("Fresh: got %v, want ErrStore", err)
			}
			time.Sleep(time.Second / 2)
		}
		time.Sleep(50 * time.Millisecond)
		store.fail(nil, nil)
		time.Sleep(300 * time.Millisecond) // soon: until then the end of the process loses them
		fresh(t, m, ticket, "access-2")
		if n := p.calls.Load(); n != 1 {
			t.Errorf("got %d refreshes, want 1", n)
		}
	})
}

// A response that rotates the refresh token but is otherwise unusable is a
// failed refresh.
func TestUnusableResponseIsAFailedRefresh(t *testing.T) {
	for _, storeFails := range []bool{false, true} {
		p := &tokenEndpoint{respond: func(n int, next session.Tokens) (session.Tokens, error) {
			if n == 1 {
				return session.Tokens{Refresh: next.Refresh}, errors.New("no access_token")
			}
			return next, nil
		}}
		store := &brokenStore{Store: new(tokenstore.Memory)}
		var r recorder
		withProvider(t, p, session.Config{Store: store, Observe: r.observe}, func(
			t *testing.T, m *session.Manager, ticket session.Ticket,
		) {
			time.Sleep(time.Minute)
			if storeFails {
				store.fail(nil, errors.New("OOM command not allowed"))
				if _, err := findFresh(t.Context(), m, ticket, ""); !errors.Is(err, session.ErrStore) {
					t.Errorf("Fresh: got %v, want ErrStore", err)
				}
				store.fail(nil, nil)
			} else {
				for range 10 { // the provider gets the first only
					var retry *session.RefreshError
					if _, err := findFresh(t.Context(), m, ticket, ""); !errors.As(err, &retry) {
						t.Errorf("Fresh: got %v, want a RefreshError", err)
					}
				}
			}
			time.Sleep(5 * time.Second) // until the token is saved, and the backoff is over
			if got := r.of(session.SessionRefreshed); len(got) > 0 {
				t.Errorf("after the failure: got %v, want no session.refreshed", got)
			}
			fresh(t, m, ticket, "access-3")
			if got := r.of(session.SessionRefreshed); len(got) != 1 {
				t.Errorf("after the refresh: got %v, want one session.refreshed", got)
			}
		})
	}
}

// While the connection for cache invalidation is lost again and again, no lease
// can be taken. That is a fault of the store, not of the provider.
func TestNoRefreshWhileInvalidationFails(t *testing.T) {
	p := new(tokenEndpoint)
	store := &flappingStore{Store: new(tokenstore.Memory)}
	var r recorder
	withProvider(t, p, session.Config{Store: store, Observe: r.observe}, func(
		t *testing.T, m *session.Manager, ticket session.Ticket,
	) {
		time.Sleep(time.Minute)
		store.flapping.Store(true)
		time.Sleep(time.Second)
		synctest.Wait() // until the connection is lost
		if _, err := findFresh(t.Context(), m, ticket, ""); !errors.Is(err, session.ErrStore) {
			t.Errorf("Fresh: got %v, want ErrStore", err)
		}
		time.Sleep(time.Minute) // until the refresh gives up
		if failed := r.of(session.RefreshFailed); len(failed) > 0 {
			t.Errorf("got %v, want no failure of the provider", failed)
		}
		store.flapping.Store(false)
		fresh(t, m, ticket, "access-2")
	})
}

// flappingStore can lose its connection for announcements every second.
type flappingStore struct {
	session.Store
	flapping atomic.Bool
}

func (s *flappingStore) Watch(ctx context.Context, onChange func(key string), onValid func(until time.Time)) {
	for ctx.Err() == nil {
		if s.flapping.Load() {
			onChange("")
		}
		onValid(time.Now().Add(time.Minute))
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// A refresh whose tokens are saved late is an error to those who wait for it,
// but not to those who have read the new tokens.
func TestTokensThatWereSavedLateCanBeRefreshed(t *testing.T) {
	p := new(tokenEndpoint)
	store := &brokenStore{Store: new(tokenstore.Memory)}
	cfg := session.Config{Store: store, Observe: func(_ context.Context, e session.Event) {
		if e.Kind == session.SessionRefreshed {
			time.Sleep(time.Second) // so the refresh has not ended yet
		}
	}}
	withProvider(t, p, cfg, func(t *testing.T, m *session.Manager, ticket session.Ticket) {
		time.Sleep(time.Minute)
		store.fail(nil, errors.New("OOM command not allowed"))
		if _, err := findFresh(t.Context(), m, ticket, ""); !errors.Is(err, session.ErrStore) {
			t.Errorf("Fresh: got %v, want ErrStore", err)
		}
		store.fail(nil, nil)
		time.Sleep(300 * time.Millisecond)
		fresh(t, m, ticket, "access-2")
		if _, err := findRefresh(t.Context(), m, ticket); err != nil {
			t.Errorf("Refresh: got %v", err)
		}
		fresh(t, m, ticket, "access-3")
	})
}

func TestWriteWithLostResponseIsFound(t *testing.T) {
	p := new(tokenEndpoint)
	store := &lossyStore{Store: new(tokenstore.Memory)}
	withProvider(t, p, session.Config{Store: store}, func(t *testing.T, m *session.Manager, ticket session.Ticket) {
		time.Sleep(time.Minute)
		store.loseNext.Store(true)
		if _, err := findFresh(t.Context(), m, ticket, ""); !errors.Is(err, session.ErrStore) {
			t.Errorf("Fresh: got %v, want ErrStore", err)
		}
		fresh(t, m, ticket, "access-2")
		if len(p.revoked) > 0 {
			t.Errorf("revoked: got %v, want none", p.revoked)
		}
	})
}

// lossyStore writes, and can lose the response to a write.
type lossyStore struct {
	session.Store
	loseNext atomic.Bool
}

func (s *lossyStore) Replace(ctx context.Context, key string, old, value []byte) (bool, error) {
	replaced, err := s.Store.Replace(ctx, key, old, value)
	if s.loseNext.Swap(false) {
		return false, errors.New("i/o timeout")
	}
	return replaced, err
}

func TestStaleReadUsesResultOfRefresh(t *testing.T) {
	p := new(tokenEndpoint)
	store := &slowStore{Store: new(tokenstore.Memory)}
	withProvider(t, p, session.Config{Store: store}, func(t *testing.T, m *session.Manager, ticket session.Ticket) {
		time.Sleep(time.Minute)
		store.slowNext.Store(true)
		var late sync.WaitGroup
		late.Go(func() { fresh(t, m, ticket, "access-2") })
		synctest.Wait()
		fresh(t, m, ticket, "access-2")
		late.Wait()
		if n := p.calls.Load(); n != 1 {
			t.Errorf("got %d refreshes, want 1", n)
		}
	})
}

// slowStore can take a second to return a value that it has read.
type slowStore struct {
	session.Store
	slowNext atomic.Bool
}

func (s *slowStore) Get(ctx context.Context, key string) ([]byte, time.Duration, bool, error) {
	slow := s.slowNext.Swap(false)
	value, ttl, found, err := s.Store.Get(ctx, key)
	if slow {
		time.Sleep(time.Second)
	}
	return value, ttl, found, err
}

func TestRefreshReplacesGoodToken(t *testing.T) {
	p := new(tokenEndpoint)
	withProvider(t, p, session.Config{}, func(t *testing.T, m *session.Manager, ticket session.Ticket) {
		s, err := findRefresh(t.Context(), m, ticket)
		if err != nil {
			t.Fatal(err)
		}
		wantEqual(t, "Access", s.Tokens.Access.Reveal(), "access-2")
		fresh(t, m, ticket, "access-2")
	})
}

func TestTokenAboutToExpireIsNotUsed(t *testing.T) {
	p := new(tokenEndpoint)
	withProvider(t, p, session.Config{RefreshAhead: time.Nanosecond}, func(
		t *testing.T, m *session.Manager, ticket session.Ticket,
	) {
		time.Sleep(56 * time.Second)
		fresh(t, m, ticket, "access-2")
	})
}

// A token of an hour is refreshed in its last minute, and used until then.
func TestLongTokenIsRefreshedShortlyBeforeItsExpiry(t *testing.T) {
	p := &tokenEndpoint{takes: time.Second, respond: func(_ int, next session.Tokens) (session.Tokens, error) {
		next.Expiry = next.Issued.Add(time.Hour)
		return next, nil
	}}
	cfg := session.Config{IdleTimeout: 2 * time.Hour}
	withProvider(t, p, cfg, func(t *testing.T, m *session.Manager, ticket session.Ticket) {
		time.Sleep(time.Minute)
		fresh(t, m, ticket, "access-2")
		for _, test := range []struct {
			wait  time.Duration
			calls int32
		}{{58*time.Minute + 30*time.Second, 1}, {time.Minute, 2}} {
			time.Sleep(test.wait)
			fresh(t, m, ticket, "access-2")
			synctest.Wait()
			if n := p.calls.Load(); n != test.calls {
				t.Errorf("%v later: got %d refreshes, want %d", test.wait, n, test.calls)
			}
		}
	})
}

func TestConcurrentRefreshesKeepUsersApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, session.Config{Refresh: func(
			_ context.Context, s *session.Session, _ string,
		) (session.RefreshResult, error) {
			time.Sleep(time.Second)
			now := time.Now()
			return session.RefreshResult{Tokens: session.Tokens{
				Access: session.Secret("access of " + s.Subject), Refresh: "r", Issued: now, Expiry: now.Add(time.Hour),
			}}, nil
		}})
		var all sync.WaitGroup
		for i := range 100 {
			sub := string(rune('A' + i))
			s, err := m.Start(t.Context(), session.New{Subject: sub, Tokens: minute()})
			if err != nil {
				t.Fatal(err)
			}
			ticket := s.Ticket()
			all.Go(func() {
				time.Sleep(time.Minute)
				fresh(t, m, ticket, "access of "+sub)
			})
		}
		all.Wait()
	})
}

func TestOneRefreshForManyReplicas(t *testing.T) {
	for _, takes := range []time.Duration{150 * time.Millisecond, 7 * time.Second, 14 * time.Second} {
		p := &tokenEndpoint{takes: takes}
		store := new(tokenstore.Memory)
		cfg := session.Config{Store: store, Wait: 20 * time.Second}
		withProvider(t, p, cfg, func(t *testing.T, m *session.Manager, ticket session.Ticket) {
			replicas := []*session.Manager{m}
			for range 2 {
				cfg.Refresh, cfg.Revoke = p.refresh, p.revoke
				replica := newManager(t, cfg)
				watch(t, replica)
				replicas = append(replicas, replica)
			}
			time.Sleep(time.Minute)
			began := time.Now()
			var all sync.WaitGroup
			for i := range 200 {
				all.Go(func() { fresh(t, replicas[i%3], ticket, "access-2") })
			}
			all.Wait()
			if waited := time.Since(began); waited > takes+10*time.Millisecond {
				t.Errorf("a response after %v: waited %v", takes, waited)
			}
			if n := p.calls.Load(); n != 1 {
				t.Errorf("a response after %v: got %d refreshes, want 1", takes, n)
			}
			for _, m := range replicas {
				if err := m.Drain(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestDeadReplicaDelaysOthersByItsLease(t *testing.T) {
	p := new(tokenEndpoint)
	store := new(tokenstore.Memory)
	withProvider(t, p, session.Config{Store: store}, func(t *testing.T, m *session.Manager, ticket session.Ticket) {
		time.Sleep(time.Minute)
		s := wantAlive(t, m, ticket, "before")
		if _, err := store.Acquire(t.Context(), "refresh:"+s.ID, "another replica", 4*time.Second); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		fresh(t, m, ticket, "access-2")
		if took := time.Since(began); took < 3*time.Second || took > 4100*time.Millisecond {
			t.Errorf("waited %v, want about 4s, the lease", took)
		}
	})
}

func TestEachTargetHasItsOwnToken(t *testing.T) {
	p := &tokenEndpoint{takes: time.Second}
	store := new(tokenstore.Memory)
	withProvider(t, p, session.Config{Store: store}, func(t *testing.T, m *session.Manager, ticket session.Ticket) {
		freshFor := func(m *session.Manager, target string) string {
			t.Helper()
			s, err := findFresh(t.Context(), m, ticket, target)
			if err != nil {
				t.Fatalf("%s: %v", target, err)
			}
			got := s.Tokens.For(target)
			if header := s.Authorization(target); len(header) != 1 || header[0] != "Bearer "+got.Access.Reveal() {
				t.Errorf("%s: got the header %q", target, header)
			}
			if s.Authorization("unknown") != nil {
				t.Error("unknown target: got a token")
			}
			return got.Access.Reveal()
		}
		var all sync.WaitGroup
		for range 20 {
			for _, target := range []string{"orders", "billing"} {
				all.Go(func() {
					if got := freshFor(m, target); !strings.HasSuffix(got, target) {
						t.Errorf("%s: got %s, want a token for it", target, got)
					}
				})
			}
		}
		all.Wait()
		if n := p.calls.Load(); n != 2 {
			t.Errorf("got %d requests for two tokens, want 2", n)
		}
		fresh(t, m, ticket, "access-1") // the session's own token is unchanged

		orders := freshFor(m, "orders")
		other := newManager(t, session.Config{Store: store, Refresh: p.refresh}) // another replica
		wantEqual(t, "the token at another replica", freshFor(other, "orders"), orders)
		wantEqual(t, "the number of requests", p.calls.Load(), 2)
		time.Sleep(time.Minute)
		got := freshFor(m, "orders")
		if got == orders {
			t.Error("after its expiry: got the same token")
		}
		if !strings.HasSuffix(got, "orders") {
			t.Errorf("after its expiry: got %s, want a token for orders", got)
		}
		s, err := m.Find(t.Context(), ticket)
		if err != nil {
			t.Fatal(err)
		}
		wantEqual(t, "the number of tokens after that of billing expired", len(s.Tokens.Others), 1)
		if err := findEnd(t.Context(), m, ticket); err != nil {
			t.Fatal(err)
		}
		if _, err := findFresh(t.Context(), m, ticket, "orders"); !errors.Is(err, session.ErrNone) {
			t.Errorf("after End: got %v, want ErrNone", err)
		}
	})
}

// The tokens of several routes expire at the same time. Each refresh begins as
// soon as the one before has ended.
func TestRefreshesOfTargetsFollowOneAnother(t *testing.T) {
	p := &tokenEndpoint{takes: 10 * time.Millisecond}
	withProvider(t, p, session.Config{}, func(t *testing.T, m *session.Manager, ticket session.Ticket) {
		time.Sleep(2 * time.Minute)
		began := time.Now()
		var all sync.WaitGroup
		for _, target := range []string{"", "a", "b", "c"} {
			all.Go(func() {
				if _, err := findFresh(t.Context(), m, ticket, target); err != nil {
					t.Errorf("target %q: %v", target, err)
				}
			})
		}
		all.Wait()
		if took := time.Since(began); took > 4*p.takes {
			t.Errorf("four refreshes took %v, want %v", took, 4*p.takes)
		}
	})
}

func TestFailingTargetDelaysNoOther(t *testing.T) {
	p := &tokenEndpoint{}
	m := session.Config{Refresh: func(
		ctx context.Context, s *session.Session, target string,
	) (session.RefreshResult, error) {
		if target == "broken" {
			return session.RefreshResult{}, errors.New("broken")
		}
		return p.refresh(ctx, s, target)
	}}
	synctest.Test(t, func(t *testing.T) {
		manager := newManager(t, m)
		_, ticket := signIn(t, manager, minute())
		for range 3 {
			var retry *session.RefreshError
			if _, err := findFresh(t.Context(), manager, ticket, "broken"); !errors.As(err, &retry) {
				t.Errorf("broken: got %v, want a RefreshError", err)
			}
			if _, err := findFresh(t.Context(), manager, ticket, "orders"); err != nil {
				t.Error(err)
			}
		}
		manager.Drain(t.Context())
		time.Sleep(2 * time.Minute)
	})
}

func TestTokenKeyIsKept(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	scalar, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	tk := tokens()
	tk.Key = session.Secret(base64.RawURLEncoding.EncodeToString(scalar))
	m := newManager(t, session.Config{})
	_, ticket := signIn(t, m, tk)
	s, err := m.Find(t.Context(), ticket)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Key(); got == nil || !got.Equal(key) {
		t.Errorf("key: got %v, want that of the login", got)
	}
	wantEqual(t, "the header", s.Authorization("")[0], "DPoP access-1")
	zero := session.Secret(base64.RawURLEncoding.EncodeToString(make([]byte, 32)))
	for _, bad := range []session.Secret{"x", "AAAA", zero} {
		tk.Key = bad
		if _, err := m.Start(t.Context(), session.New{Tokens: tk}); err == nil {
			t.Error("an invalid key: got no error")
		}
	}
}

func TestTargetNeedsNoRefreshToken(t *testing.T) {
	// As with token exchange.
	m := newManager(t, session.Config{Refresh: func(
		_ context.Context, s *session.Session, target string,
	) (session.RefreshResult, error) {
		now := time.Now()
		return session.RefreshResult{Tokens: session.Tokens{
			Access: s.Tokens.Access + "-for-" + session.Secret(target), Issued: now, Expiry: now.Add(time.Minute),
		}}, nil
	}})
	tk := tokens()
	tk.Refresh = ""
	_, ticket := signIn(t, m, tk)
	s, err := findFresh(t.Context(), m, ticket, "orders")
	if err != nil {
		t.Fatal(err)
	}
	orders := s.Tokens.For("orders")
	wantEqual(t, "the token for orders", orders.Access.Reveal(), "access-1-for-orders")
	wantEqual(t, "the session's own token", s.Tokens.Access.Reveal(), "access-1")
}

// Some providers respond to a refresh with the same access token and a later
// expiry.
func TestSameTokenWithLaterExpiryIsNew(t *testing.T) {
	p := &tokenEndpoint{takes: time.Second, respond: func(_ int, next session.Tokens) (session.Tokens, error) {
		next.Access = "access-1"
		return next, nil
	}}
	synctest.Test(t, func(t *testing.T) {
		store := new(tokenstore.Memory)
		replicas := []*session.Manager{
			newManager(t, session.Config{Store: store, Refresh: p.refresh}),
			newManager(t, session.Config{Store: store, Refresh: p.refresh}),
		}
		_, ticket := signIn(t, replicas[0], minute())
		time.Sleep(time.Minute)
		var all sync.WaitGroup
		for _, m := range replicas {
			all.Go(func() { fresh(t, m, ticket, "access-1") })
		}
		all.Wait()
		if n := p.calls.Load(); n != 1 {
			t.Errorf("got %d refreshes, want 1", n)
		}
		for _, m := range replicas {
			m.Drain(t.Context())
		}
	})
}

func TestNewKeyDropsTokensOfOtherTargets(t *testing.T) {
	key := session.Secret(base64.RawURLEncoding.EncodeToString(append(make([]byte, 31), 7)))
	m := newManager(t, session.Config{Refresh: func(
		_ context.Context, _ *session.Session, target string,
	) (session.RefreshResult, error) {
		now := time.Now()
		next := session.Tokens{Access: "new", Refresh: "refresh-2", Issued: now, Expiry: now.Add(time.Hour)}
		if target == "" {
			next.Key = key
		}
		return session.RefreshResult{Tokens: next}, nil
	}})
	_, ticket := signIn(t, m, tokens())
	if _, err := findFresh(t.Context(), m, ticket, "orders"); err != nil {
		t.Fatal(err)
	}
	s, err := findRefresh(t.Context(), m, ticket)
	if err != nil {
		t.Fatal(err)
	}
	if s.Key() == nil {
		t.Error("key: got none")
	}
	wantEqual(t, "the header", s.Authorization("")[0], "DPoP new")
	wantEqual(t, "the number of other tokens", len(s.Tokens.Others), 0)
}

// If a lease was lost, another replica may have rotated the refresh token that
// is refused here. Its tokens are kept (RFC 10017, section 6.1.2.2).
func TestRefusalOfReplacedTokenKeepsSession(t *testing.T) {
	store := leaselessStore{new(tokenstore.Memory)}
	p := new(tokenEndpoint)
	slow := func(context.Context, *session.Session, string) (session.RefreshResult, error) {
		time.Sleep(time.Second) // longer than the other replica
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

// leaselessStore grants every lease.
type leaselessStore struct{ session.Store }

func (leaselessStore) Acquire(context.Context, string, string, time.Duration) (bool, error) {
	return true, nil
}

func TestRefreshDoesNotMoveMaxLifetime(t *testing.T) {
	p := new(tokenEndpoint)
	withProvider(t, p, session.Config{MaxLifetime: 10 * time.Minute, IdleTimeout: 10 * time.Minute}, func(
		t *testing.T, m *session.Manager, ticket session.Ticket,
	) {
		want := wantAlive(t, m, ticket, "before any refresh").ExpiresAt
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
				t.Fatalf("ExpiresAt: got %v, want %v", s.ExpiresAt, want)
			}
		}
		if n := p.calls.Load(); n < 9 {
			t.Errorf("got %d refreshes, want 9 or more", n)
		}
		time.Sleep(time.Minute)
		wantNone(t, m, ticket, "after MaxLifetime")
	})
}

// Sessions whose refreshes failed at the same time must not retry at the same
// time.
func TestBackoffHasJitter(t *testing.T) {
	p := &tokenEndpoint{
		respond: func(int, session.Tokens) (session.Tokens, error) { return session.Tokens{}, errors.New("down") },
	}
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
				t.Fatalf("got %v, want a RefreshError", err)
			}
			pauses[retry.RetryAfter] = true
		}
		if len(pauses) < 10 {
			t.Errorf("got %d different waits of 50 sessions, want 10 or more", len(pauses))
		}
		m.Drain(t.Context())
		time.Sleep(2 * time.Minute)
	})
}

// A caller that has the result of a refresh and requests another one gets
// another one, however soon.
func TestSequentialRefreshesAreAllPerformed(t *testing.T) {
	var calls atomic.Int32
	m := newManager(t, session.Config{Refresh: func(
		context.Context, *session.Session, string,
	) (session.RefreshResult, error) {
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
