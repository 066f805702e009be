package bff_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

func TestRequestIDOfTrustedProxyIsTakenOver(t *testing.T) {
	t.Parallel()
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	const parent = "Traceparent: 00-" + trace + "-00f067aa0ba902b7-01"
	trusting := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	})
	strict := newApp(t, nil)
	for i, test := range []struct {
		a     *app
		lines []string
		want  string // to the upstream; "" is one of our own
		given bool   // in the response too
	}{
		{trusting, []string{"X-Request-Id: 7f0c2a5e-1d.x_Y~"}, "7f0c2a5e-1d.x_Y~", true},
		{trusting, []string{"x-request-id: Root=1-67/ab+c=@:d"}, "Root=1-67/ab+c=@:d", true},
		{trusting, []string{"X-Request-Id: " + strings.Repeat("a", 128)}, strings.Repeat("a", 128), true},
		{trusting, []string{"X-Request-Id: before-the-trace", parent}, "before-the-trace", true},
		{trusting, []string{"X-Request-Id: " + strings.Repeat("a", 129)}, "", false},
		{trusting, []string{"X-Request-Id: " + strings.Repeat("a", 129), parent}, trace, false},
		{trusting, []string{"X-Request-Id: one", "X-Request-Id: two"}, "", false},
		{trusting, []string{"X-Request-Id: one, two"}, "", false},
		{trusting, []string{"X-Request-Id: <script>"}, "", false},
		{trusting, []string{`X-Request-Id: a"b`}, "", false},
		{trusting, []string{"X-Request-Id: \xc3\xa9"}, "", false},
		{trusting, []string{"X-Request-Id:"}, "", false},
		{trusting, nil, "", false},
		{strict, []string{"X-Request-Id: chosen"}, "", false},
		{strict, []string{"X-Request-Id: chosen", parent}, "", false},
		{strict, []string{parent}, "", false},
		{trusting, []string{parent}, trace, false},
	} {
		path := fmt.Sprintf("/public/%d", i)
		resp := sendTarget(t, test.a, path, test.lines...)
		sent := echoed(t, resp).Header["X-Request-Id"]
		if len(sent) != 1 || test.want != "" && sent[0] != test.want || test.want == "" && len(sent[0]) != 16 {
			t.Errorf("%q: the upstream got %q, want %q, or 16 digits", test.lines, sent, test.want)
			continue
		}
		if got := test.a.requestLine(path)["request"]; got != sent[0] {
			t.Errorf("%q: request in the log: got %v, want %q", test.lines, got, sent[0])
		}
		var want []string
		if test.given {
			want = sent
		}
		if got := resp.Header["X-Request-Id"]; !slices.Equal(got, want) {
			t.Errorf("%q: X-Request-Id of the response: got %q, want %q", test.lines, got, want)
		}
	}
}

// The upstream's own ID passes unless a trusted proxy has given one. What the
// broker sends itself always has one.
func TestRequestIDOfResponse(t *testing.T) {
	t.Parallel()
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Request-Id", "of-the-upstream")
		switch r.URL.Path {
		case "/x/events":
			w.Header().Set("Content-Type", "text/event-stream")
		case "/x/socket":
			w.Header().Set("Upgrade", "websocket")
			w.Header().Set("Connection", "Upgrade")
			w.WriteHeader(http.StatusSwitchingProtocols)
		}
	}))
	t.Cleanup(upstream.Close)
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		cfg.Routes = append(cfg.Routes, bff.Route{Path: "/x/", Upstream: []string{upstream.URL}, Token: bff.TokenNone})
	})
	host := strings.TrimPrefix(a.url, "http://")
	socket := "Connection: Upgrade\r\nUpgrade: websocket\r\nOrigin: " + a.url +
		"\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
	get := func(path, header string) string {
		c, err := net.Dial("tcp", host)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", path, host, header)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		return strings.Join(resp.Header["X-Request-Id"], ", ")
	}
	for _, path := range []string{"/x/plain", "/x/events", "/x/socket"} {
		header := "X-CSRF: 1\r\n"
		if path == "/x/socket" {
			header = socket
		}
		if got := get(path, header); got != "of-the-upstream" {
			t.Errorf("%s: got %q, want of-the-upstream", path, got)
		}
		if got := get(path, header+"X-Request-Id: given\r\n"); got != "given" {
			t.Errorf("%s with a given ID: got %q, want given", path, got)
		}
	}
	for _, path := range []string{"/bff/session", "/bff/login", "/bff/none", "/api/x", "/public/../b"} {
		if got := get(path, "X-CSRF: 1\r\n"); len(got) != 16 {
			t.Errorf("%s: got %q, want 16 digits", path, got)
		}
		if got := get(path, "X-CSRF: 1\r\nX-Request-Id: given\r\n"); got != "given" {
			t.Errorf("%s with a given ID: got %q, want given", path, got)
		}
	}
	if got := get("/", "X-Request-Id: given\r\n"); got != "given" {
		t.Errorf("the app with a given ID: got %q, want given", got)
	}
	resp := sendTarget(t, a, "/api/x", "X-Request-Id: of-a-problem")
	if !strings.Contains(resp.Text, `"request_id":"of-a-problem"`) {
		t.Errorf("a problem without the given ID: %s", resp.Text)
	}
}

func TestRequestLineNamesRouteAndTrace(t *testing.T) {
	t.Parallel()
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	a := newApp(t, nil)
	b := a.signedIn()
	b.Fetch("GET", "/api/x/y", "Traceparent", "00-"+trace+"-00f067aa0ba902b7-01")
	line := a.requestLine("/api/x/y")
	if line["route"] != "/api/" {
		t.Errorf("route: got %v, want /api/", line["route"])
	}
	if line["trace"] != trace {
		t.Errorf("trace: got %v, want %s", line["trace"], trace)
	}
	if got, want := line["upstream"], strings.TrimPrefix(a.echo.URL, "http://"); got != want {
		t.Errorf("upstream: got %v, want %s", got, want)
	}
	if ms, ok := line["upstream_ms"].(float64); !ok || ms > line["ms"].(float64) {
		t.Errorf("upstream_ms: got %v, want at most %v", line["upstream_ms"], line["ms"])
	}
	if wait, ok := line["wait_ms"]; ok {
		t.Errorf("wait_ms: got %v, want none for a good token", wait)
	}

	a.browser().Fetch("GET", "/api/refused")
	if got := a.requestLine("/api/refused")["route"]; got != "/api/" {
		t.Errorf("a refused request: route: got %v, want /api/", got)
	}
	b.Navigate("/page")
	if got, ok := a.requestLine("/page")["route"]; ok {
		t.Errorf("a page of the app: route: got %v, want none", got)
	}
}

func TestRequestLineHasTimeOfRefresh(t *testing.T) {
	t.Parallel()
	const delay = 200 * time.Millisecond
	a := newApp(t, nil)
	b := a.expired()
	a.onRefresh(func(_ int, w http.ResponseWriter, r *http.Request, provider http.Handler) {
		time.Sleep(delay)
		provider.ServeHTTP(w, r)
	})
	b.Fetch("GET", "/api/waits")
	line := a.requestLine("/api/waits")
	waited, _ := line["wait_ms"].(float64)
	if min := float64(delay.Milliseconds()); waited < min || waited > line["ms"].(float64) {
		t.Errorf("wait_ms: got %v, want at least %v and at most ms, which is %v", line["wait_ms"], min, line["ms"])
	}
	b.Fetch("GET", "/api/does-not")
	if wait, ok := a.requestLine("/api/does-not")["wait_ms"]; ok {
		t.Errorf("the next request: wait_ms: got %v, want none", wait)
	}
	b.Fetch("POST", "/bff/session/refresh")
	if waited, _ := a.requestLine("/bff/session/refresh")["wait_ms"].(float64); waited < float64(delay.Milliseconds()) {
		t.Errorf("a forced refresh: wait_ms: got %v, want at least %v", waited, delay)
	}

	c := a.expired()
	a.onRefresh(func(_ int, w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		time.Sleep(delay)
		http.Error(w, "", http.StatusServiceUnavailable)
	})
	if resp := c.Fetch("GET", "/api/fails"); resp.StatusCode != 503 {
		t.Errorf("a failed refresh: got %d, want 503", resp.StatusCode)
	}
	if waited, _ := a.requestLine("/api/fails")["wait_ms"].(float64); waited < float64(delay.Milliseconds()) {
		t.Errorf("a failed refresh: wait_ms: got %v, want at least %v", waited, delay)
	}
}

// A stream that began under the previous configuration is logged as the one in
// force demands.
func TestOpenStreamIsLoggedAsLastReloadDemands(t *testing.T) {
	t.Parallel()
	end := make(chan struct{})
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		http.NewResponseController(w).Flush()
		<-end
	}))
	t.Cleanup(upstream.Close)
	var cfg bff.Config
	a := newApp(t, func(_ *app, c *bff.Config) {
		c.Routes = append(c.Routes, bff.Route{Path: "/x/", Upstream: []string{upstream.URL}, Token: bff.TokenUser})
		cfg = *c
	})
	b := a.signedIn()
	for _, path := range []string{"/x/named", "/x/excluded"} {
		resp := b.Open(path)
		defer resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Fatalf("%s: got %d, want 200", path, resp.StatusCode)
		}
	}
	cfg.LogUsers, cfg.LogExclude = bff.UsersPlain, []string{"/x/excluded"}
	if err := reload(t, a.server, cfg); err != nil {
		t.Fatal(err)
	}
	close(end)
	if got := a.requestLine("/x/named")["user"]; got != "alice" {
		t.Errorf("user: got %v, want alice", got)
	}
	if err := a.stop(); err != nil {
		t.Error(err)
	}
	for _, line := range a.logs.lines(t, "request") {
		if line["path"] == "/x/excluded" {
			t.Errorf("got %v, want no line", line)
		}
	}
}

func TestSettingsOfRequestLogAreChecked(t *testing.T) {
	t.Parallel()
	_, err := bff.New(bff.Config{LogRequests: "some", LogExclude: []string{"/a/", "b", "/c/../d"}, LogUsers: "md5"})
	for _, want := range []string{"LogRequests: ", "LogExclude[1]: ", "LogExclude[2]: ", "LogUsers: "} {
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("got %v, want a mistake for %s", err, want)
		}
	}
	if strings.Contains(fmt.Sprint(err), "LogExclude[0]") {
		t.Errorf("got %v, want none for /a/", err)
	}
}

// BenchmarkRequestLine measures the access log line of a proxied request.
//
//	go test ./bff -run '^$' -bench RequestLine -benchmem
func BenchmarkRequestLine(b *testing.B) {
	for name, cfg := range map[string]bff.Config{
		"all":      {},
		"excluded": {LogExclude: []string{"/assets/", "/api/"}},
		"errors":   {LogRequests: bff.RequestsErrors},
		"none":     {LogRequests: bff.RequestsNone},
	} {
		b.Run(name, func(b *testing.B) {
			cfg.PublicURL, cfg.Logger = "https://app.example.com", slog.New(slog.NewJSONHandler(io.Discard, nil))
			cfg.Provider = bff.ProviderConfig{Issuer: "https://id.example.com", ClientID: "spa", ClientSecret: "secret"}
			cfg.Sessions = session.Config{Store: new(tokenstore.Memory), Keys: [][]byte{bytes.Repeat([]byte("k"), 32)}}
			server := must(bff.New(cfg))
			b.ReportAllocs()
			for b.Loop() {
				server.LogRequest("/api/orders/42")
			}
		})
	}
}

// TestLogOfARefusedRequestNamesTheSession logs calls that fail because of the
// session or of the store.
func TestLogOfARefusedRequestNamesTheSession(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	id := a.sessionID(b)
	cookie := a.sessionCookie(b)
	if cookie == nil {
		t.Fatal("no session cookie")
	}
	b.Fetch("POST", "/bff/logout")
	resp := a.browser().Fetch("GET", "/api/ended", "Cookie", cookie.Name+"="+cookie.Value)
	wantProblem(t, resp, 401, "not_signed_in")
	a.store.setDown(net.ErrClosed)
	resp = a.browser().Fetch("GET", "/api/outage", "Cookie", cookie.Name+"="+cookie.Value)
	wantProblem(t, resp, 503, "store_unavailable")
	found := 0
	for _, line := range a.logs.lines(t, "request") {
		if path := line["path"]; path == "/api/ended" || path == "/api/outage" {
			found++
			if line["session"] != id {
				t.Errorf("%s: session: got %v, want %s", path, line["session"], id)
			}
		}
	}
	if found != 2 {
		t.Errorf("got %d lines, want 2", found)
	}
}
