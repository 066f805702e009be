package bff_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
)

// BenchmarkTraces measures an API call in a session without traces, and with a
// part of them recorded. The allocations of "off" must not grow.
//
//	go test ./bff -run '^$' -bench Traces
func BenchmarkTraces(b *testing.B) {
	upstream := newConstantUpstream(b)
	for _, bench := range []struct {
		name  string
		ratio float64 // of the traces that are recorded; negative: there are none
	}{{"off", -1}, {"1 of 100", 0.01}, {"all", 1}} {
		b.Run(bench.name, func(b *testing.B) {
			var provider trace.TracerProvider
			if bench.ratio >= 0 {
				sdk := sdktrace.NewTracerProvider(sdktrace.WithBatcher(discardExporter{}),
					sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(bench.ratio))))
				defer sdk.Shutdown(context.Background())
				provider = sdk
			}
			server := bfftest.NewServer(b, func(cfg *bff.Config) {
				cfg.Routes = []bff.Route{{Path: "/api/", Upstream: []string{"http://" + upstream},
					Token: bff.TokenUser}}
				cfg.Logger = slog.New(slog.NewJSONHandler(io.Discard, nil))
				cfg.TracerProvider = provider
			})
			browser := bfftest.NewBrowser(b, server.URL)
			if resp := browser.SignIn("alice", ""); resp.StatusCode != 303 {
				b.Fatalf("sign in: got %d, want 303", resp.StatusCode)
			}
			r := httptest.NewRequest("GET", server.URL+"/api/x", nil)
			r.URL.Scheme, r.URL.Host, r.RequestURI = "", "", "/api/x"
			r.Header.Set("X-CSRF", "1")
			for _, c := range browser.Cookies() {
				r.AddCookie(c)
			}
			b.ReportAllocs()
			for b.Loop() {
				w := httptest.NewRecorder()
				if server.Broker.ServeHTTP(w, r); w.Code != 200 {
					b.Fatalf("got %d, want 200: %s", w.Code, w.Body)
				}
			}
		})
	}
}

// discardExporter exports nothing.
type discardExporter struct{}

func (discardExporter) ExportSpans(context.Context, []sdktrace.ReadOnlySpan) error { return nil }
func (discardExporter) Shutdown(context.Context) error                             { return nil }

// newConstantUpstream starts an upstream that allocates nothing for a request,
// and returns its address.
func newConstantUpstream(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	response := []byte("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
	go func() { // until l is closed
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // until the broker closes the connection
				defer c.Close()
				var buf [16 << 10]byte
				n := 0
				for {
					m, err := c.Read(buf[n:])
					if err != nil {
						return
					}
					if n += m; bytes.HasSuffix(buf[:n], []byte("\r\n\r\n")) {
						n = 0
						c.Write(response)
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}
