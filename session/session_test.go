package session_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/configerr"
	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

var (
	keyA = bytes.Repeat([]byte("a"), 32)
	keyB = bytes.Repeat([]byte("b"), 32)
)

// newManager returns a Manager for cfg with defaults for tests.
func newManager(t *testing.T, cfg session.Config) *session.Manager {
	t.Helper()
	if cfg.Store == nil {
		cfg.Store = new(tokenstore.Memory)
	}
	if cfg.Keys == nil {
		cfg.Keys = [][]byte{keyA}
	}
	if cfg.Refresh == nil {
		cfg.Refresh = func(context.Context, *session.Session, string) (session.RefreshResult, error) {
			t.Error("unexpected refresh")
			return session.RefreshResult{}, errors.New("unexpected")
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	m, err := session.NewManager(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// tokens returns tokens that expire in an hour.
func tokens() session.Tokens {
	now := time.Now()
	return session.Tokens{
		Access: "access-1", Refresh: "refresh-1", ID: "idtoken-1", Scope: "openid api", Issued: now,
		Expiry: now.Add(time.Hour),
	}
}

// signIn starts a session of alice and returns it with its ticket.
func signIn(t *testing.T, m *session.Manager, tk session.Tokens) (*session.Session, session.Ticket) {
	t.Helper()
	s, err := m.Start(t.Context(), session.New{
		Issuer: "https://id.example", Subject: "alice", SID: "sid-1",
		Claims: json.RawMessage(`{"sub":"alice"}`), Tokens: tk,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s, s.Ticket()
}

// findFresh is Find and Fresh.
func findFresh(
	ctx context.Context, m *session.Manager, ticket session.Ticket, target string,
) (*session.Session, error) {
	s, err := m.Find(ctx, ticket)
	if err != nil {
		return nil, err
	}
	return m.Fresh(ctx, s, target)
}

// findRefresh is Find and Refresh.
func findRefresh(ctx context.Context, m *session.Manager, ticket session.Ticket) (*session.Session, error) {
	s, err := m.Find(ctx, ticket)
	if err != nil {
		return nil, err
	}
	return m.Refresh(ctx, s)
}

// findEnd is Find and End.
func findEnd(ctx context.Context, m *session.Manager, ticket session.Ticket) error {
	s, err := m.Find(ctx, ticket)
	if err != nil {
		return err
	}
	return m.End(ctx, s, session.ReasonLogout)
}

// wantEqual checks a value with a name.
func wantEqual[T comparable](t *testing.T, name string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", name, got, want)
	}
}

func wantNone(t *testing.T, m *session.Manager, ticket session.Ticket, when string) {
	t.Helper()
	if s, err := m.Find(t.Context(), ticket); !errors.Is(err, session.ErrNone) {
		t.Errorf("%s: got %v, %v, want ErrNone", when, s, err)
	}
}

func wantAlive(t *testing.T, m *session.Manager, ticket session.Ticket, when string) *session.Session {
	t.Helper()
	s, err := m.Find(t.Context(), ticket)
	if err != nil {
		t.Fatalf("%s: got %v, want the session", when, err)
	}
	return s
}

func TestFindReturnsStartedSession(t *testing.T) {
	m := newManager(t, session.Config{})
	started, ticket := signIn(t, m, tokens())
	got := wantAlive(t, m, ticket, "after Start")
	wantEqual(t, "ID", got.ID, started.ID)
	wantEqual(t, "Subject", got.Subject, "alice")
	wantEqual(t, "SID", got.SID, "sid-1")
	wantEqual(t, "Access", got.Tokens.Access.Reveal(), "access-1")
	wantEqual(t, "Claims", string(got.Claims), `{"sub":"alice"}`)
	wantNone(t, m, session.Ticket{}, "without a cookie")
}

func TestLoginHasNewIDAndEndsReplacedSession(t *testing.T) {
	m := newManager(t, session.Config{})
	before, old := signIn(t, m, tokens())
	after, err := m.Start(t.Context(), session.New{
		Subject: "alice", Tokens: tokens(), Replaces: []session.Ticket{before.Ticket()},
	})
	if err != nil {
		t.Fatal(err)
	}
	if after.ID == before.ID {
		t.Error("ID after the login: got that of the session before")
	}
	wantNone(t, m, old, "the cookie from before the login")
	wantAlive(t, m, after.Ticket(), "the cookie of the login")
}

func TestEndIsFinal(t *testing.T) {
	m := newManager(t, session.Config{})
	_, ticket := signIn(t, m, tokens())
	s := wantAlive(t, m, ticket, "before End")
	if err := m.End(t.Context(), s, session.ReasonLogout); err != nil {
		t.Fatal(err)
	}
	wantNone(t, m, ticket, "after End")
	if err := m.End(t.Context(), s, session.ReasonLogout); err != nil {
		t.Errorf("End again: got %v, want nil", err)
	}
}

func TestTouchMovesIdleTimeoutNotMaxLifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, session.Config{IdleTimeout: 10 * time.Minute, MaxLifetime: time.Hour})
		tk := tokens()
		tk.Expiry = time.Now().Add(24 * time.Hour)
		started, ticket := signIn(t, m, tk)
		if got, want := started.ExpiresAt.Sub(started.CreatedAt), time.Hour; got != want {
			t.Errorf("lifetime: got %v, want %v", got, want)
		}
		for range 6 {
			time.Sleep(9 * time.Minute)
			s := wantAlive(t, m, ticket, "within the idle timeout")
			if err := m.Touch(t.Context(), s); err != nil {
				t.Fatal(err)
			}
		}
		s := wantAlive(t, m, ticket, "after 54 minutes")
		if got := time.Until(s.IdleExpiresAt).Round(time.Second); got != 6*time.Minute {
			t.Errorf("idle timeout: got %v, want 6m, the absolute end", got)
		}
		time.Sleep(6 * time.Minute)
		wantNone(t, m, ticket, "after MaxLifetime, while active")

		_, ticket = signIn(t, m, tk)
		time.Sleep(5 * time.Minute)
		wantAlive(t, m, ticket, "Find does not count as activity")
		time.Sleep(5 * time.Minute)
		wantNone(t, m, ticket, "after IdleTimeout")
	})
}

// The operator has changed the idle timeout. The next activity applies it.
func TestTouchAppliesChangedIdleTimeout(t *testing.T) {
	for _, test := range []struct{ before, after time.Duration }{
		{8 * time.Hour, 30 * time.Minute}, {30 * time.Minute, 8 * time.Hour},
	} {
		synctest.Test(t, func(t *testing.T) {
			store := &countingStore{Store: new(tokenstore.Memory), touches: make(map[string]int)}
			_, ticket := signIn(t, newManager(t, session.Config{Store: store, IdleTimeout: test.before}), tokens())
			m := newManager(t, session.Config{Store: store, IdleTimeout: test.after})
			time.Sleep(time.Minute)
			for range 100 {
				if err := m.Touch(t.Context(), wantAlive(t, m, ticket, "after a minute")); err != nil {
					t.Fatal(err)
				}
			}
			wantEqual(t, "writes", store.touches["session"], 1)
			time.Sleep(test.after - time.Minute)
			wantAlive(t, m, ticket, "before the idle timeout")
			time.Sleep(2 * time.Minute)
			wantNone(t, m, ticket, "after the idle timeout")
		})
	}
}

// Replicas disagree for as long as a change of the configuration takes. They do
// not write with every request.
func TestReplicasMayDifferInIdleTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &countingStore{Store: new(tokenstore.Memory), touches: make(map[string]int)}
		long := newManager(t, session.Config{Store: store, IdleTimeout: 8 * time.Hour})
		short := newManager(t, session.Config{Store: store, IdleTimeout: 30 * time.Minute})
		_, ticket := signIn(t, long, tokens())
		for range 100 {
			for _, m := range []*session.Manager{long, short} {
				if err := m.Touch(t.Context(), wantAlive(t, m, ticket, "in use")); err != nil {
					t.Fatal(err)
				}
			}
		}
		if n := store.touches["session"]; n > 3 {
			t.Errorf("got %d writes, want 3 at most", n)
		}
	})
}

func TestMaxLifetimeDoesNotDependOnStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, session.Config{
			Store: eternalStore{new(tokenstore.Memory)}, IdleTimeout: time.Hour, MaxLifetime: time.Hour,
		})
		tk := tokens()
		tk.Expiry = time.Now().Add(24 * time.Hour)
		_, ticket := signIn(t, m, tk)
		time.Sleep(time.Hour)
		wantNone(t, m, ticket, "after MaxLifetime, with a record that did not expire")
	})
}

type eternalStore struct{ session.Store }

func (s eternalStore) Create(ctx context.Context, key string, value []byte, _ time.Duration) (bool, error) {
	return s.Store.Create(ctx, key, value, 1000*time.Hour)
}

func TestTouchRarelyWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &countingStore{Store: new(tokenstore.Memory), touches: make(map[string]int)}
		m := newManager(t, session.Config{Store: store, IdleTimeout: time.Hour, MaxLifetime: 12 * time.Hour})
		tk := tokens()
		tk.Expiry = time.Now().Add(24 * time.Hour)
		_, ticket := signIn(t, m, tk)
		for range 3600 {
			time.Sleep(time.Second)
			if err := m.Touch(t.Context(), wantAlive(t, m, ticket, "active")); err != nil {
				t.Fatal(err)
			}
		}
		for kind, n := range store.touches {
			if n > 60 {
				t.Errorf("%s: got %d writes for 3600 calls in an hour, want at most 60", kind, n)
			}
		}
	})
}

type countingStore struct {
	session.Store
	touches map[string]int // :: session or info → how often
}

func (s *countingStore) Touch(ctx context.Context, key string, ttl time.Duration) (bool, error) {
	kind, _, _ := strings.Cut(key, ":")
	s.touches[kind]++
	return s.Store.Touch(ctx, key, ttl)
}

func TestSessionWithoutRefreshTokenEndsWithAccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, session.Config{})
		tk := tokens()
		tk.Refresh, tk.Expiry = "", time.Now().Add(5*time.Minute)
		_, ticket := signIn(t, m, tk)
		time.Sleep(5*time.Minute - time.Second)
		wantAlive(t, m, ticket, "before the token expires")
		time.Sleep(time.Second)
		wantNone(t, m, ticket, "after the token has expired")
	})
}

func TestKeysRotateWithoutLogout(t *testing.T) {
	store := new(tokenstore.Memory)
	manager := func(keys ...[]byte) *session.Manager {
		return newManager(t, session.Config{Store: store, Keys: keys})
	}
	_, old := signIn(t, manager(keyA), tokens())
	wantAlive(t, manager(keyB, keyA), old, "another primary key")
	_, young := signIn(t, manager(keyB, keyA), tokens())
	wantAlive(t, manager(keyB), young, "the old key removed, sealed with the new one")
	wantNone(t, manager(keyB), old, "the old key removed, sealed with it")
}

func TestStoreDumpOpensNothing(t *testing.T) {
	store := &dumpStore{Store: new(tokenstore.Memory), dump: make(map[string][]byte)}
	m := newManager(t, session.Config{Store: store})
	s, ticket := signIn(t, m, tokens())
	_, ticket2 := signIn(t, m, tokens())
	w := httptest.NewRecorder()
	session.NewCookie(m.Keyring(), session.CookieConfig{}).Write(w, s)
	cookie := w.Result().Cookies()[0].Value
	for key, value := range store.dump {
		for _, secret := range []string{"access-1", "refresh-1", "idtoken-1", "alice", "sid-1"} {
			if strings.Contains(key, secret) || bytes.Contains(value, []byte(secret)) {
				t.Errorf("record %s: contains %s", key, secret)
			}
		}
		if _, id, _ := strings.Cut(key, ":"); strings.Contains(cookie, id) {
			t.Error("cookie: contains the key of the record")
		}
	}

	// A record does not open under the key of another session.
	var keys []string
	for key := range store.dump {
		if strings.HasPrefix(key, "session:") {
			keys = append(keys, key)
		}
	}
	store.swap = map[string]string{keys[0]: keys[1], keys[1]: keys[0]}
	wantNone(t, m, ticket, "with the records swapped")
	wantNone(t, m, ticket2, "with the records swapped")
}

func TestRecordsAreUnique(t *testing.T) {
	store := &dumpStore{Store: new(tokenstore.Memory), dump: make(map[string][]byte)}
	m := newManager(t, session.Config{Store: store})
	nonces := make(map[string]bool)
	const n = 2000
	for range n {
		signIn(t, m, tokens())
	}
	for _, value := range store.dump {
		nonces[string(value[5:17])] = true
	}
	if len(store.dump) != 2*n || len(nonces) != 2*n { // each session has its record and its info
		t.Errorf("got %d records with %d nonces, want %d of each", len(store.dump), len(nonces), 2*n)
	}
}

// dumpStore records what was written. It can swap records, as a client with a
// bug does.
type dumpStore struct {
	session.Store
	dump map[string][]byte
	swap map[string]string
}

func (s *dumpStore) Create(ctx context.Context, key string, value []byte, ttl time.Duration) (bool, error) {
	s.dump[key] = value
	return s.Store.Create(ctx, key, value, ttl)
}

func (s *dumpStore) Get(ctx context.Context, key string) ([]byte, time.Duration, bool, error) {
	if other, ok := s.swap[key]; ok {
		key = other
	}
	return s.Store.Get(ctx, key)
}

func TestStoreOutageEndsNoSession(t *testing.T) {
	store := &brokenStore{Store: new(tokenstore.Memory)}
	m := newManager(t, session.Config{Store: store})
	s, ticket := signIn(t, m, tokens())
	store.fail(errors.New("connection refused"), nil)
	for name, call := range map[string]func() error{
		"Find":  func() error { _, err := m.Find(t.Context(), ticket); return err },
		"Fresh": func() error { _, err := findFresh(t.Context(), m, ticket, ""); return err },
		"End":   func() error { return m.End(t.Context(), s, session.ReasonLogout) },
		"Start": func() error {
			_, err := m.Start(t.Context(), session.New{Tokens: tokens(), Replaces: []session.Ticket{s.Ticket()}})
			return err
		},
	} {
		err := call()
		if !errors.Is(err, session.ErrStore) {
			t.Errorf("%s: got %v, want ErrStore", name, err)
		}
		if errors.Is(err, session.ErrNone) {
			t.Errorf("%s: got %v, want no ErrNone", name, err)
		}
	}
	store.fail(nil, nil)
	wantAlive(t, m, ticket, "after the outage")
}

// brokenStore fails with the errors that fail sets.
type brokenStore struct {
	session.Store
	mu         sync.Mutex
	err        error // of every method
	replaceErr error // of Replace
}

func (s *brokenStore) fail(all, replace error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err, s.replaceErr = all, replace
}

func (s *brokenStore) errs() (all, replace error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err, errors.Join(s.err, s.replaceErr)
}

func (s *brokenStore) Get(ctx context.Context, key string) ([]byte, time.Duration, bool, error) {
	if err, _ := s.errs(); err != nil {
		return nil, 0, false, err
	}
	return s.Store.Get(ctx, key)
}

func (s *brokenStore) Create(ctx context.Context, key string, value []byte, ttl time.Duration) (bool, error) {
	if err, _ := s.errs(); err != nil {
		return false, err
	}
	return s.Store.Create(ctx, key, value, ttl)
}

func (s *brokenStore) Delete(ctx context.Context, keys ...string) error {
	if err, _ := s.errs(); err != nil {
		return err
	}
	return s.Store.Delete(ctx, keys...)
}

func (s *brokenStore) Replace(ctx context.Context, key string, old, value []byte) (bool, error) {
	if _, err := s.errs(); err != nil {
		return false, err
	}
	return s.Store.Replace(ctx, key, old, value)
}

func TestNewManagerReportsAllMistakes(t *testing.T) {
	_, err := session.NewManager(session.Config{
		Keys: [][]byte{keyA, []byte("short")}, IdleTimeout: -1, MaxLifetime: time.Millisecond,
	})
	var fields []string
	for _, e := range configerr.All(err) {
		fields = append(fields, e.(*session.ConfigError).Key)
	}
	slices.Sort(fields)
	if want := []string{"IdleTimeout", "Keys[1]", "MaxLifetime", "Refresh", "Store"}; !slices.Equal(fields, want) {
		t.Errorf("got mistakes in %v, want %v", fields, want)
	}
}

// A test of a handler makes a Session of its own.
func TestSessionOfNoManager(t *testing.T) {
	t.Parallel()
	s := &session.Session{Claims: json.RawMessage(`{"sub":"alice"}`), Tokens: session.Tokens{Access: "a"}}
	wantEqual(t, "Claim", s.Claim("sub"), any("alice"))
	wantEqual(t, "Authorization", strings.Join(s.Authorization(""), ","), "Bearer a")
	wantEqual(t, "Key", s.Key(), nil)
	var zero session.Session
	wantEqual(t, "Claim of the zero Session", zero.Claim("sub"), nil)
	m := newManager(t, session.Config{})
	if err := m.Touch(t.Context(), &zero); !errors.Is(err, session.ErrNone) {
		t.Errorf("Touch: got %v, want ErrNone", err)
	}
	if err := m.End(t.Context(), &zero, session.ReasonLogout); err != nil {
		t.Errorf("End: %v", err)
	}
	m.OnEnd(&zero, func() {})()
}

func TestSecretsAreNeverPrinted(t *testing.T) {
	m := newManager(t, session.Config{})
	s, _ := signIn(t, m, tokens())
	var out bytes.Buffer
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x", "%X", "%t", "%c", "%U", "%e"} {
		fmt.Fprintf(&out, format+"\n", s)
		fmt.Fprintf(&out, format+"\n", *s)
		fmt.Fprintf(&out, format+"\n", s.Tokens)
		fmt.Fprintf(&out, format+"\n", s.Tokens.Access)
		fmt.Fprintf(&out, format+"\n", []session.Secret{s.Tokens.Access})
		fmt.Fprintf(&out, format+"\n", map[session.Secret]session.Secret{s.Tokens.Access: s.Tokens.Refresh})
	}
	fmt.Fprintln(&out, s, s.Tokens, s.Tokens.Access, errors.New("x"), fmt.Errorf("%w %v", io.EOF, s.Tokens.Refresh))
	for _, log := range []*slog.Logger{
		slog.New(slog.NewTextHandler(&out, nil)), slog.New(slog.NewJSONHandler(&out, nil)),
	} {
		log.Info("x", "session", s, "value", *s, "tokens", s.Tokens, "token", s.Tokens.Access,
			slog.Group("g", "t", s.Tokens.ID))
	}
	json.NewEncoder(&out).Encode(s)
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		fmt.Fprintf(&out, format+"\n", s.Ticket())
	}
	cookie := fmt.Sprint(m.TicketBytes(s))
	if strings.Contains(out.String(), strings.Trim(cookie, "[]")) {
		t.Error("printed: the data key")
	}
	for _, token := range []session.Secret{s.Tokens.Access, s.Tokens.Refresh, s.Tokens.ID} {
		raw := token.Reveal()
		for _, form := range []string{raw, fmt.Sprintf("%x", raw), fmt.Sprintf("%X", raw), fmt.Sprint([]byte(raw))} {
			if strings.Contains(out.String(), form) {
				t.Errorf("printed: %s", raw)
			}
		}
	}
}
