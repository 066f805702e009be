package bff_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
)

func TestAConnectionThatDiedWhileIdleCostsNoRequest(t *testing.T) {
	eachWay(t, func(t *testing.T, w *way) {
		w.answers(echoNonce)
		for i := range 10 {
			p := probe{method: "GET", nonce: fmt.Sprint("before ", i)}
			if err := p.ask(w, p.request(t, w)); err != nil {
				t.Fatal(err)
			}
			w.upstream.CloseClientConnections()
			p = probe{method: []string{"GET", "HEAD", "PUT", "DELETE"}[i%4], nonce: fmt.Sprint("after ", i)}
			if err := p.ask(w, p.request(t, w)); err != nil {
				t.Error(err)
			}
		}
	})
}

// The upstream's connection is in use already, and dies with the request: a request is repeated once if that does no harm.
func TestARequestOnAConnectionThatDiesIsRepeatedOnceOrNotAtAll(t *testing.T) {
	eachWay(t, func(t *testing.T, w *way) {
		for _, test := range []struct {
			method, body string
			deaths       int
			status       int
			asked        int32 // at most
		}{
			{"GET", "", 1, 200, 2}, {"PUT", "body", 1, 200, 2}, {"DELETE", "", 1, 200, 2},
			{"POST", "body", 1, 502, 1}, {"POST", "", 1, 502, 1}, {"PATCH", "body", 1, 502, 1},
		} {
			var dying, asked atomic.Int32
			w.answers(func(rw http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				asked.Add(1)
				if dying.Add(-1) < 0 {
					return
				}
				w.upstream.CloseClientConnections()
				panic(http.ErrAbortHandler)
			})
			resp := w.do(t, w.request(t, "GET", "x", nil)) // so that there is a connection
			io.Copy(io.Discard, resp.Body)
			asked.Store(0)
			dying.Store(int32(test.deaths))
			var body io.Reader
			if test.body != "" {
				body = strings.NewReader(test.body)
			}
			resp = w.do(t, w.request(t, test.method, "x", body))
			io.Copy(io.Discard, resp.Body)
			if resp.StatusCode != test.status || asked.Load() > test.asked {
				t.Errorf("%s with the body %q: got %d, and the upstream was asked %d times, want %d and %d", test.method, test.body, resp.StatusCode, asked.Load(), test.status, test.asked)
			}
		}
	})
}
