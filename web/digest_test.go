package web_test

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/web"
)

func get(t testing.TB, h http.Handler, path string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest("GET", path, nil)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// Reproducible builds give all files the same time, so neither time nor size
// distinguishes a new content from the old one.
func TestChangeWithSameSizeAndTime(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	epoch := time.Unix(315532800, 0)
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, epoch, epoch); err != nil {
			t.Fatal(err)
		}
	}
	write("index.html", "<script>a()</script>")
	write("app.js", "first!")
	h, err := web.New(web.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(2500 * time.Millisecond) // until digests are cached
	for range 2 {
		get(t, h, "/app.js")
		get(t, h, "/")
	}
	etag, policy := get(t, h, "/app.js").Header().Get("ETag"), get(t, h, "/").Header().Get("Content-Security-Policy")
	if w := get(t, h, "/app.js", "If-None-Match", etag); w.Code != 304 {
		t.Errorf("same content: got %d, want 304", w.Code)
	}
	write("app.js", "second")
	write("index.html", "<script>b()</script>")
	w := get(t, h, "/app.js", "If-None-Match", etag)
	if w.Code != 200 || w.Body.String() != "second" {
		t.Errorf("new content: got %d %q, want 200 and second", w.Code, w.Body)
	}
	if w.Header().Get("ETag") == etag {
		t.Error("new content: got the ETag of the old one")
	}
	w = get(t, h, "/")
	if w.Body.String() != "<script>b()</script>" {
		t.Errorf("new page: got %q", w.Body)
	}
	if w.Header().Get("Content-Security-Policy") == policy {
		t.Error("new page: got the policy of the old one")
	}
	// A deploy that replaces the file.
	write("next.js", "third!")
	if err := os.Rename(filepath.Join(dir, "next.js"), filepath.Join(dir, "app.js")); err != nil {
		t.Fatal(err)
	}
	if w := get(t, h, "/app.js", "If-None-Match", etag); w.Body.String() != "third!" {
		t.Errorf("replaced file: got %d %q, want third!", w.Code, w.Body)
	}
}

func TestTooManyRanges(t *testing.T) {
	t.Parallel()
	h := megabyte(t)
	if w := get(t, h, "/app.js", "Range", "bytes=0-0,5-5"); w.Code != 206 {
		t.Errorf("two ranges: got %d, want 206", w.Code)
	}
	w := get(t, h, "/app.js", "Range", "bytes=0-0"+strings.Repeat(",0-0", 5000))
	if w.Code != 200 || w.Body.Len() != 1<<20 {
		t.Errorf("5,001 ranges: got %d with %d bytes, want the whole file", w.Code, w.Body.Len())
	}
}

// megabyte returns a handler with a file of 1 MiB.
func megabyte(t testing.TB) *web.Handler {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string][]byte{
		"index.html": []byte("<!doctype html>"),
		"app.js":     bytes.Repeat([]byte("0123456789abcdef"), 1<<16),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h, err := web.New(web.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// recording is a response that keeps the address of each write, and with it
// the memory: it is not used for another buffer.
type recording struct {
	header  http.Header
	size    int
	buffers map[*byte]bool
}

func (w *recording) Header() http.Header { return w.header }
func (w *recording) WriteHeader(int)     {}

func (w *recording) Write(b []byte) (int, error) {
	w.size += len(b)
	w.buffers[&b[0]] = true
	return len(b), nil
}

func TestResponsesShareTheBufferOfTheirCopies(t *testing.T) {
	t.Parallel()
	const size, requests = 2 << 20, 200
	dir := t.TempDir()
	write(t, filepath.Join(dir, "index.html"), []byte("home"))
	write(t, filepath.Join(dir, "large.png"), make([]byte, size))
	h := newHandler(t, web.Config{Dir: dir})
	buffers := make(map[*byte]bool)
	for range requests {
		w := &recording{header: make(http.Header), buffers: buffers}
		h.ServeHTTP(w, httptest.NewRequest("GET", "/large.png", nil))
		if w.size != size {
			t.Fatalf("got %d bytes, want %d", w.size, size)
		}
	}
	if len(buffers) > requests/2 { // with the race detector, a sync.Pool drops a quarter of them
		t.Errorf("got %d buffers for %d responses, want them shared", len(buffers), requests)
	}
}

// The cost of requests with a small response, compared with that of a 404.
func BenchmarkSmallResponses(b *testing.B) {
	h := megabyte(b)
	time.Sleep(2500 * time.Millisecond)
	etag := get(b, h, "/app.js").Header().Get("ETag")
	for _, request := range []struct {
		name   string
		path   string
		header []string
	}{
		{"404", "/nothing.js", nil},
		{"range of one byte", "/app.js", []string{"Range", "bytes=0-0"}},
		{"304", "/app.js", []string{"If-None-Match", etag}},
		{"412", "/app.js", []string{"If-Match", `"other"`}},
		{"416", "/app.js", []string{"Range", "bytes=99999999-"}},
		{"page", "/", nil},
	} {
		b.Run(fmt.Sprint(request.name), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				get(b, h, request.path, request.header...)
			}
		})
	}
}
