package bff_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
)

// frontendApp returns an app whose files are on the server files.
func frontendApp(t *testing.T, url string, edit func(*bff.FrontendServer)) *app {
	t.Helper()
	return newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.FrontendServer = &bff.FrontendServer{URL: url, Dev: true}
		if edit != nil {
			edit(cfg.FrontendServer)
		}
	})
}

func isCDN(s *bff.FrontendServer) { s.Dev = false }

func TestDevServerSeesItsOwnOriginAndNoSession(t *testing.T) {
	t.Parallel()
	files := brokertest.NewEcho(t)
	a := frontendApp(t, files.URL, nil)
	b := a.signedIn()
	b.Navigate("/bff/login") // an attempt cookie beside the session cookie
	b.SetCookie(&http.Cookie{Name: "theme", Value: "dark"})
	got := echoed(t, b.Fetch("GET", "/src/main.ts?t=1", "Origin", a.url, "Referer", a.url+"/page"))
	if got.Host != files.Listener.Addr().String() {
		t.Errorf("Host: got %q, want %q", got.Host, files.Listener.Addr())
	}
	if got.URI != "/src/main.ts?t=1" {
		t.Errorf("URI: got %q, want /src/main.ts?t=1", got.URI)
	}
	for name, want := range map[string]string{
		"Origin": files.URL, "Referer": files.URL + "/page", "Cookie": "theme=dark",
		"Authorization": "", "X-Forwarded-Host": "", "X-Forwarded-Proto": "", "X-Forwarded-Prefix": "", "X-Csrf": "",
	} {
		if value := strings.Join(got.Header[name], ", "); value != want {
			t.Errorf("%s at the server: got %q, want %q", name, value, want)
		}
	}
	other := echoed(t, b.Navigate("/", "Referer", a.url+".evil.example/x"))
	if want := a.url + ".evil.example/x"; other.Header.Get("Referer") != want {
		t.Errorf("Referer of another origin: got %q, want %q", other.Header.Get("Referer"), want)
	}
}

func TestDevServerCannotSetOurCookiesOrRedirectToItself(t *testing.T) {
	t.Parallel()
	files := brokertest.NewEcho(t)
	files.Handler = func(w http.ResponseWriter, r *http.Request) {
		w.Header().Add("Set-Cookie", r.Header.Get("X-Plant")+"=planted; Path=/")
		w.Header().Add("Set-Cookie", "theme=dark; Path=/")
		w.Header().Set("Location", "http://"+r.Host+"/moved?x=1")
		w.WriteHeader(http.StatusFound)
	}
	a := frontendApp(t, files.URL, nil)
	for _, name := range []string{a.cookieName(), a.cookieName() + "-login-0123456789ab", "__Host-Http-cloakroom"} {
		resp := a.browser().Navigate("/x", "X-Plant", name)
		if got := resp.Header["Set-Cookie"]; len(got) != 1 || !strings.HasPrefix(got[0], "theme=dark") {
			t.Errorf("%s: Set-Cookie: got %q, want theme only", name, got)
		}
		if got := resp.Header.Get("Location"); got != "/moved?x=1" {
			t.Errorf("Location: got %q, want /moved?x=1", got)
		}
	}
}

func TestFrontendServerGetsHeadersOfTheBroker(t *testing.T) {
	t.Parallel()
	files := brokertest.NewEcho(t)
	files.Handler = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Security-Policy-Report-Only", "default-src *")
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, "<!doctype html>")
	}
	a := frontendApp(t, files.URL, func(s *bff.FrontendServer) {
		s.SetHeader = func(h http.Header) {
			h.Set("Content-Security-Policy-Report-Only", "for "+h.Get("Content-Type"))
		}
	})
	resp := a.browser().Navigate("/")
	if got := resp.Header["Content-Security-Policy-Report-Only"]; len(got) != 1 || got[0] != "for text/html" {
		t.Errorf("policy: got %q, want that of the broker", got)
	}
	if got := resp.Header["Content-Security-Policy"]; len(got) > 0 {
		t.Errorf("a document of the app is sandboxed: %q", got)
	}
}

func TestOtherSitesCanOnlyReadFromADevServer(t *testing.T) {
	t.Parallel()
	files := brokertest.NewEcho(t)
	a := frontendApp(t, files.URL, nil)
	b := a.browser()
	for _, test := range []struct {
		method string
		header []string
		want   int
	}{
		{"GET", []string{"Sec-Fetch-Site", "cross-site"}, 200},
		{"HEAD", []string{"Sec-Fetch-Site", "cross-site"}, 200},
		{"GET", nil, 200},
		{"POST", []string{"Sec-Fetch-Site", "same-origin", "Origin", a.url}, 200},
		{"POST", []string{"Sec-Fetch-Site", "cross-site", "Origin", "https://evil.example"}, 403},
		{"POST", []string{"Sec-Fetch-Site", "same-site", "Origin", "http://localhost:1"}, 403},
		{"POST", nil, 403},
		{"OPTIONS", []string{"Origin", "https://evil.example"}, 403},
		{"GET", []string{"Upgrade", "websocket", "Connection", "Upgrade", "Origin", "https://evil.example"}, 403},
		{"GET", []string{"Upgrade", "websocket", "Connection", "Upgrade"}, 403},
	} {
		before := files.Calls()
		if resp := b.Do(test.method, "/x", "", test.header...); resp.StatusCode != test.want {
			t.Errorf("%s %q: got %d, want %d", test.method, test.header, resp.StatusCode, test.want)
		}
		if arrived := files.Calls() > before; arrived != (test.want == 200) {
			t.Errorf("%s %q: arrived at the server: %v, want %v", test.method, test.header, arrived, test.want == 200)
		}
	}
}

func TestWebSocketOfADevServerWorks(t *testing.T) {
	t.Parallel()
	files := brokertest.NewEcho(t)
	files.Handler = func(rw http.ResponseWriter, r *http.Request) {
		if got := r.Header.Get("Origin"); got != "http://"+r.Host {
			t.Errorf("Origin at the server: got %q, want that of the server", got)
		}
		conn, buffered, err := switchProtocols(rw)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.CopyN(conn, buffered, 5)
	}
	a := frontendApp(t, files.URL, nil)
	host := strings.TrimPrefix(a.url, "http://")
	conn, err := net.Dial("tcp", strings.Replace(host, "localhost", "127.0.0.1", 1))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /?token=x HTTP/1.1\r\nHost: %s\r\nOrigin: %s\r\nConnection: Upgrade\r\n"+
		"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nhello",
		host, a.url)
	text, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(text), "HTTP/1.1 101 ") || !strings.HasSuffix(string(text), "hello") {
		t.Errorf("got %q, %v, want 101 and the echo", text, err)
	}
}

// reserve returns an address at which nothing listens.
func reserve(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestDevServerThatIsDownIsAPageUntilItIsBack(t *testing.T) {
	t.Parallel()
	addr := reserve(t)
	a := frontendApp(t, "http://"+addr, nil)
	b := a.browser()
	page := b.Navigate("/orders/1")
	if page.StatusCode != 503 || !strings.HasPrefix(page.Header.Get("Content-Type"), "text/html") {
		t.Errorf("navigation: got %d %q, want 503 and HTML", page.StatusCode, page.Header.Get("Content-Type"))
	}
	for _, want := range []string{"http://" + addr, "tries again", "<script>"} {
		if !strings.Contains(page.Text, want) {
			t.Errorf("the page does not contain %q:\n%s", want, page.Text)
		}
	}
	fetched := b.Fetch("GET", "/src/main.ts")
	if got := fetched.Code(); fetched.StatusCode != 503 || got != "frontend_unavailable" {
		t.Errorf("fetch: got %d %s, want 503 frontend_unavailable", fetched.StatusCode, got)
	}
	if resp := b.Do("GET", "/src/main.ts", "", "Accept", "*/*"); resp.Code() != "frontend_unavailable" {
		t.Errorf("GET of a script: got %d %s, want a problem", resp.StatusCode, resp.Header.Get("Content-Type"))
	}
	if resp := b.Do("HEAD", "/orders/1", ""); resp.StatusCode != 503 {
		t.Errorf("HEAD of the page's script: got %d, want 503", resp.StatusCode)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	back := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter,
		_ *http.Request) {
		io.WriteString(w, "back")
	})}
	go back.Serve(l) // until Close
	t.Cleanup(func() { back.Close() })
	if resp := b.Navigate("/orders/1"); resp.StatusCode != 200 || resp.Text != "back" {
		t.Errorf("after the restart: got %d %q, want 200", resp.StatusCode, resp.Text)
	}
}

func TestDevServerThatDiesAmidAResponseIsAnError(t *testing.T) {
	t.Parallel()
	files := brokertest.NewEcho(t)
	files.Handler = func(rw http.ResponseWriter, _ *http.Request) {
		conn, buffered, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		buffered.WriteString("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: " +
			"chunked\r\n\r\n5\r\n<p>Ha\r\n")
		buffered.Flush()
		conn.Close()
	}
	a := frontendApp(t, files.URL, nil)
	resp, err := httpClient.Get(a.url + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("got %q as a complete response, want an error", text)
	}
}

func TestCDNHasTheFilesAndFrontendThePages(t *testing.T) {
	t.Parallel()
	files := brokertest.NewEcho(t)
	a := frontendApp(t, files.URL+"/v1", func(s *bff.FrontendServer) {
		s.Dev = false
		s.IsPage = func(r *http.Request) bool { return r.Header.Get("Sec-Fetch-Mode") == "navigate" }
	})
	b := a.browser()
	b.SetCookie(&http.Cookie{Name: "theme", Value: "dark"})
	if resp := b.Navigate("/orders"); resp.Text != "the app" {
		t.Errorf("navigation: got %q, want that of Frontend", resp.Text)
	}
	got := echoed(t, b.Fetch("GET", "/assets/app.js"))
	if got.URI != "/v1/assets/app.js" || got.Host != files.Listener.Addr().String() {
		t.Errorf("file: got %s at %s, want /v1/assets/app.js at %s", got.URI, got.Host, files.Listener.Addr())
	}
	if cookie := got.Header.Get("Cookie"); cookie != "" {
		t.Errorf("the CDN got the cookie %q", cookie)
	}
	resp := b.Fetch("POST", "/assets/app.js")
	if allow := resp.Header.Get("Allow"); resp.StatusCode != 405 || allow != "GET, HEAD" {
		t.Errorf("POST: got %d, Allow %q, want 405 and GET, HEAD", resp.StatusCode, allow)
	}
}

func TestCDNSetsNoCookies(t *testing.T) {
	t.Parallel()
	files := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Set-Cookie", "lb=1; Path=/")
		w.Header().Set("Cache-Control", "public, max-age=60")
	}))
	t.Cleanup(files.Close)
	a := frontendApp(t, files.URL, isCDN)
	resp := a.browser().Fetch("GET", "/assets/app.js")
	if got := resp.Header["Set-Cookie"]; len(got) > 0 {
		t.Errorf("Set-Cookie: got %q, want none", got)
	}
	if got := resp.Header.Get("Cache-Control"); got != "public, max-age=60" {
		t.Errorf("Cache-Control: got %q, want that of the CDN", got)
	}
}

// What a CDN learns of a request is what selects a file and its form.
func TestCDNLearnsNothingAboutTheClient(t *testing.T) {
	t.Parallel()
	files := brokertest.NewEcho(t)
	a := newApp(t, func(a *app, cfg *bff.Config) {
		a.embedded = true // the listeners of Run refuse an Upgrade with a body
		cfg.FrontendServer = &bff.FrontendServer{URL: files.URL}
	})
	b := a.signedIn()
	got := echoed(t, b.Do("GET", "/assets/app.js?v=2", "a body", "Accept", "*/*", "Accept-Encoding", "br",
		"If-None-Match", `"x"`, "Range", "bytes=0-4", "Connection", "close, X-Own",
		"Cookie", "theme=dark", "Authorization", "Bearer secret", "Proxy-Authorization", "Basic x",
		"Origin", a.url, "Referer", a.url+"/reset?token=secret", "User-Agent", "Mozilla/5.0 (Linux; of alice)",
		"Accept-Language", "de", "X-Forwarded-For", "203.0.113.7", "X-Real-Ip", "203.0.113.7",
		"Forwarded", "for=203.0.113.7", "Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		"X-Request-Id", "of-the-client", "Sec-Ch-Ua", `"Chromium"`, "Dnt", "1", "X-Own", "secret", "X-Csrf", "1",
		"Upgrade", "websocket", "Content-Type", "text/plain", "Expect", "100-continue"))
	want := map[string]string{
		"Accept": "*/*", "Accept-Encoding": "br", "If-None-Match": `"x"`, "Range": "bytes=0-4",
		"User-Agent": "cloakroom", "Via": "1.1 cloakroom",
	}
	for name, values := range got.Header {
		if value := strings.Join(values, ", "); value != want[name] {
			t.Errorf("%s at the CDN: got %q, want %q", name, value, want[name])
		}
		delete(want, name)
	}
	if len(want) > 0 {
		t.Errorf("headers that did not arrive: %v", want)
	}
	if got.URI != "/assets/app.js?v=2" || got.Body != "" {
		t.Errorf("got %s with the body %q, want the file and its version without one", got.URI, got.Body)
	}
}

func TestCDNGetsNoQueryOfAPage(t *testing.T) {
	t.Parallel()
	files := brokertest.NewEcho(t)
	b := frontendApp(t, files.URL, isCDN).browser()
	const query = "?code=secret&state=secret"
	for _, path := range []string{"/orders/1", "/silent-renew.html", "/page.HTM", "/", "/assets/"} {
		if got := echoed(t, b.Fetch("GET", path+query)); got.URI != path {
			t.Errorf("fetch of %s: got %s at the CDN, want no query", path, got.URI)
		}
	}
	for _, path := range []string{"/silent-renew.html", "/terms.pdf", "/people/jane.doe"} {
		if got := echoed(t, b.Navigate(path+query)); got.URI != path {
			t.Errorf("navigation to %s: got %s at the CDN, want no query", path, got.URI)
		}
	}
	for _, target := range []string{"/icons.svg?v=4.7", "/ngsw.json?ngsw-cache-bust=0.5", "/app.js?"} {
		if got := echoed(t, b.Fetch("GET", target)); got.URI != target {
			t.Errorf("a file: got %s at the CDN, want %s", got.URI, target)
		}
	}
}

// A page of a CDN that fails has no form that users know, and may be that of
// another site.
func TestErrorOfACDNIsOurs(t *testing.T) {
	t.Parallel()
	files := brokertest.NewEcho(t)
	files.Handler = func(w http.ResponseWriter, r *http.Request) {
		status := http.StatusBadGateway
		if strings.HasPrefix(r.URL.Path, "/old-") {
			status = http.StatusNotFound
		}
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(status)
		io.WriteString(w, "<h1>by the CDN</h1>")
	}
	b := frontendApp(t, files.URL, isCDN).browser()
	page := b.Navigate("/terms.html")
	wantStatus(t, "navigation", page, 503)
	if strings.Contains(page.Text, "by the CDN") || !strings.Contains(page.Text, "temporarily unavailable") {
		t.Errorf("navigation: got %s, want a page of the broker", page.Text)
	}
	if got := b.Fetch("GET", "/app.js"); got.StatusCode != 503 || got.Code() != "frontend_unavailable" {
		t.Errorf("fetch: got %d %s, want 503 frontend_unavailable", got.StatusCode, got.Code())
	}
	if got := b.Fetch("GET", "/old-BkRj3xGh.js"); got.StatusCode != 404 || !strings.Contains(got.Text, "by the CDN") {
		t.Errorf("a file of the last build: got %d %q, want the CDN's 404", got.StatusCode, got.Text)
	}
}

func TestFileOfACDNWithoutCachingIsRevalidated(t *testing.T) {
	t.Parallel()
	files := brokertest.NewEcho(t)
	files.Handler = func(w http.ResponseWriter, r *http.Request) {
		for _, name := range []string{"Cache-Control", "Expires"} {
			if value := r.Header.Get("Accept"); strings.HasPrefix(value, name) {
				w.Header().Set(name, strings.TrimPrefix(value, name+": "))
			}
		}
		w.Header().Set("ETag", `"1"`)
	}
	b := frontendApp(t, files.URL, isCDN).browser()
	for sent, want := range map[string]string{
		"*/*": "no-cache", "Cache-Control: max-age=60": "max-age=60", "Cache-Control: no-store": "no-store",
		"Expires: Thu, 01 Jan 1970 00:00:00 GMT": "",
	} {
		resp := b.Do("GET", "/app.js", "", "Accept", sent)
		if got := resp.Header.Get("Cache-Control"); got != want || resp.Header.Get("ETag") != `"1"` {
			t.Errorf("%s: got Cache-Control %q, want %q and the ETag", sent, got, want)
		}
	}
}

func TestPathsCannotLeaveThePathOfTheFrontendServer(t *testing.T) {
	t.Parallel()
	files := brokertest.NewEcho(t)
	for _, edit := range []func(*bff.FrontendServer){nil, isCDN} {
		a := frontendApp(t, files.URL+"/v1", edit)
		for _, path := range []string{"/..%2fv2/x.js", "/%2e%2e/v2/x.js", "/a/..;/..;/v2/x.js", "//v2/x.js",
			"/..%5cv2%5cx.js"} {
			before := files.Calls()
			if resp := a.browser().Fetch("GET", path); resp.StatusCode != 400 {
				t.Errorf("%s: got %d, want 400", path, resp.StatusCode)
			}
			if files.Calls() > before {
				t.Errorf("%s: arrived at the server", path)
			}
		}
		if got := echoed(t, a.browser().Fetch("GET", "/blog/%5Bslug%5D%2Fx")); got.URI != "/v1/blog/%5Bslug%5D%2Fx" {
			t.Errorf("an encoded path: got %s, want it unchanged", got.URI)
		}
	}
}

func TestRoutesAndEndpointsWinOverTheDevServer(t *testing.T) {
	t.Parallel()
	files := brokertest.NewEcho(t)
	files.Handler = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }
	a := frontendApp(t, files.URL, nil)
	b := a.signedIn()
	for path, want := range map[string]int{
		"/api/x": 200, "/bff/session": 200, "/bff/unknown": 404, "/bff": 404, "/api": 404, "/x": 418,
	} {
		if resp := b.Fetch("GET", path); resp.StatusCode != want {
			t.Errorf("%s: got %d, want %d", path, resp.StatusCode, want)
		}
	}
	if got := files.Calls(); got != 1 {
		t.Errorf("the server got %d requests, want 1", got)
	}
}
