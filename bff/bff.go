// Package bff is a backend for a frontend: it signs users in with OpenID
// Connect, keeps their tokens, and forwards a single-page app's API calls with
// the access token that the browser never has (RFC 10017, section 6.1).
//
// # How a request travels
//
// Server.ServeHTTP refuses requests for another host, and paths that can be
// read in two ways. A path under the prefix (/bff) leads through the table
// endpoints to its handler. A path under a route leads to the route's upstream.
// All other paths belong to the app. Every handler returns an error, and one
// function turns it into a response.
//
//	login     login.go     returnTo → limitLogin → provider.demand → attempts.prepare → provider.authURL → attempts.begin → 302
//	callback  login.go     attempts.find, drop → claim (once.go) → provider.exchange → sessions.Start → 303
//	API call  access.go    guard → session → requirements → credential → proxy.Forward
//	refresh   session/refresh.go, when Fresh finds that a token is about to expire
//	logout    logout.go    sessions.End → provider.revoke → provider.logoutURL
//	          logout.go    provider.verifyLogoutToken → sessions.EndAll, when the provider says so
//	in frames silent.go    login and logout without a word to the user, as far as browsers let them
//
// provider.go and the files that it names are what speaks with the provider.
// The package session keeps sessions and decides when to refresh; it knows
// neither HTTP routes nor OAuth.
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
	// PublicURL is the scheme and host that browsers see, nothing else.
	// Redirect URIs, cookie flags and the accepted Host and Origin depend on it
	// only. It is https, or http on a loopback host.
	PublicURL string
	// Prefix is the path of the endpoints for the browser. Empty means /bff.
	Prefix string
	// TrustedProxies are the addresses of peers whose X-Forwarded-For and
	// X-Forwarded-Host are used. Empty means none.
	TrustedProxies []netip.Prefix

	Provider ProviderConfig
	Claims   Claims
	// KeepStorage keeps the app's data in the browser when the user signs out.
	// Otherwise the browser deletes it (Clear-Site-Data).
	KeepStorage bool
	// Sessions configures the session.Manager. New sets App, Refresh, Ready,
	// Wait, AccessTokenLifetime, Revoke, Observe and Logger.
	Sessions session.Config
	// Cookie describes the session cookie. New sets InsecureHTTP and Port.
	Cookie session.CookieConfig
	Routes []Route
	Limits Limits

	// BodyMinRate is how many bytes a second a body has to move, measured over
	// 30 seconds, or its request is aborted, in both directions. Event streams,
	// gRPC and WebSockets are excepted. Zero means 240, a negative number any
	// rate.
	BodyMinRate int64

	// Frontend serves the app: every path that is neither under Prefix nor
	// under a route. Nil means 404.
	Frontend http.Handler
	// Client serves the browser client at Prefix/client.js. Nil means 404.
	Client http.Handler

	// Logger is slog.Default() if nil.
	Logger *slog.Logger
}

// ProviderConfig describes the provider and this app as its client.
type ProviderConfig = oidc.Config

// Server is the broker as an http.Handler, from Start to Close.
type Server struct {
	origin string // scheme://host of the public URL, as browsers write an Origin
	host   string
	prefix string

	proxies      []netip.Prefix
	table        map[string][]endpoint // :: path → one endpoint per method
	routes       []*route              // longest path first
	frontend     http.Handler
	sessions     *session.Manager
	cookie       *session.Cookie
	maxPerUser   int // Config.Sessions.MaxPerUser
	store        session.Store
	app          session.App // what sessions, attempts and logout states are bound to
	provider     *oidc.Client
	claims       Claims
	keepStorage  bool // Config.KeepStorage
	attempts     attempts
	logoutStates *session.Codec // seals the state that goes to the provider at logout
	hints        *logoutHints
	log          *slog.Logger

	refusedCookies refusedCookies
	logins         *limiter[[16]byte] // :: addressKey; logins that were started
	exchanges      *limiter[[16]byte] // :: addressKey; failed code exchanges
	refreshes      *limiter[[16]byte] // :: hash of the session cookie; forced refreshes
	pace           pace.Limit         // of bodies

	background     sync.WaitGroup // discovery, and the watch for changes by other replicas
	stopBackground context.CancelFunc
	stopProbing    context.CancelFunc // of the breaker; nil before Start
	revocations    sync.WaitGroup     // in flight

	upstreams *proxy.Group // of the routes
}

// endpoint is one line of the table of endpoints.
type endpoint struct {
	method string
	path   string
	guard  func(s *Server, r *http.Request) error
	serve  func(s *Server, w *response, r *http.Request) error
}

// Endpoints that the provider's server calls, which may use another host name
// than browsers; under the prefix.
const (
	backchannelLogoutPath = "/backchannel-logout"
	clientKeysPath        = "/jwks.json"
)

// bodyTimeout is how long the body of a request to an endpoint may take.
const bodyTimeout = 10 * time.Second

// endpoints are the endpoints under the prefix, each with the guard that runs
// before its handler.
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
	s := &Server{
		prefix: cfg.Prefix, proxies: cfg.TrustedProxies, frontend: cfg.Frontend,
		store: cfg.Sessions.Store, log: cfg.Logger,
	}
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
	s.claims, s.keepStorage = cfg.Claims, cfg.KeepStorage
	fail(s.addRoutes(cfg, publicURL))
	cfg.Provider.RedirectURI, cfg.Provider.ClaimMap, cfg.Provider.Logger = s.origin+s.prefix+"/callback", cfg.Claims.Map, s.log
	cfg.Provider.Targets, cfg.Provider.WithoutLogin = s.targets(), s.withoutLogin()
	s.provider, err = oidc.New(cfg.Provider)
	fail(err)
	fail(s.setClientTokens())
	fail(s.checkResources(cfg.Provider.Resources))

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

	s.table = make(map[string][]endpoint)
	for _, e := range endpoints {
		s.table[s.prefix+e.path] = append(s.table[s.prefix+e.path], e)
	}
	if cfg.Client != nil {
		serve := func(_ *Server, w *response, r *http.Request) error {
			cfg.Client.ServeHTTP(w, r)
			return nil
		}
		s.table[s.prefix+"/client.js"] = []endpoint{{"GET", "/client.js", public, serve}}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return s, nil
}

// parsePublicURL parses the URL that browsers see, which has a scheme and a
// host only.
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
		return nil, fmt.Errorf("%q: without https the session cookie is sent in plain text; "+
			"http is for loopback hosts only", raw)
	}
	host, err := browserHost(u)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", raw, err)
	}
	u.Host = host
	return u, nil
}

// Start begins to discover the provider and to keep its metadata current, until
// Close. Sign-in is unavailable until discovery has succeeded once; all else
// works. It also begins to watch for changes that other replicas make to
// sessions.
func (s *Server) Start() {
	ctx, stop := context.WithCancel(context.Background())
	s.stopBackground = stop
	for _, route := range s.routes {
		if route.unreachable(s.provider.Config().Parameters["acr_values"]) {
			s.log.Warn("no sign-in satisfies a route: none of require.acr is in acr_values of "+
				"oidc.authorization_parameters, which every sign-in has to satisfy (add it there)",
				"route", route.Path, "acr", route.Require.ACR)
		}
	}
	s.background.Go(func() { s.provider.Run(ctx) }) // until Close, as the next
	s.background.Go(func() { s.sessions.Run(ctx) })
	probing, stopProbing := context.WithCancel(context.Background())
	s.stopProbing = stopProbing
	go s.provider.Probe(probing) // until Close, or longer for the sake of refreshes
}

// Found waits until the provider has been found, or ctx ends.
func (s *Server) Found(ctx context.Context) error {
	return s.provider.WaitReady(ctx)
}

// EndStreams aborts the open event streams and WebSockets, for a shutdown:
// their clients connect to another replica while other requests finish. Call it
// when no more requests arrive.
func (s *Server) EndStreams() { s.upstreams.EndStreams() }

// WaitForStreams blocks until no request with a session is in flight that takes
// long, such as an event stream, or until ctx is done.
func (s *Server) WaitForStreams(ctx context.Context) { s.sessions.WaitForStreams(ctx) }

// Close waits until no token refresh and no revocation is in flight, or until
// ctx is done, and stops what Start began. Open streams are aborted. Call it
// when no more requests arrive.
func (s *Server) Close(ctx context.Context) error {
	defer s.background.Wait()
	for _, route := range s.routes {
		if route.proxy != nil {
			defer route.proxy.Close()
		}
	}
	if s.stopBackground != nil {
		defer s.stopBackground()
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
		s.revocations.Wait()
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

// ServeHTTP serves one request and logs one line about it.
func (s *Server) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	s.handle(rw, r, s.serve)
}

// handle serves a request with serve, turns its error into a response, and writes
// the line of the access log.
func (s *Server) handle(rw http.ResponseWriter, r *http.Request, serve func(*response, *http.Request) error) {
	w := s.newResponse(rw, r)
	if len(r.Header["Cookie"]) > 0 {
		r = r.WithContext(context.WithValue(r.Context(), responseKey{}, w)) // for cookieRefused and observe
	}
	defer func() { // also if the proxy aborts a response
		if cause := recover(); cause != nil {
			s.logPanic(w, cause)
			defer panic(http.ErrAbortHandler) // net/http closes the connection, and logs nothing
		}
		w.pace.Stop()
		if w.slow.Load() {
			w.problem = problem.BodyTooSlow.WithCause(s.pace.Explain(pace.ErrSlowReader))
		}
		if !w.detached {
			s.logRequest(w)
		}
	}()
	if err := serve(w, r); err != nil {
		s.writeProblem(w, r, err)
	}
	if !w.detached && w.exchange.Status == 0 && !w.exchange.Deadline {
		s.pace.LimitWrites(http.NewResponseController(w.ResponseWriter), r)
	}
}

// logPanic logs a panic, unless it is the way to abort a response.
func (s *Server) logPanic(w *response, cause any) {
	if cause != http.ErrAbortHandler {
		s.log.Error("panic", "request", w.requestID, "cause", cause, "stack", string(debug.Stack()))
	}
}

// serve serves a request: an endpoint, a route or the app itself.
func (s *Server) serve(w *response, r *http.Request) error {
	if err := s.checkAuthority(w, r); err != nil {
		return err
	}
	if err := urlpath.CheckTarget(r.RequestURI); err != nil {
		return problem.AmbiguousPath.WithCause(err)
	}
	raw, path := urlpath.Raw(r), r.URL.Path
	if err := urlpath.Check(raw); err != nil {
		return s.serveOddPath(w, r, raw, err)
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

// clientKeys shows the public keys with which the provider verifies what we
// sign.
func (s *Server) clientKeys(w *response, _ *http.Request) error {
	set := s.provider.JWKS()
	if len(set.Keys) == 0 {
		return problem.NotFound.WithCause(errors.New("there are no client keys"))
	}
	w.Header().Set("Content-Type", "application/jwk-set+json")
	return json.NewEncoder(w).Encode(set)
}

// serveOddPath serves a request whose path urlpath.Check refuses with cause. A
// route may pass encoded slashes. All other paths belong to the app, unless
// some server could read them as lying under a route.
func (s *Server) serveOddPath(w *response, r *http.Request, raw string, cause error) error {
	route, err := s.findSlashRoute(raw, r.URL.Path)
	switch {
	case err != nil:
		return err
	case route != nil:
		return s.serveRoute(w, r, route)
	case s.anyReadingUnderRoute(raw):
		return problem.AmbiguousPath.WithCause(cause)
	}
	return s.serveFrontend(w, r)
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
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'") // pages have their own
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
