package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// Without a token, a broker refuses requests for a host that is not a loopback
// one, although the address may lead there.
func TestCommandsNameALoopbackHost(t *testing.T) {
	t.Parallel()
	hosts := make(chan string, 1)
	admin := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { hosts <- r.Host }))
	defer admin.Close()
	a := adminClient{getenv: func(name string) string {
		if name == "CLOAKROOM_SERVER_ADMIN_LISTEN" {
			return strings.TrimPrefix(admin.URL, "http://")
		}
		return ""
	}}
	if _, err := a.do(t.Context(), "GET", "/", nil, time.Minute); err != nil {
		t.Fatal(err)
	}
	if got := <-hosts; got != "localhost" {
		t.Errorf("Host: got %q, want localhost", got)
	}
}
