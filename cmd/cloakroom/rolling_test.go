package main

import (
	"bufio"
	"context"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/http1"
	"github.com/cloakroom-bff/cloakroom/internal/redistest"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// balancer is a load balancer that never repeats a request: what it cannot
// deliver is lost. It keeps connections to browsers and replicas, and sends
// requests to the replicas whose /readyz is 200.
type balancer struct {
	secure *tls.Config // of the connections to replicas; nil: without TLS
	lost   func(b *backend, r *http.Request, err error)
	turn   atomic.Uint64

	mu       sync.Mutex // guards backends
	backends []*backend
}

// backend is a replica as the balancer sees it.
type backend struct {
	addr, admin string
	secure      *tls.Config // nil: without TLS
	client      *http1.Client
	ready       atomic.Bool
	ctx         context.Context // ends when the replica is taken out
	stop        context.CancelFunc
	polling     sync.WaitGroup
	killedAt    atomic.Int64 // Unix nanoseconds; 0: it was not killed
}

// readinessInterval is how often the balancer asks for the readiness.
const readinessInterval = 100 * time.Millisecond

// add sends requests to a replica from when it is ready. Call remove or stop
// before another program can get its ports.
func (l *balancer) add(r *replica) *backend {
	b := &backend{addr: r.addr, admin: r.admin, secure: l.secure}
	b.ctx, b.stop = context.WithCancel(context.Background())
	b.client = &http1.Client{Dial: b.dial}
	b.check()
	l.mu.Lock()
	l.backends = append(l.backends, b)
	l.mu.Unlock()
	b.polling.Go(func() { // until remove or stop
		for sleep(b.ctx, readinessInterval); b.ctx.Err() == nil; sleep(b.ctx, readinessInterval) {
			b.check()
		}
	})
	return b
}

// stop ends the polls of all replicas.
func (l *balancer) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range l.backends {
		b.stop()
	}
	for _, b := range l.backends {
		b.polling.Wait()
	}
}

func (b *backend) dial(ctx context.Context) (net.Conn, error) {
	if b.secure == nil {
		return new(net.Dialer).DialContext(ctx, "tcp", b.addr)
	}
	return (&tls.Dialer{Config: b.secure}).DialContext(ctx, "tcp", b.addr)
}

func (b *backend) check() {
	// A busy machine can take long to respond. A replica that was killed
	// refuses the connection at once.
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(b.ctx, "GET", "http://"+b.admin+"/readyz", nil)
	if err != nil {
		panic(err)
	}
	resp, err := client.Do(req)
	if err == nil {
		resp.Body.Close()
	}
	if b.ctx.Err() == nil {
		b.ready.Store(err == nil && resp.StatusCode == 200)
	}
}

// remove takes a replica out, after it has ended.
func (l *balancer) remove(b *backend) {
	b.stop()
	b.polling.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.backends = slices.DeleteFunc(l.backends, func(other *backend) bool { return other == b })
	b.client.CloseIdle()
}

// closeIdle closes the idle connections to all replicas.
func (l *balancer) closeIdle() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range l.backends {
		b.client.CloseIdle()
	}
}

// next returns the next replica that is ready, or nil.
func (l *balancer) next() *backend {
	l.mu.Lock()
	defer l.mu.Unlock()
	for range l.backends {
		b := l.backends[l.turn.Add(1)%uint64(len(l.backends))]
		if b.ready.Load() {
			return b
		}
	}
	return nil
}

func (l *balancer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b := l.next()
	if b == nil {
		l.lost(nil, r, errors.New("no replica is ready"))
		http.Error(w, "no replica is ready", http.StatusBadGateway)
		return
	}
	if r.Header.Get("Upgrade") != "" {
		l.splice(w, r, b)
		return
	}
	out := r.Clone(r.Context())
	out.URL.Scheme, out.URL.Host, out.RequestURI = "http", b.addr, ""
	for _, name := range []string{"Connection", "Content-Length", "Transfer-Encoding"} {
		out.Header.Del(name) // they are of the other connection
	}
	var fields http1.Fields
	fields.AddHeader(out.Header)
	resp, err := b.client.RoundTrip(out, &fields, false)
	if err != nil {
		if r.Context().Err() == nil {
			l.lost(b, r, err)
		}
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	for name, values := range resp.Header {
		if name != "Connection" {
			w.Header()[name] = values
		}
	}
	w.WriteHeader(resp.StatusCode)
	stream := strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream")
	buf := make([]byte, 32<<10)
	for {
		n, err := resp.Body.Read(buf)
		w.Write(buf[:n])
		if stream {
			http.NewResponseController(w).Flush()
		}
		if err == io.EOF {
			return
		}
		if err != nil {
			if !stream && r.Context().Err() == nil {
				l.lost(b, r, err)
			}
			panic(http.ErrAbortHandler)
		}
	}
}

// splice connects the client with a replica, for a WebSocket.
func (l *balancer) splice(w http.ResponseWriter, r *http.Request, b *backend) {
	upstream, err := b.dial(r.Context())
	if err != nil {
		l.lost(b, r, err)
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer upstream.Close()
	r.Write(upstream)
	client, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer client.Close()
	done := make(chan struct{}, 2)
	pipe := func(to, from net.Conn) { // until either side closes
		io.Copy(to, from)
		done <- struct{}{}
	}
	go pipe(upstream, client)
	go pipe(client, upstream)
	<-done
}

// rolling is a fleet behind a balancer, under load.
type rolling struct {
	*fleet
	balancer *balancer
	backends map[*replica]*backend
	users    []*userSession
	settings map[string]string
	dir      string // of the files of the configuration
	file     string // the configuration
	program  string // that new replicas run; empty: the broker of this test
	routes   string // the text of the configuration

	requests, unavailable, reconnects atomic.Int64

	mu       sync.Mutex // guards failures
	failures []string
}

// note records a failure. All are reported at the end.
func (l *rolling) note(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures = append(l.failures, time.Now().Format(clockFormat)+" "+fmt.Sprintf(format, args...))
}

// killGrace is how long after the kill of a replica requests to it may be lost:
// until the balancer has noticed.
const killGrace = time.Second

// startRolling starts replicas of a program behind a balancer, and signs users
// in. edit may change the settings of the replicas.
func startRolling(
	t *testing.T, program string, replicas, users int, storeURL string, edit ...func(*rolling),
) *rolling {
	t.Helper()
	l := &rolling{backends: make(map[*replica]*backend), program: program}
	l.balancer = &balancer{lost: func(b *backend, r *http.Request, err error) {
		if b != nil {
			if at := b.killedAt.Load(); at != 0 && time.Since(time.Unix(0, at)) < killGrace {
				return
			}
			l.note("lost: %s %s at %s: %v", r.Method, r.URL.Path, b.addr, err)
			return
		}
		l.note("lost: %s %s: %v", r.Method, r.URL.Path, err)
	}}
	front := httptest.NewServer(l.balancer)
	t.Cleanup(front.Close)
	l.fleet = newFleet(t, nil)
	l.host = strings.Replace(front.Listener.Addr().String(), "127.0.0.1", "localhost", 1)
	l.url = "http://" + l.host
	l.provider = brokertest.StartProvider(t, l.url, func(cfg *devidp.Config) {
		cfg.AccessTokenTTL = 30 * time.Second
		for i := range users {
			cfg.Users = append(cfg.Users, devidp.User{Sub: soakUser(i), Name: soakUser(i)})
		}
	})

	echo := brokertest.NewEcho(t)
	streams := brokertest.NewEcho(t)
	streams.Handler = serveStreams
	l.dir = t.TempDir()
	l.file = filepath.Join(l.dir, "cloakroom.yaml")
	l.routes = fmt.Sprintf("routes:\n- {path: /api/, upstream: %q, token: user}\n"+
		"- {path: /stream/, upstream: %q, token: user}\n", echo.URL, streams.URL)
	l.write(t, "cloakroom.yaml", l.routes)
	l.write(t, "keys", goodKey)
	l.settings = map[string]string{
		"SERVER_LISTEN": "127.0.0.1:0", "SERVER_ADMIN_LISTEN": "127.0.0.1:0",
		"SERVER_PUBLIC_URL": l.url, "SERVER_SHUTDOWN_GRACE": "20s", "SERVER_SHUTDOWN_DELAY": "1s",
		"OIDC_ISSUER": l.provider.Issuer, "OIDC_CLIENT_ID": l.provider.Client.ID,
		"OIDC_CLIENT_SECRET": l.provider.Client.Secret,
		"STORE_URL":          storeURL, "SESSION_KEYS_FILE": filepath.Join(l.dir, "keys"),
		"SERVER_LIMITS_LOGINS_RATE": "1000/s", "SERVER_LIMITS_LOGINS_BURST": "100000",
	}
	for _, edit := range edit {
		edit(l)
	}
	for range replicas {
		l.replicas = append(l.replicas, l.startOne(t))
	}
	t.Cleanup(func() {
		l.balancer.stop()
		for _, r := range l.replicas {
			r.terminate()
		}
	})
	for i := range users {
		l.users = append(l.users, l.signIn(t, soakUser(i), cheapTokens))
	}
	l.provider.SetHooks(cheapTokens)
	return l
}

// cheapTokens makes the provider issue access tokens without a signature, which
// the upstreams do not verify. With the race detector, a signature takes longer
// than all else that a refresh does.
var cheapTokens = devidp.Hooks{SignAccessToken: func(header, claims map[string]any) (string, error) {
	input, err := devidp.SigningInput(header, claims)
	return input + ".", err
}}

// startOne starts a replica of l.program, and adds it to the balancer when it
// is ready.
func (l *rolling) startOne(t *testing.T) *replica {
	t.Helper()
	settings := maps.Clone(l.settings)
	settings["PROGRAM"] = l.program
	r := startReplica(t, l.provider, settings, "--config", l.file)
	t.Cleanup(l.balancer.stop) // runs before the replica is stopped
	r.waitReady(t)
	l.backends[r] = l.balancer.add(r)
	return r
}

// write writes a file of the configuration.
func (l *rolling) write(t *testing.T, name, text string) {
	t.Helper()
	next := filepath.Join(l.dir, "next")
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, filepath.Join(l.dir, name)); err != nil {
		t.Fatal(err)
	}
}

// replace stops replica i as an orchestrator does, and starts another one.
func (l *rolling) replace(t *testing.T, i int) {
	t.Helper()
	r := l.replicas[i]
	r.stop(t)
	l.balancer.remove(l.backends[r])
	l.replicas[i] = l.startOne(t)
}

// serveStreams serves event streams, and WebSockets that return what they get.
func serveStreams(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") == "" {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, firstEvent)
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
		return
	}
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	accept := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Accept: %s\r\n\r\n", base64.StdEncoding.EncodeToString(accept[:]))
	io.Copy(conn, buf)
}

// load makes users call, stream and reconnect until ctx ends, at the latest
// with the test.
func (l *rolling) load(ctx context.Context) (wait func()) {
	var workers sync.WaitGroup
	client := &http.Client{
		Transport:     &http.Transport{MaxIdleConnsPerHost: 64},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	for n := range 8 {
		workers.Go(func() {
			for ctx.Err() == nil {
				u := l.users[rand.IntN(len(l.users))]
				l.callOnce(ctx, client, u, n%2 == 1)
				sleep(ctx, time.Duration(rand.IntN(10))*time.Millisecond)
			}
		})
	}
	for n := range 4 {
		workers.Go(func() {
			for ctx.Err() == nil {
				l.streamOnce(ctx, client, l.users[n%len(l.users)])
			}
		})
		workers.Go(func() {
			for ctx.Err() == nil {
				l.webSocketOnce(ctx, l.users[n%len(l.users)])
			}
		})
	}
	wait = func() {
		workers.Wait()
		client.CloseIdleConnections()
	}
	l.t.Cleanup(wait) // also if the test fails before
	return wait
}

// callOnce makes one call, which has to succeed.
func (l *rolling) callOnce(ctx context.Context, client *http.Client, u *userSession, post bool) {
	method, body := "GET", ""
	if post {
		method, body = "POST", strings.Repeat("x", 2000)
	}
	req, err := http.NewRequestWithContext(ctx, method, l.url+"/api/x", strings.NewReader(body))
	if err != nil {
		l.note("%v", err)
		return
	}
	req.GetBody = nil // the client repeats no request either
	req.Header.Set("Cookie", u.cookies)
	req.Header.Set("X-CSRF", "1")
	resp, err := client.Do(req)
	if err != nil {
		if ctx.Err() == nil {
			l.note("%s: %v", method, err)
		}
		return
	}
	text, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	l.requests.Add(1)
	switch {
	case ctx.Err() != nil, err == nil && resp.StatusCode == 200:
	case resp.StatusCode == http.StatusServiceUnavailable:
		l.unavailable.Add(1)
	case resp.StatusCode == http.StatusBadGateway: // noted by the balancer
	default:
		l.note("%s of session %s: got %d %.200s, %v", method, u.id, resp.StatusCode, text, err)
	}
}

// streamOnce reads an event stream until it ends.
func (l *rolling) streamOnce(ctx context.Context, client *http.Client, u *userSession) {
	req, err := http.NewRequestWithContext(ctx, "GET", l.url+"/stream/x", nil)
	if err != nil {
		l.note("%v", err)
		return
	}
	req.Header = http.Header{"Cookie": {u.cookies}, "Accept": {"text/event-stream"}, "X-Csrf": {"1"}}
	resp, err := client.Do(req)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	l.reconnects.Add(1)
	if resp.StatusCode != 200 && resp.StatusCode != 502 && resp.StatusCode != 503 && ctx.Err() == nil {
		l.note("stream of session %s: got %d", u.id, resp.StatusCode)
	}
	io.Copy(io.Discard, resp.Body)
	sleep(ctx, 100*time.Millisecond)
}

// webSocketOnce opens a WebSocket, sends a message, and reads until it ends.
func (l *rolling) webSocketOnce(ctx context.Context, u *userSession) {
	conn, err := net.Dial("tcp", strings.TrimPrefix(l.url, "http://"))
	if err != nil {
		l.note("WebSocket: %v", err)
		return
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	fmt.Fprintf(conn, "GET /stream/ws HTTP/1.1\r\nHost: %s\r\nOrigin: %s\r\nCookie: %s\r\nUpgrade: websocket\r\n"+
		"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
		l.host, l.url, u.cookies)
	reader := bufio.NewReader(conn)
	resp, err := http.ReadResponse(reader, nil)
	if err != nil || ctx.Err() != nil {
		sleep(ctx, 100*time.Millisecond)
		return
	}
	l.reconnects.Add(1)
	if resp.StatusCode == 401 {
		l.note("WebSocket of session %s: got 401", u.id)
	}
	if resp.StatusCode == 101 {
		io.WriteString(conn, "hello")
		io.Copy(io.Discard, reader)
	}
	sleep(ctx, 100*time.Millisecond)
}

// logHistory logs the events of a session, with the replicas that logged them.
func (l *rolling) logHistory(t *testing.T, id string) {
	t.Helper()
	var lines []string
	for r, b := range l.backends {
		for line := range strings.Lines(r.stderr.String()) {
			if strings.Contains(line, id) && !strings.Contains(line, `"msg":"request"`) {
				lines = append(lines, fmt.Sprintf("%s at %s, killed at %v", line, r.addr,
					time.Unix(0, b.killedAt.Load()).UTC()))
			}
		}
	}
	slices.Sort(lines) // by time
	t.Logf("session %s:\n%s", id, strings.Join(lines[max(0, len(lines)-12):], "\n"))
}

// report fails the test for each failure and each session that ended or was
// reported as ended, and logs what was done.
func (l *rolling) report(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	t.Logf("%d requests, %d of them 503, %d connects of streams, %d failures",
		l.requests.Load(), l.unavailable.Load(), l.reconnects.Load(), len(l.failures))
	for _, failure := range l.failures[:min(len(l.failures), 30)] {
		t.Error(failure)
	}
	var ended []string
	for _, u := range l.users {
		if !l.authenticated(l.replicas[0], u) {
			ended = append(ended, u.id)
			l.logHistory(t, u.id)
		}
	}
	if len(ended) > 0 {
		t.Errorf("%d of %d users were signed out: %.500q", len(ended), len(l.users), ended)
	}
	for r := range l.backends {
		for line := range strings.Lines(r.stderr.String()) {
			if strings.Contains(line, `"event":"session.ended"`) {
				t.Errorf("replica %s reported the end of a session: %s", r.addr, line)
			}
		}
	}
}

// TestRollingRestartLosesNoRequest replaces each replica under load, behind a
// balancer that repeats nothing.
func TestRollingRestartLosesNoRequest(t *testing.T) {
	testenv.Slow(t)
	l := startRolling(t, "", 2, 20, redistest.Start(t).URL())
	ctx, stop := context.WithCancel(t.Context())
	wait := l.load(ctx)
	for i := range l.replicas {
		l.replace(t, i)
	}
	stop()
	wait()
	if n := l.unavailable.Load(); n > 0 {
		t.Errorf("%d calls got 503", n)
	}
	l.report(t)
}
