package main

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/web"
)

func TestClientWritesWhatIsAskedFor(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "src", "bff")
	out, err := runCommand(t, "client", "--react", dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"wrote " + filepath.Join(dir, "client.js"),
		`import { createClient } from "./bff/client.js";`,
		`import { CloakroomProvider, RequireSession, useSession } from "./bff/react.js";`,
	} {
		if !strings.Contains(out, want) {
			t.Errorf("got output %q, want it to contain %q", out, want)
		}
	}
	want := []string{"client.d.ts", "client.js", "react.d.ts", "react.js"}
	if got := namesIn(t, dir); !slices.Equal(got, want) {
		t.Errorf("got files %q, want %q", got, want)
	}
	if out, err := runCommand(t, "client", dir); err != nil || !strings.Contains(out, "all files are up to date") {
		t.Errorf("a second time: got %q and %v, want nothing written", out, err)
	}
}

func TestClientKeepsFilesThatDiffer(t *testing.T) {
	dir := t.TempDir()
	own := filepath.Join(dir, "client.js")
	if err := os.WriteFile(own, []byte("my own"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := runCommand(t, "client", dir); err == nil || !strings.Contains(err.Error(), own) {
		t.Errorf("got error %v, want one that names %s", err, own)
	}
	if got := namesIn(t, dir); !slices.Equal(got, []string{"client.js"}) {
		t.Errorf("got files %q, want nothing new", got)
	}
	if got, _ := os.ReadFile(own); string(got) != "my own" {
		t.Errorf("got content %q, want the old one", got)
	}
	if _, err := runCommand(t, "client", "--force", dir); err != nil {
		t.Fatal(err)
	}
	want, _ := fs.ReadFile(web.ClientFiles(), "client.js")
	if got, _ := os.ReadFile(own); string(got) != string(want) {
		t.Errorf("got %d bytes with --force, want the client", len(got))
	}
}

func TestClientRefusesWhatIsNoDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"client"}, {"client", "a", "b"}, {"client", ""}, {"client", file},
		{"client", "--ember", "x"}} {
		if out, err := runCommand(t, args...); err == nil {
			t.Errorf("%q: got output %q, want an error", args, out)
		}
	}
}

// The command knows all files of the package.
func TestClientCanWriteEveryFile(t *testing.T) {
	args := []string{"client", t.TempDir()}
	for _, part := range clientParts {
		args = append(args, "--"+part.name)
	}
	if _, err := runCommand(t, args...); err != nil {
		t.Fatal(err)
	}
	files, err := fs.Glob(web.ClientFiles(), "*")
	if err != nil {
		t.Fatal(err)
	}
	if got := namesIn(t, args[1]); !slices.Equal(got, files) {
		t.Errorf("got %q, want %q", got, files)
	}
}

func namesIn(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func runCommand(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out, errOut strings.Builder
	err := run(t.Context(), args, func(string) string { return "" }, strings.NewReader(""), &out, &errOut)
	return out.String(), err
}

func TestClientWritesThroughNoLink(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.Symlink(outside, filepath.Join(dir, "client.d.ts")); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"client", dir}, {"client", "--force", dir}} {
		var stderr bytes.Buffer
		err := run(t.Context(), args, func(string) string { return "" }, strings.NewReader(""), io.Discard, &stderr)
		if err == nil || !strings.Contains(stderr.String(), "client.d.ts is not a regular file") {
			t.Errorf("%q: got %v, want that the link is no regular file", args, err)
		}
	}
	for _, name := range []string{outside, filepath.Join(dir, "client.js")} {
		if _, err := os.Stat(name); err == nil {
			t.Errorf("%s was written", name)
		}
	}
}
