package config

import (
	"bytes"
	"fmt"
	"html/template"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/html"

	"github.com/cloakroom-bff/cloakroom/internal/smallfile"
)

// page reads server.page_file. It returns nil if there is none, or after a
// problem.
func (c *Config) page(problems *Errors) *template.Template {
	name := c.Server.PageFile
	if name == "" {
		return nil
	}
	text, err := smallfile.Read(name)
	if err != nil {
		problems.add("server.page_file", "%w", err)
		return nil
	}
	if !utf8.Valid(text) {
		problems.add("server.page_file", "%q is not UTF-8", name)
		return nil
	}
	parsed, err := template.New("page").Option("missingkey=error").Parse(string(text))
	if err != nil {
		problems.add("server.page_file", "%q is not a template: %w", name, err)
		return nil
	}
	return parsed
}

// maxPageWarnings bounds the warnings for one template.
const maxPageWarnings = 10

// warnOfPage adds a warning for each part of server.page_file that the
// Content-Security-Policy of the pages blocks: scripts, and what other origins
// have. Other pages may be in the template's strings, so it is a guess.
func (c *Config) warnOfPage(all *Errors) {
	if c.Server.PageFile == "" || c.page(new(Errors)) == nil {
		return // a mistake, which is reported elsewhere
	}
	text, err := smallfile.Read(c.Server.PageFile)
	if err != nil {
		return
	}
	var seen []string
	warn := func(what string) {
		if len(seen) < maxPageWarnings && !slices.Contains(seen, what) {
			seen = append(seen, what)
			all.add("server.page_file", "the Content-Security-Policy of the pages blocks %s; put it into the "+
				"app's files if it is a style, an image or a font, otherwise remove it", what)
		}
	}
	for tokens := html.NewTokenizer(bytes.NewReader(text)); tokens.Next() != html.ErrorToken; {
		token := tokens.Token()
		switch token.Type {
		case html.StartTagToken, html.SelfClosingTagToken:
			warnOfElement(token, warn)
		case html.TextToken:
			for _, m := range styleURL.FindAllString(token.Data, -1) {
				warn("the style " + m)
			}
		}
	}
}

// styleURL matches what a style sheet loads of other origins.
var styleURL = regexp.MustCompile(`(?i)(?:@import\s+["']?|url\(\s*["']?)(?:https?:)?//[^\s"')]*`)

// loading are the attributes whose URLs a page loads.
var loading = []string{"src", "srcset", "href", "data", "poster", "action", "background"}

// warnOfElement calls warn for each part of an element that a page must not
// have.
func warnOfElement(token html.Token, warn func(what string)) {
	if token.Data == "script" {
		warn("<script>")
	}
	for _, a := range token.Attr {
		value := strings.ToLower(strings.TrimSpace(a.Val))
		external := strings.HasPrefix(value, "//") || strings.HasPrefix(value, "http:") ||
			strings.HasPrefix(value, "https:")
		switch {
		case strings.HasPrefix(a.Key, "on"):
			warn(fmt.Sprintf("the event handler %s of <%s>", a.Key, token.Data))
		case slices.Contains(loading, a.Key) && external && token.Data != "a" && token.Data != "area":
			warn(fmt.Sprintf("%s of <%s>", a.Val, token.Data))
		}
	}
}
