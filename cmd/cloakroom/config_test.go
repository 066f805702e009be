package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const goodKey = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="

func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAllConfigurationErrorsAreReportedAtOnce(t *testing.T) {
	for name, test := range map[string]struct {
		yaml string
		want []string
	}{
		"nothing": {"", []string{
			"oidc.client_id: missing",
			"oidc.client_secret: missing; a client without credentials is refused (RFC 10017 6.1.3.1)",
			"oidc.issuer: missing",
			"server.public_url: missing",
		}},
		"everything": {`
server: {listen: nowhere, admin_listen: "0.0.0.0:9090", public_url: "http://app.example.com", trusted_proxies: [0.0.0.0/0, proxy], prefix: bff, tls: {cert_file: x}}
oidc: {issuer: "http://id.example.com", client_id: spa, client_secret: s, client_auth: none}
store: {url: "redis://:hunter2/0@redis"}
session: {keys: [hunter2], cookie: {same_site: none}}
routes:
  - {path: api, upstream: "orders:8080", token: maybe, csrf: never}
frontend: {dir: /nowhere/dist, fallback: spa}
`, []string{
			`frontend.dir: `,
			`frontend.fallback: "spa" is none of auto, index, none`,
			`oidc.client_auth: "none" is none of client_secret_basic, client_secret_post`,
			`oidc.issuer: "http://id.example.com": plain http is for a provider on a loopback host alone`,
			`routes[0].csrf: "never" is none of header, fetch-metadata, auto`,
			`routes[0].path: path "api" does not begin with a slash`,
			`routes[0].token: "maybe" is none of user, optional, client, user-or-client, none`,
			`routes[0].upstream: "orders:8080" is not a URL such as http://orders.internal:8080`,
			`server.admin_token: missing; required because server.admin_listen "0.0.0.0:9090" is not on the` +
				` loopback interface`,
			`server.listen: "nowhere" is not an address such as 127.0.0.1:8080`,
			`server.prefix: "bff" is not a path such as /bff`,
			`server.public_url: "http://app.example.com": without https`,
			`server.tls: set both cert_file and key_file, or neither`,
			`server.trusted_proxies[0]: "0.0.0.0/0" trusts every client, which could then send any client` +
				` address; list only your proxies`,
			`server.trusted_proxies[1]: "proxy" is not a network such as 10.0.0.0/8`,
			`session.cookie.same_site: "none" is not strict or lax`,
			`session.keys[0]: [redacted] is not the base64 of 32 bytes; cloakroom keygen prints a valid key`,
			`store.url: not a URL such as redis://user:password@host:6379/0`,
		}},
		"redis without keys": {`
server: {public_url: "https://app.example.com"}
oidc: {issuer: "https://id.example.com", client_id: spa, client_secret: s}
store: {url: "redis://localhost"}
`, []string{"session.keys: missing; at least one key of 32 bytes is needed"}},
		"routes in the way": {`
server: {public_url: "https://app.example.com"}
oidc: {issuer: "https://id.example.com", client_id: spa, client_secret: s}
routes:
  - {path: /bff/x, upstream: "http://a", token: none}
  - {path: /, upstream: "http://a", token: none}
  - {path: /api/, upstream: "http://a", token: none}
  - {path: /api/, upstream: "http://b", token: none}
`, []string{
			`routes[0].path: "/bff/x" is under the broker's own "/bff"`,
			`routes[3].path: "/api/" is the path of another route too`,
		}},
		"an unknown store": {`
server: {public_url: "https://app.example.com"}
oidc: {issuer: "https://id.example.com", client_id: spa, client_secret: s}
store: {url: "mysql://hunter2"}
session: {keys: [` + goodKey + `]}
`, []string{"store.url: the scheme is not one of memory, file, redis, redis+sentinel, redis+cluster"}},
		"routes with options": {`
server: {public_url: "https://app.example.com"}
oidc: {issuer: "https://id.example.com", client_id: spa, client_secret: s}
routes:
  - {path: /a/, upstream: [], token: user, retry: twice, methods: [get]}
  - {path: /b/, upstream: "http://b", token: user, upstream_tls: {ca_file: /nowhere/ca.pem}}
  - {path: /c/, upstream: "https://c", token: user, upstream_tls: {cert_file: /nowhere/crt}}
  - {path: /d/, upstream: "http://d", token: none, headers: {Cookie: sub}, require: {claims: {role: []}}}
  - {path: /e/, upstream: "ftp://e", token: user}
`, []string{
			"routes[0].methods: \"get\" is not a method that can be allowed",
			"routes[0].retry: \"twice\" is not once or never",
			"routes[0].upstream: missing",
			"routes[1].upstream_tls.ca_file: open /nowhere/ca.pem",
			"routes[2].upstream_tls: set both cert_file and key_file, or neither",
			"routes[3].headers: \"Cookie\" is not a header",
			"routes[3].require.claims: \"role\" has no value",
			"routes[3].token: none excludes headers and require",
			"routes[4].upstream: \"ftp://e\" is not a URL",
		}},
		"routes that accept tokens": {`
server: {public_url: "https://app.example.com"}
oidc: {issuer: "https://id.example.com", client_id: spa, client_secret: s}
routes:
  - {path: /a/, upstream: "http://a", token: user, accept_bearer: {}}
  - {path: /b/, upstream: "http://b", token: user, accept_bearer: {issuer: "http://id.example.com", audience: b, scopes: ["a b"], algorithms: [HS256], ca_file: /nowhere/ca.pem}}
  - {path: /c/, upstream: "http://c", token: none, accept_bearer: {audience: c, scopes: [c]}}
  - {path: /d/, upstream: "http://d", token: user, accept_bearer: {audience: d, scopes: [d]}, require: {scopes: [d]}}
`, []string{
			"routes[0].accept_bearer.audience: ",
			"routes[1].accept_bearer.algorithms: ",
			"routes[1].accept_bearer.ca_file: open /nowhere/ca.pem",
			"routes[1].accept_bearer.issuer: ",
			"routes[1].accept_bearer.scopes: \"a b\" is not one scope",
			"routes[2].accept_bearer: it has no use with token none",
			"routes[3].accept_bearer: it excludes require",
		}},
		"what could never work": {`
server: {public_url: "https://app.example.com"}
oidc: {issuer: "https://id.example.com", client_id: spa, client_secret: s}
store: {url: "memory:"}
session: {idle_timeout: 30ms, max_lifetime: 900ms}
routes: [{path: "/caf%C3%A9/", upstream: "http://a", token: none}, {path: "/x?y", upstream: "http://a", token: none}]
`, []string{
			`routes[0].path: "/caf%C3%A9/": write it without percent-encoding`,
			`routes[1].path: "/x?y": write it without percent-encoding`,
			"session.idle_timeout: 30ms is shorter than a second",
			"session.max_lifetime: 900ms is shorter than a second",
		}},
		"Sentinels without the master's name": {`
server: {public_url: "https://app.example.com"}
oidc: {issuer: "https://id.example.com", client_id: spa, client_secret: s}
store: {url: "redis+sentinel://user:hunter2@a:26379,b:26379"}
session: {keys: [` + goodKey + `], max_per_user: -1}
`, []string{
			"session.max_per_user: -1 is negative",
			"store.url: not a URL such as redis+sentinel://user:password@host:26379,host:26379/master-name/0",
		}},
		"a Cluster with a database": {`
server: {public_url: "https://app.example.com"}
oidc: {issuer: "https://id.example.com", client_id: spa, client_secret: s}
store: {url: "redis+cluster://:hunter2@a:6379,b:6379/1"}
session: {keys: [` + goodKey + `]}
`, []string{"store.url: not a URL such as redis+cluster://user:password@host:6379,host:6379"}},
		"a CA that is not there": {`
server: {public_url: "https://app.example.com"}
oidc: {issuer: "https://id.example.com", client_id: spa, client_secret: s}
store: {url: "rediss+cluster://:hunter2@a:6379,b:6379", ca_file: /nowhere/ca.pem}
session: {keys: [` + goodKey + `]}
`, []string{"store.ca_file: open /nowhere/ca.pem"}},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			args := []string{"serve", "--config", writeFile(t, "cloakroom.yaml", test.yaml)}
			if got := exitCode(run(t.Context(), args, noEnv, nil, &stdout, &stderr)); got != 2 {
				t.Fatalf("got status %d, want 2:\n%s", got, stderr.String())
			}
			lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
			slices.Sort(lines)
			if len(lines) != len(test.want) {
				t.Errorf("got %d lines, want %d:\n%s", len(lines), len(test.want), strings.Join(lines, "\n"))
			}
			for i := range min(len(lines), len(test.want)) {
				if !strings.HasPrefix(lines[i], test.want[i]) {
					t.Errorf("got  %s\nwant %s", lines[i], test.want[i])
				}
			}
			if strings.Contains(stderr.String()+stdout.String(), "hunter2") {
				t.Errorf("the output contains a secret:\n%s", stderr.String())
			}
		})
	}
}

// A value that cannot be parsed does not prevent the validation of the others.
func TestParseAndValidationErrorsAreReportedTogether(t *testing.T) {
	file := writeFile(t, "cloakroom.yaml", `
server: {public_url: "http://app.example.com", nonsense: 1}
oidc: {issuer: [x], client_id: spa, client_secret: s}
session: {idle_timeout: soon}
routes: [{path: api, upstream: "http://a", token: none}]
`)
	var out bytes.Buffer
	err := run(t.Context(), []string{"serve", "--config", file}, noEnv, nil, &out, &out)
	if got := exitCode(err); got != 2 {
		t.Errorf("got status %d, want 2", got)
	}
	for _, want := range []string{
		"server.nonsense: unknown key", "oidc.issuer: ", "session.idle_timeout: ",
		"server.public_url: ", "routes[0].path: ",
	} {
		if got := strings.Count(out.String(), want); got != 1 {
			t.Errorf("occurrences of %q: got %d, want 1:\n%s", want, got, out.String())
		}
	}
}

func TestKeygenPrintsASessionKey(t *testing.T) {
	var out bytes.Buffer
	if err := run(context.Background(), []string{"keygen"}, nil, nil, &out, &out); err != nil {
		t.Fatal(err)
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(out.String()))
	if err != nil {
		t.Errorf("%q: %v", out.String(), err)
	}
	if len(key) != 32 {
		t.Errorf("length of the key: got %d bytes, want 32", len(key))
	}
}

func TestUsageErrorsExitWithStatus2(t *testing.T) {
	two := writeFile(t, "two.yaml", "server: {listen: nowhere}\n---\nserver: {listen: nowhere}\n")
	for _, test := range []struct {
		args []string
		want string // in the output
	}{
		{[]string{"serve", "--config", two}, "more than one document"},
		{[]string{"serve", "--confg", "x"}, "\n"},
		{[]string{"keygen", "x"}, "\n"},
		{[]string{"sreve"}, "\n"},
		{[]string{"sreve", "--config", two}, `unknown command "sreve"; see cloakroom --help`},
		{[]string{"sessions", "sreve", "--config", two}, `unknown command "sreve"; see cloakroom sessions --help`},
		{[]string{"demo", "sreve", "--config", two}, `unknown command "sreve"; see cloakroom demo --help`},
		{[]string{"help", "sreve"}, `unknown command "sreve"`},
		{[]string{"help", "sessions", "sreve"}, `unknown command "sessions sreve"`},
		{[]string{"serve", "--config", "/nowhere.yaml"}, "\n"},
	} {
		var out bytes.Buffer
		if got := exitCode(run(t.Context(), test.args, noEnv, nil, &out, &out)); got != 2 {
			t.Errorf("%v: got status %d, want 2", test.args, got)
		}
		if !strings.Contains(out.String(), test.want) {
			t.Errorf("%v: got %q, want %q in it", test.args, out.String(), test.want)
		}
	}
}

func TestVersionIsAlsoAFlag(t *testing.T) {
	t.Parallel()
	var flag, command bytes.Buffer
	for _, test := range []struct {
		arg string
		out *bytes.Buffer
	}{{"--version", &flag}, {"version", &command}} {
		if err := run(t.Context(), []string{test.arg}, noEnv, nil, test.out, test.out); err != nil {
			t.Fatalf("%s: got %v\n%s", test.arg, err, test.out)
		}
	}
	if flag.String() != command.String() || !strings.HasPrefix(flag.String(), "cloakroom ") {
		t.Errorf("--version: got %q, want %q as of version", flag.String(), command.String())
	}
}

// Terminals often have 80 columns.
func TestHelpHas80Columns(t *testing.T) {
	t.Parallel()
	for _, command := range []string{
		"", "demo", "demo token", "dev", "init", "client", "serve", "reload", "health", "check", "schema", "csp",
		"sessions", "sessions list", "sessions revoke", "why", "verify", "keygen", "version",
	} {
		var out bytes.Buffer
		if err := run(t.Context(), append(strings.Fields(command), "--help"), noEnv, nil, &out, &out); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(out.String()) {
			if line = strings.TrimSuffix(line, "\n"); len(line) > 80 {
				t.Errorf("%q: got a line of %d columns: %s", command, len(line), line)
			}
		}
	}
}

// noEnv is an empty environment.
func noEnv(string) string { return "" }
