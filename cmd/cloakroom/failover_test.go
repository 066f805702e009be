package main

import (
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/redistest"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// The master of Redis confirms a refresh, and dies before its replicas have it.
// The broker that refreshed repeats the write to the new master, before another
// one uses the old refresh token.
func TestRefreshThatAFailoverLostIsRepeated(t *testing.T) {
	testenv.Slow(t)
	redis := redistest.StartSentinel(t)
	f := startFleet(t, nil, redis.URL(), redis.URL())
	u := f.signInExpired(t)
	master := redis.Master()
	master.Do("ACL", "SETUSER", "default", "-psync", "-sync")
	master.Do("CLIENT", "KILL", "TYPE", "replica")
	eventually(t, 10*time.Second, "the replicas of Redis are cut off", func() bool {
		return strings.Contains(master.Do("INFO", "replication"), "connected_slaves:0")
	})
	refreshed := f.call(f.replicas[0], u, "GET", "/api/x")
	if refreshed.status != 200 {
		t.Fatalf("call that refreshes: got %v, want 200", refreshed)
	}
	// With calls during the outage, the connection pool of each broker takes up
	// to a second longer to find the new master than the watch connection does.
	other := f.signIn(t, "bob", devidp.Hooks{})
	stop := f.repeat(16, func() time.Duration { return 10 * time.Millisecond }, func(i int) response {
		return f.call(f.replicas[i%2], other, "GET", "/api/x")
	})
	master.Kill()
	redis.WaitForOtherMaster(master)
	var got response
	eventually(t, 20*time.Second, "the other broker finds the new master", func() bool {
		got = f.call(f.replicas[1], u, "GET", "/api/x")
		return got.status != 503
	})
	stop()
	if got.status != 200 || got.token != refreshed.token {
		t.Errorf("call at the other broker: got %v, want 200 with the refreshed token", got)
	}
	f.wantRefreshes(t, 1)
	f.wantActive(t, u)
	f.wantNoReuse(t)
}
