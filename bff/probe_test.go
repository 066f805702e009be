package bff_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

// Metadata and token endpoint can be on different hosts. An outage of the
// metadata must not block token requests.
func TestMetadataOutageDoesNotOpenTheBreaker(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.expired()
	a.recordCalls(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "/.well-known/") {
			panic(http.ErrAbortHandler)
		}
		if r.PostFormValue("grant_type") == "refresh_token" && a.provider.Refreshes() == 0 {
			next.ServeHTTP(discard{w}, r) // counted as a failure
			panic(http.ErrAbortHandler)
		}
		next.ServeHTTP(w, r)
	}})
	a.provider.SetRefreshGrace(time.Hour)
	waitFor(t, "the session is refreshed", func() bool { return b.Fetch("GET", "/api/x").StatusCode == 200 })
}

// discard discards a response.
type discard struct{ http.ResponseWriter }

func (discard) Header() http.Header         { return make(http.Header) }
func (discard) WriteHeader(int)             {}
func (discard) Write(b []byte) (int, error) { return len(b), nil }
