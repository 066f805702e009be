package devidp_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

func TestHooksBreakOneThingEach(t *testing.T) {
	o := newOP(t, nil)
	idToken := func() string { return o.signIn("alice").Extra("id_token").(string) }
	broken := func(header, claims map[string]any) (string, error) {
		header["alg"] = "none"
		input, err := devidp.SigningInput(header, claims)
		return input + ".", err
	}
	for _, test := range []struct {
		name  string
		hooks devidp.Hooks
		wrong func() bool
	}{
		{"EditDiscovery", devidp.Hooks{EditDiscovery: func(m map[string]any) { m["issuer"] = "x" }}, func() bool {
			_, err := oidc.NewProvider(o.ctx, o.issuer)
			return err != nil
		}},
		{"EditJWKS", devidp.Hooks{EditJWKS: func(set map[string]any) { set["keys"] = []any{} }}, func() bool {
			found, err := oidc.NewProvider(o.ctx, o.issuer)
			if err != nil {
				t.Fatal(err)
			}
			_, err = found.Verifier(&oidc.Config{ClientID: "web"}).Verify(o.ctx, idToken())
			return err != nil
		}},
		{"EditCallback", devidp.Hooks{EditCallback: func(q url.Values) {
			q.Set("iss", "x")
			q.Add("state",
				"twice")
		}}, func() bool {
			answer := o.authorize("alice", o.authURL())
			return answer.Get("iss") == "x" && len(answer["state"]) == 2
		}},
		{"EditCallback of an error", devidp.Hooks{EditCallback: func(q url.Values) { q.Del("iss") }}, func() bool {
			answer := o.authorize("alice", o.authURL(param("response_type", "token")))
			return answer.Get("error") != "" && !answer.Has("iss")
		}},
		{"EditIDToken", devidp.Hooks{EditIDToken: func(_, c map[string]any) { c["aud"] = "other" }}, func() bool {
			_, err := o.verifier.Verify(o.ctx, idToken())
			return err != nil
		}},
		{"SignIDToken", devidp.Hooks{SignIDToken: broken}, func() bool {
			_, err := o.verifier.Verify(o.ctx, idToken())
			return err != nil
		}},
		{"EditAccessToken", devidp.Hooks{EditAccessToken: func(h,
			c map[string]any) {
			h["typ"] = "JWT"
			c["aud"] = "other"
		}}, func() bool {
			header, claims := read(t, o.signIn("alice").AccessToken)
			return header["typ"] == "JWT" && claims["aud"] == "other"
		}},
		{"EditTokenResponse", devidp.Hooks{EditTokenResponse: func(grantType string, status int,
			body map[string]any) {
			if grantType == "authorization_code" && status == 200 {
				body["token_type"] = "mac"
			}
		}}, func() bool { return o.signIn("alice").Type() != "Bearer" }},
		{"EditTokenResponse of an error", devidp.Hooks{EditTokenResponse: func(_ string, status int,
			body map[string]any) {
			if status == 400 {
				body["error"] = "temporarily_unavailable"
			}
		}}, func() bool {
			_, body := o.post("/token", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {"x"}}, nil)
			return body["error"] == "temporarily_unavailable"
		}},
		{"EditUserinfo", devidp.Hooks{EditUserinfo: func(c map[string]any) { c["sub"] = "mallory" }}, func() bool {
			_, body := o.userinfo("Bearer", o.signIn("alice").AccessToken, nil)
			return body["sub"] == "mallory"
		}},
		{"EditLogoutToken", devidp.Hooks{EditLogoutToken: func(_, c map[string]any) { delete(c, "events") }},
			func() bool { return !o.takesLogoutToken() }},
		{"SignLogoutToken", devidp.Hooks{SignLogoutToken: broken}, func() bool { return !o.takesLogoutToken() }},
		{"KeepRefreshTokens", devidp.Hooks{KeepRefreshTokens: true}, func() bool {
			token := o.signIn("alice").RefreshToken
			form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token}}
			for range 2 {
				if status, body := o.post("/token", form, nil); status != 200 || body["refresh_token"] != nil {
					return false
				}
			}
			return true
		}},
		{"SkipPKCE", devidp.Hooks{SkipPKCE: true}, func() bool {
			_, err := o.oauth.Exchange(o.ctx, o.authorize("alice", o.oauth.AuthCodeURL("")).Get("code"))
			return err == nil
		}},
		{"Intercept", devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if strings.HasSuffix(r.URL.Path, "/userinfo") {
				http.Error(w, "oops", http.StatusServiceUnavailable)
				return
			}
			next.ServeHTTP(w, r)
		}}, func() bool {
			resp, _ := o.userinfo("Bearer", o.signIn("alice").AccessToken, nil)
			return resp.StatusCode == 503
		}},
	} {
		if test.wrong() {
			t.Errorf("%s: wrong without the hook", test.name)
		}
		o.SetHooks(test.hooks)
		if !test.wrong() {
			t.Errorf("%s: no effect", test.name)
		}
		o.SetHooks(devidp.Hooks{})
		if test.wrong() {
			t.Errorf("%s: wrong still, after the hook was taken away", test.name)
		}
	}
}

func (o *op) takesLogoutToken() bool {
	o.t.Helper()
	token, err := o.LogoutToken("web", "alice", "some-sid")
	if err != nil {
		o.t.Fatal(err)
	}
	_, err = o.verifier.VerifyLogout(o.ctx, token)
	return err == nil
}

func TestALogoutTokenMayNameAUserOrASession(t *testing.T) {
	o := newOP(t, nil)
	for _, test := range []struct{ sub, sid string }{{"alice", ""}, {"", "some-sid"}} {
		raw, err := o.LogoutToken("web", test.sub, test.sid)
		if err != nil {
			t.Fatal(err)
		}
		token, err := o.verifier.VerifyLogout(o.ctx, raw)
		if err != nil || token.Subject != test.sub || token.SessionID != test.sid {
			t.Errorf("%+v: got %+v, %v", test, token, err)
		}
	}
}

func TestResponsesCanBeDelayed(t *testing.T) {
	o := newOP(t, nil)
	token := o.signIn("alice")
	arrived, release := make(chan struct{}), make(chan struct{})
	o.SetHooks(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.PostFormValue("grant_type") == "refresh_token" {
			close(arrived)
			<-release
		}
		next.ServeHTTP(w, r)
	}})
	done := make(chan error)
	go func() {
		_, err := o.refresh(token.RefreshToken)
		done <- err
	}()
	<-arrived
	select {
	case err := <-done:
		t.Fatalf("answered before it was released: %v", err)
	default:
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestResponsesCanBeLost(t *testing.T) {
	o := newOP(t, nil)
	token := o.signIn("alice")
	o.SetHooks(devidp.Hooks{Intercept: func(_ http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler)
	}})
	if _, err := o.refresh(token.RefreshToken); err == nil {
		t.Error("the answer arrived")
	}
	o.SetHooks(devidp.Hooks{})
	_, err := o.refresh(token.RefreshToken)
	wantError(t, err, "invalid_grant")
}

func TestAdvertisedEndpointsExist(t *testing.T) {
	o := newOP(t, nil)
	resp, page := o.visit(o.issuer+"/.well-known/openid-configuration", nil)
	var metadata map[string]any
	if err := json.Unmarshal([]byte(page), &metadata); err != nil || resp.StatusCode != 200 {
		t.Fatalf("got %d, %v:\n%s", resp.StatusCode, err, page)
	}
	for name, value := range metadata {
		uri, _ := value.(string)
		if !strings.HasSuffix(name, "_endpoint") && name != "jwks_uri" {
			continue
		}
		if resp, _ := o.visit(uri, nil); resp.StatusCode == 404 {
			t.Errorf("%s: nothing is at %s", name, uri)
		}
	}
	for _, name := range []string{"authorization_response_iss_parameter_supported", "backchannel_logout_supported",
		"backchannel_logout_session_supported"} {
		if metadata[name] != true {
			t.Errorf("%s: got %v", name, metadata[name])
		}
	}
	if got := o.Stats().DiscoveryFetches; got != 2 { // and the one of go-oidc
		t.Errorf("stats: %d fetches, want 2", got)
	}
}
