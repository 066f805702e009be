package bff_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
)

// A script that does not accept JSON follows the redirect of a logout, and can
// read its target if the provider allows that. The target has no ID token.
func TestScriptLogoutIsNotRedirectedToTheIDToken(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	noMetadata := []string{"Accept", "*/*", "Sec-Fetch-Mode", "", "Sec-Fetch-Site", "", "Sec-Fetch-Dest", ""}
	for name, header := range map[string][]string{
		"with the header":    {"Accept", "*/*"},
		"with metadata only": {"Accept", "*/*", "X-CSRF", ""},
		"no Accept":          {"Accept", ""},
		"an old browser":     slices.Concat(noMetadata, []string{"Origin", a.url}),
		"no-cors":            {"Accept", "*/*", "X-CSRF", "", "Sec-Fetch-Mode", "no-cors"},
	} {
		b := a.signedIn()
		got := b.Fetch("POST", "/bff/logout", header...)
		location := got.Header.Get("Location")
		if got.StatusCode != 303 || !strings.HasPrefix(location, "/bff/logout/continue?state=") {
			t.Errorf("%s: got %d, Location %.60q", name, got.StatusCode, location)
			continue
		}
		if next := b.Fetch("GET", location, header...); next.StatusCode != 401 {
			t.Errorf("%s: a script continues: got %d, want 401, Location %.60q", name, next.StatusCode,
				next.Header.Get("Location"))
		}
		next := b.Navigate(location)
		if next.StatusCode != 303 || !strings.Contains(next.Header.Get("Location"), "id_token_hint=") {
			t.Errorf("%s: the user continues: got %d, Location %.60q", name, next.StatusCode,
				next.Header.Get("Location"))
		}
	}
	for name, got := range map[string]*bfftest.Response{
		"a form":    a.signedIn().Submit("/bff/logout", nil), // a navigation
		"a program": a.signedIn().Fetch("POST", "/bff/logout", noMetadata...),
	} {
		if got.StatusCode != 303 || !strings.HasPrefix(got.Header.Get("Location"), a.provider.Issuer) {
			t.Errorf("%s: got %d, Location %.60q", name, got.StatusCode, got.Header.Get("Location"))
		}
	}
}
