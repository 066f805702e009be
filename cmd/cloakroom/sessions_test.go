package main

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/redistest"
)

const fleetAdminToken = "the token of administrators"

// startAdminFleet starts two replicas with an admin token. file is the
// configuration that commands find the first one with.
func startAdminFleet(t *testing.T) (f *fleet, file string) {
	t.Helper()
	redis := redistest.Start(t)
	f = startFleet(t, map[string]string{"SERVER_ADMIN_TOKEN": fleetAdminToken}, redis.URL(), redis.URL())
	file = filepath.Join(t.TempDir(), "cloakroom.yaml")
	text := "server: {admin_listen: '" + f.replicas[0].admin + "', admin_token: '" + fleetAdminToken + "'}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return f, file
}

// command runs a command as a process of its own.
func (f *fleet) command(args ...string) (stdout, stderr string, exitCode int) {
	f.t.Helper()
	var out, errs strings.Builder
	cmd := brokerCommand(f.t, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.Run() // its error is the exit code
	f.provider.CheckLeaks(f.t, "the output of "+args[0], out.String()+errs.String())
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// admin sends a request to the admin listener of a replica.
func (f *fleet) admin(at *replica, method, path, body string) (status int) {
	f.t.Helper()
	status, _ = f.adminText(at, method, path, body)
	return status
}

// adminText is admin. It also returns the body of the response.
func (f *fleet) adminText(at *replica, method, path, body string) (status int, text string) {
	f.t.Helper()
	req, err := http.NewRequest(method, "http://"+at.admin+path, strings.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+fleetAdminToken)
	resp, err := f.client.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestSessionsCommandsListAndRevoke(t *testing.T) {
	t.Parallel()
	f, file := startAdminFleet(t)
	first := f.signIn(t, "alice", devidp.Hooks{})
	second := f.signIn(t, "alice", devidp.Hooks{})
	bob := f.signIn(t, "bob", devidp.Hooks{})
	list := func(want ...string) {
		t.Helper()
		out, errs, code := f.command("sessions", "list", "--sub", "alice", "--json", "--config", file)
		var listed []listedSession
		if err := json.Unmarshal([]byte(out), &listed); err != nil || code != 0 {
			t.Fatalf("list: got exit code %d, %v\n%s%s", code, err, out, errs)
		}
		if len(listed) != len(want) {
			t.Errorf("list: got %d sessions, want %d: %s", len(listed), len(want), out)
		}
		for _, id := range want {
			if !strings.Contains(out, id) {
				t.Errorf("list: the session %s is missing: %s", id, out)
			}
		}
	}
	list(first.id, second.id)
	out, _, code := f.command("sessions", "list", "--sub", "alice", "--config", file)
	if lines := strings.Count(out, "\n"); code != 0 || lines != 3 || !strings.HasPrefix(out, "ID ") {
		t.Errorf("list: got exit code %d, want a heading and two sessions:\n%s", code, out)
	}
	if out, _, code := f.command("sessions", "list", "--id", first.id, "--config", file); code != 0 ||
		!strings.Contains(out, first.id) {
		t.Errorf("list --id: got exit code %d: %s", code, out)
	}

	out, errs, code := f.command("sessions", "revoke", "--id", first.id, "--config", file)
	if code != 0 || out != "revoked "+first.id+"\n" {
		t.Errorf("revoke --id: got exit code %d: %s%s", code, out, errs)
	}
	f.waitEnded(t, first)
	f.wantActive(t, second)
	list(second.id)
	if _, errs, code := f.command("sessions", "revoke", "--id", first.id, "--config", file); code != 1 ||
		!strings.Contains(errs, "no such session") {
		t.Errorf("revoke --id again: got exit code %d: %s", code, errs)
	}

	if out, errs, code := f.command("sessions", "revoke", "--sub", "alice", "--config", file); code != 0 ||
		out != "revoked "+second.id+"\n" {
		t.Errorf("revoke --sub: got exit code %d: %s%s", code, out, errs)
	}
	f.waitEnded(t, second)
	f.wantActive(t, bob)
	if out, errs, code := f.command("sessions", "revoke", "--sub", "alice", "--config", file); code != 0 ||
		out != "" || errs != "no sessions\n" {
		t.Errorf("revoke --sub again: got exit code %d: %s%s", code, out, errs)
	}
	eventually(t, 20*time.Second, "the refresh tokens are revoked", func() bool {
		return f.provider.LiveRefreshTokens() == 1
	})
}

func TestSessionsCommandsRefuseMistakes(t *testing.T) {
	t.Parallel()
	f, file := startAdminFleet(t)
	for _, test := range []struct {
		args string
		code int
		want string
	}{
		{"list", 2, "--sub"},
		{"list --sub alice --id x", 2, "only one"},
		{"list --sub", 2, "--sub"},
		{"list --user alice", 2, "unknown flag"},
		{"list alice --sub alice", 2, "takes no arguments"},
		{"nonsense", 2, `unknown command "nonsense"; see cloakroom sessions --help`},
		{"revoke", 2, "--sub"},
		{"revoke --sub alice --sid x", 2, "only one"},
		{"revoke --id ../replicas", 1, "no such session"},
	} {
		args := append([]string{"sessions"}, strings.Fields(test.args)...)
		if test.args != "nonsense" {
			args = slices.Insert(args, 2, "--config", file)
		}
		_, errs, code := f.command(args...)
		if code != test.code || !strings.Contains(errs, test.want) {
			t.Errorf("sessions %s: got exit code %d, want %d and %q:\n%s", test.args, code, test.code, test.want, errs)
		}
	}
}

func TestSessionsCommandNeedsTheToken(t *testing.T) {
	t.Parallel()
	f, file := startAdminFleet(t)
	u := f.signIn(t, "alice", devidp.Hooks{})
	text := "server: {admin_listen: '" + f.replicas[0].admin + "', admin_token: another}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"list", "revoke"} {
		out, errs, code := f.command("sessions", command, "--sub", "alice", "--config", file)
		if code != 1 || out != "" || !strings.Contains(errs, "server.admin_token") {
			t.Errorf("%s: got exit code %d, want advice about the token: %s%s", command, code, out, errs)
		}
	}
	f.wantActive(t, u)
}

// The other replica has the session in its cache. On an idle machine it refuses
// the session after a few milliseconds; the limit here is that of busy ones.
func TestRevokedSessionEndsOnOtherReplica(t *testing.T) {
	t.Parallel()
	f, _ := startAdminFleet(t)
	at, other := f.replicas[0], f.replicas[1]
	var longest time.Duration
	for range 5 {
		u := f.signIn(t, "alice", devidp.Hooks{})
		for range 3 {
			if got := f.call(other, u, "GET", "/api/x"); got.status != 200 {
				t.Fatalf("call before the end: got %v, want 200", got)
			}
		}
		if status := f.admin(at, "DELETE", "/admin/sessions/"+u.id, ""); status != 204 {
			t.Fatalf("DELETE: got %d, want 204", status)
		}
		revoked := time.Now()
		eventually(t, 5*time.Second, "the other replica refuses the session", func() bool {
			return f.call(other, u, "GET", "/api/x").status == 401
		})
		longest = max(longest, time.Since(revoked))
		f.wantEnded(t, u)
	}
	t.Logf("the other replica refused the sessions after at most %v", longest)
	eventually(t, 20*time.Second, "the refresh tokens are revoked", func() bool {
		return f.provider.LiveRefreshTokens() == 0
	})
}

func TestAdminPageShowsReplicasAndConfiguration(t *testing.T) {
	t.Parallel()
	f, _ := startAdminFleet(t)
	at := f.replicas[0]
	if status := f.admin(at, "GET", "/admin", ""); status != 301 {
		t.Errorf("/admin: got %d, want 301", status)
	}
	var page string
	eventually(t, 20*time.Second, "the page has both replicas, and everything works", func() bool {
		_, page = f.adminText(at, "GET", "/admin/", "")
		return strings.Count(page, `data-label="Differs in"`) == 2 && strings.Contains(page, "everything works")
	})
	for _, want := range []string{
		"<code>server.admin_token</code></dt><dd><code>[redacted]</code>", "<code>routes[0].path</code>",
		"<code>oidc.issuer</code>", "this one",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %s", want)
		}
	}
	for _, secret := range []string{fleetAdminToken, goodKey, f.provider.Client.Secret} {
		if strings.Contains(page, secret) {
			t.Errorf("the page has the secret %.4s…", secret)
		}
	}
	f.provider.CheckLeaks(t, "the page", page)
}

// The browser sends nothing any more. The other replica has its cookie.
func TestTokensInCacheOfOtherReplicaAreRevoked(t *testing.T) {
	t.Parallel()
	f, _ := startAdminFleet(t)
	for _, request := range [][3]string{{"DELETE", "/admin/sessions/"}, {"POST", "/admin/revoke", `{"sub": "alice"}`}} {
		u := f.signIn(t, "alice", devidp.Hooks{})
		if got := f.call(f.replicas[1], u, "GET", "/api/x"); got.status != 200 {
			t.Fatalf("call: got %v, want 200", got)
		}
		if request[2] == "" {
			request[1] += u.id
		}
		if status := f.admin(f.replicas[0], request[0], request[1], request[2]); status >= 300 {
			t.Fatalf("%s: got %d", request[1], status)
		}
		eventually(t, 20*time.Second, "the refresh token is revoked", func() bool {
			return f.provider.LiveRefreshTokens() == 0
		})
	}
}
