//go:build unix

package config

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// serve --config <(sops decrypt cloakroom.yaml)
func TestConfigurationFromAPipeIsReadOnce(t *testing.T) {
	t.Parallel()
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	go os.WriteFile(pipe, []byte("oidc: {client_id: spa}\n"), 0) // until it is read, or the tests end
	for range 3 {
		if files := Files(pipe, none); len(files) != 1 || files[0] != pipe {
			t.Fatalf("files: got %q, want %q", files, pipe)
		}
		c, err := Load(pipe, none)
		if err != nil || c.OIDC.ClientID != "spa" {
			t.Fatalf("got %+v, %v, want oidc.client_id spa", c, err)
		}
	}
}
