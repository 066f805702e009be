package bff

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/session"
)

// silentLogin starts a login with prompt=none in an iframe of the app. The
// resulting page posts a message with the outcome to the app. A browser that
// withholds the provider's cookies in frames of other sites reports that the
// user is not signed in.
func (a *app) silentLogin(w *response, r *http.Request) error {
	w.page, w.login = silentPage, true
	switch _, err := a.findSession(r); {
	case err == nil: // the provider could have another user by now
		writeSilent(w, http.StatusOK, true)
		return nil
	case !errors.Is(err, session.ErrNone):
		return err
	}
	silent := url.Values{"prompt": {"none"}}
	if prompt := a.provider.Demand(silent).Get("prompt"); prompt != "none" {
		return problem.LoginTooWeak.WithCause(fmt.Errorf("prompt=%s in the authorization parameters "+
			"(oidc.authorization_parameters) rules out a silent login", prompt))
	}
	return a.startLogin(w, r, &attempt{ReturnTo: "/", Silent: true}, silent)
}

// sameOriginFrame accepts an iframe of this origin. The destination is empty if
// a service worker of the app passes its navigation on. What a script could
// have set counts only if Fetch Metadata do not name a navigation.
func sameOriginFrame(a *app, r *http.Request) error {
	mode, dest := r.Header.Get("Sec-Fetch-Mode"), r.Header.Get("Sec-Fetch-Dest")
	if dest != "" && dest != "iframe" && !(dest == "empty" && mode == "navigate") {
		return problem.NavigationOnly.WithCause(fmt.Errorf("Sec-Fetch-Dest is %.40q, want iframe", dest))
	}
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" && site != "same-origin" {
		return problem.CSRF.WithCause(fmt.Errorf("Sec-Fetch-Site is %.40q", site))
	}
	if err := notPrefetched(r); err != nil || mode == "navigate" {
		return err
	}
	return notFromScript(r)
}

// inFrame reports whether a request is the navigation of an iframe.
func inFrame(r *http.Request) bool { return r.Header.Get("Sec-Fetch-Dest") == "iframe" }

// The page that posts the outcome to the app. silentCSP allows its script by
// hash.
const (
	silentScript = `parent.postMessage({type:"cloakroom:silent-login",` +
		`authenticated:document.documentElement.dataset.authenticated==="true"},location.origin)`
	silentHTML = `<!doctype html><html lang="en" data-authenticated="%t"><meta charset="utf-8">` +
		`<title>Silent sign-in</title><script>` + silentScript + `</script></html>`
)

var silentCSP = "default-src 'none'; script-src " + hashSource(silentScript) +
	"; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"

func writeSilent(w *response, status int, authenticated bool) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", silentCSP)
	h.Set("X-Frame-Options", "SAMEORIGIN")
	w.WriteHeader(status)
	fmt.Fprintf(w, silentHTML, authenticated)
}

// frontchannelLogout ends the session of the browser in which the provider
// loads this endpoint in an iframe (OpenID Connect Front-Channel Logout 2). The
// response is 200 only if the session has ended or there was none. It is an
// error
//   - without iss and sid: any page could end the session;
//   - if they are not those of this browser's session, which goes on;
//   - in a frame of another site: browsers withhold the session cookie there,
//     so that nothing can be ended. Back-channel logout has no such limit.
func (a *app) frontchannelLogout(w *response, r *http.Request) error {
	r = uncancelled(r)
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors "+a.provider.IssuerOrigin())
	h.Set("Content-Type", "text/html; charset=utf-8")
	q := r.URL.Query()
	iss, sid := q["iss"], q["sid"]
	if len(iss) != 1 || len(sid) != 1 { // 2: both or neither, and we want both
		return problem.BadFrontchannelLogout.WithCause(fmt.Errorf("iss is there %d times, sid %d times",
			len(iss), len(sid)))
	}
	current, err := a.findSession(r)
	switch {
	case errors.Is(err, session.ErrNone):
		if site := r.Header.Get("Sec-Fetch-Site"); site == "cross-site" && !a.hasSessionCookie(r) {
			return problem.BadFrontchannelLogout.WithCause(errors.New("Sec-Fetch-Site is cross-site, " +
				"where browsers send no session cookie (use back-channel logout)"))
		}
		return nil
	case err != nil:
		return err
	case current.SID == "" || current.SID != sid[0] || current.Issuer != iss[0]:
		return problem.BadFrontchannelLogout.WithCause(errors.New("iss and sid are not those of the session"))
	}
	ended, err := a.endSession(w, r, session.ReasonFrontchannel)
	if err != nil || ended == nil {
		return err
	}
	w.setSession(ended)
	a.revoke(r.Context(), ended)
	return nil
}
