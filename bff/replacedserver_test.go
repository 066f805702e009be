package bff_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
)

// A server that a reload replaces during an outage finishes the refreshes that
// wait for the provider: they hold leases that its successor needs.
func TestWaitingRefreshOutlivesItsServer(t *testing.T) {
	t.Parallel()
	var cfg bff.Config
	a := newApp(t, func(_ *app, c *bff.Config) {
		c.Provider.Wait, c.ShutdownGrace = 2*time.Second, 100*time.Millisecond
		cfg = *c
	})
	b := a.expired()
	arrived, release := make(chan struct{}), make(chan struct{})
	a.onRefresh(func(n int, w http.ResponseWriter, r *http.Request, provider http.Handler) {
		if n == 1 {
			close(arrived)
			<-release
			panic(http.ErrAbortHandler) // the connection is closed without a response
		}
		provider.ServeHTTP(w, r)
	})
	wantProblem(t, b.Fetch("GET", "/api/x"), 503, "provider_unavailable")
	<-arrived
	if err := reload(t, a.server, cfg); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the previous server is closed", func() bool {
		return strings.Contains(a.logs.String(), "previous configuration closed with requests in flight")
	})
	close(release)
	waitFor(t, "the refresh is repeated", func() bool { return a.provider.Refreshes() == 1 })
	waitFor(t, "the session is refreshed", func() bool {
		return strings.Contains(a.logs.String(), `"msg":"session refreshed"`)
	})
}
