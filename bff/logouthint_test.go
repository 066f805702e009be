package bff_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

// largeIDToken adds group ids to ID tokens, as in a large company.
func largeIDToken(groups int) devidp.Hooks {
	return devidp.Hooks{EditIDToken: func(_, claims map[string]any) {
		var ids []string
		for i := range groups {
			ids = append(ids, fmt.Sprintf("8c5f3a1e-0000-4000-8000-%012d", i))
		}
		claims["groups"] = ids
	}}
}

// continueLogout signs out as a script does. It returns the redirect to the
// provider.
func continueLogout(t *testing.T, b *bfftest.Browser) *bfftest.Response {
	t.Helper()
	resp := b.Fetch("POST", "/bff/logout")
	var body struct {
		RedirectTo string `json:"redirect_to"`
	}
	resp.Decode(t, &body)
	if !strings.HasPrefix(body.RedirectTo, "/bff/logout/continue?") {
		t.Fatalf("redirect_to: got %q, want a path of this origin", body.RedirectTo)
	}
	return b.Navigate(body.RedirectTo, "Sec-Fetch-Site", "same-origin")
}

func TestScriptLogoutRevealsNoIDToken(t *testing.T) {
	t.Parallel()
	var idToken string
	a := newApp(t, nil)
	a.recordCalls(devidp.Hooks{
		EditTokenResponse: func(_ string, _ int, body map[string]any) { idToken, _ = body["id_token"].(string) },
	})
	b := a.signedIn()
	resp := b.Fetch("POST", "/bff/logout")
	var body map[string]string
	resp.Decode(t, &body)
	if strings.Contains(resp.Text, "eyJ") {
		t.Errorf("body: got %q, want it not to contain eyJ", resp.Text)
	}
	if len(body) != 1 {
		t.Errorf("len(body): got %d, want 1", len(body))
	}
	if resp.Header.Get("Clear-Site-Data") != `"storage"` {
		t.Errorf("Clear-Site-Data: got %q", resp.Header.Get("Clear-Site-Data"))
	}
	var hint *http.Cookie
	for _, c := range resp.Cookies() {
		if strings.HasSuffix(c.Name, "-logout") {
			hint = c
		}
	}
	switch {
	case hint == nil:
		t.Fatal("cookie of the ID token: hint is missing")
	case !hint.HttpOnly:
		t.Fatal("cookie of the ID token: hint.HttpOnly: got false, want true")
	case hint.SameSite != http.SameSiteStrictMode:
		t.Fatalf("cookie of the ID token: hint.SameSite: got %v, want %v", hint.SameSite, http.SameSiteStrictMode)
	case hint.MaxAge > 60:
		t.Fatalf("cookie of the ID token: hint.MaxAge: got %v, want at most 60", hint.MaxAge)
	case hint.MaxAge < 1:
		t.Fatalf("cookie of the ID token: hint.MaxAge: got %v, want at least 1", hint.MaxAge)
	case hint.Path != "/":
		t.Fatalf("cookie of the ID token: hint.Path: got %v, want /", hint.Path)
	case strings.Contains(hint.Value, "eyJ"):
		t.Fatalf("cookie of the ID token: hint.Value: got %q, want it not to contain eyJ", hint.Value)
	}
	for name, header := range map[string][]string{
		"a fetch":       {"Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "empty"},
		"the client":    {"X-CSRF", "1"},
		"an iframe":     {"Sec-Fetch-Dest", "iframe"},
		"a prefetch":    {"Sec-Purpose", "prefetch"},
		"an old script": {"Sec-Fetch-Mode", "", "Sec-Fetch-Dest", "", "Accept", "application/json"},
	} {
		resp := b.Navigate(body["redirect_to"], header...)
		wantProblem(t, resp, 401, "navigation_only")
		switch {
		case resp.Header.Get("Location") != "":
			t.Errorf("%s: Location: got %q, want none", name, resp.Header.Get("Location"))
		case len(resp.Cookies()) > 0:
			t.Errorf("%s: cookies: got %v, want none", name, resp.Cookies())
		}
	}
	head := b.Do("HEAD", body["redirect_to"], "")
	if head.StatusCode != 200 {
		t.Errorf("HEAD: status: got %d, want 200", head.StatusCode)
	}
	if head.Header.Get("Location") != "" {
		t.Errorf("HEAD: Location: got %q, want none", head.Header.Get("Location"))
	}
	if len(head.Cookies()) > 0 {
		t.Errorf("HEAD: cookies: got %v, want none", head.Cookies())
	}
	// The cookie does not reach upstreams.
	if e := echoed(t, b.Fetch("GET", "/public/x")); strings.Contains(fmt.Sprint(e.Header["Cookie"]), "logout") {
		t.Errorf("the upstream got %v", e.Header["Cookie"])
	}

	once := b.Navigate(body["redirect_to"], "Sec-Fetch-Site", "same-origin")
	to := once.Location(t)
	switch q := to.Query(); {
	case once.StatusCode != 303:
		t.Errorf("status: got %d, want 303", once.StatusCode)
	case !strings.HasPrefix(to.String(), a.provider.Issuer+"/logout?"):
		t.Errorf("to.String(): got %q, want prefix %q", to.String(), a.provider.Issuer+"/logout?")
	case q.Get("id_token_hint") != idToken:
		t.Errorf("id_token_hint: got %q, want %q", q.Get("id_token_hint"), idToken)
	case idToken == "":
		t.Error("idToken is missing")
	case q.Get("client_id") != "spa":
		t.Errorf("client_id: got %q, want spa", q.Get("client_id"))
	case q.Get("post_logout_redirect_uri") != a.url+"/bff/logout/callback":
		t.Errorf("post_logout_redirect_uri: got %q, want %q", q.Get("post_logout_redirect_uri"),
			a.url+"/bff/logout/callback")
	case q.Get("state") == "":
		t.Error("state is missing")
	case q.Has("logout_hint"):
		t.Error("logout_hint is present, want none")
	}
	if len(b.Cookies()) > 0 {
		t.Errorf("the cookies %v remain", cookieNames(b))
	}
	twice := b.Navigate(body["redirect_to"], "Sec-Fetch-Site", "same-origin")
	if twice.StatusCode != 303 || twice.Header.Get("Location") != "/" {
		t.Errorf("repeated: got %d to %s", twice.StatusCode, twice.Header.Get("Location"))
	}
	// In another browser, and with a forged state.
	if other := a.browser().Navigate(body["redirect_to"]); other.Header.Get("Location") != "/" {
		t.Errorf("in another browser: got %d to %s", other.StatusCode, other.Header.Get("Location"))
	}
	b.SetCookie(&http.Cookie{Name: hint.Name, Value: hint.Value, Path: "/"})
	for _, state := range []string{"", "x", strings.Repeat("A", 10000), hint.Value} {
		if resp := b.Navigate("/bff/logout/continue?" +
			url.Values{"state": {state}}.Encode()); resp.StatusCode != 303 || resp.Header.Get("Location") != "/" {
			t.Errorf("state %.20q: got %d to %s", state, resp.StatusCode, resp.Header.Get("Location"))
		}
	}
}

func TestScriptLogoutContinuesOnAnotherReplica(t *testing.T) {
	t.Parallel()
	var cfg bff.Config
	a := newApp(t, func(_ *app, c *bff.Config) { cfg = *c })
	other, at := replica(t, cfg)
	if err := other.WaitForProvider(t.Context()); err != nil {
		t.Fatal(err)
	}
	b := a.signedIn()
	var body struct {
		RedirectTo string `json:"redirect_to"`
	}
	b.Fetch("POST", "/bff/logout").Decode(t, &body)
	out := b.Navigate(at+body.RedirectTo, "Host", strings.TrimPrefix(a.url, "http://")) // the jar uses it
	if !out.Location(t).Query().Has("id_token_hint") {
		t.Errorf("the other replica redirects to %s", out.Location(t))
	}
	back := b.Navigate(b.Navigate(out.Location(t).String()).Location(t).String())
	if back.StatusCode != 303 || back.Header.Get("Location") != "/" {
		t.Errorf("got %d to %s", back.StatusCode, back.Header.Get("Location"))
	}
	// Without a session there is no token, but the same path.
	q := continueLogout(t, a.browser()).Location(t).Query()
	if q.Has("id_token_hint") {
		t.Error("without a session: id_token_hint is present, want none")
	}
	if q.Has("logout_hint") {
		t.Error("without a session: logout_hint is present, want none")
	}
	if q.Get("client_id") != "spa" {
		t.Errorf("without a session: client_id: got %q, want spa", q.Get("client_id"))
	}
}

// replica starts another server with the configuration. It returns the server
// and its URL.
func replica(t *testing.T, cfg bff.Config) (*bff.Server, string) {
	t.Helper()
	server, err := bff.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	at := httptest.NewServer(server)
	stop := run(t, server)
	t.Cleanup(func() {
		at.Close()
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return server, at.URL
}

// The logout cookie of one app is no hint for another app with the same keys.
func TestLogoutHintOfAnotherAppIsIgnored(t *testing.T) {
	t.Parallel()
	a, other := newApp(t, nil), newApp(t, nil)
	b := a.signedIn()
	var hint *http.Cookie
	for _, c := range b.Fetch("POST", "/bff/logout").Cookies() {
		if strings.HasSuffix(c.Name, "logout") {
			hint = c
		}
	}
	stranger := other.browser()
	stranger.SetCookie(&http.Cookie{Name: hint.Name, Value: hint.Value, Path: "/"})
	if q := continueLogout(t, stranger).Location(t).Query(); q.Has("id_token_hint") {
		t.Error("the ID token went to another provider")
	}
}

func TestLongIDTokenIsOmittedFromLogout(t *testing.T) {
	t.Parallel()
	for _, groups := range []int{0, 10, 25, 40, 60, 200, 600} {
		a := newApp(t, nil)
		a.recordCalls(largeIDToken(groups))
		for how, sign := range map[string]func(t *testing.T, b *bfftest.Browser) *bfftest.Response{
			"form":   func(_ *testing.T, b *bfftest.Browser) *bfftest.Response { return b.Submit("/bff/logout", nil) },
			"script": continueLogout,
		} {
			resp := sign(t, a.signedIn())
			to := resp.Location(t)
			q := to.Query()
			var head strings.Builder
			resp.Header.Write(&head)
			if head.Len() > 3900 { // with the status line it must fit into nginx's 4 kB
				t.Errorf("%d groups, %s: the response header has %d bytes", groups, how, head.Len())
			}
			long := groups >= 60
			if got := q.Get("client_id"); got != "spa" {
				t.Errorf("%d groups, %s: client_id: got %q, want spa", groups, how, got)
			}
			if q.Get("state") == "" {
				t.Errorf("%d groups, %s: state is missing", groups, how)
			}
			if groups <= 25 && !q.Has("id_token_hint") {
				t.Errorf("%d groups, %s: id_token_hint is missing", groups, how)
			}
			if long && q.Has("id_token_hint") {
				t.Errorf("%d groups, %s: id_token_hint is present, want logout_hint", groups, how)
			}
			if got := q.Get("logout_hint"); long && got != "alice" {
				t.Errorf("%d groups, %s: logout_hint: got %q, want alice", groups, how, got)
			}
			if q.Has("id_token_hint") == q.Has("logout_hint") {
				t.Errorf("%d groups, %s: want exactly one hint", groups, how)
			}
		}
	}
}

// The response that sets the cookie with the ID token must also fit into
// nginx's buffer.
func TestLogoutResponseWithAnIDTokenIsSmall(t *testing.T) {
	t.Parallel()
	for _, groups := range []int{0, 30, 40, 45, 50, 55, 60, 200} {
		a := newApp(t, nil)
		a.recordCalls(largeIDToken(groups))
		resp := a.signedIn().Fetch("POST", "/bff/logout")
		var head strings.Builder
		resp.Header.Write(&head)
		if head.Len() > 3900 {
			t.Errorf("%d groups: the response header has %d bytes", groups, head.Len())
		}
	}
}

func TestLogoutHintIsTheProvidersLogoutHintClaim(t *testing.T) {
	t.Parallel()
	for claim, want := range map[any]string{
		"O.CiQ4":                 "O.CiQ4",
		nil:                      "alice",
		7:                        "alice",
		"":                       "alice",
		"a\r\nb":                 "alice",
		strings.Repeat("x", 300): "alice",
	} {
		a := newApp(t, nil)
		h := largeIDToken(100)
		edit := h.EditIDToken
		h.EditIDToken = func(header, claims map[string]any) {
			edit(header, claims)
			claims["login_hint"] = claim
		}
		a.recordCalls(h)
		if got := a.signedIn().Submit("/bff/logout", nil).Location(t).Query().Get("logout_hint"); got != want {
			t.Errorf("%v: got %q, want %q", claim, got, want)
		}
	}
}

func TestScriptLogoutWithoutEndSessionEndpoint(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(a *app, _ *bff.Config) {
		a.provider.Misbehave(t, brokertest.Discovery("", func(m map[string]any) { delete(m, "end_session_endpoint") }))
	})
	a.waitReady()
	b := a.signedIn()
	resp := b.Fetch("POST", "/bff/logout")
	if resp.StatusCode != 200 {
		t.Errorf("status: got %d, want 200:\n%s", resp.StatusCode, resp.Text)
	}
	if strings.TrimSpace(resp.Text) != `{"redirect_to":"/"}` {
		t.Errorf(`body: got %q, want {"redirect_to":"/"}`, strings.TrimSpace(resp.Text))
	}
	if len(b.Cookies()) > 0 {
		t.Errorf("cookies: got %v, want none", b.Cookies())
	}
}

// A copy of the logout cookie, sent again with the path, gets no ID token.
func TestLogoutPathWorksOnceWithACopyOfTheCookie(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	var body map[string]string
	b.Fetch("POST", "/bff/logout", "Accept", "application/json").Decode(t, &body)
	path, cookies := body["redirect_to"], b.Cookies()
	if first := b.Navigate(path).Location(t).String(); !strings.Contains(first, "id_token_hint=") {
		t.Fatalf("first: went to %.80q, want a URL with id_token_hint", first)
	}
	// The last character has bits that are not part of the state.
	end := map[byte]string{'A': "B", 'Q': "R", 'g': "h", 'w': "x"}[path[len(path)-1]]
	for _, again := range []string{path, path + "%0A", path[:len(path)-1] + end} {
		for _, cookie := range cookies {
			b.SetCookie(&http.Cookie{Name: cookie.Name, Value: cookie.Value, Path: "/"})
		}
		resp := b.Navigate(again)
		if got := resp.Header.Get("Location"); resp.StatusCode != 303 || got != "/" {
			t.Errorf("again, %q at the end: got %d to %.80q, want 303 to /", again[len(path)-5:],
				resp.StatusCode, got)
		}
	}
}

// The session here has ended. The user wants to be signed out at the provider
// too.
func TestLogoutContinuesAtTheProviderWithoutTheStore(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	var body map[string]string
	b.Fetch("POST", "/bff/logout", "Accept", "application/json").Decode(t, &body)
	a.store.setDown(errors.New("connection refused"))
	defer a.store.setDown(nil)
	resp := b.Navigate(body["redirect_to"])
	if got := resp.Header.Get("Location"); resp.StatusCode != 303 || !strings.Contains(got, "id_token_hint=") {
		t.Errorf("got %d to %.80q, want 303 to a URL with id_token_hint", resp.StatusCode, got)
	}
}
