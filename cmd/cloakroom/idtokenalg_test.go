package main

import (
	"bytes"
	"cmp"
	"fmt"
	"strings"
	"testing"
)

func TestIDTokenAlgIsValidated(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		alg, env string
		valid    bool
	}{
		{"RS256", "", true}, {"PS256", "", true}, {"ES512", "", true}, {"EdDSA", "", true},
		{"Ed25519", "", true}, {"", "", true}, {"", "ES256", true},
		{"none", "", false}, {"HS256", "", false}, {"rs256", "", false}, {"RS257", "", false},
		{"", "HS512", false}, {"RS256", "none", false},
	} {
		yaml := `
server: {public_url: "https://app.example.com", listen: nowhere}
oidc: {issuer: "https://id.example.com", client_id: spa, client_secret: s`
		if test.alg != "" {
			yaml += ", id_token_alg: " + test.alg
		}
		getenv := func(name string) string {
			if name == "CLOAKROOM_OIDC_ID_TOKEN_ALG" {
				return test.env
			}
			return ""
		}
		var stdout, stderr bytes.Buffer
		args := []string{"serve", "--config", writeFile(t, "cloakroom.yaml", yaml+"}\n")}
		// server.listen is invalid, so that the broker does not start.
		if got := exitCode(run(t.Context(), args, getenv, nil, &stdout, &stderr)); got != 2 {
			t.Fatalf("%+v: got status %d, want 2", test, got)
		}
		if got := strings.Contains(stderr.String(), "id_token_alg"); got == test.valid {
			t.Errorf("%+v: got\n%s", test, stderr.String())
		}
		want := fmt.Sprintf("oidc.id_token_alg: %q is not the name of an algorithm with a public key",
			cmp.Or(test.env, test.alg))
		if !test.valid && !strings.Contains(stderr.String(), want) {
			t.Errorf("%+v: got\n%s\nwant %q in it", test, stderr.String(), want)
		}
	}
}
