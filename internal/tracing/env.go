package tracing

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"golang.org/x/net/http/httpguts"
)

// The environment variables of OpenTelemetry are read here, and not by its SDK,
// which logs a mistake and goes on with something else.

// settings are what the variables say.
type settings struct {
	endpoint string
	exporter []otlptracehttp.Option
	batches  []sdktrace.BatchSpanProcessorOption
	queue    int // how many spans wait for the export at most
	sampler  sdktrace.Sampler
	resource []attribute.KeyValue
}

// Mistakes returns the mistakes in the variables, as Start does.
func Mistakes(getenv func(string) string) []error {
	_, errs := read(getenv)
	return errs
}

// read reads the variables. It returns nil if traces are off.
func read(getenv func(string) string) (*settings, []error) {
	e := &env{getenv: getenv}
	if !e.enabled() {
		return nil, e.errs
	}
	e.checkPropagators()
	endpoint, exporter := e.exporter()
	s := &settings{endpoint: endpoint, exporter: exporter, sampler: e.sampler(), resource: e.resource()}
	s.queue, s.batches = e.batches()
	return s, e.errs
}

// env reads environment variables, and collects the mistakes in them.
type env struct {
	getenv func(string) string
	errs   []error
}

// get returns a variable without the white space around it. The specification
// treats an empty variable like one that is not set.
func (e *env) get(name string) string { return strings.TrimSpace(e.getenv(name)) }

// fail records a mistake.
func (e *env) fail(name, format string, args ...any) {
	e.errs = append(e.errs, fmt.Errorf("%s: %w", name, fmt.Errorf(format, args...)))
}

// otlp returns the name and the value of a variable of the exporter. That for
// traces takes precedence over that for all signals.
func (e *env) otlp(suffix string) (name, value string) {
	name = "OTEL_EXPORTER_OTLP_TRACES_" + suffix
	if value = e.get(name); value != "" {
		return name, value
	}
	name = "OTEL_EXPORTER_OTLP_" + suffix
	return name, e.get(name)
}

// enabled reports whether traces are to be exported.
func (e *env) enabled() bool {
	switch disabled := e.get("OTEL_SDK_DISABLED"); strings.ToLower(disabled) {
	case "true":
		return false
	case "", "false":
	default:
		e.fail("OTEL_SDK_DISABLED", "%q is not true or false", disabled)
	}
	switch exporter := e.get("OTEL_TRACES_EXPORTER"); exporter {
	case "otlp":
		return true
	case "none":
		return false
	case "":
	default:
		e.fail("OTEL_TRACES_EXPORTER", "%q is not otlp or none", exporter)
	}
	_, endpoint := e.otlp("ENDPOINT")
	return endpoint != ""
}

// defaultEndpoint is where a collector on the same host listens.
const defaultEndpoint = "http://localhost:4318/v1/traces"

// endpoint returns the URL to which spans are sent.
func (e *env) endpoint() string {
	name, value := e.otlp("ENDPOINT")
	if value == "" {
		return defaultEndpoint
	}
	u, err := url.Parse(value)
	switch {
	case err != nil, u.Host == "", u.Scheme != "http" && u.Scheme != "https", u.RawQuery != "", u.Fragment != "":
		e.fail(name, "want a URL such as http://collector:4318") // the value may hold a password
		return defaultEndpoint
	case u.User != nil:
		e.fail(name, "a user and a password are not sent; use OTEL_EXPORTER_OTLP_HEADERS=Authorization=…")
		return defaultEndpoint
	case !strings.Contains(name, "TRACES"): // the base of the URLs of all signals
		u.Path = path.Join(u.Path, "/v1/traces")
	case u.Path == "":
		u.Path = "/"
	}
	return u.String()
}

// exporter returns the options of the exporter.
func (e *env) exporter() (endpoint string, opts []otlptracehttp.Option) {
	endpoint = e.endpoint()
	opts = []otlptracehttp.Option{
		otlptracehttp.WithEndpointURL(endpoint),
		otlptracehttp.WithTimeout(e.milliseconds(10*time.Second, e.otlpName("TIMEOUT"))),
		otlptracehttp.WithHeaders(e.headers()),
		otlptracehttp.WithMaxResponseSize(64 << 10),
	}
	switch name, protocol := e.otlp("PROTOCOL"); protocol {
	case "", "http/protobuf":
		opts = append(opts, otlptracehttp.WithEncoding(otlptracehttp.EncodingProtobuf))
	case "http/json":
		opts = append(opts, otlptracehttp.WithEncoding(otlptracehttp.EncodingJSON))
	default:
		e.fail(name, "%q is not http/protobuf or http/json (a collector usually has them on port 4318)", protocol)
	}
	switch name, compression := e.otlp("COMPRESSION"); compression {
	case "", "none":
		opts = append(opts, otlptracehttp.WithCompression(otlptracehttp.NoCompression))
	case "gzip":
		opts = append(opts, otlptracehttp.WithCompression(otlptracehttp.GzipCompression))
	default:
		e.fail(name, "%q is not gzip or none", compression)
	}
	if secure := e.tls(); secure != nil {
		if strings.HasPrefix(endpoint, "http:") {
			e.fail(e.otlpName("ENDPOINT"), "%s is not https, and a certificate is configured", endpoint)
		}
		opts = append(opts, otlptracehttp.WithTLSClientConfig(secure))
	}
	return endpoint, opts
}

// otlpName returns the name of the variable of the exporter that counts.
func (e *env) otlpName(suffix string) string {
	name, _ := e.otlp(suffix)
	return name
}

// headers returns the headers that are sent to the collector, which may hold a
// secret.
func (e *env) headers() map[string]string {
	name, value := e.otlp("HEADERS")
	headers, err := parsePairs(value)
	if err != nil {
		e.fail(name, "%w", err)
	}
	for key, value := range headers {
		if !httpguts.ValidHeaderFieldName(key) || !httpguts.ValidHeaderFieldValue(value) {
			e.fail(name, "a name or a value cannot be sent in a header")
		}
	}
	return headers
}

// tls returns the configuration of TLS, or nil for the system's roots and no
// certificate.
func (e *env) tls() *tls.Config {
	var cfg tls.Config
	if name, file := e.otlp("CERTIFICATE"); file != "" {
		pem, err := os.ReadFile(file)
		cfg.RootCAs = x509.NewCertPool()
		switch {
		case err != nil:
			e.fail(name, "%w", err)
		case !cfg.RootCAs.AppendCertsFromPEM(pem):
			e.fail(name, "%s has no certificate in PEM", file)
		}
	}
	certName, cert := e.otlp("CLIENT_CERTIFICATE")
	keyName, key := e.otlp("CLIENT_KEY")
	switch {
	case (cert == "") != (key == ""):
		e.fail(certName, "set both %s and %s, or neither", certName, keyName)
	case cert != "":
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			e.fail(certName, "%w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	if cfg.RootCAs == nil && cfg.Certificates == nil {
		return nil
	}
	return &cfg
}

// sampler returns what decides which traces are recorded.
func (e *env) sampler() sdktrace.Sampler {
	const name = "OTEL_TRACES_SAMPLER"
	sampler := strings.ToLower(e.get(name))
	base, parentBased := strings.CutPrefix(sampler, "parentbased_")
	var root sdktrace.Sampler
	switch base {
	case "":
		return sdktrace.ParentBased(sdktrace.AlwaysSample())
	case "always_on":
		root = sdktrace.AlwaysSample()
	case "always_off":
		root = sdktrace.NeverSample()
	case "traceidratio":
		root = sdktrace.TraceIDRatioBased(e.ratio())
	default:
		e.fail(name, "%q is not always_on, always_off or traceidratio, with or without parentbased_ before it", sampler)
		return nil
	}
	if parentBased {
		return sdktrace.ParentBased(root)
	}
	return root
}

// ratio returns the argument of a sampler: the part of all traces.
func (e *env) ratio() float64 {
	const name = "OTEL_TRACES_SAMPLER_ARG"
	value := e.get(name)
	if value == "" {
		return 1
	}
	ratio, err := strconv.ParseFloat(value, 64)
	if err != nil || !(ratio >= 0 && ratio <= 1) {
		e.fail(name, "%q is not a number from 0 to 1", value)
	}
	return ratio
}

// batches returns the size of the queue of spans, and the options for it.
func (e *env) batches() (queue int, opts []sdktrace.BatchSpanProcessorOption) {
	queue = e.number("OTEL_BSP_MAX_QUEUE_SIZE", sdktrace.DefaultMaxQueueSize)
	return queue, []sdktrace.BatchSpanProcessorOption{
		sdktrace.WithMaxQueueSize(queue),
		sdktrace.WithMaxExportBatchSize(
			min(queue, e.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", sdktrace.DefaultMaxExportBatchSize))),
		sdktrace.WithBatchTimeout(e.milliseconds(5*time.Second, "OTEL_BSP_SCHEDULE_DELAY")),
		sdktrace.WithExportTimeout(e.milliseconds(30*time.Second, "OTEL_BSP_EXPORT_TIMEOUT")),
	}
}

// number returns a variable that is a positive number.
func (e *env) number(name string, otherwise int) int {
	value := e.get(name)
	if value == "" {
		return otherwise
	}
	n, err := strconv.Atoi(value)
	if err != nil || n < 1 {
		e.fail(name, "%q is not a number above 0", value)
	}
	return n
}

// milliseconds returns a variable that is a time.
func (e *env) milliseconds(otherwise time.Duration, name string) time.Duration {
	return time.Duration(e.number(name, int(otherwise.Milliseconds()))) * time.Millisecond
}

// resource returns what the variables say about this process.
func (e *env) resource() []attribute.KeyValue {
	const name = "OTEL_RESOURCE_ATTRIBUTES"
	pairs, err := parsePairs(e.get(name))
	if err != nil {
		e.fail(name, "%w", err)
	}
	var attrs []attribute.KeyValue
	for key, value := range pairs {
		attrs = append(attrs, attribute.String(key, value))
	}
	if service := e.get("OTEL_SERVICE_NAME"); service != "" {
		attrs = append(attrs, attribute.String("service.name", service))
	}
	return attrs
}

// checkPropagators verifies that the W3C Trace Context is among the formats
// that are wanted: there is no other.
func (e *env) checkPropagators() {
	const name = "OTEL_PROPAGATORS"
	value := e.get(name)
	if value != "" && !slices.Contains(strings.Split(strings.ReplaceAll(value, " ", ""), ","), "tracecontext") {
		e.fail(name, "%q has no tracecontext, which is the only format that is sent", value)
	}
}

// parsePairs parses key=value,key=value, where values are percent-encoded. The
// error quotes no value.
func parsePairs(text string) (map[string]string, error) {
	pairs := make(map[string]string)
	if text == "" {
		return pairs, nil
	}
	for pair := range strings.SplitSeq(text, ",") {
		key, value, found := strings.Cut(pair, "=")
		key = strings.TrimSpace(key)
		decoded, err := url.PathUnescape(strings.TrimSpace(value))
		switch {
		case strings.TrimSpace(pair) == "":
		case !found || key == "":
			return nil, errors.New("want pairs such as key=value, separated by commas")
		case err != nil:
			return nil, fmt.Errorf("the value of %s is not percent-encoded", key)
		default:
			pairs[key] = decoded
		}
	}
	return pairs, nil
}
