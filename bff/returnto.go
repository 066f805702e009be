package bff

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/cloakroom-bff/cloakroom/internal/urlpath"
)

// maxReturnTo keeps the cookie of a login attempt small.
const maxReturnTo = 1024

// parseReturnTo returns raw if it is a path of this origin, with a query and
// fragment or without, and "/" otherwise.
//
// What counts is what a browser makes of it in a Location header: it strips
// tabs and line ends, takes a backslash for a slash, resolves dot segments, and
// takes two slashes for the start of a host. Each of these is refused, also in
// a percent-encoded form that some later hop may decode.
func parseReturnTo(raw string) string {
	const otherwise = "/"
	if len(raw) > maxReturnTo || !strings.HasPrefix(raw, "/") || !utf8.ValidString(raw) {
		return otherwise
	}
	for _, c := range raw {
		if c <= ' ' || c == '\\' || c == 0x7f || (c >= 0x80 && c <= 0xa0) {
			return otherwise
		}
	}
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "" || u.Host != "" || u.User != nil || u.Opaque != "" {
		return otherwise
	}
	// One of the servers and browsers on the way may decode the path again.
	for path, times := u.EscapedPath(), 0; ; times++ {
		if times > maxDecodings || checkReturnPath(path) != nil {
			return otherwise
		}
		decoded := urlpath.DecodeLeniently(path)
		if decoded == path {
			return raw
		}
		path = decoded
	}
}

// maxDecodings bounds how often a path may be percent-encoded.
const maxDecodings = 3

// returnTo returns raw if the browser may be sent there after a login or a
// logout, and "/" otherwise. Every return_to goes through it.
//
// raw has to be a path of the app, so outside of the prefix. It may be a path
// of the app that only has an ambiguous form, such as /orders//42, if no
// reading of it lies under a route. It may lie under a route only if the route
// allows documents and ownPage is true: a page of the app's origin started the
// login. Otherwise another site could have the browser open an upstream's
// document with the user's token, and as a request of the same origin.
func (a *app) returnTo(raw string, ownPage bool) string {
	const otherwise = "/"
	if parseReturnTo(raw) != raw {
		return otherwise
	}
	u, err := url.Parse(raw)
	if err != nil {
		return otherwise
	}
	escaped := u.EscapedPath()
	if !a.anyReadingUnderRoute(escaped) {
		return raw
	}
	if !ownPage || urlpath.Check(escaped) != nil {
		return otherwise
	}
	if route, err := a.findRoute(u.Path, u.Path); err != nil || route == nil || route.Documents != DocumentsAllow {
		return otherwise
	}
	return raw
}

// startedByOwnPage reports whether a page of the app's origin sent the browser
// here. A browser that does not send Fetch Metadata is not believed. Neither is
// a navigation that a service worker passed on, whose destination is empty: it
// is same-origin also if the user followed a link in a mail.
func startedByOwnPage(r *http.Request) bool {
	site := r.Header.Values("Sec-Fetch-Site")
	return len(site) == 1 && site[0] == "same-origin" && r.Header.Get("Sec-Fetch-Dest") != "empty"
}

// checkReturnPath returns an error if a path leads elsewhere in a browser or on
// a lenient server: through a dot segment, a backslash, a control character, or
// two slashes at the start.
func checkReturnPath(path string) error {
	if !strings.HasPrefix(path, "/") || strings.HasPrefix(path, "//") || !utf8.ValidString(path) {
		return errors.New("it does not begin with one slash, or is not UTF-8")
	}
	for _, c := range path {
		if c < ' ' || c == 0x7f || c == '\\' {
			return errors.New("it has a control character or a backslash")
		}
	}
	for segment := range strings.SplitSeq(path, "/") {
		name, _, _ := strings.Cut(segment, ";") // Java servers see .. in "..;"
		if segment != "" && strings.Trim(name, ". ") == "" {
			return errors.New("it has a dot segment, or one that is empty but for parameters")
		}
	}
	return nil
}

// logoutReturnTo is returnTo for a logout, which may also lead to the page that
// says so.
func (a *app) logoutReturnTo(raw string, ownPage bool) string {
	if raw == a.prefix+signedOutPath {
		return raw
	}
	return a.returnTo(raw, ownPage)
}
