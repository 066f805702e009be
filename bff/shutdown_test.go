package bff_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
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

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// A client must not send another request on a connection that is about to be
// closed. The response to a request in flight is the last one that can tell.
func TestResponseAfterTheBeginOfTheShutdownClosesItsConnection(t *testing.T) {
	t.Parallel()
	arrived, released := make(chan struct{}, 1), make(chan struct{})
	slow := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			arrived <- struct{}{}
			<-released
			if status != 0 {
				w.WriteHeader(status)
			}
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/api/", slow(201))
	mux.HandleFunc("/empty", slow(0))
	mux.HandleFunc("/created", slow(201))
	upstream := newUpstream(t, mux)
	var cfg bff.Config
	a := newApp(t, func(_ *app, c *bff.Config) {
		c.Frontend = mux
		c.Routes = []bff.Route{{Path: "/api/", Upstream: []string{upstream}, Token: "none"}}
		cfg = *c
		cfg.ShutdownDelay = time.Second
	})
	l := listen(t)
	server, stop, result := serve(t, cfg, l)
	paths := []string{"/api/x", "/empty", "/created"}
	var all []*keepAlive
	for _, path := range paths {
		k := a.keepAlive(l.Addr().String())
		fmt.Fprintf(k.conn, "GET %s HTTP/1.1\r\nHost: %s\r\nX-CSRF: 1\r\n\r\n", path, k.host)
		<-arrived
		all = append(all, k)
	}
	stop()
	waitFor(t, "the server is not ready", func() bool {
		status, _ := readyz(server, "")
		return status == 503
	})
	close(released)
	for i, k := range all {
		resp, err := http.ReadResponse(k.r, nil)
		if err != nil {
			t.Fatalf("%s: %v", paths[i], err)
		}
		if resp.StatusCode >= 400 || !resp.Close {
			t.Errorf("%s: got %d, closes %v; want a success that closes its connection", paths[i],
				resp.StatusCode, resp.Close)
		}
	}
	if err := <-result; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// A refresh that began before a reload has the same time to end in the
// shutdown: its refresh token has been rotated.
func TestShutdownWaitsForRefreshesFromBeforeAReload(t *testing.T) {
	t.Parallel()
	for name, stuck := range map[string]bool{"without requests": false, "with a request in flight": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			frontend, pending, releaseRequest := slowApp(t)
			var cfg bff.Config
			a := newApp(t, func(_ *app, c *bff.Config) {
				c.Provider.Wait, c.ShutdownGrace = 2*time.Second, 100*time.Millisecond
				c.Frontend = frontend
				cfg = *c
			})
			b := a.expired()
			arrived := make(chan struct{})
			release := make(chan struct{})
			a.onRefresh(func(n int, w http.ResponseWriter, r *http.Request, provider http.Handler) {
				if n == 1 {
					close(arrived)
				}
				<-release
				provider.ServeHTTP(w, r)
			})
			if stuck {
				go a.get(strings.TrimPrefix(a.url, "http://"), "/")
				<-pending
			}
			wantProblem(t, b.Fetch("GET", "/api/x"), 503, "provider_unavailable")
			<-arrived
			if err := reload(t, a.server, cfg); err != nil {
				t.Fatal(err)
			}
			time.AfterFunc(time.Second, func() { close(release) })
			a.stop()
			if logs := a.logs.String(); !strings.Contains(logs, `"msg":"session refreshed"`) {
				t.Errorf("Run has returned before the refresh ended:\n%s", logs)
			}
			releaseRequest()
		})
	}
}

// The shutdown cancels the attempt to discover the next provider. Then it is
// unknown whether the next configuration works, so that it must not be applied.
func TestReloadIsRefusedIfTheShutdownBegins(t *testing.T) {
	t.Parallel()
	var cfg bff.Config
	a := newApp(t, func(_ *app, c *bff.Config) { cfg = *c })
	arrived := make(chan struct{}, 10)
	a.recordCalls(devidp.Hooks{Intercept: func(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
		arrived <- struct{}{}
		<-r.Context().Done()
	}})
	next, err := bff.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() { result <- a.server.Reload(t.Context(), next) }()
	<-arrived
	if err := a.stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if err := <-result; !errors.Is(err, bff.ErrStopping) {
		t.Errorf("reload: got %v, want ErrStopping: the provider was not discovered", err)
	}
}

// A stream from before a reload continues during ShutdownDelay, as others do:
// its client would connect to this replica again.
func TestStreamFromBeforeAReloadOutlivesTheShutdownDelay(t *testing.T) {
	t.Parallel()
	upstream := newUpstream(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	var cfg bff.Config
	a := newApp(t, func(_ *app, c *bff.Config) {
		c.Routes = []bff.Route{{Path: "/stream/", Upstream: []string{upstream}, Token: "none"}}
		c.ShutdownDelay = time.Second
		cfg = *c
	})
	k := a.keepAlive(strings.TrimPrefix(a.url, "http://"))
	fmt.Fprintf(k.conn, "GET /stream/x HTTP/1.1\r\nHost: %s\r\nX-CSRF: 1\r\n\r\n", k.host)
	resp, err := http.ReadResponse(k.r, nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("got %v, %v", resp, err)
	}
	if err := reload(t, a.server, cfg); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	go a.stop()
	bufio.NewReader(resp.Body).ReadByte()
	if lasted := time.Since(begun); lasted < 900*time.Millisecond {
		t.Errorf("the stream was aborted %v after the begin of the shutdown, want a second", lasted)
	}
}

// A stream from before a key rotation continues, although its session is moved
// to a key that the configuration of the stream does not have.
func TestStreamOutlivesARotationOfSessionKeys(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	upstream := newUpstream(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	var cfg bff.Config
	a := newApp(t, func(a *app, c *bff.Config) {
		c.Sessions.IdleTimeout = time.Minute // a call extends the session every second
		c.Routes = append(c.Routes, bff.Route{Path: "/events/", Upstream: []string{upstream}, Token: "user"})
		cfg = *c
	})
	b := a.signedIn()
	resp := b.Open("/events/x")
	defer resp.Body.Close()
	old, added := cfg.Sessions.Keys[0], bytes.Repeat([]byte("n"), 32)
	for _, keys := range [][][]byte{{old, added}, {added, old}} {
		cfg.Sessions.Keys = keys
		if err := reload(t, a.server, cfg); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(1100 * time.Millisecond)
	if resp := b.Fetch("GET", "/api/x"); resp.StatusCode != 200 {
		t.Fatalf("call that moves the session to the new key: got %d, want 200", resp.StatusCode)
	}
	ended := make(chan struct{})
	go func() {
		bufio.NewReader(resp.Body).ReadByte()
		close(ended)
	}()
	select {
	case <-ended:
		t.Errorf("the stream ended with the key rotation:\n%s", a.logs)
	case <-time.After(1500 * time.Millisecond): // an end takes a second at most
	}
	b.Fetch("POST", "/bff/logout", "Accept", "application/json")
	select {
	case <-ended:
	case <-time.After(testTimeout):
		t.Error("the stream did not end with its session")
	}
}

func newUpstream(t *testing.T, h http.Handler) (url string) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

// While the metadata cannot be read, what works under one configuration works
// under the next: the provider's other endpoints may respond.
func TestReloadKeepsTheMetadataOfTheProvider(t *testing.T) {
	t.Parallel()
	var cfg bff.Config
	a := newApp(t, func(_ *app, c *bff.Config) { cfg = *c })
	b := a.expired()
	a.recordCalls(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, provider http.Handler) {
		if strings.Contains(r.URL.Path, "/.well-known/") {
			w.WriteHeader(503)
			return
		}
		provider.ServeHTTP(w, r)
	}})
	if err := reload(t, a.server, cfg); err != nil {
		t.Fatal(err)
	}
	if resp := b.Fetch("GET", "/api/x"); resp.StatusCode != 200 {
		t.Errorf("a session whose access token has expired: got %d %s, want 200", resp.StatusCode, resp.Code())
	}
	a.signedIn()
	a.provider.Behave()
	waitFor(t, "the metadata are read", func() bool { return strings.Count(a.logs.String(), `"provider found"`) == 2 })
	a.signedIn()
}

// A client in HTTP/2 has to learn that its next request needs another
// connection, and a request that is on its way is served: an idle client after
// the delay, another one with its next response.
func TestHTTP2ClientsGetGOAWAYInTheShutdown(t *testing.T) {
	for name, delay := range map[string]time.Duration{
		"idle": 0,
		"used": 3 * time.Second, // longer than the requests below take on a busy machine
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testGOAWAY(t, delay)
		})
	}
}

func testGOAWAY(t *testing.T, delay time.Duration) {
	certified := httptest.NewTLSServer(nil)
	defer certified.Close()
	var cfg bff.Config
	a := newApp(t, func(_ *app, c *bff.Config) {
		c.ShutdownDelay = delay
		c.TLS = &tls.Config{Certificates: certified.TLS.Certificates, NextProtos: []string{"h2", "http/1.1"}}
		cfg = *c
	})
	l := listen(t)
	server, stop, result := serve(t, cfg, l)
	c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(testTimeout))
	io.WriteString(c, http2.ClientPreface)
	framer := http2.NewFramer(c, c)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	framer.WriteSettings()
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	request := func(stream uint32) {
		block.Reset()
		for _, field := range []hpack.HeaderField{
			{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "https"}, {Name: ":path", Value: "/"},
			{Name: ":authority", Value: strings.TrimPrefix(a.url, "http://")},
		} {
			encoder.WriteField(field)
		}
		framer.WriteHeaders(http2.HeadersFrameParam{
			StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true,
		})
	}
	next := func() http2.Frame { // the next response or GOAWAY
		t.Helper()
		for {
			switch frame, err := framer.ReadFrame(); frame := frame.(type) {
			case nil:
				t.Fatalf("got %v, want a frame", err)
			case *http2.GoAwayFrame, *http2.MetaHeadersFrame:
				return frame
			}
		}
	}
	request(1)
	if got, ok := next().(*http2.MetaHeadersFrame); !ok || got.PseudoValue("status") != "200" {
		t.Fatalf("first request: got %v, want 200", got)
	}
	stop()
	waitFor(t, "the server is not ready", func() bool {
		status, _ := readyz(server, "")
		return status == 503
	})
	stream := uint32(3)
	if delay > 0 {
		request(stream)
		stream += 2
	}
	goAway, ok := next().(*http2.GoAwayFrame)
	if !ok || goAway.ErrCode != http2.ErrCodeNo || goAway.LastStreamID != 1<<31-1 {
		t.Errorf("begin of the shutdown: got %v, want GOAWAY for requests that are not on their way", goAway)
	}
	request(stream)
	for served := uint32(0); served != stream; {
		headers, ok := next().(*http2.MetaHeadersFrame)
		if !ok || headers.PseudoValue("status") != "200" {
			t.Fatalf("request on its way: got %v, want 200", headers)
		}
		served = headers.StreamID
	}
	c.Close()
	if err := <-result; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// A listener that the shutdown has closed itself is no request that was
// aborted. A client that never sends its part of the TLS handshake keeps the
// listener in use until the end of the shutdown.
func TestShutdownWithoutRequestsWarnsOfNone(t *testing.T) {
	t.Parallel()
	certified := httptest.NewTLSServer(nil)
	defer certified.Close()
	var cfg bff.Config
	a := newApp(t, func(_ *app, c *bff.Config) {
		c.TLS = &tls.Config{Certificates: certified.TLS.Certificates}
		cfg = *c
	})
	l := listen(t)
	_, stop, result := serve(t, cfg, l)
	silent, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err) // its end means that the connection before it was accepted
	}
	c.Close()
	stop()
	if err := <-result; err != nil {
		t.Errorf("Run: %v", err)
	}
	if logs := a.logs.String(); strings.Contains(logs, "requests still open") {
		t.Errorf("got a warning of open requests, want none:\n%s", logs)
	}
}

// A response that began before the shutdown cannot say that its connection is
// about to be closed. So the connection has to serve another request.
func TestConnectionOfALongResponseServesAnotherRequest(t *testing.T) {
	t.Parallel()
	released := make(chan struct{})
	var cfg bff.Config
	a := newApp(t, func(_ *app, c *bff.Config) {
		c.Frontend = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "4")
			http.NewResponseController(w).Flush()
			if r.URL.Path == "/long" {
				<-released
			}
			w.Write([]byte("done"))
		})
		cfg = *c
	})
	l := listen(t)
	_, stop, result := serve(t, cfg, l)
	k, idle := a.keepAlive(l.Addr().String()), a.keepAlive(l.Addr().String())
	idle.get("/")
	fmt.Fprintf(k.conn, "GET /long HTTP/1.1\r\nHost: %s\r\n\r\n", k.host)
	resp, err := http.ReadResponse(k.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	stop()
	idle.conn.SetReadDeadline(time.Now().Add(15 * time.Second))
	if _, err := idle.r.ReadByte(); err != io.EOF {
		t.Errorf("an idle connection: got %v, want that it is closed", err)
	}
	time.Sleep(time.Second) // after the time for idle connections
	close(released)
	if body, err := io.ReadAll(resp.Body); string(body) != "done" {
		t.Errorf("the long response: got %q, %v", body, err)
	}
	time.Sleep(500 * time.Millisecond)
	k.get("/")
	k.conn.Close()
	if err := <-result; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// A response that its client does not read is aborted after ShutdownGrace, and
// the log says so, although the handler has returned.
func TestShutdownAbortsAResponseThatIsNotRead(t *testing.T) {
	t.Parallel()
	var handled atomic.Int64
	var cfg bff.Config
	a := newApp(t, func(_ *app, c *bff.Config) {
		c.ShutdownGrace, c.LogRequests = 200*time.Millisecond, bff.RequestsNone
		c.Frontend = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Write(make([]byte, 30<<10)) // fits into the buffer
			handled.Add(1)
		})
		cfg = *c
	})
	var logs buffer
	cfg.Logger = slog.New(slog.NewJSONHandler(&logs, nil))
	l := listen(t)
	_, stop, result := serve(t, cfg, l)
	k := a.keepAlive(l.Addr().String())
	k.conn.(*net.TCPConn).SetReadBuffer(1)
	request := fmt.Sprintf("GET / HTTP/1.1\r\nHost: %s\r\n\r\n", k.host)
	go io.WriteString(k.conn, strings.Repeat(request, 1000))
	before := int64(-1)
	waitFor(t, "the client's buffer is full", func() bool {
		time.Sleep(200 * time.Millisecond)
		n := handled.Load()
		stalled := n > 0 && n == before
		before = n
		return stalled
	})
	stop()
	if err := <-result; err != nil {
		t.Errorf("Run: %v", err)
	}
	if !strings.Contains(logs.String(), "requests still open after the grace period are aborted") {
		t.Errorf("the log does not say that a request was aborted:\n%s", logs.String())
	}
}

// Clients that read nothing must not delay the shutdown, each for a while.
func TestShutdownDoesNotWaitForEachHTTP2ClientThatReadsNothing(t *testing.T) {
	t.Parallel()
	certified := httptest.NewTLSServer(nil)
	defer certified.Close()
	var written atomic.Int64
	var inFlight atomic.Int32
	var cfg bff.Config
	a := newApp(t, func(_ *app, c *bff.Config) {
		c.TLS = &tls.Config{Certificates: certified.TLS.Certificates, NextProtos: []string{"h2"}}
		c.ShutdownGrace = time.Second
		c.Frontend = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			inFlight.Add(1)
			defer inFlight.Add(-1)
			for {
				n, err := w.Write(block[:32<<10])
				if err != nil {
					return
				}
				written.Add(int64(n))
			}
		})
		cfg = *c
	})
	l := listen(t)
	_, stop, result := serve(t, cfg, l)
	const clients = 40
	var framers []*http2.Framer
	for range clients {
		raw, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		raw.(*net.TCPConn).SetReadBuffer(1)
		c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		defer c.Close()
		io.WriteString(c, http2.ClientPreface)
		framer := http2.NewFramer(c, c)
		const window = 1<<31 - 1
		framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window})
		framer.WriteWindowUpdate(0, window-1<<16)
		var fields bytes.Buffer
		encoder := hpack.NewEncoder(&fields)
		for _, field := range []hpack.HeaderField{
			{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "https"}, {Name: ":path", Value: "/"},
			{Name: ":authority", Value: strings.TrimPrefix(a.url, "http://")},
		} {
			encoder.WriteField(field)
		}
		framer.WriteHeaders(http2.HeadersFrameParam{
			StreamID: 1, BlockFragment: fields.Bytes(), EndHeaders: true, EndStream: true,
		})
		framers = append(framers, framer)
	}
	before := int64(-1)
	waitFor(t, "the clients' buffers are full", func() bool {
		time.Sleep(200 * time.Millisecond)
		n := written.Load()
		full := inFlight.Load() == clients && n == before
		before = n
		return full
	})
	for _, framer := range framers {
		framer.WriteRSTStream(1, http2.ErrCodeCancel)
	}
	waitFor(t, "the connections are idle", func() bool { return inFlight.Load() == 0 })
	begun := time.Now()
	stop()
	if err := <-result; err != nil {
		t.Errorf("Run: %v", err)
	}
	if took := time.Since(begun); took > clients*time.Second/2 {
		t.Errorf("the shutdown took %v, want no second for each client", took)
	}
}

// A second call of Run fails, closes its own listeners, and leaves what the
// first one does alone.
func TestSecondRunLeavesTheFirstAlone(t *testing.T) {
	t.Parallel()
	var cfg bff.Config
	a := newApp(t, func(_ *app, c *bff.Config) {
		c.Frontend = http.NotFoundHandler()
		cfg = *c
	})
	l := listen(t)
	server, stop, result := serve(t, cfg, l)
	k := a.keepAlive(l.Addr().String())
	k.get("/")
	other := listen(t)
	if err := server.Run(t.Context(), other); err == nil {
		t.Error("the second Run has not failed")
	}
	if err := other.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener of the second Run: got %v, want that it is closed", err)
	}
	stop()
	if err := <-result; err != nil {
		t.Errorf("Run: %v", err)
	}
	k.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := k.r.ReadByte(); err != io.EOF {
		t.Errorf("the idle connection after the shutdown: got %v, want EOF", err)
	}
}

// heldListener accepts nothing until it is released.
type heldListener struct {
	*net.TCPListener
	released <-chan struct{}
}

func (l *heldListener) Accept() (net.Conn, error) {
	<-l.released
	return l.TCPListener.Accept()
}

// A client has opened a connection and sent a request, but the connection waits
// in the backlog of the listener when that is closed.
func TestShutdownServesTheBacklog(t *testing.T) {
	t.Parallel()
	var cfg bff.Config
	a := newApp(t, func(_ *app, c *bff.Config) { cfg = *c })
	released := make(chan struct{})
	l := &heldListener{listen(t).(*net.TCPListener), released}
	_, stop, result := serve(t, cfg, l)
	var waiting []*keepAlive
	for range 20 {
		k := a.keepAlive(l.Addr().String())
		fmt.Fprintf(k.conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", k.host)
		waiting = append(waiting, k)
	}
	stop()
	time.AfterFunc(400*time.Millisecond, func() { close(released) })
	for i, k := range waiting {
		if _, err := http.ReadResponse(k.r, nil); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	if err := <-result; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// A client has opened a connection when the listener is closed. It completes
// the TLS handshake later, and sends a request.
func TestShutdownServesAConnectionAfterItsHandshake(t *testing.T) {
	t.Parallel()
	certified := httptest.NewUnstartedServer(nil)
	certified.StartTLS()
	defer certified.Close()
	for _, protocol := range []string{"http/1.1", "h2"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			var cfg bff.Config
			a := newApp(t, func(_ *app, c *bff.Config) {
				cfg = *c
				cfg.TLS = &tls.Config{Certificates: certified.TLS.Certificates, NextProtos: []string{protocol}}
			})
			l := listen(t)
			server, stop, result := serve(t, cfg, l)
			conn, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			waitFor(t, "the connection is accepted", func() bool {
				return scrape(t, server)["cloakroom_connections"] == 1
			})
			stop()
			waitFor(t, "the listener is closed", func() bool {
				again, err := net.Dial("tcp", l.Addr().String())
				if err == nil {
					again.Close()
				}
				return err != nil
			})
			transport := certified.Client().Transport.(*http.Transport).Clone()
			transport.ForceAttemptHTTP2 = true
			transport.DialContext = func(context.Context, string, string) (net.Conn, error) { return conn, nil }
			req, _ := http.NewRequest("GET", "https://example.com/", nil)
			req.Host = strings.TrimPrefix(a.url, "http://")
			resp, err := (&http.Client{Transport: transport}).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if err := <-result; err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
}
