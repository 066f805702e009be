package proxy

import (
	"net/http"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
)

// headerAction is what happens to a header on its way through the proxy.
type headerAction byte

const (
	pass   headerAction = iota // also every header that is in no table
	drop                       // it is the broker's, is for one connection only, or would act in the broker's name
	filter                     // cookies: the broker's own are removed
)

// requestHeaders are the actions for request headers. Those that isSpoofable reports
// are dropped too.
var requestHeaders = map[string]headerAction{
	// For one connection (RFC 9110, section 7.6.1).
	"Connection": drop, "Keep-Alive": drop, "Proxy-Connection": drop, "Te": drop, "Trailer": drop, "Transfer-Encoding": drop,
	"Upgrade": drop, "Content-Length": drop, "Proxy-Authenticate": drop, "Http2-Settings": drop,
	"Host": drop, // HTTP/2 allows it beside :authority
	// Set by the broker, or by a trusted proxy.
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
	bare := HeaderKey(name)
	for _, prefix := range []string{"xforwarded", "xoriginal", "proxy"} {
		if strings.HasPrefix(bare, prefix) {
			return true
		}
	}
	return strings.Contains(bare, "clientcert") || strings.Contains(bare, "sslclient") || strings.HasSuffix(bare, "methodoverride") || spoofableNames[bare]
}

// spoofableNames are the names in requestHeaders that an upstream might take a
// misspelling for, and those of addresses and hosts, without punctuation.
var spoofableNames = headerKeys(
	"Authorization", "DPoP", "Forwarded", "X-Request-Id", "X-Real-IP", "X-Rewrite-URL", "X-Client-IP", "X-Cluster-Client-IP", "True-Client-IP", "Client-IP", "X-HTTP-Method",
	"CF-Connecting-IP", "CF-Connecting-IPv6", "Fastly-Client-IP", "Fly-Client-IP", "X-Azure-ClientIP", "X-AppEngine-User-IP", "X-Envoy-External-Address", "X-ProxyUser-IP", "X-Remote-IP", "X-Remote-Addr", "Remote-Addr",
	"X-Host", "X-HTTP-Host-Override", "Front-End-Https", "X-Url-Scheme",
)

// isIdentity reports whether an upstream could take a request header for the
// word of a proxy about who the user is. Only routes that are configured to send
// such a header do.
func isIdentity(name string) bool {
	bare := HeaderKey(name)
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
	identityNames = headerKeys(
		"Remote-User", "Remote-Name", "Remote-Email", "Remote-Group", "Remote-Groups", "X-Userinfo", "X-ID-Token", "X-Client-Verify", "X-Client-DN", "X-SSL-Cert", "SSL-Cert",
		"X-Auth-Username", "X-Auth-Userid", "X-Auth-Subject", "X-Auth-Email", "X-Auth-Groups", "X-Auth-Roles", "X-Auth-Audience", "X-Proxy-User", "X-Trusted-User",
	)
	// Of oauth2-proxy, Grafana, Kong, authentik, Pomerium, Vouch, Azure, Google, AWS, Cloudflare, Tailscale, mod_auth_openidc.
	identityPrefixes = []string{
		"xremoteuser", "xremotegroup", "xremoteextra", "xauthrequest", "xwebauth", "xauthenticated", "xconsumer", "xcredentialidentifier", "xanonymousconsumer", "xauthentik", "xpomerium", "xvouch",
		"xmsclientprincipal", "xmstoken", "xgoogauthenticateduser", "xgoogiap", "xamznoidc", "cfaccess", "tailscaleuser", "oidcclaim", "oidcaccesstoken", "oidcidtoken",
	}
)

// HeaderKey returns the letters and digits of a header name, in lower case. Servers that
// replace or drop the other characters take names with the same key for the same.
func HeaderKey(name string) string {
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

func headerKeys(names ...string) map[string]bool {
	keys := make(map[string]bool)
	for _, name := range names {
		keys[HeaderKey(name)] = true
	}
	return keys
}

// CanSetHeader reports whether an upstream may be told something in a request header of
// that name: it is valid, not used otherwise, and no header that impersonates a proxy.
func CanSetHeader(name string) bool {
	canonical := http.CanonicalHeaderKey(name)
	_, used := requestHeaders[canonical]
	return httpguts.ValidHeaderFieldName(name) && !used && !isSpoofable(canonical) && !framing[canonical]
}

// framing are headers that say where a message ends, or whom it is for.
var framing = map[string]bool{"Host": true, "Content-Length": true, "Transfer-Encoding": true, "Connection": true, "Cookie": true, "Expect": true}

// responseHeaders are the actions for response headers and trailers.
var responseHeaders = map[string]headerAction{
	"Connection": drop, "Keep-Alive": drop, "Proxy-Connection": drop, "Te": drop, "Trailer": drop, "Transfer-Encoding": drop,
	"Upgrade": drop, "Proxy-Authenticate": drop, "Proxy-Authorization": drop, "Proxy-Authentication-Info": drop,
	// These act on the whole origin.
	"Clear-Site-Data": drop, "Strict-Transport-Security": drop, "Service-Worker-Allowed": drop, "Alt-Svc": drop, "Refresh": drop, "Public-Key-Pins": drop, "Public-Key-Pins-Report-Only": drop, "Expect-Ct": drop,
	"Access-Control-Allow-Origin": drop, "Access-Control-Allow-Credentials": drop, "Access-Control-Allow-Methods": drop, "Access-Control-Allow-Headers": drop,
	"Access-Control-Expose-Headers": drop, "Access-Control-Max-Age": drop, "Access-Control-Allow-Private-Network": drop,
	"Secure-Session-Registration": drop, "Secure-Session-Challenge": drop, "Secure-Session-Skipped": drop, "Sec-Session-Registration": drop, "Sec-Session-Challenge": drop,
	"Origin-Agent-Cluster": drop, "Nel": drop, "Report-To": drop, "Reporting-Endpoints": drop, "Supports-Loading-Mode": drop, "Login-Status": drop, "Set-Login": drop, "Idp-Signin-Status": drop,
	"Accept-Ch": drop, "Accept-Ch-Lifetime": drop, "Critical-Ch": drop, "Use-As-Dictionary": drop, "Speculation-Rules": drop, "Activate-Storage-Access": drop, "Cache-Group-Invalidation": drop,
	"Observe-Browsing-Topics": drop, "Shared-Storage-Write": drop, "Attribution-Reporting-Register-Source": drop, "Attribution-Reporting-Register-Trigger": drop, "Origin-Policy": drop,
	// These act on a proxy in front of the broker.
	"X-Accel-Redirect": drop, "X-Sendfile": drop, "X-Lighttpd-Send-File": drop, "X-Reproxy-Url": drop, "X-Reproxy-File": drop,
	// These disclose internals.
	"Server": drop, "X-Powered-By": drop, "Via": drop, "Dpop-Nonce": drop,
	"Set-Cookie": filter,
}

// requestHeader sets the header of the request to the upstream: what passes of the
// client's, then the proxy's own, which nothing that a client sends can remove. out is
// empty.
func (x *exchange) requestHeader(out http.Header) {
	listed := connectionOptions(x.r.Header)
	for name, values := range x.r.Header {
		switch action := requestHeaders[name]; {
		case action == drop, listed != nil && listed[name]:
		case !ordinary[name] && (isSpoofable(name) || isIdentity(name)):
		case x.p.reserved != nil && x.p.reserved[HeaderKey(name)]:
		case action == filter:
			for _, line := range values {
				if rest := x.p.group.dropOwnCookies(line); rest != "" {
					out["Cookie"] = append(out["Cookie"], rest)
				}
			}
		default:
			out[name] = values
		}
	}
	if isWebSocket(x.r.Header) {
		out["Upgrade"], out["Connection"] = x.r.Header["Upgrade"], []string{"Upgrade"}
	}
	if _, ok := out["User-Agent"]; !ok {
		out["User-Agent"] = nil // http.Transport would send its own
	}
	if set := x.opts.SetHeader; set != nil {
		set(out)
	}
	x.setForwarded(out)
	if via := out["Via"]; len(via) == 0 {
		out["Via"] = viaValue
	} else {
		out["Via"] = append(via[:len(via):len(via)], viaValue...)
	}
	if x.credential != nil {
		out["Authorization"] = x.credential.Authorization()
	}
	if x.opts.PassAuthorization {
		out["Authorization"] = x.r.Header["Authorization"]
		if proof := x.r.Header["Dpop"]; len(proof) > 0 {
			out["Dpop"] = proof
		}
	}
}

// setForwarded sets the headers that describe the client's request.
func (x *exchange) setForwarded(out http.Header) {
	set := make([]string, 2) // one allocation for both
	if x.opts.Client != "" {
		set[0] = x.opts.Client
		out["X-Forwarded-For"] = set[0:1:1]
	}
	if x.opts.RequestID != "" {
		set[1] = x.opts.RequestID
		out["X-Request-Id"] = set[1:2:2]
	}
	if out["X-Forwarded-Host"] = x.p.forwardedHost; x.p.forwardedHost == nil {
		out["X-Forwarded-Host"] = []string{x.publicHost()}
	}
	if out["X-Forwarded-Proto"] = x.p.forwardedProto; x.p.forwardedProto == nil {
		out["X-Forwarded-Proto"] = []string{x.publicScheme()}
	}
	if x.p.forwardedPrefix != nil {
		out["X-Forwarded-Prefix"] = x.p.forwardedPrefix
	}
}

// publicHost returns the host that the browser sees.
func (x *exchange) publicHost() string {
	if x.p.forwardedHost != nil {
		return x.p.forwardedHost[0]
	}
	return x.r.Host
}

// publicScheme returns the scheme that the browser sees.
func (x *exchange) publicScheme() string {
	switch {
	case x.p.forwardedProto != nil:
		return x.p.forwardedProto[0]
	case x.r.TLS != nil:
		return "https"
	}
	return "http"
}

// viaValue is the value of Via (RFC 9110, section 7.6.3).
var viaValue = []string{"1.1 cloakroom"}

// connectionOptions returns the headers that Connection lists as being for one
// connection. Usually there are none, and the map is nil.
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

// copyHeader sets in h what an upstream's header may say on the broker's origin, and
// keeps it from being cached for another user. URLs and cookies in it are mapped to
// where the browser sees the upstream.
func (x *exchange) copyHeader(h, from http.Header) {
	listed := connectionOptions(from)
	for name, values := range from {
		switch action := responseHeaders[name]; {
		case action == drop, listed != nil && listed[name]:
		case action == filter:
			for _, line := range values {
				if x.p.group.cookieAllowed(line) {
					h[name] = append(h[name], x.confineCookie(line))
				}
			}
		case name == "Location", name == "Content-Location":
			for _, value := range values {
				h[name] = append(h[name], x.location(value))
			}
		case name == "Link":
			for _, value := range values {
				h[name] = append(h[name], x.links(value))
			}
		default:
			h[name] = values
		}
	}
	if _, typed := h["Content-Type"]; !typed {
		h["Content-Type"] = nil // net/http would guess one
	}
	cacheable := len(h["Cache-Control"]) > 0 || len(h["Expires"]) > 0
	if !cacheable || len(h["Set-Cookie"]) > 0 { // a cookie is for one user, whatever the rest says
		setNoStore(h)
	}
}

var noStoreValue = []string{"private, no-store"}

// setNoStore keeps every cache from storing a response.
func setNoStore(h http.Header) {
	h["Cache-Control"] = noStoreValue
	for _, name := range []string{"Expires", "Pragma", "Surrogate-Control", "Cdn-Cache-Control", "Cloudflare-Cdn-Cache-Control", "X-Accel-Expires"} {
		delete(h, name)
	}
}

// trailerAllowed reports whether an upstream may send a field in a trailer.
func trailerAllowed(name string) bool {
	switch name {
	case "Cache-Control", "Content-Length", "Content-Type", "Content-Encoding", "Content-Range", "Www-Authenticate", "Location", "Content-Location", "Link", "Authorization":
		return false
	}
	return responseHeaders[name] == pass
}

// dropBrowserAuth removes those of a 401's challenges for which a browser asks the user
// for a password (RFC 9110, section 11.6.1).
func dropBrowserAuth(challenges []string) []string {
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
		return []string{problem.CookieChallenge}
	}
	return rest
}
