package web

import (
	"bytes"
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"golang.org/x/net/html"

	"github.com/cloakroom-bff/cloakroom/internal/terminal"
)

// loads maps the elements that load something to the attributes with its URL,
// and the directive that applies to each.
var loads = map[string][]struct{ attribute, directive string }{
	"script": {{"src", "script-src"}},
	"img":    {{"src", "img-src"}, {"srcset", "img-src"}},
	"image":  {{"href", "img-src"}, {"xlink:href", "img-src"}}, // of SVG
	"input":  {{"src", "img-src"}, {"formaction", "form-action"}},
	"button": {{"formaction", "form-action"}},
	"iframe": {{"src", "frame-src"}},
	"audio":  {{"src", "media-src"}},
	"video":  {{"src", "media-src"}, {"poster", "img-src"}},
	"source": {{"src", "media-src"}, {"srcset", "img-src"}},
	"track":  {{"src", "media-src"}},
	"object": {{"data", "object-src"}},
	"embed":  {{"src", "object-src"}},
	"base":   {{"href", "base-uri"}},
	"form":   {{"action", "form-action"}},
}

// linkDirectives are the directives that apply to links, by rel, or by as for a
// preload.
var linkDirectives = map[string]string{
	"stylesheet": "style-src", "icon": "img-src", "apple-touch-icon": "img-src", "modulepreload": "script-src",
	"manifest": "manifest-src",
	"script":   "script-src", "style": "style-src", "font": "font-src", "image": "img-src", "fetch": "connect-src",
	"worker": "worker-src", "audio": "media-src", "video": "media-src", "track": "media-src",
}

// kinds are what directives load, for messages.
var kinds = map[string]string{
	"script-src": "the script", "style-src": "the style sheet", "img-src": "the image", "font-src": "the font",
	"connect-src": "the URL", "frame-src": "the frame", "media-src": "the media file", "worker-src": "the worker",
	"manifest-src": "the manifest", "object-src": "the object", "base-uri": "<base> with",
	"form-action": "the form to",
}

// handlerName matches the attribute of an event handler.
var handlerName = regexp.MustCompile(`^on[a-z]{3,}$`)

// runningAttributes are those whose javascript: URL browsers run.
var runningAttributes = regexp.MustCompile(`^(href|src|action|formaction|data|xlink:href)$`)

// maxTokens is how many tags, texts and comments of a page are read.
const maxTokens = 200_000

// page finds the needs of an HTML page. It reads what browsers read of
// malformed HTML, too.
func (s *scan) page(file string, text []byte) {
	p := pageScan{scan: s, file: file, line: 1}
	tokens := html.NewTokenizer(bytes.NewReader(text))
	for range maxTokens {
		if tokens.Next() == html.ErrorToken {
			return
		}
		lines := bytes.Count(tokens.Raw(), []byte("\n"))
		switch token := tokens.Token(); token.Type {
		case html.StartTagToken, html.SelfClosingTagToken:
			p.element(token)
		case html.TextToken:
			p.content(token.Data)
		case html.EndTagToken:
			p.inside = ""
		}
		p.line += lines
	}
	s.skip(file, fmt.Sprintf("only the first %d tags were read", maxTokens))
}

// pageScan is the state of reading a page.
type pageScan struct {
	*scan
	file   string
	line   int
	base   *url.URL // of <base>; nil: none with another origin
	inside string   // script or style, while the next text is its content
}

func (p *pageScan) need(directive string, sources ...string) Need {
	return Need{Directive: directive, Sources: sources, File: p.file, Line: p.line}
}

// element finds the needs of a start tag.
func (p *pageScan) element(token html.Token) {
	p.inside = ""
	attributes := make(map[string]string)
	for _, a := range token.Attr {
		if _, repeated := attributes[a.Key]; repeated { // the first counts
			continue
		}
		attributes[a.Key] = a.Val
		p.attribute(token.Data, a)
	}
	for _, l := range loads[token.Data] {
		urls := []string{attributes[l.attribute]}
		if l.attribute == "srcset" {
			urls = srcset(urls[0])
		}
		for _, raw := range urls {
			p.load(p.need(l.directive), kinds[l.directive], raw, p.base)
		}
	}
	switch token.Data {
	case "link":
		p.link(attributes)
	case "base":
		p.baseElement(attributes["href"])
	case "meta":
		if strings.EqualFold(attributes["http-equiv"], csp) {
			p.skip(p.file, "a <meta> element has a policy of its own, which applies as well")
		}
	case "script":
		if _, external := attributes["src"]; !external {
			p.inside = "script"
		}
	case "style":
		p.inside = "style"
	}
}

// attribute finds the needs of one attribute.
func (p *pageScan) attribute(element string, a html.Attribute) {
	value := strings.TrimSpace(a.Val)
	switch {
	case value == "":
	case handlerName.MatchString(a.Key):
		n := p.need("script-src", "'unsafe-hashes'", hashOf(lineEnds.Replace(a.Val)))
		n.What = "the inline event handler " + a.Key + " of <" + terminal.OneLine(shorten(element)) + ">"
		n.Fix = "register the handler in a script: element.addEventListener(…)"
		if element == "link" && strings.HasPrefix(strings.ReplaceAll(value, " ", ""), "this.media=") {
			n.Fix = "in angular.json, set optimization.styles.inlineCritical to false; elsewhere, " +
				"register the handler in a script: element.addEventListener(…)"
		}
		p.add(n)
	case runningAttributes.MatchString(a.Key) && strings.HasPrefix(strings.ToLower(value), "javascript:"):
		n := p.need("script-src")
		n.What = "the javascript: URL in " + a.Key + " of <" + terminal.OneLine(shorten(element)) + ">"
		n.Fix = "use a button with a handler in a script"
		p.add(n)
	case a.Key == "style":
		n := p.need("style-src", unsafeInline)
		n.What, n.Fix = "style attributes", "use classes"
		p.add(n)
		p.styleText(p.file, p.line, []byte(a.Val), p.base)
	}
}

// link finds the needs of a <link>.
func (p *pageScan) link(attributes map[string]string) {
	for rel := range strings.FieldsSeq(strings.ToLower(attributes["rel"] + " " + attributes["as"])) {
		directive, ok := linkDirectives[rel]
		if !ok {
			continue
		}
		n := p.need(directive)
		p.load(n, kinds[directive], attributes["href"], p.base)
		u, err := url.Parse(strings.TrimSpace(attributes["href"]))
		if err == nil && u.Host == "fonts.googleapis.com" && directive == "style-src" {
			n.Directive, n.Guess = "font-src", true // the style sheet names files there
			p.load(n, "fonts from", "https://fonts.gstatic.com", nil)
		}
		return
	}
}

func (p *pageScan) baseElement(href string) {
	if href == "" {
		return
	}
	u, err := url.Parse(strings.TrimSpace(href))
	if err != nil || u.Host != "" {
		p.base = u
		return
	}
	n := p.need("base-uri", self)
	n.What, n.Default = "<base>", true // in the policy of a page that has one
	p.add(n)
}

// content finds the needs of an inline script or style.
func (p *pageScan) content(text string) {
	if strings.TrimSpace(text) == "" {
		return
	}
	switch p.inside {
	case "script":
		n := p.need("script-src", hashOf(lineEnds.Replace(text)))
		n.What, n.Default = "inline scripts", true // by hash in the policy of the page
		p.add(n)
		p.scriptText(p.file, p.line, []byte(text))
	case "style":
		n := p.need("style-src", unsafeInline)
		n.What, n.Fix, n.hash = "inline style sheets", "put the style into a file", hashOf(lineEnds.Replace(text))
		p.add(n)
		p.styleText(p.file, p.line, []byte(text), p.base)
	}
}

// srcset returns the URLs of a srcset attribute.
func srcset(value string) []string {
	var urls []string
	for item := range strings.SplitSeq(value, ", ") {
		if raw, _, _ := strings.Cut(strings.Trim(item, " \t\r\n,"), " "); raw != "" && len(urls) < 50 {
			urls = append(urls, raw)
		}
	}
	return urls
}
