package smallfile_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/internal/smallfile"
)

func TestRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	name := filepath.Join(dir, "a")
	for size, refused := range map[int]bool{0: false, 3: false, 1 << 20: false, 1<<20 + 1: true} {
		text := strings.Repeat("x", size)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := smallfile.Read(name)
		if (err != nil) != refused {
			t.Errorf("%d bytes: got error %v, want one: %v", size, err, refused)
		}
		if err == nil && string(got) != text {
			t.Errorf("%d bytes: got %d others", size, len(got))
		}
	}
	if _, err := smallfile.Read(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: got %v, want %v", err, fs.ErrNotExist)
	}
	if _, err := smallfile.Read(dir); err == nil || !strings.Contains(err.Error(), "is not a regular file") {
		t.Errorf("a folder: got %v, want that it is no regular file", err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(name, link); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := smallfile.Read(link); err != nil || string(got) != "x" {
		t.Errorf("a link: got %q, %v, want the file", got, err)
	}
}
