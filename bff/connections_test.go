package bff_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
)

// limited is a Server whose own listener has limits.
type limited struct {
	*app
	server *bff.Server
	addr   string
}

// newLimited runs a Server until the test ends. edit may change its
// configuration; nil leaves it as it is.
func newLimited(t *testing.T, limits bff.Limits, edit func(*bff.Config)) *limited {
	t.Helper()
	var cfg bff.Config
	a := newApp(t, func(_ *app, c *bff.Config) { cfg = *c })
	limits.Logins = cfg.Limits.Logins
	cfg.Limits = limits
	if edit != nil {
		edit(&cfg)
	}
	server, err := bff.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l := listen(t)
	ctx, stop := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() { result <- server.Run(ctx, l) }() // until stop
	t.Cleanup(func() {
		stop()
		if err := <-result; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return &limited{a, server, l.Addr().String()}
}

// refuses reports whether a new connection is closed.
func (l *limited) refuses() bool {
	l.t.Helper()
	conn, err := net.Dial("tcp", l.addr)
	if err != nil { // the reset may arrive before connect returns
		return errors.Is(err, syscall.ECONNRESET)
	}
	defer conn.Close()
	return closed(conn)
}

// dial opens a connection.
func (l *limited) dial() net.Conn {
	l.t.Helper()
	conn, err := net.Dial("tcp", l.addr)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { conn.Close() })
	return conn
}

// serves reports whether a new connection gets a response.
func (l *limited) serves() bool {
	conn, err := net.Dial("tcp", l.addr)
	if err != nil {
		return false
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", strings.TrimPrefix(l.url, "http://"))
	body, _ := io.ReadAll(conn)
	return strings.HasSuffix(string(body), "the app")
}

// wantRefused asserts how often a limit was exceeded. It waits until it was at
// least as often.
func (l *limited) wantRefused(limit bff.Refusal, want uint64) {
	l.t.Helper()
	waitFor(l.t, "refusals: "+string(limit), func() bool { return l.server.Refused(limit) >= want })
	if got := l.server.Refused(limit); got != want {
		l.t.Errorf("refused, %s: got %d, want %d", limit, got, want)
	}
}

// closed reports whether the server closes a connection.
func closed(conn net.Conn) bool {
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, err := conn.Read(make([]byte, 1))
	timeout, ok := err.(net.Error)
	return err != nil && (!ok || !timeout.Timeout())
}

func TestConnectionsBeyondTheLimitAreReset(t *testing.T) {
	t.Parallel()
	l := newLimited(t, bff.Limits{Connections: 3}, nil)
	var users []*keepAlive
	for range 3 {
		u := l.keepAlive(l.addr)
		u.get("/")
		users = append(users, u)
	}
	time.Sleep(1100 * time.Millisecond) // idle connections are not closed for new ones, however old
	for range 5 {
		if !l.refuses() {
			t.Error("a connection beyond the limit is open")
		}
	}
	l.wantRefused(bff.RefusalConnections, 5)
	l.wantRefused(bff.RefusalWaiting, 0)
	for i, u := range users {
		if got := u.get("/").StatusCode; got != 200 {
			t.Errorf("idle connection %d: got %d, want 200", i+1, got)
		}
	}
	if status, text := readyz(l.server, "?verbose"); status != 200 ||
		!strings.Contains(text, "[-] connections: 3 of 3") {
		t.Errorf("readiness: got %d %s, want 200 and 3 of 3 connections", status, text)
	}
	users[0].conn.Close()
	waitFor(t, "a new connection is served", l.serves)
}

func TestNewConnectionsReplaceThoseWithoutARequest(t *testing.T) {
	t.Parallel()
	l := newLimited(t, bff.Limits{Connections: 4}, nil)
	user := l.keepAlive(l.addr)
	user.get("/")
	silent, slow, other := l.dial(), l.dial(), l.dial()
	io.WriteString(slow, "GET / HTTP/1.1\r\nHost: a")
	waitFor(t, "all are accepted", func() bool {
		_, text := readyz(l.server, "?verbose")
		return strings.Contains(text, "connections: 4 of 4")
	})
	time.Sleep(1100 * time.Millisecond) // they have waited for longer than a second
	if !l.serves() {
		t.Error("a new connection is not served")
	}
	l.wantRefused(bff.RefusalWaiting, 1)
	if !closed(silent) {
		t.Error("the oldest connection without a request is open")
	}
	replacement := l.dial() // in the place of the one that was served
	waitFor(t, "it is accepted", func() bool {
		_, text := readyz(l.server, "?verbose")
		return strings.Contains(text, "connections: 4 of 4")
	})
	if !l.serves() {
		t.Error("a second new connection is not served")
	}
	if !closed(slow) {
		t.Error("a connection with half a header is open")
	}
	other.Close()
	replacement.Close()
	if got := user.get("/").StatusCode; got != 200 {
		t.Errorf("an idle connection: got %d, want 200", got)
	}
	l.wantRefused(bff.RefusalConnections, 0)
}

// A connection counts until it is closed, also as a WebSocket, which its
// http.Server does not know any more, and before the handshake of TLS.
func TestEveryOpenConnectionCounts(t *testing.T) {
	t.Parallel()
	certified := httptest.NewTLSServer(nil)
	defer certified.Close()
	l := newLimited(t, bff.Limits{Connections: 2}, func(cfg *bff.Config) {
		cfg.TLS = &tls.Config{Certificates: certified.TLS.Certificates, NextProtos: []string{"h2", "http/1.1"}}
		cfg.Frontend = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\nhijacked")
			time.AfterFunc(time.Minute, func() { conn.Close() })
		})
	})
	conn := tls.Client(l.dial(), &tls.Config{InsecureSkipVerify: true})
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", strings.TrimPrefix(l.url, "http://"))
	if _, err := io.ReadFull(conn, make([]byte, len("HTTP/1.1 200 OK\r\n\r\nhijacked"))); err != nil {
		t.Fatal(err)
	}
	l.dial() // sends no TLS handshake
	waitFor(t, "both are counted", func() bool {
		_, text := readyz(l.server, "?verbose")
		return strings.Contains(text, "connections: 2 of 2")
	})
}

// Otherwise a user who forgets the s of https sees an empty response, and the
// log has nothing of it at its usual level.
func TestPlainHTTPToAListenerWithTLSIsToldSo(t *testing.T) {
	t.Parallel()
	certified := httptest.NewTLSServer(nil)
	defer certified.Close()
	l := newLimited(t, bff.Limits{}, func(cfg *bff.Config) {
		cfg.TLS = &tls.Config{Certificates: certified.TLS.Certificates}
	})
	for first, want := range map[string]string{
		"GET / HTTP/1.1\r\n": "HTTP/1.0 400 Bad Request\r\n", "SSH-2.0-OpenSSH_9.9\r\n": "",
	} {
		conn := l.dial()
		io.WriteString(conn, first[:5]) // all that is read: what is left unread would reset the connection
		got, err := io.ReadAll(conn)
		if err != nil || !strings.HasPrefix(string(got), want) || want == "" && len(got) > 0 {
			t.Errorf("%q: got %q, %v, want %q", first, got, err, want)
		}
	}
}

// A connection in HTTP/2 can have many requests, each of which needs memory and
// perhaps a connection to its upstream.
func TestRequestsInHTTP2BeyondTheLimitAreRefused(t *testing.T) {
	t.Parallel()
	certified := httptest.NewTLSServer(nil)
	defer certified.Close()
	arrived, release := make(chan struct{}), make(chan struct{})
	l := newLimited(t, bff.Limits{Connections: 2}, func(cfg *bff.Config) {
		cfg.TLS = &tls.Config{Certificates: certified.TLS.Certificates, NextProtos: []string{"h2", "http/1.1"}}
		cfg.Frontend = http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			arrived <- struct{}{}
			<-release
		})
	})
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true,
	}}
	defer client.CloseIdleConnections()
	get := func() int {
		req, err := http.NewRequest("GET", "https://"+l.addr+"/", nil)
		if err != nil {
			t.Error(err)
			return 0
		}
		req.Host = strings.TrimPrefix(l.url, "http://")
		resp, err := client.Do(req)
		if err != nil {
			t.Error(err)
			return 0
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	statuses := make(chan int)
	for range 2 {
		go func() { statuses <- get() }() // until release
		<-arrived
	}
	if got := get(); got != 503 {
		t.Errorf("a request beyond the limit: got %d, want 503", got)
	}
	l.wantRefused(bff.RefusalRequests, 1)
	close(release)
	for range 2 {
		if got := <-statuses; got != 200 {
			t.Errorf("a request within the limit: got %d, want 200", got)
		}
	}
	go func() { statuses <- get() }() // until its response
	<-arrived
	if got := <-statuses; got != 200 {
		t.Errorf("a request after the others: got %d, want 200", got)
	}
}

func TestRefusalsAreLoggedAtMostOnceASecond(t *testing.T) {
	t.Parallel()
	l := newLimited(t, bff.Limits{Connections: 1}, nil)
	l.keepAlive(l.addr).get("/")
	began := time.Now()
	const attempts = 200
	for range attempts {
		if !l.refuses() {
			t.Fatal("a connection beyond the limit is open")
		}
	}
	var counted float64
	var lines int
	waitFor(t, "all refusals are logged", func() bool {
		counted, lines = 0, 0
		for text := range strings.Lines(l.logs.String()) {
			var line map[string]any
			if json.Unmarshal([]byte(text), &line) == nil && line["msg"] == "connections refused" {
				counted += line["count"].(float64)
				lines++
			}
		}
		return counted >= attempts
	})
	if counted != attempts {
		t.Errorf("sum of the counts: got %v, want %d", counted, attempts)
	}
	if most := int(time.Since(began)/time.Second) + 2; lines > most {
		t.Errorf("lines: got %d, want at most %d", lines, most)
	}
	l.wantRefused(bff.RefusalConnections, attempts)
}

func TestReloadChangesTheConnectionLimit(t *testing.T) {
	t.Parallel()
	var cfg bff.Config
	l := newLimited(t, bff.Limits{Connections: 1}, func(c *bff.Config) { cfg = *c })
	l.keepAlive(l.addr).get("/")
	if l.serves() {
		t.Error("a connection beyond the limit is served")
	}
	cfg.Limits.Connections = 2
	next, err := bff.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.server.Reload(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	if !l.serves() {
		t.Error("a connection within the new limit is not served")
	}
}

func TestNegativeConnectionLimitsAreRefused(t *testing.T) {
	t.Parallel()
	var cfg bff.Config
	newApp(t, func(_ *app, c *bff.Config) { cfg = *c })
	cfg.Limits.Connections = -1
	if _, err := bff.New(cfg); err == nil || !strings.Contains(err.Error(), "Limits.Connections") {
		t.Errorf("got %v, want an error about Limits.Connections", err)
	}
}
