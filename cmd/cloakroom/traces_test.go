package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/check"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

// collector receives spans in OTLP over HTTP.
type collector struct {
	*httptest.Server

	mu       sync.Mutex                // guards all below
	answer   func(http.ResponseWriter) // nil: the collector works
	requests int
	raw      []byte // all bodies
	spans    []*tracepb.Span
}

// startCollector starts a collector at an address; empty means any.
func startCollector(t *testing.T, addr string) *collector {
	t.Helper()
	c := new(collector)
	c.Server = httptest.NewUnstartedServer(http.HandlerFunc(c.receive))
	if addr != "" {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c.Listener.Close()
		c.Listener = l
	}
	c.Start()
	t.Cleanup(c.Close)
	return c
}

func (c *collector) receive(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the broker has given up
	}
	c.mu.Lock()
	c.requests++
	answer := c.answer
	c.mu.Unlock()
	if answer != nil {
		answer(w)
		return
	}
	var exported coltracepb.ExportTraceServiceRequest
	if err := proto.Unmarshal(body, &exported); err != nil || r.URL.Path != "/v1/traces" {
		http.Error(w, fmt.Sprint(r.URL.Path, err), http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.raw = append(c.raw, body...)
	for _, resource := range exported.ResourceSpans {
		for _, scope := range resource.ScopeSpans {
			c.spans = append(c.spans, scope.Spans...)
		}
	}
}

// misbehave makes the collector answer in another way; nil ends that.
func (c *collector) misbehave(answer func(http.ResponseWriter)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answer = answer
}

func (c *collector) received() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.requests
}

// all returns the spans with a name. With the name "" it returns all spans.
func (c *collector) all(name string) (found []*tracepb.Span) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.spans {
		if name == "" || s.Name == name {
			found = append(found, s)
		}
	}
	return found
}

// wait waits for n spans with a name.
func (c *collector) wait(t *testing.T, name string, n int) []*tracepb.Span {
	t.Helper()
	eventually(t, 20*time.Second, fmt.Sprintf("%d spans %q arrive", n, name), func() bool {
		return len(c.all(name)) >= n
	})
	return c.all(name)
}

// attr returns an attribute of a span as a text.
func attr(s *tracepb.Span, key string) string {
	for _, a := range s.Attributes {
		if a.Key == key {
			return valueText(a.Value)
		}
	}
	return ""
}

func valueText(v *commonpb.AnyValue) string {
	if n, ok := v.Value.(*commonpb.AnyValue_IntValue); ok {
		return fmt.Sprint(n.IntValue)
	}
	return v.GetStringValue()
}

// traceparent returns the header that names a span as the parent.
func traceparent(s *tracepb.Span) string {
	return "00-" + hex.EncodeToString(s.TraceId) + "-" + hex.EncodeToString(s.SpanId) + "-01"
}

// startTraced starts a broker that exports spans to an endpoint, with more
// settings.
func startTraced(t *testing.T, endpoint string, more map[string]string) *fleet {
	t.Helper()
	env := map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "20"}
	maps.Copy(env, more)
	return startFleet(t, env, "memory:")
}

// logLines returns how many lines of the log have a message.
func (r *replica) logLines(msg string) int {
	return strings.Count(r.stderr.String(), fmt.Sprintf(`"msg":%q`, msg))
}

const (
	notExported   = "traces not exported; spans are dropped until the collector responds"
	exportedAgain = "traces exported again"
)

// The spans of a call that waits for a refresh are one tree, and each server
// that was asked got the context of its span.
func TestTracesOfACallThatWaitsForARefresh(t *testing.T) {
	t.Parallel()
	c := startCollector(t, "")
	f := startTraced(t, c.URL, nil)
	u := f.signInExpired(t)
	atProvider := make(chan string, 1)
	f.interceptRefresh(func(_ int, w http.ResponseWriter, r *http.Request, next http.Handler) {
		atProvider <- r.Header.Get("Traceparent")
		next.ServeHTTP(w, r)
	})
	got := f.call(f.replicas[0], u, "GET", "/api/x")
	if got.status != 200 {
		t.Fatalf("call: got %v, want 200", got)
	}
	var echoed brokertest.Echoed
	if err := json.Unmarshal([]byte(got.text), &echoed); err != nil {
		t.Fatal(err)
	}
	server := c.wait(t, "GET /api/", 1)[0]
	inTrace := func(name string, parent *tracepb.Span) *tracepb.Span {
		t.Helper()
		for _, s := range c.wait(t, name, 1) {
			if bytes.Equal(s.TraceId, server.TraceId) {
				if !bytes.Equal(s.ParentSpanId, parent.SpanId) {
					t.Errorf("parent of %s: got %x, want %s, %x", name, s.ParentSpanId, parent.Name, parent.SpanId)
				}
				return s
			}
		}
		t.Fatalf("no span %s in the trace %x", name, server.TraceId)
		return nil
	}
	wait := inTrace("session.wait_for_refresh", server)
	refresh := inTrace("session.refresh", wait)
	token := inTrace("POST token", refresh)
	upstream := inTrace("GET", server)
	if server.Kind != tracepb.Span_SPAN_KIND_SERVER || upstream.Kind != tracepb.Span_SPAN_KIND_CLIENT {
		t.Errorf("kinds: got %v and %v, want server and client", server.Kind, upstream.Kind)
	}
	if got, want := echoed.Header.Get("Traceparent"), traceparent(upstream); got != want {
		t.Errorf("traceparent at the upstream: got %q, want %q", got, want)
	}
	if got, want := <-atProvider, traceparent(token); got != want {
		t.Errorf("traceparent at the provider: got %q, want %q", got, want)
	}
	if got, want := attr(upstream, "http.response.status_code"), "200"; got != want {
		t.Errorf("status of the upstream: got %q, want %q", got, want)
	}
	r := f.replicas[0]
	eventually(t, 20*time.Second, "a line of the log has the trace", func() bool {
		return strings.Contains(r.stderr.String(), `"trace":"`+hex.EncodeToString(server.TraceId)+`"`)
	})
}

func TestTracesGoOnAfterAReload(t *testing.T) {
	t.Parallel()
	c := startCollector(t, "")
	f := startTraced(t, c.URL, nil)
	r := f.replicas[0]
	u := f.signIn(t, "alice", devidp.Hooks{})
	f.call(r, u, "GET", "/api/x")
	c.wait(t, "GET /api/", 1)
	before := r.logLines("configuration")
	r.cmd.Process.Signal(syscall.SIGHUP)
	eventually(t, 20*time.Second, "the configuration is reloaded",
		func() bool { return r.logLines("configuration") > before })
	f.call(r, u, "GET", "/api/x")
	c.wait(t, "GET /api/", 2)
}

func TestShutdownExportsTheLastSpans(t *testing.T) {
	t.Parallel()
	c := startCollector(t, "")
	f := startTraced(t, c.URL, map[string]string{"OTEL_BSP_SCHEDULE_DELAY": "3600000"})
	u := f.signIn(t, "alice", devidp.Hooks{})
	if got := f.call(f.replicas[0], u, "GET", "/api/x"); got.status != 200 {
		t.Errorf("call: got %v, want 200", got)
	}
	if got := c.received(); got != 0 {
		t.Errorf("exports before the shutdown: got %d, want 0", got)
	}
	f.replicas[0].stop(t)
	if got := len(c.all("GET /api/")); got != 1 {
		t.Errorf("spans of the call after the shutdown: got %d, want 1", got)
	}
}

// An outage of the collector is two lines in the log, and no request fails.
func TestCollectorOutageIsTwoLogLines(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	f := startTraced(t, "http://"+addr, nil)
	r := f.replicas[0]
	u := f.signIn(t, "alice", devidp.Hooks{})
	eventually(t, 20*time.Second, "the outage is logged", func() bool { return r.logLines(notExported) > 0 })
	var responses []response
	for range 50 {
		responses = append(responses, f.call(r, u, "GET", "/api/x"))
	}
	wantStatuses(t, responses, 200)

	c := startCollector(t, addr)
	c.misbehave(func(w http.ResponseWriter) { http.Error(w, "no space left", http.StatusInsufficientStorage) })
	eventually(t, 20*time.Second, "three more exports fail", func() bool {
		f.call(r, u, "GET", "/api/x")
		return c.received() >= 3
	})
	c.misbehave(nil)
	eventually(t, 20*time.Second, "the end of the outage is logged", func() bool {
		f.call(r, u, "GET", "/api/x")
		return r.logLines(exportedAgain) > 0
	})
	c.wait(t, "GET /api/", 1)
	if began, ended := r.logLines(notExported), r.logLines(exportedAgain); began != 1 || ended != 1 {
		t.Errorf("log lines of the outage: got %d of its begin and %d of its end, want one each:\n%s",
			began, ended, r.stderr)
	}
}

// Requests do not wait for a collector that accepts spans and never responds,
// and the spans that wait for it are bounded.
func TestRequestsDoNotWaitForACollectorThatHangs(t *testing.T) {
	t.Parallel()
	c := startCollector(t, "")
	released := make(chan struct{})
	release := sync.OnceFunc(func() { close(released) })
	t.Cleanup(release)
	c.misbehave(func(http.ResponseWriter) { <-released })
	f := startTraced(t, c.URL, map[string]string{
		"OTEL_BSP_MAX_QUEUE_SIZE": "20", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "5",
		// No export ends by itself during the test.
		"OTEL_EXPORTER_OTLP_TIMEOUT": "3600000", "OTEL_BSP_EXPORT_TIMEOUT": "3600000",
	})
	r := f.replicas[0]
	u := f.signIn(t, "alice", devidp.Hooks{})
	eventually(t, 20*time.Second, "an export hangs", func() bool { return c.received() == 1 })
	var responses []response
	for range 100 {
		responses = append(responses, f.call(r, u, "GET", "/api/x"))
	}
	wantStatuses(t, responses, 200)
	if got := c.received(); got != 1 {
		t.Errorf("exports: got %d, want 1 that hangs", got)
	}
	c.misbehave(nil)
	release()
	r.stop(t)
	if got := len(c.all("")); got > 20+2*5 {
		t.Errorf("spans that waited: got %d, want at most the queue and a batch", got)
	}
}

// A collector that hangs does not hold up the shutdown for long.
func TestShutdownDoesNotWaitForACollectorThatHangs(t *testing.T) {
	t.Parallel()
	c := startCollector(t, "")
	released := make(chan struct{})
	t.Cleanup(func() { close(released) })
	c.misbehave(func(http.ResponseWriter) { <-released })
	f := startTraced(t, c.URL, map[string]string{
		"OTEL_EXPORTER_OTLP_TIMEOUT": "3600000", "OTEL_BSP_EXPORT_TIMEOUT": "3600000",
	})
	r := f.replicas[0]
	f.signIn(t, "alice", devidp.Hooks{})
	eventually(t, 20*time.Second, "an export hangs", func() bool { return c.received() == 1 })
	r.stop(t) // fails after 30 s
	if got := r.logLines("last traces not exported"); got != 1 {
		t.Errorf("log lines about the last traces: got %d, want 1:\n%s", got, r.stderr)
	}
}

func TestMistakesInOTELVariablesEndTheStart(t *testing.T) {
	t.Parallel()
	env := map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317", "OTEL_TRACES_SAMPLER": "sometimes",
	}
	err := run(t.Context(), []string{"serve"}, func(name string) string { return env[name] }, nil,
		io.Discard, io.Discard)
	for _, want := range []string{"OTEL_EXPORTER_OTLP_ENDPOINT: ", "OTEL_TRACES_SAMPLER: ", "oidc.issuer: "} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
	if got := exitCode(err); got != 2 {
		t.Errorf("exit status: got %d, want 2", got)
	}
}

func TestCheckNamesMistakesInOTELVariables(t *testing.T) {
	t.Parallel()
	w := newCheckWorld(t, nil)
	w.env["OTEL_EXPORTER_OTLP_ENDPOINT"], w.env["OTEL_EXPORTER_OTLP_PROTOCOL"] = "http://collector:4317", "grpc"
	findings, failed := w.checkJSON(t, "--offline")
	if !failed {
		t.Error("exit status: got 0, want 1")
	}
	wantFinding(t, findings, "tracing", "OTEL_EXPORTER_OTLP_PROTOCOL: ", "docs/operations.md", check.SeverityError)
}

// No exported byte is part of a secret, or names a user.
func TestExportedSpansHaveNoSecrets(t *testing.T) {
	t.Parallel()
	c := startCollector(t, "")
	f := startTraced(t, c.URL, nil)
	r := f.replicas[0]
	u := f.signInExpired(t)
	for _, call := range [][2]string{
		{"GET", "/api/x?secret=query-marker"}, {"GET", "/api/x?access_token=query-marker"},
		{"GET", "/bff/callback?code=code-marker&state=state-marker"}, {"POST", "/bff/session/refresh"},
		{"GET", "/bff/login?login_hint=query-marker"}, {"GET", "/page?query-marker"}, {"POST", "/bff/logout"},
	} {
		f.send(t.Context(), r, u.cookies, call[0], call[1], "X-Api-Key", "header-marker", "Authorization",
			"Bearer bearer-marker")
	}
	c.wait(t, "POST /bff/logout", 1)
	r.stop(t)
	c.mu.Lock()
	raw := string(c.raw)
	c.mu.Unlock()
	f.provider.CheckLeaks(t, "exported spans", raw)
	forbidden := []string{"marker", "alice", goodKey, "code=", "state="}
	for cookie := range strings.SplitSeq(u.cookies, "; ") {
		_, value, _ := strings.Cut(cookie, "=")
		forbidden = append(forbidden, value)
	}
	for _, s := range c.all("") {
		if s.Status.GetMessage() != "" {
			t.Errorf("span %s: status: got the text %q, want none", s.Name, s.Status.Message)
		}
		for _, a := range s.Attributes {
			if u, err := url.Parse(valueText(a.Value)); a.Key == "url.full" &&
				(err != nil || u.RawQuery != "" || u.User != nil) {
				t.Errorf("span %s: url.full: got %v, want one without query and user", s.Name, a.Value)
			}
		}
	}
	for _, text := range forbidden {
		if strings.Contains(raw, text) {
			t.Errorf("exported spans contain %.12q", text)
		}
	}
}
