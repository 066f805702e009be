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
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cloakroom-bff/cloakroom/bff/oidc"
	"github.com/cloakroom-bff/cloakroom/internal/configerr"
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

	// Provider is the OpenID provider, and this app as its client. It is
	// required.
	Provider ProviderConfig
	// Claims selects what the app's script sees of the user. The zero value
	// means all claims.
	Claims Claims
	// KeepStorage keeps the app's data in the browser when the user signs out.
	// Otherwise the browser deletes it (Clear-Site-Data).
	KeepStorage bool
	// Sessions configures the session.Manager. Store and Keys are required. New
	// sets App, Refresh, Ready, Wait, AccessTokenLifetime, Revoke, Observe and
	// Logger.
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
	// Client serves the browser client at Prefix/client.js. Nil means 404.
	Client http.Handler

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

	// Logger receives one line for each request, and events. Nil means
	// slog.Default(). No line has a token, a secret or a cookie.
	Logger *slog.Logger
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

	refusedCookies refusedCookies
	conns          connections // of the listeners
	checks         checks      // of requests on them
	served         sync.Map    // :: net.Conn → *idleTime; of the listeners, except for event streams and WebSockets

	mu      sync.Mutex      // guards all below
	running context.Context // of Run; nil before
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
	s := &Server{log: cfg.Logger, tls: cfg.TLS}
	s.conns.log = cfg.Logger
	s.checks = checks{log: cfg.Logger, headerBytes: a.limits.HeaderBytes, largeHeaders: new(refusals)}
	a.server = s
	s.current.Store(a)
	return s, nil
}

// Run serves the listeners until ctx ends, and then shuts down. It closes them.
// It is called once, and has to run while the Server serves requests: it
// discovers the provider, and learns what other replicas change. While the
// provider cannot be reached, nobody can sign in; sessions work.
//
// The shutdown loses no request. From its begin the Server is not ready, and
// each response says that its connection is closed (Connection: close, or
// GOAWAY). After ShutdownDelay the listeners are closed, and event streams and
// WebSockets are aborted, so that their clients connect to another replica.
// Other requests may take ShutdownGrace. An idle connection is closed after its
// next response, or after 5 seconds: a request may be on its way. At last, Run
// waits up to 10 seconds for token refreshes and revocations: a rotated refresh
// token that is not stored signs its user out.
//
// Without listeners, the Server is the handler of another http.Server. End ctx
// when that server's Shutdown begins, and wait for both.
//
// The error says which listener failed, or that refreshes or revocations did
// not end in time. Requests that are aborted are logged.
func (s *Server) Run(ctx context.Context, listeners ...net.Listener) error {
	server := &http.Server{
		Handler: http.HandlerFunc(s.serveChecked),
		// Bodies are bounded by their rate alone (Config.BodyMinRate): uploads
		// and streams may take any time.
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		// The limit of s.checks is half of it, so that they count all refusals
		// but those of HTTP/2 that are more than twice too large.
		MaxHeaderBytes: 2 * s.checks.headerBytes,
		ErrorLog:       slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ConnState:      s.trackConnection,
		// OPTIONS * is refused by the handler.
		DisableGeneralOptionsHandler: true,
	}
	group, serving := errgroup.WithContext(ctx)
	if err := s.start(serving); err != nil {
		return err
	}
	for _, l := range listeners {
		group.Go(func() error { // until the shutdown
			err := server.Serve(newListener(&limitedListener{l, &s.conns}, s.tls, &s.checks))
			if s.stopping() && (errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed)) {
				return nil
			}
			return fmt.Errorf("serve %s: %w", l.Addr(), err)
		})
	}
	s.state.Store(int32(stateReady))
	group.Go(func() error {
		<-serving.Done() // ctx has ended, or a listener failed
		return s.shutdown(server, listeners)
	})
	return group.Wait()
}

// start starts the work of the configuration in force.
func (s *Server) start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running != nil {
		return errors.New("bff: Run was called before")
	}
	s.running = ctx
	s.draining, s.startDraining = context.WithCancel(context.Background())
	s.closing, s.stopAwaiting = context.WithCancel(context.Background())
	a := s.current.Load()
	s.conns.setLimit(a.limits.Connections)
	a.start()
	return nil
}

// serverState says how far a Server is.
type serverState int32

const (
	stateStarting serverState = iota // Run has not begun
	stateReady                       // the listeners are served
	stateStopping                    // Run ends
)

func (s *Server) stopping() bool { return serverState(s.state.Load()) == stateStopping }

// idleTime is when a connection became idle, in Unix nanoseconds, or 0 while it
// has a request.
type idleTime struct{ atomic.Int64 }

// trackConnection is http.Server.ConnState.
func (s *Server) trackConnection(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		idle := new(idleTime)
		idle.Store(time.Now().UnixNano())
		s.served.Store(c, idle)
	case http.StateActive:
		s.conns.requested(c)
		if idle, ok := s.served.Load(c); ok {
			idle.(*idleTime).Store(0)
		}
	case http.StateIdle:
		if idle, ok := s.served.Load(c); ok {
			idle.(*idleTime).Store(time.Now().UnixNano())
		}
	case http.StateClosed, http.StateHijacked:
		s.served.Delete(c)
	}
}

// shutdown ends what Run began.
func (s *Server) shutdown(server *http.Server, listeners []net.Listener) error {
	s.state.Store(int32(stateStopping))
	s.mu.Lock() // no Reload begins after this
	a := s.current.Load()
	s.mu.Unlock()
	s.log.Info("shutting down", "delay", a.shutdownDelay.String(), "grace", a.shutdownGrace.String())
	time.Sleep(a.shutdownDelay)
	for _, l := range listeners {
		l.Close() // Serve reports an error
	}
	s.startDraining()
	a.upstreams.EndStreams()
	grace, cancel := context.WithTimeout(context.Background(), a.shutdownGrace)
	defer cancel()
	s.awaitConnections(grace)
	err := server.Shutdown(grace)
	if err == nil {
		err = a.waitIdle(grace)
	}
	if err != nil {
		s.log.Warn("requests still open after the grace period are aborted", "err", err)
		server.Close()
	}
	defer time.AfterFunc(closeGrace, s.stopAwaiting).Stop()
	err = a.close(s.closing)
	s.retired.Wait() // bounded by ShutdownGrace and closeGrace
	s.stopAwaiting()
	return err
}

// idleGrace is how long an idle connection stays open in a shutdown.
const idleGrace = 5 * time.Second

// awaitConnections waits until no connection is open. It closes those that are
// idle for idleGrace, and returns if ctx ends.
func (s *Server) awaitConnections(ctx context.Context) {
	begun := time.Now()
	for {
		open := false
		s.served.Range(func(c, idle any) bool {
			open = true
			since := idle.(*idleTime).Load()
			if since != 0 && min(time.Since(time.Unix(0, since)), time.Since(begun)) >= idleGrace {
				c.(net.Conn).Close()
			}
			return true
		})
		if !open {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(idleInterval):
		}
	}
}

// closeGrace is how long refreshes and revocations in flight may take after the
// last request.
const closeGrace = 10 * time.Second

// Reload puts the configuration of next in force: a Server that New has
// returned and that does not run. Run has to run. No session ends. Requests in
// flight end under the previous configuration. What belongs to the listeners
// stays as it is (Config.TLS, Config.Logger).
//
// Reload discovers the provider first. If that fails, the previous
// configuration stays in force, and the error is a *ConfigError. But if both
// have the same issuer, and discovery fails under both, the provider is down:
// next is put in force. The previous configuration also stays if ctx or Run
// ends before.
func (s *Server) Reload(ctx context.Context, next *Server) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running == nil {
		return errors.New("bff: Reload before Run")
	}
	if s.running.Err() != nil {
		return errStopping
	}
	a := next.current.Load()
	a.server = s
	a.start()
	err := s.checkProvider(ctx, a.provider)
	switch { // the attempt was canceled, which says nothing about the provider
	case s.running.Err() != nil:
		err = errStopping
	case ctx.Err() != nil:
		err = ctx.Err()
	}
	if err != nil {
		closing, cancel := context.WithTimeout(context.Background(), closeGrace)
		defer cancel()
		return errors.Join(err, a.close(closing))
	}
	before := s.current.Swap(a)
	s.conns.setLimit(a.limits.Connections)
	s.retired.Go(func() { s.retire(before, a.shutdownGrace) })
	return nil
}

var errStopping = errors.New("bff: Reload during the shutdown")

// retire waits until the requests of a configuration that is not in force any
// more have ended, and closes it. In the shutdown, they may take grace. It
// returns after the last refresh, because the process must not exit before.
func (s *Server) retire(before *app, grace time.Duration) {
	before.waitIdle(s.draining)
	before.upstreams.EndStreams()
	within := func(end func(context.Context) error) error {
		ctx, cancel := context.WithTimeout(s.closing, grace)
		defer cancel()
		return end(ctx)
	}
	if err := errors.Join(within(before.waitIdle), within(before.close)); err != nil {
		s.log.Warn("previous configuration closed with requests in flight", "err", err)
	}
	before.sessions.Drain(s.closing)
}

// reloadWait is how long Reload waits for the provider.
const reloadWait = 15 * time.Second

// checkProvider returns an error if the provider of the next configuration
// cannot be discovered, and the configuration is the cause. The caller holds
// mu.
func (s *Server) checkProvider(ctx context.Context, next *oidc.Client) error {
	ctx, cancel := context.WithTimeout(ctx, reloadWait)
	defer cancel()
	defer context.AfterFunc(s.running, cancel)()
	next.WaitAttempt(ctx)
	if next.Discovered() {
		return nil
	}
	cause := next.Status()
	inForce := s.current.Load().provider
	if inForce.Config().Issuer == next.Config().Issuer && inForce.Discover(ctx) != nil {
		next.Inherit(inForce) // the token endpoint may work
		return nil            // the provider is down
	}
	return &ConfigError{Key: "Provider.Issuer", Value: next.Config().Issuer, Err: cause}
}

// WaitForProvider waits until the provider has been discovered, or ctx ends.
func (s *Server) WaitForProvider(ctx context.Context) error {
	return s.current.Load().provider.WaitReady(ctx)
}

// App returns what identifies the app of the configuration in force: sessions
// are bound to it.
func (s *Server) App() session.App { return s.current.Load().app }

// serveChecked is ServeHTTP for the listeners of Run, which check the header of
// a request in HTTP/1.1. Here it is checked in HTTP/2.
func (s *Server) serveChecked(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor < 2 || headerSize(r) <= s.checks.headerBytes {
		s.ServeHTTP(w, r)
		return
	}
	text := fmt.Sprintf("%d %s", http.StatusRequestHeaderFieldsTooLarge,
		http.StatusText(http.StatusRequestHeaderFieldsTooLarge))
	client, _, _ := net.SplitHostPort(r.RemoteAddr)
	s.checks.refuseHeader(client, text)
	http.Error(w, text, http.StatusRequestHeaderFieldsTooLarge)
}

// headerSize returns the size that a request's header would have in HTTP/1.1,
// with the request line.
func headerSize(r *http.Request) int {
	size := len(r.Method) + len(r.RequestURI) + len("  HTTP/1.1\r\n") + len("Host: \r\n") + len(r.Host) + len("\r\n")
	for name, values := range r.Header {
		for _, value := range values {
			size += len(name) + len(": \r\n") + len(value)
		}
	}
	return size
}

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
