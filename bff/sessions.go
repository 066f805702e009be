package bff

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/session"
)

// maxOwnSessions is how many sessions one response lists to their user.
const maxOwnSessions = 100

// sessionPath is the path of one session of the user, under the prefix.
const sessionPath = "/sessions/{id}"

// endpointPath returns the path of the endpoint that serves a request, as it is
// in the table of endpoints.
func (a *app) endpointPath(path string) string {
	id, ok := strings.CutPrefix(path, a.prefix+"/sessions/")
	if ok && id != "" && !strings.Contains(id, "/") {
		return a.prefix + sessionPath
	}
	return path
}

// ownSession is a session as its user sees it. A time is null if it is not
// known.
type ownSession struct {
	ID            string     `json:"id"`
	CreatedAt     time.Time  `json:"created_at"`
	LastSeenAt    *time.Time `json:"last_seen_at"`
	IdleExpiresAt time.Time  `json:"idle_expires_at"`
	ExpiresAt     *time.Time `json:"expires_at"`
	Device        string     `json:"device"` // empty: unknown
	Current       bool       `json:"current"`
}

// showSessions lists the sessions of the user on all devices, the newest first.
// If there are more than maxOwnSessions, the header Link refers to the next
// ones (RFC 8288). It does not extend the session.
func (a *app) showSessions(w *response, r *http.Request) error {
	offset, err := intParameter(r, "offset", 0, 1_000_000, 0)
	if err != nil {
		return err
	}
	current, err := a.findSession(r)
	if err != nil {
		return err
	}
	infos, more, err := a.sessions.List(r.Context(), current.Issuer, current.Subject, "", offset, maxOwnSessions)
	if err != nil {
		return err
	}
	list := make([]ownSession, len(infos))
	for i, info := range infos {
		list[i] = ownSession{
			ID: info.ID, CreatedAt: jsonTime(info.CreatedAt), LastSeenAt: timeOrNull(info.LastSeenAt),
			IdleExpiresAt: jsonTime(info.IdleExpiresAt), ExpiresAt: timeOrNull(info.ExpiresAt),
			Device: info.Device, Current: info.ID == current.ID,
		}
	}
	a.renewCookie(r.Context(), w, r, current)
	setNext(w, a.endpoint("/sessions"), url.Values{}, offset+maxOwnSessions, more)
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(list)
}

func timeOrNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return new(jsonTime(t))
}

// endSessionByID ends one session of the user. The session of the request ends
// as in a logout.
func (a *app) endSessionByID(w *response, r *http.Request) error {
	r = uncancelled(r)
	current, err := a.findSession(r)
	if err != nil {
		return err
	}
	id := strings.TrimPrefix(r.URL.Path, a.prefix+"/sessions/")
	if id == current.ID {
		if _, err := a.signOut(w, r); err != nil {
			return err
		}
	} else if found, err := a.sessions.EndOther(r.Context(), current, id); err != nil {
		return err
	} else if !found {
		return problem.NotFound.WithCause(errors.New("the user has no such session; it may have ended"))
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// endOtherSessions ends all sessions of the user but that of the request.
func (a *app) endOtherSessions(w *response, r *http.Request) error {
	r = uncancelled(r)
	current, err := a.findSession(r)
	if err != nil {
		return err
	}
	if _, err := a.sessions.EndOthers(r.Context(), current); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// signOut ends the request's session and revokes its tokens, and has the
// browser delete what belongs to it. It returns the session as it was, or nil
// if there was none.
func (a *app) signOut(w *response, r *http.Request) (*session.Session, error) {
	ended, err := a.endSession(w, r, session.ReasonLogout)
	if err != nil {
		return nil, err
	}
	if ended != nil {
		w.setSession(ended)
		a.revoke(r.Context(), ended)
	}
	if !a.keepStorage {
		// Not "cookies": that is all of the registrable domain's, the
		// provider's own among them if it is a neighbour.
		w.Header().Set("Clear-Site-Data", `"storage"`)
	}
	return ended, nil
}

// intParameter returns a parameter of the query, or otherwise if it is not
// there.
func intParameter(r *http.Request, name string, least, most, otherwise int) (int, error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return 0, problem.BadParameter.WithCause(err)
	}
	if len(q[name]) == 0 {
		return otherwise, nil
	}
	n, err := strconv.Atoi(q.Get(name))
	if err != nil || len(q[name]) > 1 || n < least || n > most {
		return 0, problem.BadParameter.WithCause(fmt.Errorf("%s is %.40q, want one number from %d to %d",
			name, q[name], least, most))
	}
	return n, nil
}
