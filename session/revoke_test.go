package session_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

// list is Manager.List of everything.
func list(t *testing.T, m *session.Manager, subject, sid string) []session.Info {
	t.Helper()
	infos, more, err := m.List(t.Context(), "i", subject, sid, 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	if more {
		t.Error("got more sessions than 1000")
	}
	return infos
}

func idsOf(infos []session.Info) (ids []string) {
	for _, i := range infos {
		ids = append(ids, i.ID)
	}
	return ids
}

func TestListFindsByUserAndProviderSession(t *testing.T) {
	t.Parallel()
	for kind, store := range stores(t) {
		m := newManager(t, session.Config{Store: store})
		var ids []string
		for _, sid := range []string{"s1", "s2", ""} {
			ids = append(ids, wantAlive(t, m, signInAs(t, m, "i", "alice", sid), kind).ID)
			time.Sleep(2 * time.Millisecond) // their ages differ in milliseconds
		}
		bob := wantAlive(t, m, signInAs(t, m, "i", "bob", "s1"), kind).ID
		signInAs(t, m, "another issuer", "alice", "s1")
		for _, test := range []struct {
			subject, sid string
			want         []string
		}{
			{"alice", "", []string{ids[2], ids[1], ids[0]}},
			{"", "s1", []string{bob, ids[0]}},
			{"alice", "s1", []string{ids[0]}},
			{"carol", "", nil},
			{"alice\x00", "", nil},
			{"*", "", nil},
			{"alice", "s9", nil},
		} {
			if got := idsOf(list(t, m, test.subject, test.sid)); !slices.Equal(got, test.want) {
				t.Errorf("%s: sessions of %q, %q: got %v, want %v", kind, test.subject, test.sid, got, test.want)
			}
		}
	}
}

func TestListNeedsSubjectOrSID(t *testing.T) {
	t.Parallel()
	if _, _, err := newManager(t, session.Config{}).List(t.Context(), "i", "", "", 0, 10); err == nil {
		t.Error("got no error")
	}
}

func TestListReturnsPages(t *testing.T) {
	t.Parallel()
	m := newManager(t, session.Config{})
	for range 5 {
		signInAs(t, m, "i", "alice", "")
	}
	all := idsOf(list(t, m, "alice", ""))
	for _, test := range []struct {
		offset, limit int
		want          []string
		more          bool
	}{
		{0, 2, all[:2], true}, {2, 2, all[2:4], true}, {4, 2, all[4:], false}, {3, 2, all[3:], false},
		{9, 2, nil, false}, {0, 5, all, false},
		{0, 0, nil, true}, {-1, 2, all[:2], true}, {0, -1, nil, true}, {9, -1, nil, false},
	} {
		infos, more, err := m.List(t.Context(), "i", "alice", "", test.offset, test.limit)
		if err != nil {
			t.Fatal(err)
		}
		if got := idsOf(infos); !slices.Equal(got, test.want) {
			t.Errorf("offset %d, limit %d: got %v, want %v", test.offset, test.limit, got, test.want)
		}
		wantEqual(t, "more", more, test.more)
	}
}

func TestListTellsTimes(t *testing.T) {
	const idle, lifetime = 30 * time.Minute, time.Hour
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, session.Config{IdleTimeout: idle, MaxLifetime: lifetime})
		began := time.Now()
		ticket := signInAs(t, m, "i", "alice", "")
		only := func() session.Info {
			t.Helper()
			infos := list(t, m, "alice", "")
			if len(infos) != 1 {
				t.Fatalf("got %v, want one session", infos)
			}
			return infos[0]
		}
		wantTime := func(name string, got, want time.Time) {
			t.Helper()
			if d := got.Sub(want).Abs(); d > time.Millisecond {
				t.Errorf("%s: got %v, want %v", name, got, want)
			}
		}
		time.Sleep(10 * time.Minute)
		i := only()
		wantTime("created", i.CreatedAt, began)
		wantTime("last seen at the login", i.LastSeenAt, began)
		wantTime("idle end", i.IdleExpiresAt, began.Add(idle))
		wantTime("end", i.ExpiresAt, began.Add(lifetime))
		if err := m.Touch(t.Context(), wantAlive(t, m, ticket, "after 10 minutes")); err != nil {
			t.Fatal(err)
		}
		i = only()
		wantTime("last seen", i.LastSeenAt, began.Add(10*time.Minute))
		wantTime("idle end after activity", i.IdleExpiresAt, began.Add(10*time.Minute+idle))
		time.Sleep(25 * time.Minute)
		if err := m.Touch(t.Context(), wantAlive(t, m, ticket, "after 35 minutes")); err != nil {
			t.Fatal(err)
		}
		i = only()
		wantTime("idle end at the absolute end", i.IdleExpiresAt, began.Add(lifetime))
		wantTime("last seen near the absolute end", i.LastSeenAt, began.Add(35*time.Minute))
		time.Sleep(25 * time.Minute)
		if infos := list(t, m, "alice", ""); len(infos) != 0 {
			t.Errorf("after the absolute end: got %v, want none", infos)
		}
	})
}

func TestEndByIDEndsOneSession(t *testing.T) {
	t.Parallel()
	for kind, store := range stores(t) {
		m := newManager(t, session.Config{Store: store})
		ticket, other := signInAs(t, m, "i", "alice", ""), signInAs(t, m, "i", "alice", "")
		id := wantAlive(t, m, ticket, kind).ID
		for _, want := range []bool{true, false} {
			found, err := m.EndByID(t.Context(), id, session.ReasonRevoked)
			if err != nil {
				t.Fatal(err)
			}
			wantEqual(t, kind+": found", found, want)
		}
		wantNone(t, m, ticket, kind)
		wantAlive(t, m, other, kind+": the other session")
	}
}

func TestEndByIDFindsNoOtherKey(t *testing.T) {
	t.Parallel()
	store := new(tokenstore.Memory)
	m := newManager(t, session.Config{Store: store})
	other := newManager(t, session.Config{Store: store, Keys: [][]byte{keyB}})
	ticket := signInAs(t, other, "i", "alice", "")
	id := wantAlive(t, other, ticket, "before").ID
	for _, unknown := range []string{"", "x", "*", id + "x", id[:21] + "!", "../" + id, id} {
		found, err := m.EndByID(t.Context(), unknown, session.ReasonRevoked)
		if found || err != nil {
			t.Errorf("%q: got %v, %v, want false", unknown, found, err)
		}
	}
	wantAlive(t, other, ticket, "the session of another key")
}

// revocation ends a session in one of the two ways.
var revocations = map[string]func(ctx context.Context, m *session.Manager, s *session.Session) error{
	"by id": func(ctx context.Context, m *session.Manager, s *session.Session) error {
		_, err := m.EndByID(ctx, s.ID, session.ReasonRevoked)
		return err
	},
	"by user": func(ctx context.Context, m *session.Manager, s *session.Session) error {
		_, err := m.EndAll(ctx, s.Issuer, s.Subject, "", session.ReasonRevoked)
		return err
	},
}

// A store that fails when the cookie returns does not keep the tokens valid.
func TestRevocationIsRetriedWhenCookieReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, store := new(tokenEndpoint), &partlyDown{Memory: new(tokenstore.Memory)}
		m := newManager(t, session.Config{Store: store, Refresh: p.refresh, Revoke: p.revoke})
		s, ticket := signIn(t, m, tokens())
		if _, err := m.EndByID(t.Context(), s.ID, session.ReasonRevoked); err != nil {
			t.Fatal(err)
		}
		for _, store.down = range []string{"revoked:", ""} {
			wantNone(t, m, ticket, "revoked")
			synctest.Wait()
		}
		if want := []string{"refresh-1"}; !slices.Equal(p.revoked, want) {
			t.Errorf("after a retry: got %v revoked, want %v", p.revoked, want)
		}
	})
}

func TestRevokedTokensAreRevokedWhenCookieReturns(t *testing.T) {
	for way, revoke := range revocations {
		synctest.Test(t, func(t *testing.T) {
			store, p := new(tokenstore.Memory), new(tokenEndpoint)
			m := newManager(t, session.Config{Store: store, Refresh: p.refresh, Revoke: p.revoke})
			other := newManager(t, session.Config{Store: store, Refresh: p.refresh, Revoke: p.revoke})
			s, ticket := signIn(t, m, tokens())
			if err := revoke(t.Context(), m, s); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if len(p.revoked) > 0 {
				t.Errorf("%s: without the cookie: got %v revoked, want nothing", way, p.revoked)
			}
			for range 2 {
				wantNone(t, other, ticket, way)
				synctest.Wait()
				wantNone(t, m, ticket, way)
				synctest.Wait()
			}
			if want := []string{"refresh-1"}; !slices.Equal(p.revoked, want) {
				t.Errorf("%s: with the cookie: got %v revoked, want %v", way, p.revoked, want)
			}
		})
	}
}

// An entry of the cache that a request would read again is used all the same.
func TestRevokedTokensOfAgingSessionAreRevoked(t *testing.T) {
	for name, end := range map[string]func(a, b *session.Manager) *session.Manager{
		"this replica":    func(a, _ *session.Manager) *session.Manager { return a },
		"another replica": func(_, b *session.Manager) *session.Manager { return b },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var store tokenstore.Memory
				p := new(tokenEndpoint)
				a := newManager(t, session.Config{Store: &store, Revoke: p.revoke})
				b := newManager(t, session.Config{Store: &store, Revoke: p.revoke})
				watch(t, a)
				watch(t, b)
				synctest.Wait()
				s, ticket := signIn(t, a, tokens())
				wantAlive(t, a, ticket, name)
				time.Sleep(4500 * time.Millisecond)
				if _, err := end(a, b).EndByID(t.Context(), s.ID, session.ReasonRevoked); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if got := p.revoked; len(got) == 0 || got[0] != "refresh-1" {
					t.Errorf("got %q revoked, want refresh-1", got)
				}
				wantEqual(t, "reads for requests", a.Stats().CacheHits+a.Stats().CacheMisses, 1)
			})
		})
	}
}

func TestRevokedTokensOfCachedSessionAreRevoked(t *testing.T) {
	for way, revoke := range revocations {
		synctest.Test(t, func(t *testing.T) {
			p := new(tokenEndpoint)
			m := newManager(t, session.Config{Refresh: p.refresh, Revoke: p.revoke})
			watch(t, m)
			synctest.Wait() // until the cache is valid
			_, ticket := signIn(t, m, tokens())
			s := wantAlive(t, m, ticket, "which puts it into the cache")
			if err := revoke(t.Context(), m, s); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if want := []string{"refresh-1"}; !slices.Equal(p.revoked, want) {
				t.Errorf("%s: got %v revoked, want %v", way, p.revoked, want)
			}
		})
	}
}

func TestRevokedTokensAreRevokedByReplicaThatUsesThem(t *testing.T) {
	for way, revoke := range revocations {
		synctest.Test(t, func(t *testing.T) {
			store, p := new(tokenstore.Memory), new(tokenEndpoint)
			m := newManager(t, session.Config{Store: store, Refresh: p.refresh, Revoke: p.revoke})
			other := newManager(t, session.Config{Store: store, Refresh: p.refresh, Revoke: p.revoke})
			watch(t, m)
			watch(t, other)
			synctest.Wait() // until the caches are valid
			s, ticket := signIn(t, m, tokens())
			wantAlive(t, other, ticket, "which puts it into the cache of the other replica")
			if err := revoke(t.Context(), m, s); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if want := []string{"refresh-1"}; !slices.Equal(p.revoked, want) {
				t.Errorf("%s: got %v revoked, want %v", way, p.revoked, want)
			}
		})
	}
}

func TestFailedRevocationIsRetriedWithNextCookie(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failing, calls := true, 0
		m := newManager(t, session.Config{Revoke: func(context.Context, session.Tokens) error {
			calls++
			if failing {
				return errors.New("the provider is down")
			}
			return nil
		}})
		s, ticket := signIn(t, m, tokens())
		if _, err := m.EndByID(t.Context(), s.ID, session.ReasonRevoked); err != nil {
			t.Fatal(err)
		}
		for _, fails := range []bool{true, false, false} {
			failing = fails
			wantNone(t, m, ticket, "after the end")
			synctest.Wait()
		}
		wantEqual(t, "revocations", calls, 2)
	})
}

// Sessions that end in another way keep nothing in the store.
func TestOtherEndsKeepNoTokens(t *testing.T) {
	t.Parallel()
	store, p := new(tokenstore.Memory), new(tokenEndpoint)
	m := newManager(t, session.Config{Store: store, Revoke: p.revoke})
	s, ticket := signIn(t, m, tokens())
	if _, err := m.EndByID(t.Context(), s.ID, session.ReasonBackchannel); err != nil {
		t.Fatal(err)
	}
	wantNone(t, m, ticket, "after the end")
	if err := m.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, _, found, _ := store.Get(t.Context(), "revoked:"+s.ID); found {
		t.Error("the record was kept")
	}
	if len(p.revoked) > 0 {
		t.Errorf("got %v revoked, want nothing", p.revoked)
	}
}
