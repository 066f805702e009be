// Package span starts OpenTelemetry spans in a program that may not trace. In
// that case there is no tracer, and nothing is allocated.
package span

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strconv"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// Tracer returns the tracer of this module, or nil if provider is nil.
func Tracer(provider trace.TracerProvider) trace.Tracer {
	if provider == nil {
		return nil
	}
	return provider.Tracer("github.com/cloakroom-bff/cloakroom", trace.WithSchemaURL(semconv.SchemaURL))
}

// none does nothing.
var none = trace.SpanFromContext(context.Background())

// Start starts a span, as a child of the one in ctx. If tracer is nil, it
// returns ctx and a span that does nothing.
func Start(
	ctx context.Context, tracer trace.Tracer, name string, kind trace.SpanKind,
) (context.Context, trace.Span) {
	if tracer == nil {
		return ctx, none
	}
	return tracer.Start(ctx, name, trace.WithSpanKind(kind))
}

// Fail marks a span as failed. kind is its error.type: one of few texts, such
// as an error code.
func Fail(s trace.Span, kind string) {
	s.SetStatus(codes.Error, "")
	s.SetAttributes(semconv.ErrorTypeKey.String(kind))
}

// ErrorType returns the error.type of an error without a code of its own. The
// text of an error is never part of a span: it could quote what a client sent.
func ErrorType(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	}
	return semconv.ErrorTypeOther.Value.AsString()
}

// traceContext reads and writes traceparent and tracestate (W3C Trace Context).
var traceContext propagation.TraceContext

// Inject replaces traceparent and tracestate in a request header by those of
// the span in ctx.
func Inject(ctx context.Context, h http.Header) {
	delete(h, "Tracestate") // Inject sets it only if there is one
	traceContext.Inject(ctx, propagation.HeaderCarrier(h))
}

// Extract returns the span that a request header says the request is part of.
// It is not valid if there is none, or more than one.
func Extract(h http.Header) trace.SpanContext {
	if len(h["Traceparent"]) != 1 {
		return trace.SpanContext{}
	}
	return trace.SpanContextFromContext(traceContext.Extract(context.Background(), propagation.HeaderCarrier(h)))
}

// methods are those that a span is named after.
var methods = map[string]bool{
	http.MethodGet: true, http.MethodHead: true, http.MethodPost: true, http.MethodPut: true,
	http.MethodPatch: true, http.MethodDelete: true, http.MethodOptions: true, http.MethodConnect: true,
	http.MethodTrace: true, "QUERY": true,
}

// Method returns the attribute for the method of a request, and how it appears
// in the name of a span. Clients can send any method.
func Method(method string) (attr attribute.KeyValue, name string) {
	if methods[method] {
		return semconv.HTTPRequestMethodKey.String(method), method
	}
	return semconv.HTTPRequestMethodOther, "HTTP"
}

// Target returns the attributes of a request to another server: where it goes,
// without the query.
func Target(u *url.URL) []attribute.KeyValue {
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		port = map[string]int{"http": 80, "https": 443}[u.Scheme]
	}
	full := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}
	return []attribute.KeyValue{
		semconv.URLFull(full.String()), semconv.ServerAddress(u.Hostname()), semconv.ServerPort(port),
	}
}

// Status sets the status of the response to a request that was sent to another
// server. From 400 on, the span has failed.
func Status(s trace.Span, status int) {
	s.SetAttributes(semconv.HTTPResponseStatusCode(status))
	if status >= http.StatusBadRequest {
		Fail(s, strconv.Itoa(status))
	}
}
