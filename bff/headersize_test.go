package bff_test

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
)

// requestOf returns a request for / whose head has a size.
func requestOf(host string, size int) string {
	const request = "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nX-Large: %s\r\n\r\n"
	return fmt.Sprintf(request, host, strings.Repeat("x", size-len(fmt.Sprintf(request, host, ""))))
}

// refusedHeaders returns the log lines about large headers, and the sum of
// their counts.
func (l *limited) refusedHeaders() (lines int, counted float64) {
	for text := range strings.Lines(l.logs.String()) {
		var line map[string]any
		if json.Unmarshal([]byte(text), &line) == nil && line["msg"] == "request refused" && line["status"] == 431.0 {
			count, _ := line["count"].(float64)
			counted += count
			lines++
		}
	}
	return lines, counted
}

func TestLargerHeadersThanTheLimitAreRefused(t *testing.T) {
	t.Parallel()
	certified := httptest.NewTLSServer(nil)
	defer certified.Close()
	secure := &tls.Config{Certificates: certified.TLS.Certificates, NextProtos: []string{"h2", "http/1.1"}}
	for name, test := range map[string]struct {
		tls   *tls.Config
		limit int // of the configuration
		want  int
	}{
		"default":      {nil, 0, 64 << 10},
		"default, TLS": {secure, 0, 64 << 10},
		"small":        {nil, 8 << 10, 8 << 10},
		"large":        {nil, 256 << 10, 256 << 10},
		"the maximum":  {secure, 1 << 20, 1 << 20},
		"the minimum":  {nil, 4 << 10, 4 << 10},
		"any number":   {nil, 10_000, 10_000},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLimited(t, bff.Limits{HeaderBytes: test.limit}, func(cfg *bff.Config) { cfg.TLS = test.tls })
			host := strings.TrimPrefix(l.url, "http://")
			status := func(size int) int {
				conn := l.dial()
				defer conn.Close()
				if test.tls != nil {
					conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
				}
				conn.SetDeadline(time.Now().Add(20 * time.Second))
				go io.WriteString(conn, requestOf(host, size)) // until the deadline
				resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil {
					t.Fatalf("%d bytes: %v", size, err)
				}
				return resp.StatusCode
			}
			if got := status(test.want); got != 200 {
				t.Errorf("of the maximum size: got %d, want 200", got)
			}
			l.wantRefused(bff.RefusalHeader, 0)
			for _, size := range []int{test.want + 1, 4 * test.want} {
				if got := status(size); got != 431 {
					t.Errorf("%d bytes: got %d, want 431", size, got)
				}
			}
			l.wantRefused(bff.RefusalHeader, 2)
			waitFor(t, "both are logged", func() bool {
				_, counted := l.refusedHeaders()
				return counted >= 2
			})
			lines, counted := l.refusedHeaders()
			if counted != 2 {
				t.Errorf("sum of the counts: got %v, want 2", counted)
			}
			if lines > 2 {
				t.Errorf("lines: got %d, want at most 2", lines)
			}
		})
	}
}

func TestLargerHeadersInHTTP2AreRefused(t *testing.T) {
	t.Parallel()
	certified := httptest.NewTLSServer(nil)
	defer certified.Close()
	l := newLimited(t, bff.Limits{}, func(cfg *bff.Config) {
		cfg.TLS = &tls.Config{Certificates: certified.TLS.Certificates, NextProtos: []string{"h2", "http/1.1"}}
	})
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true,
	}
	defer transport.CloseIdleConnections()
	status := func(value int) int {
		req, err := http.NewRequest("GET", "https://"+l.addr, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = strings.TrimPrefix(l.url, "http://")
		req.Header.Set("X-Large", strings.Repeat("x", value))
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatalf("%d bytes: %v", value, err)
		}
		defer resp.Body.Close()
		if resp.ProtoMajor != 2 {
			t.Fatalf("protocol: got %s, want HTTP/2", resp.Proto)
		}
		return resp.StatusCode
	}
	if got := status(63 << 10); got != 200 {
		t.Errorf("63 KiB: got %d, want 200", got)
	}
	for _, size := range []int{64 << 10, 100 << 10} {
		if got := status(size); got != 431 {
			t.Errorf("a value of %d bytes: got %d, want 431", size, got)
		}
	}
	if got := status(10); got != 200 {
		t.Errorf("on the same connection: got %d, want 200", got)
	}
	l.wantRefused(bff.RefusalHeader, 2)
	waitFor(t, "both are logged", func() bool {
		_, counted := l.refusedHeaders()
		return counted == 2
	})
}

func TestHeaderLimitsOutOfRangeAreRefused(t *testing.T) {
	t.Parallel()
	var cfg bff.Config
	newApp(t, func(_ *app, c *bff.Config) { cfg = *c })
	for _, size := range []int{-1, 4<<10 - 1, 1<<20 + 1} {
		cfg.Limits.HeaderBytes = size
		if _, err := bff.New(cfg); err == nil || !strings.Contains(err.Error(), "Limits.HeaderBytes") {
			t.Errorf("%d: got %v, want an error about Limits.HeaderBytes", size, err)
		}
	}
}
