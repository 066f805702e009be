package bff

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/cloakroom-bff/cloakroom/bff/oidc"
	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/bff/proxy"
	"github.com/cloakroom-bff/cloakroom/internal/cancel"
	"github.com/cloakroom-bff/cloakroom/internal/pace"
	"github.com/cloakroom-bff/cloakroom/internal/urlpath"
	"github.com/cloakroom-bff/cloakroom/session"
)

// app is the broker under one configuration, from start to close.
type app struct {
	server   *Server
	requests atomic.Int64 // in flight, streams included

	origin string // scheme://host of the public URL, as browsers write an Origin
	host   string
	base   string // path of the public URL, without a slash at its end; often empty
	prefix string

	proxies      []netip.Prefix
	table        map[string][]endpoint // :: path → one endpoint per method
	routes       []*route              // longest path first
	frontend     http.Handler
	page         *template.Template // nil: the built-in one
	files        *frontendServer    // nil: there is none
	devTools     http.Handler       // Config.DevTools
	sessions     *session.Manager
	cookie       *session.Cookie
	maxPerUser   int           // Config.Sessions.MaxPerUser
	idleTimeout  time.Duration // of sessions
	store        session.Store
	app          session.App // what sessions, attempts and logout states are bound to
	provider     *oidc.Client
	claims       Claims
	keepStorage  bool            // Config.KeepStorage
	afterEnd     PromptAfterEnd  // Config.PromptAfterEnd, or its default
	settings     json.RawMessage // Config.PublicSettings, an empty object if nil
	attempts     attempts
	logoutStates *session.Codec // seals the state that goes to the provider at logout
	hints        *logoutHints
	log          *slog.Logger
	users        loggedUsers
	logged       requestFilter
	events       *limiter[EventKind] // reported ones that any client can cause
	unnamed      unnamedEvents
	history      *history // nil if Config has mistakes
	onEvent      func(context.Context, Event)
	tracer       trace.Tracer // nil: there are no traces

	logins    *limiter[[16]byte] // :: addressKey; logins that were started
	exchanges *limiter[[16]byte] // :: addressKey; failed code exchanges
	refreshes *limiter[[16]byte] // :: hash of Session.ID; forced refreshes
	pace      pace.Limit         // of bodies

	adminToken     session.Secret
	pageCookies    *session.Codec // of administrators
	limits         Limits
	shutdownDelay  time.Duration
	shutdownGrace  time.Duration
	background     sync.WaitGroup // discovery, and the watch for changes by other replicas
	stopBackground context.CancelFunc
	stopProbing    context.CancelFunc // of the breaker; nil before start
	revocations    sync.WaitGroup     // in flight

	upstreams *proxy.Group // of the routes
	streams   sessionStreams

	// Set by attach:
	endpointMetrics map[string]*routeMetrics // :: path → its metrics
	unknownEndpoint *routeMetrics            // of paths under the prefix that are no endpoint
}

// endpoint is one line of the table of endpoints.
type endpoint struct {
	method string
	path   string
	guard  func(s *app, r *http.Request) error
	serve  func(s *app, w *response, r *http.Request) error
}

// Endpoints that the provider's server calls, which may use another host name
// than browsers; under the prefix.
const (
	backchannelLogoutPath = "/backchannel-logout"
	clientKeysPath        = "/jwks.json"
)

// signedOutPath is that of a page to which a logout may return, under the
// prefix.
const signedOutPath = "/signed-out"

// bodyTimeout is how long the body of a request to an endpoint may take.
const bodyTimeout = 10 * time.Second

// endpoints are the endpoints under the prefix, each with the guard that runs
// before its handler. What they do is one straight line each:
//
//	login     returnTo → startLogin: limitLogin → attempts.prepare → AuthorizationURL → attempts.begin → 302
//	callback  attempts.find → complete: CheckIssuer → consumeAttempt → Exchange → sessions.Start → 303
//	logout    sessions.End → revoke → endSessionURL → 303
//	          by the provider: VerifyLogoutToken → sessions.EndAll
//
// A request to a route: authorize (guard → session → requirements → token) →
// proxy.Forward. sessions.Fresh refreshes a token that is about to expire.
var endpoints = []endpoint{
	{"GET", "/login", navigation, unlessHead((*app).login)},
	{"GET", "/callback", callbackNavigation, unlessHead((*app).callback)},
	{"POST", "/callback", callbackNavigation, (*app).callbackForm},
	{"GET", "/silent-login", sameOriginFrame, unlessHead((*app).silentLogin)},
	{"POST", "/logout", fetchOrForm, (*app).logout},
	{"GET", "/logout/continue", navigation, unlessHead((*app).logoutContinue)},
	{"GET", "/logout/callback", navigation, (*app).logoutCallback},
	{"GET", signedOutPath, navigation, (*app).signedOut},
	{"POST", backchannelLogoutPath, public, (*app).backchannelLogout},
	{"GET", "/frontchannel-logout", public, unlessHead((*app).frontchannelLogout)},
	{"GET", clientKeysPath, public, (*app).clientKeys},
	{"GET", "/config.json", public, (*app).showPublicSettings},
	{"GET", "/session", csrfHeader, (*app).showSession},
	{"POST", "/session/refresh", csrfHeader, (*app).refreshSession},
	{"GET", "/session/events", headerOrMetadata, (*app).streamSessionEvents},
	{"GET", "/sessions", csrfHeader, (*app).showSessions},
	{"DELETE", "/sessions", csrfHeader, (*app).endOtherSessions},
	{"DELETE", sessionPath, csrfHeader, (*app).endSessionByID},
}

// start starts what runs beside requests, until close: discovery of the
// provider, and the watch for changes that other replicas make.
func (a *app) start() {
	ctx, stop := context.WithCancel(context.Background())
	a.stopBackground = stop
	for _, route := range a.routes {
		if route.unreachable(a.provider.Config().Parameters["acr_values"]) {
			a.log.Warn("no sign-in satisfies a route: none of require.acr is in acr_values of "+
				"oidc.authorization_parameters, which every sign-in has to satisfy (add it there)",
				"route", route.Path, "acr", route.Require.ACR)
		}
	}
	a.background.Go(func() { a.provider.Run(ctx) }) // until close, as the next
	a.background.Go(func() { a.sessions.Run(ctx) })
	writing, stopWriting := context.WithCancel(context.Background())
	unnamed := a.unnamed.open()
	a.background.Go(func() {
		defer stopWriting() // the last of what reportUnnamed reports is written too
		a.reportUnnamed(ctx, unnamed)
	})
	a.background.Go(func() { a.history.run(writing) })
	a.background.Go(func() { a.server.storeOutage.watch(ctx, a.store) })
	probing, stopProbing := context.WithCancel(context.Background())
	a.stopProbing = stopProbing
	go a.provider.Probe(probing) // until close, or longer for refreshes in flight
}

// leave ends what Server.enter began.
func (a *app) leave() { a.requests.Add(-1) }

// waitIdle waits until no request is in flight, or ctx ends.
func (a *app) waitIdle(ctx context.Context) error {
	for a.requests.Load() > 0 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(idleInterval):
		}
	}
	return nil
}

// idleInterval is how often waitIdle looks.
const idleInterval = 10 * time.Millisecond

// close waits until no token refresh and no revocation is in flight, or until
// ctx ends, and stops what start started. Open streams are aborted.
func (a *app) close(ctx context.Context) error {
	defer a.provider.Close()
	defer a.background.Wait()
	for _, route := range a.proxied() {
		defer route.proxy.Close()
	}
	if a.stopBackground != nil {
		defer a.stopBackground()
	}
	if a.stopProbing == nil {
		a.stopProbing = func() {}
	}
	if err := a.sessions.Drain(ctx); err != nil {
		go func() { // until the last refresh ends, which may wait for the provider and holds a lease
			a.sessions.Drain(context.Background())
			a.stopProbing()
		}()
		return err
	}
	a.stopProbing()
	done := make(chan struct{})
	a.endStreams()
	go func() { // ends with the last revocation, which is bounded, and the last stream, which was ended
		a.revocations.Wait()
		a.upstreams.Wait()
		a.streams.running.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for revocations and streams: %w", ctx.Err())
	}
}

// endStreams ends event streams and WebSockets, also those that begin later.
func (a *app) endStreams() {
	a.streams.end()
	a.upstreams.EndStreams()
}

// handle serves a request that Server.enter has counted, turns its error into a
// response, and writes the line of the access log.
func (a *app) handle(rw http.ResponseWriter, r *http.Request, serve func(*response, *http.Request) error) {
	w := a.newResponse(rw, r)
	if a.tracer != nil {
		r = a.startSpan(w, r)
	}
	if len(r.Header["Cookie"]) > 0 && !cancel.SetValue(r.Context(), responseKey{}, w) {
		r = r.WithContext(context.WithValue(r.Context(), responseKey{}, w)) // for cookieRefused and observe
	}
	defer func() { // also if the proxy aborts a response
		cause := recover()
		if cause != nil {
			a.logPanic(w, cause)
			defer panic(http.ErrAbortHandler) // net/http closes the connection, and logs nothing
		}
		w.pace.Stop()
		if w.slow.Load() {
			w.problem = problem.BodyTooSlow.WithCause(a.pace.Explain(pace.ErrSlowReader))
		}
		if !w.detached {
			ended := time.Now()
			w.countRequest(ended, cause != nil)
			a.logRequest(w, ended)
			a.endSpan(w)
			a.leave()
		}
	}()
	if err := serve(w, r); err != nil {
		a.writeProblem(w, r, err)
	}
	if !w.detached && w.status == 0 {
		w.closeInShutdown() // net/http sends the header
	}
	if !w.detached && w.exchange.Status == 0 && !w.exchange.Deadline {
		a.pace.LimitWrites(http.NewResponseController(w.ResponseWriter), r)
	}
}

// logPanic logs a panic, unless it is the way to abort a response.
func (a *app) logPanic(w *response, cause any) {
	if cause != http.ErrAbortHandler {
		a.log.Error("panic", "request", w.requestID, "cause", cause, "stack", string(debug.Stack()))
	}
}

// serve serves a request: an endpoint, a route or the app itself.
func (a *app) serve(w *response, r *http.Request) error {
	if err := a.checkAuthority(w, r); err != nil {
		return err
	}
	if err := checkLength(r); err != nil {
		return err
	}
	if err := urlpath.CheckTarget(r.RequestURI); err != nil {
		return problem.AmbiguousPath.WithCause(err)
	}
	if a.base != "" {
		return a.serveBelowBase(w, r)
	}
	return a.servePath(w, r)
}

// servePath serves a request whose path is below the base path.
func (a *app) servePath(w *response, r *http.Request) error {
	raw, path := urlpath.Raw(r), r.URL.Path
	if err := urlpath.Check(raw); err != nil {
		return a.serveOddPath(w, r, raw, err)
	}
	if urlpath.Under(path, a.prefix) {
		return a.serveEndpoint(w, r)
	}
	route, err := a.findRoute(path, path)
	if err != nil {
		return err
	}
	if route != nil {
		return a.serveRoute(w, r, route)
	}
	return a.serveFrontend(w, r)
}

// clientKeys shows the public keys with which the provider verifies what we
// sign.
func (a *app) clientKeys(w *response, _ *http.Request) error {
	set := a.provider.JWKS()
	if len(set.Keys) == 0 {
		return problem.NotFound.WithCause(errors.New("there are no client keys"))
	}
	w.Header().Set("Content-Type", "application/jwk-set+json")
	return json.NewEncoder(w).Encode(set)
}

// showPublicSettings serves the settings that the app reads. It needs no
// session.
func (a *app) showPublicSettings(w *response, _ *http.Request) error {
	w.Header().Set("Content-Type", "application/json")
	_, err := w.Write(a.settings)
	return err
}

// serveOddPath serves a request whose path urlpath.Check refuses with cause. A
// route may pass encoded slashes. All other paths belong to the app, unless
// some server could read them as lying under a route.
func (a *app) serveOddPath(w *response, r *http.Request, raw string, cause error) error {
	route, err := a.findSlashRoute(raw, r.URL.Path)
	switch {
	case err != nil:
		return err
	case route != nil:
		return a.serveRoute(w, r, route)
	case a.anyReadingUnderRoute(raw):
		return problem.AmbiguousPath.WithCause(cause)
	}
	return a.serveFrontend(w, r)
}

// serveFrontend serves what belongs to the app itself.
func (a *app) serveFrontend(w *response, r *http.Request) error {
	w.metrics = a.server.metrics.frontend
	if a.files != nil && !a.files.servesPage(r) {
		return a.forwardToFrontend(w, r)
	}
	if a.frontend == nil {
		return problem.NotFound
	}
	w.handledBy = a
	a.frontend.ServeHTTP(w, r)
	w.pace.Stop()
	limitBodyTime(w, r) // what is left of it
	return nil
}

func (a *app) serveEndpoint(w *response, r *http.Request) error {
	h := w.Header()
	limitBodyTime(w, r)
	h["X-Request-Id"] = []string{w.requestID}
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'") // pages have their own
	path := a.endpointPath(r.URL.Path)
	methods := a.table[path]
	w.metrics = cmp.Or(a.endpointMetrics[path], a.unknownEndpoint)
	if a.devTools != nil && urlpath.Under(r.URL.Path, a.prefix+DevToolsPath) {
		return a.serveDevTools(w, r)
	}
	if len(methods) == 0 {
		return problem.NotFound
	}
	w.route = path
	var allowed []string
	for _, e := range methods {
		if e.method != r.Method && !(e.method == http.MethodGet && r.Method == http.MethodHead) {
			allowed = append(allowed, e.method)
			if e.method == http.MethodGet {
				allowed = append(allowed, http.MethodHead)
			}
			continue
		}
		if err := e.guard(a, r); err != nil {
			return err
		}
		return e.serve(a, w, r)
	}
	h.Set("Allow", strings.Join(allowed, ", "))
	return problem.MethodNotAllowed
}
