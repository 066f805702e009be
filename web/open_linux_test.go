package web_test

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/web"
)

// openFilesWriter records the files of a directory that are open when the
// content of a response is written.
type openFilesWriter struct {
	*httptest.ResponseRecorder
	dir  string
	open []string
}

func (w *openFilesWriter) Write(b []byte) (int, error) {
	if w.open == nil {
		w.open = openFiles(w.dir)
	}
	return w.ResponseRecorder.Write(b)
}

// openFiles returns the names of the files of a directory that this process has
// open.
func openFiles(dir string) []string {
	names := []string{}
	all, _ := filepath.Glob("/proc/self/fd/*")
	for _, fd := range all {
		if target, err := os.Readlink(fd); err == nil && strings.HasPrefix(target, dir) {
			names = append(names, strings.TrimPrefix(target, dir))
		}
	}
	return names
}

func TestAResponseKeepsOneFileOpenAtMost(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	past := time.Now().Add(-time.Hour)
	for name, size := range map[string]int{
		"index.html": 100, "404.html": 5000, "app.js": 5000, "app.js.br": 2000, "plain.css": 5000, "movie.mp4": 2 << 20,
	} {
		write(t, filepath.Join(dir, name), bytes.Repeat([]byte("x"), size))
		if err := os.Chtimes(filepath.Join(dir, name), past, past); err != nil {
			t.Fatal(err)
		}
	}
	h := newHandler(t, web.Config{Dir: dir})
	for _, tt := range []struct {
		path, encoding string
		want           []string
	}{
		{"/movie.mp4", "br", []string{"/movie.mp4"}},
		{"/app.js", "br", []string{"/app.js.br"}},
		{"/plain.css", "gzip", []string{}},
		{"/missing", "gzip", []string{}},
	} {
		w := &openFilesWriter{ResponseRecorder: httptest.NewRecorder(), dir: dir}
		r := httptest.NewRequest(http.MethodGet, tt.path, nil)
		r.Header.Set("Accept-Encoding", tt.encoding)
		r.Header.Set("Sec-Fetch-Mode", "navigate")
		h.ServeHTTP(w, r)
		if !slices.Equal(w.open, tt.want) || w.Body.Len() == 0 {
			t.Errorf("%s: got %d, open files %q, want %q", tt.path, w.Code, w.open, tt.want)
		}
		if left := openFiles(dir); len(left) > 0 {
			t.Errorf("%s: got open files %q afterwards, want none", tt.path, fmt.Sprint(left))
		}
	}
}
