package config

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
)

func TestProblemsHaveKeyValueAndProblem(t *testing.T) {
	t.Parallel()
	c, read := load(t, `
server: {public_url: "http://app.example.com", shutdown_grace: soon, trusted_proxies: [proxy]}
oidc: {issuer: "https://id.example.com", client_id: spa, client_secret: s}
store: {url: "mysql://hunter2"}
session: {keys: [hunter2], max_per_user: -1}
routes: [{path: /a/, upstream: "http://a", token: maybe}]
`, map[string]string{"CLOAKROOM_SESSION_IDLE_TIMEOUT": "long"})
	var problems Errors
	if !errors.As(Merge(read, build(c)), &problems) {
		t.Fatal("no problems")
	}
	got := make(map[string]*Error)
	for _, problem := range problems {
		got[problem.Key] = problem
	}
	for key, value := range map[string]string{
		"server.shutdown_grace":     "soon",
		"session.idle_timeout":      "long",
		"server.public_url":         "http://app.example.com",
		"server.trusted_proxies[0]": "proxy",
		"store.url":                 "[redacted]",
		"session.keys[0]":           "[redacted]",
		"session.max_per_user":      "-1",
		"routes[0].token":           "maybe",
	} {
		if got[key] == nil {
			t.Errorf("no problem of %s", key)
		} else if got[key].Value != value {
			t.Errorf("%s: got the value %q, want %q", key, got[key].Value, value)
		}
	}
	if len(problems) != 8 {
		t.Errorf("got %d problems, want 8:\n%v", len(problems), problems)
	}
}

func TestUnusableKeyIsNotAlsoMissing(t *testing.T) {
	t.Parallel()
	c := mustLoad(t, `
server: {public_url: "https://app.example.com"}
oidc: {issuer: "https://id.example.com", client_id: spa, client_auth: private_key_jwt, client_key: nonsense}
`, nil)
	want := "oidc.client_key: [redacted] does not consist of private keys in PEM"
	if err := build(c); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// A mistake in a route names a key that exists.
func TestEachFieldOfARouteHasAKey(t *testing.T) {
	t.Parallel()
	for i := range reflect.TypeFor[bff.Route]().NumField() {
		field := reflect.TypeFor[bff.Route]().Field(i).Name
		if field == "Handler" || field == "NoRetry" { // which a file cannot set, and cannot set wrongly
			continue
		}
		key := strings.Replace(serverKey("Routes[0]."+field), "[0]", "[]", 1)
		if !slices.ContainsFunc(Keys, func(k Key) bool { return k.Name == key || strings.HasPrefix(k.Name, key+".") }) {
			t.Errorf("%s: got %s, which is no key", field, key)
		}
	}
}
