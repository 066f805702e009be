package bff_test

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
)

// An upstream that honours X-Forwarded-Proto but not X-Forwarded-Host uses the
// public scheme with its own host.
func TestUpstreamLocationMayHaveThePublicScheme(t *testing.T) {
	t.Parallel()
	var say atomic.Pointer[string]
	a := newApp(t, func(a *app, cfg *bff.Config) {
		a.echo.Handler = func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", *say.Load())
			w.WriteHeader(303)
		}
		cfg.PublicURL = "https://app.example"
		cfg.Routes = []bff.Route{{Path: "/stripped/", Token: "none", Upstream: []string{a.echo.URL}, StripPrefix: true}}
	})
	internal := strings.TrimPrefix(a.echo.URL, "http://")
	for location, want := range map[string]string{
		"https://" + internal + "/orders/1":       "/stripped/orders/1",
		"http://" + internal + "/orders/1":        "/stripped/orders/1",
		"https://app.example/orders/1":            "/stripped/orders/1",
		"http://app.example/orders/1":             "http://app.example/orders/1",
		"ftp://" + internal + "/orders/1":         "ftp://" + internal + "/orders/1",
		"https://app.example:444/orders/1":        "https://app.example:444/orders/1",
		"https://elsewhere.example:1234/orders/1": "https://elsewhere.example:1234/orders/1",
	} {
		say.Store(&location)
		if got := a.browser().Fetch("GET", "/stripped/x", "Host", "app.example").Header.Get("Location"); got != want {
			t.Errorf("%s: got %s, want %s", location, got, want)
		}
	}
}
