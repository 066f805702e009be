package tokenstore_test

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/redistest"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
	"github.com/cloakroom-bff/cloakroom/tokenstore/storetest"
)

// everythingButTracking are the rights of a user of Redis 7 or newer.
var everythingButTracking = []string{"~*", "&*", "+@all", "-client|tracking"}

func openLogged(t *testing.T, url string) (*tokenstore.Redis, *lockedBuffer) {
	t.Helper()
	log := new(lockedBuffer)
	store := openWith(t, tokenstore.RedisConfig{URL: url, Logger: slog.New(slog.NewTextHandler(log, nil))})
	return store, log
}

// Without CLIENT TRACKING, stores announce their writes to each other.
func TestStoreWithoutTracking(t *testing.T) {
	t.Parallel()
	permissions := slices.DeleteFunc(documentedPermissions(t), func(p string) bool { return p == "+client|tracking" })
	for _, program := range redistest.Programs {
		t.Run(program.Name, func(t *testing.T) {
			t.Parallel()
			server := program.Start(t)
			setUser(t, server, permissions...)
			// In Redis 7 and newer, the category of connections includes it.
			server.Do("ACL", "SETUSER", "cloakroom", "-client|tracking")
			if got := server.DoAs("cloakroom", "pw", "CLIENT", "TRACKING", "OFF"); !strings.HasPrefix(got, "-NOPERM") {
				t.Fatalf("CLIENT TRACKING: got %q, want NOPERM", got)
			}
			store, log := openLogged(t, server.URLAs("cloakroom", "pw"))
			storetest.Run(t, store)
			w, other := watch(t, store), openRedis(t, server.URLAs("cloakroom", "pw"))
			eventually(t, "caches are valid", w.valid)
			wantAnnounced(t, other, w, "by another replica")
			tracking := watch(t, openRedis(t, server.URL()))
			eventually(t, "caches with tracking are valid", tracking.valid)
			wantAnnounced(t, other, tracking, "to a replica with tracking")
			wantAnnounced(t, openRedis(t, server.URL()), w, "by a replica with tracking")
			if got := strings.Count(log.String(), "Redis refused CLIENT TRACKING"); got != 1 {
				t.Errorf("got %d lines about CLIENT TRACKING, want 1:\n%s", got, log.String())
			}
		})
	}
}

// In RESP2, Redis accepts CLIENT TRACKING, and announces nothing. Connections
// are in RESP2 where HELLO is disabled, or unknown to a proxy.
func TestStoreWithoutRESP3(t *testing.T) {
	t.Parallel()
	for _, program := range redistest.Programs {
		t.Run(program.Name, func(t *testing.T) {
			t.Parallel()
			server := program.Start(t, "--rename-command", "HELLO", "")
			if got := server.Do("HELLO", "3"); !strings.HasPrefix(got, "-ERR unknown command") {
				t.Fatalf("HELLO: got %q, want an unknown command", got)
			}
			store, log := openLogged(t, server.URL())
			w, other := watch(t, store), openRedis(t, server.URL())
			eventually(t, "caches are valid", w.valid)
			wantAnnounced(t, other, w, "by another replica")
			wantUntracked(t, log)
		})
	}
}

func TestWatchReconnectsWithoutTracking(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, append([]string{"--user", "cloakroom", "on", ">pw"}, everythingButTracking...)...)
	testWatchReconnects(t, server, "cloakroom:pw@")
}

func TestWatchFollowsMasterWithoutTracking(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	sentinel := redistest.StartSentinel(t)
	for _, server := range append(sentinel.Replicas(), sentinel.Master()) {
		setUser(t, server, everythingButTracking...)
	}
	url := strings.Replace(sentinel.URL(), "://", "://cloakroom:pw@", 1)
	store, log := openLogged(t, url)
	testWatchFollowsMaster(t, sentinel, store)
	wantUntracked(t, log)
}

func TestWatchFollowsClusterWithoutTracking(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	cluster := redistest.StartCluster(t)
	for _, server := range cluster.Nodes() {
		setUser(t, server, everythingButTracking...)
	}
	store, log := openLogged(t, strings.Replace(cluster.URL(), "://", "://cloakroom:pw@", 1))
	testWatchFollowsClusterMasters(t, cluster, store)
	wantUntracked(t, log)
}

func wantUntracked(t *testing.T, log *lockedBuffer) {
	t.Helper()
	if !strings.Contains(log.String(), "Redis refused CLIENT TRACKING") {
		t.Errorf("no line about CLIENT TRACKING, so it was used:\n%s", log.String())
	}
}

// A store that cannot publish would not announce its writes. It works without
// the cache.
func TestNoCacheWithoutTrackingAndPublish(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	setUser(t, server, append(everythingButTracking, "-publish")...)
	store, log := openLogged(t, server.URLAs("cloakroom", "pw"))
	w := watch(t, store)
	eventually(t, "a line that names the missing right", func() bool {
		return strings.Contains(log.String(), "lacks a permission") &&
			strings.Contains(log.String(), "publish, because")
	})
	create(t, store, "session:a")
	if replaced, err := store.Replace(t.Context(), "session:a", []byte("v"), []byte("w")); !replaced || err != nil {
		t.Errorf("Replace: got %v, %v, want true, nil", replaced, err)
	}
	if found, err := store.Touch(t.Context(), "session:a", time.Hour); !found || err != nil {
		t.Errorf("Touch: got %v, %v, want true, nil", found, err)
	}
	if err := store.Delete(t.Context(), "session:a"); err != nil {
		t.Errorf("Delete: %v", err)
	}
	if w.valid() {
		t.Error("caches are valid, want them not to be")
	}
	setUser(t, server, everythingButTracking...)
	eventually(t, "valid with the right to publish", w.valid)
}

// On a slow network, a pong arrives before the subscription does. Caches are
// valid only from the subscription on.
func TestNoCacheBeforeSubscription(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	setUser(t, server, everythingButTracking...)
	proxy := redistest.StartProxy(t, server.Addr())
	proxy.Delay(150 * time.Millisecond)
	store, writer := openRedis(t, "redis://cloakroom:pw@"+proxy.Addr()), openRedis(t, server.URL())
	ctx, stop := context.WithCancel(t.Context())
	announced := make(chan string, 1000)
	written := sync.OnceFunc(func() { create(t, writer, "session:a") })
	var watching sync.WaitGroup
	watching.Go(func() {
		store.Watch(ctx, func(key string) { announced <- key }, func(time.Time) { written() })
	})
	defer watching.Wait()
	defer stop()
	select {
	case key := <-announced:
		if key != "session:a" {
			t.Errorf("got an announcement of %q, want session:a", key)
		}
	case <-time.After(20 * time.Second):
		t.Error("a write at the first call of onValid was not announced")
	}
}
