package bff_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

// The metadata can be on another host than the token endpoint. Its outage must
// not keep token requests from being sent.
func TestMetadataOutageDoesNotOpenTheBreaker(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.expired()
	a.recordCalls(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "/.well-known/") {
			panic(http.ErrAbortHandler)
		}
		if r.PostFormValue("grant_type") == "refresh_token" && a.provider.Refreshes() == 0 {
			next.ServeHTTP(discard{w}, r) // counted
			panic(http.ErrAbortHandler)
		}
		next.ServeHTTP(w, r)
	}})
	a.provider.SetRefreshGrace(time.Hour)
	waitFor(t, "the session is refreshed", func() bool { return b.Fetch("GET", "/api/x").StatusCode == 200 })
}

// discard is a response that is thrown away.
type discard struct{ http.ResponseWriter }

func (discard) Header() http.Header         { return make(http.Header) }
func (discard) WriteHeader(int)             {}
func (discard) Write(b []byte) (int, error) { return len(b), nil }
