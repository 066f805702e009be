package config

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// providers returns the directories of configs/providers, by name.
func providers(t *testing.T) map[string]string {
	t.Helper()
	const parent = "../../configs/providers"
	entries, err := os.ReadDir(parent)
	if err != nil {
		t.Fatal(err)
	}
	dirs := make(map[string]string)
	for _, e := range entries {
		dirs[e.Name()] = filepath.Join(parent, e.Name())
	}
	for _, name := range []string{"keycloak", "auth0", "okta", "entra", "google", "cognito", "zitadel", "authentik",
		"dex", "hydra"} {
		if dirs[name] == "" {
			t.Errorf("there is nothing about %s", name)
		}
	}
	return dirs
}

func TestTheProvidersConfigurationsWork(t *testing.T) {
	dist := t.TempDir()
	if err := os.WriteFile(filepath.Join(dist, "index.html"), []byte("<!doctype html>"), 0o600); err != nil {
		t.Fatal(err)
	}
	secret := writeFile(t, "secret", goodKey)
	// The longer names first: of two that fit the first is taken.
	files := strings.NewReplacer("/run/secrets/session-keys", secret, "/run/secrets/client", secret, "./dist", dist)
	for name, dir := range providers(t) {
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join(dir, "cloakroom.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			if err := build(mustLoad(t, files.Replace(string(text)), nil)); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A key in a comment, for operators who need it, is one that exists.
func TestTheProvidersCommentsNameKeysThatExist(t *testing.T) {
	known := allKeys(reflect.TypeFor[Config]())
	commented := regexp.MustCompile(`(?m)^ *# ([a-z0-9_]+):(?: |$)`)
	for name, dir := range providers(t) {
		text, err := os.ReadFile(filepath.Join(dir, "cloakroom.yaml"))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, m := range commented.FindAllStringSubmatch(string(text), -1) {
			if key := strings.TrimSuffix(m[1], "_file"); !slices.Contains(known, key) &&
				!slices.Contains(known, m[1]) && !slices.Contains([]string{"claims", "require", "hd"}, key) {
				t.Errorf("%s: there is no key %s", name, m[1])
			}
		}
	}
}

func TestTheProvidersReadmesSayWhatToRegister(t *testing.T) {
	known := allKeys(reflect.TypeFor[Config]())
	named := regexp.MustCompile("`(?:server|oidc|store|session)\\.((?:[a-z_]+\\.)*)([a-z_]+)")
	for name, dir := range providers(t) {
		text, err := os.ReadFile(filepath.Join(dir, "README.md"))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, want := range []string{"PUBLIC_URL/bff/callback", "PUBLIC_URL/bff/logout/callback", "\n## Quirks\n"} {
			if !strings.Contains(string(text), want) {
				t.Errorf("%s: README.md does not say %q", name, want)
			}
		}
		for _, m := range named.FindAllStringSubmatch(string(text), -1) {
			if key := m[2]; !slices.Contains(known, key) && !slices.Contains(known, strings.TrimSuffix(key, "_file")) {
				t.Errorf("%s: README.md speaks of %s, which is no key", name, m[0])
			}
		}
	}
}
