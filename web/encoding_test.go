package web_test

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/cloakroom-bff/cloakroom/web"
)

// script is a script that is worth compressing.
var script = strings.Repeat("export const answer = 42; // not to be repeated\n", 100)

// decode returns the body of a response without its content coding.
func decode(t *testing.T, resp *http.Response) string {
	t.Helper()
	var r io.Reader = resp.Body
	var err error
	switch coding := resp.Header.Get("Content-Encoding"); coding {
	case "":
	case "br":
		r = brotli.NewReader(resp.Body)
	case "zstd":
		r, err = zstd.NewReader(resp.Body, zstd.WithDecoderMaxWindow(8<<20)) // RFC 9659
	case "gzip":
		r, err = gzip.NewReader(resp.Body)
	default:
		t.Fatalf("got Content-Encoding %q", coding)
	}
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("decode %s: %v", resp.Header.Get("Content-Encoding"), err)
	}
	return string(b)
}

func TestCompression(t *testing.T) {
	h := newHandler(t, web.Config{FS: files("index.html", "home", "app.js", script)})
	etags := make(map[string]string) // :: coding → ETag
	for _, tt := range []struct{ accept, coding string }{
		{"", ""},
		{"identity", ""},
		{"deflate", ""},
		{"gzip, deflate, br, zstd", "br"},
		{"gzip, deflate, zstd", "zstd"},
		{"gzip, deflate", "gzip"},
		{"GZip", "gzip"},
		{"br;q=0.5, zstd;q=0.8, gzip;q=0.7", "zstd"},
		{"br;q=0.5, gzip;q=0.501", "gzip"},
		{"br;q=0.001", "br"},
		{"br;q=0.5, identity;q=0.6", ""},
		{"br;q=0.5, identity;q=0.5", "br"},
		{"identity;q=0.5, *;q=0", ""},
		{"identity;q=1, *;q=0", ""},
		{"identity;q=0, gzip", "gzip"},
		{"identity;q=0, *", "br"},
		{"*;q=0.5, br;q=0", "zstd"},
		{"br;q=0, zstd;q=0, gzip;q=0", ""},
		{"identity;q=0", ""},
		{"*;q=0", ""},
		{"br;q=nan", ""},
		{"br;q=-1, gzip;q=", ""},
		{",, ;q=1,", ""},
	} {
		t.Run(tt.accept, func(t *testing.T) {
			resp := do(h, "GET", "/app.js", "Accept-Encoding: "+tt.accept)
			head := do(h, "HEAD", "/app.js", "Accept-Encoding: "+tt.accept)
			sent := body(t, resp)
			wantHeader(t, resp, "Content-Length", fmt.Sprint(len(sent)))
			resp.Body = io.NopCloser(strings.NewReader(sent))
			if got := decode(t, resp); resp.StatusCode != 200 || got != script {
				t.Errorf("got %d and %d bytes, want 200 and the script", resp.StatusCode, len(got))
			}
			wantHeader(t, resp, "Content-Encoding", tt.coding)
			wantHeader(t, resp, "Vary", "Accept-Encoding")
			wantHeader(t, resp, "Content-Type", "text/javascript; charset=utf-8")
			for _, name := range []string{"Content-Length", "Content-Encoding", "Vary", "ETag", "Content-Type"} {
				wantHeader(t, head, name, resp.Header.Get(name))
			}
			if got := body(t, head); got != "" {
				t.Errorf("HEAD: got a body of %d bytes, want none", len(got))
			}
			etag := resp.Header.Get("ETag")
			if strings.HasPrefix(etag, "W/") || etag == "" {
				t.Errorf("got ETag %q, want a strong one", etag)
			}
			if known := etags[tt.coding]; known != "" && known != etag {
				t.Errorf("got ETag %s, want %s as before", etag, known)
			}
			etags[tt.coding] = etag
		})
	}
	seen := make(map[string]bool)
	for _, etag := range etags {
		seen[etag] = true
	}
	if len(seen) != 4 {
		t.Errorf("got ETags %v, want one for each of four codings", etags)
	}
}

func TestConditionsAndRangesOfCompressedContent(t *testing.T) {
	h := newHandler(t, web.Config{FS: files("index.html", "home", "app.js", script)})
	const accept = "Accept-Encoding: gzip"
	whole := do(h, "GET", "/app.js", accept)
	etag, sent := whole.Header.Get("ETag"), body(t, whole)
	plain := do(h, "GET", "/app.js").Header.Get("ETag")
	for _, tt := range []struct {
		name    string
		headers []string
		status  int
		body    string
		coding  string
	}{
		{"revalidation", []string{accept, "If-None-Match: " + etag}, 304, "", "*"},
		{"revalidation of another coding", []string{accept, "If-None-Match: " + plain}, 200, sent, "gzip"},
		{"If-Match of another coding", []string{accept, "If-Match: " + plain}, 412, "", "*"},
		{"range of the encoded content", []string{accept, "Range: bytes=2-5"}, 206, sent[2:6], "gzip"},
		{"resume", []string{accept, "Range: bytes=10-", "If-Range: " + etag}, 206, sent[10:], "gzip"},
		{"resume with another coding", []string{accept, "Range: bytes=10-", "If-Range: " + plain}, 200, sent, "gzip"},
		{"beyond the encoded content", []string{accept, fmt.Sprintf("Range: bytes=%d-", len(sent))}, 416, "*", "*"},
		{"range of the file", []string{"Accept-Encoding: identity", "Range: bytes=2-5"}, 206, script[2:6], ""},
		{
			"range as browsers send it", []string{"Accept-Encoding: identity;q=1, *;q=0", "Range: bytes=0-"},
			206, script, "",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			resp := do(h, "GET", "/app.js", tt.headers...)
			if resp.StatusCode != tt.status {
				t.Fatalf("got status %d, want %d", resp.StatusCode, tt.status)
			}
			if got := body(t, resp); tt.body != "*" && got != tt.body {
				t.Errorf("got %d bytes, want %d", len(got), len(tt.body))
			}
			if tt.coding != "*" {
				wantHeader(t, resp, "Content-Encoding", tt.coding)
			}
		})
	}
}

func TestWhatIsCompressed(t *testing.T) {
	const accept = "Accept-Encoding: br"
	for _, tt := range []struct {
		name string
		size int
		want string // coding
		vary string
	}{
		{"page.html", 2000, "br", "Accept-Encoding"},
		{"style.css", 2000, "br", "Accept-Encoding"},
		{"data.json", 2000, "br", "Accept-Encoding"},
		{"manifest.webmanifest", 2000, "br", "Accept-Encoding"},
		{"logo.svg", 2000, "br", "Accept-Encoding"},
		{"favicon.ico", 2000, "br", "Accept-Encoding"},
		{"app.wasm", 2000, "br", "Accept-Encoding"},
		{"font.ttf", 2000, "br", "Accept-Encoding"},
		{"notes.txt", 2000, "br", "Accept-Encoding"},
		{"font.woff2", 2000, "", ""},
		{"photo.jpg", 2000, "", ""},
		{"photo.png", 2000, "", ""},
		{"photo.avif", 2000, "", ""},
		{"film.mp4", 2000, "", ""},
		{"archive.zip", 2000, "", ""},
		{"archive.gz", 2000, "", ""},
		{"data.unknownext", 2000, "", ""},
		{"small.js", 1023, "", "Accept-Encoding"},
		{"enough.js", 1024, "br", "Accept-Encoding"},
		{"large.js", 10 << 20, "br", "Accept-Encoding"},
		{"giant.js", 10<<20 + 1, "", ""},
	} {
		h := newHandler(t, web.Config{FS: files("index.html", "home", tt.name, strings.Repeat(" ", tt.size))})
		resp := do(h, "GET", "/"+tt.name, accept)
		// A request waits only for some time, which a busy machine may exceed.
		deadline := time.Now().Add(time.Minute)
		for tt.size > 1<<20 && resp.Header.Get("Content-Encoding") != tt.want && time.Now().Before(deadline) {
			resp = do(h, "GET", "/"+tt.name, accept)
		}
		if got := resp.Header.Get("Content-Encoding"); got != tt.want {
			t.Errorf("%s: got coding %q, want %q", tt.name, got, tt.want)
		}
		if got := resp.Header.Get("Vary"); got != tt.vary {
			t.Errorf("%s: got Vary %q, want %q", tt.name, got, tt.vary)
		}
		if got := len(decode(t, resp)); got != tt.size {
			t.Errorf("%s: got %d bytes, want %d", tt.name, got, tt.size)
		}
	}
	h := newHandler(t, web.Config{FS: files("index.html", "home")})
	resp := do(h, "GET", "/", "Accept-Encoding: identity;q=0, zstd")
	if got := decode(t, resp); resp.Header.Get("Content-Encoding") != "zstd" || got != "home" {
		t.Errorf("small file without identity: got %q in %q, want it in zstd", got, resp.Header.Get("Content-Encoding"))
	}
}

func TestPagesAreCompressed(t *testing.T) {
	page := strings.Repeat("<p>page</p>", 200)
	h := newHandler(t, web.Config{FS: files("index.html", page, "404.html", page)})
	for path, status := range map[string]int{"/": 200, "/nowhere": 404} {
		resp := do(h, "GET", path, navigate, "Accept-Encoding: br")
		wantHeader(t, resp, "Content-Encoding", "br")
		wantHeader(t, resp, "Vary", "Accept-Encoding")
		if got := decode(t, resp); resp.StatusCode != status || got != page {
			t.Errorf("%s: got %d and %d bytes, want %d and the page", path, resp.StatusCode, len(got), status)
		}
	}
}

// A sibling of one coding does not replace the others.
func TestSiblingOfOneCoding(t *testing.T) {
	h := newHandler(t, web.Config{FS: files(
		"index.html", "home", "app.js", script, "app.js.zst", "sibling", "b.png", "image", "b.png.gz", "image")})
	for _, tt := range []struct{ path, accept, coding, sent string }{
		{"/app.js", "br, zstd", "br", ""},
		{"/app.js", "zstd", "zstd", "sibling"},
		{"/app.js", "gzip", "gzip", ""},
		{"/b.png", "br, gzip", "gzip", "image"},
	} {
		resp := do(h, "GET", tt.path, "Accept-Encoding: "+tt.accept)
		wantHeader(t, resp, "Content-Encoding", tt.coding)
		if got := body(t, resp); tt.sent != "" && got != tt.sent {
			t.Errorf("%s with %s: got %q, want the sibling", tt.path, tt.accept, got)
		}
	}
}

// openedFiles is an fs.FS that lists what was opened.
type openedFiles struct {
	fs.FS
	names []string
}

func (f *openedFiles) Open(name string) (fs.File, error) {
	f.names = append(f.names, name)
	return f.FS.Open(name)
}

// Each look for a file is a call to the kernel, for a 304 response too.
func TestOnlyTheChosenSiblingIsLookedFor(t *testing.T) {
	opened := &openedFiles{FS: files("index.html", "home", "app.js", script, "app.js.gz", "sibling")}
	h := newHandler(t, web.Config{FS: opened})
	for _, tt := range []struct{ accept, coding, siblings string }{
		{"gzip, deflate, br, zstd", "br", "app.js.br"},
		{"br;q=0.5, gzip", "gzip", "app.js.gz"},
		{"br;q=0, zstd", "zstd", "app.js.zst"},
		{"", "", ""},
		{"*;q=0", "", ""},
	} {
		opened.names = nil
		resp := do(h, "GET", "/app.js", "Accept-Encoding: "+tt.accept)
		wantHeader(t, resp, "Content-Encoding", tt.coding)
		wantHeader(t, resp, "Vary", "Accept-Encoding")
		var siblings []string
		for _, name := range opened.names {
			if strings.HasPrefix(name, "app.js.") {
				siblings = append(siblings, name)
			}
		}
		if got := strings.Join(slices.Compact(siblings), " "); got != tt.siblings {
			t.Errorf("%q: got a look for %q, want %q", tt.accept, got, tt.siblings)
		}
	}
}

// A build that ran out of disk space leaves empty files.
func TestEmptySiblingIsIgnored(t *testing.T) {
	h := newHandler(t, web.Config{FS: files(
		"index.html", "home", "app.js", script, "app.js.br", "", "app.js.zst", "", "app.js.gz", "", "b.png",
		"x", "b.png.br", "")})
	for path, want := range map[string]string{"/app.js": script, "/b.png": "x"} {
		for _, coding := range []string{"br", "zstd", "gzip"} {
			if got := decode(t, do(h, "GET", path, "Accept-Encoding: "+coding)); got != want {
				t.Errorf("%s in %s: got %d bytes, want the file", path, coding, len(got))
			}
		}
	}
}

// watched is an app whose files can be observed and replaced when they are
// opened.
type watched struct {
	fs.FS
	onOpen func(name string) fs.FS // nil: FS
}

func (f watched) Open(name string) (fs.File, error) {
	if other := f.onOpen(name); other != nil {
		return other.Open(name)
	}
	return f.FS.Open(name)
}

func (f watched) Stat(name string) (fs.FileInfo, error) { return fs.Stat(f.FS, name) }

func TestConcurrentRequestsShareOneCompression(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const clients = 20
		var opened atomic.Int32
		compress := make(chan struct{})
		all := files("index.html", "home", "app.js", script)
		h := newHandler(t, web.Config{FS: watched{all, func(name string) fs.FS {
			if name == "app.js" && opened.Add(1) == 2 { // to compress it
				<-compress
			}
			return nil
		}}})
		var wg sync.WaitGroup
		for range clients {
			wg.Go(func() {
				resp := do(h, "GET", "/app.js", "Accept-Encoding: br")
				wantHeader(t, resp, "Content-Encoding", "br")
				if got := decode(t, resp); got != script {
					t.Errorf("got %d bytes, want the script", len(got))
				}
			})
			synctest.Wait() // until the request waits
		}
		close(compress)
		wg.Wait()
		if got := opened.Load(); got != clients+1 {
			t.Errorf("the file was opened %d times, want %d: for each request, and once to compress it", got, clients+1)
		}
	})
}

func TestFileChangesBeforeItIsCompressed(t *testing.T) {
	opened := 0
	h := newHandler(t, web.Config{FS: watched{files("index.html", "home", "app.js", script), func(name string) fs.FS {
		if name != "app.js" {
			return nil
		}
		if opened++; opened == 1 {
			return nil
		}
		return files("app.js", strings.ToUpper(script))
	}}})
	resp := do(h, "GET", "/app.js", "Accept-Encoding: br")
	wantHeader(t, resp, "Content-Encoding", "")
	if got := body(t, resp); got != script {
		t.Errorf("got %d bytes, want the content that was read first", len(got))
	}
	resp = do(h, "GET", "/app.js", "Accept-Encoding: br")
	wantHeader(t, resp, "Content-Encoding", "br")
	if got := decode(t, resp); got != strings.ToUpper(script) {
		t.Errorf("got %d bytes, want the new content", len(got))
	}
}

// A request does not wait for a compression that takes long.
func TestSlowCompression(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opened := 0
		release := make(chan struct{})
		all := files("index.html", "home", "app.js", script)
		h := newHandler(t, web.Config{FS: watched{all, func(name string) fs.FS {
			if opened++; opened == 2 { // to compress it
				<-release
			}
			return nil
		}}})
		opened = 0
		began := time.Now()
		resp := do(h, "GET", "/app.js", "Accept-Encoding: br")
		wantHeader(t, resp, "Content-Encoding", "")
		if got := body(t, resp); got != script {
			t.Errorf("got %d bytes, want the script", len(got))
		}
		if waited := time.Since(began); waited != 3*time.Second {
			t.Errorf("the request waited %v, want 3s", waited)
		}
		close(release)
		synctest.Wait()
		resp = do(h, "GET", "/app.js", "Accept-Encoding: br")
		wantHeader(t, resp, "Content-Encoding", "br")
	})
}

func TestCompressedContentIsBounded(t *testing.T) {
	const names = 50
	all := files("index.html", "home")
	for i := range names {
		all[fmt.Sprintf("%d.js", i)] = &fstest.MapFile{Data: []byte(fmt.Sprint(i) + script)}
	}
	h := newHandler(t, web.Config{FS: all})
	h.LimitCompressed(1000)
	for range 3 {
		for i := range names {
			resp := do(h, "GET", fmt.Sprintf("/%d.js", i), "Accept-Encoding: gzip")
			if got := decode(t, resp); got != fmt.Sprint(i)+script {
				t.Fatalf("%d.js: got %d bytes, want the file", i, len(got))
			}
			do(h, "GET", "/0.js", "Accept-Encoding: gzip") // used often, so it stays
			if entries, size := h.Compressed(); size > 1000 || entries < 1 {
				t.Fatalf("got %d entries of %d bytes, want some, and at most 1000 bytes", entries, size)
			}
		}
	}
	opened := 0
	all["9.js"].Data = []byte(script)
	h = newHandler(t, web.Config{FS: watched{all, func(string) fs.FS { opened++; return nil }}})
	h.LimitCompressed(1000)
	opened = 0
	for i := range names {
		do(h, "GET", "/0.js", "Accept-Encoding: gzip")
		do(h, "GET", fmt.Sprintf("/%d.js", i), "Accept-Encoding: gzip")
	}
	if want := 2*names + names; opened != want { // two requests a round, one compression of each file
		t.Errorf("files were opened %d times, want %d: the entry used most recently was removed", opened, want)
	}
}

func TestDeployIsCompressedAgain(t *testing.T) {
	dir := writeApp(t)
	h := newHandler(t, web.Config{Dir: dir})
	for _, text := range []string{script, strings.ToUpper(script)} {
		write(t, filepath.Join(dir, "app.js"), []byte(text))
		resp := do(h, "GET", "/app.js", "Accept-Encoding: zstd")
		wantHeader(t, resp, "Content-Encoding", "zstd")
		if got := decode(t, resp); got != text {
			t.Errorf("got %.20q, want %.20q", got, text)
		}
	}
}

func BenchmarkCompressed(b *testing.B) {
	h := megabyte(b)
	time.Sleep(2500 * time.Millisecond) // until digests are cached
	for _, coding := range []string{"identity", "br", "zstd", "gzip"} {
		b.Run(coding, func(b *testing.B) {
			get(b, h, "/app.js", "Accept-Encoding", coding)
			b.ReportAllocs()
			for b.Loop() {
				if w := get(b, h, "/app.js", "Accept-Encoding", coding); w.Code != 200 {
					b.Fatal(w.Code)
				}
			}
		})
	}
}

// BenchmarkFirstRequest measures how long the first request for a script of 1
// MiB waits for its compression.
func BenchmarkFirstRequest(b *testing.B) {
	var text bytes.Buffer
	for i := 0; text.Len() < 1<<20; i++ {
		fmt.Fprintf(&text, "function f%x(a,b){return a[%d]?.render(b,{key:%q})??g%x(a)}",
			i*7919, i%97, fmt.Sprint(i*i), i*31)
	}
	for _, coding := range []string{"br", "zstd", "gzip"} {
		b.Run(coding, func(b *testing.B) {
			for b.Loop() {
				h, err := web.New(web.Config{FS: files("index.html", "home", "app.js", text.String())})
				if err != nil {
					b.Fatal(err)
				}
				w := get(b, h, "/app.js", "Accept-Encoding", coding)
				b.ReportMetric(float64(w.Body.Len())/float64(text.Len()), "ratio")
			}
		})
	}
}
