package web

import (
	"bytes"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
)

// lines counts the lines of a text up to offsets that grow.
type lines struct {
	text   []byte
	offset int
	line   int // at offset
}

func (l *lines) at(offset int) int {
	if offset < l.offset {
		return l.line
	}
	l.line += bytes.Count(l.text[l.offset:offset], []byte("\n"))
	l.offset = offset
	return l.line
}

// Style sheets.

var (
	fontFace = regexp.MustCompile(`(?i)@font-face\s*\{[^}]*\}`)
	cssURL   = regexp.MustCompile(`(?i)(@import\s+)?(?:url\(\s*["']?|["'])((?:https?:)?//[^"')\s]{1,500})`)
)

func (s *scan) styleSheet(file string, text []byte) { s.styleText(file, 1, text, nil) }

// styleText finds the needs of a style sheet that begins on a line of a file.
func (s *scan) styleText(file string, line int, text []byte, base *url.URL) {
	fonts := fontFace.FindAllIndex(text, maxURLs)
	at := lines{text: text, line: line}
	for _, m := range cssURL.FindAllSubmatchIndex(text, maxURLs) {
		raw := string(text[m[4]:m[5]])
		directive := "img-src"
		inFont := func(font []int) bool { return font[0] <= m[0] && m[0] < font[1] }
		switch {
		case m[2] >= 0:
			directive = "style-src"
		case slices.ContainsFunc(fonts, inFont):
			directive = "font-src"
		case !bytes.HasPrefix(bytes.ToLower(text[m[0]:m[4]]), []byte("url")): // a text, such as content: "…"
			continue
		}
		s.load(Need{Directive: directive, File: file, Line: at.at(m[0])}, kinds[directive], raw, base)
	}
}

// Scripts. What they do is a guess: no code is run.

// maxURLs is the maximum number of URLs that are read of a file.
const maxURLs = 5000

// Texts before the quote of a URL. They show what a script does with it.
var (
	beforeConnect = regexp.MustCompile(`(?:\b(?:fetch|sendBeacon|EventSource|WebSocket|axios(?:\.\w+)?)|` +
		`\.(?:get|post|put|patch|delete|head|request|ajax|getJSON))\s*\(\s*$|` +
		`\.open\(\s*["'` + "`" + `][A-Za-z]+["'` + "`" + `]\s*,\s*$|` +
		`(?i)\b(?:base_?url|endpoint|dsn|tunnel|api_?(?:url|host|base|root))["']?\s*[:=]\s*$`)
	beforeScript   = regexp.MustCompile(`\b(?:importScripts|import)\s*\(\s*$|\b(?:from|import)\s*$`)
	beforeSrc      = regexp.MustCompile(`\.src\s*=\s*$|\bsrc["']?\s*[:,]\s*$`)
	beforeHref     = regexp.MustCompile(`\.href\s*=\s*$|\bhref["']?\s*[:,]\s*$`)
	beforeVariable = regexp.MustCompile(`([A-Za-z_$][\w$]*)\s*=\s*$`)
	beforeImport   = regexp.MustCompile(`(?i)@import\s+(?:url\(\s*)?\\?["']?$`)
	beforeCSSURL   = regexp.MustCompile(`(?:^|[^\w.])url\(\s*\\?["']?$`)

	sentryKey   = regexp.MustCompile(`^[0-9a-f]{8,}$`) // the user name in a DSN of Sentry
	elementName = regexp.MustCompile(`["'` + "`" + `](script|img|iframe|video|audio|source|embed|object)` +
		`["'` + "`" + `]|new (Image|Audio)\b`)
	callOfVariable = regexp.MustCompile(`\b(?:fetch|sendBeacon|EventSource|WebSocket)\(\s*(?:` + "`" +
		`\$\{\s*)?([A-Za-z_$][\w$]*)`)
	webAssembly = regexp.MustCompile(`\bWebAssembly\.(?:instantiate|instantiateStreaming|compile|compileStreaming|` +
		`Module|Instance)\(`)
	evaluation = regexp.MustCompile(`(?:^|[^\w$.])(?:eval\)?\(|(?:new )?Function\()[^\n]{0,20}`)
	// Tests for the global object, or for whether this is allowed, in a try.
	harmlessEvaluation = regexp.MustCompile(`Function\(\s*(?:["'` + "`" + `](?:return this;?)?["'` + "`" + `])?\s*\)`)
	blobWorker         = regexp.MustCompile(`\bnew (?:\w+\.)?(?:Shared)?Worker\(`)
	styleElement       = regexp.MustCompile(`createElement\(["'` + "`" + `]style["'` + "`" + `]\)`)
)

// documentation lists hosts that scripts mention, in error messages and as XML
// namespaces, and do not load.
var documentation = []string{
	"www.w3.org", "react.dev", "reactjs.org", "fb.me", "angular.dev", "angular.io", "g.co", "goo.gl", "vuejs.org",
	"svelte.dev", "mui.com", "emotion.sh", "github.com", "developer.mozilla.org", "json-schema.org", "schema.org",
	"nextjs.org", "vite.dev", "webpack.js.org", "redux.js.org", "reactrouter.com", "tanstack.com", "bit.ly",
	"stackoverflow.com", "en.wikipedia.org", "www.apache.org", "opensource.org", "npms.io", "www.npmjs.com",
}

func (s *scan) script(file string, text []byte) { s.scriptText(file, 1, text) }

// scriptText finds the needs of a script that begins on a line of a file.
func (s *scan) scriptText(file string, line int, text []byte) {
	s.scriptURLs(file, line, text)
	for _, g := range []struct {
		pattern                      *regexp.Regexp
		hint                         string // that a match has
		directive, source, what, fix string
	}{
		{webAssembly, "WebAssembly", "script-src", "'wasm-unsafe-eval'", "WebAssembly", "build without WebAssembly"},
		{evaluation, "(", "script-src", unsafeEval, "code from text (eval, new Function)",
			"build without it: use the library's build for a Content-Security-Policy"},
		{blobWorker, "createObjectURL", "worker-src", "blob:", "workers from a blob", ""},
		{styleElement, "createElement", "style-src", unsafeInline, "style elements that scripts make", ""},
	} {
		if !bytes.Contains(text, []byte(g.hint)) {
			continue
		}
		at := lines{text: text, line: line}
		for _, m := range g.pattern.FindAllIndex(text, maxURLs) {
			if g.pattern == evaluation && harmlessEvaluation.Match(text[m[0]:m[1]]) {
				continue
			}
			n := Need{
				Directive: g.directive, Sources: []string{g.source}, File: file, Line: at.at(m[0]), What: g.what,
				Fix: g.fix, Guess: true,
			}
			if g.pattern == styleElement {
				n.hash = hashOf("") // they are made empty and filled by CSSOM, as by emotion
			}
			s.add(n)
			break // one for each file
		}
	}
}

// scriptURL is a URL in a script.
type scriptURL struct {
	raw           string
	line          int
	variable      string // that it is assigned to; empty: none
	offset        int
	before, after []byte
}

// scriptURLs finds the URLs in a script, and what it does with them.
func (s *scan) scriptURLs(file string, line int, text []byte) {
	called := make(map[string][]int) // :: variable → offsets of calls with it
	if !bytes.Contains(text, []byte("://")) {
		return
	}
	for _, m := range callOfVariable.FindAllSubmatchIndex(text, maxURLs) {
		name := string(text[m[2]:m[3]])
		called[name] = append(called[name], m[0])
	}
	isCalled := func(u scriptURL) bool {
		return slices.ContainsFunc(called[u.variable], func(offset int) bool {
			distance := max(offset-u.offset, u.offset-offset)
			return len(u.variable) > 2 || distance < 8<<10 // short names occur again in minified scripts
		})
	}
	for _, u := range findURLs(text, line) {
		parsed, err := url.Parse(u.raw)
		if err != nil || !originSource.MatchString(parsed.Scheme+"://"+parsed.Host) || isExample(parsed) {
			continue
		}
		directive := u.directive(parsed)
		if directive == "" && isCalled(u) {
			directive = "connect-src"
		}
		if directive == "" {
			s.mention(file, u.line, parsed)
			continue
		}
		s.load(Need{Directive: directive, File: file, Line: u.line, Guess: true}, kinds[directive], u.raw, nil)
	}
}

// isExample reports whether a host is in a script for other reasons than to be
// called: in a documented error, or in a test of the browser.
func isExample(u *url.URL) bool {
	host := u.Hostname()
	return slices.Contains(documentation, host) || !strings.ContainsAny(host, ".:") && u.Port() == ""
}

// mention notes an origin.
func (s *scan) mention(file string, line int, u *url.URL) {
	origin := strings.ToLower(u.Scheme + "://" + u.Host)
	isSame := func(m Mention) bool { return m.Origin == origin }
	if len(s.Mentions) < maxMentions && !slices.ContainsFunc(s.Mentions, isSame) {
		s.Mentions = append(s.Mentions, Mention{origin, file, line})
	}
}

// findURLs returns the absolute URLs that are in quotes or in url().
func findURLs(text []byte, line int) []scriptURL {
	var found []scriptURL
	at := lines{text: text, line: line}
	for offset := 0; len(found) < maxURLs; {
		i := bytes.Index(text[offset:], []byte("://"))
		if i < 0 {
			break
		}
		colon := offset + i
		offset = colon + 3
		start := colon
		for start > 0 && colon-start < 6 && text[start-1] >= 'a' && text[start-1] <= 'z' {
			start--
		}
		scheme := string(text[start:colon])
		if start == 0 || !slices.Contains([]string{"http", "https", "ws", "wss"}, scheme) ||
			!strings.ContainsRune("\"'`(", rune(text[start-1])) {
			continue
		}
		end := offset
		for end < len(text) && end-start < 500 && !isURLEnd(text[end:]) {
			end++
		}
		u := scriptURL{raw: string(text[start:end]), line: at.at(start), offset: start}
		u.before, u.after = text[max(0, start-240):start], text[end:min(len(text), end+120)]
		if text[start-1] != '(' {
			u.before = u.before[:len(u.before)-1] // the quote
		}
		if m := beforeVariable.FindSubmatch(u.before[max(0, len(u.before)-80):]); m != nil {
			u.variable = string(m[1])
		}
		found = append(found, u)
	}
	return found
}

// isURLEnd reports whether a URL in a script ends here: at its quote, at an
// expression in a template, or at what no URL has.
func isURLEnd(rest []byte) bool {
	return rest[0] <= ' ' || rest[0] >= 0x7f || bytes.IndexByte([]byte("\"'`\\()<>{}|^;,"), rest[0]) >= 0 ||
		bytes.HasPrefix(rest, []byte("${"))
}

// directive returns the directive that applies to what the script does with
// the URL, or "" if that is unknown.
func (u scriptURL) directive(parsed *url.URL) string {
	byType := directiveByType[strings.ToLower(path.Ext(parsed.Path))]
	switch near := u.before[max(0, len(u.before)-80):]; {
	case parsed.Scheme == "ws", parsed.Scheme == "wss", sentryKey.MatchString(parsed.User.Username()),
		beforeConnect.Match(near):
		return "connect-src"
	case beforeScript.Match(near):
		return "script-src"
	case beforeImport.Match(near):
		return "style-src"
	case beforeCSSURL.Match(near):
		if byType == "" {
			return "img-src"
		}
		return byType
	case beforeSrc.Match(near):
		if element := u.element(); element != "" {
			return element
		}
		return byType
	case beforeHref.Match(near) && (bytes.Contains(u.before, []byte("stylesheet")) ||
		bytes.Contains(u.after, []byte("stylesheet"))):
		return "style-src"
	case byType == "font-src", byType == "img-src" && u.variable == "":
		return byType
	}
	return ""
}

// element returns the directive of the element that a script makes near the
// URL.
func (u scriptURL) element() string {
	name := ""
	if all := elementName.FindAllSubmatch(u.before, -1); len(all) > 0 {
		name = string(all[len(all)-1][1]) + strings.ToLower(string(all[len(all)-1][2]))
	} else if m := elementName.FindSubmatch(u.after); m != nil {
		name = string(m[1])
	}
	if name == "image" {
		name = "img"
	}
	if known := loads[name]; len(known) > 0 {
		return known[0].directive
	}
	return ""
}

// directiveByType maps the extension of a file to the directive for it.
var directiveByType = map[string]string{
	".js": "script-src", ".mjs": "script-src", ".css": "style-src",
	".woff": "font-src", ".woff2": "font-src", ".ttf": "font-src", ".otf": "font-src",
	".png": "img-src", ".jpg": "img-src", ".jpeg": "img-src", ".gif": "img-src", ".webp": "img-src",
	".avif": "img-src", ".svg": "img-src", ".ico": "img-src",
	".mp4": "media-src", ".webm": "media-src", ".mp3": "media-src", ".wav": "media-src", ".ogg": "media-src",
}
