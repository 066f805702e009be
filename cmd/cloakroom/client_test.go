package main

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
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
	want := []string{"client.d.ts", "client.js", "notice.d.ts", "notice.js", "react.d.ts", "react.js"}
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

// runWithoutSpace runs a command that can write no file of more than 1 KiB, as
// on a disk that is nearly full.
func runWithoutSpace(t *testing.T, args ...string) (stderr string, err error) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	script := `ulimit -f 1; exec -a ` + brokerName + ` "$0" "$@"`
	cmd := exec.Command("bash", append([]string{"-c", script, self}, args...)...)
	var b bytes.Buffer
	cmd.Stderr = &b
	err = cmd.Run()
	return b.String(), err
}

func TestFullDiskLeavesNoPartOfAFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	overwrite(t, filepath.Join(dir, "package.json"), `{"devDependencies": {"vite": "8"}}`)
	client := filepath.Join(dir, "client")
	initArgs := []string{"init", "--dir", dir, "--issuer", "https://id.example.com", "--client-id", "spa",
		"--public-url", "https://app.example.com"}
	for file, args := range map[string][]string{
		filepath.Join(client, "client.js"):        {"client", client},
		filepath.Join(dir, "cloakroom/client.js"): initArgs,
	} {
		stderr, err := runWithoutSpace(t, args...)
		if err == nil || !strings.Contains(stderr, file) {
			t.Errorf("%s: got %v and %q, want an error that names %s", args[0], err, stderr, file)
		}
		if _, err := os.Lstat(file); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: got %v for a part of %s, want that there is none", args[0], err, file)
		}
		var out, errOut bytes.Buffer
		if err := run(t.Context(), args, noEnv, strings.NewReader(""), &out, &errOut); err != nil {
			t.Errorf("%s with space: got %v %s, want no error", args[0], err, &errOut)
		}
		want, err := fs.ReadFile(web.ClientFiles(), "client.js")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s with space: got %v and %d bytes, want the client", args[0], err, len(got))
		}
	}
}

func TestClientDoesNotReadAGiantFile(t *testing.T) {
	dir := t.TempDir()
	giant := filepath.Join(dir, "client.js")
	overwrite(t, giant, "")
	if err := os.Truncate(giant, 8<<30); err != nil {
		t.Fatal(err)
	}
	if _, err := runCommand(t, "client", dir); err == nil || !strings.Contains(err.Error(), "differ") {
		t.Errorf("got error %v, want that the file differs", err)
	}
}
