package session_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

// tokenEndpoint is a provider that rotates refresh tokens and takes each once.
type tokenEndpoint struct {
	takes    time.Duration
	answer   func(n int, next session.Tokens) (session.Tokens, error) // nil: the tokens it would give
	calls    atomic.Int32
	reused   atomic.Int32
	mu       sync.Mutex
	spent    map[string]bool
	revoked  []string
	returned []context.Context
}

func (p *tokenEndpoint) refresh(ctx context.Context, s *session.Session, target string) (session.RefreshResult, error) {
	n := int(p.calls.Add(1))
	time.Sleep(p.takes)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.returned = append(p.returned, ctx)
	if p.spent == nil {
		p.spent = make(map[string]bool)
	}
	old := s.Tokens.Refresh.Reveal()
	if p.spent[old] {
		p.reused.Add(1)
	}
	now := time.Now()
	suffix := string(rune('1' + n))
	next := session.Tokens{Access: session.Secret("access-" + suffix + target), Refresh: session.Secret("refresh-" + suffix), Issued: now, Expiry: now.Add(time.Minute)}
	if p.answer != nil {
		var err error
		if next, err = p.answer(n, next); err != nil {
			return session.RefreshResult{}, err
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

// minute returns tokens that live for a minute.
func minute() session.Tokens {
	t := tokens()
	t.Expiry = t.Issued.Add(time.Minute)
	return t
}

// withProvider runs a test in a bubble of fake time, with alice signed in for a
// minute's token.
func withProvider(t *testing.T, p *tokenEndpoint, cfg session.Config, test func(t *testing.T, m *session.Manager, ticket session.Ticket)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		cfg.Refresh, cfg.Revoke = p.refresh, p.revoke
		m := newManager(t, cfg)
		watch(t, m)
		_, ticket := signIn(t, m, minute())
		test(t, m, ticket)
		if n := p.reused.Load(); n > 0 {
			t.Errorf("the provider saw %d refresh tokens that it had replaced", n)
		}
		if err := m.Drain(t.Context()); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Minute) // until what a failure left behind is forgotten
	})
}

// watch has m follow the store until the test, or its bubble, ends.
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
		t.Fatalf("Fresh: %v, want %s", err, wantAccess)
	}
	if got := s.Tokens.Access.Reveal(); got != wantAccess {
		t.Errorf("Fresh: got %s, want %s", got, wantAccess)
	}
	return s
}

func TestRefreshOnceForManyRequests(t *testing.T) {
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
			t.Errorf("the slowest waited %v, want the provider's %v", took, p.takes)
		}
		if n := p.calls.Load(); n != 1 {
			t.Errorf("%d refreshes for 200 requests, want 1", n)
		}
		fresh(t, m, ticket, "access-2")
	})
}

func TestNobodyWaitsWhileTheTokenIsGood(t *testing.T) {
	p := &tokenEndpoint{takes: 7 * time.Second}
	withProvider(t, p, session.Config{}, func(t *testing.T, m *session.Manager, ticket session.Ticket) {
		time.Sleep(29 * time.Second)
		fresh(t, m, ticket, "access-1")
		if n := p.calls.Load(); n != 0 {
			t.Errorf("%d refreshes in the first half of the token's life, want none", n)
		}
		time.Sleep(2 * time.Second)
		for range 10 {
			began := time.Now()
			fresh(t, m, ticket, "access-1")
			if waited := time.Since(began); waited > 0 {
				t.Errorf("waited %v for a token that is good", waited)
			}
		}
		time.Sleep(8 * time.Second)
		fresh(t, m, ticket, "access-2")
		if n := p.calls.Load(); n != 1 {
			t.Errorf("%d refreshes, want 1", n)
		}
	})
}

func TestTheRefreshOutlivesTheRequestThatStartedIt(t *testing.T) {
	p := &tokenEndpoint{takes: time.Second}
	withProvider(t, p, session.Config{}, func(t *testing.T, m *session.Manager, ticket session.Ticket) {
		time.Sleep(time.Minute)
		ctx, leave := context.WithCancel(t.Context())
		go func() {
			time.Sleep(100 * time.Millisecond)
			leave()
		}()
		if _, err := findFresh(ctx, m, ticket, ""); !errors.Is(err, context.Canceled) {
			t.Errorf("Fresh for a client that left: got %v, want context.Canceled", err)
		}
		if err := m.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		fresh(t, m, ticket, "access-2")
		if n := p.calls.Load(); n != 1 {
			t.Errorf("%d refreshes, want 1", n)
		}
	})
}

func TestOnlyARefusalEndsTheSession(t *testing.T) {
	fault := errors.New("502 bad gateway")
	for name, test := range map[string]struct {
		err   error
		calls int32 // refresh requests until the failure is known
		ends  bool
	}{
		"invalid_grant":             {session.ErrRefused, 1, true},
		"fault":                     {fault, 1, false},
		"fault with a hint":         {&session.RefreshError{RetryAfter: 3 * time.Second, Err: fault}, 1, false},
		"no answer, and none again": {session.ErrNoAnswer, 2, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := &tokenEndpoint{answer: func(int, session.Tokens) (session.Tokens, error) { return session.Tokens{}, test.err }}
			withProvider(t, p, session.Config{}, func(t *testing.T, m *session.Manager, ticket session.Ticket) {
				time.Sleep(50 * time.Second)
				fresh(t, m, ticket, "access-1") // still good, whatever the provider says
				time.Sleep(50 * time.Second)
				p.calls.Store(0)
				_, err := findFresh(t.Context(), m, ticket, "")
				if n := p.calls.Load(); !test.ends && n != test.calls {
					t.Errorf("%d refresh requests, want %d", n, test.calls)
				}
				if test.ends {
					if !errors.Is(err, session.ErrNone) { // the refresh in the background had found out
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
				p.answer = nil
				time.Sleep(retry.RetryAfter + time.Millisecond)
				if _, err := findFresh(t.Context(), m, ticket, ""); err != nil {
					t.Errorf("Fresh once the provider is back: %v", err)
				}
			})
		})
	}
}

func TestARefusalWhileTheTokenIsNeededIsErrEnded(t *testing.T) {
	p := &tokenEndpoint{answer: func(int, session.Tokens) (session.Tokens, error) { return session.Tokens{}, session.ErrRefused }}
	withProvider(t, p, session.Config{}, func(t *testing.T, m *session.Manager, ticket session.Ticket) {
		time.Sleep(time.Minute)
		if _, err := findFresh(t.Context(), m, ticket, ""); !errors.Is(err, session.ErrEnded) {
			t.Errorf("Fresh: got %v, want ErrEnded", err)
		}
		wantNone(t, m, ticket, "after the refusal")
	})
}

func TestALostAnswerIsAskedForOnceMore(t *testing.T) {
	p := &tokenEndpoint{answer: func(n int, next session.Tokens) (session.Tokens, error) {
		if n == 1 {
			return session.Tokens{}, session.ErrNoAnswer
		}
		return next, nil
	}}
	withProvider(t, p, session.Config{}, func(t *testing.T, m *session.Manager, ticket session.Ticket) {
		time.Sleep(time.Minute)
		fresh(t, m, ticket, "access-3")
	})
}

func TestAProviderThatFailsIsNotAskedByEveryRequest(t *testing.T) {
	p := &tokenEndpoint{answer: func(int, session.Tokens) (session.Tokens, error) {
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
			t.Errorf("%d requests in ten seconds of outage, want at most one a second", n)
		}
	})
}

func TestWhatTheAnswerDoesNotHoldStaysAsItWas(t *testing.T) {
	p := &tokenEndpoint{answer: func(n int, next session.Tokens) (session.Tokens, error) {
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
		if s.Tokens.Refresh.Reveal() != "refresh-1" || s.Tokens.ID.Reveal() != "idtoken-1" || s.Tokens.Scope != "openid api" {
			t.Errorf("got %q, %q, scope %q; want the refresh token, ID token and scope from before", s.Tokens.Refresh.Reveal(), s.Tokens.ID.Reveal(), s.Tokens.Scope)
		}
		time.Sleep(time.Minute)
		fresh(t, m, ticket, "access-2")
		time.Sleep(5 * time.Minute) // no expires_in is not for ever
		if s := fresh(t, m, ticket, "access-3"); s.Tokens.Scope != "openid" {
			t.Errorf("scope %q, want the narrower one of the answer", s.Tokens.Scope)
		}
	})
}

func TestASessionThatEndedDuringARefreshStaysEnded(t *testing.T) {
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
		if len(p.revoked) != 1 || p.revoked[0] != "refresh-2" {
			t.Errorf("revoked %v, want the refresh token that came too late", p.revoked)
		}
	})
}

func TestARefreshIsNoActivity(t *testing.T) {
	p := new(tokenEndpoint)
	withProvider(t, p, session.Config{IdleTimeout: 3 * time.Minute}, func(t *testing.T, m *session.Manager, ticket session.Ticket) {
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

func TestTokensThatTheStoreDoesNotTakeAreNotLost(t *testing.T) {
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
		store.fail(nil, nil)
		time.Sleep(2 * time.Second)
		fresh(t, m, ticket, "access-2")
		if n := p.calls.Load(); n != 1 {
			t.Errorf("%d refreshes, want 1", n)
		}
	})
}

func TestAWriteWhoseAnswerWasLostIsFoundAgain(t *testing.T) {
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
			t.Errorf("revoked %v, which are in use", p.revoked)
		}
	})
}

// lossyStore writes, and then says that it could not.
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

func TestARequestThatReadTheSessionBeforeTheRefreshUsesItsResult(t *testing.T) {
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
			t.Errorf("%d refreshes, want 1", n)
		}
	})
}

// slowStore takes a second to hand out what it has read.
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

func TestRenewRefreshesATokenThatIsStillGood(t *testing.T) {
	p := new(tokenEndpoint)
	withProvider(t, p, session.Config{}, func(t *testing.T, m *session.Manager, ticket session.Ticket) {
		s, err := findRefresh(t.Context(), m, ticket)
		if err != nil || s.Tokens.Access.Reveal() != "access-2" {
			t.Fatalf("Renew: got %v, %v, want new tokens", s, err)
		}
		fresh(t, m, ticket, "access-2")
	})
}

func TestTheTokenIsNotUsedWhenItWouldExpireOnTheWay(t *testing.T) {
	p := new(tokenEndpoint)
	withProvider(t, p, session.Config{RefreshAhead: time.Nanosecond}, func(t *testing.T, m *session.Manager, ticket session.Ticket) {
		time.Sleep(56 * time.Second)
		fresh(t, m, ticket, "access-2")
	})
}

func TestAHundredUsersRefreshAtOnceAndEachGetsTheirOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, session.Config{Refresh: func(_ context.Context, s *session.Session, _ string) (session.RefreshResult, error) {
			time.Sleep(time.Second)
			now := time.Now()
			return session.RefreshResult{Tokens: session.Tokens{Access: session.Secret("access of " + s.Subject), Refresh: "r", Issued: now, Expiry: now.Add(time.Hour)}}, nil
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

func TestRefreshOnceForManyReplicas(t *testing.T) {
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
			if over := time.Since(began) - takes; over > 10*time.Millisecond {
				t.Errorf("a provider of %v: the slowest waited %v longer", takes, over)
			}
			if n := p.calls.Load(); n != 1 {
				t.Errorf("a provider of %v: %d refreshes, want 1", takes, n)
			}
			for _, m := range replicas {
				if err := m.Drain(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestAReplicaThatDiesInARefreshDelaysTheOthersByItsLeaseAtMost(t *testing.T) {
	p := new(tokenEndpoint)
	store := new(tokenstore.Memory)
	withProvider(t, p, session.Config{Store: store}, func(t *testing.T, m *session.Manager, ticket session.Ticket) {
		time.Sleep(time.Minute)
		s := wantAlive(t, m, ticket, "before")
		if _, err := store.Acquire(t.Context(), "refresh:"+s.ID, "the dead", 4*time.Second); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		fresh(t, m, ticket, "access-2")
		if took := time.Since(began); took < 3*time.Second || took > 4100*time.Millisecond {
			t.Errorf("waited %v, want the lease of 4s", took)
		}
	})
}

func TestEachTargetHasATokenOfItsOwn(t *testing.T) {
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
				t.Errorf("%s: the header is %q", target, header)
			}
			if s.Authorization("unknown") != nil {
				t.Error("a target that nobody asked for has a token")
			}
			return got.Access.Reveal()
		}
		var all sync.WaitGroup
		for range 20 {
			for _, target := range []string{"orders", "billing"} {
				all.Go(func() {
					if got := freshFor(m, target); !strings.HasSuffix(got, target) {
						t.Errorf("%s: got %s", target, got)
					}
				})
			}
		}
		all.Wait()
		if n := p.calls.Load(); n != 2 {
			t.Errorf("%d requests for two tokens", n)
		}
		fresh(t, m, ticket, "access-1") // the session's own is as it was

		orders := freshFor(m, "orders")
		other := newManager(t, session.Config{Store: store, Refresh: p.refresh}) // another replica
		if got := freshFor(other, "orders"); got != orders || p.calls.Load() != 2 {
			t.Errorf("another replica has %s, after %d requests", got, p.calls.Load())
		}
		time.Sleep(time.Minute)
		if got := freshFor(m, "orders"); got == orders || !strings.HasSuffix(got, "orders") {
			t.Errorf("after its end: got %s", got)
		}
		s, err := m.Find(t.Context(), ticket)
		if err != nil || len(s.Tokens.Others) != 1 {
			t.Errorf("the record keeps %d tokens, %v; that of billing has expired", len(s.Tokens.Others), err)
		}
		if err := findEnd(t.Context(), m, ticket); err != nil {
			t.Fatal(err)
		}
		if _, err := findFresh(t.Context(), m, ticket, "orders"); !errors.Is(err, session.ErrNone) {
			t.Errorf("after the end: got %v", err)
		}
	})
}

func TestATargetThatFailsHoldsUpNoOther(t *testing.T) {
	p := &tokenEndpoint{}
	m := session.Config{Refresh: func(ctx context.Context, s *session.Session, target string) (session.RefreshResult, error) {
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
				t.Errorf("got %v", err)
			}
			if _, err := findFresh(t.Context(), manager, ticket, "orders"); err != nil {
				t.Error(err)
			}
		}
		manager.Drain(t.Context())
		time.Sleep(2 * time.Minute)
	})
}

func TestAKeyIsKeptWithTheTokens(t *testing.T) {
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
	if err != nil || s.Key() == nil || !s.Key().Equal(key) || s.Authorization("")[0] != "DPoP access-1" {
		t.Errorf("got %v, %v", s, err)
	}
	for _, bad := range []session.Secret{"x", "AAAA", session.Secret(base64.RawURLEncoding.EncodeToString(make([]byte, 32)))} {
		tk.Key = bad
		if _, err := m.Start(t.Context(), session.New{Tokens: tk}); err == nil {
			t.Error("a key that is none: no error")
		}
	}
}

func TestATargetNeedsNoRefreshToken(t *testing.T) {
	m := newManager(t, session.Config{Refresh: func(_ context.Context, s *session.Session, target string) (session.RefreshResult, error) { // by exchange, say
		now := time.Now()
		return session.RefreshResult{Tokens: session.Tokens{Access: s.Tokens.Access + "-for-" + session.Secret(target), Issued: now, Expiry: now.Add(time.Minute)}}, nil
	}})
	tk := tokens()
	tk.Refresh = ""
	_, ticket := signIn(t, m, tk)
	if s, err := findFresh(t.Context(), m, ticket, "orders"); err != nil || s.Tokens.For("orders").Access != "access-1-for-orders" || s.Tokens.Access != "access-1" {
		t.Errorf("got %v, %v", s, err)
	}
}

// Some providers answer a refresh with the token that there was, which lives
// longer now: who waited for that is served.
func TestTheSameTokenAgainIsANewOne(t *testing.T) {
	p := &tokenEndpoint{takes: time.Second, answer: func(_ int, next session.Tokens) (session.Tokens, error) {
		next.Access = "access-1"
		return next, nil
	}}
	synctest.Test(t, func(t *testing.T) {
		store := new(tokenstore.Memory)
		replicas := []*session.Manager{newManager(t, session.Config{Store: store, Refresh: p.refresh}), newManager(t, session.Config{Store: store, Refresh: p.refresh})}
		_, ticket := signIn(t, replicas[0], minute())
		time.Sleep(time.Minute)
		var all sync.WaitGroup
		for _, m := range replicas {
			all.Go(func() { fresh(t, m, ticket, "access-1") })
		}
		all.Wait()
		if n := p.calls.Load(); n != 1 {
			t.Errorf("%d refreshes", n)
		}
		for _, m := range replicas {
			m.Drain(t.Context())
		}
	})
}

func TestANewKeyMakesAnEndOfTokensThatItDoesNotBind(t *testing.T) {
	key := session.Secret(base64.RawURLEncoding.EncodeToString(append(make([]byte, 31), 7)))
	m := newManager(t, session.Config{Refresh: func(_ context.Context, _ *session.Session, target string) (session.RefreshResult, error) {
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
	if err != nil || s.Key() == nil || s.Authorization("")[0] != "DPoP new" || len(s.Tokens.Others) > 0 {
		t.Errorf("got %v with %d other tokens, %v", s, len(s.Tokens.Others), err)
	}
}
