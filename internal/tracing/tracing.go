// Package tracing exports spans in OTLP over HTTP, as the environment variables
// of OpenTelemetry say.
package tracing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// stopTimeout bounds how long stop waits for the collector.
const stopTimeout = 5 * time.Second

// Start starts the export of spans. Without a variable that asks for it,
// provider is nil. stop exports what is in the queue. It takes 5 seconds at
// most. The error joins all mistakes in the variables; each begins with the
// name of one.
//
// Spans are exported in the background, and dropped if the queue is full: a
// request never waits for the collector. log gets a line after the first
// export. When the collector fails, it gets one line when that begins and one
// when it is over. Spans that are dropped although the collector works are
// counted in a line, at most once a minute.
func Start(
	getenv func(string) string, version string, log *slog.Logger,
) (provider trace.TracerProvider, stop func(), err error) {
	s, errs := read(getenv)
	if s == nil || len(errs) > 0 {
		return nil, func() {}, errors.Join(errs...)
	}
	otlp, err := otlptracehttp.New(context.Background(), append(s.exporter, otlptracehttp.WithRetry(retry))...)
	if err != nil {
		return nil, func() {}, fmt.Errorf("OTEL_EXPORTER_OTLP_ENDPOINT: %w", err)
	}
	// An error of a detector means that an attribute is missing.
	process, _ := resource.New(context.Background(), resource.WithSchemaURL(semconv.SchemaURL),
		resource.WithTelemetrySDK(), resource.WithHost(),
		resource.WithAttributes(semconv.ServiceName("cloakroom"), semconv.ServiceVersion(version)),
		resource.WithAttributes(s.resource...))
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Debug("traces: error of the SDK", "err", err) }))
	queue := &boundedQueue{most: int64(s.queue)}
	x := &exporter{SpanExporter: otlp, queue: queue, endpoint: s.endpoint, log: log}
	queue.SpanProcessor = sdktrace.NewBatchSpanProcessor(x, s.batches...)
	sdk := sdktrace.NewTracerProvider(
		sdktrace.WithSpanProcessor(queue),
		sdktrace.WithSampler(s.sampler), sdktrace.WithResource(process),
	)
	return sdk, func() {
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		if err := sdk.Shutdown(ctx); err != nil {
			log.Warn("last traces not exported", "endpoint", s.endpoint, "err", err)
		}
	}, nil
}

// retry repeats an export after a response that asks for it, such as 503. It
// ends before many more batches wait.
var retry = otlptracehttp.RetryConfig{
	Enabled: true, InitialInterval: time.Second, MaxInterval: 5 * time.Second, MaxElapsedTime: 5 * time.Second,
}

// boundedQueue counts the spans that are dropped because the queue is full. The
// batch processor drops them too, but does not tell.
type boundedQueue struct {
	sdktrace.SpanProcessor
	most             int64 // the size of its queue
	waiting, dropped atomic.Int64
}

// OnEnd implements sdktrace.SpanProcessor.
func (q *boundedQueue) OnEnd(s sdktrace.ReadOnlySpan) {
	if !s.SpanContext().IsSampled() {
		return
	}
	if q.waiting.Add(1) > q.most {
		q.waiting.Add(-1)
		q.dropped.Add(1)
		return
	}
	q.SpanProcessor.OnEnd(s)
}

// exporter logs when the collector begins to fail, and when it works again. The
// batch processor exports one batch at a time.
type exporter struct {
	sdktrace.SpanExporter
	queue    *boundedQueue
	endpoint string
	log      *slog.Logger

	worked   bool      // the first export was logged
	failing  bool      // which was logged at loggedAt
	loggedAt time.Time // zero: never
	lost     int       // spans that were not exported and not logged yet

	dropped   int       // spans that were dropped while the collector works, and not logged yet
	droppedAt time.Time // of the last line about them; zero: never
}

// minLogInterval is the minimum time between two failures that are logged: a
// collector may take only some of the batches.
const minLogInterval = time.Minute

// ExportSpans implements sdktrace.SpanExporter. It returns no error, which the
// SDK would log for each batch.
func (x *exporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	x.queue.waiting.Add(int64(-len(spans)))
	err := x.SpanExporter.ExportSpans(ctx, spans)
	now := time.Now()
	if dropped := int(x.queue.dropped.Swap(0)); err != nil || x.failing {
		x.lost += dropped
	} else {
		x.dropped += dropped
	}
	switch {
	case err == nil && x.failing:
		x.log.Info("traces exported again", "endpoint", x.endpoint,
			"after", now.Sub(x.loggedAt).Round(time.Millisecond).String(), "spans_lost", x.lost)
		x.worked, x.failing, x.lost = true, false, 0
	case err == nil && !x.worked:
		x.log.Info("traces exported", "endpoint", x.endpoint)
		x.worked = true
	case err != nil:
		x.lost += len(spans)
		if !x.failing && (x.loggedAt.IsZero() || now.Sub(x.loggedAt) >= minLogInterval) {
			x.failing, x.loggedAt = true, now
			x.log.Warn("traces not exported; spans are dropped until the collector responds",
				"endpoint", x.endpoint, "err", truncate(err.Error()))
		}
	}
	if x.dropped > 0 && (x.droppedAt.IsZero() || now.Sub(x.droppedAt) >= minLogInterval) {
		x.log.Warn("spans dropped: more end than the collector takes", "endpoint", x.endpoint, "count", x.dropped)
		x.dropped, x.droppedAt = 0, now
	}
	return nil
}

// truncate bounds the length of a text that a collector chose.
func truncate(text string) string {
	const most = 512
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}
