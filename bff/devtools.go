package bff

import (
	"errors"
	"net/http"
	"net/url"

	"github.com/cloakroom-bff/cloakroom/internal/configerr"
	"github.com/cloakroom-bff/cloakroom/internal/loopback"
	"github.com/cloakroom-bff/cloakroom/session"
)

// DevToolsPath is the path of Config.DevTools, under Config.Prefix.
const DevToolsPath = "/dev"

// checkDevTools refuses Config.DevTools where others than the developer could
// reach it.
func checkDevTools(tools http.Handler, publicURL *url.URL) error {
	if tools == nil || publicURL == nil || loopback.IsHost(publicURL.Hostname()) {
		return nil
	}
	return configerr.New("DevTools", nil, errors.New("PublicURL must have a loopback host"))
}

// serveDevTools serves a request with Config.DevTools.
func (a *app) serveDevTools(w *response, r *http.Request) error {
	w.route = a.prefix + DevToolsPath
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		if err := fetchOrForm(a, r); err != nil {
			return err
		}
	}
	a.devTools.ServeHTTP(w, r)
	return nil
}

// ExpireTokens makes the access tokens of the request's session look expired:
// the next call of an API refreshes them. It is for Config.DevTools. The error
// wraps session.ErrNone or session.ErrStore.
func (s *Server) ExpireTokens(r *http.Request) error {
	a := s.enter()
	defer a.leave()
	current, err := a.findSession(r)
	if err != nil {
		return err
	}
	return a.sessions.ExpireTokens(r.Context(), current)
}

// EndSession ends the request's session on all replicas, as an administrator
// does. The browser keeps its cookie, which opens nothing any more. The error
// wraps session.ErrNone or session.ErrStore. It is for Config.DevTools.
func (s *Server) EndSession(r *http.Request) error {
	a := s.enter()
	defer a.leave()
	current, err := a.findSession(r)
	if err != nil {
		return err
	}
	_, err = a.sessions.EndByID(r.Context(), current.ID, session.ReasonRevoked)
	return err
}
