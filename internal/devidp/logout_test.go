package devidp_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/oauth2"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

func (o *op) logoutURL(q url.Values) string { return o.issuer + "/logout?" + q.Encode() }

func (o *op) sidOf(token *oauth2.Token) string {
	o.t.Helper()
	_, claims := read(o.t, token.Extra("id_token"))
	sid, _ := claims["sid"].(string)
	return sid
}

func TestWithoutAHintOfTheSessionTheUserIsAsked(t *testing.T) {
	o := newOP(t, nil)
	bobs := o.signIn("bob").Extra("id_token").(string)
	alice := o.signIn("alice", param("prompt", "login"))
	for name, q := range map[string]url.Values{
		"no hint":        {"client_id": {"web"}, "post_logout_redirect_uri": {afterLogout}, "state": {"s"}},
		"another's hint": {"id_token_hint": {bobs}, "post_logout_redirect_uri": {afterLogout}, "state": {"s"}},
	} {
		resp, page := o.visit(o.logoutURL(q), nil)
		if resp.StatusCode != 200 || !strings.Contains(page, "Alice Liddell") ||
			!strings.Contains(resp.Header.Get("Content-Security-Policy"),
				"form-action 'self' http://localhost:8080;") {
			t.Errorf(
				"%s: got %d with the policy %q:\n%s",
				name,
				resp.StatusCode,
				resp.Header.Get("Content-Security-Policy"),
				page,
			)
		}
		if len(o.Stats().LiveRefreshTokens) != 2 {
			t.Fatalf("%s: a session ended without a question", name)
		}
	}
	_, page := o.visit(
		o.logoutURL(url.Values{"client_id": {"web"}, "post_logout_redirect_uri": {afterLogout}, "state": {"s"}}),
		nil,
	)
	form := url.Values{}
	for _, m := range regexp.MustCompile(`type="hidden" name="(\w+)" value="([^"]*)"`).FindAllStringSubmatch(page,
		-1) {
		form.Set(m[1], m[2])
	}
	form.Set("sign_out", "no")
	o.visit(o.issuer+"/logout", form)
	if got := o.Stats().LiveRefreshTokens[o.sidOf(alice)]; got != 1 {
		t.Errorf("the user said no, and %d refresh tokens live", got)
	}
	form.Set("sign_out", "yes")
	forged := url.Values{"csrf": {"x"}, "sign_out": {"yes"}}
	if resp, _ := o.visit(o.issuer+"/logout", forged); resp.StatusCode != 200 ||
		o.Stats().LiveRefreshTokens[o.sidOf(alice)] != 1 {
		t.Errorf("a foreign form: got %d, %v", resp.StatusCode, o.Stats().LiveRefreshTokens)
	}
	resp, _ := o.visit(o.issuer+"/logout", form)
	if got := resp.Header.Get("Location"); resp.StatusCode != 303 || got != afterLogout+"?state=s" {
		t.Errorf("got %d to %q", resp.StatusCode, got)
	}
	if got := o.Stats().LiveRefreshTokens; got[o.sidOf(alice)] != 0 || len(got) != 1 {
		t.Errorf("got %v, want bob's alone", got)
	}
	if got := o.authorize("", o.authURL(param("prompt", "none"))).Get("error"); got != "login_required" {
		t.Errorf("the browser after the logout: got %q", got)
	}
}

func TestLogoutWithoutASessionIsALogoutToo(t *testing.T) {
	o := newOP(t, nil)
	if resp, page := o.visit(o.issuer+"/logout", nil); resp.StatusCode != 200 ||
		!strings.Contains(page, "You are signed out") {
		t.Errorf("got %d:\n%s", resp.StatusCode, page)
	}
	if resp, _ := o.visit(o.logoutURL(url.Values{"client_id": {"web"}, "post_logout_redirect_uri": {afterLogout}}),
		nil); resp.StatusCode != 303 {
		t.Errorf("with a way back: got %d", resp.StatusCode)
	}
	hint := o.signIn("alice").Extra("id_token").(string)
	if err := o.RotateKeys(); err != nil { // the hint is good as long as its key is published
		t.Fatal(err)
	}
	o.browser = newBrowser(http.DefaultTransport)
	if resp, _ := o.visit(o.issuer+"/logout", url.Values{"id_token_hint": {hint},
		"post_logout_redirect_uri": {afterLogout}}); resp.StatusCode != 303 {
		t.Errorf("by POST: got %d", resp.StatusCode)
	}
	if got := o.Stats().LiveRefreshTokens; len(got) != 0 {
		t.Errorf("the hint's session lives: %v", got)
	}
}

func TestAPostLogoutRedirectURIMatchesExactly(t *testing.T) {
	o := newOP(t, func(c *devidp.Config) {
		c.Clients = append(
			c.Clients,
			devidp.Client{ID: "other", Secret: "s", PostLogoutRedirectURIs: []string{"https://other.example/"}},
		)
	})
	hint := o.signIn("alice").Extra("id_token").(string)
	for _, uri := range []string{afterLogout + "/", afterLogout + "?a=b", strings.ToUpper(afterLogout),
		"https://other.example/", "//evil.example", "javascript:alert(1)"} {
		if resp, _ := o.visit(o.logoutURL(url.Values{"id_token_hint": {hint}, "post_logout_redirect_uri": {uri}}),
			nil); resp.StatusCode != 400 ||
			resp.Header.Get("Location") != "" {
			t.Errorf("%s: got %d to %q", uri, resp.StatusCode, resp.Header.Get("Location"))
		}
	}
	if resp, _ := o.visit(o.logoutURL(url.Values{"id_token_hint": {hint}, "client_id": {"other"}}),
		nil); resp.StatusCode != 400 {
		t.Errorf("another client's hint: got %d", resp.StatusCode)
	}
	if len(o.Stats().LiveRefreshTokens) != 1 {
		t.Error("a refused logout ended the session")
	}
}

func TestEndSessionRevokesItsTokens(t *testing.T) {
	o := newOP(t, nil)
	token := o.signIn("alice")
	verifier := oauth2.GenerateVerifier()
	code := o.authorize("alice", o.oauth.AuthCodeURL("", oauth2.S256ChallengeOption(verifier))).Get("code")
	if err := o.EndSession(t.Context(), o.sidOf(token)); err != nil {
		t.Fatal(err)
	}
	_, err := o.refresh(token.RefreshToken)
	wantError(t, err, "invalid_grant")
	_, err = o.oauth.Exchange(o.ctx, code, oauth2.VerifierOption(verifier))
	wantError(t, err, "invalid_grant")
	if resp, _ := o.userinfo("Bearer", token.AccessToken, nil); resp.StatusCode != 401 {
		t.Errorf("userinfo: got %d", resp.StatusCode)
	}
	if err := o.EndSession(t.Context(), "unknown"); err != nil {
		t.Errorf("an unknown session: %v", err)
	}
}

func TestAllClientsGetLogoutTokens(t *testing.T) {
	told := make(chan string, 3)
	rp := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		told <- r.URL.Path + " " + r.PostFormValue("logout_token")
		switch r.URL.Path {
		case "/empty":
			w.WriteHeader(http.StatusNoContent)
		case "/elsewhere":
			http.Redirect(w, r, "/web", http.StatusTemporaryRedirect)
		}
	}))
	defer rp.Close()
	o := newOP(t, func(c *devidp.Config) {
		c.Clients[0].BackchannelLogoutURI = rp.URL + "/web"
		for _, id := range []string{"empty", "elsewhere", "untold", "unused"} {
			client := devidp.Client{
				ID:                   id,
				Secret:               "s",
				RedirectURIs:         []string{redirectURI},
				BackchannelLogoutURI: rp.URL + "/" + id,
			}
			if id == "untold" {
				client.BackchannelLogoutURI = ""
			}
			c.Clients = append(c.Clients, client)
		}
	})
	token := o.signIn("alice")
	web := o.oauth
	for _, id := range []string{"empty", "elsewhere", "untold"} {
		o.oauth.ClientID, o.oauth.ClientSecret = id, "s"
		o.signIn("alice")
	}
	o.oauth = web
	o.signIn("bob", param("prompt", "login")) // is not told
	err := o.EndUser(context.Background(), "alice")
	if err == nil || !strings.Contains(err.Error(), "empty: 204") ||
		!strings.Contains(err.Error(), "elsewhere: 307") ||
		strings.Contains(err.Error(), "web") {
		t.Errorf("got %v, want what went wrong with two clients", err)
	}
	for range 3 {
		path, raw, _ := strings.Cut(<-told, " ")
		header, claims := read(t, raw)
		if header["typ"] != "logout+jwt" || claims["aud"] != path[1:] || claims["sid"] != o.sidOf(token) ||
			claims["sub"] != "alice" ||
			claims["nonce"] != nil ||
			claims["jti"] == "" ||
			claims["exp"] == nil {
			t.Errorf("%s: got %v %v", path, header, claims)
		}
	}
	if got := o.Stats(); got.BackchannelLogouts != 1 || len(got.LiveRefreshTokens) != 1 {
		t.Errorf("stats: got %+v", got)
	}
}
