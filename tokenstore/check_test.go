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
