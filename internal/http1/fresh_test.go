package http1

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// exchangeAll sends n concurrent requests. The upstream responds when all of
// them have arrived.
func exchangeAll(t *testing.T, u *upstream, n int) {
	t.Helper()
	done := make(chan error, n)
	for range n {
		go func() {
			resp, err := u.roundTrip(request(t, "GET", ""))
			if err == nil {
				_, err = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			done <- err
		}()
	}
	for range n {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

func TestInvalidRequestsAreNotDialed(t *testing.T) {
	t.Parallel()
	c := &Client{Dial: func(context.Context) (net.Conn, error) {
		t.Error("Dial was called")
		return nil, errors.New("no")
	}}
	for name, edit := range map[string]func(*http.Request){
		"a space in the query":         func(r *http.Request) { r.URL.RawQuery = "a b" },
		"a space in the path":          func(r *http.Request) { r.URL.Opaque = "/a b" },
		"a control character":          func(r *http.Request) { r.URL.RawQuery = "a\x7f" },
		"a line feed in a value":       func(r *http.Request) { r.Header.Set("A", "b\nc") },
		"a space in a name":            func(r *http.Request) { r.Header["A b"] = []string{"c"} },
		"a method that is not a token": func(r *http.Request) { r.Method = "G T" },
		"a line feed in the host":      func(r *http.Request) { r.Host = "a\nb" },
	} {
		req := request(t, "GET", "")
		edit(req)
		for _, send := range []func(*http.Request) (*http.Response, error){
			c.roundTrip, c.roundTripFresh,
			func(r *http.Request) (*http.Response, error) { return nil, CheckRequest(r, fieldsOf(r.Header)) },
		} {
			if _, err := send(req); !errors.Is(err, ErrInvalidRequest) {
				t.Errorf("%s: got %v", name, err)
			}
		}
	}
	if err := CheckRequest(request(t, "GET", ""), new(Fields)); err != nil {
		t.Error(err)
	}
}

func TestErrorTellsWhetherTheConnectionWasFresh(t *testing.T) {
	t.Parallel()
	u := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
		for {
			req, err := http.ReadRequest(r)
			switch {
			case err != nil || req.Method == "DELETE":
				return
			case req.Method == "PUT":
				io.Copy(io.Discard, r)
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	for _, fresh := range []bool{true, false} {
		for _, method := range []string{"DELETE", "PUT"} {
			u.HeaderTimeout = 0
			if !fresh {
				exchangeAll(t, u, 1)
			}
			if method == "PUT" {
				u.HeaderTimeout = 50 * time.Millisecond
			}
			_, err := u.roundTrip(request(t, method, ""))
			var failed *Error
			if !errors.As(err, &failed) || failed.Fresh != fresh ||
				errors.Is(err, ErrConnClosed) != (method == "DELETE") ||
				errors.Is(err, os.ErrDeadlineExceeded) != (method == "PUT") {
				t.Errorf("%s, fresh %v: got %v", method, fresh, err)
			}
		}
	}
}

func TestIdleConnectionsAsOldAsAClosedOneAreDropped(t *testing.T) {
	t.Parallel()
	const idle = 5
	arrived := make(chan struct{}, idle)
	all := make(chan struct{})
	u := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
		for first := true; ; first = false {
			req, err := http.ReadRequest(r)
			if err != nil || !first && req.Header.Get("Dies") != "" {
				return
			}
			if first && req.Header.Get("Dies") == "" {
				arrived <- struct{}{}
				<-all
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	go func() {
		for range idle {
			<-arrived
		}
		close(all)
	}()
	exchangeAll(t, u, idle)
	dies := request(t, "GET", "")
	dies.Header.Set("Dies", "yes")
	if _, err := u.roundTrip(dies); !errors.Is(err, ErrConnClosed) {
		t.Fatalf("got %v", err)
	}
	if len(u.idle) != 0 {
		t.Errorf("%d idle connections remain that are as old as the closed one", len(u.idle))
	}
	if resp, err := u.roundTripFresh(dies); err != nil || u.connections.Load() != idle+1 {
		t.Errorf("got %v, %d connections", err, u.connections.Load())
	} else {
		resp.Body.Close()
	}
	// RoundTripFresh opens a connection although one is idle, and leaves that
	// alone.
	exchangeAll(t, u, 1)
	before := u.connections.Load()
	resp, err := u.roundTripFresh(request(t, "GET", ""))
	if err != nil || u.connections.Load() != before+1 {
		t.Fatalf("got %v, %d connections after %d", err, u.connections.Load(), before)
	}
	resp.Body.Close()
}

func TestConnectionOlderThanMaxAgeIsNotReused(t *testing.T) {
	t.Parallel()
	u := newResponder(t, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	u.MaxAge = time.Hour
	exchangeAll(t, u, 1)
	exchangeAll(t, u, 1)
	if n := u.connections.Load(); n != 1 {
		t.Fatalf("got %d connections", n)
	}
	u.idle[0].opened = time.Now().Add(-time.Hour)
	exchangeAll(t, u, 1)
	if n := u.connections.Load(); n != 2 {
		t.Errorf("got %d connections after the first had reached MaxAge", n)
	}
	old := u.idle[0]
	old.opened = time.Now().Add(-time.Hour)
	u.sweep()
	if len(u.idle) != 0 || old.quiet() {
		t.Error("an idle connection older than MaxAge stays open")
	}
}

func TestRequestBodyIsClosedAfterSending(t *testing.T) {
	t.Parallel()
	u := newResponder(t, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	closed := make(chan struct{})
	req := request(t, "POST", "body")
	req.Body = closing{strings.NewReader("body"), closed}
	resp, err := u.roundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	select {
	case <-closed:
	case <-time.After(10 * time.Second):
		t.Error("the body was not closed")
	}
}

type closing struct {
	io.Reader
	closed chan struct{}
}

func (c closing) Close() error {
	close(c.closed)
	return nil
}
