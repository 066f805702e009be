package tokenstore_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/redistest"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

// The password changes every second. Of the calls on two stores, whose
// connections do not live long, none fails.
func TestPasswordRotationFailsNoCall(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	file := filepath.Join(t.TempDir(), "password")
	write := func(n int) { // in place, as a shell does: for a moment the file is empty
		if err := os.WriteFile(file, fmt.Appendf(nil, "password %d", n), 0o600); err != nil {
			t.Error(err)
		}
	}
	set := func(rules ...string) {
		if got := server.Do(append([]string{"ACL", "SETUSER", "cloakroom"}, rules...)...); got != "+OK" {
			t.Errorf("ACL SETUSER %v: %s", rules, got)
		}
	}
	set("on", ">password 0", "~*", "&*", "+@all")
	write(0)
	var rotations, calls atomic.Int32
	done := make(chan struct{})
	var rotating sync.WaitGroup
	rotating.Go(func() {
		for n := 1; ; n++ {
			select {
			case <-done:
				return
			case <-time.After(time.Second):
			}
			set(fmt.Sprintf(">password %d", n))
			write(n)
			set(fmt.Sprintf("<password %d", n-1))
			rotations.Add(1)
		}
	})
	var stores []*tokenstore.Redis
	for range 2 {
		stores = append(stores, openWith(t, tokenstore.RedisConfig{
			URL: strings.Replace(server.URL(), "://", "://cloakroom@", 1) + "?conn_max_lifetime=5ms",
			Password: func() (string, error) {
				b, err := os.ReadFile(file)
				if err == nil && len(b) == 0 {
					err = fmt.Errorf("%s is empty", file)
				}
				return string(b), err
			}}))
	}
	var calling sync.WaitGroup
	for i, store := range stores {
		calling.Go(func() {
			for n := 0; n < 100 || rotations.Load() < 3; n++ {
				key := fmt.Sprintf("session:%d-%d", i, n)
				if created, err := store.Create(t.Context(), key, []byte("v"), time.Minute); !created || err != nil {
					t.Errorf("Create %s after %d rotations: got %v, %v, want true, nil",
						key, rotations.Load(), created, err)
				}
				calls.Add(1)
				time.Sleep(10 * time.Millisecond) // longer than a connection lives
			}
		})
	}
	calling.Wait()
	close(done)
	rotating.Wait()
	t.Logf("%d calls during %d rotations", calls.Load(), rotations.Load())
}

func TestSetCredentialsAppliesToNewConnections(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	for _, user := range []string{"old", "new"} {
		if got := server.Do("ACL", "SETUSER", user, "on", ">"+user, "~*", "&*", "+@all"); got != "+OK" {
			t.Fatal(got)
		}
	}
	url := func(login string) string {
		return strings.Replace(server.URL(), "://", "://"+login+"@", 1) + "?conn_max_lifetime=20ms"
	}
	store := openRedis(t, url("old:old"))
	create(t, store, "session:a")
	for _, cfg := range []tokenstore.RedisConfig{
		{URL: url("new:new")},
		{URL: url("old"), Password: func() (string, error) { return "old", nil }},
	} {
		credentials, err := cfg.Credentials()
		if err != nil {
			t.Fatal(err)
		}
		store.SetCredentials(credentials)
		user := strings.FieldsFunc(cfg.URL, func(c rune) bool { return strings.ContainsRune(":/@", c) })[1]
		eventually(t, "a connection of the user "+user, func() bool {
			if err := store.Ping(t.Context()); err != nil {
				t.Fatal(err)
			}
			return strings.Contains(server.Do("CLIENT", "LIST"), "cmd=ping user="+user+" ")
		})
	}
	if _, err := (tokenstore.RedisConfig{URL: "redis://user:hunter2@h:port"}).Credentials(); err == nil ||
		strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a wrong URL: got %v, want an error without the password", err)
	}
}

func TestConnectionsHaveNames(t *testing.T) {
	t.Parallel()
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf(" name=cloakroom-%s-%d ", host, os.Getpid())
	server := redistest.Start(t)
	servers := map[string][]*redistest.Server{server.URL(): {server}}
	if testenv.All() {
		sentinel, cluster := redistest.StartSentinel(t), redistest.StartCluster(t)
		servers[sentinel.URL()], servers[cluster.URL()] = []*redistest.Server{sentinel.Master()}, cluster.Masters()
	}
	for url, masters := range servers {
		store := openRedis(t, url)
		w := watch(t, store)
		eventually(t, "caches are valid", w.valid)
		create(t, store, "session:a")
		var list string
		for _, master := range masters {
			list += master.Do("CLIENT", "LIST")
		}
		for kind, pattern := range map[string]string{"commands": "flags=N", "announcements": "flags=P"} {
			named := false
			for line := range strings.Lines(list) {
				named = named || strings.Contains(line, name) && strings.Contains(line, pattern)
			}
			if !named {
				t.Errorf("%s: no connection for %s with%sin\n%s", url, kind, name, list)
			}
		}
	}
}

// Redis and the file do not change at the same moment. An operation that meets
// them in between is retried.
func TestPasswordIsReadAgainAfterAFailure(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	setUser(t, server, "~*", "&*", "+@all")
	for name, first := range map[string]func() (string, error){
		"the password before": func() (string, error) { return "old", nil },
		"an unreadable file":  func() (string, error) { return "", os.ErrNotExist },
	} {
		var reads atomic.Int32
		store := openWith(t, tokenstore.RedisConfig{
			URL: strings.Replace(server.URL(), "://", "://cloakroom@", 1),
			Password: func() (string, error) {
				if reads.Add(1) == 1 {
					return first()
				}
				return "pw", nil
			}})
		if err := store.Ping(t.Context()); err != nil {
			t.Errorf("%s: got %v, want a retry that succeeds", name, err)
		}
		if got := reads.Load(); got != 2 {
			t.Errorf("%s: the password was read %d times, want 2", name, got)
		}
	}
}
