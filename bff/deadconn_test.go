package bff_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// relay forwards connections to an upstream, and can break those that are open.
type relay struct {
	addr    string
	target  atomic.Pointer[string]
	opened  atomic.Int32
	onFrame func(kind byte) // called for each HTTP/2 frame to the upstream unless it is nil

	mu    sync.Mutex // guards all below
	conns map[*relayed]bool
}

// relayed is one connection through a relay.
type relayed struct {
	client, upstream *net.TCPConn
	silent           atomic.Bool // no more bytes are forwarded
	resets           atomic.Bool // the next bytes of the client reset it
}

func newRelay(t *testing.T, target string) *relay {
	t.Helper()
	l := listen(t)
	r := &relay{addr: l.Addr().String(), conns: make(map[*relayed]bool)}
	r.target.Store(&target)
	t.Cleanup(func() {
		r.each(func(c *relayed) {
			c.client.Close()
			c.upstream.Close()
		})
	})
	go func() { // until the listener closes
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			r.opened.Add(1)
			go r.pass(client.(*net.TCPConn))
		}
	}()
	return r
}

func (r *relay) pass(client *net.TCPConn) {
	upstream, err := net.Dial("tcp", *r.target.Load())
	if err != nil {
		client.SetLinger(0)
		client.Close()
		return
	}
	c := &relayed{client: client, upstream: upstream.(*net.TCPConn)}
	r.mu.Lock()
	r.conns[c] = true
	r.mu.Unlock()
	move := func(to, from *net.TCPConn, up bool) {
		b := make([]byte, 64<<10)
		var frames frameKinds
		for {
			n, err := from.Read(b)
			switch {
			case c.silent.Load() && err != nil:
				return
			case c.silent.Load():
				continue
			case up && n > 0 && c.resets.Load():
				client.SetLinger(0)
				client.Close()
				upstream.Close()
				return
			}
			if up && r.onFrame != nil {
				frames.add(b[:n], r.onFrame)
			}
			to.Write(b[:n])
			if err != nil {
				to.CloseWrite()
				return
			}
		}
	}
	go move(client, c.upstream, false)
	move(c.upstream, client, true)
}

// each calls f with all connections, open or closed.
func (r *relay) each(f func(*relayed)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		f(c)
	}
}

// frameKinds finds the types of the HTTP/2 frames that a client sends.
type frameKinds struct {
	started bool
	buf     []byte
}

func (f *frameKinds) add(p []byte, found func(kind byte)) {
	const preface = 24
	f.buf = append(f.buf, p...)
	if !f.started {
		if len(f.buf) < preface {
			return
		}
		f.started, f.buf = true, f.buf[preface:]
	}
	for len(f.buf) >= 9 {
		length := int(f.buf[0])<<16 | int(f.buf[1])<<8 | int(f.buf[2])
		if len(f.buf) < 9+length {
			return
		}
		found(f.buf[3])
		f.buf = f.buf[9+length:]
	}
}

// h2cServer serves HTTP/2 without TLS, with at most streams streams per
// connection, 0 for any number.
func h2cServer(t *testing.T, streams int, h http.HandlerFunc) (addr string, s *http.Server) {
	t.Helper()
	l := listen(t)
	s = &http.Server{
		Handler: h, Protocols: new(http.Protocols), HTTP2: &http.HTTP2Config{MaxConcurrentStreams: streams},
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0),
	}
	s.Protocols.SetUnencryptedHTTP2(true)
	go s.Serve(l) // until Close
	t.Cleanup(func() { s.Close() })
	return l.Addr().String(), s
}

// concurrently calls request n times concurrently.
func concurrently(n int, request func(i int)) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { request(i) })
	}
	all.Wait()
}

func TestResetIdleConnectionsFailNoRequest(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"http", "https"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			const idle, requests = 20, 30
			var holding atomic.Int32
			all := make(chan struct{})
			echo := brokertest.NewEcho(t)
			echo.Handler = func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				if strings.HasSuffix(r.URL.Path, "/hold") {
					if holding.Add(1) == idle {
						close(all)
					}
					<-all
				}
			}
			trust := new(tls.Config)
			address := echo.Listener.Addr().String()
			if scheme == "https" {
				address, trust = serveTLS(t, echo.Config.Handler, "http/1.1")
			}
			r := newRelay(t, address)
			a, b := newRoutedApp(t, bff.Route{
				Path:     "/idle/",
				Token:    "none",
				Upstream: []string{scheme + "://" + r.addr},
				TLS:      trust,
			})
			for _, concurrent := range []bool{false, true} {
				holding.Store(0)
				all = make(chan struct{})
				concurrently(idle, func(int) { b.Fetch("GET", "/idle/hold") })
				r.each(func(c *relayed) { c.resets.Store(true) })
				opened := r.opened.Load()
				get := func(i int) {
					method := []string{"GET", "PUT", "DELETE"}[i%3]
					if resp := b.Fetch(method, "/idle/x"); resp.StatusCode != 200 {
						t.Errorf("concurrent %v, %s %d: got %d %s, want 200\n%s", concurrent, method, i,
							resp.StatusCode, resp.Text, a.logs)
					}
				}
				if concurrent {
					concurrently(requests, get)
				} else {
					for i := range requests {
						get(i)
					}
					if n := r.opened.Load() - opened; n > 3 {
						t.Errorf("%d connections were opened for sequential requests", n)
					}
				}
			}
			// A request that is not idempotent detects this once, not once per
			// connection.
			holding.Store(0)
			all = make(chan struct{})
			concurrently(idle, func(int) { b.Fetch("GET", "/idle/hold") })
			r.each(func(c *relayed) { c.resets.Store(true) })
			failed := 0
			for range requests {
				if b.Fetch("POST", "/idle/x").StatusCode != 200 {
					failed++
				}
			}
			if failed > 1 {
				t.Errorf("%d of %d POSTs failed", failed, requests)
			}
		})
	}
}

// serveTLS serves with TLS and returns its address and a client configuration
// that trusts it.
func serveTLS(t *testing.T, h http.Handler, protocols ...string) (string, *tls.Config) {
	t.Helper()
	l := listen(t)
	cert, trust := serverCertificate(t)
	s := &http.Server{Handler: h, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	cfg := &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: protocols}
	go s.Serve(tls.NewListener(l, cfg)) // until Close
	t.Cleanup(func() { s.Close() })
	return l.Addr().String(), trust
}

func TestSilentHTTP2ConnectionIsReplaced(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"h2c", "https"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			h := func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) }
			trust := new(tls.Config)
			var address string
			if kind == "h2c" {
				address, _ = h2cServer(t, 0, h)
			} else {
				address, trust = serveTLS(t, http.HandlerFunc(h), "h2", "http/1.1")
			}
			r := newRelay(t, address)
			// Shorter than the check of the connection: a request that times
			// out must not hide that its connection is dead.
			for _, timeout := range []time.Duration{0, time.Second} {
				a, b := newRoutedApp(t, bff.Route{
					Path: "/silent/", Token: "none", Upstream: []string{kind + "://" + r.addr}, TLS: trust,
					Timeouts: bff.Timeouts{ResponseHeader: timeout},
				})
				if resp := b.Fetch("GET", "/silent/x"); resp.Text != "HTTP/2.0" {
					t.Fatalf("got %d %s", resp.StatusCode, resp.Text)
				}
				r.each(func(c *relayed) { c.silent.Store(true) })
				began, good := time.Now(), 0
				for n := 0; good < 20 && time.Since(began) < 20*time.Second; n++ {
					if resp := b.Fetch("GET", "/silent/x"); resp.StatusCode == 200 {
						good++
					} else if good = 0; timeout == 0 {
						t.Errorf("request %d: got %d %s\n%s", n, resp.StatusCode, resp.Text, a.logs)
					}
				}
				if good < 20 {
					t.Errorf("with a timeout of %v requests do not succeed after 20s", timeout)
				}
			}
		})
	}
}

// gRPC treats the third PING on a quiet stream as an attack, Tomcat the
// eleventh.
func TestQuietHTTP2StreamIsNotPingedRepeatedly(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	more := make(chan struct{})
	address, _ := h2cServer(t, 0, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept") == "text/event-stream" {
			w.Header().Set("Content-Type", "text/event-stream")
		}
		io.WriteString(w, "begun")
		flush(w)
		<-more
		io.WriteString(w, "ended")
	})
	r := newRelay(t, address)
	var pings atomic.Int32
	r.onFrame = func(kind byte) {
		if kind == 6 {
			pings.Add(1)
		}
	}
	_, b := newRoutedApp(t, bff.Route{
		Path: "/quiet/", Token: "none", CSRF: "fetch-metadata", Upstream: []string{"h2c://" + r.addr},
	})
	resp := b.Open("/quiet/x")
	defer resp.Body.Close()
	wantBytes(t, "the beginning", resp.Body, "begun")
	time.Sleep(9 * time.Second) // nothing must happen, so there is no event to wait for
	close(more)
	wantBytes(t, "the end", resp.Body, "ended")
	if n := pings.Load(); n > 2 {
		t.Errorf("%d PINGs", n)
	}
}

// once counts how often each request was processed.
type once struct {
	mu   sync.Mutex // guards seen
	seen map[string]int
}

func (o *once) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	o.mu.Lock()
	if o.seen == nil {
		o.seen = make(map[string]int)
	}
	o.seen[string(body)]++
	o.mu.Unlock()
	time.Sleep(time.Millisecond) // so that the streams overlap
	w.Write(body)
}

func (o *once) want(t *testing.T, n int) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.seen) != n {
		t.Errorf("%d different requests were processed, want %d", len(o.seen), n)
	}
	for body, times := range o.seen {
		if times != 1 {
			t.Errorf("%.40q was processed %d times", body, times)
		}
	}
}

func TestRefusedHTTP2StreamIsRetried(t *testing.T) {
	t.Parallel()
	var all once
	address, _ := h2cServer(t, 5, all.ServeHTTP)
	a, b := newRoutedApp(t, bff.Route{Path: "/few/", Token: "none", Upstream: []string{"h2c://" + address}})
	const requests = 60
	concurrently(requests, func(i int) {
		body := fmt.Sprintf("%d %s", i, strings.Repeat("x", i*1000))
		method := []string{"POST", "PATCH"}[i%2]
		if resp := b.Do(method, "/few/x", body, "X-CSRF", "1"); resp.StatusCode != 200 || resp.Text != body {
			t.Errorf("%d: got %d %.100s", i, resp.StatusCode, resp.Text)
		}
	})
	all.want(t, requests)
	if t.Failed() {
		t.Log(a.logs)
	}
}

// The stream is refused while the client is still sending the body.
func TestRefusedHTTP2StreamWithABodyIsRetried(t *testing.T) {
	t.Parallel()
	var all once
	address, _ := h2cServer(t, 1, all.ServeHTTP)
	a, _ := newRoutedApp(t, bff.Route{Path: "/few/", Token: "none", Upstream: []string{"h2c://" + address}})
	var responses sync.WaitGroup
	for range 3 {
		responses.Go(func() {
			body, client := io.Pipe()
			req, err := http.NewRequestWithContext(t.Context(), "POST", a.url+"/few/x", body)
			if err != nil {
				t.Error(err)
				return
			}
			req.Header.Set("X-CSRF", "1")
			go func() {
				io.WriteString(client, "a ")
				time.Sleep(200 * time.Millisecond)
				fmt.Fprintf(client, "body %p", req)
				client.Close()
			}()
			resp, err := httpClient.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if text, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 || !strings.HasPrefix(string(text), "a body ") {
				t.Errorf("got %d %s\n%s", resp.StatusCode, text, a.logs)
			}
		})
	}
	responses.Wait()
	all.want(t, 3)
}

func TestGracefulHTTP2RestartsFailNoRequest(t *testing.T) {
	t.Parallel()
	var all once
	address, server := h2cServer(t, 0, all.ServeHTTP)
	r := newRelay(t, address)
	a, b := newRoutedApp(t, bff.Route{Path: "/restarts/", Token: "none", Upstream: []string{"h2c://" + r.addr}})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var sent atomic.Int32
	var workers sync.WaitGroup
	for range 8 {
		workers.Go(func() {
			for ctx.Err() == nil {
				body := fmt.Sprint("request ", sent.Add(1))
				resp := b.Do("POST", "/restarts/x", body, "X-CSRF", "1")
				if resp.StatusCode != 200 || resp.Text != body {
					t.Errorf("got %d %s", resp.StatusCode, resp.Text)
				}
			}
		})
	}
	for range 6 {
		reached := sent.Load() + 50
		for sent.Load() < reached && !t.Failed() {
			time.Sleep(5 * time.Millisecond)
		}
		next, successor := h2cServer(t, 0, all.ServeHTTP)
		r.target.Store(&next)
		grace, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		if err := server.Shutdown(grace); err != nil && !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
		cancel()
		server = successor
	}
	stop()
	workers.Wait()
	all.want(t, int(sent.Load()))
	if t.Failed() {
		t.Logf("%.5000s", a.logs)
	}
}
