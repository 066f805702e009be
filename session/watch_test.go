package session_test

import (
	"context"
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

// tappedStore counts calls. It can withhold announcements and slow down or
// intercept calls.
type tappedStore struct {
	*tokenstore.Memory
	reads    atomic.Int32
	touches  atomic.Int32
	touching time.Duration // how long a Touch takes

	mu       sync.Mutex
	muted    bool                                    // writes are not announced
	watchers map[*func(string)]func(until time.Time) // :: onChange → onValid
	reading  func()                                  // called once during a Get, after the read
}

func newTappedStore() *tappedStore {
	return &tappedStore{Memory: new(tokenstore.Memory), watchers: make(map[*func(string)]func(time.Time))}
}

func (s *tappedStore) Get(ctx context.Context, key string) ([]byte, time.Duration, bool, error) {
	s.reads.Add(1)
	value, ttl, found, err := s.Memory.Get(ctx, key)
	s.mu.Lock()
	reading := s.reading
	s.reading = nil
	s.mu.Unlock()
	if reading != nil {
		reading()
	}
	return value, ttl, found, err
}

func (s *tappedStore) Touch(ctx context.Context, key string, ttl time.Duration) (bool, error) {
	if strings.HasPrefix(key, "session:") {
		s.touches.Add(1)
		time.Sleep(s.touching)
	}
	return s.Memory.Touch(ctx, key, ttl)
}

func (s *tappedStore) Watch(ctx context.Context, onChange func(string), onValid func(time.Time)) {
	s.mu.Lock()
	s.watchers[&onChange] = onValid
	s.mu.Unlock()
	s.Memory.Watch(ctx, func(key string) {
		s.mu.Lock()
		muted := s.muted
		s.mu.Unlock()
		if !muted {
			onChange(key)
		}
	}, onValid)
}

// cut withholds announcements, as a lost connection does: caches stay valid for
// another half second.
func (s *tappedStore) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.muted = true
	for _, onValid := range s.watchers {
		onValid(time.Now().Add(500 * time.Millisecond))
	}
}

// restore announces writes again, the empty key first.
func (s *tappedStore) restore() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.muted = false
	for onChange, onValid := range s.watchers {
		(*onChange)("")
		onValid(time.Now().Add(time.Hour))
	}
}

// replicas runs a test in a bubble of fake time. n Managers watch one store,
// and alice is signed in at the first.
func replicas(t *testing.T, n int, cfg session.Config, test func(
	t *testing.T, store *tappedStore, all []*session.Manager, s *session.Session, ticket session.Ticket,
)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		store := newTappedStore()
		cfg.Store = store
		var all []*session.Manager
		for range n {
			m := newManager(t, cfg)
			watch(t, m)
			all = append(all, m)
		}
		synctest.Wait()
		s, ticket := signIn(t, all[0], tokens())
		test(t, store, all, s, ticket)
	})
}

func TestCacheSavesReads(t *testing.T) {
	replicas(t, 1, session.Config{}, func(
		t *testing.T, store *tappedStore, all []*session.Manager, _ *session.Session, ticket session.Ticket,
	) {
		began := time.Now()
		const calls = 10_000
		for range calls {
			s := wantAlive(t, all[0], ticket, "in use")
			if err := all[0].Touch(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		if n := store.reads.Load(); n < 2 || n > 5 {
			t.Errorf("got %d reads for %d calls in %v, want one in four seconds", n, calls, time.Since(began))
		}
	})
}

func TestEndReachesEveryReplica(t *testing.T) {
	for name, end := range map[string]func(
		ctx context.Context, m *session.Manager, s *session.Session, ticket session.Ticket,
	) error{
		"logout": func(ctx context.Context, m *session.Manager, _ *session.Session, ticket session.Ticket) error {
			return findEnd(ctx, m, ticket)
		},
		"logout at the provider": func(
			ctx context.Context, m *session.Manager, s *session.Session, _ session.Ticket,
		) error {
			_, err := m.EndAll(ctx, s.Issuer, s.Subject, s.SID, session.ReasonBackchannel)
			return err
		},
		"another login": func(ctx context.Context, m *session.Manager, s *session.Session, _ session.Ticket) error {
			_, err := m.Start(ctx, session.New{
				Subject: "bob", Tokens: tokens(), Replaces: []session.Ticket{s.Ticket()},
			})
			return err
		},
	} {
		replicas(t, 3, session.Config{}, func(
			t *testing.T, store *tappedStore, all []*session.Manager, s *session.Session,
			ticket session.Ticket,
		) {
			for _, m := range all {
				wantAlive(t, m, ticket, "before "+name)
				m.OnEnd(s, func() {})
			}
			if err := end(t.Context(), all[1], s, ticket); err != nil {
				t.Fatal(err)
			}
			for _, m := range all {
				wantNone(t, m, ticket, "after "+name)
			}
		})
	}
}

// A session ends between a read of the store and its return. The reader must
// not cache it.
func TestReadThatRacesWithChangeIsNotCached(t *testing.T) {
	replicas(t, 2, session.Config{}, func(
		t *testing.T, store *tappedStore, all []*session.Manager, _ *session.Session, ticket session.Ticket,
	) {
		store.mu.Lock()
		store.reading = func() {
			if err := findEnd(t.Context(), all[1], ticket); err != nil {
				t.Error(err)
			}
		}
		store.mu.Unlock()
		all[0].Find(t.Context(), ticket)
		wantNone(t, all[0], ticket, "ended while it was read")
	})
}

func TestCacheIsUnusedWithoutAnnouncements(t *testing.T) {
	replicas(t, 2, session.Config{}, func(
		t *testing.T, store *tappedStore, all []*session.Manager, _ *session.Session, ticket session.Ticket,
	) {
		wantAlive(t, all[0], ticket, "before")
		store.cut()
		time.Sleep(500 * time.Millisecond)
		before := store.reads.Load()
		for range 10 {
			wantAlive(t, all[0], ticket, "without announcements")
		}
		if n := store.reads.Load() - before; n != 10 {
			t.Errorf("got %d reads for 10 calls without announcements, want 10", n)
		}
		if err := findEnd(t.Context(), all[1], ticket); err != nil {
			t.Fatal(err)
		}
		wantNone(t, all[0], ticket, "ended without an announcement")
		store.restore()
		wantNone(t, all[0], ticket, "ended without an announcement, after announcements were restored")
	})
}

func TestEntriesFromBeforeLostAnnouncementsAreUnused(t *testing.T) {
	replicas(t, 2, session.Config{}, func(
		t *testing.T, store *tappedStore, all []*session.Manager, _ *session.Session, ticket session.Ticket,
	) {
		wantAlive(t, all[0], ticket, "before")
		store.cut()
		if err := findEnd(t.Context(), all[1], ticket); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
		store.restore()
		wantNone(t, all[0], ticket, "ended while announcements were lost")
	})
}

func TestUnannouncedDeletionIsNoticed(t *testing.T) {
	replicas(t, 1, session.Config{CacheMaxAge: 3 * time.Second}, func(
		t *testing.T, store *tappedStore, all []*session.Manager, s *session.Session, ticket session.Ticket,
	) {
		wantAlive(t, all[0], ticket, "before")
		store.mu.Lock()
		store.muted = true // but the cache is valid
		store.mu.Unlock()
		if err := store.Delete(t.Context(), "session:"+s.ID); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3*time.Second + time.Millisecond)
		wantNone(t, all[0], ticket, "deleted without an announcement")
	})
}

// A replica sees its own writes before they are announced.
func TestReplicaSeesItsOwnChanges(t *testing.T) {
	p := new(tokenEndpoint)
	replicas(t, 1, session.Config{Refresh: p.refresh}, func(
		t *testing.T, store *tappedStore, all []*session.Manager, _ *session.Session, ticket session.Ticket,
	) {
		store.mu.Lock()
		store.muted = true // but the cache is valid: announcements are delayed
		store.mu.Unlock()
		fresh(t, all[0], ticket, "access-1")
		if _, err := findRefresh(t.Context(), all[0], ticket); err != nil {
			t.Fatal(err)
		}
		fresh(t, all[0], ticket, "access-2")
		if err := findEnd(t.Context(), all[0], ticket); err != nil {
			t.Fatal(err)
		}
		wantNone(t, all[0], ticket, "ended")
	})
}

func TestConcurrentTouchesWriteOnce(t *testing.T) {
	replicas(t, 1, session.Config{}, func(
		t *testing.T, store *tappedStore, all []*session.Manager, _ *session.Session, ticket session.Ticket,
	) {
		wantAlive(t, all[0], ticket, "cached")
		time.Sleep(time.Minute)
		s := wantAlive(t, all[0], ticket, "cached again")
		store.touching = time.Second
		var requests sync.WaitGroup
		for range 10 {
			requests.Go(func() {
				if err := all[0].Touch(t.Context(), s); err != nil {
					t.Error(err)
				}
			})
		}
		requests.Wait()
		if n := store.touches.Load(); n != 1 {
			t.Errorf("got %d writes, want 1", n)
		}
	})
}

func TestIdleTimeoutWithCaches(t *testing.T) {
	replicas(t, 2, session.Config{IdleTimeout: 4 * time.Second, CacheMaxAge: time.Hour}, func(
		t *testing.T, _ *tappedStore, all []*session.Manager, _ *session.Session, ticket session.Ticket,
	) {
		for range 10 { // Touch at one replica, Find at both
			time.Sleep(3 * time.Second)
			wantAlive(t, all[1], ticket, "the other replica")
			if err := all[0].Touch(t.Context(), wantAlive(t, all[0], ticket, "the active replica")); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(3 * time.Second)
		for _, m := range all {
			wantAlive(t, m, ticket, "before the idle timeout")
		}
		time.Sleep(time.Second)
		for _, m := range all {
			wantNone(t, m, ticket, "after the idle timeout")
		}
	})
}

func TestRefreshReachesEveryReplica(t *testing.T) {
	p := new(tokenEndpoint)
	replicas(t, 2, session.Config{Refresh: p.refresh}, func(
		t *testing.T, _ *tappedStore, all []*session.Manager, _ *session.Session, ticket session.Ticket,
	) {
		fresh(t, all[0], ticket, "access-1")
		fresh(t, all[1], ticket, "access-1")
		if _, err := findRefresh(t.Context(), all[0], ticket); err != nil {
			t.Fatal(err)
		}
		fresh(t, all[0], ticket, "access-2")
		fresh(t, all[1], ticket, "access-2")
	})
}

func TestCachedSessionNeedsItsDataKey(t *testing.T) {
	replicas(t, 1, session.Config{}, func(
		t *testing.T, _ *tappedStore, all []*session.Manager, s *session.Session, ticket session.Ticket,
	) {
		wantAlive(t, all[0], ticket, "before")
		forged := session.TicketWithOtherKey(s)
		wantNone(t, all[0], forged, "the same id with another data key")
	})
}

func TestOnEndIsCalled(t *testing.T) {
	for name, end := range map[string]func(
		ctx context.Context, store *tappedStore, m *session.Manager, ticket session.Ticket,
	){
		"logout at another replica": func(
			ctx context.Context, _ *tappedStore, m *session.Manager, ticket session.Ticket,
		) {
			findEnd(ctx, m, ticket)
		},
		"logout that is not announced": func(
			ctx context.Context, store *tappedStore, m *session.Manager, ticket session.Ticket,
		) {
			store.cut()
			findEnd(ctx, m, ticket)
		},
		"idle timeout": func(context.Context, *tappedStore, *session.Manager, session.Ticket) {
			time.Sleep(30 * time.Minute)
		},
	} {
		replicas(t, 2, session.Config{}, func(
			t *testing.T, store *tappedStore, all []*session.Manager, s *session.Session,
			ticket session.Ticket,
		) {
			ended := make(chan time.Time, 1)
			all[0].OnEnd(s, func() { ended <- time.Now() })
			stopped := all[0].OnEnd(s, func() { t.Error("called after stop") })
			time.Sleep(10 * time.Second)
			stopped()
			select {
			case <-ended:
				t.Errorf("%s: called before the session ended", name)
			default:
			}
			end(t.Context(), store, all[1], ticket)
			at := time.Now()
			select {
			case <-ended:
			case <-time.After(time.Minute):
				t.Fatalf("%s: not called within a minute", name)
			}
			if late := time.Since(at); late > 1100*time.Millisecond {
				t.Errorf("%s: called after %v, want at most a second", name, late)
			}
		})
	}
}

func TestRunCallsAllWatchersAtItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, session.Config{})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			m.Run(ctx)
			close(done)
		}()
		s, _ := signIn(t, m, tokens())
		var ended atomic.Int32
		m.OnEnd(s, func() { ended.Add(1) })
		time.Sleep(time.Second)
		m.OnEnd(s, func() { ended.Add(1) }) // not registered yet
		stop()
		<-done
		time.Sleep(time.Second)
		if n := ended.Load(); n != 2 {
			t.Errorf("got %d calls of 2 watchers", n)
		}
	})
}

// Without Run nothing tells a replica of what others do, so its cache is not
// used, whatever the store has promised before.
func TestCacheIsUnusedAfterRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(tokenstore.Memory)
		m := newManager(t, session.Config{Store: store})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			m.Run(ctx)
			close(done)
		}()
		synctest.Wait()
		_, ticket := signIn(t, m, tokens())
		wantAlive(t, m, ticket, "during Run")
		stop()
		<-done
		if err := findEnd(t.Context(), newManager(t, session.Config{Store: store}), ticket); err != nil {
			t.Fatal(err)
		}
		wantNone(t, m, ticket, "ended after Run has returned")
	})
}

// The store fails over to a server that lacks the last writes.
func TestLostWritesAreReplayed(t *testing.T) {
	p := new(tokenEndpoint)
	replicas(t, 2, session.Config{Refresh: p.refresh, Revoke: p.revoke}, func(
		t *testing.T, store *tappedStore, all []*session.Manager, s *session.Session, ticket session.Ticket,
	) {
		_, ended := signIn(t, all[0], tokens())
		keys := []string{"session:" + s.ID, "session:" + wantAlive(t, all[0], ended, "before").ID}
		before := make(map[string][]byte)
		for _, key := range keys {
			before[key], _, _, _ = store.Memory.Get(t.Context(), key)
		}
		lose := func() {
			for _, key := range keys {
				store.Delete(t.Context(), key)
				store.Create(t.Context(), key, before[key], time.Hour)
			}
		}
		for range 3 {
			if _, err := findRefresh(t.Context(), all[0], ticket); err != nil {
				t.Fatal(err)
			}
			synctest.Wait() // until the refresh has finished, so that the next one does not join it
		}
		if err := findEnd(t.Context(), all[0], ended); err != nil {
			t.Fatal(err)
		}
		lose()
		fresh(t, all[0], ticket, "access-4")
		wantNone(t, all[0], ended, "ended, and the store lost the end")

		lose()
		store.restore() // the other replica waits until this one has replayed
		time.Sleep(time.Second)
		fresh(t, all[1], ticket, "access-4")
		wantNone(t, all[1], ended, "ended by another replica, and the store lost the end")
		if _, err := findRefresh(t.Context(), all[1], ticket); err != nil {
			t.Fatal(err)
		}
		if n := p.reused.Load(); n > 0 {
			t.Errorf("got %d refreshes with a spent token, want none", n)
		}
	})
}

// The store is unavailable for longer than a lease lasts, while the holder
// waits for the provider.
func TestLeaseSurvivesStoreOutage(t *testing.T) {
	p := &tokenEndpoint{takes: 10 * time.Second}
	replicas(t, 2, session.Config{Refresh: p.refresh, Wait: 20 * time.Second}, func(
		t *testing.T, store *tappedStore, all []*session.Manager, s *session.Session, ticket session.Ticket,
	) {
		var both sync.WaitGroup
		renew := func(m *session.Manager) {
			both.Go(func() {
				if _, err := findRefresh(t.Context(), m, ticket); err != nil {
					t.Error(err)
				}
			})
		}
		renew(all[0])
		time.Sleep(500 * time.Millisecond)
		store.Delete(t.Context(), "refresh:"+s.ID)
		store.restore()
		renew(all[1])
		both.Wait()
		if n, reused := p.calls.Load(), p.reused.Load(); reused > 0 {
			t.Errorf("got %d refreshes, %d of them with a spent token, want none", n, reused)
		}
	})
}

func TestSuccessElsewhereClearsFailure(t *testing.T) {
	var down atomic.Bool
	p := &tokenEndpoint{respond: func(_ int, next session.Tokens) (session.Tokens, error) {
		if down.Load() {
			return session.Tokens{}, errors.New("down")
		}
		return next, nil
	}}
	replicas(t, 2, session.Config{Refresh: p.refresh}, func(
		t *testing.T, _ *tappedStore, all []*session.Manager, _ *session.Session, ticket session.Ticket,
	) {
		down.Store(true)
		if _, err := findRefresh(t.Context(), all[0], ticket); err == nil {
			t.Fatal("the refresh succeeded during the outage")
		}
		down.Store(false)
		for _, m := range []*session.Manager{all[1], all[0]} {
			if _, err := findRefresh(t.Context(), m, ticket); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestBackoffGrows(t *testing.T) {
	p := &tokenEndpoint{
		respond: func(int, session.Tokens) (session.Tokens, error) { return session.Tokens{}, errors.New("down") },
	}
	withProvider(t, p, session.Config{}, func(t *testing.T, m *session.Manager, ticket session.Ticket) {
		time.Sleep(time.Minute)
		for range 60 * 10 {
			if _, err := findFresh(t.Context(), m, ticket, ""); err == nil {
				t.Fatal("the refresh succeeded during the outage")
			}
			time.Sleep(100 * time.Millisecond)
		}
		if n := p.calls.Load(); n < 6 || n > 8 { // at 0, 1, 3, 7, 15, 31, 47 s
			t.Errorf("got %d requests in a minute, want about 7", n)
		}
		p.respond = nil
		time.Sleep(20 * time.Second) // 16 s and jitter
		if _, err := findFresh(t.Context(), m, ticket, ""); err != nil {
			t.Errorf("after the outage: %v", err)
		}
	})
}

// All followed sessions are read after a lost connection to the store. That
// does not delay the end of one of them.
func TestOnEndIsCalledWhileAllSessionsAreRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &distantStore{tappedStore: newTappedStore()}
		m := newManager(t, session.Config{Store: store})
		other := newManager(t, session.Config{Store: store.Memory})
		watch(t, m)
		const n = 2000
		ended := make(chan string, n)
		var all []*session.Session
		for range n {
			s, _ := signIn(t, m, tokens())
			m.OnEnd(s, func() { ended <- s.ID })
			all = append(all, s)
		}
		time.Sleep(20 * time.Second) // all are registered, and none is cached
		store.takes.Store(int64(20 * time.Millisecond))
		store.cut()
		store.restore()
		time.Sleep(200 * time.Millisecond)
		for _, s := range []*session.Session{all[0], all[n/2], all[n-1]} {
			began := time.Now()
			if err := other.End(t.Context(), s, session.ReasonLogout); err != nil {
				t.Fatal(err)
			}
			wantEqual(t, "the session that ended", <-ended, s.ID)
			if took := time.Since(began); took > time.Second {
				t.Errorf("the end was noticed after %v, want a second at most", took)
			}
		}
		store.takes.Store(0)
	})
}

// distantStore takes time to read a record.
type distantStore struct {
	*tappedStore
	takes atomic.Int64 // a time.Duration
}

func (s *distantStore) Get(ctx context.Context, key string) ([]byte, time.Duration, bool, error) {
	time.Sleep(time.Duration(s.takes.Load()))
	return s.tappedStore.Get(ctx, key)
}

func TestFollowTellsOfChanges(t *testing.T) {
	for _, announced := range []bool{true, false} {
		p := new(tokenEndpoint)
		replicas(t, 2, session.Config{Refresh: p.refresh}, func(
			t *testing.T, store *tappedStore, all []*session.Manager, s *session.Session, ticket session.Ticket,
		) {
			var latest atomic.Pointer[session.Session]
			stop := all[0].Follow(s, latest.Store, func(reason session.Reason) { t.Errorf("got an end: %s", reason) })
			if !announced {
				store.cut()
			}
			time.Sleep(10 * time.Minute)
			if err := all[1].Touch(t.Context(), wantAlive(t, all[1], ticket, "elsewhere")); err != nil {
				t.Fatal(err)
			}
			at := time.Now()
			time.Sleep(1100 * time.Millisecond)
			if got, want := latest.Load().IdleExpiresAt, at.Add(30*time.Minute); got.Sub(want).Abs() > time.Second {
				t.Errorf("announced %v: idle end after activity elsewhere: got %v, want %v", announced, got, want)
			}
			if _, err := findRefresh(t.Context(), all[1], ticket); err != nil {
				t.Fatal(err)
			}
			time.Sleep(1100 * time.Millisecond)
			wantEqual(t, "access token after a refresh elsewhere", latest.Load().Tokens.Access.Reveal(), "access-2")
			stop()
			findEnd(t.Context(), all[1], ticket)
			time.Sleep(2 * time.Second)
		})
	}
}

// A watcher gets the state that another one has got before it was registered.
func TestFollowStartsWithTheLatestState(t *testing.T) {
	p := new(tokenEndpoint)
	replicas(t, 1, session.Config{Refresh: p.refresh}, func(
		t *testing.T, _ *tappedStore, all []*session.Manager, s *session.Session, ticket session.Ticket,
	) {
		all[0].OnEnd(s, func() {})
		time.Sleep(time.Second)
		if _, err := findRefresh(t.Context(), all[0], ticket); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		var latest atomic.Pointer[session.Session]
		all[0].Follow(s, latest.Store, func(session.Reason) {}) // s is from before the refresh
		time.Sleep(time.Second)
		if got := latest.Load(); got == nil || got.Tokens.Access.Reveal() != "access-2" {
			t.Errorf("got %v, want the session with the new token", got)
		}
	})
}

func TestFollowTellsWhyTheSessionEnded(t *testing.T) {
	for reason, end := range map[session.Reason]func(context.Context, *session.Manager, *session.Session) error{
		session.ReasonLogout: func(ctx context.Context, m *session.Manager, s *session.Session) error {
			return m.End(ctx, s, session.ReasonLogout)
		},
		session.ReasonRevoked: func(ctx context.Context, m *session.Manager, s *session.Session) error {
			_, err := m.EndByID(ctx, s.ID, session.ReasonRevoked)
			return err
		},
		session.ReasonBackchannel: func(ctx context.Context, m *session.Manager, s *session.Session) error {
			_, err := m.EndAll(ctx, s.Issuer, s.Subject, "", session.ReasonBackchannel)
			return err
		},
		session.ReasonReplaced: func(ctx context.Context, m *session.Manager, s *session.Session) error {
			_, err := m.Start(ctx, session.New{
				Subject: "bob", Tokens: tokens(), Replaces: []session.Ticket{s.Ticket()},
			})
			return err
		},
		session.ReasonIdle: func(context.Context, *session.Manager, *session.Session) error {
			time.Sleep(30 * time.Minute)
			return nil
		},
		session.ReasonLifetime: func(ctx context.Context, m *session.Manager, s *session.Session) error {
			for range 2 {
				time.Sleep(20 * time.Minute)
				now, err := m.Find(ctx, s.Ticket())
				if err == nil {
					err = m.Touch(ctx, now)
				}
				if err != nil {
					return err
				}
			}
			time.Sleep(5 * time.Minute)
			return nil
		},
	} {
		var events recorder
		replicas(t, 2, session.Config{MaxLifetime: 45 * time.Minute, Observe: events.observe}, func(
			t *testing.T, _ *tappedStore, all []*session.Manager, s *session.Session, _ session.Ticket,
		) {
			got := make(chan session.Reason, 1)
			all[0].Follow(s, func(*session.Session) {}, func(reason session.Reason) { got <- reason })
			time.Sleep(time.Second)
			if err := end(t.Context(), all[1], s); err != nil {
				t.Fatal(err)
			}
			select {
			case r := <-got:
				wantEqual(t, "reason", r, reason)
			case <-time.After(1100 * time.Millisecond):
				t.Errorf("%s: not told within a second", reason)
			}
			if returns := events.of(session.SessionReturned); len(returns) > 0 {
				t.Errorf("%s: got %v, want no cookie that came back", reason, returns)
			}
		})
	}
}

func TestFollowTellsNoReasonAtShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, session.Config{})
		ctx, stop := context.WithCancel(t.Context())
		s, _ := signIn(t, m, tokens())
		got := make(chan session.Reason, 2)
		m.Follow(s, nil, func(reason session.Reason) { got <- reason })
		stop()
		m.Run(ctx)
		m.Follow(s, nil, func(reason session.Reason) { got <- reason })
		for range 2 {
			wantEqual(t, "reason", <-got, "")
		}
	})
}
