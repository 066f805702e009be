package bff

import (
	"context"
	"net/http"

	"github.com/cloakroom-bff/cloakroom/session"
)

// Session returns the session in which a request is made. In the Handler of a
// Route and in a handler of RequireSession that is the session that was granted
// access. Elsewhere the session is neither refreshed nor extended. The error
// wraps session.ErrNone if there is none, or session.ErrStore.
func (s *Server) Session(r *http.Request) (*session.Session, error) {
	granted, ok := r.Context().Value(accessKey{}).(*access)
	if !ok || granted.app.server != s {
		return s.current.Load().findSession(r)
	}
	if granted.session == nil {
		return nil, session.ErrNone
	}
	return granted.session, nil
}

// accessKey is the key of an *access in the context of a request.
type accessKey struct{}

// RequireSession returns a handler that calls h for requests in a session, as a
// Route with TokenUser and CSRFAuto does. It is for handlers that the Server
// does not serve itself. Other requests are refused with a problem. It can also
// wrap handlers within Config.Frontend.
func (s *Server) RequireSession(h http.Handler) http.Handler {
	protected := &route{Route: Route{Handler: h}, user: true, guard: headerOrMetadata, metrics: s.metrics.frontend}
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		a := s.enter()
		serve := func(w *response, r *http.Request) error {
			if err := a.checkAuthority(w, r); err != nil {
				return err
			}
			return a.serveRoute(w, r, protected)
		}
		w, ok := rw.(*response)
		if !ok {
			a.handle(rw, r, serve)
			return
		}
		defer a.leave()
		if err := serve(w, r); err != nil { // within Frontend: the request is logged there
			a.writeProblem(w, r, err)
		}
	})
}

// serveHandler serves a request that was granted access with the route's
// Handler.
func (a *app) serveHandler(w *response, r *http.Request, route *route) {
	w.Header()["Cache-Control"] = []string{"private, no-store"}
	if w.access.session != nil {
		a.renewCookie(r.Context(), w, r, w.access.session)
	}
	if route.MaxBody > 0 {
		r.Body = http.MaxBytesReader(w, r.Body, route.MaxBody)
	}
	w.handledBy = a
	route.Handler.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), accessKey{}, &w.access)))
	w.pace.Stop()
	limitBodyTime(w, r)
}
