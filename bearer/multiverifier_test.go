package bearer_test

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bearer"
)

const otherURL = "https://other.example"

// another returns a verifier for a second issuer with the given keys.
func another(t *testing.T, url string, keys ...object) *bearer.Verifier {
	t.Helper()
	transport := roundTrip(func(r *http.Request) *http.Response {
		w := httptest.NewRecorder()
		if r.URL.String() == url+"/keys" {
			json.NewEncoder(w).Encode(object{"keys": keys})
		} else {
			json.NewEncoder(w).Encode(object{"issuer": url, "jwks_uri": url + "/keys"})
		}
		return w.Result()
	})
	v, err := bearer.NewVerifier(bearer.Config{
		Issuer: url, Audience: "their name for us", Algorithms: []string{"ES256"}, Realm: "second",
		HTTPClient: &http.Client{Transport: transport}, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

type roundTrip func(*http.Request) *http.Response

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r), nil }

func TestMultiVerifierSeparatesIssuers(t *testing.T) {
	theirs := otherEC() // under the kid that our issuer's key has, too
	one := newIssuer(ecKey().jwk(), rsaKey().jwk()).verifier(t, func(c *bearer.Config) { c.Realm = "first" })
	v, err := bearer.NewMultiVerifier(one, another(t, otherURL, theirs.jwk(), rsaKey().jwk()))
	if err != nil {
		t.Fatal(err)
	}
	their := object{"iss": otherURL, "aud": "their name for us"}
	wantGood(t, v, ecKey().token(), "the first issuer's")
	wantGood(t, v, theirs.token(their), "the second issuer's")
	wantGood(t, v, theirs.token(their), "the second issuer's once more")

	wantInvalid(t, v, theirs.token(), badSignature)
	wantInvalid(t, v, ecKey().token(their), badSignature)
	wantInvalid(t, v, rsaKey().token(their), badAlgorithm) // the first issuer's are for the first
	wantInvalid(t, v, theirs.token(object{"iss": otherURL}), otherAudience)
	wantInvalid(t, v, ecKey().token(object{"aud": "their name for us"}), otherAudience)
	wantInvalid(t, v, ecKey().token(object{"iss": otherURL + "/"}), otherIssuer)
	wantInvalid(t, v, ecKey().token(object{"iss": nil}), otherIssuer)
	wantInvalid(t, v,
		ecKey().sign(headerOf(ecKey()), []byte(`{"iss":"`+issuerURL+`","iss":"`+otherURL+`"}`)), badClaims)
	if got := send(v.Handler(whoami), "").Header.Get("WWW-Authenticate"); got != `Bearer realm="first"` {
		t.Errorf("got the challenge %q, want that of the first", got)
	}
}

func TestNewMultiVerifierErrors(t *testing.T) {
	one := newIssuer(ecKey().jwk()).verifier(t)
	two := another(t, otherURL, ecKey().jwk())
	both, err := bearer.NewMultiVerifier(one, two)
	if err != nil {
		t.Fatal(err)
	}
	asks := func(v *bearer.Config) {
		v.Introspection = &bearer.Introspection{Endpoint: issuerURL + "/introspect",
			ClientID: "api", ClientSecret: "secret"}
	}
	third, err := bearer.NewVerifier(bearer.Config{Issuer: "https://third.example", Audience: "x",
		Introspection: &bearer.Introspection{Endpoint: "https://third.example/i", ClientID: "c", ClientSecret: "s"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		verifiers []*bearer.Verifier
		want      string
	}{
		{nil, "no verifier given"},
		{[]*bearer.Verifier{one, two, one}, `issuer "https://id.example": two verifiers have it`},
		{[]*bearer.Verifier{both, two}, `issuer "https://other.example": two verifiers have it`},
		{[]*bearer.Verifier{newIssuer().verifier(t, asks), third},
			"more than one verifier has Introspection, and opaque tokens do not name their issuer"},
	} {
		if v, err := bearer.NewMultiVerifier(test.verifiers...); v != nil || err == nil || err.Error() != test.want {
			t.Errorf("got %v, %v, want %q", v, err, test.want)
		}
	}
}

func TestClients(t *testing.T) {
	v := newIssuer(ecKey().jwk()).verifier(t, func(c *bearer.Config) { c.Clients = []string{"cron", "spa"} })
	wantGood(t, v, ecKey().token(), "of the client spa")
	for _, client := range []string{"sp", "SPA", "spa cron"} {
		wantInvalid(t, v, ecKey().token(object{"client_id": client}), "the token is of a client that is not accepted")
	}
	lax := newIssuer(ecKey().jwk()).verifier(t,
		func(c *bearer.Config) { c.Clients, c.InsecureAllowAnyType = []string{"spa"}, true })
	wantInvalid(t, lax, ecKey().token(object{"client_id": nil}), "the token is of a client that is not accepted")
}

// Tokens of providers that do not follow RFC 9068.
func TestTokensThatDeviateFromRFC9068(t *testing.T) {
	lax := func(c *bearer.Config) { c.InsecureAllowAnyType = true }
	none := object{"client_id": nil, "scope": nil, "jti": nil}
	for _, test := range []struct {
		name   string
		edit   func(*bearer.Config)
		claims object
		client string
		scopes string
		reason string // empty: accepted
	}{
		{"Okta", lax, object{"cid": "spa", "scp": []string{"orders:read", "openid"}, "uid": "00u1",
			"ver": 1}, "spa", "orders:read openid", ""},
		{"Entra ID, version 2", lax,
			object{"azp": "spa", "scp": "orders:read User.Read", "ver": "2.0"}, "spa", "orders:read User.Read", ""},
		{"Entra ID, version 1", lax, object{"appid": "spa", "scp": "orders:read", "ver": "1.0"},
			"spa", "orders:read", ""},
		{"Auth0", lax, object{"azp": "spa", "scope": "openid orders:read", "gty": "password",
			"permissions": []string{"x"}}, "spa", "openid orders:read", ""},
		{"Keycloak", lax,
			object{"azp": "spa", "typ": "Bearer", "scope": "openid",
				"realm_access": object{"roles": []string{"x"}}}, "spa", "openid", ""},
		{"scope beside scp", lax, object{"scope": "a", "scp": []string{"b"}}, "", "a", ""},
		{"Keycloak's ID token", lax, object{"azp": "spa", "typ": "ID"}, "", "", badType},
		{"Keycloak's refresh token", lax, object{"azp": "spa", "typ": "Refresh"}, "", "", badType},
		{"Cognito's ID token", lax, object{"token_use": "id"}, "", "", badType},
		{"Cognito, with its client named", func(c *bearer.Config) {
			c.InsecureAllowAnyType, c.InsecureAllowNoAudience, c.Clients = true, true, []string{"spa"}
		}, object{"client_id": "spa", "aud": nil, "token_use": "access", "scope": "orders:read"},
			"spa", "orders:read", ""},
		{"another audience where none is needed", func(c *bearer.Config) {
			c.InsecureAllowAnyType, c.InsecureAllowNoAudience, c.Clients = true, true, []string{"spa"}
		}, object{"client_id": "spa", "aud": "invoices"}, "", "", otherAudience},
		{"no audience", lax, object{"aud": nil}, "", "", otherAudience},
		{"scp with a number", lax, object{"scp": []any{"a", 1}}, "", "", badClaims},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := newIssuer(ecKey().jwk()).verifier(t, test.edit)
			raw := ecKey().tokenWithHeader(object{"typ": "JWT"}, none, test.claims)
			if test.reason != "" {
				wantInvalid(t, v, raw, test.reason)
				return
			}
			if token := wantGood(t, v, raw, test.name); token.ClientID != test.client ||
				strings.Join(token.Scopes, " ") != test.scopes {
				t.Errorf("got the client %q and the scopes %q, want %q and %q", token.ClientID,
					token.Scopes, test.client, test.scopes)
			}
		})
	}
	strict := newIssuer(ecKey().jwk()).verifier(t)
	if token := wantGood(t, strict,
		ecKey().token(object{"scope": nil, "scp": []string{"admin"},
			"azp": "x"}), "by RFC 9068"); token.Scopes != nil || token.ClientID != "spa" {
		t.Errorf("got %q and %q: scp and azp mean something", token.Scopes, token.ClientID)
	}
}

func TestClaimsTextAndList(t *testing.T) {
	c := bearer.Claims(`{
		"tenant": "acme", "roles": ["a", "b"], "one": "x",
		"realm_access": {"roles": ["r"], "Roles": ["R"]}, "https://example.com/roles": ["ns"],
		"mixed": ["a", 1], "n": 1, "null": null, "a.b": "dotted", "deep": {"a": {"b": "c"}}
	}`)
	for _, test := range []struct {
		path []string
		text string
		list string
	}{
		{[]string{"tenant"}, "acme", "acme"},
		{[]string{"roles"}, "", "a b"},
		{[]string{"one"}, "x", "x"},
		{[]string{"https://example.com/roles"}, "", "ns"},
		{[]string{"a.b"}, "dotted", "dotted"},
		{[]string{"deep", "a", "b"}, "c", "c"},
		{[]string{"Tenant"}, "", ""},
		{[]string{"mixed"}, "", ""},
		{[]string{"n"}, "", ""},
		{[]string{"null"}, "", ""},
		{[]string{"tenant", "x"}, "", ""},
		{[]string{"roles", "0"}, "", ""},
		{[]string{"nothing", "here"}, "", ""},
		{nil, "", ""},
		{[]string{"realm_access", "roles"}, "", ""}, // it is there in two cases: it is unknown which is meant
	} {
		if text, list := c.Text(test.path...), strings.Join(c.List(test.path...),
			" "); text != test.text || list != test.list {
			t.Errorf("%q: got %q and %q, want %q and %q", test.path, text, list, test.text, test.list)
		}
	}
	if got := bearer.Claims(nil).Text("x"); got != "" {
		t.Errorf("got %q of no claims", got)
	}
}
