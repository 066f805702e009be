package oidc

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/socket"
	"github.com/cloakroom-bff/cloakroom/internal/span"
	"github.com/cloakroom-bff/cloakroom/internal/usertimeout"
)

// newHTTPClient returns the client for requests to the provider.
func (c *Client) newHTTPClient() *http.Client {
	client := new(http.Client)
	if c.cfg.HTTPClient != nil {
		*client = *c.cfg.HTTPClient
	} else {
		transport := newProviderTransport(&c.cfg)
		transport.TLSClientConfig.VerifyConnection = c.certificates.record
		client.Transport = transport
	}
	client.Timeout = cmp.Or(client.Timeout, providerTimeout)
	client.CheckRedirect = func(*http.Request, []*http.Request) error {
		// A redirected token request would send the secret and the refresh
		// token to another server.
		return http.ErrUseLastResponse
	}
	client.Transport = limitResponses{client.Transport}
	if tracer := span.Tracer(c.cfg.TracerProvider); tracer != nil {
		client.Transport = tracedTransport{client.Transport, c, tracer}
	}
	if c.cfg.Observe != nil {
		client.Transport = observedTransport{client.Transport, c}
	}
	return client
}

// newProviderTransport returns the transport for requests to the provider. It
// uses HTTP/1.1, where a connection carries one request at a time. So a
// connection that fails takes no other request with it, whose refresh token may
// have been rotated.
func newProviderTransport(cfg *Config) *http.Transport {
	dialer := &net.Dialer{
		Timeout: 5 * time.Second,
		// A dead connection fails within 30 seconds, whether it is idle or not.
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 4},
		Control: func(_, _ string, c syscall.RawConn) error {
			return usertimeout.Set(c, 30*time.Second)
		},
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		if tcp, ok := conn.(*net.TCPConn); ok {
			// Close discards what has not been delivered. A refresh request
			// that was given up in an outage must not arrive after its
			// repetition.
			if err := tcp.SetLinger(0); err != nil {
				conn.Close()
				return nil, err
			}
		}
		return socket.NetConn(conn), nil
	}
	transport.TLSHandshakeTimeout = 5 * time.Second
	transport.MaxIdleConnsPerHost = 32
	transport.IdleConnTimeout = 30 * time.Second
	transport.Protocols = new(http.Protocols)
	transport.Protocols.SetHTTP1(true)
	transport.TLSClientConfig = &tls.Config{RootCAs: cfg.RootCAs, MinVersion: tls.VersionTLS12}
	if cfg.ClientCertificate != nil {
		transport.TLSClientConfig.Certificates = []tls.Certificate{*cfg.ClientCertificate}
	}
	return transport
}

// Close closes the connections to the provider that are not in use, and each
// other one after its request. Call it after the last use of the Client. The
// connections of Config.HTTPClient stay open.
func (c *Client) Close() {
	if c.cfg.HTTPClient == nil {
		c.client.CloseIdleConnections()
	}
}

// limitResponses fails the reading of a response body beyond maxResponse bytes.
// To the error of a TLS connection it appends what the operator can do.
type limitResponses struct{ base http.RoundTripper }

func (t limitResponses) RoundTrip(r *http.Request) (*http.Response, error) {
	base := t.base
	if base == nil {
		base = http.DefaultTransport
	}
	resp, err := base.RoundTrip(r)
	if err != nil {
		if advice := tlsAdvice(err); advice != "" {
			err = fmt.Errorf("%w%s", err, advice)
		}
		return nil, err
	}
	resp.Body = &limitedBody{resp.Body, maxResponse + 1}
	return resp, nil
}

// tlsAdvice returns advice for the operator, to be appended to the error of a
// request to the provider. It is empty unless a certificate is the cause.
func tlsAdvice(err error) string {
	var unknownCA x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var op *net.OpError
	switch {
	case errors.As(err, &unknownCA):
		return " (put the CA of the provider's certificate into oidc.ca_file, or have the provider send its " +
			"intermediate certificates)"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return " (renew the provider's certificate, or correct the clock of this machine)"
	case errors.As(err, &op) && op.Op == "remote error" && strings.Contains(op.Error(), "certificate"): // a TLS alert
		return " (check oidc.client_cert_file)"
	}
	return ""
}

// CloseIdleConnections is called by http.Client.CloseIdleConnections.
func (t limitResponses) CloseIdleConnections() { closeIdleConnections(t.base) }

// closeIdleConnections closes the idle connections of a transport, if it has
// any.
func closeIdleConnections(t http.RoundTripper) {
	if closer, ok := t.(interface{ CloseIdleConnections() }); ok {
		closer.CloseIdleConnections()
	}
}

// observedTransport calls Config.Observe for each request.
type observedTransport struct {
	base   http.RoundTripper
	client *Client
}

func (t observedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	endpoint, sent, status := t.client.endpoint(r.URL.String()), time.Now(), 0
	resp, err := t.base.RoundTrip(r)
	if err == nil {
		status = resp.StatusCode
	}
	t.client.cfg.Observe(endpoint, status, time.Since(sent))
	return resp, err
}

// CloseIdleConnections is called by http.Client.CloseIdleConnections.
func (t observedTransport) CloseIdleConnections() { closeIdleConnections(t.base) }

type limitedBody struct {
	io.ReadCloser
	left int
}

func (b *limitedBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, fmt.Errorf("the response is larger than %d bytes", maxResponse)
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}
