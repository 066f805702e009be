package problem_test

import (
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
)

var update = flag.Bool("update", false, "write docs/errors.md")

const errorsPage = "../../docs/errors.md"

func TestErrorsPageIsThatOfTheCatalogue(t *testing.T) {
	t.Parallel()
	want := page()
	if *update {
		if err := os.WriteFile(errorsPage, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(errorsPage)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("docs/errors.md is not that of the catalogue; run go test ./bff/problem -update")
	}
}

func TestEachProblemIsDocumented(t *testing.T) {
	t.Parallel()
	code := regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`)
	seen := make(map[string]bool)
	for _, p := range problem.Catalogue() {
		if !code.MatchString(p.Code) {
			t.Errorf("the code %q is not in lower case with underscores", p.Code)
		}
		if seen[p.Code] {
			t.Errorf("the code %s occurs twice", p.Code)
		}
		seen[p.Code] = true
		if http.StatusText(p.Status) == "" || p.Status < 400 {
			t.Errorf("%s: status %d is not that of an error", p.Code, p.Status)
		}
		if p.Title == "" || strings.HasSuffix(p.Title, ".") {
			t.Errorf("%s: the title is %q", p.Code, p.Title)
		}
		if !strings.HasSuffix(p.When, ".") {
			t.Errorf("%s: When is %q, want a sentence", p.Code, p.When)
		}
		if p.Detail != "" && !strings.HasSuffix(p.Detail, ".") {
			t.Errorf("%s: Detail is %q, want a sentence", p.Code, p.Detail)
		}
	}
}

func TestWithCauseLeavesTheCatalogueAlone(t *testing.T) {
	t.Parallel()
	cause := errors.New("no header X-CSRF")
	p := problem.CSRF.WithCause(cause)
	if !errors.Is(p, cause) {
		t.Error("the copy does not wrap the cause")
	}
	if got, want := p.Error(), "csrf: no header X-CSRF"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := problem.CSRF.Error(), "csrf"; got != want {
		t.Errorf("the catalogue's has become %q, want %q", got, want)
	}
}

// page returns docs/errors.md.
func page() string {
	var b strings.Builder
	b.WriteString(`# Errors

Errors are ` + "`application/problem+json`" + ` (RFC 9457). A browser that navigates gets an HTML page with
the same text instead, but not below a route. Scripts should check ` + "`code`" + `, which is stable. Titles
may change.

` + "```json" + `
{"title":"Not signed in","status":401,"code":"not_signed_in","login_url":"/bff/login","request_id":"72ce2bc5bf62e893"}
` + "```" + `

` + "`login_url`" + ` is present if a login helps: send the browser to it as a top-level navigation, with
` + "`return_to`" + ` added. ` + "`request_id`" + ` is the attribute ` + "`request`" + `
of the log line, which also has the cause.
A response that asks the client to wait has ` + "`Retry-After`" + `.

`)
	for _, p := range problem.Catalogue() {
		fmt.Fprintf(&b, "## %s\n\n", p.Code)
		fmt.Fprintf(&b, "**%d %s** · %s\n\n", p.Status, http.StatusText(p.Status), p.Title)
		b.WriteString(wrap(p.When))
		if p.Detail != "" {
			b.WriteString("\n" + wrap("The user is told: "+p.Detail))
		}
		b.WriteString("\n")
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// wrap breaks a text into lines of at most 100 characters.
func wrap(text string) string {
	var b strings.Builder
	width := 0
	for _, word := range strings.Fields(text) {
		switch {
		case width == 0:
		case width+1+len(word) > 100:
			b.WriteString("\n")
			width = 0
		default:
			b.WriteString(" ")
			width++
		}
		b.WriteString(word)
		width += len(word)
	}
	return b.String() + "\n"
}
