package tokenstore_test

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/redistest"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

const (
	noLimit   = "set its maxmemory, "
	evicting  = "set its maxmemory-policy to noeviction"
	unsaved   = "set appendonly to yes"
	lateCheck = 2 * time.Hour // longer than between two snapshots
)

// info returns the response of INFO on a server of each program.
func info(t *testing.T, program redistest.Program, saved bool, args ...string) string {
	t.Helper()
	server := program.Start(t, args...)
	if got := server.Do("SET", "cloakroom:session:a", "v", "EX", "600"); got != "+OK" {
		t.Fatal(got)
	}
	if saved {
		if got := server.Do("SAVE"); got != "+OK" {
			t.Fatal(got)
		}
	}
	return server.Do("INFO")
}

// warnings returns the log lines about a response of INFO, read some time
// later.
func warnings(t *testing.T, info string, later time.Duration) []string {
	t.Helper()
	var log lockedBuffer
	tokenstore.WarnOfServer(t.Context(), slog.New(slog.NewTextHandler(&log, nil)), "host:6379", info,
		time.Now().Add(later))
	return slices.Collect(strings.Lines(log.String()))
}

func TestServerWarnings(t *testing.T) {
	t.Parallel()
	safe := []string{"--maxmemory", "100mb", "--maxmemory-policy", "noeviction"}
	for _, test := range []struct {
		name  string
		args  []string
		saved bool
		later time.Duration
		want  []string
	}{
		{"safe", safe, false, lateCheck, nil},
		{"no limit", nil, false, lateCheck, []string{noLimit}},
		{"a policy without a limit", []string{"--maxmemory-policy", "allkeys-lru"}, false, 0, []string{noLimit}},
		{"evicts all", []string{"--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"}, false, 0,
			[]string{evicting}},
		{"evicts by time", []string{"--maxmemory", "100mb", "--maxmemory-policy", "volatile-ttl"}, false, 0,
			[]string{evicting}},
		{"not saved", append([]string{"--appendonly", "no"}, safe...), false, lateCheck, []string{unsaved}},
		{"not saved yet", append([]string{"--appendonly", "no"}, safe...), false, 0, nil},
		{"saved", append([]string{"--appendonly", "no"}, safe...), true, lateCheck, nil},
		{"all", []string{"--appendonly", "no"}, false, lateCheck, []string{noLimit, unsaved}},
	} {
		for _, program := range redistest.Programs {
			t.Run(test.name+"/"+program.Name, func(t *testing.T) {
				t.Parallel()
				got := warnings(t, info(t, program, test.saved, test.args...), test.later)
				if len(got) != len(test.want) {
					t.Fatalf("got %q, want %d warnings", got, len(test.want))
				}
				for i, want := range test.want {
					if !strings.Contains(got[i], want) {
						t.Errorf("got %q, want a warning with %q", got[i], want)
					}
				}
			})
		}
	}
}

// Managed services hide fields. Nothing is known about those.
func TestNoWarningAboutHiddenFields(t *testing.T) {
	t.Parallel()
	shown := info(t, redistest.Programs[0], false, "--appendonly", "no", "--maxmemory-policy", "allkeys-lru")
	for _, hidden := range [][]string{{""}, {"maxmemory", "rdb_"}, {"maxmemory", "aof_enabled"}} {
		var visible strings.Builder
		for line := range strings.Lines(shown) {
			keep := true
			for _, prefix := range hidden {
				keep = keep && !strings.HasPrefix(line, prefix)
			}
			if keep {
				visible.WriteString(line)
			}
		}
		if got := warnings(t, visible.String(), lateCheck); len(got) > 0 {
			t.Errorf("without %q: got %q, want no warning", hidden, got)
		}
	}
	if got := warnings(t, shown, lateCheck); len(got) != 2 {
		t.Errorf("with all fields: got %q, want 2 warnings", got)
	}
}

// A server is checked once. Another one at the same address is checked too.
func TestServersAreCheckedOnce(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
	setUser(t, server, "~*", "&*", "+@all", "-info")
	hidden, hiddenLog := openLogged(t, server.URLAs("cloakroom", "pw"))
	w := watch(t, hidden)
	eventually(t, "caches are valid without INFO", w.valid)

	store, log := openLogged(t, server.URL())
	w = watch(t, store)
	wantWarnings := func(when string, want int) {
		t.Helper()
		eventually(t, "caches are valid "+when, w.valid)
		if got := strings.Count(log.String(), evicting); got != want {
			t.Errorf("%s: got %d warnings, want %d:\n%s", when, got, want, log.String())
		}
		if line := fmt.Sprintf("server=%s", server.Addr()); !strings.Contains(log.String(), line) {
			t.Errorf("%s: no warning with %s:\n%s", when, line, log.String())
		}
	}
	wantWarnings("at the start", 1)
	missed := w.seen("")
	server.Do("CLIENT", "KILL", "TYPE", "pubsub")
	eventually(t, "reconnected", func() bool { return w.seen("") > missed })
	wantWarnings("after a reconnect", 1)
	missed = w.seen("")
	server.Kill()
	server.Start()
	eventually(t, "connected to another process", func() bool { return w.seen("") > missed && w.valid() })
	wantWarnings("after a restart of Redis", 2)
	if got := hiddenLog.String(); strings.Contains(got, "maxmemory") {
		t.Errorf("without the right to INFO: got warnings:\n%s", got)
	}
}

// checked returns the problems that Check finds as the user cloakroom, and what
// remains in the store.
func checked(t *testing.T, server *redistest.Server) (problems []tokenstore.Problem, keys string) {
	t.Helper()
	store := openWith(t, tokenstore.RedisConfig{URL: server.URLAs("cloakroom", "pw")})
	problems = store.Check(t.Context())
	return problems, server.Do("KEYS", "*")
}

func TestCheckFindsNothingWithTheDocumentedRights(t *testing.T) {
	t.Parallel()
	for _, program := range redistest.Programs {
		t.Run(program.Name, func(t *testing.T) {
			t.Parallel()
			server := program.Start(t, "--maxmemory", "100mb")
			setUser(t, server, documentedPermissions(t)...)
			problems, keys := checked(t, server)
			if len(problems) > 0 {
				t.Errorf("got %q, want nothing", problems)
			}
			if keys != "*0" {
				t.Errorf("keys after the check: got %q, want none", keys)
			}
		})
	}
}

// Each right that is missing is found, and named by the error of Redis or by
// the advice.
func TestCheckFindsMissingRights(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--maxmemory", "100mb")
	for missing, want := range map[string]struct {
		text string
		down bool // operations fail
	}{
		"+@read": {"'get'", true}, "+@write": {"to create, extend", true}, "+@scripting": {"'eval", true},
		"+info": {"'info'", false}, "~cloakroom:*": {"key", true},
	} {
		permissions := slices.DeleteFunc(documentedPermissions(t), func(p string) bool { return p == missing })
		setUser(t, server, permissions...)
		problems, keys := checked(t, server)
		if len(problems) != 1 {
			t.Errorf("without %s: got %q, want one problem", missing, problems)
			continue
		}
		p := problems[0]
		if !strings.Contains(p.Text, want.text) {
			t.Errorf("without %s: got %q, want %q in it", missing, p.Text, want.text)
		}
		if p.Advice == "" {
			t.Errorf("without %s: got no advice", missing)
		}
		if got := p.Err != nil; got != want.down {
			t.Errorf("without %s: got an outage %t, want %t", missing, got, want.down)
		}
		if keys != "*0" {
			t.Errorf("without %s: keys after the check: got %q, want none", missing, keys)
		}
	}
}

func TestCheckReadsEveryMaster(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t)
	for name, test := range map[string]struct {
		url     string
		masters int
	}{
		"Sentinel": {redistest.StartSentinel(t).URL(), 1}, "Cluster": {cluster.URL(), len(cluster.Masters())},
	} {
		store := openWith(t, tokenstore.RedisConfig{URL: test.url, Logger: slog.New(slog.DiscardHandler)})
		found := 0
		for _, p := range store.Check(t.Context()) {
			if strings.Contains(p.Text, "no memory limit") {
				found++
			} else if !strings.Contains(p.Text, "does not save sessions") {
				t.Errorf("%s: got %q, want problems of its settings only", name, p.Text)
			}
		}
		if found != test.masters {
			t.Errorf("%s: got %d masters without a memory limit, want %d", name, found, test.masters)
		}
	}
}

func TestCheckReadsSavePoints(t *testing.T) {
	t.Parallel()
	for points, want := range map[string]bool{"": true, "3600 1": false} {
		server := redistest.Start(t, "--maxmemory", "100mb", "--appendonly", "no", "--save", points)
		store := openWith(t, tokenstore.RedisConfig{URL: server.URL()})
		problems := store.Check(t.Context())
		if got := len(problems) == 1 && strings.Contains(problems[0].Advice, unsaved); got != want {
			t.Errorf("save points %q: got %q, want a problem %t", points, problems, want)
		}
	}
}
