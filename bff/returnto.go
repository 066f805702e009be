package bff

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"
)

// maxReturnTo keeps the cookie of a login attempt small.
const maxReturnTo = 1024

// parseReturnTo returns raw if it is a path of this origin, with a query and
// fragment or without, and "/" otherwise.
//
// What counts is what a browser makes of it in a Location header: it strips tabs
// and line ends, takes a backslash for a slash, resolves dot segments, and takes
// two slashes for the start of a host. Each of these is refused, also in a
// percent-encoded form that some later hop may decode.
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
	if _, err := readings(u.EscapedPath()); err != nil {
		return otherwise
	}
	return raw
}

// returnTo returns raw if the browser may be sent there after a login or a
// logout, and "/" otherwise. Every return_to goes through it.
//
// raw has to be a path of this origin outside of the prefix. It may be a path of
// the app that only has an ambiguous form, such as /orders//42, if no reading of
// it lies under a route. It may lie under a route only if the route allows
// documents and ownPage is true: a page of the app's origin started the login.
// Otherwise another site could have the browser open an upstream's document
// with the user's token, and as a request of the same origin.
func (s *Server) returnTo(raw string, ownPage bool) string {
	const otherwise = "/"
	if parseReturnTo(raw) != raw {
		return otherwise
	}
	u, err := url.Parse(raw)
	if err != nil {
		return otherwise
	}
	route := s.routeOf(u.Path)
	all, err := readings(u.EscapedPath())
	if err != nil {
		return otherwise
	}
	for _, reading := range all {
		if looselyUnder(reading, s.prefix) {
			return otherwise
		}
		if other := s.looseRouteOf(reading); other != nil && other != route {
			return otherwise
		}
	}
	if route != nil && (!ownPage || route.Documents != "allow" || checkPath(u.EscapedPath()) != nil) {
		return otherwise
	}
	return raw
}

// routeOf returns the route that a path lies under; nil if there is none.
func (s *Server) routeOf(path string) *route {
	for _, route := range s.routes { // the longest first
		if underPath(path, route.Path) {
			return route
		}
	}
	return nil
}

// looseRouteOf returns the longest route that a reading of a path may lie under,
// for a lenient server; nil if there is none.
func (s *Server) looseRouteOf(reading string) *route {
	for _, route := range s.routes {
		if looselyUnder(reading, route.Path) {
			return route
		}
	}
	return nil
}

// startedByOwnPage reports whether a page of the app's origin sent the browser
// here. A browser that does not send Fetch Metadata is not believed. Neither is
// a navigation that a service worker passed on, whose destination is empty: it
// is same-origin also if the user followed a link in a mail.
func startedByOwnPage(r *http.Request) bool {
	site := r.Header.Values("Sec-Fetch-Site")
	return len(site) == 1 && site[0] == "same-origin" && r.Header.Get("Sec-Fetch-Dest") != "empty"
}

// maxReadings bounds how often a path may be percent-encoded.
const maxReadings = 4

// readings returns the ways in which servers may read an escaped path: as it is,
// and percent-decoded once and more often. It fails if one of them leads
// elsewhere in a browser or on a lenient server: through a dot segment, a
// backslash, a control character, or two slashes at the start.
func readings(escaped string) ([]string, error) {
	var all []string
	for reading := escaped; ; {
		if err := checkReading(reading); err != nil {
			return nil, err
		}
		all = append(all, reading)
		next := unescape(reading)
		if next == reading {
			return all, nil
		}
		if len(all) == maxReadings {
			return nil, errors.New("it is percent-encoded too often")
		}
		reading = next
	}
}

func checkReading(path string) error {
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

// unescape decodes percent-encodings and leaves alone what only looks like one.
func unescape(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) && isHex(s[i+1]) && isHex(s[i+2]) {
			b.WriteByte(unhex(s[i+1])<<4 | unhex(s[i+2]))
			i += 2
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func unhex(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c | 0x20 - 'a' + 10
}

// looselyUnder reports whether a lenient server may take a path for prefix or
// for a path below it.
func looselyUnder(path, prefix string) bool {
	path, prefix = loosen(path), loosen(prefix)
	return prefix == "/" || strings.HasPrefix(path, prefix)
}

// loosen returns a path as the most lenient server reads it: in one case of
// letters, up to a question mark or a number sign, without path parameters,
// without dots and spaces at the end of a segment, without empty segments, and
// with a slash at the end.
func loosen(path string) string {
	if i := strings.IndexAny(path, "?#"); i >= 0 {
		path = path[:i]
	}
	var b strings.Builder
	b.WriteByte('/')
	for segment := range strings.SplitSeq(path, "/") {
		name, _, _ := strings.Cut(segment, ";")
		if name = strings.TrimRight(name, ". "); name != "" {
			b.WriteString(strings.ToLower(strings.ToUpper(name))) // both, for letters such as the long s
			b.WriteByte('/')
		}
	}
	return b.String()
}
