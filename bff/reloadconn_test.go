package bff_test

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
)

// Each configuration has connections of its own to the provider. Those of many
// reloads must not add up.
func TestReloadClosesTheConnectionsToTheProvider(t *testing.T) {
	t.Parallel()
	var issuer string
	provider := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		metadata := `{"issuer":%q,"authorization_endpoint":"%[1]s/a","token_endpoint":"%[1]s/t","jwks_uri":"%[1]s/k"}`
		fmt.Fprintf(w, metadata, issuer)
	}))
	var mu sync.Mutex
	open := make(map[net.Conn]bool)
	provider.Config.ConnState = func(c net.Conn, state http.ConnState) {
		mu.Lock()
		defer mu.Unlock()
		if open[c] = true; state == http.StateClosed {
			delete(open, c)
		}
	}
	provider.Start()
	t.Cleanup(provider.Close)
	issuer = provider.URL
	var cfg bff.Config
	a := newApp(t, func(_ *app, c *bff.Config) { cfg = *c })
	cfg.Provider.Issuer = issuer
	const reloads = 10
	for range reloads {
		if err := reload(t, a.server, cfg); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "the connections of previous configurations are closed", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(open) <= 1
	})
}
