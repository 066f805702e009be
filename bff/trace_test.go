package bff_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

// traced is a broker whose spans a test reads.
type traced struct {
	*app
	spans *tracetest.InMemoryExporter
}

func newTraced(t *testing.T, edit func(*app, *bff.Config)) *traced {
	t.Helper()
	exporter := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter))
	a := newApp(t, func(a *app, cfg *bff.Config) {
		cfg.TracerProvider = provider
		if edit != nil {
			edit(a, cfg)
		}
	})
	return &traced{a, exporter}
}

// find returns the first span with a name and a kind. It waits for the span.
func (a *traced) find(name string, kind trace.SpanKind) tracetest.SpanStub {
	a.t.Helper()
	for deadline := time.Now().Add(testTimeout); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		for _, s := range a.spans.GetSpans() {
			if s.Name == name && s.SpanKind == kind {
				return s
			}
		}
	}
	a.t.Fatalf("no span %q of the kind %v among:\n%s", name, kind, a.names())
	return tracetest.SpanStub{}
}

// names returns the name and kind of each span.
func (a *traced) names() string {
	var text strings.Builder
	for _, s := range a.spans.GetSpans() {
		fmt.Fprintf(&text, "%v %s\n", s.SpanKind, s.Name)
	}
	return text.String()
}

// attrs returns the attributes of a span as texts.
func attrs(s tracetest.SpanStub) map[string]string {
	all := make(map[string]string)
	for _, a := range s.Attributes {
		all[string(a.Key)] = a.Value.String()
	}
	return all
}

func wantAttrs(t *testing.T, s tracetest.SpanStub, want map[string]string) {
	t.Helper()
	got := attrs(s)
	for name, value := range want {
		if got[name] != value {
			t.Errorf("span %s: attribute %s: got %q, want %q", s.Name, name, got[name], value)
		}
	}
}

func wantParent(t *testing.T, child, parent tracetest.SpanStub) {
	t.Helper()
	if child.SpanContext.TraceID() != parent.SpanContext.TraceID() {
		t.Errorf("trace of %s: got %v, want that of %s, %v", child.Name,
			child.SpanContext.TraceID(), parent.Name, parent.SpanContext.TraceID())
	}
	if child.Parent.SpanID() != parent.SpanContext.SpanID() {
		t.Errorf("parent of %s: got %v, want %s, %v", child.Name,
			child.Parent.SpanID(), parent.Name, parent.SpanContext.SpanID())
	}
}

// traceparent returns the header that names a span as the parent.
func traceparent(s tracetest.SpanStub) string {
	c := s.SpanContext
	return "00-" + c.TraceID().String() + "-" + c.SpanID().String() + "-" + c.TraceFlags().String()
}

func TestSpansOfARequestAndItsUpstream(t *testing.T) {
	t.Parallel()
	a := newTraced(t, nil)
	b := a.signedIn()
	a.spans.Reset()
	got := echoed(t, b.Fetch("GET", "/api/orders?secret=q", "Tracestate", "vendor=browser")).Header

	server := a.find("GET /api/", trace.SpanKindServer)
	wantAttrs(t, server, map[string]string{
		"http.request.method": "GET", "http.route": "/api/", "url.path": "/api/orders", "url.scheme": "http",
		"http.response.status_code": "200", "client.address": "127.0.0.1", "error.type": "",
	})
	if server.Parent.IsValid() {
		t.Errorf("parent of the request: got %v, want none", server.Parent)
	}
	client := a.find("GET", trace.SpanKindClient)
	wantParent(t, client, server)
	echo, _ := url.Parse(a.echo.URL)
	wantAttrs(t, client, map[string]string{
		"http.request.method": "GET", "server.address": echo.Hostname(), "server.port": echo.Port(),
		"url.full": a.echo.URL + "/api/orders", "network.peer.address": "127.0.0.1",
		"http.response.status_code": "200", "error.type": "",
	})
	if want := traceparent(client); got.Get("Traceparent") != want {
		t.Errorf("traceparent at the upstream: got %q, want %q", got.Get("Traceparent"), want)
	}
	if state := got.Get("Tracestate"); state != "" {
		t.Errorf("tracestate at the upstream: got %q, want none", state)
	}
	lines := a.logs.lines(t, "request")
	if got, want := lines[len(lines)-1]["trace"], server.SpanContext.TraceID().String(); got != want {
		t.Errorf("trace in the access log: got %v, want %s", got, want)
	}
}

func TestSpanNamesHaveFewValues(t *testing.T) {
	t.Parallel()
	a := newTraced(t, nil)
	b := a.browser()
	for target, want := range map[string]string{
		"/bff/session": "GET /bff/session", "/bff/none/17": "GET", "/orders/17": "GET", "/public/17": "GET /public/",
	} {
		a.spans.Reset()
		b.Fetch("GET", target)
		if got := a.find(want, trace.SpanKindServer); attrs(got)["url.path"] != target {
			t.Errorf("%s: got %q, want a span of it", target, attrs(got)["url.path"])
		}
	}
	a.spans.Reset()
	b.Fetch("FROBNICATE", "/public/17")
	wantAttrs(t, a.find("HTTP /public/", trace.SpanKindServer), map[string]string{"http.request.method": "_OTHER"})
}

// Only a trusted proxy may say which trace a request is part of, and whether it
// is recorded.
func TestTraceOfTheClientCountsFromAProxyOnly(t *testing.T) {
	t.Parallel()
	const id, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	header := []string{"Traceparent", "00-" + id + "-" + parent + "-01", "Tracestate", "vendor=1"}

	a := newTraced(t, nil)
	b := a.signedIn()
	got := echoed(t, b.Fetch("GET", "/api/x", header...)).Header
	span := a.find("GET /api/", trace.SpanKindServer)
	if span.SpanContext.TraceID().String() == id {
		t.Error("the request of a browser is in the trace that it names, want another trace")
	}
	if len(span.Links) != 1 || span.Links[0].SpanContext.TraceID().String() != id {
		t.Errorf("links of the request: got %v, want one to the trace %s", span.Links, id)
	}
	if strings.Contains(got.Get("Traceparent"), id) {
		t.Errorf("traceparent at the upstream: got %q, want not that of the browser", got.Get("Traceparent"))
	}

	a = newTraced(t, func(_ *app, cfg *bff.Config) {
		cfg.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	})
	b = a.signedIn()
	a.spans.Reset()
	got = echoed(t, b.Fetch("GET", "/api/x", header...)).Header
	span = a.find("GET /api/", trace.SpanKindServer)
	if span.SpanContext.TraceID().String() != id || span.Parent.SpanID().String() != parent {
		t.Errorf("behind a proxy: got trace %v and parent %v, want %s and %s",
			span.SpanContext.TraceID(), span.Parent.SpanID(), id, parent)
	}
	if got.Get("Tracestate") != "vendor=1" {
		t.Errorf("tracestate behind a proxy: got %q, want vendor=1", got.Get("Tracestate"))
	}
	a.spans.Reset()
	got = echoed(t, b.Fetch("GET", "/api/x", "Traceparent", "00-"+id+"-"+parent+"-00")).Header
	if want := "00-" + id; !strings.HasPrefix(got.Get("Traceparent"), want) ||
		!strings.HasSuffix(got.Get("Traceparent"), "-00") {
		t.Errorf("traceparent of a trace that is not recorded: got %q, want %s-…-00", got.Get("Traceparent"), want)
	}
	if spans := a.spans.GetSpans(); len(spans) != 0 {
		t.Errorf("a trace that the proxy does not record has spans: %s", a.names())
	}
}

func TestSpansSayWhyARequestFailed(t *testing.T) {
	t.Parallel()
	a := newTraced(t, nil)
	b := a.signedIn()

	a.spans.Reset()
	b.Fetch("GET", "/bff/none")
	missing := a.find("GET", trace.SpanKindServer)
	wantAttrs(t, missing, map[string]string{
		"http.response.status_code": "404", "cloakroom.problem": "not_found", "error.type": "",
	})
	if missing.Status.Code != codes.Unset {
		t.Errorf("404: status of the span: got %v, want unset: it is the client's error", missing.Status.Code)
	}

	a.echo.Close()
	a.spans.Reset()
	wantProblem(t, b.Fetch("GET", "/api/x"), 502, "upstream_failed")
	for _, s := range []tracetest.SpanStub{a.find("GET", trace.SpanKindClient),
		a.find("GET /api/", trace.SpanKindServer)} {
		wantAttrs(t, s, map[string]string{"error.type": "upstream_failed"})
		if s.Status.Code != codes.Error || s.Status.Description != "" {
			t.Errorf("502: status of the %v span: got %v, want an error without text", s.SpanKind, s.Status)
		}
	}
}

// A call that finds its token expired waits for the refresh, which asks the
// provider. All of that is one trace, which the provider sees too.
func TestSpansOfACallThatWaitsForARefresh(t *testing.T) {
	t.Parallel()
	a := newTraced(t, nil)
	b := a.expired()
	atProvider := make(chan string, 1)
	a.provider.SetHooks(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, "/token") {
			atProvider <- r.Header.Get("Traceparent")
		}
		next.ServeHTTP(w, r)
	}})
	a.spans.Reset()
	echoed(t, b.Fetch("GET", "/api/x"))
	server := a.find("GET /api/", trace.SpanKindServer)
	wait := a.find("session.wait_for_refresh", trace.SpanKindInternal)
	refresh := a.find("session.refresh", trace.SpanKindInternal)
	token := a.find("POST token", trace.SpanKindClient)
	wantParent(t, wait, server)
	wantParent(t, refresh, wait)
	wantParent(t, token, refresh)
	wantParent(t, a.find("GET", trace.SpanKindClient), server)
	readsBelowRefresh := 0
	for _, s := range a.spans.GetSpans() {
		if s.Name == "session.load" && s.Parent.SpanID() == refresh.SpanContext.SpanID() {
			readsBelowRefresh++
		}
	}
	if readsBelowRefresh != 1 {
		t.Errorf("reads of the session below the refresh: got %d, want 1", readsBelowRefresh)
	}
	issuer, _ := url.Parse(a.provider.Issuer)
	wantAttrs(t, token, map[string]string{
		"http.request.method": "POST", "http.response.status_code": "200", "server.address": issuer.Hostname(),
		"server.port": issuer.Port(), "url.full": a.provider.Issuer + "/token", "error.type": "",
	})
	if got, want := <-atProvider, traceparent(token); got != want {
		t.Errorf("traceparent at the provider: got %q, want %q", got, want)
	}
}

func TestLogLinesOfARequestHaveItsTrace(t *testing.T) {
	t.Parallel()
	a := newTraced(t, nil)
	b := a.expired()
	echoed(t, b.Fetch("GET", "/api/x"))
	b.Fetch("POST", "/api/x", "X-CSRF", "", "Sec-Fetch-Site", "cross-site")
	for msg, span := range map[string]string{
		"session started": "GET /bff/callback", "session refreshed": "GET /api/",
		"request refused: it may come from another site": "POST /api/",
	} {
		lines := a.logs.lines(t, msg)
		if len(lines) != 1 {
			t.Errorf("%q: got %d lines, want 1", msg, len(lines))
			continue
		}
		if got, want := lines[0]["trace"],
			a.find(span, trace.SpanKindServer).SpanContext.TraceID().String(); got != want {
			t.Errorf("%q: trace: got %v, want %s", msg, got, want)
		}
	}
	for _, line := range a.logs.lines(t, "request") {
		if id, _ := line["trace"].(string); len(id) != 32 {
			t.Errorf("%v %v: trace: got %q, want 32 digits", line["method"], line["path"], id)
		}
	}
}

func TestSpansOfRequestsToTheProvider(t *testing.T) {
	t.Parallel()
	a := newTraced(t, nil)
	wantAttrs(t, a.find("GET discovery", trace.SpanKindClient), map[string]string{
		"url.full": a.provider.Issuer + "/.well-known/openid-configuration", "http.response.status_code": "200",
	})
	b := a.signedIn()
	callback := a.find("GET /bff/callback", trace.SpanKindServer)
	wantParent(t, a.find("POST token", trace.SpanKindClient), callback)
	wantParent(t, a.find("GET jwks", trace.SpanKindClient), callback)
	b.Fetch("POST", "/bff/logout")
	logout := a.find("POST /bff/logout", trace.SpanKindServer)
	wantParent(t, a.find("POST revocation", trace.SpanKindClient), logout)

	b = a.expired()
	a.provider.SetHooks(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, "/token") {
			http.Error(w, "busy", http.StatusServiceUnavailable)
			return
		}
		next.ServeHTTP(w, r)
	}})
	a.spans.Reset()
	wantProblem(t, b.Fetch("GET", "/api/x"), 503, "provider_unavailable")
	for _, failed := range []struct {
		name string
		kind trace.SpanKind
		want string
	}{
		{"POST token", trace.SpanKindClient, "503"},
		{"session.refresh", trace.SpanKindInternal, "provider_unavailable"},
		{"session.wait_for_refresh", trace.SpanKindInternal, "provider_unavailable"},
		{"GET /api/", trace.SpanKindServer, "provider_unavailable"},
	} {
		wantAttrs(t, a.find(failed.name, failed.kind), map[string]string{"error.type": failed.want})
	}
}

// The spans of an event stream and of a WebSocket end when these end, not when
// the handler returns.
func TestSpanOfAStreamEndsWithTheStream(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	a := newTraced(t, func(a *app, _ *bff.Config) {
		a.echo.Handler = func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Upgrade") != "" {
				conn, _, err := switchProtocols(w)
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				io.WriteString(conn, "hello")
				<-release
				return
			}
			w.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(w, "data: hello\n\n")
			flush(w)
			<-release
		}
	})
	b := a.signedIn()
	a.spans.Reset()

	events := b.Open("/stream/events")
	defer events.Body.Close()
	wantBytes(t, "event", events.Body, "data: hello\n\n")

	origin, _ := url.Parse(a.url)
	conn, err := net.Dial("tcp", origin.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(testTimeout))
	fmt.Fprintf(conn, "GET /api/socket HTTP/1.1\r\nHost: %s\r\nCookie: %s\r\nX-CSRF: 1\r\nOrigin: %s\r\n"+
		"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", origin.Host, cookieHeader(b.Cookies()), a.url)
	socket := bufio.NewReader(conn)
	if resp, err := http.ReadResponse(socket, nil); err != nil || resp.StatusCode != 101 {
		t.Fatalf("open the WebSocket: got %v, %v, want 101", resp, err)
	}
	wantBytes(t, "frame", socket, "hello")
	for _, s := range a.spans.GetSpans() {
		if s.SpanKind != trace.SpanKindInternal {
			t.Errorf("span %s has ended while the streams are open", s.Name)
		}
	}
	released := time.Now()
	close(release)
	io.Copy(io.Discard, socket) // until the upstream has closed it
	conn.Close()
	for name, status := range map[string]string{"GET /stream/": "200", "GET /api/": "101"} {
		server := a.find(name, trace.SpanKindServer)
		wantAttrs(t, server, map[string]string{"http.response.status_code": status, "error.type": ""})
		if server.EndTime.Before(released) {
			t.Errorf("%s: the span ended %v before the stream", name, released.Sub(server.EndTime))
		}
	}
	var clients int
	for _, s := range a.spans.GetSpans() {
		if s.SpanKind == trace.SpanKindClient && s.EndTime.After(released) {
			clients++
		}
	}
	if clients != 2 {
		t.Errorf("spans of upstreams that ended with the streams: got %d, want 2:\n%s", clients, a.names())
	}
}

// cookieHeader returns the value of a header Cookie.
func cookieHeader(cookies []*http.Cookie) string {
	var pairs []string
	for _, c := range cookies {
		pairs = append(pairs, c.Name+"="+c.Value)
	}
	return strings.Join(pairs, "; ")
}
