package bff_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

func TestSessionEndpointReturnsUserAndExpiry(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.browser()
	resp := b.Fetch("GET", "/bff/session")
	wantStatus(t, "without a session", resp, 200)
	if strings.TrimSpace(resp.Text) != `{"authenticated":false}` {
		t.Errorf("without a session: got %s, want authenticated false only", resp.Text)
	}
	b = a.signedIn()
	resp = b.Fetch("GET", "/bff/session")
	var got sessionBody
	resp.Decode(t, &got)
	now := time.Now()
	if !got.Authenticated {
		t.Errorf("authenticated: got false, want true: %s", resp.Text)
	}
	if got.User.Sub != "alice" {
		t.Errorf("user.sub: got %q, want alice", got.User.Sub)
	}
	if got.User.Email == "" {
		t.Errorf("user.email is missing in %s", resp.Text)
	}
	if len(got.Session.ID) != 22 {
		t.Errorf("session.id: got %q, want 22 characters", got.Session.ID)
	}
	for name, test := range map[string]struct {
		at   time.Time
		want time.Duration
	}{
		"created_at":              {got.Session.CreatedAt, 0},
		"idle_expires_at":         {got.Session.IdleExpiresAt, 30 * time.Minute},
		"expires_at":              {got.Session.ExpiresAt, 12 * time.Hour},
		"access_token_expires_at": {got.Session.AccessTokenExpiresAt, a.provider.AccessTokenTTL},
	} {
		if off := test.at.Sub(now) - test.want; off < -10*time.Second || off > time.Second {
			t.Errorf("%s: %v from now, want %v", name, test.at.Sub(now), test.want)
		}
	}
	for _, claim := range []string{`"iss"`, "nonce"} {
		if strings.Contains(resp.Text, claim) {
			t.Errorf("the protocol claim %s is visible in %s", claim, resp.Text)
		}
	}
	for name, want := range map[string]string{
		"Cache-Control": "no-store", "Content-Type": "application/json", "X-Content-Type-Options": "nosniff",
	} {
		if got := resp.Header.Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

func TestCSRF(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Routes[0].CSRF, cfg.Routes[1].CSRF = "header", "header" })
	b := a.signedIn()
	csrf := map[string]struct {
		header []string
		ok     bool
	}{
		"the client":              {nil, true},
		"without Sec-Fetch":       {[]string{"Sec-Fetch-Site", "", "Sec-Fetch-Mode", "", "Sec-Fetch-Dest", ""}, true},
		"with our Origin":         {[]string{"Origin", a.url}, true},
		"no header":               {[]string{"X-CSRF", ""}, false},
		"another value":           {[]string{"X-CSRF", "true"}, false},
		"two values":              {[]string{"X-CSRF", "1, 1"}, false},
		"another site":            {[]string{"Sec-Fetch-Site", "cross-site"}, false},
		"a sibling domain":        {[]string{"Sec-Fetch-Site", "same-site"}, false},
		"an address bar":          {[]string{"Sec-Fetch-Site", "none"}, false},
		"nonsense":                {[]string{"Sec-Fetch-Site", "Same-Origin"}, false},
		"a foreign Origin":        {[]string{"Sec-Fetch-Site", "", "Origin", "https://evil.example"}, false},
		"Origin null":             {[]string{"Sec-Fetch-Site", "", "Origin", "null"}, false},
		"an Origin that contains": {[]string{"Sec-Fetch-Site", "", "Origin", a.url + ".evil.example"}, false},
		"another port":            {[]string{"Sec-Fetch-Site", "", "Origin", "http://localhost:1"}, false},
	}
	for _, call := range []struct{ method, path string }{
		{"GET", "/bff/session"}, {"POST", "/bff/session/refresh"}, {"GET", "/api/x"},
		{"POST", "/api/x"}, {"OPTIONS", "/api/x"}, {"GET", "/public/x"},
	} {
		for name, test := range csrf {
			before := a.echo.Calls()
			resp := b.Fetch(call.method, call.path, test.header...)
			if test.ok {
				if resp.StatusCode != 200 {
					t.Errorf("%s %s, %s: got %d, want 200", call.method, call.path, name, resp.StatusCode)
				}
				continue
			}
			wantProblem(t, resp, 403, "csrf")
			if a.echo.Calls() != before {
				t.Errorf("%s %s, %s: the upstream was called", call.method, call.path, name)
			}
			for header := range resp.Header {
				if strings.HasPrefix(header, "Access-Control-") {
					t.Errorf("%s %s, %s: %s is present", call.method, call.path, name, header)
				}
			}
		}
	}
	a.wantSession(b, "alice")
}

func TestFetchMetadataRouteNeedsNoHeader(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	for name, test := range map[string]struct {
		header []string
		ok     bool
	}{
		"same origin":          {[]string{"Sec-Fetch-Site", "same-origin"}, true},
		"by Origin":            {[]string{"Sec-Fetch-Site", "", "Origin", a.url}, true},
		"another site":         {[]string{"Sec-Fetch-Site", "cross-site"}, false},
		"a sibling":            {[]string{"Sec-Fetch-Site", "same-site"}, false},
		"an address bar":       {[]string{"Sec-Fetch-Site", "none"}, false},
		"no fetch metadata":    {[]string{"Sec-Fetch-Site", ""}, false},
		"only the header":      {[]string{"Sec-Fetch-Site", "", "X-CSRF", "1"}, false},
		"another site, header": {[]string{"Sec-Fetch-Site", "cross-site", "X-CSRF", "1"}, false},
		"a foreign Origin":     {[]string{"Sec-Fetch-Site", "", "Origin", "https://evil.example"}, false},
	} {
		resp := b.Fetch("GET", "/stream/x", append([]string{"X-CSRF", ""}, test.header...)...)
		if test.ok != (resp.StatusCode == 200) {
			t.Errorf("%s: test.ok: got %v, want %v", name, test.ok, (resp.StatusCode == 200))
		}
		if !test.ok && resp.Code() != "csrf" {
			t.Errorf("%s: code: got %q, want csrf", name, resp.Code())
		}
	}
}

func TestForcedRefresh(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	first := echoed(t, b.Fetch("GET", "/api/x")).Header.Get("Authorization")
	resp := b.Fetch("POST", "/bff/session/refresh")
	var got sessionBody
	resp.Decode(t, &got)
	if resp.StatusCode != 200 {
		t.Errorf("status: got %d, want 200:\n%s", resp.StatusCode, resp.Text)
	}
	if !got.Authenticated {
		t.Error("Authenticated: got false, want true")
	}
	if got.User.Sub != "alice" {
		t.Errorf("User.Sub: got %v, want alice", got.User.Sub)
	}
	if second := echoed(t, b.Fetch("GET", "/api/x")).Header.Get("Authorization"); second == first {
		t.Error("the token has not changed by the refresh")
	}
	wantProblem(t, a.browser().Fetch("POST", "/bff/session/refresh"), 401, "not_signed_in")
}

func TestOnlyAPICallsExtendTheIdleTimeout(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Sessions.IdleTimeout = 30 * time.Second })
	idle := func(b *bfftest.Browser) time.Time {
		var got sessionBody
		b.Fetch("GET", "/bff/session").Decode(t, &got)
		return got.Session.IdleExpiresAt
	}
	b := a.signedIn()
	before := idle(b)
	time.Sleep(600 * time.Millisecond) // more than a sixtieth of the timeout, its resolution
	b.Fetch("GET", "/bff/session")
	b.Fetch("GET", "/api/x", "X-Background", "1")
	b.Fetch("GET", "/public/x")
	if moved := idle(b).Sub(before); moved > 50*time.Millisecond {
		t.Errorf("idle timeout moved by %v without activity", moved)
	}
	b.Fetch("GET", "/api/x")
	if moved := idle(b).Sub(before); moved < 500*time.Millisecond {
		t.Errorf("idle timeout moved by %v by an API call, want 600 ms", moved)
	}
}

func TestStoreOutageKeepsTheSession(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	a.store.setDown(errors.New("dial tcp: connection refused"))
	for _, resp := range []*bfftest.Response{
		b.Fetch("GET", "/bff/session"), b.Fetch("POST", "/bff/session/refresh"),
		b.Fetch("GET", "/api/x"), b.Fetch("POST", "/bff/logout"),
	} {
		wantProblem(t, resp, 503, "store_unavailable")
		if resp.Header.Get("Retry-After") == "" || len(resp.Cookies()) > 0 {
			t.Errorf("%s: Retry-After %q and cookies %v, want one and none", resp.Request.URL.Path,
				resp.Header.Get("Retry-After"), resp.Cookies())
		}
		if strings.Contains(resp.Text, "dial") {
			t.Errorf("the cause is visible: %s", resp.Text)
		}
	}
	if got := b.Navigate("/").Text; got != "the app" {
		t.Errorf("GET /: got %q, want the app", got)
	}
	if n := len(a.logs.lines(t, "request")); n == 0 {
		t.Error("no request in the log")
	}
	a.store.setDown(nil)
	a.wantSession(b, "alice")
}

// expired returns a browser in which alice is signed in with an expired access
// token.
func (a *app) expired() *bfftest.Browser {
	a.t.Helper()
	a.provider.Misbehave(a.t, brokertest.ShortLived)
	b := a.signedIn()
	a.provider.Behave()
	time.Sleep(1100 * time.Millisecond)
	return b
}

func TestOneRefreshForManyCalls(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.expired()
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if got := b.Fetch("GET", "/api/x").StatusCode; got != 200 {
				t.Errorf("got %d, want 200", got)
			}
		})
	}
	all.Wait()
	if n := a.provider.Refreshes(); n != 1 {
		t.Errorf("%d refreshes, want 1", n)
	}
	if n := a.provider.Reuses(); n != 0 {
		t.Errorf("%d refresh tokens were used twice", n)
	}
}

func TestInvalidGrantEndsTheSession(t *testing.T) {
	t.Parallel()
	for _, m := range brokertest.RefreshRefusals {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			a := newApp(t, nil)
			b := a.expired()
			a.provider.Misbehave(t, m)
			resp := b.Fetch("GET", "/api/x")
			wantProblem(t, resp, 401, "not_signed_in")
			if !strings.Contains(resp.Text, `"login_url":"/bff/login"`) {
				t.Errorf("no login_url in %s", resp.Text)
			}
			if names := cookieNames(b); len(names) != 0 {
				t.Errorf("cookies: got %v, want none", names)
			}
			a.provider.Behave()
			a.wantSession(b, "")
		})
	}
}

func TestProviderFaultsKeepTheSession(t *testing.T) {
	t.Parallel()
	for _, m := range brokertest.RefreshFaults {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			a := newApp(t, nil)
			b := a.expired()
			a.provider.Misbehave(t, m)
			resp := b.Fetch("GET", "/api/x")
			wantProblem(t, resp, 503, "provider_unavailable")
			if resp.Header.Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
			a.wantSession(b, "alice")
			a.provider.Behave()
			waitFor(t, "the refresh succeeds", func() bool { return b.Fetch("GET", "/api/x").StatusCode == 200 })
			if n := a.provider.Reuses(); n != 0 {
				t.Errorf("%d refresh tokens were used twice", n)
			}
		})
	}
}

func TestValidTokenIsUsedDuringAnOutage(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Sessions.RefreshAhead = time.Hour })
	a.provider.Misbehave(t, brokertest.LivesFor(10))
	b := a.signedIn()
	a.provider.Misbehave(t, brokertest.ProviderDown)
	time.Sleep(5100 * time.Millisecond) // more than half its lifetime, when it is refreshed ahead
	for range 3 {
		if got := b.Fetch("GET", "/api/x").StatusCode; got != 200 {
			t.Errorf("got %d, want 200 with the valid token", got)
		}
	}
}

func TestUnusualButValidRefreshResponsesAreAccepted(t *testing.T) {
	t.Parallel()
	for _, m := range brokertest.RefreshOddities {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			a := newApp(t, nil)
			b := a.expired()
			a.provider.Misbehave(t, m)
			for range 2 {
				if got := b.Fetch("GET", "/api/x").StatusCode; got != 200 {
					t.Errorf("got %d, want 200:\n%v", got, a.logs.lines(t, "request"))
				}
			}
			a.provider.Behave()
			if resp := b.Fetch("POST", "/bff/session/refresh"); resp.StatusCode != 200 {
				t.Errorf("the next refresh: got %d, want 200", resp.StatusCode)
			}
		})
	}
}

func TestLostRefreshResponseIsRequestedAgain(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(a *app, _ *bff.Config) { a.provider.SetRefreshGrace(10 * time.Second) })
	b := a.expired()
	a.provider.Misbehave(t, brokertest.LostResponse(1))
	if got := b.Fetch("GET", "/api/x").StatusCode; got != 200 {
		t.Errorf("got %d, want 200", got)
	}
}

// RFC 6749 10.4: a refresh token is sent to the token endpoint and to the
// revocation endpoint only.
func TestRefreshTokenIsSentToNoOtherEndpoint(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var secrets []string
	elsewhere := make(map[string]string) // :: recipient → all requests to it
	see := func(where string, r *http.Request, body string) {
		var all strings.Builder
		fmt.Fprintf(&all, "%s %s\n", r.Method, r.RequestURI)
		r.Header.Write(&all)
		mu.Lock()
		defer mu.Unlock()
		elsewhere[where] += all.String() + body
	}
	api := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		see("the upstream", r, string(body))
	}))
	defer api.Close()
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.Provider.UserInfo = true
		cfg.Routes = []bff.Route{
			{Path: "/api/", Upstream: []string{api.URL}, Token: "user"},
			{
				Path: "/exchanged/", Upstream: []string{api.URL}, Token: "user",
				Audience: "legacy", Grant: "token-exchange",
			},
			{Path: "/machine/", Upstream: []string{api.URL}, Token: "client"},
		}
	})
	used := 0
	a.provider.SetHooks(devidp.Hooks{
		Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			r.ParseForm()
			form := r.PostForm.Encode()
			refresh := strings.HasSuffix(r.URL.Path, "/token") &&
				r.PostForm.Get("grant_type") == "refresh_token"
			revocation := strings.HasSuffix(r.URL.Path, "/revoke") &&
				r.PostForm.Get("token_type_hint") == "refresh_token"
			if refresh || revocation {
				mu.Lock()
				used++
				mu.Unlock()
			} else {
				see(r.URL.Path, r, form)
			}
			next.ServeHTTP(w, r)
		},
		EditTokenResponse: func(_ string, _ int, body map[string]any) {
			if token, _ := body["refresh_token"].(string); token != "" {
				mu.Lock()
				secrets = append(secrets, token)
				mu.Unlock()
			}
		},
	})
	defer a.provider.Behave()
	b := a.signedIn()
	for _, path := range []string{"/api/x", "/exchanged/x", "/machine/x"} {
		wantOK(t, b.Fetch("POST", path))
	}
	wantOK(t, b.Fetch("POST", "/bff/session/refresh"))
	wantOK(t, b.Fetch("GET", "/api/x"))
	b.Navigate(b.Submit("/bff/logout", nil).Location(t).String())
	mu.Lock()
	defer mu.Unlock()
	if len(secrets) != 2 {
		t.Errorf("%d refresh tokens were issued, want 2", len(secrets))
	}
	if used != 2 {
		t.Errorf("refresh tokens were used %d times, want 2: a refresh and a revocation", used)
	}
	for where, text := range elsewhere {
		for _, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("%s got a refresh token", where)
			}
		}
	}
}

// If the response to a refresh is invalid, for example in its token_type, the
// provider has rotated the refresh token nevertheless.
func TestInvalidRefreshResponseKeepsRotatedToken(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(body map[string]any){
		"token_type":      func(body map[string]any) { body["token_type"] = "DPoP" },
		"no access_token": func(body map[string]any) { delete(body, "access_token") },
	} {
		t.Run(name, func(t *testing.T) {
			a := newApp(t, nil)
			b := a.signedIn()
			a.recordCalls(devidp.Hooks{
				EditTokenResponse: func(grant string, _ int, body map[string]any) { spoil(body) },
			})
			resp := b.Fetch("POST", "/bff/session/refresh")
			wantProblem(t, resp, 503, "provider_unavailable")
			a.provider.Behave()
			after, err := strconv.Atoi(resp.Header.Get("Retry-After"))
			if err != nil {
				t.Fatalf("Retry-After: %v", err)
			}
			time.Sleep(time.Duration(after) * time.Second)
			wantOK(t, b.Fetch("POST", "/bff/session/refresh"))
			a.wantSession(b, "alice")
			if n := a.provider.Reuses(); n > 0 {
				t.Errorf("%d refresh tokens were used twice, want none", n)
			}
		})
	}
}

func TestAbortedRequestLosesNoToken(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.expired()
	release := make(chan struct{})
	arrived := a.provider.Hold(t, release)
	left := make(chan struct{})
	go func() {
		defer close(left)
		b.Abort("GET", "/api/x", arrived)
	}()
	<-left
	close(release)
	waitFor(t, "the refresh is saved", func() bool { return b.Fetch("GET", "/api/x").StatusCode == 200 })
	if n, reused := a.provider.Refreshes(), a.provider.Reuses(); n != 1 || reused != 0 {
		t.Errorf("%d refreshes, %d reuses, want 1 and 0", n, reused)
	}
}

func TestLogoutDuringARefreshWins(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.expired()
	release := make(chan struct{})
	arrived := a.provider.Hold(t, release)
	status := make(chan int)
	go func() { status <- b.Fetch("GET", "/api/x").StatusCode }()
	<-arrived
	if got := b.Submit("/bff/logout", nil).StatusCode; got != 303 {
		t.Errorf("logout: got %d, want 303", got)
	}
	close(release)
	if got := <-status; got != 401 {
		t.Errorf("the call: got %d, want 401", got)
	}
	a.wantSession(b, "")
	waitFor(t, "the late token is revoked", func() bool { return a.provider.LiveRefreshTokens() == 0 })
}

func TestInvalidCookiesAreNoSession(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	good := b.Cookies()[0].Value
	flipped := []byte(good)
	flipped[len(flipped)/2] ^= 1
	for name, cookie := range map[string]string{
		"flipped":      a.cookieName() + "=" + string(flipped),
		"truncated":    a.cookieName() + "=" + good[:len(good)-9],
		"noise":        a.cookieName() + "=" + strings.Repeat("noise", 800),
		"empty":        a.cookieName() + "=",
		"twice":        a.cookieName() + "=" + good + "; " + a.cookieName() + "=" + good,
		"in capitals":  strings.ToUpper(a.cookieName()) + "=" + good,
		"prefixed":     "__Host-Http-cloakroom=" + good,
		"not a cookie": ";;=;;",
		"quoted":       a.cookieName() + `="` + good[:20] + `"`,
	} {
		stranger := a.browser()
		got := stranger.Fetch("GET", "/bff/session", "Cookie", cookie)
		if got.StatusCode != 200 || strings.TrimSpace(got.Text) != `{"authenticated":false}` {
			t.Errorf("%s: got %d %s", name, got.StatusCode, got.Text)
		}
		wantProblem(t, stranger.Fetch("GET", "/api/x", "Cookie", cookie), 401, "not_signed_in")
		if got := stranger.Navigate("/bff/login", "Cookie", cookie).StatusCode; got != 302 {
			t.Errorf("%s: login: got %d, want 302", name, got)
		}
	}
	got := a.browser().Fetch("GET", "/bff/session", "Cookie", "x="+strings.Repeat("y", 60)+"; "+a.cookieName()+"="+good)
	if !strings.Contains(got.Text, "alice") {
		t.Errorf("beside another cookie: got %s", got.Text)
	}
}

func TestProbesAreNotOnThePublicListener(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Frontend = nil })
	for _, path := range []string{
		"/healthz", "/readyz", "/metrics", "/admin/sessions", "/debug/pprof/", "/bff/nothing",
		"/bff", "/bff/", "/api",
	} {
		wantProblem(t, a.browser().Fetch("GET", path, "User-Agent", "kube-probe/1.30"), 404, "not_found")
	}
	w := httptest.NewRecorder()
	a.server.Admin().ServeHTTP(w, httptest.NewRequest("GET", "/healthz", nil))
	if w.Code != 200 {
		t.Errorf("/healthz: got %d, want 200", w.Code)
	}
}

// waitFor waits until happened returns true, and fails the test after 15 s.
func waitFor(t *testing.T, what string, happened func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if happened() {
			return
		}
	}
	t.Errorf("did not happen within 15 s: %s", what)
}
