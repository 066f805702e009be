package main

import (
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

func TestIdleAdminConnectionsDoNotStopTheProbes(t *testing.T) {
	t.Parallel()
	f := startFleet(t, map[string]string{"TEST_DESCRIPTORS": "256"}, "memory:")
	at := f.replicas[0]
	for range 400 {
		c, err := net.Dial("tcp", at.admin)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for range 3 {
		resp, err := client.Get("http://" + at.admin + "/readyz")
		if err != nil {
			t.Fatalf("with idle connections: %v", err)
		}
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Errorf("with idle connections: got %d, want 200", resp.StatusCode)
		}
	}
	f.wantActive(t, f.signIn(t, "alice", devidp.Hooks{}))
}
