package bff

import (
	"context"
	"errors"
	"fmt"
	"html/template"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"

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
	extra, err := loginParameters(q)
	if err != nil {
		return problem.BadLoginParameter.WithCause(err).WithReturnTo(a.ReturnTo)
	}
	if err := s.toProvider(w, r, a, extra); err != nil {
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

// noteCurrent notes in an attempt who is signed in now.
func (s *Server) noteCurrent(r *http.Request, a *attempt) error {
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

// toProvider starts an attempt: every login, silent login and restart goes
// through it. It spends one of the client's logins, and adds to the parameters
// what the operator demands of every login.
func (s *Server) toProvider(w *response, r *http.Request, a *attempt, extra url.Values) error {
	if err := s.limitLogin(w); err != nil {
		return err
	}
	extra = s.provider.demand(extra)
	a.Prompt, a.MaxAge, a.ACRValues = extra.Get("prompt"), extra.Get("max_age"), extra.Get("acr_values")
	if err := s.noteCurrent(r, a); err != nil {
		return err
	}
	if err := s.attempts.prepare(a, s.provider.cfg.SenderConstraint == "dpop"); err != nil {
		return err
	}
	location, err := s.provider.authURL(r.Context(), a, extra)
	if err != nil {
		return err
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

// loginParameters returns what of a login link goes on to the provider (OpenID Connect Core 3.1.2.1). What is not named here is ignored: an app's
// link does not choose client, scope or redirect URI.
func loginParameters(q url.Values) (url.Values, error) {
	extra := make(url.Values)
	for _, name := range []string{"prompt", "login_hint", "acr_values", "max_age", "ui_locales"} {
		value := q.Get(name)
		if value == "" {
			continue
		}
		if len(value) > 256 || strings.ContainsFunc(value, func(c rune) bool { return c < ' ' || c == 0x7f }) {
			return nil, fmt.Errorf("%s is longer than 256 bytes or holds control characters", name)
		}
		extra.Set(name, value)
	}
	if prompt := extra.Get("prompt"); prompt != "" {
		for _, p := range strings.Fields(prompt) {
			switch p {
			case "login", "consent", "select_account", "create":
			case "none":
				if prompt != "none" {
					return nil, fmt.Errorf("prompt %q has none beside others", prompt)
				}
			default:
				return nil, fmt.Errorf("prompt %q is not one", p)
			}
		}
	}
	if maxAge := extra.Get("max_age"); maxAge != "" {
		if n, err := strconv.Atoi(maxAge); err != nil || n < 0 || n > 1e9 {
			return nil, fmt.Errorf("max_age %q is not a number of seconds", maxAge)
		}
	}
	return extra, nil
}

// callback completes an attempt with what the provider says in the query.
func (s *Server) callback(w *response, r *http.Request) error {
	if s.provider.cfg.ResponseMode != "query" {
		return problem.MethodNotAllowed
	}
	w.page = loginPage
	return s.answered(w, r, r.URL.RawQuery)
}

// callbackForm completes an attempt with what the provider has the browser post (OAuth 2.0 Form Post Response Mode). As the browser comes from another site its
// cookies, the attempt's among them, have stayed away, so the page that it gets posts the same once more from here.
func (s *Server) callbackForm(w *response, r *http.Request) error {
	if s.provider.cfg.ResponseMode != "form_post" {
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
	if !form.Has(again) {
		writePostAgain(w, form)
		return nil
	}
	return s.answered(w, r, form.Encode())
}

// answered completes an attempt with the parameters of an authorization response.
// Whatever is wrong with it, no session that exists is touched.
func (s *Server) answered(w *response, r *http.Request, parameters string) error {
	if inFrame(r) { // only a silent login ends there, however it ends
		w.page = silentPage
	}
	answer, err := parseAnswer(parameters)
	if err != nil {
		return problem.BadCallback.WithCause(err)
	}
	a := s.attempts.find(r, answer.state)
	if a != nil && crossSite(r) && (a.CrossSite || s.underRoute(a.ReturnTo)) {
		return s.comeAgain(w, answer)
	}
	if a != nil && a.CrossSite {
		if err := s.noteCurrent(r, a); err != nil {
			return err
		}
	}
	switch {
	case a != nil && a.Silent:
		w.page = silentPage
	case inFrame(r):
		s.attempts.drop(w, r, answer.state)
		return problem.BadCallback.WithCause(errors.New("no silent attempt in this browser has this state"))
	case a == nil:
		s.attempts.drop(w, r, answer.state)
		return s.answeredLate(w, r, answer, errors.New("no attempt in this browser has this state"))
	}
	if answer.code != "" { // the attempt is kept, so that the same response can be sent later
		if wait := s.exchanges.check(addressKey(w.client)); wait > 0 {
			return tooManyExchanges(wait)
		}
	}
	s.attempts.drop(w, r, answer.state)
	err = s.complete(w, r, answer, a)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errCompletedBefore):
		if a.Silent {
			return err
		}
		return s.answeredLate(w, r, answer, err)
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

// answeredLate handles a response to an attempt that is gone: the browser has
// dropped its cookie, or the attempt was completed. If the state is ours, and
// there is a session by now, the browser goes where the login was to lead.
// Otherwise the login starts again, once. cause is the error of a response that
// neither helps.
//
// Anybody can send a browser here with a state of their own. So its return_to
// counts as that of another site's login, and so does the new attempt.
func (s *Server) answeredLate(w *response, r *http.Request, answer authAnswer, cause error) error {
	known, ok := s.attempts.openState(answer.state)
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
	case crossSite(r) && !answer.again: // the session cookie may have been withheld
		return s.comeAgain(w, answer)
	case !known.restarted && (answer.err == "" || answer.authenticationExpired()):
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
	if err := s.toProvider(w, r, &a, again); err != nil {
		return problemOf(err).WithReturnTo(a.ReturnTo)
	}
	return nil
}

// completeTimeout bounds the work that completes an attempt. It goes on if the
// browser goes away, because it comes back if the user has pressed twice.
const completeTimeout = 45 * time.Second

// complete makes a session of a provider's answer to an attempt.
func (s *Server) complete(w *response, r *http.Request, answer authAnswer, a *attempt) error {
	m, err := s.provider.metadata()
	if err != nil {
		return err
	}
	if err := m.checkIssuer(answer, s.provider.cfg.Issuer); err != nil { // before anything else is believed, an error too
		return problem.BadCallback.WithCause(err)
	}
	if answer.err != "" {
		return s.refusedLogin(w, answer, a)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), completeTimeout)
	defer cancel()
	keys, first, err := s.claim(ctx, a)
	if err != nil {
		return err
	}
	if !first {
		return s.joinLogin(r.Context(), w, keys, a)
	}
	if err := s.startSession(ctx, w, r, answer, a); err != nil {
		s.dropClaim(ctx, keys)
		return err
	}
	s.shareLogin(ctx, w, keys, a)
	s.finish(w, a, true)
	return nil
}

// startSession redeems the code and starts a session for the user that it is for.
func (s *Server) startSession(ctx context.Context, w *response, r *http.Request, answer authAnswer, a *attempt) error {
	address := addressKey(w.client)
	if wait := s.exchanges.take(address); wait > 0 { // exchanges in flight count, for they may fail
		return tooManyExchanges(wait)
	}
	tokens, id, err := s.provider.exchange(ctx, answer.code, a)
	if err != nil {
		if err = failedExchange(err); errors.Is(err, problem.ProviderUnavailable) {
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
				s.revoking.Go(func() { s.revoke(ctx, old) }) // the login does not wait for it
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
// replaces: the one that was there when it began, and the one that is there now.
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

// seeOther sends the browser to a path of this origin, to the character: http.Redirect would clean it.
func seeOther(w http.ResponseWriter, path string) {
	w.Header().Set("Location", path)
	w.WriteHeader(http.StatusSeeOther)
}

// authAnswer is the provider's answer to an authorization request (RFC 6749 4.1.2, RFC 9207 2).
type authAnswer struct {
	state string
	code  string
	err   string
	text  string // error_description, cleaned
	iss   string
	issOK bool // iss is there
	again bool // it was sent on from here
}

// again is the parameter by which an answer says that it was sent on from here.
const again = "cloakroom_again"

var comeAgainHTML = template.Must(template.New("come again").Parse(`<!doctype html><html lang="en"><meta charset="utf-8"><title>Signing in</title>` +
	`<meta http-equiv="refresh" content="0;url={{.}}"><a href="{{.}}">Continue</a></html>`))

// comeAgain has the browser send the authorization response again, from a page of
// this origin. On the navigation from the provider a browser withholds a Strict
// session cookie. Without it nobody could tell whose session the login of another
// site is about to replace, or whether a session exists by now, and a route would
// refuse the redirect that follows.
func (s *Server) comeAgain(w *response, answer authAnswer) error {
	if answer.again {
		return problem.BadCallback.WithCause(errors.New("it does not come from the page that should have sent it on"))
	}
	q := url.Values{again: {"1"}, "state": {answer.state}}
	for name, value := range map[string]string{"code": answer.code, "error": answer.err, "error_description": answer.text} {
		if value != "" {
			q.Set(name, value)
		}
	}
	if answer.issOK {
		q.Set("iss", answer.iss)
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("X-Frame-Options", "DENY")
	return comeAgainHTML.Execute(w, s.prefix+"/callback?"+q.Encode())
}

const postAgainScript = `document.forms[0].submit()`

var (
	postAgainCSP  = "default-src 'none'; script-src " + hashSource(postAgainScript) + "; base-uri 'none'; frame-ancestors 'self'" // without form-action, which Chromium applies to where the provider is too, should the login begin anew
	postAgainHTML = template.Must(template.New("again").Parse(`<!doctype html><html lang="en"><meta charset="utf-8"><title>Signing in</title>` +
		`<form method="post">{{range $name, $value := .}}<input type="hidden" name="{{$name}}" value="{{$value}}">{{end}}<noscript><button>Continue</button></noscript></form>` +
		`<script>` + postAgainScript + `</script></html>`))
)

// writePostAgain answers with a page that posts an authorization response again, and nothing else that was in the form.
func writePostAgain(w *response, form url.Values) {
	fields := map[string]string{again: "1"}
	for _, name := range []string{"state", "code", "error", "iss"} {
		if len(form[name]) == 1 {
			fields[name] = form.Get(name)
		} else if len(form[name]) > 1 {
			fields["state"] = "" // it is refused, as it would be from the query
			break
		}
	}
	if text := cleanDescription(form.Get("error_description")); text != "" {
		fields["error_description"] = text
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", postAgainCSP)
	postAgainHTML.Execute(w, fields)
}

// maxState bounds the states that are looked at. Ours are shorter.
const maxState = 2048

// parseAnswer reads a callback's parameters. It holds a state and either a code or
// an error, each once. Other parameters do not matter (RFC 6749 4.1.2), also if
// they contain a semicolon, which net/url refuses.
func parseAnswer(query string) (authAnswer, error) {
	q, err := url.ParseQuery(strings.ReplaceAll(query, ";", "%3B"))
	if err != nil {
		return authAnswer{}, err
	}
	for _, name := range []string{"state", "code", "error", "iss"} {
		if len(q[name]) > 1 { // RFC 6749 3.1
			return authAnswer{}, fmt.Errorf("%s is there %d times", name, len(q[name]))
		}
	}
	answer := authAnswer{state: q.Get("state"), code: q.Get("code"), err: q.Get("error"), iss: q.Get("iss"), issOK: q.Has("iss"), again: q.Has(again)}
	answer.text = cleanDescription(q.Get("error_description"))
	switch {
	case answer.state == "":
		return authAnswer{}, errors.New("state is missing")
	case len(answer.state) > maxState:
		return authAnswer{}, fmt.Errorf("state has %d bytes", len(answer.state))
	case (answer.code == "") == (answer.err == ""):
		return authAnswer{}, errors.New("either code or error has to be there, not both")
	}
	return answer, nil
}

// checkIssuer refuses an answer of another provider than the one that was asked (RFC 9207 2.4).
func (m *metadata) checkIssuer(answer authAnswer, want string) error {
	switch {
	case answer.issOK && answer.iss != want:
		return fmt.Errorf("iss is %.80q, want %q", answer.iss, want)
	case !answer.issOK && m.IssParameter:
		return errors.New("iss is missing, and the provider says that it sends it")
	}
	return nil
}

// maxDescription is how much of an error_description is logged.
const maxDescription = 300

// snakeCase matches names such as authentication_expired, which are no tokens.
var snakeCase = regexp.MustCompile(`^[a-z]{1,20}(_[a-z]{1,20})+$`)

// cleanDescription returns an error_description for the log: without control
// characters, without what could be a token, and not longer than maxDescription.
func cleanDescription(text string) string {
	text = text[:min(len(text), 4*maxDescription)]
	text = strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return ' '
		}
		return c
	}, strings.ToValidUTF8(text, ""))
	text = tokenLike.ReplaceAllStringFunc(text, func(found string) string {
		if snakeCase.MatchString(found) {
			return found
		}
		return "…"
	})
	return strings.ToValidUTF8(text[:min(len(text), maxDescription)], "")
}

// errAuthenticationExpired is a response of Keycloak: the user took longer to
// sign in than it remembers the request. A new request mends that.
var errAuthenticationExpired = errors.New("the sign-in expired at the provider")

func (a *authAnswer) authenticationExpired() bool {
	return a.err == "temporarily_unavailable" && a.text == "authentication_expired"
}

// refusedLogin maps an authorization error response to a problem. What the
// provider says is for the log alone.
func (s *Server) refusedLogin(w *response, answer authAnswer, a *attempt) error {
	cause := fmt.Errorf("the provider answered %.40q", answer.err)
	if answer.text != "" {
		cause = fmt.Errorf("%w %q", cause, answer.text)
	}
	if answer.authenticationExpired() {
		cause = fmt.Errorf("%w: %w", errAuthenticationExpired, cause)
	}
	switch answer.err {
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

// failedExchange says what it means that there is no verified user after the code was sent.
func failedExchange(err error) error {
	var unrefreshed *session.RefreshError
	var known *problem.Problem
	var refusal *tokenError
	switch {
	case errors.As(err, &known):
		return err
	case errors.Is(err, session.ErrNoAnswer), errors.Is(err, errUnreachable), errors.Is(err, errKeysUnreachable):
		return problem.ProviderUnavailable.WithCause(err)
	case errors.As(err, &unrefreshed) && errors.As(err, &refusal) && (refusal.status >= 500 || refusal.status == 429):
		return problem.ProviderUnavailable.WithCause(err)
	case errors.Is(err, session.ErrRefused), errors.As(err, &refusal):
		return problem.LoginRefused.WithCause(err)
	}
	return problem.LoginInvalid.WithCause(err)
}
