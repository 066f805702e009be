package bff

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/cloakroom-bff/cloakroom/bff/oidc"
	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/session"
)

// login starts an attempt and sends the browser to the provider.
func (a *app) login(w *response, r *http.Request) error {
	w.page, w.login = loginPage, true
	q := parseQueryAsBrowsers(r.URL.RawQuery)
	ownPage := startedByOwnPage(r)
	returnTo := a.returnTo(a.askedPath(q.Get("return_to")), ownPage)
	at := &attempt{ReturnTo: returnTo, OwnPage: ownPage, CrossSite: crossSite(r)}
	a.logReturnTo(w, q.Get("return_to"), at.ReturnTo)
	extra, err := oidc.LoginParameters(q)
	if err != nil {
		return problem.BadLoginParameter.WithCause(err).WithReturnTo(at.ReturnTo)
	}
	if err := a.startLogin(w, r, at, extra); err != nil {
		return problemOf(err).WithReturnTo(at.ReturnTo)
	}
	return nil
}

// logReturnTo logs that the browser is going to be sent to another path than it
// was asked for. A query may have secrets of the app.
func (a *app) logReturnTo(w *response, asked, used string) {
	if asked == "" || asked == a.path(used) {
		return
	}
	path, _, _ := strings.Cut(asked, "?")
	path, _, _ = strings.Cut(path, "#")
	a.log.Info("return_to replaced", "return_to", fmt.Sprintf("%.80q", path), "used", a.path(used),
		"request", w.requestID)
}

// crossSite reports whether another origin sent the browser here, a sibling
// domain included.
func crossSite(r *http.Request) bool {
	site := r.Header.Get("Sec-Fetch-Site")
	return site != "" && site != "same-origin" && site != "none"
}

// recordCurrentSession records in an attempt who is signed in now. It returns
// the prompt that the login needs because of the session that has ended (see
// promptAfterEnd).
func (a *app) recordCurrentSession(r *http.Request, at *attempt) (prompt string, err error) {
	current, err := a.findSession(r)
	if err == nil {
		at.Replaces, at.Subject = current.Ticket(), current.Subject
		return "", nil
	}
	if !errors.Is(err, session.ErrNone) {
		return "", err
	}
	at.Replaces, at.Subject = session.Ticket{}, ""
	return a.promptAfterEnd(r)
}

// startLogin starts an attempt: every login, silent login and restart goes
// through it. It spends one of the client's logins, and adds to the parameters
// what the operator demands of every login.
func (a *app) startLogin(w *response, r *http.Request, at *attempt, extra url.Values) error {
	if err := a.limitLogin(w); err != nil {
		return err
	}
	extra = a.provider.Demand(extra)
	prompt, err := a.recordCurrentSession(r, at)
	if err != nil {
		return err
	}
	if prompt != "" && at.Silent {
		a.finish(w, at, false)
		return nil
	}
	if prompt != "" {
		extra.Set("prompt", addPrompt(extra.Get("prompt"), prompt))
	}
	at.Prompt, at.MaxAge, at.ACRValues = extra.Get("prompt"), extra.Get("max_age"), extra.Get("acr_values")
	if err := a.attempts.prepare(at, a.provider.Config().SenderConstraint == oidc.SenderConstraintDPoP); err != nil {
		return err
	}
	location, err := a.provider.AuthorizationURL(r.Context(), at.request(extra))
	if err != nil {
		return authorizationProblem(err)
	}
	if err := a.attempts.begin(w, r, at); err != nil {
		return err
	}
	a.emit(r.Context(), w.event(LoginStarted, "login started"))
	status := http.StatusFound
	if r.Method == http.MethodPost {
		status = http.StatusSeeOther // RFC 9700 4.12
	}
	http.Redirect(w, r, location, status)
	return nil
}

// callback completes an attempt with the authorization response in the query.
func (a *app) callback(w *response, r *http.Request) error {
	w.page, w.login = loginPage, true
	return a.handleAuthResponse(w, r, r.URL.RawQuery)
}

// callbackForm completes an attempt with a posted response (OAuth 2.0 Form Post
// Response Mode). On a cross-site POST browsers withhold all cookies, that of
// the attempt too. So the first response is a page that posts the same again
// from here.
func (a *app) callbackForm(w *response, r *http.Request) error {
	w.page, w.login = loginPage, true
	r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
	if !isForm(r) {
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
	return a.handleAuthResponse(w, r, form.Encode())
}

// handleAuthResponse completes an attempt with the parameters of an
// authorization response. Whatever is wrong with it, no session that exists is
// touched.
func (a *app) handleAuthResponse(w *response, r *http.Request, parameters string) error {
	if inFrame(r) { // only a silent login ends there, however it ends
		w.page = silentPage
	}
	resp, err := parseAuthResponse(parameters)
	if err != nil {
		return problem.BadCallback.WithCause(err)
	}
	at := a.attempts.find(r, resp.State)
	if at != nil && crossSite(r) && (at.CrossSite || a.underRoute(at.ReturnTo)) {
		return a.relaySameSite(w, resp)
	}
	if at != nil && at.CrossSite {
		prompt, err := a.recordCurrentSession(r, at)
		if err != nil {
			return err
		}
		// The login began without the session cookie. This request has it.
		if resp.Code != "" && addPrompt(at.Prompt, prompt) != at.Prompt {
			a.attempts.drop(w, r, resp.State)
			return a.restart(w, r, at, nil)
		}
	}
	switch {
	case at != nil && at.Silent:
		w.page = silentPage
	case inFrame(r):
		a.attempts.drop(w, r, resp.State)
		return problem.BadCallback.WithCause(errors.New("no silent attempt in this browser has this state"))
	case at == nil:
		a.attempts.drop(w, r, resp.State)
		return a.handleLateResponse(w, r, resp, errors.New("no attempt in this browser has this state"))
	}
	if resp.Code != "" { // the attempt is kept, so that the same response can be sent later
		if wait := a.exchanges.check(addressKey(w.client)); wait > 0 {
			return tooManyExchanges(wait)
		}
	}
	a.attempts.drop(w, r, resp.State)
	a.emit(r.Context(), w.event(LoginReturned, "login returned from the provider"))
	err = a.complete(w, r, resp, at)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errCompletedBefore):
		if at.Silent {
			return err
		}
		return a.handleLateResponse(w, r, resp, err)
	case errors.Is(err, errAuthTooOld) && !at.Restarted && !at.Silent:
		// The provider ignored max_age: prompt=login cannot be ignored.
		return a.restart(w, r, at, url.Values{"prompt": {"login"}})
	case errors.Is(err, errAuthenticationExpired) && !at.Restarted && !at.Silent:
		return a.restart(w, r, at, nil)
	}
	return problemOf(err).WithReturnTo(at.ReturnTo)
}

// isForm reports whether a request has a URL-encoded form as its body.
func isForm(r *http.Request) bool {
	mediaType, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return mediaType == "application/x-www-form-urlencoded"
}

// underRoute reports whether a return_to lies under a route. Such a route only
// accepts a request of the same origin, with the session cookie, so that the
// redirect to it has to come from a page of this origin.
func (a *app) underRoute(returnTo string) bool {
	u, err := url.Parse(returnTo)
	return err == nil && returnTo != "/" && a.anyReadingUnderRoute(u.EscapedPath())
}

// handleLateResponse handles a response to an attempt that is gone: the browser
// has dropped its cookie, or the attempt was completed. If the state is ours,
// and there is a session by now, the browser goes where the login was to lead.
// Otherwise the login starts again, once. cause is the error of a response that
// neither helps.
//
// Any site can send a browser here with a state of its own. So its return_to
// counts as that of another site's login, and so does the new attempt.
func (a *app) handleLateResponse(w *response, r *http.Request, resp authResponse, cause error) error {
	known, ok := a.attempts.openState(resp.State)
	if !ok {
		return problem.BadCallback.WithCause(cause)
	}
	returnTo := a.returnTo(known.returnTo, false)
	current, err := a.findSession(r)
	switch {
	case err == nil:
		w.setSession(current)
		seeOther(w, a.path(returnTo))
		return nil
	case !errors.Is(err, session.ErrNone):
		return problemOf(err).WithReturnTo(returnTo)
	case crossSite(r) && !resp.relayed: // the session cookie may have been withheld
		return a.relaySameSite(w, resp)
	case !known.restarted && (resp.Error == "" || resp.AuthenticationExpired()):
		return a.restart(w, r, &attempt{ReturnTo: returnTo, CrossSite: true}, nil)
	}
	return problem.BadCallback.WithCause(cause).WithReturnTo(returnTo)
}

// restart starts a login again, with what the one before asked for. It happens
// once: the state of a restarted attempt leads to no other.
func (a *app) restart(w *response, r *http.Request, before *attempt, extra url.Values) error {
	at := *before
	at.Restarted = true
	again := url.Values{"prompt": {before.Prompt}, "max_age": {before.MaxAge}, "acr_values": {before.ACRValues}}
	for name := range again {
		if extra.Has(name) {
			again[name] = extra[name]
		}
		if again.Get(name) == "" {
			again.Del(name)
		}
	}
	if err := a.startLogin(w, r, &at, again); err != nil {
		return problemOf(err).WithReturnTo(at.ReturnTo)
	}
	return nil
}

// completeTimeout bounds the work that completes an attempt. It goes on if the
// browser goes away, because it comes back if the user has pressed twice.
const completeTimeout = 45 * time.Second

// complete verifies the authorization response to an attempt and starts a
// session.
func (a *app) complete(w *response, r *http.Request, resp authResponse, at *attempt) error {
	// Before anything else is used, an error response included.
	switch err := a.provider.CheckIssuer(r.Context(), resp.Response); {
	case errors.Is(err, oidc.ErrUnavailable):
		return problem.ProviderUnavailable.WithCause(err)
	case err != nil:
		return problem.BadCallback.WithCause(err)
	}
	if resp.Error != "" {
		return a.handleAuthError(w, resp, at)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), completeTimeout)
	defer cancel()
	keys, first, err := a.consumeAttempt(ctx, at)
	if err != nil {
		return err
	}
	if !first {
		return a.joinLogin(r.Context(), w, keys, at)
	}
	if err := a.startSession(ctx, w, r, resp, at); err != nil {
		a.dropClaim(ctx, keys)
		return err
	}
	a.shareLogin(ctx, w, keys, at)
	a.finish(w, at, true)
	return nil
}

// startSession redeems the code and starts a session for the user that it is
// for.
func (a *app) startSession(ctx context.Context, w *response, r *http.Request, resp authResponse, at *attempt) error {
	address := addressKey(w.client)
	if wait := a.exchanges.take(address); wait > 0 { // exchanges in flight count, for they may fail
		return tooManyExchanges(wait)
	}
	tokens, id, err := a.provider.Exchange(ctx, resp.Code, at.request(nil), at.accept)
	if err != nil {
		if err = tokenErrorProblem(err); errors.Is(err, problem.ProviderUnavailable) {
			a.exchanges.giveBack(address)
		}
		a.revoke(ctx, &session.Session{Tokens: tokens})
		return err
	}
	a.exchanges.giveBack(address)
	started, err := a.sessions.Start(ctx, session.New{
		Issuer: id.Issuer, Subject: id.Subject, SID: id.SID, Claims: id.User, Tokens: tokens,
		ExpiresAt: id.SessionExpiry, Device: deviceName(r.UserAgent()), Began: time.UnixMilli(at.Began),
		Replaces: a.replacedBy(r, at),
		Replaced: func(old *session.Session, kept bool) {
			if !kept {
				a.revocations.Go(func() { a.revoke(ctx, old) }) // the login does not wait for it
			}
		},
	})
	if err != nil {
		a.revoke(ctx, &session.Session{Tokens: tokens})
	}
	if errors.Is(err, session.ErrEnded) {
		return problem.SignedOutMeanwhile
	}
	if err != nil {
		return err
	}
	a.cookie.Write(w, started)
	w.setSession(started)
	a.attempts.replaceNext(w, r, at.State, started)
	return nil
}

// replacedBy returns the tickets of the sessions that the success of an attempt
// replaces: the one that was there when it began, and the one that is there
// now.
func (a *app) replacedBy(r *http.Request, at *attempt) []session.Ticket {
	tickets := []session.Ticket{at.Replaces}
	if current, err := a.findSession(r); err == nil && !current.Ticket().Equal(at.Replaces) {
		tickets = append(tickets, current.Ticket())
	}
	return tickets
}

// finish responds to an attempt that has ended without a fault.
func (a *app) finish(w *response, at *attempt, authenticated bool) {
	if at.Silent {
		writeSilent(w, http.StatusOK, authenticated)
		return
	}
	seeOther(w, a.path(a.returnTo(at.ReturnTo, at.OwnPage))) // the routes may have changed since
}

// seeOther redirects to a path of this origin. Unlike http.Redirect it does not
// clean the path. It only encodes what a URL cannot have: all but ASCII (RFC
// 3986, section 2).
func seeOther(w http.ResponseWriter, path string) {
	var location strings.Builder
	for _, octet := range []byte(path) {
		if octet < utf8.RuneSelf {
			location.WriteByte(octet)
		} else {
			fmt.Fprintf(&location, "%%%02X", octet)
		}
	}
	w.Header().Set("Location", location.String())
	w.WriteHeader(http.StatusSeeOther)
}

// authResponse is an authorization response as it came to the callback.
type authResponse struct {
	oidc.Response
	relayed bool // from a page of this origin
}

// maxAuthResponse is the maximum length of an authorization response. Any
// client can send one, and to parse a long one costs more than to refuse it.
const maxAuthResponse = 16 << 10

// parseAuthResponse reads the parameters of a callback.
func parseAuthResponse(parameters string) (authResponse, error) {
	if len(parameters) > maxAuthResponse {
		return authResponse{}, fmt.Errorf("it has %d bytes, want at most %d", len(parameters), maxAuthResponse)
	}
	q, err := parseQuery(parameters)
	if err != nil {
		return authResponse{}, err
	}
	resp, err := oidc.ParseResponse(q)
	return authResponse{resp, q.Has(relayedParam)}, err
}

// parseQuery is url.ParseQuery for which a semicolon is part of a value, as it
// is for browsers. net/url leaves out the whole parameter.
func parseQuery(raw string) (url.Values, error) {
	return url.ParseQuery(strings.ReplaceAll(raw, ";", "%3B"))
}

// parseQueryAsBrowsers is parseQuery that leaves out nothing: a percent sign
// that begins no escape stands for itself (URL Standard, section 1.3).
func parseQueryAsBrowsers(raw string) url.Values {
	q, err := parseQuery(raw)
	if err == nil {
		return q
	}
	var escaped strings.Builder
	for i := range len(raw) {
		escaped.WriteByte(raw[i])
		if _, err := url.QueryUnescape(raw[i:min(i+3, len(raw))]); raw[i] == '%' && err != nil {
			escaped.WriteString("25")
		}
	}
	q, _ = parseQuery(escaped.String())
	return q
}

// errAuthenticationExpired is a response of Keycloak: the user took longer to
// sign in than it remembers the request. A new request mends that.
var errAuthenticationExpired = errors.New("the sign-in expired at the provider")

// handleAuthError maps an authorization error response to a problem. What the
// provider says is for the log alone.
func (a *app) handleAuthError(w *response, resp authResponse, at *attempt) error {
	cause := fmt.Errorf("the provider responded with error %.40q", resp.Error)
	if resp.Description != "" {
		cause = fmt.Errorf("%w %q", cause, resp.Description)
	}
	if resp.AuthenticationExpired() {
		cause = fmt.Errorf("%w: %w", errAuthenticationExpired, cause)
	}
	if isSilentRefusal(resp.Error) && at.Prompt == "none" {
		e := w.event(LoginRefused, "silent login found no session at the provider")
		e.Reason, e.Cause, e.level = resp.Error, cause.Error(), slog.LevelDebug
		a.emit(context.Background(), e)
		a.finish(w, at, false)
		return nil
	}
	switch resp.Error {
	case "access_denied":
		return problem.LoginCancelled.WithCause(cause)
	case "temporarily_unavailable", "server_error":
		return problem.ProviderUnavailable.WithCause(cause)
	case "unmet_authentication_requirements":
		return problem.LoginTooWeak.WithCause(cause)
	}
	return problem.LoginRefused.WithCause(cause)
}

// isSilentRefusal reports whether an error of the provider is the response to
// prompt=none for a user without a session (OpenID Connect Core, 3.1.2.6).
func isSilentRefusal(code string) bool {
	switch code {
	case "login_required", "interaction_required", "consent_required", "account_selection_required":
		return true
	}
	return false
}

// authorizationProblem maps the error of Client.AuthorizationURL to a problem.
func authorizationProblem(err error) error {
	switch {
	case errors.Is(err, oidc.ErrUnavailable):
		return providerUnavailable(err)
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
	case errors.Is(err, session.ErrNoResponse), errors.Is(err, oidc.ErrUnavailable):
		return providerUnavailable(err)
	case errors.As(err, &unrefreshed) && errors.As(err, &refusal) && refusal.Unavailable():
		return providerUnavailable(err)
	case errors.Is(err, session.ErrRefused), errors.As(err, &refusal):
		return problem.LoginRefused.WithCause(err)
	}
	return problem.LoginInvalid.WithCause(err)
}

// providerUnavailable returns the problem for a provider that does not respond,
// or not now. If the provider says when to retry, the client is told so.
func providerUnavailable(err error) *problem.Problem {
	p := problem.ProviderUnavailable.WithCause(err)
	var unrefreshed *session.RefreshError
	if errors.As(err, &unrefreshed) && unrefreshed.RetryAfter > 0 {
		p = p.WithRetryAfter(unrefreshed.RetryAfter)
	}
	return p
}
