package bearer_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bearer"
)

// FuzzVerify uses its input as a token, and as header and payload under a valid
// signature. The claims of an accepted token must be what encoding/json
// decodes, and Explain must agree with Verify.
func FuzzVerify(f *testing.F) {
	header := string(headerOf(ed25519Key()))
	payload := string(must(json.Marshal(claims(object{"exp": time.Now().Add(1000 * time.Hour).Unix()}))))
	f.Add(ed25519Key().token(), header, payload)
	f.Add("", `{"alg":"none"}`, `{}`)
	f.Add("a.b.c", `{"alg":"EdDSA","typ":"at+jwt","kid":"ed","crit":["x"]}`,
		strings.Replace(payload, `"sub"`, `"s\u0075b"`, 1))
	f.Add(`{"payload":"x"}`, header+" ", strings.Replace(payload, `"sub"`, `"x":[{"a":"}\\\""},[]],"sub"`, 1))
	f.Add("..", header,
		strings.Replace(payload, `"scope":"orders:read orders:write"`, `"scope":["orders:read","b c"]`, 1))
	f.Add("..", "[]", strings.Replace(payload, `"sub"`, `"SUB":"bob","sub"`, 1))
	v := newIssuer(ed25519Key().jwk()).verifier(f)
	f.Fuzz(func(t *testing.T, raw, header, payload string) {
		for _, token := range []string{raw, ed25519Key().sign([]byte(header), []byte(payload))} {
			got, err := v.Verify(t.Context(), token)
			failed := slices.ContainsFunc(v.Explain(t.Context(), token),
				func(c bearer.Check) bool { return c.Err != nil })
			if failed != (err != nil) {
				t.Fatalf("Verify returned %v, Explain disagrees", err)
			}
			if err != nil {
				var invalid *bearer.InvalidTokenError
				if !errors.As(err, &invalid) || got != nil {
					t.Fatalf("got %v and %v, want no token and an InvalidTokenError", got, err)
				}
				continue
			}
			var want struct {
				Issuer   string `json:"iss"`
				Subject  string `json:"sub"`
				ClientID string `json:"client_id"`
				ID       string `json:"jti"`
				Scope    any    `json:"scope"`
			}
			if err := json.Unmarshal(got.Claims, &want); err != nil {
				t.Fatalf("accepted claims cannot be decoded: %v", err)
			}
			scope, _ := want.Scope.(string)
			if many, ok := want.Scope.([]any); ok {
				for _, one := range many {
					scope += " " + one.(string)
				}
			}
			if got.Issuer != want.Issuer || got.Subject != want.Subject ||
				got.ClientID != want.ClientID || got.ID != want.ID {
				t.Fatalf("got %+v, encoding/json reads %+v", got, want)
			}
			if want.Issuer != issuerURL || want.Subject == "" || want.ID == "" {
				t.Fatalf("accepted: %+v", want)
			}
			for _, s := range got.Scopes {
				if !strings.Contains(" "+scope+" ", " "+s+" ") {
					t.Fatalf("got the scope %q of %q", s, scope)
				}
			}
			encoded, _, _ := strings.Cut(token, ".")
			var head map[string]any
			if err := json.Unmarshal(must(base64.RawURLEncoding.DecodeString(encoded)),
				&head); err != nil || head["alg"] != "EdDSA" && head["alg"] != "Ed25519" || head["crit"] != nil {
				t.Fatalf("accepted the header %v, %v", head, err)
			}
		}
	})
}
