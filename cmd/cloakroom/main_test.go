package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/redistest"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// program is a command that runs in this process.
type program struct {
	t      *testing.T
	stop   context.CancelFunc // begins the shutdown
	done   chan error
	stdout *lockedBuffer
	stderr *lockedBuffer
}

// start runs a command with an environment, whose names are without their
// prefix. When the test ends, the command is stopped and must end without an
// error.
func start(t *testing.T, env map[string]string, args ...string) *program {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	p := &program{t: t, stop: stop, done: make(chan error, 1), stdout: new(lockedBuffer), stderr: new(lockedBuffer)}
	getenv := func(name string) string { return env[strings.TrimPrefix(name, "CLOAKROOM_")] }
	go func() { // until stop
		p.done <- run(ctx, args, getenv, nil, p.stdout, p.stderr)
	}()
	t.Cleanup(p.end)
	return p
}

// end stops the command and waits until it has ended.
func (p *program) end() {
	p.stop()
	if err := <-p.done; err != nil {
		p.t.Errorf("command ended with %v, want no error:\n%s", err, p.stderr)
	}
	p.done <- nil
}

// waitFor waits until the output matches a regular expression, and returns the
// last group of the match.
func (p *program) waitFor(out *lockedBuffer, expression string) string {
	p.t.Helper()
	re := regexp.MustCompile(expression)
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if m := re.FindStringSubmatch(out.String()); m != nil {
			return m[len(m)-1]
		}
	}
	p.t.Fatalf("no match of %s within 60 s in the output:\n%s%s", expression, p.stdout, p.stderr)
	return ""
}

type lockedBuffer = testenv.Buffer

// The demo does what the README says.
func TestDemo(t *testing.T) {
	t.Parallel()
	p := start(t, nil, "demo", "--listen", "127.0.0.1:0", "--access-token-ttl", "3s")
	app := p.waitFor(p.stdout, `Open (http://localhost:\d+) and sign in`)
	if got := strings.Count(p.stdout.String(), "http://"); got != 1 {
		t.Errorf("URLs in the output: got %d, want 1:\n%s", got, p.stdout)
	}
	testDemoApp(t, app, 3*time.Second)
	p.end()
	if got := p.stderr.String(); got != "" {
		t.Errorf("standard error: got %s, want nothing", got)
	}
}

// The broker runs as in production: with a configuration file, secrets in other
// files, and Redis. It is restarted, and so is Redis.
func TestServeWithRedis(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	listen, app := freeOrigin(t)
	admin := freeAddr(t)
	provider := brokertest.NewProvider(t, app)
	echo := brokertest.NewEcho(t)
	dist := t.TempDir()
	overwrite(t, filepath.Join(dist, "index.html"), "<!doctype html><title>my app</title>")
	file := writeFile(t, "cloakroom.yaml", fmt.Sprintf(`
server: {listen: %q, admin_listen: %q, public_url: %q}
oidc: {issuer: %q, client_id: spa, client_secret_file: %q}
store: {url: %q}
session: {keys_file: %q}
routes: [{path: /api/, upstream: %q, token: user}]
frontend: {dir: %q}
`, listen, admin, app, provider.Issuer, writeFile(t, "secret", provider.Client.Secret+"\n"),
		redis.URL(), writeFile(t, "keys", goodKey+"\n"), echo.URL, dist))

	p := start(t, nil, "serve", "--config", file)
	ready(t, admin)
	b := bfftest.NewBrowser(t, app)
	wantPage(t, b, "/orders/17", "my app")
	signIn(t, b, "return_to=/orders")
	wantStatus(t, b, "/api/x", 200)
	if keys := redis.Do("KEYS", "*"); !strings.Contains(keys, "cloakroom:session:") {
		t.Errorf("keys in Redis: got %q, want a session", keys)
	}

	p.end()
	p = start(t, nil, "serve", "--config", file)
	ready(t, admin)
	wantStatus(t, b, "/api/x", 200)
	redis.Kill()
	eventually(t, 10*time.Second, "the broker stops using its cache without Redis", func() bool {
		return b.Fetch("GET", "/api/x").StatusCode == 503
	})
	for _, path := range []string{"/api/x", "/bff/session"} {
		if got := b.Fetch("GET", path); got.StatusCode != 503 || got.Code() != "store_unavailable" {
			t.Errorf("GET %s without Redis: got %d %s, want 503 store_unavailable", path, got.StatusCode, got.Code())
		}
	}
	redis.Start()
	ready(t, admin)
	wantStatus(t, b, "/api/x", 200)
	if got := b.Submit("/bff/logout", nil).StatusCode; got != 303 {
		t.Errorf("logout: got %d, want 303", got)
	}
	wantStatus(t, b, "/api/x", 401)
	p.end()
	provider.CheckLeaks(t, "the log", p.stderr.String())
	if strings.Contains(p.stderr.String(), goodKey) {
		t.Error("the log contains a session key")
	}
	for line := range strings.Lines(p.stderr.String()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("log line: got %s, want JSON", line)
		}
	}
}

// signedInWithRedis starts a broker with a store, and returns the admin address
// and a browser in which a user is signed in.
func signedInWithRedis(t *testing.T, redis *redistest.Server) (b *bfftest.Browser, admin string) {
	t.Helper()
	listen, app := freeOrigin(t)
	admin = freeAddr(t)
	provider, echo := brokertest.NewProvider(t, app), brokertest.NewEcho(t)
	start(t, map[string]string{
		"SERVER_LISTEN": listen, "SERVER_ADMIN_LISTEN": admin, "SERVER_PUBLIC_URL": app,
		"OIDC_ISSUER": provider.Issuer, "OIDC_CLIENT_ID": "spa", "OIDC_CLIENT_SECRET": provider.Client.Secret,
		"STORE_URL": redis.URL(), "SESSION_KEYS": goodKey,
		"ROUTES": "[{path: /api/, upstream: " + echo.URL + ", token: user}]",
	}, "serve")
	ready(t, admin)
	waitForCache(t, admin)
	b = bfftest.NewBrowser(t, app)
	signIn(t, b, "")
	return b, admin
}

// A cached session causes a few commands a second, independent of the number of
// calls.
func TestCachedSessionCausesFewRedisCommands(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	b, _ := signedInWithRedis(t, redis)
	commands := func() (n int) {
		stats := regexp.MustCompile(`cmdstat_[^:]+:calls=(\d+)`)
		for _, m := range stats.FindAllStringSubmatch(redis.Do("INFO", "commandstats"), -1) {
			calls, _ := strconv.Atoi(m[1])
			n += calls
		}
		return n
	}
	const calls = 500
	before, began := commands(), time.Now()
	for i := range calls {
		if got := b.Fetch("GET", "/api/x").StatusCode; got != 200 {
			t.Fatalf("call %d: got %d, want 200", i, got)
		}
	}
	n, took := commands()-before, time.Since(began)
	t.Logf("%d commands for %d calls in %v", n, calls, took)
	// Four heartbeats and a check of the master a second, one read of each
	// session in four seconds, and at the start a check of the server, of up to
	// 20 commands.
	if limit := 20 + int(14*(took.Seconds()+1)); n > limit {
		t.Errorf("commands in %v: got %d, want at most %d", took, n, limit)
	}
}

// testDemoApp signs in, calls the API for longer than an access token is valid,
// and signs out.
func testDemoApp(t *testing.T, app string, tokenTTL time.Duration) {
	t.Helper()
	b := bfftest.NewBrowser(t, app)
	wantPage(t, b, "/", "<html")
	client := b.Navigate("/bff/client.js")
	if client.StatusCode != 200 {
		t.Errorf("GET /bff/client.js: got %d, want 200", client.StatusCode)
	}
	if got := client.Header.Get("Cache-Control"); got != "no-cache" {
		t.Errorf("Cache-Control of /bff/client.js: got %q, want no-cache", got)
	}
	signIn(t, b, "")
	tokens := make(map[string]bool)
	began := time.Now()
	for time.Since(began) < tokenTTL+tokenTTL/2 || len(tokens) < 2 && time.Since(began) < time.Minute {
		var me struct {
			Message string
			TokenID string `json:"token_id"`
		}
		resp := b.Fetch("GET", "/api/me")
		resp.Decode(t, &me)
		if resp.StatusCode != 200 || !strings.Contains(me.Message, "Alice") {
			t.Fatalf("GET /api/me: got %d %s, want 200 and Alice", resp.StatusCode, resp.Text)
		}
		tokens[me.TokenID] = true
		time.Sleep(50 * time.Millisecond)
	}
	if len(tokens) < 2 {
		t.Errorf("access tokens in %v: got %d, want a refresh", time.Since(began), len(tokens))
	}
	for path, want := range map[string]int{
		"/api/orders": 200, "/api/admin": 403, "/public/time": 200, "/api/nothing": 404,
	} {
		wantStatus(t, b, path, want)
	}
	logout := b.Submit("/bff/logout", url.Values{"return_to": {"/"}})
	back := b.Navigate(b.Navigate(logout.Location(t).String()).Location(t).String())
	if got := back.Location(t).String(); got != app+"/" {
		t.Errorf("Location after the logout: got %s, want %s/", got, app)
	}
	wantStatus(t, b, "/api/me", 401)
	if strings.Contains(b.Received(), "eyJ") {
		t.Error("the browser received a JWT")
	}
}

// signIn signs alice in. The query is that of the login.
func signIn(t *testing.T, b *bfftest.Browser, query string) {
	t.Helper()
	if got := b.SignIn("alice", query); got.StatusCode != 303 {
		t.Fatalf("callback: got %d, want 303\n%s", got.StatusCode, got.Text)
	}
}

// wantStatus checks the status of a request of the app's script.
func wantStatus(t *testing.T, b *bfftest.Browser, path string, want int) {
	t.Helper()
	if got := b.Fetch("GET", path); got.StatusCode != want {
		t.Errorf("GET %s: got %d %s, want %d", path, got.StatusCode, got.Text, want)
	}
}

// wantPage checks that a navigation gets a page that contains a text.
func wantPage(t *testing.T, b *bfftest.Browser, path, want string) {
	t.Helper()
	if got := b.Navigate(path); got.StatusCode != 200 || !strings.Contains(got.Text, want) {
		t.Errorf("GET %s: got %d %s, want 200 and %q in it", path, got.StatusCode, got.Text, want)
	}
}

// ready waits until the broker with this admin address is ready.
func ready(t *testing.T, admin string) {
	t.Helper()
	var last string
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		resp, err := http.Get("http://" + admin + "/readyz")
		if err != nil {
			last = err.Error()
			continue
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode == 200 {
			return
		}
		last = string(body)
	}
	t.Fatalf("not ready within a minute: %s", last)
}

// waitForCache waits until the broker with this admin address caches sessions:
// until its store announces changes, which may be after it is ready.
func waitForCache(t *testing.T, admin string) {
	t.Helper()
	// Other tests close the idle connections of http.DefaultTransport.
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	eventually(t, 20*time.Second, "the cache is used", func() bool {
		resp, err := client.Get("http://" + admin + "/readyz?verbose")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return strings.Contains(string(body), "[+] invalidation: ok")
	})
}

// freeOrigin returns a free address and the origin of an app on it.
func freeOrigin(t *testing.T) (listen, origin string) {
	t.Helper()
	listen = freeAddr(t)
	return listen, strings.Replace(listen, "127.0.0.1", "http://localhost", 1)
}

// freeAddr returns an address of this machine on which nothing listens.
func freeAddr(t *testing.T) string {
	t.Helper()
	return net.JoinHostPort("127.0.0.1", testenv.FreePort(t))
}

func TestShutdownWaitsForRequests(t *testing.T) {
	t.Parallel()
	listen, app := freeOrigin(t)
	provider := brokertest.NewProvider(t, app)
	echo := brokertest.NewEcho(t)
	arrived, release := make(chan struct{}), make(chan struct{})
	echo.Handler = func(w http.ResponseWriter, _ *http.Request) {
		close(arrived)
		<-release
		io.WriteString(w, "complete")
	}
	p := start(t, map[string]string{
		"SERVER_LISTEN": listen, "SERVER_ADMIN_LISTEN": "127.0.0.1:0", "SERVER_PUBLIC_URL": app,
		"OIDC_ISSUER": provider.Issuer, "OIDC_CLIENT_ID": "spa", "OIDC_CLIENT_SECRET": provider.Client.Secret,
		"ROUTES": "[{path: /public/, upstream: " + echo.URL + ", token: none}]",
	}, "serve")
	p.waitFor(p.stderr, `"msg":"listening"`)
	b := bfftest.NewBrowser(t, app)
	responses := make(chan *bfftest.Response)
	go func() { responses <- b.Fetch("GET", "/public/x") }()
	<-arrived
	p.stop()
	p.waitFor(p.stderr, `"msg":"shutting down"`)
	close(release)
	if got := <-responses; got.StatusCode != 200 || got.Text != "complete" {
		t.Errorf("got %d %q, want 200 and the complete body", got.StatusCode, got.Text)
	}
}

// A stream may never end, so a shutdown does not wait for it. Its client
// connects to another replica.
func TestShutdownEndsStreamsAndWaitsForOtherRequests(t *testing.T) {
	t.Parallel()
	listen, app := freeOrigin(t)
	provider := brokertest.NewProvider(t, app)
	echo := brokertest.NewEcho(t)
	arrived, release, canceled := make(chan struct{}, 2), make(chan struct{}), make(chan struct{})
	echo.Handler = func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/public/events" {
			w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
			w.(http.Flusher).Flush()
			arrived <- struct{}{}
			<-r.Context().Done()
			close(canceled)
			return
		}
		arrived <- struct{}{}
		<-release
		io.WriteString(w, "complete")
	}
	p := start(t, map[string]string{
		"SERVER_LISTEN": listen, "SERVER_ADMIN_LISTEN": "127.0.0.1:0", "SERVER_PUBLIC_URL": app,
		"SERVER_SHUTDOWN_GRACE": "10m",
		"OIDC_ISSUER":           provider.Issuer, "OIDC_CLIENT_ID": "spa",
		"OIDC_CLIENT_SECRET": provider.Client.Secret,
		"ROUTES":             "[{path: /public/, upstream: " + echo.URL + ", token: none, csrf: fetch-metadata}]",
	}, "serve")
	p.waitFor(p.stderr, `"msg":"listening"`)
	b := bfftest.NewBrowser(t, app)
	stream := b.Open("/public/events")
	defer stream.Body.Close()
	responses := make(chan *bfftest.Response)
	go func() { responses <- b.Fetch("GET", "/public/x") }()
	<-arrived
	<-arrived
	p.stop()
	<-canceled
	if _, err := io.ReadAll(stream.Body); err != nil {
		t.Errorf("end of the stream: got %v, want its last chunk", err)
	}
	close(release)
	if got := <-responses; got.StatusCode != 200 || got.Text != "complete" {
		t.Errorf("got %d %q, want 200 and the complete body", got.StatusCode, got.Text)
	}
}

func TestSIGHUPReloadsTheConfiguration(t *testing.T) {
	listen, app := freeOrigin(t)
	provider := brokertest.NewProvider(t, app)
	echo := brokertest.NewEcho(t)
	text := fmt.Sprintf("server: {listen: %q, admin_listen: '127.0.0.1:0', public_url: %q}\n"+
		"oidc: {issuer: %q, client_id: spa, client_secret: %q}\n",
		listen, app, provider.Issuer, provider.Client.Secret)
	file := writeFile(t, "cloakroom.yaml", text)
	write := func(more string) {
		overwrite(t, file, text+more)
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	p := start(t, nil, "serve", "--config", file)
	p.waitFor(p.stderr, `"msg":"provider found"`)
	b := bfftest.NewBrowser(t, app)
	signIn(t, b, "")
	wantStatus(t, b, "/api/x", 404) // there is no route yet
	write("routes: [{path: /api/, upstream: '" + echo.URL + "', token: user}]\n")
	p.waitFor(p.stderr, `"in_force":\{.*"routes\[0\]"`)
	wantStatus(t, b, "/api/x", 200)
	write("routes: [{path: /api/, token: maybe}]\nstore: {url: 'redis://localhost'}\nnonsense: 1\n")
	p.waitFor(p.stderr,
		`"configuration not applied; the previous one stays in force","mistakes":\[".*nonsense: unknown key"`)
	write("routes: [{path: /api/, token: maybe}]\nsession: {keys: [" + goodKey + "]}\n" +
		"store: {url: 'redis://localhost'}\n")
	p.waitFor(p.stderr, `"mistakes":\["routes\[0\].token: .*"store.url: [^"]*a change needs a restart"\]`)
	wantStatus(t, b, "/api/x", 200)
}

func TestServeWithTLS(t *testing.T) {
	t.Parallel()
	listen, origin := freeOrigin(t)
	app := strings.Replace(origin, "http:", "https:", 1)
	certificate := httptest.NewUnstartedServer(nil)
	certificate.StartTLS()
	certificate.Close()
	pair := certificate.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, map[string]string{
		"SERVER_LISTEN": listen, "SERVER_ADMIN_LISTEN": "127.0.0.1:0", "SERVER_PUBLIC_URL": app,
		"SERVER_TLS_CERT_FILE": writeFile(t, "tls.crt", encodePEM("CERTIFICATE", pair.Certificate[0])),
		"SERVER_TLS_KEY_FILE":  writeFile(t, "tls.key", encodePEM("PRIVATE KEY", key)),
		"OIDC_ISSUER":          "https://127.0.0.1:1", "OIDC_CLIENT_ID": "spa", "OIDC_CLIENT_SECRET": "s",
	}, "serve")
	p.waitFor(p.stderr, `"msg":"listening"`)
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true,
	}}
	defer client.CloseIdleConnections()
	req, _ := http.NewRequest("GET", app+"/bff/session", nil)
	req.Header.Set("X-CSRF", "1")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("got %d, want 200", resp.StatusCode)
	}
	if resp.ProtoMajor != 2 {
		t.Errorf("got %s, want HTTP/2", resp.Proto)
	}
	// HTTP/1.1 requests are validated over TLS, too.
	raw, err := tls.Dial("tcp", listen, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	fmt.Fprintf(raw, "POST /bff/session HTTP/1.1\r\nHost: %s\r\n"+
		"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", strings.TrimPrefix(app, "https://"))
	if got, _ := io.ReadAll(raw); !strings.HasPrefix(string(got), "HTTP/1.1 400 ") {
		t.Errorf("Content-Length and Transfer-Encoding over TLS: got %q, want 400", got)
	}
	// The provider cannot be reached.
	resp, err = client.Get(app + "/bff/login")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 503 {
		t.Errorf("login without the provider: got %d, want 503", resp.StatusCode)
	}
}
