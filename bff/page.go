package bff

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"html/template"
	"net/url"
	"strings"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
)

//go:embed page.html
var pageHTML string

var pageTemplate = template.Must(template.New("page").Parse(pageHTML))

// pageCSP allows the page's own style and nothing else.
var pageCSP = func() string {
	_, style, _ := strings.Cut(pageHTML, "<style>")
	style, _, _ = strings.Cut(style, "</style>")
	return "default-src 'none'; style-src " + hashSource(style) +
		"; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}()

// hashSource returns the source expression that allows one inline script or
// style (CSP Level 3, section 2.3.1).
func hashSource(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// writePage responds with an HTML page. The page of a failed login has a link
// to another try.
func (a *app) writePage(w *response, p *problem.Problem) {
	tryAgain := ""
	if w.page == loginPage {
		tryAgain = a.prefix + "/login"
		if p.ReturnTo != "" && p.ReturnTo != "/" {
			tryAgain += "?" + url.Values{"return_to": {p.ReturnTo}}.Encode()
		}
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", pageCSP)
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Frame-Options", "DENY")
	w.WriteHeader(p.Status)
	pageTemplate.Execute(w, struct{ Title, Detail, Code, RequestID, TryAgain string }{
		p.Title, p.Detail, p.Code, w.requestID, tryAgain,
	})
}
