package bff

import (
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// fate is what becomes of a header on its way through.
type fate byte

const (
	pass   fate = iota // also every header that is in no table
	drop               // it is ours, for this connection only, or would let the other side act in our name
	filter             // cookies: those pass that are not ours
)

// requestHeaders is the fate of request headers. Those that forged knows are dropped too.
var requestHeaders = map[string]fate{
	// This connection's (RFC 9110 7.6.1).
	"Connection": drop, "Keep-Alive": drop, "Proxy-Connection": drop, "Te": drop, "Trailer": drop, "Transfer-Encoding": drop,
	"Upgrade": drop, "Content-Length": drop, "Proxy-Authenticate": drop, "Http2-Settings": drop,
	// What only we say, or only a proxy that we trust.
	"Authorization": drop, "Proxy-Authorization": drop, "Dpop": drop, "Forwarded": drop, "X-Request-Id": drop,
	"X-Real-Ip": drop, "X-Rewrite-Url": drop,
	"X-Client-Ip": drop, "X-Cluster-Client-Ip": drop, "True-Client-Ip": drop, "Client-Ip": drop,
	"X-Http-Method": drop,
	"X-Csrf":        drop, "X-Background": drop,
	"Cookie": filter,
}

// forged says whether a request header is of those by which clients speak for proxies, of their certificates too (RFC 9440), or have another method taken for theirs, whatever exactly it is
// called; or has an underscore, which some servers take for a hyphen.
func forged(name string) bool {
	return strings.HasPrefix(name, "X-Forwarded") || strings.Contains(name, "Client-Cert") || strings.Contains(name, "Ssl-Client") || strings.HasPrefix(name, "X-Original-") || strings.HasSuffix(name, "Method-Override") || strings.Contains(name, "_")
}

// responseHeaders is the fate of response headers and trailers.
var responseHeaders = map[string]fate{
	"Connection": drop, "Keep-Alive": drop, "Proxy-Connection": drop, "Te": drop, "Trailer": drop, "Transfer-Encoding": drop,
	"Upgrade": drop, "Proxy-Authenticate": drop, "Proxy-Authorization": drop, "Proxy-Authentication-Info": drop,
	// What acts on our whole origin.
	"Clear-Site-Data": drop, "Strict-Transport-Security": drop, "Service-Worker-Allowed": drop, "Alt-Svc": drop, "Refresh": drop, "Public-Key-Pins": drop,
	"Access-Control-Allow-Origin": drop, "Access-Control-Allow-Credentials": drop, "Access-Control-Allow-Methods": drop, "Access-Control-Allow-Headers": drop,
	"Access-Control-Expose-Headers": drop, "Access-Control-Max-Age": drop, "Access-Control-Allow-Private-Network": drop,
	"Secure-Session-Registration": drop, "Secure-Session-Challenge": drop, "Secure-Session-Skipped": drop, "Sec-Session-Registration": drop, "Sec-Session-Challenge": drop,
	"Origin-Agent-Cluster": drop, "Nel": drop, "Report-To": drop, "Reporting-Endpoints": drop, "Supports-Loading-Mode": drop, "Login-Status": drop, "Set-Login": drop,
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
		case fate == drop, forged(name), listed != nil && listed[name]:
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
	if upgrade := r.Header["Upgrade"]; len(upgrade) > 0 { // upgradeAllowed has looked at it
		out["Upgrade"], out["Connection"] = upgrade, []string{"Upgrade"}
	}
	if _, ok := out["User-Agent"]; !ok {
		out["User-Agent"] = nil // http.Transport would send its own
	}
	for name, claim := range route.Headers {
		delete(out, name)
		if current != nil {
			switch text := strings.Join(claimTexts(current.Claim(claim)), ","); {
			case text == "" || !isFieldValue(text):
			case len(text) > maxClaimHeader:
				s.log.Warn("claim not handed on: it is too long for a header", "header", name, "claim", claim, "bytes", len(text), "session", current.ID)
			default:
				out[name] = []string{text}
			}
		}
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

// withoutOurCookies returns what remains of a Cookie header line.
func (s *Server) withoutOurCookies(line string) string {
	var rest strings.Builder
	for part := range strings.SplitSeq(line, ";") {
		part = strings.TrimSpace(part)
		name, _, _ := strings.Cut(part, "=")
		if part == "" || s.ourCookie(strings.TrimSpace(name)) {
			continue
		}
		if rest.Len() > 0 {
			rest.WriteString("; ")
		}
		rest.WriteString(part)
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

// clientIP is the address of whoever is in front of the last trusted proxy.
func (s *Server) clientIP(r *http.Request) string {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	ip := peer.Addr().Unmap()
	if !s.trusts(ip) {
		return ip.String()
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0 && s.trusts(ip); i-- {
		hop, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			break
		}
		ip = hop.Unmap()
	}
	return ip.String()
}

// copyHeader puts into h what an upstream's header may say on our origin, and keeps it from being cached for somebody else.
func (s *Server) copyHeader(h, from http.Header) {
	listed := connectionOptions(from)
	for name, values := range from {
		switch fate := responseHeaders[name]; {
		case fate == drop, listed != nil && listed[name]:
		case fate == filter:
			for _, line := range values {
				if s.cookieAllowed(line) {
					h[name] = append(h[name], line)
				}
			}
		default:
			h[name] = values
		}
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

var notCachedValue = []string{"private, no-store"}

func notCached(h http.Header) {
	h["Cache-Control"] = notCachedValue
	for _, name := range []string{"Expires", "Pragma", "Surrogate-Control", "Cdn-Cache-Control"} {
		delete(h, name)
	}
}

// trailerAllowed says whether an upstream may have a field in its trailer.
func trailerAllowed(name string) bool {
	switch name {
	case "Cache-Control", "Content-Length", "Content-Type", "Content-Encoding", "Content-Range", "Www-Authenticate", "Location", "Authorization":
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

// location turns a redirect to the upstream itself into one to the route, which is where the browser finds it. All others stay as they are.
func (a *address) location(route *route, value string) string {
	u, err := url.Parse(value)
	if err != nil || u.Opaque != "" {
		return value
	}
	moved := route.StripPrefix || strings.Trim(a.url.Path, "/") != ""
	switch {
	case u.Host != "" && strings.EqualFold(u.Host, a.host) && (u.Scheme == "" || u.Scheme == a.url.Scheme):
	case u.Host == "" && u.Scheme == "" && moved && strings.HasPrefix(u.Path, "/"):
	default:
		return value
	}
	base := strings.TrimSuffix(a.url.EscapedPath(), "/")
	path, ok := strings.CutPrefix(u.EscapedPath(), base)
	if !ok || path != "" && path[0] != '/' {
		path = u.EscapedPath() // beside its base: nothing of ours leads there
	} else if route.StripPrefix {
		path = strings.TrimSuffix(route.Path, "/") + path
	}
	if path == "" {
		path = "/"
	}
	if u.RawQuery != "" {
		path += "?" + u.RawQuery
	}
	if u.Fragment != "" {
		path += "#" + u.EscapedFragment()
	}
	if strings.HasPrefix(path, "//") { // it would be another host
		return value
	}
	return path
}
