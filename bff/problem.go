package bff

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"html/template"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
)

// problem is an error as the client may see it (RFC 9457): what is fixed about it, never its cause.
type problem struct {
	status     int
	code       string // stable; what scripts branch on
	title      string // what happened
	detail     string // what to do about it
	loginURL   bool   // tell where to sign in
	retryAfter time.Duration
	challenge  string     // of the WWW-Authenticate header; empty: one that asks for our cookie
	login      url.Values // parameters that the login has to have

	cause    error  // for the log
	returnTo string // where a new try of a login leads
}

func (p *problem) Error() string {
	if p.cause != nil {
		return p.code + ": " + p.cause.Error()
	}
	return p.code
}

func (p *problem) Unwrap() error { return p.cause }

// because returns the problem with a cause for the log.
func (p *problem) because(err error) *problem {
	q := *p
	q.cause = err
	return &q
}

// returningTo returns the problem with the path that a new try of the login leads back to.
func (p *problem) returningTo(path string) *problem {
	q := *p
	q.returnTo = path
	return &q
}

// challenging returns the problem with what WWW-Authenticate is to say (RFC 9110 11.6.1).
func (p *problem) challenging(challenge string) *problem {
	q := *p
	q.challenge = challenge
	return &q
}

// signingIn returns the problem with the parameters of the login that mends it.
func (p *problem) signingIn(login url.Values) *problem {
	q := *p
	q.login = login
	return &q
}

var (
	errAbsoluteForm     = &problem{status: 400, code: "ambiguous_host", title: "The request names its host twice", detail: "Send the path alone in the request line."}
	errBadBody          = &problem{status: 400, code: "bad_body", title: "The request's body cannot be read"}
	errBadRequest       = &problem{status: 400, code: "bad_request", title: "The request cannot be sent on", detail: "Its target or a header holds a space or a control character where there can be none."}
	errAmbiguousPath    = &problem{status: 400, code: "ambiguous_path", title: "The path can be read in more than one way", detail: "Send the path without encoded dots, slashes, backslashes or empty segments."}
	errUpgrade          = &problem{status: 400, code: "upgrade_refused", title: "Only WebSocket can be upgraded to"}
	errTokenInQuery     = &problem{status: 400, code: "token_in_query", title: "The query holds an access_token", detail: "Leave it out: the token is attached on the way."}
	errTwoCredentials   = &problem{status: 400, code: "two_credentials", title: "The request has a session and an access token of its own", detail: "Send one of them."}
	errOwnToken         = &problem{code: "own_token"} // answered by the route's verifier
	errBadLogoutToken   = &problem{status: 400, code: "bad_logout_token", title: "This is not a logout that the provider has signed for us"}
	errBadFrontchannel  = &problem{status: 400, code: "bad_frontchannel_logout", title: "This logout request cannot be carried out", detail: "It needs the iss and sid of the session that this browser has, and a frame whose page is of the same site as this address."}
	errNotSignedIn      = &problem{status: 401, code: "not_signed_in", title: "Nobody is signed in", loginURL: true}
	errNavigationOnly   = &problem{status: 401, code: "navigation_only", title: "This address is for the browser to go to", detail: "Send the browser to login_url as a top-level navigation; a script or a prefetch cannot sign in.", loginURL: true}
	errCSRF             = &problem{status: 403, code: "csrf", title: "The request may come from another site", detail: "Send the header X-CSRF: 1 from a page of this origin."}
	errScope            = &problem{status: 403, code: "insufficient_scope", title: "The session lacks a scope that this address needs"}
	errForbidden        = &problem{status: 403, code: "forbidden", title: "This address is not for this user"}
	errStepUp           = &problem{status: 401, code: "insufficient_user_authentication", title: "A stronger or newer sign-in is needed", detail: "Send the browser to login_url as a top-level navigation.", loginURL: true}
	errServiceWorker    = &problem{status: 403, code: "service_worker", title: "An API cannot be a service worker", detail: "Serve the script from the app's own files."}
	errNotFound         = &problem{status: 404, code: "not_found", title: "There is nothing at this address"}
	errMethod           = &problem{status: 405, code: "method_not_allowed", title: "This address does not take this method"}
	errBodyTooSlow      = &problem{status: 408, code: "body_too_slow", title: "The request took too long to arrive"}
	errTooLarge         = &problem{status: 413, code: "body_too_large", title: "The request's body is larger than this address takes"}
	errWrongHost        = &problem{status: 421, code: "wrong_host", title: "This host is not served here", detail: "The Host header has to be that of server.public_url."}
	errTooManyRequests  = &problem{status: 429, code: "too_many_requests", title: "Too many requests", detail: "Wait a moment, then try again."}
	errInternal         = &problem{status: 500, code: "internal", title: "Something went wrong here"}
	errUpstream         = &problem{status: 502, code: "upstream_failed", title: "The API did not answer as it should"}
	errUpstreamTimeout  = &problem{status: 504, code: "upstream_timeout", title: "The API did not answer in time"}
	errUpstreamsDown    = &problem{status: 503, code: "upstream_unavailable", title: "The API cannot be reached for the moment", detail: "Try again in a few seconds.", retryAfter: time.Second}
	errStoreUnavailable = &problem{status: 503, code: "store_unavailable", title: "Sessions cannot be reached for the moment", detail: "Nobody has been signed out. Try again in a few seconds.", retryAfter: 2 * time.Second}

	errProviderUnavailable = &problem{status: 503, code: "provider_unavailable", title: "The sign-in service cannot be reached for the moment", detail: "Try again in a few seconds.", retryAfter: 5 * time.Second}

	errLoginParameter     = &problem{status: 400, code: "bad_login_parameter", title: "The sign-in link is not right", detail: "One of its parameters has a value that does not exist. Start again from the app."}
	errBadCallback        = &problem{status: 400, code: "bad_callback", title: "This sign-in cannot be completed", detail: "It was started in another browser, a while ago, or not at all; or the browser refuses cookies. Nothing has changed. Start again from here."}
	errLoginCancelled     = &problem{status: 403, code: "login_cancelled", title: "You did not sign in", detail: "The sign-in was cancelled, or this account may not use the app. Nothing has changed."}
	errLoginRefused       = &problem{status: 502, code: "login_refused", title: "The sign-in service refused", detail: "It did not complete the sign-in. Nothing has changed. Try again; if it stays so, tell the people who run this app."}
	errLoginInvalid       = &problem{status: 502, code: "login_invalid", title: "The sign-in could not be verified", detail: "The answer of the sign-in service is not one to be trusted. Nothing has changed. Try again; if it stays so, tell the people who run this app."}
	errLoginTooWeak       = &problem{status: 403, code: "login_too_weak", title: "A stronger sign-in is needed", detail: "The sign-in service did not confirm the way of signing in that was asked for. Nothing has changed."}
	errSignedOutMeanwhile = &problem{status: 403, code: "signed_out_meanwhile", title: "You were signed out while signing in", detail: "The sign-in service ended your session there before the sign-in here was complete. Start again."}
	errOtherAccount       = &problem{status: 403, code: "other_account", title: "You are signed in as somebody else", detail: "Another site started this sign-in, and it is for another account than yours. You are signed in as before. Sign out first if you want to change."}
)

// problemOf is the one place that says which error is which problem.
func problemOf(err error) *problem {
	var p *problem
	var unrefreshed *session.RefreshError
	switch {
	case errors.As(err, &p):
		return p
	case errors.Is(err, session.ErrNone), errors.Is(err, session.ErrEnded):
		return errNotSignedIn.because(err)
	case errors.Is(err, session.ErrUserRequired):
		return errStepUp.challenging(`Bearer error="insufficient_user_authentication"`).because(err)
	case errors.Is(err, session.ErrStore):
		return errStoreUnavailable.because(err)
	case errors.As(err, &unrefreshed):
		p = errProviderUnavailable.because(err)
		p.retryAfter = unrefreshed.RetryAfter
		return p
	default:
		return errInternal.because(err)
	}
}

// level says how much an operator should care.
func (p *problem) level() slog.Level {
	switch {
	case p.status >= 500:
		return slog.LevelError
	case p.status == 401 || p.status == 404:
		return slog.LevelInfo
	default:
		return slog.LevelWarn
	}
}

// writeProblem answers with err: as a page where a person looks at it, as problem+json everywhere else.
func (s *Server) writeProblem(w *response, r *http.Request, err error) {
	if errors.Is(err, context.Canceled) && r.Context().Err() != nil {
		w.status = statusClientLeft
		panic(http.ErrAbortHandler) // to return would be to answer 200, which a client that has only stopped sending would take for the API's
	}
	p := problemOf(err)
	if errors.Is(err, session.ErrEnded) {
		s.cookie.Clear(w)
	}
	w.problem = p
	h := w.Header()
	if w.page == silentPage {
		status := http.StatusOK
		if p.status == http.StatusTooManyRequests {
			status = p.status
			setRetryAfter(h, p)
		}
		writeSilent(w, status, false)
		return
	}
	boundBody(w, r)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	setRetryAfter(h, p)
	if p.challenge != "" {
		h.Set("WWW-Authenticate", p.challenge)
	} else if p.status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", cookieChallenge)
	}
	if w.page != noPage && !prefersJSON(r) {
		s.writePage(w, p)
		return
	}
	h.Set("Content-Type", "application/problem+json")
	status := p.status
	body := problemBody{Title: p.title, Code: p.code, Detail: p.detail, RequestID: w.requestID}
	if w.oauthErrors { // OpenID Connect Back-Channel Logout 2.8: whatever is wrong
		h.Set("Content-Type", "application/json")
		status, body.Error = http.StatusBadRequest, "invalid_request"
	}
	body.Status = status
	if p.loginURL {
		body.LoginURL = s.prefix + "/login"
		if len(p.login) > 0 {
			body.LoginURL += "?" + p.login.Encode()
		}
	}
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(body)
}

// setRetryAfter tells the client how many seconds to wait, if p says so (RFC 9110
// 10.2.3).
func setRetryAfter(h http.Header, p *problem) {
	if p.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int((p.retryAfter+time.Second-1)/time.Second)))
	}
}

// boundBody bounds how long the rest of a request's body takes, which the server reads even if nobody else does.
func boundBody(w *response, r *http.Request) {
	if r.Body != http.NoBody {
		http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout)) // not all servers can; then theirs has to do
	}
}

// cookieChallenge is the challenge that a 401 has to have (RFC 9110 15.5.2). One of an unknown scheme opens no browser dialogue.
const cookieChallenge = `Cookie realm="cloakroom"`

type problemBody struct {
	Error     string `json:"error,omitempty"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Code      string `json:"code"`
	Detail    string `json:"detail,omitempty"`
	LoginURL  string `json:"login_url,omitempty"`
	RequestID string `json:"request_id"`
}

//go:embed page.html
var pageHTML string

var pageTemplate = template.Must(template.New("page").Parse(pageHTML))

// pageCSP lets the page's own style in, and nothing else.
var pageCSP = func() string {
	_, style, _ := strings.Cut(pageHTML, "<style>")
	style, _, _ = strings.Cut(style, "</style>")
	return "default-src 'none'; style-src " + hashSource(style) + "; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}()

// hashSource lets in a script or a style that stands in a page, by what it is (CSP3 2.3.1).
func hashSource(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

func (s *Server) writePage(w *response, p *problem) {
	tryAgain := ""
	if w.page == loginPage {
		tryAgain = s.prefix + "/login"
		if p.returnTo != "" && p.returnTo != "/" {
			tryAgain += "?" + url.Values{"return_to": {p.returnTo}}.Encode()
		}
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", pageCSP)
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Frame-Options", "DENY")
	w.WriteHeader(p.status)
	pageTemplate.Execute(w, struct{ Title, Detail, Code, RequestID, TryAgain string }{p.title, p.detail, p.code, w.requestID, tryAgain})
}

// prefersJSON says whether whoever asks names JSON and not HTML as what it takes.
func prefersJSON(r *http.Request) bool {
	accept := strings.Join(r.Header.Values("Accept"), ",")
	return strings.Contains(accept, "json") && !strings.Contains(accept, "text/html")
}
