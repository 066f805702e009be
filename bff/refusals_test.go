package bff_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
)

// Each request has exactly one log line, even if it reaches no handler.
func TestEveryRefusalIsLoggedOnceWithItsCause(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	host := strings.TrimPrefix(a.url, "http://")
	certified := httptest.NewTLSServer(nil)
	defer certified.Close()
	for name, cfg := range map[string]*tls.Config{"plain": nil, "TLS": {Certificates: certified.TLS.Certificates}} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			addr := l.Addr().String()
			s := &http.Server{
				Handler: a.server, MaxHeaderBytes: 16 << 10,
				ErrorLog:                     slog.NewLogLogger(slog.DiscardHandler, 0),
				DisableGeneralOptionsHandler: true,
			}
			go s.Serve(bff.NewListener(l, cfg, slog.New(slog.NewJSONHandler(a.logs, nil)))) // until Close
			defer s.Close()
			roots := x509.NewCertPool()
			roots.AddCert(certified.Certificate())
			const end = "Connection: close\r\n\r\n"
			good := "Host: " + host + "\r\nX-CSRF: 1\r\n"
			for _, test := range []struct {
				request string
				status  int
				cause   string
			}{
				{"GET /public/x HTTP/1.1\r\nHost: evil.example\r\n" + end, 421, "evil.example"},
				{"GET /public/x HTTP/1.1\r\nHost: " + strings.Repeat("e", 9000) + "\r\n" + end, 421, "eeee"},
				{"GET /public/..%2fx HTTP/1.1\r\n" + good + end, 400, "ambiguous_path: path"},
				{"GET /public/" + strings.Repeat("%01", 4000) + " HTTP/1.1\r\n" + good + end, 400, "control character"},
				{"TRACE /public/x HTTP/1.1\r\n" + good + end, 405, "method_not_allowed"},
				{strings.Repeat("X", 9000) + " /bff/session HTTP/1.1\r\n" + good + end, 405, "method_not_allowed"},
				{"GET http://evil.example/ HTTP/1.1\r\n" + good + end, 400, "ambiguous_host: "},
				{
					"GET /api/x HTTP/1.1\r\nHost: " + host + "\r\nX-CSRF: " +
						strings.Repeat("\u00e9", 4000) + "\r\n" + end,
					403, "csrf: the header X-CSRF is [",
				},
				{
					"GET /api/x HTTP/1.1\r\n" + good + "Origin: " + strings.Repeat("o", 9000) + "\r\n" + end,
					403, "csrf: ",
				},
				{
					"GET /public/x HTTP/1.1\r\n" + good + "Upgrade: websocket" +
						strings.Repeat("\u00e9", 4000) + "\r\n" + end,
					400, "upgrade_refused: ",
				},
				{"OPTIONS * HTTP/1.1\r\n" + good + end, 400, "ambiguous_path: "},
				// Refused by the listener.
				{
					"GET /public/x HTTP/1.1\r\n" + good +
						"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
					400, "Content-Length and Transfer-Encoding",
				},
				{"GET /public/x HTTP/1.1\r\n" + good + "A : b\r\n\r\n", 400, "header line"},
				{"GET /public/x HTTP/1.1\n\n", 400, "CRLF"},
				{"GET /public/x HTTP/1.1\r\n\r\n", 400, "Host"},
				{"GET /public/x HTTP/3.0\r\n" + good + end, 400, "version"},
				{"nonsense" + strings.Repeat("x", 9000) + "\r\n\r\n", 400, "request line"},
				{"POST /public/x HTTP/1.1\r\n" + good + "Transfer-Encoding: gzip\r\n\r\n", 400, "Transfer-Encoding"},
				// Refused by net/http.
				{"GET /%zz HTTP/1.1\r\n" + good + end, 400, "400 Bad Request"},
				{"GET /public/x HTTP/1.1\r\nHost: a b\r\n" + end, 400, "Host"},
				{
					"GET /public/x HTTP/1.1\r\n" + good + strings.Repeat("A: "+strings.Repeat("b",
						1000)+"\r\n", 40) + end,
					431, "Too Large",
				},
				{"GET /public/x HTTP/1.1\r\n" + good + "Expect: the-spanish-inquisition\r\n" + end, 417, "expectation"},
			} {
				before := a.logs.String()
				var c net.Conn
				if c, err = net.Dial("tcp", addr); err != nil {
					t.Fatal(err)
				}
				if cfg != nil {
					c = tls.Client(c, &tls.Config{RootCAs: roots, ServerName: "example.com"})
				}
				c.SetDeadline(time.Now().Add(20 * time.Second))
				go io.WriteString(c, test.request)
				resp, err := http.ReadResponse(bufio.NewReader(c), nil)
				if err != nil {
					t.Errorf("%.60q: %v", test.request, err)
					c.Close()
					continue
				}
				c.Close()
				if resp.StatusCode != test.status {
					t.Errorf("%.60q: got %d, want %d", test.request, resp.StatusCode, test.status)
				}
				var lines []string
				waitFor(t, "the log line", func() bool {
					lines = nil
					for line := range strings.Lines(strings.TrimPrefix(a.logs.String(), before)) {
						if !strings.Contains(line, `"event"`) {
							lines = append(lines, line)
						}
					}
					return len(lines) > 0
				})
				var line map[string]any
				if err := json.Unmarshal([]byte(lines[0]), &line); err != nil {
					t.Fatal(err)
				}
				if len(lines) != 1 {
					t.Errorf("%.60q: len(lines): got %d, want 1", test.request, len(lines))
				}
				if line["level"] != "WARN" {
					t.Errorf("%.60q: level: got %v, want WARN", test.request, line["level"])
				}
				if line["status"] != float64(test.status) {
					t.Errorf("%.60q: status: got %v, want %v", test.request, line["status"], float64(test.status))
				}
				if line["client"] != "127.0.0.1" {
					t.Errorf("%.60q: client: got %v, want 127.0.0.1", test.request, line["client"])
				}
				if !strings.Contains(fmt.Sprint(line["err"]), test.cause) {
					t.Errorf("%.60q: err: got %q, want it to contain %q", test.request,
						fmt.Sprint(line["err"]), test.cause)
				}
				if len(lines[0]) > 6<<10 {
					t.Errorf("%.60q: the log line has %d bytes", test.request, len(lines[0]))
				}
			}
			// The handler logs a body with invalid framing. It has one line
			// too.
			before := len(a.logs.lines(t, "request")) + len(a.logs.lines(t, "request refused"))
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			if cfg != nil {
				c = tls.Client(c, &tls.Config{RootCAs: roots, ServerName: "example.com"})
			}
			io.WriteString(c,
				"POST /public/x HTTP/1.1\r\n"+good+"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nnonsense\r\n")
			c.SetDeadline(time.Now().Add(20 * time.Second))
			io.Copy(io.Discard, c)
			c.Close()
			waitFor(t, "the log line", func() bool {
				return len(a.logs.lines(t, "request"))+len(a.logs.lines(t, "request refused")) > before
			})
			n := len(a.logs.lines(t, "request refused"))
			if strings.Contains(fmt.Sprint(a.logs.lines(t, "request refused")[n-1]["err"]), "chunk") {
				t.Error("the body is logged twice")
			}
		})
	}
}

func TestCSRFAutoAcceptsEitherProof(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.Routes[0].CSRF = "auto"
		cfg.Routes[1].CSRF = "" // the same as above
	})
	b := a.signedIn()
	for name, test := range map[string]struct {
		method string
		header []string
		ok     bool
	}{
		"the header, any method": {"POST", []string{"X-CSRF", "1"}, true},
		"the header, a GET":      {"GET", []string{"X-CSRF", "1"}, true},
		"both": {
			"PATCH",
			[]string{"X-CSRF", "1", "Sec-Fetch-Site", "same-origin", "Origin", a.url},
			true,
		},
		"a same-origin image": {
			"GET",
			[]string{"Sec-Fetch-Site", "same-origin", "Sec-Fetch-Mode", "no-cors", "Sec-Fetch-Dest", "image"},
			true,
		},
		"a same-origin HEAD": {"HEAD", []string{"Sec-Fetch-Site", "same-origin"}, true},
		"a same-origin navigation": {
			"GET",
			[]string{"Sec-Fetch-Site", "same-origin", "Sec-Fetch-Mode", "navigate"},
			true,
		},
		"a typed navigation": {
			"GET",
			[]string{"Sec-Fetch-Site", "none", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"},
			true,
		},
		"a typed HEAD": {
			"HEAD",
			[]string{"Sec-Fetch-Site", "none", "Sec-Fetch-Mode", "navigate"},
			true,
		},
		"our Origin, an old browser": {"GET", []string{"Origin", a.url}, true},
		"nothing":                    {"GET", nil, false},
		"a same-origin POST without header": {
			"POST",
			[]string{"Sec-Fetch-Site", "same-origin", "Origin", a.url},
			false,
		},
		"a same-origin QUERY without header": {"QUERY", []string{"Sec-Fetch-Site", "same-origin"}, false},
		"OPTIONS":                            {"OPTIONS", []string{"Sec-Fetch-Site", "same-origin"}, false},
		"a method in small letters":          {"get", []string{"Sec-Fetch-Site", "same-origin"}, false},
		"a typed POST": {
			"POST",
			[]string{"Sec-Fetch-Site", "none", "Sec-Fetch-Mode", "navigate"},
			false,
		},
		"none that does not navigate": {
			"GET",
			[]string{"Sec-Fetch-Site", "none", "Sec-Fetch-Mode", "no-cors"},
			false,
		},
		"none without a mode": {"GET", []string{"Sec-Fetch-Site", "none"}, false},
		"none with an Origin": {
			"GET",
			[]string{"Sec-Fetch-Site", "none", "Sec-Fetch-Mode", "navigate", "Origin", "https://evil.example"},
			false,
		},
		"a cross-site navigation": {
			"GET",
			[]string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate"},
			false,
		},
		"a same-site navigation": {
			"GET",
			[]string{"Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "navigate"},
			false,
		},
		"cross-site with the header": {"GET", []string{"Sec-Fetch-Site", "cross-site", "X-CSRF", "1"}, false},
		"none with the header": {
			"GET",
			[]string{"Sec-Fetch-Site", "none", "Sec-Fetch-Mode", "navigate", "X-CSRF", "1"},
			false,
		},
		"same-origin with a wrong header": {"GET", []string{"Sec-Fetch-Site", "same-origin", "X-CSRF", "0"}, false},
		"same-origin, a foreign Origin": {
			"GET",
			[]string{"Sec-Fetch-Site", "same-origin", "Origin", "https://evil.example"},
			false,
		},
		"a foreign Origin": {"GET", []string{"Origin", "https://evil.example"}, false},
		"in capitals":      {"GET", []string{"Sec-Fetch-Site", "Same-Origin"}, false},
		"two in one":       {"GET", []string{"Sec-Fetch-Site", "same-origin, none"}, false},
	} {
		for _, path := range []string{"/api/x", "/public/x"} {
			before := a.echo.Calls()
			resp := b.Do(test.method, path, "", test.header...)
			if (resp.StatusCode == 200) != test.ok {
				t.Errorf("%s at %s: (resp.StatusCode == 200): got %v, want %v", name, path,
					(resp.StatusCode == 200), test.ok)
			}
			if a.echo.Calls() > before != test.ok {
				t.Errorf("%s at %s: a.echo.Calls() > before: got %v, want %v", name, path,
					a.echo.Calls() > before, test.ok)
			}
			if !test.ok && resp.StatusCode != 403 {
				t.Errorf("%s at %s: status: got %d, want 403", name, path, resp.StatusCode)
			}
		}
	}
	got := sendTarget(t, a, "/public/x", "Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site").StatusCode
	if got != 403 {
		t.Errorf("two values: got %d, want 403", got)
	}
	socket := []string{
		"Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "13",
		"Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==",
	}
	// the echo upstream does not switch protocols
	for origin, want := range map[string]int{a.url: 200, "https://evil.example": 403, "null": 403, "": 403} {
		if got := b.Do("GET", "/api/x", "", append(socket, "Origin", origin)...).StatusCode; got != want {
			t.Errorf("a WebSocket of the origin %q: got %d, want %d", origin, got, want)
		}
	}
}
