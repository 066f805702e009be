package oidc

import (
	"context"
	"io"
	"net"
	"net/http"
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
