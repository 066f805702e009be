package main

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// limitDescriptors lowers the limit of file descriptors to that in the
// environment, if there is one.
func limitDescriptors() {
	n, err := strconv.ParseUint(os.Getenv("CLOAKROOM_TEST_DESCRIPTORS"), 10, 64)
	if err != nil {
		return
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: n, Max: n}); err != nil {
		panic(err)
	}
}

// flooded is a replica with few file descriptors, and a user with an open
// connection to it.
type flooded struct {
	*fleet
	t    *testing.T
	at   *replica
	user *userSession
	conn *userConn
}

func startFlooded(t *testing.T, env map[string]string) *flooded {
	t.Helper()
	settings := map[string]string{"TEST_DESCRIPTORS": "256"}
	maps.Copy(settings, env)
	f := startFleet(t, settings, "memory:")
	d := &flooded{fleet: f, t: t, at: f.replicas[0], user: f.signIn(t, "alice", devidp.Hooks{})}
	f.client.CloseIdleConnections()
	conn, err := net.Dial("tcp", d.at.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	d.conn = &userConn{d, conn, bufio.NewReader(conn)}
	if got, err := d.conn.get("/api/x"); got != 200 || err != nil {
		t.Fatalf("before the flood: got %d, %v, want 200", got, err)
	}
	return d
}

// userConn is a connection of the user.
type userConn struct {
	f    *flooded
	conn net.Conn
	r    *bufio.Reader
}

// get sends a request on the connection and reads its response.
func (c *userConn) get(path string) (status int, err error) {
	c.conn.SetDeadline(time.Now().Add(20 * time.Second))
	const request = "GET %s HTTP/1.1\r\nHost: %s\r\nX-CSRF: 1\r\nCookie: %s\r\n\r\n"
	fmt.Fprintf(c.conn, request, path, c.f.host, c.f.user.cookies)
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return 0, err
	}
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		return resp.StatusCode, nil // its body has no end, so that Close would wait for it
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

// servesNew reports whether the user gets a response on a new connection.
func (f *flooded) servesNew() bool {
	conn, err := net.Dial("tcp", f.at.addr)
	if err != nil {
		return false
	}
	defer conn.Close()
	status, err := (&userConn{f, conn, bufio.NewReader(conn)}).get("/api/x")
	return status == 200 && err == nil
}

// wantHealthy asserts that the admin listener responds within a second, on a
// new connection.
func (f *flooded) wantHealthy() {
	f.t.Helper()
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for _, path := range []string{"/healthz", "/readyz"} {
		resp, err := client.Get("http://" + f.at.admin + path)
		if err != nil {
			f.t.Errorf("%s: %v", path, err)
			continue
		}
		resp.Body.Close()
		if resp.StatusCode != 200 {
			f.t.Errorf("%s: got %d, want 200", path, resp.StatusCode)
		}
	}
}

// wantFewLines asserts that the log got few lines besides those of requests
// since it had the length before.
func (f *flooded) wantFewLines(before int, since time.Time) {
	f.t.Helper()
	log := requestLine.ReplaceAllString(f.at.stderr.String()[before:], "")
	const kinds = 3 // of refused connections
	most := kinds * (int(time.Since(since)/time.Second) + 2)
	if got := strings.Count(log, "\n"); got == 0 || got > most {
		f.t.Errorf("lines of the log: got %d, want at least 1 and at most %d:\n%.3000s", got, most, log)
	}
}

// flood keeps n connections open until stop is called, each of which sends
// nothing, or a header that does not end. One that is closed is replaced after
// a second on average.
func (f *flooded) flood(n int) (stop func()) {
	stopped := make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { // until stop
			for {
				attack(f.at.addr, i%2 == 0, stopped)
				select {
				case <-stopped:
					return
				case <-time.After(time.Second/2 + rand.N(time.Second)):
				}
			}
		})
	}
	stop = sync.OnceFunc(func() {
		close(stopped)
		wg.Wait()
	})
	f.t.Cleanup(stop)
	return stop
}

// attack holds one connection open until it is closed or the flood has stopped.
func attack(addr string, silent bool, stopped <-chan struct{}) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer conn.Close()
	closed := make(chan struct{})
	go func() { // until the connection is closed
		io.Copy(io.Discard, conn)
		close(closed)
	}()
	if silent {
		select {
		case <-closed:
		case <-stopped:
		}
		return
	}
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\nA: ")
	for {
		select {
		case <-closed:
			return
		case <-stopped:
			return
		case <-time.After(200 * time.Millisecond):
			io.WriteString(conn, "x")
		}
	}
}

func TestIdleConnectionsAndSlowHeadersDisturbNoUser(t *testing.T) {
	testenv.Slow(t)
	f := startFlooded(t, nil)
	before, began := len(f.at.stderr.String()), time.Now()
	stop := f.flood(600)
	eventually(t, 20*time.Second, "the limit is reached", func() bool {
		return strings.Contains(f.at.stderr.String()[before:], `"msg":"connections refused"`)
	})
	newUsers := 0
	for range 40 {
		f.wantHealthy()
		if got, err := f.conn.get("/api/x"); got != 200 || err != nil {
			t.Fatalf("on an open connection: got %d, %v, want 200", got, err)
		}
		if f.servesNew() {
			newUsers++
		}
		time.Sleep(200 * time.Millisecond) // the flood goes on
	}
	t.Logf("%d of 40 new connections were served during the flood", newUsers)
	eventually(t, 30*time.Second, "a new connection is served during the flood", func() bool {
		return newUsers > 0 || f.servesNew()
	})
	f.wantFewLines(before, began)
	stop()
	eventually(t, 30*time.Second, "new connections are served after the flood", f.servesNew)
	if got, err := f.conn.get("/api/x"); got != 200 || err != nil {
		t.Errorf("on an open connection after the flood: got %d, %v, want 200", got, err)
	}
}

// Event streams keep a connection to their upstream, so that they use up the
// file descriptors although the limit of connections is not reached.
func TestAdminListenerRespondsWithoutDescriptors(t *testing.T) {
	testenv.Slow(t)
	f := startFlooded(t, map[string]string{"SERVER_LIMITS_CONNECTIONS": "1000"})
	before, began := len(f.at.stderr.String()), time.Now()
	if !strings.Contains(f.at.stderr.String(), "connection limit lowered") {
		t.Error("the log does not mention that the limit was lowered")
	}
	var conns []net.Conn
	var wg sync.WaitGroup
	var streams, refused atomic.Int32
	for range 200 {
		conn, err := net.Dial("tcp", f.at.addr)
		if err != nil {
			refused.Add(1)
			continue
		}
		defer conn.Close()
		conns = append(conns, conn)
		wg.Go(func() { // until it has a response
			if status, _ := (&userConn{f, conn, bufio.NewReader(conn)}).get("/stream/x"); status == 200 {
				streams.Add(1)
			} else {
				refused.Add(1)
			}
		})
	}
	wg.Wait()
	if streams.Load() == 0 {
		t.Error("no event stream was opened")
	}
	if refused.Load() == 0 {
		t.Error("no event stream was refused: there were file descriptors left")
	}
	eventually(t, 20*time.Second, "there are no file descriptors left", func() bool {
		conn, err := net.Dial("tcp", f.at.addr) // stays open
		if err == nil {
			conns = append(conns, conn)
		}
		return strings.Contains(f.at.stderr.String()[before:], "refused without file descriptors")
	})
	for range 20 {
		f.wantHealthy()
	}
	if got, err := f.conn.get("/bff/session"); got != 200 || err != nil {
		t.Errorf("on an open connection: got %d, %v, want 200", got, err)
	}
	for _, conn := range conns {
		conn.Close()
	}
	eventually(t, 30*time.Second, "new connections are served", f.servesNew)
	f.wantFewLines(before, began)
}
