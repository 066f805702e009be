package session_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

// newTraces returns a provider of spans, and the spans that have ended.
func newTraces() (*sdktrace.TracerProvider, *tracetest.InMemoryExporter) {
	spans := tracetest.NewInMemoryExporter()
	return sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans)), spans
}

// named returns the spans with a name.
func named(spans *tracetest.InMemoryExporter, name string) (found []tracetest.SpanStub) {
	for _, s := range spans.GetSpans() {
		if s.Name == name {
			found = append(found, s)
		}
	}
	return found
}

// linked reports whether a span has a link to another one.
func linked(s, to tracetest.SpanStub) bool {
	for _, l := range s.Links {
		if l.SpanContext.Equal(to.SpanContext) {
			return true
		}
	}
	return false
}

// The refresh is in the trace of the request that has started it, and linked
// with all requests that wait for it.
func TestSpanOfARefreshIsLinkedWithItsWaiters(t *testing.T) {
	traces, spans := newTraces()
	p := &tokenEndpoint{takes: 150 * time.Millisecond}
	withProvider(t, p, session.Config{TracerProvider: traces},
		func(t *testing.T, m *session.Manager, ticket session.Ticket) {
			time.Sleep(time.Minute)
			var all sync.WaitGroup
			for i := range 5 {
				all.Go(func() {
					time.Sleep(time.Duration(i) * time.Millisecond)
					ctx, request := traces.Tracer("test").Start(t.Context(), fmt.Sprint("request ", i))
					defer request.End()
					if _, err := findFresh(ctx, m, ticket, ""); err != nil {
						t.Errorf("Fresh: got %v, want no error", err)
					}
				})
			}
			all.Wait()
		})
	refreshes, waits := named(spans, "session.refresh"), named(spans, "session.wait_for_refresh")
	if len(refreshes) != 1 || len(waits) != 5 {
		t.Fatalf("spans: got %d refreshes and %d waits, want 1 and 5", len(refreshes), len(waits))
	}
	refresh, started := refreshes[0], 0
	for _, wait := range waits {
		if !linked(wait, refresh) || !linked(refresh, wait) {
			t.Errorf("wait %v: got no links with the refresh in both directions", wait.SpanContext.SpanID())
		}
		if refresh.Parent.SpanID() == wait.SpanContext.SpanID() {
			started++
		}
		if wait.EndTime.Before(refresh.EndTime) {
			t.Errorf("wait %v ended before the refresh", wait.SpanContext.SpanID())
		}
	}
	if started != 1 {
		t.Errorf("parent of the refresh: got %v, want the wait of one request", refresh.Parent.SpanID())
	}
}

func TestBackgroundRefreshIsInTheTraceOfItsRequest(t *testing.T) {
	traces, spans := newTraces()
	p := &tokenEndpoint{}
	withProvider(t, p, session.Config{TracerProvider: traces},
		func(t *testing.T, m *session.Manager, ticket session.Ticket) {
			time.Sleep(45 * time.Second)
			ctx, request := traces.Tracer("test").Start(t.Context(), "request")
			if _, err := findFresh(ctx, m, ticket, ""); err != nil {
				t.Errorf("Fresh: got %v, want no error", err)
			}
			request.End()
			if err := m.Drain(t.Context()); err != nil {
				t.Error(err)
			}
			refreshes := named(spans, "session.refresh")
			if len(refreshes) != 1 || refreshes[0].Parent.SpanID() != request.SpanContext().SpanID() {
				t.Errorf("refreshes: got %v, want one below the request", refreshes)
			}
			if got := named(spans, "session.wait_for_refresh"); len(got) != 0 {
				t.Errorf("waits: got %d, want none: the token is still good", len(got))
			}
		})
}

func TestSpanOfAFailedRefreshSaysWhy(t *testing.T) {
	for want, err := range map[string]error{
		"provider_unavailable": errors.New("503 secret-text"),
		"user_required":        session.ErrUserRequired,
		"session_ended":        session.ErrRefused,
	} {
		traces, spans := newTraces()
		p := &tokenEndpoint{respond: func(int, session.Tokens) (session.Tokens, error) { return session.Tokens{}, err }}
		withProvider(t, p, session.Config{TracerProvider: traces},
			func(t *testing.T, m *session.Manager, ticket session.Ticket) {
				time.Sleep(time.Minute)
				if _, err := findFresh(t.Context(), m, ticket, ""); err == nil {
					t.Errorf("%s: got no error", want)
				}
			})
		for _, s := range append(named(spans, "session.refresh"), named(spans, "session.wait_for_refresh")...) {
			if s.Status.Code != codes.Error || s.Status.Description != "" {
				t.Errorf("%s: %s: status: got %v, want an error without text", want, s.Name, s.Status)
			}
			if len(s.Attributes) != 1 || s.Attributes[0].Value.String() != want {
				t.Errorf("%s: %s: attributes: got %v", want, s.Name, s.Attributes)
			}
		}
	}
}

func TestOnlyReadsOfTheStoreHaveASpan(t *testing.T) {
	traces, spans := newTraces()
	m := newManager(t, session.Config{Store: new(tokenstore.Memory), TracerProvider: traces})
	_, ticket := signIn(t, m, tokens())
	loads := func() int {
		t.Helper()
		spans.Reset()
		if _, err := m.Find(t.Context(), ticket); err != nil {
			t.Fatal(err)
		}
		return len(named(spans, "session.load"))
	}
	if got := loads(); got != 1 { // the cache is used only while Run runs
		t.Errorf("read from the store: got %d spans, want 1", got)
	}
	watch(t, m)
	for deadline := time.Now().Add(10 * time.Second); loads() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("read from the cache: got a span for 10 s, want none")
		}
	}
}
