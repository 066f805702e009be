package bff

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
)

// The guards of endpoints and routes. Each returns the error with which a
// request is refused, or nil.

// public accepts every request.
func public(*app, *http.Request) error { return nil }

// navigation accepts a top-level navigation of the browser. A script would
// follow the redirect to the provider and fail there with an error that
// explains nothing. A prefetch would start logins that the user did not
// request.
//
// The mode navigate proves a navigation, whatever its destination: that is
// empty if a service worker of the app passes the navigation on with
// fetch(event.request). Only frames are refused.
func navigation(_ *app, r *http.Request) error {
	mode, dest := r.Header.Get("Sec-Fetch-Mode"), r.Header.Get("Sec-Fetch-Dest")
	switch {
	case mode != "" && mode != "navigate":
		return problem.NavigationOnly.WithCause(fmt.Errorf("Sec-Fetch-Mode is %.40q", mode))
	case frameDestinations[dest], mode == "" && dest != "" && dest != "document":
		return problem.NavigationOnly.WithCause(fmt.Errorf("Sec-Fetch-Dest is %.40q", dest))
	}
	if err := notPrefetched(r); err != nil {
		return err
	}
	return notFromScript(r)
}

// notPrefetched refuses a prefetch.
func notPrefetched(r *http.Request) error {
	for _, name := range []string{"Sec-Purpose", "Purpose", "X-Moz"} {
		if purpose := r.Header.Get(name); strings.Contains(purpose, "prefetch") {
			return problem.NavigationOnly.WithCause(fmt.Errorf("%s is %.40q", name, purpose))
		}
	}
	return nil
}

// notFromScript refuses a request that a script has sent, also of a browser
// that does not send Fetch Metadata.
func notFromScript(r *http.Request) error {
	h := r.Header
	switch {
	case h.Get("X-Csrf") != "", h.Get("X-Requested-With") != "":
		return problem.NavigationOnly.WithCause(errors.New("a script sent it: X-CSRF or X-Requested-With is set"))
	case h.Get("Sec-Fetch-Mode") == "" && prefersJSON(r):
		return problem.NavigationOnly.WithCause(errors.New("header Accept wants JSON"))
	}
	return nil
}

// frameDestinations are the values of Sec-Fetch-Dest of navigations that are
// not top-level ones (Fetch Metadata 2.1).
var frameDestinations = map[string]bool{
	"iframe": true, "frame": true, "fencedframe": true, "embed": true, "object": true,
}

// unlessHead returns a handler that responds to HEAD with 200 and nothing else.
// It is for endpoints whose GET starts or ends something.
func unlessHead(serve func(*app, *response, *http.Request) error) func(*app, *response, *http.Request) error {
	return func(a *app, w *response, r *http.Request) error {
		if r.Method == http.MethodHead {
			w.WriteHeader(http.StatusOK)
			return nil
		}
		return serve(a, w, r)
	}
}

// callbackNavigation accepts the navigation by which the provider returns the
// browser, also in an iframe, where a silent login ends.
func callbackNavigation(a *app, r *http.Request) error {
	if inFrame(r) {
		return nil
	}
	return navigation(a, r)
}

// csrfHeader accepts a request of a script of this origin. The header X-CSRF
// makes a browser send a preflight request before a cross-origin request (RFC
// 10017, section 6.1.3.3.2), and no preflight succeeds. Sec-Fetch-Site and
// Origin are checked too.
func csrfHeader(a *app, r *http.Request) error {
	switch v := r.Header["X-Csrf"]; {
	case len(v) == 0:
		return problem.CSRF.WithCause(errors.New("the header X-CSRF is missing"))
	case len(v) != 1 || v[0] != "1":
		return problem.CSRF.WithCause(fmt.Errorf("the header X-CSRF is %.20q, want 1", v))
	}
	if site := r.Header["Sec-Fetch-Site"]; len(site) > 0 && (len(site) != 1 || site[0] != "same-origin") {
		return problem.CSRF.WithCause(fmt.Errorf("Sec-Fetch-Site is %.40q", site))
	}
	return a.originAllowed(r)
}

// sameOrigin accepts a request that the browser marks as made by a page of this
// origin. It is for requests that cannot have a header of their own: forms,
// EventSource, WebSocket, images, downloads. A request without such a mark is
// refused.
func sameOrigin(a *app, r *http.Request) error {
	site, origin := r.Header["Sec-Fetch-Site"], r.Header["Origin"]
	switch {
	case len(site) == 0 && len(origin) == 0:
		return problem.CSRF.WithCause(errors.New("the headers Sec-Fetch-Site and Origin are missing"))
	case len(site) > 0 && (len(site) != 1 || site[0] != "same-origin"):
		return problem.CSRF.WithCause(fmt.Errorf("Sec-Fetch-Site is %.40q", site))
	}
	return a.originAllowed(r)
}

// fetchOrForm accepts a request of a script or of a form of this origin.
func fetchOrForm(a *app, r *http.Request) error {
	if r.Header.Get("X-Csrf") != "" {
		return csrfHeader(a, r)
	}
	return sameOrigin(a, r)
}

// headerOrMetadata is the guard of routes with csrf: auto. It accepts either
// proof that a request comes from this origin: the header for any method, or
// for GET and HEAD, and so for WebSockets, what the browser reports of its
// origin. A navigation that no site has started passes too: the user has typed
// it.
func headerOrMetadata(a *app, r *http.Request) error {
	switch site := r.Header["Sec-Fetch-Site"]; {
	case len(r.Header["X-Csrf"]) > 0, r.Method != http.MethodGet && r.Method != http.MethodHead:
		return csrfHeader(a, r)
	case len(site) == 1 && site[0] == "none" && r.Header.Get("Sec-Fetch-Mode") == "navigate":
		return a.originAllowed(r)
	}
	return sameOrigin(a, r)
}

// originAllowed refuses every Origin but that of the public URL. It accepts a
// request without Origin, which is for the guard to judge. It also accepts the
// Origin null if Sec-Fetch-Site is same-origin: a browser sends that for a form
// of a page whose referrer policy is no-referrer (Fetch, section 3.2).
func (a *app) originAllowed(r *http.Request) error {
	origin := r.Header["Origin"]
	switch {
	case len(origin) == 0, len(origin) == 1 && origin[0] == a.origin:
		return nil
	case len(origin) == 1 && origin[0] == "null" && r.Header.Get("Sec-Fetch-Site") == "same-origin":
		return nil
	}
	return problem.CSRF.WithCause(fmt.Errorf("the Origin is %.80q, want %q", origin, a.origin))
}
