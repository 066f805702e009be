package bff_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/session"
)

// readOnlyStore is a store that fails, or in which only reads and leases
// succeed, such as a file on a full disk.
type readOnlyStore struct {
	session.Store
	down, full atomic.Bool
}

// wrap has an app use s in front of its store.
func (s *readOnlyStore) wrap(_ *app, cfg *bff.Config) {
	s.Store, cfg.Sessions.Store = cfg.Sessions.Store, s
}

var errFull = errors.New("OOM command not allowed")

func (s *readOnlyStore) Get(ctx context.Context, key string) ([]byte, time.Duration, bool, error) {
	if s.down.Load() {
		return nil, 0, false, errors.New("connection refused")
	}
	return s.Store.Get(ctx, key)
}

func (s *readOnlyStore) Create(ctx context.Context, key string, value []byte, ttl time.Duration) (bool, error) {
	if s.down.Load() || s.full.Load() {
		return false, errFull
	}
	return s.Store.Create(ctx, key, value, ttl)
}

func (s *readOnlyStore) Acquire(ctx context.Context, key, owner string, ttl time.Duration) (bool, error) {
	if s.down.Load() {
		return false, errFull
	}
	return s.Store.Acquire(ctx, key, owner, ttl)
}

func TestStoreOutageIsLoggedOnce(t *testing.T) {
	t.Parallel()
	store := new(readOnlyStore)
	a := newApp(t, store.wrap)
	count := func(msg string) int { return len(a.logs.lines(t, msg)) }
	down := func() int { return count("store unavailable; sessions are kept") }
	b := a.signedIn()
	store.down.Store(true)
	for range 20 {
		b.Fetch("GET", "/bff/session")
	}
	if got := down(); got != 1 {
		t.Errorf("after 20 requests: got %d lines, want 1", got)
	}
	if err := a.logs.lines(t, "store unavailable; sessions are kept")[0]["err"]; err != "connection refused" {
		t.Errorf("err: got %v, want connection refused", err)
	}
	store.down.Store(false)
	waitFor(t, "the end is logged", func() bool { return count("store recovered") == 1 })
	after, _ := a.logs.lines(t, "store recovered")[0]["after"].(string)
	if d, err := time.ParseDuration(after); err != nil || d <= 0 {
		t.Errorf("after: got %q, want a duration", after)
	}

	// Reads do not end an outage of writes.
	store.full.Store(true)
	a.browser().SignIn("bob", "")
	reads := time.Now().Add(4 * time.Second)
	for time.Now().Before(reads) {
		b.Fetch("GET", "/bff/session")
		time.Sleep(20 * time.Millisecond)
	}
	if text := readiness(t, a); !strings.Contains(text, "[-] store: OOM command not allowed\n") {
		t.Errorf("a full store: got %s, want that the store has failed", text)
	}
	if got := down(); got != 2 {
		t.Errorf("a full store: got %d lines, want 1 more", got)
	}
	if got := count("store recovered"); got != 1 {
		t.Errorf("a full store: got %d lines of its end, want none", got-1)
	}
	store.full.Store(false)
	waitFor(t, "the end of the second outage is logged", func() bool { return count("store recovered") == 2 })
	if text := readiness(t, a); !strings.Contains(text, "[+] store: ok") {
		t.Errorf("after the outage: got %s, want no failed store", text)
	}
	if text := a.logs.String(); !strings.Contains(text, "OOM command not allowed") {
		t.Error("the log lacks the cause of the second outage")
	}
}

// readiness returns the details of /readyz.
func readiness(t *testing.T, a *app) string {
	t.Helper()
	r := httptest.NewRequest("GET", "http://localhost/readyz?verbose", nil)
	r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey,
		&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}))
	w := httptest.NewRecorder()
	a.server.Admin().ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		t.Errorf("readiness: got %d, want 200", w.Code)
	}
	return w.Body.String()
}

// An outage is noticed without requests.
func TestStoreOutageIsNoticedWhileIdle(t *testing.T) {
	t.Parallel()
	store := new(readOnlyStore)
	store.down.Store(true)
	a := newApp(t, store.wrap)
	count := func(msg string) int { return len(a.logs.lines(t, msg)) }
	waitFor(t, "the outage is logged", func() bool { return count("store unavailable; sessions are kept") == 1 })
	store.down.Store(false)
	waitFor(t, "the end is logged", func() bool { return count("store recovered") == 1 })
}
