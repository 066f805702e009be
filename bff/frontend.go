package bff

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/bff/proxy"
	"github.com/cloakroom-bff/cloakroom/internal/configerr"
	"github.com/cloakroom-bff/cloakroom/internal/urlpath"
)

// FrontendServer is a server with the files of the app: a development server,
// or a CDN. It sees requests for its own origin. It gets no token and none of
// the broker's cookies.
type FrontendServer struct {
	// URL is that of the server. Its path goes before those of requests.
	URL string
	// Dev means a development server, which serves everything that belongs to
	// the app, Config.Frontend included: also WebSockets, and methods other
	// than GET and HEAD, for requests of this origin. While it is down, pages
	// reload themselves until it is back. Otherwise it is a CDN, which gets and
	// sets no cookies at all.
	Dev bool
	// IsPage reports whether Config.Frontend serves a request instead of the
	// CDN. Nil means none.
	IsPage func(r *http.Request) bool
	// SetHeader changes the header of the server's response before it is sent.
	// Nil means no change.
	SetHeader func(h http.Header)
}

// frontendServer is a FrontendServer with the route to it.
type frontendServer struct {
	*route
	FrontendServer
}

// devHeaderTimeout is how long a development server may compile before it
// responds.
const devHeaderTimeout = 5 * time.Minute

// addFrontendServer adds the route to server, unless it is nil.
func (a *app) addFrontendServer(server *FrontendServer) error {
	if server == nil {
		return nil
	}
	upstream := proxy.Upstream{
		URLs: []string{server.URL}, Path: "/", AllowDocuments: true, HideOrigin: true, NoCookies: !server.Dev,
	}
	if server.Dev {
		upstream.Timeouts = proxy.Timeouts{Connect: 2 * time.Second, ResponseHeader: devHeaderTimeout}
	}
	forwarder, err := proxy.New(upstream, a.upstreams)
	if err != nil {
		return configerr.New("FrontendServer.URL", server.URL, err)
	}
	a.files = &frontendServer{
		route:          &route{Route: Route{Path: routeFrontend}, proxy: forwarder},
		FrontendServer: *server,
	}
	return nil
}

// proxied returns the routes that have a proxy, that to the app's files
// included.
func (a *app) proxied() []*route {
	all := slices.DeleteFunc(slices.Clone(a.routes), func(r *route) bool { return r.proxy == nil })
	if a.files != nil {
		all = append(all, a.files.route)
	}
	return all
}

// servesPage reports whether Config.Frontend serves a request.
func (f *frontendServer) servesPage(r *http.Request) bool {
	return !f.Dev && f.IsPage != nil && f.IsPage(r)
}

// forwardToFrontend sends a request to the server of the app's files. No
// session is needed, and no credential is attached, so a GET of another site
// gets no more than from a directory of files. Whatever else a development
// server does, a page of this origin has to ask for it.
func (a *app) forwardToFrontend(w *response, r *http.Request) error {
	w.metrics, w.fromFrontend = a.files.metrics, true
	if err := urlpath.CheckExceptSlashes(urlpath.Raw(r)); err != nil {
		return problem.AmbiguousPath.WithCause(err) // it could lead out of the path of the URL
	}
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	switch upgrade := len(r.Header["Upgrade"]) > 0; {
	case !a.files.Dev && !read:
		w.Header().Set("Allow", "GET, HEAD")
		return problem.MethodNotAllowed
	case !a.files.Dev:
		delete(r.Header, "Upgrade")
	case !read || upgrade:
		if err := sameOrigin(a, r); err != nil {
			return err
		}
	}
	err := a.forward(w, r, a.files.route, proxy.Options{})
	var p *problem.Problem
	if !errors.As(err, &p) || p.Status < 500 || errors.Is(err, context.Canceled) {
		return err
	}
	return a.frontendDown(w, r, err)
}

// frontendDown returns the problem for a server of the app's files that does
// not respond, and how to show it.
func (a *app) frontendDown(w *response, r *http.Request, cause error) error {
	down := problem.FrontendUnavailable.WithCause(cause)
	if a.files.Dev && r.Method == http.MethodGet && a.wantsPage(r) {
		w.page = waitingPage
		down = down.WithDetail(fmt.Sprintf(
			"The development server %s does not respond. Start it. This page tries again every second.", a.files.URL))
	}
	return down
}
