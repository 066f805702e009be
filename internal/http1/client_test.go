package http1

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// upstream is a client of a test server whose connections are counted.
type upstream struct {
	*Client
	connections atomic.Int32
}

// newUpstream starts a server that calls serve for each connection.
func newUpstream(t *testing.T, serve func(c net.Conn, r *bufio.Reader)) *upstream {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	u := new(upstream)
	u.Client = &Client{Dial: func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
	}}
	t.Cleanup(u.CloseIdle)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			u.connections.Add(1)
			go func() {
				defer c.Close()
				serve(c, bufio.NewReader(c))
			}()
		}
	}()
	return u
}

// waitNotQuiet waits until the upstream has closed the idle connection, or has
// sent data on it, or until there is no idle connection.
func (u *upstream) waitNotQuiet(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		u.mu.Lock()
		quiet := len(u.idle) > 0 && u.idle[0].quiet()
		u.mu.Unlock()
		if !quiet {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the idle connection is still quiet after 20 s")
		}
	}
}

// newResponder starts a server that sends response for each request.
func newResponder(t *testing.T, response string) *upstream {
	return newUpstream(t, func(c net.Conn, r *bufio.Reader) {
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			io.Copy(io.Discard, req.Body)
			io.WriteString(c, response)
		}
	})
}

func request(t *testing.T, method, body string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://api.internal/a%20b?q", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body == "" {
		req.Body, req.ContentLength = nil, 0
	}
	return req
}

func TestValidResponses(t *testing.T) {
	for _, test := range []struct {
		name, method, response string
		status                 int
		body                   string
		length                 int64
		reused                 bool
	}{
		{"length", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", 200, "abc", 3, true},
		{"nine interim", "GET",
			strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", 9) +
				"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", 200, "abc", 3, true},
		{"a thousand interim", "GET",
			strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 1000) +
				"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", 200, "abc", 3, true},
		{"no reason", "GET", "HTTP/1.1 200\r\nContent-Length: 3\r\n\r\nabc", 200, "abc", 3, true},
		{"same length twice", "GET",
			"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 200, "abc", 3, true},
		{"line feeds alone", "GET", "HTTP/1.1 200 OK\nContent-Length: 3\n\nabc", 200, "abc", 3, true},
		{"empty", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, "", 0, true},
		{"chunks", "GET",
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n",
			200, "abcd", -1, true},
		{"head", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", 200, "", 3, true},
		{"no content", "GET", "HTTP/1.1 204 No Content\r\n\r\n", 204, "", -1, true},
		{"not modified", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n", 304, "", 3, true},
		{"interim", "GET",
			"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" +
				"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", 200, "abc", 3, true},
		{"close", "GET",
			"HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 3\r\n\r\nabc", 200, "abc", 3, false},
		{"HTTP/1.0", "GET", "HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc", 200, "abc", 3, false},
		{"more than was asked for", "GET",
			"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc" +
				"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", 200, "abc", 3, false},
		{"long head", "GET",
			"HTTP/1.1 200 OK\r\nA: " + strings.Repeat("a", 3*readBuffer) + "\r\nContent-Length: 3\r\n\r\nabc",
			200, "abc", 3, true},
	} {
		u := newResponder(t, test.response)
		for range 2 {
			resp, err := u.roundTrip(request(t, test.method, ""))
			if err != nil {
				t.Errorf("%s: %v", test.name, err)
				break
			}
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != test.status || string(body) != test.body ||
				resp.ContentLength != test.length {
				t.Errorf("%s: got %d %q of length %d, %v", test.name, resp.StatusCode, body, resp.ContentLength, err)
			}
			resp.Body.Close()
		}
		if n := u.connections.Load(); (n == 1) != test.reused {
			t.Errorf("%s: %d connections for two requests", test.name, n)
		}
	}
}

func TestInvalidResponsesAreErrors(t *testing.T) {
	for name, response := range map[string]string{
		"no HTTP":                "SSH-2.0-OpenSSH\r\n\r\n",
		"another version":        "HTTP/2.0 200 OK\r\n\r\n",
		"status of four digits":  "HTTP/1.1 2000 OK\r\n\r\n",
		"no status":              "HTTP/1.1 OK\r\n\r\n",
		"negative status":        "HTTP/1.1 -20 OK\r\n\r\n",
		"folded header":          "HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n",
		"space before the colon": "HTTP/1.1 200 OK\r\nA : b\r\nContent-Length: 0\r\n\r\n",
		"no colon":               "HTTP/1.1 200 OK\r\nA\r\nContent-Length: 0\r\n\r\n",
		"carriage return":        "HTTP/1.1 200 OK\r\nA: b\rc\r\nContent-Length: 0\r\n\r\n",
		"NUL":                    "HTTP/1.1 200 OK\r\nA: b\x00c\r\nContent-Length: 0\r\n\r\n",
		"two lengths":            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
		"list of lengths":        "HTTP/1.1 200 OK\r\nContent-Length: 3, 3\r\n\r\nabc",
		"signed length":          "HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\nabc",
		"length and chunks": "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n" +
			"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"two codings": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" +
			"Transfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
		"another coding":           "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
		"chunks in HTTP/1.0":       "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"endless interim answers":  strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", MaxResponseHead/20),
		"a head without an end":    "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("a", 2*MaxResponseHead),
		"a header without an end":  "HTTP/1.1 200 OK\r\n" + strings.Repeat("A: b\r\n", MaxResponseHead/4),
		"a body that is too short": "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 30\r\n\r\nabc",
		"chunks that are not":      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
		"chunks without an end":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
		"a trailer that is not":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nno colon\r\n\r\n",
	} {
		u := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
			if _, err := http.ReadRequest(r); err == nil {
				io.WriteString(c, response)
				c.(*net.TCPConn).CloseWrite()
				io.Copy(io.Discard, r)
			}
		})
		resp, err := u.roundTrip(request(t, "GET", ""))
		if err == nil {
			_, err = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
		if err == nil || errors.Is(err, ErrConnClosed) {
			t.Errorf("%s: got %v", name, err)
		}
		if u.Client.pop() != nil {
			t.Errorf("%s: the connection is reused", name)
		}
	}
}

func TestTrailerIsSetAfterTheBody(t *testing.T) {
	u := newResponder(t, "HTTP/1.1 200 OK\r\nTrailer: Checksum, Other\r\nTransfer-Encoding: chunked\r\n\r\n"+
		"3\r\nabc\r\n0\r\nChecksum: 17\r\nUnannounced: x\r\n\r\n")
	for range 2 {
		resp, err := u.roundTrip(request(t, "GET", ""))
		if err != nil {
			t.Fatal(err)
		}
		if _, announced := resp.Trailer["Checksum"]; !announced {
			t.Errorf("announced trailer: got %v", resp.Trailer)
		}
		io.ReadAll(resp.Body)
		if resp.Trailer.Get("Checksum") != "17" || resp.Trailer.Get("Unannounced") != "x" {
			t.Errorf("got %v", resp.Trailer)
		}
		resp.Body.Close()
	}
	if n := u.connections.Load(); n != 1 {
		t.Errorf("got %d connections", n)
	}
}

// sent returns what arrives of a request.
func sent(t *testing.T, req *http.Request) string {
	got := make(chan string, 1)
	u := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
		var all strings.Builder
		parsed, err := http.ReadRequest(bufio.NewReader(io.TeeReader(r, &all)))
		if err != nil {
			got <- err.Error()
			return
		}
		io.ReadAll(parsed.Body)
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		got <- all.String()
	})
	resp, err := u.roundTrip(req)
	if err != nil {
		return "not sent: " + err.Error()
	}
	resp.Body.Close()
	return <-got
}

func TestRequestHeaderIsSentUnchanged(t *testing.T) {
	for _, test := range []struct{ method, body, want string }{
		{"GET", "", "GET /a%20b?q HTTP/1.1\r\nHost: api.internal\r\nA: b\r\n\r\n"},
		{"POST", "", "POST /a%20b?q HTTP/1.1\r\nHost: api.internal\r\nA: b\r\nContent-Length: 0\r\n\r\n"},
		{"POST", "abc", "POST /a%20b?q HTTP/1.1\r\nHost: api.internal\r\nA: b\r\nContent-Length: 3\r\n\r\nabc"},
	} {
		req := request(t, test.method, test.body)
		req.Header.Set("A", "b")
		if got := sent(t, req); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
	req := request(t, "POST", strings.Repeat("x", 20))
	req.ContentLength = -1
	if got := sent(t, req); got != "POST /a%20b?q HTTP/1.1\r\nHost: api.internal\r\nTransfer-Encoding: chunked\r\n\r\n"+
		"14\r\nxxxxxxxxxxxxxxxxxxxx\r\n0\r\n\r\n" {
		t.Errorf("in chunks: %q", got)
	}
}

func TestRequestsThatCouldBeSplitAreNotSent(t *testing.T) {
	for name, edit := range map[string]func(*http.Request){
		"header value": func(r *http.Request) { r.Header["A"] = []string{"b\r\nC: d"} },
		"header name":  func(r *http.Request) { r.Header["A: b\r\nC"] = []string{"d"} },
		"query":        func(r *http.Request) { r.URL.RawQuery = "a b" },
		"query line":   func(r *http.Request) { r.URL.RawQuery = "a\r\nb" },
		"longer body":  func(r *http.Request) { r.Body, r.ContentLength = io.NopCloser(strings.NewReader("abcd")), 3 },
		"shorter body": func(r *http.Request) { r.Body, r.ContentLength = io.NopCloser(strings.NewReader("ab")), 3 },
		"method":       func(r *http.Request) { r.Method = "GET / HTTP/1.1\r\n" },
		"host":         func(r *http.Request) { r.Host = "a\r\nB: c" },
		"unread body":  func(r *http.Request) { r.Body, r.ContentLength = io.NopCloser(failing{}), -1 },
	} {
		req := request(t, "GET", "")
		edit(req)
		if got := sent(t, req); !strings.HasPrefix(got, "not sent") {
			t.Errorf("%s: the upstream got %q", name, got)
		}
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("the client has left") }

func TestBodyReadErrorIsReturned(t *testing.T) {
	u := newResponder(t, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	req := request(t, "POST", "")
	req.Body, req.ContentLength = io.NopCloser(failing{}), 10
	if _, err := u.roundTrip(req); err == nil || !strings.Contains(err.Error(), "the client has left") {
		t.Errorf("got %v", err)
	}
}

func TestConnectionClosedByUpstreamIsNotReused(t *testing.T) {
	u := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
		http.ReadRequest(r)
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")
	})
	for range 5 {
		resp, err := u.roundTrip(request(t, "POST", "body"))
		if err != nil {
			t.Fatal(err)
		}
		io.ReadAll(resp.Body)
		resp.Body.Close()
		u.waitNotQuiet(t)
	}
}

func TestLateResponseIsNotUsedForTheNextRequest(t *testing.T) {
	idle, late := make(chan struct{}), make(chan struct{})
	u := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
		for {
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood")
			select {
			case <-idle:
			case <-t.Context().Done():
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
			late <- struct{}{}
		}
	})
	for range 5 {
		resp, err := u.roundTrip(request(t, "GET", ""))
		if err != nil {
			t.Fatal(err)
		}
		if body, _ := io.ReadAll(resp.Body); string(body) != "good" {
			t.Fatalf("got %q", body)
		}
		resp.Body.Close()
		idle <- struct{}{}
		<-late // on the loopback interface what was written has arrived
	}
}

// A 204 has no body, but what an upstream sends as one arrives later.
func TestBodyOfA204IsNotUsedForTheNextRequest(t *testing.T) {
	for fields, want := range map[string]int32{
		"": 1, "Content-Length: 0\r\n": 1, "Content-Length: 5\r\n": 2, "Transfer-Encoding: chunked\r\n": 2,
	} {
		u := newResponder(t, "HTTP/1.1 204 No Content\r\n"+fields+"\r\n")
		for range 2 {
			resp, err := u.roundTrip(request(t, "GET", ""))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
		}
		if got := u.connections.Load(); got != want {
			t.Errorf("%q: got %d connections for two requests, want %d", fields, got, want)
		}
	}
}

// A request that is canceled as its response ends has its connection closed.
// The next request must not have got it.
func TestCancelAtTheEndOfAResponseAbortsNoOther(t *testing.T) {
	u := newResponder(t, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood")
	for n := range 5000 {
		ctx, leave := context.WithCancel(t.Context())
		resp, err := u.roundTrip(request(t, "GET", "").WithContext(ctx))
		if err != nil {
			t.Fatal(err)
		}
		leave()
		io.ReadAll(resp.Body)
		next, err := u.roundTrip(request(t, "GET", ""))
		if err != nil {
			t.Fatalf("%d: %v", n, err)
		}
		if body, err := io.ReadAll(next.Body); string(body) != "good" {
			t.Fatalf("%d: got %q, %v", n, body, err)
		}
	}
}

func TestErrConnClosedOnlyBeforeTheFirstByte(t *testing.T) {
	for response, closed := range map[string]bool{"": true, "HTTP/1.1 20": false} {
		u := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
			http.ReadRequest(r)
			io.WriteString(c, response)
		})
		if _, err := u.roundTrip(request(t, "GET", "")); err == nil || errors.Is(err, ErrConnClosed) != closed {
			t.Errorf("%q: got %v", response, err)
		}
	}
}

func TestHeaderTimeoutStartsAtTheEndOfTheRequest(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	u := newUpstream(t, func(_ net.Conn, r *bufio.Reader) {
		if req, err := http.ReadRequest(r); err == nil {
			io.Copy(io.Discard, req.Body)
		}
		<-release
	})
	u.HeaderTimeout = 50 * time.Millisecond
	if _, err := u.roundTrip(request(t, "GET", "")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	r, w := io.Pipe()
	req := request(t, "POST", "")
	req.Body, req.ContentLength = r, -1
	began := time.Now()
	go func() {
		time.Sleep(200 * time.Millisecond)
		fmt.Fprint(w, "late")
		w.Close()
	}()
	if _, err := u.roundTrip(req); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) < 200*time.Millisecond {
		t.Errorf("got %v after %v", err, time.Since(began))
	}
}

// An upstream must not keep a request for ever, also not with a body that it
// asked for.
func TestInterimResponsesDoNotExtendTheHeaderTimeout(t *testing.T) {
	t.Parallel()
	u := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		for {
			if _, err := io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n"); err != nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
	u.HeaderTimeout = 50 * time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for _, body := range []string{"", "body"} {
		req := request(t, "PUT", body).WithContext(ctx)
		if body != "" {
			req.Header.Set("Expect", "100-continue")
		}
		if _, err := u.roundTrip(req); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("with the body %q: got %v, want a timeout", body, err)
		}
	}
}

func TestContextEndsAnExchangeInEveryPhase(t *testing.T) {
	arrived, gone := make(chan struct{}, 10), make(chan struct{}, 10)
	u := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		arrived <- struct{}{}
		if req.Header.Get("Begin") != "" {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
		}
		io.Copy(io.Discard, r)
		gone <- struct{}{}
	})
	why := errors.New("why")
	for _, begin := range []string{"", "x"} {
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		req := request(t, "GET", "").WithContext(ctx)
		req.Header.Set("Begin", begin)
		if begin == "" {
			go func() { // until the request has arrived
				<-arrived
				cancel(why)
			}()
		}
		resp, err := u.roundTrip(req)
		if begin == "" && err != why {
			t.Errorf("before the response: got %v", err)
		}
		if begin != "" {
			if err != nil {
				t.Fatal(err)
			}
			time.AfterFunc(20*time.Millisecond, func() { cancel(why) })
			if body, err := io.ReadAll(resp.Body); err == nil {
				t.Errorf("within the response: got %q without an error", body)
			}
			resp.Body.Close()
		}
		<-gone
	}
}

func TestBodyWaitsForContinue(t *testing.T) {
	order := make(chan string, 4)
	u := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		order <- "head"
		io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
		body, _ := io.ReadAll(req.Body)
		order <- string(body)
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	})
	req := request(t, "POST", "body")
	req.Header.Set("Expect", "100-continue")
	req.Body = io.NopCloser(io.MultiReader(readerFunc(func([]byte) (int, error) {
		order <- "asked"
		return 0, io.EOF
	}), strings.NewReader("body")))
	resp, err := u.roundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if a, b, c := <-order, <-order, <-order; a != "head" || b != "asked" || c != "body" {
		t.Errorf("got %s, %s, %s", a, b, c)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestEarlyResponseIsReadWhileTheBodyIsSent(t *testing.T) {
	u := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
		http.ReadRequest(r)
		io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
		io.Copy(io.Discard, r)
	})
	r, w := io.Pipe()
	defer w.Close()
	req := request(t, "POST", "")
	req.Body, req.ContentLength = r, 100
	resp, err := u.roundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "no" || resp.StatusCode != 413 {
		t.Errorf("got %d %q, %v", resp.StatusCode, body, err)
	}
	resp.Body.Close()
	if u.pop() != nil {
		t.Error("a connection is reused although the request has not been sent")
	}
}

func TestSwitchingProtocolsReturnsATunnelWithCloseWrite(t *testing.T) {
	u := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
		http.ReadRequest(r)
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello ")
		all, _ := io.ReadAll(r)
		c.Write(all)
	})
	resp, err := u.roundTrip(request(t, "GET", ""))
	if err != nil {
		t.Fatal(err)
	}
	tunnel := resp.Body.(io.ReadWriteCloser)
	io.WriteString(tunnel, "world")
	if err := tunnel.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if all, err := io.ReadAll(tunnel); err != nil || string(all) != "hello world" {
		t.Errorf("got %q, %v", all, err)
	}
	tunnel.Close()
}

func TestIdleConnectionsAreClosedAfterMaxIdleTime(t *testing.T) {
	u := newResponder(t, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	for range 3 {
		resp, err := u.roundTrip(request(t, "GET", ""))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	if len(u.idle) != 1 || u.sweeper == nil {
		t.Fatalf("%d idle connections, the sweeper is %v", len(u.idle), u.sweeper)
	}
	u.sweep() // too early
	cn := u.idle[0]
	cn.idleSince = time.Now().Add(-maxIdleTime)
	u.sweep()
	if len(u.idle) != 0 || u.sweeper != nil || cn.quiet() {
		t.Errorf("%d idle connections, the sweeper is %v", len(u.idle), u.sweeper)
	}
}

// A configuration that was replaced is garbage, also after many reloads.
func TestCloseIdleLeavesNoTimer(t *testing.T) {
	u := newResponder(t, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	if _, err := u.roundTrip(request(t, "GET", "")); err != nil {
		t.Fatal(err)
	}
	u.CloseIdle()
	if u.sweeper.Stop() {
		t.Error("a timer keeps the client")
	}
}

// HeaderTimeout starts when the upstream has received the request, also on a
// connection that is used again.
func TestHeaderTimeoutStartsAfterASlowHead(t *testing.T) {
	t.Parallel()
	const timeout = 4 * time.Second
	long := strings.Repeat("x", 32<<20) // more than the kernel buffers
	u := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
		for n := 0; ; n++ {
			if n == 1 {
				time.Sleep(timeout + timeout/4)
			}
			for line := ""; line != "\r\n"; {
				var err error
				if line, err = r.ReadString('\n'); err != nil {
					return
				}
			}
			io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
		}
	})
	u.HeaderTimeout = timeout
	for _, value := range []string{"short", long} {
		req := request(t, "GET", "")
		req.Header.Set("Value", value)
		if _, err := u.roundTrip(req); err != nil {
			t.Errorf("with a head of %d bytes: %v", len(value), err)
		}
	}
	if n := u.connections.Load(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

// Close keeps the connection if nothing of the response can follow.
func TestCloseKeepsAConnectionWhoseResponseHasArrived(t *testing.T) {
	for response, keeps := range map[string]bool{
		"Content-Length: 4\r\n\r\ngood":                            true,
		"Content-Length: 4\r\nConnection: close\r\n\r\ngood":       false,
		"Content-Length: 4\r\n\r\ngoodHTTP/1.1 200 OK\r\n":         false,
		"Content-Length: 5\r\n\r\ngood":                            false,
		"Transfer-Encoding: chunked\r\n\r\n4\r\ngood\r\n0\r\n\r\n": false,
	} {
		for read := range 4 {
			u := newResponder(t, "HTTP/1.1 200 OK\r\n"+response)
			for range 3 {
				resp, err := u.roundTrip(request(t, "GET", ""))
				if err != nil {
					t.Fatal(err)
				}
				io.ReadFull(resp.Body, make([]byte, read))
				if rest, ok := resp.Body.(*body).Arrived(); keeps && (!ok || string(rest) != "good"[read:]) {
					t.Errorf("%q: %d bytes are followed by %q, %v", response, read, rest, ok)
				}
				resp.Body.Close()
				if n, err := resp.Body.Read(make([]byte, 1)); n != 0 || err != http.ErrBodyReadAfterClose {
					t.Errorf("%q: got %d, %v after the close", response, n, err)
				}
			}
			if n := u.connections.Load(); n != 1 && keeps || n != 3 && !keeps {
				t.Errorf("%q, of which %d bytes were read: got %d connections", response, read, n)
			}
		}
	}
}
