package oidc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// A network that loses packets delivers what it lost when it is back. A refresh
// request that was given up by then has been repeated, and the provider would
// take the first one for the reuse of its refresh token.
func TestARequestGivenUpIsNotDelivered(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	received := make(chan error, 1)
	givenUp := make(chan struct{})
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			received <- err
			return
		}
		defer conn.Close()
		<-givenUp // until then the client's system has the rest of the request
		_, err = io.Copy(io.Discard, conn)
		received <- err
	}()
	ctx, cancel := context.WithCancel(t.Context())
	sent := make(chan struct{})
	body := io.MultiReader(strings.NewReader(strings.Repeat("x", 1<<20)), readerFunc(func([]byte) (int, error) {
		close(sent)
		return 0, io.EOF
	}))
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+listener.Addr().String(), body)
	if err != nil {
		t.Fatal(err)
	}
	transport := newProviderTransport(new(Config))
	done := make(chan struct{})
	go func() {
		defer close(done)
		if resp, err := transport.RoundTrip(req); err == nil {
			resp.Body.Close()
			t.Error("the request was answered")
		}
	}()
	<-sent
	cancel()
	<-done
	transport.CloseIdleConnections()
	close(givenUp)
	if err := <-received; err == nil {
		t.Error("the whole request arrived after it was given up")
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// An operator who reads the log learns which key or machine to correct, at the
// first discovery and also if the provider gets another certificate later.
func TestCertificateErrorsSayWhatToDo(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(nil)
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	server.StartTLS()
	defer server.Close()
	expired := &tls.CertificateVerificationError{Err: x509.CertificateInvalidError{Reason: x509.Expired}}
	for name, test := range map[string]struct {
		client *http.Client
		advice string
	}{
		"unknown CA": {nil, "oidc.ca_file"},
		"expired":    {&http.Client{Transport: failing{expired}}, "the clock of this machine"},
		"client certificate": {&http.Client{Transport: failing{&net.OpError{
			Op: "remote error", Err: errors.New("tls: certificate required")}}}, "oidc.client_cert_file"},
	} {
		t.Run(name, func(t *testing.T) {
			client, err := New(Config{
				Issuer: server.URL, ClientID: "spa", ClientSecret: "secret", HTTPClient: test.client,
				Logger: slog.New(slog.DiscardHandler),
			})
			if err != nil {
				t.Fatal(err)
			}
			err = client.Discover(t.Context())
			if err == nil || !strings.Contains(err.Error(), test.advice) ||
				strings.Contains(err.Error(), "oidc.issuer") {
				t.Errorf("discovery: got %v, want %q as the only advice", err, test.advice)
			}
			err = client.probeURL(t.Context(), server.URL)
			if err == nil || !strings.Contains(err.Error(), test.advice) {
				t.Errorf("probe: got %v, want %q", err, test.advice)
			}
		})
	}
}

// failing fails each request.
type failing struct{ err error }

func (f failing) RoundTrip(*http.Request) (*http.Response, error) { return nil, f.err }
