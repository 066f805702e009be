package bff

import (
	"cmp"
	"context"
	"log/slog"
	"net/http"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/cloakroom-bff/cloakroom/internal/span"
)

// startSpan starts the span of a request, and returns the request with the span
// in its context.
//
// A trusted proxy may say which span the request is part of, and whether it is
// recorded. Other clients may not: a browser could have every request recorded,
// or join the trace of another user. Its span is only linked. A program with an
// http.Server of its own may have started a span too, which is then the parent.
func (a *app) startSpan(w *response, r *http.Request) *http.Request {
	ctx := r.Context()
	opts := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindServer)}
	if !trace.SpanContextFromContext(ctx).IsValid() {
		if caller := span.Extract(r.Header); caller.IsValid() && a.trustsPeer(r) {
			ctx = trace.ContextWithRemoteSpanContext(ctx, caller)
		} else if caller.IsValid() {
			opts = append(opts, trace.WithLinks(trace.Link{SpanContext: caller}))
		}
	}
	_, name := span.Method(r.Method)
	ctx, w.span = a.tracer.Start(ctx, name, opts...)
	return r.WithContext(ctx)
}

// endSpan ends the span of a request, if there is one.
func (a *app) endSpan(w *response) {
	if w.span == nil {
		return
	}
	defer w.span.End()
	if !w.span.IsRecording() {
		return
	}
	method, name := span.Method(w.method)
	scheme, _, _ := strings.Cut(a.origin, ":")
	attrs := append(make([]attribute.KeyValue, 0, 7),
		method,
		semconv.URLPath(truncate(w.path, maxLogged)),
		semconv.URLScheme(scheme),
		semconv.ClientAddress(w.client),
	)
	if w.route != "" {
		w.span.SetName(name + " " + w.route)
		attrs = append(attrs, semconv.HTTPRoute(w.route))
	}
	status := cmp.Or(w.exchange.Status, w.status)
	if status != 0 {
		attrs = append(attrs, semconv.HTTPResponseStatusCode(status))
	}
	code := ""
	if w.problem != nil {
		code = w.problem.Code
		attrs = append(attrs, attribute.String("cloakroom.problem", code))
	}
	w.span.SetAttributes(attrs...)
	if status >= http.StatusInternalServerError || w.exchange.Err != nil {
		span.Fail(w.span, cmp.Or(code, strconv.Itoa(status)))
	}
}

// traceID returns the ID of the trace that the request is part of, whether it
// is recorded or not. Without spans it is that of the client, which may be
// empty.
func (w *response) traceID() string {
	if w.span == nil {
		return w.trace
	}
	return w.span.SpanContext().TraceID().String()
}

// withTraces returns a logger that adds the ID of the trace to each line that
// is logged in the context of a span.
func withTraces(log *slog.Logger, tracer trace.Tracer) *slog.Logger {
	if tracer == nil {
		return log
	}
	return slog.New(tracedHandler{log.Handler()})
}

type tracedHandler struct{ slog.Handler }

func (h tracedHandler) Handle(ctx context.Context, r slog.Record) error {
	if current := trace.SpanContextFromContext(ctx); current.HasTraceID() {
		r = r.Clone()
		r.AddAttrs(slog.String("trace", current.TraceID().String()))
	}
	return h.Handler.Handle(ctx, r)
}

func (h tracedHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return tracedHandler{h.Handler.WithAttrs(attrs)}
}

func (h tracedHandler) WithGroup(name string) slog.Handler {
	return tracedHandler{h.Handler.WithGroup(name)}
}
