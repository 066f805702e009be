package bff

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// The guards of the route table. Each looks at one request and says why it may not go on, or nil.

// anyone lets everything through.
func anyone(*Server, *http.Request) error { return nil }

// navigation accepts a top-level navigation of the browser. A script would
// follow the redirect to the provider and fail there with an error that
// explains nothing. A prefetch would start logins that nobody asked for.
//
// The mode navigate proves a navigation, whatever its destination: that is empty
// if a service worker of the app passes the navigation on with
// fetch(event.request). Only frames are refused.
func navigation(_ *Server, r *http.Request) error {
	h := r.Header
	mode, dest := h.Get("Sec-Fetch-Mode"), h.Get("Sec-Fetch-Dest")
	for _, name := range []string{"Sec-Purpose", "Purpose", "X-Moz"} {
		if purpose := h.Get(name); strings.Contains(purpose, "prefetch") {
			return errNavigationOnly.because(fmt.Errorf("%s is %.40q", name, purpose))
		}
	}
	switch {
	case mode != "" && mode != "navigate":
		return errNavigationOnly.because(fmt.Errorf("Sec-Fetch-Mode is %.40q", mode))
	case frameDestinations[dest], mode == "" && dest != "" && dest != "document":
		return errNavigationOnly.because(fmt.Errorf("Sec-Fetch-Dest is %.40q", dest))
	}
	switch {
	case h.Get("X-Csrf") != "", h.Get("X-Requested-With") != "":
		return errNavigationOnly.because(errors.New("a script sent it: X-CSRF or X-Requested-With is set"))
	case mode == "" && prefersJSON(r):
		return errNavigationOnly.because(errors.New("Accept asks for JSON"))
	}
	return nil
}

// frameDestinations are the values of Sec-Fetch-Dest of navigations that are not
// top-level ones (Fetch Metadata 2.1).
var frameDestinations = map[string]bool{"iframe": true, "frame": true, "fencedframe": true, "embed": true, "object": true}

// unlessHead returns a handler that responds to HEAD with 200 and nothing else.
// It is for endpoints whose GET starts or ends something.
func unlessHead(serve func(*Server, *response, *http.Request) error) func(*Server, *response, *http.Request) error {
	return func(s *Server, w *response, r *http.Request) error {
		if r.Method == http.MethodHead {
			w.WriteHeader(http.StatusOK)
			return nil
		}
		return serve(s, w, r)
	}
}

// returning lets the browser itself through on its way back from the provider, also in an iframe, where a silent login ends.
func returning(s *Server, r *http.Request) error {
	if inFrame(r) {
		return nil
	}
	return navigation(s, r)
}

// fetch lets a script of our own origin through. The header X-CSRF makes a browser ask before it sends such a request for
// another origin (RFC 10017 6.1.3.3.2), which is never allowed; what the browser says of where it comes from is checked besides.
func fetch(s *Server, r *http.Request) error {
	if v := r.Header.Values("X-Csrf"); len(v) != 1 || v[0] != "1" {
		return errCSRF.because(fmt.Errorf("X-CSRF is %.20q", v))
	}
	if site := r.Header.Values("Sec-Fetch-Site"); len(site) > 0 && (len(site) != 1 || site[0] != "same-origin") {
		return errCSRF.because(fmt.Errorf("Sec-Fetch-Site is %.40q", site))
	}
	return s.originAllowed(r)
}

// sameOrigin lets a request through of which the browser says that a page of our origin made it. It is for what cannot send a
// header: forms, EventSource, WebSocket, images, downloads. A browser that says nothing is not believed.
func sameOrigin(s *Server, r *http.Request) error {
	site, origin := r.Header.Values("Sec-Fetch-Site"), r.Header.Values("Origin")
	switch {
	case len(site) == 0 && len(origin) == 0:
		return errCSRF.because(errors.New("neither Sec-Fetch-Site nor Origin is there"))
	case len(site) > 0 && (len(site) != 1 || site[0] != "same-origin"):
		return errCSRF.because(fmt.Errorf("Sec-Fetch-Site is %.40q", site))
	}
	return s.originAllowed(r)
}

// fetchOrForm lets a script or a form of our own origin through.
func fetchOrForm(s *Server, r *http.Request) error {
	if r.Header.Get("X-Csrf") != "" {
		return fetch(s, r)
	}
	return sameOrigin(s, r)
}

// originAllowed refuses every Origin but our own. A request without one passes: that is for the guard to judge. So does the Origin null where
// Sec-Fetch-Site has been seen to be same-origin: a browser sends that for a form of a page with the referrer policy no-referrer (Fetch 3.2).
func (s *Server) originAllowed(r *http.Request) error {
	origin := r.Header.Values("Origin")
	switch {
	case len(origin) == 0, len(origin) == 1 && origin[0] == s.origin:
		return nil
	case len(origin) == 1 && origin[0] == "null" && r.Header.Get("Sec-Fetch-Site") == "same-origin":
		return nil
	}
	return errCSRF.because(fmt.Errorf("the Origin is %.80q, want %q", origin, s.origin))
}
