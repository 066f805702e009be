package tokenstore_test

import (
	"context"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/redistest"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

type countingStore interface {
	session.Store
	CountSessions(context.Context) (int, error)
}

func TestSessionsAreCounted(t *testing.T) {
	t.Parallel()
	test := func(open func(t *testing.T) countingStore) func(t *testing.T) {
		return func(t *testing.T) {
			t.Parallel()
			store := open(t)
			want := func(when string, want int) {
				t.Helper()
				if got, err := store.CountSessions(t.Context()); got != want || err != nil {
					t.Errorf("%s: got %d, %v, want %d", when, got, err, want)
				}
			}
			create := func(key string, ttl time.Duration) {
				t.Helper()
				if _, err := store.Create(t.Context(), key, []byte("x"), ttl); err != nil {
					t.Fatal(err)
				}
			}
			want("empty", 0)
			for i := range 50 {
				create(fmt.Sprintf("session:%d", i), time.Hour)
				create(fmt.Sprintf("tombstone:%d", i), time.Hour)
				users := map[string]string{fmt.Sprintf("user:%d", i): "x"}
				if err := store.Add(t.Context(), users, time.Hour); err != nil {
					t.Fatal(err)
				}
			}
			want("50 sessions", 50)
			if err := store.Delete(t.Context(), "session:7"); err != nil {
				t.Fatal(err)
			}
			create("session:short", 20*time.Millisecond)
			time.Sleep(50 * time.Millisecond)
			store.Get(t.Context(), "session:short") // Redis removes it then, or later
			want("one ended, and one expired", 49)
		}
	}
	t.Run("memory", test(func(*testing.T) countingStore { return new(tokenstore.Memory) }))
	t.Run("file", test(func(t *testing.T) countingStore { return openFile(t, t.TempDir()) }))
	t.Run("Redis", test(func(t *testing.T) countingStore { return openRedis(t, redistest.Start(t).URL()) }))
	t.Run("Cluster", test(func(t *testing.T) countingStore {
		testenv.Slow(t)
		return openRedis(t, redistest.StartCluster(t).URL())
	}))
}

// With many keys Redis would be busy for long.
func TestManySessionsInRedisAreEstimated(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	const sessions, others = 40_000, 20_000
	for _, keys := range []struct {
		prefix string
		n      int
	}{{"cloakroom:session:", sessions}, {"other:", others}} {
		const fill = "for i = 1, %d do redis.call('SET', '%s' .. redis.sha1hex(i), 'x', 'PX', 3600000) end"
		redis.Do("EVAL", fmt.Sprintf(fill, keys.n, keys.prefix), "0")
	}
	calls := func() string { return redis.Do("INFO", "commandstats") }
	got, err := openRedis(t, redis.URL()).CountSessions(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if off := math.Abs(float64(got-sessions)) / sessions; off > 0.05 {
		t.Errorf("got %d, want %d within 5 percent", got, sessions)
	}
	for line := range strings.Lines(calls()) {
		var n int
		if _, err := fmt.Sscanf(line, "cmdstat_scan:calls=%d,", &n); err == nil && n > 11 {
			t.Errorf("calls of SCAN: got %d, want at most 11", n)
		}
	}
}
