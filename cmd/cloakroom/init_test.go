package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestInitWritesAConfigurationThatIsValid(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"package.json":    `{"scripts": {"dev": "vite"}, "devDependencies": {"vite": "7"}}`,
		"dist/index.html": "<!doctype html>",
		// What init asks the team to add:
		"secrets/client-secret": "a secret of the client\n",
	} {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		overwrite(t, name, text)
	}
	args := []string{"init", "--dir", dir, "--issuer", "https://id.example.com", "--client-id", "spa: yes",
		"--public-url", "https://app.example.com", "--api", "/api=http://localhost:3000"}
	var out, stderr bytes.Buffer
	noEnv := func(string) string { return "" }
	if err := run(t.Context(), args, noEnv, strings.NewReader(""), &out, &stderr); err != nil {
		t.Fatalf("got %v\n%s", err, &stderr)
	}
	for _, want := range []string{"wrote cloakroom.yaml", "cloakroom dev --config cloakroom.yaml -- npm run dev",
		"redirect URI https://app.example.com/bff/callback"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the output lacks %q:\n%s", want, &out)
		}
	}
	file := filepath.Join(dir, "cloakroom.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(strings.NewReplacer("secrets/", dir+"/secrets/", "dir: dist",
		"dir: "+dir+"/dist").
		Replace(string(text))), 0o644); err != nil {
		t.Fatal(err)
	}
	var findings bytes.Buffer
	err = run(t.Context(), []string{"check", "--offline", "--config", file}, noEnv, strings.NewReader(""),
		&findings, &stderr)
	if err != nil {
		t.Errorf("check: got %v\n%s", err, &findings)
	}
	out.Reset()
	if err := run(t.Context(), args, noEnv, strings.NewReader(""), &out, &stderr); err != nil {
		t.Fatalf("again: got %v", err)
	}
	if !strings.Contains(out.String(), "kept cloakroom.yaml") || strings.Contains(out.String(), "wrote ") {
		t.Errorf("again: got\n%s\nwant everything kept", &out)
	}
}

func TestInitNamesTheOptionThatIsMissingOrWrong(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	overwrite(t, filepath.Join(dir, "index.html"), "<!doctype html>")
	for args, want := range map[string]string{
		"": "--issuer is required",
		"--issuer id.example.com --client-id x --public-url https://a":       `--issuer: "id.example.com" is not a URL`,
		"--issuer https://id.example.com":                                    "--client-id is required",
		"--issuer https://i --client-id x --public-url https://a --api /api": `--api: "/api" is not an API`,
	} {
		var stderr bytes.Buffer
		err := run(t.Context(), append([]string{"init", "--dir", dir}, strings.Fields(args)...),
			func(string) string { return "" }, strings.NewReader(""), &bytes.Buffer{}, &stderr)
		if exitCode(err) != 2 || !strings.Contains(stderr.String(), want) {
			t.Errorf("%q: got status %d, %s; want 2 and %q", args, exitCode(err), &stderr, want)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "cloakroom.yaml")); err == nil {
		t.Error("a file was written in spite of a mistake")
	}
}
