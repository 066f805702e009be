package hijack

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestResponseIsReadAsAnyOther(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("0123456789", 10_000) // several chunks
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Name", "value")
		resp := Take(w, http.NewResponseController(w), r)
		if resp == nil {
			io.WriteString(w, "not taken")
			return
		}
		go func() { // until the response is written
			defer resp.Close()
			resp.WriteHeader(http.StatusTeapot)
			io.WriteString(resp, "short")
			io.WriteString(resp, long)
			resp.Write(nil) // must not be the last chunk
			io.WriteString(resp, "end")
			resp.Finish()
		}()
	}))
	t.Cleanup(s.Close)
	resp, err := http.Get(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || string(body) != "short"+long+"end" {
		t.Errorf("body: got %d bytes, %v, want %d", len(body), err, len("short"+long+"end"))
	}
	if resp.StatusCode != http.StatusTeapot {
		t.Errorf("status: got %d, want 418", resp.StatusCode)
	}
	if got := resp.Header.Get("X-Name"); got != "value" {
		t.Errorf("X-Name: got %q, want value", got)
	}
	if resp.Header.Get("Date") == "" || !resp.Close {
		t.Errorf("header: got %v, want Date and Connection: close", resp.Header)
	}
	for _, method := range []string{"POST", "HEAD"} {
		req, err := http.NewRequest(method, s.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: got %d, want 200, because it cannot be taken", method, resp.StatusCode)
		}
	}
}

func TestResetIsNoEnd(t *testing.T) {
	t.Parallel()
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "begun")
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		if r.URL.Path == "/reset" {
			Reset(c)
		}
		c.Close()
	})
	for _, start := range []func(http.Handler) *httptest.Server{httptest.NewServer, httptest.NewTLSServer} {
		s := start(handler)
		t.Cleanup(s.Close)
		dial := func() (net.Conn, error) { return net.Dial("tcp", s.Listener.Addr().String()) }
		if s.TLS != nil {
			cfg := s.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
			cfg.ServerName = "example.com"
			dial = func() (net.Conn, error) { return tls.Dial("tcp", s.Listener.Addr().String(), cfg) }
		}
		for path, reset := range map[string]bool{"/": false, "/reset": true} {
			c, err := dial()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			io.WriteString(c, "GET "+path+" HTTP/1.0\r\n\r\n")
			if text, err := io.ReadAll(c); (err != nil) != reset {
				t.Errorf("%s: got %q and %v", s.URL+path, text, err)
			}
		}
	}
}

// A client must not take a response for complete in which something is missing.
func TestBrokenResponseIsNotFinished(t *testing.T) {
	t.Parallel()
	client, server := net.Pipe()
	t.Cleanup(func() { client.Close() })
	resp := &Response{conn: server, header: make(http.Header)}
	got := make(chan string, 1)
	begun := make(chan struct{})
	go func() { // until the connection is closed
		r := bufio.NewReader(client)
		line, _ := r.ReadString('\n')
		close(begun)
		rest, _ := io.ReadAll(r)
		got <- line + string(rest)
	}()
	if err := resp.WriteHeader(http.StatusOK); err != nil {
		t.Fatal(err)
	}
	<-begun
	resp.SetWriteDeadline(time.Now())
	if _, err := io.WriteString(resp, "data"); err == nil {
		t.Fatal("write after the deadline: got no error")
	}
	resp.SetWriteDeadline(time.Time{})
	resp.Finish()
	resp.Close()
	if text := <-got; strings.Contains(text, "0\r\n\r\n") {
		t.Errorf("got %q, want no last chunk", text)
	}
}
