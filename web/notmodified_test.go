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

// A 304 that opens no file has the header of one that does.
func TestNotModifiedWithoutOpeningTheFile(t *testing.T) {
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
			if w := get(t, h, path, "Accept-Encoding", accept, "If-None-Match", `"other"`); w.Code != 200 {
				t.Errorf("%s, %s: got %d for another ETag, want 200", path, accept, w.Code)
			}
			if w := get(t, h, path, "If-Match", `"other"`, "If-None-Match", etag); w.Code != 412 {
				t.Errorf("%s: got %d with If-Match, want 412", path, w.Code)
			}
		}
	}
	allocations := func(etag string) float64 {
		r := httptest.NewRequest("GET", "/app.js", nil)
		r.Header.Set("If-None-Match", etag)
		return testing.AllocsPerRun(100, func() { h.ServeHTTP(httptest.NewRecorder(), r) })
	}
	etag := get(t, h, "/app.js").Header().Get("ETag")
	fast, slow := allocations(etag), allocations(`"other", `+etag)
	if runtime.GOOS == "linux" && fast > slow-10 { // elsewhere no digest is cached
		t.Errorf("got %v allocations, and %v if the file is opened: want much less", fast, slow)
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
	for range 2 {
		if w := get(t, h, "/small.js", "If-None-Match", etag); w.Code != 404 {
			t.Errorf("link that leads out: got %d, want 404", w.Code)
		}
	}
}
