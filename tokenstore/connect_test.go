package tokenstore_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/redistest"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
	"github.com/cloakroom-bff/cloakroom/tokenstore/storetest"
)

func openWith(t *testing.T, cfg tokenstore.RedisConfig) *tokenstore.Redis {
	t.Helper()
	store, err := tokenstore.NewRedis(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	return store
}

func TestRedisWithClientCertificate(t *testing.T) {
	t.Parallel()
	server, caFile, certFile, keyFile := redistest.StartMutualTLS(t)
	pem, err := os.ReadFile(caFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	var loads atomic.Int32
	store := openWith(t,
		tokenstore.RedisConfig{URL: server.URL() + "?conn_max_lifetime=50ms", RootCAs: roots,
			ClientCertificate: func() (*tls.Certificate, error) {
				loads.Add(1)
				cert, err := tls.LoadX509KeyPair(certFile, keyFile)
				return &cert, err
			}})
	storetest.Run(t, store)
	w := watch(t, store)
	eventually(t, "caches are valid", w.valid)
	servers, own := store.Certificates()
	if len(servers) != 1 || servers[""] == nil || servers[""].NotAfter.Before(time.Now()) || own == nil {
		t.Errorf("certificates: got %v and %v, want that of the server and that of the client", servers, own)
	}
	if n := loads.Load(); n < 2 {
		t.Errorf("the certificate was loaded %d times for several connections, want 2 or more", n)
	}
	without := openWith(t, tokenstore.RedisConfig{URL: server.URL(), RootCAs: roots})
	if _, _, _, err := without.Get(t.Context(), "k"); err == nil {
		t.Error("without a certificate: no error")
	}
}

func TestRedisOnUnixSocket(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "r") // the path of a socket has at most a hundred bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "redis.sock")
	server := redistest.Start(t, "--unixsocket", path)
	if got := server.Do("ACL", "SETUSER", "cloakroom", "on", ">p@ss:w/rd", "~*", "&*", "+@all"); got != "+OK" {
		t.Fatal(got)
	}
	for _, url := range []string{"unix://" + path, "unix:" + path, "unix://" + path + "?db=3",
		"unix://cloakroom:p%40ss%3Aw%2Frd@" + path} {
		t.Run(url, func(t *testing.T) {
			t.Parallel()
			store := openRedis(t, url)
			storetest.Run(t, store)
			w := watch(t, store)
			eventually(t, "caches are valid", w.valid)
			if err := store.Ping(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	create(t, openRedis(t, "unix://"+path+"?db=3"), "session:in three")
	if got := server.Do("EXISTS", "cloakroom:session:in three"); got != ":0" {
		t.Error("?db=3: the record is in database 0")
	}
	wantHint(t, openRedis(t, "unix://"+path+".none"), "no such file")
	for _, bad := range []string{"unix:", "unix://", "unix:relative", "unix:///s?db=x",
		"unix://user:hun%ter2@/s", "redis:/path"} {
		if _, err := tokenstore.NewRedis(tokenstore.RedisConfig{URL: bad}); err == nil ||
			strings.Contains(err.Error(), "ter2") {
			t.Errorf("%q: got %v, want an error without the password", bad, err)
		}
	}
}

// Some clouds rotate passwords often. Each new connection uses the current one.
func TestPasswordForEachConnection(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	file := filepath.Join(t.TempDir(), "password")
	rotate := func(n int) {
		t.Helper()
		if got := server.Do("ACL", "SETUSER", "cloakroom", "on", fmt.Sprintf(">password %d", n),
			"~*", "&*", "+@all"); got != "+OK" {
			t.Fatal(got)
		}
		if err := os.WriteFile(file+".new", fmt.Appendf(nil, "password %d", n), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
		server.Do("ACL", "SETUSER", "cloakroom", fmt.Sprintf("<password %d", n-1)) // the previous one
	}
	rotate(0)
	var reads atomic.Int32
	store := openWith(t,
		tokenstore.RedisConfig{URL: strings.Replace(server.URL(), "://", "://cloakroom@", 1) +
			"?conn_max_lifetime=20ms", Password: func() (string, error) {
			reads.Add(1)
			b, err := os.ReadFile(file)
			return string(b), err
		}})
	w := watch(t, store)
	eventually(t, "caches are valid", w.valid)
	for n := 1; n <= 15; n++ {
		rotate(n)
		for i := range 10 {
			key := fmt.Sprintf("session:%d-%d", n, i)
			if created, err := store.Create(t.Context(), key, []byte("v"), time.Minute); !created || err != nil {
				t.Fatalf("Create after %d rotations: got %v, %v, want true, nil", n, created, err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	if n := reads.Load(); n < 15 {
		t.Errorf("the password was read %d times, want 15 or more", n)
	}
	missed := w.seen("")
	server.Do("CLIENT", "KILL", "TYPE", "pubsub") // Watch reconnects with the current password
	eventually(t, "valid again", func() bool { return w.seen("") > missed && w.valid() })
	wantAnnounced(t, store, w, "with the last password")
	if err := os.WriteFile(file, []byte("wrong"), 0o600); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	wantHint(t, store, "store.password_file")
}

func TestPasswordWithSentinelAndCluster(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	sentinel, cluster := redistest.StartSentinel(t), redistest.StartCluster(t)
	servers := append(append(cluster.Masters(), sentinel.Replicas()...), sentinel.Master())
	for _, server := range servers {
		if got := server.Do("ACL", "SETUSER", "cloakroom", "on", ">pw", "~*", "&*", "+@all"); got != "+OK" {
			t.Fatal(got)
		}
	}
	for _, url := range []string{sentinel.URL(), cluster.URL()} {
		for password, good := range map[string]bool{"pw": true, "wrong": false} {
			store := openWith(t,
				tokenstore.RedisConfig{URL: strings.Replace(url, "://", "://cloakroom@", 1),
					Password: func() (string, error) { return password, nil }})
			if good {
				storetest.Run(t, store)
				continue
			}
			if _, _, _, err := store.Get(t.Context(), "session:a"); err == nil {
				t.Errorf("%s with a wrong password: no error", url)
			}
		}
	}
}
