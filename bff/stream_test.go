package bff_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"log"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"os"
	"runtime"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
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

func TestAnEventArrivesBeforeTheNextIsSent(t *testing.T) {
	eachWay(t, func(t *testing.T, w *way) {
		arrived := make(chan struct{})
		w.answers(func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
			fmt.Fprintf(rw, "retry: 10\ndata: after %s\n\n", r.Header.Get("Last-Event-ID"))
			flush(rw)
			for i := range 3 {
				select {
				case <-arrived:
				case <-r.Context().Done():
					return
				}
				fmt.Fprintf(rw, "id: %d\ndata:\n\n", i)
				flush(rw)
			}
		})
		resp := w.do(t, w.request(t, "GET", "x", nil, "Accept", "text/event-stream", "Last-Event-ID", "41"))
		if got := resp.Header.Get("Content-Type"); got != "text/event-stream; charset=utf-8" {
			t.Errorf("Content-Type is %q", got)
		}
		wantBytes(t, "the first event", resp.Body, "retry: 10\ndata: after 41\n\n")
		for i := range 3 {
			arrived <- struct{}{}
			wantBytes(t, "an event", resp.Body, fmt.Sprintf("id: %d\ndata:\n\n", i))
		}
		wantEnd(t, "the stream", resp.Body)
	})
}

func TestChunksPassBothWaysAtOnce(t *testing.T) {
	eachWay(t, func(t *testing.T, w *way) {
		w.answers(func(rw http.ResponseWriter, r *http.Request) {
			bothWays(rw)
			for buf := make([]byte, 64<<10); ; {
				n, err := r.Body.Read(buf)
				rw.Write(buf[:n])
				flush(rw)
				if err != nil {
					return
				}
			}
		})
		body, client := io.Pipe()
		defer client.Close()
		resp := w.do(t, w.request(t, "POST", "x", body)) // the answer begins before there is any of the body
		for i := range 10 {
			chunk := strings.Repeat(strconv.Itoa(i), 1<<(2*i)/10+1)
			go io.WriteString(client, chunk)
			wantBytes(t, "the echo", resp.Body, chunk)
		}
		client.Close()
		wantEnd(t, "the answer", resp.Body)
	})
}

// RFC 10036: what is incremental is handed on as it comes. So is all else.
func TestNoByteIsHeldBack(t *testing.T) {
	eachWay(t, func(t *testing.T, w *way) {
		const text = "byte by byte"
		seen := make(chan byte, len(text))
		next := make(chan struct{})
		defer close(next)
		w.answers(func(rw http.ResponseWriter, r *http.Request) {
			if got := r.Header.Get("Incremental"); got != "?1" || r.ContentLength != int64(len(text)) {
				t.Errorf("the upstream got Incremental: %s, and the length %d", got, r.ContentLength)
			}
			for b := make([]byte, 1); ; {
				if _, err := io.ReadFull(r.Body, b); err != nil {
					break
				}
				seen <- b[0]
			}
			rw.Header().Set("Incremental", "?1")
			rw.Header().Set("Content-Length", strconv.Itoa(len(text)))
			for i := range len(text) {
				io.WriteString(rw, text[i:i+1])
				flush(rw)
				<-next
			}
		})
		body, client := io.Pipe()
		req := w.request(t, "POST", "x", body, "Incremental", "?1")
		req.ContentLength = int64(len(text))
		answered := make(chan *http.Response, 1)
		go func() {
			resp, err := w.client.Do(req)
			if err != nil {
				t.Error(err)
			}
			answered <- resp
		}()
		for i := range len(text) {
			io.WriteString(client, text[i:i+1])
			if i == len(text)-1 {
				client.Close() // the client's own HTTP/2 waits for the end before it sends the last byte
			}
			if got := await(t, "a byte gets to the upstream", seen); got != text[i] {
				t.Fatalf("the upstream got %q, want %q", got, text[i])
			}
		}
		resp := await(t, "an answer", answered)
		if resp == nil {
			return
		}
		defer resp.Body.Close()
		if got := resp.Header.Get("Incremental"); got != "?1" || resp.ContentLength != int64(len(text)) {
			t.Errorf("the client got Incremental: %s, and the length %d", got, resp.ContentLength)
		}
		for i := range len(text) {
			wantBytes(t, "a byte", resp.Body, text[i:i+1])
			next <- struct{}{}
		}
		wantEnd(t, "the answer", resp.Body)
	})
}

// open is something that is under way for a user.
type open struct {
	what  string
	ended <-chan error // at the client
	left  <-chan error // at the upstream
}

// opens begins everything that can be open on a way, and returns when all of it is.
func (w *way) opens(t *testing.T) []open {
	type visit struct{ begun, left chan error }
	visits := map[string]visit{}
	for _, target := range []string{"waits", "events", "download", "upload", "socket"} {
		visits[target] = visit{make(chan error, 1), make(chan error, 1)}
	}
	w.answers(func(rw http.ResponseWriter, r *http.Request) {
		target := strings.TrimPrefix(r.URL.Path, w.path)
		v := visits[target]
		var left error
		defer func() { v.left <- left }()
		switch target {
		case "events":
			rw.Header().Set("Content-Type", "text/event-stream")
			flush(rw)
		case "download":
			io.WriteString(rw, "begun")
			flush(rw)
		case "upload":
			io.ReadFull(r.Body, make([]byte, 5))
			v.begun <- nil
			_, left = io.Copy(io.Discard, r.Body)
			return
		case "socket":
			conn, rw, err := switched(rw)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			io.Copy(io.Discard, rw)
			return
		}
		v.begun <- nil
		<-r.Context().Done()
		left = r.Context().Err()
	})
	var all []open
	begin := func(target, method string, body io.Reader) {
		req := w.request(t, method, target, body)
		ended := make(chan error, 1)
		answered := make(chan struct{})
		go func() {
			resp, err := w.client.Do(req)
			close(answered)
			if err == nil {
				if resp.StatusCode == 401 {
					err = errors.New("401")
				} else {
					_, err = io.Copy(io.Discard, resp.Body)
				}
				resp.Body.Close()
			}
			ended <- err
		}()
		await(t, target+" is open", visits[target].begun)
		if target == "events" || target == "download" {
			await(t, target+" is answered", answered)
		}
		all = append(all, open{w.name + ", " + target, ended, visits[target].left})
	}
	begin("waits", "GET", nil)
	begin("events", "GET", nil)
	begin("download", "GET", nil)
	body, client := io.Pipe()
	t.Cleanup(func() { client.Close() })
	go io.WriteString(client, "begun")
	begin("upload", "POST", body)
	if w.browser == 1 {
		_, r, resp := w.openSocket(t, "socket")
		if resp.StatusCode != 101 {
			t.Fatalf("%s: the WebSocket got %d", w.name, resp.StatusCode)
		}
		ended := make(chan error, 1)
		go func() {
			_, err := io.Copy(io.Discard, r)
			ended <- err
		}()
		all = append(all, open{w.name + ", WebSocket", ended, visits["socket"].left})
	}
	return all
}

func TestAllThatIsOpenEndsWithTheSession(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name     string
		lifetime time.Duration
		end      func(f *front) (at time.Time)
	}{
		{"logout", 0, func(f *front) time.Time {
			f.browser.Submit("/bff/logout", nil)
			return time.Now()
		}},
		{"back-channel logout", 0, func(f *front) time.Time {
			f.tellLogout(url.Values{"logout_token": {f.logoutToken("", f.sid, devidp.Hooks{})}})
			return time.Now()
		}},
		{"absolute expiry", 10 * time.Second, func(f *front) time.Time {
			var got sessionBody
			f.browser.Fetch("GET", "/bff/session").Decode(t, &got)
			return got.Session.ExpiresAt
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newFront(t, func(_ *front, cfg *bff.Config) { cfg.Sessions.MaxLifetime = test.lifetime })
			var all []open
			for _, w := range f.ways {
				all = append(all, w.opens(t)...)
			}
			for _, o := range all {
				select {
				case err := <-o.ended:
					t.Errorf("%s has ended before the session: %v", o.what, err)
				default:
				}
			}
			at := test.end(f)
			limit := time.After(time.Until(at.Add(patience)))
			for _, o := range all {
				select {
				case err := <-o.ended:
					if err == nil && !strings.HasSuffix(o.what, "WebSocket") {
						t.Errorf("%s ended as if it were complete", o.what)
					}
				case <-limit:
					t.Fatalf("%s goes on %v after the session has ended", o.what, patience)
				}
			}
			for _, o := range all {
				if err := await(t, "the upstream is told of "+o.what, o.left); err == nil && !strings.HasSuffix(o.what, "WebSocket") {
					t.Errorf("%s: the upstream was not told", o.what)
				}
			}
			t.Logf("all had ended %v after the session", time.Since(at))
		})
	}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// block is what long bodies repeat. Its length is none of a buffer, so that a part in the wrong place shows.
var block = func() []byte {
	b := make([]byte, 1<<20-3)
	random := rand.NewChaCha8([32]byte{})
	random.Read(b)
	return b
}()

// source is a long body. It counts and sums up what was read of it.
type source struct {
	left int64
	at   int
	read atomic.Int64
	sum  hash.Hash32
}

func newSource(n int64) *source { return &source{left: n, sum: crc32.New(castagnoli)} }

func (s *source) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(int64(len(p)), s.left)], block[s.at:])
	s.at = (s.at + n) % len(block)
	s.left -= int64(n)
	s.sum.Write(p[:n])
	s.read.Add(int64(n))
	return n, nil
}

// summary reads a body to its end, and says how much it was and what.
func summary(r io.Reader) (string, error) {
	sum := crc32.New(castagnoli)
	n, err := io.CopyBuffer(struct{ io.Writer }{sum}, struct{ io.Reader }{r}, make([]byte, 32<<10))
	return fmt.Sprintf("%d bytes %08x", n, sum.Sum32()), err
}

func (s *source) summary() string { return fmt.Sprintf("%d bytes %08x", s.read.Load(), s.sum.Sum32()) }

// peakOfHeap returns how much more was in use on the heap at any time of run than before.
func peakOfHeap(run func()) (peak uint64) {
	read := func() uint64 {
		sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}}
		metrics.Read(sample)
		return sample[0].Value.Uint64() + sample[1].Value.Uint64() // HeapInuse, without stopping the world
	}
	runtime.GC()
	before := read()
	done := make(chan struct{})
	go func() {
		defer close(done)
		run()
	}()
	for {
		select {
		case <-done:
			return peak
		case <-time.After(2 * time.Millisecond):
			if now := read(); now > before {
				peak = max(peak, now-before)
			}
		}
	}
}

func TestABodyOfAGigabytePassesInLittleMemory(t *testing.T) {
	testenv.Slow(t)
	const allowed = 32 << 20
	eachWay(t, func(t *testing.T, w *way) {
		size := int64(1 << 30)
		if raceDetector {
			size = 128 << 20
		}
		if w.browser != 1 || w.kind.scheme != "http" {
			size /= 8 // of all but the plainest way it is the shape that matters
		}
		down := make(chan *source, 1)
		w.answers(func(rw http.ResponseWriter, r *http.Request) {
			if r.Method == "GET" {
				src := newSource(size)
				if r.URL.RawQuery == "sized" {
					rw.Header().Set("Content-Length", strconv.FormatInt(size, 10))
				}
				io.CopyBuffer(struct{ io.Writer }{rw}, src, make([]byte, 32<<10))
				down <- src
				return
			}
			got, err := summary(r.Body)
			fmt.Fprint(rw, got, " ", err)
		})
		for _, query := range []string{"sized", "chunked"} {
			if query == "chunked" {
				size /= 4
			}
			peak := peakOfHeap(func() {
				src := newSource(size)
				req := w.request(t, "POST", "x?"+query, io.NopCloser(src))
				if query == "sized" {
					req.ContentLength = size
				}
				resp, err := w.client.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				if got, _ := io.ReadAll(resp.Body); string(got) != src.summary()+" <nil>" || src.left > 0 {
					t.Errorf("%s: the upstream got %s, want %s", query, got, src.summary())
				}
			})
			if peak > allowed {
				t.Errorf("%s: %d MB went up with %d MB in memory", query, size>>20, peak>>20)
			}
			peak = peakOfHeap(func() {
				resp, err := w.client.Do(w.request(t, "GET", "x?"+query, nil))
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				got, err := summary(resp.Body)
				if err != nil {
					t.Error(err)
					return
				}
				if src := <-down; got != src.summary() || src.left > 0 {
					t.Errorf("%s: the client got %s, want %s", query, got, src.summary())
				}
			})
			if peak > allowed {
				t.Errorf("%s: %d MB came down with %d MB in memory", query, size>>20, peak>>20)
			}
		}
	})
}

// settled waits until a body does not move any more, and returns how much of it has been taken.
func settled(t *testing.T, s *source) int64 {
	t.Helper()
	deadline := time.Now().Add(patience)
	for last := int64(-1); time.Now().Before(deadline); time.Sleep(60 * time.Millisecond) {
		now := s.read.Load()
		if now == last && now > 0 {
			return now
		}
		last = now
	}
	t.Fatal("the body does not come to rest")
	return 0
}

// What sockets and windows hold, at the two connections together, is below bound; a whole body is well above.
const bound, flood = 24 << 20, 32 << 20

func TestAnUpstreamThatDoesNotReadStopsTheClient(t *testing.T) {
	eachWay(t, func(t *testing.T, w *way) {
		read := make(chan struct{})
		w.answers(func(rw http.ResponseWriter, r *http.Request) {
			select {
			case <-read:
			case <-r.Context().Done():
			}
			got, err := summary(r.Body)
			fmt.Fprint(rw, got, " ", err)
		})
		src := newSource(flood)
		answered := make(chan string, 1)
		req := w.request(t, "POST", "x", io.NopCloser(src))
		go func() {
			resp, err := w.client.Do(req)
			if err != nil {
				answered <- err.Error()
				return
			}
			defer resp.Body.Close()
			text, _ := io.ReadAll(resp.Body)
			answered <- string(text)
		}()
		if n := settled(t, src); n > bound {
			t.Errorf("the client sent %d MB to an upstream that reads nothing", n>>20)
		}
		close(read)
		if got, want := await(t, "the answer", answered), src.summary()+" <nil>"; got != want || src.read.Load() != flood {
			t.Errorf("the upstream got %s, want %s", got, want)
		}
	})
}

func TestAClientThatDoesNotReadStopsTheUpstream(t *testing.T) {
	eachWay(t, func(t *testing.T, w *way) {
		src := newSource(flood)
		w.answers(func(rw http.ResponseWriter, r *http.Request) {
			io.CopyBuffer(struct{ io.Writer }{rw}, src, make([]byte, 32<<10))
		})
		resp := w.do(t, w.request(t, "GET", "x", nil))
		if n := settled(t, src); n > bound {
			t.Errorf("the upstream sent %d MB to a client that reads nothing", n>>20)
		}
		got, err := summary(resp.Body)
		if err != nil || got != src.summary() || src.read.Load() != flood {
			t.Errorf("the client got %s, %v, want %s", got, err, src.summary())
		}
	})
}

func TestAClientThatLeavesCancelsTheUpstreamsCallInEveryPhase(t *testing.T) {
	eachWay(t, func(t *testing.T, w *way) {
		for _, phase := range []struct {
			name, method, body string
			more               bool // the body goes on
			contentType        string
		}{
			{"before the header", "GET", "", false, ""},
			{"before the header, with a body", "POST", "all of it", false, ""},
			{"during the upload", "POST", "some", true, ""},
			{"during the upload and the download", "POST", "some", true, "text/plain"},
			{"during the download", "GET", "", false, "text/plain"},
			{"during a stream of events", "GET", "", false, "text/event-stream"},
		} {
			begun, left := make(chan struct{}), make(chan error, 1)
			w.answers(func(rw http.ResponseWriter, r *http.Request) {
				if phase.contentType != "" {
					rw.Header().Set("Content-Type", phase.contentType)
					bothWays(rw)
				}
				if phase.more {
					io.ReadFull(r.Body, make([]byte, len(phase.body)))
					close(begun)
					_, err := io.Copy(io.Discard, r.Body)
					left <- err
					return
				}
				io.Copy(io.Discard, r.Body)
				close(begun)
				<-r.Context().Done()
				left <- r.Context().Err()
			})
			var body io.Reader
			r, more := io.Pipe()
			switch {
			case phase.more:
				go io.WriteString(more, phase.body)
				body = r
			case phase.body != "":
				body = strings.NewReader(phase.body)
			}
			req := w.request(t, phase.method, "x", body)
			ctx, leave := context.WithCancel(req.Context())
			defer leave()
			ended := make(chan error, 1)
			go func() {
				resp, err := w.client.Do(req.WithContext(ctx))
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				ended <- err
			}()
			await(t, phase.name+": the upstream is called", begun)
			leave()
			if w.browser == 2 {
				more.CloseWithError(errors.New("the client leaves")) // its transport may be waiting for more, and then does not see that it should leave
			}
			if err := await(t, phase.name+": the upstream is told", left); err == nil {
				t.Errorf("%s: the upstream took what it had for all", phase.name)
			}
			more.CloseWithError(errors.New("the client leaves")) // or its transport waits for more
			if err := await(t, phase.name+": the client has left", ended); err == nil {
				t.Errorf("%s: the client got all", phase.name)
			}
		}
	})
}

func TestAnAnswerThatBreaksOffIsNotTakenForAWholeOne(t *testing.T) {
	eachWay(t, func(t *testing.T, w *way) {
		for name, header := range map[string][2]string{
			"with a length": {"Content-Length", "100"}, "in chunks": {"Content-Type", "text/plain"}, "of events": {"Content-Type", "text/event-stream"}, "compressed": {"Content-Encoding", "gzip"},
		} {
			seen := make(chan struct{})
			w.answers(func(rw http.ResponseWriter, r *http.Request) {
				rw.Header().Set(header[0], header[1])
				io.WriteString(rw, "begun")
				flush(rw)
				select {
				case <-seen:
				case <-r.Context().Done():
				}
				panic(http.ErrAbortHandler)
			})
			resp := w.do(t, w.request(t, "GET", "x", nil))
			wantBytes(t, name, resp.Body, "begun")
			close(seen)
			if rest, err := io.ReadAll(resp.Body); err == nil || len(rest) > 0 {
				t.Errorf("%s: then came %q, %v, want an error", name, rest, err)
			}
		}
	})
}

func TestAnAnswerBeforeTheWholeRequestReachesTheClient(t *testing.T) {
	eachWay(t, func(t *testing.T, w *way) {
		w.answers(func(rw http.ResponseWriter, r *http.Request) {
			if r.Method != "POST" {
				echoNonce(rw, r)
				return
			}
			http.NewResponseController(rw).EnableFullDuplex() // or it would wait for the body
			rw.Header().Set("Content-Length", "9")
			rw.WriteHeader(413)
			io.WriteString(rw, "too large")
			flush(rw)
		})
		for _, length := range []int64{10 << 20, -1} {
			body, client := io.Pipe()
			req := w.request(t, "POST", "x", body)
			req.ContentLength = length
			go io.WriteString(client, "begun") // and never more
			resp := w.do(t, req)
			text, err := io.ReadAll(resp.Body)
			if resp.StatusCode != 413 || string(text) != "too large" || err != nil {
				t.Errorf("length %d: got %d %q, %v", length, resp.StatusCode, text, err)
			}
			client.Close()
			p := probe{method: "GET", nonce: fmt.Sprint("after ", length)}
			if err := p.ask(w, p.request(t, w)); err != nil {
				t.Errorf("the next request: %v", err)
			}
		}
		if w.browser == 2 {
			return
		}
		// Of a client that goes on sending, nothing is taken for a request.
		c, r := w.dial(t)
		smuggled := w.head("GET", "x?smuggled") + "X-Nonce: smuggled\r\n\r\n"
		before := w.calls.Load()
		fmt.Fprintf(c, "%sContent-Length: %d\r\n\r\nbegun", w.head("POST", "x"), 5+100*len(smuggled))
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		wantBytes(t, "the answer", resp.Body, "too large")
		if !resp.Close {
			t.Error("the client is not told that the connection ends")
		}
		go func() {
			for range 100 {
				if _, err := io.WriteString(c, smuggled); err != nil {
					return
				}
			}
		}()
		if rest, _ := io.ReadAll(r); len(rest) > 0 { // it ends with a reset or without
			t.Errorf("after the answer came %q", rest)
		}
		if n := w.calls.Load() - before; n != 1 {
			t.Errorf("the upstream was called %d times", n)
		}
	})
}

func TestABodyIsNotAskedForBeforeItIsWanted(t *testing.T) {
	eachWayOf(t, 1, func(t *testing.T, w *way) { // with HTTP/2 it is the same, but for what the client sees
		for _, test := range []struct {
			name, target, edit string
			want               []int
		}{
			{"the upstream wants it", "wanted", "", []int{100, 200}},
			{"the upstream does not", "unwanted", "", []int{413}},
			{"we do not", "wanted", "Sec-Fetch-Site: same-origin", []int{403}},
			{"nobody is signed in", "wanted", "Cookie: cloakroom", []int{401}},
		} {
			w.answers(func(rw http.ResponseWriter, r *http.Request) {
				if w.kind.proto == 1 && r.Header.Get("Expect") != "100-continue" { // a server of HTTP/2 does not show it
					t.Errorf("the upstream got Expect: %q", r.Header["Expect"])
				}
				if strings.HasSuffix(r.URL.Path, "/unwanted") {
					rw.WriteHeader(413)
					return
				}
				text, err := io.ReadAll(r.Body)
				fmt.Fprintf(rw, "%s %v", text, err)
			})
			c, r := w.dial(t)
			head := w.head("POST", test.target)
			if test.edit != "" {
				head = strings.Replace(head, test.edit, "X-Other: x", 1)
			}
			io.WriteString(c, head+"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")
			var got []int
			for len(got) == 0 || got[len(got)-1] == 100 {
				resp, err := http.ReadResponse(r, nil)
				if err != nil {
					t.Fatalf("%s: after %v: %v", test.name, got, err)
				}
				if got = append(got, resp.StatusCode); resp.StatusCode == 100 {
					io.WriteString(c, "abc")
					continue
				}
				text, err := io.ReadAll(resp.Body)
				if resp.StatusCode == 200 && string(text) != "abc <nil>" || err != nil {
					t.Errorf("%s: got %q, %v", test.name, text, err)
				}
				if resp.StatusCode != 200 && !resp.Close { // RFC 9110 10.1.1: or else nobody knows whether the body comes
					t.Errorf("%s: the connection stays open, and the body may or may not come", test.name)
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(test.want) {
				t.Errorf("%s: got %v, want %v", test.name, got, test.want)
			}
		}
	})
}

func TestAConnectionThatDiedWhileIdleCostsNoRequest(t *testing.T) {
	eachWay(t, func(t *testing.T, w *way) {
		w.answers(echoNonce)
		for i := range 10 {
			p := probe{method: "GET", nonce: fmt.Sprint("before ", i)}
			if err := p.ask(w, p.request(t, w)); err != nil {
				t.Fatal(err)
			}
			w.upstream.CloseClientConnections()
			p = probe{method: []string{"GET", "HEAD", "PUT", "DELETE"}[i%4], nonce: fmt.Sprint("after ", i)}
			if err := p.ask(w, p.request(t, w)); err != nil {
				t.Error(err)
			}
		}
	})
}

// The upstream's connection is in use already, and dies with the request: a request is repeated once if that does no harm.
func TestARequestOnAConnectionThatDiesIsRepeatedOnceOrNotAtAll(t *testing.T) {
	eachWay(t, func(t *testing.T, w *way) {
		for _, test := range []struct {
			method, body string
			deaths       int
			status       int
			asked        int32 // at most
		}{
			{"GET", "", 1, 200, 2}, {"PUT", "body", 1, 200, 2}, {"DELETE", "", 1, 200, 2},
			{"POST", "body", 1, 502, 1}, {"POST", "", 1, 502, 1}, {"PATCH", "body", 1, 502, 1},
		} {
			var dying, asked atomic.Int32
			w.answers(func(rw http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				asked.Add(1)
				if dying.Add(-1) < 0 {
					return
				}
				w.upstream.CloseClientConnections()
				panic(http.ErrAbortHandler)
			})
			resp := w.do(t, w.request(t, "GET", "x", nil)) // so that there is a connection
			io.Copy(io.Discard, resp.Body)
			asked.Store(0)
			dying.Store(int32(test.deaths))
			var body io.Reader
			if test.body != "" {
				body = strings.NewReader(test.body)
			}
			resp = w.do(t, w.request(t, test.method, "x", body))
			io.Copy(io.Discard, resp.Body)
			if resp.StatusCode != test.status || asked.Load() > test.asked {
				t.Errorf("%s with the body %q: got %d, and the upstream was asked %d times, want %d and %d", test.method, test.body, resp.StatusCode, asked.Load(), test.status, test.asked)
			}
		}
	})
}

func TestAnswersWithoutABody(t *testing.T) {
	eachWay(t, func(t *testing.T, w *way) {
		w.answers(func(rw http.ResponseWriter, r *http.Request) {
			h := rw.Header()
			h.Set("ETag", `"v1"`)
			switch status, _ := strconv.Atoi(r.URL.RawQuery); {
			case status > 0:
				rw.WriteHeader(status)
			case r.Method == "HEAD" && r.URL.RawQuery == "length":
				h.Set("Content-Length", "12345")
			default:
				io.WriteString(rw, "body")
			}
		})
		for _, test := range []struct {
			method, query string
			status        int
			length        string
		}{{"HEAD", "length", 200, "12345"}, {"HEAD", "204", 204, ""}, {"GET", "204", 204, ""}, {"GET", "304", 304, ""}, {"HEAD", "304", 304, ""}, {"POST", "204", 204, ""}, {"DELETE", "204", 204, ""}} {
			resp := w.do(t, w.request(t, test.method, "x?"+test.query, nil))
			text, err := io.ReadAll(resp.Body)
			if resp.StatusCode != test.status || resp.Header.Get("Content-Length") != test.length || resp.Header.Get("ETag") != `"v1"` || len(text) > 0 || err != nil {
				t.Errorf("%s, %s: got %d %v %q, %v", test.method, test.query, resp.StatusCode, resp.Header, text, err)
			}
		}
		if w.browser == 2 {
			return
		}
		// What follows on the same connection is the next answer.
		c, r := w.dial(t)
		for _, query := range []string{"204", "304", "length"} {
			method := map[bool]string{true: "HEAD", false: "GET"}[query == "length"]
			io.WriteString(c, w.head(method, "x?"+query)+"\r\n")
			for line := ""; line != "\r\n"; {
				var err error
				if line, err = r.ReadString('\n'); err != nil {
					t.Fatal(err)
				}
				if lower := strings.ToLower(line); strings.HasPrefix(lower, "transfer-encoding:") || query == "204" && strings.HasPrefix(lower, "content-length:") { // RFC 9110 8.6
					t.Errorf("%s: %s", query, line)
				}
			}
			io.WriteString(c, w.head("GET", "x")+"\r\n")
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatalf("after %s: %v", query, err)
			}
			wantBytes(t, "after "+query, resp.Body, "body")
			wantEnd(t, "after "+query, resp.Body)
		}
	})
}

func TestHintsStayBehindAndTrailersPass(t *testing.T) {
	eachWay(t, func(t *testing.T, w *way) {
		w.answers(func(rw http.ResponseWriter, r *http.Request) {
			h := rw.Header()
			h.Set("Link", "</x.js>; rel=preload")
			h.Set("Set-Cookie", "hint=1")
			rw.WriteHeader(http.StatusProcessing)
			rw.WriteHeader(http.StatusEarlyHints)
			h.Del("Link")
			h.Del("Set-Cookie")
			h.Set("Trailer", "X-Checksum, Set-Cookie")
			io.WriteString(rw, "body")
			flush(rw)
			h.Set("X-Checksum", "17")
			h.Set("Set-Cookie", "theme=dark")
			for _, name := range []string{"X-Late", "Clear-Site-Data", "Location", "Cache-Control", "Server"} {
				h.Set(http.TrailerPrefix+name, "x")
			}
		})
		var hints []int
		req := w.request(t, "GET", "x", nil)
		resp := w.do(t, req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, _ textproto.MIMEHeader) error {
			hints = append(hints, code)
			return nil
		}})))
		if text, err := io.ReadAll(resp.Body); string(text) != "body" || err != nil {
			t.Errorf("got %q, %v", text, err)
		}
		if len(hints) > 0 || resp.Header.Get("Set-Cookie") != "" || resp.Header.Get("Link") != "" {
			t.Errorf("hints got through: %v, %v", hints, resp.Header)
		}
		if got := fmt.Sprint(resp.Trailer); got != "map[X-Checksum:[17] X-Late:[x]]" {
			t.Errorf("the trailer is %s", got)
		}
	})
}

// Browsers see no trailers: gRPC-web has its own in the body.
func TestGRPCWebPassesUnchanged(t *testing.T) {
	frame := func(flags byte, text string) string {
		return string(binary.BigEndian.AppendUint32([]byte{flags}, uint32(len(text)))) + text
	}
	message, trailer := frame(0, "\x0a\x05hello\x00\xff"), frame(0x80, "grpc-status:0\r\ngrpc-message:OK\r\n")
	eachWay(t, func(t *testing.T, w *way) {
		for _, form := range []string{"application/grpc-web+proto", "application/grpc-web-text"} {
			first, second := message, trailer
			if strings.HasSuffix(form, "text") {
				first, second = base64.StdEncoding.EncodeToString([]byte(first)), base64.StdEncoding.EncodeToString([]byte(second))
			}
			seen := make(chan struct{})
			w.answers(func(rw http.ResponseWriter, r *http.Request) {
				text, err := io.ReadAll(r.Body)
				if string(text) != first || err != nil || r.Header.Get("Content-Type") != form || r.Header.Get("X-Grpc-Web") != "1" {
					t.Errorf("%s: the upstream got %v %q, %v", form, r.Header, text, err)
				}
				rw.Header().Set("Content-Type", form)
				io.WriteString(rw, first)
				flush(rw)
				select {
				case <-seen:
				case <-r.Context().Done():
				}
				io.WriteString(rw, second)
			})
			resp := w.do(t, w.request(t, "POST", "greeter.Greeter/Hello", strings.NewReader(first), "Content-Type", form, "X-Grpc-Web", "1", "Accept", form))
			wantBytes(t, form, resp.Body, first)
			close(seen)
			wantBytes(t, form, resp.Body, second)
			wantEnd(t, form, resp.Body)
			if got := resp.Header.Get("Content-Type"); got != form {
				t.Errorf("Content-Type is %s, want %s", got, form)
			}
		}
	})
}

func TestCompressedAnswersPassByteForByte(t *testing.T) {
	eachWay(t, func(t *testing.T, w *way) {
		for _, accepted := range []string{"", "identity", "gzip, br", "gzip;q=0"} {
			for _, coding := range []string{"", "gzip", "br", "zstd"} {
				body := string(block[:5000]) // what it unpacks to is nobody's business
				if coding == "" {
					body = strings.Repeat("compressible ", 1000)
				}
				w.answers(func(rw http.ResponseWriter, r *http.Request) {
					if got := strings.Join(r.Header["Accept-Encoding"], "|"); got != accepted {
						t.Errorf("the upstream got Accept-Encoding %q, want %q", got, accepted)
					}
					rw.Header().Set("Content-Type", "text/html")
					rw.Header().Set("Vary", "Accept-Encoding")
					if coding != "" {
						rw.Header().Set("Content-Encoding", coding)
					}
					io.WriteString(rw, body)
				})
				req := w.request(t, "GET", "x", nil)
				if accepted != "" {
					req.Header.Set("Accept-Encoding", accepted)
				}
				resp := w.do(t, req)
				text, err := io.ReadAll(resp.Body)
				if string(text) != body || err != nil || resp.Header.Get("Content-Encoding") != coding || resp.Header.Get("Vary") != "Accept-Encoding" || resp.Uncompressed {
					t.Errorf("%s: got %v, %d bytes, %v", coding, resp.Header, len(text), err)
				}
			}
		}
	})
}

func TestPartsOfAFilePass(t *testing.T) {
	eachWay(t, func(t *testing.T, w *way) {
		modified := time.Now().Add(-time.Hour)
		w.answers(func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("ETag", `"v1"`)
			http.ServeContent(rw, r, "x.bin", modified, bytes.NewReader(block[:100000]))
		})
		for _, test := range []struct {
			header          []string
			status          int
			contentRange    string
			from, to        int
			wholeOrSeveral  bool
			acceptsNoRanges bool
		}{
			{header: []string{"Range", "bytes=10-19"}, status: 206, contentRange: "bytes 10-19/100000", from: 10, to: 20},
			{header: []string{"Range", "bytes=-100"}, status: 206, contentRange: "bytes 99900-99999/100000", from: 99900, to: 100000},
			{header: []string{"Range", "bytes=50000-", "If-Range", `"v1"`}, status: 206, contentRange: "bytes 50000-99999/100000", from: 50000, to: 100000},
			{header: []string{"Range", "bytes=50000-", "If-Range", `"v0"`}, status: 200, from: 0, to: 100000},
		} {
			resp := w.do(t, w.request(t, "GET", "x", nil, test.header...))
			text, err := io.ReadAll(resp.Body)
			if resp.StatusCode != test.status || resp.Header.Get("Content-Range") != test.contentRange || !bytes.Equal(text, block[test.from:test.to]) || err != nil ||
				resp.ContentLength != int64(test.to-test.from) || resp.Header.Get("Accept-Ranges") != "bytes" {
				t.Errorf("%q: got %d %v, %d bytes, %v", test.header, resp.StatusCode, resp.Header, len(text), err)
			}
		}
		resp := w.do(t, w.request(t, "GET", "x", nil, "Range", "bytes=200000-"))
		if resp.StatusCode != 416 || resp.Header.Get("Content-Range") != "bytes */100000" {
			t.Errorf("beyond the end: got %d %v", resp.StatusCode, resp.Header)
		}
		resp = w.do(t, w.request(t, "GET", "x", nil, "Range", "bytes=0-9,20-29"))
		text, err := io.ReadAll(resp.Body)
		if resp.StatusCode != 206 || !strings.HasPrefix(resp.Header.Get("Content-Type"), "multipart/byteranges; boundary=") || !bytes.Contains(text, block[20:30]) || err != nil {
			t.Errorf("two parts: got %d %v, %v", resp.StatusCode, resp.Header, err)
		}
	})
}

// switched switches an upstream's connection to another protocol.
func switched(rw http.ResponseWriter) (net.Conn, *bufio.ReadWriter, error) {
	conn, buffered, err := http.NewResponseController(rw).Hijack()
	if err != nil {
		return nil, nil, err
	}
	conn.SetDeadline(time.Now().Add(patience))
	_, err = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
	return conn, buffered, err
}

// openSocket asks for a WebSocket.
func (w *way) openSocket(t *testing.T, target string) (*net.TCPConn, *bufio.Reader, *http.Response) {
	t.Helper()
	c, r := w.dial(t)
	io.WriteString(c, w.head("GET", target)+"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nOrigin: "+w.url+"\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c, r, resp
}

// eachSocket runs a test for every kind of upstream: a browser opens its WebSockets over HTTP/1.1.
func eachSocket(t *testing.T, test func(t *testing.T, w *way)) {
	t.Helper()
	eachWayOf(t, 1, test)
}

// socketFrame is a frame as a browser sends it (RFC 6455 5.2).
func socketFrame(payload []byte) []byte {
	b := []byte{0x82}
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	mask := []byte{1, 2, 3, 4}
	b = append(b, mask...)
	for i, c := range payload {
		b = append(b, c^mask[i%4])
	}
	return b
}

func TestFramesOfEverySizePassBothWaysOnAWebSocket(t *testing.T) {
	eachSocket(t, func(t *testing.T, w *way) {
		w.answers(func(rw http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Sec-WebSocket-Key") == "" || r.Header.Get("Connection") != "Upgrade" || r.Header.Get("Authorization") == "" || r.Header.Get("Cookie") != "" {
				t.Errorf("the upstream got %v", r.Header)
			}
			conn, buffered, err := switched(rw)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			io.Copy(conn, buffered)
		})
		c, r, resp := w.openSocket(t, "x")
		if resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "websocket" || resp.Header.Get("Connection") != "Upgrade" || resp.Header.Get("Sec-WebSocket-Accept") == "" {
			t.Fatalf("got %d %v", resp.StatusCode, resp.Header)
		}
		var all bytes.Buffer
		for _, size := range []int{0, 1, 125, 126, 1<<16 - 1, 1 << 16, 1 << 20} {
			f := socketFrame(bytes.Repeat(block[:1<<18], size>>18+1)[:size])
			all.Write(f)
			if size <= 126 { // one at a time: none waits for the next
				c.Write(f)
				wantBytes(t, fmt.Sprintf("a frame of %d bytes", size), r, string(f))
				all.Reset()
			}
		}
		sent := all.Bytes()
		go func() {
			c.Write(sent)
			c.CloseWrite()
		}()
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, sent) {
			t.Errorf("%d bytes came back of %d, %v", len(got), len(sent), err)
		}
	})
}

func TestAWebSocketIsClosedHalfFromEitherSide(t *testing.T) {
	eachSocket(t, func(t *testing.T, w *way) {
		got := make(chan string, 1)
		w.answers(func(rw http.ResponseWriter, r *http.Request) {
			conn, buffered, err := switched(rw)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			if strings.HasSuffix(r.URL.Path, "/first") {
				io.WriteString(conn, "goodbye")
				conn.(interface{ CloseWrite() error }).CloseWrite()
			}
			text, err := io.ReadAll(buffered)
			got <- fmt.Sprintf("%s %v", text, err)
			if strings.HasSuffix(r.URL.Path, "/second") {
				io.WriteString(conn, "goodbye")
			}
		})
		for _, target := range []string{"first", "second"} {
			c, r, resp := w.openSocket(t, target)
			if resp.StatusCode != 101 {
				t.Fatalf("got %d", resp.StatusCode)
			}
			if target == "first" {
				wantBytes(t, "before the upstream's end", r, "goodbye")
				wantEnd(t, "the upstream's side", r)
			}
			io.WriteString(c, "still here")
			c.CloseWrite()
			if text := await(t, target+": the upstream sees the end", got); text != "still here <nil>" {
				t.Errorf("%s: the upstream got %q", target, text)
			}
			if target == "second" {
				wantBytes(t, "after the client's end", r, "goodbye")
			}
			wantEnd(t, target, r)
		}
	})
}

func TestAnAnswerToAnUpgradeThatIsNoneIsAnAnswer(t *testing.T) {
	eachSocket(t, func(t *testing.T, w *way) {
		for _, status := range []int{200, 403, 426} {
			w.answers(func(rw http.ResponseWriter, r *http.Request) {
				rw.Header().Set("X-Reason", "full")
				rw.WriteHeader(status)
				io.WriteString(rw, "no WebSocket")
			})
			c, r, resp := w.openSocket(t, "x")
			text, err := io.ReadAll(resp.Body)
			if resp.StatusCode != status || string(text) != "no WebSocket" || err != nil || resp.Header.Get("X-Reason") != "full" || resp.Header.Get("Upgrade") != "" || !resp.Close {
				t.Errorf("%d: got %d %v %q, %v", status, resp.StatusCode, resp.Header, text, err)
			}
			before := w.calls.Load()
			io.WriteString(c, w.head("GET", "x?behind")+"\r\n") // what is behind was not looked at
			if rest, _ := io.ReadAll(r); len(rest) > 0 || w.calls.Load() > before {
				t.Errorf("%d: behind it came %q", status, rest)
			}
		}
	})
}

func TestAnUpgradeThatIsRefusedDialsNobody(t *testing.T) {
	eachSocket(t, func(t *testing.T, w *way) {
		w.answers(echoNonce)
		for name, test := range map[string]struct {
			old, new string
			status   int
		}{
			"another origin":       {"Origin: " + w.url, "Origin: https://evil.example", 403},
			"the origin null":      {"Origin: " + w.url, "Origin: null", 403},
			"no origin":            {"Origin: " + w.url, "X-Origin: none", 403},
			"two origins":          {"Origin: " + w.url, "Origin: " + w.url + "\r\nOrigin: https://evil.example", 403},
			"from another site":    {"Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site", 403},
			"HTTP/1.0":             {" HTTP/1.1\r\n", " HTTP/1.0\r\n", 400},
			"a POST":               {"GET ", "POST ", 400},
			"nobody is signed in":  {"Cookie: cloakroom", "X-Cookie: none", 401},
			"two protocols":        {"Upgrade: websocket", "Upgrade: websocket\r\nUpgrade: h2c", 400},
			"two protocols in one": {"Upgrade: websocket", "Upgrade: h2c, websocket", 400},
		} {
			c, r := w.dial(t)
			request := w.head("GET", "x") + "Connection: Upgrade\r\nUpgrade: websocket\r\nOrigin: " + w.url + "\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
			if !strings.Contains(request, test.old) {
				t.Fatalf("%s: there is no %q to replace", name, test.old)
			}
			io.WriteString(c, strings.Replace(request, test.old, test.new, 1))
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if resp.StatusCode != test.status {
				t.Errorf("%s: got %d, want %d", name, resp.StatusCode, test.status)
			}
			io.Copy(io.Discard, resp.Body)
			if rest, _ := io.ReadAll(r); len(rest) > 0 {
				t.Errorf("%s: then came %q", name, rest)
			}
		}
		if n := w.conns.Load(); n > 0 {
			t.Errorf("the upstream was dialled %d times", n)
		}
	})
}

func TestManyStreamsOfOneBrowserPassAtOnce(t *testing.T) {
	eachWayOf(t, 2, func(t *testing.T, w *way) {
		const streams, size = 50, 4 << 20
		var arrived atomic.Int32
		allHere := make(chan struct{})
		answer := func(rw http.ResponseWriter, r *http.Request) {
			switch r.URL.RawQuery {
			case "download":
				io.Copy(rw, newSource(size))
			case "upload":
				got, err := summary(r.Body)
				fmt.Fprint(rw, got, " ", err)
			case "left":
				rw.Header().Set("X-Begun", "1")
				flush(rw)
				<-r.Context().Done()
			default:
				if arrived.Add(1) == streams {
					close(allHere)
				}
				select {
				case <-allHere:
					echoNonce(rw, r)
				case <-r.Context().Done():
				}
			}
		}
		first := probe{method: "POST", nonce: "first"} // so that there is a connection
		w.answers(echoNonce)
		if err := first.ask(w, first.request(t, w)); err != nil {
			t.Fatal(err)
		}
		w.answers(answer)
		before := w.front.conns.Load()
		var all sync.WaitGroup
		for i := range streams {
			all.Go(func() {
				p := probe{method: "GET", nonce: fmt.Sprint("stream ", i), more: 100 * i}
				if err := p.ask(w, p.request(t, w)); err != nil {
					t.Error(err)
				}
			})
		}
		for _, query := range []string{"download", "upload", "left"} {
			all.Go(func() {
				src := newSource(size)
				req := w.request(t, map[bool]string{true: "POST", false: "GET"}[query == "upload"], "x?"+query, nil)
				ctx, leave := context.WithCancel(req.Context())
				defer leave()
				if query == "upload" {
					req.Body = io.NopCloser(src)
					req.ContentLength = -1
				}
				resp, err := w.client.Do(req.WithContext(ctx))
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				if query == "left" { // of one stream that is reset the others take no notice
					leave()
					return
				}
				got, err := io.ReadAll(resp.Body)
				if query == "upload" && string(got) != src.summary()+" <nil>" || query == "download" && len(got) != size || err != nil {
					t.Errorf("%s: got %d bytes %.100q, %v", query, len(got), got, err)
				}
			})
		}
		all.Wait()
		if n := w.front.conns.Load() - before; n > 0 {
			t.Errorf("the browser needed %d connections more", n)
		}
	})
}

// frame2 is a frame of HTTP/2 (RFC 9113 4.1).
func frame2(kind, flags byte, stream uint32, payload []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload))<<8|uint32(kind))
	return append(binary.BigEndian.AppendUint32(append(b, flags), stream), payload...)
}

// fields2 are header fields in the plainest way that HTTP/2 has (RFC 7541 6.2.2).
func fields2(nameAndValue ...string) (b []byte) {
	for i, text := range nameAndValue {
		if i%2 == 0 {
			b = append(b, 0)
		}
		if len(text) < 0x7f {
			b = append(b, byte(len(text)))
		} else { // up to what two bytes more can say
			n := len(text) - 0x7f
			b = append(b, 0x7f, 0x80|byte(n), byte(n>>7))
		}
		b = append(b, text...)
	}
	return b
}

// A WebSocket over HTTP/2 (RFC 8441) would have to be looked at as one over HTTP/1.1 is. CONNECT is for nobody.
func TestCONNECTIsRefusedInHTTP2(t *testing.T) {
	f := newFront(t, nil)
	w := f.ways[0]
	w.answers(func(http.ResponseWriter, *http.Request) {})
	host := strings.TrimPrefix(f.url, "http://")
	cookie := f.browser.Cookies()[0]
	common := []string{"cookie", cookie.Name + "=" + cookie.Value, "sec-fetch-site", "same-origin", "origin", f.url}
	for _, test := range []struct {
		name    string
		fields  []string
		refused bool
	}{
		{"a GET", []string{":method", "GET", ":scheme", "https", ":authority", host, ":path", w.path + "x"}, false},
		{"a WebSocket", []string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":authority", host, ":path", w.path + "x"}, true},
		{"a tunnel", []string{":method", "CONNECT", ":authority", host}, true},
		{"a tunnel to the upstream", []string{":method", "CONNECT", ":authority", w.upstream.Listener.Addr().String()}, true},
	} {
		before := w.calls.Load()
		c, err := tls.Dial("tcp", f.tls, &tls.Config{RootCAs: f.trust.RootCAs, ServerName: f.trust.ServerName, NextProtos: []string{"h2"}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
		c.Write(frame2(4, 0, 0, nil))
		end := byte(4) // of the header
		if !test.refused {
			end |= 1 // and of the stream
		}
		c.Write(frame2(1, end, 1, fields2(append(test.fields, common...)...)))
		for head := make([]byte, 9); ; {
			if _, err := io.ReadFull(c, head); err != nil {
				t.Fatalf("%s: %v", test.name, err)
			}
			payload := make([]byte, binary.BigEndian.Uint32(head)>>8)
			io.ReadFull(c, payload)
			kind := head[3]
			if kind != 1 && kind != 3 && kind != 7 {
				continue
			}
			ok := kind == 1 && payload[0] == 0x88 // :status: 200
			if ok == test.refused {
				t.Errorf("%s: got a frame of type %d, %q", test.name, kind, payload)
			}
			break
		}
		if called := w.calls.Load() > before; called == test.refused {
			t.Errorf("%s: the upstream was called: %v", test.name, called)
		}
	}
}

// probe is a request whose answer is its own and nobody else's.
type probe struct {
	method  string
	nonce   string
	body    []byte
	chunked bool
	more    int // how many bytes come behind the answer's first line
}

// echoNonce answers a probe.
func echoNonce(rw http.ResponseWriter, r *http.Request) {
	got, err := summary(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	first := fmt.Sprintf("%s %s\n", r.Header.Get("X-Nonce"), got)
	rw.Header().Set("X-Nonce", r.Header.Get("X-Nonce"))
	rw.Header().Set("Content-Type", "application/octet-stream")
	more, _ := strconv.Atoi(r.URL.Query().Get("more"))
	if more%2 == 0 {
		rw.Header().Set("Content-Length", strconv.Itoa(len(first)+more))
	}
	if r.Method != "HEAD" {
		io.WriteString(rw, first)
		rw.Write(block[:more])
	}
}

func (p *probe) request(t *testing.T, w *way) *http.Request {
	var body io.Reader
	if p.body != nil {
		body = bytes.NewReader(p.body)
		if p.chunked {
			body = struct{ io.Reader }{body}
		}
	}
	return w.request(t, p.method, "x?more="+strconv.Itoa(p.more), body, "X-Nonce", p.nonce)
}

func (p *probe) ask(w *way, req *http.Request) error {
	resp, err := w.client.Do(req)
	if err != nil {
		return fmt.Errorf("%s %s: %w", p.method, p.nonce, err)
	}
	defer resp.Body.Close()
	return p.check(resp)
}

// early is the answer of an upstream that has not read the request.
const early = "early"

// errOthers says that a request got an answer that was for another one.
var errOthers = errors.New("the answer is another request's")

// check reads an answer, and says what is wrong with it.
func (p *probe) check(resp *http.Response) error {
	text, err := io.ReadAll(resp.Body)
	got := fmt.Sprintf("%s %s: got %d %v %.200q", p.method, p.nonce, resp.StatusCode, resp.Header, text)
	switch sum, _ := summary(bytes.NewReader(p.body)); {
	case resp.StatusCode == 502 && resp.Header.Get("X-Nonce") == "":
		return errors.New(got)
	case resp.StatusCode != 200 || resp.Header.Get("X-Nonce") != p.nonce:
		return fmt.Errorf("%w: %s", errOthers, got)
	case err != nil:
		return fmt.Errorf("%s: %w", got, err)
	case p.method == "HEAD" && len(text) == 0, string(text) == early:
	case string(text) != fmt.Sprintf("%s %s\n%s", p.nonce, sum, block[:p.more]):
		return fmt.Errorf("%w: %s", errOthers, got)
	}
	return nil
}

func randomProbe(random *rand.Rand, nonce string) *probe {
	p := &probe{method: []string{"GET", "GET", "HEAD", "POST", "POST", "PUT", "DELETE"}[random.IntN(7)], nonce: nonce}
	size := func() int { return random.IntN(1 << (1 + random.IntN(16))) }
	if p.method == "POST" || p.method == "PUT" {
		start := random.IntN(1 << 19)
		p.body, p.chunked = block[start:start+size()], random.IntN(2) == 0
	}
	p.more = size()
	return p
}

func TestManyRequestsOnOneConnectionGetTheirAnswersInOrder(t *testing.T) {
	eachWayOf(t, 1, func(t *testing.T, w *way) {
		w.answers(echoNonce)
		seed := uint64(time.Now().UnixNano())
		t.Logf("seed %d", seed)
		random := rand.New(rand.NewPCG(seed, 0))
		c, r := w.dial(t)
		for i := range 50 {
			p := randomProbe(random, fmt.Sprint("request ", i))
			req := p.request(t, w)
			if err := req.Write(c); err != nil {
				t.Fatalf("%d: %v", i, err)
			}
			resp, err := http.ReadResponse(r, req)
			if err != nil {
				t.Fatalf("%d: %v", i, err)
			}
			if err := p.check(resp); err != nil {
				t.Fatal(err)
			}
			if resp.Close {
				t.Fatalf("%s of %d bytes, chunked %v: the connection is closed", p.method, len(p.body), p.chunked)
			}
		}
		if n := w.conns.Load(); n > 10 { // one that has answered before the request's end was taken down is not used again
			t.Errorf("one connection of the client's took %d to the upstream", n)
		}
	})
}

// crowd has many clients ask many things of some ways, some of which leave in between. It returns how many requests were answered.
func crowd(t *testing.T, clients, requests int, faulty bool, ways ...*way) (answered int64) {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	var good, left atomic.Int64
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(i)))
			w := ways[i%len(ways)]
			for j := range requests {
				p := randomProbe(random, fmt.Sprintf("%d of client %d", j, i))
				req := p.request(t, w)
				leaves := random.IntN(10)
				switch {
				case leaves == 0 && p.body != nil: // in the middle of the request
					req.Body = io.NopCloser(io.MultiReader(bytes.NewReader(p.body), failing{}))
					req.ContentLength, req.GetBody = -1, nil
				case leaves <= 1: // in the middle of the answer, or before
					ctx, leave := context.WithCancel(req.Context())
					req = req.WithContext(ctx)
					time.AfterFunc(time.Duration(random.IntN(2000))*time.Microsecond, leave)
				}
				err := p.ask(w, req)
				switch {
				case errors.Is(err, errOthers):
					t.Error(err)
					return
				case leaves <= 1:
					left.Add(1)
				case err == nil:
					good.Add(1)
				case !faulty:
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	t.Logf("%d requests: %d answered, %d left", clients*requests, good.Load(), left.Load())
	return good.Load()
}

// failing is the end of a body whose client leaves.
type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("the client leaves") }

func TestEveryOneOfManyClientsGetsItsOwnAnswers(t *testing.T) {
	testenv.Slow(t)
	eachWay(t, func(t *testing.T, w *way) {
		w.answers(echoNonce)
		requests := 200
		if raceDetector && (w.browser != 1 || w.kind.scheme != "http") {
			requests = 10
		}
		crowd(t, 64, requests, false, w)
	})
}

// unruly is an upstream that answers with a probe's nonce, and does wrong now and then.
func unruly(l net.Listener) {
	seed := uint64(time.Now().UnixNano())
	var n uint64
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		n++
		go func(n uint64) {
			defer c.Close()
			c.SetDeadline(time.Now().Add(2 * patience))
			random := rand.New(rand.NewPCG(seed, n))
			for r := bufio.NewReader(c); ; {
				if !unrulyAnswer(c, r, random) {
					return
				}
			}
		}(n)
	}
}

// unrulyAnswer answers one request, and says whether the connection goes on.
func unrulyAnswer(c net.Conn, r *bufio.Reader, random *rand.Rand) bool {
	req, err := http.ReadRequest(r)
	if err != nil {
		return false
	}
	nonce := req.Header.Get("X-Nonce")
	wrong := random.IntN(20)
	if wrong == 0 {
		return false
	}
	if wrong == 1 || wrong == 2 { // before the request is complete
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nX-Nonce: %s\r\nContent-Length: 5\r\n\r\n%s", nonce, early)
		if wrong == 1 {
			return false
		}
		_, err := io.Copy(io.Discard, req.Body)
		return err == nil
	}
	got, err := summary(req.Body)
	if err != nil || wrong == 3 {
		return false
	}
	more, _ := strconv.Atoi(req.URL.Query().Get("more"))
	body := fmt.Sprintf("%s %s\n%s", nonce, got, block[:more])
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 200 OK\r\nX-Nonce: %s\r\n", nonce)
	if wrong == 4 || wrong == 5 {
		b.WriteString("Connection: close\r\n")
	}
	if more%2 == 0 || req.Method == "HEAD" {
		fmt.Fprintf(&b, "Content-Length: %d\r\n\r\n", len(body))
	} else {
		b.WriteString("Transfer-Encoding: chunked\r\n\r\n")
		body = fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body)
	}
	if req.Method != "HEAD" {
		b.WriteString(body)
	}
	if b.Len() > 8<<10 && (wrong == 6 || wrong == 7) { // in more than one TLS record it may come later than the next request, and nobody can tell then
		wrong = 10
	}
	switch wrong {
	case 6: // more than was asked for, which reads as an answer
		b.WriteString("HTTP/1.1 200 OK\r\nX-Nonce: nobody's\r\nContent-Length: 8\r\n\r\nnobody's")
	case 7:
		b.WriteString("nobody's")
	case 8: // not all of it
		b.Truncate(b.Len() - 1 - random.IntN(b.Len()-1))
	}
	if _, err := c.Write(b.Bytes()); err != nil {
		return false
	}
	if wrong == 9 {
		io.WriteString(c, "\r\n") // a moment later
	}
	return wrong != 4 && wrong != 8 // 5 closes later than it says
}

func TestNoClientGetsAnothersAnswerWhateverTheUpstreamDoes(t *testing.T) {
	testenv.Slow(t)
	plain, overTLS := listen(t), listen(t)
	f := newFront(t, func(f *front, cfg *bff.Config) {
		cfg.Routes = append(cfg.Routes, f.route("/unruly/", "http://"+plain.Addr().String()), f.route("/unruly-tls/", "https://"+overTLS.Addr().String()))
	})
	log.SetOutput(io.Discard) // http.Transport says there what comes without having been asked for
	t.Cleanup(func() { log.SetOutput(os.Stderr) })
	go unruly(plain) // until it is closed, as the next
	go unruly(tls.NewListener(overTLS, &tls.Config{Certificates: f.ways[1].upstream.TLS.Certificates}))
	for _, path := range []string{"/unruly/", "/unruly-tls/"} {
		var ways []*way
		for _, browser := range []int{1, 2} {
			ways = append(ways, &way{front: f, browser: browser, client: f.newClient(t, browser), path: path})
		}
		requests := 200
		if raceDetector {
			requests = map[string]int{"/unruly/": 60, "/unruly-tls/": 15}[path] // handshakes take their time
		}
		if n := crowd(t, 64, requests, true, ways...); n < int64(64*requests/3) {
			t.Errorf("%s: only %d requests of %d were answered: that shows little", path, n, 64*requests)
		}
	}
}
