package main

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// TestSlowAdminBodyDoesNotDelayTheShutdown sends a part of a sign-in to the
// page for administrators, without a token. The grace period is longer than the
// test waits.
func TestSlowAdminBodyDoesNotDelayTheShutdown(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	f := startFleet(t, map[string]string{"SERVER_SHUTDOWN_GRACE": "5m"}, "memory:")
	r := f.replicas[0]
	c, err := net.Dial("tcp", r.admin)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = fmt.Fprintf(c, "POST /admin/page/sign-in HTTP/1.1\r\nHost: localhost\r\n"+
		"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 1000\r\n\r\nto")
	if err != nil {
		t.Fatal(err)
	}
	f.client.CloseIdleConnections()
	time.Sleep(200 * time.Millisecond) // so that the handler reads the body
	r.terminate()
	select {
	case <-r.ended:
	case <-time.After(time.Minute):
		t.Error("the process waits for the body")
	}
}
