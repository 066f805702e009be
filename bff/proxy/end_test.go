package proxy_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/proxy"
)

// An event stream that responds to a POST is not taken over from the server. It
// ends with the session, and its connection has other requests.
func TestTheEndOfAStreamLeavesTheConnectionInUse(t *testing.T) {
	t.Parallel()
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if r.Method == http.MethodPost {
			w.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(w, "data: begun\n\n")
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}
	}))
	defer upstream.Close()
	p, err := proxy.New(proxy.Upstream{URLs: []string{upstream.URL}, Path: "/"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	end := make(chan func(), 1)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := p.Forward(w, r, proxy.Options{OnEnd: func(abort func()) (stop func()) {
			if r.Method == http.MethodPost {
				end <- abort
			}
			return func() {}
		}})
		if err != nil {
			t.Errorf("%s: %v", r.Method, err)
			panic(http.ErrAbortHandler)
		}
	}))
	defer s.Close()
	c, err := new(net.Dialer).DialContext(t.Context(), "tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	r := bufio.NewReader(c)
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi")
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	(<-end)()
	if text, err := io.ReadAll(resp.Body); string(text) != "data: begun\n\n" || err != nil {
		t.Errorf("stream: got %q and %v", text, err)
	}
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if resp, err = http.ReadResponse(r, nil); err != nil {
		t.Fatalf("the next request: %v", err)
	}
	resp.Body.Close()
}
