package bearer_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloakroom-bff/cloakroom/bearer"
)

// IdentityServer sends scope as an array in tokens that otherwise follow RFC
// 9068.
func TestScopeAsArray(t *testing.T) {
	t.Parallel()
	for _, anyType := range []bool{false, true} {
		v := newIssuer(ecKey().jwk()).verifier(t, func(c *bearer.Config) { c.InsecureAllowAnyType = anyType })
		for _, test := range []struct {
			scope any
			want  string // the scopes; "-": refused
		}{
			{[]string{"orders:read", "orders:write"}, "orders:read orders:write"},
			{[]string{"orders:read"}, "orders:read"},
			{[]string{}, ""},
			{[]string{""}, ""},
			{[]string{"a b", "c"}, "a b c"},
			{"orders:read orders:write", "orders:read orders:write"},
			{"", ""},
			{json.RawMessage("null"), ""},
			{[]any{"orders:read", 7}, "-"},
			{[]any{[]string{"orders:read"}}, "-"},
			{map[string]any{"orders:read": true}, "-"},
			{7, "-"},
			{true, "-"},
		} {
			raw := ecKey().token(object{"scope": test.scope})
			if test.want == "-" {
				wantInvalid(t, v, raw, badClaims)
				continue
			}
			if got := strings.Join(wantGood(t, v, raw, fmt.Sprint(test.scope)).Scopes, " "); got != test.want {
				t.Errorf("%v: got the scopes %q, want %q", test.scope, got, test.want)
			}
		}
	}
	h := newIssuer(ecKey().jwk()).verifier(t).Handler(bearer.Require("orders:read")(whoami))
	for _, test := range []struct {
		scope  any
		status int
	}{
		{[]string{"openid", "orders:read"}, 200},
		{[]string{"orders:readonly"}, 403},
		{[]string{"Orders:read"}, 403},
		{[]string{"orderſ:read"}, 403},
		{[]string{}, 403},
	} {
		if got := send(h, "", "Bearer "+ecKey().token(object{"scope": test.scope})).StatusCode; got != test.status {
			t.Errorf("%v: got %d, want %d", test.scope, got, test.status)
		}
	}
	v, _ := introspecting(t,
		responds(object{"active": true, "sub": "alice", "aud": audience, "scope": []string{"orders:read"}}))
	if token := wantGood(t, v, opaque, "an introspected token"); !token.HasScope("orders:read") {
		t.Errorf("got %q", token.Scopes)
	}
}

// A claim of an unexpected type does not cause a rejection unless a check needs
// it, and it never grants anything.
func TestClaimTypes(t *testing.T) {
	t.Parallel()
	null := json.RawMessage("null")
	odd := []any{nil, null, "", "odd", "2026-01-01T00:00:00Z", 7, -1, 1e300, true, []any{},
		[]any{"x", 7}, object{}, object{"x": 1}}
	v := newIssuer(ecKey().jwk()).verifier(t)
	for _, name := range []string{
		"auth_time", "azp", "cid", "appid", "scp", "typ", "token_use", "nonce", "amr", "groups",
		"roles", "entitlements", "permissions", "sid", "email", "updated_at", "idp", "tenant",
		"Name", "_claim_names", "authorization_details", "act", "may_act",
	} {
		for _, value := range odd {
			token := wantGood(t, v, ecKey().token(object{name: value}), fmt.Sprintf("%s is %#v", name, value))
			if name == "auth_time" && value != any(7) && !token.AuthTime.IsZero() {
				t.Errorf("auth_time is %#v: got %v", value, token.AuthTime)
			}
		}
	}
	for _, value := range []any{null, 7, -1, true} {
		if token := wantGood(t, v, ecKey().token(object{"acr": value}),
			fmt.Sprintf("acr is %#v", value)); token.ACR != "" {
			t.Errorf("acr is %#v: got %q", value, token.ACR)
		}
	}
	wantGood(t, v, ecKey().token(object{"nbf": null}), "nbf is null")
	for _, name := range []string{"iss", "sub", "aud", "client_id", "jti"} {
		for _, value := range []any{null, 7, true, object{}, []any{7}} {
			if _, err := v.Verify(t.Context(), ecKey().token(object{name: value})); err == nil {
				t.Errorf("%s is %#v: accepted", name, value)
			}
		}
	}
	for _, name := range []string{"exp", "iat", "nbf"} {
		for _, value := range []any{"", "odd", -1, 1e300, true, object{}, []any{7}} {
			if _, err := v.Verify(t.Context(), ecKey().token(object{name: value})); err == nil {
				t.Errorf("%s is %#v: accepted", name, value)
			}
		}
	}
	for _, value := range []any{null, "", "odd", 7, []any{}, object{}, object{"jkt": 7}, object{"jkt": ""}} {
		if _, err := v.Verify(t.Context(), ecKey().token(object{"cnf": value})); err == nil {
			t.Errorf("cnf is %#v: a token that may be bound was accepted as a bearer token", value)
		}
	}
	fresh := v.Handler(bearer.RequireFresh(time.Hour)(whoami))
	strong := v.Handler(bearer.RequireACR("gold", "7")(whoami))
	for _, value := range odd {
		if got := send(fresh, "", "Bearer "+ecKey().token(object{"auth_time": value})).StatusCode; got != 401 {
			t.Errorf("auth_time is %#v: got %d, want 401", value, got)
		}
		if got := send(strong, "", "Bearer "+ecKey().token(object{"acr": value})).StatusCode; got != 401 {
			t.Errorf("acr is %#v: got %d, want 401", value, got)
		}
	}
	lax := newIssuer(ecKey().jwk()).verifier(t, func(c *bearer.Config) { c.InsecureAllowAnyType = true })
	for _, claims := range []object{
		{"azp": 7}, {"azp": null, "client_id": "spa"}, {"cid": []any{}}, {"scp": null}, {"jti": null}, {"iat": null},
	} {
		wantGood(t, lax, ecKey().token(claims), fmt.Sprint(claims))
	}
	for _, claims := range []object{ // the requesting client depends on them
		{"client_id": nil, "azp": 7}, {"client_id": null, "appid": []any{"spa"}},
	} {
		wantInvalid(t, lax, ecKey().token(claims), badClaims)
	}
	if token := wantGood(t, lax,
		ecKey().token(object{"client_id": nil, "azp": null, "appid": "spa"}), "appid"); token.ClientID != "spa" {
		t.Errorf("got the client %q", token.ClientID)
	}
}

// Claims whose names differ only in case are different, unless one of them is a
// claim that is checked.
func TestClaimNamesAreCaseSensitive(t *testing.T) {
	t.Parallel()
	v := newIssuer(ecKey().jwk()).verifier(t)
	token := wantGood(t, v, ecKey().token(object{"groups": "a", "Groups": "b", "GROUPS": 7}),
		"three claims of one name, but for the case")
	if token.Claims.Text("Groups") != "" && token.Claims.Text("Groups") != "b" {
		t.Errorf("got %q", token.Claims.Text("Groups"))
	}
	var folded struct{ Groups any }
	if err := token.Claims.Decode(&folded); err == nil {
		t.Errorf("Decode chose %v", folded.Groups)
	}
	if token := wantGood(t, v, ecKey().token(object{"groups": "a"}),
		"one"); token.Claims.Decode(&folded) != nil || folded.Groups != "a" {
		t.Errorf("got %v", folded.Groups)
	}
	for _, name := range []string{"SUB", "ſub", "Iss", "EXP", "aud\u0000", "sub "} {
		_, err := v.Verify(t.Context(), ecKey().token(object{"sub": nil, name: "alice"}))
		if err == nil {
			t.Errorf("%q was accepted as sub", name)
		}
	}
}

// An error about a wrong response names its URL, without the body and without
// the query of a Location header.
func TestFetchErrors(t *testing.T) {
	t.Parallel()
	redirect := func(path, location string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, path) {
				w.Header().Set("Location", location)
				w.WriteHeader(302)
				w.Write([]byte("the b0dy"))
				return
			}
			well(w, r, ecKey().jwk())
		}
	}
	status := func(path string, code int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, path) {
				w.WriteHeader(code)
				w.Write([]byte("the b0dy"))
				return
			}
			well(w, r, ecKey().jwk())
		}
	}
	for _, test := range []struct {
		response http.HandlerFunc
		want     string
	}{
		{redirect("/openid-configuration", "https://login.example/x?s3cr3t"),
			"GET https://id.example/.well-known/openid-configuration: " +
				"redirect to another host is not followed: https://login.example/x (check the issuer)"},
		{redirect("/keys", "https://keys.example/x?s3cr3t"),
			"GET https://id.example/keys: redirect to another host is not followed: https://keys.example/x"},
		{status("/keys", 404),
			"GET https://id.example/keys: 404 Not Found (check the jwks_uri of the issuer's metadata)"},
		{status("/openid-configuration", 403),
			"GET https://id.example/.well-known/openid-configuration: 403 Forbidden (check the issuer)"},
		{status("/openid-configuration", 503),
			"GET https://id.example/.well-known/openid-configuration: 503 Service Unavailable"},
	} {
		iss := newIssuer()
		iss.misbehave(test.response)
		_, err := iss.verifier(t).Verify(t.Context(), ecKey().token())
		if !errors.Is(err, bearer.ErrUnavailable) || !strings.Contains(err.Error(), test.want) ||
			strings.Contains(err.Error(), "b0dy") || strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("got %v\nwant %s", err, test.want)
		}
	}
}

// Errors about a key set do not quote keys and are short.
func TestKeySetErrorIsShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var junk []object
		for i := range 100 {
			junk = append(junk,
				object{"kty": "RSA", "kid": fmt.Sprint("old", i), "use": "sig",
					"n": strings.Repeat("c2VjcmV0", 100), "e": "!!"})
		}
		_, err := newIssuer(junk...).verifier(t).Verify(t.Context(), ecKey().token())
		if !errors.Is(err, bearer.ErrUnavailable) || strings.Contains(err.Error(), "c2Vj") ||
			len(err.Error()) > 1000 || !strings.Contains(err.Error(), "and 95 more") {
			t.Errorf("got %d bytes: %v", len(fmt.Sprint(err)), err)
		}
	})
}
