package bff_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// vanish has the kernel discard all that arrives for a connection, as if its
// cable had been pulled: nothing is acknowledged any more.
func vanish(t *testing.T, c net.Conn) {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	const keepNothing = 0
	filter := []syscall.SockFilter{{Code: syscall.BPF_RET | syscall.BPF_K, K: keepNothing}}
	var failed error
	err = raw.Control(func(fd uintptr) {
		//lint:ignore SA1019 the alternative is for connections of packets
		failed = syscall.AttachLsf(int(fd), filter)
	})
	if err != nil || failed != nil {
		t.Fatalf("socket filter: %v, %v", err, failed)
	}
}

// request sends a request on a new connection, and returns the connection and
// the response, whose body is not read.
func (l *limited) request(method, path, cookie, fields string) (net.Conn, *http.Response) {
	l.t.Helper()
	conn := l.dial()
	conn.SetReadDeadline(time.Now().Add(testTimeout))
	fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: %s\r\nCookie: %s\r\nX-CSRF: 1\r\nContent-Length: 0\r\n%s\r\n",
		method, path, strings.TrimPrefix(l.url, "http://"), cookie, fields)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		l.t.Fatal(err)
	}
	return conn, resp
}

func TestStreamsOfVanishedClientsMakeRoom(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	l := newLimited(t, bff.Limits{}, nil)
	l.server.SetUserTimeout(time.Second)
	cookie := l.signedIn().Cookies()[0].String()
	var conns []net.Conn
	for range 100 {
		conn, resp := l.request("GET", "/bff/session/events", cookie, "")
		if resp.StatusCode != 200 {
			t.Fatalf("stream: got %d, want 200", resp.StatusCode)
		}
		conns = append(conns, conn)
	}
	if _, resp := l.request("GET", "/bff/session/events", cookie, ""); resp.StatusCode != 429 {
		t.Errorf("beyond the limit: got %d, want 429", resp.StatusCode)
	}
	for _, conn := range conns {
		vanish(t, conn)
	}
	// An event, which the clients do not acknowledge. Without one there would
	// be a heartbeat.
	if _, resp := l.request("POST", "/bff/session/refresh", cookie, ""); resp.StatusCode != 200 {
		t.Fatalf("refresh: got %d, want 200", resp.StatusCode)
	}
	waitFor(t, "the streams have ended", func() bool {
		_, resp := l.request("GET", "/bff/session/events", cookie, "")
		return resp.StatusCode == 200
	})
}

// An upstream learns that a client has vanished, of a stream with events at
// once, and of one without by the keep-alive probes.
func TestProxiedStreamsOfVanishedClientsEnd(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	ended := make(chan string, 3)
	echo := brokertest.NewEcho(t)
	echo.Handler = func(rw http.ResponseWriter, r *http.Request) {
		defer func() { ended <- r.URL.Path }()
		if r.URL.Path == "/live/socket" {
			conn, buf, err := switchProtocols(rw)
			if err == nil {
				io.Copy(io.Discard, buf)
				conn.Close()
			}
			return
		}
		rw.Header().Set("Content-Type", "text/event-stream")
		flush(rw)
		for r.Context().Err() == nil {
			if r.URL.Path == "/live/events" {
				io.WriteString(rw, "data: x\n\n")
				flush(rw)
			}
			select {
			case <-r.Context().Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	l := newLimited(t, bff.Limits{}, func(cfg *bff.Config) {
		cfg.Routes = append(cfg.Routes, bff.Route{Path: "/live/", Token: "none", Upstream: []string{echo.URL}})
	})
	l.server.SetUserTimeout(time.Second)
	upgrade := "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" +
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: " + l.url + "\r\n"
	for path, fields := range map[string]string{
		"/live/events": "", "/live/silence": "", "/live/socket": upgrade,
	} {
		conn, resp := l.request("GET", path, "", fields)
		if want := map[bool]int{false: 200, true: 101}[fields != ""]; resp.StatusCode != want {
			t.Fatalf("%s: got %d, want %d", path, resp.StatusCode, want)
		}
		vanish(t, conn)
	}
	deadline := time.After(2 * time.Minute)
	for range 3 {
		select {
		case path := <-ended:
			t.Log("ended: ", path)
		case <-deadline:
			t.Fatal("a stream of a vanished client is open after two minutes")
		}
	}
}
