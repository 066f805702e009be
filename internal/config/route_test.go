package config

import (
	"log/slog"
	"strings"
	"testing"
)

func TestKeysOfARouteThatConcernWhatPasses(t *testing.T) {
	t.Parallel()
	c := mustLoad(t, `
routes:
  - {path: /git/, upstream: "http://a", token: user, csrf: auto, documents: allow, encoded_slashes: pass, headers_json: {X-Roles: roles}}
  - {path: /api/, upstream: "http://a", token: user}
`, nil)
	var problems Errors
	routes := c.routes(slog.Default(), &problems)
	if len(problems) > 0 || len(routes) != 2 {
		t.Fatalf("got %d routes, %v", len(routes), problems)
	}
	if r := routes[0]; r.CSRF != "auto" || r.Documents != "allow" || r.EncodedSlashes != "pass" ||
		r.HeadersJSON["X-Roles"] != "roles" {
		t.Errorf("got %+v", r)
	}
	err := build(mustLoad(t, `
server: {public_url: "https://app.example.com"}
oidc: {issuer: "https://id.example.com", client_id: spa, client_secret: s}
routes:
  - {path: /git/, upstream: "http://a", token: none, documents: "yes", encoded_slashes: "no"}
  - {path: /npm/, upstream: "http://a", token: none, encoded_slashes: pass}
  - {path: /npm/admin/, upstream: "http://a", token: user, headers: {X-Role: role}, headers_json: {X.ROLE: role}}
  - {path: /pip/, upstream: "http://a", token: user, require: {scopes: ["a b"], acr: ['gold"']}}
`, nil))
	if err == nil {
		t.Fatal("it starts")
	}
	for _, want := range []string{
		`routes[0].documents: "yes" is not allow`, `routes[0].encoded_slashes: "no" is not pass`,
		`routes[1].encoded_slashes: the route "/npm/admin/" lies below this one`,
		`routes[2].headers_json: "X.ROLE" is configured twice`,
		`routes[3].require.scopes: "a b" is not a scope`, `routes[3].require.acr: "gold\"" is not an acr`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no line says %q:\n%v", want, err)
		}
	}
}
