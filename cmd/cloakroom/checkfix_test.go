package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/internal/check"
)

// checkOffline returns the findings for a configuration. DIR in it is a folder.
func checkOffline(t *testing.T, dir, text string) []check.Finding {
	t.Helper()
	file := filepath.Join(t.TempDir(), "cloakroom.yaml")
	if !strings.Contains(text, "server:") {
		text += "server: {public_url: 'http://localhost:8080'}\n"
	}
	overwrite(t, file, strings.ReplaceAll(text, "DIR", dir))
	var out, stderr bytes.Buffer
	run(t.Context(), []string{"check", "--offline", "--json", "--config", file}, func(string) string { return "" },
		strings.NewReader(""), &out, &stderr) // the exit status depends on the findings
	var findings []check.Finding
	if err := json.Unmarshal(out.Bytes(), &findings); err != nil {
		t.Fatalf("%v\n%s%s", err, &out, &stderr)
	}
	return findings
}

func TestFixesOfCheckSayWhatToDo(t *testing.T) {
	t.Parallel()
	const client = "oidc: {issuer: 'http://localhost:9', client_id: app, client_secret: secret}\n"
	for name, test := range map[string]struct{ text, key, fix string }{
		"a missing secret": {"oidc: {issuer: 'http://localhost:9', client_id: app, client_secret_file: DIR/none}\n",
			"oidc.client_secret_file", "Create DIR/none, or correct oidc.client_secret_file."},
		"a key that is there twice": {client + "x-a: {}\nstore: {url: 'memory:', url: 'memory:'}\n",
			"store.url", "Remove one of the two."},
		"a missing CA": {"oidc: {issuer: 'http://localhost:9', client_id: app, client_secret: a, ca_file: DIR/ca}\n",
			"oidc.ca_file", "Create DIR/ca, or correct oidc.ca_file."},
		"a secret in public settings": {client + "frontend: {config: {client_secret: x}}\n",
			"frontend.config.client_secret", "Remove it, or rename it if it is public."},
		"the value of a secret": {client + "session: {keys: [" + goodKey + "]}\nfrontend: {config: {a: " +
			goodKey + "}}\n", "frontend.config.a", "Remove it."},
		"a risky source": {client + "frontend: {csp: {script-src: [\"'unsafe-eval'\"]}}\n",
			"frontend.csp.script-src", "Remove it, unless the app does not work without."},
		"a source with all packages of npm": {client + "frontend: {csp: {script-src: ['https://unpkg.com']}}\n",
			"frontend.csp.script-src", "Name the file, or put it into the app's own files."},
		"a policy that blocks nothing": {client + "frontend: {csp_report_only: true}\n",
			"frontend.csp_report_only", "Remove it when the browsers' reports have no violation of the app."},
		"a referrer for all": {client + "frontend: {referrer_policy: unsafe-url}\n",
			"frontend.referrer_policy", "Use strict-origin-when-cross-origin, or remove it."},
		"a guessable token": {client + "server: {public_url: 'http://localhost:8080', admin_token: x}\n",
			"server.admin_token", "Use at least 20, such as the output of cloakroom keygen."},
		"proxies of the world": {client +
			"server: {public_url: 'http://localhost:8080', trusted_proxies: [0.0.0.0/1]}\n",
			"server.trusted_proxies", "List only your proxies."},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			findings := checkOffline(t, dir, test.text)
			i := slices.IndexFunc(findings, func(f check.Finding) bool { return f.Key == test.key })
			if i < 0 {
				t.Fatalf("got %+v, want one for %s", findings, test.key)
			}
			if got, want := findings[i].Fix, strings.ReplaceAll(test.fix, "DIR", dir); got != want {
				t.Errorf("fix: got %q, want %q", got, want)
			}
		})
	}
}

func TestTemplateThatAllCanReadIsNoFinding(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	page := filepath.Join(dir, "page.html")
	if err := os.WriteFile(page, []byte("<!doctype html>{{.Title}}"), 0o644); err != nil {
		t.Fatal(err)
	}
	findings := checkOffline(t, dir, "server: {public_url: 'http://localhost:8080', page_file: DIR/page.html}\n"+
		"oidc: {issuer: 'http://localhost:9', client_id: app, client_secret: secret}\n")
	for _, f := range findings {
		if f.Key == "server.page_file" {
			t.Errorf("got %+v, want nothing about the template", f)
		}
	}
}
