package bfftest

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

// Digest is what Echo says of a token, which has no business in an answer.
func Digest(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:8])
}

// Echo is an upstream that says what it got. Of a token in Authorization it says the Digest.
type Echo struct {
	*httptest.Server
	calls atomic.Int64

	// Answer, if it is set before the first request, answers instead of the echo.
	Handler func(w http.ResponseWriter, r *http.Request)
}

// Echoed is what the upstream got.
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

// Calls returns how many requests arrived.
func (e *Echo) Calls() int { return int(e.calls.Load()) }
