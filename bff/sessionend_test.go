package bff_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// end returns the expiry of a browser's session as the app sees it.
func (a *app) end(resp interface{ Decode(testing.TB, any) }) (expires, idle time.Time) {
	a.t.Helper()
	var got sessionBody
	resp.Decode(a.t, &got)
	if !got.Authenticated {
		a.t.Fatal("no session")
	}
	return got.Session.ExpiresAt, got.Session.IdleExpiresAt
}

func near(a, b time.Time) bool { return a.Sub(b).Abs() < 30*time.Second }

func TestProviderLimitsTheSessionLifetime(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	now := time.Now()
	unix := func(d time.Duration) any { return now.Add(d).Unix() }
	for name, test := range map[string]struct {
		expiry, refresh any // session_expiry, refresh_token_expires_in; nil: absent
		want            time.Duration
	}{
		"neither":                       {nil, nil, 12 * time.Hour},
		"session_expiry":                {unix(time.Hour), nil, time.Hour},
		"beyond max_lifetime":           {unix(100 * time.Hour), 1e6, 12 * time.Hour},
		"refresh_token_expires_in":      {nil, 1800, 30 * time.Minute},
		"the earlier of both":           {unix(time.Hour), 1800, 30 * time.Minute},
		"a refresh token's end as text": {nil, "1800", 30 * time.Minute}, // some providers write expires_in as a string
		"a fraction": {
			json.Number(jsonInt(now.Add(time.Hour).Unix()) + ".5"), 1800.5, 30 * time.Minute,
		},
		"junk: texts":                      {"soon", "soon", 12 * time.Hour},
		"junk: a date as text":             {now.Add(time.Hour).Format(time.RFC3339), "30m", 12 * time.Hour},
		"junk: zero":                       {0, 0, 12 * time.Hour},
		"junk: negative":                   {-1, -1, 12 * time.Hour},
		"junk: a number of seconds":        {3600, nil, 12 * time.Hour},
		"junk: booleans":                   {true, false, 12 * time.Hour},
		"junk: a list and an object":       {[]any{unix(time.Hour)}, map[string]any{"seconds": 60}, 12 * time.Hour},
		"junk: huge":                       {json.Number("1e300"), json.Number("1e300"), 12 * time.Hour},
		"junk: milliseconds since 1970":    {json.Number(jsonInt(now.Add(time.Hour).UnixMilli())), nil, 12 * time.Hour},
		"null":                             {json.RawMessage("null"), json.RawMessage("null"), 12 * time.Hour},
		"names in another case of letters": {nil, nil, 12 * time.Hour},
	} {
		a.provider.SetHooks(devidp.Hooks{
			EditIDToken: func(_, claims map[string]any) {
				if test.expiry != nil {
					claims["session_expiry"] = test.expiry
				} else {
					claims["Session_Expiry"] = now.Add(time.Minute).Unix()
				}
			},
			EditTokenResponse: func(_ string, _ int, body map[string]any) {
				if test.refresh != nil {
					body["refresh_token_expires_in"] = test.refresh
				} else {
					body["Refresh_Token_Expires_In"] = 60
				}
			},
		})
		resp := a.signedIn().Fetch("GET", "/bff/session")
		expires, idle := a.end(resp)
		if want := now.Add(test.want); !near(expires, want) {
			t.Errorf("%s: session expires at +%v, want +%v", name, expires.Sub(now), test.want)
		}
		if idle.After(expires) {
			t.Errorf("%s: idle timeout at +%v, want at most the expiry +%v", name, idle.Sub(now), expires.Sub(now))
		}
		var user struct{ User map[string]any }
		resp.Decode(t, &user)
		if _, ok := user.User["session_expiry"]; ok {
			t.Errorf("%s: session_expiry is visible as a claim of the user", name)
		}
	}
	a.provider.Behave()
}

func jsonInt(n int64) string { b, _ := json.Marshal(n); return string(b) }

func TestRefreshUpdatesTheSessionExpiry(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	a := newApp(t, nil)
	now := time.Now()
	b := a.signedIn()
	for i, step := range []struct {
		expiry, refresh any
		want            time.Duration
	}{
		{nil, 600, 10 * time.Minute},
		{nil, 1800, 30 * time.Minute},
		{nil, nil, 12 * time.Hour}, // a new refresh token of unknown lifetime
		{now.Add(2 * time.Hour).Unix(), nil, 2 * time.Hour},
		{now.Add(20 * time.Hour).Unix(), nil, 2 * time.Hour}, // the session is over
		{nil, 36000, 2 * time.Hour},
		{"soon", 300, 5 * time.Minute},
	} {
		a.provider.SetHooks(devidp.Hooks{
			EditIDToken: func(_, claims map[string]any) {
				if step.expiry != nil {
					claims["session_expiry"] = step.expiry
				}
			},
			EditTokenResponse: func(_ string, _ int, body map[string]any) {
				if step.refresh != nil {
					body["refresh_token_expires_in"] = step.refresh
				}
			},
		})
		if i >= 5 {
			time.Sleep(2100 * time.Millisecond) // until another forced refresh is allowed
		}
		got, _ := a.end(b.Fetch("POST", "/bff/session/refresh"))
		if want := now.Add(step.want); !near(got, want) {
			t.Errorf("refresh %d: session expires at +%v, want +%v", i+1, got.Sub(now), step.want)
		}
		if shown, _ := a.end(b.Fetch("GET", "/bff/session")); !shown.Equal(got) {
			t.Errorf("refresh %d: /bff/session shows %v, want %v", i+1, shown, got)
		}
	}
	a.provider.SetHooks(devidp.Hooks{
		EditTokenResponse: func(_ string, _ int, body map[string]any) { body["refresh_token_expires_in"] = 1 },
	})
	time.Sleep(2100 * time.Millisecond)
	wantOK(t, b.Fetch("POST", "/bff/session/refresh"))
	waitFor(t, "the session has ended with its refresh token", func() bool {
		return b.Fetch("GET", "/api/x").StatusCode == 401
	})
	a.provider.Behave()
}

// The session_expiry of the ID token has already passed, so no session starts.
func TestLoginWithAnExpiredSessionExpiryIsRefused(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	a.provider.SetHooks(devidp.Hooks{
		EditIDToken: func(_, claims map[string]any) { claims["session_expiry"] = time.Now().Add(-time.Minute).Unix() },
	})
	t.Cleanup(a.provider.Behave)
	b := a.browser()
	wantPage(t, b.SignIn("alice", ""), 403, "signed_out_meanwhile")
	a.wantSession(b, "")
	a.wantNoLiveRefreshTokens("a login that was refused")
}
