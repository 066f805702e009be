package bff_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

// newProfileApp starts a broker whose provider imitates a service.
func newProfileApp(t *testing.T, name string, edit func(*app, *bff.Config)) (*app, *calls) {
	t.Helper()
	for _, profile := range devidp.Profiles {
		if profile.Name != name {
			continue
		}
		var c *calls
		a := newAppWith(t, profile.Config, func(a *app, cfg *bff.Config) {
			c = a.recordCalls(profile.Hooks(a.provider.Provider))
			if edit != nil {
				edit(a, cfg)
			}
		})
		return a, c
	}
	t.Fatalf("no profile has the name %s", name)
	return nil, nil
}

// Each service with its configuration in configs/providers: a login, API calls,
// a refresh and a logout.
func TestProviderProfiles(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(*app, *bff.Config){
		"auth0": func(_ *app, cfg *bff.Config) { cfg.Provider.Audience = "https://orders.example" },
		"okta": func(_ *app, cfg *bff.Config) {
			cfg.Provider.UserInfo, cfg.Provider.SenderConstraint = true, "dpop"
		},
		"entra": func(_ *app, cfg *bff.Config) {
			cfg.Provider.Scopes = []string{"openid", "profile", "email", "offline_access", "api://orders/read"}
			cfg.Routes[1].Token, cfg.Routes[1].Scopes = "user", []string{"api://billing/read"} // another API
		},
		"google": func(_ *app, cfg *bff.Config) {
			cfg.Provider.Scopes = []string{"openid", "profile", "email"}
			cfg.Provider.Parameters = map[string]string{"access_type": "offline", "prompt": "consent"}
		},
		"cognito": func(a *app, cfg *bff.Config) {
			cfg.Provider.Scopes = []string{"openid", "profile", "email"}
			cfg.Provider.LogoutURL = strings.TrimSuffix(a.provider.Issuer, "/eu-central-1_pool") + "/logout"
			cfg.Provider.LogoutRedirectParameter = "logout_uri"
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, c := newProfileApp(t, name, edit)
			b := a.browser()
			switch resp := b.SignIn("alice", "return_to=/x"); {
			case resp.StatusCode != 303:
				t.Fatalf("status: got %d, want 303:\n%s", resp.StatusCode, a.logs)
			case resp.Header.Get("Location") != "/x":
				t.Fatalf("Location: got %q, want /x", resp.Header.Get("Location"))
			}
			got := user(t, b)
			if got["sub"] != "alice" {
				t.Errorf("user: sub: got %v, want alice", got["sub"])
			}
			if name == "okta" && got["email"] != "alice@example.com" {
				t.Errorf("user: email: got %v, want alice@example.com", got["email"])
			}
			wantOK(t, b.Fetch("GET", "/api/x"))
			for range 2 {
				wantOK(t, b.Fetch("POST", "/bff/session/refresh"))
			}
			if name == "entra" {
				wantOK(t, b.Fetch("GET", "/public/x"))
			}
			wantOK(t, b.Fetch("GET", "/api/x"))
			resp := b.Submit("/bff/logout", nil)
			after := b.Follow(resp, a.url+"/x")
			if resp.StatusCode != 303 {
				t.Errorf("status: got %d, want 303", resp.StatusCode)
			}
			if after.StatusCode >= 400 {
				t.Errorf("status: got %d, want less than 400", after.StatusCode)
			}
			a.wantSession(b, "")
			refreshed := 0
			for _, call := range c.toEnd("/token") {
				if call.form.Get("grant_type") == "refresh_token" && call.form.Get("refresh_token") != "" {
					refreshed++
				}
			}
			if want := map[string]int{"entra": 3}[name]; refreshed != max(want, 2) {
				t.Errorf("%d refreshes", refreshed)
			}
		})
	}
}

func TestProviderQuirks(t *testing.T) {
	t.Parallel()
	t.Run("Auth0 issues an opaque token without an audience", func(t *testing.T) {
		a, _ := newProfileApp(t, "auth0", nil)
		wantOK(t, a.signedIn().Fetch("GET", "/api/x"))
	})
	t.Run("a lost response of Auth0 is requested again within the overlap", func(t *testing.T) {
		a, _ := newProfileApp(t, "auth0", func(_ *app, cfg *bff.Config) {
			cfg.Provider.Audience = "https://orders.example"
		})
		b := a.signedIn()
		lost := false
		for _, profile := range devidp.Profiles[:1] {
			h := profile.Hooks(a.provider.Provider)
			inner := h.Intercept
			h.Intercept = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.URL.Path == "/oauth/token" && !lost {
					lost = true
					inner(httptest.NewRecorder(), r, next)
					panic(http.ErrAbortHandler)
				}
				inner(w, r, next)
			}
			a.provider.SetHooks(h)
		}
		wantOK(t, b.Fetch("POST", "/bff/session/refresh"))
		if !lost {
			t.Error("no response was lost")
		}
	})
	t.Run("Google issues a refresh token only on request", func(t *testing.T) {
		a, _ := newProfileApp(t, "google", func(_ *app, cfg *bff.Config) { cfg.Provider.Scopes = []string{"openid"} })
		b := a.signedIn()
		var got sessionBody
		b.Fetch("GET", "/bff/session").Decode(t, &got)
		if !got.Session.ExpiresAt.Equal(got.Session.AccessTokenExpiresAt) {
			t.Errorf("the session expires at %v, its only token at %v", got.Session.ExpiresAt,
				got.Session.AccessTokenExpiresAt)
		}
	})
	t.Run("Okta's org server gets no proof with the same wrong nonce twice", func(t *testing.T) {
		a, c := newProfileApp(t, "okta", func(_ *app, cfg *bff.Config) { cfg.Provider.SenderConstraint = "dpop" })
		a.signedIn()
		a.signedIn()
		if n := len(c.toEnd("/v1/par")); n != 3 { // the first time without it
			t.Errorf("%d pushed requests for two logins", n)
		}
	})
	t.Run("Entra needs the scope of the API", func(t *testing.T) {
		a, _ := newProfileApp(t, "entra", func(_ *app, cfg *bff.Config) {
			cfg.Provider.Scopes = []string{"openid", "api://orders/read"}
		})
		// the real service needs no parameter for one API; this one is strict
		wantPage(t, a.browser().SignIn("alice", ""), 502, "login_refused")
		if !strings.Contains(a.logs.String(), "AADSTS28003") {
			t.Error("the log does not name the cause")
		}
	})
}

// toEnd returns the requests to paths that end with path.
func (c *calls) toEnd(path string) []call {
	c.mu.Lock()
	defer c.mu.Unlock()
	var found []call
	for _, call := range c.all {
		if strings.HasSuffix(call.path, path) {
			found = append(found, call)
		}
	}
	return found
}
