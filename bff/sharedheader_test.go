package bff_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
)

// An upstream that gets a claim header from one route trusts that header in all
// requests, also in those of another route.
func TestClaimHeadersAreProtectedOnAllRoutesToAHost(t *testing.T) {
	t.Parallel()
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Seen", r.Header.Get("X-Tenant"))
	}))
	t.Cleanup(other.Close)
	var got http.Header
	shared := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		got = r.Header.Clone()
	}))
	t.Cleanup(shared.Close)
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.Routes = []bff.Route{
			{Path: "/public/", Upstream: []string{shared.URL + "/v1"}, Token: "none"},
			{
				Path:        "/api/",
				Upstream:    []string{shared.URL},
				Token:       "user",
				Headers:     map[string]string{"X-Tenant": "sub"},
				HeadersJSON: map[string]string{"X-Roles": "roles"},
			},
			{
				Path:     "/session/",
				Upstream: []string{shared.URL},
				Token:    "optional",
				Headers:  map[string]string{"X-Name": "name"},
			},
			{Path: "/other/", Upstream: []string{other.URL}, Token: "none"},
		}
	})
	b := a.signedIn()
	for _, path := range []string{"/public/x", "/session/x", "/api/x"} {
		b.Fetch("GET", path, "X-Tenant", "root", "X.Tenant", "root", "XRoles", "root", "X-Name", "root", "X-Free", "1")
		for _, name := range []string{"X-Tenant", "X.tenant", "Xroles", "X-Name"} {
			if value := got.Get(name); value == "root" {
				t.Errorf("%s: %s arrives", path, name)
			}
		}
		if got.Get("X-Free") != "1" {
			t.Errorf("%s: another header is missing at the upstream", path)
		}
	}
	if got.Get("X-Tenant") != "alice" {
		t.Errorf("claim header: got %q", got.Get("X-Tenant"))
	}
	if seen := b.Fetch("GET", "/other/x", "X-Tenant", "mine").Header.Get("X-Seen"); seen != "mine" {
		t.Errorf("another host gets %q, want what the client sent", seen)
	}
}
