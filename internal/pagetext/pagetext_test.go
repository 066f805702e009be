package pagetext

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"
)

func TestLanguageIsTheOneTheBrowserPrefers(t *testing.T) {
	t.Parallel()
	for accepted, want := range map[string]Language{
		"":                                   English,
		"de":                                 German,
		"de-AT,de;q=0.9,en;q=0.8":            German,
		"en-US,en;q=0.9,de;q=0.8":            English,
		"fr-FR,fr;q=0.9,de;q=0.5":            German,
		"fr":                                 English,
		"de;q=0":                             English,
		"\xff;;;,,q=":                        English,
		strings.Repeat("de,", 100_000):       English,
		"de;q=0.1, en;q=0.2":                 English,
		"x-klingon, de-DE-1996-u-co-phonebk": German,
	} {
		r := &http.Request{Header: http.Header{"Accept-Language": {accepted}}}
		if got := Preferred(r); got != want {
			t.Errorf("%.40q: got %s, want %s", accepted, got, want)
		}
	}
}

var german = map[string]string{"Hello <b>%s</b>": "Hallo <b>%s</b>", "Failed: %s": "Fehler: %s", "x": "y"}

func TestTextsAreTranslatedAndEscaped(t *testing.T) {
	t.Parallel()
	const hostile = `"><script>alert(1)</script>`
	const escaped = "&#34;&gt;&lt;script&gt;alert(1)&lt;/script&gt;"
	source := `{{lang}} {{t "Hello <b>%s</b>" .Name}} {{t .Text}} {{t .Name}} <i title="{{t "x"}}"></i>`
	pages := Parse(fstest.MapFS{"a.html": {Data: []byte(source)}}, "*.html", german, nil)
	for l, want := range map[Language]string{
		English: `en Hello <b>` + escaped + `</b> Failed: ` + escaped + ` ` + escaped + ` <i title="x"></i>`,
		German: `de Hallo <b>` + escaped + `</b> Fehler: <span lang="en">` + escaped + `</span> <span lang="en">` +
			escaped + `</span> <i title="y"></i>`,
	} {
		var b strings.Builder
		data := struct {
			Name string
			Text Text
		}{hostile, Text{"Failed: %s", []any{errors.New(hostile)}}}
		if err := pages[l].ExecuteTemplate(&b, "a.html", data); err != nil {
			t.Fatal(err)
		}
		if got := b.String(); got != want {
			t.Errorf("%s: got %s, want %s", l, got, want)
		}
	}
}

func TestConstantsWithoutGermanAreFound(t *testing.T) {
	t.Parallel()
	for source, want := range map[string]int{
		`{{t "x"}}`: 0, `{{t "Hello <b>%s</b>" 1}}`: 0, `{{t "new"}} {{t "x"}}`: 1, `{{if .}}{{t "a \"b\""}}{{end}}`: 1,
	} {
		got := untranslated(fstest.MapFS{"a.html": {Data: []byte(source)}}, "*.html", german)
		if len(got) != want {
			t.Errorf("%s: got %q, want %d", source, got, want)
		}
	}
	verbs := map[string]string{"a %s": "a"}
	if got := untranslated(fstest.MapFS{"a.html": {Data: []byte(`{{t "a %s" 1}}`)}}, "*.html", verbs); len(got) != 1 {
		t.Errorf("a text without its argument: got %q, want it", got)
	}
}

// What a template has besides t would stay English.
func TestPagesHaveNoTextWithoutT(t *testing.T) {
	t.Parallel()
	notText := regexp.MustCompile(`(?s)<code>[^<]*</code>|<pre[^>]*>.*?</pre>|<textarea.*?</textarea>|</?[a-z][^>]*>`)
	inAttribute := regexp.MustCompile(`(?:label|title|alt|placeholder)="([^"]*)"`)
	word := regexp.MustCompile(`\pL{2,}`)
	allowed := map[string]bool{"Cloakroom": true, "doctype": true, "html": true, "Content": true, "Security": true,
		"Policy": true, "ID": true, "csrf": true}
	var files []string
	for _, pattern := range []string{"../devtools/*.html", "../devidp/pages/*.html"} {
		names, err := filepath.Glob(pattern)
		if err != nil || len(names) == 0 {
			t.Fatalf("%s: got %v, %v, want files", pattern, names, err)
		}
		files = append(files, names...)
	}
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text := regexp.MustCompile(`(?s)\{\{.*?\}\}`).ReplaceAllString(string(source), "")
		rest := notText.ReplaceAllString(text, "")
		for _, m := range inAttribute.FindAllStringSubmatch(text, -1) {
			rest += " " + m[1]
		}
		for _, w := range word.FindAllString(rest, -1) {
			if !allowed[w] {
				t.Errorf("%s: got the word %q outside of t", file, w)
			}
		}
	}
}
