package bff

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"html"
	"net/url"
	"regexp"
	"strings"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
)

//go:embed page.html
var pageHTML string

// pageTexts are the parts of the page around the values, whose names are in
// double braces: pageValues. A template engine would cost more than the rest of
// a refusal.
var (
	pageValue  = regexp.MustCompile(`\{\{[a-z]+\}\}`)
	pageTexts  = pageValue.Split(pageHTML, -1)
	pageValues = pageValue.FindAllString(pageHTML, -1)
)

// pageCSP allows the page's own style and nothing else.
var pageCSP = func() string {
	_, style, _ := strings.Cut(pageHTML, "<style>")
	style, _, _ = strings.Cut(style, "</style>")
	return "default-src 'none'; style-src " + hashSource(style) +
		"; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}()

// waitingScript reloads the page when a server responds that was down.
const waitingScript = `async function look() {
  try {
    const response = await fetch(location.href, { method: "HEAD", cache: "no-store" });
    if (response.status !== 503) return location.reload();
  } catch {}
  setTimeout(look, 1000);
}
setTimeout(look, 1000);`

// waitingCSP is pageCSP for the page with waitingScript.
var waitingCSP = pageCSP + "; connect-src 'self'; script-src " + hashSource(waitingScript)

// hashSource returns the source expression that allows one inline script or
// style (CSP Level 3, section 2.3.1).
func hashSource(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// pageParts are what differs between pages besides the problem.
type pageParts struct {
	home     string // URL of the app
	tryAgain string // URL of another try; empty: none
	script   string // an element, unescaped; empty: none
}

// writePage responds with an HTML page. The page of a failed login has a link
// to another try.
func (a *app) writePage(w *response, p *problem.Problem) {
	parts, csp := pageParts{home: "/"}, pageCSP
	switch w.page {
	case loginPage:
		parts.tryAgain = a.prefix + "/login"
		if p.ReturnTo != "" && p.ReturnTo != "/" {
			parts.tryAgain += "?" + url.Values{"return_to": {p.ReturnTo}}.Encode()
		}
	case addressPage:
		parts.home = a.origin + parts.home
	case waitingPage:
		csp, parts.script = waitingCSP, "<script>"+waitingScript+"</script>\n"
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", csp)
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Frame-Options", "DENY")
	w.WriteHeader(p.Status)
	w.Write(renderPage(p, w.requestID, parts))
}

// renderPage returns the page for a problem. All values are escaped.
func renderPage(p *problem.Problem, requestID string, parts pageParts) []byte {
	page := make([]byte, 0, len(pageHTML)+512)
	for i, value := range pageValues {
		page = append(page, pageTexts[i]...)
		switch value {
		case "{{title}}":
			page = append(page, html.EscapeString(p.Title)...)
		case "{{code}}":
			page = append(page, html.EscapeString(p.Code)...)
		case "{{request}}":
			page = append(page, html.EscapeString(requestID)...)
		case "{{home}}":
			page = append(page, html.EscapeString(parts.home)...)
		case "{{script}}":
			page = append(page, parts.script...)
		case "{{detail}}":
			if p.Detail != "" {
				page = append(page, "<p>"+html.EscapeString(p.Detail)+"</p>"...)
			}
		case "{{again}}":
			if parts.tryAgain != "" {
				page = append(page, `<a class="first" href="`+html.EscapeString(parts.tryAgain)+"\">Try again</a>\n"...)
			}
		}
	}
	return append(page, pageTexts[len(pageValues)]...)
}
