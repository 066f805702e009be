package main

import (
	"net/http"
	"net/http/httptest"
	"path/filepath"
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

// The default address may be that of another broker.
func TestCommandsNeedTheFileThatTheyName(t *testing.T) {
	t.Parallel()
	for _, file := range []string{filepath.Join(t.TempDir(), "cloakroom.yml"), t.TempDir()} {
		for _, args := range [][]string{
			{"health"}, {"reload"}, {"why", "alice"}, {"sessions", "list", "--sub", "alice"},
			{"sessions", "revoke", "--sub", "alice"}, {"sessions", "revoke", "--id", "x"},
		} {
			_, err := runCommand(t, append(args, "--config", file)...)
			if exitCode(err) != 2 || !strings.HasPrefix(err.Error(), "--config: ") ||
				!strings.Contains(err.Error(), file) {
				t.Errorf("%q: got status %d: %v", args, exitCode(err), err)
			}
		}
	}
	for _, name := range []string{"CLOAKROOM_SERVER_ADMIN_LISTEN", "CLOAKROOM_OIDC_ISSUER", "CLOAKROOM_OIDC"} {
		a := adminClient{file: "/nowhere/cloakroom.yaml", getenv: func(n string) string {
			return map[string]string{name: "x"}[n]
		}}
		if err := a.checkFile(); err != nil {
			t.Errorf("a broker that is configured by %s: got %v", name, err)
		}
	}
}
