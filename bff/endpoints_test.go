package bff_test

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

// A service worker that handles a navigation with fetch(event.request) keeps
// the mode but removes the destination.
func TestSecFetchModeNavigateProvesANavigation(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	through := []string{"Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "empty", "Sec-Fetch-Site", "same-origin"}
	t.Run("from login to logout", func(t *testing.T) {
		b := a.browser()
		login := b.Navigate("/bff/login?return_to=/x", through...)
		if login.StatusCode != 302 {
			t.Fatalf("login: got %d, want 302\n%s", login.StatusCode, login.Text)
		}
		end := b.Navigate(b.Authorize("alice", login.Location(t).String()).Location(t).String(),
			append(through, "Sec-Fetch-Site", "cross-site")...)
		if end.StatusCode != 303 || end.Header.Get("Location") != "/x" {
			t.Errorf("callback: got %d to %q", end.StatusCode, end.Header.Get("Location"))
		}
		a.wantSession(b, "alice")
		out := b.Do("POST", "/bff/logout", "",
			append([]string{
				"Content-Type", "application/x-www-form-urlencoded", "Origin", a.url, "Accept",
				"text/html",
			}, through...)...)
		back := b.Navigate(b.Navigate(out.Location(t).String()).Location(t).String(),
			append(through, "Sec-Fetch-Site", "cross-site")...)
		if back.StatusCode != 303 || back.Header.Get("Location") != "/" {
			t.Errorf("the way back from a logout: got %d to %q", back.StatusCode, back.Header.Get("Location"))
		}
	})
	t.Run("a silent login", func(t *testing.T) {
		b := a.signedIn()
		b.ClearCookies()
		resp := b.Navigate("/bff/silent-login", through...)
		for resp.StatusCode/100 == 3 {
			resp = b.Navigate(resp.Header.Get("Location"), append(through, "Sec-Fetch-Site", "cross-site")...)
		}
		wantSilent(t, resp, "true")
		a.wantSession(b, "alice")
	})
	t.Run("errors are pages", func(t *testing.T) {
		wantPage(t, a.browser().Navigate("/bff/callback?state=x&code=y", through...), 400, "bad_callback")
	})
	t.Run("frames are refused", func(t *testing.T) {
		for _, dest := range []string{"iframe", "frame", "fencedframe", "embed", "object"} {
			for _, path := range []string{"/bff/login", "/bff/logout/callback", "/bff/logout/continue"} {
				wantProblem(t, a.browser().Navigate(path, "Sec-Fetch-Dest", dest), 401, "navigation_only")
			}
			if dest != "iframe" { // a silent login may end there
				resp := a.browser().Navigate("/bff/callback?state=x&code=y", "Sec-Fetch-Dest", dest)
				wantProblem(t, resp, 401, "navigation_only")
			}
		}
	})
	t.Run("other modes are refused", func(t *testing.T) {
		for _, mode := range []string{
			"cors", "no-cors", "same-origin", "websocket", "nested-navigate", "navigate, cors",
		} {
			for _, dest := range []string{"empty", "document", ""} {
				resp := a.browser().Navigate("/bff/login", "Sec-Fetch-Mode", mode, "Sec-Fetch-Dest", dest)
				wantProblem(t, resp, 401, "navigation_only")
			}
		}
		resp := a.browser().Navigate("/bff/login", "Sec-Fetch-Mode", "", "Sec-Fetch-Dest", "empty")
		wantProblem(t, resp, 401, "navigation_only")
	})
}

func TestHEADWorksLikeGETWithoutSideEffects(t *testing.T) {
	t.Parallel()
	client := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("export {}")) })
	key := ecKey(t)
	provider, edit := withKeys(key)
	a := newAppWith(t, provider, func(a *app, cfg *bff.Config) {
		edit(a, cfg)
		cfg.Client = client
	})
	c := a.recordCalls(devidp.Hooks{})
	b, sid := a.signedInWithSID()
	login := b.Navigate("/bff/login?return_to=/x").Location(t).String()
	callback := strings.TrimPrefix(b.Authorize("alice", login).Location(t).String(), a.url)
	pushed, redeemed, before := len(c.to("/par")), a.provider.TokenRequests(), fmt.Sprint(b.Cookies())
	front := "/bff/frontchannel-logout?" + url.Values{"iss": {a.provider.Issuer}, "sid": {sid}}.Encode()
	for path, want := range map[string]int{
		"/bff/login": 200, "/bff/login?prompt=evil": 200, "/bff/silent-login": 200, callback: 200,
		"/bff/callback": 200, "/bff/logout/callback": 303, "/bff/logout/continue": 200, front: 200,
		"/bff/jwks.json": 200, "/bff/client.js": 200, "/bff/client.d.ts": 200, "/bff/config.json": 200,
		"/bff/session": 200, "/bff/nothing": 404,
	} {
		header := []string{"X-CSRF", ""}
		if path == "/bff/session" {
			header = []string{"X-CSRF", "1"}
		}
		resp := b.Do("HEAD", path, "", header...)
		if resp.StatusCode != want {
			t.Errorf("HEAD %s: status: got %d, want %d", path, resp.StatusCode, want)
		}
		if len(resp.Cookies()) > 0 {
			t.Errorf("HEAD %s: cookies: got %v, want none", path, resp.Cookies())
		}
		if resp.Text != "" {
			t.Errorf("HEAD %s: body: got %q, want none", path, resp.Text)
		}
	}
	wantStatus := func(method, path string, status int, header ...string) *bfftest.Response {
		t.Helper()
		resp := b.Do(method, path, "", header...)
		if resp.StatusCode != status {
			t.Errorf("%s %s: got %d, want %d", method, path, resp.StatusCode, status)
		}
		return resp
	}
	wantStatus("HEAD", "/bff/session", 403) // as with GET
	wantStatus("HEAD", "/bff/login", 401, "Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "empty")
	for _, path := range []string{"/bff/logout", "/bff/session/refresh", "/bff/backchannel-logout"} {
		wantAllow(t, wantStatus("HEAD", path, 405, "X-CSRF", "1"), "POST")
	}
	wantAllow(t, wantStatus("PUT", "/bff/login", 405), "GET, HEAD")
	wantAllow(t, wantStatus("POST", "/bff/callback", 405), "GET, HEAD")
	n := len(c.to("/par")) - pushed
	if n > 0 {
		t.Errorf("pushed requests: got %v, want none", n)
	}
	if a.provider.TokenRequests() != redeemed {
		t.Errorf("a.provider.TokenRequests(): got %v, want %v", a.provider.TokenRequests(), redeemed)
	}
	if fmt.Sprint(b.Cookies()) != before {
		t.Errorf("b.Cookies(): got %q, want %q", fmt.Sprint(b.Cookies()), before)
	}
	a.wantSession(b, "alice")
	if resp := b.Navigate(callback); resp.StatusCode != 303 || resp.Header.Get("Location") != "/x" {
		t.Errorf("authorization response after HEAD: got %d to %q", resp.StatusCode, resp.Header.Get("Location"))
	}
}

// wantAllow requires the one value of Allow that a response lists methods in.
func wantAllow(t *testing.T, resp *bfftest.Response, want string) {
	t.Helper()
	if allow := resp.Header.Values("Allow"); !slices.Equal(allow, []string{want}) {
		t.Errorf("%s %s: Allow: got %q, want %q", resp.Request.Method, resp.Request.URL.Path, allow, want)
	}
}

// OpenID Connect Front-Channel Logout 2: a 200 means that there is no session
// any more.
func TestFrontchannelLogoutThatEndsNothingIsAnError(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b, sid := a.signedInWithSID()
	ask := func(b *bfftest.Browser, q url.Values, site string) *bfftest.Response {
		return b.Navigate("/bff/frontchannel-logout?"+q.Encode(), "Sec-Fetch-Dest", "iframe", "Sec-Fetch-Site", site)
	}
	good := url.Values{"iss": {a.provider.Issuer}, "sid": {sid}}
	ticket := *b.Cookies()[0]
	b.ClearCookies() // a browser withholds it in a cross-site frame
	wantProblem(t, ask(b, good, "cross-site"), 400, "bad_frontchannel_logout")
	b.SetCookie(&http.Cookie{Name: ticket.Name, Value: ticket.Value, Path: "/"})
	a.wantSession(b, "alice")
	for name, q := range map[string]url.Values{
		"nothing": {}, "iss alone": {"iss": good["iss"]}, "sid alone": {"sid": good["sid"]},
		"another sid": {"iss": good["iss"], "sid": {"x"}},
		"another iss": {"iss": {"https://evil.example"}, "sid": good["sid"]},
	} {
		resp := ask(b, q, "same-site")
		if wantProblem(t, resp, 400, "bad_frontchannel_logout"); len(resp.Cookies()) > 0 {
			t.Errorf("%s: cookies %v", name, resp.Cookies())
		}
		a.wantSession(b, "alice")
	}
	if got := ask(b, good, "same-site").StatusCode; got != 200 {
		t.Errorf("got %d, want 200", got)
	}
	a.wantSession(b, "")
	for _, site := range []string{"same-site", "same-origin", ""} { // there is no session any more
		if got := ask(b, good, site).StatusCode; got != 200 {
			t.Errorf("repeated, %s: got %d, want 200", site, got)
		}
	}
}

func TestOnlySomeAttemptCookiesAreDecoded(t *testing.T) {
	t.Parallel()
	a := newApp(t, unpushed)
	var cookies strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&cookies, "cloakroom-login-%d=x; ", i)
	}
	b := a.browser()
	login := b.Navigate("/bff/login?return_to=/x")
	u := b.Authorize("alice", login.Location(t).String()).Location(t).String()
	genuine := b.Cookies()[0]
	for _, path := range []string{"/bff/login", "/bff/callback?state=x&code=y", "/bff/silent-login"} {
		resp := a.browser().Navigate(path, "Cookie", cookies.String(),
			"Sec-Fetch-Dest", map[bool]string{true: "iframe"}[path == "/bff/silent-login"], "Sec-Fetch-Site", "")
		var head strings.Builder
		resp.Header.Write(&head)
		if n := len(resp.Header.Values("Set-Cookie")); n > 17 || head.Len() > 4000 {
			t.Errorf("%s: got %d with %d Set-Cookie headers of %d bytes", path, resp.StatusCode, n, head.Len())
		}
	}
	// The genuine cookie is found among them.
	resp := a.browser().Navigate(u, "Cookie", cookies.String()+genuine.Name+"="+genuine.Value)
	if resp.StatusCode != 303 || resp.Header.Get("Location") != "/x" {
		t.Errorf("got %d to %q", resp.StatusCode, resp.Header.Get("Location"))
	}
}

func TestTooLongLogoutTokenIsRejected(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	fetches := a.provider.JWKSFetches()
	for _, size := range []int{11 << 10, 54 << 10, 1 << 20} {
		resp := a.sendLogoutToken(url.Values{"logout_token": {strings.Repeat("A", size)}})
		if resp.StatusCode != 400 || !strings.Contains(resp.Text, "bad_logout_token") {
			t.Errorf("%d bytes: got %d %s", size, resp.StatusCode, resp.Text)
		}
	}
	if n := a.provider.JWKSFetches() - fetches; n > 0 {
		t.Errorf("%d key sets were fetched, want none", n)
	}
	// A token with all standard claims, and a long sub and sid, is much
	// shorter.
	b, sid := a.signedInWithSID()
	resp := a.sendLogoutToken(url.Values{
		"logout_token": {
			a.logoutToken("", sid, devidp.Hooks{
				EditLogoutToken: func(_, claims map[string]any) { claims["x"] = strings.Repeat("x", 5000) },
			}),
		},
	})
	if resp.StatusCode != 200 {
		t.Errorf("long but valid: got %d %s, want 200", resp.StatusCode, resp.Text)
	}
	a.wantSession(b, "")
}

// Each refusal has one log line that names its cause.
func TestEveryRefusalOfAnEndpointIsLogged(t *testing.T) {
	t.Parallel()
	a := newApp(t, unpushed)
	b := a.browser()
	form := []string{"Content-Type", "application/x-www-form-urlencoded"}
	for _, test := range []struct {
		name, cause string
		ask         func() *bfftest.Response
	}{
		{
			"a fetch of a login",
			"Sec-Fetch-Mode",
			func() *bfftest.Response { return b.Navigate("/bff/login", "Sec-Fetch-Mode", "cors") },
		},
		{
			"a frame",
			"Sec-Fetch-Dest",
			func() *bfftest.Response { return b.Navigate("/bff/login", "Sec-Fetch-Dest", "iframe") },
		},
		{
			"a prefetch",
			"Sec-Purpose",
			func() *bfftest.Response { return b.Navigate("/bff/login", "Sec-Purpose", "prefetch") },
		},
		{"a script", "X-CSRF", func() *bfftest.Response { return b.Navigate("/bff/login", "X-CSRF", "1") }},
		{"an old script", "Accept", func() *bfftest.Response {
			return b.Navigate("/bff/login", "Sec-Fetch-Mode", "", "Sec-Fetch-Dest", "", "Accept", "application/json")
		}},
		{"a bad parameter", "max_age", func() *bfftest.Response { return b.Navigate("/bff/login?max_age=x") }},
		{"a callback without a state", "state", func() *bfftest.Response { return b.Navigate("/bff/callback?code=x") }},
		{
			"a callback without an attempt",
			"no attempt",
			func() *bfftest.Response { return b.Navigate("/bff/callback?code=x&state=y") },
		},
		{"a callback in a frame", "no silent attempt", func() *bfftest.Response {
			return b.Navigate("/bff/callback?code=x&state=y", "Sec-Fetch-Dest", "iframe")
		}},
		{
			"a posted callback",
			"method_not_allowed",
			func() *bfftest.Response { return b.Do("POST", "/bff/callback", "", form...) },
		},
		{
			"a silent login in a window",
			"Sec-Fetch-Dest",
			func() *bfftest.Response { return b.Navigate("/bff/silent-login") },
		},
		{"a silent login of another site", "Sec-Fetch-Site", func() *bfftest.Response {
			return b.Navigate("/bff/silent-login", "Sec-Fetch-Dest", "iframe", "Sec-Fetch-Site", "cross-site")
		}},
		{
			"a logout of another site",
			"Sec-Fetch-Site",
			func() *bfftest.Response { return b.Do("POST", "/bff/logout", "", "Sec-Fetch-Site", "cross-site") },
		},
		{"a session without the header", "X-CSRF", func() *bfftest.Response { return b.Do("GET", "/bff/session", "") }},
		{
			"a refresh without a session",
			"not_signed_in",
			func() *bfftest.Response { return b.Fetch("POST", "/bff/session/refresh") },
		},
		{"a front-channel logout", "iss", func() *bfftest.Response { return b.Navigate("/bff/frontchannel-logout") }},
		{
			"a back-channel logout",
			"logout_token",
			func() *bfftest.Response { return b.Do("POST", "/bff/backchannel-logout", "x=y", form...) },
		},
		{"an unknown endpoint", "not_found", func() *bfftest.Response { return b.Navigate("/bff/nothing") }},
		{"another method", "method_not_allowed", func() *bfftest.Response { return b.Do("DELETE", "/bff/login", "") }},
	} {
		before := len(a.logs.String())
		resp := test.ask()
		text := a.logs.String()[before:]
		lines := strings.Count(text, `"msg":"request"`)
		if resp.StatusCode < 400 && !strings.Contains(resp.Text, `data-authenticated="false"`) {
			t.Errorf(`%s: body: got %q, want it to contain data-authenticated="false"`, test.name, resp.Text)
		}
		if lines != 1 {
			t.Errorf("%s: lines: got %v, want 1", test.name, lines)
		}
		if !strings.Contains(text, test.cause) {
			t.Errorf("%s: text: got %q, want it to contain %q", test.name, text, test.cause)
		}
		if !strings.Contains(text, `"err"`) {
			t.Errorf(`%s: text: got %q, want it to contain "err"`, test.name, text)
		}
	}
}
