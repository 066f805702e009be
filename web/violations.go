package web

import (
	"bytes"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/net/html"
)

// Violation is something in a page that its Content-Security-Policy blocks.
type Violation struct {
	Problem string // such as "the script https://cdn.example.com/a.js (script-src)"
	Advice  string
}

// Violations returns what the Content-Security-Policy blocks in index.html. It
// finds inline event handlers, javascript: URLs, and scripts, style sheets,
// images, media, frames and <base> of other origins. It does not see what
// scripts and style sheets load.
func (h *Handler) Violations() ([]Violation, error) {
	f, _, err := open(h.files, index)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	page, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	return h.policy.violations(page), nil
}

// loads maps the elements that load something to the attribute with its URL and
// the directive that applies. A link is a style sheet, an icon or a preload.
var loads = map[string]struct{ attribute, directive string }{
	"script": {"src", "script-src"},
	"img":    {"src", "img-src"},
	"iframe": {"src", "frame-src"},
	"audio":  {"src", "media-src"},
	"video":  {"src", "media-src"},
	"source": {"src", "media-src"},
	"object": {"data", "object-src"},
	"embed":  {"src", "object-src"},
	"base":   {"href", "base-uri"},
}

// linkDirectives are the directives that apply to links, by rel, or by as for a
// preload.
var linkDirectives = map[string]string{
	"stylesheet": "style-src", "icon": "img-src", "apple-touch-icon": "img-src", "modulepreload": "script-src",
	"script": "script-src", "style": "style-src", "font": "font-src", "image": "img-src", "fetch": "connect-src",
}

// violations returns what the policy blocks in a page.
func (p policy) violations(page []byte) []Violation {
	var all []Violation
	add := func(advice, format string, args ...any) {
		v := Violation{fmt.Sprintf(format, args...), advice}
		if !slices.Contains(all, v) {
			all = append(all, v)
		}
	}
	for tokens := html.NewTokenizer(bytes.NewReader(page)); tokens.Next() != html.ErrorToken; {
		token := tokens.Token()
		if token.Type != html.StartTagToken && token.Type != html.SelfClosingTagToken {
			continue
		}
		attributes := make(map[string]string)
		for _, a := range token.Attr {
			attributes[a.Key] = a.Val
			if strings.HasPrefix(a.Key, "on") && a.Val != "" {
				add("register the handler in a script: element.addEventListener(…)",
					"the inline event handler %s of <%s> (script-src)", a.Key, token.Data)
			}
			if strings.HasPrefix(strings.ToLower(strings.TrimSpace(a.Val)), "javascript:") {
				add("use a button with a handler in a script", "the javascript: URL in %s of <%s> (script-src)",
					a.Key, token.Data)
			}
		}
		raw, directive := attributes[loads[token.Data].attribute], loads[token.Data].directive
		if token.Data == "link" {
			raw = attributes["href"]
			for rel := range strings.FieldsSeq(strings.ToLower(attributes["rel"] + " " + attributes["as"])) {
				if d, ok := linkDirectives[rel]; ok {
					directive = d
				}
			}
		}
		if directive != "" && raw != "" && !p.allows(directive, raw) {
			add("put the file into the app's own files", "<%s> with %s (%s)", token.Data, raw, directive)
		}
	}
	return all
}

// allows reports whether a directive allows a URL in the page.
func (p policy) allows(directive, raw string) bool {
	u, err := url.Parse(strings.TrimSpace(raw))
	if err != nil || directive == "object-src" {
		return false
	}
	if u.Scheme == "" && u.Host == "" {
		return true // 'self'
	}
	if u.Scheme == "javascript" {
		return true // reported as such
	}
	for source := range strings.FieldsSeq(p.sources[directive]) {
		s, err := url.Parse(source)
		if err != nil || s.Scheme == "" { // 'self' and the like
			continue
		}
		suffix, isWildcard := strings.CutPrefix(s.Host, "*.")
		switch {
		case u.Scheme != "" && s.Scheme != u.Scheme:
		case s.Host == "", s.Host == u.Host, isWildcard && strings.HasSuffix(u.Host, "."+suffix):
			return true
		}
	}
	return false
}
