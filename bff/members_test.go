package bff_test

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

// missing removes a member.
type missing struct{}

func setMember(members map[string]any, name string, value any) {
	if _, ok := value.(missing); ok {
		delete(members, name)
	} else {
		members[name] = value
	}
}

// oddValues has values of every JSON type, and a missing one.
var oddValues = []any{
	missing{}, nil, "", "odd", "2026-01-01T00:00:00Z", 0, 7, -1, 1e300, true, []any{},
	[]any{"x", 7}, map[string]any{}, map[string]any{"x": 1},
}

// A claim of an unexpected type is ignored, unless something depends on it.
func TestUnneededIDTokenClaimsMayHaveAnyType(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	signIn := func(query, names string, value any) int {
		a.recordCalls(devidp.Hooks{EditIDToken: func(_, claims map[string]any) {
			for _, name := range strings.Fields(names) {
				setMember(claims, name, value)
			}
		}})
		defer a.provider.Behave()
		return a.browser().SignIn("alice", query).StatusCode
	}
	unneeded := []string{
		"auth_time", "acr", "amr", "sid", "name", "email", "email_verified", "groups", "updated_at",
		"address", "jti", "c_hash", "s_hash", "typ", "client_id", "scope", "roles", "session_state",
		"_claim_names", "_claim_sources",
	}
	for _, value := range oddValues {
		if got := signIn("", strings.Join(unneeded, " "), value); got != 303 {
			t.Errorf("%q are %#v: got %d, want 303", unneeded, value, got)
		}
	}
	for name, good := range map[string][]any{ // needed claims, and the values that are accepted
		"iss": nil, "sub": {"odd", "2026-01-01T00:00:00Z"}, "aud": nil, "exp": nil, "iat": nil, "nonce": nil,
		"azp":     {missing{}},
		"nbf":     {missing{}, nil, 0, 7},
		"at_hash": {missing{}, nil, ""},
		"events":  {missing{}},
	} {
		for _, value := range oddValues {
			want := 502
			for _, g := range good {
				if fmt.Sprintf("%#v", g) == fmt.Sprintf("%#v", value) {
					want = 303
				}
			}
			if got := signIn("", name, value); got != want {
				t.Errorf("%s is %#v: got %d, want %d", name, value, got, want)
			}
		}
	}
	for _, value := range oddValues {
		if got := signIn("max_age=300", "auth_time", value); got == 303 {
			t.Errorf("auth_time is %#v and max_age was requested: got 303", value)
		}
		if got := signIn("max_age=300", "auth_time", 9999999999); got == 303 {
			t.Error("auth_time in the year 2286 is accepted")
		}
		if got := signIn("acr_values=gold", "acr", value); got == 303 {
			t.Errorf("acr is %#v and gold was requested: got 303", value)
		}
	}
	if got := signIn("acr_values=gold", "acr", []any{"gold"}); got == 303 {
		t.Error("acr in a list is accepted")
	}
}

// A claim of an unexpected type grants nothing.
func TestClaimOfAnotherTypeGrantsNothing(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(a *app, cfg *bff.Config) {
		cfg.Claims.Map = map[string]string{"roles": "realm_access.roles"}
		at := a.echo.URL
		cfg.Routes = []bff.Route{
			{Path: "/fresh/", Upstream: []string{at}, Token: "user", Require: bff.Require{MaxAge: 1e9 * 60}},
			{Path: "/strong/", Upstream: []string{at}, Token: "user", Require: bff.Require{ACR: []string{"gold", "7"}}},
			{
				Path:     "/admin/",
				Upstream: []string{at},
				Token:    "user",
				Require:  bff.Require{Claims: map[string][]string{"roles": {"admin"}}},
			},
		}
	})
	for _, test := range []struct{ path, more string }{
		{"/fresh/x", `"auth_time":"9999999999"`}, {"/fresh/x", `"auth_time":[9999999999]`},
		{"/fresh/x", `"auth_time":null`}, {"/fresh/x", `"auth_time":true`},
		{"/fresh/x", `"auth_time":-1`}, {"/fresh/x", `"auth_time":1e300`},
		{"/fresh/x", `"auth_time":1e400`}, {"/fresh/x", `"auth_time":9999999999`},
		{"/fresh/x", `"auth_time":1999999999999`}, {"/fresh/x", `"Auth_Time":9999999999`},
		{"/strong/x", `"acr":7`}, {"/strong/x", `"acr":["gold"]`}, {"/strong/x", `"acr":{"gold":1}`},
		{"/strong/x", `"ACR":"gold"`},
		{"/admin/x", `"realm_access":{"roles":["user"],"roles":["admin"]}`},
		{"/admin/x", `"realm_access":{"Roles":["admin"]}`},
		{"/admin/x", `"Realm_access":{"roles":["admin"]}`}, {"/admin/x", `"realm_access":"{\"roles\":[\"admin\"]}"`},
	} {
		a.recordCalls(devidp.Hooks{SignIDToken: func(header, claims map[string]any) (string, error) {
			delete(claims, "auth_time")
			delete(claims, "acr")
			return a.provider.SignPayload(header, withMember(claims, test.more))
		}})
		b := a.signedIn()
		if got := b.Fetch("GET", test.path).StatusCode; got != 401 && got != 403 {
			t.Errorf("%s with %s: got %d", test.path, test.more, got)
		}
	}
}

func TestUnneededTokenResponseMembersMayHaveAnyType(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Routes[0].Require.Scopes = []string{"email"} })
	edit := func(names string, value any) {
		a.recordCalls(devidp.Hooks{EditTokenResponse: func(_ string, status int, body map[string]any) {
			if status == 200 {
				for _, name := range strings.Fields(names) {
					setMember(body, name, value)
				}
			}
		}})
	}
	for _, name := range []string{
		"expires_in", "refresh_token", "scope",
		"id_token_expires_in refresh_expires_in session_state not-before-policy foci error state issued_token_type",
	} {
		for _, value := range oddValues {
			if value == "odd" && name == "refresh_token" || value == "2026-01-01T00:00:00Z" && name == "refresh_token" {
				continue // these are valid tokens
			}
			edit(name, value)
			b := a.browser()
			if got := b.SignIn("alice", "").StatusCode; got != 303 {
				t.Errorf("%s is %#v: got %d, want 303", name, value, got)
			}
			if name != "scope" {
				continue
			}
			want := 403 // it grants nothing
			if _, gone := value.(missing); gone || value == nil {
				want = 200 // RFC 6749, section 5.1: the requested scopes
			}
			if got := b.Fetch("GET", "/api/x").StatusCode; got != want {
				t.Errorf("scope is %#v: got %d, want %d", value, got, want)
			}
		}
	}
	edit("scope", []string{"openid", "email"})
	if got := a.signedIn().Fetch("GET", "/api/x").StatusCode; got != 200 {
		t.Errorf("scope in an array: got %d, want 200", got)
	}
	for _, name := range []string{"access_token", "token_type", "id_token"} {
		for _, value := range oddValues {
			if s, _ := value.(string); s != "" && name != "token_type" {
				continue // these are valid tokens
			}
			a.provider.Behave()
			b := a.signedIn()
			edit(name, value)
			wantPage(t, b.SignIn("alice", ""), 502, "login_invalid")
			resp := b.Fetch("POST", "/bff/session/refresh")
			if name == "id_token" {
				wantOK(t, resp)
			} else {
				wantProblem(t, resp, 503, "provider_unavailable")
			}
			a.wantSession(b, "alice")
		}
	}
	for _, twice := range []struct {
		member string
		good   bool
	}{
		{`"session_state":"x","session_state":"y"`, true},
		{`"Session_State":"x"`, true},
		{`"scope":"openid"`, false},
		{`"Scope":"openid"`, false},
		{`"ACCESS_TOKEN":"x"`, false},
		{`"expires_in":1`, false},
	} {
		a.provider.Behave()
		b := a.browser()
		u := b.AuthResponse("alice", "").Location(t)
		a.recordCalls(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if !strings.HasSuffix(r.URL.Path, "/token") {
				next.ServeHTTP(w, r)
				return
			}
			next.ServeHTTP(&rewriter{
				w,
				func(body string) string { return strings.Replace(body, "{", "{"+twice.member+",", 1) },
			}, r)
		}})
		if got := b.Navigate(u.String()).StatusCode; (got == 303) != twice.good {
			t.Errorf("%s: got %d", twice.member, got)
		}
	}
}

// rewriter changes a response body while it is written.
type rewriter struct {
	http.ResponseWriter
	change func(string) string
}

func (w *rewriter) WriteHeader(status int) {
	w.Header().Del("Content-Length")
	w.ResponseWriter.WriteHeader(status)
}

func (w *rewriter) Write(b []byte) (int, error) {
	_, err := io.WriteString(w.ResponseWriter, w.change(string(b)))
	return len(b), err
}

func TestUnneededUserInfoMembersMayHaveAnyType(t *testing.T) {
	t.Parallel()
	for _, signed := range []bool{false, true} {
		a := newAppWith(t, func(c *devidp.Config) { c.Clients[0].SignedUserInfo = signed }, withUserInfo)
		signIn := func(value any, names ...string) int {
			a.recordCalls(devidp.Hooks{EditUserinfo: func(claims map[string]any) {
				for _, name := range names {
					setMember(claims, name, value)
				}
			}})
			return a.browser().SignIn("alice", "").StatusCode
		}
		unneeded := []string{
			"name", "email", "groups", "exp", "nbf", "auth_time", "acr", "amr", "address",
			"updated_at", "_claim_names", "_claim_sources", "Sub2", "nonce", "at_hash",
		}
		for _, value := range oddValues {
			if got := signIn(value, unneeded...); got != 303 {
				t.Errorf("signed %v, %q are %#v: got %d, want 303", signed, unneeded, value, got)
			}
			if got := signIn(value, "sub"); got != 502 {
				t.Errorf("signed %v, sub is %#v: got %d, want 502", signed, value, got)
			}
		}
	}
}

func TestUnneededLogoutTokenClaimsMayHaveAnyType(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	tell := func(name string, value any) int {
		token := a.logoutToken("carol", "", devidp.Hooks{EditLogoutToken: func(_, claims map[string]any) {
			delete(claims, "sid")
			setMember(claims, name, value)
		}})
		return a.sendLogoutToken(url.Values{"logout_token": {token}}).StatusCode
	}
	for _, name := range []string{
		"nbf", "auth_time", "acr", "azp", "client_id", "trace_id", "toe", "txn", "typ",
		"_claim_names", "at_hash",
	} {
		for _, value := range oddValues {
			if got := tell(name, value); got != 200 {
				t.Errorf("%s is %#v: got %d, want 200", name, value, got)
			}
		}
	}
	for _, name := range []string{"iss", "aud", "exp", "iat", "jti", "events", "sid", "sub"} {
		for _, value := range oddValues {
			text, _ := value.(string)
			good := text != "" && (name == "jti" || name == "sid" || name == "sub") ||
				name == "sid" && value == any(missing{})
			want := 400
			if good {
				want = 200
			}
			if got := tell(name, value); got != want && !(got == 400 && name == "jti") { // a jti is accepted once
				t.Errorf("%s is %#v: got %d, want %d", name, value, got, want)
			}
		}
	}
	a.wantSession(b, "alice")
}
