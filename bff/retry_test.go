package bff_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
)

func TestClosedIdleConnectionCausesNoError(t *testing.T) {
	eachProtocolPair(t, func(t *testing.T, w *protocolPair) {
		w.handle(echoNonce)
		for i := range 10 {
			p := probe{method: "GET", nonce: fmt.Sprint("before ", i)}
			if err := p.send(t, w); err != nil {
				t.Fatal(err)
			}
			w.upstream.CloseClientConnections()
			p = probe{method: []string{"GET", "HEAD", "PUT", "DELETE"}[i%4], nonce: fmt.Sprint("after ", i)}
			if err := p.send(t, w); err != nil {
				t.Error(err)
			}
		}
	})
}

// The connection to the upstream, which was in use before, is closed during the
// request. The request is retried once if its method is idempotent (RFC 9110,
// section 9.2.2).
func TestIdempotentRequestIsRetriedOnceOnAnotherConnection(t *testing.T) {
	eachProtocolPair(t, func(t *testing.T, w *protocolPair) {
		for _, test := range []struct {
			method, body string
			status       int
			calls        int32 // at most
		}{
			{"GET", "", 200, 2}, {"PUT", "body", 200, 2}, {"DELETE", "", 200, 2},
			{"POST", "body", 502, 1}, {"POST", "", 502, 1}, {"PATCH", "body", 502, 1},
		} {
			var closing atomic.Bool
			var calls atomic.Int32
			w.handle(func(rw http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				calls.Add(1)
				if closing.Swap(false) {
					w.upstream.CloseClientConnections()
					panic(http.ErrAbortHandler)
				}
			})
			resp := w.do(t, w.request(t, "GET", "x", nil)) // opens the connection
			io.Copy(io.Discard, resp.Body)
			calls.Store(0)
			closing.Store(true)
			var body io.Reader
			if test.body != "" {
				body = strings.NewReader(test.body)
			}
			resp = w.do(t, w.request(t, test.method, "x", body))
			io.Copy(io.Discard, resp.Body)
			if resp.StatusCode != test.status {
				t.Errorf("%s with body %q: got %d, want %d", test.method, test.body, resp.StatusCode, test.status)
			}
			if got := calls.Load(); got > test.calls {
				t.Errorf("%s with body %q: got %d calls of the upstream, want at most %d",
					test.method, test.body, got, test.calls)
			}
		}
	})
}
