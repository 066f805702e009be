package web_test

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/cloakroom-bff/cloakroom/web"
)

const (
	indexHTML = "<!doctype html><title>App</title><script type=module src=/assets/index-BkRj3xGh.js></script>"
	immutable = "public, max-age=31536000, immutable"
)

// app returns the output of a build.
func app() fstest.MapFS {
	files := make(fstest.MapFS)
	for name, content := range map[string]string{
		"index.html":                                  indexHTML,
		"assets/index-BkRj3xGh.js":                    "console.log('app')",
		"assets/index-BkRj3xGh.js.map":                "{}",
		"assets/index-BkRj3xGh.css":                   "body{}",
		"favicon.svg":                                 "<svg/>",
		"sw.js":                                       "// worker",
		"about.html":                                  "<!doctype html>about",
		".env":                                        "SECRET=1",
		".git/config":                                 "[core]",
		"assets/.hidden.js":                           "hidden",
		".well-known/security.txt":                    "Contact:",
		".well-known/apple-app-site-association":      "{}",
		".well-known/.private":                        "no",
		"docs/.well-known/security.txt":               "no",
		"assets/index-BkRj3xGh.js.map.gz":             "{}",
		"assets/LEGACY.JS.MAP":                        "{}",
		"server.key":                                  "PRIVATE KEY",
		"assets/Client.PEM":                           "PRIVATE KEY",
		"key.p12.gz":                                  "PRIVATE KEY",
		"keynote.html":                                "<!doctype html>keynote",
		"fonts/Inter-SemiBold.woff2":                  "font",
		"assets/data.unknownext":                      "data",
		"people/index.html":                           "<!doctype html>people",
		"assets/with space-BkRj3xGh.js":               "space",
		"assets/sub/worker.4f3a2b1c9d8e7f60.chunk.js": "worker",
	} {
		files[name] = &fstest.MapFile{Data: []byte(content)}
	}
	return files
}

func newHandler(t *testing.T, cfg web.Config) *web.Handler {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	h, err := web.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// do sends a request with headers given as "Name: value".
func do(h http.Handler, method, target string, headers ...string) *http.Response {
	r := httptest.NewRequest(method, target, nil)
	for _, line := range headers {
		name, value, _ := strings.Cut(line, ": ")
		r.Header.Add(name, value)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func body(t *testing.T, resp *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func wantHeader(t *testing.T, resp *http.Response, name, want string) {
	t.Helper()
	values := resp.Header.Values(name)
	if want == "" && len(values) == 0 {
		return
	}
	if len(values) != 1 || values[0] != want {
		t.Errorf("%s: got %q, want %q", name, values, want)
	}
}

const navigate = "Sec-Fetch-Mode: navigate"

func TestPaths(t *testing.T) {
	h := newHandler(t, web.Config{FS: app()})
	for _, tt := range []struct {
		path    string
		headers []string
		status  int
		body    string // "index" for index.html
		kind    string
		cache   string
	}{
		{"/", nil, 200, "index", "text/html; charset=utf-8", "no-cache"},
		{"/index.html", nil, 200, "index", "text/html; charset=utf-8", "no-cache"},
		{"/about.html", nil, 200, "<!doctype html>about", "text/html; charset=utf-8", "no-cache"},
		{"/assets/index-BkRj3xGh.js", nil, 200, "console.log('app')", "text/javascript; charset=utf-8", immutable},
		{"/assets/index-BkRj3xGh.css", nil, 200, "body{}", "text/css; charset=utf-8", immutable},
		{"/assets/with%20space-BkRj3xGh.js", nil, 200, "space", "text/javascript; charset=utf-8", immutable},
		{
			"/assets/sub/worker.4f3a2b1c9d8e7f60.chunk.js", nil,
			200, "worker", "text/javascript; charset=utf-8", immutable,
		},
		{"/favicon.svg", nil, 200, "<svg/>", "image/svg+xml", "no-cache"},
		{"/sw.js", nil, 200, "// worker", "text/javascript; charset=utf-8", "no-cache"},
		{"/fonts/Inter-SemiBold.woff2", nil, 200, "font", "font/woff2", "no-cache"},
		{"/assets/data.unknownext", nil, 200, "data", "application/octet-stream", "no-cache"},
		{"/.well-known/security.txt", nil, 200, "Contact:", "text/plain; charset=utf-8", "no-cache"},
		{"/.well-known/apple-app-site-association", nil, 200, "{}", "application/json", "no-cache"},

		// Places in the app, for navigations only.
		{"/orders/17", []string{navigate}, 200, "index", "text/html; charset=utf-8", "no-cache"},
		{"/orders//42", []string{navigate}, 200, "index", "text/html; charset=utf-8", "no-cache"},
		{"//orders/42", []string{navigate}, 200, "index", "text/html; charset=utf-8", "no-cache"},
		{"/files/group%2Fproject", []string{navigate}, 200, "index", "text/html; charset=utf-8", "no-cache"},
		{"/search/a%2520b", []string{navigate}, 200, "index", "text/html; charset=utf-8", "no-cache"},
		{"/files/a%5Cb", []string{navigate}, 200, "index", "text/html; charset=utf-8", "no-cache"},
		{"/caf%e9", []string{navigate}, 200, "index", "text/html; charset=utf-8", "no-cache"},
		{"/orders//42", nil, 404, "", "", ""},
		{"/orders//.env", []string{navigate}, 404, "", "", ""},
		{"//.env", []string{navigate}, 404, "", "", ""},
		{"/orders/", []string{navigate}, 200, "index", "text/html; charset=utf-8", "no-cache"},
		{"/people", []string{navigate}, 200, "<!doctype html>people", "text/html; charset=utf-8", "no-cache"},
		{"/people/", []string{navigate}, 200, "<!doctype html>people", "text/html; charset=utf-8", "no-cache"},
		{"/people/jane.doe", []string{navigate}, 200, "index", "text/html; charset=utf-8", "no-cache"},
		{"/docs/v1.2", []string{navigate}, 200, "index", "text/html; charset=utf-8", "no-cache"},
		{
			"/orders/17", []string{"Accept: text/html,application/xhtml+xml,*/*;q=0.8"},
			200, "index", "text/html; charset=utf-8", "no-cache",
		},
		{"/orders/17", nil, 404, "", "", ""},
		{"/orders/17", []string{"Accept: */*"}, 404, "", "", ""},
		{"/orders/17", []string{"Accept: application/json"}, 404, "", "", ""},
		{"/orders/17", []string{"Sec-Fetch-Mode: cors", "Accept: text/html"}, 404, "", "", ""},
		{"/orders/17", []string{"Sec-Fetch-Mode: no-cors", "Accept: text/html"}, 404, "", "", ""},
		{"/people/", nil, 200, "<!doctype html>people", "text/html; charset=utf-8", "no-cache"},
		{"/people%2Findex.html", []string{navigate}, 404, "", "", ""},

		// A missing asset is 404, for a navigation too.
		{"/assets/index-OLDhash1.js", nil, 404, "", "", ""},
		{"/assets/index-OLDhash1.js", []string{navigate}, 404, "", "", ""},
		{"/logo.PNG", []string{navigate}, 404, "", "", ""},
		{"/data.json", []string{navigate}, 404, "", "", ""},
		{"/sw.js/", []string{navigate}, 404, "", "", ""},
		{"/old.html", []string{navigate}, 404, "", "", ""},

		// Not public.
		{"/.env", []string{navigate}, 404, "", "", ""},
		{"/.git/config", []string{navigate}, 404, "", "", ""},
		{"/.git", []string{navigate}, 404, "", "", ""},
		{"/.gitignore", []string{navigate}, 404, "", "", ""},
		{"/assets/.hidden.js", nil, 404, "", "", ""},
		{"/.well-known/.private", nil, 404, "", "", ""},
		{"/docs/.well-known/security.txt", nil, 404, "", "", ""},
		{"/assets", nil, 404, "", "", ""},
		{"/assets/", nil, 404, "", "", ""},
		{"/assets/index-BkRj3xGh.js.map", nil, 404, "", "", ""},
		{"/assets/index-BkRj3xGh.js.map.gz", nil, 404, "", "", ""},
		{"/assets/LEGACY.JS.MAP", nil, 404, "", "", ""},
		{"/server.key", nil, 404, "", "", ""},
		{"/server.key", []string{navigate}, 404, "", "", ""},
		{"/assets/Client.PEM", nil, 404, "", "", ""},
		{"/key.p12.gz", nil, 404, "", "", ""},
		{"/keynote", nil, 200, "<!doctype html>keynote", "text/html; charset=utf-8", "no-cache"},

		// Path traversal.
		{"/../web.go", []string{navigate}, 404, "", "", ""},
		{"/assets/../../web.go", []string{navigate}, 404, "", "", ""},
		{"/%2e%2e/web.go", []string{navigate}, 404, "", "", ""},
		{"/..%2fweb.go", []string{navigate}, 404, "", "", ""},
		{"/assets/..%5c..%5cweb.go", []string{navigate}, 404, "", "", ""},
		{"//index.html", []string{navigate}, 404, "", "", ""},
		{"/assets//index-BkRj3xGh.js", []string{navigate}, 404, "", "", ""},
		{"/./index.html", []string{navigate}, 404, "", "", ""},
		{"/index.html%00.js", []string{navigate}, 404, "", "", ""},
	} {
		for _, method := range []string{"GET", "HEAD"} {
			t.Run(strings.Join(append([]string{method, tt.path}, tt.headers...), " "), func(t *testing.T) {
				resp := do(h, method, tt.path, tt.headers...)
				if resp.StatusCode != tt.status {
					t.Fatalf("got status %d, want %d", resp.StatusCode, tt.status)
				}
				if tt.status != 200 {
					wantHeader(t, resp, "Cache-Control", "no-store")
					wantHeader(t, resp, "Content-Type", "text/plain; charset=utf-8")
					return
				}
				want := tt.body
				if want == "index" {
					want = indexHTML
				}
				wantHeader(t, resp, "Content-Length", fmt.Sprint(len(want)))
				if method == "HEAD" {
					want = ""
				}
				if got := body(t, resp); got != want {
					t.Errorf("got body %q, want %q", got, want)
				}
				wantHeader(t, resp, "Content-Type", tt.kind)
				wantHeader(t, resp, "Cache-Control", tt.cache)
				if resp.Header.Get("ETag") == "" {
					t.Error("got no ETag")
				}
			})
		}
	}
}

func TestSourceMaps(t *testing.T) {
	h := newHandler(t, web.Config{FS: app(), SourceMaps: true})
	resp := do(h, "GET", "/assets/index-BkRj3xGh.js.map")
	if resp.StatusCode != 200 {
		t.Fatalf("got status %d, want 200", resp.StatusCode)
	}
	wantHeader(t, resp, "Content-Type", "application/json")
}

func TestMethods(t *testing.T) {
	for name, h := range map[string]http.Handler{
		"Handler": newHandler(t, web.Config{FS: app()}),
		"Client":  web.Client(),
	} {
		for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY"} {
			resp := do(h, method, "/", navigate)
			if resp.StatusCode != 405 {
				t.Errorf("%s %s: got status %d, want 405", name, method, resp.StatusCode)
			}
			wantHeader(t, resp, "Allow", "GET, HEAD")
		}
	}
}

func TestSecurityHeaders(t *testing.T) {
	h := newHandler(t, web.Config{FS: app()})
	for _, resp := range []*http.Response{
		do(h, "GET", "/"),
		do(h, "GET", "/orders/17", navigate),
		do(h, "GET", "/assets/index-BkRj3xGh.js"),
		do(h, "GET", "/assets/index-BkRj3xGh.js", "Range: bytes=0-1"),
		do(h, "GET", "/assets/index-BkRj3xGh.js", "Range: bytes=99999-"),
		do(h, "GET", "/", "If-None-Match: *"),
		do(h, "GET", "/missing.js"),
		do(h, "POST", "/"),
	} {
		wantHeader(t, resp, "X-Content-Type-Options", "nosniff")
		wantHeader(t, resp, "X-Frame-Options", "DENY")
		wantHeader(t, resp, "Referrer-Policy", "no-referrer")
		wantHeader(t, resp, "Cross-Origin-Opener-Policy", "same-origin")
		wantHeader(t, resp, "Cross-Origin-Resource-Policy", "same-origin")
		wantHeader(t, resp, "Strict-Transport-Security", "")
		if policy := resp.Header.Values("Permissions-Policy"); len(policy) != 1 ||
			!strings.Contains(policy[0], "geolocation=()") {
			t.Errorf("%d: got Permissions-Policy %q", resp.StatusCode, policy)
		}
		if csp := resp.Header.Values("Content-Security-Policy"); len(csp) != 1 ||
			!strings.Contains(csp[0], "frame-ancestors 'none'") {
			t.Errorf("%d: got Content-Security-Policy %q", resp.StatusCode, csp)
		}
		for _, name := range []string{
			"Server", "X-Powered-By", "X-XSS-Protection", "Set-Cookie", "Last-Modified", "Service-Worker-Allowed",
		} {
			wantHeader(t, resp, name, "")
		}
	}
}

func TestStrictTransportSecurity(t *testing.T) {
	h := newHandler(t, web.Config{FS: app(), HSTS: "max-age=31536000; includeSubDomains"})
	for _, target := range []string{"/", "/missing.js"} {
		wantHeader(t, do(h, "GET", target), "Strict-Transport-Security", "max-age=31536000; includeSubDomains")
	}
}

func TestConditionalAndRangeRequests(t *testing.T) {
	h := newHandler(t, web.Config{FS: app()})
	const path = "/favicon.svg"
	etag := do(h, "GET", path).Header.Get("ETag")
	for _, tt := range []struct {
		name   string
		header string
		status int
		body   string
	}{
		{"known", "If-None-Match: " + etag, 304, ""},
		{"known among others", `If-None-Match: "x", ` + etag, 304, ""},
		{"unknown", `If-None-Match: "x"`, 200, "<svg/>"},
		{"a time is no validator", "If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT", 200, "<svg/>"},
		{"match", "If-Match: " + etag, 200, "<svg/>"},
		{"no match", `If-Match: "x"`, 412, ""},
		{"range", "Range: bytes=1-3", 206, "svg"},
		{"suffix", "Range: bytes=-2", 206, "/>"},
		{"beyond the end", "Range: bytes=99-", 416, "*"},
		{"beyond the end, and not", "Range: bytes=99-,1-3", 206, "svg"},
		{"an unknown unit", "Range: items=1-3", 200, "<svg/>"}, // RFC 9110 14.2: MUST ignore
		{"a unit that begins with bytes", "Range: bytess=1-3", 200, "<svg/>"},
		{"the last 0 bytes", "Range: bytes=-0", 200, "<svg/>"},
		{"the last 0 bytes and more", "Range: bytes=1-3, -00", 200, "<svg/>"},
		{"the last 10 bytes", "Range: bytes=-10", 206, "<svg/>"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			resp := do(h, "GET", path, tt.header)
			if resp.StatusCode != tt.status {
				t.Fatalf("got status %d, want %d", resp.StatusCode, tt.status)
			}
			if got := body(t, resp); tt.body != "*" && got != tt.body {
				t.Errorf("got body %q, want %q", got, tt.body)
			}
		})
	}
}

// compressed returns the app with siblings for one script.
func compressed() fstest.MapFS {
	files := app()
	var gz bytes.Buffer
	w := gzip.NewWriter(&gz)
	io.WriteString(w, "console.log('app')")
	w.Close()
	files["assets/index-BkRj3xGh.js.gz"] = &fstest.MapFile{Data: gz.Bytes()}
	files["assets/index-BkRj3xGh.js.br"] = &fstest.MapFile{Data: []byte("brotli")} // no test decodes it
	return files
}

func TestCompressedSiblings(t *testing.T) {
	files := compressed()
	server := httptest.NewServer(newHandler(t, web.Config{FS: files}))
	defer server.Close()
	client := &http.Client{Transport: &http.Transport{DisableCompression: true}}
	const name = "assets/index-BkRj3xGh.js"
	get := func(t *testing.T, method string, headers ...string) *http.Response {
		t.Helper()
		r, err := http.NewRequest(method, server.URL+"/"+name, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range headers {
			field, value, _ := strings.Cut(line, ": ")
			r.Header.Add(field, value)
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	etags := make(map[string]string) // :: coding → ETag
	for _, tt := range []struct{ accept, coding string }{
		{"", ""},
		{"identity", ""},
		{"zstd", ""},
		{"gzip", "gzip"},
		{"GZIP", "gzip"},
		{"gzip, deflate, br, zstd", "br"},
		{"br;q=0.1, gzip;q=1.0", "gzip"},
		{"br;q=0.9, identity", ""},
		{"gzip;q=0.5, identity;q=0.2", "gzip"},
		{"br;q=0, gzip", "gzip"},
		{"br; q=0.000 , gzip;Q=0.5", "gzip"},
		{"*", "br"},
		{"*, br;q=0", "gzip"},
		{"br;q=0, *", "gzip"},
		{"*;q=0", ""},
		{"br;q=nonsense, gzip", "gzip"},
	} {
		for _, method := range []string{"GET", "HEAD"} {
			t.Run(method+" "+tt.accept, func(t *testing.T) {
				resp := get(t, method, "Accept-Encoding: "+tt.accept)
				suffix := map[string]string{"": "", "br": ".br", "gzip": ".gz"}[tt.coding]
				want := files[name+suffix].Data
				if resp.StatusCode != 200 || resp.ContentLength != int64(len(want)) {
					t.Errorf("got status %d and length %d, want 200 and %d",
						resp.StatusCode, resp.ContentLength, len(want))
				}
				if got := body(t, resp); method == "GET" && got != string(want) {
					t.Errorf("got body %q, want %q", got, want)
				}
				wantHeader(t, resp, "Content-Encoding", tt.coding)
				wantHeader(t, resp, "Vary", "Accept-Encoding")
				wantHeader(t, resp, "Content-Type", "text/javascript; charset=utf-8")
				wantHeader(t, resp, "Cache-Control", immutable)
				etags[tt.coding] = resp.Header.Get("ETag")
			})
		}
	}
	if len(etags) != 3 || etags["br"] == etags["gzip"] || etags["br"] == etags[""] || etags["gzip"] == etags[""] {
		t.Errorf("got ETags %v, want three", etags)
	}

	for _, tt := range []struct {
		header string
		status int
		body   string
	}{
		{"Range: bytes=0-2", 206, "bro"},
		{"Range: bytes=99-", 416, "*"},
		{"If-None-Match: " + etags["br"], 304, ""},
		{"If-None-Match: " + etags["gzip"], 200, "brotli"},
		{"If-Match: " + etags["br"], 200, "brotli"},
		{`If-Match: "x"`, 412, ""},
	} {
		t.Run(tt.header, func(t *testing.T) {
			resp := get(t, "GET", "Accept-Encoding: br", tt.header)
			if resp.StatusCode != tt.status {
				t.Fatalf("got status %d, want %d", resp.StatusCode, tt.status)
			}
			if got := body(t, resp); tt.body != "*" && got != tt.body {
				t.Errorf("got body %q, want %q", got, tt.body)
			}
		})
	}
}

func TestOutdatedSiblingIsIgnored(t *testing.T) {
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		name     string
		older    time.Duration
		encoding string
	}{
		{"written after the file", -time.Hour, "br"},
		{"copied together", 5 * time.Second, "br"},
		{"left from an earlier build", time.Hour, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			files := app()
			files["sw.js"].ModTime = now
			files["sw.js.br"] = &fstest.MapFile{Data: []byte("brotli"), ModTime: now.Add(-tt.older)}
			resp := do(newHandler(t, web.Config{FS: files}), "GET", "/sw.js", "Accept-Encoding: br")
			wantHeader(t, resp, "Content-Encoding", tt.encoding)
		})
	}
}

func TestLargeFileIsStreamed(t *testing.T) {
	dir := writeApp(t)
	large := bytes.Repeat([]byte("0123456789abcdef"), 1<<17)
	file := filepath.Join(dir, "video.mp4")
	write(t, file, large)
	h := newHandler(t, web.Config{Dir: dir})
	resp := do(h, "GET", "/video.mp4", "Range: bytes=1048576-1048580")
	if got := body(t, resp); resp.StatusCode != 206 || got != "01234" {
		t.Errorf("got %d %q, want 206 and 01234", resp.StatusCode, got)
	}
	etag := resp.Header.Get("ETag")
	if resp := do(h, "GET", "/video.mp4", "If-None-Match: "+etag); etag == "" || resp.StatusCode != 304 {
		t.Errorf("got %d for ETag %q, want 304", resp.StatusCode, etag)
	}
	if err := os.Chtimes(file, time.Time{}, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if resp := do(h, "GET", "/video.mp4", "If-None-Match: "+etag); resp.StatusCode != 200 {
		t.Errorf("got %d after the file changed, want 200", resp.StatusCode)
	}
}

// writeApp puts the app into a directory.
func writeApp(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "dist")
	if err := os.CopyFS(dir, app()); err != nil {
		t.Fatal(err)
	}
	return dir
}

func write(t *testing.T, name string, content []byte) {
	t.Helper()
	if err := os.WriteFile(name, content, 0o666); err != nil {
		t.Fatal(err)
	}
}

// age makes a file older than the time within which a deploy may still be
// writing it.
func age(t *testing.T, name string) {
	t.Helper()
	setModTime(t, name, time.Now().Add(-time.Minute))
}

// writeNow writes a file that counts as just written, however slow the test is.
func writeNow(t *testing.T, name, content string) {
	t.Helper()
	write(t, name, []byte(content))
	setModTime(t, name, time.Now().Add(time.Minute))
}

func setModTime(t *testing.T, name string, at time.Time) {
	t.Helper()
	if err := os.Chtimes(name, at, at); err != nil {
		t.Fatal(err)
	}
}

func TestBrowsersDoNotKeepAPartOfAFile(t *testing.T) {
	dir := writeApp(t)
	h := newHandler(t, web.Config{Dir: dir})
	for _, name := range []string{"app.js", "assets/new-BkRj3xGh.js"} {
		file := filepath.Join(dir, name)
		wantPart := func(want, cache, coding string) {
			t.Helper()
			resp := do(h, "GET", "/"+name, "Accept-Encoding: br")
			if got := body(t, resp); got != want {
				t.Errorf("%s: got %q, want %q", name, got, want)
			}
			wantHeader(t, resp, "Cache-Control", cache)
			wantHeader(t, resp, "Content-Encoding", coding)
		}
		cache := "no-cache"
		writeNow(t, file, "a par")
		wantPart("a par", cache, "")
		writeNow(t, file, "a part and the rest")
		age(t, file)
		if strings.Contains(name, "-") {
			cache = immutable
		}
		wantPart("a part and the rest", cache, "")
		writeNow(t, file+".br", "br")
		wantPart("a part and the rest", cache, "")
		writeNow(t, file+".br", "brotli")
		age(t, file+".br")
		wantPart("brotli", cache, "br")
	}
}

// What was there before the handler is complete, however new it is.
func TestKeepsNewFilesFromBeforeTheHandler(t *testing.T) {
	dir := writeApp(t)
	for _, name := range []string{"new-BkRj3xGh.js", "new-BkRj3xGh.js.br"} {
		file := filepath.Join(dir, "assets", name)
		write(t, file, []byte(name))
		setModTime(t, file, time.Now().Add(-100*time.Millisecond))
	}
	resp := do(newHandler(t, web.Config{Dir: dir}), "GET", "/assets/new-BkRj3xGh.js", "Accept-Encoding: br")
	wantHeader(t, resp, "Cache-Control", immutable)
	wantHeader(t, resp, "Content-Encoding", "br")
	if got := body(t, resp); got != "new-BkRj3xGh.js.br" {
		t.Errorf("got %q, want the sibling", got)
	}
}

func TestDeployIsVisibleOnNextLoad(t *testing.T) {
	const next = "<!doctype html><script>next()</script>"
	for _, tt := range []struct {
		name   string
		deploy func(t *testing.T, dir string)
	}{
		{"a file is overwritten, with the same time", func(t *testing.T, dir string) {
			index := filepath.Join(dir, "index.html")
			info, err := os.Stat(index)
			if err != nil {
				t.Fatal(err)
			}
			write(t, index, []byte(next))
			if err := os.Chtimes(index, info.ModTime(), info.ModTime()); err != nil {
				t.Fatal(err)
			}
		}},
		{"the directory is removed and created again", func(t *testing.T, dir string) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(dir, 0o777); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(dir, "index.html"), []byte(next))
		}},
		{"a link is changed to another directory", func(t *testing.T, dir string) {
			if err := os.Rename(dir, dir+".1"); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(dir+".2", 0o777); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(dir+".2", "index.html"), []byte(next))
			if err := os.Symlink(dir+".2", dir); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := writeApp(t)
			h := newHandler(t, web.Config{Dir: dir})
			etag := do(h, "GET", "/orders", navigate).Header.Get("ETag")
			tt.deploy(t, dir)
			resp := do(h, "GET", "/orders", navigate, "If-None-Match: "+etag)
			if got := body(t, resp); got != next {
				t.Errorf("got %d %q, want the new index.html", resp.StatusCode, got)
			}
			if csp := resp.Header.Get("Content-Security-Policy"); !strings.Contains(csp, hash("next()")) {
				t.Errorf("got policy %q, want one that allows the new script", csp)
			}
		})
	}
}

func TestDuringDeploy(t *testing.T) {
	dir := writeApp(t)
	var log bytes.Buffer
	h := newHandler(t, web.Config{Dir: dir, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"/", "/orders"} {
		resp := do(h, "GET", target, navigate)
		if resp.StatusCode != 503 {
			t.Errorf("%s: got status %d, want 503", target, resp.StatusCode)
		}
		wantHeader(t, resp, "Retry-After", "2")
		wantHeader(t, resp, "Cache-Control", "no-store")
	}
	if !strings.Contains(log.String(), "the app has no index.html") {
		t.Errorf("the log has no error about index.html: %s", &log)
	}
	if resp := do(h, "GET", "/assets/index-BkRj3xGh.js"); resp.StatusCode != 404 {
		t.Errorf("asset: got status %d, want 404", resp.StatusCode)
	}
}

// failingFS fails to open some files.
type failingFS struct {
	fs.FS
	errs map[string]error
}

func (f failingFS) Open(name string) (fs.File, error) {
	if err := f.errs[name]; err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return f.FS.Open(name)
}

// A 404 would be wrong: the file may exist.
func TestAFileThatCannotBeOpenedNowIsUnavailable(t *testing.T) {
	t.Parallel()
	for _, err := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EIO, syscall.ESTALE} {
		var log bytes.Buffer
		files := failingFS{app(), map[string]error{}}
		h := newHandler(t, web.Config{FS: files, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		for failing, target := range map[string]string{
			"favicon.svg": "/favicon.svg", "index.html": "/", "404.html": "/missing", "about": "/about",
		} {
			clear(files.errs)
			files.errs[failing] = err
			log.Reset()
			resp := do(h, "GET", target, navigate)
			if resp.StatusCode != 503 {
				t.Errorf("%s: %v: got status %d, want 503", target, err, resp.StatusCode)
			}
			wantHeader(t, resp, "Retry-After", "2")
			wantHeader(t, resp, "Cache-Control", "no-store")
			if !strings.Contains(log.String(), "file of the app not served") {
				t.Errorf("%s: %v: got log %q, want the error", target, err, &log)
			}
		}
	}
}

func TestSymlinksStayInside(t *testing.T) {
	dir := writeApp(t)
	outside := t.TempDir()
	write(t, filepath.Join(outside, "secret.txt"), []byte("secret"))
	for link, target := range map[string]string{
		"secret.txt":   filepath.Join(outside, "secret.txt"),
		"outside":      outside,
		"relative.txt": filepath.Join("..", filepath.Base(outside), "secret.txt"),
		"inside.svg":   "favicon.svg",
		"loop.txt":     "loop.txt",
	} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	h := newHandler(t, web.Config{Dir: dir})
	for path, want := range map[string]int{
		"/secret.txt": 404, "/outside/secret.txt": 404, "/relative.txt": 404, "/loop.txt": 404,
		"/inside.svg": 200, "/favicon.svg/x.svg": 404,
	} {
		if resp := do(h, "GET", path); resp.StatusCode != want {
			t.Errorf("%s: got status %d, want %d", path, resp.StatusCode, want)
		}
	}
	if resp := do(h, "GET", "/"+strings.Repeat("x", 4000)+".js"); resp.StatusCode != 404 {
		t.Errorf("a name too long for the file system: got status %d, want 404", resp.StatusCode)
	}
}

// denied is an app with files that cannot be read.
type denied struct{ fs.FS }

func (d denied) Open(name string) (fs.File, error) {
	if name != "index.html" {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
	}
	return d.FS.Open(name)
}

func TestPermissionDenied(t *testing.T) {
	var log bytes.Buffer
	h := newHandler(t, web.Config{FS: denied{app()}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	resp := do(h, "GET", "/favicon.svg")
	if resp.StatusCode != 500 || strings.Contains(body(t, resp), "permission") {
		t.Errorf("got status %d, want 500 without the cause", resp.StatusCode)
	}
	if !strings.Contains(log.String(), "permission") {
		t.Errorf("the log does not have the cause: %s", &log)
	}
}

// withSource returns a configuration with another source for a directive.
func withSource(directive, source string) web.Config {
	return web.Config{FS: app(), CSP: map[string][]string{directive: {source}}}
}

func TestNewErrors(t *testing.T) {
	empty := t.TempDir()
	outer := filepath.Dir(writeApp(t))
	file := filepath.Join(empty, "file")
	noIndex := t.TempDir()
	write(t, file, nil)
	for _, tt := range []struct {
		name string
		cfg  web.Config
		want string
	}{
		{"neither Dir nor FS", web.Config{}, "Dir: exactly one of Dir, FS and URL is required"},
		{"Dir and FS", web.Config{Dir: outer, FS: app()}, "Dir: exactly one of Dir, FS and URL is required"},
		{
			"absent", web.Config{Dir: filepath.Join(noIndex, "dist")},
			fmt.Sprintf("Dir: %q does not exist: build the app first, "+
				"or name the directory that its build writes to",
				filepath.Join(noIndex, "dist")),
		},
		{"a file", web.Config{Dir: file}, fmt.Sprintf("Dir: %q is not a directory", file)},
		{
			"no index", web.Config{Dir: noIndex},
			fmt.Sprintf("Dir: %q has no index.html: build the app first, "+
				"or name the directory that its build writes to",
				noIndex),
		},
		{
			"parent of the build", web.Config{Dir: outer},
			fmt.Sprintf("Dir: %q has no index.html, but %q has one: use that directory",
				outer, filepath.Join(outer, "dist")),
		},
		{"no index in FS", web.Config{FS: fstest.MapFS{}}, "FS: open index.html: file does not exist"},
		{
			"referrer policy", web.Config{FS: app(), ReferrerPolicy: "never"},
			`ReferrerPolicy: "never" is not one of: no-referrer, same-origin, strict-origin, ` +
				"strict-origin-when-cross-origin, origin, origin-when-cross-origin, " +
				"no-referrer-when-downgrade, unsafe-url",
		},
		{
			"opener policy", web.Config{FS: app(), OpenerPolicy: "any"},
			`OpenerPolicy: "any" is not one of: same-origin, same-origin-allow-popups, ` +
				"noopener-allow-popups, unsafe-none",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, err := web.New(tt.cfg)
			if h != nil || err == nil || err.Error() != tt.want {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
	_, err := web.New(web.Config{Dir: file, ReferrerPolicy: "x", CSP: map[string][]string{"img-src": {"y"}}})
	if got := strings.Count(err.Error(), "\n") + 1; got != 3 {
		t.Errorf("got %d lines, want 3, one for each mistake: %v", got, err)
	}
}

// hash returns the source that allows a script.
func hash(script string) string {
	sum := sha256.Sum256([]byte(script))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// directive returns the sources of one directive of a policy.
func directive(policy, name string) []string {
	for d := range strings.SplitSeq(policy, "; ") {
		if fields := strings.Fields(d); fields[0] == name {
			return fields[1:]
		}
	}
	return nil
}

func TestInlineScriptHashes(t *testing.T) {
	for _, tt := range []struct {
		name string
		page string
		want []string
	}{
		{"none", indexHTML, nil},
		{"one", "<script>a()</script>", []string{"a()"}},
		{
			"several, one repeated", "<script>a()</script><p><script>b()</script><script>a()</script>",
			[]string{"a()", "b()"},
		},
		{"attributes", `<script type="module" data-x="a>b" async>a()</script>`, []string{"a()"}},
		{"single quotes", `<script data-x='">'>a()</script>`, []string{"a()"}},
		{"import map", `<script type="importmap">{"imports":{}}</script>`, []string{`{"imports":{}}`}},
		{"upper case", "<SCRIPT>a()</SCRIPT >", []string{"a()"}},
		{"white space counts", "<script>\n  a()\n</script\n>", []string{"\n  a()\n"}},
		{"line ends as normalized by browsers", "<script>\r\na()\r</script>", []string{"\na()\n"}},
		{"not only ASCII", "<script>a('ü')</script>", []string{"a('ü')"}},
		{"another element", "<scripty>a()</scripty>", nil},
		{"never closed", "<script>a()", nil},
		{"tags within", "<script>a('<b></b>')</script>", []string{"a('<b></b>')"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			files := app()
			files["index.html"].Data = []byte(tt.page)
			want := []string{"'self'"}
			for _, script := range tt.want {
				want = append(want, hash(script))
			}
			policy := do(newHandler(t, web.Config{FS: files}), "GET", "/").Header.Get("Content-Security-Policy")
			if got := directive(policy, "script-src"); !slices.Equal(got, want) {
				t.Errorf("got script-src %q, want %q", got, want)
			}
		})
	}
}

func TestPolicy(t *testing.T) {
	get := func(t *testing.T, cfg web.Config, target string) string {
		return do(newHandler(t, cfg), "GET", target).Header.Get("Content-Security-Policy")
	}
	strict := get(t, web.Config{FS: app()}, "/")
	want := "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; " +
		"font-src 'self' data:; connect-src 'self'; frame-src 'self'; media-src 'self' blob:; " +
		"worker-src 'self' blob:; manifest-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; " +
		"frame-ancestors 'none'"
	if strict != want {
		t.Errorf("got %s\nwant %s", strict, want)
	}
	if got := get(t, web.Config{FS: app()}, "/sw.js"); got != want {
		t.Errorf("a script: got %s\nwant %s", got, want)
	}

	fonts := get(t, web.Config{FS: app(), CSP: map[string][]string{"style-src": {"https://a.example"}}}, "/")
	if got := directive(fonts, "style-src"); strings.Join(got, " ") != "'self' 'unsafe-inline' https://a.example" {
		t.Errorf("style-src with an origin: got %q, want it after the default", got)
	}

	wide := get(t, web.Config{FS: app(), CSP: map[string][]string{
		"connect-src":               {"https://errors.example.com", "wss://live.example.com:8443"},
		"img-src":                   {"https://*.tiles.example.com", "blob:", "https:"},
		"script-src":                {"'wasm-unsafe-eval'", "https://cdn.example.com/lib/", "'self'"},
		"style-src":                 {hash("a{}")},
		"form-action":               {"https://id.example.com", "http://127.0.0.1:9000", "http://[::1]:9000"},
		"object-src":                {"'self'"},
		"frame-ancestors":           {"'self'", "https://portal.example.com"},
		"report-uri":                {"/csp", "https://errors.example.com/api/1/security/?sentry_key=abc"},
		"require-trusted-types-for": {"'script'"},
		"trusted-types":             {"angular", "dompurify"},
		"upgrade-insecure-requests": {},
	}}, "/")
	for name, want := range map[string][]string{
		"connect-src":               {"'self'", "https://errors.example.com", "wss://live.example.com:8443"},
		"img-src":                   {"'self'", "data:", "blob:", "https://*.tiles.example.com", "https:"},
		"script-src":                {"'self'", "'wasm-unsafe-eval'", "https://cdn.example.com/lib/"},
		"style-src":                 {"'self'", hash("a{}")},
		"form-action":               {"'self'", "https://id.example.com", "http://127.0.0.1:9000", "http://[::1]:9000"},
		"object-src":                {"'self'"},
		"frame-ancestors":           {"'self'", "https://portal.example.com"},
		"report-uri":                {"/csp", "https://errors.example.com/api/1/security/?sentry_key=abc"},
		"require-trusted-types-for": {"'script'"},
		"trusted-types":             {"angular", "dompurify"},
		"upgrade-insecure-requests": {},
	} {
		if got := directive(wide, name); !slices.Equal(got, want) || got == nil {
			t.Errorf("got %s %q, want %q", name, got, want)
		}
	}
}

func TestSourcesOfThePolicy(t *testing.T) {
	const accepted = ""
	for _, tt := range []struct{ directive, source, problem string }{
		{"script-src", "https://js.example.com", accepted},
		{"script-src", "https://*.example.com:*", accepted},
		{"script-src", "https://cdn.example.com/lib/a.js", accepted},
		{"script-src", "http://localhost:3000", accepted},
		{"script-src", "'unsafe-eval'", accepted},
		{"script-src", "blob:", accepted},
		{"script-src", "'report-sample'", accepted},
		{"script-src", hash("a()"), accepted},
		{"style-src", "https:", accepted},
		{"base-uri", "https://cdn.example.com", accepted},
		{"manifest-src", "https://cdn.example.com", accepted},
		{"form-action", "https:", accepted},

		{"script-src", "'unsafe-inline'", "would run every script"},
		{"script-src", "'strict-dynamic'", "would make browsers ignore 'self'"},
		{"script-src", "'nonce-abc'", "would be the same in each response"},
		{"script-src", "'unsafe-hashes'", "has no effect without the hashes"},
		{"script-src", "*", "list the origins"},
		{"script-src", "https:", "list the origins"},
		{"script-src", "data:", "list the origins"},
		{"script-src", "http://cdn.example.com", "use https"},
		{"script-src", "https://*.com", "whole top-level domain"},
		{"script-src", "https://*.co.uk", "whole top-level domain"},
		{"img-src", "https://*.CO.UK", "whole top-level domain"},
		{"img-src", "https://*.github.io", accepted},
		{"script-src", "https://*.localhost:3000", accepted},
		{"script-src", "https://a.example:99999", "is not a port"},
		{"connect-src", "wss://a.example:0", "is not a port"},
		{"script-src", "'NONCE-abc'", "is not an origin"},
		{"script-src", "'Unsafe-Inline'", "is not an origin"},
		{"script-src", "wasm-unsafe-eval", `needs single quotes: in YAML, write "'wasm-unsafe-eval'"`},
		{"script-src", "'sha256-short'", "is not an origin"},
		{"script-src", "https://a.example; script-src *", "semicolon"},
		{"script-src", "https://a.example,https://b.example", "a comma"},
		{"script-src", "https://a.example\r\nX: y", "white space"},
		{"script-src", "", "is not an origin"},
		{"img-src", "*", "list the origins, or https: for all of them"},
		{"img-src", "cdn.example.com", "has no scheme; write https://cdn.example.com"},
		{"img-src", "self", `write "'self'"`},
		{"img-src", "'none'", "leave the directive out"},
		{"object-src", "'none'", "leave the directive out"},
		{"img-src", hash("a()"), "is not an origin"},
		{"img-src", "https://*.intranet", "whole top-level domain"},
		{"img-src", "wss://a.example", "connect-src"},
		{"img-src", "https://user@a.example", "is not an origin"},
		{"frame-ancestors", "https:", "list the origins"},
		{"worker-src", "https:", "list the origins"},
		{"connect-src", "*", "https: for all"},
		{"report-uri", "https://user:secret@a.example/", "user name"},
		{"report-uri", "http://a.example/", "https"},
		{"report-uri", "//a.example/", "neither a path"},
		{"report-uri", "/a;b", "semicolons"},
		{"report-uri", "/ü", "is not a URL"},
		{"report-uri", "reports", "neither a path"},
		{"report-uri", "ftp:/reports", "neither a path"},
		{"report-uri", "https:/reports", "neither a path"},
		{"report-uri", "ftp://localhost/", "neither a path"},
		{"report-uri", "http://localhost:9000/", accepted},
		{"require-trusted-types-for", "script", "is not 'script'"},
		{"trusted-types", "a b", "name of a policy"},
		{"upgrade-insecure-requests", "https:", "no sources"},
		{"default-src", "https://a.example", "such as img-src"},
		{"script-src-elem", "https://a.example", "use script-src"},
		{"report-to", "x", "use report-uri"},
		{"sandbox", "allow-scripts", "origin"},
		{"img", "https://a.example", "not a directive"},
		{"img-src; script-src", "https://a.example", "not a directive"},
		{"IMG-SRC", "https://a.example", "not a directive"},
	} {
		_, err := web.New(withSource(tt.directive, tt.source))
		switch {
		case tt.problem == accepted && err != nil:
			t.Errorf("%s %s: got %v, want no error", tt.directive, tt.source, err)
		case tt.problem != accepted && (err == nil || !strings.Contains(err.Error(), tt.problem)):
			t.Errorf("%s %q: got %v, want %q in it", tt.directive, tt.source, err, tt.problem)
		}
		if e, ok := errors.AsType[*web.ConfigError](err); err != nil && (!ok || !strings.HasPrefix(e.Key, "CSP[")) {
			t.Errorf("%s %q: got key %v, want CSP[…]", tt.directive, tt.source, err)
		}
	}
}

func TestPolicyThatOnlyReports(t *testing.T) {
	h := newHandler(t, web.Config{FS: app(), CSPReportOnly: true})
	resp := do(h, "GET", "/")
	wantHeader(t, resp, "Content-Security-Policy", "")
	if got := resp.Header.Get("Content-Security-Policy-Report-Only"); !strings.Contains(got, "script-src 'self'") {
		t.Errorf("got report-only policy %q, want script-src in it", got)
	}
	wantHeader(t, resp, "X-Frame-Options", "DENY")
}

func TestHeadersThatAreConfigured(t *testing.T) {
	h := newHandler(t, web.Config{
		FS: app(), ReferrerPolicy: "strict-origin", OpenerPolicy: "same-origin-allow-popups",
		CSP: map[string][]string{"frame-ancestors": {"'self'"}},
		PermissionsPolicy: map[string][]string{
			"camera": {"self", "https://meet.example.com"}, "geolocation": {"*"}, "fullscreen": {}, "usb": {"self"},
		},
	})
	resp := do(h, "GET", "/")
	wantHeader(t, resp, "Referrer-Policy", "strict-origin")
	wantHeader(t, resp, "Cross-Origin-Opener-Policy", "same-origin-allow-popups")
	wantHeader(t, resp, "X-Frame-Options", "SAMEORIGIN")
	items := strings.Split(resp.Header.Get("Permissions-Policy"), ", ")
	for _, want := range []string{
		`camera=(self "https://meet.example.com")`, "geolocation=(*)", "fullscreen=()", "usb=(self)", "microphone=()",
	} {
		if !slices.Contains(items, want) {
			t.Errorf("got %q, want %q among them", items, want)
		}
	}
	framed := newHandler(t, web.Config{
		FS: app(), CSP: map[string][]string{"frame-ancestors": {"https://portal.example.com"}},
	})
	wantHeader(t, do(framed, "GET", "/"), "X-Frame-Options", "")
	for feature, who := range map[string]string{"camera": "'self'", "telepathy": "self", "usb": "https://a.example/x"} {
		_, err := web.New(web.Config{FS: app(), PermissionsPolicy: map[string][]string{feature: {who}}})
		if err == nil || !strings.Contains(err.Error(), "PermissionsPolicy["+feature+"]") {
			t.Errorf("%s for %s: got %v, want a mistake", feature, who, err)
		}
	}
}

func TestRiskySettingsAreWarnedOf(t *testing.T) {
	if got := (web.Config{CSP: map[string][]string{"img-src": {"https:"}}}).Warnings(); len(got) > 0 {
		t.Errorf("images from anywhere: got %v, want no warning", got)
	}
	for name, cfg := range map[string]web.Config{
		"CSP[script-src]":  withSource("script-src", "'unsafe-eval'"),
		"CSP[connect-src]": withSource("connect-src", "https:"),
		"CSP[style-src]":   withSource("style-src", "https:"),
		"CSP[frame-src]":   withSource("frame-src", "https:"),
		"CSP[form-action]": withSource("form-action", "https:"),
		"CSPReportOnly":    {CSPReportOnly: true},
		"ReferrerPolicy":   {ReferrerPolicy: "unsafe-url"},
		"OpenerPolicy":     {OpenerPolicy: "unsafe-none"},
	} {
		got := cfg.Warnings()
		if len(got) != 1 || got[0].Key != name || strings.HasSuffix(got[0].Err.Error(), " ") {
			t.Errorf("%s: got %v, want one warning", name, got)
		}
	}
	for source, want := range map[string]int{
		"blob:": 1, "wss://a.example": 0, "https://unpkg.com": 1, "https://unpkg.com/": 1,
		"https://unpkg.com/vue@3.5.1/dist/vue.esm.js": 0, "https://js.example.com": 0,
		"https://*.github.io": 1, "https://*.example.com": 0, "https://*.localhost": 0,
	} {
		if got := withSource("script-src", source).Warnings(); len(got) != want {
			t.Errorf("%s: got %v, want %d warnings", source, got, want)
		}
	}
}

func TestBaseElement(t *testing.T) {
	files := app()
	files["index.html"].Data = []byte(`<!doctype html><base href="/"><script src=main.js></script>`)
	policy := do(newHandler(t, web.Config{FS: files}), "GET", "/").Header.Get("Content-Security-Policy")
	for name, want := range map[string]string{
		"base-uri": "'self'", "object-src": "'none'", "frame-ancestors": "'none'",
	} {
		if got := directive(policy, name); !slices.Equal(got, []string{want}) {
			t.Errorf("got %s %q, want %s", name, got, want)
		}
	}
}

func TestContentHashInName(t *testing.T) {
	for _, tt := range []struct {
		name string
		want bool
	}{
		{"assets/index-BkRj3xGh.js", true},     // Vite
		{"assets/index-C_5k-9aB.css", true},    // base64url with its own - and _
		{"assets/logo-D4xZ-_1q.svg", true},     //
		{"assets/a-b-c-BxKqRtYp.js", true},     // without a digit, not a word
		{"_app/entry/start.Bk3jXxGh.js", true}, // SvelteKit
		{"main-5VXQ4T7B.js", true},             // esbuild, Angular
		{"main.4f3a2b1c.js", true},             // webpack
		{"css/app.8e0d62a1.chunk.css", true},   //
		{"main.4f3a2b1c9d8e7f601234.js", true}, //
		{"_next/webpack-0f9e8d7c6b5a4321.js", true},
		{"_next/static/css/0f9e8d7c6b5a4321.css", true},
		{"static/media/logo.6ce24c58023cc2f8fd88fe9d219db6c6.svg", true},
		{"workbox-3e911b1d.js", true},
		{"chunk-QWERTYUI.js", true},                     // Angular, without a digit
		{"media/inter-GHTR3KSN.woff2", true},            // Angular
		{"_next/static/chunks/0cz1d0mv5g_q7.js", true},  // Next.js with Turbopack
		{"_next/static/chunks/2xe4tx9rkol9-.css", true}, //
		{"_next/static/chunks/turbopack-2u1d16houkiyo.js", true},
		{"_next/static/media/ticket.3xut0m9cz1nru.svg", true},
		{"_next/static/media/inter-s.p.3wryjvrj7ot6k.woff2", true},
		{"_next/static/media/79f9b672174387aa-s.p.woff2", true}, // Next.js with webpack
		{"_next/static/chunks/app/docs/[slug]/page-711076c373ed5cda.js", true},
		{"_next/static/css/8df9770fd9120422.css", true},
		{"_astro/extra.BzI9LrnK.js", true},                                      // Astro
		{"_astro/index.astro_astro_type_script_index_0_lang._ku9HDrc.js", true}, //
		{"_nuxt/DlAUqK2U.js", true},                                             // Nuxt
		{"_nuxt/Cocynuea.js", true},                                             //
		{"_nuxt/error-404.C-Ezrlz-.css", true},                                  //
		{"_astro/extra.C_lUCyts.js", true},                                      //
		{"_app/immutable/chunks/BzI9LrnK.js", true},                             // SvelteKit
		{"_app/immutable/nodes/1.Btokdkou.js", true},                            //
		{"_app/immutable/entry/start.Ddkf7_V5.js", true},                        //
		{"_nuxt/builds/latest.json", false},
		{"_nuxt/manifest.json", false},
		{"_app/version.json", false},
		{"_next/static/7HAGbCahJToLhxFrXGuTb/_buildManifest.js", false}, // the hash is in the directory
		{"_next/static/chunks/main.js", false},
		{"_astro/logo.png", false},
		{"chunks/0cz1d0mv5g_q7.js", false}, // not of Next.js
		{"main-VERSIONS.json", false},
		{"registerSW.js", false},
		{"ngsw-worker.js", false},
		{"ngsw.json", false},
		{"manifest.webmanifest", false},
		{"index.html", false},
		{"main.js", false},
		{"sw.js", false},
		{"service-worker.js", false},
		{"jquery-3.7.1.min.js", false},
		{"my-component.js", false},
		{"dark-settings.css", false},
		{"android-chrome-512x512.png", false},
		{"photo-1024x768.jpg", false},
		{"Inter-SemiBold.woff2", false},
		{"Inter-Variable.woff2", false},
		{"web-HTMLPage.js", false},
		{"device-iPhone15.png", false},
		{"news-Version2.json", false},
		{"report-20260131.pdf", false},
		{"report-2026-01-31.pdf", false},
		{"report-Jan-2026.pdf", false},
		{"list-VERSIONS.json", false},
		{"x-deadbeef.js", false}, // hexadecimal, but a word
		{"4f3a2b1c.js", false},   // a name without a hash
		{"app.settings.json", false},
		{"site.webmanifest", false},
		{"LICENSE", false},
		{".well-known/security.txt", false},
		{"v1-BkRj3xGh/app.js", false}, // the hash is in the name of the directory
	} {
		files := app()
		files[tt.name] = &fstest.MapFile{Data: []byte("x")}
		resp := do(newHandler(t, web.Config{FS: files}), "GET", "/"+tt.name)
		if resp.StatusCode != 200 {
			t.Errorf("%s: got status %d, want 200", tt.name, resp.StatusCode)
		}
		if got := resp.Header.Get("Cache-Control") == immutable; got != tt.want {
			t.Errorf("%s: got immutable %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestClient(t *testing.T) {
	h := web.Client()
	for path, want := range map[string]struct{ contentType, content string }{
		"/bff/client.js":   {"text/javascript; charset=utf-8", "export function createClient"},
		"/bff/client.d.ts": {"text/plain; charset=utf-8", "export declare function createClient"},
	} {
		resp := do(h, "GET", path)
		content := body(t, resp)
		if resp.StatusCode != 200 || !strings.Contains(content, want.content) {
			t.Fatalf("%s: got status %d and %.60q, want the module", path, resp.StatusCode, content)
		}
		wantHeader(t, resp, "Content-Type", want.contentType)
		wantHeader(t, resp, "Cache-Control", "no-cache")
		wantHeader(t, resp, "X-Content-Type-Options", "nosniff")
		wantHeader(t, resp, "Cross-Origin-Resource-Policy", "same-origin")
		wantHeader(t, resp, "Vary", "Accept-Encoding")
		etag := resp.Header.Get("ETag")
		if again := do(h, "GET", path, "If-None-Match: "+etag); etag == "" || again.StatusCode != 304 {
			t.Errorf("%s: got status %d for If-None-Match %q, want 304", path, again.StatusCode, etag)
		}
		if head := do(h, "HEAD", path); head.StatusCode != 200 || head.Header.Get("ETag") != etag {
			t.Errorf("HEAD %s: got status %d and ETag %q, want 200 and %q", path, head.StatusCode,
				head.Header.Get("ETag"), etag)
		}
		if part := do(h, "GET", path, "Range: items=0-1"); part.StatusCode != 200 {
			t.Errorf("%s: got status %d for a Range with an unknown unit, want 200", path, part.StatusCode)
		}
		compressed := do(h, "GET", path, "Accept-Encoding: gzip")
		wantHeader(t, compressed, "Content-Encoding", "gzip")
		if got := compressed.Header.Get("ETag"); got == etag {
			t.Errorf("%s: got the ETag of the plain file for the compressed one", path)
		}
		zr, err := gzip.NewReader(compressed.Body)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(zr); err != nil || string(got) != content {
			t.Errorf("%s: got %d other bytes when compressed, and %v", path, len(got), err)
		}
	}
}

// The prefix of the file that the broker serves is that of its URL.
func TestServedClientKnowsThatItIsServed(t *testing.T) {
	content := body(t, do(web.Client(), "GET", "/bff/client.js"))
	if n := strings.Count(content, "const served = import.meta.url;"); n != 1 {
		t.Errorf("got %d times const served = import.meta.url, want 1", n)
	}
}

func TestDemoHasNoInlineScripts(t *testing.T) {
	h := newHandler(t, web.Config{FS: web.Demo(), CSP: map[string][]string{"require-trusted-types-for": {"'script'"}}})
	page := do(h, "GET", "/", navigate)
	got := directive(page.Header.Get("Content-Security-Policy"), "script-src")
	if !slices.Equal(got, []string{"'self'"}) {
		t.Errorf("got script-src %q, want only 'self'", got)
	}
	html := body(t, page)
	for _, name := range []string{"/demo.css", "/demo.js", "/ticket.svg"} {
		if resp := do(h, "GET", name); resp.StatusCode != 200 {
			t.Errorf("%s: got status %d, want 200", name, resp.StatusCode)
		}
		if !strings.Contains(html, `"`+name+`"`) {
			t.Errorf("the page does not load %s", name)
		}
	}
}

func FuzzOnlyPublicFilesAreServed(f *testing.F) {
	for _, path := range []string{
		"/", "/assets/index-BkRj3xGh.js", "/.env", "/../secret.txt", "/assets/../.env", "/%2e%2e/secret.txt",
		"//", "/.git/config", "/a/./b", "/\x00", `/..\secret.txt`, "/assets/index-BkRj3xGh.js.map.br",
	} {
		f.Add(path, "gzip, br;q=0.5", true)
	}
	dir := filepath.Join(f.TempDir(), "dist")
	files := compressed()
	files[".env"].Data = []byte("not public")
	files[".git/config"].Data = []byte("not public")
	files["assets/index-BkRj3xGh.js.map"].Data = []byte("not public")
	if err := os.CopyFS(dir, files); err != nil {
		f.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(dir), "secret.txt"), []byte("not public"), 0o666); err != nil {
		f.Fatal(err)
	}
	h, err := web.New(web.Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, path, acceptEncoding string, navigation bool) {
		r := httptest.NewRequest("GET", "/", nil)
		r.URL.Path = path
		r.Header.Set("Accept-Encoding", acceptEncoding)
		if navigation {
			r.Header.Set("Sec-Fetch-Mode", "navigate")
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != 200 && w.Code != 404 {
			t.Errorf("%q: got status %d, want 200 or 404", path, w.Code)
		}
		if strings.Contains(w.Body.String(), "not public") {
			t.Errorf("%q: got a file that is not public", path)
		}
	})
}
