package bff

import (
	"context"
	"errors"
	"fmt"
	"html/template"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/oidc"
	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/session"
)

// login starts an attempt and sends the browser to the provider.
func (s *Server) login(w *response, r *http.Request) error {
	w.page = loginPage
	q := r.URL.Query()
	ownPage := startedByOwnPage(r)
	a := &attempt{ReturnTo: s.returnTo(q.Get("return_to"), ownPage), OwnPage: ownPage, CrossSite: crossSite(r)}
	s.logReturnTo(w, q.Get("return_to"), a.ReturnTo)
	extra, err := oidc.LoginParameters(q)
	if err != nil {
		return problem.BadLoginParameter.WithCause(err).WithReturnTo(a.ReturnTo)
	}
	if err := s.startLogin(w, r, a, extra); err != nil {
		return problemOf(err).WithReturnTo(a.ReturnTo)
	}
	return nil
}

// logReturnTo logs that the browser is going to be sent to another path than it
// was asked for. A query may have secrets of the app.
func (s *Server) logReturnTo(w *response, asked, used string) {
	if asked == "" || asked == used {
		return
	}
	path, _, _ := strings.Cut(asked, "?")
	path, _, _ = strings.Cut(path, "#")
	s.log.Info("return_to replaced", "return_to", fmt.Sprintf("%.80q", path), "used", used, "request", w.requestID)
}

// crossSite reports whether another origin sent the browser here, a sibling
// domain included.
func crossSite(r *http.Request) bool {
	site := r.Header.Get("Sec-Fetch-Site")
	return site != "" && site != "same-origin" && site != "none"
}

// recordCurrentSession records in an attempt who is signed in now.
func (s *Server) recordCurrentSession(r *http.Request, a *attempt) error {
	current, err := s.findSession(r)
	switch {
	case err == nil:
		a.Replaces, a.Subject = current.Ticket(), current.Subject
	case errors.Is(err, session.ErrNone):
		a.Replaces, a.Subject = session.Ticket{}, ""
	default:
		return err
	}
	return nil
}

// startLogin starts an attempt: every login, silent login and restart goes
// through it. It spends one of the client's logins, and adds to the parameters
// what the operator demands of every login.
func (s *Server) startLogin(w *response, r *http.Request, a *attempt, extra url.Values) error {
	if err := s.limitLogin(w); err != nil {
		return err
	}
	extra = s.provider.Demand(extra)
	a.Prompt, a.MaxAge, a.ACRValues = extra.Get("prompt"), extra.Get("max_age"), extra.Get("acr_values")
	if err := s.recordCurrentSession(r, a); err != nil {
		return err
	}
	if err := s.attempts.prepare(a, s.provider.Config().SenderConstraint == "dpop"); err != nil {
		return err
	}
	location, err := s.provider.AuthorizationURL(r.Context(), a.request(extra))
	if err != nil {
		return authorizationProblem(err)
	}
	if err := s.attempts.begin(w, r, a); err != nil {
		return err
	}
	status := http.StatusFound
	if r.Method == http.MethodPost {
		status = http.StatusSeeOther // RFC 9700 4.12
	}
	http.Redirect(w, r, location, status)
	return nil
}

// callback completes an attempt with the authorization response in the query.
func (s *Server) callback(w *response, r *http.Request) error {
	if s.provider.Config().ResponseMode != "query" {
		return problem.MethodNotAllowed
	}
	w.page = loginPage
	return s.handleAuthResponse(w, r, r.URL.RawQuery)
}

// callbackForm completes an attempt with a posted response (OAuth 2.0 Form Post
// Response Mode). On a cross-site POST browsers withhold all cookies, that of
// the attempt too. So the first response is a page that posts the same again
// from here.
func (s *Server) callbackForm(w *response, r *http.Request) error {
	if s.provider.Config().ResponseMode != "form_post" {
		return problem.MethodNotAllowed
	}
	w.page = loginPage
	r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
	if mediaType, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); mediaType != "application/x-www-form-urlencoded" {
		return problem.BadCallback.WithCause(fmt.Errorf("the Content-Type is %.80q", r.Header.Get("Content-Type")))
	}
	if err := r.ParseForm(); err != nil {
		return problem.BadCallback.WithCause(err)
	}
	form := r.PostForm
	if !form.Has(relayedParam) {
		writeRelayForm(w, form)
		return nil
	}
	return s.handleAuthResponse(w, r, form.Encode())
}

// handleAuthResponse completes an attempt with the parameters of an
// authorization response. Whatever is wrong with it, no session that exists is
// touched.
func (s *Server) handleAuthResponse(w *response, r *http.Request, parameters string) error {
	if inFrame(r) { // only a silent login ends there, however it ends
		w.page = silentPage
	}
	resp, err := parseAuthResponse(parameters)
	if err != nil {
		return problem.BadCallback.WithCause(err)
	}
	a := s.attempts.find(r, resp.State)
	if a != nil && crossSite(r) && (a.CrossSite || s.underRoute(a.ReturnTo)) {
		return s.relaySameSite(w, resp)
	}
	if a != nil && a.CrossSite {
		if err := s.recordCurrentSession(r, a); err != nil {
			return err
		}
	}
	switch {
	case a != nil && a.Silent:
		w.page = silentPage
	case inFrame(r):
		s.attempts.drop(w, r, resp.State)
		return problem.BadCallback.WithCause(errors.New("no silent attempt in this browser has this state"))
	case a == nil:
		s.attempts.drop(w, r, resp.State)
		return s.handleLateResponse(w, r, resp, errors.New("no attempt in this browser has this state"))
	}
	if resp.Code != "" { // the attempt is kept, so that the same response can be sent later
		if wait := s.exchanges.check(addressKey(w.client)); wait > 0 {
			return tooManyExchanges(wait)
		}
	}
	s.attempts.drop(w, r, resp.State)
	err = s.complete(w, r, resp, a)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errCompletedBefore):
		if a.Silent {
			return err
		}
		return s.handleLateResponse(w, r, resp, err)
	case errors.Is(err, errAuthTooOld) && !a.Restarted && !a.Silent: // the provider ignored max_age: ask for what it cannot overlook
		return s.restart(w, r, a, url.Values{"prompt": {"login"}})
	case errors.Is(err, errAuthenticationExpired) && !a.Restarted && !a.Silent:
		return s.restart(w, r, a, nil)
	}
	return problemOf(err).WithReturnTo(a.ReturnTo)
}

// underRoute reports whether a return_to lies under a route. Such a route only
// accepts a request of the same origin, with the session cookie, so that the
// redirect to it has to come from a page of this origin.
func (s *Server) underRoute(returnTo string) bool {
	u, err := url.Parse(returnTo)
	return err == nil && returnTo != "/" && s.anyReadingUnderRoute(u.EscapedPath())
}

// handleLateResponse handles a response to an attempt that is gone: the browser
// has dropped its cookie, or the attempt was completed. If the state is ours,
// and there is a session by now, the browser goes where the login was to lead.
// Otherwise the login starts again, once. cause is the error of a response that
// neither helps.
//
// Anybody can send a browser here with a state of their own. So its return_to
// counts as that of another site's login, and so does the new attempt.
func (s *Server) handleLateResponse(w *response, r *http.Request, resp authResponse, cause error) error {
	known, ok := s.attempts.openState(resp.State)
	if !ok {
		return problem.BadCallback.WithCause(cause)
	}
	returnTo := s.returnTo(known.returnTo, false)
	current, err := s.findSession(r)
	switch {
	case err == nil:
		w.session = current.ID
		seeOther(w, returnTo)
		return nil
	case !errors.Is(err, session.ErrNone):
		return problemOf(err).WithReturnTo(returnTo)
	case crossSite(r) && !resp.relayed: // the session cookie may have been withheld
		return s.relaySameSite(w, resp)
	case !known.restarted && (resp.Error == "" || resp.AuthenticationExpired()):
		return s.restart(w, r, &attempt{ReturnTo: returnTo, CrossSite: true}, nil)
	}
	return problem.BadCallback.WithCause(cause).WithReturnTo(returnTo)
}

// restart starts a login again, with what the one before asked for. It happens
// once: the state of a restarted attempt leads to no other.
func (s *Server) restart(w *response, r *http.Request, before *attempt, extra url.Values) error {
	a := *before
	a.Restarted = true
	again := url.Values{"prompt": {before.Prompt}, "max_age": {before.MaxAge}, "acr_values": {before.ACRValues}}
	for name := range again {
		if extra.Has(name) {
			again[name] = extra[name]
		}
		if again.Get(name) == "" {
			again.Del(name)
		}
	}
	if err := s.startLogin(w, r, &a, again); err != nil {
		return problemOf(err).WithReturnTo(a.ReturnTo)
	}
	return nil
}

// completeTimeout bounds the work that completes an attempt. It goes on if the
// browser goes away, because it comes back if the user has pressed twice.
const completeTimeout = 45 * time.Second

// complete verifies the authorization response to an attempt and starts a
// session.
func (s *Server) complete(w *response, r *http.Request, resp authResponse, a *attempt) error {
	// Before anything else is used, an error response included.
	switch err := s.provider.CheckIssuer(resp.Response); {
	case errors.Is(err, oidc.ErrUnavailable):
		return problem.ProviderUnavailable.WithCause(err)
	case err != nil:
		return problem.BadCallback.WithCause(err)
	}
	if resp.Error != "" {
		return s.handleAuthError(w, resp, a)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), completeTimeout)
	defer cancel()
	keys, first, err := s.consumeAttempt(ctx, a)
	if err != nil {
		return err
	}
	if !first {
		return s.joinLogin(r.Context(), w, keys, a)
	}
	if err := s.startSession(ctx, w, r, resp, a); err != nil {
		s.dropClaim(ctx, keys)
		return err
	}
	s.shareLogin(ctx, w, keys, a)
	s.finish(w, a, true)
	return nil
}

// startSession redeems the code and starts a session for the user that it is
// for.
func (s *Server) startSession(ctx context.Context, w *response, r *http.Request, resp authResponse, a *attempt) error {
	address := addressKey(w.client)
	if wait := s.exchanges.take(address); wait > 0 { // exchanges in flight count, for they may fail
		return tooManyExchanges(wait)
	}
	tokens, id, err := s.provider.Exchange(ctx, resp.Code, a.request(nil), a.accept)
	if err != nil {
		if err = tokenErrorProblem(err); errors.Is(err, problem.ProviderUnavailable) {
			s.exchanges.giveBack(address)
		}
		s.revoke(ctx, &session.Session{Tokens: tokens})
		return err
	}
	s.exchanges.giveBack(address)
	started, err := s.sessions.Start(ctx, session.New{
		Issuer: id.Issuer, Subject: id.Subject, SID: id.SID, Claims: id.User, Tokens: tokens,
		ExpiresAt: id.SessionExpiry, Began: time.UnixMilli(a.Began),
		Replaces: s.replacedBy(r, a),
		Replaced: func(old *session.Session, kept bool) {
			if !kept {
				s.revocations.Go(func() { s.revoke(ctx, old) }) // the login does not wait for it
			}
		},
	})
	if err != nil {
		s.revoke(ctx, &session.Session{Tokens: tokens})
	}
	if errors.Is(err, session.ErrEnded) {
		return problem.SignedOutMeanwhile
	}
	if err != nil {
		return err
	}
	s.cookie.Write(w, started)
	w.session = started.ID
	s.attempts.replaceNext(w, r, a.State, started)
	return nil
}

// replacedBy returns the tickets of the sessions that the success of an attempt
// replaces: the one that was there when it began, and the one that is there
// now.
func (s *Server) replacedBy(r *http.Request, a *attempt) []session.Ticket {
	tickets := []session.Ticket{a.Replaces}
	if current, err := s.findSession(r); err == nil && !current.Ticket().Equal(a.Replaces) {
		tickets = append(tickets, current.Ticket())
	}
	return tickets
}

// finish responds to an attempt that has ended without a fault.
func (s *Server) finish(w *response, a *attempt, authenticated bool) {
	if a.Silent {
		writeSilent(w, http.StatusOK, authenticated)
		return
	}
	seeOther(w, s.returnTo(a.ReturnTo, a.OwnPage)) // the routes may have changed since
}

// seeOther redirects to a path of this origin without changing it.
// http.Redirect would clean it.
func seeOther(w http.ResponseWriter, path string) {
	w.Header().Set("Location", path)
	w.WriteHeader(http.StatusSeeOther)
}

// authResponse is an authorization response as it came to the callback.
type authResponse struct {
	oidc.Response
	relayed bool // from a page of this origin
}

// parseAuthResponse reads the parameters of a callback. A semicolon, which
// net/url refuses, is part of a value.
func parseAuthResponse(parameters string) (authResponse, error) {
	q, err := url.ParseQuery(strings.ReplaceAll(parameters, ";", "%3B"))
	if err != nil {
		return authResponse{}, err
	}
	resp, err := oidc.ParseResponse(q)
	return authResponse{resp, q.Has(relayedParam)}, err
}

// relayedParam is the parameter of a response that was relayed.
const relayedParam = "cloakroom_again"

var relayHTML = template.Must(template.New("relay").Parse(`<!doctype html><html lang="en"><meta charset="utf-8"><title>Signing in</title>` +
	`<meta http-equiv="refresh" content="0;url={{.}}"><a href="{{.}}">Continue</a></html>`))

// relaySameSite has the browser send the authorization response again, from a
// page of this origin. On the navigation from the provider a browser withholds
// a Strict session cookie. Without it nobody could tell whose session the login
// of another site is about to replace, or whether a session exists by now, and
// a route would refuse the redirect that follows.
func (s *Server) relaySameSite(w *response, resp authResponse) error {
	if resp.relayed {
		return problem.BadCallback.WithCause(errors.New("it does not come from the page that should have sent it on"))
	}
	q := url.Values{relayedParam: {"1"}, "state": {resp.State}}
	for name, value := range map[string]string{"code": resp.Code, "error": resp.Error, "error_description": resp.Description} {
		if value != "" {
			q.Set(name, value)
		}
	}
	if resp.HasIssuer {
		q.Set("iss", resp.Issuer)
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("X-Frame-Options", "DENY")
	return relayHTML.Execute(w, s.prefix+"/callback?"+q.Encode())
}

const relayScript = `document.forms[0].submit()`

var (
	relayFormCSP  = "default-src 'none'; script-src " + hashSource(relayScript) + "; base-uri 'none'; frame-ancestors 'self'" // without form-action, which Chromium applies to where the provider is too, should the login begin anew
	relayFormHTML = template.Must(template.New("again").Parse(`<!doctype html><html lang="en"><meta charset="utf-8"><title>Signing in</title>` +
		`<form method="post">{{range $name, $value := .}}<input type="hidden" name="{{$name}}" value="{{$value}}">{{end}}<noscript><button>Continue</button></noscript></form>` +
		`<script>` + relayScript + `</script></html>`))
)

// writeRelayForm writes a page that posts the authorization response again,
// without the other fields of the form.
func writeRelayForm(w *response, form url.Values) {
	fields := map[string]string{relayedParam: "1"}
	for _, name := range []string{"state", "code", "error", "iss"} {
		if len(form[name]) == 1 {
			fields[name] = form.Get(name)
		} else if len(form[name]) > 1 {
			fields["state"] = "" // it is refused, as it would be from the query
			break
		}
	}
	if text := oidc.CleanDescription(form.Get("error_description")); text != "" {
		fields["error_description"] = text
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", relayFormCSP)
	relayFormHTML.Execute(w, fields)
}

// errAuthenticationExpired is a response of Keycloak: the user took longer to
// sign in than it remembers the request. A new request mends that.
var errAuthenticationExpired = errors.New("the sign-in expired at the provider")

// handleAuthError maps an authorization error response to a problem. What the
// provider says is for the log alone.
func (s *Server) handleAuthError(w *response, resp authResponse, a *attempt) error {
	cause := fmt.Errorf("the provider answered %.40q", resp.Error)
	if resp.Description != "" {
		cause = fmt.Errorf("%w %q", cause, resp.Description)
	}
	if resp.AuthenticationExpired() {
		cause = fmt.Errorf("%w: %w", errAuthenticationExpired, cause)
	}
	switch resp.Error {
	case "login_required", "interaction_required", "consent_required", "account_selection_required":
		if a.Prompt == "none" { // OpenID Connect Core 3.1.2.6: nobody is signed in, which is an answer
			s.finish(w, a, false)
			return nil
		}
	case "access_denied":
		return problem.LoginCancelled.WithCause(cause)
	case "temporarily_unavailable", "server_error":
		return problem.ProviderUnavailable.WithCause(cause)
	case "unmet_authentication_requirements":
		return problem.LoginTooWeak.WithCause(cause)
	}
	return problem.LoginRefused.WithCause(cause)
}

// authorizationProblem maps the error of Client.AuthorizationURL to a problem.
func authorizationProblem(err error) error {
	switch {
	case errors.Is(err, oidc.ErrUnavailable):
		return problem.ProviderUnavailable.WithCause(err)
	case errors.Is(err, oidc.ErrRefused):
		return problem.LoginRefused.WithCause(err)
	}
	return err
}

// tokenErrorProblem maps the error of a code exchange to a problem.
func tokenErrorProblem(err error) error {
	var unrefreshed *session.RefreshError
	var known *problem.Problem
	var refusal *oidc.Error
	switch {
	case errors.As(err, &known):
		return err
	case errors.Is(err, session.ErrNoAnswer), errors.Is(err, oidc.ErrUnavailable):
		return problem.ProviderUnavailable.WithCause(err)
	case errors.As(err, &unrefreshed) && errors.As(err, &refusal) && refusal.Unavailable():
		return problem.ProviderUnavailable.WithCause(err)
	case errors.Is(err, session.ErrRefused), errors.As(err, &refusal):
		return problem.LoginRefused.WithCause(err)
	}
	return problem.LoginInvalid.WithCause(err)
}

// accept fails unless the user signed in as the attempt asked (OpenID Connect
// Core, section 3.1.3.7). An attempt of another site does not change who is
// signed in.
func (a *attempt) accept(id *oidc.Identity) error {
	if a.ACRValues != "" && !slices.Contains(strings.Fields(a.ACRValues), id.ACR) { // (12)
		return problem.LoginTooWeak.WithCause(fmt.Errorf("ID token: acr is %q, asked for was %q", id.ACR, a.ACRValues))
	}
	if a.MaxAge != "" { // (13)
		if id.AuthTime.IsZero() {
			return problem.LoginInvalid.WithCause(errors.New("ID token: auth_time is missing or no date, and max_age was sent"))
		}
		if time.Until(id.AuthTime) > oidc.ClockSkew {
			return problem.LoginInvalid.WithCause(errors.New("ID token: auth_time is ahead of our clock"))
		}
		seconds, _ := strconv.Atoi(a.MaxAge)
		if age := time.Since(id.AuthTime); age > time.Duration(seconds)*time.Second+oidc.ClockSkew {
			return errAuthTooOld
		}
	}
	if a.CrossSite && a.Subject != "" && a.Subject != id.Subject {
		return problem.OtherAccount
	}
	return nil
}

// errAuthTooOld means that the user signed in longer ago than max_age allows.
var errAuthTooOld = problem.LoginTooWeak.WithCause(errors.New("ID token: auth_time is longer ago than max_age"))
