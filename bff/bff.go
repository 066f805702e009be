// Package bff is a backend for a frontend: it signs users in with OpenID
// Connect, keeps their tokens, and forwards a single-page app's API calls with
// the access token that the browser never has (RFC 10017, section 6.1).
//
// New makes a Server from a Config, and Server.Run serves it until its context
// ends. A program that has an http.Server of its own uses the Server as an
// http.Handler. Server.Session and Server.RequireSession give Go handlers the
// session of a request.
//
// # How a request is served
//
// The Server refuses requests for another host, and paths that servers read in
// different ways. A path under Config.Prefix is an endpoint for the browser:
// login, callback, logout, session. A path under a Route passes the route's
// guard against cross-site requests, needs a session if the route does, and is
// forwarded to the route's upstream. All other paths belong to the app.
//
// Every error that a client sees is a problem of package problem. Package oidc
// is the client of the provider, package proxy forwards requests, and package
// session keeps sessions and refreshes their tokens.
package bff

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"html/template"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/cloakroom-bff/cloakroom/bff/oidc"
	"github.com/cloakroom-bff/cloakroom/internal/configerr"
	"github.com/cloakroom-bff/cloakroom/internal/http1"
	"github.com/cloakroom-bff/cloakroom/session"
)

// Config is what a Server needs.
type Config struct {
	// PublicURL is the scheme, host and base path that browsers see. With a
	// base path, such as /shop, everything of the app is below it, and other
	// paths get 404. Routes, Prefix, LogExclude and Frontend have paths below
	// it. Redirect URIs, cookie flags and the accepted Host and Origin depend
	// on it only. It is https, or http on a loopback host.
	PublicURL string
	// Prefix is the path of the endpoints for the browser. Empty means /bff.
	Prefix string
	// TrustedProxies are the addresses of peers whose X-Forwarded-For,
	// X-Forwarded-Host and X-Request-Id are used, and with a TracerProvider
	// traceparent and tracestate. Empty means none.
	TrustedProxies []netip.Prefix

	// Provider is the OpenID provider, and this app as its client. It is
	// required.
	Provider ProviderConfig
	// Claims selects what the app's script sees of the user. The zero value
	// means all claims.
	Claims Claims
	// KeepStorage keeps the app's data in the browser when the user signs out.
	// Otherwise the browser deletes it, except for cookies (Clear-Site-Data).
	KeepStorage bool
	// PromptAfterEnd is what a login asks the provider for in a browser whose
	// last session may have been another person's: it ended because of
	// inactivity, was revoked, or had to make room for one on another device.
	// Empty means PromptLogin.
	PromptAfterEnd PromptAfterEnd
	// Sessions configures the session.Manager. Store and Keys are required. New
	// sets App, Refresh, Ready, Wait, AccessTokenLifetime, Revoke, Observe,
	// Waited, TracerProvider and Logger.
	Sessions session.Config
	// Cookie describes the session cookie. New sets InsecureHTTP and Port.
	Cookie session.CookieConfig
	// Routes are the paths of APIs. For a request, the route with the longest
	// path counts. Empty means that nothing is forwarded.
	Routes []Route
	// Limits bound what one client can do. Its zero value has defaults.
	Limits Limits

	// BodyMinRate is the minimum rate of a body in bytes a second, measured
	// over 30 seconds, in both directions. The request of a slower body is
	// aborted. Event streams, gRPC and WebSockets are excepted. Zero means 240,
	// a negative number any rate.
	BodyMinRate int64

	// Frontend serves the app: every path that is neither under Prefix nor
	// under a route. Nil means 404.
	Frontend http.Handler
	// FrontendServer has the app, or the files for the pages of Frontend. Nil
	// means that Frontend serves all.
	FrontendServer *FrontendServer
	// Page is the template of the pages that the Server itself shows, such as
	// errors. It gets a Page. Its output may load styles, images and fonts of
	// this origin, and no script. Nil means a built-in page.
	Page *template.Template
	// PublicSettings is a JSON object for the app, at Prefix/config.json.
	// All clients can read it. Nil means an empty object.
	PublicSettings json.RawMessage
	// Client serves the browser client at Prefix/client.js, and its types at
	// Prefix/client.d.ts. Nil means 404.
	Client http.Handler

	// DevTools serves Prefix/dev and all below it, for developers of the app.
	// It sees requests for the host of PublicURL, and of other methods than GET
	// and HEAD only those of pages of this origin. It is for programs that run
	// on a developer's machine: PublicURL must have a loopback host. Nil means
	// 404.
	DevTools http.Handler

	// AdminToken is the bearer token of administrators (see
	// Server.RequireAdmin). If it is empty, requests of administrators have to
	// arrive on the loopback interface.
	AdminToken session.Secret
	// TLS terminates TLS on the listeners of Run. Nil means plain HTTP.
	TLS *tls.Config
	// ShutdownDelay is how long the listeners stay open after the shutdown has
	// begun. In this time a load balancer can see that the Server is not ready
	// (see Server.Admin). Zero means that they are closed at once.
	ShutdownDelay time.Duration
	// ShutdownGrace is how long requests in flight may take after that. Zero
	// means 30 seconds.
	ShutdownGrace time.Duration

	// Observe is called with each event. It must not block. Of the kinds that
	// any client can cause, it gets at most 20 a second in the long run. Nil
	// means that events are in the log only.
	Observe func(ctx context.Context, e Event)

	// TracerProvider makes the OpenTelemetry spans of requests, of refreshes,
	// and of requests to the provider and the upstreams. Nil means no spans.
	TracerProvider trace.TracerProvider

	// Logger receives a line for each request, and events. Nil means
	// slog.Default(). No line has a token, a secret or a cookie.
	Logger *slog.Logger
	// LogRequests is which requests Logger receives. Empty means RequestsAll.
	LogRequests LogRequests
	// LogExclude are paths whose requests Logger does not receive: those that
	// begin with a path that ends with a slash, otherwise the path itself and
	// all below it.
	LogExclude []string
	// LogUsers is how the IDs of users appear in logs and events. Empty means
	// UsersHashed.
	LogUsers LogUsers
}

// ProviderConfig describes the provider and this app as its client.
type ProviderConfig = oidc.Config

// ConfigError is a mistake in one field of a Config. Its fields are Key, such
// as Routes[0].Token, Value, which is empty for a secret, and Err.
type ConfigError = configerr.Error

// Server is a broker. It is safe for concurrent use.
type Server struct {
	log     *slog.Logger
	tls     *tls.Config         // of the listeners
	current atomic.Pointer[app] // the configuration in force
	state   atomic.Int32        // a serverState

	metrics        *metrics
	refusedCookies refusedCookies
	storeOutage    storeOutage  // seen by all configurations
	unreported     refusals     // events beyond eventLimit
	recent         recentEvents // of all configurations
	hour           lastHour
	wrongTokens    *limiter[[16]byte] // :: addressKey; admin tokens that were refused
	conns          connections        // of the listeners
	memory         memory             // of the process
	checks         checks             // of requests on them
	plain          http1.Server       // of plain requests; set by Run
	accepting      atomic.Int32       // listeners that may still pass on a connection
	served         sync.Map           // :: net.Conn → *idleTime; of the listeners, without streams

	started chan struct{} // closed when Run has begun

	mu      sync.Mutex      // guards all below
	running context.Context // of Run, since started
	retired sync.WaitGroup  // configurations that Reload replaced, until their requests have ended

	// The next two end in the shutdown: when the listeners have been closed,
	// and when refreshes and revocations in flight are not awaited any longer.
	draining, closing           context.Context
	startDraining, stopAwaiting context.CancelFunc
}

// New returns a Server for cfg. It does no I/O. The error joins a *ConfigError
// for every mistake in cfg.
func New(cfg Config) (*Server, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	a, err := newApp(cfg)
	if err != nil {
		return nil, err
	}
	s := &Server{
		log: cfg.Logger, tls: cfg.TLS, metrics: newMetrics(), started: make(chan struct{}),
		wrongTokens: newLimiter[[16]byte](wrongTokenLimit),
	}
	s.conns.log, s.conns.memory, s.conns.userTimeout = cfg.Logger, &s.memory, userTimeout
	s.storeOutage.log = cfg.Logger
	s.checks = checks{
		ofRun: true,
		log:   cfg.Logger, headerBytes: a.limits.HeaderBytes, largeHeaders: new(refusals), memory: &s.memory,
	}
	a.attach(s)
	s.current.Store(a)
	return s, nil
}

// WaitForProvider waits until the provider has been discovered, or ctx ends.
func (s *Server) WaitForProvider(ctx context.Context) error {
	return s.current.Load().provider.WaitReady(ctx)
}

// App returns what identifies the app of the configuration in force: sessions
// are bound to it.
func (s *Server) App() session.App { return s.current.Load().app }

// ServeHTTP serves one request and logs one line about it.
func (s *Server) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	a := s.enter()
	a.handle(rw, r, a.serve)
}

// enter returns the configuration in force, and counts a request in it until
// app.leave.
func (s *Server) enter() *app {
	for {
		a := s.current.Load()
		a.requests.Add(1)
		if s.current.Load() == a {
			return a
		}
		a.leave() // Reload has just replaced it
	}
}
