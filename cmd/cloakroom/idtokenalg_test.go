package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

func TestTheAlgorithmOfIDTokensIsChecked(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		alg, env string
		good     bool
	}{
		{"RS256", "", true}, {"PS256", "", true}, {"ES512", "", true}, {"EdDSA", "", true}, {"Ed25519", "", true}, {"", "", true}, {"", "ES256", true},
		{"none", "", false}, {"HS256", "", false}, {"rs256", "", false}, {"RS257", "", false}, {"", "HS512", false}, {"RS256", "none", false},
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
		err := run(t.Context(), []string{"serve", "--config", writeFile(t, "cloakroom.yaml", yaml+"}\n")}, getenv, nil, &stdout, &stderr)
		if exitCode(err) != 2 { // for the sake of server.listen
			t.Fatalf("got %v", err)
		}
		alg := test.alg
		if test.env != "" {
			alg = test.env
		}
		line := fmt.Sprintf("oidc.id_token_alg: %q is not the name of an algorithm with a public key", alg)
		if got := strings.Contains(stderr.String(), line); got == test.good || test.good && strings.Contains(stderr.String(), "id_token_alg") {
			t.Errorf("%+v: got %s", test, stderr.String())
		}
	}
}
