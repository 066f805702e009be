package bff

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/internal/urlpath"
)

// With a path in the public URL, the base path, everything of the app is below
// it. Two places know that: cutBase removes it from a request, and path adds it
// to what a browser gets. All in between has the paths of the configuration:
// routes, endpoints, return_to.

// path returns the path at which browsers find a path of the app, with a query
// or without.
func (a *app) path(path string) string { return a.base + path }

// endpoint returns the path at which browsers find an endpoint.
func (a *app) endpoint(path string) string { return a.path(a.prefix + path) }

// endpointURL returns the URL at which others find an endpoint.
func (a *app) endpointURL(path string) string { return a.origin + a.endpoint(path) }

// pathBelowBase returns the path of the app that browsers find at a path. It
// reports whether there is one.
func (a *app) pathBelowBase(path string) (string, bool) {
	rest, ok := strings.CutPrefix(path, a.base)
	return rest, ok && (strings.HasPrefix(rest, "/") || a.base == "")
}

// askedPath returns the path of the app that a browser asks to be sent to, with
// a query or without: raw without the base path. It is empty if raw is no path
// below that.
func (a *app) askedPath(raw string) string {
	path, ok := a.pathBelowBase(raw)
	if rest, is := strings.CutPrefix(raw, a.base); is && !ok && (rest == "" || rest[0] == '?' || rest[0] == '#') {
		return "/" + rest // the base path without a slash at its end
	}
	if !ok {
		return ""
	}
	return path
}

// cutBase returns a request with its path below the base path. It fails if the
// path is outside.
func (a *app) cutBase(r *http.Request) (*http.Request, error) {
	raw := urlpath.Raw(r)
	rest, ok := a.pathBelowBase(raw)
	if !ok {
		under := func(decoded string) bool { return urlpath.LenientlyUnder(decoded, a.base) }
		if raw != a.base && urlpath.AnyReading(raw, under) {
			return nil, problem.AmbiguousPath.WithCause(urlpath.Error(raw, "can be read as lying under "+a.base))
		}
		return nil, problem.NotFound
	}
	inner, target := *r, *r.URL
	target.Path, target.RawPath = strings.TrimPrefix(target.Path, a.base), strings.TrimPrefix(target.RawPath, a.base)
	inner.URL, inner.RequestURI = &target, rest
	if _, query, ok := strings.Cut(r.RequestURI, "?"); ok {
		inner.RequestURI += "?" + query
	}
	return &inner, nil
}

// withBase is the reverse of cutBase.
func (a *app) withBase(r *http.Request) *http.Request {
	if a.base == "" {
		return r
	}
	outer, target := *r, *r.URL
	target.Path = a.path(target.Path)
	if target.RawPath != "" {
		target.RawPath = a.path(target.RawPath)
	}
	outer.URL, outer.RequestURI = &target, a.path(r.RequestURI)
	return &outer
}

// serveBelowBase serves a request of an app with a base path. That path without
// a slash at its end leads to the app.
func (a *app) serveBelowBase(w *response, r *http.Request) error {
	inner, err := a.cutBase(r)
	switch {
	case err == nil:
		return a.servePath(w, inner)
	case urlpath.Raw(r) == a.base && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		target := url.URL{Path: a.path("/"), RawQuery: r.URL.RawQuery}
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Location", target.String())
		w.WriteHeader(http.StatusTemporaryRedirect)
		return nil
	}
	return err
}
