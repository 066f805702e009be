package devidp_test

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

// read returns the header and the claims of a JWT, without checking anything.
func read(t *testing.T, raw any) (header, claims map[string]any) {
	t.Helper()
	parts := strings.Split(raw.(string), ".")
	if len(parts) != 3 {
		t.Fatalf("not a JWT: %v", raw)
	}
	for i, into := range []*map[string]any{&header, &claims} {
		b, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, into); err != nil {
			t.Fatal(err)
		}
	}
	return header, claims
}

func (o *op) userinfo(scheme, token string, header http.Header) (*http.Response, map[string]any) {
	o.t.Helper()
	req, err := http.NewRequestWithContext(o.ctx, http.MethodGet, o.issuer+"/userinfo", nil)
	if err != nil {
		o.t.Fatal(err)
	}
	if header != nil {
		req.Header = header
	}
	if scheme != "" {
		req.Header.Set("Authorization", scheme+" "+token)
	}
	resp, err := o.http.Do(req)
	if err != nil {
		o.t.Fatal(err)
	}
	defer resp.Body.Close()
	body := make(map[string]any)
	if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode == 200 && json.Unmarshal(b, &body) != nil {
		o.t.Fatalf("userinfo: got %q, %v", b, err)
	}
	return resp, body
}

func TestAccessTokensFollowRFC9068(t *testing.T) {
	o := newOP(t, func(c *devidp.Config) { c.AccessTokenTTL, c.Audience = time.Minute, "orders" })
	token := o.signIn("alice", param("acr_values", "gold"))
	header, claims := read(t, token.AccessToken)
	if header["typ"] != "at+jwt" || header["alg"] != "RS256" || header["kid"] == "" {
		t.Errorf("header: got %v", header)
	}
	for name, want := range map[string]any{
		"iss": o.issuer, "aud": "orders", "sub": "alice", "client_id": "web", "scope": "openid profile email",
		"acr": "gold",
	} {
		if claims[name] != want {
			t.Errorf("%s: got %v, want %v", name, claims[name], want)
		}
	}
	if claims["exp"].(float64)-claims["iat"].(float64) != 60 || claims["jti"] == "" || claims["auth_time"] == nil {
		t.Errorf("claims: got %v", claims)
	}
	if token.ExpiresIn != 60 {
		t.Errorf("expires_in: got %d", token.ExpiresIn)
	}
	_, machine := o.post("/token", url.Values{"grant_type": {"client_credentials"}}, nil)
	if _, claims := read(t, machine["access_token"]); claims["sub"] != "web" || claims["client_id"] != "web" ||
		claims["sid"] != nil ||
		claims["auth_time"] != nil {
		t.Errorf("a client's own: got %v", claims)
	}
}

func TestScopesAreLimitedByClientAndUser(t *testing.T) {
	o := newOP(t, func(c *devidp.Config) {
		c.Clients[0].Scopes = []string{"openid", "profile", "orders:read", "api"}
		c.Scopes = []string{"openid", "orders:read", "email"}
	})
	o.oauth.Scopes = []string{"openid", "profile", "email", "orders:read", "admin", "openid"}
	if got := o.signIn("alice").Extra("scope"); got != "openid orders:read" {
		t.Errorf("got %q", got)
	}
	if _, body := o.post("/token", url.Values{"grant_type": {"client_credentials"}, "scope": {"api admin"}},
		nil); body["scope"] != "api" {
		t.Errorf("a client's own: got %v", body["scope"])
	}
}

func TestRefreshWithFewerScopesKeepsTheGrant(t *testing.T) {
	o := newOP(t, nil)
	first := o.signIn("alice")
	_, less := o.post(
		"/token",
		url.Values{"grant_type": {"refresh_token"}, "refresh_token": {first.RefreshToken}, "scope": {"openid"}},
		nil,
	)
	if _, claims := read(t, less["access_token"]); less["scope"] != "openid" || claims["scope"] != "openid" {
		t.Errorf("less: got %v", less)
	}
	refresh, _ := less["refresh_token"].(string)
	_, more := o.post(
		"/token",
		url.Values{"grant_type": {"refresh_token"}, "refresh_token": {refresh}, "scope": {"openid admin"}},
		nil,
	)
	if more["error"] != "invalid_scope" {
		t.Errorf("more: got %v", more)
	}
	_, all := o.post("/token", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {refresh}}, nil)
	if all["scope"] != "openid profile email" {
		t.Errorf("all again: got %v", all)
	}
}

func TestTokensAreForTheRequestedResources(t *testing.T) {
	o := newOP(t, nil)
	verifier := oauth2.GenerateVerifier()
	target := o.oauth.AuthCodeURL(
		"",
		oauth2.S256ChallengeOption(verifier),
	) + "&resource=https%3A%2F%2Fa.example&resource=https%3A%2F%2Fb.example"
	code := o.authorize("alice", target).Get("code")
	token, err := o.oauth.Exchange(o.ctx, code, oauth2.VerifierOption(verifier))
	if err != nil {
		t.Fatal(err)
	}
	if _, claims := read(t, token.AccessToken); !reflect.DeepEqual(
		claims["aud"],
		[]any{"https://a.example", "https://b.example"},
	) {
		t.Errorf("both: got %v", claims["aud"])
	}
	refresh := url.Values{
		"grant_type":    {"refresh_token"},
		"refresh_token": {token.RefreshToken},
		"resource":      {"https://evil.example"},
	}
	if _, body := o.post("/token", refresh, nil); body["error"] != "invalid_target" {
		t.Errorf("another: got %v", body)
	}
	refresh.Set("resource", "https://b.example")
	_, body := o.post("/token", refresh, nil)
	if _, claims := read(t, body["access_token"]); claims["aud"] != "https://b.example" {
		t.Errorf("one of them: got %v", claims["aud"])
	}
	if _, body := o.post("/token", url.Values{"grant_type": {"client_credentials"}, "resource": {"orders"}},
		nil); body["error"] != "invalid_target" {
		t.Errorf("no URI: got %v", body)
	}
}

func TestClaimsOfARefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOPInBubble(t, nil)
		first := o.signIn("alice")
		_, before := read(t, first.Extra("id_token"))
		time.Sleep(time.Minute)
		second, err := o.refresh(first.RefreshToken)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := o.verifier.Verify(o.ctx, second.Extra("id_token").(string)); err != nil {
			t.Error(err)
		}
		_, after := read(t, second.Extra("id_token"))
		for _, name := range []string{"iss", "sub", "aud", "sid", "auth_time", "acr"} { // OpenID Connect Core 12.2
			if !reflect.DeepEqual(before[name], after[name]) {
				t.Errorf("%s: got %v, want %v", name, after[name], before[name])
			}
		}
		if after["nonce"] != nil || after["iat"].(float64)-before["iat"].(float64) != 60 {
			t.Errorf("got %v", after)
		}
	})
}

func TestExpiredStateIsRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOPInBubble(t, func(c *devidp.Config) { c.RefreshTokenTTL, c.AccessTokenTTL = time.Hour, time.Minute })
		verifier := oauth2.GenerateVerifier()
		o.post("/token", url.Values{"grant_type": {"client_credentials"}}, o.proof(newKey(t), nil))
		code := o.authorize("alice", o.oauth.AuthCodeURL("", oauth2.S256ChallengeOption(verifier))).Get("code")
		time.Sleep(61 * time.Second)
		_, err := o.oauth.Exchange(o.ctx, code, oauth2.VerifierOption(verifier))
		wantError(t, err, "invalid_grant")

		token := o.signIn("alice")
		time.Sleep(59 * time.Second)
		if resp, _ := o.userinfo("Bearer", token.AccessToken, nil); resp.StatusCode != 200 {
			t.Errorf("an access token in time: got %d", resp.StatusCode)
		}
		time.Sleep(2 * time.Second)
		if resp, _ := o.userinfo("Bearer", token.AccessToken, nil); resp.StatusCode != 401 {
			t.Errorf("an access token that has expired: got %d", resp.StatusCode)
		}
		for range 3 { // rotation does not extend the family's life
			time.Sleep(19 * time.Minute)
			if token, err = o.refresh(token.RefreshToken); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(3 * time.Minute)
		_, err = o.refresh(token.RefreshToken)
		wantError(t, err, "invalid_grant")
		if got := o.authorize("", o.authURL(param("prompt", "none"))); got.Get("error") != "login_required" {
			t.Errorf("the session: got %v", got)
		}
		o.signIn("bob")
		if got := o.Remembered(); got != 4 { // bob's session, code, refresh token and access token
			t.Errorf("%d things are remembered, want 4", got)
		}
	})
}

func TestRefreshGraceIsForLostResponses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOPInBubble(t, func(c *devidp.Config) { c.RefreshGrace = 10 * time.Second })
		late := o.signIn("alice")
		if _, err := o.refresh(late.RefreshToken); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		_, err := o.refresh(late.RefreshToken)
		wantError(t, err, "invalid_grant")

		first := o.signIn("alice")
		second, err := o.refresh(first.RefreshToken)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := o.refresh(second.RefreshToken); err != nil {
			t.Fatal(err)
		}
		_, err = o.refresh(first.RefreshToken) // its successor was used, so the response had arrived
		wantError(t, err, "invalid_grant")

		o.SetRefreshGrace(0)
		strict := o.signIn("alice")
		if _, err := o.refresh(strict.RefreshToken); err != nil {
			t.Fatal(err)
		}
		_, err = o.refresh(strict.RefreshToken)
		wantError(t, err, "invalid_grant")
		if got := o.Stats().Reuses; got != 3 {
			t.Errorf("stats: %d reuses, want 3", got)
		}
	})
}

func TestFirstAttemptUsesUpACode(t *testing.T) {
	o := newOP(t, func(c *devidp.Config) {
		c.Clients = append(c.Clients, devidp.Client{ID: "other", Secret: "s", RedirectURIs: []string{redirectURI}})
	})
	verifier := oauth2.GenerateVerifier()
	newCode := func() string {
		return o.authorize("alice", o.oauth.AuthCodeURL("", oauth2.S256ChallengeOption(verifier))).Get("code")
	}
	code := newCode()
	other := o.oauth
	other.ClientID, other.ClientSecret = "other", "s"
	_, err := other.Exchange(o.ctx, code, oauth2.VerifierOption(verifier))
	wantError(t, err, "invalid_grant")
	if _, err := o.oauth.Exchange(o.ctx, code, oauth2.VerifierOption(verifier)); err != nil {
		t.Errorf("after another client tried: %v", err)
	}

	code = newCode()
	_, err = o.oauth.Exchange(o.ctx, code, oauth2.VerifierOption(oauth2.GenerateVerifier()))
	wantError(t, err, "invalid_grant")
	_, err = o.oauth.Exchange(o.ctx, code, oauth2.VerifierOption(verifier))
	wantError(t, err, "invalid_grant")

	elsewhere := o.oauth
	elsewhere.RedirectURL = "http://localhost:8080/"
	_, err = elsewhere.Exchange(o.ctx, newCode(), oauth2.VerifierOption(verifier))
	wantError(t, err, "invalid_grant")
}

func TestSecondUseOfACodeRevokesItsTokens(t *testing.T) {
	o := newOP(t, nil)
	verifier := oauth2.GenerateVerifier()
	code := o.authorize("alice", o.oauth.AuthCodeURL("", oauth2.S256ChallengeOption(verifier))).Get("code")
	token, err := o.oauth.Exchange(o.ctx, code, oauth2.VerifierOption(verifier))
	if err != nil {
		t.Fatal(err)
	}
	_, err = o.oauth.Exchange(o.ctx, code, oauth2.VerifierOption(verifier))
	wantError(t, err, "invalid_grant")
	if resp, _ := o.userinfo("Bearer", token.AccessToken, nil); resp.StatusCode != 401 {
		t.Errorf("userinfo: got %d", resp.StatusCode)
	}
}

func TestUserinfoAcceptsAccessTokensOnly(t *testing.T) {
	o := newOP(t, nil)
	token := o.signIn("alice")
	_, machine := o.post("/token", url.Values{"grant_type": {"client_credentials"}, "scope": {"openid"}}, nil)
	for _, test := range []struct {
		name, scheme, token string
		status              int
		challenge           string
	}{
		{"right", "Bearer", token.AccessToken, 200, ""},
		{"a scheme in small letters", "bearer", token.AccessToken, 200, ""},
		{"nothing", "", "", 401, "Bearer"},
		{"an ID token", "Bearer", token.Extra("id_token").(string), 401, `Bearer error="invalid_token"`},
		{"a refresh token", "Bearer", token.RefreshToken, 401, `Bearer error="invalid_token"`},
		{"another scheme", "DPoP", token.AccessToken, 401, `Bearer error="invalid_token"`},
		{"a client's own", "Bearer", machine["access_token"].(string), 403,
			`Bearer error="insufficient_scope", scope="openid"`},
	} {
		resp, body := o.userinfo(test.scheme, test.token, nil)
		if resp.StatusCode != test.status || resp.Header.Get("WWW-Authenticate") != test.challenge {
			t.Errorf("%s: got %d, %q", test.name, resp.StatusCode, resp.Header.Get("WWW-Authenticate"))
		}
		if test.status == 200 &&
			(body["sub"] != "alice" || body["email"] != "alice@example.com" || body["name"] != "Alice Liddell") {
			t.Errorf("%s: got %v", test.name, body)
		}
	}
	o.oauth.Scopes = []string{oidc.ScopeOpenID}
	if _, body := o.userinfo("Bearer", o.signIn("alice").AccessToken, nil); len(body) != 1 || body["sub"] != "alice" {
		t.Errorf("with openid alone: got %v", body)
	}
}

func TestRevocation(t *testing.T) {
	o := newOP(t, func(c *devidp.Config) { c.Clients = append(c.Clients, devidp.Client{ID: "other", Secret: "s"}) })
	access, refresh := o.signIn("alice"), o.signIn("alice")
	revoke := func(token string, want int) {
		t.Helper()
		if status, body := o.post("/revoke", url.Values{"token": {token}}, nil); status != want {
			t.Errorf("got %d %v, want %d", status, body, want)
		}
	}
	web := o.oauth
	o.oauth.ClientID, o.oauth.ClientSecret = "other", "s"
	revoke(access.AccessToken, 200)
	revoke(refresh.RefreshToken, 200)
	o.oauth = web
	for name, token := range map[string]*oauth2.Token{"access": access, "refresh": refresh} {
		if resp, _ := o.userinfo("Bearer", token.AccessToken, nil); resp.StatusCode != 200 {
			t.Errorf("%s: another client could revoke it", name)
		}
	}
	revoke(access.AccessToken, 200)
	if resp, _ := o.userinfo("Bearer", access.AccessToken, nil); resp.StatusCode != 401 {
		t.Errorf("a revoked access token: got %d", resp.StatusCode)
	}
	if _, err := o.refresh(access.RefreshToken); err != nil {
		t.Errorf("its refresh token: %v", err)
	}
	revoke(refresh.RefreshToken, 200)
	if resp, _ := o.userinfo("Bearer", refresh.AccessToken, nil); resp.StatusCode != 401 {
		t.Errorf("the access token of a revoked refresh token: got %d", resp.StatusCode)
	}
	revoke("", 400)
	o.oauth.ClientSecret = "wrong"
	revoke(access.RefreshToken, 401)
	if got := o.Stats().Revocations; got != 4 {
		t.Errorf("stats: %d revocations, want 4", got)
	}
}

func TestRefreshTokensBelongToOneClient(t *testing.T) {
	o := newOP(t, func(c *devidp.Config) { c.Clients = append(c.Clients, devidp.Client{ID: "other", Secret: "s"}) })
	token := o.signIn("alice")
	web := o.oauth
	o.oauth.ClientID, o.oauth.ClientSecret = "other", "s"
	_, err := o.refresh(token.RefreshToken)
	wantError(t, err, "invalid_grant")
	o.oauth = web
	if _, err := o.refresh(token.RefreshToken); err != nil {
		t.Errorf("after another client tried: %v", err)
	}
}

func TestTokenRequestsAreCountedAndMalformedOnesRefused(t *testing.T) {
	o := newOP(t, nil)
	for name, test := range map[string]struct {
		form url.Values
		want string
	}{
		"no grant type":      {url.Values{}, "unsupported_grant_type"},
		"password":           {url.Values{"grant_type": {"password"}}, "unsupported_grant_type"},
		"a grant type twice": {url.Values{"grant_type": {"refresh_token", "refresh_token"}}, "invalid_request"},
		"an unknown code":    {url.Values{"grant_type": {"authorization_code"}, "code": {"x"}}, "invalid_grant"},
		"no refresh token":   {url.Values{"grant_type": {"refresh_token"}}, "invalid_grant"},
		"more than is needed": {url.Values{"grant_type": {"client_credentials"},
			"padding": {strings.Repeat("x", 70<<10)}}, "invalid_request"},
	} {
		if status, body := o.post("/token", test.form, nil); status != 400 || body["error"] != test.want ||
			body["error_description"] == "" {
			t.Errorf("%s: got %d %v, want %s", name, status, body, test.want)
		}
	}
	want := map[string]int{"unsupported": 2, "authorization_code": 1, "refresh_token": 1}
	if got := o.Stats().Tokens; !reflect.DeepEqual(got, want) {
		t.Errorf("stats: got %v, want %v", got, want)
	}
}

func TestPasswordGrant(t *testing.T) {
	o := newOP(t, func(c *devidp.Config) {
		c.Clients[0].NamesUsers, c.Clients[0].Scopes = true, []string{"openid", "orders:read"}
	})
	status, body := o.post(
		"/token",
		url.Values{"grant_type": {"password"}, "username": {"bob"}, "scope": {"orders:read orders:write"}},
		nil,
	)
	if status != 200 || body["scope"] != "orders:read" || body["refresh_token"] != nil || body["id_token"] != nil {
		t.Fatalf("got %d %v", status, body)
	}
	if header, claims := read(t, body["access_token"]); header["typ"] != "at+jwt" || claims["sub"] != "bob" ||
		claims["client_id"] == "bob" {
		t.Errorf("the token has %v %v", header, claims)
	}
	for _, user := range []string{"", "eve", "BOB"} {
		if status, body := o.post("/token", url.Values{"grant_type": {"password"}, "username": {user}},
			nil); status != 400 ||
			body["error"] != "invalid_grant" {
			t.Errorf("%q: got %d %v", user, status, body)
		}
	}
}

func TestNoOtherHostIsServed(t *testing.T) {
	o := newOP(t, nil)
	for host, want := range map[string]int{"evil.example": 421, "evil.example:8080": 421,
		"localhost.evil.example": 421, "127.0.0.1.evil.example": 421, "": 421, "localhost": 200,
		"app.localhost:1": 200, "[::1]:80": 200, "127.0.0.1": 200} {
		r := httptest.NewRequest("GET", o.issuer+"/jwks", nil)
		r.Host = host
		w := httptest.NewRecorder()
		if o.Provider.ServeHTTP(w, r); w.Code != want {
			t.Errorf("%q: got %d, want %d", host, w.Code, want)
		}
	}
}
