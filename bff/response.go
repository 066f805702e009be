package bff

import (
	"context"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/bff/proxy"
	"github.com/cloakroom-bff/cloakroom/internal/pace"
	"github.com/cloakroom-bff/cloakroom/session"
)

// statusClientLeft is logged if the client left before the response. It is
// never sent.
const statusClientLeft = 499

// response is the ResponseWriter of every request. It records what was sent,
// for the access log.
type response struct {
	http.ResponseWriter
	server    *Server
	http2     *http2Conn // nil: it is one with HTTP/1.1, or not served by Run
	began     time.Time
	requestID string
	trace     string // the trace-id of the client; empty: none
	client    string // address
	method    string
	path      string // never the query: codes and states are in it
	page      page   // how an error is shown to a person
	detached  bool   // the response continues after the handler has returned, and is logged when it ends
	route     string // path of the route or endpoint that serves it, as configured; empty: neither

	span trace.Span // nil: there are no traces

	// Of a response that no upstream sends:
	handledBy *app // whose Frontend or Handler responds: its pace and its error pages apply; nil: neither
	pace      pace.Monitor
	writing   atomic.Bool // to the client
	slow      atomic.Bool // it was aborted because the client reads too slowly

	fromFrontend bool // the server of the app's files responds, not an API

	metrics  *routeMetrics // for which the request is counted
	access   access        // of a request to a route
	exchange proxy.Record  // with the route's upstream
	waited   time.Duration // for the refresh of its session's tokens

	login       bool // it is a step of a login
	oauthErrors bool // errors are those of OAuth (RFC 6749 5.2), because a provider reads them

	status  int
	bytes   int64
	problem *problem.Problem
	session string // the ID of the session that the request was made in
	subject string // its user

	cookieCurrent bool // the session cookie was read, and is current

	refusedCookies []string // names that cookieRefused has logged
}

// page is how an error is shown to a person.
type page int

const (
	pageOrJSON  page = iota // as a page with a link to the app to a navigation, else as problem+json
	noPage                  // as problem+json: the request is for an API
	plainPage               // as a page with a link to the app
	loginPage               // as a page with links to the app and to the login
	addressPage             // as a page with a link to the app's own host
	waitingPage             // as a page that reloads itself when the app's server is back
	silentPage              // not at all: a page in an iframe tells the app that the user is not signed in
)

func (a *app) newResponse(w http.ResponseWriter, r *http.Request) *response {
	id, trace, given := a.requestID(r)
	if given {
		w.Header()["X-Request-Id"] = []string{id}
	}
	resp := &response{
		ResponseWriter: w, server: a.server, metrics: a.server.metrics.unrouted, began: time.Now(),
		requestID: id, trace: trace, client: a.clientIP(r), method: r.Method, path: r.URL.Path,
	}
	if r.ProtoMajor == 2 {
		resp.http2, _ = r.Context().Value(connKey{}).(*http2Conn)
	}
	return resp
}

// closeInShutdown has the client's connection closed after the response if the
// server shuts down. In HTTP/2 the client gets GOAWAY, and closes it. After
// idleGrace, net/http does.
func (w *response) closeInShutdown() {
	if !w.server.stopping() || w.http2 != nil && time.Since(w.http2.sendGoAway()) < idleGrace {
		return
	}
	w.Header().Set("Connection", "close")
}

func (w *response) WriteHeader(status int) {
	if status >= 200 {
		w.closeInShutdown()
	}
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// maxWrite is how much Write passes on at once, in bytes. What has been sent
// counts for the rate only then: a handler may write a large body in one call.
const maxWrite = 32 << 10

func (w *response) Write(b []byte) (n int, err error) {
	if w.status == 0 {
		w.closeInShutdown()
		w.status = http.StatusOK
	}
	if w.handledBy != nil && w.bytes == 0 && !pace.IsStream(w.Header().Get("Content-Type")) {
		w.pace.Start(w.handledBy.pace, w.writing.Load, w.endSlow)
	}
	w.writing.Store(true)
	defer w.writing.Store(false)
	for {
		sent, err := w.ResponseWriter.Write(b[n:min(n+maxWrite, len(b))])
		w.pace.Add(sent)
		w.bytes += int64(sent)
		if n += sent; err != nil || n == len(b) {
			return n, err
		}
	}
}

// endSlow aborts a response that the client does not read. It does nothing if
// the handler is slow.
func (w *response) endSlow(client bool) {
	if client {
		w.slow.Store(true)
		http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now())
	}
}

// Flush sends what has been written.
func (w *response) Flush() { http.NewResponseController(w.ResponseWriter).Flush() }

// Unwrap returns the server's writer, for http.ResponseController.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// setSession records in which session the request is made.
func (w *response) setSession(s *session.Session) { w.session, w.subject = s.ID, s.Subject }

// recordWait is session.Config.Waited.
func recordWait(ctx context.Context, d time.Duration) {
	if w, ok := ctx.Value(responseKey{}).(*response); ok {
		w.waited += d
	}
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// maxLogged bounds the length of a logged text that clients or servers choose,
// in bytes.
const maxLogged = 512

// truncate returns the beginning of a text, up to n bytes.
func truncate(text string, n int) string {
	if len(text) <= n {
		return text
	}
	return strings.ToValidUTF8(text[:n], "") + "…"
}
