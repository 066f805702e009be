package bff

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/session"
)

// problemOf returns the problem for an error. It is the one place that maps
// them.
func problemOf(err error) *problem.Problem {
	var p *problem.Problem
	var unrefreshed *session.RefreshError
	switch {
	case errors.As(err, &p):
		return p
	case errors.Is(err, session.ErrNone), errors.Is(err, session.ErrEnded):
		return problem.NotSignedIn.WithCause(err)
	case errors.Is(err, session.ErrUserRequired):
		challenge := `Bearer error="insufficient_user_authentication"`
		return problem.InsufficientUserAuthentication.WithChallenge(challenge).WithCause(err)
	case errors.Is(err, session.ErrStore):
		return problem.StoreUnavailable.WithCause(err)
	case errors.As(err, &unrefreshed):
		return problem.ProviderUnavailable.WithCause(err).WithRetryAfter(unrefreshed.RetryAfter)
	default:
		return problem.Internal.WithCause(err)
	}
}

// writeProblem responds with err: as an HTML page to a navigation, as
// application/problem+json otherwise.
func (a *app) writeProblem(w *response, r *http.Request, err error) {
	if errors.Is(err, context.Canceled) && r.Context().Err() != nil {
		w.status = statusClientLeft
		// To return would send a 200, which a client that has only stopped
		// sending would take for the API's response.
		panic(http.ErrAbortHandler)
	}
	p := problemOf(err)
	if errors.Is(err, session.ErrEnded) {
		a.cookie.Clear(w)
	}
	w.problem = p
	a.refused(w, r, p)
	h := w.Header()
	if w.page == silentPage {
		status := http.StatusOK // the message tells the app the outcome
		if p.Status == http.StatusTooManyRequests || p.Code == problem.StoreUnavailable.Code {
			status = p.Status
			p.SetRetryAfter(h)
		}
		writeSilent(w, status, false)
		return
	}
	limitBodyTime(w, r)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h["X-Request-Id"] = []string{w.requestID}
	p.SetRetryAfter(h)
	if p.Challenge != "" {
		h.Set("WWW-Authenticate", p.Challenge)
	} else if p.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", problem.CookieChallenge)
	}
	if w.page == pageOrJSON && a.wantsPage(r) {
		w.page = plainPage
	}
	if w.page > noPage && !prefersJSON(r) {
		a.writeProblemPage(w, r, p)
		return
	}
	h.Set("Content-Type", "application/problem+json")
	status := p.Status
	body := problemBody{Title: p.Title, Code: p.Code, Detail: p.Detail, RequestID: w.requestID}
	if w.oauthErrors { // OpenID Connect Back-Channel Logout 1.0, section 2.8
		h.Set("Content-Type", "application/json")
		status, body.Error = http.StatusBadRequest, "invalid_request"
	}
	body.Status = status
	if p.SignIn {
		body.LoginURL = a.endpoint("/login")
		if len(p.Login) > 0 {
			body.LoginURL += "?" + p.Login.Encode()
		}
	}
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(body)
}

// limitBodyTime bounds how long the rest of a request body takes, which
// net/http reads after the handler has returned.
func limitBodyTime(w *response, r *http.Request) {
	if r.Body != http.NoBody {
		// Without support for it the server's own limit applies.
		http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout))
	}
}

type problemBody struct {
	Error     string `json:"error,omitempty"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Code      string `json:"code"`
	Detail    string `json:"detail,omitempty"`
	LoginURL  string `json:"login_url,omitempty"`
	RequestID string `json:"request_id"`
}

// prefersJSON reports whether the Accept header names JSON and not HTML.
func prefersJSON(r *http.Request) bool {
	accept := strings.Join(r.Header.Values("Accept"), ",")
	return strings.Contains(accept, "json") && !strings.Contains(accept, "text/html")
}
