package bff

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
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

// CookiesRefused returns how many requests brought a cookie of this broker's
// name, of a session or a login attempt, that was not used because of its state.
func (s *Server) CookiesRefused(state session.CookieState) uint64 {
	return s.refusedCookies.of(state).Load()
}

// sessionCookieRefused is session.Config.CookieRefused.
func (s *Server) sessionCookieRefused(r *http.Request, state session.CookieState) {
	s.cookieRefused(r, s.sessions.CookieName(), state)
}

// cookieRefused counts and logs a cookie that is not used, once a request
// however often it is read. A foreign one is a warning: two applications share
// session keys and a host name. Whoever guesses at cookies does not fill the
// log.
func (s *Server) cookieRefused(r *http.Request, name string, state session.CookieState) {
	ctx := r.Context()
	w, _ := ctx.Value(responseKey{}).(*response)
	if w == nil || slices.Contains(w.refusedCookies, name) {
		return
	}
	w.refusedCookies = append(w.refusedCookies, name)
	s.refusedCookies.of(state).Add(1)
	level := slog.LevelDebug
	if state == session.CookieForeign {
		level = slog.LevelWarn
	}
	s.log.LogAttrs(context.WithoutCancel(ctx), level, "cookie refused", slog.String("event", "cookie."+string(state)),
		slog.String("cookie", name), slog.String("request", w.requestID), slog.String("client", w.client))
}
