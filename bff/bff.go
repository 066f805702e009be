// Package bff is a backend for a frontend: it signs users in with OpenID Connect, keeps their tokens, and hands a single-page
// app's API calls on with the access token that the browser never has (RFC 10017 6.1).
//
// # How a request travels
//
// Server.ServeHTTP refuses what is not for this host and paths that can be read in two ways. What is under the prefix
// (/bff) goes through the table endpoints to one handler each; what is under a route goes to its upstream (proxy.go); the
// rest is the app itself. Every handler returns an error, and problem.go alone says what the client sees of it.
//
//	login     login.go     returnTo → limitLogin → provider.demand → attempts.prepare → provider.authURL → attempts.begin → 302
//	callback  login.go     attempts.find, drop → claim (once.go) → provider.exchange → sessions.Start → 303
//	API call  proxy.go     guard → sessions.Fresh → upstream
//	refresh   session/refresh.go, when Fresh finds that a token is about to expire
//	logout    logout.go    sessions.End → provider.revoke → provider.logoutURL
//	          logout.go    provider.verifyLogoutToken → sessions.EndAll, when the provider says so
//	in frames silent.go    login and logout without a word to the user, as far as browsers let them
//
// provider.go and the files that it names are what speaks with the provider. The package session keeps sessions and decides
// when to refresh; it knows neither HTTP routes nor OAuth.
package bff

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/oidc"
	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/bff/proxy"
	"github.com/cloakroom-bff/cloakroom/internal/loopback"
	"github.com/cloakroom-bff/cloakroom/internal/pace"
	"github.com/cloakroom-bff/cloakroom/internal/urlpath"
	"github.com/cloakroom-bff/cloakroom/session"
)

// Config is what a Server needs.
type Config struct {
	// PublicURL is what the browser sees: scheme and host, nothing else. Redirect URIs, cookie flags and the Host and Origin that are
	// let in come from it alone. It is https, or http on a loopback host.
	PublicURL string
	// Prefix is where the endpoints for the browser are; empty means /bff.
	Prefix string
	// TrustedProxies are the peers whose X-Forwarded-For and X-Forwarded-Host are believed. None by default.
	TrustedProxies []netip.Prefix

	Provider ProviderConfig
	Claims   Claims
	// KeepStorage leaves what the app has stored in the browser when its user signs out. Otherwise the browser is told to forget it, for whoever uses it next.
	KeepStorage bool
	// Sessions configures the session.Manager. New sets App, Refresh, Ready, Wait,
	// AccessTokenLifetime, Revoke, Observe and Logger.
	Sessions session.Config
	// Cookie describes the session cookie. New sets InsecureHTTP and Port.
	Cookie session.CookieConfig
	Routes []Route
	Limits Limits

	// BodyMinRate is how many bytes a second a body has to move, measured over
	// 30 seconds, or its request is ended: from the client to the upstream and
	// back. Event streams, gRPC and WebSockets are excepted. Zero means 240, a
	// negative number any rate.
	BodyMinRate int64

	Frontend http.Handler // serves the app for every path that is neither under Prefix nor under a route; nil: 404
	Client   http.Handler // serves the browser client at Prefix/client.js; nil: 404

	Logger *slog.Logger // nil means slog.Default()
}

// ProviderConfig describes the provider and this app as its client.
type ProviderConfig = oidc.Config

// Server is the broker as an http.Handler, between Start and Close.
type Server struct {
	origin string // scheme://host of the public URL, as browsers write an Origin
	host   string
	prefix string

	proxies      []netip.Prefix
	table        map[string][]endpoint // :: path → one endpoint a method
	routes       []*route              // longest path first
	frontend     http.Handler
	sessions     *session.Manager
	cookie       *session.Cookie
	maxPerUser   int // Config.Sessions.MaxPerUser
	store        session.Store
	app          session.App // what sessions, attempts and logout states are bound to
	provider     *oidc.Client
	claims       Claims
	keeps        bool // Config.KeepStorage
	attempts     attempts
	logoutStates *session.Codec // seals the state that goes to the provider at logout
	hints        *logoutHints
	log          *slog.Logger

	refusedCookies refusedCookies
	logins         *limiter[[16]byte] // :: addressKey; logins that were started
	exchanges      *limiter[[16]byte] // :: addressKey; code exchanges that failed
	refreshes      *limiter[[16]byte] // :: hash of the session cookie; refreshes that were forced
	pace           pace.Limit         // of bodies

	looking     sync.WaitGroup // for the provider, and for what other replicas do
	stopLooking context.CancelFunc
	stopProbing context.CancelFunc // of the breaker; nil before Start
	revoking    sync.WaitGroup     // revocations under way

	upstreams *proxy.Group // of the routes
}

// endpoint is one line of the route table.
type endpoint struct {
	method string
	path   string
	guard  func(s *Server, r *http.Request) error
	serve  func(s *Server, w *response, r *http.Request) error
}

// What the provider's server calls, which may know us by another name than browsers do; under the prefix.
const (
	backchannelLogoutPath = "/backchannel-logout"
	clientKeysPath        = "/jwks.json"
)

// bodyTimeout is how long a request to one of the endpoints may take to send its body.
const bodyTimeout = 10 * time.Second

// endpoints is every address under the prefix, and what has to hold before its handler runs.
var endpoints = []endpoint{
	{"GET", "/login", navigation, unlessHead((*Server).login)},
	{"GET", "/callback", callbackNavigation, unlessHead((*Server).callback)},
	{"POST", "/callback", callbackNavigation, (*Server).callbackForm},
	{"GET", "/silent-login", sameOriginFrame, unlessHead((*Server).silentLogin)},
	{"POST", "/logout", fetchOrForm, (*Server).logout},
	{"GET", "/logout/continue", navigation, unlessHead((*Server).logoutContinue)},
	{"GET", "/logout/callback", navigation, (*Server).logoutCallback},
	{"POST", backchannelLogoutPath, public, (*Server).backchannelLogout},
	{"GET", "/frontchannel-logout", public, unlessHead((*Server).frontchannelLogout)},
	{"GET", clientKeysPath, public, (*Server).clientKeys},
	{"GET", "/session", csrfHeader, (*Server).showSession},
	{"POST", "/session/refresh", csrfHeader, (*Server).refreshSession},
}

// ConfigError is a problem with one field of a Config, such as Routes[0].Token.
// The text of Err quotes the value where that helps.
type ConfigError = session.FieldError

// New returns a Server for cfg. It does no I/O. The error joins a *ConfigError for
// every problem in cfg.
func New(cfg Config) (*Server, error) {
	s := &Server{prefix: cfg.Prefix, proxies: cfg.TrustedProxies, frontend: cfg.Frontend, store: cfg.Sessions.Store, log: cfg.Logger}
	if s.log == nil {
		s.log = slog.Default()
	}
	if s.prefix == "" {
		s.prefix = "/bff"
	}
	s.pace = pace.Limit{Rate: cmp.Or(cfg.BodyMinRate, pace.DefaultRate), Window: pace.DefaultWindow}
	var errs []error
	fail := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}

	publicURL, err := parsePublicURL(cfg.PublicURL)
	if err != nil {
		fail(&session.FieldError{Field: "PublicURL", Err: err})
	} else {
		s.origin, s.host = publicURL.Scheme+"://"+publicURL.Host, publicURL.Host
		cfg.Cookie.InsecureHTTP, cfg.Cookie.Port = publicURL.Scheme == "http", publicURL.Port()
	}
	if urlpath.Check(s.prefix) != nil || s.prefix == "/" || strings.HasSuffix(s.prefix, "/") {
		fail(&session.FieldError{Field: "Prefix", Err: fmt.Errorf("%q is not a path such as /bff", s.prefix)})
	}
	fail(cfg.Claims.check())
	fail(cfg.Limits.check())
	s.logins, s.exchanges = newLimiter[[16]byte](cfg.Limits.Logins), newLimiter[[16]byte](cfg.Limits.Logins)
	s.refreshes = newLimiter[[16]byte](refreshLimit)
	s.claims, s.keeps = cfg.Claims, cfg.KeepStorage
	for i, r := range cfg.Routes {
		field := fmt.Sprintf("Routes[%d]", i)
		if cfg.Provider.SenderConstraint == "mtls" && r.Token != "none" {
			fail(r.show(cfg.Provider.ClientCertificate, field))
		}
		parsed, err := newRoute(r, field, s.prefix)
		fail(err)
		if slices.ContainsFunc(s.routes, func(other *route) bool { return other.Path == parsed.Path }) {
			fail(&session.FieldError{Field: field + ".Path", Err: fmt.Errorf("%q is the path of another route too", parsed.Path)})
		}
		s.routes = append(s.routes, parsed)
	}
	cfg.Provider.RedirectURI, cfg.Provider.ClaimMap, cfg.Provider.Logger = s.origin+s.prefix+"/callback", cfg.Claims.Map, s.log
	cfg.Provider.Targets, cfg.Provider.WithoutLogin = s.targets(), s.withoutLogin()
	s.provider, err = oidc.New(cfg.Provider)
	fail(err)
	fail(s.setClientTokens())
	if len(cfg.Provider.Resources) == 0 && s.mixesResources() {
		fail(&session.FieldError{Field: "Provider.Resources", Err: errors.New("missing; without it the session's own token would be good for what other routes name as their resource (RFC 9700 2.3)")})
	}

	s.app = session.App{Issuer: cfg.Provider.Issuer, ClientID: cfg.Provider.ClientID, Origin: s.origin}
	cfg.Sessions.App, cfg.Sessions.Logger = s.app, s.log
	cfg.Sessions.Observe, s.maxPerUser = s.observe, cfg.Sessions.MaxPerUser
	cfg.Sessions.Refresh = s.provider.Refresh
	cfg.Sessions.Revoke = s.provider.Revoke
	cfg.Sessions.Ready = s.provider.Admit
	cfg.Sessions.Wait, cfg.Sessions.AccessTokenLifetime = cfg.Provider.Wait, cfg.Provider.AccessTokenLifetime
	s.sessions, err = session.NewManager(cfg.Sessions)
	fail(err)
	if err == nil {
		ring := s.sessions.Keyring()
		s.cookie = session.NewCookie(ring, cfg.Cookie)
		s.attempts = newAttempts(cfg.Cookie, ring)
		s.attempts.refused = s.cookieRefused
		s.logoutStates = ring.Codec("logout state", time.Hour)
		s.hints, err = newLogoutHints(cfg.Cookie, cfg.Sessions.Keys, s.origin, cfg.Provider)
		fail(err)
	}

	for i, route := range s.routes {
		if route.EncodedSlashes != "pass" {
			continue
		}
		for _, other := range s.routes {
			if len(other.Path) > len(route.Path) && urlpath.LenientlyUnder(other.Path, route.Path) {
				fail(&session.FieldError{Field: fmt.Sprintf("Routes[%d].EncodedSlashes", i), Err: fmt.Errorf("the route %q lies below this one: an encoded slash could hide it", other.Path)})
			}
		}
	}
	s.shareClaimNames()
	s.upstreams = &proxy.Group{
		PublicURL:      publicURL,
		OwnCookie:      isOwnCookie,
		BodyMinRate:    cfg.BodyMinRate,
		BeforeResponse: s.beforeResponse,
		Detach:         s.detach,
		Logger:         s.log,
	}
	for i, route := range s.routes {
		if route.proxy, err = route.newProxy(s.upstreams); err != nil {
			fail(&session.FieldError{Field: fmt.Sprintf("Routes[%d].Upstream", i), Err: err})
		}
	}
	slices.SortStableFunc(s.routes, func(a, b *route) int { return len(b.Path) - len(a.Path) })

	s.table = make(map[string][]endpoint)
	for _, e := range endpoints {
		s.table[s.prefix+e.path] = append(s.table[s.prefix+e.path], e)
	}
	if cfg.Client != nil {
		s.table[s.prefix+"/client.js"] = []endpoint{{"GET", "/client.js", public, func(_ *Server, w *response, r *http.Request) error {
			cfg.Client.ServeHTTP(w, r)
			return nil
		}}}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return s, nil
}

// targets returns those for which sessions need access tokens besides their own.
func (s *Server) targets() []oidc.Target {
	var all []oidc.Target
	for _, route := range s.routes {
		if route.user && route.targetKey != "" {
			all = append(all, route.target)
		}
	}
	return all
}

// withoutLogin reports whether no route uses a session, but some the broker's own
// token: nobody must be able to sign in.
func (s *Server) withoutLogin() bool {
	return slices.ContainsFunc(s.routes, func(r *route) bool { return r.client }) &&
		!slices.ContainsFunc(s.routes, func(r *route) bool { return r.user })
}

// mixesResources reports whether some routes name a resource for the session's token
// and others do not.
func (s *Server) mixesResources() bool {
	return slices.ContainsFunc(s.routes, func(r *route) bool { return r.user && r.target.Resource != "" && !r.target.Exchange }) &&
		slices.ContainsFunc(s.routes, func(r *route) bool { return r.user && r.target.Resource == "" })
}

// setClientTokens gives the routes that use the broker's own token its source. Routes
// with the same target share one.
func (s *Server) setClientTokens() error {
	sources := make(map[string]*oidc.ClientCredentials)
	for _, route := range s.routes {
		if !route.client {
			continue
		}
		if sources[route.targetKey] == nil {
			source, err := s.provider.ClientCredentials(route.target)
			if err != nil {
				return err
			}
			sources[route.targetKey] = source
		}
		route.clientToken = sources[route.targetKey]
	}
	return nil
}

// parsePublicURL reads scheme and host of what the browser sees.
func parsePublicURL(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	switch {
	case raw == "":
		return nil, errors.New("missing")
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		return nil, fmt.Errorf("%q is not a URL such as https://app.example.com", raw)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Path != "" && u.Path != "/":
		return nil, fmt.Errorf("%q holds more than scheme and host", raw)
	case u.Scheme == "http" && !loopback.IsHost(u.Hostname()):
		return nil, fmt.Errorf("%q: without https the session cookie would be open to whoever is on the way; http is for loopback hosts alone", raw)
	}
	host, err := browserHost(u)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", raw, err)
	}
	u.Host = host
	return u, nil
}

// Start begins to look for the provider, and keeps what is known of it current until Close. Until it is found nobody can sign in; all else works. It
// also begins to follow what other replicas do to the sessions.
func (s *Server) Start() {
	ctx, stop := context.WithCancel(context.Background())
	s.stopLooking = stop
	for _, route := range s.routes {
		if route.unreachable(s.provider.Config().Parameters["acr_values"]) {
			s.log.Warn("no sign-in satisfies a route: none of require.acr is in acr_values of oidc.authorization_parameters, which every sign-in has to satisfy (add it there)",
				"route", route.Path, "acr", route.Require.ACR)
		}
	}
	s.looking.Go(func() { s.provider.Run(ctx) }) // until Close, as the next
	s.looking.Go(func() { s.sessions.Run(ctx) })
	probing, stopProbing := context.WithCancel(context.Background())
	s.stopProbing = stopProbing
	go s.provider.Probe(probing) // until Close, or longer for the sake of refreshes
}

// Found waits until the provider has been found, or ctx ends.
func (s *Server) Found(ctx context.Context) error {
	return s.provider.WaitReady(ctx)
}

// EndStreams ends the event streams and WebSockets that are open, for a shutdown: their clients connect again, to another replica, while other
// requests still finish. It is called once no more requests come in.
func (s *Server) EndStreams() { s.upstreams.EndStreams() }

// WaitForStreams waits until no request with a session is under way that takes long, such as a stream, or until ctx ends.
func (s *Server) WaitForStreams(ctx context.Context) { s.sessions.WaitForStreams(ctx) }

// Close waits until no token refresh and no revocation is under way, or until ctx ends, and stops what Start began; streams that are
// still open are cut. Call it when no more requests come in.
func (s *Server) Close(ctx context.Context) error {
	defer s.looking.Wait()
	for _, route := range s.routes {
		defer route.proxy.Close()
	}
	if s.stopLooking != nil {
		defer s.stopLooking()
	}
	if s.stopProbing == nil {
		s.stopProbing = func() {}
	}
	if err := s.sessions.Drain(ctx); err != nil {
		go func() { // ends with the last refresh, which may wait for the provider and holds a lease meanwhile
			s.sessions.Drain(context.Background())
			s.stopProbing()
		}()
		return err
	}
	s.stopProbing()
	done := make(chan struct{})
	s.upstreams.EndStreams()
	go func() { // ends with the last revocation, which is bounded, and the last stream, which was ended
		s.revoking.Wait()
		s.upstreams.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for revocations and streams: %w", ctx.Err())
	}
}

// ServeHTTP answers one request and logs one line about it.
func (s *Server) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w := s.newResponse(rw, r)
	if len(r.Header["Cookie"]) > 0 {
		r = r.WithContext(context.WithValue(r.Context(), responseKey{}, w)) // for cookieRefused and observe
	}
	defer func() { // also when the proxy aborts an answer it has begun
		if cause := recover(); cause != nil {
			s.logPanic(w, cause)
			defer panic(http.ErrAbortHandler) // the server hangs up, and says nothing more of it
		}
		w.pace.Stop()
		if w.slow.Load() {
			w.problem = problem.BodyTooSlow.WithCause(s.pace.Explain(pace.ErrSlowReader))
		}
		if !w.detached {
			s.logRequest(w)
		}
	}()
	if err := s.serve(w, r); err != nil {
		s.writeProblem(w, r, err)
	}
	if !w.detached && w.exchange.Status == 0 && !w.exchange.Deadline {
		s.pace.LimitWrites(http.NewResponseController(w.ResponseWriter), r)
	}
}

// logPanic logs a bug, which is what a panic is, unless it is the way to break off an answer.
func (s *Server) logPanic(w *response, cause any) {
	if cause != http.ErrAbortHandler {
		s.log.Error("panic", "request", w.requestID, "cause", cause, "stack", string(debug.Stack()))
	}
}

func (s *Server) serve(w *response, r *http.Request) error {
	if r.Method == http.MethodTrace || r.Method == http.MethodConnect {
		return problem.MethodNotAllowed
	}
	if r.ProtoMajor == 1 {
		if r.URL.Host != "" { // RFC 9112 3.2.2 would have it win over the Host header, which others on the way may go by
			return problem.AmbiguousHost.WithCause(errors.New("the request target is a whole URL"))
		}
		s.ignoreUpgrade(w, r)
	} else if hosts := r.Header["Host"]; len(hosts) > 1 || len(hosts) == 1 && !strings.EqualFold(hosts[0], r.Host) { // RFC 9113, section 8.3.1
		return problem.AmbiguousHost.WithCause(fmt.Errorf("authority %.80q, Host %.80q", r.Host, hosts))
	}
	if !s.hostAllowed(r) && r.URL.Path != s.prefix+backchannelLogoutPath && r.URL.Path != s.prefix+clientKeysPath {
		return problem.WrongHost.WithCause(fmt.Errorf("the Host is %.80q", r.Host))
	}
	if err := urlpath.CheckTarget(r.RequestURI); err != nil {
		return problem.AmbiguousPath.WithCause(err)
	}
	raw, path := urlpath.Raw(r), r.URL.Path
	if err := urlpath.Check(raw); err != nil {
		route, slashErr := s.findSlashRoute(raw, path)
		switch {
		case slashErr != nil:
			return slashErr
		case route != nil:
			return s.serveRoute(w, r, route)
		case s.anyReadingUnderRoute(raw):
			return problem.AmbiguousPath.WithCause(err)
		}
		return s.serveFrontend(w, r)
	}
	if urlpath.Under(path, s.prefix) {
		return s.serveEndpoint(w, r)
	}
	route, err := s.findRoute(path, path)
	if err != nil {
		return err
	}
	if route != nil {
		return s.serveRoute(w, r, route)
	}
	return s.serveFrontend(w, r)
}

// clientKeys shows the public keys with which the provider verifies what we sign.
func (s *Server) clientKeys(w *response, _ *http.Request) error {
	set := s.provider.JWKS()
	if len(set.Keys) == 0 {
		return problem.NotFound.WithCause(errors.New("there are no client keys"))
	}
	w.Header().Set("Content-Type", "application/jwk-set+json")
	return json.NewEncoder(w).Encode(set)
}

// ignoreUpgrade removes the header Upgrade of a request in HTTP/1 that does not
// ask for a WebSocket: the request is served without (RFC 9110, section 7.8). What
// follows one that does was not checked (see NewListener), so the connection is
// closed unless the protocol is switched.
func (s *Server) ignoreUpgrade(w *response, r *http.Request) {
	switch upgrade := r.Header["Upgrade"]; {
	case len(upgrade) == 0:
	case strings.Contains(strings.ToLower(strings.Join(upgrade, ",")), "websocket"):
		w.Header()["Connection"] = []string{"close"}
	default:
		delete(r.Header, "Upgrade")
	}
}

// serveFrontend serves what belongs to the app itself.
func (s *Server) serveFrontend(w *response, r *http.Request) error {
	if s.frontend == nil {
		return problem.NotFound
	}
	w.paced = s
	s.frontend.ServeHTTP(w, r)
	w.pace.Stop()
	limitBodyTime(w, r) // what is left of it
	return nil
}

func (s *Server) serveEndpoint(w *response, r *http.Request) error {
	h := w.Header()
	limitBodyTime(w, r)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'") // of what is opened as a document; pages have their own
	methods := s.table[r.URL.Path]
	if len(methods) == 0 {
		return problem.NotFound
	}
	for _, e := range methods {
		if e.method != r.Method && !(e.method == http.MethodGet && r.Method == http.MethodHead) {
			h.Add("Allow", e.method)
			if e.method == http.MethodGet {
				h.Add("Allow", http.MethodHead)
			}
			continue
		}
		h.Del("Allow")
		if err := e.guard(s, r); err != nil {
			return err
		}
		return e.serve(s, w, r)
	}
	return problem.MethodNotAllowed
}

// hostAllowed reports whether the request is for the host of the public URL, as
// its sender or a trusted proxy names it.
func (s *Server) hostAllowed(r *http.Request) bool {
	hosts := s.forwardedHosts(r)
	if hosts == nil {
		return s.isPublicHost(r.Host)
	}
	return !slices.ContainsFunc(hosts, func(host string) bool { return !s.isPublicHost(host) })
}

// isPublicHost compares a host with that of the public URL, without regard to
// case and the default port. A trailing dot counts: it is another origin.
func (s *Server) isPublicHost(host string) bool {
	if host = strings.ToLower(host); host == s.host {
		return true
	}
	if strings.LastIndexByte(s.host, ':') > strings.LastIndexByte(s.host, ']') { // its port is not the default one
		return false
	}
	if strings.HasPrefix(s.origin, "https:") {
		return host == s.host+":443"
	}
	return host == s.host+":80"
}

func (s *Server) trusts(ip netip.Addr) bool {
	return slices.ContainsFunc(s.proxies, func(p netip.Prefix) bool { return p.Contains(ip.Unmap()) })
}

func (s *Server) logRequest(w *response) {
	level := slog.LevelInfo
	if w.problem == nil && w.exchange.Err != nil {
		w.problem = problemOf(w.exchange.Err)
	}
	attrs := append(make([]slog.Attr, 0, 9),
		slog.String("request", w.requestID),
		slog.String("client", w.client),
		slog.String("method", truncate(w.method, 32)),
		slog.String("path", truncate(w.path, maxLogged)),
		slog.Int("status", cmp.Or(w.exchange.Status, w.status)),
		slog.Int64("bytes", w.bytes+w.exchange.Bytes),
		slog.Float64("ms", float64(time.Since(w.began).Microseconds())/1000),
	)
	if w.session != "" {
		attrs = append(attrs, slog.String("session", w.session))
	}
	if w.problem != nil {
		level = w.problem.Level()
		attrs = append(attrs, slog.String("err", truncate(w.problem.Error(), maxLogged)))
	}
	s.log.LogAttrs(context.Background(), level, "request", attrs...)
}

// maxLogged is how much of a text is logged whose length others choose.
const maxLogged = 512

// truncate returns the beginning of a text, up to n bytes.
func truncate(text string, n int) string {
	if len(text) <= n {
		return text
	}
	return strings.ToValidUTF8(text[:n], "") + "…"
}
