package web_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/cloakroom-bff/cloakroom/internal/testenv"
	"github.com/cloakroom-bff/cloakroom/web"
)

func TestFilesWithOddNames(t *testing.T) {
	dir := writeApp(t)
	h := newHandler(t, web.Config{Dir: dir})
	for _, name := range []string{
		"-rf.js", "con.js", "CON.js", "aux", "nul.html", "u\u0308\u200d.js", "\ufeffbom.js", "\u202egpj.js", "a&b=c.js",
		strings.Repeat("n", 252) + ".js", "tab\t.js", "cr\r.js", "\x7f.js", "-", "*", "%", ";", "a%", "%2e%2e.js",
		`quote".js`, "apostrophe'.js", "line\nfeed.js", "semi;colon.js", "question?.js", "hash#.js", "per%cent.js",
		"encoded%2fslash.js", "encoded%00.js", "plus+.js", "space .js", "<script>.js", "ünïcödé.js", "日本.js",
		"u\u0308.js", "not\xffutf8.js", "$d$slug.js", "[slug].js", "a:b.js", "..dots.js", "trailing..js", "~tilde.js",
	} {
		write(t, filepath.Join(dir, name), []byte(name))
		target := "/" + url.PathEscape(name)
		resp := do(h, "GET", target)
		want := 200
		if strings.HasPrefix(name, ".") || strings.Contains(name, "\xff") {
			want = 404 // a dotfile; no valid path
		}
		if resp.StatusCode != want {
			t.Errorf("%q: got status %d, want %d", name, resp.StatusCode, want)
		}
		if got := body(t, resp); want == 200 && got != name {
			t.Errorf("%q: got body %q, want the file", name, got)
		}
		for field, values := range resp.Header {
			if strings.ContainsAny(strings.Join(values, ""), "\r\n") {
				t.Errorf("%q: the field %s has a line feed", name, field)
			}
		}
	}
}

func TestPathsThatNameNoFile(t *testing.T) {
	dir := writeApp(t)
	write(t, filepath.Join(dir, `back\slash.js`), []byte("x"))
	write(t, filepath.Join(filepath.Dir(dir), "secret.js"), []byte("secret"))
	h := newHandler(t, web.Config{Dir: dir, Fallback: web.FallbackNone})
	for _, target := range []string{
		"/../secret.js", "/%2e%2e/secret.js", "/..%2fsecret.js", "/..%5csecret.js", "/assets/../../secret.js",
		"/assets/..%2f..%2fsecret.js", "/back%5cslash.js", `/back\slash.js`, "/sw.js%00", "/%00", "/sw%2ejs%2f..",
		"/assets%2findex-BkRj3xGh.js", "/./sw.js", "/sw.js/.", "//sw.js", "/assets//index-BkRj3xGh.js", "/sw.js//",
		"/" + strings.Repeat("a/", 2000), "/" + strings.Repeat("a", 5000),
		"/" + strings.Repeat("../", 500) + "etc/passwd",
	} {
		for _, header := range []string{navigate, "Accept: */*"} {
			resp := do(h, "GET", target, header)
			if got := body(t, resp); resp.StatusCode != 404 || strings.Contains(got, "secret") {
				t.Errorf("%.40s: got %d %.40q, want 404", target, resp.StatusCode, got)
			}
		}
	}
}

func TestDirectoriesNamedLikeFiles(t *testing.T) {
	dir := writeApp(t)
	for _, name := range []string{"a.js", "b.html", "404.html", "sw.js.br", "c/index.html"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	h := newHandler(t, web.Config{Dir: dir})
	for target, want := range map[string]int{
		"/a.js": 404, "/a.js/": 404, "/b.html": 404, "/sw.js": 200, "/404.html": 404,
		"/b": 200, "/c": 200, // index.html
	} {
		if resp := do(h, "GET", target, navigate, "Accept-Encoding: br"); resp.StatusCode != want {
			t.Errorf("%s: got status %d, want %d", target, resp.StatusCode, want)
		}
	}
}

func TestLinksOutOfTheDirectory(t *testing.T) {
	dir := writeApp(t)
	outside := t.TempDir()
	for _, name := range []string{"page.html", "index.html", "404.html", "sw.js.br"} {
		write(t, filepath.Join(outside, name), []byte("secret"))
	}
	for link, target := range map[string]string{
		"page.html": "page.html", "404.html": "404.html", "folder": "", "sw.js.br": "sw.js.br",
	} {
		if err := os.Symlink(filepath.Join(outside, target), filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	h := newHandler(t, web.Config{Dir: dir})
	for _, target := range []string{
		"/page", "/page/", "/page.html", "/folder", "/folder/", "/404", "/nothing.js", "/sw.js",
	} {
		resp := do(h, "GET", target, navigate, "Accept-Encoding: br")
		if got := decode(t, resp); strings.Contains(got, "secret") {
			t.Errorf("%s: got a file outside", target)
		}
	}
}

func TestIndexPagesOfAnyForm(t *testing.T) {
	for _, page := range []string{
		"", " ", "<p>no head", "<!doctype html>", "\x00\xff\xfe", "<script>", "<!--", "plain text", "<title>",
	} {
		h := newHandler(t, web.Config{FS: files("index.html", page)})
		for _, target := range []string{"/", "/orders/17"} {
			resp := do(h, "GET", target, navigate, "Accept-Encoding: br")
			if got := body(t, resp); resp.StatusCode != 200 || got != page {
				t.Errorf("%q: got %d %q, want 200 and the page", page, resp.StatusCode, got)
			}
			wantHeader(t, resp, "Content-Type", "text/html; charset=utf-8")
			wantHeader(t, resp, "Content-Length", fmt.Sprint(len(page)))
			resp = do(h, "GET", target, navigate, "If-None-Match: "+resp.Header.Get("ETag"))
			if resp.StatusCode != 304 {
				t.Errorf("%q: got status %d for its ETag, want 304", page, resp.StatusCode)
			}
		}
	}
}

// A byte order mark decides the encoding of a page, whatever its Content-Type.
func TestInlineScriptsOfPagesWithAByteOrderMark(t *testing.T) {
	const script = "start('ünïcödé')"
	page := "\ufeff<!doctype html><base href=/><script>" + script + "</script>"
	units := utf16.Encode([]rune(page))
	var little, big []byte
	for _, unit := range units {
		little, big = binary.LittleEndian.AppendUint16(little, unit), binary.BigEndian.AppendUint16(big, unit)
	}
	for name, content := range map[string]string{
		"UTF-8": page, "UTF-16LE": string(little), "UTF-16BE": string(big),
	} {
		h := newHandler(t, web.Config{FS: files("index.html", content)})
		resp := do(h, "GET", "/orders", navigate)
		csp := resp.Header.Get("Content-Security-Policy")
		if !slices.Contains(directive(csp, "script-src"), hash(script)) {
			t.Errorf("%s: got the policy %s, want the hash of its script", name, csp)
		}
		if got := directive(csp, "base-uri"); len(got) != 1 || got[0] != "'self'" {
			t.Errorf("%s: got base-uri %q, want 'self'", name, got)
		}
		if got := body(t, resp); got != content {
			t.Errorf("%s: got another page", name)
		}
	}
	odd := newHandler(t, web.Config{FS: files("index.html", "\xff\xfe<script>"+script+"</script>\x00")})
	if resp := do(odd, "GET", "/", navigate); resp.StatusCode != 200 {
		t.Errorf("not UTF-16: got status %d, want 200", resp.StatusCode)
	}
}

// Without a limit, 100 clients had 6 GiB of one page parsed at the same time.
func TestManyFirstRequestsForAGiantPageNeedLittleMemory(t *testing.T) {
	testenv.Slow(t)
	dir := writeApp(t)
	text := "<!doctype html><script>start()</script>" + strings.Repeat("<p>text\n", 1<<20)
	write(t, filepath.Join(dir, "index.html"), []byte(text))
	h := newHandler(t, web.Config{Dir: dir})
	time.Sleep(2500 * time.Millisecond) // until its digest is cached
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var clients sync.WaitGroup
	for range 100 {
		clients.Go(func() {
			w := &discard{header: make(http.Header)}
			r := httptest.NewRequest("GET", "/orders", nil)
			r.Header.Set("Sec-Fetch-Mode", "navigate")
			h.ServeHTTP(w, r)
			csp := w.header.Get("Content-Security-Policy")
			if w.bytes != int64(len(text)) || !strings.Contains(csp, hash("start()")) {
				t.Errorf("got %d bytes and the policy %s, want the page and its hash", w.bytes, csp)
			}
		})
	}
	clients.Wait()
	runtime.ReadMemStats(&after)
	if got := (after.TotalAlloc - before.TotalAlloc) >> 20; got > 300 {
		t.Errorf("100 clients: %d MiB were allocated for a page of 8 MiB, want at most 300", got)
	}
}

// sparse creates a file of a size that is not allocated on disk.
func sparse(t *testing.T, name string, size int64) {
	t.Helper()
	write(t, name, nil)
	if err := os.Truncate(name, size); err != nil {
		t.Fatal(err)
	}
}

// discard is a ResponseWriter that counts.
type discard struct {
	header http.Header
	status int
	bytes  int64
}

func (d *discard) Header() http.Header    { return d.header }
func (d *discard) WriteHeader(status int) { d.status = status }
func (d *discard) Write(b []byte) (int, error) {
	d.bytes += int64(len(b))
	return len(b), nil
}

func TestGiantFilesAreNotReadIntoMemory(t *testing.T) {
	const size = 64 << 20
	dir := writeApp(t)
	h := newHandler(t, web.Config{Dir: dir})
	for _, name := range []string{"film.mp4", "giant.js", "giant.html", "archive.zip", "sw.js.br"} {
		sparse(t, filepath.Join(dir, name), size)
		age(t, filepath.Join(dir, name))
		target := "/" + strings.TrimSuffix(name, ".br")
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		w := &discard{header: make(http.Header)}
		r := httptest.NewRequest("GET", target, nil)
		r.Header.Set("Accept-Encoding", "br")
		h.ServeHTTP(w, r)
		runtime.ReadMemStats(&after)
		if w.bytes != size {
			t.Errorf("%s: got %d bytes, want %d", name, w.bytes, size)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got > 8<<20 {
			t.Errorf("%s: %d bytes were allocated, want at most 8 MiB", name, got)
		}
		resp := do(h, "GET", target, fmt.Sprintf("Range: bytes=%d-", size-5))
		if target == "/sw.js" {
			continue // without br it is another file
		}
		if got := body(t, resp); resp.StatusCode != 206 || got != "\x00\x00\x00\x00\x00" {
			t.Errorf("%s: got %d %q, want the last 5 bytes", name, resp.StatusCode, got)
		}
	}
	csp := do(h, "GET", "/giant.html").Header.Get("Content-Security-Policy")
	if got := directive(csp, "script-src"); len(got) != 1 || got[0] != "'self'" {
		t.Errorf("giant page: got script-src %q, want no inline scripts", got)
	}
}

// readerFrom is a ResponseWriter that records what it is to read from.
type readerFrom struct {
	*httptest.ResponseRecorder
	source io.Reader
}

func (w *readerFrom) ReadFrom(r io.Reader) (int64, error) {
	w.source = r
	return io.Copy(w.ResponseRecorder, r)
}

// net/http uses sendfile if it gets the file itself.
func TestLargeFileIsSentWithSendfile(t *testing.T) {
	dir := writeApp(t)
	sparse(t, filepath.Join(dir, "film.mp4"), 2<<20)
	w := &readerFrom{ResponseRecorder: httptest.NewRecorder()}
	newHandler(t, web.Config{Dir: dir}).ServeHTTP(w, httptest.NewRequest("GET", "/film.mp4", nil))
	limited, ok := w.source.(*io.LimitedReader)
	if !ok {
		t.Fatalf("got a %T, want an *io.LimitedReader", w.source)
	}
	if _, ok := limited.R.(*os.File); !ok {
		t.Errorf("got a %T, want an *os.File", limited.R)
	}
}

// A file that shrinks while it is sent ends the connection: the client must not
// take a part for the whole.
func TestFileThatShrinksWhileItIsSent(t *testing.T) {
	dir := writeApp(t)
	film := filepath.Join(dir, "film.mp4")
	sparse(t, film, 64<<20)
	server := httptest.NewServer(newHandler(t, web.Config{Dir: dir}))
	defer server.Close()
	resp, err := http.Get(server.URL + "/film.mp4")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(film, 1000); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got error %v, want %v", err, io.ErrUnexpectedEOF)
	}
}

// While deploys replace the directory, every response is complete, and a page
// has its own policy.
func TestDeploysDuringRequests(t *testing.T) {
	parent := t.TempDir()
	const builds = 40
	for i := range builds {
		dir := filepath.Join(parent, fmt.Sprint(i))
		if err := os.Mkdir(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprintf("build(%d)", i)
		write(t, filepath.Join(dir, "index.html"), []byte("<script>"+text+"</script>"))
		write(t, filepath.Join(dir, "app.js"), []byte(text+strings.Repeat(" ", 2000)))
	}
	link := filepath.Join(parent, "dist")
	deploy := func(i int) {
		next := filepath.Join(parent, "next")
		if err := errors.Join(os.Symlink(fmt.Sprint(i), next), os.Rename(next, link)); err != nil {
			t.Fatal(err)
		}
	}
	deploy(0)
	h := newHandler(t, web.Config{Dir: link})
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() { // until stop is closed
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				page := do(h, "GET", "/orders", navigate)
				text, _, _ := strings.Cut(strings.TrimPrefix(body(t, page), "<script>"), "</script>")
				csp := page.Header.Get("Content-Security-Policy")
				if page.StatusCode != 200 || !strings.Contains(csp, hash(text)) {
					t.Errorf("page: got %d %q with policy %s", page.StatusCode, text, csp)
				}
				script := do(h, "GET", "/app.js", "Accept-Encoding: zstd")
				if got := decode(t, script); script.StatusCode != 200 || !strings.HasPrefix(got, "build(") {
					t.Errorf("script: got %d %.20q", script.StatusCode, got)
				}
			}
		})
	}
	for i := range builds {
		deploy(i)
	}
	close(stop)
	clients.Wait()
	want := fmt.Sprintf("build(%d)", builds-1)
	if got := decode(t, do(h, "GET", "/app.js", "Accept-Encoding: zstd")); !strings.HasPrefix(got, want) {
		t.Errorf("after the last deploy: got %.20q, want %s", got, want)
	}
}
