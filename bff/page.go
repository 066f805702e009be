package bff

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html"
	"html/template"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/internal/pagetext"
)

// Page is what a page says to a person, for the template Config.Page.
type Page struct {
	Status    int    // HTTP status
	Language  string // of the texts: "en" or "de", as the browser prefers
	Title     string // what happened
	Detail    string // what to do about it; may be empty
	Code      string // of docs/errors.md; empty if the page is no error
	RequestID string // in the log
	SignIn    string // path of a sign-in, if that may help; otherwise empty
	Home      string // path of the app
}

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
	return "default-src 'none'; style-src " + hashSource(style) + pageCSPEnd
}()

const pageCSPEnd = "; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// ownPageCSP is for pages of Config.Page: files of the app, and no script.
const ownPageCSP = "default-src 'none'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; " +
	"font-src 'self' data:" + pageCSPEnd

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

// checkPage verifies that a template can show every problem, and the page
// without one.
func checkPage(t *template.Template) error {
	if t == nil {
		return nil
	}
	samples := []Page{{Status: http.StatusOK, Language: "de", Title: "Abgemeldet", Home: "/"}}
	for _, p := range problem.Catalogue() {
		samples = append(samples,
			Page{p.Status, "en", p.Title, p.Detail, p.Code, "0123456789abcdef", "/bff/login", "/"})
	}
	for _, sample := range samples {
		var page bytes.Buffer
		if err := t.Execute(&page, sample); err != nil {
			return err
		}
		if len(bytes.TrimSpace(page.Bytes())) == 0 {
			return fmt.Errorf("the page for %q is empty", sample.Title)
		}
	}
	return nil
}

// wantsPage reports whether a browser shows the response to a person.
func (a *app) wantsPage(r *http.Request) bool {
	html := strings.Contains(strings.Join(r.Header.Values("Accept"), ","), "text/html")
	return html && navigation(a, r) == nil
}

// translate returns a text in the language of the page, or as it is if it is
// unknown.
func (p *Page) translate(text string) string {
	if p.Language == "de" {
		if translated, known := german[text]; known {
			return translated
		}
	}
	return text
}

// writeProblemPage responds with an HTML page about a problem. The page of a
// failed login has a link to another try.
func (a *app) writeProblemPage(w *response, r *http.Request, p *problem.Problem) {
	page := Page{
		Status: p.Status, Language: string(pagetext.Preferred(r)), Title: p.Title, Detail: p.Detail, Code: p.Code,
		RequestID: w.requestID, Home: a.path("/"),
	}
	switch w.page {
	case addressPage:
		page.Home = a.origin + page.Home
	case loginPage:
		page.SignIn = a.endpoint("/login")
		if p.ReturnTo != "" && p.ReturnTo != "/" {
			page.SignIn += "?" + url.Values{"return_to": {a.path(p.ReturnTo)}}.Encode()
		}
	}
	a.writePage(w, page)
}

// writePage responds with an HTML page, whose texts it translates.
func (a *app) writePage(w *response, page Page) {
	page.Title = page.translate(page.Title)
	csp, script := pageCSP, ""
	if w.page == waitingPage {
		csp, script = waitingCSP, "<script>"+waitingScript+"</script>\n"
	}
	var body []byte
	if a.page != nil {
		own := page
		own.Detail = page.translate(page.Detail)
		var b bytes.Buffer
		if err := a.page.Execute(&b, own); err != nil {
			a.log.Error("page not made with server.page_file; the built-in one is shown", "err", err,
				"request", w.requestID)
		} else {
			body, csp = b.Bytes(), ownPageCSP
			if w.page == waitingPage {
				w.Header().Set("Refresh", "2") // instead of the script
			}
		}
	}
	if body == nil {
		body = renderPage(page, script)
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Language", page.Language)
	h.Set("Content-Security-Policy", csp)
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Frame-Options", "DENY")
	w.WriteHeader(page.Status)
	w.Write(body)
}

// renderPage returns the built-in page. All values are escaped, except for
// script, an element.
func renderPage(page Page, script string) []byte {
	b := make([]byte, 0, len(pageHTML)+512)
	for i, value := range pageValues {
		b = append(b, pageTexts[i]...)
		switch value {
		case "{{lang}}":
			b = append(b, page.Language...)
		case "{{title}}":
			b = append(b, html.EscapeString(page.Title)...)
		case "{{detail}}":
			b = append(b, page.detail()...)
		case "{{whatnow}}":
			b = append(b, page.translate("What now")...)
		case "{{first}}":
			b = append(b, page.signIn()...)
		case "{{home}}":
			b = append(b, html.EscapeString(page.Home)...)
		case "{{back}}":
			b = append(b, page.translate("Back to the app")...)
		case "{{footer}}":
			b = append(b, page.footer()...)
		case "{{script}}":
			b = append(b, script...)
		}
	}
	return append(b, pageTexts[len(pageValues)]...)
}

// detail returns a paragraph that says what to do, or nothing.
func (p *Page) detail() string {
	if p.Detail == "" {
		return ""
	}
	text, attribute := p.translate(p.Detail), ""
	if p.Language != "en" && text == p.Detail {
		attribute = ` lang="en"`
	}
	return "<p" + attribute + ">" + html.EscapeString(text) + "</p>"
}

// signIn returns a link to a sign-in, or nothing.
func (p *Page) signIn() string {
	if p.SignIn == "" {
		return ""
	}
	text := "Try again"
	if p.Code == "" {
		text = "Sign in"
	}
	return `<a class="first" href="` + html.EscapeString(p.SignIn) + `">` + p.translate(text) + "</a>\n"
}

// footer returns what the operator needs to find an error in the log.
func (p *Page) footer() string {
	if p.Code == "" {
		return ""
	}
	return fmt.Sprintf("<footer>%s: <code>%s</code>, %s <code>%s</code></footer>\n",
		p.translate("If you ask for help, say"), html.EscapeString(p.Code),
		p.translate("request"), html.EscapeString(p.RequestID))
}

// signedOut shows that the user is signed out. An app that signs users in as
// soon as it loads sends them here after a logout.
func (a *app) signedOut(w *response, r *http.Request) error {
	a.writePage(w, Page{
		Status: http.StatusOK, Language: string(pagetext.Preferred(r)), Title: "You are signed out",
		Detail: "Close the browser if other people use this device.",
		SignIn: a.endpoint("/login"), Home: a.path("/"),
	})
	return nil
}
