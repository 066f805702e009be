package bff

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"html/template"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
)

// login begins an attempt and sends the browser to the provider.
func (s *Server) login(w *response, r *http.Request) error {
	w.page = loginPage
	q := r.URL.Query()
	a := &attempt{ReturnTo: parseReturnTo(q.Get("return_to"))}
	extra, err := loginParameters(q)
	if err != nil {
		return errLoginParameter.because(err).returningTo(a.ReturnTo)
	}
	for _, name := range []string{"acr_values", "max_age"} { // what the operator always asks for is checked on return as well
		if value := s.provider.cfg.Parameters[name]; value != "" && !extra.Has(name) {
			extra.Set(name, value)
		}
	}
	a.Prompt, a.MaxAge, a.ACRValues = extra.Get("prompt"), extra.Get("max_age"), extra.Get("acr_values")
	a.CrossSite = crossSite(r)
	return s.toProvider(w, r, a, extra)
}

// crossSite says whether another origin sent the browser here, a sibling domain included.
func crossSite(r *http.Request) bool {
	site := r.Header.Get("Sec-Fetch-Site")
	return site != "" && site != "same-origin" && site != "none"
}

// noteCurrent notes in an attempt who is signed in now.
func (s *Server) noteCurrent(r *http.Request, a *attempt) error {
	current, err := s.sessions.Get(r.Context(), r)
	switch {
	case err == nil:
		a.Replaces, a.Subject = current.Ticket(), current.Subject
	case errors.Is(err, session.ErrNone):
		a.Replaces, a.Subject = "", ""
	default:
		return err
	}
	return nil
}

// toProvider begins an attempt.
func (s *Server) toProvider(w *response, r *http.Request, a *attempt, extra url.Values) error {
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
		return errMethod
	}
	w.page = loginPage
	return s.answered(w, r, r.URL.RawQuery)
}

// callbackForm completes an attempt with what the provider has the browser post (OAuth 2.0 Form Post Response Mode). As the browser comes from another site its
// cookies, the attempt's among them, have stayed away, so the page that it gets posts the same once more from here.
func (s *Server) callbackForm(w *response, r *http.Request) error {
	if s.provider.cfg.ResponseMode != "form_post" {
		return errMethod
	}
	w.page = loginPage
	r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
	if mediaType, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); mediaType != "application/x-www-form-urlencoded" {
		return errBadCallback.because(fmt.Errorf("the Content-Type is %.80q", r.Header.Get("Content-Type")))
	}
	if err := r.ParseForm(); err != nil {
		return errBadCallback.because(err)
	}
	form := r.PostForm
	if !form.Has(again) {
		writePostAgain(w, form)
		return nil
	}
	return s.answered(w, r, form.Encode())
}

// answered completes an attempt with the parameters of an answer. Whatever is wrong with it, no session that exists is touched.
func (s *Server) answered(w *response, r *http.Request, parameters string) error {
	if inFrame(r) { // only a silent login ends there, however it ends
		w.page = silentPage
	}
	answer, err := parseAnswer(parameters)
	if err != nil {
		return errBadCallback.because(err)
	}
	a := s.attempts.find(r, answer.state)
	if a != nil && a.CrossSite {
		if crossSite(r) {
			return s.comeAgain(w, answer)
		}
		if err := s.noteCurrent(r, a); err != nil {
			return err
		}
	}
	s.attempts.drop(w, r, answer.state)
	switch {
	case a != nil && a.Silent:
		w.page = silentPage
	case inFrame(r):
		return errBadCallback.because(errors.New("no silent attempt in this browser has this state"))
	case a == nil && answer.err == "" && s.attempts.stale(answer.state):
		return s.restart(w, r, &attempt{ReturnTo: "/", CrossSite: true}, nil) // whoever sent the browser here, it was not the app
	case a == nil:
		return errBadCallback.because(errors.New("no attempt in this browser has this state"))
	}
	err = s.complete(w, r, answer, a)
	if err == nil {
		return nil
	}
	if errors.Is(err, errAuthTooOld) && !a.Restarted && !a.Silent { // the provider did not mind max_age: ask for what it cannot overlook
		return s.restart(w, r, a, url.Values{"prompt": {"login"}, "max_age": {a.MaxAge}})
	}
	return problemOf(err).returningTo(a.ReturnTo)
}

// restart begins the login again: once, for an attempt that was begun so is never stale.
func (s *Server) restart(w *response, r *http.Request, before *attempt, extra url.Values) error {
	a := *before
	a.Restarted = true
	if a.ACRValues != "" {
		extra.Set("acr_values", a.ACRValues)
	}
	return s.toProvider(w, r, &a, extra)
}

// complete makes a session of a provider's answer to an attempt.
func (s *Server) complete(w *response, r *http.Request, answer authAnswer, a *attempt) error {
	ctx := r.Context()
	m, err := s.provider.metadata()
	if err != nil {
		return err
	}
	if err := m.checkIssuer(answer, s.provider.cfg.Issuer); err != nil { // before anything else is believed, an error too
		return errBadCallback.because(err)
	}
	if answer.err != "" {
		return refusedLogin(w, answer.err, a)
	}
	first, err := s.claim(ctx, a)
	if err != nil {
		return err
	}
	if !first {
		return errBadCallback.because(errors.New("the attempt was completed before"))
	}
	tokens, id, err := s.provider.exchange(ctx, answer.code, a)
	if err != nil {
		err = failedExchange(err)
		s.revoke(ctx, &session.Session{Tokens: tokens})
		return err
	}
	started, err := s.sessions.Start(ctx, w, session.Session{
		Issuer: id.Issuer, Subject: id.Subject, SID: id.SID, Claims: id.User, Tokens: tokens,
		ExpiresAt: id.SessionExpiry,
	}, session.Login{Began: time.UnixMilli(a.Began), Replaces: s.replacedBy(r, a), Replaced: func(old *session.Session, kept bool) {
		s.log.InfoContext(ctx, "session ended", "session", old.ID, "reason", "replaced", "request", w.requestID)
		if !kept {
			s.revoking.Go(func() { s.revoke(ctx, old) }) // the login does not wait for it
		}
	}})
	if err != nil {
		s.revoke(ctx, &session.Session{Tokens: tokens})
	}
	if errors.Is(err, session.ErrEnded) {
		return errSignedOutMeanwhile
	}
	if err != nil {
		return err
	}
	w.session = started.ID
	s.log.InfoContext(ctx, "session started", "session", started.ID, "request", w.requestID)
	s.attempts.replaceNext(w, r, a.State, started)
	a.end(w, true)
	return nil
}

// replacedBy returns the tickets of the sessions that the success of an attempt
// replaces: the one that was there when it began, and the one that is there now.
func (s *Server) replacedBy(r *http.Request, a *attempt) []session.Secret {
	tickets := []session.Secret{a.Replaces}
	if current, err := s.sessions.Get(r.Context(), r); err == nil && current.Ticket() != a.Replaces {
		tickets = append(tickets, current.Ticket())
	}
	return tickets
}

// end is what the browser sees of an attempt that has come to its end without a fault.
func (a *attempt) end(w *response, authenticated bool) {
	if a.Silent {
		writeSilent(w, authenticated)
		return
	}
	seeOther(w, a.ReturnTo)
}

// seeOther sends the browser to a path of this origin, to the character: http.Redirect would clean it.
func seeOther(w http.ResponseWriter, path string) {
	w.Header().Set("Location", path)
	w.WriteHeader(http.StatusSeeOther)
}

// claim makes the attempt ours to complete: its code is redeemed once, however often and wherever the callback arrives.
func (s *Server) claim(ctx context.Context, a *attempt) (bool, error) {
	sum := sha256.Sum256([]byte(a.State))
	first, err := s.store.Create(ctx, "login:"+base64.RawURLEncoding.EncodeToString(sum[:16]), []byte(rand.Text()), attemptLife) // a value of this call's own
	if err != nil {
		return false, fmt.Errorf("%w: claim login attempt: %w", session.ErrStore, err)
	}
	return first, nil
}

// authAnswer is the provider's answer to an authorization request (RFC 6749 4.1.2, RFC 9207 2).
type authAnswer struct {
	state string
	code  string
	err   string
	iss   string
	issOK bool // iss is there
	again bool // it was sent on from here
}

// again is the parameter by which an answer says that it was sent on from here.
const again = "cloakroom_again"

var comeAgainHTML = template.Must(template.New("come again").Parse(`<!doctype html><html lang="en"><meta charset="utf-8"><title>Signing in</title>` +
	`<meta http-equiv="refresh" content="0;url={{.}}"><a href="{{.}}">Continue</a></html>`))

// comeAgain has the browser bring the provider's answer once more, from a page of ours. It is for a login that another site began: coming from the provider, the
// browser keeps a Strict session cookie to itself, and nobody could tell whose session the login is about to replace.
func (s *Server) comeAgain(w *response, answer authAnswer) error {
	if answer.again {
		return errBadCallback.because(errors.New("it does not come from the page that should have sent it on"))
	}
	q := url.Values{again: {"1"}, "state": {answer.state}}
	for name, value := range map[string]string{"code": answer.code, "error": answer.err} {
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
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", postAgainCSP)
	postAgainHTML.Execute(w, fields)
}

// parseAnswer reads a callback's parameters. It holds a state and either a code or an error, each once.
func parseAnswer(query string) (authAnswer, error) {
	q, err := url.ParseQuery(query)
	if err != nil {
		return authAnswer{}, err
	}
	for _, name := range []string{"state", "code", "error", "iss"} {
		if len(q[name]) > 1 { // RFC 6749 3.1
			return authAnswer{}, fmt.Errorf("%s is there %d times", name, len(q[name]))
		}
	}
	answer := authAnswer{state: q.Get("state"), code: q.Get("code"), err: q.Get("error"), iss: q.Get("iss"), issOK: q.Has("iss"), again: q.Has(again)}
	switch {
	case answer.state == "":
		return authAnswer{}, errors.New("state is missing")
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

// refusedLogin says what it means that the provider did not sign the user in. Of its words only the code, and that only in the log, is used.
func refusedLogin(w *response, code string, a *attempt) error {
	cause := fmt.Errorf("the provider answered %.40q", code)
	switch code {
	case "login_required", "interaction_required", "consent_required", "account_selection_required":
		if a.Prompt == "none" { // OpenID Connect Core 3.1.2.6: nobody is signed in, which is an answer
			a.end(w, false)
			return nil
		}
	case "access_denied":
		return errLoginCancelled.because(cause)
	case "temporarily_unavailable", "server_error":
		return errProviderUnavailable.because(cause)
	case "unmet_authentication_requirements":
		return errLoginTooWeak.because(cause)
	}
	return errLoginRefused.because(cause)
}

// failedExchange says what it means that there is no verified user after the code was sent.
func failedExchange(err error) error {
	var unrefreshed *session.RefreshError
	var known *problem
	var refusal *tokenError
	switch {
	case errors.As(err, &known):
		return err
	case errors.Is(err, session.ErrNoAnswer), errors.Is(err, errUnreachable), errors.Is(err, errKeysUnreachable):
		return errProviderUnavailable.because(err)
	case errors.As(err, &unrefreshed) && errors.As(err, &refusal) && (refusal.status >= 500 || refusal.status == 429):
		return errProviderUnavailable.because(err)
	case errors.Is(err, session.ErrRefused), errors.As(err, &refusal):
		return errLoginRefused.because(err)
	}
	return errLoginInvalid.because(err)
}
