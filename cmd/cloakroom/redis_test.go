package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/tokenstore/storetest"
)

// The broker at a Redis that demands a client certificate, with a password that is replaced while it runs; and at a socket.
func TestServeWithEveryWayToRedis(t *testing.T) {
	t.Parallel()
	secure, caFile, certFile, keyFile := storetest.StartRedisMutualTLS(t)
	password := writeFile(t, "password", "p@ss:w/rd\n")
	dir, err := os.MkdirTemp("", "r")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "redis.sock")
	storetest.StartRedis(t, "--unixsocket", socket)
	for name, env := range map[string]map[string]string{
		"certificate": {
			"STORE_URL": "rediss://cloakroom@" + secure.Addr() + "?conn_max_lifetime=50ms", "STORE_CA_FILE": caFile, "STORE_CERT_FILE": certFile, "STORE_KEY_FILE": keyFile, "STORE_PASSWORD_FILE": password,
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
				t.Fatal(got)
			}
			if err := os.WriteFile(password, []byte("another\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if got := secure.Do("ACL", "SETUSER", "cloakroom", "<p@ss:w/rd"); got != "+OK" { // the last that the old one can do
				t.Fatal(got)
			}
			time.Sleep(200 * time.Millisecond) // the connections of before have ended
			f.wantActive(t, u)
		})
	}
}
