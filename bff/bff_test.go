package bff_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

// app is a broker on a free port with its own provider and upstream.
type app struct {
	t        *testing.T
	url      string
	provider *brokertest.Provider
	echo     *brokertest.Echo
	store    *faultyStore
	server   *bff.Server
	embedded bool         // another http.Server serves it; set by edit
	stop     func() error // ends Server.Run, and returns its error
	logs     *buffer
	adminURL string // of Server.Admin, set by admin
}

// newApp starts a broker. edit changes its configuration unless it is nil.
// newApp returns after discovery has succeeded, unless the provider is down.
func newApp(t *testing.T, edit func(*app, *bff.Config)) *app {
	t.Helper()
	return newAppWith(t, nil, edit)
}

// newAppWith is newApp with a provider whose configuration provider changes.
func newAppWith(t *testing.T, provider func(*devidp.Config), edit func(*app, *bff.Config)) *app {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	a := &app{
		t:     t,
		url:   "http://localhost:" + port,
		store: &faultyStore{Store: new(tokenstore.Memory)},
		logs:  new(buffer),
		echo:  brokertest.NewEcho(t),
	}
	a.provider = brokertest.StartProvider(t, a.url, provider)
	cfg := bff.Config{
		PublicURL: a.url,
		Provider: bff.ProviderConfig{
			Issuer: a.provider.Issuer, ClientID: a.provider.Client.ID,
			ClientSecret: session.Secret(a.provider.Client.Secret),
		},
		Sessions: session.Config{Store: a.store, Keys: [][]byte{bytes.Repeat([]byte("k"), 32)}},
		Routes: []bff.Route{
			{Path: "/api/", Upstream: []string{a.echo.URL}, Token: "user"},
			{Path: "/public/", Upstream: []string{a.echo.URL}, Token: "none"},
			{Path: "/stream/", Upstream: []string{a.echo.URL}, Token: "user", CSRF: "fetch-metadata"},
		},
		Limits:   bff.Limits{Logins: bff.RateLimit{Rate: 1e6, Burst: 1e6}}, // all browsers have one address
		Frontend: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "the app") }),
		Logger:   slog.New(slog.NewJSONHandler(a.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if edit != nil {
		edit(a, &cfg)
	}
	a.server, err = bff.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if a.embedded {
		s := &http.Server{Handler: a.server}
		go s.Serve(l) // until Close
		t.Cleanup(func() { s.Close() })
		a.stop = run(t, a.server)
	} else {
		a.stop = run(t, a.server, l)
	}
	t.Cleanup(func() {
		if err := a.stop(); err != nil {
			t.Error(err)
		}
		a.provider.CheckLeaks(t, "the log", a.logs.String())
	})
	if a.provider.Discoverable() {
		a.waitReady()
	}
	return a
}

// run runs a server until stop is called or the test ends. Without listeners,
// another http.Server serves it.
func run(t testing.TB, server *bff.Server, listeners ...net.Listener) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() { result <- server.Run(ctx, listeners...) }() // until stop
	stop = sync.OnceValue(func() error {
		cancel()
		return <-result
	})
	t.Cleanup(func() { stop() })
	return stop
}

// waitReady waits until discovery has succeeded.
func (a *app) waitReady() {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), 20*time.Second)
	defer cancel()
	if err := a.server.WaitForProvider(ctx); err != nil {
		a.t.Fatalf("%v:\n%s", err, a.logs)
	}
}

// httpClient sends requests that are not those of a browser. It has connections
// of its own: a test that closes a httptest.Server closes the idle ones of
// http.DefaultTransport, which can fail a request of another test.
var httpClient = &http.Client{Transport: http.DefaultTransport.(*http.Transport).Clone()}

func (a *app) browser() *bfftest.Browser {
	b := bfftest.NewBrowser(a.t, a.url)
	if a.provider.Roots != nil {
		b.TrustRoots(a.provider.Roots)
	}
	a.t.Cleanup(func() { a.provider.CheckLeaks(a.t, "what a browser saw", b.Received()) })
	return b
}

// signedIn returns a browser in which alice is signed in.
func (a *app) signedIn() *bfftest.Browser {
	a.t.Helper()
	b := a.browser()
	if resp := b.SignIn("alice", ""); resp.StatusCode != 303 {
		a.t.Fatalf("sign in: got %d, want 303:\n%s\n%s", resp.StatusCode, resp.Text, a.logs)
	}
	return b
}

// wantSession checks which user is signed in; "" means none.
func (a *app) wantSession(b *bfftest.Browser, sub string) {
	a.t.Helper()
	var got sessionBody
	b.Fetch("GET", "/bff/session").Decode(a.t, &got)
	if got.Authenticated != (sub != "") || got.User.Sub != sub {
		a.t.Errorf("signed in: %v as %q, want %q", got.Authenticated, got.User.Sub, sub)
	}
}

// sessionBody is the response of /bff/session.
type sessionBody struct {
	Authenticated bool
	User          struct{ Sub, Name, Email string }
	Session       struct {
		ID                   string    `json:"id"`
		CreatedAt            time.Time `json:"created_at"`
		IdleExpiresAt        time.Time `json:"idle_expires_at"`
		ExpiresAt            time.Time `json:"expires_at"`
		AccessTokenExpiresAt time.Time `json:"access_token_expires_at"`
	}
}

func (a *app) sessionID(b *bfftest.Browser) string {
	var body sessionBody
	b.Fetch("GET", "/bff/session").Decode(a.t, &body)
	return body.Session.ID
}

func wantProblem(t *testing.T, a *bfftest.Response, status int, code string) {
	t.Helper()
	if a.StatusCode != status || a.Code() != code {
		t.Errorf("%s %s: got %d %q, want %d %q:\n%s", a.Request.Method, a.Request.URL.Path,
			a.StatusCode, a.Code(), status, code, a.Text)
	}
	if got := a.Header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("%s %s: Cache-Control: got %q, want no-store", a.Request.Method, a.Request.URL.Path, got)
	}
}

// wantPage checks for an error page with a link to try again.
func wantPage(t *testing.T, a *bfftest.Response, status int, code string) {
	t.Helper()
	request := a.Request.Method + " " + a.Request.URL.Path
	if a.StatusCode != status {
		t.Errorf("%s: status: got %d, want %d (%s):\n%s", request, a.StatusCode, status, code, a.Text)
	}
	if got := a.Header.Get("Content-Type"); !strings.HasPrefix(got, "text/html") {
		t.Errorf("%s: Content-Type: got %q, want text/html", request, got)
	}
	if !strings.Contains(a.Text, "<code>"+code+"</code>") {
		t.Errorf("%s: the page lacks the code %s:\n%s", request, code, a.Text)
	}
	if !strings.Contains(a.Text, `href="/bff/login`) {
		t.Errorf("%s: page %s has no link to try again", request, code)
	}
	for name, want := range map[string]string{
		"Cache-Control":          "no-store",
		"Referrer-Policy":        "no-referrer",
		"X-Content-Type-Options": "nosniff",
		"X-Frame-Options":        "DENY",
	} {
		if got := a.Header.Get(name); got != want {
			t.Errorf("%s: page %s: %s: got %q, want %q", request, code, name, got, want)
		}
	}
}

// wantStatus checks the status of a response. what names the request.
func wantStatus(t *testing.T, what string, resp *bfftest.Response, want int) {
	t.Helper()
	if resp.StatusCode != want {
		t.Errorf("%s: status: got %d %s, want %d", what, resp.StatusCode, resp.Code(), want)
	}
}

// wantRedirect checks the status and the Location of a redirect.
func wantRedirect(t *testing.T, what string, resp *bfftest.Response, status int, location string) {
	t.Helper()
	wantStatus(t, what, resp, status)
	if got := resp.Header.Get("Location"); got != location {
		t.Errorf("%s: Location: got %q, want %q", what, got, location)
	}
}

// echoed returns the request that the upstream got and echoed.
func echoed(t *testing.T, a *bfftest.Response) brokertest.Echoed {
	t.Helper()
	var e brokertest.Echoed
	if a.StatusCode != 200 {
		t.Fatalf("%s %s: got %d, want the upstream's 200:\n%s", a.Request.Method, a.Request.URL.Path,
			a.StatusCode, a.Text)
	}
	a.Decode(t, &e)
	return e
}

// faultyStore fails with the error down while it is set.
type faultyStore struct {
	session.Store
	mu   sync.Mutex
	down error
}

func (s *faultyStore) setDown(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = err
}

func (s *faultyStore) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.down
}

func (s *faultyStore) Get(ctx context.Context, key string) ([]byte, time.Duration, bool, error) {
	if err := s.err(); err != nil {
		return nil, 0, false, err
	}
	return s.Store.Get(ctx, key)
}

func (s *faultyStore) Create(ctx context.Context, key string, value []byte, ttl time.Duration) (bool, error) {
	if err := s.err(); err != nil {
		return false, err
	}
	return s.Store.Create(ctx, key, value, ttl)
}

// buffer is a log.
type buffer struct{ testenv.Buffer }

// lines returns the decoded log lines with the message msg.
func (b *buffer) lines(t *testing.T, msg string) []map[string]any {
	t.Helper()
	var found []map[string]any
	for line := range strings.Lines(b.String()) {
		var l map[string]any
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("a log line that is not JSON: %s", line)
		}
		if l["msg"] == msg {
			found = append(found, l)
		}
	}
	return found
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
