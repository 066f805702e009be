package bff_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
)

// scriptedUpstream responds to each request with the bytes that are set.
type scriptedUpstream struct {
	url string
	mu  sync.Mutex
	say string
}

func newScriptedUpstream(t *testing.T) *scriptedUpstream {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	u := &scriptedUpstream{url: "http://" + l.Addr().String()}
	go func() { // until l is closed
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
					return
				}
				u.mu.Lock()
				say := u.say
				u.mu.Unlock()
				io.WriteString(c, say)
			}()
		}
	}()
	return u
}

func (u *scriptedUpstream) respond(say string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.say = strings.ReplaceAll(say, "\n", "\r\n")
}

// eachProtocol runs a test with an HTTP/1.1 client and an HTTP/2 client. The
// broker has a route /x/ to url, and a route /allow/ where documents are
// allowed.
func eachProtocol(t *testing.T, upstream string,
	f func(t *testing.T, get func(method, path string, header ...string) (*http.Response, string, error))) {
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.Routes = []bff.Route{
			{Path: "/x/", Upstream: []string{upstream}, Token: "none"},
			{Path: "/allow/", Upstream: []string{upstream}, Token: "none", Documents: "allow"},
		}
	})
	for name, both := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewUnstartedServer(a.server)
			s.EnableHTTP2 = both
			s.StartTLS()
			defer s.Close()
			client := s.Client()
			client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
			client.Transport.(*http.Transport).DisableCompression = true
			f(t, func(method, path string, header ...string) (*http.Response, string, error) {
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				req, err := http.NewRequestWithContext(ctx, method, s.URL+path, nil)
				if err != nil {
					t.Fatal(err)
				}
				req.Host = strings.TrimPrefix(a.url, "http://")
				req.Header.Set("X-CSRF", "1")
				for i := 0; i+1 < len(header); i += 2 {
					req.Header.Set(header[i], header[i+1])
				}
				resp, err := client.Do(req)
				if err != nil {
					return nil, "", err
				}
				defer resp.Body.Close()
				text, err := io.ReadAll(resp.Body)
				if want := map[bool]int{true: 2, false: 1}[both]; resp.ProtoMajor != want {
					t.Errorf("the client speaks %s", resp.Proto)
				}
				return resp, string(text), err
			})
		})
	}
}

func TestProxiedResponseHasNoHeaderThatTheUpstreamDidNotSend(t *testing.T) {
	t.Parallel()
	u := newScriptedUpstream(t)
	eachProtocol(t, u.url,
		func(t *testing.T, get func(method, path string, header ...string) (*http.Response, string, error)) {
			const html = "<html><script>alert(1)</script>"
			for name, test := range map[string]struct{ method, say string }{
				"no type": {"GET", "HTTP/1.1 200 OK\nContent-Length: 31\n\n" + html},
				"nosniff": {
					"GET",
					"HTTP/1.1 200 OK\nX-Content-Type-Options: nosniff\nContent-Length: 31\n\n" + html,
				},
				"until the end":   {"GET", "HTTP/1.1 200 OK\nConnection: close\n\n" + html},
				"chunked":         {"GET", "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n1f\n" + html + "\n0\n\n"},
				"empty":           {"GET", "HTTP/1.1 200 OK\nContent-Length: 0\n\n"},
				"an error":        {"GET", "HTTP/1.1 500 Internal Server Error\nContent-Length: 31\n\n" + html},
				"not found":       {"GET", "HTTP/1.1 404 Not Found\nContent-Length: 31\n\n" + html},
				"HEAD":            {"HEAD", "HTTP/1.1 200 OK\nContent-Length: 31\n\n"},
				"HEAD, no length": {"HEAD", "HTTP/1.1 200 OK\n\n"},
				"not modified":    {"GET", "HTTP/1.1 304 Not Modified\nETag: \"x\"\n\n"},
				"no content":      {"GET", "HTTP/1.1 204 No Content\n\n"},
				"a part": {
					"GET",
					"HTTP/1.1 206 Partial Content\nContent-Range: bytes 0-30/100\nContent-Length: 31\n\n" + html,
				},
				"with its own Date": {
					"GET",
					"HTTP/1.1 200 OK\nDate: Thu, 01 Jan 2026 00:00:00 GMT\nContent-Length: 31\n\n" + html,
				},
				"an event stream": {
					"GET",
					"HTTP/1.1 200 OK\nDate: Thu, 01 Jan 2026 00:00:00 GMT\n" +
						"Content-Type: text/event-stream\nConnection: close\n\ndata: x\n\n",
				},
			} {
				u.respond(test.say)
				for _, path := range []string{"/x/y", "/allow/y"} {
					resp, text, err := get(test.method, path)
					if err != nil {
						t.Errorf("%s: %v", name, err)
						continue
					}
					raw := bufio.NewReader(strings.NewReader(strings.ReplaceAll(test.say, "\n", "\r\n")))
					sent, _ := http.ReadResponse(raw, &http.Request{Method: test.method})
					for header, values := range resp.Header {
						switch header {
						case "Cache-Control", "Content-Length": // documented; framing
						case "Date": // RFC 9110, section 6.6.1
							if d := sent.Header.Get("Date"); d != "" && d != values[0] {
								t.Errorf("%s %s: Date: got %q", name, path, values)
							}
						case "Content-Security-Policy", "X-Content-Type-Options":
							if path == "/allow/y" && sent.Header.Get(header) == "" {
								t.Errorf("%s %s: got %s: %q", name, path, header, values)
							}
						default:
							if fmt.Sprint(values) != fmt.Sprint(sent.Header[header]) {
								t.Errorf("%s %s: got %s: %q, the upstream sent %q", name, path,
									header, values, sent.Header[header])
							}
						}
					}
					if body, _ := io.ReadAll(sent.Body); string(body) != text {
						t.Errorf("%s %s: got the body %q, want %q", name, path, text, body)
					}
				}
			}
		})
}

// RFC 9110, sections 8.6 and 15.3.6.
func TestResponseWithoutContentHasNoLengthOfOne(t *testing.T) {
	t.Parallel()
	u := newScriptedUpstream(t)
	h2c := startH2C(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var status int
		fmt.Sscan(strings.TrimPrefix(r.URL.Path, "/x/"), &status)
		w.Header().Set("Content-Length", "5")
		w.Header().Set("Etag", `"x"`)
		w.WriteHeader(status)
		io.WriteString(w, "abcde")
	}))
	for name, upstream := range map[string]string{
		"from HTTP/1.1": u.url,
		"from HTTP/2":   h2c,
	} {
		t.Run(name, func(t *testing.T) {
			eachProtocol(t, upstream,
				func(t *testing.T, get func(method, path string, header ...string) (*http.Response, string, error)) {
					for _, status := range []int{204, 205, 304} {
						for _, rest := range []string{
							"Content-Length: 5\n\nabcde", "Content-Length: 5\n\n",
							"Transfer-Encoding: chunked\n\n5\nabcde\n0\n\n",
							"Content-Length: 0\n\n", "\n",
						} {
							u.respond(fmt.Sprintf("HTTP/1.1 %d X\nETag: \"x\"\n%s", status, rest))
							for _, method := range []string{"GET", "HEAD"} {
								resp, text, err := get(method, fmt.Sprintf("/x/%d", status))
								if err != nil || resp.StatusCode != status || text != "" ||
									resp.Header.Get("Etag") != `"x"` {
									t.Errorf("%s %d %q: got %v %q, %v", method, status, rest, resp, text, err)
									continue
								}
								length := resp.Header.Get("Content-Length")
								if length != "" && !(status == 205 && length == "0") || len(resp.TransferEncoding) > 0 {
									t.Errorf("%s %d %q: got Content-Length %q, Transfer-Encoding %q",
										method, status, rest, length, resp.TransferEncoding)
								}
							}
						}
					}
					u.respond("HTTP/1.1 200 OK\nContent-Length: 5\n\nabcde")
					if upstream == u.url {
						if resp, _, err := get("HEAD", "/x/200"); err != nil || resp.ContentLength != 5 {
							t.Errorf("HEAD of a response with a length: got %v, %v", resp, err)
						}
					}
				})
		})
	}
}

func TestDocumentsThatCanRunScriptAreSandboxed(t *testing.T) {
	t.Parallel()
	u := newScriptedUpstream(t)
	eachProtocol(t, u.url,
		func(t *testing.T, get func(method, path string, header ...string) (*http.Response, string, error)) {
			check := func(method, head string, want bool) {
				t.Helper()
				u.respond(head + "Content-Length: 4\n\n<p/>")
				for _, path := range []string{"/x/y", "/allow/y"} {
					resp, _, err := get(method, path, "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document")
					if err != nil {
						t.Errorf("%q: %v", head, err)
						continue
					}
					csp := resp.Header.Values("Content-Security-Policy")
					sandboxed := slices.Contains(csp, "sandbox") &&
						strings.Join(resp.Header.Values("X-Content-Type-Options"), "|") == "nosniff"
					if sandboxed != (want && path == "/x/y") {
						t.Errorf("%s %q: Content-Security-Policy %q, X-Content-Type-Options %q; want sandboxed: %v",
							path, head, csp, resp.Header["X-Content-Type-Options"], want)
					}
					own := strings.Contains(head, "default-src")
					if own && !slices.Contains(csp, "default-src *; sandbox allow-scripts") {
						t.Errorf("%s %q: the policy of the upstream is missing: %q", path, head, csp)
					}
				}
			}
			const ok = "HTTP/1.1 200 OK\n"
			for _, contentType := range []string{
				"text/html", "TEXT/HTML; charset=utf-8", "text/html;charset=x", " text/html ",
				"application/xhtml+xml", "image/svg+xml", "text/xml", "application/xml",
				"application/atom+xml", "application/rss+xml; x=y", "text/xsl", "application/mathml+xml",
				"application/vnd.x+xml", "multipart/x-mixed-replace; boundary=x",
				"multipart/related", "message/rfc822", "", "html", "text/", "/html", "*/*",
				"unknown/unknown", "application/unknown", "text/plain, text/html", "application/json, text/html",
				"text/plain;x=y, text/html", "text plain/x",
				"application/json;charset=\"utf-8, text/html", "text/html/x", "text\thtml", "x/y\u00e9",
			} {
				check("GET", ok+"Content-Type: "+contentType+"\n", true)
			}
			check("GET", ok, true)
			check("GET", ok+"Content-Type: text/plain\nContent-Type: text/html\n", true)
			check("GET",
				ok+"Content-Type: text/html\nContent-Security-Policy: default-src *; sandbox allow-scripts\n"+
					"X-Content-Type-Options: off\n", true)
			check("HEAD", ok+"Content-Type: text/html\n", true)
			for _, status := range []string{
				"206 Partial Content", "400 Bad Request", "401 Unauthorized", "404 Not Found",
				"500 X", "300 X", "302 Found",
			} {
				check("GET", "HTTP/1.1 "+status+"\nContent-Type: text/html\n", true)
				check("GET", "HTTP/1.1 "+status+"\n", true)
			}
			check("GET", "HTTP/1.1 304 Not Modified\nContent-Type: text/html\n", true)
			for _, contentType := range []string{
				"application/pdf", "application/pdf; name=\"a, b.pdf\"", "image/png", "image/jpeg",
				"image/x-icon", "application/json", "application/problem+json", "text/plain",
				"text/plain; charset=utf-8", "text/css", "text/csv", "text/javascript",
				"application/javascript", "application/octet-stream", "application/zip",
				"audio/mpeg", "video/mp4", "font/woff2", "application/grpc-web", "application/wasm",
				"application/vnd.ms-excel",
			} {
				check("GET", ok+"Content-Type: "+contentType+"\n", false)
			}
			// A browser updates a stored response with the headers of a 304.
			u.respond("HTTP/1.1 304 Not Modified\nETag: \"x\"\n" +
				"Content-Security-Policy: default-src *\nX-Content-Type-Options: off\n\n")
			resp, _, err := get("GET", "/x/y")
			switch {
			case err != nil:
				t.Errorf("304: error: got %v, want none", err)
			case resp.Header["Content-Security-Policy"] != nil:
				t.Errorf("304: Content-Security-Policy: got %v, want none", resp.Header["Content-Security-Policy"])
			case resp.Header["X-Content-Type-Options"] != nil:
				t.Errorf("304: X-Content-Type-Options: got %v, want none", resp.Header["X-Content-Type-Options"])
			}
		})
}

func TestServiceWorkerScriptsOfAnUpstreamAreRefused(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Routes[1].Documents = "allow" })
	for _, path := range []string{"/public/sw.js", "/api/sw.js", "/stream/sw.js"} {
		for _, header := range [][]string{
			{"Service-Worker", "script"}, {"Sec-Fetch-Dest", "serviceworker"},
			{"Service-Worker", "x"},
		} {
			wantProblem(t, a.browser().Fetch("GET", path, header...), 403, "service_worker")
		}
	}
	if got := a.browser().Do("GET", "/sw.js", "", "Service-Worker", "script"); got.Text != "the app" {
		t.Errorf("the app's own: got %d %s", got.StatusCode, got.Text)
	}
	if a.echo.Calls() > 0 {
		t.Error("the upstream got a request, want none")
	}
}

func TestCookiesOfAnUpstreamAreConfinedToItsRoute(t *testing.T) {
	t.Parallel()
	u := newScriptedUpstream(t)
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		for path, base := range map[string]string{"/plain/": "", "/exact": "", "/é/": ""} {
			cfg.Routes = append(cfg.Routes, bff.Route{Path: path, Upstream: []string{u.url + base}, Token: "none"})
		}
		cfg.Routes = append(cfg.Routes,
			bff.Route{Path: "/strip/", Upstream: []string{u.url}, Token: "none", StripPrefix: true},
			bff.Route{Path: "/based/", Upstream: []string{u.url + "/v1"}, Token: "none", StripPrefix: true})
	})
	b := a.browser()
	for _, test := range []struct{ ask, sent, want string }{
		{"/plain/x", "JSESSIONID=1; Path=/", "JSESSIONID=1; Path=/plain/"},
		{"/plain/x", "JSESSIONID=1; Path=/; HttpOnly; Secure", "JSESSIONID=1; HttpOnly; Secure; Path=/plain/"},
		{"/plain/x/y", "a=1", "a=1; Path=/plain/"},
		{"/plain/x", "a=1; Path=", "a=1; Path=/plain/"},
		{"/plain/x", "a=1;path=relative", "a=1; Path=/plain/"},
		{
			"/plain/x", "a=1; Path=/plain/x; Expires=Thu, 01 Jan 2026 00:00:00 GMT",
			"a=1; Path=/plain/x; Expires=Thu, 01 Jan 2026 00:00:00 GMT",
		},
		{"/plain/x", "a=1;PATH = /plain/;SameSite=Lax", "a=1;PATH = /plain/;SameSite=Lax"},
		{"/plain/x", "a=1; Path=/plain", "a=1; Path=/plain/"},
		{"/plain/x", "a=1; Path=/plainer", "a=1; Path=/plain/"},
		{"/plain/x", "a=1; Path=/PLAIN/", "a=1; Path=/plain/"},
		{"/plain/x", "a=1; Path=/api/", "a=1; Path=/plain/"},
		{"/plain/x", "a=1; Path=/plain/; Path=/", "a=1; Path=/plain/"},
		{"/plain/x", "a=1; Path=/; Path=/plain/x", "a=1; Path=/plain/x"},
		{"/plain/x", "a=; Path=/; Max-Age=0", "a=; Max-Age=0; Path=/plain/"},
		{"/exact", "a=1", "a=1; Path=/exact"},
		{"/exact", "a=1; Path=/exact/x", "a=1; Path=/exact/x"},
		{"/%C3%A9/x", "a=1; Path=/", "a=1; Path=/%C3%A9/"},
		{"/strip/x", "a=1; Path=/", "a=1; Path=/strip/"},
		{"/strip/x", "a=1; Path=/admin", "a=1; Path=/strip/admin"},
		{"/based/x", "a=1; Path=/v1/admin", "a=1; Path=/based/admin"},
		{"/based/x", "a=1; Path=/v1", "a=1; Path=/based/"},
		{"/based/x", "a=1; Path=/", "a=1; Path=/based/"},
		{"/based/x", "a=1; Path=/v12", "a=1; Path=/based/"},
	} {
		u.respond("HTTP/1.1 200 OK\nContent-Length: 0\nSet-Cookie: " + test.sent + "\n\n")
		if got := b.Fetch("GET", test.ask).Header.Values("Set-Cookie"); len(got) != 1 || got[0] != test.want {
			t.Errorf("%s, %q: got %q, want %q", test.ask, test.sent, got, test.want)
		}
	}
	// The jar of a browser agrees.
	u.respond("HTTP/1.1 200 OK\nContent-Length: 0\nSet-Cookie: JSESSIONID=1; Path=/\n\n")
	b.Fetch("GET", "/strip/x")
	for path, want := range map[string]bool{"/strip/y": true, "/public/x": false, "/": false, "/stripped": false} {
		target, _ := url.Parse(a.url + path)
		var sent bool
		for _, c := range b.CookiesFor(target) {
			sent = sent || c.Name == "JSESSIONID"
		}
		if sent != want {
			t.Errorf("%s: cookie is sent: got %v, want %v", path, sent, want)
		}
	}
}

func TestHeadersThatActOnTheWholeOriginDoNotPass(t *testing.T) {
	t.Parallel()
	names := map[string]bool{
		"Accept-CH": true, "Critical-CH": true, "Use-As-Dictionary": true,
		"Service-Worker-Allowed": true, "Clear-Site-Data": true, "Strict-Transport-Security": true,
		"Public-Key-Pins": true, "Public-Key-Pins-Report-Only": true, "Expect-CT": true,
		"Origin-Agent-Cluster": true, "NEL": true, "Report-To": true, "Reporting-Endpoints": true,
		"Alt-Svc": true, "Set-Login": true, "Login-Status": true, "Observe-Browsing-Topics": true,
		"Supports-Loading-Mode": true, "Speculation-Rules": true,
		"Activate-Storage-Access": true, "Attribution-Reporting-Register-Trigger": true,
		"Shared-Storage-Write": true, "Refresh": true, "X-Accel-Redirect": true, "X-Sendfile": true,
		"Cache-Group-Invalidation": true, "Proxy-Authentication-Info": true,
		"Secure-Session-Registration": true, "Secure-Session-Challenge": true,
		"Secure-Session-Skipped": true, "Sec-Session-Registration": true,
		"Sec-Session-Challenge": true, "Idp-Signin-Status": true, "Accept-CH-Lifetime": true,
		"Attribution-Reporting-Register-Source": true, "Origin-Policy": true,
		"X-Lighttpd-Send-File": true, "X-Reproxy-URL": true, "X-Reproxy-File": true,
		"SourceMap": false, "No-Vary-Search": false, "X-Frame-Options": false,
		"Referrer-Policy": false, "Permissions-Policy": false, "Cross-Origin-Opener-Policy": false,
		"ETag": false, "X-Accel-Buffering": false, "Content-Disposition": false, "X-Robots-Tag": false,
	}
	u := newScriptedUpstream(t)
	eachProtocol(t, u.url,
		func(t *testing.T, get func(method, path string, header ...string) (*http.Response, string, error)) {
			for _, trailer := range []bool{false, true} {
				var lines strings.Builder
				for name := range maps.Keys(names) {
					fmt.Fprintf(&lines, "%s: x\n", name)
				}
				if trailer {
					u.respond("HTTP/1.1 200 OK\nContent-Type: text/plain\nTransfer-Encoding: chunked\n\n" +
						"1\nx\n0\n" + lines.String() + "\n")
				} else {
					u.respond("HTTP/1.1 200 OK\nContent-Type: text/plain\nContent-Length: 1\n" + lines.String() + "\nx")
				}
				resp, _, err := get("GET", "/x/y")
				if err != nil {
					t.Fatal(err)
				}
				got := resp.Header
				if trailer {
					got = resp.Trailer
				}
				for name, dropped := range names {
					if there := got.Get(name) != ""; there == dropped {
						t.Errorf("trailer %v: %s is present: %v", trailer, name, there)
					}
				}
			}
		})
}
