package bff_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/devop"
)

// RFC 6749 6: a refresh asks for no scope that was not granted.
func TestARefreshAsksForNoMoreThanWasGranted(t *testing.T) {
	a := newTargetApp(t, nil)
	c := a.takeDown(devop.Hooks{EditTokenResponse: func(grant string, _ int, body map[string]any) {
		if grant == "authorization_code" {
			body["scope"] = "openid profile offline_access" // the user did not grant email
		}
	}})
	b := a.signedIn()
	wantOK(t, b.Fetch("POST", "/bff/session/refresh"))
	for _, call := range c.to("/token") {
		if call.form.Get("grant_type") == "refresh_token" && slices.Contains(strings.Fields(call.form.Get("scope")), "email") {
			t.Errorf("asked for %q", call.form.Get("scope"))
		}
	}
}

// The same with a provider that refuses such a refresh, as RFC 6749 5.2 has it.
func TestAUserWhoGrantsLessIsSignedInAndStaysSo(t *testing.T) {
	api := tokenAPI(t)
	a := newAppWith(t, func(c *devop.Config) { c.Scopes = []string{"openid", "profile", "offline_access", "few:read"} }, func(_ *app, cfg *bff.Config) {
		cfg.Routes = []bff.Route{{Path: "/own/", Upstream: []string{api.URL}, Token: "user"}, {Path: "/few/", Upstream: []string{api.URL}, Token: "user", Scopes: []string{"few:read"}}}
	})
	b := a.browser()
	if answer := b.SignIn("alice", ""); answer.StatusCode != 303 {
		t.Errorf("sign in: got %d\n%s", answer.StatusCode, a.logs.lines(t, "request"))
	}
	if answer := b.Fetch("POST", "/bff/session/refresh"); answer.StatusCode != 200 {
		t.Errorf("refresh: got %d", answer.StatusCode)
	}
}

// RFC 7519 2: a NumericDate is a number. iat and auth_time in quotes are refused.
func TestAnExpiryInQuotesIsNone(t *testing.T) {
	a := newApp(t, nil)
	quoted := func(_, claims map[string]any) { claims["exp"] = fmt.Sprint(claims["exp"]) }
	b := a.signedIn()
	a.takeDown(devop.Hooks{EditIDToken: quoted})
	wantPage(t, a.browser().SignIn("alice", ""), 502, "login_invalid")
	a.provider.Behave()
	wantRefused(t, "a logout token", a.tellLogout(url.Values{"logout_token": {a.logoutToken("alice", "", devop.Hooks{EditLogoutToken: quoted})}}), "bad_logout_token")
	a.wantSession(b, "alice")
}

// RFC 9110 11.2: the value of an auth-param is a token or a quoted string.
func TestARejectionWithoutQuotesIsOneToo(t *testing.T) {
	for _, challenge := range []string{"Bearer error=invalid_token", `Bearer realm="api", error=invalid_token, error_description="it has expired"`} {
		echo, rejected := rejectingWith(t, challenge)
		a, b := routed(t, bff.Route{Path: "/strict/", Token: "user", Upstream: []string{echo.URL}})
		if answer := b.Fetch("GET", "/strict/x"); answer.StatusCode != 200 || a.provider.Refreshes() != 1 {
			t.Errorf("%s: got %d after %d rejections and %d refreshes", challenge, answer.StatusCode, *rejected, a.provider.Refreshes())
		}
	}
}

// rejectingWith is an upstream that rejects the first token.
func rejectingWith(t *testing.T, challenge string) (*bfftest.Echo, *int) {
	echo, rejected := bfftest.NewEcho(t), new(int)
	echo.Answer = func(w http.ResponseWriter, _ *http.Request) {
		if *rejected++; *rejected == 1 {
			w.Header().Set("WWW-Authenticate", challenge)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}
	return echo, rejected
}

// draft-ietf-oauth-refresh-token-expiration: what the provider says of the end of the refresh token, or of the authorization, is that of the session.
func TestTheProvidersEndOfTheRefreshTokenIsTheSessions(t *testing.T) {
	for _, member := range []string{"refresh_token_timeout", "authorization_expires_in"} {
		a := newApp(t, nil)
		a.takeDown(devop.Hooks{EditTokenResponse: func(_ string, _ int, body map[string]any) { body[member] = 600 }})
		b := a.signedIn()
		var got sessionBody
		b.Fetch("GET", "/bff/session").Decode(t, &got)
		if left := time.Until(got.Session.ExpiresAt); left > 11*time.Minute {
			t.Errorf("%s is 600: the session ends in %v", member, left.Round(time.Second))
		}
	}
}

// RFC 9440 4: what a client says of its certificate is not what a proxy says of it.
func TestAClientCannotSayWhichCertificateItShowed(t *testing.T) {
	a := newApp(t, nil)
	b := a.signedIn()
	for _, name := range []string{"Client-Cert", "Client-Cert-Chain"} {
		for _, path := range []string{"/api/x", "/public/x"} {
			if got := echoed(t, b.Fetch("GET", path, name, ":Zm9yZ2Vk:")).Header.Values(name); len(got) > 0 {
				t.Errorf("%s: the upstream got %s: %q", path, name, got)
			}
		}
	}
}

// FAPI 2.0 5.4: RSA keys have 2048 bits or more, the provider's as well.
func TestFAPI2TakesNoSmallKeyOfTheProviders(t *testing.T) {
	keys, edit := withKeys(ecKey(t))
	small := rsaKey(t, 1024)
	a := newAppWith(t, func(c *devop.Config) { keys(c); c.SigningAlgorithm = "PS256" }, func(a *app, cfg *bff.Config) {
		edit(a, cfg)
		cfg.Provider.FAPI2 = true
	})
	a.takeDown(devop.Hooks{
		EditJWKS: func(set map[string]any) {
			set["keys"] = []any{jose.JSONWebKey{Key: small.Public(), KeyID: "small", Use: "sig"}}
		},
		SignIDToken: func(header, claims map[string]any) (string, error) {
			header["alg"], header["kid"] = "PS256", "small"
			input, err := devop.SigningInput(header, claims)
			if err != nil {
				return "", err
			}
			sum := sha256.Sum256([]byte(input))
			signature, err := rsa.SignPSS(rand.Reader, small, crypto.SHA256, sum[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
			return input + "." + base64.RawURLEncoding.EncodeToString(signature), err
		},
	})
	if answer := a.browser().SignIn("alice", ""); answer.StatusCode == 303 {
		t.Error("an ID token is taken that is signed by a key of 1024 bits")
	}
}
