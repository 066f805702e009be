package bff_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
)

// kind is what an upstream speaks.
type kind struct {
	name, scheme string
	proto        int // major version of HTTP
	start        func(*httptest.Server)
}

var (
	overHTTP   = kind{"http", "http", 1, (*httptest.Server).Start}
	overHTTPS  = kind{"https", "https", 1, (*httptest.Server).StartTLS}
	overHTTPS2 = kind{"https with HTTP/2", "https", 2, func(s *httptest.Server) { s.EnableHTTP2 = true; s.StartTLS() }}
	overH2C    = kind{"h2c", "h2c", 2, func(s *httptest.Server) {
		s.Config.Protocols = new(http.Protocols)
		s.Config.Protocols.SetHTTP1(true) // for WebSockets
		s.Config.Protocols.SetUnencryptedHTTP2(true)
		s.Start()
	}}
)

// ways is every way through the broker: what the browser speaks, HTTP/1.1 or 2, and what the upstream does.
var ways = []struct {
	browser  int
	upstream kind
}{{1, overHTTP}, {1, overHTTPS}, {1, overHTTPS2}, {1, overH2C}, {2, overHTTP}, {2, overHTTPS2}}

// front is a broker that is served as a program serves it, with a route for each way through it, and a user who is signed in.
type front struct {
	*app
	browser    *bfftest.Browser
	sid        string // of the user's session at the provider
	plain, tls string // addresses at which it speaks HTTP/1.1, and HTTP/2
	trust      *tls.Config
	ways       []*way
	conns      atomic.Int32 // over TLS
}

// way is one way through the broker, and its upstream.
type way struct {
	*front
	name     string
	browser  int // what it speaks
	client   *http.Client
	path     string // of the route
	kind     kind
	upstream *httptest.Server
	answer   atomic.Pointer[http.HandlerFunc]
	calls    atomic.Int32
	conns    atomic.Int32 // to the upstream
}

func newFront(t *testing.T, edit func(*front, *bff.Config)) *front {
	t.Helper()
	f := new(front)
	for i, through := range ways {
		w := &way{front: f, kind: through.upstream, browser: through.browser, path: fmt.Sprintf("/way%d/", i)}
		w.name = fmt.Sprintf("HTTP/%d to %s", w.browser, w.kind.name)
		w.upstream = httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			w.calls.Add(1)
			if r.ProtoMajor != w.kind.proto && r.Header.Get("Upgrade") == "" {
				t.Errorf("%s: the upstream is spoken to in %s", w.name, r.Proto)
			}
			(*w.answer.Load())(rw, r)
		}))
		w.upstream.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
		w.upstream.Config.ConnState = func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				w.conns.Add(1)
			}
		}
		w.kind.start(w.upstream)
		t.Cleanup(w.upstream.Close)
		f.ways = append(f.ways, w)
	}
	certified := f.ways[1].upstream
	f.trust = &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "example.com"}
	f.trust.RootCAs.AddCert(certified.Certificate())
	f.app = newApp(t, func(_ *app, cfg *bff.Config) {
		for _, w := range f.ways {
			cfg.Routes = append(cfg.Routes, f.route(w.path, w.kind.scheme+"://"+w.upstream.Listener.Addr().String()))
		}
		if edit != nil {
			edit(f, cfg)
		}
	})
	plain, overTLS := listen(t), listen(t)
	f.plain, f.tls = plain.Addr().String(), overTLS.Addr().String()
	s := &http.Server{Handler: f.server, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0), ConnState: func(c net.Conn, state http.ConnState) {
		if _, ok := c.(*tls.Conn); ok && state == http.StateNew {
			f.conns.Add(1)
		}
	}}
	go s.Serve(bff.NewListener(plain, nil, nil)) // until Close, as the next
	go s.Serve(bff.NewListener(overTLS, &tls.Config{Certificates: certified.TLS.Certificates, NextProtos: []string{"h2", "http/1.1"}}, nil))
	t.Cleanup(func() { s.Close() })
	f.browser, f.sid = f.signedInWithSID()
	for _, w := range f.ways {
		w.client = f.newClient(t, w.browser)
	}
	return f
}

// route is one for streams: EventSource and WebSocket can send no header.
func (f *front) route(path, upstream string) bff.Route {
	return bff.Route{Path: path, Upstream: []string{upstream}, TLS: f.trust, Token: "user", CSRF: "fetch-metadata"}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// newClient returns a client with connections of its own, which adds nothing to what a test sends.
func (f *front) newClient(t *testing.T, proto int) *http.Client {
	at := map[int]string{1: f.plain, 2: f.tls}[proto]
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", at)
		},
		TLSClientConfig: f.trust.Clone(), DisableCompression: true, Protocols: new(http.Protocols),
		MaxConnsPerHost: 8, MaxIdleConnsPerHost: 8,
	}
	transport.Protocols.SetHTTP1(proto == 1)
	transport.Protocols.SetHTTP2(proto == 2)
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// eachWay runs a test for every way through one broker.
func eachWay(t *testing.T, test func(t *testing.T, w *way)) {
	t.Helper()
	eachWayOf(t, 1, test)
	eachWayOf(t, 2, test)
}

// eachWayOf runs a test for the ways of a browser with one version of HTTP.
func eachWayOf(t *testing.T, version int, test func(t *testing.T, w *way)) {
	t.Helper()
	f := newFront(t, nil)
	for _, w := range f.ways {
		if w.browser == version {
			t.Run(w.name, func(t *testing.T) { test(t, w) })
		}
	}
}

// answers sets what the upstream does.
func (w *way) answers(h http.HandlerFunc) { w.answer.Store(&h) }

// patience bounds what is awaited: beyond it something is wrong.
const patience = 20 * time.Second

// request makes one of the signed-in user. The target is what is behind the route's path, headers are name, value, name, value.
func (w *way) request(t *testing.T, method, target string, body io.Reader, header ...string) *http.Request {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	base := w.url // of HTTP/1.1
	if w.browser == 2 {
		base = strings.Replace(base, "http:", "https:", 1)
	}
	req, err := http.NewRequestWithContext(ctx, method, base+w.path+target, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Sec-Fetch-Site", "same-origin")
	req.Header.Set("User-Agent", "test")
	for _, c := range w.front.browser.Cookies() {
		req.AddCookie(c)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return req
}

func (w *way) do(t *testing.T, req *http.Request) *http.Response {
	t.Helper()
	resp, err := w.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// dial returns a connection to the broker for bytes.
func (w *way) dial(t *testing.T) (*net.TCPConn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", w.plain)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn), bufio.NewReader(c)
}

// head is a request's head for dial, without the empty line at its end.
func (w *way) head(method, target string) string {
	cookie := w.front.browser.Cookies()[0]
	return fmt.Sprintf("%s %s%s HTTP/1.1\r\nHost: %s\r\nSec-Fetch-Site: same-origin\r\nCookie: %s=%s\r\n",
		method, w.path, target, strings.TrimPrefix(w.url, "http://"), cookie.Name, cookie.Value)
}

// await waits until a channel is closed, or gives something.
func await[T any](t *testing.T, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatalf("not within %v: %s", patience, what)
	}
	return v
}

func flush(w http.ResponseWriter) { http.NewResponseController(w).Flush() }

// bothWays lets an upstream read while it answers.
func bothWays(w http.ResponseWriter) {
	http.NewResponseController(w).EnableFullDuplex() // HTTP/2 always is
	flush(w)
}

func wantBytes(t *testing.T, what string, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Fatalf("%s: got %q, %v, want %q", what, got[:n], err, want)
	}
}

func wantEnd(t *testing.T, what string, r io.Reader) {
	t.Helper()
	if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
		t.Errorf("%s: got %.100q, %v, want the end", what, rest, err)
	}
}
