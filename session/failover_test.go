package session_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
)

// failover is two replicas that share a store which can lose its latest writes.
// alice is signed in, and the session key has been rotated since.
type failover struct {
	t      *testing.T
	store  *tappedStore
	p      *tokenEndpoint
	a, b   *session.Manager
	away   *brokenStore // the store as b sees it
	id     string
	ticket session.Ticket
	kept   []byte        // the record when keep was called
	ttl    time.Duration // of kept
}

// withFailover runs a test in a bubble of fake time.
func withFailover(t *testing.T, test func(x *failover)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		x := &failover{t: t, store: newTappedStore(), p: &tokenEndpoint{takes: time.Second}}
		s, ticket := signIn(t, newManager(t, session.Config{Store: x.store}), tokens())
		x.id, x.ticket = s.ID, ticket
		x.away = &brokenStore{Store: x.store}
		cfg := session.Config{
			Store: x.store, Keys: [][]byte{keyB, keyA}, Refresh: x.p.refresh, Revoke: x.p.revoke,
		}
		x.a = newManager(t, cfg)
		cfg.Store = x.away
		x.b = newManager(t, cfg)
		watch(t, x.a)
		watch(t, x.b)
		synctest.Wait()
		time.Sleep(time.Minute) // so that a Touch writes
		x.keep()
		test(x)
		for _, m := range []*session.Manager{x.a, x.b} {
			if err := m.Drain(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
}

// keep remembers what lose restores.
func (x *failover) keep() {
	var err error
	if x.kept, x.ttl, _, err = x.store.Memory.Get(x.t.Context(), "session:"+x.id); err != nil {
		x.t.Fatal(err)
	}
}

// lose restores the record of the last keep, and loses the lease. The replicas
// are not told yet.
func (x *failover) lose() {
	x.store.cut()
	x.store.Memory.Delete(x.t.Context(), "session:"+x.id)
	x.store.Memory.Delete(x.t.Context(), "refresh:"+x.id)
	x.store.Memory.Create(x.t.Context(), "session:"+x.id, x.kept, x.ttl)
}

// announce tells both replicas of the failover, and waits until they have
// replayed their writes.
func (x *failover) announce() {
	x.store.restore()
	time.Sleep(leaseGrace)
}

const leaseGrace = 3 * time.Second

func (x *failover) refresh(m *session.Manager) {
	x.t.Helper()
	if _, err := findRefresh(x.t.Context(), m, x.ticket); err != nil {
		x.t.Fatalf("Refresh: %v", err)
	}
	synctest.Wait()
}

func (x *failover) touch(m *session.Manager) {
	x.t.Helper()
	if err := m.Touch(x.t.Context(), wantAlive(x.t, m, x.ticket, "Touch")); err != nil {
		x.t.Fatalf("Touch: %v", err)
	}
}

func (x *failover) end(m *session.Manager) {
	x.t.Helper()
	if err := findEnd(x.t.Context(), m, x.ticket); err != nil {
		x.t.Fatalf("End: %v", err)
	}
}

// wantTokens asserts that both replicas have an access token, can refresh it,
// and never sent a refresh token twice.
func (x *failover) wantTokens(access string) {
	x.t.Helper()
	for _, m := range []*session.Manager{x.a, x.b} {
		fresh(x.t, m, x.ticket, access)
	}
	for _, m := range []*session.Manager{x.a, x.b} {
		x.refresh(m)
	}
	if n := x.p.reused.Load(); n > 0 {
		x.t.Errorf("got %d refreshes with a spent token, want none", n)
	}
}

func (x *failover) wantEnded() {
	x.t.Helper()
	for _, m := range []*session.Manager{x.a, x.b} {
		wantNone(x.t, m, x.ticket, "after the failover")
	}
}

// The store fails over while replica b waits for new tokens. Whatever the new
// master lacks of the writes of replica a, these tokens are the newest ones.
// But a session that a has ended stays ended.
func TestNewestTokensWinAfterFailover(t *testing.T) {
	nothing := func(*failover) {}
	lose := (*failover).lose
	tests := []struct {
		name           string
		before, during func(x *failover) // writes of a before b reads the session, and while b waits
		want           string            // the access token; empty: the session has ended
	}{
		{"nothing lost", nothing, nothing, "access-2"},
		{"refresh lost", func(x *failover) { x.refresh(x.a) }, lose, "access-3"},
		{"refresh lost and repeated", func(x *failover) { x.refresh(x.a) }, func(x *failover) {
			x.lose()
			x.announce()
		}, "access-3"},
		{"two refreshes lost", func(x *failover) { x.refresh(x.a); x.refresh(x.a) }, lose, "access-4"},
		{"one of two refreshes lost", func(x *failover) {
			x.refresh(x.a)
			x.keep()
			x.refresh(x.a)
		}, lose, "access-4"},
		{"touch and reseal lost", func(x *failover) { x.touch(x.a) }, lose, "access-2"},
		{"refresh kept, touch and reseal lost", func(x *failover) {
			x.refresh(x.a)
			x.keep()
			time.Sleep(time.Minute)
			x.touch(x.a)
		}, lose, "access-3"},
		{"lease lost, then reseal", nothing, func(x *failover) { x.lose(); x.touch(x.a) }, "access-2"},
		{"reseal, refresh and reseal lost", func(x *failover) {
			x.touch(x.a)
			x.refresh(x.a)
			time.Sleep(time.Minute)
			x.touch(x.a)
		}, lose, "access-3"},
		{"end kept", nothing, func(x *failover) { x.end(x.a) }, ""},
		{"end lost", nothing, func(x *failover) { x.end(x.a); x.lose() }, ""},
		{"end lost and repeated", nothing, func(x *failover) { x.end(x.a); x.lose(); x.announce() }, ""},
		{"refresh and end lost", func(x *failover) { x.refresh(x.a) },
			func(x *failover) { x.end(x.a); x.lose() }, ""},
		{"touch, reseal and end lost", func(x *failover) { x.touch(x.a) },
			func(x *failover) { x.end(x.a); x.lose() }, ""},
		{"refresh lost, end kept", func(x *failover) { x.refresh(x.a) },
			func(x *failover) { x.lose(); x.announce(); x.end(x.a) }, ""},
	}
	for _, test := range tests {
		for _, away := range []bool{false, true} {
			name := test.name
			if away {
				name += ", saved late"
			}
			t.Run(name, func(t *testing.T) {
				withFailover(t, func(x *failover) {
					test.before(x)
					x.p.takes = 10 * time.Second
					s := wantAlive(t, x.b, x.ticket, "before the refresh")
					go x.b.Refresh(context.Background(), s)
					synctest.Wait() // until the provider has its request
					time.Sleep(time.Second)
					test.during(x)
					if away {
						x.away.fail(nil, errors.New("READONLY"))
						time.Sleep(20 * time.Second)
						x.away.fail(nil, nil)
					}
					x.b.Drain(x.t.Context())
					x.p.takes = 0
					x.announce()
					if test.want != "" {
						x.wantTokens(test.want)
					} else {
						x.wantEnded()
					}
				})
			})
		}
	}
}

// Both replicas have refreshed the session, and the new master lacks both
// refreshes. The replicas repeat them in any order.
func TestLastOfLostRefreshesWins(t *testing.T) {
	for name, before := range map[string]func(x *failover){
		"read by neither":  func(*failover) {},
		"read by the last": func(x *failover) { wantAlive(x.t, x.b, x.ticket, "after the failover") },
		"read by the first": func(x *failover) {
			wantAlive(x.t, x.a, x.ticket, "after the failover")
		},
		"touched by the first": func(x *failover) { x.touch(x.a) },
	} {
		t.Run(name, func(t *testing.T) {
			withFailover(t, func(x *failover) {
				x.refresh(x.a)
				x.refresh(x.b)
				x.lose()
				time.Sleep(time.Second) // until caches are not used
				before(x)
				x.announce()
				x.wantTokens("access-3")
			})
		})
	}
}

// A replica that failed to replay its writes retries, before others refresh.
// However long the store is away, the last writes before are not forgotten.
func TestReplayIsRetried(t *testing.T) {
	for _, test := range []struct {
		name   string
		outage time.Duration
		want   string
	}{
		{"short", 500 * time.Millisecond, "access-2"},
		{"long", 10 * time.Minute, "access-3"}, // access-2 has expired
	} {
		t.Run(test.name, func(t *testing.T) {
			withFailover(t, func(x *failover) {
				x.refresh(x.b)
				x.lose()
				x.away.fail(errors.New("connection refused"), nil)
				x.store.restore()
				time.Sleep(test.outage)
				x.away.fail(nil, nil)
				time.Sleep(leaseGrace)
				x.wantTokens(test.want)
			})
		})
	}
}

// The store fails between the commands of a replay.
func TestReplayThatFailsHalfwayIsRetried(t *testing.T) {
	withFailover(t, func(x *failover) {
		x.touch(x.a) // reseals, so that b replaces another record than the one that is restored
		x.refresh(x.b)
		x.lose()
		unreadable := &unreadableStore{Store: x.store}
		unreadable.fails.Store(true)
		x.away.Store = unreadable
		x.store.restore()
		time.Sleep(500 * time.Millisecond)
		unreadable.fails.Store(false)
		time.Sleep(leaseGrace)
		x.wantTokens("access-2")
	})
}

// unreadableStore is a store whose Get fails.
type unreadableStore struct {
	session.Store
	fails atomic.Bool
}

func (s *unreadableStore) Get(ctx context.Context, key string) ([]byte, time.Duration, bool, error) {
	if s.fails.Load() {
		return nil, 0, false, errors.New("connection refused")
	}
	return s.Store.Get(ctx, key)
}

// b's write was carried out although its response was lost, and a has refreshed
// the session since, because the lease was lost.
func TestLateSaveDoesNotReplaceLaterTokens(t *testing.T) {
	withFailover(t, func(x *failover) {
		x.touch(x.a) // reseals, which is more than one write
		lossy := &lossyStore{Store: x.store}
		x.away.Store = lossy
		lossy.loseNext.Store(true)
		x.p.takes = 0
		s := wantAlive(t, x.b, x.ticket, "before the refresh")
		if _, err := x.b.Refresh(x.t.Context(), s); !errors.Is(err, session.ErrStore) {
			x.t.Fatalf("Refresh: got %v, want ErrStore", err)
		}
		x.store.Memory.Delete(t.Context(), "refresh:"+x.id)
		x.refresh(x.a)
		time.Sleep(time.Second)
		x.wantTokens("access-3")
	})
}

// Writes that cannot be repeated do not keep others from being repeated.
func TestFailedReplayDelaysNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, p := newTappedStore(), new(tokenEndpoint)
		refusing := &refusingStore{Store: store}
		m := newManager(t, session.Config{Store: refusing, Refresh: p.refresh})
		watch(t, m)
		synctest.Wait()
		before := make(map[string][]byte)
		var tickets []session.Ticket
		for range 100 {
			s, ticket := signIn(t, m, tokens())
			tickets = append(tickets, ticket)
			before["session:"+s.ID], _, _, _ = store.Memory.Get(t.Context(), "session:"+s.ID)
		}
		for _, ticket := range tickets {
			if _, err := findRefresh(t.Context(), m, ticket); err != nil {
				t.Fatal(err)
			}
		}
		store.cut()
		for key, record := range before {
			store.Memory.Delete(t.Context(), key)
			store.Memory.Create(t.Context(), key, record, time.Hour)
		}
		refused := tickets[80:] // the latest ones, which are the first to be repeated
		refusing.refuse(refused...)
		store.restore()
		time.Sleep(leaseGrace)
		other := newManager(t, session.Config{Store: store})
		for _, ticket := range tickets[:80] {
			if s := wantAlive(t, other, ticket, "after the failover"); s.Tokens.Refresh == "refresh-1" {
				t.Fatal("got the tokens from before the refresh")
			}
		}
		refusing.refuse()
		time.Sleep(leaseGrace)
		for _, ticket := range refused {
			if s := wantAlive(t, other, ticket, "after the fault"); s.Tokens.Refresh == "refresh-1" {
				t.Fatal("refused at first: got the tokens from before the refresh")
			}
		}
	})
}

// refusingStore does not replace the records of some sessions.
type refusingStore struct {
	session.Store
	mu      sync.Mutex // guards refused
	refused map[string]bool
}

func (s *refusingStore) refuse(tickets ...session.Ticket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused = make(map[string]bool)
	for _, ticket := range tickets {
		s.refused["session:"+ticket.SessionID()] = true
	}
}

func (s *refusingStore) Replace(ctx context.Context, key string, old, value []byte) (bool, error) {
	s.mu.Lock()
	refused := s.refused[key]
	s.mu.Unlock()
	if refused {
		return false, errors.New("OOM command not allowed")
	}
	return s.Store.Replace(ctx, key, old, value)
}
