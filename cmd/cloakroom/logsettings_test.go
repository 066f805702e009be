package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
)

// logged is a broker process whose log settings a test changes.
type logged struct {
	t       *testing.T
	process *exec.Cmd
	stderr  *lockedBuffer
	app     string // its public URL
	admin   string
	file    string // cloakroom.yaml
	base    string // its text without log
	browser *bfftest.Browser
}

func startLogged(t *testing.T) *logged {
	t.Helper()
	public, admin := freeAddr(t), freeAddr(t)
	_, port, _ := net.SplitHostPort(public)
	l := &logged{
		t: t, app: "http://localhost:" + port, admin: admin, stderr: new(lockedBuffer),
		file: filepath.Join(t.TempDir(), "cloakroom.yaml"),
	}
	provider := brokertest.NewProvider(t, l.app)
	l.base = fmt.Sprintf("server: {listen: %q, admin_listen: %q, public_url: %q}\n"+
		"oidc: {issuer: %q, client_id: spa, client_secret: %q}\n"+
		"routes: [{path: /api/, upstream: %q, token: user}, {path: /open/, upstream: %[6]q, token: none}]\n",
		public, admin, l.app, provider.Issuer, provider.Client.Secret, brokertest.NewEcho(t).URL)
	l.write("")
	l.process = brokerCommand(t, "serve", "--config", l.file)
	l.process.Stderr = l.stderr
	if err := l.process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.process.Process.Signal(syscall.SIGTERM)
		if err := l.process.Wait(); err != nil {
			t.Errorf("the broker ended with %v:\n%s", err, l.stderr)
		}
		provider.CheckLeaks(t, "the log", l.stderr.String())
	})
	ready(t, admin)
	l.waitFor(`"msg":"provider found"`)
	l.browser = bfftest.NewBrowser(t, l.app)
	l.browser.SignIn("alice", "")
	return l
}

// write writes the configuration with a section log.
func (l *logged) write(section string) {
	l.t.Helper()
	if err := os.WriteFile(l.file, []byte(l.base+"log: {"+section+"}\n"), 0o600); err != nil {
		l.t.Fatal(err)
	}
}

// apply puts a section log in force, and returns the status of the reload.
func (l *logged) apply(section string) int {
	l.t.Helper()
	l.write(section)
	resp, err := http.Post("http://"+l.admin+"/admin/reload", "", nil)
	if err != nil {
		l.t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

func (l *logged) waitFor(expression string) {
	l.t.Helper()
	re := regexp.MustCompile(expression)
	eventually(l.t, 30*time.Second, "the log has "+expression, func() bool { return re.MatchString(l.stderr.String()) })
}

// line returns the attributes of the line of a request, or nil.
func (l *logged) line(path string) map[string]any {
	l.t.Helper()
	for line := range strings.Lines(l.stderr.String()) {
		var attrs map[string]any
		if json.Unmarshal([]byte(line), &attrs) == nil && attrs["msg"] == "request" && attrs["path"] == path {
			return attrs
		}
	}
	return nil
}

func TestReloadChangesLogFormat(t *testing.T) {
	t.Parallel()
	l := startLogged(t)
	l.browser.Fetch("GET", "/open/json")
	l.waitFor(`(?m)^\{.*"msg":"request".*"path":"/open/json".*"route":"/open/"`)

	l.write("format: text")
	l.process.Process.Signal(syscall.SIGHUP)
	l.waitFor(`(?m)^time=\S+ level=INFO msg=configuration `)
	l.browser.Fetch("GET", "/open/text")
	l.waitFor(`(?m)^time=.* msg=request .*path=/open/text .*route=/open/`)

	l.write("format: json, exclude: [/changed/]") // without a signal
	l.waitFor(`(?m)^\{.*"msg":"configuration","in_force":.*"/changed/"`)
	l.browser.Fetch("GET", "/open/again")
	l.waitFor(`(?m)^\{.*"msg":"request".*"path":"/open/again"`)
}

func TestReloadChangesLogLevel(t *testing.T) {
	t.Parallel()
	l := startLogged(t)
	refused := func(path string) { // at WARN
		l.browser.Do("GET", path, "", "Sec-Fetch-Site", "cross-site")
		l.waitFor(`"level":"WARN","msg":"request".*"path":"` + path + `"`)
	}
	if strings.Contains(l.stderr.String(), `"level":"DEBUG"`) {
		t.Errorf("the default is INFO, got a line at DEBUG:\n%s", l.stderr)
	}

	l.apply("level: warn")
	l.browser.Fetch("GET", "/open/unlogged")
	refused("/api/warn")
	if line := l.line("/open/unlogged"); line != nil {
		t.Errorf("level warn: got %v, want no line at INFO", line)
	}

	l.apply("level: error")
	l.browser.Do("GET", "/api/unlogged", "", "Sec-Fetch-Site", "cross-site")

	l.apply("level: debug")
	l.browser.Navigate("/bff/login")
	l.waitFor(`"level":"DEBUG"`)
	if line := l.line("/api/unlogged"); line != nil {
		t.Errorf("level error: got %v, want no line at WARN", line)
	}

	l.apply("level: info")
	l.browser.Fetch("GET", "/open/info")
	l.waitFor(`"level":"INFO","msg":"request".*"path":"/open/info"`)
}

func TestReloadChangesLoggedRequests(t *testing.T) {
	t.Parallel()
	l := startLogged(t)
	for _, step := range []struct {
		settings string
		lines    map[string]bool // :: path → whether it is logged
	}{
		{"access: errors", map[string]bool{"/open/a": false, "/nothing-a": true, "/bff/nothing-a": true}},
		{"access: none", map[string]bool{"/open/b": false, "/nothing-b": false}},
		{"access: all, exclude: [/open/quiet/, /open/file]", map[string]bool{
			"/open/quiet/c": false, "/open/file": false, "/open/file/c": false,
			"/open/quiet": true, "/open/file.c": true, "/open/quietly/c": true, "/nothing-c": true,
		}},
		{"access: errors, exclude: [/nothing-d]", map[string]bool{"/open/d": false, "/nothing-d": false,
			"/none-d": true}},
		{"", map[string]bool{"/open/e": true, "/open/quiet/e": true}},
	} {
		if got := l.apply(step.settings); got != 200 {
			t.Fatalf("%s: reload: got %d, want 200:\n%s", step.settings, got, l.stderr)
		}
		for path := range step.lines {
			l.browser.Fetch("GET", path)
		}
		for path, want := range step.lines {
			if want {
				l.waitFor(`"msg":"request".*"path":"` + path + `"`)
			}
		}
	}
	l.browser.Fetch("GET", "/open/the-last")
	l.waitFor(`"path":"/open/the-last"`)
	for _, path := range []string{
		"/open/a", "/open/b", "/nothing-b", "/open/quiet/c", "/open/file", "/open/file/c", "/open/d", "/nothing-d",
	} {
		if line := l.line(path); line != nil {
			t.Errorf("%s: got %v, want no line", path, line)
		}
	}
}

func TestReloadChangesFormOfLoggedUsers(t *testing.T) {
	t.Parallel()
	l := startLogged(t)
	user := func(settings, path string) any {
		l.apply(settings)
		l.browser.Fetch("GET", path)
		l.waitFor(`"msg":"request".*"path":"` + path + `"`)
		return l.line(path)["user"]
	}
	hash := user("", "/api/hash")
	if text, _ := hash.(string); !regexp.MustCompile(`^[0-9a-f]{16}$`).MatchString(text) {
		t.Errorf("hash: got %v, want 16 hexadecimal digits", hash)
	}
	if got := user("users: plain", "/api/plain"); got != "alice" {
		t.Errorf("plain: got %v, want alice", got)
	}
	if got := user("users: none", "/api/none"); got != nil {
		t.Errorf("none: got %v, want no user", got)
	}
	if got := user("users: hash", "/api/again"); got != hash {
		t.Errorf("hash again: got %v, want %v", got, hash)
	}
}

func TestReloadRefusesUnknownLogSettings(t *testing.T) {
	t.Parallel()
	l := startLogged(t)
	l.apply("users: plain")
	if got := l.apply("level: loud, format: xml, access: some, exclude: [assets], users: md5"); got != 422 {
		t.Errorf("reload: got %d, want 422", got)
	}
	l.waitFor(`"msg":"configuration not applied; the previous one stays in force"`)
	for _, mistake := range []string{
		`log.level: \"loud\" is not error, warn, info or debug`,
		`log.format: \"xml\" is not json or text`,
		`log.access: \"some\" is not all, errors or none`,
		`log.exclude[0]: \"assets\" is not a path such as /assets/`,
		`log.users: \"md5\" is not hash, plain or none`,
	} {
		if !strings.Contains(l.stderr.String(), mistake) {
			t.Errorf("the log lacks %s:\n%s", mistake, l.stderr)
		}
	}
	l.browser.Fetch("GET", "/api/still")
	l.waitFor(`"msg":"request".*"path":"/api/still".*"user":"alice"`)
}
