package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/tokenstore/storetest"
)

// program is a run() in the background.
type program struct {
	t      *testing.T
	stop   context.CancelFunc
	done   chan error
	stdout *lockedBuffer
	stderr *lockedBuffer
}

// start runs a command. It is stopped, and has to end without an error, when the test ends.
func start(t *testing.T, env map[string]string, args ...string) *program {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	p := &program{t: t, stop: stop, done: make(chan error, 1), stdout: new(lockedBuffer), stderr: new(lockedBuffer)}
	go func() {
		p.done <- run(ctx, args, func(name string) string { return env[name] }, nil, p.stdout, p.stderr)
	}()
	t.Cleanup(p.end)
	return p
}

func (p *program) end() {
	p.stop()
	if err := <-p.done; err != nil {
		p.t.Errorf("ended with %v:\n%s", err, p.stderr)
	}
	p.done <- nil
}

// waitFor waits until something has been printed, and returns what of it is in the expression's group.
func (p *program) waitFor(out *lockedBuffer, expression string) string {
	p.t.Helper()
	re := regexp.MustCompile(expression)
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if m := re.FindStringSubmatch(out.String()); m != nil {
			return m[len(m)-1]
		}
	}
	p.t.Fatalf("%s was not printed:\n%s%s", expression, p.stdout, p.stderr)
	return ""
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// The README's story, with the demo as a newcomer has it.
func TestDemo(t *testing.T) {
	t.Parallel()
	p := start(t, nil, "demo", "--listen", "127.0.0.1:0", "--access-token-ttl", "3s")
	app := p.waitFor(p.stdout, `Open (http://localhost:\d+) and sign in`)
	if n := strings.Count(p.stdout.String(), "http://"); n != 1 {
		t.Errorf("%d URLs are printed, want the one to open:\n%s", n, p.stdout)
	}
	story(t, app, 3*time.Second)
	p.end()
	if p.stderr.String() != "" {
		t.Errorf("a demo in which all went well complains:\n%s", p.stderr)
	}
}

// The same with the broker as it runs in production: a file, a secret in another, Redis, and a restart in the middle.
func TestServeWithRedis(t *testing.T) {
	t.Parallel()
	redis := storetest.StartRedis(t)
	public, admin := freeAddr(t), freeAddr(t)
	_, port, _ := net.SplitHostPort(public)
	app := "http://localhost:" + port
	provider := brokertest.NewProvider(t, app)
	echo := brokertest.NewEcho(t)
	dist := t.TempDir()
	if err := os.WriteFile(filepath.Join(dist, "index.html"), []byte("<!doctype html><title>my app</title>"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := writeFile(t, "cloakroom.yaml", fmt.Sprintf(`
server: {listen: %q, admin_listen: %q, public_url: %q}
oidc: {issuer: %q, client_id: spa, client_secret_file: %q}
store: {url: %q}
session: {keys_file: %q}
routes: [{path: /api/, upstream: %q, token: user}]
frontend: {dir: %q}
`, public, admin, app, provider.Issuer, writeFile(t, "secret", provider.Client.Secret+"\n"), redis.URL(), writeFile(t, "keys", goodKey+"\n"), echo.URL, dist))

	p := start(t, nil, "serve", "--config", file)
	ready(t, admin)
	b := bfftest.NewBrowser(t, app)
	if answer := b.Navigate("/orders/17"); answer.StatusCode != 200 || !strings.Contains(answer.Text, "my app") {
		t.Errorf("the app: got %d %s", answer.StatusCode, answer.Text)
	}
	if answer := b.SignIn("alice", "return_to=/orders"); answer.StatusCode != 303 {
		t.Fatalf("sign in: got %d\n%s", answer.StatusCode, p.stderr)
	}
	if got := b.Fetch("GET", "/api/x").StatusCode; got != 200 {
		t.Errorf("API call: got %d", got)
	}
	if dump := redis.Do("KEYS", "*"); !strings.Contains(dump, "cloakroom:session:") {
		t.Errorf("keys in Redis: %q", dump)
	}

	p.end()
	p = start(t, nil, "serve", "--config", file)
	ready(t, admin)
	if got := b.Fetch("GET", "/api/x").StatusCode; got != 200 {
		t.Errorf("API call after a restart: got %d", got)
	}
	redis.Kill()
	eventually(t, 10*time.Second, "the broker notices that Redis is gone and trusts its memory no more", func() bool {
		return b.Fetch("GET", "/api/x").StatusCode == 503
	})
	for _, path := range []string{"/api/x", "/bff/session"} {
		if answer := b.Fetch("GET", path); answer.StatusCode != 503 || answer.Code() != "store_unavailable" {
			t.Errorf("%s without Redis: got %d %s", path, answer.StatusCode, answer.Code())
		}
	}
	redis.Start()
	ready(t, admin)
	if got := b.Fetch("GET", "/api/x").StatusCode; got != 200 {
		t.Errorf("API call once Redis is back: got %d", got)
	}
	if got := b.Submit("/bff/logout", nil).StatusCode; got != 303 {
		t.Errorf("logout: got %d", got)
	}
	if got := b.Fetch("GET", "/api/x").StatusCode; got != 401 {
		t.Errorf("API call after logout: got %d", got)
	}
	p.end()
	provider.CheckLeaks(t, "the log", p.stderr.String())
	if strings.Contains(p.stderr.String(), goodKey) {
		t.Error("the log holds a session key")
	}
	for line := range strings.Lines(p.stderr.String()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("a log line that is not JSON: %s", line)
		}
	}
}

// What a session in use costs Redis: a few commands a second, however many calls there are.
func TestAWarmSessionCostsRedisNextToNothing(t *testing.T) {
	t.Parallel()
	redis := storetest.StartRedis(t)
	public, admin := freeAddr(t), freeAddr(t)
	_, port, _ := net.SplitHostPort(public)
	provider, echo := brokertest.NewProvider(t, "http://localhost:"+port), brokertest.NewEcho(t)
	start(t, map[string]string{
		"CLOAKROOM_SERVER_LISTEN": public, "CLOAKROOM_SERVER_ADMIN_LISTEN": admin, "CLOAKROOM_SERVER_PUBLIC_URL": "http://localhost:" + port,
		"CLOAKROOM_OIDC_ISSUER": provider.Issuer, "CLOAKROOM_OIDC_CLIENT_ID": "spa", "CLOAKROOM_OIDC_CLIENT_SECRET": provider.Client.Secret,
		"CLOAKROOM_STORE_URL": redis.URL(), "CLOAKROOM_SESSION_KEYS": goodKey,
		"CLOAKROOM_ROUTES": "[{path: /api/, upstream: " + echo.URL + ", token: user}]",
	}, "serve")
	ready(t, admin)
	b := bfftest.NewBrowser(t, "http://localhost:"+port)
	if answer := b.SignIn("alice", ""); answer.StatusCode != 303 {
		t.Fatalf("sign in: got %d", answer.StatusCode)
	}
	commands := func() (n int) {
		for _, m := range regexp.MustCompile(`cmdstat_[^:]+:calls=(\d+)`).FindAllStringSubmatch(redis.Do("INFO", "commandstats"), -1) {
			calls, _ := strconv.Atoi(m[1])
			n += calls
		}
		return n
	}
	const calls = 500
	before, began := commands(), time.Now()
	for i := range calls {
		if got := b.Fetch("GET", "/api/x").StatusCode; got != 200 {
			t.Fatalf("call %d: got %d", i, got)
		}
	}
	n, took := commands()-before, time.Since(began)
	t.Logf("%d commands for %d calls in %v", n, calls, took)
	// Four heartbeats and a look at the master a second, each session once in four.
	if limit := int(14 * (took.Seconds() + 1)); n > limit {
		t.Errorf("%d commands in %v, want %d at most", n, took, limit)
	}
}

// story signs in, calls the API over more than one token's life, and signs out.
func story(t *testing.T, app string, tokenLife time.Duration) {
	t.Helper()
	b := bfftest.NewBrowser(t, app)
	if answer := b.Navigate("/"); answer.StatusCode != 200 || !strings.Contains(answer.Text, "<html") {
		t.Errorf("the app: got %d", answer.StatusCode)
	}
	if answer := b.Navigate("/bff/client.js"); answer.StatusCode != 200 || answer.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("the client: got %d, %s", answer.StatusCode, answer.Header.Get("Cache-Control"))
	}
	if answer := b.SignIn("alice", ""); answer.StatusCode != 303 {
		t.Fatalf("sign in: got %d\n%s", answer.StatusCode, answer.Text)
	}
	tokens := make(map[string]bool)
	for until := time.Now().Add(tokenLife + tokenLife/2); time.Now().Before(until); time.Sleep(50 * time.Millisecond) {
		var me struct {
			Message string
			TokenID string `json:"token_id"`
		}
		answer := b.Fetch("GET", "/api/me")
		answer.Decode(t, &me)
		if answer.StatusCode != 200 || !strings.Contains(me.Message, "Alice") {
			t.Fatalf("/api/me: got %d %s", answer.StatusCode, answer.Text)
		}
		tokens[me.TokenID] = true
	}
	if len(tokens) < 2 {
		t.Errorf("the access token was not refreshed in one and a half of its lives")
	}
	for path, want := range map[string]int{"/api/orders": 200, "/api/admin": 403, "/public/time": 200, "/api/nothing": 404} {
		if answer := b.Fetch("GET", path); answer.StatusCode != want {
			t.Errorf("%s: got %d %s, want %d", path, answer.StatusCode, answer.Text, want)
		}
	}
	out := b.Submit("/bff/logout", url.Values{"return_to": {"/"}})
	back := b.Navigate(b.Navigate(out.Location(t).String()).Location(t).String())
	if got := back.Location(t).String(); got != app+"/" {
		t.Errorf("after logout: at %s, want %s/", got, app)
	}
	if got := b.Fetch("GET", "/api/me").StatusCode; got != 401 {
		t.Errorf("/api/me after logout: got %d", got)
	}
	if seen := b.Received(); strings.Contains(seen, "eyJ") {
		t.Error("the browser saw something like a token")
	}
}

func ready(t *testing.T, admin string) {
	t.Helper()
	var last string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
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
	t.Fatalf("not ready: %s", last)
}

// freeAddr returns an address of this machine on which nothing listens. Its port
// is below those that outgoing connections get, so that none takes it before it
// is used.
func freeAddr(t *testing.T) string {
	t.Helper()
	for range 100 {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(10000+rand.N(22000)))
		if l, err := net.Listen("tcp", addr); err == nil {
			l.Close()
			return addr
		}
	}
	t.Fatal("no free port among 100")
	return ""
}

func TestShutdownLetsARequestFinish(t *testing.T) {
	t.Parallel()
	public := freeAddr(t)
	_, port, _ := net.SplitHostPort(public)
	app := "http://localhost:" + port
	provider := brokertest.NewProvider(t, app)
	echo := brokertest.NewEcho(t)
	arrived, release := make(chan struct{}), make(chan struct{})
	echo.Handler = func(w http.ResponseWriter, _ *http.Request) {
		close(arrived)
		<-release
		io.WriteString(w, "whole")
	}
	p := start(t, map[string]string{
		"CLOAKROOM_SERVER_LISTEN": public, "CLOAKROOM_SERVER_ADMIN_LISTEN": "127.0.0.1:0", "CLOAKROOM_SERVER_PUBLIC_URL": app,
		"CLOAKROOM_OIDC_ISSUER": provider.Issuer, "CLOAKROOM_OIDC_CLIENT_ID": "spa", "CLOAKROOM_OIDC_CLIENT_SECRET": provider.Client.Secret,
		"CLOAKROOM_ROUTES": "[{path: /public/, upstream: " + echo.URL + ", token: none}]",
	}, "serve")
	p.waitFor(p.stderr, `"msg":"listening"`)
	b := bfftest.NewBrowser(t, app)
	answered := make(chan *bfftest.Response)
	go func() { answered <- b.Fetch("GET", "/public/x") }()
	<-arrived
	p.stop()
	p.waitFor(p.stderr, `"msg":"shutting down"`)
	close(release)
	if answer := <-answered; answer.StatusCode != 200 || answer.Text != "whole" {
		t.Errorf("got %d %q, want the whole answer", answer.StatusCode, answer.Text)
	}
}

// Streams have no end of their own, so a shutdown does not wait for it: their clients connect again elsewhere.
func TestShutdownEndsStreamsAndLetsOtherRequestsFinish(t *testing.T) {
	t.Parallel()
	public := freeAddr(t)
	_, port, _ := net.SplitHostPort(public)
	app := "http://localhost:" + port
	provider := brokertest.NewProvider(t, app)
	echo := brokertest.NewEcho(t)
	arrived, release, left := make(chan struct{}, 2), make(chan struct{}), make(chan struct{})
	echo.Handler = func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/public/events" {
			w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
			w.(http.Flusher).Flush()
			arrived <- struct{}{}
			<-r.Context().Done()
			close(left)
			return
		}
		arrived <- struct{}{}
		<-release
		io.WriteString(w, "whole")
	}
	p := start(t, map[string]string{
		"CLOAKROOM_SERVER_LISTEN": public, "CLOAKROOM_SERVER_ADMIN_LISTEN": "127.0.0.1:0", "CLOAKROOM_SERVER_PUBLIC_URL": app, "CLOAKROOM_SERVER_SHUTDOWN_GRACE": "10m",
		"CLOAKROOM_OIDC_ISSUER": provider.Issuer, "CLOAKROOM_OIDC_CLIENT_ID": "spa", "CLOAKROOM_OIDC_CLIENT_SECRET": provider.Client.Secret,
		"CLOAKROOM_ROUTES": "[{path: /public/, upstream: " + echo.URL + ", token: none, csrf: fetch-metadata}]",
	}, "serve")
	p.waitFor(p.stderr, `"msg":"listening"`)
	b := bfftest.NewBrowser(t, app)
	stream := b.Open("/public/events")
	defer stream.Body.Close()
	answered := make(chan *bfftest.Response)
	go func() { answered <- b.Fetch("GET", "/public/x") }()
	<-arrived
	<-arrived
	p.stop()
	<-left
	if _, err := io.ReadAll(stream.Body); err == nil {
		t.Error("the stream has ended as if it were complete")
	}
	close(release)
	if answer := <-answered; answer.StatusCode != 200 || answer.Text != "whole" {
		t.Errorf("got %d %q, want the whole answer", answer.StatusCode, answer.Text)
	}
}

func TestSIGHUPReadsTheConfigurationAgain(t *testing.T) {
	public := freeAddr(t)
	_, port, _ := net.SplitHostPort(public)
	app := "http://localhost:" + port
	provider := brokertest.NewProvider(t, app)
	echo := brokertest.NewEcho(t)
	text := fmt.Sprintf("server: {listen: %q, admin_listen: '127.0.0.1:0', public_url: %q}\noidc: {issuer: %q, client_id: spa, client_secret: %q}\n", public, app, provider.Issuer, provider.Client.Secret)
	file := writeFile(t, "cloakroom.yaml", text)
	write := func(more string) {
		if err := os.WriteFile(file, []byte(text+more), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	p := start(t, nil, "serve", "--config", file)
	p.waitFor(p.stderr, `"msg":"provider found"`)
	b := bfftest.NewBrowser(t, app)
	if got := b.SignIn("alice", "").StatusCode; got != 303 {
		t.Fatalf("sign in: got %d", got)
	}
	if got := b.Fetch("GET", "/api/x").StatusCode; got != 404 {
		t.Errorf("before there is a route: got %d", got)
	}
	write("routes: [{path: /api/, upstream: '" + echo.URL + "', token: user}]\n")
	p.waitFor(p.stderr, `"in_force":\{.*"routes\[0\]"`)
	if got := b.Fetch("GET", "/api/x").StatusCode; got != 200 {
		t.Errorf("with the route, in the same session: got %d", got)
	}
	write("routes: [{path: /api/, token: maybe}]\nstore: {url: 'redis://localhost'}\nnonsense: 1\n")
	p.waitFor(p.stderr, `"configuration not changed: the one before stays in force","mistakes":\[".*nonsense: unknown key"`)
	write("routes: [{path: /api/, token: maybe}]\nsession: {keys: [" + goodKey + "]}\nstore: {url: 'redis://localhost'}\n")
	p.waitFor(p.stderr, `"mistakes":\["routes\[0\].token: .*"store: a change needs a restart"\]`)
	if got := b.Fetch("GET", "/api/x").StatusCode; got != 200 {
		t.Errorf("after a broken file: got %d", got)
	}
}

func TestServeWithTLS(t *testing.T) {
	t.Parallel()
	public := freeAddr(t)
	_, port, _ := net.SplitHostPort(public)
	certificate := httptest.NewUnstartedServer(nil)
	certificate.StartTLS()
	certificate.Close()
	pair := certificate.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, map[string]string{
		"CLOAKROOM_SERVER_LISTEN": public, "CLOAKROOM_SERVER_ADMIN_LISTEN": "127.0.0.1:0", "CLOAKROOM_SERVER_PUBLIC_URL": "https://localhost:" + port,
		"CLOAKROOM_SERVER_TLS_CERT_FILE": writeFile(t, "tls.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]}))),
		"CLOAKROOM_SERVER_TLS_KEY_FILE":  writeFile(t, "tls.key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))),
		"CLOAKROOM_OIDC_ISSUER":          "https://127.0.0.1:1", "CLOAKROOM_OIDC_CLIENT_ID": "spa", "CLOAKROOM_OIDC_CLIENT_SECRET": "s",
	}, "serve")
	p.waitFor(p.stderr, `"msg":"listening"`)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}}
	defer client.CloseIdleConnections()
	req, _ := http.NewRequest("GET", "https://localhost:"+port+"/bff/session", nil)
	req.Header.Set("X-CSRF", "1")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 || resp.ProtoMajor != 2 {
		t.Errorf("got %d over %s, want 200 over HTTP/2", resp.StatusCode, resp.Proto)
	}
	// What is sent as HTTP/1.1 over TLS is looked at as it is without.
	raw, err := tls.Dial("tcp", public, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	host := "Host: localhost:" + port + "\r\n"
	fmt.Fprintf(raw, "POST /bff/session HTTP/1.1\r\n%sContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", host)
	if answer, _ := io.ReadAll(raw); !strings.HasPrefix(string(answer), "HTTP/1.1 400 ") {
		t.Errorf("two lengths over TLS: got %q", answer)
	}
	// The provider is not there: the broker lives, and says so.
	if resp, err := client.Get("https://localhost:" + port + "/bff/login"); err != nil || resp.StatusCode != 503 {
		t.Errorf("login: got %v, %v, want 503", resp, err)
	}
}
