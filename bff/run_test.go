package bff_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/session"
)

// slowApp returns a frontend that responds after release, and a channel that
// receives when a request has arrived.
func slowApp(t *testing.T) (app http.Handler, arrived <-chan struct{}, release func()) {
	requests, released := make(chan struct{}, 10), make(chan struct{})
	release = sync.OnceFunc(func() { close(released) })
	t.Cleanup(release)
	app = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests <- struct{}{}
		<-released
		io.WriteString(w, "finished")
	})
	return app, requests, release
}

// serve runs a server with a configuration on listeners until stop. result
// receives what Run returns.
func serve(t *testing.T, cfg bff.Config, listeners ...net.Listener) (
	server *bff.Server, stop context.CancelFunc, result <-chan error,
) {
	t.Helper()
	server, err := bff.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx, listeners...) }() // until stop
	return server, stop, ended
}

// reload puts a configuration in force.
func reload(t *testing.T, server *bff.Server, cfg bff.Config) error {
	t.Helper()
	next, err := bff.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return server.Reload(t.Context(), next)
}

// get requests a path of a broker at an address, and returns the body of the
// response.
func (a *app) get(address, path string) (string, error) {
	req, err := http.NewRequest("GET", "http://"+address+path, nil)
	if err != nil {
		return "", err
	}
	req.Host = strings.TrimPrefix(a.url, "http://")
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

func TestRunServesItsListenersAndDrainsRequests(t *testing.T) {
	t.Parallel()
	frontend, arrived, release := slowApp(t)
	var cfg bff.Config
	a := newApp(t, func(_ *app, c *bff.Config) {
		c.Frontend = frontend
		cfg = *c
	})
	server, err := bff.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	first, second := listen(t), listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- server.Run(ctx, first, second) }()
	bodies := make(chan string, 2)
	for _, l := range []net.Listener{first, second} {
		go func() {
			body, err := a.get(l.Addr().String(), "/")
			if err != nil {
				body = err.Error()
			}
			bodies <- body
		}()
		<-arrived
	}
	cancel()
	waitFor(t, "the listeners are closed", func() bool {
		conn, err := net.Dial("tcp", first.Addr().String())
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	select {
	case err := <-result:
		t.Fatalf("Run returned %v with requests in flight", err)
	default:
	}
	release()
	for range 2 {
		if body := <-bodies; body != "finished" {
			t.Errorf("a request in flight: got %q", body)
		}
	}
	if err := <-result; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// Without listeners another http.Server serves. Run still waits for the
// requests.
func TestRunWithoutListenersWaitsForRequests(t *testing.T) {
	t.Parallel()
	frontend, arrived, release := slowApp(t)
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Frontend = frontend })
	body := make(chan string, 1)
	go func() {
		text, _ := a.get(strings.TrimPrefix(a.url, "http://"), "/")
		body <- text
	}()
	<-arrived
	stopped := make(chan error, 1)
	go func() { stopped <- a.stop() }()
	waitFor(t, "the shutdown has begun", func() bool { return strings.Contains(a.logs.String(), "shutting down") })
	select {
	case err := <-stopped:
		t.Fatalf("Run returned %v with a request in flight", err)
	case <-time.After(50 * time.Millisecond):
	}
	release()
	if text := <-body; text != "finished" {
		t.Errorf("the request in flight: got %q", text)
	}
	if err := <-stopped; err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestRunReportsAListenerThatFails(t *testing.T) {
	t.Parallel()
	var cfg bff.Config
	newApp(t, func(_ *app, c *bff.Config) { cfg = *c })
	server, err := bff.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	good, bad := listen(t), listen(t)
	bad.Close()
	err = server.Run(t.Context(), good, bad)
	if err == nil || !strings.Contains(err.Error(), bad.Addr().String()) {
		t.Errorf("got %v, want an error that names %s", err, bad.Addr())
	}
	if conn, err := net.Dial("tcp", good.Addr().String()); err == nil {
		conn.Close()
		t.Error("the other listener is open")
	}
	if err := server.Run(t.Context()); err == nil {
		t.Error("a second Run succeeded")
	}
}

func TestReloadNeedsRun(t *testing.T) {
	t.Parallel()
	var cfg bff.Config
	a := newApp(t, func(_ *app, c *bff.Config) { cfg = *c })
	newServer := func() *bff.Server {
		server, err := bff.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		return server
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := newServer().Reload(ctx, newServer()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Reload before Run: got %v, want that it waits", err)
	}
	late := newServer()
	reloaded := make(chan error, 1)
	go func() { reloaded <- late.Reload(t.Context(), newServer()) }()
	run(t, late)
	if err := <-reloaded; err != nil {
		t.Errorf("Reload while Run begins: %v", err)
	}
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	if err := a.server.Reload(t.Context(), newServer()); err == nil {
		t.Error("Reload after Run succeeded")
	}
}

// What was received before a Reload ends under the configuration before, also
// without a session; what comes later is served under the next.
func TestReloadDropsNoRequest(t *testing.T) {
	t.Parallel()
	frontend, arrived, release := slowApp(t)
	var cfg bff.Config
	a := newApp(t, func(_ *app, c *bff.Config) {
		c.Frontend = frontend
		cfg = *c
	})
	host := strings.TrimPrefix(a.url, "http://")
	body := make(chan string, 1)
	go func() {
		text, _ := a.get(host, "/")
		body <- text
	}()
	<-arrived
	b := a.signedIn()
	cfg.Frontend = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "next") })
	if err := reload(t, a.server, cfg); err != nil {
		t.Fatal(err)
	}
	if text, err := a.get(host, "/"); text != "next" {
		t.Errorf("after Reload: got %q, %v", text, err)
	}
	a.wantSession(b, "alice")
	release()
	if text := <-body; text != "finished" {
		t.Errorf("the request from before: got %q", text)
	}
}

// keepAlive is a connection on which requests are sent one after the other.
type keepAlive struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
	host string
}

func (a *app) keepAlive(address string) *keepAlive {
	a.t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { conn.Close() })
	return &keepAlive{a.t, conn, bufio.NewReader(conn), strings.TrimPrefix(a.url, "http://")}
}

// get returns the response to a request whose body has been read.
func (k *keepAlive) get(path string) *http.Response {
	k.t.Helper()
	fmt.Fprintf(k.conn, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path, k.host)
	resp, err := http.ReadResponse(k.r, nil)
	if err != nil {
		k.t.Fatalf("%s: %v", path, err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	return resp
}

// readyz returns the status of /readyz.
func readyz(server *bff.Server, query string) (int, string) {
	w := httptest.NewRecorder()
	server.Admin().ServeHTTP(w, httptest.NewRequest("GET", "/readyz"+query, nil))
	return w.Code, w.Body.String()
}

func TestShutdownLosesNoRequest(t *testing.T) {
	t.Parallel()
	var cfg bff.Config
	a := newApp(t, func(_ *app, c *bff.Config) {
		cfg = *c
		cfg.ShutdownDelay = 3 * time.Second // longer than the requests below take on a busy machine
	})
	server, err := bff.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if status, _ := readyz(server, ""); status != 503 {
		t.Errorf("/readyz before Run: got %d, want 503", status)
	}
	l := listen(t)
	ctx, stop := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- server.Run(ctx, l) }()
	busy, idle := a.keepAlive(l.Addr().String()), a.keepAlive(l.Addr().String())
	for _, k := range []*keepAlive{busy, idle} {
		if k.get("/").Close {
			t.Fatal("a response of a running server closes its connection")
		}
	}
	if status, _ := readyz(server, ""); status != 200 {
		t.Errorf("/readyz: got %d, want 200", status)
	}
	stop()
	waitFor(t, "the server is not ready", func() bool {
		status, _ := readyz(server, "")
		return status == 503
	})
	if !busy.get("/").Close {
		t.Error("during the delay: the response lacks Connection: close")
	}
	if !a.keepAlive(l.Addr().String()).get("/").Close {
		t.Error("a new connection during the delay: the response lacks Connection: close")
	}
	waitFor(t, "the listener is closed", func() bool {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	if !idle.get("/").Close {
		t.Error("after the delay: the response on an idle connection lacks Connection: close")
	}
	if err := <-result; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// With HTTP/2, a connection is closed by GOAWAY after its streams.
func TestShutdownSendsGoAway(t *testing.T) {
	t.Parallel()
	certified := httptest.NewUnstartedServer(nil)
	certified.StartTLS()
	defer certified.Close()
	var cfg bff.Config
	a := newApp(t, func(_ *app, c *bff.Config) {
		cfg = *c
		cfg.ShutdownDelay = 3 * time.Second // longer than the requests below take on a busy machine
		cfg.TLS = &tls.Config{Certificates: certified.TLS.Certificates, NextProtos: []string{"h2", "http/1.1"}}
	})
	l := listen(t)
	server, stop, result := serve(t, cfg, l)
	transport := certified.Client().Transport.(*http.Transport).Clone()
	transport.ForceAttemptHTTP2 = true
	var dialed atomic.Int32
	transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		dialed.Add(1)
		return new(net.Dialer).DialContext(ctx, network, l.Addr().String())
	}
	client := &http.Client{Transport: transport}
	get := func() {
		t.Helper()
		req, _ := http.NewRequest("GET", "https://example.com/", nil)
		req.Host = strings.TrimPrefix(a.url, "http://")
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.ProtoMajor != 2 {
			t.Fatalf("got %s", resp.Proto)
		}
	}
	get()
	get()
	if n := dialed.Load(); n != 1 {
		t.Fatalf("two requests used %d connections", n)
	}
	stop()
	waitFor(t, "the server is not ready", func() bool {
		status, _ := readyz(server, "")
		return status == 503
	})
	get() // its response brings GOAWAY
	waitFor(t, "the connection is not used any more", func() bool {
		get()
		return dialed.Load() > 1
	})
	if err := <-result; err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestReadinessDoesNotDependOnWhatReplicasShare(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	a.store.setDown(errors.New("down"))
	if status, text := readyz(a.server, ""); status != 200 {
		t.Errorf("with the store down: got %d %s", status, text)
	}
	status, text := readyz(a.server, "?verbose")
	if status != 200 {
		t.Errorf("verbose: got %d, want 200", status)
	}
	for _, want := range []string{"[-] store: ", "[+] provider: ok", "[+] upstream /api/ "} {
		if !strings.Contains(text, want) {
			t.Errorf("verbose lacks %q:\n%s", want, text)
		}
	}
}

func TestAdministratorsNeedAToken(t *testing.T) {
	t.Parallel()
	loopback, other := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}
	for name, test := range map[string]struct {
		token  string
		local  net.Addr
		host   string
		header []string
		want   int
	}{
		"on loopback":                  {"", loopback, "127.0.0.1:9090", nil, 200},
		"on loopback, by name":         {"", loopback, "localhost:9090", nil, 200},
		"on a socket":                  {"", &net.UnixAddr{Name: "/run/x"}, "localhost", nil, 200},
		"by a name of another":         {"", loopback, "evil.example", nil, 403},
		"from a page of another":       {"", loopback, "127.0.0.1:9090", []string{"Sec-Fetch-Site", "cross-site"}, 403},
		"off loopback":                 {"", other, "127.0.0.1:9090", nil, 401},
		"with the token":               {"secret", other, "any", []string{"Authorization", "Bearer secret"}, 200},
		"with another":                 {"secret", other, "any", []string{"Authorization", "Bearer secre"}, 401},
		"without the token":            {"secret", other, "any", nil, 401},
		"on loopback, without one set": {"secret", loopback, "127.0.0.1:9090", nil, 401},
		"with Basic": {
			"secret", loopback, "127.0.0.1:9090", []string{"Authorization", "Basic secret"}, 401,
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.AdminToken = session.Secret(test.token) })
			r := httptest.NewRequest("POST", "/admin/x", nil)
			r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, test.local))
			r.Host = test.host
			if test.header != nil {
				r.Header.Set(test.header[0], test.header[1])
			}
			w := httptest.NewRecorder()
			a.server.RequireAdmin(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})).ServeHTTP(w, r)
			if w.Code != test.want {
				t.Errorf("got %d %s, want %d", w.Code, w.Body, test.want)
			}
		})
	}
}

// The details name upstreams. The status is public: probes need it.
func TestDetailsOfTheReadinessAreForAdministrators(t *testing.T) {
	t.Parallel()
	loopback, other := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.AdminToken = "secret" })
	for name, test := range map[string]struct {
		local         net.Addr
		host          string
		authorization string
		want          bool
	}{
		"on loopback":          {loopback, "127.0.0.1:9090", "", true},
		"on loopback, by name": {loopback, "localhost", "", true},
		"on a socket":          {&net.UnixAddr{Name: "/run/x"}, "localhost", "", true},
		"by a name of another": {loopback, "evil.example", "", false},
		"off loopback":         {other, "127.0.0.1:9090", "", false},
		"with the token":       {other, "any", "Bearer secret", true},
		"with another":         {other, "any", "Bearer secre", false},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "/readyz?verbose", nil)
			r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, test.local))
			r.Host = test.host
			r.Header.Set("Authorization", test.authorization)
			w := httptest.NewRecorder()
			a.server.Admin().ServeHTTP(w, r)
			if w.Code != 200 {
				t.Errorf("status: got %d, want 200", w.Code)
			}
			if got := strings.Contains(w.Body.String(), "upstream /api/"); got != test.want {
				t.Errorf("details: got %t, want %t:\n%s", got, test.want, w.Body)
			}
		})
	}
}

// A replica that has just started is ready before it has read the provider's
// metadata. A login at that moment waits.
func TestLoginWaitsForTheFirstDiscovery(t *testing.T) {
	t.Parallel()
	var cfg bff.Config
	a := newApp(t, func(_ *app, c *bff.Config) { cfg = *c })
	started := make(chan struct{}, 1)
	a.recordCalls(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "/.well-known/") {
			select {
			case started <- struct{}{}:
			default: // another request, after a second
			}
			time.Sleep(300 * time.Millisecond)
		}
		next.ServeHTTP(w, r)
	}})
	server, err := bff.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	run(t, server)
	<-started
	r := httptest.NewRequest("GET", "/bff/login", nil)
	r.Host = strings.TrimPrefix(a.url, "http://")
	r.Header.Set("Sec-Fetch-Mode", "navigate")
	r.Header.Set("Sec-Fetch-Dest", "document")
	w := httptest.NewRecorder()
	server.ServeHTTP(w, r)
	if w.Code != 302 {
		t.Errorf("got %d %s, want 302", w.Code, w.Body)
	}
}

// While the provider is down, a reload applies everything else.
func TestReloadInAnOutageOfTheProvider(t *testing.T) {
	t.Parallel()
	var cfg bff.Config
	a := newApp(t, func(_ *app, c *bff.Config) { cfg = *c })
	a.recordCalls(devidp.Hooks{Intercept: func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.WriteHeader(503)
	}})
	cfg.Frontend = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "next") })
	reload := func(cfg bff.Config) error {
		t.Helper()
		next, err := bff.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		return a.server.Reload(t.Context(), next)
	}
	if err := reload(cfg); err != nil {
		t.Errorf("the same provider: %v", err)
	}
	host := strings.TrimPrefix(a.url, "http://")
	if text, err := a.get(host, "/"); text != "next" {
		t.Errorf("after the reload: got %q, %v", text, err)
	}
	cfg.Provider.Issuer = "http://127.0.0.1:1"
	var mistake *bff.ConfigError
	if err := reload(cfg); !errors.As(err, &mistake) || mistake.Key != "Provider.Issuer" {
		t.Errorf("another provider that does not respond: got %v, want a mistake in Provider.Issuer", err)
	}
}

func TestReadyzSaysThatAnUpstreamIsUnused(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(a *app, cfg *bff.Config) {
		cfg.Routes = []bff.Route{
			{Path: "/used/", Upstream: []string{a.echo.URL}, Token: bff.TokenNone},
			{Path: "/named/", Upstream: []string{"http://orders.invalid:8080"}, Token: bff.TokenNone},
		}
	})
	_, before := readyz(a.server, "?verbose")
	for _, want := range []string{"[+] upstream /used/ ", "[+] upstream /named/ orders.invalid:8080: not used yet\n"} {
		if !strings.Contains(before, want) {
			t.Errorf("before a request: got\n%s\nwant %q", before, want)
		}
	}
	used := "[+] upstream /used/ " + strings.TrimPrefix(a.echo.URL, "http://")
	if !strings.Contains(before, used+": not used yet\n") {
		t.Errorf("before a request: got\n%s\nwant that %q is not used yet", before, used)
	}
	a.browser().Fetch("GET", "/used/x")
	if _, after := readyz(a.server, "?verbose"); !strings.Contains(after, used+": ok\n") {
		t.Errorf("after a request: got\n%s\nwant %q", after, used+": ok")
	}
}
