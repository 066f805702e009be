package bff

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// Requests that bring an access token of their own, as those of machines and of apps that are no web pages do.

// bringsToken says whether a request has an access token in its header (RFC 6750 2.1, RFC 9449 7.1).
func bringsToken(r *http.Request) bool {
	for _, credentials := range r.Header["Authorization"] {
		scheme, _, _ := strings.Cut(credentials, " ")
		if strings.EqualFold(scheme, "Bearer") || strings.EqualFold(scheme, "DPoP") {
			return true
		}
	}
	return false
}

// fromNoPage is the guard of a request with a token of its own, to which a browser adds nothing by itself, so that X-CSRF would prove no more. A page of another site cannot make such a
// request, for we allow no other origin anything; where a browser says that one has, it is refused all the same.
func fromNoPage(s *Server, r *http.Request) error {
	if len(r.CookiesNamed(s.sessions.CookieName())) > 0 { // which of the two it is for is not for us to say
		return errTwoCredentials
	}
	if site := r.Header.Values("Sec-Fetch-Site"); len(site) > 1 || len(site) == 1 && site[0] != "same-origin" && site[0] != "none" {
		return errCSRF.because(fmt.Errorf("Sec-Fetch-Site is %.40q", site))
	}
	return s.originAllowed(r)
}

// proxyWithOwnToken hands a request on with the token that it brings, if the route's verifier accepts it, which otherwise answers.
func (s *Server) proxyWithOwnToken(w *response, r *http.Request, route *route) (err error) {
	if queryHas(r.URL.RawQuery, "access_token") { // RFC 6750 2: one token, one way
		return errTokenInQuery
	}
	accepted := false
	route.AcceptBearer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		accepted = true
		err = s.exchange(w, r, route, nil, accessToken{header: r.Header["Authorization"], callers: true})
	})).ServeHTTP(w, r)
	if !accepted { // it has answered; the reason is for the log
		refused := errOwnToken.because(errors.New(w.Header().Get("WWW-Authenticate")))
		refused.status = w.status
		w.problem = refused
		boundBody(w, r)
	}
	return err
}
