package bff

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/strictjson"
	"github.com/cloakroom-bff/cloakroom/session"
)

const (
	// maxListed is how many sessions one response lists.
	maxListed = 200
	// maxAdminBody bounds the body of a request, in bytes.
	maxAdminBody = 8 << 10
	// maxSubject bounds sub and sid, in bytes. Those of a provider have up to
	// 255 (OpenID Connect Core 1.0, section 2).
	maxSubject = 1024
)

// adminSession is a session as administrators see it. The record is encrypted
// under a key that only the user's cookie has, so there are no claims, and sub
// and sid are those of the request. Times that are not known are left out.
type adminSession struct {
	ID            string    `json:"id"`
	Sub           string    `json:"sub,omitempty"`
	SID           string    `json:"sid,omitempty"`
	CreatedAt     time.Time `json:"created_at,omitzero"`
	LastSeenAt    time.Time `json:"last_seen_at,omitzero"`
	IdleExpiresAt time.Time `json:"idle_expires_at"`
	ExpiresAt     time.Time `json:"expires_at,omitzero"`
	Device        string    `json:"device,omitempty"`
}

// addSessionsAPI adds the endpoints by which administrators list and revoke
// sessions.
func (s *Server) addSessionsAPI(mux *http.ServeMux) {
	handle := func(pattern string, serve func(*app, http.ResponseWriter, *http.Request) error) {
		mux.Handle(pattern, s.RequireAdmin(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			a := s.enter()
			defer a.leave()
			if err := serve(a, w, r); err != nil {
				a.adminError(w, r, err)
			}
		})))
	}
	handle("GET /admin/sessions", (*app).listSessions)
	handle("DELETE /admin/sessions/{id}", (*app).revokeSession)
	handle("POST /admin/revoke", (*app).revokeSessions)
}

// badRequest is a mistake in the request of an administrator.
type badRequest struct{ error }

// adminError responds to a request of an administrator that failed.
func (a *app) adminError(w http.ResponseWriter, r *http.Request, err error) {
	var mistake badRequest
	switch {
	case errors.As(err, &mistake):
		http.Error(w, mistake.Error(), http.StatusBadRequest)
	case errors.Is(err, session.ErrStore):
		a.log.WarnContext(r.Context(), "request of an administrator failed", "path", r.URL.Path, "err", err)
		http.Error(w, "the store does not respond; the log has the error", http.StatusServiceUnavailable)
	default:
		a.log.ErrorContext(r.Context(), "request of an administrator failed", "path", r.URL.Path, "err", err)
		http.Error(w, "internal error; the log has it", http.StatusInternalServerError)
	}
}

// listSessions lists the sessions of a user or of a session at the provider,
// the newest first, or the one with an ID. If there are more than maxListed,
// the header Link refers to the next ones (RFC 8288).
func (a *app) listSessions(w http.ResponseWriter, r *http.Request) error {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return badRequest{fmt.Errorf("the query cannot be parsed: %w", err)}
	}
	offset := 0
	for name, values := range q {
		switch {
		case !slices.Contains([]string{"sub", "sid", "id", "offset"}, name):
			return badRequest{fmt.Errorf("unknown parameter %.40q: sub, sid, id and offset are known", name)}
		case len(values) > 1:
			return badRequest{fmt.Errorf("%s is there %d times", name, len(values))}
		case name == "offset":
			if offset, err = strconv.Atoi(values[0]); err != nil || offset < 0 {
				return badRequest{fmt.Errorf("offset: %.40q is not a number from 0", values[0])}
			}
		}
	}
	list, more, err := a.findSessions(r, q.Get("sub"), q.Get("sid"), q.Get("id"), offset)
	if err != nil {
		return err
	}
	if more {
		q.Set("offset", strconv.Itoa(offset+maxListed))
		w.Header().Set("Link", "</admin/sessions?"+q.Encode()+`>; rel="next"`)
	}
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(list)
}

// findSessions returns up to maxListed sessions after offset, and whether there
// are more.
func (a *app) findSessions(r *http.Request, sub, sid, id string, offset int) (
	list []adminSession, more bool, err error,
) {
	ctx := r.Context()
	var infos []session.Info
	if id != "" && sub == "" && sid == "" {
		var info session.Info
		var found bool
		if info, found, err = a.sessions.Info(ctx, id); found {
			infos = append(infos, info)
		}
	} else if id != "" {
		err = badRequest{errors.New("send either id, or sub and sid")}
	} else if err = checkSubject(sub, sid); err == nil {
		infos, more, err = a.sessions.List(ctx, a.app.Issuer, sub, sid, offset, maxListed)
	}
	if err != nil {
		return nil, false, err
	}
	a.emitAdmin(r, Event{Kind: AdminSessionsListed, subject: sub, message: "sessions listed"})
	list = make([]adminSession, len(infos))
	for i, info := range infos {
		list[i] = adminSession{
			info.ID, sub, sid, jsonTime(info.CreatedAt), jsonTime(info.LastSeenAt), jsonTime(info.IdleExpiresAt),
			jsonTime(info.ExpiresAt), info.Device,
		}
	}
	return list, more, nil
}

// checkSubject checks what a request says of the sessions that it is about.
func checkSubject(sub, sid string) error {
	switch {
	case sub == "" && sid == "":
		return badRequest{errors.New("give sub or sid: the store cannot list all sessions, " +
			"because it has only hashes of users")}
	case max(len(sub), len(sid)) > maxSubject:
		return badRequest{fmt.Errorf("sub and sid have at most %d bytes", maxSubject)}
	}
	return nil
}

// revokeSession ends one session.
func (a *app) revokeSession(w http.ResponseWriter, r *http.Request) error {
	ended, err := a.revokeFor(r, "id", r.PathValue("id"))
	if err != nil {
		return err
	}
	if len(ended) == 0 {
		http.Error(w, "there is no such session; it may have ended", http.StatusNotFound)
		return nil
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// revokeSessions ends the sessions of a user or of a session at the provider.
// Logins of the user that are in progress fail.
func (a *app) revokeSessions(w http.ResponseWriter, r *http.Request) error {
	by, value, err := readRevocation(http.MaxBytesReader(w, r.Body, maxAdminBody))
	if err != nil {
		return badRequest{err}
	}
	ended, err := a.revokeFor(r, by, value)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(map[string][]string{"revoked": ended})
}

// revokeFor ends the session with an ID, or those of a user or a session at the
// provider: by is id, sub or sid. It returns the IDs of those that it ended.
func (a *app) revokeFor(r *http.Request, by, value string) (ended []string, err error) {
	ended = []string{} // [] in JSON
	event := Event{Kind: AdminSessionRevoked, message: "session revoked"}
	switch by {
	case "id":
		var found bool
		if found, err = a.sessions.EndByID(r.Context(), value, session.ReasonRevoked); found {
			ended = []string{value}
		}
	case "sub":
		event.subject = value
		ended, err = a.endAll(r, value, "")
	default:
		ended, err = a.endAll(r, "", value)
	}
	if err != nil {
		return nil, err
	}
	for _, id := range ended {
		event.Session = id
		a.emitAdmin(r, event)
	}
	if len(ended) == 0 {
		event.message = "no session to revoke"
		a.emitAdmin(r, event)
	}
	return ended, nil
}

func (a *app) endAll(r *http.Request, sub, sid string) ([]string, error) {
	if err := checkSubject(sub, sid); err != nil {
		return nil, err
	}
	ended, err := a.sessions.EndAll(r.Context(), a.app.Issuer, sub, sid, session.ReasonRevoked)
	return append([]string{}, ended...), err
}

// readRevocation reads the body of POST /admin/revoke, an object with one
// member.
func readRevocation(body io.Reader) (by, value string, err error) {
	text, err := io.ReadAll(body)
	if err != nil {
		return "", "", fmt.Errorf("the body cannot be read: %w", err)
	}
	object, err := strictjson.Parse(text)
	if err != nil {
		return "", "", fmt.Errorf(`the body is not JSON such as {"sub": "alice"}: %w`, err)
	}
	for name := range object {
		if name != "sub" && name != "sid" {
			return "", "", fmt.Errorf("unknown member %.40q: send sub or sid", name)
		}
		by = name
	}
	if len(object) != 1 {
		return "", "", errors.New("send either sub or sid")
	}
	value, err = object.Text(by)
	return by, value, err
}
