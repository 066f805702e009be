package web_test

import (
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/web"
)

// A response for which no file is opened is the same as one for which a file
// is.
func TestKnownFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	outside := filepath.Join(t.TempDir(), "secret.js")
	if err := os.WriteFile(outside, []byte("outside"), 0o600); err != nil {
		t.Fatal(err)
	}
	write("index.html", "<script>a()</script>")
	write("people/index.html", "<script>a()</script>")
	write("relative/index.html", "<script src=a.js></script>")
	write(".well-known/index.html", "<script src=a.js></script>")
	write("app.js", script)
	write("small.js", "small")
	write("sibling.js", script)
	write("sibling.js.br", "sibling")
	write("image.png", "image")
	write("main.4f3a2b1c9d8e7f60.chunk.js", script)
	h, err := web.New(web.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(2500 * time.Millisecond) // until digests are cached
	for _, path := range []string{
		"/", "/people/", "/people", "/relative/", "/app.js", "/small.js", "/sibling.js", "/image.png",
		"/main.4f3a2b1c9d8e7f60.chunk.js",
	} {
		for _, accept := range []string{"gzip, deflate, br, zstd", "gzip", "identity", "*;q=0"} {
			etag := get(t, h, path, "Accept-Encoding", accept).Header().Get("ETag")
			get(t, h, path, "Accept-Encoding", accept)
			fast := get(t, h, path, "Accept-Encoding", accept, "If-None-Match", etag)
			slow := get(t, h, path, "Accept-Encoding", accept, "If-None-Match", `"other", `+etag)
			if fast.Code != 304 || slow.Code != 304 {
				t.Errorf("%s, %s: got %d, and %d with a list of ETags, want 304", path, accept, fast.Code, slow.Code)
			}
			if !reflect.DeepEqual(fast.Header(), slow.Header()) {
				t.Errorf("%s, %s: got header\n%v, want\n%v", path, accept, fast.Header(), slow.Header())
			}
			fast = get(t, h, path, "Accept-Encoding", accept)
			slow = get(t, h, path, "Accept-Encoding", accept, "If-None-Match", `"other"`)
			if fast.Code != 200 || slow.Code != 200 {
				t.Errorf("%s, %s: got %d, and %d for another ETag, want 200", path, accept, fast.Code, slow.Code)
			}
			if !reflect.DeepEqual(fast.Header(), slow.Header()) || fast.Body.String() != slow.Body.String() {
				t.Errorf("%s, %s: got %d bytes and header\n%v, want %d bytes and\n%v",
					path, accept, fast.Body.Len(), fast.Header(), slow.Body.Len(), slow.Header())
			}
			head := do(h, "HEAD", path, "Accept-Encoding: "+accept)
			if got := body(t, head); !reflect.DeepEqual(head.Header, slow.Header()) || got != "" {
				t.Errorf("HEAD %s, %s: got %d bytes and header\n%v, want none and\n%v",
					path, accept, len(got), head.Header, slow.Header())
			}
			if w := get(t, h, path, "If-Match", `"other"`, "If-None-Match", etag); w.Code != 412 {
				t.Errorf("%s: got %d with If-Match, want 412", path, w.Code)
			}
			part := get(t, h, path, "Accept-Encoding", accept, "Range", "bytes=0-1")
			if part.Code != 206 || part.Body.Len() != 2 {
				t.Errorf("%s, %s: got %d and %d bytes for a Range, want 206 and 2",
					path, accept, part.Code, part.Body.Len())
			}
		}
	}
	etag := get(t, h, "/.well-known/").Header().Get("ETag")
	if w := get(t, h, "/.well-known", "If-None-Match", etag); w.Code != 308 {
		t.Errorf("a page with a relative URL: got %d without the slash at the end, want 308", w.Code)
	}
	allocations := func(header ...string) float64 {
		r := httptest.NewRequest("GET", "/app.js", nil)
		for i := 1; i < len(header); i += 2 {
			r.Header.Set(header[i-1], header[i])
		}
		return testing.AllocsPerRun(100, func() { h.ServeHTTP(httptest.NewRecorder(), r) })
	}
	etag = get(t, h, "/app.js").Header().Get("ETag")
	for _, known := range []struct{ fast, slow []string }{
		{[]string{"If-None-Match", etag}, []string{"If-None-Match", `"other", ` + etag}},
		{[]string{"Accept-Encoding", "br"}, []string{"Accept-Encoding", "br", "If-None-Match", `"other"`}},
	} {
		fast, slow := allocations(known.fast...), allocations(known.slow...)
		if runtime.GOOS == "linux" && fast > slow-10 { // elsewhere no digest is cached
			t.Errorf("%q: got %v allocations, and %v if the file is opened: want much less", known.fast, fast, slow)
		}
	}

	// A new sibling, a file that is gone, and a link that leads out.
	etag = get(t, h, "/app.js", "Accept-Encoding", "br").Header().Get("ETag")
	write("app.js.br", "new sibling")
	age(t, filepath.Join(dir, "app.js.br"))
	if w := get(t, h, "/app.js", "Accept-Encoding", "br", "If-None-Match", etag); w.Body.String() != "new sibling" {
		t.Errorf("new sibling: got %d, want 200 and the sibling", w.Code)
	}
	etag = get(t, h, "/small.js").Header().Get("ETag")
	if err := os.Remove(filepath.Join(dir, "small.js")); err != nil {
		t.Fatal(err)
	}
	if w := get(t, h, "/small.js", "If-None-Match", etag); w.Code != 404 {
		t.Errorf("removed file: got %d, want 404", w.Code)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "small.js")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "app.js"), filepath.Join(dir, "old.js")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "app.js")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if w := get(t, h, "/small.js", "If-None-Match", etag); w.Code != 404 {
			t.Errorf("link that leads out: got %d, want 404", w.Code)
		}
		if w := get(t, h, "/app.js", "Accept-Encoding", "gzip"); w.Code != 404 {
			t.Errorf("link that leads out, of a compressed file: got %d, want 404", w.Code)
		}
	}
}
