package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// serveTestApp is a development server on the port that the environment says.
// It prints its URL, ignores SIGTERM if the environment says so, and serves
// /exit, which ends it with the status 3.
func serveTestApp() {
	port, mode, _ := strings.Cut(os.Getenv("CLOAKROOM_TEST_DEV"), " ")
	if mode == "stubborn" {
		signal.Ignore(syscall.SIGTERM)
	}
	l, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if mode != "silent" {
		fmt.Printf("  \x1b[32m➜\x1b[39m  Local: \x1b[36mhttp://localhost:\x1b[1m%s\x1b[22m/\x1b[39m\n", port)
	}
	http.HandleFunc("/exit", func(http.ResponseWriter, *http.Request) { os.Exit(3) })
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, "<!doctype html><title>my app</title>%s", r.URL.Path)
	})
	fmt.Println(http.Serve(l, nil))
	os.Exit(1)
}

// testApp returns the command of a development server on a port.
func testApp(t *testing.T, port, mode string) []string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return []string{"env", "CLOAKROOM_TEST_DEV=" + port + " " + mode, self}
}

// isListening reports whether something listens on a port.
func isListening(port string) bool {
	conn, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err == nil {
		conn.Close()
	}
	return err == nil
}

// startDev starts dev with a development server. It returns a browser of the
// app and the port of the server.
func startDev(t *testing.T, args ...string) (*program, *bfftest.Browser, string) {
	t.Helper()
	port := testenv.FreePort(t)
	args = append([]string{"dev", "--port", testenv.FreePair(t)}, args...)
	p := start(t, nil, append(append(args, "--"), testApp(t, port, "")...)...)
	return p, bfftest.NewBrowser(t, p.waitFor(p.stdout, `Open (http://localhost:\d+)\S* and sign in`)), port
}

func TestDevServesTheApp(t *testing.T) {
	t.Parallel()
	echo := brokertest.NewEcho(t)
	p, b, port := startDev(t, "--api", "/api="+echo.URL)
	wantPage(t, b, "/deep/link", "my app")
	wantStatus(t, b, "/api/x", 401)
	signIn(t, b, "return_to=/orders")
	var got brokertest.Echoed
	b.Fetch("GET", "/api/x").Decode(t, &got)
	if !strings.HasPrefix(got.Header.Get("Authorization"), "Bearer ") {
		t.Errorf("Authorization: got %q, want a bearer token", got.Header.Get("Authorization"))
	}
	if got := strings.Count(p.stdout.String(), "http://"); got != 2 { // one is what the server prints
		t.Errorf("URLs in the output: got %d, want 2:\n%s", got, p.stdout)
	}
	p.end()
	if isListening(port) {
		t.Error("the development server still listens")
	}
	if got := p.stderr.String(); got != "" {
		t.Errorf("standard error: got %s, want nothing", got)
	}
}

// A server that prints nothing is found by its port, one that another program
// has started is not taken for it.
func TestDevFindsServersByNamedURL(t *testing.T) {
	t.Parallel()
	port := testenv.FreePort(t)
	p := start(t, nil, append([]string{
		"dev", "--port", testenv.FreePair(t), "--app", "http://localhost:" + port, "--",
	}, testApp(t, port, "silent")...)...)
	b := bfftest.NewBrowser(t, p.waitFor(p.stdout, `Open (http://localhost:\d+)`))
	eventually(t, 20*time.Second, "the app is served", func() bool {
		return strings.Contains(b.Navigate("/").Text, "my app")
	})
}

func TestDevSaysThatTheNamedServerIsMissing(t *testing.T) {
	t.Parallel()
	missing := "http://localhost:" + testenv.FreePort(t)
	p := start(t, nil, "dev", "--port", testenv.FreePair(t), "--app", missing)
	p.waitFor(p.stderr, "Nothing listens at "+missing)
	p.waitFor(p.stdout, `Open (http://localhost:\d+)`)
}

// The status of dev is that of its command.
func TestDevEndsWithItsCommand(t *testing.T) {
	t.Parallel()
	script := writeFile(t, "plain", "not executable")
	for name, test := range map[string]struct {
		command []string
		status  int
		message string
	}{
		"fails at once":  {[]string{"sh", "-c", "echo out; echo err >&2; exit 7"}, 7, "ended with status 7"},
		"ends at once":   {[]string{"true"}, 0, "true ended before a development server was found"},
		"is killed":      {[]string{"sh", "-c", "kill -9 $$"}, 137, "ended with status 137"},
		"does not exist": {[]string{"no-such-command"}, 127, "command not found: no-such-command"},
		"is quoted":      {[]string{"npm run dev"}, 127, "write the command without quotes"},
		"is no program":  {[]string{script}, 126, "permission denied"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var stdout, stderr lockedBuffer
			args := append([]string{"dev", "--port", testenv.FreePair(t), "--"}, test.command...)
			err := run(t.Context(), args, os.Getenv, nil, &stdout, &stderr)
			if got := exitCode(err); got != test.status {
				t.Errorf("status: got %d, want %d (%v)", got, test.status, err)
			}
			if !strings.Contains(stderr.String(), test.message) {
				t.Errorf("standard error: got %s, want %s", stderr.String(), test.message)
			}
			if strings.Contains(name, "fails") && (stdout.String() != "out\n" ||
				!strings.Contains(stderr.String(), "err\n")) {
				t.Errorf("output: got %q and %q, want that of the command", stdout.String(), stderr.String())
			}
		})
	}
}

func TestDevEndsWhenItsServerDies(t *testing.T) {
	t.Parallel()
	p, b, _ := startDev(t)
	b.Navigate("/exit")
	select {
	case err := <-p.done:
		if got := exitCode(err); got != 3 {
			t.Errorf("status: got %d, want 3 (%v)", got, err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("dev still runs")
	}
	p.done <- nil // for the cleanup
}

// SIGTERM is ignored by the server, which is a grandchild.
func TestDevKillsAllOfItsCommand(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	port := testenv.FreePort(t)
	command := strings.Join(quoted(testApp(t, port, "stubborn")), " ")
	p := start(t, nil, "dev", "--port", testenv.FreePair(t), "--", "sh", "-c", "trap '' TERM; "+command+"; true")
	p.waitFor(p.stdout, `Open (http://localhost:\d+)`)
	p.end()
	if isListening(port) {
		t.Error("the development server still listens")
	}
}

// quoted quotes words for a shell.
func quoted(words []string) []string {
	var all []string
	for _, word := range words {
		all = append(all, "'"+word+"'")
	}
	return all
}

// A dev that is killed leaves no process behind.
func TestKilledDevLeavesNoOrphans(t *testing.T) {
	t.Parallel()
	port, own := testenv.FreePort(t), testenv.FreePair(t)
	command := strings.Join(quoted(testApp(t, port, "")), " ")
	cmd := brokerCommand(t, "dev", "--port", own, "--", "sh", "-c", command+"; true")
	cmd.Env = append(cmd.Env, "PATH="+os.Getenv("PATH"))
	var output lockedBuffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "dev is ready", func() bool {
		return strings.Contains(output.String(), "Open http://")
	})
	cmd.Process.Kill()
	cmd.Process.Wait()
	eventually(t, 20*time.Second, "the development server ends", func() bool { return !isListening(port) })
}

func TestDevNamesMistakes(t *testing.T) {
	t.Parallel()
	users := writeFile(t, "users.yaml", "users:\n  - sub: alice\n    rols: [admin]\n")
	unknown := writeFile(t, "unknown.yaml", "routes: []\nfrontendd: {}\n")
	invalid := writeFile(t, "invalid.yaml", "routes: [{path: /api/, upstream: 'http://localhost:1', token: usr}]\n")
	page := writeFile(t, "page.yaml", "server: {page_file: /nonexistent}\n")
	missing := writeFile(t, "missing.yaml", "oidc: {client_secret_file: /no}\nroutes: [{path: /a/, tokn: x}]\n")
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"API without a scheme": {[]string{"--api", "/api=localhost:3000"},
			`--api: the URL of /api: "localhost:3000" has no scheme; write http://localhost:3000`},
		"API without a URL":   {[]string{"--api", "/api"}, "such as /api=http://localhost:3000"},
		"API at the root":     {[]string{"--api", "/=http://localhost:1"}, "such as /api=http://localhost:3000"},
		"API under /bff":      {[]string{"--app", "http://localhost:1", "--api", "/bff=http://a"}, "--api /bff"},
		"app without scheme":  {[]string{"--app", "localhost:5173"}, `--app: "localhost:5173" has no scheme`},
		"app with https":      {[]string{"--app", "https://localhost:1"}, `"https://localhost:1" is https: turn https`},
		"port in words":       {[]string{"--port", "abc"}, `--port: "abc" is not a whole number; see`},
		"lifetime in words":   {[]string{"--access-token-ttl", "5"}, `"5" is not a duration such as 30s`},
		"app elsewhere":       {[]string{"--app", "http://example.com"}, "--app"},
		"no command after --": {[]string{"npm", "run"}, "write the command after --, as in: cloakroom dev -- npm run"},
		"port":                {[]string{"--port", "70000"}, "--port: 70000 is not a port"},
		"users":               {[]string{"--users", users}, users + `:3: unknown key "rols"`},
		"no users":            {[]string{"--users", "/nonexistent"}, "--users: open /nonexistent: no such file"},
		"unknown key":         {[]string{"--config", unknown}, unknown + ":2: frontendd: unknown key"},
		"key of a route":      {[]string{"--config", missing}, missing + ":2: routes[0].tokn: unknown key"},
		"value of a route":    {[]string{"--app", "http://localhost:1", "--config", invalid}, "routes[0].token"},
		"no page":             {[]string{"--app", "http://localhost:1", "--config", page}, "server.page_file"},
		"no configuration":    {[]string{"--config", "/nonexistent"}, "/nonexistent"},
		"base without slash":  {[]string{"--base", "shop"}, `--base: "shop" is not a path such as /shop`},
		"base with dots":      {[]string{"--base", "/a/../b"}, `--base: "/a/../b" is not a path`},
		"base as a URL":       {[]string{"--base", "http://localhost/shop"}, `is not a path such as /shop`},
		"lifetime":            {[]string{"--access-token-ttl", "1ms"}, "--access-token-ttl: 1ms"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			args := append([]string{"dev"}, test.args...)
			if name != "port" {
				args = append([]string{"dev", "--port", testenv.FreePair(t)}, test.args...)
			}
			var stderr lockedBuffer
			err := run(t.Context(), args, os.Getenv, nil, io.Discard, &stderr)
			if got := exitCode(err); got != 2 {
				t.Errorf("status: got %d, want 2", got)
			}
			if !strings.Contains(stderr.String(), test.want) {
				t.Errorf("got %s, want %s", stderr.String(), test.want)
			}
			if strings.Contains(stderr.String(), "client_secret") {
				t.Errorf("got %s, want nothing of a key that does not count", stderr.String())
			}
		})
	}
}

func TestDevWithTakenPorts(t *testing.T) {
	t.Parallel()
	// Not an ephemeral port: connections of other programs can have all of the
	// next ones.
	port := testenv.FreePair(t)
	taken, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	var stderr lockedBuffer
	err = run(t.Context(), []string{"dev", "--port", port}, os.Getenv, nil, io.Discard, &stderr)
	if got := exitCode(err); got != 1 {
		t.Errorf("status: got %d, want 1", got)
	}
	if want := "--port: port " + port + " is in use by another program; choose another port"; !strings.Contains(
		stderr.String(), want) {
		t.Errorf("got %s, want %s", stderr.String(), want)
	}
	own := testenv.FreePair(t)
	stderr = lockedBuffer{}
	args := []string{"dev", "--port", own, "--app", "http://localhost:" + own}
	if got := exitCode(run(t.Context(), args, os.Getenv, nil, io.Discard, &stderr)); got != 2 {
		t.Errorf("--app with the port of dev: got %d %s, want 2", got, stderr.String())
	}
	n, _ := strconv.Atoi(port)
	d := dev{port: n}
	public, idp, err := d.listen()
	if err != nil {
		t.Fatal(err)
	}
	defer public.Close()
	defer idp.Close()
	if got := portOf(public); got <= n || got >= n+2*devPorts {
		t.Errorf("another port: got %d, want one of the next %d pairs", got, devPorts)
	}
	if got := portOf(idp); got != portOf(public)+1 {
		t.Errorf("port of the provider: got %d, want %d", got, portOf(public)+1)
	}
}

// An API that verifies tokens has to be configured with another issuer if the
// provider has another port.
func TestDevPrintsAnUnusualIssuer(t *testing.T) {
	t.Parallel()
	own := testenv.FreePair(t)
	n, _ := strconv.Atoi(own)
	taken, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(n+1))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	p := start(t, nil, append([]string{"dev", "--port", own, "--"}, testApp(t, testenv.FreePort(t), "")...)...)
	issuer := p.waitFor(p.stdout, `is in use. The issuer of tokens is (http://127\.0\.0\.1:\d+)\.`)
	resp, err := http.Get(issuer + "/.well-known/openid-configuration")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("metadata of %s: got %d, want 200", issuer, resp.StatusCode)
	}
}

// The keys of the configuration that count are taken from a file, in which
// others have mistakes.
func TestDevTakesRoutesFromAConfiguration(t *testing.T) {
	t.Parallel()
	echo := brokertest.NewEcho(t)
	file := writeFile(t, "cloakroom.yaml", fmt.Sprintf(`
server: {public_url: https://app.example.com, prefix: /auth}
oidc: {issuer: https://id.example.com, client_id: spa, client_secret_file: /nonexistent, audience: orders}
store: {url: redis://redis.example.com}
session: {keys_file: /nonexistent, claims: {allow: [sub, department]}}
routes:
  - {path: /api/, upstream: %[1]q, token: user, headers: {X-Department: department}}
  - {path: /orders/, upstream: 'http://127.0.0.1:1', token: none}
frontend: {dir: /nonexistent, csp: {img-src: ['https://cdn.example.com'], report-uri: ['https://errors.example.com']}}
`, echo.URL))
	users := writeFile(t, "users.yaml", "users: [{sub: carol, claims: {department: sales}}]\n")
	p, b, _ := startDev(t, "--config", file, "--users", users, "--api", "/orders="+echo.URL)
	login := b.Navigate("/auth/login").Location(t).String()
	if got := b.Navigate(b.Authorize("carol", login).Location(t).String()).StatusCode; got != 303 {
		t.Fatalf("callback: got %d, want 303", got)
	}
	var body struct{ User map[string]any }
	b.Fetch("GET", "/auth/session").Decode(t, &body)
	if got, _ := json.Marshal(body.User); string(got) != `{"department":"sales","sub":"carol"}` {
		t.Errorf("user: got %s, want sub and department", got)
	}
	var got brokertest.Echoed
	b.Fetch("GET", "/api/x").Decode(t, &got)
	if got := got.Header.Get("X-Department"); got != "sales" {
		t.Errorf("X-Department: got %q, want sales", got)
	}
	wantStatus(t, b, "/orders/x", 200) // --api replaces the route of the file
	policy := b.Navigate("/").Header.Get("Content-Security-Policy-Report-Only")
	for _, want := range []string{"https://cdn.example.com", "report-uri /auth/dev/csp"} {
		if !strings.Contains(policy, want) {
			t.Errorf("policy: got %s, want %s", policy, want)
		}
	}
	if strings.Contains(policy, "errors.example.com") {
		t.Errorf("policy: got %s, want no reports to production", policy)
	}
	wantPage(t, b, "/auth/dev", "&#34;aud&#34;: &#34;orders&#34;")
	if !strings.Contains(p.stdout.String(), "sign in as carol.") {
		t.Errorf("the output names no user:\n%s", p.stdout)
	}
}

// With a path, everything is below it, and so is the development server's app.
func TestDevServesAnAppBelowAPath(t *testing.T) {
	t.Parallel()
	echo := brokertest.NewEcho(t)
	production := writeFile(t, "cloakroom.yaml", "server: {public_url: 'https://app.example.com/shop'}\n")
	for name, args := range map[string][]string{
		"--base": {"--base", "/shop/"}, "the path of server.public_url": {"--config", production},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, b, _ := startDev(t, append(args, "--api", "/api="+echo.URL)...)
			p.waitFor(p.stdout, `Open (http://localhost:\d+/shop) and sign in`)
			p.waitFor(p.stdout, `The inspector is at (/shop/bff/dev)\.`)
			if got := b.Navigate("/shop").Location(t).Path; got != "/shop/" {
				t.Errorf("/shop: got a redirect to %s, want /shop/", got)
			}
			page := b.Navigate("/shop/deep/link")
			if want := "<title>my app</title>/shop/deep/link"; !strings.Contains(page.Text, want) {
				t.Errorf("the app: got %s, want %s", page.Text, want)
			}
			if got := page.Header.Get("Content-Security-Policy-Report-Only"); !strings.Contains(got,
				"report-uri /shop/bff/dev/csp") {
				t.Errorf("policy: got %s, want reports to /shop/bff/dev/csp", got)
			}
			wantStatus(t, b, "/shop/api/x", 401)
			for _, outside := range []string{"/", "/bff/dev", "/api/x", "/shopping"} {
				wantStatus(t, b, outside, 404)
			}
			login := b.Submit("/shop/bff/dev/sign-in", url.Values{"user": {"bob"}, "return_to": {"/shop/orders"}})
			callback := b.Navigate(b.Navigate(login.Location(t).String()).Location(t).String()).Location(t).String()
			if got := b.Navigate(callback).Location(t).Path; got != "/shop/orders" {
				t.Errorf("the sign-in ends at %s, want /shop/orders", got)
			}
			wantStatus(t, b, "/shop/api/x", 200)
			inspector := b.Navigate("/shop/bff/dev").Text
			for _, want := range []string{
				"Signed in as <strong>bob</strong>",
				`href="/shop/"`, `href="/shop/bff/dev/dev.css"`, `action="/shop/bff/dev/end"`,
				"<code>/shop/api/</code>", "GET /shop/api/x",
			} {
				if !strings.Contains(inspector, want) {
					t.Errorf("the inspector lacks %s", want)
				}
			}
			wantStatus(t, b, "/shop/bff/dev/dev.css", 200)
			if got := b.Submit("/shop/bff/dev/end", nil).Location(t).String(); !strings.HasSuffix(got,
				"/shop/bff/dev?notice=ended") {
				t.Errorf("end of the session: got a redirect to %s, want /shop/bff/dev?notice=ended", got)
			}
			wantStatus(t, b, "/shop/api/x", 401)
		})
	}
}

// --app with a path names what is served at the path of the app.
func TestDevServerWithoutABaseBelowAPath(t *testing.T) {
	t.Parallel()
	port := testenv.FreePort(t)
	p := start(t, nil, append([]string{
		"dev", "--port", testenv.FreePair(t), "--base", "/shop", "--app", "http://localhost:" + port + "/", "--",
	}, testApp(t, port, "")...)...)
	b := bfftest.NewBrowser(t, p.waitFor(p.stdout, `Open (http://localhost:\d+)`))
	eventually(t, 20*time.Second, "the app is served", func() bool {
		return strings.Contains(b.Navigate("/shop/deep/link").Text, "<title>my app</title>/deep/link")
	})
}

// A development server that does not know the path cannot work below it.
func TestDevExplainsADevServerWithoutTheBase(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		path, page string // of the page
		want       string
	}{
		"refers to a path outside of it": {"/shop/", `<script src="/src/main.js"></script>`,
			`(refers to /src/main\.js, which is not below /shop)`},
		"refers to it without a slash at the end": {"/shop", `<script src="/main.js"></script>`,
			`(refers to /main\.js, which is not below /shop)`},
		"has relative URLs that begin outside of it": {"/shop/", `<base href="/"><script src="main.js"></script>`,
			`(refers to /, which is not below /shop(?s).*"baseHref": "/shop/" in angular\.json)`},
		"has relative URLs below it": {"/shop/", `<base href="/shop/"><script src="main.js"></script><a href="/">`, ""},
		"has the base":               {"/shop/", `<script src="/shop/main.js"></script><a href="//cdn.example">`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			asked := make(chan struct{}, 10)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != test.path {
					http.Redirect(w, r, test.path, http.StatusPermanentRedirect)
				} else {
					io.WriteString(w, test.page)
				}
				asked <- struct{}{}
			}))
			t.Cleanup(server.Close)
			p := start(t, nil, "dev", "--port", testenv.FreePair(t), "--base", "/shop", "--app", server.URL)
			p.waitFor(p.stdout, `Open (http://localhost:\d+)`)
			if test.want != "" {
				p.waitFor(p.stderr, test.want)
				return
			}
			<-asked
			p.end()
			if got := p.stderr.String(); got != "" {
				t.Errorf("standard error: got %s, want nothing", got)
			}
		})
	}
}

// A changed file with users takes effect, for sessions that exist too. A
// mistake in it changes nothing.
func TestDevReadsChangedUsers(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	var token string
	echo := brokertest.NewEcho(t)
	echo.Handler = func(_ http.ResponseWriter, r *http.Request) {
		_, token, _ = strings.Cut(r.Header.Get("Authorization"), " ")
	}
	users := writeFile(t, "users.yaml", "users: [{sub: alice, roles: [reader]}]\n")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(users, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p, b, _ := startDev(t, "--users", users, "--api", "/api="+echo.URL)
	signInAs(b, t, `{"user": "alice"}`)

	write("acr_values: [bronze, gold]\nusers: [{sub: alice, roles: [admin], acr: bronze}, {sub: bob}]\n")
	p.waitFor(p.stdout, `users\.yaml has changed\. You can (sign in as alice or bob)\.`)
	wantPage(t, b, b.Navigate("/bff/login?prompt=login").Location(t).String(), `value="bob"`)
	roles := func() any {
		t.Helper()
		wantStatus(t, b, "/api/x", 200)
		return jwtClaims(t, token)["roles"]
	}
	if got := fmt.Sprint(roles()); got != "[reader]" {
		t.Errorf("roles in a token of before: got %s, want [reader]", got)
	}
	b.Submit("/bff/dev/expire", nil)
	if got := fmt.Sprint(roles()); got != "[admin]" {
		t.Errorf("roles after a refresh: got %s, want [admin]", got)
	}
	// The ACR of alice is another one, so the provider's session is not enough.
	wantPage(t, b, b.Navigate("/bff/login").Location(t).String(), `value="alice"`)

	write("users:\n  - sub: carol\n    rols: [x]\n")
	p.waitFor(p.stderr, `(users\.yaml:3: unknown key "rols"; the keys of a user are .*)`)
	p.waitFor(p.stderr, `(The users are as before\. Correct .*users\.yaml, it is read again)`)
	if got := signInAs(b, t, `{"user": "bob"}`); got.StatusCode != 303 {
		t.Errorf("bob after a mistake: got %d %s, want 303", got.StatusCode, got.Text)
	}
	if got := signInAs(b, t, `{"user": "carol"}`); got.StatusCode != 400 {
		t.Errorf("carol after a mistake: got %d, want 400", got.StatusCode)
	}

	write("users: [{sub: carol}]\n")
	p.waitFor(p.stdout, `You can (sign in as carol)\.`)
	if got := signInAs(b, t, `{"user": "bob"}`); got.StatusCode != 400 {
		t.Errorf("bob, who is removed: got %d, want 400", got.StatusCode)
	}
	wantStatus(t, b, "/api/x", 200) // his session goes on
	if err := os.Remove(users); err != nil {
		t.Fatal(err)
	}
	p.waitFor(p.stderr, `users\.yaml: (no such file)`)
	if got := signInAs(b, t, `{"user": "carol"}`); got.StatusCode != 303 {
		t.Errorf("carol after the file was removed: got %d, want 303", got.StatusCode)
	}
}

// jwtClaims returns the claims of a JWT, which it does not verify.
func jwtClaims(t *testing.T, token string) (claims map[string]any) {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("got %d parts of a token, want 3", len(parts))
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err == nil {
		err = json.Unmarshal(text, &claims)
	}
	if err != nil {
		t.Fatal(err)
	}
	return claims
}

// signInAs signs a user in by POST /bff/dev/sign-in, and returns the response
// to that, or that of the callback.
func signInAs(b *bfftest.Browser, t *testing.T, body string) *bfftest.Response {
	t.Helper()
	resp := b.Do("POST", "/bff/dev/sign-in", body, "X-CSRF", "1", "Content-Type", "application/json")
	if resp.StatusCode != 200 {
		return resp
	}
	var login struct {
		URL string `json:"login_url"`
	}
	resp.Decode(t, &login)
	toProvider := b.Navigate(login.URL).Location(t).String()
	return b.Navigate(b.Navigate(toProvider).Location(t).String())
}

func TestDevSignsInWithoutThePicker(t *testing.T) {
	t.Parallel()
	_, b, _ := startDev(t)
	user := func() string {
		var body struct{ User map[string]any }
		b.Fetch("GET", "/bff/session").Decode(t, &body)
		got, _ := json.Marshal(body.User)
		return string(got)
	}
	resp := signInAs(b, t, `{"user": "bob", "return_to": "/orders?x=1"}`)
	if to := resp.Location(t).RequestURI(); resp.StatusCode != 303 || to != "/orders?x=1" {
		t.Errorf("got %d to %s, want 303 to /orders?x=1", resp.StatusCode, to)
	}
	if got := user(); !strings.Contains(got, `"sub":"bob"`) {
		t.Errorf("got %s, want bob", got)
	}
	signInAs(b, t, `{"claims": {"sub": "carol", "roles": ["admin"], "level": 3}}`)
	if got := user(); !strings.Contains(got, `"level":3`) || !strings.Contains(got, `"roles":["admin"]`) {
		t.Errorf("got %s, want the claims of carol", got)
	}
	for body, want := range map[string]string{
		`{"user": "mallory"}`:                     `no user \"mallory\"; the users are alice, bob`,
		`{}`:                                      "the users are alice, bob",
		`{"claims": {"name": "x"}}`:               "sub is missing",
		`{"claims": {"sub": "x", "iss": "y"}}`:    "iss is set by the provider",
		`{"user": "bob", "claims": {"sub": "x"}}`: "either user or claims",
		`{"usr": "bob"}`:                          "usr",
		`[`:                                       "not JSON",
		`{"user": "` + strings.Repeat("x", 1<<17):    "too large",
		`{"claims": {"sub": "x", "acr": "unknown"}}`: "not one of acr_values: silver, gold",
	} {
		resp := signInAs(b, t, body)
		if resp.StatusCode != 400 || !strings.Contains(resp.Text, want) {
			t.Errorf("%.40s: got %d %s, want 400 and %s", body, resp.StatusCode, resp.Text, want)
		}
	}
	resp = b.Do("POST", "/bff/dev/sign-in", `{"user": "bob"}`, "Content-Type", "application/json")
	if resp.StatusCode != 403 {
		t.Errorf("without X-CSRF: got %d, want 403", resp.StatusCode)
	}
	// The form of the inspector.
	form := b.Submit("/bff/dev/sign-in", url.Values{"user": {"alice"}})
	if form.StatusCode != 303 || !strings.HasPrefix(form.Location(t).Path, "/bff/login") {
		t.Errorf("form: got %d, want 303 to a login", form.StatusCode)
	}
	if got := b.Submit("/bff/dev/sign-in", url.Values{"claims": {"{"}}); got.StatusCode != 400 ||
		!strings.Contains(got.Text, "The sign-in was refused") {
		t.Errorf("form with a mistake: got %d %s, want 400 and the page", got.StatusCode, got.Text)
	}
}

func TestInspectorShowsNoToken(t *testing.T) {
	t.Parallel()
	echo := brokertest.NewEcho(t)
	var token string
	echo.Handler = func(_ http.ResponseWriter, r *http.Request) {
		_, token, _ = strings.Cut(r.Header.Get("Authorization"), " ")
	}
	_, b, _ := startDev(t, "--api", "/api="+echo.URL)
	wantPage(t, b, "/bff/dev", "This browser has no session.")
	signIn(t, b, "")
	wantStatus(t, b, "/api/x", 200)
	page := b.Navigate("/bff/dev").Text
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("the API got %d parts of a token, want 3", len(parts))
	}
	for i, part := range parts {
		if strings.Contains(page, part) {
			t.Errorf("the page has part %d of the token", i)
		}
	}
	for _, want := range []string{"at&#43;jwt", "&#34;sub&#34;: &#34;alice&#34;", "ID token", "GET /api/x"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %s", want)
		}
	}
}

func TestInspectorCausesWhatAppsCopeWith(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	echo := brokertest.NewEcho(t)
	p, b, _ := startDev(t, "--api", "/api="+echo.URL)
	signIn(t, b, "")
	press := func(path string, form url.Values) {
		t.Helper()
		if got := b.Submit("/bff/dev/"+path, form); got.StatusCode != 303 {
			t.Fatalf("%s: got %d, want 303", path, got.StatusCode)
		}
	}
	press("expire", nil)
	wantPage(t, b, "/bff/dev", `<span class="bad">expired</span>`)
	wantStatus(t, b, "/api/x", 200)
	wantPage(t, b, "/bff/dev", `<span class="good">new tokens</span>`)

	for range 3 { // the session is in the broker's cache
		wantStatus(t, b, "/api/x", 200)
	}
	press("store", url.Values{"down": {"1"}})
	if got := b.Fetch("GET", "/api/x"); got.Code() != "store_unavailable" {
		t.Errorf("store off: got %d %s, want store_unavailable", got.StatusCode, got.Code())
	}
	wantPage(t, b, "/bff/dev", "The session cannot be read")
	press("store", url.Values{"down": {"0"}})
	wantStatus(t, b, "/api/x", 200)

	press("provider", url.Values{"down": {"1"}})
	press("expire", nil)
	if got := b.Fetch("GET", "/api/x"); got.Code() != "provider_unavailable" {
		t.Errorf("provider off: got %d %s, want provider_unavailable", got.StatusCode, got.Code())
	}
	press("provider", url.Values{"down": {"0"}})
	eventually(t, 20*time.Second, "the session recovers", func() bool {
		return b.Fetch("GET",
			"/api/x").StatusCode == 200
	})

	press("end", nil)
	wantStatus(t, b, "/api/x", 401)
	wantPage(t, b, "/bff/dev", "the session ended: revoked")
	press("end", nil)
	wantPage(t, b, "/bff/dev?notice=failed", "this browser has no session")
	if got := p.stderr.String(); strings.Contains(got, "panic") {
		t.Errorf("standard error: got %s", got)
	}
}

func TestInspectorExplainsRefusals(t *testing.T) {
	t.Parallel()
	echo := brokertest.NewEcho(t)
	_, b, _ := startDev(t, "--api", "/api="+echo.URL)
	signIn(t, b, "")
	b.Do("POST", "/api/orders", "", "Sec-Fetch-Site", "same-origin")
	page := b.Navigate("/bff/dev").Text
	if !strings.Contains(page, "<code>POST /api/orders</code>") {
		t.Errorf("the page lacks the refused request:\n%s", page)
	}
	report := func(body string) int {
		return b.Do("POST", "/bff/dev/csp", body, "Content-Type", "application/csp-report",
			"Sec-Fetch-Site", "same-origin").StatusCode
	}
	for i := range 200 {
		body := fmt.Sprintf(`{"csp-report": {"effective-directive": "img-src", "blocked-uri":
			"https://cdn%d.example.com/a?secret", "document-uri": "http://localhost/x", "disposition": "report"}}`, i)
		if got := report(body); got != 204 {
			t.Fatalf("report %d: got %d, want 204", i, got)
		}
	}
	hostile := `{"csp-report": {"effective-directive": "script-src", "blocked-uri": "<script>alert(1)</script>",
		"document-uri": "javascript:alert(1)", "source-file": "` + strings.Repeat("x", 1000) + `"}}`
	if got := report(hostile); got != 204 {
		t.Errorf("hostile report: got %d, want 204", got)
	}
	for _, body := range []string{"", "[]", `{"csp-report": 1}`, strings.Repeat("x", 1<<17)} {
		if got := report(body); got != 400 {
			t.Errorf("report %.20s: got %d, want 400", body, got)
		}
	}
	page = b.Navigate("/bff/dev").Text
	if !strings.Contains(page, "img-src: [https://cdn199.example.com]") {
		t.Error("the page does not say what to allow")
	}
	for _, unwanted := range []string{"secret", "<script>alert", "cdn0.example.com", strings.Repeat("x", 400)} {
		if strings.Contains(page, unwanted) {
			t.Errorf("the page has %.40s", unwanted)
		}
	}
	cross := b.Do("POST", "/bff/dev/csp", "{}", "Sec-Fetch-Site", "cross-site", "Origin", "https://evil.example")
	if cross.StatusCode != 403 {
		t.Errorf("report of another site: got %d, want 403", cross.StatusCode)
	}
}

// Neither inspector nor provider are served to a page whose name leads here.
func TestDevRefusesDNSRebinding(t *testing.T) {
	t.Parallel()
	p, _, _ := startDev(t)
	app := p.waitFor(p.stdout, `Open (http://localhost:\d+)`)
	port, _ := strconv.Atoi(app[strings.LastIndexByte(app, ':')+1:])
	provider := "http://127.0.0.1:" + strconv.Itoa(port+1)
	for _, target := range []string{app + "/bff/dev", app + "/", provider + "/authorize", provider + "/jwks"} {
		for _, host := range []string{"evil.example", "evil.example:8400", "localhost.evil.example"} {
			req, err := http.NewRequest("GET", target, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Host = host
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != 421 {
				t.Errorf("%s for %s: got %d, want 421", target, host, resp.StatusCode)
			}
		}
	}
}

// While the server is down, navigations get a page. Its return is noticed.
func TestDevServerMayRestart(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	port := testenv.FreePort(t)
	command := testApp(t, port, "")
	p := start(t, nil, "dev", "--port", testenv.FreePair(t), "--app", "http://localhost:"+port, "--", "sh", "-c",
		"while :; do "+strings.Join(quoted(command), " ")+"; sleep 1; done")
	b := bfftest.NewBrowser(t, p.waitFor(p.stdout, `Open (http://localhost:\d+)`))
	up := func() bool { return b.Navigate("/").StatusCode == 200 }
	eventually(t, 20*time.Second, "the app is served", up)
	b.Navigate("/exit")
	eventually(t, 20*time.Second, "a page says that the server is down", func() bool {
		got := b.Navigate("/")
		return got.StatusCode == 502 && strings.Contains(got.Text, "http://localhost:"+port+" does not respond") ||
			got.StatusCode == 503 && strings.Contains(got.Text, "http://localhost:"+port+" does not respond")
	})
	eventually(t, 20*time.Second, "the app is served again", up)
}
