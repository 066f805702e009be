// Package pagetext has pages in the language that a browser prefers.
package pagetext

import (
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/text/language"
)

// Language is a language of pages, as in the attribute lang.
type Language string

// The languages of pages.
const (
	English Language = "en"
	German  Language = "de"
)

// languages are those of pages, the default first.
var languages = language.NewMatcher([]language.Tag{language.English, language.German})

// Preferred returns the language that a browser prefers (RFC 9110, section
// 12.5.4).
func Preferred(r *http.Request) Language {
	accepted := r.Header.Get("Accept-Language")
	if len(accepted) > 200 {
		return English
	}
	if _, i := language.MatchStrings(languages, accepted); i == 1 {
		return German
	}
	return English
}

// Text is a text of a page: HTML with a %s for each of the Args, which are
// escaped. Key is the English text, a constant.
type Text struct {
	Key  string
	Args []any
}

// Plain returns a text without arguments.
func Plain(key string) Text { return Text{Key: key} }

// Templates are the templates of pages, for each language.
type Templates map[Language]*template.Template

// Parse parses templates, as template.ParseFS does. They have two functions
// more: lang is the language, and t translates a constant, with arguments, or a
// Text. german has the German texts by the English ones. A text that is not in
// it is escaped and marked as English.
//
// Parse panics if a template is not valid or has a constant without German.
func Parse(fsys fs.FS, pattern string, german map[string]string, funcs template.FuncMap) Templates {
	all := make(Templates)
	for _, l := range []Language{English, German} {
		own := template.FuncMap{
			"lang": func() Language { return l },
			"t": func(text any, args ...any) template.HTML {
				given, ok := text.(Text)
				if !ok {
					given = Text{fmt.Sprint(text), args}
				}
				return given.in(l, german)
			},
		}
		all[l] = template.Must(template.New("").Funcs(funcs).Funcs(own).ParseFS(fsys, pattern))
	}
	if missing := untranslated(fsys, pattern, german); len(missing) > 0 {
		panic(fmt.Sprintf("no German for %q", missing))
	}
	return all
}

// in returns a text in a language.
func (t Text) in(l Language, german map[string]string) template.HTML {
	translated, known := german[t.Key]
	if !known {
		return foreign(l, t.Key)
	}
	if l == English {
		translated = t.Key
	}
	args := make([]any, len(t.Args))
	for i, arg := range t.Args {
		args[i] = template.HTMLEscapeString(fmt.Sprint(arg))
		if _, isError := arg.(error); isError {
			args[i] = foreign(l, fmt.Sprint(arg))
		}
	}
	return template.HTML(fmt.Sprintf(translated, args...))
}

// foreign returns an English text on a page in a language.
func foreign(l Language, text string) template.HTML {
	escaped := template.HTMLEscapeString(text)
	if l == English {
		return template.HTML(escaped)
	}
	return template.HTML(`<span lang="en">` + escaped + `</span>`)
}

var constants = regexp.MustCompile(`\bt ("(?:[^"\\]|\\.)*")`)

// untranslated returns the constants of templates that have no German, or with
// other verbs.
func untranslated(fsys fs.FS, pattern string, german map[string]string) (missing []string) {
	names, err := fs.Glob(fsys, pattern)
	if err != nil {
		panic(err)
	}
	for _, name := range names {
		source, err := fs.ReadFile(fsys, name)
		if err != nil {
			panic(err)
		}
		for _, m := range constants.FindAllSubmatch(source, -1) {
			text, err := strconv.Unquote(string(m[1]))
			if err != nil {
				panic(err)
			}
			if strings.Count(german[text], "%s") != strings.Count(text, "%s") || german[text] == "" {
				missing = append(missing, text)
			}
		}
	}
	return missing
}
