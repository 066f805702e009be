package bff

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/cloakroom-bff/cloakroom/session"
)

// silentLogin finds out in an iframe of the app's whether the provider knows the user, and signs them in if it does, without a word to them. The page that
// comes of it tells the app with a message. A browser in which the provider's cookies do not come along in frames of other sites cannot do it: then
// nobody is signed in, which is always a possible answer.
func (s *Server) silentLogin(w *response, r *http.Request) error {
	w.page = silentPage
	switch _, err := s.sessions.Get(r.Context(), r); {
	case err == nil: // to ask the provider could make another user of this one
		writeSilent(w, true)
		return nil
	case !errors.Is(err, session.ErrNone):
		return err
	}
	return s.toProvider(w, r, &attempt{ReturnTo: "/", Prompt: "none", Silent: true}, url.Values{"prompt": {"none"}})
}

// frame lets an iframe of our own origin through.
func frame(s *Server, r *http.Request) error {
	if dest := r.Header.Get("Sec-Fetch-Dest"); dest != "" && dest != "iframe" {
		return errNavigationOnly.because(fmt.Errorf("Sec-Fetch-Dest is %.40q, want iframe", dest))
	}
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" && site != "same-origin" {
		return errCSRF.because(fmt.Errorf("Sec-Fetch-Site is %.40q", site))
	}
	return nil
}

// inFrame says whether a navigation is that of an iframe.
func inFrame(r *http.Request) bool { return r.Header.Get("Sec-Fetch-Dest") == "iframe" }

// The page that tells the app, and its script, which has to be let in by its hash.
const (
	silentScript = `parent.postMessage({type:"cloakroom:silent-login",authenticated:document.documentElement.dataset.authenticated==="true"},location.origin)`
	silentHTML   = `<!doctype html><html lang="en" data-authenticated="%t"><meta charset="utf-8"><title>Silent sign-in</title><script>` + silentScript + `</script></html>`
)

var silentCSP = "default-src 'none'; script-src " + hashSource(silentScript) + "; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"

func writeSilent(w *response, authenticated bool) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", silentCSP)
	h.Set("X-Frame-Options", "SAMEORIGIN")
	fmt.Fprintf(w, silentHTML, authenticated)
}

// frontchannelLogout ends the session of the browser in which the provider shows this address in an iframe (OpenID Connect Front-Channel Logout 2). It is
// best effort: where the provider is another site than we are, the session cookie does not come along, and then nothing ends. Back-channel logout has no
// such limit. Whoever does not know which session it is ends none.
func (s *Server) frontchannelLogout(w *response, r *http.Request) error {
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors "+s.provider.origin())
	h.Set("Content-Type", "text/html; charset=utf-8")
	q := r.URL.Query()
	iss, sid := q["iss"], q["sid"]
	if len(iss) != 1 || len(sid) != 1 { // 2: both or neither, and we want both
		return errBadFrontchannel.because(fmt.Errorf("iss is there %d times, sid %d times", len(iss), len(sid)))
	}
	current, err := s.sessions.Get(r.Context(), r)
	switch {
	case errors.Is(err, session.ErrNone), err == nil && (current.SID == "" || current.SID != sid[0] || current.Issuer != iss[0]):
		return nil
	case err != nil:
		return err
	}
	ended, err := s.sessions.End(r.Context(), w, r)
	if err != nil || ended == nil {
		return err
	}
	w.session = ended.ID
	s.log.InfoContext(r.Context(), "session ended", "session", ended.ID, "reason", "front-channel logout", "request", w.requestID)
	s.revoke(r.Context(), ended)
	return nil
}
