package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func messages(findings []finding) []string {
	var out []string
	for _, f := range findings {
		out = append(out, f.String())
	}
	return out
}

func TestCheckGo(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("wide ", 25) // 125 columns
	tests := []struct {
		name, path, src string
		want            []string
	}{
		{"comment of 80 columns", "a.go", "// " + strings.Repeat("x", 77) + "\npackage a\n", nil},
		{"comment of 81 columns", "a.go", "// " + strings.Repeat("x", 78) + "\npackage a\n",
			[]string{"a.go:1: comment of 81 columns, at most 80"}},
		{"indented comment of 81 columns", "a.go",
			"package a\n\nfunc f() {\n\t// " + strings.Repeat("é", 74) + "\n}\n",
			[]string{"a.go:4: comment of 81 columns, at most 80"}},
		{"comment after code", "a.go", "package a\n\nvar a = 1 // " + strings.Repeat("x", 100) + "\n", nil},
		{"long comment after code", "a.go", "package a\n\nvar a = 1 // " + strings.Repeat("x", 110) + "\n",
			[]string{"a.go:3: line of 123 columns, at most 120"}},
		{"comment with a URL", "a.go", "// https://example.com/" + strings.Repeat("x", 120) + "\npackage a\n", nil},
		{"directive", "a.go", "package a\n\n//go:generate " + long + "\n", nil},
		{"preformatted comment", "a.go", "// Package a is.\n//\n//\t" + long + "\npackage a\n", nil},
		{"code of 121 columns", "a.go",
			"package a\n\nconst c = \"" + strings.Repeat("x", 109) + "\"\n",
			[]string{"a.go:3: line of 121 columns, at most 120"}},
		{"raw string", "a.go", "package a\n\nconst c = `\n" + long + "\n// " + long + "`\n", nil},
		{"wording", "a.go", "package a\n\n// f says " + "whether it is.\nfunc f() bool { return true }\n",
			[]string{`a.go:3: write "reports whether"`}},
		{"vague subject", "a.go", "package a\n\n// No" + "body calls f.\nfunc f() {}\n",
			[]string{"a.go:3: name who or what, or use the passive"}},
		{"vague word in quotes", "a.go", "package a\n\n// The user is \"no" + "body\".\nfunc f() {}\n", nil},
		{"test name of 60 characters", "a_test.go",
			"package a\n\nfunc Test" + strings.Repeat("X", 56) + "() {}\n", nil},
		{"test name of 61 characters", "a_test.go", "package a\n\nfunc Test" + strings.Repeat("X", 57) + "() {}\n",
			[]string{"a_test.go:3: test name of 61 characters, at most 60"}},
		{"benchmark name", "a_test.go", "package a\n\nfunc Benchmark" + strings.Repeat("X", 57) + "() {}\n",
			[]string{"a_test.go:3: test name of 66 characters, at most 60"}},
		{"not Go", "a.go", "package\n", []string{"a.go:1: cannot be parsed"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := messages(checkGo(tt.path, []byte(tt.src))); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestCheckMarkdown(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("wide ", 24) + "x" // 121 columns
	tests := []struct {
		name, src string
		want      []string
	}{
		{"100 columns", strings.Repeat("word ", 20) + "\n", nil},
		{"text", "# Title\n\n" + long + "\n", []string{"a.md:3: line of 121 columns, at most 100"}},
		{"list", "- " + long + "\n", []string{"a.md:1: line of 123 columns, at most 100"}},
		{"table", "| a | " + long + " |\n", nil},
		{"code block", "```\n" + long + "\n```\n" + long + "\n", []string{"a.md:4: line of 121 columns, at most 100"}},
		{"code block in a list", "- a\n  ~~~sh\n  " + long + "\n  ~~~\n", nil},
		{"link", "See [the text](https://example.com/" + strings.Repeat("x", 100) + ") of it.\n", nil},
		{"long word", strings.Repeat("x", 101) + "\n", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := messages(checkMarkdown("a.md", []byte(tt.src))); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestCheckSubject(t *testing.T) {
	t.Parallel()
	for _, good := range []string{
		"bff: retry a request",
		"bff, storetest: give tests more time",
		"internal/http1: rename look",
		"README: describe the demo",
		".github: cache modules",
		"bff: " + strings.Repeat("x", 67),
	} {
		if got := checkSubject("1234567", good); got != nil {
			t.Errorf("%q: got %q", good, messages(got))
		}
	}
	for _, bad := range []string{
		"Retry a request",
		"bff: Retry a request",
		"bff:retry a request",
		"the proxy: retry a request",
		"bff: " + strings.Repeat("x", 68),
	} {
		if got := checkSubject("1234567", bad); len(got) != 1 {
			t.Errorf("%q: got %q, want one finding", bad, messages(got))
		}
	}
}

func TestRepository(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	git := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
			"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com",
			"GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %s: %v\n%s", args, err, out)
		}
	}
	write := func(path, text string) {
		t.Helper()
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	wide := "// " + strings.Repeat("x", 78) + "\npackage a\n"
	git("init", "-q", "-b", "main")
	write("listed/a.go", wide)
	write("listedtoo/a.go", wide)
	write("clean/a.go", "package a\n")
	write("removed.go", wide)
	git("add", ".")
	git("commit", "-q", "-m", "Not checked: it is the base")
	git("tag", "base")
	git("commit", "-q", "--allow-empty", "-m", "a: add")
	git("commit", "-q", "--allow-empty", "-m", "No form")
	write("untracked.go", wide)
	if err := os.Remove(filepath.Join(dir, "removed.go")); err != nil {
		t.Fatal(err)
	}

	l := linter{dir: dir, unclean: parseList("# comment\n\nlisted/\nclean/\n")}
	if err := l.run("base"); err != nil {
		t.Fatal(err)
	}
	got := messages(l.findings)
	if len(got) != 2 || got[0] != "listedtoo/a.go:1: comment of 81 columns, at most 80" ||
		!strings.HasSuffix(got[1], `subject is not of the form "package: verb ...": No form`) {
		t.Errorf("got %q", got)
	}
	if got, want := l.cleanEntries(), []string{"clean/"}; !slices.Equal(got, want) {
		t.Errorf("clean entries: got %q, want %q", got, want)
	}

	l = linter{dir: dir, unclean: []string{"listed/", "listedtoo/a.go"}}
	if err := l.run("no-such-revision"); err != nil || l.findings != nil {
		t.Errorf("without a base: got %q and %v", messages(l.findings), err)
	}
}
