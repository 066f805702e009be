package brokertest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

// Digest returns a short hash of a token. Echo responds with it, because a test
// fails if a browser receives a token.
func Digest(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:8])
}

// Echo is an upstream that responds with the request it received, as an Echoed.
// It replaces the token in Authorization by its Digest.
type Echo struct {
	*httptest.Server
	calls atomic.Int64

	// Handler serves all requests instead of the echo if it is not nil. It is
	// set before the first request.
	Handler http.HandlerFunc
}

// Echoed is a request that an Echo received.
type Echoed struct {
	Method string
	URI    string // as in the request line
	Host   string
	Header http.Header
	Body   string
}

// NewEcho starts an upstream, which stops when the test ends.
func NewEcho(t testing.TB) *Echo {
	e := new(Echo)
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.calls.Add(1)
		if e.Handler != nil {
			e.Handler(w, r)
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		for i, credentials := range r.Header["Authorization"] {
			scheme, token, _ := strings.Cut(credentials, " ")
			r.Header["Authorization"][i] = scheme + " " + Digest(token)
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(Echoed{r.Method, r.RequestURI, r.Host, r.Header, string(body)})
	}))
	t.Cleanup(e.Close)
	return e
}

// Calls returns the number of requests that arrived.
func (e *Echo) Calls() int { return int(e.calls.Load()) }
