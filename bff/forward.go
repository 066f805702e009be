package bff

import (
	"errors"
	"net/http"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/proxy"
	"github.com/cloakroom-bff/cloakroom/session"
)

// serveRoute serves a request to a route, with the token that the route is
// configured for.
func (a *app) serveRoute(w *response, r *http.Request, route *route) error {
	w.route, w.metrics, w.page = route.Path, route.metrics, noPage
	if route.AcceptBearer != nil && hasBearerToken(r) {
		return a.proxyWithCallerToken(w, r, route)
	}
	granted, err := a.authorize(w, r, route)
	if err != nil {
		return err
	}
	w.access = granted
	var opts proxy.Options
	if granted.token.header != nil {
		opts.Credential = &w.access
	}
	if granted.session != nil {
		opts.OnEnd = w.access.onEnd
		if len(route.Headers)+len(route.HeadersJSON) > 0 {
			opts.SetHeader = w.access.setClaims
		}
	}
	return a.forward(w, r, route, opts)
}

// forward sends a request to the route's upstream, or to its Handler.
func (a *app) forward(w *response, r *http.Request, route *route, opts proxy.Options) error {
	if route.Handler != nil {
		a.serveHandler(w, r, route)
		return nil
	}
	opts.Client, opts.RequestID, opts.Record = w.client, w.requestID, &w.exchange
	err := route.proxy.Forward(w, r, opts)
	if errors.Is(err, proxy.ErrEnded) {
		return session.ErrNone
	}
	return err
}

// beforeResponse measures what was added to the time of the upstream, and adds
// the session cookie to a response of an upstream if the cookie is outdated.
func (a *app) beforeResponse(rw http.ResponseWriter, r *http.Request) {
	w := rw.(*response)
	w.metrics.added.Observe((time.Since(w.began) - w.exchange.UpstreamTime - w.waited).Seconds())
	if w.fromFrontend && a.files.SetHeader != nil {
		a.files.SetHeader(w.Header())
	}
	if w.access.session != nil {
		a.renewCookie(r.Context(), w, r, w.access.session)
	}
}

// detach has a stream logged when it ends, after its handler.
func (a *app) detach(rw http.ResponseWriter) (done func(proxy.Record)) {
	w := rw.(*response)
	w.detached = true
	// Without the ResponseWriter, whose buffers are the server's again.
	stream := &response{
		server: w.server, began: w.began, requestID: w.requestID, trace: w.trace, client: w.client, method: w.method,
		path: w.path, route: w.route, metrics: w.metrics, span: w.span, waited: w.waited, session: w.session,
		subject: w.subject,
	}
	return func(record proxy.Record) {
		stream.exchange = record
		ended := time.Now()
		stream.countRequest(ended, false)
		a.logRequest(stream, ended)
		a.endSpan(stream)
		a.leave()
	}
}
