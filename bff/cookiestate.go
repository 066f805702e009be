package bff

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/cloakroom-bff/cloakroom/session"
)

// responseKey is the key of a request's *response in its context.
type responseKey struct{}

// refusedCookies counts requests with a cookie that was not used.
type refusedCookies struct{ foreign, unopenable, duplicate atomic.Uint64 }

func (c *refusedCookies) of(state session.CookieState) *atomic.Uint64 {
	switch state {
	case session.CookieForeign:
		return &c.foreign
	case session.CookieDuplicate:
		return &c.duplicate
	}
	return &c.unopenable
}

// CookiesRefused returns how many requests had a cookie that was not used
// because of its state. It counts the cookies of sessions and of login
// attempts.
func (s *Server) CookiesRefused(state session.CookieState) uint64 {
	return s.refusedCookies.of(state).Load()
}

// findSession returns the request's session. It neither refreshes nor extends
// it. The error wraps session.ErrNone, also if the cookie cannot be used, or
// session.ErrStore.
func (a *app) findSession(r *http.Request) (*session.Session, error) {
	ticket, state := a.cookie.Read(r)
	if state.Refused() {
		a.cookieRefused(r, a.cookie.Name(), state)
		return nil, fmt.Errorf("%w: the session cookie is %s", session.ErrNone, state)
	}
	current, err := a.sessions.Find(r.Context(), ticket)
	w, ok := r.Context().Value(responseKey{}).(*response)
	if ok {
		w.cookieCurrent = state == session.CookieCurrent
	}
	if ok && w.session == "" {
		if err == nil {
			w.setSession(current)
		} else {
			w.session = ticket.SessionID() // so that the log says which one has ended
		}
	}
	return current, err
}

// cookieSession returns the ID of the session that a request's cookie names, or
// "". It calls no store, so the session may have ended.
func (a *app) cookieSession(r *http.Request) string {
	ticket, state := a.cookie.Read(r)
	if state == session.CookieAbsent || state.Refused() {
		return ""
	}
	return ticket.SessionID()
}

// renewCookie sends the session cookie again if it is outdated, so that the old
// session key can be removed before the session ends. It reports whether it
// did. current is the request's session. If that has ended meanwhile, the
// browser may have the cookie of another one.
func (a *app) renewCookie(
	ctx context.Context, w *response, r *http.Request, current *session.Session,
) bool {
	if w.cookieCurrent {
		return false
	}
	ticket, state := a.cookie.Read(r)
	if state != session.CookieOutdated || !ticket.Equal(current.Ticket()) {
		return false
	}
	if _, err := a.sessions.Find(ctx, ticket); err != nil {
		return false
	}
	a.cookie.Write(w, current)
	return true
}

// endSession ends the request's session for a reason, deletes the cookie, and
// returns the session as it was; nil if there was none, which is not an error.
// If the store fails, the session lives on and the cookie stays. A cookie of
// another App stays too. The session also ends if the browser goes away, as it
// does when the user closes the window after a click.
func (a *app) endSession(w http.ResponseWriter, r *http.Request, reason session.Reason) (*session.Session, error) {
	r = uncancelled(r)
	current, err := a.findSession(r)
	if err == nil {
		err = a.sessions.End(r.Context(), current, reason)
	}
	if err != nil && !errors.Is(err, session.ErrNone) {
		return nil, err
	}
	if _, state := a.cookie.Read(r); state != session.CookieForeign {
		a.cookie.Clear(w)
	}
	return current, nil
}

// uncancelled returns r with a context that goes on if the client goes away.
func uncancelled(r *http.Request) *http.Request {
	return r.WithContext(context.WithoutCancel(r.Context()))
}

// cookieRefused counts and logs a cookie that is not used, once a request
// however often it is read. A foreign one is a warning: two applications share
// session keys and a host name. A client that guesses at cookies does not fill
// the log.
func (a *app) cookieRefused(r *http.Request, name string, state session.CookieState) {
	ctx := r.Context()
	w, _ := ctx.Value(responseKey{}).(*response)
	if w == nil || slices.Contains(w.refusedCookies, name) {
		return
	}
	w.refusedCookies = append(w.refusedCookies, name)
	a.server.refusedCookies.of(state).Add(1)
	e := w.event(EventKind("cookie."+string(state)), "cookie refused")
	if state == session.CookieForeign {
		e.level = slog.LevelWarn
	}
	e.attrs = []slog.Attr{slog.String("cookie", name)}
	a.emit(ctx, e)
}

// isOwnCookie reports whether a cookie is one of the broker's own, in any case
// of letters. So are those of brokers on other ports of this host, which
// browsers send to each of them, those of brokers with another base path, and
// those of releases that did not name the port.
func isOwnCookie(name string) bool {
	rest, ok := strings.CutPrefix(strings.TrimPrefix(strings.ToLower(name), "__host-http-"), "cloakroom")
	if !ok || rest == "" {
		return ok
	}
	// What follows is a port, a hash of the base path, and a purpose: see
	// session.CookieConfig.Name.
	const digits = "0123456789"
	if rest[0] == '-' && len(rest) > 1 && strings.Contains(digits, rest[1:2]) {
		rest = strings.TrimLeft(rest[1:], digits)
	}
	if len(rest) > 8 && rest[0] == '.' && strings.Trim(rest[1:9], digits+"abcdef") == "" {
		rest = rest[9:]
	}
	return rest == "" || rest == "-logout" || strings.HasPrefix(rest, "-login-")
}
