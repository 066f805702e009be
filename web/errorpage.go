package web

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"
)

// refuse sends an error that is not cached: the file may exist after the next
// deploy.
func refuse(w http.ResponseWriter, status int) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	http.Error(w, http.StatusText(status), status)
}

// The page has no scripts and loads nothing.
//
//go:embed errorpage.html
var errorPage string

// errorPageCSP allows the page's own style and nothing else.
var errorPageCSP = func() string {
	_, style, _ := strings.Cut(errorPage, "<style>")
	style, _, _ = strings.Cut(style, "</style>")
	sum := sha256.Sum256([]byte(style))
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
		"'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}()

// errorTexts are title and detail of the page for a status.
var errorTexts = map[int][2]string{
	http.StatusNotFound: {"Page not found",
		"There is no page at this address. The link may be old, or mistyped."},
	http.StatusServiceUnavailable: {"The app is being updated",
		"Please reload this page in a few seconds."},
	http.StatusInternalServerError: {"This page cannot be shown",
		"Something went wrong on the server. Please try again later."},
}

// refusePage sends an error as refuse does, but to a navigation as a page. The
// status must be in errorTexts.
func refusePage(w http.ResponseWriter, r *http.Request, status int) {
	if !navigates(r) {
		refuse(w, status)
		return
	}
	text := errorTexts[status]
	page := strings.NewReplacer("{{title}}", text[0], "{{detail}}", text[1], "{{home}}", home(r)).Replace(errorPage)
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", errorPageCSP)
	h.Set("Content-Type", contentTypes[".html"])
	h.Set("Content-Length", strconv.Itoa(len(page)))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		w.Write([]byte(page)) // an error means that the client is gone
	}
}

// home returns the URL of the app's index, relative to that of the request: the
// handler does not know under which path the app is.
func home(r *http.Request) string {
	depth := strings.Count(strings.TrimPrefix(r.URL.EscapedPath(), "/"), "/")
	return "./" + strings.Repeat("../", depth)
}
