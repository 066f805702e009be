package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPageFileIsAFileWithATemplate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	for name, want := range map[string]string{
		"":                                      "",
		write("good", "<h1>{{.Title}}</h1>"):    "",
		filepath.Join(dir, "missing"):           "no such file",
		dir:                                     "is not a regular file",
		write("open", "<h1>{{.Title"):           "is not a template",
		write("unknown function", "{{secret}}"): "is not a template",
		write("large", strings.Repeat(" ", 1<<20+1)): "more than 1 MiB",
		write("UTF-16", "\xff\xfe<\x00h\x00"):        "is not UTF-8",
	} {
		c := new(Config)
		c.Server.PageFile = name
		var problems Errors
		parsed := c.page(&problems)
		got := strings.Join(problems.Lines(), "\n")
		if (want == "") != (len(problems) == 0) || !strings.Contains(got, want) {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
		if (parsed != nil) != (want == "" && name != "") {
			t.Errorf("%s: got the template %v", name, parsed)
		}
	}
}

func TestPageThatDoesNotWorkIsAMistakeOrAWarning(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]struct{ mistake, warning string }{
		"<h1>{{.Title}}</h1>": {},
		`<link rel="stylesheet" href="/pages.css"><a href="https://help.example.com/">Help</a>{{.Title}}`: {},
		"":                        {mistake: "is empty"},
		"\n{{/* nothing */}}\n":   {mistake: "is empty"},
		"{{.Nope}}":               {mistake: "can't evaluate field Nope"},
		"{{index .Title 999}}":    {mistake: "out of range"},
		`x{{template "missing"}}`: {mistake: "no such template"},
		"<a href={{.Home}}":       {mistake: "ends in a non-text context"},
		"x{{if eq .Status 503}}{{slice .Title 999}}{{end}}":           {mistake: "out of range"},
		"x{{if eq .Language \"de\"}}{{slice .Title 99}}{{end}}":       {mistake: "out of range"},
		"{{define \"x\"}}{{template \"x\"}}{{end}}{{template \"x\"}}": {mistake: "maximum template depth"},
		"x<script>alert(1)</script>":                                  {warning: "blocks <script>"},
		`x<p onclick="alert(1)">`:                                     {warning: "the event handler onclick of <p>"},
		`x<img src="//cdn.example.com/logo.png">`:                     {warning: "//cdn.example.com/logo.png of <img>"},
		`x<link rel="stylesheet" href="HTTPS://fonts.example.com">`:   {warning: "HTTPS://fonts.example.com of <link>"},
		`x<style>@import "https://a.example.com/b.css"</style>`:       {warning: "https://a.example.com/b.css"},
		`x<style>p { background: url(//a.example.com) }</style>`:      {warning: "url(//a.example.com"},
		`x<form action="https://a.example.com/search">`:               {warning: "of <form>"},
	} {
		name := writeFile(t, "page.html", text)
		c := mustLoad(t, frontendBase, map[string]string{"CLOAKROOM_SERVER_PAGE_FILE": name})
		var mistakes []string
		if err := build(c); err != nil {
			mistakes = strings.Split(err.Error(), "\n")
		}
		wantLine(t, text, "mistake", mistakes, want.mistake)
		wantLine(t, text, "warning", c.Warnings().Lines(), want.warning)
	}
}

// wantLine checks that there is one line about the page, with a text, or none
// if that is empty.
func wantLine(t *testing.T, page, kind string, lines []string, want string) {
	t.Helper()
	switch {
	case want == "" && len(lines) > 0:
		t.Errorf("%q: got %q, want no %s", page, lines, kind)
	case want != "" && (len(lines) != 1 || !strings.HasPrefix(lines[0], "server.page_file: ") ||
		!strings.Contains(lines[0], want)):
		t.Errorf("%q: got %q, want one %s with %q", page, lines, kind, want)
	}
}
