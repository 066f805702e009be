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
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
)

// upstreamProtocol is a protocol that an upstream speaks.
type upstreamProtocol struct {
	name, scheme string
	major        int // version of HTTP
	start        func(*httptest.Server)
}

var (
	overHTTP   = upstreamProtocol{"http", "http", 1, (*httptest.Server).Start}
	overHTTPS  = upstreamProtocol{"https", "https", 1, (*httptest.Server).StartTLS}
	overHTTPS2 = upstreamProtocol{"https with HTTP/2", "https", 2, func(s *httptest.Server) {
		s.EnableHTTP2 = true
		s.StartTLS()
	}}
	overH2C = upstreamProtocol{"h2c", "h2c", 2, func(s *httptest.Server) {
		s.Config.Protocols = new(http.Protocols)
		s.Config.Protocols.SetHTTP1(true) // for WebSockets
		s.Config.Protocols.SetUnencryptedHTTP2(true)
		s.Start()
	}}
)

// protocolPairs are the combinations of the major version of HTTP that a
// browser speaks with the protocol of an upstream.
var protocolPairs = []struct {
	browser  int
	upstream upstreamProtocol
}{{1, overHTTP}, {1, overHTTPS}, {1, overHTTPS2}, {1, overH2C}, {2, overHTTP}, {2, overHTTPS2}}

// protocolServer is a broker with the listeners that a program has, a route for
// each protocol pair, and the session of a user.
type protocolServer struct {
	*app
	browser    *bfftest.Browser
	sid        string // of the user's session at the provider
	plain, tls string // addresses for HTTP/1.1, and for HTTP/2
	trust      *tls.Config
	pairs      []*protocolPair
	conns      atomic.Int32 // over TLS
}

// dialHTTP2 opens a connection that speaks HTTP/2, until the end of the test.
func (f *protocolServer) dialHTTP2(t *testing.T) net.Conn {
	t.Helper()
	cfg := f.trust.Clone()
	cfg.NextProtos = []string{"h2"}
	c, err := tls.Dial("tcp", f.tls, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// protocolPair is a route with its upstream, and a client.
type protocolPair struct {
	*protocolServer
	name     string
	browser  int // major version of HTTP
	client   *http.Client
	path     string // of the route
	protocol upstreamProtocol
	upstream *httptest.Server
	handler  atomic.Pointer[http.HandlerFunc] // of the upstream
	calls    atomic.Int32                     // of handler
	conns    atomic.Int32                     // to the upstream
}

// newProtocolServer starts the broker and the upstreams. edit may change the
// configuration; nil leaves it as it is.
func newProtocolServer(t *testing.T, edit func(*protocolServer, *bff.Config)) *protocolServer {
	t.Helper()
	f := new(protocolServer)
	for i, pair := range protocolPairs {
		w := &protocolPair{
			protocolServer: f, protocol: pair.upstream, browser: pair.browser, path: fmt.Sprintf("/pair%d/", i),
		}
		w.name = fmt.Sprintf("HTTP/%d to %s", w.browser, w.protocol.name)
		w.upstream = httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			w.calls.Add(1)
			if r.ProtoMajor != w.protocol.major && r.Header.Get("Upgrade") == "" {
				t.Errorf("%s: got %s at the upstream, want HTTP/%d", w.name, received(r), w.protocol.major)
			}
			(*w.handler.Load())(rw, r)
		}))
		w.upstream.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
		w.upstream.Config.ConnState = func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				w.conns.Add(1)
			}
		}
		w.protocol.start(w.upstream)
		t.Cleanup(w.upstream.Close)
		f.pairs = append(f.pairs, w)
	}
	withCertificate := f.pairs[1].upstream
	f.trust = &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "example.com"}
	f.trust.RootCAs.AddCert(withCertificate.Certificate())
	f.app = newApp(t, func(_ *app, cfg *bff.Config) {
		for _, w := range f.pairs {
			cfg.Routes = append(cfg.Routes,
				f.route(w.path, w.protocol.scheme+"://"+w.upstream.Listener.Addr().String()))
		}
		if edit != nil {
			edit(f, cfg)
		}
	})
	plain, overTLS := listen(t), listen(t)
	f.plain, f.tls = plain.Addr().String(), overTLS.Addr().String()
	s := &http.Server{Handler: f.server, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	s.ConnState = func(c net.Conn, state http.ConnState) {
		if _, ok := c.(*tls.Conn); ok && state == http.StateNew {
			f.conns.Add(1)
		}
	}
	cfg := &tls.Config{Certificates: withCertificate.TLS.Certificates, NextProtos: []string{"h2", "http/1.1"}}
	go s.Serve(bff.NewListener(plain, nil, nil)) // both until Close
	go s.Serve(bff.NewListener(overTLS, cfg, nil))
	t.Cleanup(func() { s.Close() })
	f.browser, f.sid = f.signedInWithSID()
	for _, w := range f.pairs {
		w.client = f.newClient(t, w.browser)
	}
	return f
}

// eachBrowser returns one pair for each protocol that browsers use.
func (f *protocolServer) eachBrowser() []*protocolPair {
	http2 := slices.IndexFunc(f.pairs, func(w *protocolPair) bool { return w.browser == 2 })
	return []*protocolPair{f.pairs[0], f.pairs[http2]}
}

// received describes a request that an upstream got, so that one of another
// program is recognised.
func received(r *http.Request) string {
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	return fmt.Sprintf("%s %s://%s%s with %s from %s (%s)", r.Method, scheme, r.Host, r.RequestURI, r.Proto,
		r.RemoteAddr, r.UserAgent())
}

// route returns a route whose CSRF protection needs no header, because
// EventSource and WebSocket cannot send one.
func (f *protocolServer) route(path, upstream string) bff.Route {
	return bff.Route{Path: path, Upstream: []string{upstream}, TLS: f.trust, Token: "user", CSRF: "fetch-metadata"}
}

// listen returns a listener on a free port of the loopback interface.
func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// newClient returns a client for a major version of HTTP. It has connections of
// its own, and adds nothing to the requests.
func (f *protocolServer) newClient(t *testing.T, major int) *http.Client {
	addr := map[int]string{1: f.plain, 2: f.tls}[major]
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		},
		TLSClientConfig: f.trust.Clone(), DisableCompression: true, Protocols: new(http.Protocols),
		MaxConnsPerHost: 8, MaxIdleConnsPerHost: 8,
	}
	transport.Protocols.SetHTTP1(major == 1)
	transport.Protocols.SetHTTP2(major == 2)
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// eachProtocolPair runs a test for every protocol pair.
func eachProtocolPair(t *testing.T, test func(t *testing.T, w *protocolPair)) {
	t.Helper()
	eachUpstreamProtocol(t, 1, test)
	eachUpstreamProtocol(t, 2, test)
}

// eachUpstreamProtocol runs a test for every upstream protocol, with a browser
// that speaks one major version of HTTP.
func eachUpstreamProtocol(t *testing.T, browser int, test func(t *testing.T, w *protocolPair)) {
	t.Helper()
	f := newProtocolServer(t, nil)
	for _, w := range f.pairs {
		if w.browser == browser {
			t.Run(w.name, func(t *testing.T) { test(t, w) })
		}
	}
}

// handle sets the handler of the upstream.
func (w *protocolPair) handle(h http.HandlerFunc) { w.handler.Store(&h) }

// testTimeout is the maximum time that a test waits for anything.
const testTimeout = 20 * time.Second

// request returns a request of the user. The target is relative to the route's
// path. Headers are pairs: name, value, name, value.
func (w *protocolPair) request(t *testing.T, method, target string, body io.Reader, header ...string) *http.Request {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	base := w.url // for HTTP/1.1
	if w.browser == 2 {
		base = strings.Replace(base, "http:", "https:", 1)
	}
	req, err := http.NewRequestWithContext(ctx, method, base+w.path+target, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Sec-Fetch-Site", "same-origin")
	req.Header.Set("User-Agent", "test")
	for _, c := range w.protocolServer.browser.Cookies() {
		req.AddCookie(c)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return req
}

// do sends a request. The response is closed when the test ends.
func (w *protocolPair) do(t *testing.T, req *http.Request) *http.Response {
	t.Helper()
	resp, err := w.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// dial returns a connection to the broker and a reader of it.
func (w *protocolPair) dial(t *testing.T) (*net.TCPConn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", w.plain)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(testTimeout))
	return c.(*net.TCPConn), bufio.NewReader(c)
}

// head returns the request line and the header for a request on a connection of
// dial, without the empty line at the end.
func (w *protocolPair) head(method, target string) string {
	cookie := w.protocolServer.browser.Cookies()[0]
	return fmt.Sprintf("%s %s%s HTTP/1.1\r\nHost: %s\r\nSec-Fetch-Site: same-origin\r\nCookie: %s=%s\r\n",
		method, w.path, target, strings.TrimPrefix(w.url, "http://"), cookie.Name, cookie.Value)
}

// await receives a value from a channel, or waits until it is closed.
func await[T any](t *testing.T, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(testTimeout):
		t.Fatalf("not within %v: %s", testTimeout, what)
	}
	return v
}

func flush(w http.ResponseWriter) { http.NewResponseController(w).Flush() }

// enableFullDuplex sends the header, and lets an upstream write its response
// while it reads the request. HTTP/2 always allows that.
func enableFullDuplex(w http.ResponseWriter) {
	http.NewResponseController(w).EnableFullDuplex()
	flush(w)
}

// wantBytes reads as many bytes as are wanted, and compares them.
func wantBytes(t *testing.T, what string, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Fatalf("%s: got %q, %v, want %q", what, got[:n], err, want)
	}
}

// wantHeader checks a header of a response.
func wantHeader(t *testing.T, what string, resp *http.Response, name, want string) {
	t.Helper()
	if got := resp.Header.Get(name); got != want {
		t.Errorf("%s of %s: got %q, want %q", name, what, got, want)
	}
}

// wantEnd checks that nothing is left to read.
func wantEnd(t *testing.T, what string, r io.Reader) {
	t.Helper()
	if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
		t.Errorf("%s: got %.100q, %v, want EOF", what, rest, err)
	}
}
