//go:build unix

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

const begin, end = "<!-- bench -->\n", "<!-- /bench -->\n"

// The bench itself, as small as it can be, with what every machine has that
// runs the tests.
func TestBenchmarkRuns(t *testing.T) {
	testenv.Slow(t)
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	program, out := filepath.Join(dir, "proxybench"), filepath.Join(dir, "performance.md")
	if err := os.WriteFile(out, []byte("# Performance\n\n"+begin+"old\n"+end+"\nThe rest.\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if text, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if text, err := exec.Command(program, "-rounds", "1", "-time", "20ms", "-streams", "20", "-only", bare+","+ours,
		"-o", out).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	written, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	text := string(written)
	if strings.Contains(text, "old") || !strings.HasSuffix(text, end+"\nThe rest.\n") ||
		strings.Count(text, "| **"+ours+"** |") != len(cells(nil)) || !strings.Contains(text, "event stream, of 20 |") {
		t.Errorf("got\n%s", text)
	}
}
