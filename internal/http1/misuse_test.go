package http1

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// A handler can set a Connection of any length.
func TestLongConnectionHeader(t *testing.T) {
	t.Parallel()
	s := startTwins(t, behave)
	for _, query := range []string{
		"set:Connection=Upgrade", "set:Connection=" + strings.Repeat("x", 600),
		"set:Connection=" + strings.Repeat("x", 600) + "%2cclose",
	} {
		request := plainRequest("GET", query+",write:x", "\r\n") + plainRequest("GET", "write:y", "\r\n")
		methods := []string{"GET", "GET"}
		want := normal(t, exchangeRaw(t, s.other, request), methods)
		if got := normal(t, exchangeRaw(t, s.plain, request), methods); got != want {
			t.Errorf("%.40q:\ngot  %.200q\nwant %.200q", query, got, want)
		}
	}
}

// The sweep may look at a body at any time. A body that was read is complete
// nevertheless, or the connection would be closed.
func TestABodyIsCompleteWhileTheSweepLooks(t *testing.T) {
	t.Parallel()
	b := new(requestBody)
	var looking sync.WaitGroup
	for range 4 {
		looking.Go(func() {
			for range 100_000 {
				if !b.complete() {
					t.Error("the body is not complete")
					return
				}
			}
		})
	}
	looking.Wait()
}

// What a handler does with its ResponseWriter after it has returned, or after
// it has hijacked the connection, does not get into another response.
func TestLateResponseWriter(t *testing.T) {
	t.Parallel()
	late := make(chan http.ResponseWriter, 1)
	s := startTwins(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.RawQuery {
		case "first":
			io.WriteString(w, "first")
			late <- w
		case "second":
			before := <-late
			before.WriteHeader(http.StatusEarlyHints)
			io.WriteString(before, strings.Repeat("late", 20<<10))
			before.(http.Flusher).Flush()
			if _, _, err := before.(http.Hijacker).Hijack(); err == nil {
				t.Error("the connection of another request was hijacked")
			}
			io.WriteString(w, "second")
		case "hijack":
			http.NewResponseController(w).SetWriteDeadline(time.Now()) // ends with the response
			c, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			w.WriteHeader(http.StatusEarlyHints)
			w.(http.Flusher).Flush()
			io.WriteString(c, "hijacked")
		}
	})
	c := s.dial(t)
	r := bufio.NewReader(c)
	for _, query := range []string{"first", "second"} {
		io.WriteString(c, plainRequest("GET", query, "\r\n"))
		wantText(t, r, query)
	}
	io.WriteString(c, plainRequest("GET", "hijack", "\r\n"))
	if text, err := io.ReadAll(r); string(text) != "hijacked" || err != nil {
		t.Errorf("got %.40q and %v", text, err)
	}
}

// A deadline of writes that is not near is set by the sweep. It ends a write to
// a client that does not read, and does not apply to the next response.
func TestAFarWriteDeadlineEndsAWrite(t *testing.T) {
	t.Parallel()
	const far = 3 * time.Second
	began, ended := make(chan time.Time, 1), make(chan time.Time, 1)
	s := startTwins(t, func(w http.ResponseWriter, r *http.Request) {
		x := w.(*responseWriter).x
		switch r.URL.RawQuery {
		case "limited":
			http.NewResponseController(w).SetWriteDeadline(time.Now().Add(far))
			for set := false; !set; time.Sleep(sweepInterval / 10) { // until the sweep
				x.mu.Lock()
				set = x.limited
				x.mu.Unlock()
			}
		case "next":
			time.Sleep(far)
		case "stuck":
			began <- time.Now()
			http.NewResponseController(w).SetWriteDeadline(time.Now().Add(far))
			for part := make([]byte, 1<<20); ; {
				if _, err := w.Write(part); err != nil {
					ended <- time.Now()
					return
				}
			}
		}
		io.WriteString(w, r.URL.RawQuery)
	})
	c := s.dial(t)
	r := bufio.NewReader(c)
	for _, query := range []string{"limited", "next"} {
		io.WriteString(c, plainRequest("GET", query, "\r\n"))
		wantText(t, r, query)
	}
	io.WriteString(c, plainRequest("GET", "stuck", "\r\n"))
	if took := -(<-began).Sub(<-ended); took < far {
		t.Errorf("the write ended after %v, want %v", took, far)
	}
}

// A connection counts from when it was accepted, or a shutdown could end before
// it is served.
func TestServeRegistersTheConnection(t *testing.T) {
	t.Parallel()
	s := startTwins(t, behave)
	client, c := net.Pipe()
	defer client.Close()
	served := make(chan int)
	go func() {
		s.server.Serve(c)
		served <- s.server.CloseIdle(time.Hour)
	}()
	select {
	case open := <-served:
		if open != 1 {
			t.Errorf("got %d open connections, want 1", open)
		}
	case <-time.After(20 * time.Second):
		t.Error("Serve has not returned")
	}
}

// Requests of one connection have the same TLS, whichever server serves them.
func TestTLSOfRequests(t *testing.T) {
	t.Parallel()
	s := startTwins(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.TLS != nil) })
	certified := httptest.NewUnstartedServer(nil)
	certified.StartTLS()
	defer certified.Close()
	l := listen(t)
	go func() {
		if c, err := l.Accept(); err == nil {
			c := tls.Server(c, &tls.Config{Certificates: certified.TLS.Certificates})
			c.Handshake()
			s.server.Serve(c)
		}
	}()
	c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	r := bufio.NewReader(c)
	var got []string
	for _, more := range []string{"\r\n", "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"} {
		io.WriteString(c, plainRequest("POST", "", more))
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		got = append(got, string(text))
	}
	if got[0] != got[1] {
		t.Errorf("a plain request: %s; another one: %s", got[0], got[1])
	}
}

// A write that does not fit into the Content-Length is missing from the body,
// so the client must not take the rest for all of it.
func TestAWriteThatIsRefusedBreaksTheResponse(t *testing.T) {
	t.Parallel()
	s := startTwins(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "3")
		io.WriteString(w, "abcd")
		io.WriteString(w, "xyz")
	})
	request := plainRequest("GET", "", "\r\n")
	want := normal(t, exchangeRaw(t, s.other, request), []string{"GET"})
	if got := normal(t, exchangeRaw(t, s.plain, request), []string{"GET"}); !strings.Contains(got, "unexpected EOF") {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A connection is not idle any more once a part of a request has arrived.
func TestTheBeginOfARequestEndsTheIdleTime(t *testing.T) {
	t.Parallel()
	s := startTwins(t, behave)
	c := s.dial(t)
	request := plainRequest("GET", "write:x", "\r\n")
	io.WriteString(c, request)
	if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil {
		t.Fatal(err)
	}
	idleSince := func() (state int64) {
		s.server.mu.Lock()
		defer s.server.mu.Unlock()
		for x := range s.server.conns {
			state = x.state.Load()
		}
		return state
	}
	for idleSince() < 0 { // until the request has ended
		time.Sleep(time.Millisecond)
	}
	before := idleSince()
	io.WriteString(c, request[:10])
	since := before
	for since == before {
		time.Sleep(time.Millisecond)
		since = idleSince()
	}
	if since < before { // it is closed
		t.Error("the connection was idle although a request had begun")
	}
}
