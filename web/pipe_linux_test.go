package web_test

import (
	"net/http/httptest"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/web"
)

func TestANamedPipeInTheDirectoryDoesNotExist(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "index.html"), []byte("<!doctype html>"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "x.js"), 0o644); err != nil {
		t.Fatal(err)
	}
	h, err := web.New(web.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	status := make(chan int, 1)
	go func() { // until the response
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/x.js", nil))
		status <- w.Code
	}()
	select {
	case got := <-status:
		if got != 404 {
			t.Errorf("got %d, want 404", got)
		}
	case <-time.After(10 * time.Second):
		t.Error("the request waits for a writer of the pipe")
	}
}
