package main

import (
	"bytes"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
)

func TestFileStoreSignsNobodyOutAtARestart(t *testing.T) {
	t.Parallel()
	public := freeAddr(t)
	_, port, _ := net.SplitHostPort(public)
	app := "http://localhost:" + port
	provider := brokertest.NewProvider(t, app)
	echo := brokertest.NewEcho(t)
	dir := filepath.Join(t.TempDir(), "sessions")
	env := map[string]string{
		"SERVER_LISTEN": public, "SERVER_ADMIN_LISTEN": "127.0.0.1:0",
		"SERVER_PUBLIC_URL": app,
		"OIDC_ISSUER":       provider.Issuer, "OIDC_CLIENT_ID": "spa",
		"OIDC_CLIENT_SECRET": provider.Client.Secret,
		"STORE_URL":          "file:" + dir, "SESSION_KEYS": goodKey,
		"ROUTES": "[{path: /api/, upstream: " + echo.URL + ", token: user}]",
	}
	first := start(t, env, "serve")
	first.waitFor(first.stderr, `"msg":"provider found"`)
	b := bfftest.NewBrowser(t, app)
	if got := b.SignIn("alice", "").StatusCode; got != 303 {
		t.Fatalf("sign in: got %d", got)
	}

	var out, errs bytes.Buffer
	err := run(t.Context(), []string{"serve"}, func(name string) string {
		return env[strings.TrimPrefix(name,
			"CLOAKROOM_")]
	}, strings.NewReader(""), &out, &errs)
	if exitCode(err) != 2 || !strings.Contains(errs.String(), dir) ||
		!strings.Contains(errs.String(), "another process") {
		t.Errorf("a second broker: exit code %d, want 2 and a message that names %s:\n%s", exitCode(err), dir,
			errs.String())
	}

	first.end()
	second := start(t, env, "serve")
	second.waitFor(second.stderr, `"msg":"provider found"`)
	if got := b.Fetch("GET", "/api/x").StatusCode; got != 200 {
		t.Errorf("after a restart: got %d, want 200", got)
	}
}
