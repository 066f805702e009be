package devidp_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"golang.org/x/oauth2"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

// proof is a request header with a DPoP proof for the token endpoint, but for
// what is changed.
func (o *op) proof(key *ecdsa.PrivateKey, changes map[string]any) http.Header {
	o.t.Helper()
	claims := with(
		map[string]any{"jti": rand.Text(), "htm": "POST", "htu": o.issuer + "/token", "iat": time.Now().Unix()},
		changes,
	)
	return http.Header{"Dpop": {sign(o.t, key, (&jose.SignerOptions{EmbedJWK: true}).WithType("dpop+jwt"), claims)}}
}

func thumbprint(t *testing.T, key *ecdsa.PrivateKey) string {
	t.Helper()
	sum, err := (&jose.JSONWebKey{Key: key.Public()}).Thumbprint(crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(sum)
}

func TestDPoPProofs(t *testing.T) {
	o := newOP(t, nil)
	key := newKey(t)
	form := url.Values{"grant_type": {"client_credentials"}}
	good := o.proof(key, nil)
	status, body := o.post("/token", form, good.Clone())
	if _, claims := read(t, body["access_token"]); status != 200 || body["token_type"] != "DPoP" ||
		claims["cnf"].(map[string]any)["jkt"] != thumbprint(t, key) {
		t.Errorf("got %d %v", status, body)
	}
	if status, body := o.post("/token", form, o.proof(key,
		map[string]any{"htu": o.issuer + "/token?a=b#c"})); status != 200 {
		t.Errorf("a htu with a query: got %d %v", status, body)
	}
	untyped := sign(
		t,
		key,
		&jose.SignerOptions{EmbedJWK: true},
		map[string]any{"jti": "1", "htm": "POST", "htu": o.issuer + "/token", "iat": time.Now().Unix()},
	)
	keyless := sign(
		t,
		key,
		new(jose.SignerOptions).WithType("dpop+jwt"),
		map[string]any{"jti": "2", "htm": "POST", "htu": o.issuer + "/token", "iat": time.Now().Unix()},
	)
	tampered := o.proof(key, nil)["Dpop"][0]
	tampered = tampered[:len(tampered)-8] + "AAAAAAAA"
	for name, header := range map[string]http.Header{
		"replayed":       good,
		"another method": o.proof(key, map[string]any{"htm": "GET"}),
		"another URL":    o.proof(key, map[string]any{"htu": o.issuer + "/par"}),
		"an old one":     o.proof(key, map[string]any{"iat": time.Now().Add(-time.Hour).Unix()}),
		"an early one":   o.proof(key, map[string]any{"iat": time.Now().Add(time.Hour).Unix()}),
		"no jti":         o.proof(key, map[string]any{"jti": nil}),
		"no iat":         o.proof(key, map[string]any{"iat": nil}),
		"two":            {"Dpop": append(o.proof(key, nil)["Dpop"], o.proof(key, nil)["Dpop"]...)},
		"no type":        {"Dpop": {untyped}},
		"no key":         {"Dpop": {keyless}},
		"tampered with":  {"Dpop": {tampered}},
		"not a JWT":      {"Dpop": {"x"}},
	} {
		if status, body := o.post("/token", form, header); status != 400 || body["error"] != "invalid_dpop_proof" {
			t.Errorf("%s: got %d %v", name, status, body)
		}
	}
}

func TestDPoPNonces(t *testing.T) {
	o := newOP(t, func(c *devidp.Config) { c.RequireDPoPNonce = true })
	key := newKey(t)
	form := url.Values{"grant_type": {"client_credentials"}}
	_, body := o.post("/token", form, o.proof(key, nil))
	nonce, _ := body["nonce"].(string)
	if body["error"] != "use_dpop_nonce" || nonce == "" {
		t.Fatalf("without a nonce: got %v", body)
	}
	if status, body := o.post("/token", form, o.proof(key, map[string]any{"nonce": nonce})); status != 200 ||
		body["nonce"] != nonce {
		t.Errorf("with it: got %d %v", status, body)
	}
	o.RotateDPoPNonce()
	_, body = o.post("/token", form, o.proof(key, map[string]any{"nonce": nonce}))
	if body["error"] != "use_dpop_nonce" || body["nonce"] == nonce {
		t.Errorf("after it changed: got %v", body)
	}
	if status, _ := o.post("/token", form, o.proof(key, map[string]any{"nonce": body["nonce"]})); status != 200 {
		t.Errorf("with the new one: got %d", status)
	}
}

func TestACodeMayBeBoundToADPoPKey(t *testing.T) {
	o := newOP(t, nil)
	key := newKey(t)
	verifier := oauth2.GenerateVerifier()
	byParameter := o.oauth.AuthCodeURL("", oauth2.S256ChallengeOption(verifier),
		param("dpop_jkt", thumbprint(t, key)))
	byProof := func() string {
		u, err := url.Parse(o.oauth.AuthCodeURL("", oauth2.S256ChallengeOption(verifier)))
		if err != nil {
			t.Fatal(err)
		}
		_, body := o.post("/par", u.Query(), o.proof(key, map[string]any{"htu": o.issuer + "/par"}))
		uri, _ := body["request_uri"].(string)
		return o.issuer + "/authorize?" + url.Values{"client_id": {"web"}, "request_uri": {uri}}.Encode()
	}
	for name, request := range map[string]func() string{"dpop_jkt": func() string { return byParameter },
		"a pushed proof": byProof} {
		for _, test := range []struct {
			key  *ecdsa.PrivateKey
			want int
		}{{key, 200}, {newKey(t), 400}, {nil, 400}} {
			code := o.authorize("alice", request()).Get("code")
			form := url.Values{
				"grant_type":    {"authorization_code"},
				"code":          {code},
				"redirect_uri":  {redirectURI},
				"code_verifier": {verifier},
			}
			var header http.Header
			if test.key != nil {
				header = o.proof(test.key, nil)
			}
			if status, body := o.post("/token", form, header); status != test.want ||
				status == 400 && body["error"] != "invalid_grant" {
				t.Errorf("%s: got %d %v, want %d", name, status, body, test.want)
			}
		}
	}
	u, err := url.Parse(byParameter)
	if err != nil {
		t.Fatal(err)
	}
	if status, body := o.post("/par", u.Query(), o.proof(newKey(t),
		map[string]any{"htu": o.issuer + "/par"})); status != 400 ||
		body["error"] != "invalid_dpop_proof" {
		t.Errorf("dpop_jkt and another key's proof: got %d %v", status, body)
	}
}

func TestABoundTokenNeedsItsKey(t *testing.T) {
	o := newOP(t, func(c *devidp.Config) { c.Clients[0].DPoPBound = true })
	key := newKey(t)
	verifier := oauth2.GenerateVerifier()
	code := o.authorize("alice", o.oauth.AuthCodeURL("", oauth2.S256ChallengeOption(verifier))).Get("code")
	form := url.Values{
		"grant_type":    {"authorization_code"},
		"code":          {code},
		"redirect_uri":  {redirectURI},
		"code_verifier": {verifier},
	}
	if status, body := o.post("/token", form, nil); status != 400 || body["error"] != "invalid_dpop_proof" {
		t.Errorf("a client that is to be bound, without a proof: got %d %v", status, body)
	}
	_, body := o.post("/token", form, o.proof(key, nil)) // the code was not used by that
	access, _ := body["access_token"].(string)
	sum := sha256.Sum256([]byte(access))
	use := map[string]any{
		"htm": "GET",
		"htu": o.issuer + "/userinfo",
		"ath": base64.RawURLEncoding.EncodeToString(sum[:]),
	}
	for _, test := range []struct {
		name, scheme string
		header       http.Header
		want         int
	}{
		{"right", "DPoP", o.proof(key, use), 200},
		{"as a bearer token", "Bearer", o.proof(key, use), 401},
		{"no proof", "DPoP", nil, 401},
		{"another key", "DPoP", o.proof(newKey(t), use), 401},
		{"a proof for another token", "DPoP", o.proof(key, with(use, map[string]any{"ath": "x"})), 401},
		{"a proof for no token", "DPoP", o.proof(key, with(use, map[string]any{"ath": nil})), 401},
	} {
		if resp, _ := o.userinfo(test.scheme, access, test.header); resp.StatusCode != test.want {
			t.Errorf("%s: got %d, want %d", test.name, resp.StatusCode, test.want)
		}
	}
	// The refresh token is the client's, not the key's (RFC 9449 5).
	refresh := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {body["refresh_token"].(string)}}
	if status, body := o.post("/token", refresh, o.proof(newKey(t), nil)); status != 200 ||
		body["token_type"] != "DPoP" {
		t.Errorf("a refresh with another key: got %d %v", status, body)
	}
}
