package proxy

import (
	"cmp"
	"net/url"
	"regexp"
	"strings"

	"github.com/cloakroom-bff/cloakroom/internal/urlpath"
)

// linkTarget matches the URLs in a Link header (RFC 8288, section 3). No
// parameter has angle brackets around a URL.
var linkTarget = regexp.MustCompile(`<[^<>"]*>`)

// links maps the URLs in a Link header.
func (x *exchange) links(value string) string {
	return linkTarget.ReplaceAllStringFunc(value, func(target string) string {
		return "<" + x.location(target[1:len(target)-1]) + ">"
	})
}

// location maps a URL that an upstream refers to: one at the upstream itself,
// or at the public host, becomes the path at which the browser finds it. Others
// are returned unchanged.
func (x *exchange) location(value string) string {
	u, err := url.Parse(value)
	if err != nil || u.Opaque != "" {
		return value
	}
	// An upstream that applies only X-Forwarded-Proto names itself with our
	// scheme.
	a, scheme := x.address, x.publicScheme()
	ours := u.Scheme == scheme
	itself := u.Host != "" && (u.Scheme == "" || ours || u.Scheme == a.url.Scheme) &&
		plainHost(cmp.Or(u.Scheme, a.url.Scheme), u.Host) == plainHost(a.url.Scheme, a.host)
	switch {
	case u.Host == "" && u.Scheme == "" && strings.HasPrefix(u.Path, "/"):
		if !x.p.StripPrefix && strings.Trim(a.url.Path, "/") == "" && x.p.base == "" && u.Path+"/" != x.p.Path {
			return value
		}
	case itself:
	case u.Host != "" && (u.Scheme == "" || ours) && plainHost(scheme, u.Host) == plainHost(scheme, x.publicHost()):
	default:
		return value
	}
	path := u.EscapedPath()
	if !x.p.prefixed(path) || itself {
		path, _ = x.publicPath(path)
	}
	if path == "" {
		path = "/"
	}
	if path+"/" == x.p.urlPath { // which is not under the route
		path = x.p.urlPath
	}
	if strings.HasPrefix(path, "//") { // it would be another host
		return value
	}
	if u.RawQuery != "" || u.ForceQuery {
		path += "?" + u.RawQuery
	}
	if u.Fragment != "" {
		path += "#" + u.EscapedFragment()
	}
	return path
}

// prefixed reports whether an upstream that applies X-Forwarded-Prefix has put
// the prefix in front of a path already.
func (p *Proxy) prefixed(path string) bool {
	return p.forwardedPrefix != "" && urlpath.Under(path, p.forwardedPrefix)
}

// publicPath maps a path of the upstream to the one at which the browser finds
// it. It reports whether there is one: the upstream may have paths beside its
// base, and they stay as they are.
func (x *exchange) publicPath(escaped string) (string, bool) {
	path, ok := strings.CutPrefix(escaped, strings.TrimSuffix(x.address.url.EscapedPath(), "/"))
	switch {
	case !ok || path != "" && path[0] != '/':
		return x.p.base + escaped, false
	case x.p.StripPrefix:
		return strings.TrimSuffix(x.p.urlPath, "/") + path, true
	}
	return x.p.base + path, true
}

// Host returns the host and port of an upstream's URL in their shortest form,
// or the path of a Unix socket. Two URLs of the same server have the same host.
func Host(upstream string) string {
	u, err := url.Parse(upstream)
	if err != nil { // New refuses it
		return upstream
	}
	return cmp.Or(plainHost(strings.Replace(u.Scheme, "h2c", "http", 1), u.Host), u.Path)
}

// plainHost returns a host in lower case, without the default port of the
// scheme and without a trailing dot.
func plainHost(scheme, host string) string {
	host = strings.TrimSuffix(strings.ToLower(host), map[string]string{"http": ":80", "https": ":443"}[scheme])
	host = strings.TrimSuffix(host, ":") // an empty port is the default port (RFC 3986, section 3.2.3)
	name, port := host, ""
	if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
		name, port = host[:i], host[i:]
	}
	return strings.TrimSuffix(name, ".") + port
}
