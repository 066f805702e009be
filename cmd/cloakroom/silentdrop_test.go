package main

import (
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/redistest"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// A firewall drops all connections to Redis silently, several times. No request
// fails.
func TestRequestsSurviveConnectionsThatAreDroppedSilently(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	redis := redistest.Start(t)
	proxy := redistest.StartProxy(t, redis.Addr())
	f := startFleet(t, nil, strings.Replace(redis.URL(), redis.Addr(), proxy.Addr(), 1))
	at := f.replicas[0]
	u := f.signIn(t, "alice", devidp.Hooks{})
	for range 3 {
		f.startCalls(u, 20, at)() // opens several connections
		proxy.DropSilently()
		for until := time.Now().Add(2 * time.Second); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
			if got := f.call(at, u, "GET", "/api/x"); got.status != 200 {
				t.Fatalf("call: got %v after %v, want 200", got, got.took)
			}
		}
		proxy.DropSilently()
		// By now the broker knows that it gets no invalidations: each request
		// reads Redis.
		time.Sleep(1500 * time.Millisecond)
		if got := f.call(at, u, "POST", "/bff/session/refresh"); got.status != 200 {
			t.Errorf("refresh: got %v after %v, want 200", got, got.took)
		}
		proxy.DropSilently()
		f.signIn(t, "alice", devidp.Hooks{})
	}
}
