package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/config"
)

// A file that becomes readable again keeps its modification time and its size.
// The new certificate is served anyway, and the error is logged once.
func TestACertificateThatBecomesReadableIsServed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key := newPair(t, 1, time.Now().AddDate(1, 0, 0))
	files := config.TLS{CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key")}
	overwrite(t, files.CertFile, cert)
	overwrite(t, files.KeyFile, key)
	logs := new(lockedBuffer)
	c, err := loadCertificate(files, slog.New(slog.NewTextHandler(logs, nil)))
	if err != nil {
		t.Fatal(err)
	}
	cert, key = newPair(t, 2, time.Now().AddDate(1, 0, 0))
	overwrite(t, files.CertFile, cert)
	overwrite(t, filepath.Join(dir, "new.key"), key)
	// A parent directory is missing: root may read any file that exists.
	os.Remove(files.KeyFile)
	if err := os.Symlink(filepath.Join(dir, "later", "new.key"), files.KeyFile); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		c.reload()
	}
	if got := strings.Count(logs.String(), "certificate not replaced"); got != 1 {
		t.Errorf("log lines: got %d, want 1:\n%s", got, logs)
	}
	state := c.seen
	if err := os.Symlink(dir, filepath.Join(dir, "later")); err != nil {
		t.Fatal(err)
	}
	c.seen = c.state() // as if the last check had found the same times and sizes
	if state == c.seen {
		t.Fatal("got the state of before, want another one")
	}
	c.reload()
	if got := c.current.Load().Leaf.SerialNumber.Int64(); got != 2 {
		t.Errorf("certificate served: got %d, want 2", got)
	}
}
