package bff

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/cloakroom-bff/cloakroom/internal/urlpath"
	"github.com/cloakroom-bff/cloakroom/session"
)

// fate is what becomes of a header on its way through.
type fate byte

const (
	pass   fate = iota // also every header that is in no table
	drop               // it is ours, for this connection only, or would let the other side act in our name
	filter             // cookies: those pass that are not ours
)

// requestHeaders is the fate of request headers. What isSpoofable reports is
// dropped too.
var requestHeaders = map[string]fate{
	// This connection's (RFC 9110 7.6.1).
	"Connection": drop, "Keep-Alive": drop, "Proxy-Connection": drop, "Te": drop, "Trailer": drop, "Transfer-Encoding": drop,
	"Upgrade": drop, "Content-Length": drop, "Proxy-Authenticate": drop, "Http2-Settings": drop,
	"Host": drop, // HTTP/2 allows it beside :authority
	// What only we say, or only a proxy that we trust.
	"Authorization": drop, "Proxy-Authorization": drop, "Dpop": drop, "Forwarded": drop, "X-Request-Id": drop,
	"X-Real-Ip": drop, "X-Rewrite-Url": drop,
	"X-Client-Ip": drop, "X-Cluster-Client-Ip": drop, "True-Client-Ip": drop, "Client-Ip": drop,
	"X-Http-Method": drop,
	"X-Csrf":        drop, "X-Background": drop,
	"Cookie": filter,
}

// ordinary are headers that nearly every request has, and that are not
// spoofable. They need no closer look.
var ordinary = map[string]bool{
	"Accept": true, "Accept-Encoding": true, "Accept-Language": true, "Cache-Control": true, "Content-Type": true, "Cookie": true, "Origin": true, "Pragma": true, "Priority": true, "Referer": true,
	"Sec-Ch-Ua": true, "Sec-Ch-Ua-Mobile": true, "Sec-Ch-Ua-Platform": true, "Sec-Fetch-Dest": true, "Sec-Fetch-Mode": true, "Sec-Fetch-Site": true, "Sec-Fetch-User": true,
	"Traceparent": true, "User-Agent": true, "If-None-Match": true, "If-Modified-Since": true, "Range": true, "X-Requested-With": true,
}

// isSpoofable reports whether a request header could impersonate a proxy or its
// certificate (RFC 9440), override the method, or has an underscore, which some
// servers take for a hyphen.
func isSpoofable(name string) bool {
	if strings.Contains(name, "_") {
		return true
	}
	bare := bareName(name)
	for _, prefix := range []string{"xforwarded", "xoriginal", "proxy"} {
		if strings.HasPrefix(bare, prefix) {
			return true
		}
	}
	return strings.Contains(bare, "clientcert") || strings.Contains(bare, "sslclient") || strings.HasSuffix(bare, "methodoverride") || spoofableNames[bare]
}

// spoofableNames are the names in requestHeaders that an upstream might take a
// misspelling for, and those of addresses and hosts, without punctuation.
var spoofableNames = bareNames(
	"Authorization", "DPoP", "Forwarded", "X-Request-Id", "X-Real-IP", "X-Rewrite-URL", "X-Client-IP", "X-Cluster-Client-IP", "True-Client-IP", "Client-IP", "X-HTTP-Method",
	"CF-Connecting-IP", "CF-Connecting-IPv6", "Fastly-Client-IP", "Fly-Client-IP", "X-Azure-ClientIP", "X-AppEngine-User-IP", "X-Envoy-External-Address", "X-ProxyUser-IP", "X-Remote-IP", "X-Remote-Addr", "Remote-Addr",
	"X-Host", "X-HTTP-Host-Override", "Front-End-Https", "X-Url-Scheme",
)

// isIdentity reports whether an upstream could take a request header for the
// word of a proxy about who the user is. Only routes that are configured to send
// such a header do.
func isIdentity(name string) bool {
	bare := bareName(name)
	if identityNames[bare] {
		return true
	}
	for _, prefix := range identityPrefixes {
		if strings.HasPrefix(bare, prefix) {
			return true
		}
	}
	return false
}

var (
	identityNames = bareNames(
		"Remote-User", "Remote-Name", "Remote-Email", "Remote-Group", "Remote-Groups", "X-Userinfo", "X-ID-Token", "X-Client-Verify", "X-Client-DN", "X-SSL-Cert", "SSL-Cert",
		"X-Auth-Username", "X-Auth-Userid", "X-Auth-Subject", "X-Auth-Email", "X-Auth-Groups", "X-Auth-Roles", "X-Auth-Audience", "X-Proxy-User", "X-Trusted-User",
	)
	// Of oauth2-proxy, Grafana, Kong, authentik, Pomerium, Vouch, Azure, Google, AWS, Cloudflare, Tailscale, mod_auth_openidc.
	identityPrefixes = []string{
		"xremoteuser", "xremotegroup", "xremoteextra", "xauthrequest", "xwebauth", "xauthenticated", "xconsumer", "xcredentialidentifier", "xanonymousconsumer", "xauthentik", "xpomerium", "xvouch",
		"xmsclientprincipal", "xmstoken", "xgoogauthenticateduser", "xgoogiap", "xamznoidc", "cfaccess", "tailscaleuser", "oidcclaim", "oidcaccesstoken", "oidcidtoken",
	}
)

// bareName returns the letters and digits of a header name, in lower case: what
// remains of it for servers that replace or drop the rest.
func bareName(name string) string {
	b := make([]byte, 0, 64)
	for i := range len(name) {
		switch c := name[i]; {
		case 'A' <= c && c <= 'Z':
			b = append(b, c|0x20)
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
			b = append(b, c)
		}
	}
	return string(b)
}

func bareNames(names ...string) map[string]bool {
	bare := make(map[string]bool)
	for _, name := range names {
		bare[bareName(name)] = true
	}
	return bare
}

// responseHeaders is the fate of response headers and trailers.
var responseHeaders = map[string]fate{
	"Connection": drop, "Keep-Alive": drop, "Proxy-Connection": drop, "Te": drop, "Trailer": drop, "Transfer-Encoding": drop,
	"Upgrade": drop, "Proxy-Authenticate": drop, "Proxy-Authorization": drop, "Proxy-Authentication-Info": drop,
	// What acts on our whole origin.
	"Clear-Site-Data": drop, "Strict-Transport-Security": drop, "Service-Worker-Allowed": drop, "Alt-Svc": drop, "Refresh": drop, "Public-Key-Pins": drop, "Public-Key-Pins-Report-Only": drop, "Expect-Ct": drop,
	"Access-Control-Allow-Origin": drop, "Access-Control-Allow-Credentials": drop, "Access-Control-Allow-Methods": drop, "Access-Control-Allow-Headers": drop,
	"Access-Control-Expose-Headers": drop, "Access-Control-Max-Age": drop, "Access-Control-Allow-Private-Network": drop,
	"Secure-Session-Registration": drop, "Secure-Session-Challenge": drop, "Secure-Session-Skipped": drop, "Sec-Session-Registration": drop, "Sec-Session-Challenge": drop,
	"Origin-Agent-Cluster": drop, "Nel": drop, "Report-To": drop, "Reporting-Endpoints": drop, "Supports-Loading-Mode": drop, "Login-Status": drop, "Set-Login": drop, "Idp-Signin-Status": drop,
	"Accept-Ch": drop, "Accept-Ch-Lifetime": drop, "Critical-Ch": drop, "Use-As-Dictionary": drop, "Speculation-Rules": drop, "Activate-Storage-Access": drop, "Cache-Group-Invalidation": drop,
	"Observe-Browsing-Topics": drop, "Shared-Storage-Write": drop, "Attribution-Reporting-Register-Source": drop, "Attribution-Reporting-Register-Trigger": drop, "Origin-Policy": drop,
	// What acts on a proxy in front of us.
	"X-Accel-Redirect": drop, "X-Sendfile": drop, "X-Lighttpd-Send-File": drop, "X-Reproxy-Url": drop, "X-Reproxy-File": drop,
	// What tells of the inside.
	"Server": drop, "X-Powered-By": drop, "Via": drop, "Dpop-Nonce": drop,
	"Set-Cookie": filter,
}

// upstreamHeader is the request's header as the upstream gets it: what may pass of the client's, then ours, which nothing of the client's can take away. It
// is put into out, which is empty.
func (s *Server) upstreamHeader(out http.Header, x *exchange) {
	w, r, route, current := x.w, x.r, x.route, x.current
	listed := connectionOptions(r.Header)
	for name, values := range r.Header {
		switch fate := requestHeaders[name]; {
		case fate == drop, listed != nil && listed[name]:
		case !ordinary[name] && (isSpoofable(name) || isIdentity(name)):
		case route.claimNames != nil && route.claimNames[bareName(name)]:
		case fate == filter:
			for _, line := range values {
				if rest := s.withoutOurCookies(line); rest != "" {
					out["Cookie"] = append(out["Cookie"], rest)
				}
			}
		default:
			out[name] = values
		}
	}
	if upgrade := r.Header["Upgrade"]; len(upgrade) > 0 { // to a WebSocket: upgradeAllowed has checked it
		out["Upgrade"], out["Connection"] = upgrade, []string{"Upgrade"}
	}
	if _, ok := out["User-Agent"]; !ok {
		out["User-Agent"] = nil // http.Transport would send its own
	}
	if current != nil {
		s.setClaims(out, route, current)
	}
	set := make([]string, 2)
	if w.client != "" {
		set[0] = w.client
		out["X-Forwarded-For"] = set[0:1:1]
	}
	set[1] = w.requestID
	out["X-Request-Id"] = set[1:2:2]
	out["X-Forwarded-Host"] = s.forwardedHost
	out["X-Forwarded-Proto"] = s.forwardedProto
	if route.forwardedPrefix != nil {
		out["X-Forwarded-Prefix"] = route.forwardedPrefix
	}
	if via := out["Via"]; len(via) == 0 {
		out["Via"] = viaUs
	} else {
		out["Via"] = append(via[:len(via):len(via)], viaUs...)
	}
	if x.token.header != nil {
		out["Authorization"] = x.token.header
	}
	if x.token.callers && len(r.Header["Dpop"]) > 0 { // verified with the token
		out["Dpop"] = r.Header["Dpop"]
	}
}

// setClaims puts the user's claims into the header of a request, as the route is
// configured. A claim that another server could take for something else is left
// out, with a warning.
func (s *Server) setClaims(out http.Header, route *route, current *session.Session) {
	set := func(name, claim, text, problem string) {
		switch {
		case len(text) > maxClaimHeader:
			problem = "it is too long for a header"
		case !isFieldValue(text) || text != strings.TrimSpace(text):
			problem, text = "it has a control character, or a space at its beginning or end", ""
		}
		if problem != "" {
			s.log.Warn("claim not sent to the upstream", "header", name, "claim", claim, "problem", problem, "bytes", len(text), "session", current.ID)
		}
		if text != "" && len(text) <= maxClaimHeader {
			out[name] = []string{text}
		}
	}
	for name, claim := range route.Headers {
		value, problem := current.Claim(claim), ""
		texts := claimTexts(value)
		if _, isList := value.([]any); isList {
			n := len(texts)
			texts = slices.DeleteFunc(texts, func(text string) bool { return strings.Contains(text, ",") || text != strings.TrimSpace(text) })
			if len(texts) < n {
				problem = "elements with a comma, or a space at the beginning or end, are left out: they would arrive as others (use headers_json)"
			}
		}
		set(name, claim, strings.Join(texts, ","), problem)
	}
	for name, claim := range route.HeadersJSON {
		if value := current.Claim(claim); value != nil {
			set(name, claim, asciiJSON(value), "")
		}
	}
}

// asciiJSON returns a claim as JSON that any header can have.
func asciiJSON(claim any) string {
	text, err := json.Marshal(claim) // of what was JSON: it does not fail
	if err != nil {
		return ""
	}
	var b strings.Builder
	for _, c := range string(text) {
		switch {
		case c > 0xffff:
			high, low := utf16.EncodeRune(c)
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
		case c >= utf8.RuneSelf || c == 0x7f:
			fmt.Fprintf(&b, `\u%04x`, c)
		default:
			b.WriteRune(c)
		}
	}
	return b.String()
}

// maxClaimHeader is how many bytes a claim can have in a header: servers take 8 KiB for all of them.
const maxClaimHeader = 4 << 10

// viaUs is RFC 9110 7.6.3.
var viaUs = []string{"1.1 cloakroom"}

// connectionOptions are the headers that a Connection header names: they are for this connection. Mostly there is none, and the map is nil.
func connectionOptions(h http.Header) map[string]bool {
	var listed map[string]bool
	for _, line := range h["Connection"] {
		for option := range strings.SplitSeq(line, ",") {
			option = strings.Trim(option, " \t")
			if option == "" || strings.EqualFold(option, "keep-alive") || strings.EqualFold(option, "close") || strings.EqualFold(option, "upgrade") {
				continue
			}
			if listed == nil {
				listed = make(map[string]bool)
			}
			listed[http.CanonicalHeaderKey(option)] = true
		}
	}
	return listed
}

// isFieldValue says whether a text can be the value of a header field (RFC 9110 5.5).
func isFieldValue(text string) bool {
	return strings.IndexFunc(text, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }) < 0
}

// withoutOurCookies returns what remains of a Cookie header line: all of it, as
// it came, if none of its cookies is ours or empty.
func (s *Server) withoutOurCookies(line string) string {
	var rest strings.Builder
	changed := false
	for part := range strings.SplitSeq(line, ";") {
		part = strings.TrimSpace(part)
		name, _, _ := strings.Cut(part, "=")
		if part == "" || s.ourCookie(strings.TrimSpace(name)) {
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

// ourCookie reports whether a cookie name is one of ours, in any case of
// letters. So are those of brokers on other ports of this host, which browsers
// send to each of them, and those of releases that did not name the port.
func (s *Server) ourCookie(name string) bool {
	rest, ok := strings.CutPrefix(strings.TrimPrefix(strings.ToLower(name), "__host-http-"), "cloakroom")
	if !ok {
		return false
	}
	if port, ok := strings.CutPrefix(rest, "-"); ok {
		if afterPort := strings.TrimLeft(port, "0123456789"); len(afterPort) < len(port) {
			rest = afterPort
		}
	}
	return rest == "" || rest == "-logout" || strings.HasPrefix(rest, "-login-")
}

// copyHeader puts into h what an upstream's header may say on our origin, and
// keeps it from being cached for another user. The URLs and cookies in it are
// mapped to where the browser sees the route.
func (s *Server) copyHeader(h, from http.Header, route *route, a *address) {
	listed := connectionOptions(from)
	for name, values := range from {
		switch fate := responseHeaders[name]; {
		case fate == drop, listed != nil && listed[name]:
		case fate == filter:
			for _, line := range values {
				if s.cookieAllowed(line) {
					h[name] = append(h[name], a.confineCookie(route, line))
				}
			}
		case name == "Location", name == "Content-Location":
			for _, value := range values {
				h[name] = append(h[name], s.location(route, a, value))
			}
		case name == "Link":
			for _, value := range values {
				h[name] = append(h[name], linkTarget.ReplaceAllStringFunc(value, func(target string) string {
					return "<" + s.location(route, a, target[1:len(target)-1]) + ">"
				}))
			}
		default:
			h[name] = values
		}
	}
	if _, typed := h["Content-Type"]; !typed {
		h["Content-Type"] = nil // the server would guess one
	}
	if len(h["Cache-Control"]) == 0 && len(h["Expires"]) == 0 || len(h["Set-Cookie"]) > 0 { // a cookie is for one user, whatever is said of the rest
		notCached(h)
	}
}

// cookieAllowed says whether an upstream may set a cookie: for this host alone, and not one that could pass for ours. One without a name is sent back as its
// value alone, which reads as another cookie's name (RFC 6265bis 5.7).
func (s *Server) cookieAllowed(line string) bool {
	pair, _, _ := strings.Cut(line, ";")
	name, _, named := strings.Cut(pair, "=")
	name = strings.TrimSpace(name)
	return named && name != "" && !s.ourCookie(name) && !strings.HasPrefix(name, "__") && !hasDomain(line)
}

// hasDomain says whether a Set-Cookie line is for other hosts too.
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

// linkTarget finds the URLs in a Link header (RFC 8288, section 3). No parameter
// has angle brackets around a URL.
var linkTarget = regexp.MustCompile(`<[^<>"]*>`)

// confineCookie returns a Set-Cookie line whose Path is mapped as a Location is,
// and lies under the route: no other upstream gets the cookie.
func (a *address) confineCookie(route *route, line string) string {
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
	confined, mapped := route.urlPath, path
	if !route.prefixed(path) {
		mapped, _ = a.publicPath(route, path)
	}
	if strings.HasPrefix(path, "/") && len(path) <= maxCookiePath && urlpath.Under(mapped, route.urlPath) {
		confined = mapped
	}
	if n == 1 && confined == path {
		return line
	}
	return strings.Join(append(kept, " Path="+confined), ";")
}

// maxCookiePath is the length up to which browsers heed the Path of a cookie
// (RFC 6265bis, section 5.6).
const maxCookiePath = 1024

var notCachedValue = []string{"private, no-store"}

func notCached(h http.Header) {
	h["Cache-Control"] = notCachedValue
	for _, name := range []string{"Expires", "Pragma", "Surrogate-Control", "Cdn-Cache-Control", "Cloudflare-Cdn-Cache-Control", "X-Accel-Expires"} {
		delete(h, name)
	}
}

// trailerAllowed says whether an upstream may have a field in its trailer.
func trailerAllowed(name string) bool {
	switch name {
	case "Cache-Control", "Content-Length", "Content-Type", "Content-Encoding", "Content-Range", "Www-Authenticate", "Location", "Content-Location", "Link", "Authorization":
		return false
	}
	return responseHeaders[name] == pass
}

// withoutDialogue takes out of a 401's challenges those for which a browser asks for a password (RFC 9110 11.6.1): that is not for an upstream to do here.
func withoutDialogue(challenges []string) []string {
	var rest []string
	for _, c := range challenges {
		words := strings.FieldsFunc(strings.ToLower(c), func(c rune) bool { return c == ' ' || c == ',' || c == '\t' })
		dialogue := false
		for _, w := range words {
			dialogue = dialogue || w == "basic" || w == "digest" || w == "ntlm" || w == "negotiate" || w == "hoba" || w == "mutual"
		}
		if !dialogue && len(words) > 0 {
			rest = append(rest, c)
		}
	}
	if len(rest) == 0 {
		return []string{cookieChallenge}
	}
	return rest
}

// location maps a URL that an upstream refers to: one at the upstream itself, or
// at our public host, becomes the path at which the browser finds it. Others are
// returned unchanged.
func (s *Server) location(route *route, a *address, value string) string {
	u, err := url.Parse(value)
	if err != nil || u.Opaque != "" {
		return value
	}
	// An upstream that heeds X-Forwarded-Proto alone names itself with our scheme.
	ours := u.Scheme == s.forwardedProto[0]
	itself := u.Host != "" && (u.Scheme == "" || ours || u.Scheme == a.url.Scheme) &&
		plainHost(cmp.Or(u.Scheme, a.url.Scheme), u.Host) == plainHost(a.url.Scheme, a.host)
	switch {
	case u.Host == "" && u.Scheme == "" && strings.HasPrefix(u.Path, "/"):
		if !route.StripPrefix && strings.Trim(a.url.Path, "/") == "" {
			return value
		}
	case itself:
	case u.Host != "" && (u.Scheme == "" || ours) && sameHost(s.forwardedProto[0], u.Host, s.host):
	default:
		return value
	}
	path := u.EscapedPath()
	if !route.prefixed(path) || itself {
		path, _ = a.publicPath(route, path)
	}
	if path == "" {
		path = "/"
	}
	if path+"/" == route.urlPath { // which is not under the route
		path = route.urlPath
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

// prefixed reports whether an upstream that honours X-Forwarded-Prefix has put the
// prefix in front of a path already.
func (route *route) prefixed(path string) bool {
	return route.forwardedPrefix != nil && urlpath.Under(path, route.forwardedPrefix[0])
}

// publicPath maps a path of the upstream to the one at which the browser finds
// it. It reports whether there is one: the upstream may have paths beside its
// base, and they stay as they are.
func (a *address) publicPath(route *route, escaped string) (string, bool) {
	path, ok := strings.CutPrefix(escaped, strings.TrimSuffix(a.url.EscapedPath(), "/"))
	if !ok || path != "" && path[0] != '/' {
		return escaped, false
	}
	if route.StripPrefix {
		path = strings.TrimSuffix(route.urlPath, "/") + path
	}
	return path, true
}

// sameHost reports whether two hosts are the same for a scheme: case, its
// default port and a trailing dot do not count.
func sameHost(scheme, a, b string) bool { return plainHost(scheme, a) == plainHost(scheme, b) }

func plainHost(scheme, host string) string {
	host = strings.TrimSuffix(strings.ToLower(host), map[string]string{"http": ":80", "https": ":443"}[scheme])
	host = strings.TrimSuffix(host, ":") // an empty port is the default port (RFC 3986, section 3.2.3)
	name, port := host, ""
	if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
		name, port = host[:i], host[i:]
	}
	return strings.TrimSuffix(name, ".") + port
}
