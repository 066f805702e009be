package bff_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// docs/embedding.md shows the body of the package's example.
func TestEmbeddingDocShowsExample(t *testing.T) {
	t.Parallel()
	source, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../docs/embedding.md")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?ms)^func Example\(\) \{\n(.*?)^\}`).FindSubmatch(source)
	if m == nil {
		t.Fatal("example_test.go has no func Example")
	}
	want := regexp.MustCompile(`(?m)^\t`).ReplaceAllString(string(m[1]), "")
	want = strings.ReplaceAll(want, "\t", "    ")
	if !strings.Contains(string(doc), "```go\n"+want+"```") {
		t.Errorf("docs/embedding.md does not contain this block:\n```go\n%s```", want)
	}
}
