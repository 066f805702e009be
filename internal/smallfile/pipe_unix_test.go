//go:build unix

package smallfile_test

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/smallfile"
)

func TestReadWaitsForNoPipe(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() { // until Read returns; at the latest, at the end of the tests
		_, err := smallfile.Read(name)
		result <- err
	}()
	select {
	case err := <-result:
		if err == nil || !strings.Contains(err.Error(), "is not a regular file") {
			t.Errorf("got %v, want that it is no regular file", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Read waits for a writer of the pipe")
	}
}
