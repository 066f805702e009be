package devidp_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

// sign signs claims as a client does.
func sign(t *testing.T, key crypto.Signer, options *jose.SignerOptions, claims map[string]any) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, options)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	compact, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return compact
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// with is a set of claims with some of them changed, or with nil taken away.
func with(claims map[string]any, changes map[string]any) map[string]any {
	claims = maps.Clone(claims)
	maps.Copy(claims, changes)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	return claims
}

// postAnonymous posts a form that has to say by itself who sends it.
func (o *op) postAnonymous(path string, form url.Values, edit func(*http.Request)) (int, map[string]any) {
	o.t.Helper()
	req, err := http.NewRequestWithContext(o.ctx, http.MethodPost, o.issuer+path, strings.NewReader(form.Encode()))
	if err != nil {
		o.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if edit != nil {
		edit(req)
	}
	resp, err := o.http.Do(req)
	if err != nil {
		o.t.Fatal(err)
	}
	defer resp.Body.Close()
	body := make(map[string]any)
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
		o.t.Fatalf("POST %s: got %d: %v", path, resp.StatusCode, err)
	}
	if (resp.StatusCode == 401) != (resp.Header.Get("WWW-Authenticate") != "") {
		o.t.Errorf("POST %s: got %d with the challenge %q", path, resp.StatusCode,
			resp.Header.Get("WWW-Authenticate"))
	}
	return resp.StatusCode, body
}

func TestClientAuthenticatesInOneWay(t *testing.T) {
	key := newKey(t)
	o := newOP(t, func(c *devidp.Config) {
		c.Clients = append(c.Clients, devidp.Client{ID: "signer", Keys: []jose.JSONWebKey{{Key: key.Public()}}})
	})
	basic := func(id, secret string) func(*http.Request) {
		return func(r *http.Request) { r.SetBasicAuth(id, secret) }
	}
	for _, test := range []struct {
		name string
		form url.Values
		edit func(*http.Request)
		want string
	}{
		{"basic, encoded", nil, basic("web", "a%3Ab%25c"), ""},
		{"basic, and the same client_id", url.Values{"client_id": {"web"}}, basic("web", "a%3Ab%25c"), ""},
		{"post", url.Values{"client_id": {"web"}, "client_secret": {"a:b%c"}}, nil, ""},
		{"basic, not encoded", nil, basic("web", "a:b%c"), "invalid_client"},
		{"basic, wrong", nil, basic("web", "wrong"), "invalid_client"},
		{"basic, and another client_id", url.Values{"client_id": {"signer"}}, basic("web", "a%3Ab%25c"),
			"invalid_client"},
		{"another scheme", url.Values{"client_id": {"web"}},
			func(r *http.Request) { r.Header.Set("Authorization", "Bearer x") }, "invalid_client"},
		{"post, wrong", url.Values{"client_id": {"web"}, "client_secret": {"wrong"}}, nil, "invalid_client"},
		{"nothing", url.Values{"client_id": {"web"}}, nil, "invalid_client"},
		{"an unknown client", url.Values{"client_id": {"who"}, "client_secret": {"x"}}, nil, "invalid_client"},
		{"an empty secret of a client that has none", url.Values{"client_id": {"signer"}, "client_secret": {""}},
			nil, "invalid_client"},
		{"basic, and an empty secret of a client that has none", nil, basic("signer", ""), "invalid_client"},
		{"both", url.Values{"client_secret": {"a:b%c"}}, basic("web", "a%3Ab%25c"), "invalid_request"},
	} {
		form := url.Values{"grant_type": {"client_credentials"}}
		maps.Copy(form, test.form)
		status, body := o.postAnonymous("/token", form, test.edit)
		got, _ := body["error"].(string)
		if got != test.want || (status == 200) != (test.want == "") {
			t.Errorf("%s: got %d %v, want %q", test.name, status, body, test.want)
		}
	}
}

func TestPrivateKeyJWT(t *testing.T) {
	key, foreign := newKey(t), newKey(t)
	o := newOP(t, func(c *devidp.Config) {
		c.Clients = append(
			c.Clients,
			devidp.Client{
				ID:   "signer",
				Keys: []jose.JSONWebKey{{Key: newKey(t).Public(), KeyID: "old"}, {Key: key.Public(), KeyID: "new"}},
			},
		)
	})
	typed := func(typ jose.ContentType) *jose.SignerOptions { return new(jose.SignerOptions).WithType(typ) }
	claims := func(changes map[string]any) map[string]any {
		return with(map[string]any{
			"iss": "signer", "sub": "signer", "aud": o.issuer, "jti": rand.Text(), "iat": time.Now().Unix(),
			"exp": time.Now().Add(time.Minute).Unix(),
		}, changes)
	}
	replayed := sign(t, key, nil, claims(nil))
	for _, test := range []struct {
		name      string
		assertion string
		want      string
	}{
		{"right", replayed, ""},
		{"typed", sign(t, key, typed("client-authentication+jwt"), claims(nil)), ""},
		{"typed as anything", sign(t, key, typed("JWT"), claims(nil)), ""},
		{"audience in a list", sign(t, key, nil, claims(map[string]any{"aud": []string{o.issuer}})), ""},
		{"replayed", replayed, "invalid_client"},
		{"another type", sign(t, key, typed("dpop+jwt"), claims(nil)), "invalid_client"},
		{"another key", sign(t, foreign, nil, claims(nil)), "invalid_client"},
		{"another key that the header holds", sign(t, foreign, &jose.SignerOptions{EmbedJWK: true}, claims(nil)),
			"invalid_client"},
		{"audience is the endpoint", sign(t, key, nil, claims(map[string]any{"aud": o.issuer + "/token"})),
			"invalid_client"},
		{"audience beside us", sign(t, key, nil, claims(map[string]any{"aud": []string{o.issuer,
			"https://evil.example"}})), "invalid_client"},
		{"no audience", sign(t, key, nil, claims(map[string]any{"aud": nil})), "invalid_client"},
		{"another issuer", sign(t, key, nil, claims(map[string]any{"iss": "web"})), "invalid_client"},
		{"another subject", sign(t, key, nil, claims(map[string]any{"sub": "web"})), "invalid_client"},
		{"expired", sign(t, key, nil, claims(map[string]any{"exp": time.Now().Add(-time.Second).Unix()})),
			"invalid_client"},
		{"good for hours", sign(t, key, nil, claims(map[string]any{"exp": time.Now().Add(time.Hour).Unix()})),
			"invalid_client"},
		{"no exp", sign(t, key, nil, claims(map[string]any{"exp": nil})), "invalid_client"},
		{"not yet", sign(t, key, nil, claims(map[string]any{"nbf": time.Now().Add(5 * time.Minute).Unix()})),
			"invalid_client"},
		{"no jti", sign(t, key, nil, claims(map[string]any{"jti": nil})), "invalid_client"},
		{"a long jti", sign(t, key, nil, claims(map[string]any{"jti": strings.Repeat("x", 256)})), "invalid_client"},
		{"not a JWT", "x", "invalid_client"},
	} {
		form := url.Values{
			"grant_type":            {"client_credentials"},
			"client_assertion":      {test.assertion},
			"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
		}
		_, body := o.postAnonymous("/token", form, nil)
		if got, _ := body["error"].(string); got != test.want {
			t.Errorf("%s: got %v, want %q", test.name, body, test.want)
		}
	}
	form := url.Values{"grant_type": {"client_credentials"}, "client_assertion": {sign(t, key, nil, claims(nil))}}
	if _, body := o.postAnonymous("/token", form, nil); body["error"] != "invalid_client" {
		t.Errorf("without client_assertion_type: got %v", body)
	}
	form.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
	form.Set("client_id", "web")
	if _, body := o.postAnonymous("/token", form, nil); body["error"] != "invalid_client" {
		t.Errorf("with another client_id: got %v", body)
	}
	form.Set("client_id", "signer")
	form.Set("client_secret", "x")
	if _, body := o.postAnonymous("/token", form, nil); body["error"] != "invalid_request" {
		t.Errorf("with a secret too: got %v", body)
	}
}
