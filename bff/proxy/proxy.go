// Package proxy forwards requests to the servers of an upstream, and their
// responses back: HTTP/1.1, HTTP/2, WebSockets and event streams.
//
// A Proxy knows neither sessions nor sign-in. It attaches the Credential that
// it is given, and removes what only the broker may tell an upstream, or what
// an upstream may not tell a browser.
package proxy

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/internal/cancel"
	"github.com/cloakroom-bff/cloakroom/internal/http1"
	"github.com/cloakroom-bff/cloakroom/internal/pace"
	"github.com/cloakroom-bff/cloakroom/internal/span"
)

// Upstream configures where a Proxy forwards requests to, and what may pass.
type Upstream struct {
	// URLs are those of the servers: with the scheme http, https (HTTP/2 where
	// the server offers it) or h2c (HTTP/2 in plain text), whose path goes
	// before the request's; or unix:/run/orders.sock.
	URLs []string
	// Path is the prefix that the paths of all requests have.
	Path string
	// StripPrefix removes Path from the path of a request. An empty path is
	// sent as /.
	StripPrefix bool
	// TLS is for https: whom to trust, and a client certificate. Nil means the
	// system's roots and no certificate.
	TLS      *tls.Config
	Timeouts Timeouts
	// MaxBody bounds the body of a request, in bytes. Zero means no bound.
	MaxBody int64
	// NoRetry never repeats a request. Otherwise an idempotent one is repeated
	// once if its connection ends before a response.
	NoRetry bool
	// AllowDocuments lets documents that can run script, such as HTML and SVG,
	// act as pages of the broker's origin. Otherwise they are sandboxed.
	AllowDocuments bool
	// PublicFiles means a server of files that are the same for all users, such
	// as a CDN. It gets no cookies and no trace context, and sets no cookies.
	// Its files are revalidated at each use unless it says otherwise. A
	// response of status 5xx is an error of Forward.
	PublicFiles bool
	// HideOrigin has the upstream see requests for its own origin, as without
	// the broker: Origin and Referer of the public URL become those of the
	// upstream, and X-Forwarded-Host, -Proto and -Prefix are not sent.
	HideOrigin bool
	// Reserved are request headers that the upstream trusts (see
	// Options.SetHeader). Those that a client sends are removed.
	Reserved []string
}

// Timeouts of an upstream.
type Timeouts struct {
	Connect        time.Duration // zero: 10 seconds
	ResponseHeader time.Duration // from when the upstream has the whole request; zero: a minute
	Idle           time.Duration // without any data in either direction; zero: no limit, as streams need
}

// Group is what the proxies of one server share: settings and open streams. Its
// fields must not be changed while requests are served. The zero value is ready
// to use.
type Group struct {
	// PublicURL has the scheme, host and base path that browsers see. Requests
	// have no base path any more. Nil means scheme and host of each request,
	// and no base path.
	PublicURL *url.URL
	// OwnCookie reports whether a cookie is the broker's own. Such cookies are
	// removed from requests, and no upstream can set them. Nil means none.
	OwnCookie func(name string) bool
	// BodyMinRate is how many bytes a second a body has to move, measured over
	// BodyWindow, or the exchange is aborted. Event streams, gRPC and
	// WebSockets are excepted. Zero means 240, a negative number any rate.
	BodyMinRate int64
	// BodyWindow is 30 seconds if zero.
	BodyWindow time.Duration
	// BeforeResponse is called before the header of a response is sent. It may
	// add cookies to the header of w. Nil means nothing to do.
	BeforeResponse func(w http.ResponseWriter, r *http.Request)
	// Detach is called if an exchange continues after Forward has returned, as
	// event streams do. w must not be used any more. done is called when the
	// exchange ends. Nil means nothing to do.
	Detach func(w http.ResponseWriter) (done func(Record))
	// Overloaded reports whether memory is scarce. While it is, no body is kept
	// for another attempt. Nil means never.
	Overloaded func() bool
	// Resolver looks up the names of upstreams. Nil means the system's.
	Resolver *net.Resolver
	// TracerProvider makes a span for each exchange, whose context the upstream
	// gets (W3C Trace Context). Nil means no spans: the client's headers
	// traceparent and tracestate pass.
	TracerProvider trace.TracerProvider
	// Logger logs panics. Nil means slog.Default().
	Logger *slog.Logger

	detached sync.WaitGroup // exchanges that continue after Forward has returned

	mu      sync.Mutex // guards all below
	ended   bool       // EndStreams was called
	streams map[*exchange]struct{}
}

// EndStreams aborts all event streams and WebSockets, also those that begin
// later.
func (g *Group) EndStreams() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ended = true
	for x := range g.streams {
		go x.abort(errShutdown) // returns at once
	}
}

// Wait blocks until no exchange continues without its handler. Call EndStreams
// before.
func (g *Group) Wait() { g.detached.Wait() }

// addStream has EndStreams abort x until removeStream.
func (g *Group) addStream(x *exchange) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended {
		go x.abort(errShutdown) // returns at once
		return
	}
	if g.streams == nil {
		g.streams = make(map[*exchange]struct{})
	}
	g.streams[x] = struct{}{}
}

func (g *Group) removeStream(x *exchange) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.streams, x)
}

// Streams returns how many event streams and WebSockets are open.
func (g *Group) Streams() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.streams)
}

func (g *Group) pace() pace.Limit {
	return pace.Limit{Rate: cmp.Or(g.BodyMinRate, pace.DefaultRate), Window: cmp.Or(g.BodyWindow, pace.DefaultWindow)}
}

func (g *Group) overloaded() bool { return g.Overloaded != nil && g.Overloaded() }

func (g *Group) ownCookie(name string) bool { return g.OwnCookie != nil && g.OwnCookie(name) }

// Proxy forwards requests to one upstream. It is safe for concurrent use.
type Proxy struct {
	Upstream
	group    *Group
	tracer   trace.Tracer // nil: no spans
	servers  *serverSet
	reserved map[string]bool // :: HeaderKey → true

	base            string       // base path of the public URL
	urlPath         string       // Path as the browser sees it, in a URL
	forwardedPrefix string       // of X-Forwarded-Prefix; empty: it is not sent
	own             http1.Fields // of every request to the upstream
}

// ServerStatus is what a Proxy knows of one address of its upstream.
type ServerStatus struct {
	Server  int    // index in Upstream.URLs
	Address string // host:port, or the path of a socket
	Failed  bool   // the last requests failed; others are preferred for a while
	Unused  bool   // no connection was made yet
}

// Servers returns the names of the servers in Upstream.URLs: host:port as
// configured, or the path of a socket.
func (p *Proxy) Servers() []string {
	var all []string
	for _, s := range p.servers.servers {
		all = append(all, s.at)
	}
	return all
}

// Status returns what is known of the addresses of the upstream. A name that no
// request was sent to yet is its own address.
func (p *Proxy) Status() []ServerStatus {
	var all []ServerStatus
	for i, s := range p.servers.servers {
		addresses := s.addresses.Load()
		if addresses == nil {
			all = append(all, ServerStatus{Server: i, Address: p.Servers()[i], Unused: true})
			continue
		}
		for _, a := range *addresses {
			failed := a.retryAt.Load() != 0
			all = append(all, ServerStatus{i, a.at, failed, !failed && !a.used.Load()})
		}
	}
	return all
}

// PeerCertificate returns the certificate of the server in Upstream.URLs with
// an index, as of the last connection. It is nil if the server has shown none.
func (p *Proxy) PeerCertificate(server int) *x509.Certificate {
	return p.servers.servers[server].certificate.Load()
}

// New returns a Proxy for an upstream. It does no I/O. A nil group means one of
// its own. The error is about the URLs.
func New(u Upstream, group *Group) (*Proxy, error) {
	if group == nil {
		group = new(Group)
	}
	servers, err := newServerSet(u, group)
	if err != nil {
		return nil, err
	}
	p := &Proxy{
		Upstream: u, group: group, tracer: span.Tracer(group.TracerProvider), servers: servers,
	}
	if public := group.PublicURL; public != nil {
		p.base = public.Path
	}
	p.urlPath = p.base + (&url.URL{Path: u.Path}).EscapedPath()
	p.forwardedPrefix = p.base
	if u.StripPrefix {
		p.forwardedPrefix = strings.TrimSuffix(p.urlPath, "/")
	}
	p.own = p.ownFields()
	if len(u.Reserved) > 0 {
		p.reserved = headerKeys(u.Reserved...)
	}
	return p, nil
}

// Close closes the connections that are not in use.
func (p *Proxy) Close() { p.servers.close() }

// Options are what is special about one request.
type Options struct {
	// Credential is attached to the request. Nil means none.
	Credential Credential
	// PassAuthorization sends the client's own headers Authorization and DPoP,
	// which were verified before.
	PassAuthorization bool
	// SetHeader adds headers to the request. h is empty. The names should be
	// among Upstream.Reserved. Those that CanSetHeader refuses are not sent.
	// Nil means none.
	SetHeader func(h http.Header)
	// OnEnd has abort called when the exchange has to end, for example because
	// the user signs out. Forward then returns ErrEnded. stop takes that back.
	// Nil means never.
	OnEnd func(abort func()) (stop func())
	// Client is the address of the client, for X-Forwarded-For. Empty means
	// unknown.
	Client string
	// RequestID is the value of X-Request-Id. Empty means that there is none.
	RequestID string
	// Record is filled with what the exchange did. Nil means that it is not
	// needed.
	Record *Record
}

// Credential is the access token of a request.
type Credential interface {
	// Authorization returns the values of the header Authorization, which must
	// not be modified.
	Authorization() []string
	// Key returns the key that the token is bound to by DPoP (RFC 9449). Nil
	// means that it is a bearer token.
	Key() *ecdsa.PrivateKey
	// Renew returns another credential after the upstream has rejected this
	// one. Nil means that there is none, and that the upstream's response
	// stands. An error is returned by Forward.
	Renew(ctx context.Context) (Credential, error)
}

// Record is what an exchange did, for a log.
type Record struct {
	Upstream     string        // address of the last server: host:port, or the path of a socket
	Server       int           // index of that server in Upstream.URLs
	UpstreamTime time.Duration // until the header of the last response
	Retries      int           // requests to the upstream after the first one
	Stream       bool          // an event stream or a WebSocket
	Status       int           // of a response on a connection that was taken over from net/http; else 0
	Bytes        int64         // of its body
	Err          error         // a *problem.Problem: why the response ended too early
	Deadline     bool          // a deadline for writing the response is set
}

// ErrEnded is the error of Forward after abort of Options.OnEnd was called.
var ErrEnded = errors.New("the exchange was ended")

// ServeHTTP forwards a request without a credential.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	client, _, _ := net.SplitHostPort(r.RemoteAddr) // empty if there is none
	err := p.Forward(w, r, Options{Client: client})
	if err == nil {
		return
	}
	if errors.Is(err, context.Canceled) {
		panic(http.ErrAbortHandler) // the client has left
	}
	refused := problem.UpstreamFailed
	errors.As(err, &refused)
	http.Error(w, refused.Title, refused.Status)
}

// Forward sends a request to the upstream, and its response to w. If it returns
// an error, it has written nothing. The error is
//   - a *problem.Problem;
//   - ErrEnded;
//   - context.Canceled if the client has left;
//   - one of Credential.Renew.
//
// It panics with http.ErrAbortHandler if the response ends too early.
func (p *Proxy) Forward(w http.ResponseWriter, r *http.Request, opts Options) error {
	// The exchange has a context of its own: the request's ends with the
	// handler, and an event stream continues after it.
	x := &exchange{p: p, w: w, r: r, opts: opts, credential: opts.Credential, record: opts.Record}
	x.ctx.Values = cancel.WithoutCancel(r.Context())
	ctx := context.Context(&x.ctx)
	if x.record == nil {
		x.record = new(Record)
	}
	x.controller = *http.NewResponseController(w)
	x.conn.Store(&x.controller)
	x.body = newRequestBody(x)
	var err error
	defer func() {
		if !x.detached {
			x.endSpan(ctx, err)
			x.end()
		}
	}()
	if p.tracer != nil {
		ctx = x.startSpan(ctx)
	}
	x.clientLeft = cancel.AfterFunc(r.Context(), func() { x.ctx.Cancel(context.Canceled) })
	if opts.OnEnd != nil {
		x.stopOnEnd = opts.OnEnd(x.abortEnded)
	}
	if d := p.Timeouts.Idle; d > 0 {
		x.idle = time.AfterFunc(d, func() { x.abort(errIdleTimeout) }) // stopped by end
	}
	err = x.run(ctx)
	return err
}
