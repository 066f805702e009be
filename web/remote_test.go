package web_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/andybalholm/brotli"

	"github.com/cloakroom-bff/cloakroom/web"
)

func TestURLOfTheAppTellsDevServerAndCDNApart(t *testing.T) {
	t.Parallel()
	for url, dev := range map[string]bool{
		"http://localhost:5173": true, "http://127.0.0.1:4200/": true, "http://[::1]:3000": true,
		"https://localhost:5173": true, "http://app.localhost": true, "http://192.168.1.7:5173": true,
		"http://vite:5173": true, "http://host.docker.internal:5173": true, "http://[fd00::1]:5173": true,
		"https://cdn.example.com": false, "https://cdn.example.com/app/v1": false, "https://10.0.0.1": false,
	} {
		h, err := web.New(web.Config{URL: url})
		if err != nil {
			t.Errorf("%s: %v", url, err)
			continue
		}
		if got := h.IsDevServer(); got != dev {
			t.Errorf("%s: is a development server: got %v, want %v", url, got, dev)
		}
	}
	for _, url := range []string{
		"http://cdn.example.com", "http://203.0.113.7", "localhost:5173", "ftp://localhost", "unix:/run/vite.sock",
		"https://cdn.example.com/?v=1", "https://cdn.example.com/#x", "http://", "https://user:pw@cdn.example.com",
	} {
		if _, err := web.New(web.Config{URL: url}); err == nil {
			t.Errorf("%s: got no error", url)
		}
	}
	if _, err := web.New(web.Config{URL: "http://localhost:5173", FS: app()}); err == nil {
		t.Error("URL and FS: got no error")
	}
}

func TestPolicyOfADevServersPageOnlyReports(t *testing.T) {
	t.Parallel()
	h, err := web.New(web.Config{URL: "http://localhost:5173", HSTS: "max-age=31536000"})
	if err != nil {
		t.Fatal(err)
	}
	page := http.Header{"Content-Type": {"text/html; charset=utf-8"}, "X-Frame-Options": {"ALLOWALL"}}
	h.SetHeader(page)
	report := page.Get("Content-Security-Policy-Report-Only")
	for _, want := range []string{
		"default-src 'self'", "script-src 'self' 'unsafe-inline'", "script-src-attr 'none'", "frame-ancestors 'none'",
	} {
		if !strings.Contains(report, want) {
			t.Errorf("policy: got %q, want %q in it", report, want)
		}
	}
	for name, want := range map[string]string{
		"Content-Security-Policy": "", "Strict-Transport-Security": "", "X-Frame-Options": "DENY",
		"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
	} {
		if got := page.Get(name); got != want {
			t.Errorf("%s of the page: got %q, want %q", name, got, want)
		}
	}
	script := http.Header{"Content-Type": {"text/javascript"}}
	h.SetHeader(script)
	if got := script.Get("Content-Security-Policy-Report-Only"); got != "" {
		t.Errorf("policy of a script: got %q, want none", got)
	}
}

// cdnServer is a CDN with a page that a test changes.
type cdnServer struct {
	reads   atomic.Int64
	respond atomic.Pointer[http.HandlerFunc]
}

func (s *cdnServer) set(h http.HandlerFunc) { s.respond.Store(&h) }

// RoundTrip implements http.RoundTripper, for tests with a clock of their own.
func (s *cdnServer) RoundTrip(r *http.Request) (*http.Response, error) {
	s.reads.Add(1)
	rec := httptest.NewRecorder()
	(*s.respond.Load())(rec, r)
	if rec.Code == http.StatusTeapot {
		return nil, io.ErrUnexpectedEOF
	}
	return rec.Result(), nil
}

func pageOf(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		w.Header().Set("ETag", `"`+text+`"`)
		if r.Header.Get("If-None-Match") == `"`+text+`"` {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		io.WriteString(w, text)
	}
}

func down(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }

// newCDNApp returns a Handler of an app on the CDN.
func newCDNApp(t *testing.T, cdn *cdnServer) *web.Handler {
	t.Helper()
	h, err := web.New(web.Config{URL: "https://cdn.example.com/app", Client: &http.Client{Transport: cdn},
		Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// navigation returns the response to a navigation.
func navigation(h http.Handler, path string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("GET", path, nil)
	r.Header.Set("Sec-Fetch-Mode", "navigate")
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return rec
}

func TestPageOfACDNIsKeptForAShortTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cdn := new(cdnServer)
		cdn.set(pageOf("one"))
		h := newCDNApp(t, cdn)
		for range 5 {
			if got := navigation(h, "/orders/1").Body.String(); got != "one" {
				t.Errorf("got %q, want the page", got)
			}
		}
		if got := cdn.reads.Load(); got != 1 {
			t.Errorf("five navigations: got %d reads, want 1", got)
		}
		time.Sleep(11 * time.Second)
		if got := navigation(h, "/").Body.String(); got != "one" || cdn.reads.Load() != 2 {
			t.Errorf("unchanged: got %q after %d reads, want one after 2", got, cdn.reads.Load())
		}
		cdn.set(pageOf("two"))
		time.Sleep(11 * time.Second)
		if got := navigation(h, "/").Body.String(); got != "two" {
			t.Errorf("after a deploy: got %q, want two", got)
		}
	})
}

func TestPageOfACDNOutlivesAnOutageForAnHour(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cdn := new(cdnServer)
		cdn.set(down)
		h := newCDNApp(t, cdn)
		if got := navigation(h, "/").Code; got != 503 {
			t.Errorf("before the first read: got %d, want 503", got)
		}
		cdn.set(pageOf("one"))
		time.Sleep(3 * time.Second)
		if got := navigation(h, "/").Body.String(); got != "one" {
			t.Errorf("after the outage: got %q, want one", got)
		}
		cdn.set(down)
		for range 59 {
			time.Sleep(time.Minute)
			if got := navigation(h, "/").Body.String(); got != "one" {
				t.Fatalf("in the outage: got %q, want the page before it", got)
			}
		}
		time.Sleep(2 * time.Minute)
		if got := navigation(h, "/").Code; got != 503 {
			t.Errorf("after an hour: got %d, want 503", got)
		}
		cdn.set(pageOf("two"))
		time.Sleep(3 * time.Second)
		if got := navigation(h, "/").Body.String(); got != "two" {
			t.Errorf("after the outage: got %q, want two", got)
		}
	})
}

func TestFrozenCDNDelaysAPageByTwoSeconds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cdn := new(cdnServer)
		cdn.set(pageOf("one"))
		h := newCDNApp(t, cdn)
		navigation(h, "/")
		time.Sleep(11 * time.Second)
		cdn.set(func(w http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			down(w, r)
		})
		began := time.Now()
		if got := navigation(h, "/").Body.String(); got != "one" {
			t.Errorf("got %q, want the last page", got)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("took %v, want two seconds at most", took)
		}
		time.Sleep(20 * time.Second) // the read has failed
		began = time.Now()
		if got := navigation(h, "/").Body.String(); got != "one" || time.Since(began) > 0 {
			t.Errorf("later: got %q after %v, want the last page at once", got, time.Since(began))
		}
		time.Sleep(20 * time.Second) // reads end
	})
}

func TestOnlyAPageOfOneMegabyteIsTakenFromACDN(t *testing.T) {
	t.Parallel()
	for name, respond := range map[string]http.HandlerFunc{
		"another type": func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "text") },
		"an error":     http.NotFound,
		"too large":    pageOf(strings.Repeat("x", 1<<20+1)),
		"another host": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://evil.example/index.html", http.StatusFound)
		},
		"plain http": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://cdn.example.com/app/index.html", http.StatusFound)
		},
	} {
		cdn := new(cdnServer)
		cdn.set(respond)
		if got := navigation(newCDNApp(t, cdn), "/").Code; got != 503 {
			t.Errorf("%s: got %d, want 503", name, got)
		}
		if got := cdn.reads.Load(); got != 1 {
			t.Errorf("%s: got %d requests, want 1", name, got)
		}
	}
}

func TestPolicyOfACDNsPageIsAsStrictAsThatOfAFile(t *testing.T) {
	t.Parallel()
	cdn := new(cdnServer)
	cdn.set(pageOf("<script>start()</script>"))
	h := newCDNApp(t, cdn)
	sum := sha256.Sum256([]byte("start()"))
	want := "script-src 'self' 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
	if got := navigation(h, "/").Header().Get("Content-Security-Policy"); !strings.Contains(got, want) {
		t.Errorf("policy of the page: got %q, want %q in it", got, want)
	}
	other := http.Header{"Content-Type": {"text/html"}, "Content-Security-Policy": {"default-src *"}}
	h.SetHeader(other)
	got := other["Content-Security-Policy"]
	if len(got) != 1 || !strings.Contains(got[0], "script-src 'self';") {
		t.Errorf("policy of a file: got %q, want one without inline scripts", got)
	}
}

func TestCDNHasWhatIsNoPageOfTheApp(t *testing.T) {
	t.Parallel()
	h := newCDNApp(t, new(cdnServer))
	for _, test := range []struct {
		path, mode string
		want       bool
	}{
		{"/", "navigate", true}, {"/orders/1", "navigate", true}, {"/index.html", "no-cors", true},
		{"/people/jane.doe", "navigate", true}, {"/assets/app.js", "navigate", false},
		{"/assets/app.js", "no-cors", false}, {"/orders/1", "cors", false},
		// What is never served:
		{"/.env", "cors", true}, {"/.git/config", "no-cors", true}, {"/assets/app.js.map", "cors", true},
		{"/app.js.map.br", "cors", true}, {"/.well-known/x.json", "cors", false}, {"/a.MAP/", "navigate", true},
	} {
		r := httptest.NewRequest("GET", test.path, nil)
		r.Header.Set("Sec-Fetch-Mode", test.mode)
		if got := h.IsPage(r); got != test.want {
			t.Errorf("%s, %s: got %v, want %v", test.path, test.mode, got, test.want)
		}
	}
	for _, path := range []string{"/.env", "/assets/app.js.map"} {
		if got := do(h, "GET", path).StatusCode; got != 404 {
			t.Errorf("%s: got %d, want 404", path, got)
		}
	}
}

// The form of an object in a bucket does not depend on the request.
func TestPageOfACDNCanBeStoredInACoding(t *testing.T) {
	t.Parallel()
	var br bytes.Buffer
	w := brotli.NewWriter(&br)
	io.WriteString(w, "<p>page</p>")
	w.Close()
	var bomb bytes.Buffer
	w = brotli.NewWriter(&bomb)
	w.Write(make([]byte, 64<<20))
	w.Close()
	for name, test := range map[string]struct {
		coding, sent string
		want         int
	}{
		"br": {"br", br.String(), 200}, "in capitals": {"BR", br.String(), 200},
		"identity": {"identity", "<p>page</p>", 200},
		"zstd":     {"zstd", "x", 503}, "two codings": {"br, br", br.String(), 503},
		"not br": {"br", "<p>page</p>", 503},
		"cut":    {"br", br.String()[:br.Len()-2], 503}, "bomb": {"br", bomb.String(), 503},
	} {
		cdn := new(cdnServer)
		cdn.set(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "Text/HTML")
			w.Header().Set("Content-Encoding", test.coding)
			io.WriteString(w, test.sent)
		})
		got := navigation(newCDNApp(t, cdn), "/")
		if got.Code != test.want || test.want == 200 && got.Body.String() != "<p>page</p>" {
			t.Errorf("%s: got %d %.20q, want %d", name, got.Code, got.Body, test.want)
		}
	}
}

func TestCDNThatFailsIsNotAskedForEveryPage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cdn := new(cdnServer)
		cdn.set(down)
		h := newCDNApp(t, cdn)
		for range 100 {
			if got := navigation(h, "/").Code; got != 503 {
				t.Errorf("got %d, want 503", got)
			}
		}
		if got := cdn.reads.Load(); got != 1 {
			t.Errorf("100 navigations in an outage: got %d requests, want 1", got)
		}
		time.Sleep(3 * time.Second)
		cdn.set(pageOf("one"))
		if got := navigation(h, "/").Body.String(); got != "one" {
			t.Errorf("after the outage: got %q, want the page", got)
		}
	})
}

func TestHeadersOfACDNAreReplaced(t *testing.T) {
	t.Parallel()
	theirs := func() http.Header {
		return http.Header{
			"Content-Type": {"text/html"}, "Content-Security-Policy": {"default-src *", "img-src *"},
			"Content-Security-Policy-Report-Only": {"default-src *; report-uri https://elsewhere.example.com/"},
			"X-Frame-Options":                     {"ALLOWALL"}, "Permissions-Policy": {"camera=*"},
			"Cross-Origin-Resource-Policy": {"cross-origin"}, "Referrer-Policy": {"unsafe-url"},
		}
	}
	for _, test := range []struct {
		cfg     web.Config
		absent  []string
		present string
	}{
		{web.Config{}, []string{"Content-Security-Policy-Report-Only"}, "Content-Security-Policy"},
		{web.Config{CSPReportOnly: true}, []string{"Content-Security-Policy"}, "Content-Security-Policy-Report-Only"},
		{web.Config{CSP: map[string][]string{"frame-ancestors": {"https://portal.example.com"}}},
			[]string{"Content-Security-Policy-Report-Only", "X-Frame-Options"}, "Content-Security-Policy"},
	} {
		test.cfg.URL = "https://cdn.example.com"
		h, err := web.New(test.cfg)
		if err != nil {
			t.Fatal(err)
		}
		got := theirs()
		h.SetHeader(got)
		for _, name := range test.absent {
			if values := got[name]; len(values) > 0 {
				t.Errorf("%s: got %q, want none", name, values)
			}
		}
		if values := got[test.present]; len(values) != 1 || !strings.Contains(values[0], "script-src 'self'") {
			t.Errorf("%s: got %q, want that of the configuration only", test.present, values)
		}
		for name, want := range map[string]string{
			"Cross-Origin-Resource-Policy": "same-origin", "Referrer-Policy": "no-referrer",
		} {
			if got.Get(name) != want {
				t.Errorf("%s: got %q, want %q", name, got.Get(name), want)
			}
		}
		if strings.Contains(got.Get("Permissions-Policy"), "camera=*") {
			t.Errorf("Permissions-Policy: got %q, want that of the configuration", got.Get("Permissions-Policy"))
		}
	}
}

func TestOutageOfACDNIsLoggedOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cdn := new(cdnServer)
		cdn.set(down)
		var logs bytes.Buffer
		h, err := web.New(web.Config{URL: "https://cdn.example.com/app", Client: &http.Client{Transport: cdn},
			Logger: slog.New(slog.NewTextHandler(&logs, nil))})
		if err != nil {
			t.Fatal(err)
		}
		for range 5 {
			navigation(h, "/")
			time.Sleep(10 * time.Second)
		}
		if got := strings.Count(logs.String(), "\n"); got != 1 || !strings.Contains(logs.String(), "not read from") {
			t.Errorf("five navigations in an outage: got %d log lines, want one:\n%s", got, &logs)
		}
	})
}
