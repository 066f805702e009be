package bff_test

import (
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
)

// cookieName returns the name of the app's session cookie.
func (a *app) cookieName() string {
	u, err := url.Parse(a.url)
	if err != nil {
		a.t.Fatal(err)
	}
	return "cloakroom-" + u.Port()
}

// sessionCookie returns the session cookie of a browser, nil if it has none.
func (a *app) sessionCookie(b *bfftest.Browser) *http.Cookie {
	cookies := b.Cookies()
	i := slices.IndexFunc(cookies, func(c *http.Cookie) bool { return c.Name == a.cookieName() })
	if i < 0 {
		return nil
	}
	return cookies[i]
}

// Cookie names identify their origin: on localhost by the port, because
// browsers do not separate cookies by port.
func TestCookieNamesFollowThePublicURL(t *testing.T) {
	t.Parallel()
	for public, want := range map[string]string{
		"https://app.example":      "__Host-Http-cloakroom",
		"https://app.example:8443": "__Host-Http-cloakroom",
		"https://localhost:8443":   "__Host-Http-cloakroom",
		"http://localhost":         "cloakroom-80",
		"http://localhost:80":      "cloakroom-80",
		"http://localhost:8080":    "cloakroom-8080",
		"http://127.0.0.1:5173":    "cloakroom-5173",
		"http://[::1]:5173":        "cloakroom-5173",
	} {
		u, err := url.Parse(public)
		if err != nil {
			t.Fatal(err)
		}
		a := newApp(t, func(_ *app, cfg *bff.Config) {
			cfg.PublicURL, cfg.Provider.PushedRequests = public, "never"
		})
		line := a.browser().Navigate("/bff/login", "Host", u.Host).Header.Get("Set-Cookie")
		attributes := "; Path=/; Max-Age=600; HttpOnly; SameSite=Lax"
		if strings.HasPrefix(public, "https:") {
			attributes = "; Path=/; Max-Age=600; HttpOnly; Secure; SameSite=Lax"
		}
		if !regexp.MustCompile(`^` + want + `-login-[0-9a-f]{12}=[\w=-]+` + attributes + `$`).MatchString(line) {
			t.Errorf("%s: the login sets %s", public, line)
		}
		line = a.browser().Do("POST", "/bff/logout", "", "Host", u.Host, "X-CSRF", "1",
			"Accept", "application/json").Header.Get("Set-Cookie")
		if !strings.HasPrefix(line, want+"=;") ||
			strings.Contains(line, "Secure") != strings.HasPrefix(public, "https:") {
			t.Errorf("%s: the logout sets %s", public, line)
		}
	}
}

// A browser sends the cookies of each port of localhost to all of them.
func TestCookiesOfBrokersOnOtherPortsAreKeptBack(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		plants := brokertest.NewEcho(t)
		plants.Handler = func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Set-Cookie", r.Header.Get("X-Plant")+"=planted; Path=/")
		}
		cfg.Routes = append(cfg.Routes, bff.Route{Path: "/plants/", Upstream: []string{plants.URL}, Token: "none"})
	})
	for _, name := range []string{
		"cloakroom-8080", "cloakroom-80", "Cloakroom-65535", "cloakroom-8080-login-abc",
		"cloakroom", "cloakroom-login-abc", "__Host-Http-cloakroom",
		"__Host-Http-cloakroom-login-abc", "__Host-Http-cloakroom.0123abcd", "cloakroom-8080.0123abcd-logout",
		"cloakroom.0123ABCD-login-abc",
	} {
		got := echoed(t, a.browser().Fetch("GET", "/public/x", "Cookie", "a=1; "+name+"=secret; b=2"))
		if cookie := got.Header.Get("Cookie"); cookie != "a=1; b=2" {
			t.Errorf("%s: the upstream got %q", name, cookie)
		}
		if line := a.browser().Fetch("GET", "/plants/x", "X-Plant", name).Header.Get("Set-Cookie"); line != "" {
			t.Errorf("the upstream has set the cookie %s", line)
		}
	}
	for _, name := range []string{
		"cloakrooms", "cloakroom-8080x", "cloakroom-theme", "cloakroom8080", "my-cloakroom",
		"cloakroom-8080-logins", "cloakroom.theme", "cloakroom.0123abcde", "cloakroom.0123abc",
	} {
		got := echoed(t, a.browser().Fetch("GET", "/public/x", "Cookie", name+"=1"))
		if cookie := got.Header.Get("Cookie"); cookie != name+"=1" {
			t.Errorf("cookie %s of another port: the upstream got %q", name, cookie)
		}
	}
}

// Two brokers on one machine do not change each other's cookies.
func TestTwoBrokersOnLocalhostDoNotShareACookie(t *testing.T) {
	t.Parallel()
	one, two := newApp(t, nil), newApp(t, nil)
	b := one.signedIn()
	at := two.browser()
	for _, c := range b.Cookies() { // the same browser with the other port
		at.SetCookie(&http.Cookie{Name: c.Name, Value: c.Value, Path: "/"})
	}
	two.wantSession(at, "")
	if resp := at.SignIn("bob", ""); resp.StatusCode != 303 {
		t.Fatalf("sign in at the second: got %d, want 303", resp.StatusCode)
	}
	two.wantSession(at, "bob")
	if resp := at.Submit("/bff/logout", nil); resp.StatusCode != 303 {
		t.Fatalf("logout at the second: got %d, want 303", resp.StatusCode)
	}
	if c := one.sessionCookie(at); c == nil {
		t.Error("the second broker has removed the first one's cookie")
	}
	one.wantSession(b, "alice")
}
