package tokenstore_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
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

func TestSentinel(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	sentinel := redistest.StartSentinel(t)
	storetest.Run(t, openRedis(t, sentinel.URL()))

	// Sentinels that have lost their configuration. Their response is nil, as
	// that of Redis for a key that does not exist.
	unknown := openRedis(t, strings.Replace(sentinel.URL(), "/cloakroom/", "/unknown/", 1))
	wantHint(t, unknown, "a Sentinel knows no master of this name")
	if _, _, found, err := unknown.Get(t.Context(), "session:x"); found || err == nil {
		t.Errorf("Get without a master: got %v, %v, want an error", found, err)
	}
	problems := unknown.Check(t.Context())
	if len(problems) == 0 || strings.Contains(problems[0].Text, "\n") {
		t.Errorf("Check: got %+v, want a problem in one line", problems)
	}
}

func TestCluster(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	storetest.Run(t, openRedis(t, redistest.StartCluster(t).URL()))
}

func TestRedisWithTLS(t *testing.T) {
	t.Parallel()
	server, caFile := redistest.StartTLS(t)
	pem, err := os.ReadFile(caFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	store, err := tokenstore.NewRedis(tokenstore.RedisConfig{URL: server.URL(), RootCAs: roots})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	storetest.Run(t, store)

	if _, _, _, err := openRedis(t, server.URL()).Get(t.Context(), "k"); err == nil ||
		!strings.Contains(err.Error(), "certificate") {
		t.Errorf("without the CA: got %v, want an error about the certificate", err)
	}
	wrong, err := tokenstore.NewRedis(tokenstore.RedisConfig{URL: strings.Replace(server.URL(),
		"cloakroom:", "cloakroom:x", 1), RootCAs: roots})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { wrong.Close() })
	wantHint(t, wrong, "rejects the user or password")
}

// watched records what Watch reports.
type watched struct {
	mu      sync.Mutex
	changed map[string]int // :: key → how often it was announced
	until   time.Time
}

func watch(t *testing.T, store *tokenstore.Redis) *watched {
	t.Helper()
	w := &watched{changed: make(map[string]int)}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		store.Watch(ctx, func(key string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.changed[key]++
			if key == "" {
				w.until = time.Time{}
			}
		}, func(until time.Time) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.until = until
		})
	}()
	t.Cleanup(func() {
		stop()
		<-done
	})
	return w
}

func (w *watched) valid() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Now().Before(w.until)
}

func (w *watched) seen(key string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changed[key]
}

func eventually(t *testing.T, name string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", name)
		}
	}
}

// wantAnnounced writes keys in many slots and waits for their announcements.
func wantAnnounced(t *testing.T, store *tokenstore.Redis, w *watched, name string) {
	t.Helper()
	for i := range 20 {
		key := fmt.Sprintf("session:%s %d", name, i)
		create(t, store, key)
		eventually(t, "an announcement of "+key, func() bool { return w.seen(key) > 0 })
	}
}

func create(t *testing.T, store *tokenstore.Redis, key string) {
	t.Helper()
	eventually(t, "a write", func() bool {
		created, err := store.Create(t.Context(), key, []byte("v"), time.Minute)
		return created && err == nil
	})
}

func TestWatchReconnects(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	testWatchReconnects(t, server, "")
	w := watch(t, openRedis(t, server.URL()))
	eventually(t, "caches are valid", w.valid)
	missed := w.seen("")
	server.Do("FLUSHALL")
	eventually(t, "all changed after FLUSHALL", func() bool { return w.seen("") > missed })
}

// testWatchReconnects makes the connection to a server fail in many ways. login
// is empty, or user:password@.
func testWatchReconnects(t *testing.T, server *redistest.Server, login string) {
	t.Helper()
	proxy := redistest.StartProxy(t, server.Addr())
	store := openRedis(t, "redis://"+login+proxy.Addr())
	w := watch(t, store)
	for _, outage := range []struct {
		name       string
		begin, end func()
	}{
		{"connection killed", func() { server.Do("CLIENT", "KILL", "TYPE", "pubsub") }, func() {}},
		{"connections closed", proxy.Cut, proxy.Heal},
		{"hanging", proxy.Hang, proxy.Heal},
		{"responses lost", proxy.DropResponses, proxy.Heal},
		{"server killed", server.Kill, server.Start},
		{"server frozen", server.Freeze, server.Thaw},
	} {
		eventually(t, "valid before: "+outage.name, w.valid)
		wantAnnounced(t, store, w, "before "+outage.name)
		missed := w.seen("")
		outage.begin()
		began := time.Now()
		eventually(t, "invalid during: "+outage.name, func() bool { return !w.valid() || w.seen("") > missed })
		if took := time.Since(began); took > 5*time.Second { // as old as a cached session may be
			t.Errorf("%s: noticed after %v, want at most 5 s", outage.name, took)
		}
		outage.end()
		eventually(t, "valid after: "+outage.name, w.valid)
		wantAnnounced(t, store, w, "after "+outage.name)
	}
}

func TestWatchFollowsMaster(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	sentinel := redistest.StartSentinel(t)
	testWatchFollowsMaster(t, sentinel, openRedis(t, sentinel.URL()))
}

func testWatchFollowsMaster(t *testing.T, sentinel *redistest.Sentinel, store *tokenstore.Redis) {
	t.Helper()
	w := watch(t, store)
	eventually(t, "caches are valid", w.valid)
	create(t, store, "session:kept")
	eventually(t, "every replica has the record", func() bool {
		return !slices.ContainsFunc(sentinel.Replicas(),
			func(r *redistest.Server) bool { return r.Do("EXISTS", "cloakroom:session:kept") != ":1" })
	})
	old := sentinel.Master()
	missed := w.seen("")
	old.Kill()
	sentinel.WaitForOtherMaster(old)
	eventually(t, "valid after the failover", func() bool { return w.seen("") > missed && w.valid() })
	wantAnnounced(t, store, w, "after the failover")
	if _, _, found, err := store.Get(t.Context(), "session:kept"); !found || err != nil {
		t.Errorf("record from before the failover: got %v, %v, want true, nil", found, err)
	}
}

func TestWatchFollowsClusterMasters(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	cluster := redistest.StartCluster(t)
	testWatchFollowsClusterMasters(t, cluster, openRedis(t, cluster.URL()))
}

func testWatchFollowsClusterMasters(t *testing.T, cluster *redistest.Cluster, store *tokenstore.Redis) {
	t.Helper()
	w := watch(t, store)
	eventually(t, "caches are valid", w.valid)
	wantAnnounced(t, store, w, "on all masters")

	const key = "session:moved"
	create(t, store, key)
	for _, master := range cluster.Masters() {
		if master != cluster.MasterOf("cloakroom:"+key) {
			cluster.MoveSlotOf("cloakroom:"+key, master)
			break
		}
	}
	eventually(t, "valid after a slot has moved", w.valid)
	before := w.seen(key)
	eventually(t, "a touch after the move", func() bool {
		found, err := store.Touch(t.Context(), key, time.Hour)
		return found && err == nil
	})
	eventually(t, "the announcement of the touch", func() bool { return w.seen(key) > before })

	old := cluster.MasterOf("cloakroom:" + key)
	missed := w.seen("")
	old.Kill()
	cluster.WaitForOtherMaster("cloakroom:"+key, old)
	eventually(t, "valid after a master was killed", func() bool { return w.seen("") > missed && w.valid() })
	wantAnnounced(t, store, w, "after a master was killed")
}

// wantHint checks that the error of a write has a hint.
func wantHint(t *testing.T, store *tokenstore.Redis, want string) {
	t.Helper()
	_, err := store.Create(t.Context(), "session:hint", bytes.Repeat([]byte("x"), 1000), time.Minute)
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want an error with: %s", err, want)
	}
}

func TestErrorsHaveHints(t *testing.T) {
	t.Parallel()
	t.Run("Closed", func(t *testing.T) { // in the moment of a failover
		t.Parallel()
		err := tokenstore.WithHint(&net.OpError{Op: "read", Net: "tcp", Err: net.ErrClosed})
		if want := "Redis has a new master"; !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want an error with: %s", err, want)
		}
	})
	t.Run("Full", func(t *testing.T) {
		t.Parallel()
		server := redistest.Start(t, "--maxmemory", "2mb", "--maxmemory-policy", "noeviction")
		store := openRedis(t, server.URL())
		var err error
		for i := 0; err == nil && i < 10_000; i++ {
			_, err = store.Create(t.Context(), fmt.Sprint("session:", i), make([]byte, 1000), time.Minute)
		}
		wantHint(t, store, "raise its maxmemory")
		if _, _, found, err := store.Get(t.Context(), "session:0"); !found || err != nil {
			t.Errorf("Get from a full Redis: got %v, %v, want true, nil", found, err)
		}
		if err := store.Delete(t.Context(), "session:0"); err != nil {
			t.Errorf("Delete from a full Redis: %v", err)
		}
		server.Do("CONFIG", "SET", "maxmemory", "100mb")
		create(t, store, "session:again")
	})
	for _, program := range redistest.Programs {
		t.Run("WritesRefusedBy"+strings.ReplaceAll(program.Name, " ", ""), func(t *testing.T) {
			t.Parallel()
			server := program.Start(t)
			store := openRedis(t, server.URL())
			server.Do("CONFIG", "SET", "maxmemory", "1")
			wantHint(t, store, "raise its maxmemory")
			server.Do("CONFIG", "SET", "maxmemory", "0")
			// The snapshot cannot replace a directory.
			_, dir, _ := strings.Cut(strings.TrimSpace(server.Do("CONFIG", "GET", "dir")), "/")
			if err := os.Mkdir(filepath.Join("/"+dir, "dump.rdb"), 0o700); err != nil {
				t.Fatal(err)
			}
			server.Do("CONFIG", "SET", "save", "3600 1")
			server.Do("BGSAVE")
			eventually(t, "the snapshot fails", func() bool {
				_, err := store.Acquire(t.Context(), "session:lease", "owner", time.Millisecond)
				return err != nil
			})
			wantHint(t, store, "cannot save its data")
			server.Do("CONFIG", "SET", "stop-writes-on-bgsave-error", "no")
			server.Do("ACL", "SETUSER", "poor", "on", ">pw", "~*", "&*", "+@all", "-set")
			wantHint(t, openRedis(t, strings.Replace(server.URL(), "://", "://poor:pw@", 1)), "lacks a permission")
		})
	}
	t.Run("Replica", func(t *testing.T) {
		t.Parallel()
		server := redistest.Start(t)
		server.Do("REPLICAOF", "127.0.0.1", "1")
		store := openRedis(t, server.URL())
		wantHint(t, store, "is a replica")
		server.Do("REPLICAOF", "NO", "ONE")
		create(t, store, "session:again")
	})
	t.Run("PartOfACluster", func(t *testing.T) {
		testenv.Slow(t)
		t.Parallel()
		cluster := redistest.StartCluster(t)
		for _, master := range cluster.Masters() {
			if master != cluster.MasterOf("cloakroom:session:hint") {
				wantHint(t, openRedis(t, master.URL()), "redis+cluster:")
			}
		}
	})
	t.Run("TooManyConnections", func(t *testing.T) {
		t.Parallel()
		server := redistest.Start(t, "--maxclients", "2")
		first, second := openRedis(t, server.URL()), openRedis(t, server.URL())
		create(t, first, "session:a")
		create(t, second, "session:b")
		third := openRedis(t, server.URL())
		wantHint(t, third, "maxclients")
		server.Do("CONFIG", "SET", "maxclients", "100")
		first.Close()
		create(t, third, "session:again")
	})
	t.Run("NotAllowed", func(t *testing.T) {
		t.Parallel()
		server := redistest.Start(t)
		server.Do("ACL", "SETUSER", "poor", "on", ">pw", "~other:*", "+@all")
		wantHint(t, openRedis(t, strings.Replace(server.URL(), "://", "://poor:pw@", 1)), "lacks a permission")
	})
	t.Run("Frozen", func(t *testing.T) {
		t.Parallel()
		server := redistest.Start(t)
		store := openRedis(t, server.URL())
		create(t, store, "session:a")
		server.Freeze()
		wantHint(t, store, "did not respond in time")
		server.Thaw()
		create(t, store, "session:again")
	})
	t.Run("Loading", func(t *testing.T) {
		t.Parallel()
		server := redistest.Start(t, "--enable-debug-command", "local",
			"--loading-process-events-interval-bytes", "1024")
		store := openRedis(t, server.URL())
		create(t, store, "session:0")
		const fill = "for i = 1, 20000 do redis.call('SET', 'cloakroom:session:more' .. i, 'v', 'EX', 600) end"
		if got := server.Do("EVAL", fill, "0"); strings.HasPrefix(got, "-") {
			t.Fatal(got)
		}
		delay := func(microseconds string) { // of a key; it responds once in a thousand keys
			if got := server.Do("CONFIG", "SET", "key-load-delay", microseconds); got != "+OK" {
				t.Errorf("CONFIG SET key-load-delay: %s", got)
			}
		}
		delay("400")
		reloaded := make(chan string)
		go func() { reloaded <- server.Do("DEBUG", "LOADAOF") }()
		eventually(t, "is loading its data", func() bool {
			_, err := store.Create(t.Context(), "session:loading", []byte("v"), time.Minute)
			return strings.Contains(fmt.Sprint(err), "is loading its data")
		})
		delay("0")
		if got := <-reloaded; got != "+OK" {
			t.Fatalf("DEBUG LOADAOF: %s", got)
		}
		create(t, store, "session:again")
		if _, _, found, err := store.Get(t.Context(), "session:0"); !found || err != nil {
			t.Errorf("saved record: got %v, %v, want true, nil", found, err)
		}
	})
	t.Run("Absent", func(t *testing.T) {
		t.Parallel()
		server := redistest.Start(t)
		server.Kill()
		wantHint(t, openRedis(t, server.URL()), "nothing listens at this address")
	})
}

type lockedBuffer = testenv.Buffer

// A pipeline is one read for Redis, so is a single command.
func TestSetsTakeOneRoundTrip(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	store := openRedis(t, server.URL())
	members := map[string]string{"user:a": "1", "sid:a": "2", "history:a": "3"}
	calls := []func() error{
		func() error { return store.Add(t.Context(), members, time.Minute) },
		func() error {
			got, err := store.Members(t.Context(), "user:a", "sid:a", "history:a")
			if err == nil && len(got) != len(members) {
				err = fmt.Errorf("got the members %q", got)
			}
			return err
		},
		func() error { return store.Remove(t.Context(), members) },
	}
	reads := func() (n int) {
		_, rest, _ := strings.Cut(server.Do("INFO", "stats"), "total_reads_processed:")
		if _, err := fmt.Sscan(rest, &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	create(t, store, "session:connected")
	if err := store.Add(t.Context(), members, time.Minute); err != nil { // loads the script
		t.Fatal(err)
	}
	for i, call := range calls {
		before := reads()
		for range 100 {
			if err := call(); err != nil {
				t.Fatal(err)
			}
		}
		// Some reads are of reads itself.
		if got := reads() - before; got > 110 {
			t.Errorf("100 calls of function %d with %d sets: got %d round trips, want one each", i, len(members), got)
		}
	}
}
