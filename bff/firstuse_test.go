package bff_test

import (
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

// The access token is not used before all checks of the ID token have passed.
func TestAllChecksOfAnIDTokenPrecedeUserInfo(t *testing.T) {
	t.Parallel()
	a := newApp(t, withUserInfo)
	claim := func(name string, value any) func(header, claims map[string]any) {
		return func(_, claims map[string]any) { setMember(claims, name, value) }
	}
	for name, test := range map[string]struct {
		query string
		edit  func(header, claims map[string]any)
	}{
		"another nonce":       {"", claim("nonce", "x")},
		"no nonce":            {"", claim("nonce", missing{})},
		"another sub's nonce": {"", claim("nonce", 7)},
		"a lower acr":         {"acr_values=gold", claim("acr", "silver")},
		"no acr":              {"acr_values=gold", claim("acr", missing{})},
		"an old sign-in":      {"max_age=60", claim("auth_time", time.Now().Add(-time.Hour).Unix())},
		"no auth_time":        {"max_age=60", claim("auth_time", missing{})},
		"another aud":         {"", claim("aud", "other")},
		"at_hash":             {"", claim("at_hash", "AAAAAAAAAAAAAAAAAAAAAA")},
		"unknown kid":         {"", func(header, _ map[string]any) { header["kid"] = "unknown" }},
	} {
		c := a.recordCalls(devidp.Hooks{EditIDToken: test.edit})
		b := a.browser()
		if got := b.SignIn("alice", test.query).StatusCode; got == 303 {
			t.Errorf("%s: signed in", name)
		}
		if n := len(c.to("/userinfo")); n != 0 {
			t.Errorf("%s: %d userinfo requests, want none", name, n)
		}
		a.wantSession(b, "")
	}
	t.Run("another user than that of the session", func(t *testing.T) {
		a := newApp(t, func(a *app, cfg *bff.Config) { cfg.Provider.UserInfo = true })
		b := a.signedIn()
		login := b.Navigate("/bff/login", "Sec-Fetch-Site", "cross-site")
		c := a.recordCalls(devidp.Hooks{})
		resp := b.Navigate(authenticateAs(t, a, b, "bob", login.Location(t).String()), "Sec-Fetch-Site", "cross-site")
		wantPage(t, b.Navigate(relayURL(t, resp), "Sec-Fetch-Site", "same-origin"), 403, "other_account")
		if n := len(c.to("/userinfo")); n != 0 {
			t.Errorf("%d userinfo requests, want none", n)
		}
		a.wantSession(b, "alice")
	})
	c := a.recordCalls(devidp.Hooks{})
	a.signedIn()
	if n := len(c.to("/userinfo")); n != 1 {
		t.Errorf("%d userinfo requests of a valid login, want 1", n)
	}
}

// If offline_access was requested and no refresh token is issued, one log line
// says so.
func TestMissingRefreshTokenIsLoggedOnce(t *testing.T) {
	t.Parallel()
	const message = "provider issued no refresh token though offline_access was requested; " +
		"sessions end with their access token"
	none := devidp.Hooks{
		EditTokenResponse: func(_ string, _ int, body map[string]any) { delete(body, "refresh_token") },
	}
	a := newApp(t, nil)
	a.signedIn()
	a.logs.wantNo(t, message)
	for _, value := range []any{missing{}, nil, "", 7} {
		a.recordCalls(devidp.Hooks{
			EditTokenResponse: func(_ string, _ int, body map[string]any) { setMember(body, "refresh_token", value) },
		})
		a.signedIn()
	}
	if n := len(a.logs.lines(t, message)); n != 1 {
		t.Errorf("%d log lines, want 1", n)
	}
	t.Run("not if offline_access was not requested", func(t *testing.T) {
		t.Parallel()
		a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Provider.Scopes = []string{"openid", "email"} })
		a.recordCalls(none)
		a.signedIn()
		a.logs.wantNo(t, message)
	})
	t.Run("not for a failed login", func(t *testing.T) {
		t.Parallel()
		a := newApp(t, nil)
		hooks := none
		hooks.EditIDToken = func(_, claims map[string]any) { claims["nonce"] = "x" }
		a.recordCalls(hooks)
		wantPage(t, a.browser().SignIn("alice", ""), 502, "login_invalid")
		a.logs.wantNo(t, message)
	})
}
