package bff_test

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
)

// A server that is replaced in an outage, by a reload, finishes the refreshes
// that wait for the provider: they hold leases that its successor needs.
func TestARefreshThatWaitsOutlivesItsServer(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Provider.Wait = 2 * time.Second })
	b := a.expired()
	arrived, release := make(chan struct{}), make(chan struct{})
	a.onRefresh(func(n int, w http.ResponseWriter, r *http.Request, provider http.Handler) {
		if n == 1 {
			close(arrived)
			<-release
			panic(http.ErrAbortHandler) // the connection ends without a response
		}
		provider.ServeHTTP(w, r)
	})
	wantProblem(t, b.Fetch("GET", "/api/x"), 503, "provider_unavailable")
	<-arrived
	closing, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := a.server.Close(closing); err == nil {
		t.Fatal("the server closed while a refresh was under way")
	}
	close(release)
	waitFor(t, "the refresh is repeated", func() bool { return a.provider.Refreshes() == 1 })
	waitFor(t, "the session is refreshed", func() bool { return strings.Contains(a.logs.String(), `"msg":"session refreshed"`) })
}
