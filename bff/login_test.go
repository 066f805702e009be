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
		t.Errorf("callback: got %d to %s, want 303 to where the login began", resp.StatusCode, got)
	}
	a.wantSession(b, "alice")

	e := echoed(t, b.Fetch("GET", "/api/orders?x=1"))
	digest, bearer := strings.CutPrefix(e.Header.Get("Authorization"), "Bearer ")
	if e.URI != "/api/orders?x=1" || !bearer || !a.provider.Issued(digest) {
		t.Errorf("upstream got %s with Authorization %q, want the path and a token", e.URI,
			e.Header.Get("Authorization"))
	}
	if got := e.Header.Get("Cookie"); got != "" {
		t.Errorf("upstream got the cookie %q, want none", got)
	}

	resp = b.Submit("/bff/logout", url.Values{"return_to": {"/bye"}})
	out := resp.Location(t)
	if resp.StatusCode != 303 || !strings.HasPrefix(out.String(), a.provider.Issuer) ||
		out.Query().Get("id_token_hint") == "" ||
		out.Query().Get("post_logout_redirect_uri") != a.url+"/bff/logout/callback" {
		t.Errorf("logout: got %d to %s, want 303 to the provider's end_session", resp.StatusCode, out)
	}
	a.wantSession(b, "")
	resp = b.Follow(b.Navigate(out.String()), a.url+"/bye")
	if got := resp.Location(t).String(); got != a.url+"/bye" {
		t.Errorf("after the provider's logout: got to %s, want /bye", got)
	}
	wantProblem(t, b.Fetch("GET", "/api/orders"), 401, "not_signed_in")
}

// unpushed leaves authorization requests in the URL, to be looked at.
func unpushed(_ *app, cfg *bff.Config) { cfg.Provider.PushedRequests = "never" }

func TestAuthorizationRequestIgnoresTheLink(t *testing.T) {
	t.Parallel()
	a := newApp(t, unpushed)
	b := a.browser()
	resp := b.Navigate("/bff/login?client_id=evil&scope=admin&redirect_uri=https://evil.example&response_type=token&request=x&claims=x&state=x&nonce=x&return_to="+url.QueryEscape("/x?&scope=admin&redirect_uri=https://evil.example"),
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
	if !regexp.MustCompile(`^cloakroom-\d+-login-[0-9a-f]+=[^;]+; Path=/; Max-Age=600; HttpOnly; SameSite=Lax$`).MatchString(cookie) {
		t.Errorf("the attempt's cookie: got %s", cookie)
	}
	if strings.Contains(cookie, q.Get("state")) || strings.Contains(cookie, q.Get("nonce")) {
		t.Error("the attempt's cookie can be read")
	}
}

// OpenID Connect Core 3.1.2.1.
func TestEveryLoginRequestsScopeOpenID(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.Provider.PushedRequests, cfg.Provider.Scopes = "never", []string{"profile"}
	})
	got := a.browser().Navigate("/bff/login").Location(t).Query().Get("scope")
	if !slices.Contains(strings.Fields(got), "openid") {
		t.Errorf("scope is %q", got)
	}
}

// Whatever a link says, a request has the parameters that it has without; that
// there is another issuer (Core 4) is one of the things a link may say.
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
		if !strings.HasPrefix(to.String(), a.provider.Issuer+"/authorize?") ||
			strings.Contains(to.String(), "evil") || !slices.Equal(got, want) {
			t.Errorf("sent to %s, want these parameters alone: %v", to, want)
		}
	}
}

// RFC 9700 2.1.1, RFC 7636 7.2.
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
	if got := to.Query(); got.Get("code_challenge_method") != "S256" || len(got.Get("code_challenge")) != 43 {
		t.Errorf("asked with %v", got)
	}
	wantPage(t, b.Navigate(b.Authorize("alice", to.String()).Location(t).String()), 502, "login_refused")
}

func TestLoginPassesKnownParametersOnly(t *testing.T) {
	t.Parallel()
	a := newApp(t, unpushed)
	b := a.browser()
	q := b.Navigate("/bff/login?prompt=login+consent&login_hint=alice%40example.com&acr_values=gold+silver&max_age=60&ui_locales=de").Location(t).Query()
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
			if name == "iframe" && strings.Contains(path, "/callback?") { // a silent login may end so
				if !strings.Contains(resp.Text, `data-authenticated="false"`) || len(resp.Cookies()) > 0 {
					t.Errorf("%s of %s: got cookies %v and %s", name, path, resp.Cookies(), resp.Text)
				}
				continue
			}
			wantProblem(t, resp, 401, "navigation_only")
			if len(resp.Cookies()) > 0 || !strings.Contains(resp.Text, `"login_url":"/bff/login"`) {
				t.Errorf("%s of %s: got cookies %v and %s, want none and login_url", name, path,
					resp.Cookies(), resp.Text)
			}
		}
	}
	if got := b.Do("GET", "/bff/login", "").StatusCode; got != 302 {
		t.Errorf("a client that says nothing of itself: got %d, want 302", got)
	}
}

func TestSeveralTabsCanLogInAtOnce(t *testing.T) {
	t.Parallel()
	a := newApp(t, unpushed)
	b := a.browser()
	var responses []*bfftest.Response
	seen := make(map[string]bool)
	for i := range 5 {
		begun := b.Navigate(fmt.Sprintf("/bff/login?return_to=/tab%d", i))
		q := begun.Location(t).Query()
		for _, name := range []string{"state", "nonce", "code_challenge"} {
			if seen[q.Get(name)] {
				t.Errorf("two attempts have the same %s", name)
			}
			seen[q.Get(name)] = true
		}
		responses = append(responses, begun)
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
			t.Fatalf("login %d: got %d", i, resp.StatusCode)
		}
		size := 0
		for _, c := range b.Cookies() {
			size += len(c.Name) + len(c.Value)
		}
		if n := len(b.Cookies()); n > 5 || size > 6000 {
			t.Fatalf("after login %d there are %d cookies of %d bytes", i, n, size)
		}
	}
	if n := a.store.Store.(interface{ Len() int }).Len(); n != 0 {
		t.Errorf("anonymous logins wrote %d records", n)
	}
	if resp := b.SignIn("alice", ""); resp.StatusCode != 303 {
		t.Errorf("the next login: got %d, want 303", resp.StatusCode)
	}
}

// callback is the provider's redirect back, which a test spoils.
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
		"an error of another": func(q url.Values) {
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
	t.Run("a query that is none", func(t *testing.T) {
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

	// In another browser a login begins anew there: once, then there is a page.
	before := a.provider.TokenRequests()
	other := a.browser()
	restarted := other.Navigate(u.String())
	got := restarted.Location(t)
	if restarted.StatusCode != 302 || !strings.HasPrefix(got.String(), a.provider.Issuer) {
		t.Fatalf("in another browser: got %d to %s, want a new login", restarted.StatusCode, got)
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
	if resp := b.Navigate(u.String()); resp.StatusCode != 303 {
		t.Errorf("in its own browser: got %d, want 303", resp.StatusCode)
	}
	if again := b.Navigate(u.String()); again.StatusCode != 303 || again.Header.Get("Location") != "/here" {
		t.Errorf("again: got %d to %s, want 303 to where the login led, for there is a session",
			again.StatusCode, again.Header.Get("Location"))
	}
	if n := a.provider.TokenRequests() - before; n != 1 {
		t.Errorf("%d token requests, want 1", n)
	}
	a.wantSession(b, "alice")
}

// RFC 9700 4.7.1: what a browser holds of an attempt is good as it was made,
// under its own name and for its own state.
func TestTamperedAttemptCookieIsRejected(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	for name, tamper := range map[string]func(mine, other *http.Cookie){
		"a bit of its beginning": func(mine, _ *http.Cookie) { mine.Value = flip(mine.Value, 2) },
		"a bit of its middle":    func(mine, _ *http.Cookie) { mine.Value = flip(mine.Value, len(mine.Value)/2) },
		"a bit of its end":       func(mine, _ *http.Cookie) { mine.Value = flip(mine.Value, len(mine.Value)-4) },
		"its end cut off":        func(mine, _ *http.Cookie) { mine.Value = mine.Value[:len(mine.Value)-8] },
		"another's in its place": func(mine, other *http.Cookie) { mine.Value = other.Value },
	} {
		t.Run(name, func(t *testing.T) {
			attacker, b := a.browser(), a.browser()
			attacker.AuthResponse("bob", "")
			u := b.AuthResponse("alice", "").Location(t)
			mine, other := *b.Cookies()[0], *attacker.Cookies()[0]
			tamper(&mine, &other)
			b.SetCookie(&http.Cookie{Name: mine.Name, Value: mine.Value, Path: "/"})
			before := a.provider.TokenRequests()
			if resp := b.Navigate(u.String()); resp.StatusCode == 303 || resp.StatusCode >= 500 {
				t.Errorf("got %d", resp.StatusCode)
			}
			if n := a.provider.TokenRequests() - before; n > 0 {
				t.Errorf("%d token requests", n)
			}
			a.wantSession(b, "")
		})
	}
}

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
				t.Errorf("got %d to %q, want /here", resp.StatusCode, got)
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
	if n := a.provider.TokenRequests() - before; n != 1 || started != 1 {
		t.Errorf("%d token requests and %d sessions, want 1 of each", n, started)
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
			if resp.StatusCode != 502 && resp.StatusCode != 503 || !strings.Contains(resp.Text, "Try again") {
				t.Errorf("got %d, want a page with 502 or 503:\n%s", resp.StatusCode, resp.Text)
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
		if strings.Contains(resp.Text, "alert") || strings.Contains(resp.Text, "evil") ||
			strings.Contains(resp.Text, "xxxx") {
			t.Errorf("%.20s: the page repeats what the provider said:\n%s", code, resp.Text)
		}
		if !strings.Contains(resp.Text, `href="/bff/login?return_to=%2Fhere"`) {
			t.Errorf("%.20s: trying again does not lead back to where it began", code)
		}
		csp := resp.Header.Get("Content-Security-Policy")
		if !strings.HasPrefix(csp, "default-src 'none'; style-src 'sha256-") {
			t.Errorf("CSP of the page: %s", csp)
		}
		a.wantSession(b, "alice")
	}
}

// RFC 9700 4.11.1: an error leads to a page and never to another login, not
// even where its attempt is gone.
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
		t.Errorf("%d cookies are left of the attempt", n)
	}
}

// OpenID Connect Core 3.1.2.6, each of the four.
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
		if resp.StatusCode != 303 || resp.Header.Get("Location") != "/back" || len(b.Cookies()) > 0 {
			t.Errorf("%s: got %d to %s, cookies %v", code, resp.StatusCode, resp.Header.Get("Location"), cookieNames(b))
		}
		a.wantSession(b, "")
	}
}

func TestStepUpIsCheckedOnReturn(t *testing.T) {
	t.Parallel()
	a := newApp(t, unpushed)
	t.Run("the level asked for", func(t *testing.T) {
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
	t.Run("auth_time too long ago is asked for again, once", func(t *testing.T) {
		b := a.signedIn()
		a.provider.Misbehave(t, brokertest.OldAuthTime)
		again := b.SignIn("alice", "max_age=60&return_to=/pay")
		q := again.Location(t).Query()
		if again.StatusCode != 302 || q.Get("prompt") != "login" || q.Get("max_age") != "60" {
			t.Fatalf("got %d with %v, want a login that asks again", again.StatusCode, q)
		}
		wantPage(t, b.Navigate(b.Authorize("alice", again.Location(t).String()).Location(t).String()), 403, "login_too_weak")
		a.wantSession(b, "alice")
	})
}

func TestLoginReplacesTheSessionAndItsCookie(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	old := b.Cookies()[0]
	if resp := b.SignIn("alice", ""); resp.StatusCode != 303 {
		t.Fatalf("second login: got %d", resp.StatusCode)
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
		t.Fatalf("victim's login: got %d", resp.StatusCode)
	}
	a.wantSession(victim, "bob")
	a.wantSession(attacker, "")
}

func TestCrossSiteLoginCannotChangeTheUser(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	for _, site := range []string{"cross-site", "same-site"} {
		b := a.signedIn()
		callback := b.Authorize("bob",
			b.Navigate("/bff/login?prompt=login", "Sec-Fetch-Site", site).Location(t).String()).Location(t).String()
		ticket := *b.Cookies()[slices.IndexFunc(b.Cookies(), func(c *http.Cookie) bool {
			return c.Name == a.cookieName()
		})]
		// a browser shows no Strict cookie on its way back from the provider
		b.SetCookie(&http.Cookie{Name: ticket.Name, MaxAge: -1})
		again := relayURL(t, b.Navigate(callback, "Sec-Fetch-Site", "cross-site"))
		b.SetCookie(&ticket)
		wantPage(t, b.Navigate(again, "Sec-Fetch-Site", "same-origin"), 403, "other_account")
		a.wantSession(b, "alice")
	}
	if n := a.provider.LiveRefreshTokens(); n != 2 {
		t.Errorf("%d refresh tokens are live, want those of the two sessions alone", n)
	}
}

// Where a stale callback begins the login again the session that there is
// counts too: anybody can get a state to be stale.
func TestStaleCrossSiteCallbackKeepsSession(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Cookie.SameSite = http.SameSiteLaxMode })
	u := a.browser().AuthResponse("bob", "").Location(t) // the attacker's; its state was begun here
	b := a.signedIn()
	before := a.sessionID(b)
	stale := "/bff/callback?" + url.Values{"state": {u.Query().Get("state")}, "code": {"x"}}.Encode()
	if resp := b.Navigate(stale,
		"Sec-Fetch-Site", "cross-site"); resp.StatusCode != 303 || resp.Header.Get("Location") != "/" {
		t.Errorf("with a session: got %d to %s, want no login", resp.StatusCode, resp.Header.Get("Location"))
	}
	// The session comes about while the login that began anew is under way. The
	// provider knows the victim as bob (a login CSRF there, a shared computer,
	// another account picked).
	victim := a.browser()
	to := victim.Navigate(relayURL(t, victim.Navigate(stale, "Sec-Fetch-Site", "cross-site")),
		"Sec-Fetch-Site", "same-origin").Location(t)
	for _, c := range b.Cookies() {
		victim.SetCookie(&http.Cookie{Name: c.Name, Value: c.Value, Path: "/"})
	}
	resp := victim.Navigate(authenticateAs(t, a, victim, "bob", to.String()), "Sec-Fetch-Site", "cross-site")
	wantPage(t, victim.Navigate(relayURL(t, resp), "Sec-Fetch-Site", "same-origin"), 403, "other_account")
	a.wantSession(victim, "alice")
	a.wantSession(b, "alice")
	if got := a.sessionID(b); got != before {
		t.Errorf("the session %s was replaced, and not ended", before)
	}
}

// authenticateAs completes an authorization request as another user than the
// provider's cookie in b says.
func authenticateAs(t *testing.T, a *app, b *bfftest.Browser, user, authorization string) string {
	t.Helper()
	fresh := a.browser() // without the provider's cookie: its page is shown
	return fresh.Authorize(user, authorization).Location(t).String()
}

func TestCrossSiteLinkMaySignIn(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	// alice in two tabs of a browser, and bob after she has left
	for _, user := range []string{"alice", "alice", "bob"} {
		b := a.browser()
		if user == "bob" {
			b = a.signedIn()
		}
		callback := b.Authorize(user,
			b.Navigate("/bff/login?prompt=login&return_to=/x",
				"Sec-Fetch-Site", "cross-site").Location(t).String()).Location(t).String()
		if user == "bob" {
			b.Fetch("POST", "/bff/logout")
		}
		again := relayURL(t, b.Navigate(callback, "Sec-Fetch-Site", "cross-site"))
		resp := b.Navigate(again, "Sec-Fetch-Site", "same-origin")
		if resp.StatusCode != 303 || resp.Header.Get("Location") != "/x" {
			t.Errorf("%s: got %d to %q, want 303 to /x", user, resp.StatusCode, resp.Header.Get("Location"))
		}
		a.wantSession(b, user)
		// as every callback that comes twice
		stale := b.Navigate(again, "Sec-Fetch-Site", "same-origin")
		if stale.StatusCode != 303 || stale.Header.Get("Location") != "/x" {
			t.Errorf("the same once more: got %d, want 303 to /x", stale.StatusCode)
		}
	}
}

// Whoever leads a browser to the second step from elsewhere gets no further,
// and no session is touched.
func TestCrossSiteLoginContinuesFromOwnPageOnly(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.browser()
	callback := b.Authorize("bob",
		b.Navigate("/bff/login?prompt=login", "Sec-Fetch-Site", "cross-site").Location(t).String()).Location(t).String()
	wantPage(t, b.Navigate(callback+"&cloakroom_again=1", "Sec-Fetch-Site", "cross-site"), 400, "bad_callback")
	a.wantSession(b, "")
}

// relayURL returns where the page leads that has the provider's answer brought
// from our own origin.
func relayURL(t *testing.T, page *bfftest.Response) string {
	t.Helper()
	_, rest, ok := strings.Cut(page.Text, `content="0;url=`)
	to, _, _ := strings.Cut(rest, `"`)
	if page.StatusCode != 200 || !ok || page.Header.Get("Set-Cookie") != "" ||
		page.Header.Get("Referrer-Policy") != "no-referrer" {
		t.Fatalf("got %d with %v, want the page that leads on and no cookie:\n%s", page.StatusCode,
			page.Header, page.Text)
	}
	return html.UnescapeString(to)
}

// RFC 9700 4.2.4: code and state are in the address of these pages.
func TestCallbackPagesSendNoReferrer(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Provider.ResponseMode = "form_post" })
	other := newApp(t, nil)
	b := other.browser()
	again := b.Navigate(b.Authorize("alice",
		b.Navigate("/bff/login",
			"Sec-Fetch-Site", "cross-site").Location(t).String()).Location(t).String(), "Sec-Fetch-Site", "cross-site")
	success := other.browser().SignIn("alice", "")
	for name, page := range map[string]*bfftest.Response{
		"a silent login's": silentLogin(other.browser()),
		"that leads on":    again,
		"that is posted again": a.browser().Do("POST", "/bff/callback", "state=x&code=y",
			"Content-Type", "application/x-www-form-urlencoded"),
		"the redirect": success,
	} {
		csp := page.Header.Get("Content-Security-Policy")
		if page.StatusCode >= 400 || page.Header.Get("Referrer-Policy") != "no-referrer" ||
			page.Header.Get("Cache-Control") != "no-store" || !strings.HasPrefix(csp, "default-src 'none'") {
			t.Errorf("the page %s: got %d %v", name, page.StatusCode, page.Header)
		}
		for _, outside := range []string{"http:", "https:", `="//`, "src="} {
			if strings.Contains(page.Text, outside) {
				t.Errorf("the page %s loads from elsewhere:\n%s", name, page.Text)
			}
		}
	}
}

func TestReturnToIsPreservedExactly(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	for _, path := range []string{
		"/#/open/https://a.example//x/../y", "/?q=" + strings.Repeat("&<>", 330),
		"/a?b=%zz;c&d=%2F", "/é",
	} {
		resp := a.browser().SignIn("alice", url.Values{"return_to": {path}}.Encode())
		if got := resp.Header.Get("Location"); resp.StatusCode != 303 || got != path {
			t.Errorf("got %d to %q, want %q", resp.StatusCode, got, path)
		}
	}
}

// RFC 9700 4.11.1: what the login link says, and not only what returnto.go
// reads.
func TestLoginRedirectsToNoOtherOrigin(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	for _, returnTo := range []string{
		"//evil.example", `/\evil.example`, "https://evil.example/x", "/%2fevil.example",
		"/\t/evil.example", "@evil.example", "javascript:alert(1)",
		"/x\r\nLocation: https://evil.example", "/" + strings.Repeat("a", 2000),
	} {
		resp := a.browser().SignIn("alice", url.Values{"return_to": {returnTo}}.Encode())
		if got := resp.Header.Values("Location"); resp.StatusCode != 303 || len(got) != 1 || got[0] != "/" {
			t.Errorf("%.40q: got %d to %q", returnTo, resp.StatusCode, got)
		}
	}
}

// One whose characters take more room than they seem to.
func TestReturnToThatDoesNotFitIntoTheCookieIsDropped(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	resp := a.browser().Navigate("/bff/login?" + url.Values{"return_to": {"/?" + strings.Repeat(`"`, 1000)}}.Encode())
	if resp.StatusCode != 302 {
		t.Errorf("got %d", resp.StatusCode)
	}
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
		t.Errorf("once the provider is back: got %d, want 303", resp.StatusCode)
	}
}

func TestInvalidMetadataIsNotUsed(t *testing.T) {
	t.Parallel()
	for _, m := range brokertest.DiscoveryFaults {
		t.Run(m.Name, func(t *testing.T) {
			a := newApp(t, func(a *app, _ *bff.Config) { a.provider.Misbehave(a.t, m) })
			b := a.browser()
			waitFor(t, "the provider was asked", func() bool {
				return len(a.logs.lines(t,
					"provider discovery failed; sign-in is unavailable, existing sessions are not affected")) > 0
			})
			wantPage(t, b.Navigate("/bff/login"), 503, "provider_unavailable")
			a.provider.Behave()
			a.waitReady()
			if resp := b.SignIn("alice", ""); resp.StatusCode != 303 {
				t.Errorf("once it is right: got %d, want 303", resp.StatusCode)
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
			t.Fatalf("a token of an unknown key: got %d", resp.StatusCode)
		}
	}
	most := 3 + int(time.Since(began)/(10*time.Second))
	if n := a.provider.JWKSFetches() - before; n > most {
		t.Errorf("20 tokens of unknown keys caused %d fetches of the key set, want at most %d", n, most)
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
		t.Errorf("login without a session needs no store: got %d, want 302", resp.StatusCode)
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
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 421 {
			t.Errorf("Host %s: got %d, want 421", host, resp.StatusCode)
		}
	}
	if got := b.Navigate("/bff/login", "X-Forwarded-Host", "evil.example").StatusCode; got != 302 {
		t.Errorf("X-Forwarded-Host of nobody in particular: got %d, want it ignored", got)
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
		t.Errorf("after a cancelled login there are the cookies %v", names)
	}
	b.SignIn("alice", "")
	if names := cookieNames(b); !slices.Equal(names, []string{a.cookieName()}) {
		t.Errorf("after a login there are the cookies %v", names)
	}
}

func cookieNames(b *bfftest.Browser) []string {
	var names []string
	for _, c := range b.Cookies() {
		names = append(names, c.Name)
	}
	return names
}

// Where the provider does not check PKCE, or whoever is on the way has taken
// the challenge out, state and nonce still tell (RFC 9700 4.7.1, 4.8).
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
	if form.Get("code_challenge_method") != "S256" || form.Get("state") == "" || form.Get("nonce") == "" {
		t.Errorf("asked with %v", form)
	}
	stolen := attacker.AuthResponse("bob", "").Location(t).Query().Get("code")
	u, q := callback(t, victim)
	q.Set("code", stolen)
	u.RawQuery = q.Encode()
	wantPage(t, victim.Navigate(u.String()), 502, "login_invalid")
	a.wantSession(victim, "alice")
}

// RFC 9207 2.4: an issuer that does not say that it names itself need not; one
// that does so is taken at its word.
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
				t.Errorf("got %d", resp.StatusCode)
			}
		})
	}
}
