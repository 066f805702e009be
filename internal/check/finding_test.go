package check

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestTableIsReadableAt80Columns(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	long := "https://id.example.com/" + strings.Repeat("a", 100)
	err := WriteTable(&b, []Finding{
		failure("oidc.issuer", "The provider was not found: GET "+long+": 404 Not Found.",
			"Set oidc.issuer to the issuer that the provider documents, with its path and without anything else."),
		warning("", "The file is öffentlich.", "Run chmod 600."),
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `error    oidc.issuer
         The provider was not found: GET
         ` + long + `:
         404 Not Found.
    fix  Set oidc.issuer to the issuer that the provider documents, with its
         path and without anything else.

warning  (the whole file)
         The file is öffentlich.
    fix  Run chmod 600.

1 error, 1 warning.
`
	if got := b.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	for line := range strings.Lines(b.String()) {
		if n := utf8.RuneCountInString(line) - 1; n > tableWidth && !strings.Contains(line, long) {
			t.Errorf("line of %d columns, want at most %d: %s", n, tableWidth, line)
		}
	}
}

func TestFindingsAreSortedAndDistinct(t *testing.T) {
	t.Parallel()
	same := failure("store.url", "p", "f")
	got := sorted([]Finding{
		warning("server.public_url", "p", "f"), same, failure("routes[1].upstream", "p", "f"), same,
		failure("routes[0].upstream", "p", "f"), failure("oidc.client_secret_file", "p", "f"), failure("", "p", "f"),
		warning("version", "p", "f"),
	})
	want := []string{"", "oidc.client_secret_file", "store.url", "routes[0].upstream", "routes[1].upstream",
		"server.public_url", "version"}
	if len(got) != len(want) {
		t.Fatalf("got %d findings, want %d: %v", len(got), len(want), got)
	}
	for i, f := range got {
		if f.Key != want[i] {
			t.Errorf("finding %d: got %q, want %q", i, f.Key, want[i])
		}
	}
}
