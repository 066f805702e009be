package bff

import (
	"net/url"
	"strings"
	"unicode/utf8"
)

// maxReturnTo keeps the cookie of a login attempt small.
const maxReturnTo = 1024

// parseReturnTo returns raw if it is a path of this origin, with a query and fragment or without, and "/" otherwise.
//
// What counts is what a browser makes of it in a Location header: it strips tabs and line ends, takes a backslash for a
// slash, and two slashes for the begin of a host. So everything beyond the plainest form is refused, also in the percent-encoded
// spelling that some later hop may decode.
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
	if checkPath(u.EscapedPath()) != nil {
		return otherwise
	}
	return raw
}
