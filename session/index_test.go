package session_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

// endAll ends sessions and returns their IDs.
func endAll(t *testing.T, m *session.Manager, issuer, subject, sid string) []string {
	t.Helper()
	ended, err := m.EndAll(context.Background(), issuer, subject, sid, session.ReasonBackchannel)
	if err != nil {
		t.Error(err)
	}
	return ended
}

// signInAs starts a session and returns its ticket.
func signInAs(t *testing.T, m *session.Manager, issuer, subject, sid string) session.Ticket {
	t.Helper()
	s, err := m.Start(t.Context(), session.New{Issuer: issuer, Subject: subject, SID: sid, Tokens: tokens()})
	if err != nil {
		t.Fatal(err)
	}
	return s.Ticket()
}

func TestEndAllEndsMatchingSessionsOnly(t *testing.T) {
	const here, there = "https://id.example", "https://other.example"
	for _, test := range []struct {
		name         string
		subject, sid string
		want         string // the sessions that are alive after it
	}{
		{"a session at the provider", "", "s1", "alice s2, bob s3, alice without sid, alice s1 of another issuer"},
		{"a user", "alice", "", "bob s3, alice s1 of another issuer"},
		{
			"a session at the provider and its user", "alice", "s1",
			"alice s2, bob s3, alice without sid, alice s1 of another issuer",
		},
		{
			"a session at the provider that is another user's", "bob", "s1",
			"alice s1, alice s2, bob s3, alice without sid, alice s1 of another issuer",
		},
		{"nobody", "carol", "", "alice s1, alice s2, bob s3, alice without sid, alice s1 of another issuer"},
		{"an unknown session", "", "s9", "alice s1, alice s2, bob s3, alice without sid, alice s1 of another issuer"},
	} {
		m := newManager(t, session.Config{})
		sessions := []struct {
			name   string
			ticket session.Ticket
		}{
			{"alice s1", signInAs(t, m, here, "alice", "s1")},
			{"alice s2", signInAs(t, m, here, "alice", "s2")},
			{"bob s3", signInAs(t, m, here, "bob", "s3")},
			{"alice without sid", signInAs(t, m, here, "alice", "")},
			{"alice s1 of another issuer", signInAs(t, m, there, "alice", "s1")},
		}
		ended := endAll(t, m, here, test.subject, test.sid)
		var left []string
		for _, s := range sessions {
			if _, err := m.Find(t.Context(), s.ticket); err == nil {
				left = append(left, s.name)
			}
		}
		wantEqual(t, test.name+": alive", strings.Join(left, ", "), test.want)
		wantEqual(t, test.name+": the number of ended sessions", len(ended), len(sessions)-len(left))
	}
	m := newManager(t, session.Config{})
	if _, err := m.EndAll(t.Context(), here, "", "", session.ReasonBackchannel); err == nil {
		t.Error("neither subject nor sid: got no error")
	}
}

// After a key rotation a session is in the indexes of two keys.
func TestEndAllAfterKeyRotation(t *testing.T) {
	for name, test := range map[string]struct {
		subject string
		ends    bool
	}{
		"the user": {"alice", true}, "another user": {"bob", false},
	} {
		synctest.Test(t, func(t *testing.T) {
			store := new(tokenstore.Memory)
			ticket := signInAs(t, newManager(t, session.Config{Store: store, Keys: [][]byte{keyA}}), "i", "alice", "s1")
			m := newManager(t, session.Config{Store: store, Keys: [][]byte{keyB, keyA}})
			time.Sleep(time.Minute)
			if err := m.Touch(t.Context(), wantAlive(t, m, ticket, "before Touch")); err != nil {
				t.Fatal(err)
			}
			for _, keys := range [][][]byte{{keyB, keyA}, {keyB}} {
				m := newManager(t, session.Config{Store: store, Keys: keys})
				if infos, _, err := m.List(t.Context(), "i", test.subject, "s1", 0, 10); err != nil {
					t.Error(err)
				} else {
					wantEqual(t, name+": is listed", len(infos) == 1, test.ends)
				}
			}
			ended := endAll(t, m, "i", test.subject, "s1")
			wantEqual(t, name+": ends the session", len(ended) == 1, test.ends)
			if _, err := m.Find(t.Context(), ticket); errors.Is(err, session.ErrNone) != test.ends {
				t.Errorf("%s: Find: got %v", name, err)
			}
			if test.ends {
				wantEqual(t, name+": keys besides the tombstone and two logouts", store.Len()-3, 0)
			}
		})
	}
}

// The provider ends a session while its login is being completed.
func TestLogoutDuringLoginWins(t *testing.T) {
	for name, logout := range map[string]struct{ subject, sid string }{
		"by sid": {"", "s1"}, "by user": {"alice", ""}, "by both": {"alice", "s1"},
	} {
		for when, delay := range map[string]func(store *interposedStore, logout func()){
			"before the callback":           func(_ *interposedStore, logout func()) { logout() },
			"before the session is indexed": func(s *interposedStore, logout func()) { s.before("Add", logout) },
			"before the session is written": func(s *interposedStore, logout func()) { s.before("Create", logout) },
			"after the session was written": func(s *interposedStore, logout func()) { s.before("Members", logout) },
		} {
			synctest.Test(t, func(t *testing.T) {
				store := &interposedStore{Memory: new(tokenstore.Memory)}
				m := newManager(t, session.Config{Store: store})
				began := time.Now()
				time.Sleep(time.Second)
				delay(store, func() {
					endAll(t, m, "https://id.example", logout.subject, logout.sid)
				})
				_, err := m.Start(t.Context(), session.New{
					Issuer: "https://id.example", Subject: "alice", SID: "s1", Tokens: tokens(), Began: began,
				})
				if !errors.Is(err, session.ErrEnded) {
					t.Errorf("logout %s %s: got %v, want ErrEnded", name, when, err)
				}
			})
		}
	}
}

func TestLoginAfterLogoutStartsSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, session.Config{})
		endAll(t, m, "https://id.example", "alice", "")
		time.Sleep(time.Millisecond)
		ticket := signInAs(t, m, "https://id.example", "alice", "s2")
		wantAlive(t, m, ticket, "signed in again")
		endAll(t, m, "https://id.example", "", "s3")
		time.Sleep(time.Millisecond)
		ticket = signInAs(t, m, "https://id.example", "alice", "s3")
		wantAlive(t, m, ticket, "signed in again with the same sid")
	})
}

func TestMaxPerUserEndsOldestSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, session.Config{MaxPerUser: 2, IdleTimeout: 10 * time.Minute})
		bob := signInAs(t, m, "i", "bob", "")
		first := signInAs(t, m, "i", "alice", "")
		time.Sleep(time.Minute)
		second := signInAs(t, m, "i", "alice", "")
		time.Sleep(time.Minute)
		third := signInAs(t, m, "i", "alice", "")
		wantNone(t, m, first, "the oldest of three")
		wantAlive(t, m, second, "the second")
		wantAlive(t, m, third, "the third")
		wantAlive(t, m, bob, "another user's")
		time.Sleep(9 * time.Minute) // until the second expires
		wantNone(t, m, second, "idle")
		m.Touch(t.Context(), wantAlive(t, m, third, "the third"))
		fourth := signInAs(t, m, "i", "alice", "")
		wantAlive(t, m, third, "one of two")
		wantAlive(t, m, fourth, "the fourth")
	})
}

func TestMaxPerUserAfterKeyRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(tokenstore.Memory)
		before := newManager(t, session.Config{Store: store, Keys: [][]byte{keyA}})
		old := signInAs(t, before, "i", "alice", "")
		time.Sleep(time.Minute)
		m := newManager(t, session.Config{Store: store, Keys: [][]byte{keyB, keyA}, MaxPerUser: 1})
		young := signInAs(t, m, "i", "alice", "")
		wantNone(t, m, old, "the oldest")
		wantAlive(t, m, young, "the youngest")
	})
}

func TestEndedSessionLeavesTombstoneOnly(t *testing.T) {
	p := &tokenEndpoint{
		respond: func(int, session.Tokens) (session.Tokens, error) { return session.Tokens{}, session.ErrRefused },
	}
	for name, end := range map[string]func(ctx context.Context, m *session.Manager, ticket session.Ticket){
		"logout": func(ctx context.Context, m *session.Manager, ticket session.Ticket) {
			findEnd(ctx, m, ticket)
		},
		"refused refresh": func(ctx context.Context, m *session.Manager, ticket session.Ticket) {
			findRefresh(ctx, m, ticket)
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			store := new(tokenstore.Memory)
			m := newManager(t, session.Config{Store: store, Refresh: p.refresh, Revoke: p.revoke})
			ticket := signInAs(t, m, "i", "alice", "s1")
			id := wantAlive(t, m, ticket, "before").ID
			end(t.Context(), m, ticket)
			if err := m.Drain(t.Context()); err != nil {
				t.Fatal(err)
			}
			_, _, found, err := store.Get(t.Context(), "tombstone:"+id)
			if err != nil {
				t.Fatal(err)
			}
			if !found {
				t.Errorf("%s: got no tombstone", name)
			}
			if n := store.Len(); n != 1 {
				t.Errorf("%s: got %d keys, want only the tombstone", name, n)
			}
			time.Sleep(12 * time.Hour) // until its cookie has expired
			// A write removes expired keys.
			if _, err := store.Create(t.Context(), "other", nil, time.Second); err != nil {
				t.Fatal(err)
			}
			if n := store.Len(); n != 1 {
				t.Errorf("%s: got %d keys after the expiry of the cookie, want 1", name, n)
			}
		})
	}
}

func TestTouchMovesSessionToNewKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(tokenstore.Memory)
		manager := func(keys ...[]byte) *session.Manager {
			return newManager(t, session.Config{Store: store, Keys: keys})
		}
		_, ticket := signIn(t, manager(keyA), tokens())
		m := manager(keyB, keyA)
		time.Sleep(time.Minute)
		s := wantAlive(t, m, ticket, "both keys")
		if err := m.Touch(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		wantAlive(t, manager(keyB), ticket, "touched, and the old key removed")
		if ended := endAll(t, manager(keyB), "https://id.example", "alice", ""); len(ended) != 1 {
			t.Errorf("EndAll: got %v, want the session that was indexed with the old key", ended)
		}
		wantNone(t, manager(keyB), ticket, "ended")
	})
}

// interposedStore runs a function before the next call of one method.
type interposedStore struct {
	*tokenstore.Memory
	method string
	call   func()
}

func (s *interposedStore) before(method string, call func()) { s.method, s.call = method, call }

func (s *interposedStore) reached(method string) {
	if s.method == method {
		s.method = ""
		s.call()
	}
}

func (s *interposedStore) Add(ctx context.Context, members map[string]string, ttl time.Duration) error {
	s.reached("Add")
	return s.Memory.Add(ctx, members, ttl)
}

func (s *interposedStore) Create(ctx context.Context, key string, value []byte, ttl time.Duration) (bool, error) {
	s.reached("Create")
	return s.Memory.Create(ctx, key, value, ttl)
}

func (s *interposedStore) Members(ctx context.Context, keys ...string) ([]string, error) {
	s.reached("Members")
	return s.Memory.Members(ctx, keys...)
}
