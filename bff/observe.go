package bff

import (
	"context"
	"errors"
	"log/slog"

	"github.com/cloakroom-bff/cloakroom/session"
)

// observe is session.Config.Observe. It is the one place that turns the events
// of sessions into log lines.
func (a *app) observe(ctx context.Context, e session.Event) {
	level, message := slog.LevelInfo, ""
	attrs := []slog.Attr{slog.String("event", string(e.Kind)), slog.String("session", e.Session)}
	switch e.Kind {
	case session.SessionStarted:
		message = "session started"
	case session.SessionRefreshed:
		message = "session refreshed"
		attrs = append(attrs, slog.Time("access_token_expires_at", e.TokenExpiry))
	case session.RefreshFailed:
		level, message = slog.LevelWarn, "tokens not refreshed; the session is kept"
		var retry *session.RefreshError
		if errors.Is(e.Err, session.ErrUserRequired) {
			message = "tokens not refreshed; the user has to sign in again"
		} else if errors.As(e.Err, &retry) {
			if retry.Outage { // logged once, not for each session
				level = slog.LevelDebug
			}
			attrs = append(attrs, slog.String("retry_after", retry.RetryAfter.String()))
		}
	case session.SessionEnded:
		message = "session ended"
		attrs = append(attrs, slog.String("reason", string(e.Reason)))
		if e.Reason == session.ReasonLimit {
			attrs = append(attrs, slog.Int("max_per_user", a.maxPerUser))
		}
	}
	if e.Err != nil {
		attrs = append(attrs, slog.Any("err", e.Err))
	}
	if w, ok := ctx.Value(responseKey{}).(*response); ok {
		attrs = append(attrs, slog.String("request", w.requestID))
	}
	a.log.LogAttrs(context.WithoutCancel(ctx), level, message, attrs...)
}
