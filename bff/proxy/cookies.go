package proxy

import (
	"strings"

	"github.com/cloakroom-bff/cloakroom/internal/urlpath"
)

// dropOwnCookies removes the broker's own cookies from a line of the header
// Cookie. The line is unchanged if none of its cookies is the broker's, or
// empty.
func (g *Group) dropOwnCookies(line string) string {
	var rest strings.Builder
	changed := false
	for part := range strings.SplitSeq(line, ";") {
		part = strings.TrimSpace(part)
		name, _, _ := strings.Cut(part, "=")
		if part == "" || g.ownCookie(strings.TrimSpace(name)) {
			changed = true
			continue
		}
		if rest.Len() > 0 {
			rest.WriteString("; ")
		}
		rest.WriteString(part)
	}
	if !changed {
		return line
	}
	return rest.String()
}

// cookieAllowed reports whether an upstream may set a cookie: for this host
// only, and none that could be taken for the broker's own. A browser sends a
// cookie without a name as its value alone, which reads as another cookie's
// name (RFC 6265bis, section 5.7).
func (g *Group) cookieAllowed(line string) bool {
	pair, _, _ := strings.Cut(line, ";")
	name, _, named := strings.Cut(pair, "=")
	name = strings.TrimSpace(name)
	return named && name != "" && !g.ownCookie(name) && !strings.HasPrefix(name, "__") && !hasDomain(line)
}

// hasDomain reports whether a Set-Cookie line is for other hosts too.
func hasDomain(line string) bool {
	_, attributes, _ := strings.Cut(line, ";")
	for attribute := range strings.SplitSeq(attributes, ";") {
		name, _, _ := strings.Cut(attribute, "=")
		if strings.EqualFold(strings.TrimSpace(name), "domain") {
			return true
		}
	}
	return false
}

// confineCookie returns a Set-Cookie line whose Path is mapped as a Location
// is, and lies under the path of the proxy: no other upstream gets the cookie.
func (x *exchange) confineCookie(line string) string {
	parts := strings.Split(line, ";")
	kept := parts[:1:1]
	path, n := "", 0
	for _, attribute := range parts[1:] {
		name, value, _ := strings.Cut(attribute, "=")
		if strings.EqualFold(strings.Trim(name, " \t"), "path") {
			path, n = strings.Trim(value, " \t"), n+1 // the last one counts (RFC 6265, section 5.3)
			continue
		}
		kept = append(kept, attribute)
	}
	confined, mapped := x.p.urlPath, path
	if !x.p.prefixed(path) {
		mapped, _ = x.publicPath(path)
	}
	if strings.HasPrefix(path, "/") && len(path) <= maxCookiePath && urlpath.Under(mapped, x.p.urlPath) {
		confined = mapped
	}
	if n == 1 && confined == path {
		return line
	}
	return strings.Join(append(kept, " Path="+confined), ";")
}

// maxCookiePath is the length up to which browsers apply the Path of a cookie
// (RFC 6265bis, section 5.6).
const maxCookiePath = 1024
