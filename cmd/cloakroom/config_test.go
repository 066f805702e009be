package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
)

const goodKey = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="

// load writes text to a file and loads it with an environment.
func load(t *testing.T, text string, env map[string]string) (*config, error) {
	t.Helper()
	return loadConfig(writeFile(t, "cloakroom.yaml", text), func(name string) string { return env[name] })
}

func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func mustLoad(t *testing.T, text string, env map[string]string) *config {
	t.Helper()
	c, err := load(t, text, env)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTheConfigurationIsReadFromTheFile(t *testing.T) {
	c := mustLoad(t, `
server: {public_url: "https://app.example.com", shutdown_grace: 5s, trusted_proxies: [10.0.0.0/8, 192.168.1.1]}
oidc:
  issuer: https://id.example.com
  client_id: 010
  client_secret: 0x10
  scopes: [openid, api]
session:
  keys: [`+goodKey+`]
routes:
  - {path: /api/, upstream: "http://a", token: user}
  - {path: /public/, upstream: "http://b", token: none, csrf: fetch-metadata}
`, nil)
	if c.Server.PublicURL != "https://app.example.com" || c.Server.ShutdownGrace != 5*time.Second || c.OIDC.ClientID != "010" || c.OIDC.ClientSecret.Reveal() != "0x10" {
		t.Errorf("got %+v", c)
	}
	if len(c.Routes) != 2 || c.Routes[1].CSRF != "fetch-metadata" || !slices.Equal(c.OIDC.Scopes, []string{"openid", "api"}) {
		t.Errorf("got %+v", c)
	}
	if c.Server.Listen != "127.0.0.1:8080" || c.Server.AdminListen != "127.0.0.1:9090" || c.Store.URL.Reveal() != "memory:" {
		t.Errorf("defaults: got %+v", c)
	}
	if keys, wrong := c.sessionKeys(); len(keys) != 1 || len(keys[0]) != 32 || wrong != nil {
		t.Errorf("keys: got %v, %v", keys, wrong)
	}
	if proxies, wrong := c.trustedProxies(); len(proxies) != 2 || wrong != nil {
		t.Errorf("proxies: got %v, %v", proxies, wrong)
	}
}

func TestARouteIsReadFromTheFile(t *testing.T) {
	c := mustLoad(t, `
routes:
  - path: /api/
    upstream: [http://a:8080, http://b:8080]
    strip_prefix: true
    methods: [GET, POST]
    token: optional
    timeouts: {connect: 1s, response_header: 2s, idle: 3s}
    max_body: 10MiB
    retry: never
    headers: {X-User: sub, X-Name: preferred_username}
    require:
      scopes: [orders:read, orders:write]
      claims: {groups: [ops, staff], title: the big boss}
      acr: [gold]
      max_age: 15m
  - {path: /one/, upstream: https://one, token: user}
`, nil)
	routes, wrong := c.routes(slog.Default())
	if len(wrong) > 0 || len(routes) != 2 {
		t.Fatalf("got %d routes, %v", len(routes), wrong)
	}
	want := bff.Route{
		Path: "/api/", Upstream: []string{"http://a:8080", "http://b:8080"}, StripPrefix: true, Methods: []string{"GET", "POST"}, Token: "optional",
		Timeouts: bff.Timeouts{Connect: time.Second, ResponseHeader: 2 * time.Second, Idle: 3 * time.Second}, MaxBody: 10 << 20, NoRetry: true,
		Headers: map[string]string{"X-User": "sub", "X-Name": "preferred_username"},
		Require: bff.Require{Scopes: []string{"orders:read", "orders:write"}, Claims: map[string][]string{"groups": {"ops", "staff"}, "title": {"the big boss"}}, ACR: []string{"gold"}, MaxAge: 15 * time.Minute},
	}
	if !reflect.DeepEqual(routes[0], want) {
		t.Errorf("got  %+v\nwant %+v", routes[0], want)
	}
	if routes[1].NoRetry || !slices.Equal(routes[1].Upstream, []string{"https://one"}) {
		t.Errorf("got %+v", routes[1])
	}
}

func TestSizesAreWrittenWithUnits(t *testing.T) {
	for text, want := range map[string]byteSize{
		"1": 1, "4096": 4096, "7B": 7, "1kB": 1000, "64KiB": 64 << 10, "10MB": 10_000_000, "10 MiB": 10 << 20, "3GiB": 3 << 30,
		"": 0, "0": 0, "-1": 0, "1.5MB": 0, "10M": 0, "MB": 0, "9223372036854775807KiB": 0, "99999999999999999999": 0, "1mb": 0,
	} {
		if got, err := parseSize(text); got != want || (err == nil) != (want > 0) {
			t.Errorf("%q: got %d, %v, want %d", text, got, err, want)
		}
	}
}

func TestTheEnvironmentWins(t *testing.T) {
	c := mustLoad(t, "oidc: {client_id: file, client_secret_file: /nowhere, scopes: [a]}\nserver: {shutdown_grace: 1s}\nroutes: [{path: /old/}]\n", map[string]string{
		"CLOAKROOM_OIDC_CLIENT_ID":        "environment",
		"CLOAKROOM_OIDC_CLIENT_SECRET":    "s3cr#t: {",
		"CLOAKROOM_OIDC_SCOPES":           "openid,email profile",
		"CLOAKROOM_SERVER_SHUTDOWN_GRACE": "2m",
		"CLOAKROOM_SESSION_KEYS":          goodKey + "," + goodKey,
		"CLOAKROOM_SERVER_TLS_CERT_FILE":  "/tls.crt",
		"CLOAKROOM_ROUTES":                "[{path: /api/, upstream: 'http://a', token: user}]",
	})
	if c.OIDC.ClientID != "environment" || c.OIDC.ClientSecret.Reveal() != "s3cr#t: {" || !slices.Equal(c.OIDC.Scopes, []string{"openid", "email", "profile"}) {
		t.Errorf("got %+v", c.OIDC)
	}
	if c.Server.ShutdownGrace != 2*time.Minute || len(c.Session.Keys) != 2 || c.Server.TLS.CertFile != "/tls.crt" || len(c.Routes) != 1 || c.Routes[0].Token != "user" {
		t.Errorf("got %+v", c)
	}
}

func TestSecretsComeFromFiles(t *testing.T) {
	secret := writeFile(t, "secret", "from a file\n")
	keys := writeFile(t, "keys", goodKey+"\n"+goodKey+"\n")
	c := mustLoad(t, "oidc: {client_secret_file: "+secret+"}\nsession: {keys_file: "+keys+"}\n", nil)
	if c.OIDC.ClientSecret.Reveal() != "from a file" || len(c.Session.Keys) != 2 {
		t.Errorf("from the file's twins: got %q and %d keys", c.OIDC.ClientSecret.Reveal(), len(c.Session.Keys))
	}
	c = mustLoad(t, "oidc: {client_secret: inline}\n", map[string]string{"CLOAKROOM_OIDC_CLIENT_SECRET_FILE": secret})
	if c.OIDC.ClientSecret.Reveal() != "from a file" {
		t.Errorf("from the environment's twin: got %q", c.OIDC.ClientSecret.Reveal())
	}
}

func TestEveryMistakeIsALineOfItsOwn(t *testing.T) {
	empty := writeFile(t, "empty", "\n")
	_, err := load(t, `
sever: {}
server:
  publc_url: https://app.example.com
  shutdown_grace: 30
  listen: [a]
  tls: yes
oidc:
  client_id: a
  client_id: b
  client_secret: {a: hunter2}
  client_secret_file: `+empty+`
  scopes: {a: b}
session:
  idle_timeout: -1m
routes:
  - /api/
frontend: ./dist
`, map[string]string{"CLOAKROOM_SESSION_MAX_LIFETIME": "long", "CLOAKROOM_SERVER_ADMIN_TOKEN_FILE": "/nowhere/token"})
	if exitCode(err) != 2 {
		t.Fatalf("got %v, status %d, want status 2", err, exitCode(err))
	}
	for _, want := range []string{
		":2: sever: unknown key; did you mean server?",
		":4: server.publc_url: unknown key; did you mean public_url?",
		`:5: server.shutdown_grace: "30" is not a duration such as 90s, 30m or 12h`,
		":6: server.listen: a list is not a single value",
		`:7: server.tls: "yes" is not a mapping of keys to values`,
		":10: oidc.client_id: is there twice",
		":11: oidc.client_secret: a mapping is not a single value",
		"oidc.client_secret_file: " + empty + " is empty",
		":13: oidc.scopes: a mapping is not a list",
		`:15: session.idle_timeout: "-1m" has to be more than nothing`,
		`:17: routes[0]: "/api/" is not a mapping of keys to values`,
		`:18: frontend: "./dist" is not a mapping of keys to values`,
		`CLOAKROOM_SESSION_MAX_LIFETIME: "long" is not a duration such as 90s, 30m or 12h`,
		"server.admin_token_file: open /nowhere/token: no such file or directory",
	} {
		if !slices.ContainsFunc(strings.Split(err.Error(), "\n"), func(line string) bool { return strings.HasSuffix(line, want) }) {
			t.Errorf("no line says %q", want)
		}
	}
	if n := len(strings.Split(err.Error(), "\n")); n != 14 {
		t.Errorf("%d lines, want 14:\n%v", n, err)
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a secret was printed:\n%v", err)
	}
}

func TestWhatTheBrokerCannotStartWithIsReportedAtOnce(t *testing.T) {
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
frontend: {dir: /nowhere/dist}
`, []string{
			`frontend.dir: `,
			`oidc.client_auth: "none" is none of client_secret_basic, client_secret_post`,
			`oidc.issuer: "http://id.example.com": plain http is for a provider on a loopback host alone`,
			`routes[0].csrf: "never" is none of header, fetch-metadata, auto`,
			`routes[0].path: path "api" does not begin with a slash`,
			`routes[0].token: "maybe" is none of user, optional, client, user-or-client, none`,
			`routes[0].upstream: "orders:8080" is not a URL such as http://orders.internal:8080`,
			`server.admin_token: missing, and server.admin_listen "0.0.0.0:9090" is not on the loopback interface`,
			`server.listen: "nowhere" is not an address such as 127.0.0.1:8080`,
			`server.prefix: "bff" is not a path such as /bff`,
			`server.public_url: "http://app.example.com": without https`,
			`server.tls: cert_file and key_file go together`,
			`server.trusted_proxies[0]: "0.0.0.0/0" would let everybody say who they are`,
			`server.trusted_proxies[1]: "proxy" is not a network such as 10.0.0.0/8`,
			`session.cookie.same_site: "none" is neither strict nor lax`,
			`session.keys[0]: [redacted] is not the base64 of 32 bytes; cloakroom keygen prints one that is`,
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
`, []string{"store.url: its scheme is none of memory, redis, redis+sentinel, redis+cluster (with TLS: rediss"}},
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
			"routes[0].methods: \"get\" is not a method to let through",
			"routes[0].retry: \"twice\" is neither once nor never",
			"routes[0].upstream: missing",
			"routes[1].upstream_tls: ca_file: open /nowhere/ca.pem",
			"routes[2].upstream_tls: cert_file and key_file: open /nowhere/crt",
			"routes[3].headers: \"Cookie\" is not a header",
			"routes[3].require.claims: \"role\" has no value",
			"routes[3].token: none goes with neither headers nor require",
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
			"routes[0].accept_bearer: audience: ",
			"routes[1].accept_bearer: algorithms: ",
			"routes[1].accept_bearer: ca_file: open /nowhere/ca.pem",
			"routes[1].accept_bearer: issuer: ",
			"routes[1].accept_bearer: scopes: \"a b\" is not one scope",
			"routes[2].accept_bearer: it goes with no token none",
			"routes[3].accept_bearer: it goes with no require",
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
			err := run(t.Context(), []string{"serve", "--config", writeFile(t, "cloakroom.yaml", test.yaml)}, func(string) string { return "" }, nil, &stdout, &stderr)
			if exitCode(err) != 2 {
				t.Fatalf("got %v, status %d, want status 2", err, exitCode(err))
			}
			lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
			slices.Sort(lines)
			if len(lines) != len(test.want) {
				t.Errorf("%d lines, want %d:\n%s", len(lines), len(test.want), strings.Join(lines, "\n"))
			}
			for i := range min(len(lines), len(test.want)) {
				if !strings.HasPrefix(lines[i], test.want[i]) {
					t.Errorf("got  %s\nwant %s", lines[i], test.want[i])
				}
			}
			if strings.Contains(stderr.String()+stdout.String(), "hunter2") {
				t.Errorf("a secret was printed:\n%s", stderr.String())
			}
		})
	}
}

func TestTheCommentedConfigurationIsOneThatWorks(t *testing.T) {
	text, err := os.ReadFile("../../configs/cloakroom.yaml")
	if err != nil {
		t.Fatal(err)
	}
	secret := writeFile(t, "secret", goodKey)
	keys := writeFile(t, "keys", goodKey)
	dist := t.TempDir()
	if err := os.WriteFile(filepath.Join(dist, "index.html"), []byte("<!doctype html>"), 0o600); err != nil {
		t.Fatal(err)
	}
	cert, key := newPair(t, 1, time.Now().Add(time.Hour))
	full := strings.NewReplacer("/etc/cloakroom/tls.crt", writeFile(t, "tls.crt", cert), "/etc/cloakroom/tls.key", writeFile(t, "tls.key", key),
		"/run/secrets/client", secret, "/run/secrets/session-keys", keys, "./dist", dist,
		"# admin_token_file: /run/secrets/admin-token", "admin_token_file: "+secret, "# tls:", "tls:", "#   cert_file", "  cert_file", "#   key_file", "  key_file").Replace(string(text))
	c := mustLoad(t, full, nil)
	b, err := newBroker(c, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	b.close()
	if len(missingKeys(full)) > 0 {
		t.Errorf("the file says nothing of %v", missingKeys(full))
	}
}

func TestTheConfigurationOfDockerComposeIsOneThatWorks(t *testing.T) {
	compose, err := os.ReadFile("../../docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	env := make(map[string]string)
	for _, m := range regexp.MustCompile(`(CLOAKROOM_\w+): (.+)`).FindAllStringSubmatch(string(compose), -1) {
		env[m[1]] = m[2]
	}
	dist := t.TempDir()
	if err := os.WriteFile(filepath.Join(dist, "index.html"), []byte("<!doctype html>"), 0o600); err != nil {
		t.Fatal(err)
	}
	env["CLOAKROOM_FRONTEND_DIR"] = dist // which the container mounts
	c, err := loadConfig("../../configs/compose.yaml", func(name string) string { return env[name] })
	if err != nil {
		t.Fatal(err)
	}
	b, err := newBroker(c, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	b.close()
}

// missingKeys returns the keys of the configuration that a commented file does not mention.
func missingKeys(text string) []string {
	var missing []string
	for _, key := range allKeys(reflect.TypeFor[config]()) {
		if !strings.Contains(text, key+":") && !strings.Contains(text, key+"_file:") {
			missing = append(missing, key)
		}
	}
	return missing
}

// allKeys returns the last part of every key.
func allKeys(t reflect.Type) []string {
	var keys []string
	for i := range t.NumField() {
		f := t.Field(i)
		switch {
		case f.Type.Kind() == reflect.Struct:
			keys = append(keys, allKeys(f.Type)...)
		case (f.Type.Kind() == reflect.Slice || f.Type.Kind() == reflect.Pointer) && f.Type.Elem().Kind() == reflect.Struct:
			keys = append(keys, allKeys(f.Type.Elem())...)
		default:
			keys = append(keys, f.Tag.Get("yaml"))
		}
	}
	return keys
}

// What could be read is checked although something else could not.
func TestMistakesOfReadingAndOfCheckingAreReportedTogether(t *testing.T) {
	var out bytes.Buffer
	err := run(t.Context(), []string{"serve", "--config", writeFile(t, "cloakroom.yaml", `
server: {public_url: "http://app.example.com", nonsense: 1}
oidc: {issuer: [x], client_id: spa, client_secret: s}
session: {idle_timeout: soon}
routes: [{path: api, upstream: "http://a", token: none}]
`)}, func(string) string { return "" }, nil, &out, &out)
	if exitCode(err) != 2 {
		t.Errorf("got status %d", exitCode(err))
	}
	for _, want := range []string{"server.nonsense: unknown key", "oidc.issuer: ", "session.idle_timeout: ", "server.public_url: ", "routes[0].path: "} {
		if n := strings.Count(out.String(), want); n != 1 {
			t.Errorf("%q is there %d times, want once:\n%s", want, n, out.String())
		}
	}
}

func TestKeygenPrintsAKeyThatServeTakes(t *testing.T) {
	var out bytes.Buffer
	if err := run(context.Background(), []string{"keygen"}, nil, nil, &out, &out); err != nil {
		t.Fatal(err)
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(out.String()))
	if err != nil || len(key) != 32 {
		t.Errorf("got %q, want the base64 of 32 bytes", out.String())
	}
}

func TestMistakesInTheCommandLineAreStatus2(t *testing.T) {
	two := writeFile(t, "two.yaml", "server: {listen: nowhere}\n---\nserver: {listen: nowhere}\n")
	var out bytes.Buffer
	if err := run(t.Context(), []string{"serve", "--config", two}, func(string) string { return "" }, nil, &out, &out); exitCode(err) != 2 || !strings.Contains(out.String(), "more than one document") {
		t.Errorf("two documents: got status %d and %q", exitCode(err), out.String())
	}
	for _, args := range [][]string{{"serve", "--confg", "x"}, {"keygen", "x"}, {"sreve"}, {"serve", "--config", "/nowhere.yaml"}} {
		var out bytes.Buffer
		if err := run(t.Context(), args, func(string) string { return "" }, nil, &out, &out); exitCode(err) != 2 || out.Len() == 0 {
			t.Errorf("%v: got status %d and %q, want status 2 and a message", args, exitCode(err), out.String())
		}
	}
}

func TestTheLoggedConfigurationHasNoSecrets(t *testing.T) {
	c := mustLoad(t, "oidc: {client_secret: hunter2, client_id: spa}\nstore: {url: 'redis://:hunter2@h'}\nsession: {keys: [hunter2]}\nserver: {admin_token: hunter2}\nroutes: [{path: /api/}]\n", nil)
	var out bytes.Buffer
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "in_force", c.logValue())
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "in_force", c.logValue())
	if strings.Contains(out.String(), "hunter2") || !strings.Contains(out.String(), "/api/") || !strings.Contains(out.String(), "spa") {
		t.Errorf("got %s", out.String())
	}
}
