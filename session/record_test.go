package session_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

// A member that a later release added is still in a record that this release
// has written again.
func TestRecordKeepsUnknownMembers(t *testing.T) {
	t.Parallel()
	store := new(tokenstore.Memory)
	p := new(tokenEndpoint)
	m := newManager(t, session.Config{Store: store, App: here, Refresh: p.refresh, Revoke: p.revoke})
	started, ticket := signIn(t, m, tokens())
	more := json.RawMessage(`{"nested":[1,"two",null]}`)
	if err := m.AddMember(t.Context(), started, "later", more); err != nil {
		t.Fatal(err)
	}
	s, err := findRefresh(t.Context(), m, ticket)
	if err != nil {
		t.Fatal(err)
	}
	if s.Tokens.Access == started.Tokens.Access {
		t.Error("access token: got the old one")
	}
	wantEqual(t, "Subject", s.Subject, "alice")
	wantEqual(t, "Claims", string(s.Claims), `{"sub":"alice"}`)
	record, err := m.RecordJSON(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]json.RawMessage
	if err := json.Unmarshal(record, &got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got["later"], more) {
		t.Errorf("record: got later: %s, want %s", got["later"], more)
	}
	if _, ok := got["u"]; !ok {
		t.Errorf("record: got %s, want a member u", record)
	}
}

// A change of the layout is a new version.
func TestRecordBeginsWithItsVersion(t *testing.T) {
	t.Parallel()
	store := new(tokenstore.Memory)
	m := newManager(t, session.Config{Store: store, App: here})
	s, ticket := signIn(t, m, tokens())
	value, _, _, err := store.Get(t.Context(), "session:"+s.ID)
	if err != nil {
		t.Fatal(err)
	}
	if len(value) < 17 {
		t.Fatalf("record: got %d bytes, want 17 or more", len(value))
	}
	if value[0] != 3 {
		t.Fatalf("record: got version %d, want 3", value[0])
	}
	for i := range 5 { // version and key are authenticated
		changed := bytes.Clone(value)
		changed[i] ^= 1
		if replaced, err := store.Replace(t.Context(), "session:"+s.ID, value, changed); !replaced || err != nil {
			t.Fatal(replaced, err)
		}
		wantNone(t, newManager(t, session.Config{Store: store, App: here}), ticket, "with a changed octet")
		if replaced, err := store.Replace(t.Context(), "session:"+s.ID, changed, value); !replaced || err != nil {
			t.Fatal(replaced, err)
		}
	}
	wantAlive(t, newManager(t, session.Config{Store: store, App: here}), ticket, "unchanged")
}

func TestInvalidKeysAreErrors(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		keys [][]byte
		want string
	}{
		"zero":        {[][]byte{make([]byte, 32)}, "Keys[0]: is 32 zero bytes"},
		"second zero": {[][]byte{keyA, make([]byte, 32)}, "Keys[1]: is 32 zero bytes"},
		"twice":       {[][]byte{keyA, keyB, keyA}, "Keys[2]: is the same as Keys[0]"},
		"short":       {[][]byte{keyA[:31]}, "Keys[0]: has 31 bytes"},
	} {
		_, err := session.NewManager(session.Config{
			Store: new(tokenstore.Memory), Refresh: new(tokenEndpoint).refresh, Keys: test.keys,
		})
		if err == nil || !bytes.Contains([]byte(err.Error()), []byte(test.want)) {
			t.Errorf("%s: got %v, want %s", name, err, test.want)
		}
	}
}

// A session ends at the earliest of MaxLifetime, the provider's end and the
// expiry of the refresh token.
func TestProviderCapsSession(t *testing.T) {
	t.Parallel()
	now := time.Now().Truncate(time.Millisecond)
	in := func(d time.Duration) time.Time { return now.Add(d) }
	for name, test := range map[string]struct {
		provider, refresh time.Time
		next              []session.RefreshResult // of each refresh
		want              []time.Time             // the end after the login, and after each refresh
	}{
		"nothing":              {want: []time.Time{in(time.Hour)}},
		"session_expiry":       {provider: in(10 * time.Minute), want: []time.Time{in(10 * time.Minute)}},
		"later session_expiry": {provider: in(10 * time.Hour), want: []time.Time{in(time.Hour)}},
		"refresh token":        {refresh: in(5 * time.Minute), want: []time.Time{in(5 * time.Minute)}},
		"later refresh token":  {refresh: in(5 * time.Hour), want: []time.Time{in(time.Hour)}},
		"both": {
			provider: in(10 * time.Minute), refresh: in(5 * time.Minute),
			want: []time.Time{in(5 * time.Minute)},
		},
		"new refresh tokens": {
			refresh: in(5 * time.Minute),
			next: []session.RefreshResult{
				refreshed("r2", in(10*time.Minute)), refreshed("r3", in(5*time.Hour)),
				refreshed("r4", in(7*time.Minute)),
			},
			want: []time.Time{in(5 * time.Minute), in(10 * time.Minute), in(time.Hour), in(7 * time.Minute)},
		},
		"same refresh token, another expiry": {
			refresh: in(5 * time.Minute), next: []session.RefreshResult{refreshed("", in(10*time.Minute))},
			want: []time.Time{in(5 * time.Minute), in(10 * time.Minute)},
		},
		"same refresh token, no expiry": {
			refresh: in(5 * time.Minute), next: []session.RefreshResult{refreshed("", time.Time{})},
			want: []time.Time{in(5 * time.Minute), in(5 * time.Minute)},
		},
		"new refresh token, no expiry": {
			refresh: in(5 * time.Minute), next: []session.RefreshResult{refreshed("r2", time.Time{})},
			want: []time.Time{in(5 * time.Minute), in(time.Hour)},
		},
		"session_expiry at a refresh": {
			next: []session.RefreshResult{{Tokens: tokens(), ExpiresAt: in(9 * time.Minute)}},
			want: []time.Time{in(time.Hour), in(9 * time.Minute)},
		},
		"later session_expiry at a refresh": {
			provider: in(9 * time.Minute),
			next:     []session.RefreshResult{{Tokens: tokens(), ExpiresAt: in(20 * time.Minute)}},
			want:     []time.Time{in(9 * time.Minute), in(9 * time.Minute)},
		},
	} {
		n := 0
		p := tokenEndpointFunc(func() session.RefreshResult { n++; return test.next[n-1] })
		store := new(tokenstore.Memory)
		m := newManager(t, session.Config{Store: store, MaxLifetime: time.Hour, IdleTimeout: 2 * time.Hour, Refresh: p})
		tk := tokens()
		tk.RefreshExpiry = test.refresh
		ticket := start(t, m, session.New{Issuer: "i", Subject: "alice", Tokens: tk, ExpiresAt: test.provider})
		for i, want := range test.want {
			if i > 0 {
				if _, err := findRefresh(t.Context(), m, ticket); err != nil {
					t.Fatalf("%s: refresh: %v", name, err)
				}
			}
			s := wantAlive(
				t,
				newManager(t, session.Config{Store: store, MaxLifetime: 5 * time.Hour, IdleTimeout: 2 * time.Hour}),
				ticket, name,
			)
			if s.ExpiresAt.Sub(want).Abs() > 10*time.Second {
				t.Errorf("%s, ExpiresAt after %d refreshes: got +%v, want +%v",
					name, i, s.ExpiresAt.Sub(now), want.Sub(now))
			}
			if s.IdleExpiresAt.After(s.ExpiresAt) {
				t.Errorf("%s, IdleExpiresAt after %d refreshes: got +%v, want at most +%v",
					name, i, s.IdleExpiresAt.Sub(now), s.ExpiresAt.Sub(now))
			}
		}
	}
}

// refreshed returns a result with a refresh token that expires at end.
func refreshed(token session.Secret, end time.Time) session.RefreshResult {
	tk := tokens()
	tk.Refresh, tk.RefreshExpiry = token, end
	return session.RefreshResult{Tokens: tk}
}

func tokenEndpointFunc(next func() session.RefreshResult) func(
	context.Context, *session.Session, string,
) (session.RefreshResult, error) {
	return func(context.Context, *session.Session, string) (session.RefreshResult, error) { return next(), nil }
}

// start starts a session and returns its ticket.
func start(t *testing.T, m *session.Manager, s session.New) session.Ticket {
	t.Helper()
	started, err := m.Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return started.Ticket()
}

func TestSessionEndsWhenProviderEndsIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, session.Config{IdleTimeout: 30 * time.Minute})
		watch(t, m)
		tk := tokens()
		tk.RefreshExpiry = time.Now().Add(10 * time.Minute)
		ticket := start(t, m, session.New{Tokens: tk})
		other := start(t, m, session.New{Tokens: tokens(), ExpiresAt: time.Now().Add(20 * time.Minute)})
		time.Sleep(10*time.Minute - time.Second)
		wantAlive(t, m, ticket, "before the expiry of its refresh token")
		time.Sleep(time.Second)
		wantNone(t, m, ticket, "after the expiry of its refresh token")
		m.Touch(t.Context(), wantAlive(t, m, other, "the other session"))
		time.Sleep(10*time.Minute - time.Second)
		wantAlive(t, m, other, "before the end that the provider has set")
		time.Sleep(time.Second)
		wantNone(t, m, other, "after the end that the provider has set")
	})
}

// A refresh moves the absolute end of the session, and not its idle timeout.
func TestMovedEndKeepsIdleTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, session.Config{
			IdleTimeout: 30 * time.Minute,
			Refresh: tokenEndpointFunc(func() session.RefreshResult {
				return refreshed("r2", time.Now().Add(time.Hour))
			}),
		})
		tk := tokens()
		tk.RefreshExpiry = time.Now().Add(10 * time.Minute)
		ticket := start(t, m, session.New{Tokens: tk})
		time.Sleep(5 * time.Minute)
		if _, err := findRefresh(t.Context(), m, ticket); err != nil {
			t.Fatal(err)
		}
		time.Sleep(25*time.Minute - time.Second)
		wantAlive(t, m, ticket, "within the idle timeout")
		time.Sleep(time.Second)
		wantNone(t, m, ticket, "after the idle timeout")
	})
}

func TestExpiredLoginStartsNoSession(t *testing.T) {
	t.Parallel()
	past := time.Now().Add(-time.Minute)
	spent := tokens()
	spent.RefreshExpiry = past
	m := newManager(t, session.Config{})
	for name, s := range map[string]session.New{
		"session_expiry": {Tokens: tokens(), ExpiresAt: past}, "refresh token": {Tokens: spent},
	} {
		if _, err := m.Start(t.Context(), s); !errors.Is(err, session.ErrEnded) {
			t.Errorf("%s in the past: got %v, want ErrEnded", name, err)
		}
	}
}
