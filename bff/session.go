package bff

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
)

// sessionBody is what the app may know of its session. There is no token in it.
type sessionBody struct {
	Authenticated bool            `json:"authenticated"`
	User          json.RawMessage `json:"user,omitempty"`
	Session       *sessionTimes   `json:"session,omitempty"`
}

type sessionTimes struct {
	ID                   string     `json:"id"`
	CreatedAt            time.Time  `json:"created_at"`
	IdleExpiresAt        time.Time  `json:"idle_expires_at"`
	ExpiresAt            time.Time  `json:"expires_at"`
	AccessTokenExpiresAt *time.Time `json:"access_token_expires_at"` // null: the provider did not say
}

// showSession says who is signed in. It neither refreshes nor extends the
// session.
func (a *app) showSession(w *response, r *http.Request) error {
	current, err := a.findSession(r)
	if errors.Is(err, session.ErrNone) {
		return a.writeSession(w, nil)
	}
	if err != nil {
		return err
	}
	a.renewCookie(r.Context(), w, r, current)
	return a.writeSession(w, current)
}

// refreshSession refreshes the tokens immediately. Each call is a request to
// the provider, so each session has a budget of calls.
func (a *app) refreshSession(w *response, r *http.Request) error {
	current, err := a.findSession(r)
	if err != nil {
		return err
	}
	w.setSession(current)
	sum := sha256.Sum256([]byte(current.ID))
	if wait := a.refreshes.take([16]byte(sum[:])); wait > 0 {
		return tooManyRequests(wait, "the session has used up its forced refreshes")
	}
	if current, err = a.sessions.Refresh(r.Context(), current); err != nil {
		return err
	}
	return a.writeSession(w, current)
}

func (a *app) writeSession(w *response, current *session.Session) error {
	if current != nil {
		w.setSession(current)
	}
	body, err := a.sessionBodyOf(current)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(body)
}

// sessionBodyOf returns what the app may know of a session; nil means that
// there is none.
func (a *app) sessionBodyOf(current *session.Session) (body sessionBody, err error) {
	if current == nil {
		return sessionBody{}, nil
	}
	user, err := a.claims.visible(current.Claims)
	if err != nil {
		return sessionBody{}, err
	}
	return sessionBody{
		Authenticated: true,
		User:          user,
		Session: &sessionTimes{
			ID:                   current.ID,
			CreatedAt:            jsonTime(current.CreatedAt),
			IdleExpiresAt:        jsonTime(current.IdleExpiresAt),
			ExpiresAt:            jsonTime(current.ExpiresAt),
			AccessTokenExpiresAt: timeOrNull(current.Tokens.Expiry),
		},
	}, nil
}

func jsonTime(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }
