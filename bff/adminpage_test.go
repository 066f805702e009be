package bff_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/adminpage"
	"github.com/cloakroom-bff/cloakroom/session"
)

// pageClient is a browser on the admin listener. It follows no redirect.
type pageClient struct {
	*app
	url     string
	cookies []*http.Cookie
}

// openAdminPage serves the page of administrators.
func (a *app) openAdminPage() *pageClient {
	a.t.Helper()
	mux := http.NewServeMux()
	mux.Handle("/", a.server.Admin())
	page := a.server.AdminPage(func(_ context.Context, p *adminpage.Page) { p.Version = "1.2.3" })
	mux.Handle("/admin/{$}", page)
	mux.Handle("/admin/page/", page)
	s := httptest.NewServer(mux)
	a.t.Cleanup(s.Close)
	return &pageClient{app: a, url: s.URL}
}

// send sends a request; a form means POST. header replaces what a browser sends
// from a page of the same origin.
func (c *pageClient) send(method, path string, form url.Values, header ...string) (*http.Response, string) {
	c.t.Helper()
	req, err := http.NewRequest(method, c.url+path, strings.NewReader(form.Encode()))
	if err != nil {
		c.t.Fatal(err)
	}
	if method == "POST" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	req.Header.Set("Sec-Fetch-Site", "same-origin")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	for _, cookie := range c.cookies {
		req.AddCookie(cookie)
	}
	resp, err := httpClient.Transport.RoundTrip(req)
	if err != nil {
		c.t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	resp.Body.Close()
	body := string(text)
	c.provider.CheckLeaks(c.t, path, body)
	if strings.Contains(body, adminToken) {
		c.t.Errorf("%s: the page has the admin token", path)
	}
	return resp, body
}

// signIn signs in to the page.
func (c *pageClient) signIn() {
	c.t.Helper()
	resp, body := c.send("POST", "/admin/page/sign-in", url.Values{"token": {adminToken}})
	if resp.StatusCode != 303 || resp.Header.Get("Location") != "/admin/" {
		c.t.Fatalf("sign-in: got %d to %q: %s", resp.StatusCode, resp.Header.Get("Location"), body)
	}
	c.cookies = resp.Cookies()
}

func (c *pageClient) want(status int, method, path string, form url.Values, header ...string) string {
	c.t.Helper()
	resp, body := c.send(method, path, form, header...)
	if resp.StatusCode != status {
		c.t.Errorf("%s %.60s: got %d, want %d: %.300s", method, path, resp.StatusCode, status, body)
	}
	return body
}

func TestAdminPageNeedsSignIn(t *testing.T) {
	t.Parallel()
	c := newApp(t, withAdminToken).openAdminPage()
	if body := c.want(401, "GET", "/admin/", nil); !strings.Contains(body, `action="/admin/page/sign-in"`) {
		t.Errorf("without a cookie: got %s, want the form", body)
	}
	for _, path := range []string{"/admin/page/revoke", "/admin/page/sign-out"} {
		c.want(401, "POST", path, url.Values{"id": {"x"}})
	}
	for _, wrong := range []string{"", "wrong", adminToken + "x", strings.Repeat("x", 20_000)} {
		resp, body := c.send("POST", "/admin/page/sign-in", url.Values{"token": {wrong}})
		if resp.StatusCode != 401 || !strings.Contains(body, "This is not the admin token.") {
			t.Errorf("token %.20q: got %d: %s", wrong, resp.StatusCode, body)
		}
		if len(resp.Cookies()) > 0 {
			t.Errorf("token %.20q: got a cookie", wrong)
		}
	}
	c.signIn()
	if body := c.want(200, "GET", "/admin/", nil); !strings.Contains(body, "1.2.3") {
		t.Errorf("the page lacks what the program adds: %s", body)
	}
	resp, _ := c.send("POST", "/admin/page/sign-out", nil)
	if cookies := resp.Cookies(); len(cookies) != 1 || cookies[0].MaxAge >= 0 {
		t.Errorf("sign-out: got %v, want the cookie deleted", cookies)
	}
}

func TestAdminPageCookieIsRestricted(t *testing.T) {
	t.Parallel()
	a := newApp(t, withAdminToken)
	c := a.openAdminPage()
	c.signIn()
	if len(c.cookies) != 1 {
		t.Fatalf("got %v, want one cookie", c.cookies)
	}
	cookie := c.cookies[0]
	if !cookie.HttpOnly {
		t.Error("the cookie is not HttpOnly")
	}
	if cookie.SameSite != http.SameSiteStrictMode {
		t.Errorf("SameSite: got %v, want Strict", cookie.SameSite)
	}
	if cookie.Path != "/admin/" {
		t.Errorf("Path: got %q, want /admin/", cookie.Path)
	}
	if cookie.MaxAge <= 0 || cookie.MaxAge > 8*3600 {
		t.Errorf("Max-Age: got %d, want up to 8 hours", cookie.MaxAge)
	}
	if cookie.Secure {
		t.Error("the cookie of an http page is Secure")
	}
	resp, _ := c.send("POST", "/admin/page/sign-in", url.Values{"token": {adminToken}}, "X-Forwarded-Proto", "https")
	if !resp.Cookies()[0].Secure {
		t.Error("the cookie behind https is not Secure")
	}
	c.want(401, "GET", "/admin/sessions?sub=alice", nil)
	c.want(401, "POST", "/admin/revoke", nil)

	for name, cookies := range map[string][]*http.Cookie{
		"changed": {{Name: cookie.Name, Value: cookie.Value[:len(cookie.Value)-4] + "AAAA"}},
		"empty":   {{Name: cookie.Name}},
		"twice":   {cookie, cookie},
		"renamed": {{Name: cookie.Name + "1", Value: cookie.Value}},
	} {
		c.cookies = cookies
		if resp, _ := c.send("GET", "/admin/", nil); resp.StatusCode != 401 {
			t.Errorf("%s cookie: got %d, want 401", name, resp.StatusCode)
		}
	}
}

func TestChangedAdminTokenEndsThePageCookie(t *testing.T) {
	t.Parallel()
	var cfg bff.Config
	a := newApp(t, func(a *app, c *bff.Config) {
		withAdminToken(a, c)
		cfg = *c
	})
	c := a.openAdminPage()
	c.signIn()
	c.want(200, "GET", "/admin/", nil)
	if err := reload(t, a.server, cfg); err != nil {
		t.Fatal(err)
	}
	c.want(200, "GET", "/admin/", nil)
	cfg.AdminToken = "another token"
	if err := reload(t, a.server, cfg); err != nil {
		t.Fatal(err)
	}
	c.want(401, "GET", "/admin/", nil)
}

func TestAdminPageRefusesOtherOrigins(t *testing.T) {
	t.Parallel()
	for _, token := range []string{adminToken, ""} {
		a := newApp(t, func(a *app, c *bff.Config) {
			if token != "" {
				withAdminToken(a, c)
			}
		})
		b := a.signInUser("alice")
		c := a.openAdminPage()
		if token != "" {
			c.signIn()
		}
		for _, header := range [][]string{
			{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"},
			{"Sec-Fetch-Site", "", "Origin", "https://evil.example"}, {"Sec-Fetch-Site", "", "Origin", "null"},
		} {
			c.want(403, "POST", "/admin/page/revoke", url.Values{"id": {b.id}}, header...)
			if token != "" {
				c.want(403, "POST", "/admin/page/sign-in", url.Values{"token": {token}}, header...)
				c.want(403, "POST", "/admin/page/sign-out", nil, header...)
			}
		}
		wantCall(t, b, 200)
		resp, _ := c.send("GET", "/admin/", nil)
		for name, want := range map[string]string{
			"X-Frame-Options": "DENY", "Cross-Origin-Resource-Policy": "same-origin", "Referrer-Policy": "no-referrer",
			"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff",
		} {
			if got := resp.Header.Get(name); got != want {
				t.Errorf("%s: got %q, want %q", name, got, want)
			}
		}
		csp := resp.Header.Get("Content-Security-Policy")
		for _, want := range []string{"default-src 'none'", "frame-ancestors 'none'", "form-action 'self'"} {
			if !strings.Contains(csp, want) {
				t.Errorf("Content-Security-Policy: got %q, want %s", csp, want)
			}
		}
		if strings.Contains(csp, "unsafe") {
			t.Errorf("Content-Security-Policy: got %q, want nothing unsafe", csp)
		}
	}
}

func TestAdminPageWithoutToken(t *testing.T) {
	t.Parallel()
	c := newApp(t, nil).openAdminPage()
	if body := c.want(200, "GET", "/admin/", nil); strings.Contains(body, "Sign out") {
		t.Error("there is a button to sign out")
	}
	resp, _ := c.send("GET", "/admin/", nil)
	if len(resp.Cookies()) > 0 {
		t.Errorf("got a cookie: %v", resp.Cookies())
	}
	c.want(401, "POST", "/admin/page/sign-in", url.Values{"token": {""}})
	r := httptest.NewRequest("GET", "http://evil.example/admin/", nil)
	r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey,
		&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9090}))
	w := httptest.NewRecorder()
	c.server.AdminPage(func(context.Context, *adminpage.Page) {}).ServeHTTP(w, r)
	if w.Code != 403 {
		t.Errorf("another host: got %d, want 403", w.Code)
	}
}

func TestAdminPageFindsAndRevokes(t *testing.T) {
	t.Parallel()
	a := newApp(t, withAdminToken)
	c := a.openAdminPage()
	c.signIn()
	first, second, bob := a.signInUser("alice"), a.signInUser("alice"), a.signInUser("bob")
	body := c.want(200, "GET", "/admin/?by=sub&q=+alice+", nil)
	for _, id := range []string{first.id, second.id} {
		if !strings.Contains(body, "Revoke session "+id) {
			t.Errorf("the page lacks session %s", id)
		}
	}
	resp, _ := c.send("POST", "/admin/page/revoke", url.Values{"id": {first.id}, "by": {"sub"}, "q": {"alice"}})
	if want := "/admin/?by=sub&q=alice&revoked=1"; resp.StatusCode != 303 || resp.Header.Get("Location") != want {
		t.Errorf("revoke: got %d to %q, want 303 to %q", resp.StatusCode, resp.Header.Get("Location"), want)
	}
	wantCall(t, first, 401)
	wantCall(t, second, 200)
	c.want(303, "POST", "/admin/page/revoke", url.Values{"all": {"1"}, "by": {"sub"}, "q": {"alice"}})
	wantCall(t, second, 401)
	wantCall(t, bob, 200)
	waitFor(t, "the page has the events of the session", func() bool {
		body := c.want(200, "GET", "/admin/?by=id&q="+first.id, nil)
		_, happened, _ := strings.Cut(body, "What happened")
		return strings.Contains(happened, "admin.session_revoked") && strings.Contains(body, "has ended")
	})
	for _, form := range []url.Values{
		{"all": {"1"}, "by": {"nonsense"}, "q": {"bob"}}, {"all": {"1"}, "by": {"sub"}}, {"all": {"1"}},
	} {
		c.want(400, "POST", "/admin/page/revoke", form)
	}
	c.want(303, "POST", "/admin/page/revoke", url.Values{"id": {"../bob"}})
	wantCall(t, bob, 200)
}

func TestAdminPageEscapesSearches(t *testing.T) {
	t.Parallel()
	a := newApp(t, withAdminToken)
	c := a.openAdminPage()
	c.signIn()
	for _, text := range []string{
		`<script>alert(1)</script>`, `"><img src=x onerror=alert(1)>`, "a\x00b", "\xff\xfe", strings.Repeat("x", 3000),
		`{{.Origin}}`, `javascript:alert(1)`,
	} {
		for _, by := range []string{"sub", "sid", "id", "request", "nonsense"} {
			body := c.want(200, "GET", "/admin/?"+url.Values{"by": {by}, "q": {text}}.Encode(), nil)
			for _, raw := range []string{"<script>alert", "<img src=x", `href="javascript:`} {
				if strings.Contains(body, raw) {
					t.Errorf("%s %.40q: the page has %s", by, text, raw)
				}
			}
		}
	}
	for _, query := range []string{"q=%zz", "q=a&q=b", "revoked=x", "revoked=-5", "revoked=99999999999999999999"} {
		if body := c.want(200, "GET", "/admin/?"+query, nil); strings.Contains(body, "revoked.") {
			t.Errorf("%s: the page says that sessions were revoked", query)
		}
	}
	a.store.setDown(errors.New("connection refused"))
	if body := c.want(200, "GET", "/admin/?by=id&q="+strings.Repeat("A", 22), nil); !strings.Contains(body,
		"The store failed.") {
		t.Error("the page does not say that the store is down")
	}
	c.want(503, "POST", "/admin/page/revoke", url.Values{"id": {strings.Repeat("A", 22)}})
	a.store.setDown(nil)
}

func TestAdminPageShowsTheLastHour(t *testing.T) {
	t.Parallel()
	a := newApp(t, withAdminToken)
	c := a.openAdminPage()
	c.signIn()
	b := a.signInUser("alice")
	wantCall(t, b, 200)
	a.browser().Fetch("GET", "/api/x") // 401
	if got := b.Fetch("POST", "/bff/session/refresh"); got.StatusCode != 200 {
		t.Fatalf("refresh: got %d", got.StatusCode)
	}
	a.browser().Navigate("/bff/callback?state=made-up") // refused
	waitFor(t, "everything works", func() bool {
		return strings.Contains(c.want(200, "GET", "/admin/", nil), "everything works")
	})
	body := c.want(200, "GET", "/admin/", nil)
	for _, want := range []string{
		"Sign-ins in the last hour: 1 completed, ", "Token refreshes in the last hour: 1 successful, 0 failed",
		"Error responses in the last hour: ", "4xx, 0 5xx", " ms</b> median",
		"session.started", "admin.signed_in",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
}

// An address that guesses is slowed down, on the page and the API alike. Only a
// token that could be guessed is then refused too.
func TestWrongAdminTokensAreLimited(t *testing.T) {
	t.Parallel()
	for token, want := range map[string]int{adminToken: 200, "short": 429} {
		a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.AdminToken = session.Secret(token) })
		if want == 429 { // the budget must not grow between two requests
			a.server.SetWrongTokenLimit(bff.RateLimit{Rate: 1e-3, Burst: 50})
		}
		testGuesses(t, a, token, want)
	}
}

func TestAShortAdminTokenIsAcceptedAfterThePause(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.AdminToken = "short" })
	a.server.SetWrongTokenLimit(bff.RateLimit{Rate: 10, Burst: 1})
	c := a.openAdminPage()
	for range 3 {
		c.send("GET", "/admin/sessions?sub=alice", nil, "Authorization", "Bearer wrong")
	}
	waitFor(t, "the right token is accepted", func() bool {
		resp, _ := c.send("GET", "/admin/sessions?sub=alice", nil, "Authorization", "Bearer short")
		return resp.StatusCode == 200
	})
}

// testGuesses sends wrong tokens, and wants a status for the right one then.
func testGuesses(t *testing.T, a *app, token string, want int) {
	t.Helper()
	c := a.openAdminPage()
	guess := func(i int) int {
		method, path, form, authorization := "POST", "/admin/page/sign-in", url.Values{"token": {"wrong"}}, ""
		if i%2 == 0 {
			method, path, form, authorization = "GET", "/admin/sessions?sub=alice", nil, "Bearer wrong"
		}
		resp, _ := c.send(method, path, form, "Authorization", authorization)
		if after, _ := strconv.Atoi(resp.Header.Get("Retry-After")); resp.StatusCode == 429 && after < 1 {
			t.Errorf("Retry-After: got %q, want at least 1", resp.Header.Get("Retry-After"))
		}
		return resp.StatusCode
	}
	compared, refused := 0, 0
	for i := 0; i < 1000 && refused < 10; i++ { // the budget grows meanwhile
		switch status := guess(i); status {
		case 401:
			compared++
		case 429:
			refused++
		default:
			t.Errorf("guess %d: got %d, want 401 or 429", i, status)
		}
	}
	if compared < 50 {
		t.Errorf("got %d guesses compared, want at least 50", compared)
	}
	if refused == 0 {
		t.Errorf("got none of %d guesses refused", compared)
	}
	resp, _ := c.send("GET", "/admin/sessions?sub=alice", nil, "Authorization", "Bearer "+token)
	if resp.StatusCode != want {
		t.Errorf("the right token %q then: got %d, want %d", token, resp.StatusCode, want)
	}
	c.want(401, "GET", "/admin/sessions?sub=alice", nil) // without a token it is no guess
}
