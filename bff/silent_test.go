package bff_test

import (
	"net/url"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

var inFrame = []string{"Sec-Fetch-Dest", "iframe", "Sec-Fetch-Site", "same-origin"}

// silentLogin performs a silent login and returns its last page.
func silentLogin(b *bfftest.Browser) *bfftest.Response {
	resp := b.Navigate("/bff/silent-login", inFrame...)
	for range 5 {
		if resp.StatusCode/100 != 3 {
			break
		}
		resp = b.Navigate(resp.Header.Get("Location"), "Sec-Fetch-Dest", "iframe", "Sec-Fetch-Site", "cross-site")
	}
	return resp
}

func wantSilent(t *testing.T, page *bfftest.Response, authenticated string) {
	t.Helper()
	csp := page.Header.Get("Content-Security-Policy")
	if page.StatusCode != 200 {
		t.Errorf("status: got %d, want 200:\n%s", page.StatusCode, page.Text)
	}
	if !strings.Contains(page.Text, `data-authenticated="`+authenticated+`"`) {
		t.Errorf("body: got %q, want it to contain %q", page.Text, `data-authenticated="`+authenticated+`"`)
	}
	if !strings.Contains(page.Text, `type:"cloakroom:silent-login"`) {
		t.Errorf(`body: got %q, want it to contain type:"cloakroom:silent-login"`, page.Text)
	}
	if !strings.Contains(page.Text, "location.origin)") {
		t.Errorf("body: got %q, want it to contain location.origin)", page.Text)
	}
	if !strings.Contains(csp, "frame-ancestors 'self'") {
		t.Errorf("Content-Security-Policy: got %q, want it to contain frame-ancestors 'self'", csp)
	}
	if !strings.Contains(csp, "default-src 'none'") {
		t.Errorf("Content-Security-Policy: got %q, want it to contain default-src 'none'", csp)
	}
	if strings.Contains(csp, "unsafe") {
		t.Errorf("Content-Security-Policy: got %q, want it not to contain unsafe", csp)
	}
	if page.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("Cache-Control: got %q, want no-store", page.Header.Get("Cache-Control"))
	}
}

func TestSilentLogin(t *testing.T) {
	t.Parallel()
	a := newApp(t, unpushed)
	b := a.browser()
	q := b.Navigate("/bff/silent-login", inFrame...).Location(t).Query()
	if q.Get("prompt") != "none" {
		t.Errorf("authorization request: prompt: got %q, want none", q.Get("prompt"))
	}
	if q.Get("state") == "" {
		t.Error("authorization request: state is missing")
	}
	if q.Get("nonce") == "" {
		t.Error("authorization request: nonce is missing")
	}
	if q.Get("code_challenge") == "" {
		t.Error("authorization request: code_challenge is missing")
	}
	wantSilent(t, silentLogin(b), "false") // no session at the provider either
	a.wantSession(b, "")
	if resp := b.SignIn("alice", ""); resp.StatusCode != 303 {
		t.Fatalf("got %d, want 303", resp.StatusCode)
	}
	requests := a.provider.Stats().Authorizations
	wantSilent(t, silentLogin(b), "true")
	if n := a.provider.Stats().Authorizations - requests; n > 0 {
		t.Errorf("%d authorization requests with a session, want none", n)
	}
	var before, after sessionBody
	b.Fetch("GET", "/bff/session").Decode(t, &before)
	b.ClearCookies()
	wantSilent(t, silentLogin(b), "true") // there is a session at the provider
	b.Fetch("GET", "/bff/session").Decode(t, &after)
	if after.User.Sub != "alice" {
		t.Errorf("after.User.Sub: got %v, want alice", after.User.Sub)
	}
	if after.Session.ID == before.Session.ID {
		t.Errorf("after.Session.ID and before.Session.ID are both %v", after.Session.ID)
	}
}

func TestFailedSilentLoginReportsUnauthenticated(t *testing.T) {
	t.Parallel()
	a := newApp(t, unpushed)
	signedInAtTheProvider := func() *bfftest.Browser {
		b := a.signedIn()
		b.ClearCookies()
		return b
	}
	t.Run("no attempt", func(t *testing.T) {
		b := signedInAtTheProvider()
		resp := b.Navigate(b.Navigate("/bff/silent-login", inFrame...).Header.Get("Location"))
		b.ClearCookies() // a browser that withholds cookies in frames
		callback := resp.Header.Get("Location")
		wantSilent(t, b.Navigate(callback, "Sec-Fetch-Dest", "iframe", "Sec-Fetch-Site", "cross-site"), "false")
		a.wantSession(b, "")
	})
	t.Run("a provider that does not respond", func(t *testing.T) {
		b := signedInAtTheProvider()
		resp := b.Navigate(b.Navigate("/bff/silent-login", inFrame...).Header.Get("Location"))
		a.provider.Misbehave(t, brokertest.ProviderDown)
		callback := resp.Header.Get("Location")
		wantSilent(t, b.Navigate(callback, "Sec-Fetch-Dest", "iframe", "Sec-Fetch-Site", "cross-site"), "false")
		a.provider.Behave()
		a.wantSession(b, "")
	})
	t.Run("every error that requires the user", func(t *testing.T) {
		for _, code := range []string{
			"login_required", "interaction_required", "consent_required",
			"account_selection_required", "access_denied", "server_error", "<script>",
		} {
			b := signedInAtTheProvider()
			a.recordCalls(devidp.Hooks{EditCallback: func(params url.Values) {
				params.Del("code")
				params.Set("error", code)
			}})
			wantSilent(t, silentLogin(b), "false")
			a.provider.Behave()
			a.wantSession(b, "")
		}
	})
	t.Run("a regular login in a frame", func(t *testing.T) {
		b := a.browser()
		back := b.AuthResponse("alice", "").Header.Get("Location")
		requests := a.provider.TokenRequests()
		wantSilent(t, b.Navigate(back, "Sec-Fetch-Dest", "iframe", "Sec-Fetch-Site", "cross-site"), "false")
		if a.provider.TokenRequests() > requests {
			t.Error("the code was redeemed, so another site could start a login unseen")
		}
		a.wantSession(b, "")
	})
}

func TestSilentLoginWorksInOwnFramesOnly(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.browser()
	for _, header := range [][]string{
		{"Sec-Fetch-Dest", "document"}, {"Sec-Fetch-Dest", "empty", "Sec-Fetch-Mode", "cors"},
		{"Sec-Fetch-Dest", "image"},
	} {
		wantProblem(t, b.Navigate("/bff/silent-login", header...), 401, "navigation_only")
	}
	for _, site := range []string{"cross-site", "same-site", "none"} {
		wantProblem(t, b.Navigate("/bff/silent-login", "Sec-Fetch-Dest", "iframe", "Sec-Fetch-Site", site), 403, "csrf")
	}
	navigation := append([]string{"Sec-Fetch-Mode", "navigate", "X-CSRF", "1"}, inFrame...)
	resp := b.Do("GET", "/bff/silent-login", "", navigation...)
	wantStatus(t, "Fetch Metadata say that no script has sent it", resp, 302)
	// A prefetch, and scripts of browsers without Fetch Metadata.
	for _, header := range [][]string{
		append([]string{"Sec-Purpose", "prefetch"}, inFrame...),
		{"Purpose", "prefetch"}, {"X-CSRF", "1"}, {"X-Requested-With", "XMLHttpRequest"},
		{"Sec-Fetch-Mode", "cors", "X-CSRF", "1"},
		{"Accept", "application/json"},
	} {
		wantProblem(t, b.Do("GET", "/bff/silent-login", "", header...), 401, "navigation_only")
	}
}

// While the store is down, it is not known whether the user is signed in.
func TestSilentLoginInAnOutageOfTheStore(t *testing.T) {
	t.Parallel()
	store := new(readOnlyStore)
	a := newApp(t, store.wrap)
	b := a.signedIn()
	store.down.Store(true)
	page := b.Navigate("/bff/silent-login", inFrame...)
	if page.StatusCode != 503 || page.Header.Get("Retry-After") == "" {
		t.Errorf("got %d with Retry-After %q, want 503 with one", page.StatusCode, page.Header.Get("Retry-After"))
	}
	if !strings.Contains(page.Text, `data-authenticated="false"`) {
		t.Errorf("the app is not told:\n%s", page.Text)
	}
	if len(page.Cookies()) > 0 {
		t.Errorf("cookies: got %v, want none", page.Cookies())
	}
	store.down.Store(false)
	a.wantSession(b, "alice")
}

func TestFrontchannelLogout(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	origin := strings.TrimSuffix(a.provider.Issuer, "/op")
	ask := func(b *bfftest.Browser, q url.Values) *bfftest.Response {
		t.Helper()
		resp := b.Navigate("/bff/frontchannel-logout?"+q.Encode(), "Sec-Fetch-Dest", "iframe",
			"Sec-Fetch-Site", "same-site")
		csp := resp.Header.Get("Content-Security-Policy")
		if !strings.HasSuffix(csp, "frame-ancestors "+origin) {
			t.Errorf("Content-Security-Policy: got %q, want suffix %q", csp, "frame-ancestors "+origin)
		}
		if resp.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("Cache-Control: got %q, want no-store", resp.Header.Get("Cache-Control"))
		}
		if resp.Header.Get("X-Frame-Options") != "" {
			t.Errorf("X-Frame-Options: got %q, want none", resp.Header.Get("X-Frame-Options"))
		}
		return resp
	}
	b, sid := a.signedInWithSID()
	other, otherSID := a.signedInWithSID()
	iss := a.provider.Issuer
	for name, q := range map[string]url.Values{
		"neither": {}, "iss alone": {"iss": {iss}}, "sid alone": {"sid": {sid}},
		"sid twice": {"iss": {iss}, "sid": {sid, sid}},
	} {
		if resp := ask(b, q); resp.StatusCode != 400 || resp.Code() != "bad_frontchannel_logout" {
			t.Errorf("%s: got %d %s", name, resp.StatusCode, resp.Code())
		}
		a.wantSession(b, "alice")
	}
	for name, q := range map[string]url.Values{
		"another sid":    {"iss": {iss}, "sid": {otherSID}},
		"another issuer": {"iss": {iss + "/"}, "sid": {sid}}, "an empty sid": {"iss": {iss}, "sid": {""}},
	} {
		// the session continues
		switch resp := ask(b, q); {
		case resp.StatusCode != 400:
			t.Errorf("%s: status: got %d, want 400", name, resp.StatusCode)
		case resp.Code() != "bad_frontchannel_logout":
			t.Errorf("%s: code: got %q, want bad_frontchannel_logout", name, resp.Code())
		}
		a.wantSession(b, "alice")
	}
	good := url.Values{"iss": {iss}, "sid": {sid}}
	if resp := ask(a.browser(), good); resp.StatusCode != 200 { // the cookie was withheld
		t.Errorf("without a cookie: got %d", resp.StatusCode)
	}
	a.wantSession(b, "alice")
	c := a.recordCalls(devidp.Hooks{})
	if resp := ask(b, good); resp.StatusCode != 200 {
		t.Errorf("got %d %s, want 200", resp.StatusCode, resp.Text)
	}
	a.wantSession(b, "")
	a.wantSession(other, "alice")
	if n := len(c.to("/revoke")); n != 2 {
		t.Errorf("%d tokens were revoked, want 2: refresh and access token", n)
	}
	if resp := ask(b, good); resp.StatusCode != 200 {
		t.Errorf("repeated: got %d, want 200", resp.StatusCode)
	}
}

// The provider has no sid in its tokens. A logout with a sid must not match
// such a session.
func TestSessionWithoutASidIsEndedByNoSid(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	a.recordCalls(devidp.Hooks{EditIDToken: func(_, claims map[string]any) { delete(claims, "sid") }})
	b, other := a.signedIn(), a.signedIn()
	for _, sid := range []string{"", "null", "undefined"} {
		b.Navigate("/bff/frontchannel-logout?"+url.Values{
			"iss": {a.provider.Issuer},
			"sid": {sid},
		}.Encode(), inFrame...)
		a.wantSession(b, "alice")
	}
	if got := b.Submit("/bff/logout", nil).StatusCode; got != 303 {
		t.Errorf("logout: got %d, want 303", got)
	}
	a.wantSession(b, "")
	a.wantSession(other, "alice")
}
