package bff_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

// newTwoApps returns two apps with the same session keys and the same store.
func newTwoApps(t *testing.T) (first, second *app) {
	t.Helper()
	store := new(tokenstore.Memory)
	edit := func(_ *app, cfg *bff.Config) { cfg.Sessions.Store = store }
	return newApp(t, edit), newApp(t, edit)
}

// browserWithCookiesOf returns a browser of a with the cookies of a browser of
// other, under the cookie names of a.
func (a *app) browserWithCookiesOf(other *app, from *bfftest.Browser) *bfftest.Browser {
	b := a.browser()
	for _, c := range from.Cookies() {
		b.SetCookie(&http.Cookie{
			Name: strings.Replace(c.Name, other.cookieName(), a.cookieName(), 1), Value: c.Value,
			Path: "/",
		})
	}
	return b
}

// Two providers may give their logout tokens the same jti.
func TestLogoutTokenOfOneAppIsNotConsumedByAnother(t *testing.T) {
	t.Parallel()
	first, second := newTwoApps(t)
	for _, a := range []*app{first, second} {
		b := a.signedIn()
		same := devidp.Hooks{EditLogoutToken: func(_, claims map[string]any) { claims["jti"] = "1" }}
		got := a.sendLogoutToken(url.Values{"logout_token": {a.logoutToken("alice", "", same)}})
		if got.StatusCode != 200 {
			t.Errorf("got %d %s, want 200", got.StatusCode, got.Text)
		}
		a.wantSession(b, "")
		if got := a.sendLogoutToken(url.Values{
			"logout_token": {a.logoutToken("alice", "", same)},
		}); got.StatusCode != 400 {
			t.Errorf("replayed token: got %d, want 400", got.StatusCode)
		}
	}
}

// Attempt cookies of another app are neither counted nor removed.
func TestAttemptCookiesOfOtherAppsAreKept(t *testing.T) {
	t.Parallel()
	first, second := newTwoApps(t)
	b := first.browser()
	for range 4 {
		b.Navigate("/bff/login")
	}
	at := second.browserWithCookiesOf(first, b)
	n := len(at.Cookies())
	for range 5 {
		for _, line := range at.Navigate("/bff/login").Header["Set-Cookie"] {
			if strings.Contains(line, "Max-Age=0") {
				t.Errorf("the login removed the cookie %s", line)
			}
		}
	}
	if got := len(at.Cookies()); got != n+5 {
		t.Errorf("%d cookies, want the %d of the other app and 5", got, n)
	}
	at.Navigate("/bff/login") // the oldest one of this app is evicted
	if got := len(at.Cookies()); got != n+5 {
		t.Errorf("%d cookies, want the %d of the other app and 5", got, n)
	}
	if got := at.SignIn("alice", ""); got.StatusCode != 303 {
		t.Errorf("sign in: got %d, want 303", got.StatusCode)
	}
	second.wantSession(at, "alice")
}

// A foreign cookie is counted and logged once per request, however often it is
// read. Other cookies are not.
func TestForeignCookieIsCountedAndLoggedOnce(t *testing.T) {
	t.Parallel()
	first, second := newTwoApps(t)
	at := second.browserWithCookiesOf(first, first.signedIn())
	lines := func() int { return len(second.logs.lines(t, "cookie refused")) }
	for i, get := range []func(){
		func() { at.Fetch("GET", "/api/x") },
		func() { at.Fetch("GET", "/bff/session") },
		// reads the cookie twice
		func() { at.Navigate("/bff/silent-login", "Sec-Fetch-Dest", "iframe", "Sec-Fetch-Site", "same-origin") },
		func() { at.Navigate("/bff/login") },
		func() { at.Submit("/bff/logout", nil) },
	} {
		get()
		n, counted := lines(), second.server.CookiesRefused(session.CookieForeign)
		if n != i+1 || counted != uint64(i+1) {
			t.Errorf("after %d requests: %d lines, %d counted", i+1, n, counted)
		}
	}
	line := second.logs.lines(t, "cookie refused")[0]
	if line["event"] != "cookie.foreign" || line["level"] != "WARN" ||
		line["cookie"] != second.cookieName() || line["request"] == "" {
		t.Errorf("got %v", line)
	}
	before := lines()
	at.Navigate("/")               // the frontend needs no session
	at.Fetch("GET", "/public/x")   // this route needs none either
	second.browser().Navigate("/") // no cookie
	b := second.signedIn()         // a valid cookie
	b.Submit("/bff/logout", nil)   // a cookie of an ended session
	b.Fetch("GET", "/bff/session") // the cookie was removed
	second.browser().Fetch("GET", "/api/x", "Cookie", second.cookieName()+"=noise")
	var foreign int
	for _, line := range second.logs.lines(t, "cookie refused") {
		if line["event"] == "cookie.foreign" {
			foreign++
		} else if line["event"] != "cookie.unopenable" || line["level"] != "DEBUG" {
			t.Errorf("got %v", line)
		}
	}
	if foreign != before {
		t.Errorf("%d foreign cookies, want %d", foreign, before)
	}
	if n := second.server.CookiesRefused(session.CookieUnopenable); n != 1 {
		t.Errorf("%d invalid cookies are counted, want 1", n)
	}
	first.wantSession(first.signedIn(), "alice")
}
