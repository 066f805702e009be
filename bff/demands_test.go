package bff_test

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

// newAppWithParameters starts a broker with Provider.Parameters.
func newAppWithParameters(t *testing.T, parameters map[string]string) *app {
	return newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.Provider.PushedRequests, cfg.Provider.Parameters = "never", parameters
	})
}

func TestLoginLinkCanOnlyStrengthenRequirements(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, operator, link, want string }{
		{"acr_values", "gold", "", "gold"},
		{"acr_values", "gold", "silver", "gold"},
		{"acr_values", "gold", "silver gold", "gold"},
		{"acr_values", "gold", "Gold", "gold"},
		{"acr_values", "gold platinum", "platinum", "platinum"},
		{"acr_values", "gold platinum", "platinum bronze gold", "platinum gold"},
		{"acr_values", "", "silver", "silver"},
		{"max_age", "300", "", "300"},
		{"max_age", "300", "3000", "300"},
		{"max_age", "300", "60", "60"},
		{"max_age", "300", "0", "0"},
		{"max_age", "300", "000400", "300"},
		{"max_age", "0", "60", "0"},
		{"max_age", "", "60", "60"},
		{"prompt", "login", "", "login"},
		{"prompt", "login", "none", "login"},
		{"prompt", "login", "consent", "login consent"},
		{"prompt", "login consent", "login", "login consent"},
		{"prompt", "", "none", "none"},
		{"prompt", "consent", "none", "none"},
		{"prompt", "consent", "login", "consent login"},
		{"prompt", "consent login", "none", "login"},
		{"prompt", "none", "login", "login"},
	} {
		parameters := map[string]string{}
		if test.operator != "" {
			parameters[test.name] = test.operator
		}
		a := newAppWithParameters(t, parameters)
		q := a.browser().Navigate("/bff/login?" + url.Values{test.name: {test.link}}.Encode()).Location(t).Query()
		if got := q[test.name]; len(got) != 1 || got[0] != test.want {
			t.Errorf("%s: configured %q, in the link %q: got %q, want %q", test.name,
				test.operator, test.link, got, test.want)
		}
	}
}

// Each kind of login, with an ID token that satisfies the link but not the
// configuration.
func TestConfiguredParametersApplyToEveryLogin(t *testing.T) {
	t.Parallel()
	silver := devidp.Hooks{EditIDToken: func(_, claims map[string]any) { claims["acr"] = "silver" }}
	old := devidp.Hooks{EditIDToken: func(_, claims map[string]any) {
		claims["acr"], claims["auth_time"] = "gold", time.Now().Add(-time.Hour).Unix()
	}}
	a := newAppWithParameters(t, map[string]string{"acr_values": "gold", "max_age": "300"})
	t.Run("a login link", func(t *testing.T) {
		a.recordCalls(silver)
		wantPage(t, a.browser().SignIn("alice", "acr_values=silver"), 403, "login_too_weak")
		a.recordCalls(old)
		again := a.browser().SignIn("alice", "max_age=7200")
		if again.StatusCode != 302 {
			t.Errorf("old auth_time: status: got %d, want 302", again.StatusCode)
		}
		if again.Location(t).Query().Get("prompt") != "login" {
			t.Errorf("old auth_time: prompt: got %q, want login", again.Location(t).Query().Get("prompt"))
		}
		if again.Location(t).Query().Get("acr_values") != "gold" {
			t.Errorf("old auth_time: acr_values: got %q, want gold", again.Location(t).Query().Get("acr_values"))
		}
	})
	t.Run("a silent login", func(t *testing.T) {
		for name, h := range map[string]devidp.Hooks{"too weak": silver, "too old": old} {
			a.provider.Behave()
			a.recordCalls(devidp.Hooks{EditIDToken: func(_, claims map[string]any) { claims["acr"] = "gold" }})
			b := a.signedIn()
			b.ClearCookies()
			a.recordCalls(h)
			q := b.Navigate("/bff/silent-login", inFrame...).Location(t).Query()
			if q.Get("acr_values") != "gold" {
				t.Errorf("%s: acr_values: got %q, want gold", name, q.Get("acr_values"))
			}
			if q.Get("max_age") != "300" {
				t.Errorf("%s: max_age: got %q, want 300", name, q.Get("max_age"))
			}
			if q.Get("prompt") != "none" {
				t.Errorf("%s: prompt: got %q, want none", name, q.Get("prompt"))
			}
			wantSilent(t, silentLogin(b), "false")
			a.wantSession(b, "")
		}
	})
	t.Run("a restarted login", func(t *testing.T) {
		a.recordCalls(silver)
		b := a.browser()
		u := b.AuthResponse("alice", "acr_values=gold").Location(t)
		b.ClearCookies()
		to := b.Navigate(u.String()).Location(t)
		switch q := to.Query(); {
		case q.Get("acr_values") != "gold":
			t.Errorf("authorization request: acr_values: got %q, want gold", q.Get("acr_values"))
		case q.Get("max_age") != "300":
			t.Errorf("authorization request: max_age: got %q, want 300", q.Get("max_age"))
		}
		back := b.Authorize("alice", to.String()).Location(t).String()
		relayed := relayURL(t, b.Navigate(back, "Sec-Fetch-Site", "cross-site"))
		wantPage(t, b.Navigate(relayed, "Sec-Fetch-Site", "same-origin"), 403, "login_too_weak")
		a.wantSession(b, "")
	})
	t.Run("a cross-site login", func(t *testing.T) {
		a.recordCalls(silver)
		b := a.browser()
		login := b.Navigate("/bff/login?acr_values=silver&max_age=9999", "Sec-Fetch-Site", "cross-site")
		callback := b.Authorize("alice", login.Location(t).String()).Location(t).String()
		relayed := relayURL(t, b.Navigate(callback, "Sec-Fetch-Site", "cross-site"))
		wantPage(t, b.Navigate(relayed, "Sec-Fetch-Site", "same-origin"), 403, "login_too_weak")
		a.wantSession(b, "")
	})
	t.Run("a login that satisfies them", func(t *testing.T) {
		a.recordCalls(devidp.Hooks{EditIDToken: func(_, claims map[string]any) { claims["acr"] = "gold" }})
		b := a.browser()
		if resp := b.SignIn("alice", "acr_values=silver&max_age=60"); resp.StatusCode != 303 {
			t.Errorf("got %d, want 303", resp.StatusCode)
		}
		a.wantSession(b, "alice")
	})
}

// OpenID Connect Core 3.1.3.7 (12, 13): acr and auth_time are checked also if
// the configuration requests them.
func TestConfiguredACRAndMaxAgeAreVerified(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.Provider.Parameters = map[string]string{"acr_values": "gold", "max_age": "60"}
	})
	a.recordCalls(devidp.Hooks{EditIDToken: func(_, claims map[string]any) {
		claims["acr"], claims["auth_time"] = "silver", time.Now().Add(-time.Hour).Unix()
	}})
	if resp := a.browser().SignIn("alice", ""); resp.StatusCode == 303 {
		t.Error("login with acr silver and an old auth_time: got 303, want a failure")
	}
}

func TestSilentLoginFailsWhenThePromptIsRequired(t *testing.T) {
	t.Parallel()
	a := newAppWithParameters(t, map[string]string{"prompt": "login"})
	b := a.signedIn()
	b.ClearCookies()
	before := a.provider.Stats().Authorizations
	wantSilent(t, silentLogin(b), "false")
	switch n := a.provider.Stats().Authorizations - before; {
	case n > 0:
		t.Errorf("requests to the provider: got %v, want none", n)
	case len(b.Cookies()) > 0:
		t.Errorf("cookies: got %v, want none", b.Cookies())
	}
	if !strings.Contains(a.logs.String(), "rules out a silent login") {
		t.Error("the log does not name the cause")
	}
}

func TestConfiguredPromptNoneIsAnError(t *testing.T) {
	t.Parallel()
	for _, prompt := range []string{"evil", "none login", "Login"} {
		_, err := bff.New(bff.Config{Provider: bff.ProviderConfig{Parameters: map[string]string{"prompt": prompt}}})
		if err == nil || !strings.Contains(err.Error(), "Provider.Parameters: prompt") {
			t.Errorf("%q: got %v", prompt, err)
		}
	}
}

func TestUnsatisfiableRouteIsLogged(t *testing.T) {
	t.Parallel()
	for acr, want := range map[string]int{"platinum": 1, "gold": 0} {
		a := newApp(t, func(_ *app, cfg *bff.Config) {
			cfg.Provider.Parameters = map[string]string{"acr_values": "gold"}
			cfg.Routes[0].Require.ACR = []string{acr}
		})
		if got := strings.Count(a.logs.String(), "no sign-in satisfies a route"); got != want {
			t.Errorf("%s: %d warnings, want %d", acr, got, want)
		}
	}
}
