package bff

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
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
// sessions, and read what happened to them.
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
	handle("GET /admin/why", (*app).why)
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
		a.logAdminError(r, slog.LevelWarn, err)
		http.Error(w, "the store failed; "+storeAdvice(err), http.StatusServiceUnavailable)
	default:
		a.logAdminError(r, slog.LevelError, err)
		http.Error(w, "internal error; the log has it", http.StatusInternalServerError)
	}
}

func (a *app) logAdminError(r *http.Request, level slog.Level, err error) {
	id, _ := requestOf(r.Context())
	a.log.LogAttrs(r.Context(), level, "request of an administrator failed",
		slog.String("request", id), slog.String("path", r.URL.Path), slog.Any("err", err))
}

// listSessions lists the sessions of a user or of a session at the provider,
// the newest first, or the one with an ID. If there are more than maxListed,
// the header Link refers to the next ones (RFC 8288).
func (a *app) listSessions(w http.ResponseWriter, r *http.Request) error {
	q, offset, err := adminQuery(r, "sub", "sid", "id")
	if err != nil {
		return err
	}
	named := sessionsNamed{q.Get("sub"), q.Get("sid"), q.Get("id")}
	list, more, err := a.findSessions(r.Context(), named, offset)
	if err != nil {
		return err
	}
	a.emitSessionsListed(r, named, len(list))
	setNext(w, "/admin/sessions", q, offset+maxListed, more)
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(list)
}

// adminQuery returns the parameters of an administrator's request, each of
// which is known and there once at most, and the number in the parameter
// offset, which is always known. The error is a badRequest.
func adminQuery(r *http.Request, known ...string) (q url.Values, offset int, err error) {
	if q, err = url.ParseQuery(r.URL.RawQuery); err != nil {
		return nil, 0, badRequest{fmt.Errorf("the query cannot be parsed: %w", err)}
	}
	known = append(known, "offset")
	for name, values := range q {
		switch {
		case !slices.Contains(known, name):
			return nil, 0, badRequest{fmt.Errorf("unknown parameter %.40q: known are %s", name,
				strings.Join(known, ", "))}
		case len(values) > 1:
			return nil, 0, badRequest{fmt.Errorf("%s is there %d times, send it once", name, len(values))}
		case name == "offset":
			if offset, err = strconv.Atoi(values[0]); err != nil || offset < 0 {
				return nil, 0, badRequest{fmt.Errorf("offset: %.40q is not a number from 0", values[0])}
			}
		}
	}
	return q, offset, nil
}

// setNext sets the header Link of a response that has not everything, if there
// is more from offset on.
func setNext(w http.ResponseWriter, path string, q url.Values, offset int, more bool) {
	if more {
		q.Set("offset", strconv.Itoa(offset))
		w.Header().Set("Link", "<"+path+"?"+q.Encode()+`>; rel="next"`)
	}
}

// sessionsNamed are the sessions of a user (sub), of a session at the provider
// (sid), of both, or the one with an ID.
type sessionsNamed struct{ sub, sid, id string }

// findSessions returns up to maxListed sessions after offset, and whether there
// are more.
func (a *app) findSessions(ctx context.Context, n sessionsNamed, offset int) (
	list []adminSession, more bool, err error,
) {
	var infos []session.Info
	if n.id != "" && n.sub == "" && n.sid == "" {
		var info session.Info
		var found bool
		if info, found, err = a.sessions.Info(ctx, n.id); found {
			infos = append(infos, info)
		}
	} else if n.id != "" {
		err = badRequest{errors.New("send either id, or sub and sid")}
	} else if err = checkSubject(n.sub, n.sid); err == nil {
		infos, more, err = a.sessions.List(ctx, a.app.Issuer, n.sub, n.sid, offset, maxListed)
	}
	if err != nil {
		return nil, false, err
	}
	list = make([]adminSession, len(infos))
	for i, info := range infos {
		list[i] = adminSession{
			info.ID, n.sub, n.sid, jsonTime(info.CreatedAt), jsonTime(info.LastSeenAt),
			jsonTime(info.IdleExpiresAt), jsonTime(info.ExpiresAt), info.Device,
		}
	}
	return list, more, nil
}

// emitSessionsListed reports that an administrator looked for sessions, and
// found some.
func (a *app) emitSessionsListed(r *http.Request, n sessionsNamed, found int) {
	e := Event{Kind: AdminSessionsListed, message: "sessions listed"}
	switch {
	case n.id != "":
		if e = a.named(e, "id", n.id); found > 0 {
			e.Session = n.id
		}
	case n.sid != "":
		e = a.named(e, "sid", n.sid)
		e.subject = n.sub
	default:
		e = a.named(e, "sub", n.sub)
	}
	a.emit(r.Context(), e)
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
// provider: by is id, sub or sid. It returns the IDs of those that it ended,
// also beside an error.
func (a *app) revokeFor(r *http.Request, by, value string) (ended []string, err error) {
	r = uncancelled(r)
	ended = []string{} // [] in JSON
	switch by {
	case "id":
		var found bool
		if found, err = a.sessions.EndByID(r.Context(), value, session.ReasonRevoked); found && err == nil {
			ended = []string{value}
		}
	case "sub":
		ended, err = a.endAll(r, value, "")
	default:
		ended, err = a.endAll(r, "", value)
	}
	event := a.named(Event{Kind: AdminSessionRevoked, message: "session revoked"}, by, value)
	for _, id := range ended {
		event.Session = id
		a.emit(r.Context(), event)
	}
	if err != nil {
		return ended, err
	}
	if len(ended) == 0 {
		event.message = "no session to revoke"
		a.emit(r.Context(), event)
	}
	return ended, nil
}

func (a *app) endAll(r *http.Request, sub, sid string) ([]string, error) {
	if err := checkSubject(sub, sid); err != nil {
		return nil, err
	}
	ended, err := a.sessions.EndAll(r.Context(), a.app.Issuer, sub, sid, session.ReasonRevoked)
	if err != nil && len(ended) > 0 {
		err = partlyRevoked{err, len(ended)}
	}
	return append([]string{}, ended...), err
}

// partlyRevoked is the error of a revocation that has ended some of the
// sessions.
type partlyRevoked struct {
	error
	ended int
}

func (e partlyRevoked) Unwrap() error { return e.error }

// storeAdvice says what to do after an error of the store.
func storeAdvice(err error) string {
	if partly, ok := errors.AsType[partlyRevoked](err); ok {
		return fmt.Sprintf("sessions revoked: %d; there may be more: repeat the request", partly.ended)
	}
	return "the log has the error"
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
