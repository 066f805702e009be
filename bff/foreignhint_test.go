package bff_test

import (
	"net/http"
	"testing"
)

// The cookie between a logout and its continuation belongs to one app, as the
// session cookie does. Other apps neither use nor remove it.
func TestLogoutCookiesOfOtherAppsAreKept(t *testing.T) {
	t.Parallel()
	first, second := newTwoApps(t)
	b := first.signedIn()
	var body struct {
		RedirectTo string `json:"redirect_to"`
	}
	b.Fetch("POST", "/bff/logout").Decode(t, &body)
	var hint *http.Cookie
	for _, c := range b.Cookies() {
		if c.Name == first.cookieName()+"-logout" {
			hint = c
		}
	}
	if hint == nil {
		t.Fatal("no cookie for the continuation")
	}
	other := second.browser()
	for _, path := range []string{"/bff/logout/continue?state=x", body.RedirectTo} {
		got := other.Navigate(path, "Cookie", second.cookieName()+"-logout="+hint.Value)
		if got.StatusCode != 303 || got.Header.Get("Location") != "/" || len(got.Cookies()) > 0 {
			t.Errorf("%.40s: got %d, Location %.40q, cookies %v", path, got.StatusCode,
				got.Header.Get("Location"), got.Cookies())
		}
	}
	got := b.Navigate(body.RedirectTo)
	if got.StatusCode != 303 || len(got.Cookies()) != 1 || got.Cookies()[0].MaxAge >= 0 {
		t.Errorf("its own application: got %d, cookies %v", got.StatusCode, got.Cookies())
	}
}
