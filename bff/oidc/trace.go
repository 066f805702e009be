package oidc

import (
	"io"
	"net/http"

	"go.opentelemetry.io/otel/trace"

	"github.com/cloakroom-bff/cloakroom/internal/span"
)

// tracedTransport makes a span for each request to the provider, which gets its
// context (W3C Trace Context).
type tracedTransport struct {
	base   http.RoundTripper
	client *Client
	tracer trace.Tracer
}

// RoundTrip implements http.RoundTripper. The span ends with the body of the
// response.
func (t tracedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	method, name := span.Method(r.Method)
	ctx, s := span.Start(r.Context(), t.tracer, name+" "+t.client.endpoint(r.URL.String()), trace.SpanKindClient)
	if s.IsRecording() {
		s.SetAttributes(append(span.Target(r.URL), method)...)
	}
	out := r.WithContext(ctx) // a RoundTripper must not modify r
	out.Header = r.Header.Clone()
	span.Inject(ctx, out.Header)
	resp, err := t.base.RoundTrip(out)
	if err != nil {
		span.Fail(s, span.ErrorType(err))
		s.End()
		return nil, err
	}
	span.Status(s, resp.StatusCode)
	resp.Body = &tracedBody{resp.Body, s}
	return resp, nil
}

// CloseIdleConnections is called by http.Client.CloseIdleConnections.
func (t tracedTransport) CloseIdleConnections() { closeIdleConnections(t.base) }

// tracedBody is a body whose end is that of a span.
type tracedBody struct {
	io.ReadCloser
	span trace.Span
}

func (b *tracedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		span.Fail(b.span, span.ErrorType(err))
	}
	return n, err
}

func (b *tracedBody) Close() error {
	b.span.End()
	return b.ReadCloser.Close()
}

// endpoint returns which endpoint of the provider has a URL.
func (c *Client) endpoint(url string) string {
	if url == c.metadataURL() {
		return "discovery"
	}
	m := c.current.Load()
	if m == nil {
		return "provider"
	}
	switch url {
	case m.Token:
		return "token"
	case m.JWKS:
		return "jwks"
	case m.Revocation:
		return "revocation"
	case m.Pushed:
		return "pushed_authorization_request"
	case m.UserInfo:
		return "userinfo"
	}
	return "provider"
}
