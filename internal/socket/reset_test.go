package socket

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
)

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
