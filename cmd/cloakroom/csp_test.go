package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/web"
)

// angularPage has the element by which Angular loads its style sheet late, with
// the hash that Chromium reports for its handler.
const (
	angularPage = `<!doctype html><base href="/">
<link rel="stylesheet" href="styles.css" media="print" onload="this.media='all'">`
	angularHash = "'sha256-MhtPZXr7+LpJUY5qtMutB+qWfQtMaPccfe7QXtCcEYc='"
)

// writeBuildFiles writes the files of a build, and returns the directory.
func writeBuildFiles(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		overwrite(t, filepath.Join(dir, name), text)
	}
	return dir
}

func TestCSPCommandPrintsWhatABuildNeeds(t *testing.T) {
	t.Parallel()
	dir := writeBuildFiles(t, map[string]string{
		"index.html": angularPage, "app.wasm": "\x00asm",
		"main.js": "fetch('https://api.example.com/');eval(x);a='https://help.example.com/'",
	})
	want := map[string][]string{
		"script-src":  {"'unsafe-hashes'", angularHash, "'wasm-unsafe-eval'"},
		"connect-src": {"https://api.example.com"},
	}
	var out, stderr bytes.Buffer
	if got := exitCode(run(t.Context(), []string{"csp", dir}, noEnv, nil, &out, &stderr)); got != 0 {
		t.Fatalf("got status %d and %s, want 0", got, stderr.String())
	}
	var printed struct {
		Frontend struct {
			CSP map[string][]string `yaml:"csp"`
		} `yaml:"frontend"`
	}
	if err := yaml.Load(out.Bytes(), &printed); err != nil {
		t.Fatalf("%v in:\n%s", err, out.String())
	}
	sameSources := func(got map[string][]string) bool {
		if len(got) != len(want) {
			return false
		}
		for directive, sources := range want {
			sorted := slices.Sorted(slices.Values(got[directive]))
			if !slices.Equal(sorted, slices.Sorted(slices.Values(sources))) {
				return false
			}
		}
		return true
	}
	if !sameSources(printed.Frontend.CSP) {
		t.Errorf("got %v, want %v", printed.Frontend.CSP, want)
	}
	for _, text := range []string{
		"index.html:2: the inline event handler onload of <link>", "instead: in angular.json",
		"main.js:1: guess: the URL https://api.example.com/", `# weakens the policy much: - "'unsafe-eval'"`,
		"https://help.example.com (main.js:1)", "<base> (base-uri)",
	} {
		if !strings.Contains(out.String(), text) {
			t.Errorf("got no %q in:\n%s", text, out.String())
		}
	}

	out.Reset()
	if err := run(t.Context(), []string{"csp", "--json", dir}, noEnv, nil, &out, &stderr); err != nil {
		t.Fatal(err)
	}
	var object struct {
		CSP      map[string][]string
		Needs    []web.Need
		Mentions []web.Mention
	}
	if err := json.Unmarshal(out.Bytes(), &object); err != nil {
		t.Fatalf("%v in %s", err, out.String())
	}
	if !sameSources(object.CSP) || len(object.Needs) != 5 || len(object.Mentions) != 1 {
		t.Errorf("got %+v, want the same policy, 5 needs and 1 mention", object)
	}
}

func TestCSPCommandExitStatus(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		args   []string
		status int
		output string // of standard output and error
	}{
		"nothing needed": {[]string{"csp", writeBuildFiles(t, map[string]string{"index.html": "<!doctype html>"})},
			0, "csp: {} # the strict default is enough"},
		"javascript: URL": {[]string{"csp", writeBuildFiles(t, map[string]string{
			"index.html": `<a href="javascript:a()">`})},
			1, "the javascript: URL in href of <a> (script-src): use a button"},
		"script by http": {[]string{"csp", writeBuildFiles(t, map[string]string{
			"index.html": `<script src="http://cdn.example.com/a.js"></script>`})}, 1, "use https"},
		"not a build":     {[]string{"csp", t.TempDir()}, 2, "has no index.html: build the app first"},
		"absent":          {[]string{"csp", "/nowhere/dist"}, 2, "does not exist"},
		"no directory":    {[]string{"csp"}, 2, "takes one directory"},
		"two directories": {[]string{"csp", "a", "b"}, 2, "takes one directory"},
	} {
		var out bytes.Buffer
		if got := exitCode(run(t.Context(), test.args, noEnv, nil, &out, &out)); got != test.status {
			t.Errorf("%s: got status %d, want %d", name, got, test.status)
		}
		if !strings.Contains(out.String(), test.output) {
			t.Errorf("%s: got %s, want %q in it", name, out.String(), test.output)
		}
	}
}

// serve warns of what the policy blocks. A reload that allows it needs no
// warning.
func TestServeWarnsOfWhatThePolicyBlocks(t *testing.T) {
	t.Parallel()
	listen, app := freeOrigin(t)
	admin := freeAddr(t)
	provider := brokertest.NewProvider(t, app)
	dir := writeBuildFiles(t, map[string]string{
		"index.html": angularPage, "app.wasm": "\x00asm", "main.js": "new WebSocket('wss://live.example.com')",
	})
	base := fmt.Sprintf("server: {listen: %q, admin_listen: %q, public_url: %q}\n"+
		"oidc: {issuer: %q, client_id: spa, client_secret: %q}\nfrontend:\n  dir: %q\n",
		listen, admin, app, provider.Issuer, provider.Client.Secret, dir)
	file := writeFile(t, "cloakroom.yaml", base)
	p := start(t, nil, "serve", "--config", file)
	for _, want := range []string{
		`index.html:2: the Content-Security-Policy blocks the inline event handler onload`,
		`app.wasm: the Content-Security-Policy blocks WebAssembly`,
		`main.js:1: the Content-Security-Policy may block the URL wss://live.example.com`,
	} {
		p.waitFor(p.stderr, `"level":"WARN","msg":"part of the app blocked by its policy","problem":"[^"]*`+want)
	}
	before := strings.Count(p.stderr.String(), "blocked by its policy")
	if before != 3 {
		t.Errorf("got %d warnings, want 3", before)
	}
	overwrite(t, file, base+"  csp:\n    script-src: [\"'unsafe-hashes'\", \""+angularHash+
		"\", \"'wasm-unsafe-eval'\"]\n    connect-src: [wss://live.example.com]\n")
	eventually(t, 20*time.Second, "the new policy is in force", func() bool {
		resp, err := http.Get(app + "/")
		if err != nil {
			return false
		}
		resp.Body.Close()
		policy := resp.Header.Get("Content-Security-Policy")
		return strings.Contains(policy, angularHash) &&
			strings.Contains(policy, "connect-src 'self' wss://live.example.com;")
	})
	p.end()
	if got := strings.Count(p.stderr.String(), "blocked by its policy"); got != before {
		t.Errorf("after the reload: got %d more warnings, want none", got-before)
	}
}
