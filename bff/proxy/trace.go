package proxy

import (
	"context"
	"errors"
	"net"

	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/internal/span"
)

// startSpan starts the span of the exchange, which covers all attempts, and
// returns ctx with it.
func (x *exchange) startSpan(ctx context.Context) context.Context {
	method, name := span.Method(x.r.Method)
	ctx, x.span = span.Start(ctx, x.p.tracer, name, trace.SpanKindClient)
	if x.span.IsRecording() {
		x.span.SetAttributes(method)
	}
	return ctx
}

// endSpan ends the span, if there is one. Call it before end, which cancels
// ctx. err is the error of the exchange if there is no response.
func (x *exchange) endSpan(ctx context.Context, err error) {
	if x.span == nil {
		return
	}
	defer x.span.End()
	if !x.span.IsRecording() {
		return
	}
	if x.url != nil {
		x.span.SetAttributes(span.Target(x.url)...)
	}
	if host, _, err := net.SplitHostPort(x.record.Upstream); err == nil {
		x.span.SetAttributes(semconv.NetworkPeerAddress(host))
	} else if x.record.Upstream != "" {
		x.span.SetAttributes(semconv.NetworkPeerAddress(x.record.Upstream))
	}
	if n := x.record.Retries; n > 0 {
		x.span.SetAttributes(semconv.HTTPRequestResendCount(n))
	}
	if x.resp != nil {
		span.Status(x.span, x.resp.StatusCode)
	}
	if err == nil {
		err = x.record.Err
	}
	if err == nil && !x.streaming { // a stream ends when its client leaves
		err = context.Cause(ctx)
	}
	var p *problem.Problem
	switch {
	case err == nil:
	case errors.As(err, &p):
		span.Fail(x.span, p.Code)
	case errors.Is(err, ErrEnded):
		span.Fail(x.span, "session_ended")
	default:
		span.Fail(x.span, span.ErrorType(err))
	}
}
