package bff

import (
	"html/template"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
)

func TestPageEscapesItsValues(t *testing.T) {
	t.Parallel()
	const hostile = `"><script>alert(1)</script>`
	page := string(renderPage(Page{
		Language: "en", Title: hostile + "1", Detail: hostile + "2", Code: hostile + "3", RequestID: hostile + "4",
		SignIn: "/bff/login?return_to=" + hostile + "5", Home: hostile + "6",
	}, ""))
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
	page := string(renderPage(Page{Language: "en", Title: "Title"}, ""))
	for _, unwanted := range []string{"Try again", "<p></p>", "<footer>"} {
		if strings.Contains(page, unwanted) {
			t.Errorf("the page has %s:\n%s", unwanted, page)
		}
	}
}

// pageWords are the texts of pages besides those of problems.
var pageWords = []string{
	"Back to the app", "If you ask for help, say", "Sign in", "Try again", "What now", "request",
	"You are signed out", "Close the browser if other people use this device.",
}

func TestGermanPageHasNoEnglish(t *testing.T) {
	t.Parallel()
	for _, text := range pageWords {
		if german[text] == "" {
			t.Errorf("no German for %q", text)
		}
	}
	for _, p := range problem.Catalogue() {
		for _, text := range []string{p.Title, p.Detail} {
			if text != "" && german[text] == "" {
				t.Errorf("%s: no German for %q", p.Code, text)
			}
		}
	}
	page := string(renderPage(Page{Language: "de", Title: "Titel", Detail: "only in English", Code: "c"}, ""))
	if !strings.Contains(page, `<p lang="en">only in English</p>`) {
		t.Errorf("a text that is not German has no lang:\n%s", page)
	}
}

func TestPageTemplateIsTriedWithEveryProblem(t *testing.T) {
	t.Parallel()
	for text, valid := range map[string]bool{
		`<h1>{{.Title}}</h1>{{with .SignIn}}<a href="{{.}}">x</a>{{end}}`: true,
		`{{.Unknown}}`:                          false,
		`{{if eq .Status 503}}{{.Nope}}{{end}}`: false,
		`{{index .Detail 1000}}`:                false,
		`<script>{{.Title`:                      false,
		`<a href='{{if .Code}}"{{end}}>`:        false,
	} {
		parsed, err := template.New("page").Parse(text)
		if err == nil {
			err = checkPage(parsed)
		}
		if (err == nil) != valid {
			t.Errorf("%s: got %v, want valid: %v", text, err, valid)
		}
	}
}
