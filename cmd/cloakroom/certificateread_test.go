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

// What makes a file readable again changes neither its time nor its size. The
// replaced certificate is served all the same, and the failure is logged once.
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
	// A directory on the way is not there yet; root may read everything else.
	os.Remove(files.KeyFile)
	if err := os.Symlink(filepath.Join(dir, "later", "new.key"), files.KeyFile); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		c.reload()
	}
	if n := strings.Count(logs.String(), "certificate not replaced"); n != 1 {
		t.Errorf("%d log lines, want 1:\n%s", n, logs)
	}
	state := c.seen
	if err := os.Symlink(dir, filepath.Join(dir, "later")); err != nil {
		t.Fatal(err)
	}
	c.seen = c.state() // as if the look before had seen the same times and sizes
	if state == c.seen {
		t.Fatal("the state is the same")
	}
	c.reload()
	if n := c.current.Load().Leaf.SerialNumber.Int64(); n != 2 {
		t.Errorf("certificate %d is served, want 2", n)
	}
}
