package proxy

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"

	"golang.org/x/net/http/httpguts"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/internal/dpop"
	"github.com/cloakroom-bff/cloakroom/internal/http1"
	"github.com/cloakroom-bff/cloakroom/internal/span"
)

// headerAction is what happens to a header on its way through the proxy.
type headerAction byte

const (
	pass   headerAction = iota // also every header that is not named
	drop                       // it is the broker's, is for one connection only, or would act in the broker's name
	filter                     // cookies: the broker's own are removed
)

// requestAction returns the action for a request header by its canonical name.
// known is false for those that are not named here: they pass, unless
// isSpoofable or isIdentity reports them. A switch is cheaper than a map.
func requestAction(name string) (action headerAction, known bool) {
	switch name {
	case "Cookie":
		return filter, true
	case
		// For one connection (RFC 9110, section 7.6.1).
		"Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
		"Content-Length", "Proxy-Authenticate", "Http2-Settings", "Host", // HTTP/2 allows it beside :authority
		// Set by the broker, or by a trusted proxy.
		"Authorization", "Proxy-Authorization", "Dpop", "Forwarded", "X-Request-Id", "X-Real-Ip",
		"X-Rewrite-Url", "X-Client-Ip", "X-Cluster-Client-Ip", "True-Client-Ip", "Client-Ip",
		"X-Http-Method", "X-Csrf", "X-Background":
		return drop, true
	case
		// Nearly every request has some of these. They need no closer look.
		"Accept", "Accept-Encoding", "Accept-Language", "Cache-Control", "Content-Type", "Origin",
		"Pragma", "Priority", "Referer", "Sec-Ch-Ua", "Sec-Ch-Ua-Mobile", "Sec-Ch-Ua-Platform",
		"Sec-Fetch-Dest", "Sec-Fetch-Mode", "Sec-Fetch-Site", "Sec-Fetch-User", "Traceparent",
		"User-Agent", "If-None-Match", "If-Modified-Since", "Range", "X-Requested-With":
		return pass, true
	}
	return pass, false
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
	return strings.Contains(bare, "clientcert") || strings.Contains(bare, "sslclient") ||
		strings.HasSuffix(bare, "methodoverride") || spoofableNames[bare]
}

// spoofableNames are the names in requestAction that an upstream might take a
// misspelling for, and those of addresses and hosts, without punctuation.
var spoofableNames = headerKeys(
	"Authorization", "DPoP", "Forwarded", "X-Request-Id", "X-Real-IP", "X-Rewrite-URL",
	"X-Client-IP", "X-Cluster-Client-IP", "True-Client-IP", "Client-IP", "X-HTTP-Method",
	"CF-Connecting-IP", "CF-Connecting-IPv6", "Fastly-Client-IP", "Fly-Client-IP",
	"X-Azure-ClientIP", "X-AppEngine-User-IP", "X-Envoy-External-Address", "X-ProxyUser-IP",
	"X-Remote-IP", "X-Remote-Addr", "Remote-Addr",
	"X-Host", "X-HTTP-Host-Override", "Front-End-Https", "X-Url-Scheme",
)

// isIdentity reports whether an upstream could take a request header for the
// word of a proxy about who the user is. Only routes that are configured to
// send such a header do.
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
		"Remote-User", "Remote-Name", "Remote-Email", "Remote-Group", "Remote-Groups", "X-Userinfo",
		"X-ID-Token", "X-Client-Verify", "X-Client-DN", "X-SSL-Cert", "SSL-Cert",
		"X-Auth-Username", "X-Auth-Userid", "X-Auth-Subject", "X-Auth-Email", "X-Auth-Groups",
		"X-Auth-Roles", "X-Auth-Audience", "X-Proxy-User", "X-Trusted-User",
	)
	// Of oauth2-proxy, Grafana, Kong, authentik, Pomerium, Vouch, Azure,
	// Google, AWS, Cloudflare, Tailscale, mod_auth_openidc.
	identityPrefixes = []string{
		"xremoteuser", "xremotegroup", "xremoteextra", "xauthrequest", "xwebauth", "xauthenticated",
		"xconsumer", "xcredentialidentifier", "xanonymousconsumer", "xauthentik", "xpomerium",
		"xvouch",
		"xmsclientprincipal", "xmstoken", "xgoogauthenticateduser", "xgoogiap", "xamznoidc",
		"cfaccess", "tailscaleuser", "oidcclaim", "oidcaccesstoken", "oidcidtoken",
	}
)

// HeaderKey returns the letters and digits of a header name, in lower case.
// Servers that replace or drop the other characters take names with the same
// key for the same.
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

// CanSetHeader reports whether an upstream may be told something in a request
// header of that name: it is valid, not used otherwise, and no header that
// impersonates a proxy.
func CanSetHeader(name string) bool {
	canonical := http.CanonicalHeaderKey(name)
	action, _ := requestAction(canonical)
	return httpguts.ValidHeaderFieldName(name) && action == pass &&
		!isSpoofable(canonical) && !slices.Contains(framing, canonical)
}

// framing are headers that say where a message ends, or whom it is for.
var framing = []string{"Host", "Content-Length", "Transfer-Encoding", "Connection", "Cookie", "Expect"}

// responseAction returns the action for a response header or trailer by its
// canonical name.
func responseAction(name string) headerAction {
	switch name {
	case "Set-Cookie":
		return filter
	case
		"Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
		"Proxy-Authenticate", "Proxy-Authorization", "Proxy-Authentication-Info",
		// These act on the whole origin.
		"Clear-Site-Data", "Strict-Transport-Security", "Service-Worker-Allowed", "Alt-Svc", "Refresh",
		"Public-Key-Pins", "Public-Key-Pins-Report-Only", "Expect-Ct", "Access-Control-Allow-Origin",
		"Access-Control-Allow-Credentials", "Access-Control-Allow-Methods",
		"Access-Control-Allow-Headers", "Access-Control-Expose-Headers", "Access-Control-Max-Age",
		"Access-Control-Allow-Private-Network", "Secure-Session-Registration",
		"Secure-Session-Challenge", "Secure-Session-Skipped", "Sec-Session-Registration",
		"Sec-Session-Challenge", "Origin-Agent-Cluster", "Nel", "Report-To", "Reporting-Endpoints",
		"Supports-Loading-Mode", "Login-Status", "Set-Login", "Idp-Signin-Status", "Accept-Ch",
		"Accept-Ch-Lifetime", "Critical-Ch", "Use-As-Dictionary", "Speculation-Rules",
		"Activate-Storage-Access", "Cache-Group-Invalidation", "Observe-Browsing-Topics",
		"Shared-Storage-Write", "Attribution-Reporting-Register-Source",
		"Attribution-Reporting-Register-Trigger", "Origin-Policy",
		// These act on a proxy in front of the broker.
		"X-Accel-Redirect", "X-Sendfile", "X-Lighttpd-Send-File", "X-Reproxy-Url", "X-Reproxy-File",
		// These disclose internals.
		"Server", "X-Powered-By", "Via", "Dpop-Nonce":
		return drop
	}
	return pass
}

// fields holds the fields of requests, to be used again.
var fields = sync.Pool{New: func() any { return new(http1.Fields) }}

// maxPooledFields is the maximum length of those in fields.
const maxPooledFields = 16 << 10

// requestFields returns the fields of the request to the upstream: what passes
// of the client's, then the proxy's own, which nothing that a client sends can
// replace or remove. addCredential adds the others.
func (x *exchange) requestFields(ctx context.Context) *http1.Fields {
	f := fields.Get().(*http1.Fields)
	f.Reset()
	set := x.setHeader(ctx)
	x.addClientFields(f, set)
	f.AddHeader(set)
	f.AddFields(&x.p.own)
	if x.opts.Client != "" {
		f.Add("X-Forwarded-For", x.opts.Client)
	}
	if x.opts.RequestID != "" {
		f.Add("X-Request-Id", x.opts.RequestID)
	}
	if x.p.group.PublicURL == nil && !x.p.HideOrigin {
		f.Add("X-Forwarded-Host", x.publicHost())
		f.Add("X-Forwarded-Proto", x.publicScheme())
	}
	if x.opts.PassAuthorization {
		f.Add("Authorization", x.r.Header["Authorization"]...)
		f.Add("Dpop", x.r.Header["Dpop"]...)
	}
	return f
}

// addClientFields adds what passes of the client's header, and is not set.
func (x *exchange) addClientFields(f *http1.Fields, set http.Header) {
	listed := connectionOptions(x.r.Header)
	for name, values := range x.r.Header {
		_, replaced := set[name]
		switch action, known := requestAction(name); {
		case action == drop, replaced, listed != nil && listed[name]:
		case !known && (isSpoofable(name) || isIdentity(name)):
		case x.p.reserved != nil && x.p.reserved[HeaderKey(name)]:
		case action == filter && x.p.PublicFiles:
		case action == filter:
			for _, line := range values {
				if rest := x.p.group.dropOwnCookies(line); rest != "" {
					f.Add(name, rest)
				}
			}
		case x.p.HideOrigin && (name == "Origin" || name == "Referer"):
			for _, value := range values {
				f.Add(name, x.hideOrigin(value))
			}
		default:
			f.Add(name, values...)
		}
	}
	if isWebSocket(x.r.Header) {
		f.Add("Upgrade", x.r.Header["Upgrade"]...)
		f.Add("Connection", "Upgrade")
	}
}

// setHeader returns the header that Options.SetHeader and the span set, which
// replaces the client's. Usually there is none.
func (x *exchange) setHeader(ctx context.Context) http.Header {
	traced := x.span != nil && !x.p.PublicFiles
	if x.opts.SetHeader == nil && !traced {
		return nil
	}
	set := make(http.Header)
	if x.opts.SetHeader != nil {
		x.opts.SetHeader(set)
		maps.DeleteFunc(set, func(name string, _ []string) bool { return !CanSetHeader(name) })
	}
	if traced {
		span.Inject(ctx, set)
		if _, ok := set["Tracestate"]; !ok {
			set["Tracestate"] = nil // the client's belongs to another traceparent
		}
	}
	return set
}

// addCredential adds the fields of the credential, for one attempt.
func (x *exchange) addCredential(f *http1.Fields, out *http.Request, a *address) error {
	if x.credential == nil || x.opts.PassAuthorization {
		return nil
	}
	authorization := x.credential.Authorization()
	f.Add("Authorization", authorization...)
	if x.credential.Key() == nil {
		return nil
	}
	_, token, _ := strings.Cut(authorization[0], " ")
	// Another proof each time (RFC 9449, section 7.3).
	signed, err := dpop.Proof(x.credential.Key(), out.Method, out.URL, token, a.nonce())
	if err != nil {
		return err
	}
	f.Add("Dpop", signed)
	return nil
}

// ownFields returns the fields that all requests have: those that describe the
// public URL, and Via (RFC 9110, section 7.6.3).
func (p *Proxy) ownFields() (f http1.Fields) {
	f.Add("Via", "1.1 cloakroom")
	if p.HideOrigin {
		return f
	}
	if public := p.group.PublicURL; public != nil {
		f.Add("X-Forwarded-Host", public.Host)
		f.Add("X-Forwarded-Proto", public.Scheme)
	}
	if p.forwardedPrefix != "" {
		f.Add("X-Forwarded-Prefix", p.forwardedPrefix)
	}
	return f
}

// hideOrigin replaces the public origin in a value of Origin or Referer by the
// upstream's. Servers for development compare it with Host.
func (x *exchange) hideOrigin(value string) string {
	server := x.p.servers.servers[0]
	rest, ok := strings.CutPrefix(value, x.publicScheme()+"://"+x.publicHost())
	if !ok || rest != "" && rest[0] != '/' {
		return value
	}
	return server.url.Scheme + "://" + server.host + rest
}

// publicHost returns the host that the browser sees.
func (x *exchange) publicHost() string {
	if public := x.p.group.PublicURL; public != nil {
		return public.Host
	}
	return x.r.Host
}

// publicScheme returns the scheme that the browser sees.
func (x *exchange) publicScheme() string {
	switch public := x.p.group.PublicURL; {
	case public != nil:
		return public.Scheme
	case x.r.TLS != nil:
		return "https"
	}
	return "http"
}

// connectionOptions returns the headers that Connection lists as being for one
// connection. Usually there are none, and the map is nil.
func connectionOptions(h http.Header) map[string]bool {
	var listed map[string]bool
	for _, line := range h["Connection"] {
		for option := range strings.SplitSeq(line, ",") {
			option = strings.Trim(option, " \t")
			if option == "" || isPlainOption(option) {
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

// isPlainOption reports whether an option of Connection is no name of a header,
// or one that is handled elsewhere.
func isPlainOption(option string) bool {
	return strings.EqualFold(option, "keep-alive") || strings.EqualFold(option, "close") ||
		strings.EqualFold(option, "upgrade")
}

// copyHeader sets in h what an upstream's header may say on the broker's
// origin, and keeps it from being cached for another user. URLs and cookies in
// it are mapped to where the browser sees the upstream.
func (x *exchange) copyHeader(h, from http.Header) {
	listed := connectionOptions(from)
	for name, values := range from {
		switch action := responseAction(name); {
		case action == drop, listed != nil && listed[name]:
		case name == "X-Request-Id" && len(h[name]) > 0: // the caller of Forward has set its own
		case action == filter && x.p.PublicFiles:
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
	cacheable := slices.ContainsFunc(h["Cache-Control"], hasElement) || len(h["Expires"]) > 0
	switch {
	case x.p.PublicFiles && !cacheable:
		h["Cache-Control"] = noCacheValue
	case !cacheable, len(h["Set-Cookie"]) > 0: // a cookie is for one user, whatever the rest says
		setNoStore(h)
	}
}

var (
	noStoreValue = []string{"private, no-store"}
	noCacheValue = []string{"no-cache"}
)

// hasElement reports whether a list has an element (RFC 9110, section 5.6.1.2).
func hasElement(list string) bool { return strings.Trim(list, ", \t") != "" }

// setNoStore keeps every cache from storing a response.
func setNoStore(h http.Header) {
	h["Cache-Control"] = noStoreValue
	for _, name := range cacheHeaders {
		delete(h, name)
	}
}

// cacheHeaders are the headers besides Cache-Control that allow caching.
var cacheHeaders = []string{
	"Expires", "Pragma", "Surrogate-Control", "Cdn-Cache-Control", "Cloudflare-Cdn-Cache-Control",
	"X-Accel-Expires",
}

// trailerAllowed reports whether an upstream may send a field in a trailer.
func trailerAllowed(name string) bool {
	switch name {
	case "Cache-Control", "Content-Length", "Content-Type", "Content-Encoding", "Content-Range",
		"Www-Authenticate", "Location", "Content-Location", "Link", "Authorization":
		return false
	}
	return responseAction(name) == pass
}

// dropBrowserAuth removes those of a 401's challenges for which a browser
// prompts the user for a password (RFC 9110, section 11.6.1).
func dropBrowserAuth(challenges []string) []string {
	var rest []string
	for _, challenge := range challenges {
		words := strings.FieldsFunc(strings.ToLower(challenge), func(c rune) bool {
			return c == ' ' || c == ',' || c == '\t'
		})
		if len(words) > 0 && !slices.ContainsFunc(words, isBrowserAuth) {
			rest = append(rest, challenge)
		}
	}
	if len(rest) == 0 {
		return []string{problem.CookieChallenge}
	}
	return rest
}

func isBrowserAuth(scheme string) bool {
	switch scheme {
	case "basic", "digest", "ntlm", "negotiate", "hoba", "mutual":
		return true
	}
	return false
}
