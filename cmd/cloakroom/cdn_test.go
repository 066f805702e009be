package main

import (
	"compress/gzip"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/redistest"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// cdnServer is a server with TLS and a deployment of an app below /app.
type cdnServer struct {
	t      *testing.T
	addr   string
	caFile string
	cert   tls.Certificate
	server *http.Server // nil: it is down

	mu    sync.Mutex // guards all below
	files fstest.MapFS
	fail  http.HandlerFunc // instead of the files; nil: none
	seen  []*http.Request
}

// startCDN starts a server. The broker takes its address for that of a CDN,
// because it is not one of the loopback interface, and Linux connects to this
// machine.
func startCDN(t *testing.T) *cdnServer {
	t.Helper()
	cert, key := newPairFor(t, "0.0.0.0", 1, time.Now().Add(time.Hour))
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		t.Fatal(err)
	}
	c := &cdnServer{t: t, addr: freeAddr(t), caFile: writeFile(t, "ca.pem", cert), cert: pair}
	t.Cleanup(c.stop)
	return c
}

func (c *cdnServer) url() string {
	return "https://" + strings.Replace(c.addr, "127.0.0.1", "0.0.0.0", 1) + "/app"
}

func (c *cdnServer) start() {
	c.t.Helper()
	l, err := net.Listen("tcp", c.addr)
	if err != nil {
		c.t.Fatal(err)
	}
	c.server = &http.Server{Handler: c, ErrorLog: log.New(io.Discard, "", 0)}
	go c.server.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{c.cert}})) // until stop
}

func (c *cdnServer) stop() {
	if c.server != nil {
		c.server.Close()
		c.server = nil
	}
}

// deploy replaces all files: pairs of name and content.
func (c *cdnServer) deploy(files ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.files = make(fstest.MapFS)
	for i := 0; i < len(files); i += 2 {
		c.files[files[i]] = &fstest.MapFile{Data: []byte(files[i+1]), ModTime: time.Unix(1_700_000_000, 0)}
	}
}

// set changes how the server responds.
func (c *cdnServer) set(fail http.HandlerFunc) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail = fail
}

func (c *cdnServer) requests() []*http.Request {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.seen)
}

func (c *cdnServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	c.seen = append(c.seen, r)
	files, fail := c.files, c.fail
	c.mu.Unlock()
	for name, value := range map[string]string{
		"Set-Cookie": "__cf_bm=1; Path=/; Secure", "Content-Security-Policy": "default-src *",
		"Access-Control-Allow-Origin": "*", "Service-Worker-Allowed": "/", "Clear-Site-Data": `"*"`,
		"Strict-Transport-Security": "max-age=63072000; preload", "Refresh": "0; url=https://evil.example/",
		"Link": "<" + c.url() + "/assets/a.css>; rel=preload", "Alt-Svc": `h3=":443"`, "Server": "cdn",
		"NEL": `{"report_to":"x"}`, "Vary": "Accept-Encoding", "X-Cache": "HIT", "ETag": `"` + r.URL.Path + `"`,
		"Cache-Control": "public, max-age=60",
	} {
		w.Header().Set(name, value)
	}
	if fail != nil {
		fail(w, r)
		return
	}
	name := strings.TrimPrefix(r.URL.Path, "/app/")
	if name == "moved.js" {
		http.Redirect(w, r, "/app/assets/index-BkRj3xGh.js", http.StatusMovedPermanently)
		return
	}
	if _, ok := files[name]; !ok {
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(http.StatusNotFound)
		io.WriteString(w, "no such object")
		return
	}
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") && r.Header.Get("Range") == "" {
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Set("Content-Type", "text/javascript")
		if name == "index.html" {
			w.Header().Set("Content-Type", "text/html")
		}
		zipped := gzip.NewWriter(w)
		zipped.Write(files[name].Data)
		zipped.Close()
		return
	}
	http.ServeFileFS(w, r, files, name)
}

// startWithCDN starts a broker whose app is on a CDN.
func startWithCDN(t *testing.T, c *cdnServer) *bfftest.Browser {
	t.Helper()
	listen, app := freeOrigin(t)
	provider := brokertest.NewProvider(t, app)
	broker := startReplica(t, provider, map[string]string{
		"SERVER_LISTEN": listen, "SERVER_ADMIN_LISTEN": "127.0.0.1:0", "SERVER_PUBLIC_URL": app,
		"OIDC_ISSUER": provider.Issuer, "OIDC_CLIENT_ID": "spa", "OIDC_CLIENT_SECRET": provider.Client.Secret,
		"STORE_URL": redistest.Start(t).URL(), "SESSION_KEYS": goodKey, "FRONTEND_URL": c.url(),
		"SSL_CERT_FILE": c.caFile,
	})
	broker.waitReady(t)
	return bfftest.NewBrowser(t, app)
}

const oldScript, newScript = "/assets/index-BkRj3xGh.js", "/assets/index-Cx7Qp2Ld.js"

func TestAppOnACDN(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	c := startCDN(t)
	c.deploy("index.html", "<!doctype html><title>one</title><script>start()</script>",
		"assets/index-BkRj3xGh.js", "export const one = 1;", "index.html.map", "{}")
	c.start()
	b := startWithCDN(t, c)
	signIn(t, b, "return_to=/orders/1")

	page := b.Navigate("/orders/1?code=secret&state=secret")
	if page.StatusCode != 200 || !strings.Contains(page.Text, "<title>one</title>") {
		t.Errorf("page: got %d %q, want that of the CDN", page.StatusCode, page.Text)
	}
	if got := page.Header.Get("Content-Security-Policy"); !strings.Contains(got, "'sha256-") {
		t.Errorf("page: got the policy %q, want the hash of its script", got)
	}
	checkCDNHeaders(t, "page", page.Header)
	etag := page.Header.Get("ETag")
	if got := b.Navigate("/other", "If-None-Match", etag).StatusCode; got != 304 {
		t.Errorf("page with its ETag: got %d, want 304", got)
	}
	if got := b.Do("HEAD", "/", "").Header.Get("ETag"); got != etag {
		t.Errorf("HEAD of the page: got ETag %s, want %s", got, etag)
	}

	for _, test := range []struct {
		name, method, path string
		header             []string
		status             int
		text, coding       string
	}{
		{"script", "GET", oldScript, []string{"Accept-Encoding", "identity"}, 200, "export const one = 1;", ""},
		{"HEAD", "HEAD", oldScript, []string{"Accept-Encoding", "identity"}, 200, "", ""},
		{"range", "GET", oldScript, []string{"Accept-Encoding", "identity", "Range", "bytes=0-5"}, 206, "export", ""},
		{"bad range", "GET", oldScript, []string{"Accept-Encoding", "identity", "Range", "bytes=900-"}, 416, "*", ""},
		{"unchanged", "GET", oldScript, []string{"Accept-Encoding", "identity",
			"If-None-Match", `"/app` + oldScript + `"`}, 304, "", ""},
		{"compressed", "GET", oldScript, []string{"Accept-Encoding", "gzip"}, 200, "*", "gzip"},
		{"moved", "GET", "/moved.js", nil, 301, "*", ""},
		{"absent", "GET", "/assets/index-00000000.js", nil, 404, "no such object", ""},
		{"source map", "GET", "/index.html.map", nil, 404, "*", ""},
	} {
		resp := b.Do(test.method, test.path, "", append([]string{"Sec-Fetch-Mode", "no-cors"}, test.header...)...)
		if resp.StatusCode != test.status || test.text != "*" && resp.Text != test.text {
			t.Errorf("%s: got %d %q, want %d %q", test.name, resp.StatusCode, resp.Text, test.status, test.text)
		}
		if got := resp.Header.Get("Content-Encoding"); got != test.coding {
			t.Errorf("%s: got Content-Encoding %q, want %q", test.name, got, test.coding)
		}
		if test.name == "moved" && resp.Header.Get("Location") != oldScript {
			t.Errorf("moved: got Location %q, want %s", resp.Header.Get("Location"), oldScript)
		}
		if got, want := resp.Header.Get("Link"), "</assets/a.css>; rel=preload"; got != want &&
			test.name != "source map" {
			t.Errorf("%s: got Link %q, want %q", test.name, got, want)
		}
		checkCDNHeaders(t, test.name, resp.Header)
	}

	allowed := []string{"Accept", "Accept-Encoding", "If-None-Match", "Range", "User-Agent", "Via"}
	for _, r := range c.requests() {
		if r.URL.RawQuery != "" {
			t.Errorf("the CDN got the query of %s", r.URL)
		}
		for name, values := range r.Header {
			if !slices.Contains(allowed, name) {
				t.Errorf("the CDN got %s: %q with %s", name, values, r.URL.Path)
			}
		}
		if got := r.UserAgent(); got != "cloakroom" {
			t.Errorf("the CDN got the User-Agent %q", got)
		}
	}
}

// checkCDNHeaders checks that what acts on the whole origin is not the CDN's.
func checkCDNHeaders(t *testing.T, name string, h http.Header) {
	t.Helper()
	for _, header := range []string{
		"Set-Cookie", "Access-Control-Allow-Origin", "Service-Worker-Allowed", "Clear-Site-Data", "Refresh",
		"Strict-Transport-Security", "Alt-Svc", "Server", "NEL",
	} {
		if got := h.Values(header); len(got) > 0 {
			t.Errorf("%s: got %s: %q, want none", name, header, got)
		}
	}
	if got := h.Values("Content-Security-Policy"); len(got) != 1 || strings.Contains(got[0], "*") {
		t.Errorf("%s: got the policy %q, want that of the broker", name, got)
	}
	if got := h.Get("X-Content-Type-Options"); got != "nosniff" {
		t.Errorf("%s: got X-Content-Type-Options %q, want nosniff", name, got)
	}
}

func TestOutageAndDeploymentOfACDN(t *testing.T) {
	testenv.Slow(t) // the page is kept for ten seconds
	t.Parallel()
	c := startCDN(t)
	c.deploy("index.html", "<title>one</title>", "assets/index-BkRj3xGh.js", "one")
	b := startWithCDN(t, c)

	down := b.Navigate("/orders/1")
	if down.StatusCode != 503 || !strings.Contains(down.Text, "temporarily unavailable") ||
		down.Header.Get("Retry-After") == "" {
		t.Errorf("before the CDN is up: got %d %q, want a page with 503 and Retry-After", down.StatusCode, down.Text)
	}
	wantStatus(t, b, oldScript, 503)
	c.start()
	eventually(t, 10*time.Second, "the CDN is noticed", func() bool { return b.Navigate("/").StatusCode == 200 })
	wantPage(t, b, "/orders/1", "<title>one</title>")

	for name, fail := range map[string]http.HandlerFunc{
		"5xx":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) },
		"reset": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"reset amid the header": func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Ty")
			conn.Close()
		},
	} {
		c.set(fail)
		if got := b.Fetch("GET", oldScript); got.StatusCode != 503 || got.Code() != "frontend_unavailable" {
			t.Errorf("%s: got %d %s, want 503 frontend_unavailable", name, got.StatusCode, got.Code())
		}
		if got := b.Navigate("/terms.html"); got.StatusCode != 503 || !strings.Contains(got.Text, "<h1>") {
			t.Errorf("%s, a page of the CDN: got %d %q, want a page with 503", name, got.StatusCode, got.Text)
		}
		wantPage(t, b, "/orders/1", "<title>one</title>")
	}
	c.set(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		io.WriteString(w, "export const")
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	resp := b.Open(oldScript)
	text, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err == nil {
		t.Errorf("reset amid a script: got %q as a complete response, want an error", text)
	}
	c.stop()
	wantStatus(t, b, oldScript, 503)
	wantPage(t, b, "/orders/1", "<title>one</title>")

	c.set(nil)
	c.deploy("index.html", "<title>two</title>", "assets/index-Cx7Qp2Ld.js", "two")
	c.start()
	eventually(t, 30*time.Second, "the deployment is served", func() bool {
		return strings.Contains(b.Navigate("/").Text, "two")
	})
	wantStatus(t, b, newScript, 200)
	wantStatus(t, b, oldScript, 404)
}
