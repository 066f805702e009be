package devidp_test

import (
	"html"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

func param(name, value string) oauth2.AuthCodeOption { return oauth2.SetAuthURLParam(name, value) }

// authURL is a request with PKCE, whose verifier is not needed.
func (o *op) authURL(options ...oauth2.AuthCodeOption) string {
	return o.oauth.AuthCodeURL(
		"st",
		append([]oauth2.AuthCodeOption{oauth2.S256ChallengeOption(oauth2.GenerateVerifier())}, options...)...)
}

// visit is a GET by the browser, or a POST if there is a form.
func (o *op) visit(target string, form url.Values) (*http.Response, string) {
	o.t.Helper()
	var resp *http.Response
	var err error
	if form == nil {
		resp, err = o.browser.Get(target)
	} else {
		resp, err = o.browser.PostForm(target, form)
	}
	if err != nil {
		o.t.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		o.t.Fatal(err)
	}
	return resp, string(page)
}

func csrfOf(t *testing.T, page string) string {
	t.Helper()
	m := csrf.FindStringSubmatch(page)
	if m == nil {
		t.Fatalf("a page without the hidden field csrf:\n%s", page)
	}
	return m[1]
}

func TestRequestErrorsGoToTheClient(t *testing.T) {
	o := newOP(t, nil)
	for name, test := range map[string]struct {
		option oauth2.AuthCodeOption
		want   string
	}{
		"implicit":                   {param("response_type", "token"), "unsupported_response_type"},
		"hybrid":                     {param("response_type", "code id_token"), "unsupported_response_type"},
		"no openid":                  {param("scope", "profile"), "invalid_scope"},
		"no code_challenge":          {param("code_challenge", ""), "invalid_request"},
		"a short code_challenge":     {param("code_challenge", "abc"), "invalid_request"},
		"plain":                      {param("code_challenge_method", "plain"), "invalid_request"},
		"no method, which is plain":  {param("code_challenge_method", ""), "invalid_request"},
		"fragment":                   {param("response_mode", "fragment"), "invalid_request"},
		"max_age in words":           {param("max_age", "soon"), "invalid_request"},
		"max_age below zero":         {param("max_age", "-1"), "invalid_request"},
		"an unknown prompt":          {param("prompt", "sing"), "invalid_request"},
		"none and another prompt":    {param("prompt", "none login"), "invalid_request"},
		"a relative resource":        {param("resource", "/orders"), "invalid_target"},
		"a resource with a fragment": {param("resource", "https://orders.example/#x"), "invalid_target"},
		"a hint that is no ID token": {param("id_token_hint", "x"), "invalid_request"},
	} {
		t.Run(name, func(t *testing.T) {
			o.t = t
			answer := o.authorize("alice", o.authURL(test.option))
			if answer.Get("error") != test.want || answer.Get("state") != "st" || answer.Get("iss") != o.issuer ||
				answer.Has("code") {
				t.Errorf("got %v, want %s with state and iss", answer, test.want)
			}
		})
	}
	if answer := o.authorize("alice", o.authURL()+"&nonce=a&nonce=b"); answer.Get("error") != "invalid_request" {
		t.Errorf("nonce twice: got %v", answer)
	}
}

func TestRequestErrorsWithoutAKnownClientAreShown(t *testing.T) {
	o := newOP(t, nil)
	for name, target := range map[string]string{
		"an unknown client":     strings.Replace(o.authURL(), "client_id=web", "client_id=%3Cb%3E", 1),
		"no redirect URI":       o.authURL(param("redirect_uri", "")),
		"a longer redirect URI": o.authURL(param("redirect_uri", redirectURI+"/x")),
		"two redirect URIs":     o.authURL() + "&redirect_uri=https://evil.example",
		"a foreign request_uri": o.authURL(param("request_uri", "https://evil.example/request")),
	} {
		resp, page := o.visit(target, nil)
		if resp.StatusCode != 400 || resp.Header.Get("Location") != "" || strings.Contains(page, "<b>") {
			t.Errorf("%s: got %d to %q:\n%s", name, resp.StatusCode, resp.Header.Get("Location"), page)
		}
	}
}

func TestWhenTheUserIsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOPInBubble(t, nil)
		bobs := o.signIn("bob").Extra("id_token").(string)
		hint := o.signIn("alice", param("prompt", "login")).Extra("id_token").(string)
		time.Sleep(10 * time.Second)
		for _, test := range []struct {
			name    string
			options []oauth2.AuthCodeOption
			asked   bool
		}{
			{"signed in", nil, false},
			{"login", []oauth2.AuthCodeOption{param("prompt", "login")}, true},
			{"select_account", []oauth2.AuthCodeOption{param("prompt", "select_account")}, true},
			{"consent", []oauth2.AuthCodeOption{param("prompt", "login consent")}, true},
			{"recent enough", []oauth2.AuthCodeOption{param("max_age", "10")}, false},
			{"too long ago", []oauth2.AuthCodeOption{param("max_age", "9")}, true},
			{"now", []oauth2.AuthCodeOption{param("max_age", "0")}, true},
			{"strong enough", []oauth2.AuthCodeOption{param("acr_values", "silver gold")}, false},
			{"too weak", []oauth2.AuthCodeOption{param("acr_values", "gold silver")}, true},
			{"an acr that there is not is voluntary", []oauth2.AuthCodeOption{param("acr_values", "urn:platinum")},
				false},
			{"who it is", []oauth2.AuthCodeOption{param("login_hint", "alice@example.com")}, false},
			{"somebody else", []oauth2.AuthCodeOption{param("login_hint", "bob")}, true},
			{"the ID token's user", []oauth2.AuthCodeOption{param("id_token_hint", hint)}, false},
			{"another ID token's user", []oauth2.AuthCodeOption{param("id_token_hint", bobs)}, true},
		} {
			target := o.authURL(test.options...)
			if resp, _ := o.visit(target, nil); (resp.StatusCode == 200) != test.asked {
				t.Errorf("%s: got %d, want a page: %v", test.name, resp.StatusCode, test.asked)
			}
			if strings.Contains(target, "prompt") {
				continue
			}
			answer := o.authorize("", o.authURL(append(test.options, param("prompt", "none"))...))
			if (answer.Get("error") == "login_required") != test.asked || answer.Has("code") == test.asked {
				t.Errorf("%s, with prompt=none: got %v", test.name, answer)
			}
		}
	})
}

func TestStrongerSignInSatisfiesWeakerRequests(t *testing.T) {
	o := newOP(t, nil)
	for _, test := range []struct {
		asked []oauth2.AuthCodeOption
		want  string
	}{
		{nil, "silver"},
		{[]oauth2.AuthCodeOption{param("acr_values", "gold")}, "gold"},
		{nil, "gold"},
		{[]oauth2.AuthCodeOption{param("acr_values", "silver")}, "silver"},
	} {
		id, err := o.verifier.Verify(o.ctx, o.signIn("alice", test.asked...).Extra("id_token").(string))
		if err != nil {
			t.Fatal(err)
		}
		var claims struct{ ACR string }
		if err := id.Claims(&claims); err != nil || claims.ACR != test.want {
			t.Errorf("acr: got %q, %v, want %q", claims.ACR, err, test.want)
		}
	}
}

func TestAnotherUserGetsAnotherSession(t *testing.T) {
	o := newOP(t, nil)
	sids := make(map[string]string)
	for _, user := range []string{"alice", "bob", "bob"} {
		token := o.signIn(user, param("prompt", "login"))
		id, err := o.verifier.Verify(o.ctx, token.Extra("id_token").(string))
		if err != nil {
			t.Fatal(err)
		}
		var claims struct{ SID string }
		if err := id.Claims(&claims); err != nil || id.Subject != user {
			t.Errorf("got %q, %v, want %q", id.Subject, err, user)
		}
		if before, ok := sids[user]; ok && before != claims.SID {
			t.Errorf("%s signed in again, and the sid changed", user)
		}
		sids[user] = claims.SID
	}
	if sids["alice"] == sids["bob"] {
		t.Error("two users share a sid")
	}
}

func TestThePageToPickAUser(t *testing.T) {
	o := newOP(t, func(c *devidp.Config) { c.Users = append(devidp.DefaultUsers(), devidp.User{Sub: "ça&<b>"}) })
	resp, page := o.visit(o.authURL(param("login_hint", "bob")), nil)
	for _, want := range []string{`value="alice"`, `value="bob" autofocus`, "Alice Liddell", ">Ç</span>",
		"<strong>web</strong>", "<li>email</li>", "Development provider"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %s:\n%s", want, page)
		}
	}
	policy := resp.Header.Get("Content-Security-Policy")
	for _, want := range []string{"default-src 'none'", "form-action 'self' http://localhost:8080;",
		"frame-ancestors 'none'", "base-uri 'none'"} {
		if !strings.Contains(policy, want) {
			t.Errorf("the policy lacks %s: %s", want, policy)
		}
	}
	if inline := regexp.MustCompile(`<style|<script|style=|\son\w+=|<b>|https://`).FindString(page); inline != "" {
		t.Errorf("the page holds %q:\n%s", inline, page)
	}
	if got := resp.Header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("Cache-Control: got %q", got)
	}
	style := regexp.MustCompile(`href="(/realms/x/style.css)"`).FindStringSubmatch(page)
	if style == nil {
		t.Fatalf("the page has no style:\n%s", page)
	}
	if resp, _ := o.visit(strings.TrimSuffix(o.issuer, "/realms/x")+style[1], nil); resp.StatusCode != 200 ||
		!strings.HasPrefix(resp.Header.Get("Content-Type"), "text/css") {
		t.Errorf("the style: got %d, %s", resp.StatusCode, resp.Header.Get("Content-Type"))
	}
	resp, _ = o.visit(o.authURL(), url.Values{"csrf": {csrfOf(t, page)}, "user": {"bob"}})
	for _, c := range resp.Cookies() {
		if !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || c.Path != "/realms/x/" || c.Domain != "" {
			t.Errorf("the session's cookie: got %s", c)
		}
	}
	if len(resp.Cookies()) != 2 || resp.StatusCode != http.StatusSeeOther { // the session, and the last choice
		t.Errorf("got %d with cookies %v, want 303 with two", resp.StatusCode, resp.Cookies())
	}
}

func TestOnlyThePageCanPickAUser(t *testing.T) {
	o := newOP(t, nil)
	target := o.authURL()
	_, page := o.visit(target, nil)
	key := csrfOf(t, page)
	victim := o.browser
	o.browser = newBrowser(http.DefaultTransport)
	o.visit(target, nil)
	for name, form := range map[string]url.Values{
		"no key":            {"csrf": {""}, "user": {"alice"}},
		"a made up key":     {"csrf": {"x"}, "user": {"alice"}},
		"another browser's": {"csrf": {key}, "user": {"alice"}},
	} {
		if resp, _ := o.visit(target, form); resp.StatusCode != 403 || len(resp.Cookies()) > 0 {
			t.Errorf("%s: got %d", name, resp.StatusCode)
		}
	}
	o.browser = victim
	if resp, _ := o.visit(target, url.Values{"csrf": {key}, "user": {"mallory"}}); resp.StatusCode != 400 {
		t.Errorf("a user that there is not: got %d", resp.StatusCode)
	}
	// A second tab does not spoil the first one's page.
	o.visit(o.authURL(), nil)
	if resp, _ := o.visit(target, url.Values{"csrf": {key}, "user": {"alice"}}); resp.StatusCode != 303 {
		t.Errorf("the first tab: got %d", resp.StatusCode)
	}
}

func TestARequestMayComeByPost(t *testing.T) {
	o := newOP(t, nil)
	u, err := url.Parse(o.authURL())
	if err != nil {
		t.Fatal(err)
	}
	resp, page := o.visit(o.issuer+"/authorize", u.Query())
	action := regexp.MustCompile(`action="([^"]+)"`).FindStringSubmatch(page)
	if resp.StatusCode != 200 || action == nil {
		t.Fatalf("got %d:\n%s", resp.StatusCode, page)
	}
	resp, _ = o.visit(
		strings.TrimSuffix(o.issuer, "/realms/x")+html.UnescapeString(action[1]),
		url.Values{"csrf": {csrfOf(t, page)}, "user": {"bob"}},
	)
	if back, err := resp.Location(); err != nil || back.Query().Get("code") == "" {
		t.Errorf("got %d to %v", resp.StatusCode, back)
	}
}

func TestFormPost(t *testing.T) {
	o := newOP(t, nil)
	o.signIn("alice")
	for _, option := range []oauth2.AuthCodeOption{param("prompt", ""), param("response_type", "token")} {
		resp, page := o.visit(o.authURL(param("response_mode", "form_post"), option), nil)
		fields := make(map[string]string)
		for _, m := range regexp.MustCompile(`name="(\w+)" value="([^"]*)"`).FindAllStringSubmatch(page, -1) {
			fields[m[1]] = m[2]
		}
		if resp.StatusCode != 200 || !strings.Contains(page, `action="`+redirectURI+`"`) || fields["state"] != "st" ||
			fields["iss"] != o.issuer ||
			(fields["code"] == "") == (fields["error"] == "") {
			t.Errorf("got %d with %v:\n%s", resp.StatusCode, fields, page)
		}
		if policy := resp.Header.Get("Content-Security-Policy"); !strings.Contains(
			policy,
			"form-action 'self' http://localhost:8080",
		) ||
			strings.Contains(policy, "unsafe") {
			t.Errorf("policy: got %s", policy)
		}
	}
	if resp, script := o.visit(o.issuer+"/form-post.js", nil); resp.StatusCode != 200 ||
		!strings.Contains(script, "submit()") {
		t.Errorf("the script: got %d %q", resp.StatusCode, script)
	}
}

func TestPushedRequestsAreUsedOnceAndInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOPInBubble(t, func(c *devidp.Config) {
			c.Clients = append(c.Clients, devidp.Client{ID: "other", Secret: "s",
				RedirectURIs: []string{redirectURI}})
		})
		push := func() string {
			u, err := url.Parse(o.authURL())
			if err != nil {
				t.Fatal(err)
			}
			status, body := o.post("/par", u.Query(), nil)
			uri, _ := body["request_uri"].(string)
			if status != 201 || uri == "" || body["expires_in"] != 60.0 {
				t.Fatalf("got %d %v", status, body)
			}
			return o.issuer + "/authorize?" + url.Values{"client_id": {"web"}, "request_uri": {uri}}.Encode()
		}
		late := push()
		time.Sleep(61 * time.Second)
		if resp, _ := o.visit(late, nil); resp.StatusCode != 400 {
			t.Errorf("late: got %d", resp.StatusCode)
		}
		if resp, _ := o.visit(strings.Replace(push(), "client_id=web", "client_id=other", 1),
			nil); resp.StatusCode != 400 {
			t.Errorf("another client's: got %d", resp.StatusCode)
		}
		slow := push()
		_, page := o.visit(slow, nil)
		time.Sleep(5 * time.Minute) // the user reads the page
		if resp, _ := o.visit(slow, url.Values{"csrf": {csrfOf(t, page)},
			"user": {"alice"}}); resp.StatusCode != 303 {
			t.Errorf("a slow user: got %d", resp.StatusCode)
		}
		silent := push() // alice is signed in now
		for i, want := range []int{303, 400} {
			if resp, _ := o.visit(silent, nil); resp.StatusCode != want {
				t.Errorf("use %d: got %d, want %d", i+1, resp.StatusCode, want)
			}
		}
		if got := o.Stats().PushedRequests; got != 4 {
			t.Errorf("stats: %d pushed requests, want 4", got)
		}
	})
}

func TestPushedRequestsAreCheckedWhenTheyArePushed(t *testing.T) {
	o := newOP(t, nil)
	for name, test := range map[string]struct {
		name, value string
		want        string
	}{
		"a request_uri":             {"request_uri", "urn:x", "invalid_request"},
		"an unknown redirect URI":   {"redirect_uri", "https://evil.example", "invalid_request"},
		"a missing openid":          {"scope", "profile", "invalid_scope"},
		"an unknown response type":  {"response_type", "token", "unsupported_response_type"},
		"another client's identity": {"client_id", "other", "invalid_client"},
	} {
		u, err := url.Parse(o.authURL(param(test.name, test.value)))
		if err != nil {
			t.Fatal(err)
		}
		if status, body := o.post("/par", u.Query(), nil); status/100 != 4 || body["error"] != test.want {
			t.Errorf("%s: got %d %v, want %s", name, status, body, test.want)
		}
	}
}
