package config

import (
	"errors"
	"strings"
	"testing"
)

// Each key whose value can be a URL gets one with a password.
func TestPasswordsInURLsAreMistakesAndNotQuoted(t *testing.T) {
	t.Parallel()
	const base = "store: {url: 'memory:'}\n"
	with := func(u string) map[string]string {
		return map[string]string{
			"server.public_url": "server: {public_url: '" + u + "'}\n",
			"oidc.issuer":       "oidc: {issuer: '" + u + "'}\n",
			"oidc.logout_url":   "oidc: {logout_url: '" + u + "'}\n",
			"frontend.url":      "frontend: {url: '" + u + "'}\n",
			"routes[0].upstream": "routes: [{path: /a/, token: none, upstream: '" + u + "'}, " +
				"{path: /b/, token: none, upstream: 'http://b'}]\n",
			"routes[1].upstream": "routes: [{path: /a/, token: none, upstream: 'http://a'}, " +
				"{path: /b/, token: none, upstream: ['http://b', '" + u + "']}]\n",
		}
	}
	for _, u := range []string{
		"http://user:hunter2@api", "https://hunter2@api:1/x", "h2c://:hunter2@api", "http://user:hunter2%zz@api",
		"http://user:hunter2@", "http://a@b:hunter2@api?x#y",
	} {
		for key, text := range with(u) {
			cfg, err := load(t, base+text, nil)
			if err == nil {
				err = build(cfg)
			}
			var problems Errors
			if !errors.As(err, &problems) {
				t.Fatalf("%s: %s: got %v, want mistakes", key, u, err)
			}
			found := 0
			for _, problem := range problems {
				if problem.Key == key {
					found++
				}
				if strings.Contains(problem.Error()+problem.Value, "hunter2") {
					t.Errorf("%s: %s: the mistake quotes the password: %v", key, u, problem)
				}
			}
			if found != 1 {
				t.Errorf("%s: %s: got %d mistakes for the key, want 1: %v", key, u, found, err)
			}
		}
	}
	cfg := mustLoad(t, base+"routes: [{path: /a@b/, token: none, upstream: 'http://api/x@y'}]\n", nil)
	if found := urlsWithUserinfo(cfg); len(found) > 0 {
		t.Errorf("an @ in a path: got %v, want no mistake", found)
	}
}
