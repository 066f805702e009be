package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

func TestFileStoreKeepsSessionsAtARestart(t *testing.T) {
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

// A supervisor may ask for a reload at once. Here the start takes two seconds,
// because another process has the store.
func TestHangupDuringTheStartDoesNotEndTheProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	store, err := tokenstore.NewFile(tokenstore.FileConfig{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	public := freeAddr(t)
	_, port, _ := net.SplitHostPort(public)
	cmd := brokerCommand(t, "serve")
	for name, value := range map[string]string{
		"SERVER_LISTEN": public, "SERVER_ADMIN_LISTEN": "127.0.0.1:0",
		"SERVER_PUBLIC_URL": "http://localhost:" + port,
		"OIDC_ISSUER":       "http://127.0.0.1:1/op", "OIDC_CLIENT_ID": "spa", "OIDC_CLIENT_SECRET": "secret",
		"STORE_URL": "file:" + dir, "SESSION_KEYS": goodKey,
	} {
		cmd.Env = append(cmd.Env, "CLOAKROOM_"+name+"="+value)
	}
	var logs lockedBuffer
	cmd.Stderr = &logs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-ended
	})
	eventually(t, 20*time.Second, "the process waits for the lock of the database", func() bool {
		open, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", cmd.Process.Pid))
		return slices.ContainsFunc(open, func(fd string) bool {
			target, _ := os.Readlink(fd)
			return filepath.Dir(target) == dir
		})
	})
	cmd.Process.Signal(syscall.SIGHUP)
	store.Close()
	eventually(t, 20*time.Second, "the configuration is applied again", func() bool {
		return strings.Count(logs.String(), `"in_force"`) == 2
	})
}
