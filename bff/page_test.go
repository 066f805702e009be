package bff

import (
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
)

func TestPageEscapesItsValues(t *testing.T) {
	t.Parallel()
	const hostile = `"><script>alert(1)</script>`
	p := &problem.Problem{Title: hostile + "1", Detail: hostile + "2", Code: hostile + "3"}
	page := string(renderPage(p, hostile+"4", pageParts{
		home: "/" + hostile + "6", tryAgain: "/bff/login?return_to=" + hostile + "5",
	}))
	if strings.Contains(page, "<script") {
		t.Errorf("the page has a script:\n%s", page)
	}
	const escaped = "&#34;&gt;&lt;script&gt;alert(1)&lt;/script&gt;"
	for _, value := range []string{"1", "2", "3", "4", "5", "6"} {
		if !strings.Contains(page, escaped+value) {
			t.Errorf("the page lacks value %s:\n%s", value, page)
		}
	}
	if strings.Contains(page, "{{") {
		t.Errorf("the page has a name in place of a value:\n%s", page)
	}
}

func TestPageOmitsWhatIsEmpty(t *testing.T) {
	t.Parallel()
	page := string(renderPage(&problem.Problem{Title: "Title"}, "id", pageParts{}))
	if strings.Contains(page, "Try again") {
		t.Error("the page has a link to try again")
	}
	if strings.Contains(page, "<p></p>") {
		t.Error("the page has an empty paragraph")
	}
}
