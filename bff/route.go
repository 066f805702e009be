package bff

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/oidc"
	"github.com/cloakroom-bff/cloakroom/bff/proxy"
	"github.com/cloakroom-bff/cloakroom/internal/configerr"
	"github.com/cloakroom-bff/cloakroom/internal/urlpath"
)

// Route configures what happens to the requests under a path.
type Route struct {
	// Path begins with a slash. With a slash at the end, the route has all
	// paths that begin with Path. Without one, it has Path itself and all paths
	// below it.
	Path string

	// Upstream is where the requests go: URLs with the scheme http, https
	// (HTTP/2 where the server offers it) or h2c (HTTP/2 in plain text), whose
	// path goes before the request's; or unix:/run/orders.sock. If there are
	// several URLs, or a name has several addresses, a failed one is tried last
	// for a while.
	Upstream []string
	// Handler serves the requests in place of Upstream. Server.Session returns
	// the session of its requests. No token is attached, and what configures an
	// upstream has no effect. Responses are not cached unless Handler sets
	// Cache-Control.
	Handler http.Handler
	// StripPrefix removes Path before the upstream's path is added. With the
	// Path /api and an upstream's path /v1, /api becomes /v1 and /api/ becomes
	// /v1/.
	StripPrefix bool
	// TLS is for https upstreams: whom to trust, and a client certificate. Nil
	// means the system's roots and no certificate.
	TLS *tls.Config

	Methods []string // that are allowed; empty: all
	Token   Token    // what is attached to a request; there is no default
	// Resource (RFC 8707), Audience (RFC 8693) and Scopes are the target of the
	// user's token. If all are empty, the route uses the session's own token.
	// Each session has one token for each target. They are also requested at
	// login. With TokenClient they are the target of the broker's own token.
	Resource string
	Audience string   // see Resource
	Scopes   []string // see Resource
	// Grant is how a session gets the token for this target. Empty means
	// GrantRefreshToken.
	Grant Grant

	CSRF           CSRF           // how a request proves that it comes from this origin
	Documents      Documents      // whether documents of the upstream may run script
	EncodedSlashes EncodedSlashes // whether %2F is accepted in a path

	// AcceptBearer wraps the handler of requests with an access token of their
	// own. It calls next for a token that is good for this route, and otherwise
	// responds itself. Package bearer makes it:
	//
	//	func(next http.Handler) http.Handler {
	//		return verifier.Handler(bearer.Require("orders:read")(next))
	//	}
	//
	// Such a request needs neither session nor CSRF header, must not have a
	// session cookie, and is forwarded with its own token. Nil means that the
	// route accepts no such requests: the header Authorization is then removed.
	AcceptBearer func(next http.Handler) http.Handler

	Timeouts Timeouts // of the upstream; the zero value has defaults
	MaxBody  int64    // of a request, in bytes; zero: no limit
	// NoRetry never repeats a request. Otherwise an idempotent one is repeated
	// once if its connection ends before a response.
	NoRetry bool

	// Headers are request headers with the user's claims: name of the header →
	// name of the claim. A client cannot set them, on any route to the same
	// host. Without a session, or for a claim that is missing or an object,
	// there is no header. A list is written with commas.
	Headers map[string]string
	// HeadersJSON are like Headers, but have the claim as JSON in ASCII,
	// objects and lists included.
	HeadersJSON map[string]string
	// Require is what the user of a request must have. The zero value requires
	// nothing.
	Require Require
}

// Token is what is attached to the requests of a Route.
type Token string

const (
	// TokenUser attaches the user's access token. Without a session the
	// response is 401.
	TokenUser Token = "user"
	// TokenOptional attaches the user's access token if there is a session.
	TokenOptional Token = "optional"
	// TokenClient attaches the broker's own token, by client credentials.
	TokenClient Token = "client"
	// TokenUserOrClient attaches the user's access token, or the broker's own
	// if there is no session.
	TokenUserOrClient Token = "user-or-client"
	// TokenNone attaches nothing. No session is looked up.
	TokenNone Token = "none"
)

// Grant is how a session gets a token for the target of a Route.
type Grant string

const (
	GrantRefreshToken  Grant = "refresh-token"  // the default: with the session's refresh token
	GrantTokenExchange Grant = "token-exchange" // RFC 8693
)

// CSRF is how a request to a Route proves that it comes from this origin. A
// request that the browser reports as coming from another origin, such as a
// subdomain, is refused in every case.
type CSRF string

const (
	// CSRFAuto, the default, accepts CSRFHeader; CSRFFetchMetadata for GET,
	// HEAD and WebSockets; and a GET or HEAD navigation that no site has
	// started.
	CSRFAuto CSRF = "auto"
	// CSRFHeader accepts X-CSRF: 1.
	CSRFHeader CSRF = "header"
	// CSRFFetchMetadata accepts the browser's word: Sec-Fetch-Site, or Origin.
	CSRFFetchMetadata CSRF = "fetch-metadata"
)

// Documents is the treatment of a Route's documents that can run script, such
// as HTML and SVG. By default they are sandboxed.
type Documents string

// DocumentsAllow lets documents act as pages of this origin, and lets a login
// or a logout that the app itself started lead to them.
const DocumentsAllow Documents = "allow"

// EncodedSlashes is what happens to a path with %2F. By default it is refused.
type EncodedSlashes string

// EncodedSlashesPass accepts %2F as data and sends it to the upstream
// unchanged. The route must not have a longer route below it.
const EncodedSlashesPass EncodedSlashes = "pass"

// Timeouts of a route's upstream.
type Timeouts = proxy.Timeouts

// Require is what a user must have for a route. A session is then needed,
// whatever Token is.
type Require struct {
	// Scopes must all be granted to the access token; 403 otherwise.
	Scopes []string
	// Claims maps names of claims to values. Each claim must have one of its
	// values, or contain it if the claim is a list; 403 otherwise.
	Claims map[string][]string
	// ACR must contain the acr of the sign-in; otherwise 401 with a challenge
	// that names these values (RFC 9470).
	ACR []string
	// MaxAge is the maximum age of the sign-in, by auth_time. An older one gets
	// 401 with such a challenge. Zero means no limit.
	MaxAge time.Duration
}

func (q *Require) empty() bool {
	return len(q.Scopes) == 0 && len(q.Claims) == 0 && len(q.ACR) == 0 && q.MaxAge == 0
}

// route is a Route in the form in which it is used.
type route struct {
	Route
	user      bool // the user's access token is attached if there is a session
	anonymous bool // a session is not needed
	client    bool // the broker's own token is attached if no user's is
	target    oidc.Target
	targetKey string

	claimNames map[string]bool // :: proxy.HeaderKey of the headers that are set to claims; nil if there are none

	clientToken *oidc.ClientCredentials // nil unless client
	guard       func(s *app, r *http.Request) error
	proxy       *proxy.Proxy
	metrics     *routeMetrics // set by app.attach
}

func newRoute(r Route, field, prefix string) (*route, error) {
	parsed := &route{Route: r}
	var errs []error
	fail := func(name string, value any, format string, args ...any) {
		errs = append(errs, configerr.New(field+"."+name, value, fmt.Errorf(format, args...)))
	}
	if err := urlpath.Check(r.Path); err != nil {
		fail("Path", r.Path, "%w", err)
	} else if strings.ContainsAny(r.Path, "%?#") {
		fail("Path", r.Path, "%q: write it without percent-encoding, query and fragment", r.Path)
	} else if urlpath.Under(r.Path, prefix) {
		fail("Path", r.Path, "%q is under the broker's own %q", r.Path, prefix)
	}
	parsed.setToken(fail)
	if r.Handler != nil {
		parsed.checkHandler(fail)
	}
	parsed.target = newTarget(r, fail)
	parsed.targetKey = parsed.target.Key()
	parsed.setGuard(fail)
	parsed.checkProxying(fail)
	r.Require.check(fail)
	if !r.Require.empty() {
		parsed.anonymous = false
	}
	parsed.Headers = parsed.claimHeaders("Headers", r.Headers, fail)
	parsed.HeadersJSON = parsed.claimHeaders("HeadersJSON", r.HeadersJSON, fail)
	return parsed, errors.Join(errs...)
}

// failFunc reports a mistake in a field of a Route. A nil value means that the
// field is not set or has no text.
type failFunc func(name string, value any, format string, args ...any)

// setToken sets who may use the route, from Token and AcceptBearer.
func (route *route) setToken(fail failFunc) {
	switch route.Token {
	case TokenUser:
		route.user = true
	case TokenOptional:
		route.user, route.anonymous = true, true
	case TokenUserOrClient:
		route.user, route.anonymous, route.client = true, true, true
	case TokenClient, TokenNone:
		route.client = route.Token == TokenClient
		if len(route.Headers)+len(route.HeadersJSON) > 0 || !route.Require.empty() {
			fail("Token", route.Token, "%s excludes headers and require, which need a session", route.Token)
		}
	default:
		fail("Token", route.Token, "%q is none of user, optional, client, user-or-client, none", route.Token)
	}
	switch {
	case route.AcceptBearer == nil:
	case route.Token == TokenNone:
		fail("AcceptBearer", nil, "it has no use with token none")
	case !route.Require.empty():
		fail("AcceptBearer", nil,
			"it excludes require, which is about sessions; set the scopes that a token needs in it")
	}
}

// setGuard sets the proof of the same origin that requests need.
func (route *route) setGuard(fail failFunc) {
	switch route.CSRF {
	case "", CSRFAuto:
		route.guard = headerOrMetadata
	case CSRFHeader:
		route.guard = csrfHeader
	case CSRFFetchMetadata:
		route.guard = sameOrigin
	default:
		fail("CSRF", route.CSRF, "%q is none of header, fetch-metadata, auto", route.CSRF)
	}
}

// checkProxying checks what may pass to the upstream and back.
func (route *route) checkProxying(fail failFunc) {
	if route.Documents != "" && route.Documents != DocumentsAllow {
		fail("Documents", route.Documents, "%q is not allow; leave it out to sandbox them", route.Documents)
	}
	if route.EncodedSlashes != "" && route.EncodedSlashes != EncodedSlashesPass {
		fail("EncodedSlashes", route.EncodedSlashes,
			"%q is not pass; leave it out to refuse them", route.EncodedSlashes)
	}
	for _, m := range route.Methods {
		if m != strings.ToUpper(m) || !isToken(m) || m == http.MethodTrace || m == http.MethodConnect {
			fail("Methods", m, "%q is not a method that can be allowed, such as GET", m)
		}
	}
	for name, d := range map[string]time.Duration{
		"Connect":        route.Timeouts.Connect,
		"ResponseHeader": route.Timeouts.ResponseHeader,
		"Idle":           route.Timeouts.Idle,
	} {
		if d < 0 {
			fail("Timeouts."+name, d, "%v is negative", d)
		}
	}
	if route.MaxBody < 0 {
		fail("MaxBody", route.MaxBody, "%d is negative", route.MaxBody)
	}
}

// check checks what a session needs for a route.
func (q *Require) check(fail failFunc) {
	for name, want := range q.Claims {
		if name == "" || len(want) == 0 {
			fail("Require.Claims", name, "%q has no values to accept", name)
		}
	}
	for _, list := range []struct {
		name, kind string
		texts      []string
	}{{"Require.Scopes", "a scope", q.Scopes}, {"Require.ACR", "an acr", q.ACR}} {
		for _, text := range list.texts {
			if text == "" || strings.ContainsAny(text, " \"\\") || !isFieldValue(text) { // RFC 6749, section 3.3
				fail(list.name, text, "%q is not %s", text, list.kind)
			}
		}
	}
	if q.MaxAge < 0 {
		fail("Require.MaxAge", q.MaxAge, "%v is negative", q.MaxAge)
	}
}

// checkHandler reports what a route with a Handler cannot have.
func (route *route) checkHandler(fail failFunc) {
	if len(route.Upstream) > 0 {
		fail("Upstream", route.Upstream, "%q excludes a handler: one of them serves the requests", route.Upstream)
	}
	if route.client {
		fail("Token", route.Token, "%s excludes a handler, to which no token is attached", route.Token)
	}
	if len(route.Headers)+len(route.HeadersJSON) > 0 {
		fail("Headers", nil, "they exclude a handler, which reads the claims of the session")
	}
}

// claimHeaders returns headers that are set to claims, by their canonical
// names.
func (route *route) claimHeaders(
	field string, headers map[string]string, fail failFunc,
) map[string]string {
	canonicals := make(map[string]string)
	for name, claim := range headers {
		key := proxy.HeaderKey(name)
		switch {
		case !proxy.CanSetHeader(name):
			fail(field, name, "%q is not a header that can be set to a claim, such as X-User", name)
		case claim == "":
			fail(field, name, "%q has no claim", name)
		case route.claimNames[key]:
			fail(field, name, "%q is configured twice, but for punctuation and case", name)
		}
		canonicals[http.CanonicalHeaderKey(name)] = claim
		if route.claimNames == nil {
			route.claimNames = make(map[string]bool)
		}
		route.claimNames[key] = true
	}
	return canonicals
}

// shareClaimNames has all routes to one host remove the headers that one of
// them sets to claims: the host believes them, whichever route a request comes
// by.
func (a *app) shareClaimNames() {
	byHost := make(map[string]map[string]bool) // :: proxy.Host → claimNames of all its routes
	for _, route := range a.routes {
		for _, upstream := range route.Upstream {
			host := proxy.Host(upstream)
			if byHost[host] == nil {
				byHost[host] = make(map[string]bool)
			}
			maps.Copy(byHost[host], route.claimNames)
		}
	}
	for _, route := range a.routes {
		for _, upstream := range route.Upstream {
			for name := range byHost[proxy.Host(upstream)] {
				if route.claimNames == nil {
					route.claimNames = make(map[string]bool)
				}
				route.claimNames[name] = true
			}
		}
	}
}

// newProxy returns the proxy to the route's upstream.
func (route *route) newProxy(group *proxy.Group) (*proxy.Proxy, error) {
	return proxy.New(proxy.Upstream{
		URLs:           route.Upstream,
		Path:           route.Path,
		StripPrefix:    route.StripPrefix,
		TLS:            route.TLS,
		Timeouts:       route.Timeouts,
		MaxBody:        route.MaxBody,
		NoRetry:        route.NoRetry,
		AllowDocuments: route.Documents == DocumentsAllow,
		Reserved:       slices.Collect(maps.Keys(route.claimNames)),
	}, group)
}

// presentCertificate has the upstream see the certificate that tokens are bound
// to (RFC 8705, section 3).
func (r *Route) presentCertificate(cert *tls.Certificate, field string) error {
	for _, upstream := range r.Upstream {
		if scheme, _, _ := strings.Cut(upstream, ":"); !strings.EqualFold(scheme, "https") {
			err := fmt.Errorf("%q: tokens are bound to a certificate, which only https shows", upstream)
			return configerr.New(field+".Upstream", upstream, err)
		}
	}
	r.TLS = cmp.Or(r.TLS, new(tls.Config)).Clone()
	if len(r.TLS.Certificates) > 0 || r.TLS.GetClientCertificate != nil {
		err := errors.New("it has a certificate of its own, and tokens are bound to the client's: " +
			"the upstream has to see that one")
		return configerr.New(field+".TLS", nil, err)
	}
	if cert != nil {
		r.TLS.Certificates = []tls.Certificate{*cert}
	}
	return nil
}

// isFieldValue reports whether a text can be the value of a header field (RFC
// 9110, section 5.5).
func isFieldValue(text string) bool {
	return strings.IndexFunc(text, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }) < 0
}

// isToken reports whether a text is a token (RFC 9110, section 5.6.2).
func isToken(s string) bool {
	return s != "" && strings.IndexFunc(s, func(c rune) bool {
		return c > '~' || c <= ' ' || strings.ContainsRune(`()<>@,;:\"/[]?={}`, c)
	}) < 0
}

// unreachable reports whether the route requires an acr, and none that a
// sign-in may have: the operator's acr_values hold for every sign-in.
func (route *route) unreachable(acrValues string) bool {
	accepted := strings.Fields(acrValues)
	return len(accepted) > 0 && len(route.Require.ACR) > 0 &&
		!slices.ContainsFunc(route.Require.ACR, func(acr string) bool { return slices.Contains(accepted, acr) })
}
