//go:build unix

package main

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

const (
	begin, end = "<!-- bench -->\n", "<!-- /bench -->\n"
	beginCalls = "<!-- bench-calls -->\n"
	endCalls   = "<!-- /bench-calls -->\n"
)

// The bench itself, as small as it can be, with what every machine has that
// runs the tests.
func TestBenchmarkRuns(t *testing.T) {
	testenv.Slow(t)
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	program, out := filepath.Join(dir, "proxybench"), filepath.Join(dir, "performance.md")
	old := "# Performance\n\n" + begin + "old\n" + end + "\n" + beginCalls + "old\n" + endCalls + "\nThe rest.\n"
	if err := os.WriteFile(out, []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	const rows = "^call: |(KB response|Go server|chunks|upload), " // nginx may be missing
	if text, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if text, err := exec.Command(program, "-rounds", "1", "-time", "20ms", "-streams", "20", "-only", bare+","+ours,
		"-rows", rows, "-o", out).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	written, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	text := string(written)
	if strings.Contains(text, "old\n") || !strings.HasSuffix(text, endCalls+"\nThe rest.\n") ||
		strings.Count(text, "| **"+ours+"** |") != len(cells(regexp.MustCompile(rows))) ||
		!strings.Contains(text, "event stream, of 20 |") {
		t.Errorf("got\n%s", text)
	}
	for _, c := range (options{}).calls() {
		if strings.Count(text, "| "+c.name+" | "+ours+" |") != 1 ||
			strings.Count(text, "| "+c.name+" | ") != 1+len(c.goals) {
			t.Errorf("%s: not in its tables:\n%s", c.name, text)
		}
	}
	for _, c := range []string{"login", "refresh", "back-channel logout"} {
		if regexp.MustCompile(`(?m)^\| ` + c + ` \| ` + ours + ` \| [^|]*\| [^|]*\| 0\.`).MatchString(text) {
			t.Errorf("%s: got no round trip to Redis, want several:\n%s", c, text)
		}
	}
}

// The frames are those of RFC 6455, section 5.2.
func TestFramesAreReadAsWritten(t *testing.T) {
	t.Parallel()
	message := bytes.Repeat([]byte("ab"), 100)
	for _, mask := range [][]byte{nil, {1, 2, 3, 4}} {
		frame := appendFrame(nil, message, mask)
		if want := 4 + len(mask) + len(message); len(frame) != want || (frame[1]&0x80 != 0) != (mask != nil) {
			t.Errorf("mask %x: got %d bytes beginning with %x, want %d", mask, len(frame), frame[:4], want)
		}
		if got, err := readFrame(bufio.NewReader(bytes.NewReader(frame))); err != nil || !bytes.Equal(got, message) {
			t.Errorf("mask %x: got %q, %v", mask, got, err)
		}
	}
}

func TestCallsAreSelected(t *testing.T) {
	t.Parallel()
	for rows, want := range map[string]int{"call: file": 3, "call: login$": 2, "1 KB response, 32 |in chunks, 32 ": 0} {
		if got := (options{rows: regexp.MustCompile(rows)}).calls(); len(got) != want ||
			want > 0 && got[0].name != proxied {
			t.Errorf("%q: got %v, want %d calls, the proxied request first", rows, got, want)
		}
	}
}
