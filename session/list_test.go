package session_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

// aliveOf returns how many of the tickets open a session.
func aliveOf(m *session.Manager, tickets []session.Ticket) int {
	n := 0
	for _, ticket := range tickets {
		if _, err := m.Find(context.Background(), ticket); err == nil {
			n++
		}
	}
	return n
}

// signInAtOnce starts n sessions of alice at the same time.
func signInAtOnce(t *testing.T, n int, managers ...*session.Manager) []session.Ticket {
	t.Helper()
	tickets := make([]session.Ticket, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			s, err := managers[i%len(managers)].Start(context.Background(), session.New{
				Issuer: "i", Subject: "alice", SID: "s", Tokens: tokens(),
			})
			if err != nil {
				t.Error(err)
				return
			}
			tickets[i] = s.Ticket()
		})
	}
	all.Wait()
	return tickets
}

func TestConcurrentLoginsKeepMaxPerUser(t *testing.T) {
	t.Parallel()
	for kind, store := range stores(t) {
		for range 20 {
			time.Sleep(2 * time.Millisecond) // a logout ends logins of the same millisecond
			m := newManager(t, session.Config{Store: store, MaxPerUser: 2})
			other := newManager(t, session.Config{Store: store, MaxPerUser: 2})
			tickets := signInAtOnce(t, 8, m, other)
			alive := aliveOf(m, tickets)
			if alive != 2 {
				t.Errorf("%s: got %d of 8 concurrent sessions alive, want 2", kind, alive)
			}
			ended := endAll(t, m, "i", "alice", "")
			if len(ended) != alive {
				t.Errorf("%s: EndAll: got %d sessions, want %d", kind, len(ended), alive)
			}
			if n := aliveOf(m, tickets); n != 0 {
				t.Errorf("%s: got %d sessions alive after EndAll, want none", kind, n)
			}
		}
	}
}

// EndAll is called while logins are in progress, without MaxPerUser. Sessions
// that it misses are found by the next call.
func TestEndAllFindsConcurrentLogins(t *testing.T) {
	t.Parallel()
	for kind, store := range stores(t) {
		m := newManager(t, session.Config{Store: store})
		for range 20 {
			var tickets []session.Ticket
			var mu sync.Mutex
			var all sync.WaitGroup
			for i := range 8 {
				all.Go(func() {
					if i == 4 {
						endAll(t, m, "i", "alice", "")
						return
					}
					s, err := m.Start(context.Background(), session.New{
						Issuer: "i", Subject: "alice", Tokens: tokens(),
					})
					if err != nil {
						if !errors.Is(err, session.ErrEnded) {
							t.Error(err)
						}
						return
					}
					mu.Lock()
					defer mu.Unlock()
					tickets = append(tickets, s.Ticket())
				})
			}
			all.Wait()
			endAll(t, m, "i", "alice", "")
			if n := aliveOf(m, tickets); n != 0 {
				t.Fatalf("%s: got %d sessions alive after EndAll, want none", kind, n)
			}
		}
	}
}

// A replica counts sessions while another one has added a session to the index
// and not written its record yet.
func TestUnwrittenSessionStaysListed(t *testing.T) {
	t.Parallel()
	store := &interposedStore{Memory: new(tokenstore.Memory)}
	m := newManager(t, session.Config{Store: store, MaxPerUser: 2})
	other := newManager(t, session.Config{Store: store.Memory, MaxPerUser: 2})
	signInAs(t, other, "i", "alice", "")
	signInAs(t, other, "i", "alice", "")
	time.Sleep(2 * time.Millisecond) // their ages differ in milliseconds
	store.before("Create", func() { signInAs(t, other, "i", "alice", "") })
	late := signInAs(t, m, "i", "alice", "")
	wantAlive(t, m, late, "one of the two youngest")
	endAll(t, m, "i", "alice", "")
	wantNone(t, m, late, "after EndAll")
}

func TestSessionUnderTwoKeysCountsOnce(t *testing.T) {
	t.Parallel()
	const idleTimeout = 20 * time.Second // longer than the test takes
	for kind, store := range stores(t) {
		manager := func(keys ...[]byte) *session.Manager {
			return newManager(t, session.Config{Store: store, Keys: keys, MaxPerUser: 2, IdleTimeout: idleTimeout})
		}
		first := signInAs(t, manager(keyA), "i", "alice", "s")
		m := manager(keyB, keyA)
		time.Sleep(idleTimeout / 50) // longer than a sixtieth of it, after which a Touch writes
		if err := m.Touch(t.Context(), wantAlive(t, m, first, kind)); err != nil {
			t.Fatal(err)
		}
		second := signInAs(t, m, "i", "alice", "s")
		wantAlive(t, m, first, kind+": the first of two")
		wantAlive(t, m, second, kind+": the second of two")
		if ended := endAll(t, m, "i", "", "s"); len(ended) != 2 {
			t.Errorf("%s: EndAll: got %v, want each of two sessions once", kind, ended)
		}
	}
}

// A refresh seals the record with the new key. The index of that key has to
// list the session too.
func TestRefreshAfterKeyRotationUpdatesIndexes(t *testing.T) {
	t.Parallel()
	for kind, store := range stores(t) {
		p := new(tokenEndpoint)
		manager := func(keys ...[]byte) *session.Manager {
			return newManager(t, session.Config{Store: store, Keys: keys, Refresh: p.refresh, Revoke: p.revoke})
		}
		ticket := signInAs(t, manager(keyA), "i", "alice", "s")
		m := manager(keyB, keyA)
		if _, err := findRefresh(t.Context(), m, ticket); err != nil {
			t.Fatal(err)
		}
		m = manager(keyB)
		wantAlive(t, m, ticket, kind+": the old key removed")
		if ended := endAll(t, m, "i", "alice", ""); len(ended) != 1 {
			t.Errorf("%s: EndAll: got %v, want the session", kind, ended)
		}
		wantNone(t, m, ticket, kind+": after EndAll")
	}
}

// The store is full while a refresh moves a record to the new key.
func TestRefreshKeepsOldKeyWhileIndexesFail(t *testing.T) {
	t.Parallel()
	store := &unlistingStore{Memory: new(tokenstore.Memory)}
	p := new(tokenEndpoint)
	manager := func(keys ...[]byte) *session.Manager {
		return newManager(t, session.Config{Store: store, Keys: keys, Refresh: p.refresh, Revoke: p.revoke})
	}
	ticket := signInAs(t, manager(keyA), "i", "alice", "")
	m := manager(keyB, keyA)
	store.full = true
	if _, err := findRefresh(t.Context(), m, ticket); err != nil {
		t.Fatal(err)
	}
	store.full = false
	if _, err := findRefresh(t.Context(), m, ticket); err != nil {
		t.Fatal(err)
	}
	m = manager(keyB)
	wantAlive(t, m, ticket, "the old key removed")
	endAll(t, m, "i", "alice", "")
	wantNone(t, m, ticket, "after EndAll")
}

// unlistingStore fails to add members to sets while it is full.
type unlistingStore struct {
	*tokenstore.Memory
	full bool
}

func (s *unlistingStore) Add(ctx context.Context, members map[string]string, ttl time.Duration) error {
	if s.full {
		return errors.New("full")
	}
	return s.Memory.Add(ctx, members, ttl)
}

func TestReplicasMayDifferInMaxLifetime(t *testing.T) {
	t.Parallel()
	for kind, store := range stores(t) {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			long := newManager(t, session.Config{Store: store, MaxLifetime: time.Hour})
			medium := newManager(t, session.Config{Store: store, MaxLifetime: time.Minute})
			short := newManager(t, session.Config{Store: store, MaxLifetime: time.Second})
			ticket := signInAs(t, long, "i", "alice", "s")
			time.Sleep(1100 * time.Millisecond) // longer than the lifetime at the other replica
			brief := signInAs(t, short, "i", "alice", "s")
			wantAlive(t, short, ticket, "at the replica with the shorter lifetime")
			time.Sleep(1100 * time.Millisecond)
			wantNone(t, long, brief, "the short session")
			signInAs(t, medium, "i", "alice", "s")
			ended := endAll(t, long, "i", "alice", "s")
			if len(ended) != 2 {
				t.Errorf("EndAll: got %v, want both sessions that are alive", ended)
			}
			wantNone(t, long, ticket, "after EndAll")
		})
	}
}

// A login fails if a part of it does. A logout at the provider would not find a
// session that is in no index, for example.
func TestLoginFailsIfAPartOfItDoes(t *testing.T) {
	t.Parallel()
	partly, undeletable := &partlyDown{Memory: new(tokenstore.Memory)}, &undeletable{Memory: new(tokenstore.Memory)}
	for part, test := range map[string]struct {
		store session.Store
		fail  func()
	}{
		"user index":     {partly, func() { partly.down = "user:" }},
		"sid index":      {partly, func() { partly.down = "sid:" }},
		"info":           {partly, func() { partly.down = "info:" }},
		"record":         {partly, func() { partly.down = "session:" }},
		"logouts":        {partly, func() { partly.down = "ended:" }},
		"session before": {undeletable, func() { undeletable.err = errors.New("down") }},
	} {
		m := newManager(t, session.Config{Store: test.store})
		before := wantAlive(t, m, signInAs(t, m, "i", "alice", "s"), part)
		test.fail()
		_, err := m.Start(t.Context(), session.New{
			Issuer: "i", Subject: "alice", SID: "s", Tokens: tokens(), Replaces: []session.Ticket{before.Ticket()},
			Replaced: func(*session.Session, bool) { t.Errorf("%s: a session was replaced", part) },
		})
		if !errors.Is(err, session.ErrStore) {
			t.Errorf("%s: got %v, want ErrStore", part, err)
		}
		partly.down = ""
	}
}

// A session that a login replaces does not count for MaxPerUser.
func TestReplacedSessionDoesNotCount(t *testing.T) {
	t.Parallel()
	m := newManager(t, session.Config{MaxPerUser: 2})
	elsewhere := signInAs(t, m, "i", "alice", "")
	before := wantAlive(t, m, signInAs(t, m, "i", "alice", ""), "the session before")
	var replaced []string
	started, err := m.Start(t.Context(), session.New{
		Issuer: "i", Subject: "alice", Tokens: tokens(),
		Replaces: []session.Ticket{{}, before.Ticket(), before.Ticket()},
		Replaced: func(old *session.Session, kept bool) { replaced = append(replaced, fmt.Sprint(old.ID, kept)) },
	})
	if err != nil {
		t.Fatal(err)
	}
	wantAlive(t, m, elsewhere, "the session in another browser")
	if want := []string{before.ID + "true"}; !slices.Equal(replaced, want) {
		t.Errorf("replaced: got %v, want %v: the session before, with its refresh token kept", replaced, want)
	}
	s := wantAlive(t, m, started.Ticket(), "the new session")
	if got := s.Tokens.Superseded; !slices.Equal(got, []session.Secret{"refresh-1"}) {
		t.Errorf("superseded: got %d refresh tokens, want refresh-1", len(got))
	}
}
