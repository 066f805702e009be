package bff_test

import (
	"errors"
	"fmt"
	"html"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

func TestFromLoginToAPICallToLogout(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.browser()
	a.wantSession(b, "")

	resp := b.SignIn("alice", "return_to="+url.QueryEscape("/orders?tab=2#top"))
	if got := resp.Location(t).String(); resp.StatusCode != 303 || got != a.url+"/orders?tab=2#top" {
		t.Errorf("callback: got %d to %s, want 303 to return_to", resp.StatusCode, got)
	}
	a.wantSession(b, "alice")

	e := echoed(t, b.Fetch("GET", "/api/orders?x=1"))
	digest, bearer := strings.CutPrefix(e.Header.Get("Authorization"), "Bearer ")
	if e.URI != "/api/orders?x=1" {
		t.Errorf("e.URI: got %v, want /api/orders?x=1", e.URI)
	}
	if !bearer {
		t.Error("bearer: got false, want true")
	}
	if !a.provider.Issued(digest) {
		t.Error("the token was not issued by the provider")
	}
	if got := e.Header.Get("Cookie"); got != "" {
		t.Errorf("upstream got the cookie %q, want none", got)
	}

	resp = b.Submit("/bff/logout", url.Values{"return_to": {"/bye"}})
	out := resp.Location(t)
	wantStatus(t, "logout", resp, 303)
	if !strings.HasPrefix(out.String(), a.provider.Issuer) {
		t.Errorf("logout: Location: got %s, want the end_session_endpoint", out)
	}
	if out.Query().Get("id_token_hint") == "" {
		t.Errorf("logout: no id_token_hint in %s", out)
	}
	if got, want := out.Query().Get("post_logout_redirect_uri"), a.url+"/bff/logout/callback"; got != want {
		t.Errorf("logout: post_logout_redirect_uri: got %q, want %q", got, want)
	}
	a.wantSession(b, "")
	resp = b.Follow(b.Navigate(out.String()), a.url+"/bye")
	if got := resp.Location(t).String(); got != a.url+"/bye" {
		t.Errorf("after the logout at the provider: Location: got %s, want /bye", got)
	}
	wantProblem(t, b.Fetch("GET", "/api/orders"), 401, "not_signed_in")
}

// unpushed leaves the authorization request in the URL, where a test sees it.
func unpushed(_ *app, cfg *bff.Config) { cfg.Provider.PushedRequests = "never" }

func TestAuthorizationRequestIgnoresTheLink(t *testing.T) {
	t.Parallel()
	a := newApp(t, unpushed)
	b := a.browser()
	link := "/bff/login?client_id=evil&scope=admin&redirect_uri=https://evil.example" +
		"&response_type=token&request=x&claims=x&state=x&nonce=x" +
		"&return_to=" + url.QueryEscape("/x?&scope=admin&redirect_uri=https://evil.example")
	resp := b.Navigate(link,
		"X-Forwarded-Host", "evil.example", "X-Forwarded-Proto", "https", "Forwarded", "host=evil.example")
	q := resp.Location(t).Query()
	for name, want := range map[string]string{
		"response_type": "code", "client_id": a.provider.Client.ID, "redirect_uri": a.url + "/bff/callback",
		"scope": "openid profile email offline_access", "code_challenge_method": "S256",
		"request": "", "claims": "", "prompt": "",
	} {
		if got := q.Get(name); got != want || len(q[name]) > 1 {
			t.Errorf("%s: got %q, want %q", name, q[name], want)
		}
	}
	for _, name := range []string{"state", "nonce", "code_challenge"} {
		if got := q.Get(name); len(got) < 22 {
			t.Errorf("%s: got %q, want 128 random bits", name, got)
		}
	}
	cookie := resp.Header.Get("Set-Cookie")
	const want = `^cloakroom-\d+-login-[0-9a-f]+=[^;]+; Path=/; Max-Age=600; HttpOnly; SameSite=Lax$`
	if !regexp.MustCompile(want).MatchString(cookie) {
		t.Errorf("attempt cookie: got %s, want %s", cookie, want)
	}
	for _, name := range []string{"state", "nonce"} {
		if strings.Contains(cookie, q.Get(name)) {
			t.Errorf("the %s is readable in the attempt cookie", name)
		}
	}
}

// OpenID Connect Core 3.1.2.1: the scope contains openid, configured or not.
func TestEveryLoginRequestsScopeOpenID(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.Provider.PushedRequests, cfg.Provider.Scopes = "never", []string{"profile"}
	})
	got := a.browser().Navigate("/bff/login").Location(t).Query().Get("scope")
	if !slices.Contains(strings.Fields(got), "openid") {
		t.Errorf("scope: got %q, want it to contain openid", got)
	}
}

// Unknown parameters of a login link, among them those of a login that a third
// party initiates (Core 4), do not change the authorization request.
func TestLoginLinkAddsNoParameters(t *testing.T) {
	t.Parallel()
	a := newApp(t, unpushed)
	link := make(url.Values)
	for _, name := range []string{
		"client_id", "scope", "redirect_uri", "response_type", "response_mode", "claims", "request",
		"request_uri", "state", "nonce", "code_challenge", "code_challenge_method", "dpop_jkt", "resource", "audience",
		"id_token_hint", "display", "registration", "claims_locales", "authorization_details", "iss",
		"target_link_uri", "post_logout_redirect_uri", "exotic",
	} {
		link.Set(name, "https://evil.example")
	}
	for _, query := range []string{"", link.Encode()} {
		to := a.browser().Navigate("/bff/login?" + query).Location(t)
		got := slices.Sorted(maps.Keys(to.Query()))
		want := []string{
			"client_id", "code_challenge", "code_challenge_method", "nonce", "redirect_uri",
			"response_type", "scope", "state",
		}
		if !strings.HasPrefix(to.String(), a.provider.Issuer+"/authorize?") {
			t.Errorf("Location: got %s, want the authorization endpoint", to)
		}
		if strings.Contains(to.String(), "evil") {
			t.Errorf("a value of the link is in the request: %s", to)
		}
		if !slices.Equal(got, want) {
			t.Errorf("parameters: got %v, want %v", got, want)
		}
	}
}

// RFC 9700 2.1.1, RFC 7636 7.2: the method is S256 even if the provider lists
// only plain.
func TestPlainPKCEIsNeverUsed(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(a *app, cfg *bff.Config) {
		cfg.Provider.PushedRequests = "never"
		a.provider.Misbehave(t, brokertest.Discovery("", func(m map[string]any) {
			m["code_challenge_methods_supported"] = []string{"plain"}
		}))
	})
	a.waitReady()
	a.recordCalls(devidp.Hooks{EditCallback: func(params url.Values) {
		params.Del("code")
		params.Set("error", "invalid_request")
		params.Set("error_description", "code_challenge_method S256 is not supported")
	}})
	b := a.browser()
	to := b.Navigate("/bff/login").Location(t)
	if got := to.Query().Get("code_challenge_method"); got != "S256" {
		t.Errorf("code_challenge_method: got %q, want S256", got)
	}
	if got := to.Query().Get("code_challenge"); len(got) != 43 {
		t.Errorf("code_challenge: got %q, want 43 characters", got)
	}
	wantPage(t, b.Navigate(b.Authorize("alice", to.String()).Location(t).String()), 502, "login_refused")
}

func TestLoginPassesKnownParametersOnly(t *testing.T) {
	t.Parallel()
	a := newApp(t, unpushed)
	b := a.browser()
	q := b.Navigate("/bff/login?prompt=login+consent&login_hint=alice%40example.com" +
		"&acr_values=gold+silver&max_age=60&ui_locales=de").Location(t).Query()
	for name, want := range map[string]string{
		"prompt":     "login consent",
		"login_hint": "alice@example.com",
		"acr_values": "gold silver",
		"max_age":    "60",
		"ui_locales": "de",
	} {
		if got := q.Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	for _, query := range []string{
		"prompt=evil", "prompt=none+login", "max_age=soon", "max_age=-1",
		"login_hint=" + strings.Repeat("a", 300), "ui_locales=a%0d%0ab",
	} {
		wantPage(t, b.Navigate("/bff/login?"+query), 400, "bad_login_parameter")
	}
}

func TestFetchOrPrefetchStartsNoLogin(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.browser()
	for name, header := range map[string][]string{
		"fetch":               {"Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "empty"},
		"no-cors":             {"Sec-Fetch-Mode", "no-cors", "Sec-Fetch-Dest", "image"},
		"iframe":              {"Sec-Fetch-Dest", "iframe"},
		"old fetch":           {"Sec-Fetch-Mode", "", "Sec-Fetch-Dest", "", "Accept", "application/json"},
		"the client":          {"X-CSRF", "1"},
		"XMLHttpRequest":      {"Sec-Fetch-Mode", "", "Sec-Fetch-Dest", "", "X-Requested-With", "XMLHttpRequest"},
		"prefetch":            {"Sec-Purpose", "prefetch"},
		"prerender":           {"Sec-Purpose", "prefetch;prerender"},
		"old prefetch":        {"Purpose", "prefetch"},
		"prefetch of Firefox": {"X-Moz", "prefetch"},
	} {
		for _, path := range []string{"/bff/login", "/bff/callback?state=x&code=y", "/bff/logout/callback"} {
			resp := b.Navigate(path, header...)
			if name == "iframe" && strings.Contains(path, "/callback?") { // the end of a silent login
				if !strings.Contains(resp.Text, `data-authenticated="false"`) {
					t.Errorf("%s of %s: got %s, want an unauthenticated result", name, path, resp.Text)
				}
				if got := resp.Cookies(); len(got) > 0 {
					t.Errorf("%s of %s: cookies: got %v, want none", name, path, got)
				}
				continue
			}
			wantProblem(t, resp, 401, "navigation_only")
			if got := resp.Cookies(); len(got) > 0 {
				t.Errorf("%s of %s: cookies: got %v, want none", name, path, got)
			}
			if !strings.Contains(resp.Text, `"login_url":"/bff/login"`) {
				t.Errorf("%s of %s: no login_url in %s", name, path, resp.Text)
			}
		}
	}
	if got := b.Do("GET", "/bff/login", "").StatusCode; got != 302 {
		t.Errorf("without browser headers: got %d, want 302", got)
	}
}

func TestSeveralTabsCanLogInAtOnce(t *testing.T) {
	t.Parallel()
	a := newApp(t, unpushed)
	b := a.browser()
	var responses []*bfftest.Response
	seen := make(map[string]bool)
	for i := range 5 {
		login := b.Navigate(fmt.Sprintf("/bff/login?return_to=/tab%d", i))
		q := login.Location(t).Query()
		for _, name := range []string{"state", "nonce", "code_challenge"} {
			if seen[q.Get(name)] {
				t.Errorf("two attempts have the same %s", name)
			}
			seen[q.Get(name)] = true
		}
		responses = append(responses, login)
	}
	for _, i := range []int{3, 0, 4, 1, 2} {
		resp := b.Navigate(b.Authorize("alice", responses[i].Location(t).String()).Location(t).String())
		if want := fmt.Sprintf("%s/tab%d", a.url, i); resp.StatusCode != 303 || resp.Location(t).String() != want {
			t.Errorf("tab %d: got %d to %s, want %s", i, resp.StatusCode, resp.Location(t), want)
		}
	}
}

func TestAbandonedLoginsDoNotPileUp(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.browser()
	for i := range 1000 {
		path := "/bff/login?return_to=/" + strings.Repeat("x", i)
		if resp := b.Navigate(path); resp.StatusCode != 302 {
			t.Fatalf("login %d: got %d, want 302", i, resp.StatusCode)
		}
		size := 0
		for _, c := range b.Cookies() {
			size += len(c.Name) + len(c.Value)
		}
		if n := len(b.Cookies()); n > 5 || size > 6000 {
			t.Fatalf("after login %d: %d cookies of %d bytes, want at most 5 of 6000", i, n, size)
		}
	}
	if n := a.store.Store.(interface{ Len() int }).Len(); n != 0 {
		t.Errorf("anonymous logins wrote %d records, want none", n)
	}
	if resp := b.SignIn("alice", ""); resp.StatusCode != 303 {
		t.Errorf("the next login: got %d, want 303", resp.StatusCode)
	}
}

// callback returns the URL of the callback with the authorization response, and
// its query, for a test to modify.
func callback(t *testing.T, b *bfftest.Browser) (*url.URL, url.Values) {
	u := b.AuthResponse("alice", "return_to=/here").Location(t)
	return u, u.Query()
}

func TestInvalidCallbacksAreRejected(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	for name, spoil := range map[string]func(q url.Values){
		"no state":    func(q url.Values) { q.Del("state") },
		"empty state": func(q url.Values) { q.Set("state", "") },
		"altered state": func(q url.Values) {
			s := []byte(q.Get("state"))
			s[20] ^= 1
			q.Set("state", string(s))
		},
		"altered end of state": func(q url.Values) {
			s := []byte(q.Get("state"))
			s[len(s)-5] ^= 1
			q.Set("state", string(s))
		},
		"state twice":            func(q url.Values) { q.Add("state", q.Get("state")) },
		"code twice":             func(q url.Values) { q.Add("code", "x") },
		"iss twice":              func(q url.Values) { q.Add("iss", q.Get("iss")) },
		"error twice":            func(q url.Values) { q.Del("code"); q["error"] = []string{"access_denied", "x"} },
		"code and error":         func(q url.Values) { q.Set("error", "access_denied") },
		"neither code nor error": func(q url.Values) { q.Del("code") },
		"no iss":                 func(q url.Values) { q.Del("iss") },
		"another iss":            func(q url.Values) { q.Set("iss", "https://evil.example") },
		"iss with a slash":       func(q url.Values) { q.Set("iss", q.Get("iss")+"/") },
		"iss in capitals":        func(q url.Values) { q.Set("iss", strings.ToUpper(q.Get("iss"))) },
		"error from another iss": func(q url.Values) {
			q.Del("code")
			q.Set("error", "access_denied")
			q.Set("iss", "https://evil.example")
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := a.signedIn()
			u, q := callback(t, b)
			spoil(q)
			u.RawQuery = q.Encode()
			before := a.provider.TokenRequests()
			wantPage(t, b.Navigate(u.String()), 400, "bad_callback")
			if n := a.provider.TokenRequests() - before; n > 0 {
				t.Errorf("%d token requests, want none", n)
			}
			a.wantSession(b, "alice")
		})
	}
	t.Run("malformed query", func(t *testing.T) {
		b := a.signedIn()
		u, q := callback(t, b)
		u.RawQuery = q.Encode() + "&x=%zz"
		wantPage(t, b.Navigate(u.String()), 400, "bad_callback")
		a.wantSession(b, "alice")
	})
	t.Run("posted", func(t *testing.T) {
		b := a.signedIn()
		u, q := callback(t, b)
		u.RawQuery = ""
		wantProblem(t, b.Submit(u.String(), q), 405, "method_not_allowed")
		for _, body := range []string{"", "x"} {
			wantProblem(t, b.Do("POST", u.String(), body, "Content-Type", ""), 405, "method_not_allowed")
		}
		a.wantSession(b, "alice")
	})
}

func TestAttemptIsForOneBrowserAndOneUse(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.browser()
	u, _ := callback(t, b)

	// In another browser the login restarts: once, then there is an error page.
	before := a.provider.TokenRequests()
	other := a.browser()
	restarted := other.Navigate(u.String())
	got := restarted.Location(t)
	wantStatus(t, "in another browser", restarted, 302)
	if !strings.HasPrefix(got.String(), a.provider.Issuer) {
		t.Fatalf("in another browser: Location: got %s, want the provider", got)
	}
	second := other.Authorize("bob", restarted.Location(t).String()).Location(t)
	for _, c := range other.Cookies() {
		other.SetCookie(&http.Cookie{Name: c.Name, Path: "/", MaxAge: -1})
	}
	wantPage(t, other.Navigate(second.String()), 400, "bad_callback")
	if n := a.provider.TokenRequests() - before; n != 0 {
		t.Errorf("%d token requests, want none", n)
	}
	a.wantSession(other, "")

	// In its own browser it works once.
	wantStatus(t, "in its own browser", b.Navigate(u.String()), 303)
	wantRedirect(t, "repeated, with a session", b.Navigate(u.String()), 303, "/here")
	if n := a.provider.TokenRequests() - before; n != 1 {
		t.Errorf("%d token requests, want 1", n)
	}
	a.wantSession(b, "alice")
}

// RFC 9700 4.7.1: an attempt cookie is accepted only unmodified, under its own
// name and for its own state.
func TestTamperedAttemptCookieIsRejected(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	for name, tamper := range map[string]func(mine, other *http.Cookie){
		"bit flipped at the start":  func(mine, _ *http.Cookie) { mine.Value = flip(mine.Value, 2) },
		"bit flipped in the middle": func(mine, _ *http.Cookie) { mine.Value = flip(mine.Value, len(mine.Value)/2) },
		"bit flipped at the end":    func(mine, _ *http.Cookie) { mine.Value = flip(mine.Value, len(mine.Value)-4) },
		"truncated":                 func(mine, _ *http.Cookie) { mine.Value = mine.Value[:len(mine.Value)-8] },
		"value of another attempt":  func(mine, other *http.Cookie) { mine.Value = other.Value },
	} {
		t.Run(name, func(t *testing.T) {
			attacker, b := a.browser(), a.browser()
			attacker.AuthResponse("bob", "")
			u := b.AuthResponse("alice", "").Location(t)
			mine, other := *b.Cookies()[0], *attacker.Cookies()[0]
			tamper(&mine, &other)
			b.SetCookie(&http.Cookie{Name: mine.Name, Value: mine.Value, Path: "/"})
			before := a.provider.TokenRequests()
			if got := b.Navigate(u.String()).StatusCode; got == 303 || got >= 500 {
				t.Errorf("callback: status: got %d, want neither 303 nor 5xx", got)
			}
			if n := a.provider.TokenRequests() - before; n > 0 {
				t.Errorf("%d token requests, want none", n)
			}
			a.wantSession(b, "")
		})
	}
}

// flip returns value with one bit of a byte flipped.
func flip(value string, at int) string {
	b := []byte(value)
	b[at] ^= 1
	return string(b)
}

func TestSimultaneousCallbacksRedeemTheCodeOnce(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.browser()
	u, _ := callback(t, b)
	var header []string
	for _, c := range b.Cookies() {
		header = append(header, c.Name+"="+c.Value)
	}
	before := a.provider.TokenRequests()
	statuses := make(chan int, 8)
	var sessions sync.Map // :: id → true
	var all sync.WaitGroup
	for range cap(statuses) {
		twin := a.browser()
		all.Go(func() {
			resp := twin.Navigate(u.String(), "Cookie", strings.Join(header, "; "))
			if got := resp.Header.Get("Location"); got != "/here" {
				t.Errorf("Location: got %q (status %d), want /here", got, resp.StatusCode)
			}
			a.wantSession(twin, "alice")
			sessions.Store(a.sessionID(twin), true)
			statuses <- resp.StatusCode
		})
	}
	all.Wait()
	close(statuses)
	for s := range statuses {
		if s != 303 {
			t.Errorf("got %d, want 303", s)
		}
	}
	started := 0
	sessions.Range(func(any, any) bool { started++; return true })
	if n := a.provider.TokenRequests() - before; n != 1 {
		t.Errorf("%d token requests, want 1", n)
	}
	if started != 1 {
		t.Errorf("%d sessions, want 1", started)
	}
}

func TestAttemptAndSessionCookiesAreNotInterchangeable(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	b.Navigate("/bff/login")
	var login, sess *http.Cookie
	for _, c := range b.Cookies() {
		if c.Name == a.cookieName() {
			sess = c
		} else {
			login = c
		}
	}
	other := a.browser()
	other.SetCookie(&http.Cookie{Name: a.cookieName(), Value: login.Value, Path: "/"})
	a.wantSession(other, "")
	other.SetCookie(&http.Cookie{Name: login.Name, Value: sess.Value, Path: "/"})
	if resp := other.Navigate("/bff/login"); resp.StatusCode != 302 {
		t.Errorf("login: got %d, want 302", resp.StatusCode)
	}
}

func TestInvalidTokenResponsesFailTheLogin(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	for _, m := range brokertest.TokenResponseFaults {
		t.Run(m.Name, func(t *testing.T) {
			b := a.browser()
			u := b.AuthResponse("alice", "").Location(t)
			a.provider.Misbehave(t, m)
			resp := b.Navigate(u.String())
			if resp.StatusCode != 502 && resp.StatusCode != 503 {
				t.Errorf("status: got %d, want 502 or 503:\n%s", resp.StatusCode, resp.Text)
			}
			if !strings.Contains(resp.Text, "Try again") {
				t.Errorf("the page has no link to try again:\n%s", resp.Text)
			}
			a.provider.Behave()
			a.wantSession(b, "")
		})
	}
}

func TestProviderErrorTextIsNeverShown(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	for code, want := range map[string]struct {
		status int
		code   string
	}{
		"access_denied":                     {403, "login_cancelled"},
		"server_error":                      {503, "provider_unavailable"},
		"temporarily_unavailable":           {503, "provider_unavailable"},
		"invalid_scope":                     {502, "login_refused"},
		"login_required":                    {502, "login_refused"},
		"unmet_authentication_requirements": {403, "login_too_weak"},
		"<script>alert(1)</script>":         {502, "login_refused"},
		strings.Repeat("x", 5000):           {502, "login_refused"},
	} {
		b := a.signedIn()
		u, q := callback(t, b)
		q.Del("code")
		q.Set("error", code)
		q.Set("error_description", "<img src=x onerror=alert(2)>")
		q.Set("error_uri", "https://evil.example")
		u.RawQuery = q.Encode()
		resp := b.Navigate(u.String())
		wantPage(t, resp, want.status, want.code)
		for _, text := range []string{"alert", "evil", "xxxx"} {
			if strings.Contains(resp.Text, text) {
				t.Errorf("%.20s: the page contains %q of the provider's response:\n%s", code, text, resp.Text)
			}
		}
		if !strings.Contains(resp.Text, `href="/bff/login?return_to=%2Fhere"`) {
			t.Errorf("%.20s: the link to try again lacks return_to", code)
		}
		csp := resp.Header.Get("Content-Security-Policy")
		if !strings.HasPrefix(csp, "default-src 'none'; style-src 'sha256-") {
			t.Errorf("%.20s: Content-Security-Policy: got %q, want default-src 'none'", code, csp)
		}
		a.wantSession(b, "alice")
	}
}

// RFC 9700 4.11.1: an error response leads to an error page and never to
// another login, even if its attempt is gone.
func TestErrorResponseStartsNoLogin(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	for _, code := range []string{"access_denied", "login_required", "server_error"} {
		b := a.browser()
		u, q := callback(t, b)
		q.Del("code")
		q.Set("error", code)
		u.RawQuery = q.Encode()
		b.ClearCookies()
		wantPage(t, b.Navigate(u.String()), 400, "bad_callback")
	}
}

func TestPromptNoneWithoutASessionIsNoError(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.browser()
	resp := b.Follow(b.Navigate("/bff/login?prompt=none&return_to=/back"), a.url+"/back")
	if got := resp.Location(t).String(); resp.StatusCode != 303 || got != a.url+"/back" {
		t.Errorf("got %d to %s, want 303 to /back", resp.StatusCode, got)
	}
	a.wantSession(b, "")
	if n := len(b.Cookies()); n != 0 {
		t.Errorf("%d cookies of the attempt remain", n)
	}
}

// OpenID Connect Core 3.1.2.6: each error that prompt=none can cause.
func TestFailedPromptNoneReturnsToTheApp(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	for _, code := range []string{
		"login_required", "interaction_required", "consent_required", "account_selection_required",
	} {
		a.recordCalls(devidp.Hooks{EditCallback: func(params url.Values) {
			params.Del("code")
			params.Set("error", code)
		}})
		b := a.browser()
		resp := b.Follow(b.Navigate("/bff/login?prompt=none&return_to=/back"), a.url+"/back")
		wantRedirect(t, code, resp, 303, "/back")
		if got := cookieNames(b); len(got) > 0 {
			t.Errorf("%s: cookies: got %v, want none", code, got)
		}
		a.wantSession(b, "")
	}
}

func TestStepUpIsCheckedOnReturn(t *testing.T) {
	t.Parallel()
	a := newApp(t, unpushed)
	t.Run("the requested level", func(t *testing.T) {
		b := a.signedIn()
		if resp := b.SignIn("alice", "acr_values=gold"); resp.StatusCode != 303 {
			t.Errorf("got %d, want 303", resp.StatusCode)
		}
	})
	t.Run("a lower level", func(t *testing.T) {
		b := a.signedIn()
		a.provider.Misbehave(t, brokertest.LowerACR)
		wantPage(t, b.SignIn("alice", "acr_values=gold"), 403, "login_too_weak")
		a.wantSession(b, "alice")
	})
	t.Run("no acr", func(t *testing.T) {
		b := a.signedIn()
		a.provider.Misbehave(t, brokertest.NoACR)
		wantPage(t, b.SignIn("alice", "acr_values=gold"), 403, "login_too_weak")
	})
	t.Run("max_age and no auth_time", func(t *testing.T) {
		b := a.signedIn()
		a.provider.Misbehave(t, brokertest.NoAuthTime)
		wantPage(t, b.SignIn("alice", "max_age=60"), 502, "login_invalid")
		a.wantSession(b, "alice")
	})
	t.Run("an old auth_time restarts the login once", func(t *testing.T) {
		b := a.signedIn()
		a.provider.Misbehave(t, brokertest.OldAuthTime)
		again := b.SignIn("alice", "max_age=60&return_to=/pay")
		q := again.Location(t).Query()
		if again.StatusCode != 302 {
			t.Fatalf("status: got %d, want 302", again.StatusCode)
		}
		if q.Get("prompt") != "login" {
			t.Fatalf("prompt: got %q, want login", q.Get("prompt"))
		}
		if q.Get("max_age") != "60" {
			t.Fatalf("max_age: got %q, want 60", q.Get("max_age"))
		}
		callback := b.Authorize("alice", again.Location(t).String()).Location(t).String()
		wantPage(t, b.Navigate(callback), 403, "login_too_weak")
		a.wantSession(b, "alice")
	})
}

func TestLoginReplacesTheSessionAndItsCookie(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	old := b.Cookies()[0]
	if resp := b.SignIn("alice", ""); resp.StatusCode != 303 {
		t.Fatalf("second login: got %d, want 303", resp.StatusCode)
	}
	thief := a.browser()
	thief.SetCookie(&http.Cookie{Name: old.Name, Value: old.Value, Path: "/"})
	a.wantSession(thief, "")
	a.wantSession(b, "alice")

	// A cookie planted before the login is not the one after it.
	attacker := a.signedIn()
	victim := a.browser()
	victim.SetCookie(&http.Cookie{Name: a.cookieName(), Value: attacker.Cookies()[0].Value, Path: "/"})
	if resp := victim.SignIn("bob", "prompt=login"); resp.StatusCode != 303 {
		t.Fatalf("victim's login: got %d, want 303", resp.StatusCode)
	}
	a.wantSession(victim, "bob")
	a.wantSession(attacker, "")
}

func TestCrossSiteLoginCannotChangeTheUser(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	for _, site := range []string{"cross-site", "same-site"} {
		b := a.signedIn()
		login := b.Navigate("/bff/login?prompt=login", "Sec-Fetch-Site", site)
		callback := b.Authorize("bob", login.Location(t).String()).Location(t).String()
		ticket := *a.sessionCookie(b)
		// A browser withholds a Strict cookie on its way back from the
		// provider.
		b.SetCookie(&http.Cookie{Name: ticket.Name, MaxAge: -1})
		relayed := relayURL(t, b.Navigate(callback, "Sec-Fetch-Site", "cross-site"))
		b.SetCookie(&ticket)
		wantPage(t, b.Navigate(relayed, "Sec-Fetch-Site", "same-origin"), 403, "other_account")
		a.wantSession(b, "alice")
	}
	if n := a.provider.LiveRefreshTokens(); n != 2 {
		t.Errorf("%d refresh tokens are valid, want 2: those of the two sessions", n)
	}
}

// A stale callback restarts the login. It must not replace an existing session:
// any client can obtain a state and let it become stale.
func TestStaleCrossSiteCallbackKeepsSession(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Cookie.SameSite = http.SameSiteLaxMode })
	u := a.browser().AuthResponse("bob", "").Location(t) // the attacker's, with a genuine state
	b := a.signedIn()
	before := a.sessionID(b)
	stale := "/bff/callback?" + url.Values{"state": {u.Query().Get("state")}, "code": {"x"}}.Encode()
	wantRedirect(t, "with a session", b.Navigate(stale, "Sec-Fetch-Site", "cross-site"), 303, "/")

	// The session starts while the restarted login is in progress. The provider
	// knows the victim as bob: a login CSRF there, a shared computer, or
	// another account was selected.
	victim := a.browser()
	relayed := relayURL(t, victim.Navigate(stale, "Sec-Fetch-Site", "cross-site"))
	to := victim.Navigate(relayed, "Sec-Fetch-Site", "same-origin").Location(t)
	for _, c := range b.Cookies() {
		victim.SetCookie(&http.Cookie{Name: c.Name, Value: c.Value, Path: "/"})
	}
	resp := victim.Navigate(authenticateAs(t, a, victim, "bob", to.String()), "Sec-Fetch-Site", "cross-site")
	wantPage(t, victim.Navigate(relayURL(t, resp), "Sec-Fetch-Site", "same-origin"), 403, "other_account")
	a.wantSession(victim, "alice")
	a.wantSession(b, "alice")
	if got := a.sessionID(b); got != before {
		t.Errorf("session id: got %s, want %s as before", got, before)
	}
}

// authenticateAs completes an authorization request as user, regardless of the
// provider's session in b. It returns the URL of the callback.
func authenticateAs(t *testing.T, a *app, b *bfftest.Browser, user, authorization string) string {
	t.Helper()
	fresh := a.browser() // has no cookie of the provider, so the login page is shown
	return fresh.Authorize(user, authorization).Location(t).String()
}

func TestCrossSiteLinkMaySignIn(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	// alice signs in twice, as in two tabs; bob signs in after alice signed
	// out.
	for _, user := range []string{"alice", "alice", "bob"} {
		b := a.browser()
		if user == "bob" {
			b = a.signedIn()
		}
		login := b.Navigate("/bff/login?prompt=login&return_to=/x", "Sec-Fetch-Site", "cross-site")
		callback := b.Authorize(user, login.Location(t).String()).Location(t).String()
		if user == "bob" {
			b.Fetch("POST", "/bff/logout")
		}
		relayed := relayURL(t, b.Navigate(callback, "Sec-Fetch-Site", "cross-site"))
		wantRedirect(t, user, b.Navigate(relayed, "Sec-Fetch-Site", "same-origin"), 303, "/x")
		a.wantSession(b, user)
		wantRedirect(t, user+", repeated", b.Navigate(relayed, "Sec-Fetch-Site", "same-origin"), 303, "/x")
	}
}

// Another site that leads a browser to the relayed callback itself gets no
// further, and no session is touched.
func TestCrossSiteLoginContinuesFromOwnPageOnly(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.browser()
	login := b.Navigate("/bff/login?prompt=login", "Sec-Fetch-Site", "cross-site")
	callback := b.Authorize("bob", login.Location(t).String()).Location(t).String()
	wantPage(t, b.Navigate(callback+"&cloakroom_again=1", "Sec-Fetch-Site", "cross-site"), 400, "bad_callback")
	a.wantSession(b, "")
}

// relayURL returns the URL to which the relay page leads. That page reloads the
// callback from the app's own origin.
func relayURL(t *testing.T, page *bfftest.Response) string {
	t.Helper()
	_, rest, ok := strings.Cut(page.Text, `content="0;url=`)
	to, _, _ := strings.Cut(rest, `"`)
	if page.StatusCode != 200 {
		t.Fatalf("relay page: status: got %d, want 200:\n%s", page.StatusCode, page.Text)
	}
	if !ok {
		t.Fatalf("the page is not the relay page:\n%s", page.Text)
	}
	if got := page.Header.Get("Set-Cookie"); got != "" {
		t.Fatalf("relay page: Set-Cookie: got %q, want none", got)
	}
	if got := page.Header.Get("Referrer-Policy"); got != "no-referrer" {
		t.Fatalf("relay page: Referrer-Policy: got %q, want no-referrer", got)
	}
	return html.UnescapeString(to)
}

// RFC 9700 4.2.4: the URLs of these responses hold code and state, which must
// not leak as a referrer or to a third party.
func TestCallbackPagesSendNoReferrer(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Provider.ResponseMode = "form_post" })
	other := newApp(t, nil)
	b := other.browser()
	login := b.Navigate("/bff/login", "Sec-Fetch-Site", "cross-site")
	callback := b.Authorize("alice", login.Location(t).String()).Location(t).String()
	relay := b.Navigate(callback, "Sec-Fetch-Site", "cross-site")
	success := other.browser().SignIn("alice", "")
	for name, page := range map[string]*bfftest.Response{
		"of a silent login": silentLogin(other.browser()),
		"that relays":       relay,
		"that posts again": a.browser().Do("POST", "/bff/callback", "state=x&code=y",
			"Content-Type", "application/x-www-form-urlencoded"),
		"of a redirect": success,
	} {
		csp := page.Header.Get("Content-Security-Policy")
		if page.StatusCode >= 400 {
			t.Errorf("page %s: status: got %d, want less than 400", name, page.StatusCode)
		}
		for header, want := range map[string]string{"Referrer-Policy": "no-referrer", "Cache-Control": "no-store"} {
			if got := page.Header.Get(header); got != want {
				t.Errorf("page %s: %s: got %q, want %q", name, header, got, want)
			}
		}
		if !strings.HasPrefix(csp, "default-src 'none'") {
			t.Errorf("page %s: Content-Security-Policy: got %q, want default-src 'none'", name, csp)
		}
		for _, outside := range []string{"http:", "https:", `="//`, "src="} {
			if strings.Contains(page.Text, outside) {
				t.Errorf("page %s: %q refers to another origin:\n%s", name, outside, page.Text)
			}
		}
	}
}

func TestReturnToIsPreservedExactly(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	for _, path := range []string{
		"/#/open/https://a.example//x/../y", "/?q=" + strings.Repeat("&<>", 330),
		"/a?b=%zz;c&d=%2F",
	} {
		resp := a.browser().SignIn("alice", url.Values{"return_to": {path}}.Encode())
		wantRedirect(t, "login", resp, 303, path)
	}
	// A URL has ASCII only (RFC 3986, section 2).
	resp := a.browser().SignIn("alice", url.Values{"return_to": {"/é?q=ü#ß"}}.Encode())
	wantRedirect(t, "login", resp, 303, "/%C3%A9?q=%C3%BC#%C3%9F")
}

// A browser leaves a semicolon in a query as it is.
func TestSemicolonIsPartOfALoginParameter(t *testing.T) {
	t.Parallel()
	a := newApp(t, unpushed)
	resp := a.browser().SignIn("alice", "return_to=/a;b=1")
	wantRedirect(t, "login", resp, 303, "/a;b=1")
	asked := a.browser().Navigate("/bff/login?acr_values=urn:gold;v=2").Location(t).Query()
	if got := asked.Get("acr_values"); got != "urn:gold;v=2" {
		t.Errorf("acr_values: got %q, want urn:gold;v=2", got)
	}
	wantPage(t, a.browser().Navigate("/bff/login?max_age=0;"), 400, "bad_login_parameter")
}

// A demand of a link that cannot be decoded is not left out.
func TestLoginDropsNoParameterThatCannotBeDecoded(t *testing.T) {
	t.Parallel()
	a := newApp(t, unpushed)
	for _, query := range []string{"max_age=%zz", "max_age=0%", "prompt=login%2", "max_age=%zz&login_hint=a"} {
		wantPage(t, a.browser().Navigate("/bff/login?"+query), 400, "bad_login_parameter")
	}
	asked := a.browser().Navigate("/bff/login?login_hint=100%&acr_values=a%20b&max_age=%360").Location(t).Query()
	for name, want := range map[string]string{"login_hint": "100%", "acr_values": "a b", "max_age": "60"} {
		if got := asked.Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

func TestLoginParameterOfSpacesIsNone(t *testing.T) {
	t.Parallel()
	a := newApp(t, unpushed)
	b := a.browser()
	asked := b.Navigate("/bff/login?acr_values=%20&max_age=+&prompt=%20+&login_hint=+&ui_locales=+").Location(t)
	for _, name := range []string{"acr_values", "max_age", "prompt", "login_hint", "ui_locales"} {
		if got := asked.Query(); got.Has(name) {
			t.Errorf("%s: got %q, want none", name, got.Get(name))
		}
	}
	wantRedirect(t, "login", a.browser().SignIn("alice", "acr_values=%20&max_age=%20"), 303, "/")
}

// RFC 9700 4.11.1: a whole login with a hostile return_to ends at this origin.
func TestLoginRedirectsToNoOtherOrigin(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	for _, returnTo := range []string{
		"//evil.example", `/\evil.example`, "https://evil.example/x", "/%2fevil.example",
		"/\t/evil.example", "@evil.example", "javascript:alert(1)",
		"/x\r\nLocation: https://evil.example", "/" + strings.Repeat("a", 2000),
	} {
		resp := a.browser().SignIn("alice", url.Values{"return_to": {returnTo}}.Encode())
		wantRedirect(t, fmt.Sprintf("%.40q", returnTo), resp, 303, "/")
		if got := resp.Header.Values("Location"); len(got) != 1 {
			t.Errorf("%.40q: Location occurs %d times: %q, want once", returnTo, len(got), got)
		}
	}
}

// Its characters take more space in the encoded cookie than in the URL.
func TestReturnToThatDoesNotFitIntoTheCookieIsDropped(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	resp := a.browser().Navigate("/bff/login?" + url.Values{"return_to": {"/?" + strings.Repeat(`"`, 1000)}}.Encode())
	wantStatus(t, "login", resp, 302)
}

func TestTheProviderMayBeDownAtStart(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(a *app, _ *bff.Config) { a.provider.Misbehave(a.t, brokertest.ProviderDown) })
	b := a.browser()
	wantPage(t, b.Navigate("/bff/login"), 503, "provider_unavailable")
	if got := b.Navigate("/").Text; got != "the app" {
		t.Errorf("GET /: got %q, want the app", got)
	}
	a.wantSession(b, "")
	wantProblem(t, b.Fetch("GET", "/api/x"), 401, "not_signed_in")
	a.provider.Behave()
	a.waitReady()
	if resp := b.SignIn("alice", ""); resp.StatusCode != 303 {
		t.Errorf("login after the outage: got %d, want 303", resp.StatusCode)
	}
}

// A packet filter drops what the first request for the metadata sends, for
// example. That request fails after 15 seconds.
func TestLostDiscoveryRequestDelaysNoSignIn(t *testing.T) {
	t.Parallel()
	var lost atomic.Bool
	began := time.Now()
	a := newApp(t, func(a *app, _ *bff.Config) {
		a.recordCalls(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if strings.Contains(r.URL.Path, "/.well-known/") && !lost.Swap(true) {
				<-r.Context().Done()
				return
			}
			next.ServeHTTP(w, r)
		}})
	})
	if resp := a.browser().SignIn("alice", ""); resp.StatusCode != 303 {
		t.Errorf("login: got %d, want 303", resp.StatusCode)
	}
	if took := time.Since(began); !lost.Load() || took > 12*time.Second {
		t.Errorf("a request was lost: %v; the login took %v, want at most 12s", lost.Load(), took)
	}
}

func TestInvalidMetadataIsNotUsed(t *testing.T) {
	t.Parallel()
	for _, m := range brokertest.DiscoveryFaults {
		t.Run(m.Name, func(t *testing.T) {
			a := newApp(t, func(a *app, _ *bff.Config) { a.provider.Misbehave(a.t, m) })
			b := a.browser()
			waitFor(t, "discovery fails", func() bool {
				return len(a.logs.lines(t, discoveryFailed)) > 0
			})
			wantPage(t, b.Navigate("/bff/login"), 503, "provider_unavailable")
			a.provider.Behave()
			a.waitReady()
			if resp := b.SignIn("alice", ""); resp.StatusCode != 303 {
				t.Errorf("login with valid metadata: got %d, want 303", resp.StatusCode)
			}
		})
	}
}

func TestUnknownKeyIDsCauseFewKeyFetches(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	a.signedIn()
	if err := a.provider.RotateKeys(); err != nil {
		t.Fatal(err)
	}
	a.signedIn()
	before, began := a.provider.JWKSFetches(), time.Now()
	a.provider.Misbehave(t, brokertest.UnknownKeyID)
	for range 20 {
		b := a.browser()
		if resp := b.SignIn("alice", ""); resp.StatusCode/100 != 5 {
			t.Fatalf("ID token with an unknown key id: got %d, want 5xx", resp.StatusCode)
		}
	}
	most := 5 + int(time.Since(began)/time.Second)
	if n := a.provider.JWKSFetches() - before; n > most {
		t.Errorf("20 unknown key ids caused %d fetches of the key set, want at most %d", n, most)
	}
}

func TestStoreOutageDuringLogin(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.browser()
	u, _ := callback(t, b)
	a.store.setDown(errors.New("connection refused"))
	wantPage(t, b.Navigate(u.String()), 503, "store_unavailable")
	if resp := b.Navigate("/bff/login"); resp.StatusCode != 302 {
		t.Errorf("login during the outage: got %d, want 302", resp.StatusCode)
	}
	a.store.setDown(nil)
	if resp := b.SignIn("alice", ""); resp.StatusCode != 303 {
		t.Errorf("after the outage: got %d, want 303", resp.StatusCode)
	}
}

func TestOtherHostsAreNotServed(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.browser()
	for _, host := range []string{"evil.example", "localhost", "localhost:1", "localhost.evil.example"} {
		req, _ := http.NewRequest("GET", a.url+"/bff/login", nil)
		req.Host = host
		resp, err := httpClient.Transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 421 {
			t.Errorf("Host %s: got %d, want 421", host, resp.StatusCode)
		}
	}
	if got := b.Navigate("/bff/login", "X-Forwarded-Host", "evil.example").StatusCode; got != 302 {
		t.Errorf("X-Forwarded-Host of an untrusted peer: got %d, want 302", got)
	}
}

func TestEveryAttemptCookieIsRemoved(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.browser()
	u, q := callback(t, b)
	q.Del("code")
	q.Set("error", "access_denied")
	u.RawQuery = q.Encode()
	b.Navigate(u.String())
	if names := cookieNames(b); len(names) != 0 {
		t.Errorf("cookies after a cancelled login: got %v, want none", names)
	}
	b.SignIn("alice", "")
	if names := cookieNames(b); !slices.Equal(names, []string{a.cookieName()}) {
		t.Errorf("cookies after a login: got %v, want the session cookie only", names)
	}
}

func cookieNames(b *bfftest.Browser) []string {
	var names []string
	for _, c := range b.Cookies() {
		names = append(names, c.Name)
	}
	return names
}

// RFC 9700 4.7.1, 4.8: if the provider does not check PKCE, or an attacker has
// removed the challenge, the nonce still reveals the injected code.
func TestInjectedCodeIsRejectedWithoutPKCE(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(a *app, _ *bff.Config) {
		a.provider.Misbehave(t, brokertest.Discovery("no PKCE", func(m map[string]any) {
			delete(m, "code_challenge_methods_supported")
		}))
	})
	a.waitReady()
	c := a.recordCalls(devidp.Hooks{SkipPKCE: true})
	attacker, victim := a.browser(), a.signedIn()
	form := c.to("/par")[0].form
	if got := form.Get("code_challenge_method"); got != "S256" {
		t.Errorf("code_challenge_method: got %q, want S256", got)
	}
	for _, name := range []string{"state", "nonce"} {
		if form.Get(name) == "" {
			t.Errorf("the authorization request has no %s", name)
		}
	}
	stolen := attacker.AuthResponse("bob", "").Location(t).Query().Get("code")
	u, q := callback(t, victim)
	q.Set("code", stolen)
	u.RawQuery = q.Encode()
	wantPage(t, victim.Navigate(u.String()), 502, "login_invalid")
	a.wantSession(victim, "alice")
}

// RFC 9207 2.4: iss may be absent if the metadata does not announce it. If it
// is present, it must be the issuer.
func TestIssIsVerifiedIfPresent(t *testing.T) {
	t.Parallel()
	unannounced := func(a *app, _ *bff.Config) {
		a.provider.Misbehave(t, brokertest.Discovery("", func(m map[string]any) {
			delete(m, "authorization_response_iss_parameter_supported")
		}))
	}
	for name, test := range map[string]struct {
		edit func(params url.Values)
		good bool
	}{
		"absent":    {func(q url.Values) { q.Del("iss") }, true},
		"its own":   {func(url.Values) {}, true},
		"another's": {func(q url.Values) { q.Set("iss", "https://evil.example") }, false},
		"empty":     {func(q url.Values) { q.Set("iss", "") }, false},
		"its own %-encoded": {
			func(q url.Values) { q.Set("iss", strings.Replace(q.Get("iss"), "op", "%6Fp", 1)) },
			false,
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newApp(t, unannounced)
			a.waitReady()
			a.recordCalls(devidp.Hooks{EditCallback: test.edit})
			resp := a.browser().SignIn("alice", "")
			if (resp.StatusCode == 303) != test.good {
				t.Errorf("login: got %d, want 303: %v", resp.StatusCode, test.good)
			}
		})
	}
}
