package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/bff/oidc"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// reloadable is a broker in this process whose configuration files a test
// changes.
type reloadable struct {
	*program
	t     *testing.T
	app   string // its public URL
	admin string
	dir   string // holds cloakroom.yaml and the files that it names
	base  string // the text of cloakroom.yaml without routes
	echo  string
}

// startReloadable starts a broker. more is more text of its cloakroom.yaml.
func startReloadable(t *testing.T, more ...string) *reloadable {
	t.Helper()
	public, admin := freeAddr(t), freeAddr(t)
	_, port, _ := net.SplitHostPort(public)
	r := &reloadable{t: t, app: "http://localhost:" + port, admin: admin, dir: t.TempDir()}
	provider := brokertest.NewProvider(t, r.app)
	r.echo = brokertest.NewEcho(t).URL
	r.write("secret", provider.Client.Secret)
	r.base = fmt.Sprintf("server: {listen: %q, admin_listen: %q, public_url: %q}\n"+
		"oidc: {issuer: %q, client_id: spa, client_secret_file: %q}\n",
		public, admin, r.app, provider.Issuer, filepath.Join(r.dir, "secret"))
	r.write("cloakroom.yaml", r.base+strings.Join(more, ""))
	r.program = start(t, nil, "serve", "--config", r.file())
	r.waitFor(r.stderr, `"msg":"provider found"`)
	return r
}

func (r *reloadable) file() string { return filepath.Join(r.dir, "cloakroom.yaml") }

func (r *reloadable) write(name, text string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// route returns the text of a route to the echo.
func (r *reloadable) route(path string) string {
	return fmt.Sprintf("routes: [{path: %s, upstream: %q, token: none}]\n", path, r.echo)
}

// command runs a command with the broker's configuration file.
func (r *reloadable) command(args ...string) (stdout, stderr string, err error) {
	var out, errs bytes.Buffer
	err = run(r.t.Context(), append(args, "--config", r.file()), func(string) string { return "" },
		strings.NewReader(""), &out, &errs)
	return out.String(), errs.String(), err
}

func (r *reloadable) status(path string) int {
	r.t.Helper()
	return bfftest.NewBrowser(r.t, r.app).Fetch("GET", path).StatusCode
}

func TestReloadCommandAppliesOrNamesTheMistakes(t *testing.T) {
	t.Parallel()
	r := startReloadable(t)
	r.write("cloakroom.yaml", r.base+r.route("/api/"))
	if out, errs, err := r.command("reload"); err != nil || out != "configuration applied\n" {
		t.Fatalf("reload: %v\n%s%s", err, out, errs)
	}
	if got := r.status("/api/x"); got != 200 {
		t.Errorf("the new route: got %d", got)
	}
	for name, test := range map[string]struct {
		text string
		want []string
	}{
		"not YAML": {"server: {", []string{"cloakroom.yaml"}},
		"two mistakes": {r.base + "nonsense: 1\nroutes: [{path: /api/, token: maybe}]\n",
			[]string{"nonsense: unknown key", "routes[0].token"}},
		"needs a restart": {strings.Replace(r.base, "server: {", "store: {url: 'redis://localhost'}\nserver: {",
			1), []string{"store.url: ", "a change needs a restart"}},
		"an unknown issuer": {strings.Replace(r.base, "/op\"", "/nothing\"", 1), []string{"oidc.issuer", "404"}},
		"a missing secret":  {strings.Replace(r.base, "/secret", "/nothing", 1), []string{"oidc.client_secret_file"}},
	} {
		t.Run(name, func(t *testing.T) {
			r.write("cloakroom.yaml", test.text)
			// The file of the commands has mistakes too, so they need the
			// address.
			var out, errs bytes.Buffer
			env := func(key string) string {
				if key == "CLOAKROOM_SERVER_ADMIN_LISTEN" {
					return r.admin
				}
				return ""
			}
			err := run(t.Context(), []string{"reload", "--config", r.file()}, env, strings.NewReader(""), &out, &errs)
			if exitCode(err) != 1 {
				t.Errorf("got exit code %d, want 1: %v", exitCode(err), err)
			}
			for _, want := range append(test.want, "configuration not applied") {
				if !strings.Contains(errs.String(), want) {
					t.Errorf("the output lacks %q:\n%s", want, errs.String())
				}
			}
			if got := r.status("/api/x"); got != 200 {
				t.Errorf("the route in force: got %d", got)
			}
		})
	}
}

func TestReloadResponseNamesTheKeys(t *testing.T) {
	t.Parallel()
	r := startReloadable(t)
	r.write("cloakroom.yaml", strings.Replace(r.base, "oidc: {",
		"store: {url: 'redis://localhost'}\nsession: {keys: ["+goodKey+"]}\noidc: {scopes: [''], ", 1))
	resp, err := http.Post("http://"+r.admin+"/admin/reload", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	var result reloadResult
	if err := json.Unmarshal(body, &result); err != nil || resp.StatusCode != 422 {
		t.Fatalf("got %d %s", resp.StatusCode, body)
	}
	if result.Applied {
		t.Error("applied is true")
	}
	restart := make(map[string]bool)
	for _, m := range result.Mistakes {
		restart[m.Key] = m.Restart
	}
	if needs, ok := restart["store.url"]; !ok || !needs {
		t.Errorf("store.url is not named as a key that needs a restart: %s", body)
	}
	if bytes.Contains(body, []byte(goodKey)) {
		t.Error("the response has a secret")
	}
}

// A mounted ConfigMap is a folder behind a link, which is replaced.
func TestChangedFilesAreApplied(t *testing.T) {
	t.Parallel()
	testenv.Slow(t)
	r := startReloadable(t)
	r.write("cloakroom.yaml", r.base+r.route("/a/"))
	r.waitFor(r.stderr, `"in_force":\{.*"path":"/a/"`)
	if got := r.status("/a/x"); got != 200 {
		t.Errorf("after a change of the file: got %d", got)
	}
	swapped := filepath.Join(r.dir, "next.yaml")
	if err := os.WriteFile(swapped, []byte(r.base+r.route("/b/")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(swapped, r.file()); err != nil {
		t.Fatal(err)
	}
	r.waitFor(r.stderr, `"in_force":\{.*"path":"/b/"`)
	r.write("cloakroom.yaml", "server: {")
	r.waitFor(r.stderr, `"configuration not applied`)
	if got := r.status("/b/x"); got != 200 {
		t.Errorf("after a broken file: got %d", got)
	}
	applied := strings.Count(r.stderr.String(), `"in_force"`)
	r.write("cloakroom.yaml", r.base+r.route("/b/"))
	r.write("secret", "another secret")
	eventually(t, 30*time.Second, "the next change is applied", func() bool {
		return strings.Count(r.stderr.String(), `"in_force"`) > applied
	})
}

// The issuer is another one, so that the current configuration does not show
// that the provider is down.
func TestReloadIsRepeatedUntilTheProviderResponds(t *testing.T) {
	t.Parallel()
	testenv.Slow(t)
	r := startReloadable(t)
	var down atomic.Bool
	down.Store(true)
	var attempts atomic.Int32
	other := brokertest.NewProvider(t, r.app)
	other.SetHooks(devidp.Hooks{Intercept: func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		if down.Load() {
			attempts.Add(1)
			w.WriteHeader(503)
			return
		}
		next.ServeHTTP(w, req)
	}})
	issuer := regexp.MustCompile(`issuer: "[^"]*"`)
	next := issuer.ReplaceAllString(r.base, fmt.Sprintf("issuer: %q", other.Issuer))
	r.write("cloakroom.yaml", next+r.route("/api/"))
	r.waitFor(r.stderr, `"configuration not applied[^\n]*"repeated":true`)
	before := attempts.Load()
	eventually(t, 30*time.Second, "the reload is repeated", func() bool { return attempts.Load() > before })
	down.Store(false)
	r.waitFor(r.stderr, `"in_force":\{.*"path":"/api/"`)
	if got := strings.Count(r.stderr.String(), `"configuration not applied`); got != 1 {
		t.Errorf("lines about the error: got %d, want 1", got)
	}
}

func TestPauseBetweenReloadsGrowsToAMinute(t *testing.T) {
	t.Parallel()
	var r repeatedReload
	now := time.Now()
	for i, want := range []time.Duration{2, 4, 8, 16, 32, 60, 60} {
		known := r.schedule(oidc.ErrUnavailable, now)
		if got := r.at.Sub(now); got != want*time.Second {
			t.Errorf("pause %d: got %v, want %v", i+1, got, want*time.Second)
		}
		if known != (i > 0) {
			t.Errorf("attempt %d: the error is known: got %t, want %t", i+1, known, i > 0)
		}
	}
	if r.schedule(nil, now); !r.at.IsZero() {
		t.Error("a reload that succeeded is repeated")
	}
}

func TestHealthCommand(t *testing.T) {
	t.Parallel()
	r := startReloadable(t)
	out, _, err := r.command("health")
	if err != nil {
		t.Fatalf("health: %v", err)
	}
	for _, want := range []string{"ok\n", "[+] provider: ok\n", "[+] store: ok"} {
		if !strings.Contains(out, want) {
			t.Errorf("the output lacks %q:\n%s", want, out)
		}
	}
	r.stop()
	eventually(t, 30*time.Second, "health fails", func() bool {
		_, errs, err := r.command("health")
		return exitCode(err) == 1 && errs != ""
	})
}

// The commands find the broker and print its problem also if the file is not
// YAML: an operator who has just broken it runs them.
func TestReloadCommandFindsTheBrokerWithABrokenFile(t *testing.T) {
	t.Parallel()
	r := startReloadable(t)
	const token = "a token of administrators"
	base := strings.Replace(r.base, "server: {", "server: {admin_token: "+token+", ", 1)
	r.write("cloakroom.yaml", base)
	r.waitFor(r.stderr, `"in_force":\{.*"admin_token"`)
	for name, more := range map[string]string{
		"a bracket":     "routes: [\n  {path: /api/",
		"a tab":         "routes:\n\t- path: /api/\n",
		"two documents": "---\nroutes: []\n",
	} {
		r.write("cloakroom.yaml", base+more)
		_, errs, err := r.command("reload")
		if exitCode(err) != 1 || !strings.Contains(errs, "configuration not applied") {
			t.Errorf("%s: got %v, want that the configuration is not applied:\n%s", name, err, errs)
		}
		if !strings.Contains(errs, "cloakroom.yaml") {
			t.Errorf("%s: the output does not name the file:\n%s", name, errs)
		}
	}
	r.write("cloakroom.yaml", "server: {")
	if _, errs, err := r.command("reload"); err == nil || !strings.Contains(errs, "not YAML") {
		t.Errorf("without an address: got %v, want an error that the file is not YAML:\n%s", err, errs)
	}
}

// A secret that is rotated by "cp -p" or rsync may have the size and the time
// of the one before.
func TestChangeOfTheContentOnlyIsApplied(t *testing.T) {
	t.Parallel()
	r := startReloadable(t)
	secret := filepath.Join(r.dir, "secret")
	before, err := os.Stat(secret)
	if err != nil {
		t.Fatal(err)
	}
	applied := strings.Count(r.stderr.String(), `"in_force"`)
	r.write("secret", strings.Repeat("x", int(before.Size())))
	if err := os.Chtimes(secret, before.ModTime(), before.ModTime()); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "the change is applied", func() bool {
		return strings.Count(r.stderr.String(), `"in_force"`) > applied
	})
}

// The broker in force has another token than the file.
func TestReloadCommandExplainsAnotherToken(t *testing.T) {
	t.Parallel()
	r := startReloadable(t)
	r.write("cloakroom.yaml", strings.Replace(r.base, "server: {", "server: {admin_token: one, ", 1))
	r.waitFor(r.stderr, `"in_force":\{.*"admin_token"`)
	r.write("cloakroom.yaml", strings.Replace(r.base, "server: {", "server: {admin_token: other, ", 1))
	_, errs, err := r.command("reload")
	if exitCode(err) != 1 || !strings.Contains(errs, "server.admin_token") || !strings.Contains(errs, "SIGHUP") {
		t.Errorf("got %v, want advice about the token in force:\n%s", err, errs)
	}
}
