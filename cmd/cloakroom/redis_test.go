package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/redistest"
)

// The broker uses a Redis that requires a client certificate, with a password
// that changes while the broker runs, and a Redis at a Unix socket.
func TestServeWithEveryWayToRedis(t *testing.T) {
	t.Parallel()
	secure, caFile, certFile, keyFile := redistest.StartMutualTLS(t)
	password := writeFile(t, "password", "p@ss:w/rd\n")
	dir, err := os.MkdirTemp("", "r")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "redis.sock")
	redistest.Start(t, "--unixsocket", socket)
	for name, env := range map[string]map[string]string{
		"certificate": {
			"STORE_URL":     "rediss://cloakroom@" + secure.Addr() + "?conn_max_lifetime=50ms",
			"STORE_CA_FILE": caFile, "STORE_CERT_FILE": certFile, "STORE_KEY_FILE": keyFile,
			"STORE_PASSWORD_FILE": password,
		},
		"socket": {"STORE_URL": "unix://" + socket + "?db=1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := startFleet(t, env, env["STORE_URL"])
			u := f.signIn(t, "alice", devidp.Hooks{})
			f.wantActive(t, u)
			if name != "certificate" {
				return
			}
			if got := secure.Do("ACL", "SETUSER", "cloakroom", ">another"); got != "+OK" {
				t.Fatalf("add a password: got %s, want +OK", got)
			}
			overwrite(t, password, "another\n")
			if got := secure.Do("ACL", "SETUSER", "cloakroom", "<p@ss:w/rd"); got != "+OK" {
				t.Fatalf("remove the old password: got %s, want +OK", got)
			}
			time.Sleep(200 * time.Millisecond) // the connections with the old password have ended
			f.wantActive(t, u)
		})
	}
}
