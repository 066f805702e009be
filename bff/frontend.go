package bff

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"
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
	// reload themselves until it is back. Otherwise it is a CDN, which learns
	// nothing about the client: it gets the path, the headers that select a
	// file and its form, and the query unless the request is for a page. It
	// sets no cookies.
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
	if !server.Dev && proxy.Host(server.URL) == proxy.Host(a.origin) {
		return configerr.New("FrontendServer.URL", server.URL, fmt.Errorf("%q is this broker itself, whose requests "+
			"would come back to it; name the server that has the files", server.URL))
	}
	upstream := proxy.Upstream{
		URLs: []string{server.URL}, Path: "/", AllowDocuments: true, HideOrigin: true, PublicFiles: !server.Dev,
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
	opts := proxy.Options{Client: w.client, RequestID: w.requestID, Record: &w.exchange}
	forwarded := r
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	switch upgrade := len(r.Header["Upgrade"]) > 0; {
	case !a.files.Dev && !read:
		w.Header().Set("Allow", "GET, HEAD")
		return problem.MethodNotAllowed
	case !a.files.Dev:
		limitBodyTime(w, r) // no handler reads the body
		forwarded, opts.Client, opts.RequestID = fileRequest(r), "", ""
	case !read || upgrade:
		if err := sameOrigin(a, r); err != nil {
			return err
		}
	}
	err := a.files.proxy.Forward(w, forwarded, opts)
	var p *problem.Problem
	if !errors.As(err, &p) || p.Status < 500 || errors.Is(err, context.Canceled) {
		return err
	}
	return a.frontendDown(w, r, err)
}

// fileHeaders are the request headers that select a file and its form (RFC
// 9110, sections 12.5, 13.1 and 14.2).
var fileHeaders = []string{
	"Accept", "Accept-Encoding", "Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since",
	"If-Unmodified-Since",
}

// fileUserAgent is the User-Agent for a CDN. Some refuse requests without one.
var fileUserAgent = []string{"cloakroom"}

// fileRequest returns the request for a file of a CDN. It tells nothing about
// the client, except for what selects the file and its form.
func fileRequest(r *http.Request) *http.Request {
	out := *r // not Clone, which copies the whole header
	u := *r.URL
	if !takesQuery(r) {
		u.RawQuery, u.ForceQuery = "", false
	}
	out.URL, out.Body, out.ContentLength = &u, http.NoBody, 0
	out.Header = http.Header{"User-Agent": fileUserAgent}
	for _, name := range fileHeaders {
		if values := r.Header[name]; len(values) > 0 {
			out.Header[name] = values
		}
	}
	return &out
}

// takesQuery reports whether a CDN gets the query of a request. That of a file
// is often a version. That of a page belongs to the app, and may have the code
// of a login or personal data.
func takesQuery(r *http.Request) bool {
	switch strings.ToLower(path.Ext(r.URL.Path)) {
	case "", ".html", ".htm", ".xhtml":
		return false
	}
	return r.Header.Get("Sec-Fetch-Mode") != "navigate"
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
