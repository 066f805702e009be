package tracing_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/trace"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/cloakroom-bff/cloakroom/internal/tracing"
)

// export starts the export with env, ends a span, and stops.
func export(t *testing.T, env map[string]string) {
	t.Helper()
	provider, stop, err := tracing.Start(
		func(name string) string { return env[name] }, "v1.2.3", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("%v: got %v, want no error", env, err)
	}
	if provider == nil {
		t.Fatalf("%v: got no provider, want one", env)
	}
	_, span := provider.Tracer("test").Start(context.Background(), "a span")
	span.End()
	stop()
}

// collector records the last request.
type collector struct {
	*httptest.Server
	request *http.Request
	body    []byte
}

func newCollector(t *testing.T, start func(http.Handler) *httptest.Server) *collector {
	c := new(collector)
	c.Server = start(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		c.request = r
		c.body, _ = io.ReadAll(r.Body)
	}))
	t.Cleanup(c.Close)
	return c
}

// resource returns the attributes of the process in an export in protobuf.
func (c *collector) resource(t *testing.T) map[string]string {
	t.Helper()
	var exported coltracepb.ExportTraceServiceRequest
	if err := proto.Unmarshal(c.body, &exported); err != nil {
		t.Fatalf("exported body: %v", err)
	}
	attrs := make(map[string]string)
	for _, a := range exported.ResourceSpans[0].Resource.Attributes {
		attrs[a.Key] = a.Value.GetStringValue()
	}
	return attrs
}

func TestVariablesOfTheExporter(t *testing.T) {
	t.Parallel()
	c := newCollector(t, httptest.NewServer)
	for name, test := range map[string]struct {
		env                map[string]string
		path, header, want string
	}{
		"endpoint": {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": c.URL}, "/v1/traces",
			"Content-Type", "application/x-protobuf"},
		"endpoint with a path": {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": c.URL + "/otlp/"}, "/otlp/v1/traces",
			"Content-Encoding", ""},
		"endpoint for traces": {map[string]string{
			"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": c.URL + "/spans",
		}, "/spans", "", ""},
		"headers": {map[string]string{
			"OTEL_EXPORTER_OTLP_ENDPOINT": c.URL, "OTEL_EXPORTER_OTLP_HEADERS": "a=b, Authorization=Basic%20eDp5",
		}, "/v1/traces", "Authorization", "Basic eDp5"},
		"compression": {map[string]string{
			"OTEL_EXPORTER_OTLP_ENDPOINT": c.URL, "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
		}, "/v1/traces", "Content-Encoding", "gzip"},
		"JSON": {map[string]string{
			"OTEL_EXPORTER_OTLP_ENDPOINT": c.URL, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json",
		}, "/v1/traces", "Content-Type", "application/json"},
	} {
		c.request = nil
		export(t, test.env)
		if c.request == nil {
			t.Errorf("%s: got no request, want one", name)
			continue
		}
		if got := c.request.URL.Path; got != test.path {
			t.Errorf("%s: path: got %s, want %s", name, got, test.path)
		}
		if got := c.request.Header.Get(test.header); got != test.want {
			t.Errorf("%s: %s: got %q, want %q", name, test.header, got, test.want)
		}
		switch name {
		case "JSON":
			if !json.Valid(c.body) {
				t.Errorf("%s: the body is not JSON: %.80q", name, c.body)
			}
		case "compression":
			if _, err := gzip.NewReader(bytes.NewReader(c.body)); err != nil {
				t.Errorf("%s: the body is not gzip: %v", name, err)
			}
		}
	}
}

func TestCollectorWithACertificateOfItsOwn(t *testing.T) {
	t.Parallel()
	c := newCollector(t, httptest.NewTLSServer)
	file := filepath.Join(t.TempDir(), "ca.pem")
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate().Raw})
	if err := os.WriteFile(file, ca, 0o600); err != nil {
		t.Fatal(err)
	}
	export(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": c.URL, "OTEL_EXPORTER_OTLP_CERTIFICATE": file})
	if c.request == nil {
		t.Error("got no request, want one")
	}
}

func TestResourceDescribesTheProcess(t *testing.T) {
	t.Parallel()
	c := newCollector(t, httptest.NewServer)
	env := map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": c.URL}
	export(t, env)
	got := c.resource(t)
	for name, want := range map[string]string{
		"service.name": "cloakroom", "service.version": "v1.2.3", "telemetry.sdk.name": "opentelemetry",
	} {
		if got[name] != want {
			t.Errorf("%s: got %q, want %q", name, got[name], want)
		}
	}
	env["OTEL_RESOURCE_ATTRIBUTES"] = "service.name=ignored,deployment.environment.name=a%2Cb"
	env["OTEL_SERVICE_NAME"] = "shop"
	export(t, env)
	got = c.resource(t)
	for name, want := range map[string]string{"service.name": "shop", "deployment.environment.name": "a,b"} {
		if got[name] != want {
			t.Errorf("%s: got %q, want %q", name, got[name], want)
		}
	}
}

func TestSamplerDecidesForNewTracesAndForParents(t *testing.T) {
	t.Parallel()
	c := newCollector(t, httptest.NewServer)
	parent := func(flags trace.TraceFlags) context.Context {
		return trace.ContextWithRemoteSpanContext(context.Background(), trace.NewSpanContext(trace.SpanContextConfig{
			TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}, TraceFlags: flags,
		}))
	}
	for _, test := range []struct {
		sampler, arg             string
		root, sampled, unsampled bool // of a new trace, and with a parent
	}{
		{"", "", true, true, false},
		{"always_on", "", true, true, true},
		{"always_off", "", false, false, false},
		{"parentbased_always_off", "", false, true, false},
		{"parentbased_traceidratio", "0", false, true, false},
		{"traceidratio", "1.0", true, true, true},
		{"traceidratio", "", true, true, true},
	} {
		env := map[string]string{
			"OTEL_EXPORTER_OTLP_ENDPOINT": c.URL, "OTEL_TRACES_SAMPLER": test.sampler,
			"OTEL_TRACES_SAMPLER_ARG": test.arg,
		}
		provider, stop, err := tracing.Start(
			func(name string) string { return env[name] }, "", slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
		tracer := provider.Tracer("test")
		for name, of := range map[string]struct {
			ctx  context.Context
			want bool
		}{
			"a new trace":          {context.Background(), test.root},
			"a recorded parent":    {parent(trace.FlagsSampled), test.sampled},
			"an unrecorded parent": {parent(0), test.unsampled},
		} {
			_, span := tracer.Start(of.ctx, "x")
			if got := span.SpanContext().IsSampled(); got != of.want {
				t.Errorf("%s %s: %s: recorded: got %v, want %v", test.sampler, test.arg, name, got, of.want)
			}
		}
	}
}

// A collector that takes only every other batch fills no log.
func TestCollectorThatFailsNowAndThenIsLoggedOnce(t *testing.T) {
	t.Parallel()
	var requests int // one after the other
	c := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if requests++; requests%2 == 1 {
			http.Error(w, "no space left", http.StatusInsufficientStorage)
		}
	}))
	t.Cleanup(c.Close)
	env := map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": c.URL, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "1"}
	var log bytes.Buffer
	provider, stop, err := tracing.Start(
		func(name string) string { return env[name] }, "", slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		_, span := provider.Tracer("test").Start(context.Background(), "a span")
		span.End()
	}
	stop()
	if requests != 20 {
		t.Errorf("exports: got %d, want 20", requests)
	}
	for _, msg := range []string{"traces not exported", "traces exported again"} {
		if got := strings.Count(log.String(), msg); got != 1 {
			t.Errorf("lines %q: got %d, want 1:\n%s", msg, got, &log)
		}
	}
}

// A collector that is slow, but works, gets what fits into the queue.
func TestSpansDroppedByAFullQueueAreCounted(t *testing.T) {
	t.Parallel()
	const spans = 1000
	release, received := make(chan struct{}), 0
	c := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		<-release
		var exported coltracepb.ExportTraceServiceRequest
		if body, err := io.ReadAll(r.Body); err != nil || proto.Unmarshal(body, &exported) != nil {
			t.Errorf("exported body: %v", err)
			return
		}
		for _, scope := range exported.ResourceSpans[0].ScopeSpans {
			received += len(scope.Spans) // one request after the other
		}
	}))
	t.Cleanup(c.Close)
	env := map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT": c.URL, "OTEL_BSP_MAX_QUEUE_SIZE": "20", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "10",
	}
	var log bytes.Buffer
	provider, stop, err := tracing.Start(
		func(name string) string { return env[name] }, "", slog.New(slog.NewJSONHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	for range spans {
		_, span := provider.Tracer("test").Start(context.Background(), "a span")
		span.End()
	}
	close(release)
	stop()
	var dropped []int
	for line := range strings.Lines(log.String()) {
		var l struct {
			Msg   string
			Count int
		}
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(l.Msg, "spans dropped") {
			dropped = append(dropped, l.Count)
		}
	}
	if len(dropped) != 1 {
		t.Fatalf("got %d lines, want 1:\n%s", len(dropped), &log)
	}
	if received < 20 || received+dropped[0] != spans {
		t.Errorf("got %d spans received and %d dropped, want %d together", received, dropped[0], spans)
	}
}

func TestTracesAreOffUnlessAVariableAsksForThem(t *testing.T) {
	t.Parallel()
	const endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT"
	for _, env := range []map[string]string{
		{},
		{endpoint: " "},
		{"OTEL_TRACES_SAMPLER": "always_on", "OTEL_SERVICE_NAME": "x"},
		{endpoint: "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "TRUE"},
		{endpoint: "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
	} {
		provider, stop, err := tracing.Start(
			func(name string) string { return env[name] }, "", slog.New(slog.DiscardHandler))
		if provider != nil || err != nil {
			t.Errorf("%v: got %v, %v, want neither a provider nor an error", env, provider, err)
		}
		stop()
	}
}

func TestMistakesInVariablesAreNamedAllAtOnce(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "junk")
	if err := os.WriteFile(file, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, value, want string }{
		{"OTEL_SDK_DISABLED", "yes", `"yes" is not true or false`},
		{"OTEL_TRACES_EXPORTER", "zipkin", `"zipkin" is not otlp or none`},
		{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector:4318", "want a URL such as http://collector:4318"},
		{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://x:hunter2@collector:4318", "a user and a password are not sent"},
		{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://x:hunter2@collector:port", "want a URL such as"},
		{"OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", `"grpc" is not http/protobuf or http/json`},
		{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc", "4318"},
		{"OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", `"zstd" is not gzip or none`},
		{"OTEL_EXPORTER_OTLP_TIMEOUT", "10s", `"10s" is not a number above 0`},
		{"OTEL_EXPORTER_OTLP_HEADERS", "hunter2", "want pairs such as key=value"},
		{"OTEL_EXPORTER_OTLP_HEADERS", "key=%hunter2", "the value of key is not percent-encoded"},
		{"OTEL_EXPORTER_OTLP_HEADERS", "a b=hunter2", "cannot be sent in a header"},
		{"OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere", "open /nowhere"},
		{"OTEL_EXPORTER_OTLP_CERTIFICATE", file, "has no certificate in PEM"},
		{"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", file, "set both"},
		{"OTEL_TRACES_SAMPLER", "sometimes", `"sometimes" is not always_on`},
		{"OTEL_TRACES_SAMPLER_ARG", "1%", `"1%" is not a number from 0 to 1`},
		{"OTEL_RESOURCE_ATTRIBUTES", "prod", "want pairs such as key=value"},
		{"OTEL_BSP_MAX_QUEUE_SIZE", "0", `"0" is not a number above 0`},
		{"OTEL_PROPAGATORS", "b3", `"b3" has no tracecontext`},
	} {
		env := map[string]string{
			"OTEL_TRACES_EXPORTER": "otlp", "OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_BSP_EXPORT_TIMEOUT": "soon",
			test.name: test.value,
		}
		provider, stop, err := tracing.Start(
			func(name string) string { return env[name] }, "", slog.New(slog.DiscardHandler))
		stop()
		if err == nil || provider != nil {
			t.Errorf("%s=%s: got no error, want one", test.name, test.value)
			continue
		}
		if !strings.Contains(err.Error(), test.name+": ") || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s=%s: got %v, want the name and %q", test.name, test.value, err, test.want)
		}
		if test.name != "OTEL_TRACES_EXPORTER" && !strings.Contains(err.Error(), "OTEL_BSP_EXPORT_TIMEOUT: ") {
			t.Errorf("%s=%s: got %v, want the other mistake too", test.name, test.value, err)
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error quotes a secret: %v", test.name, err)
		}
	}
}
