package session

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/cloakroom-bff/cloakroom/internal/span"
)

// endSpan ends a span. err is that of what it covers.
func endSpan(s trace.Span, err error) {
	var unrefreshed *RefreshError
	switch {
	case err == nil:
	case errors.Is(err, ErrStore):
		span.Fail(s, "store_unavailable")
	case errors.Is(err, ErrUserRequired):
		span.Fail(s, "user_required")
	case errors.Is(err, ErrNone), errors.Is(err, ErrEnded):
		span.Fail(s, "session_ended")
	case errors.As(err, &unrefreshed):
		span.Fail(s, "provider_unavailable")
	default:
		span.Fail(s, span.ErrorType(err))
	}
	s.End()
}

// readRecord reads the record of the session with an ID from the store.
func (m *Manager) readRecord(ctx context.Context, id string) ([]byte, time.Duration, bool, error) {
	ctx, s := span.Start(ctx, m.tracer, "session.load", trace.SpanKindInternal)
	sealed, ttl, found, err := m.cfg.Store.Get(ctx, recordKey(id))
	if err != nil {
		err = storeError("read", err)
	}
	endSpan(s, err)
	return sealed, ttl, found, err
}

// awaitRefresh is joinRefresh with a span. It is linked to the span of the
// refresh, which may have been started by another request.
func (m *Manager) awaitRefresh(ctx context.Context, s *Session, target string) (*Session, error) {
	ctx, wait := span.Start(ctx, m.tracer, "session.wait_for_refresh", trace.SpanKindInternal)
	fresh, err := m.joinRefresh(ctx, s, target)
	endSpan(wait, err)
	return fresh, err
}

// link links the span of the refresh with that of a caller that waits for it.
func (r *refresh) link(wait trace.Span) {
	r.span.AddLink(trace.Link{SpanContext: wait.SpanContext()})
	wait.AddLink(trace.Link{SpanContext: r.span.SpanContext()})
}
