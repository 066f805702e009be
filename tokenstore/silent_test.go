package tokenstore_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/redistest"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

// warm fills the pool and returns the number of connections.
func warm(t *testing.T, store *tokenstore.Redis, proxy *redistest.Proxy) int {
	t.Helper()
	proxy.Delay(30 * time.Millisecond)
	defer proxy.Heal()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if _, _, _, err := store.Get(t.Context(), "session:a"); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	return proxy.Connections()
}

// A firewall has dropped the idle connections silently. The next operations
// succeed.
func TestSilentlyDroppedIdleConnections(t *testing.T) {
	t.Parallel()
	plain := redistest.Start(t)
	secure, caFile := redistest.StartTLS(t)
	pem, err := os.ReadFile(caFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	for name, server := range map[string]*redistest.Server{"plain": plain, "TLS": secure} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy := redistest.StartProxy(t, server.Addr())
			store, err := tokenstore.NewRedis(tokenstore.RedisConfig{
				URL:     strings.Replace(server.URL(), server.Addr(), proxy.Addr(), 1),
				RootCAs: roots,
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { store.Close() })
			ctx := t.Context()
			ops := []struct {
				name string
				do   func(ctx context.Context) (bool, error)
			}{
				{"Create", func(ctx context.Context) (bool, error) {
					return store.Create(ctx, "session:a", []byte("1"), time.Hour)
				}},
				{"Get", func(ctx context.Context) (bool, error) {
					value, ttl, found, err := store.Get(ctx, "session:a")
					return found && string(value) == "1" && ttl > time.Minute, err
				}},
				{"Replace", func(ctx context.Context) (bool, error) {
					return store.Replace(ctx, "session:a", []byte("1"), []byte("2"))
				}},
				{"Touch", func(ctx context.Context) (bool, error) { return store.Touch(ctx, "session:a", time.Hour) }},
				{"Acquire", func(ctx context.Context) (bool, error) {
					return store.Acquire(ctx, "refresh:a", "me", time.Hour)
				}},
				{"Release", func(ctx context.Context) (bool, error) {
					return true, store.Release(ctx, "refresh:a", "me")
				}},
				{"Add", func(ctx context.Context) (bool, error) {
					return true, store.Add(ctx, map[string]string{"user:a": "m"}, time.Hour)
				}},
				{"Members", func(ctx context.Context) (bool, error) {
					members, err := store.Members(ctx, "user:a")
					return len(members) == 1, err
				}},
				{"Remove", func(ctx context.Context) (bool, error) {
					return true, store.Remove(ctx, map[string]string{"user:a": "m"})
				}},
				{"Ping", func(ctx context.Context) (bool, error) { return true, store.Ping(ctx) }},
				{"Delete", func(ctx context.Context) (bool, error) { return true, store.Delete(ctx, "session:a") }},
			}
			if !testenv.All() {
				ops = ops[:2] // each takes a second
			}
			for _, op := range ops {
				if n := warm(t, store, proxy); n < 2 {
					t.Fatalf("got %d connections before %s, want 2 or more", n, op.name)
				}
				proxy.DropSilently()
				if ok, err := op.do(ctx); !ok || err != nil {
					t.Errorf("%s after its connection was dropped: got %v, %v, want true, nil", op.name, ok, err)
				}
				began := time.Now()
				for i := range 16 { // a dead connection makes the others suspect
					if _, _, _, err := store.Get(ctx, "session:b"); err != nil {
						t.Errorf("request %d after %s: %v", i, op.name, err)
					}
				}
				if took := time.Since(began); took > 5*time.Second {
					t.Errorf("16 requests after %s: took %v, want at most 5 s", op.name, took)
				}
			}
		})
	}
}

// The look at an idle connection saves an attempt, and its retry.
func TestClosedIdleConnectionIsNotUsed(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	store, err := tokenstore.NewRedis(tokenstore.RedisConfig{URL: server.URL()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	for range 2 {
		if _, _, _, err := store.Get(t.Context(), "session:a"); err != nil {
			t.Fatal(err)
		}
		if killed := server.Do("CLIENT", "KILL", "TYPE", "normal"); killed == ":0" {
			t.Fatal("there was no connection to close")
		}
	}
	if store.FoundDead() {
		t.Error("an operation was tried on a closed connection")
	}
}

// The connections are dropped while they are in use.
func TestRetryOnDroppedConnection(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.StartProxy(t, server.Addr())
	store := openRedis(t, "redis://"+proxy.Addr()+"?pool_size=20") // independent of the number of processors
	warm(t, store, proxy)
	proxy.Delay(40 * time.Millisecond)
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			key := fmt.Sprint("session:", i)
			if created, err := store.Create(t.Context(), key, []byte("v"), time.Hour); !created || err != nil {
				t.Errorf("Create %s: got %v, %v", key, created, err)
			}
		})
	}
	time.Sleep(50 * time.Millisecond) // the first ones are in flight
	proxy.DropSilently()
	all.Wait()
	if got := server.Do("DBSIZE"); got != ":50" {
		t.Errorf("DBSIZE: got %s, want :50", got)
	}
}

// A connection works while others wait on dropped ones, and is dropped before
// they retry.
func TestRetryOnConnectionDroppedWhileWaiting(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.StartProxy(t, server.Addr())
	store := openRedis(t, "redis://"+proxy.Addr()+"?pool_size=20") // independent of the number of processors
	connections := warm(t, store, proxy)
	get := func() {
		if _, _, _, err := store.Get(t.Context(), "session:a"); err != nil {
			t.Error(err)
		}
	}
	proxy.DropSilently()
	began := time.Now()
	var all sync.WaitGroup
	for range connections {
		all.Go(get)
	}
	time.Sleep(200 * time.Millisecond) // all wait
	get()                              // on a new connection
	// On a busy machine that may have taken so long that they retry already. To
	// drop a connection twice in one operation makes it fail.
	if time.Since(began) < tokenstore.TryTimeout {
		proxy.DropSilently()
	}
	all.Wait()
}

// A retry respects the caller's deadline, and an outage is still an error.
func TestRetryKeepsDeadline(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.StartProxy(t, server.Addr())
	store := openRedis(t, "redis://"+proxy.Addr())
	warm(t, store, proxy)
	proxy.Hang()
	for _, limit := range []time.Duration{100 * time.Millisecond, time.Hour} {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		began := time.Now()
		if _, _, found, err := store.Get(ctx, "session:a"); err == nil {
			t.Errorf("within %v: got %v, nil, want an error", limit, found)
		}
		if took := time.Since(began); took > limit+5*time.Second {
			t.Errorf("within %v: took %v", limit, took)
		}
		cancel()
	}
	proxy.Heal()
	eventually(t, "the store responds again", func() bool { return store.Ping(t.Context()) == nil })
}

// Firewalls drop connections that are idle for a minute or more. The store
// closes them earlier.
func TestIdleConnectionsAreClosed(t *testing.T) {
	t.Parallel()
	urls := map[string]string{"standalone": redistest.Start(t).URL()}
	if testenv.All() {
		urls["Sentinel"], urls["Cluster"] = redistest.StartSentinel(t).URL(), redistest.StartCluster(t).URL()
	}
	for name, url := range urls {
		idle, err := openRedis(t, url).MaxIdle(t.Context())
		if err != nil || len(idle) == 0 {
			t.Fatalf("%s: %v, %v", name, idle, err)
		}
		for _, d := range idle {
			if d <= 0 || d >= time.Minute {
				t.Errorf("%s: connections may be idle for %v, want less than a minute", name, d)
			}
		}
	}
	server := redistest.Start(t)
	store := openRedis(t, server.URL()+"?conn_max_idle_time=500ms")
	id := func() string { // of the connection that the store uses
		t.Helper()
		if err := store.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		m := regexp.MustCompile(`id=(\d+) .* cmd=ping `).FindStringSubmatch(server.Do("CLIENT", "LIST"))
		if m == nil {
			t.Fatal("no connection has pinged")
		}
		return m[1]
	}
	first := id()
	eventually(t, "a connection is used again", func() bool {
		before := first
		first = id()
		return first == before
	})
	time.Sleep(600 * time.Millisecond)
	if second := id(); second == first {
		t.Error("conn_max_idle_time=500ms: got the same connection after 600 ms")
	}
}
