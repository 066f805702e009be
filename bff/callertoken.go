package bff

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/bff/proxy"
)

// Requests that carry an access token of their own, as machines and native apps
// send them.

// hasBearerToken reports whether a request has an access token in its header
// (RFC 6750, section 2.1; RFC 9449, section 7.1).
func hasBearerToken(r *http.Request) bool {
	for _, credentials := range r.Header["Authorization"] {
		scheme, _, _ := strings.Cut(credentials, " ")
		if strings.EqualFold(scheme, "Bearer") || strings.EqualFold(scheme, "DPoP") {
			return true
		}
	}
	return false
}

// notFromBrowser guards requests with an access token of their own. Browsers
// never add one by themselves, so no CSRF header is needed. Cross-site requests
// are refused nevertheless. With a session cookie besides, it would be unclear
// which of the two counts.
func notFromBrowser(a *app, r *http.Request) error {
	if len(r.CookiesNamed(a.cookie.Name())) > 0 {
		return problem.TwoCredentials
	}
	site := r.Header.Values("Sec-Fetch-Site")
	if len(site) > 1 || len(site) == 1 && site[0] != "same-origin" && site[0] != "none" {
		return problem.CSRF.WithCause(fmt.Errorf("Sec-Fetch-Site is %.40q", site))
	}
	return a.originAllowed(r)
}

// proxyWithCallerToken forwards a request with the token that it carries if the
// route's verifier accepts the token. Otherwise the verifier has responded.
func (a *app) proxyWithCallerToken(w *response, r *http.Request, route *route) (err error) {
	if err := a.checkRequest(w, r, route, notFromBrowser); err != nil {
		return err
	}
	accepted := false
	route.AcceptBearer(http.HandlerFunc(func(_ http.ResponseWriter, verified *http.Request) {
		accepted = true
		err = a.forward(w, r.WithContext(verified.Context()), route, proxy.Options{PassAuthorization: true})
	})).ServeHTTP(w, a.withBase(r)) // a DPoP proof is for the URL that the caller sees
	if !accepted {
		refused := &problem.Problem{Status: w.status, Code: "own_token"}
		why := cmp.Or(w.Header().Get("WWW-Authenticate"), "access tokens cannot be verified now")
		w.problem = refused.WithCause(errors.New(why))
		limitBodyTime(w, r)
	}
	return err
}
