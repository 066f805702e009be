package bff_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

// promptOf returns the parameter prompt of the login that a browser starts.
func promptOf(t *testing.T, b *bfftest.Browser, query string, header ...string) string {
	t.Helper()
	return b.Navigate("/bff/login?"+query, header...).Location(t).Query().Get("prompt")
}

// signedOut returns a browser whose session has just ended in some way.
func (a *app) signedOut(end string) *bfftest.Browser {
	a.t.Helper()
	b, sid := a.signedInWithSID()
	switch end {
	case "revoked":
		other := a.signedIn()
		wantStatus(a.t, "end the others", other.Fetch("DELETE", "/bff/sessions"), 204)
	case "limit":
		a.signedIn() // with MaxPerUser 1
	case "idle":
		time.Sleep(2100 * time.Millisecond) // IdleTimeout is 2 s
	case "backchannel":
		token := a.logoutToken("", sid, devidp.Hooks{})
		wantStatus(a.t, "logout token", a.sendLogoutToken(map[string][]string{"logout_token": {token}}), 200)
	}
	a.wantSession(b, "")
	return b
}

func TestLoginAfterAnEndThatTheUserDidNotAskFor(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		end, query, want string
		edit             func(*bff.Config)
	}{
		{"revoked", "", "login", nil},
		{"revoked", "prompt=consent", "consent login", nil},
		{"revoked", "prompt=none", "login", nil},
		{"revoked", "prompt=login", "login", nil},
		{"revoked", "", "select_account", func(c *bff.Config) { c.PromptAfterEnd = bff.PromptSelectAccount }},
		{"revoked", "prompt=login", "login", func(c *bff.Config) { c.PromptAfterEnd = bff.PromptSelectAccount }},
		{"revoked", "", "", func(c *bff.Config) { c.PromptAfterEnd = bff.PromptByProvider }},
		{"limit", "", "login", func(c *bff.Config) { c.Sessions.MaxPerUser = 1 }},
		{"idle", "", "login", func(c *bff.Config) { c.Sessions.IdleTimeout = 2 * time.Second }},
		{"backchannel", "", "", nil},
	} {
		t.Run(strings.Join([]string{test.end, test.query, test.want}, " "), func(t *testing.T) {
			t.Parallel()
			a := newApp(t, func(a *app, c *bff.Config) {
				unpushed(a, c)
				if test.edit != nil {
					test.edit(c)
				}
			})
			b := a.signedOut(test.end)
			for range 2 { // a second tab, or a reload
				if got := promptOf(t, b, test.query); got != test.want {
					t.Errorf("prompt: got %q, want %q", got, test.want)
				}
			}
		})
	}
}

func TestLoginInABrowserWithoutASessionHasNoPrompt(t *testing.T) {
	t.Parallel()
	a := newApp(t, unpushed)
	if got := promptOf(t, a.browser(), ""); got != "" {
		t.Errorf("first visit: prompt: got %q, want none", got)
	}
	b := a.signedOut("revoked")
	wantStatus(t, "sign in again", b.SignIn("alice", ""), 303)
	if got := promptOf(t, b, ""); got != "" {
		t.Errorf("signed in again: prompt: got %q, want none", got)
	}
	b.Submit("/bff/logout", nil)
	if got := promptOf(t, b, ""); got != "" {
		t.Errorf("after a logout: prompt: got %q, want none", got)
	}
}

func TestSilentLoginAfterARevocationSignsNobodyIn(t *testing.T) {
	t.Parallel()
	a := newApp(t, unpushed)
	b := a.signedOut("revoked")
	wantSilent(t, silentLogin(b), "false")
	a.wantSession(b, "")
}

// A link of another site reaches the login without the session cookie.
func TestLinkOfAnotherSiteDoesNotAvoidThePrompt(t *testing.T) {
	t.Parallel()
	a := newApp(t, unpushed)
	b := a.signedOut("revoked")
	var login *bfftest.Response
	a.navigateStrict(b, func() *bfftest.Response {
		login = b.Navigate("/bff/login", "Sec-Fetch-Site", "cross-site")
		return login
	})
	if got := login.Location(t).Query().Get("prompt"); got != "" {
		t.Fatalf("without the cookie: prompt: got %q, want none", got)
	}
	callback := b.Authorize("alice", login.Location(t).String()).Location(t).String()
	relayed := relayURL(t, b.Navigate(callback, "Sec-Fetch-Site", "cross-site"))
	again := b.Navigate(relayed).Location(t)
	if got := again.Query().Get("prompt"); got != "login" {
		t.Errorf("with the cookie: went to %v, want a login with prompt=login", again)
	}
	a.wantSession(b, "")
	wantStatus(t, "sign in", b.Navigate(b.Authorize("alice", again.String()).Location(t).String()), 303)
	a.wantSession(b, "alice")
}

// The user can remove prompt=login from the URL of the provider's page. The
// time of the sign-in tells.
func TestLoginWithPromptLoginRefusesAnEarlierSignIn(t *testing.T) {
	t.Parallel()
	a := newApp(t, unpushed)
	for _, test := range []struct {
		age    time.Duration // of the sign-in; negative: unknown
		status int
	}{{0, 303}, {time.Minute, 303}, {10 * time.Minute, 403}, {-1, 303}} {
		b := a.browser()
		login := b.Navigate("/bff/login?prompt=login").Location(t)
		a.provider.SetHooks(devidp.Hooks{EditIDToken: func(_, claims map[string]any) {
			if claims["auth_time"] = time.Now().Add(-test.age).Unix(); test.age < 0 {
				delete(claims, "auth_time")
			}
		}})
		resp := b.Navigate(b.Authorize("alice", login.String()).Location(t).String())
		if resp.StatusCode != test.status {
			t.Errorf("a sign-in %v ago: got %d, want %d", test.age, resp.StatusCode, test.status)
		}
		if test.status == 403 && !strings.Contains(resp.Text, "login_too_weak") {
			t.Errorf("the page does not have the code login_too_weak: %s", resp.Text)
		}
	}
}

func TestPromptAfterEndIsChecked(t *testing.T) {
	t.Parallel()
	_, err := bff.New(bff.Config{PromptAfterEnd: "password"})
	if err == nil || !slices.ContainsFunc(strings.Split(err.Error(), "\n"), func(line string) bool {
		return strings.Contains(line, "PromptAfterEnd") && strings.Contains(line, "password")
	}) {
		t.Errorf("error: got %v, want one that names PromptAfterEnd and its value", err)
	}
}
