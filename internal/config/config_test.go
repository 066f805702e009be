package config

import (
	"bytes"
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
	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

const goodKey = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="

// load writes text to a file and loads it with an environment.
func load(t *testing.T, text string, env map[string]string) (*Config, error) {
	t.Helper()
	return Load(writeFile(t, "cloakroom.yaml", text), func(name string) string { return env[name] })
}

func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// build makes the parts of a broker from c.
func build(c *Config) error {
	log := slog.New(slog.DiscardHandler)
	store, storeErr := c.OpenStore(log)
	if storeErr != nil {
		store = new(tokenstore.Memory)
	}
	defer store.Close()
	if len(c.Session.Keys) == 0 && c.Store.IsInMemory() {
		c.Session.Keys = []session.Secret{goodKey}
	}
	_, serverErr := c.NewServer(Parts{Store: store, Log: log})
	return Join(storeErr, serverErr)
}

func mustLoad(t *testing.T, text string, env map[string]string) *Config {
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
	if c.Server.PublicURL != "https://app.example.com" || c.Server.ShutdownGrace != 5*time.Second ||
		c.OIDC.ClientID != "010" || c.OIDC.ClientSecret.Reveal() != "0x10" {
		t.Errorf("got %+v", c)
	}
	if len(c.Routes) != 2 || c.Routes[1].CSRF != "fetch-metadata" ||
		!slices.Equal(c.OIDC.Scopes, []string{"openid", "api"}) {
		t.Errorf("got %+v", c)
	}
	if c.Server.Listen != "127.0.0.1:8080" || c.Server.AdminListen != "127.0.0.1:9090" ||
		c.Store.URL.Reveal() != "memory:" {
		t.Errorf("defaults: got %+v", c)
	}
	var problems Errors
	if keys := c.sessionKeys(&problems); len(keys) != 1 || len(keys[0]) != 32 {
		t.Errorf("keys: got %v", keys)
	}
	if proxies := c.trustedProxies(&problems); len(proxies) != 2 {
		t.Errorf("proxies: got %v", proxies)
	}
	if len(problems) > 0 {
		t.Error(problems)
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
	var problems Errors
	routes := c.routes(slog.Default(), &problems)
	if len(problems) > 0 || len(routes) != 2 {
		t.Fatalf("got %d routes, %v", len(routes), problems)
	}
	want := bff.Route{
		Path: "/api/", Upstream: []string{"http://a:8080",
			"http://b:8080"}, StripPrefix: true, Methods: []string{"GET", "POST"}, Token: "optional",
		Timeouts: bff.Timeouts{Connect: time.Second, ResponseHeader: 2 * time.Second,
			Idle: 3 * time.Second}, MaxBody: 10 << 20, NoRetry: true,
		Headers: map[string]string{"X-User": "sub", "X-Name": "preferred_username"},
		Require: bff.Require{Scopes: []string{"orders:read", "orders:write"},
			Claims: map[string][]string{"groups": {"ops", "staff"},
				"title": {"the big boss"}}, ACR: []string{"gold"}, MaxAge: 15 * time.Minute},
	}
	if !reflect.DeepEqual(routes[0], want) {
		t.Errorf("got  %+v\nwant %+v", routes[0], want)
	}
	if routes[1].NoRetry || !slices.Equal(routes[1].Upstream, []string{"https://one"}) {
		t.Errorf("got %+v", routes[1])
	}
}

func TestSizesAreWrittenWithUnits(t *testing.T) {
	for text, want := range map[string]ByteSize{
		"1": 1, "4096": 4096, "7B": 7, "1kB": 1000, "64KiB": 64 << 10, "10MB": 10_000_000, "10 MiB": 10 << 20,
		"3GiB": 3 << 30,
		"":     0, "0": 0, "-1": 0, "1.5MB": 0, "10M": 0, "MB": 0, "9223372036854775807KiB": 0,
		"99999999999999999999": 0, "1mb": 0,
	} {
		if got, err := parseSize(text); got != want || (err == nil) != (want > 0) {
			t.Errorf("%q: got %d, %v, want %d", text, got, err, want)
		}
	}
}

func TestTheEnvironmentWins(t *testing.T) {
	c := mustLoad(t, "oidc: {client_id: file, client_secret_file: /nowhere, scopes: [a]}\nserver: {shutdown_grace: "+
		"1s}\nroutes: [{path: /old/}]\n", map[string]string{
		"CLOAKROOM_OIDC_CLIENT_ID":        "environment",
		"CLOAKROOM_OIDC_CLIENT_SECRET":    "s3cr#t: {",
		"CLOAKROOM_OIDC_SCOPES":           "openid,email profile",
		"CLOAKROOM_SERVER_SHUTDOWN_GRACE": "2m",
		"CLOAKROOM_SESSION_KEYS":          goodKey + "," + goodKey,
		"CLOAKROOM_SERVER_TLS_CERT_FILE":  "/tls.crt",
		"CLOAKROOM_ROUTES":                "[{path: /api/, upstream: 'http://a', token: user}]",
	})
	if c.OIDC.ClientID != "environment" || c.OIDC.ClientSecret.Reveal() != "s3cr#t: {" ||
		!slices.Equal(c.OIDC.Scopes, []string{"openid", "email", "profile"}) {
		t.Errorf("got %+v", c.OIDC)
	}
	if c.Server.ShutdownGrace != 2*time.Minute || len(c.Session.Keys) != 2 || c.Server.TLS.CertFile != "/tls.crt" ||
		len(c.Routes) != 1 || c.Routes[0].Token != "user" {
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
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		":2: sever: unknown key; did you mean server?",
		":4: server.publc_url: unknown key; did you mean public_url?",
		`:5: server.shutdown_grace: "30" is not a duration such as 90s, 30m or 12h`,
		":6: server.listen: a list is not a single value",
		`:7: server.tls: "yes" is not a mapping of keys to values`,
		":10: oidc.client_id: occurs twice",
		":11: oidc.client_secret: a mapping is not a single value",
		"oidc.client_secret_file: " + empty + " is empty",
		":13: oidc.scopes: a mapping is not a list",
		`:15: session.idle_timeout: "-1m" is not greater than zero`,
		`:17: routes[0]: "/api/" is not a mapping of keys to values`,
		`:18: frontend: "./dist" is not a mapping of keys to values`,
		`CLOAKROOM_SESSION_MAX_LIFETIME: "long" is not a duration such as 90s, 30m or 12h`,
		"server.admin_token_file: open /nowhere/token: no such file or directory",
	} {
		if !slices.ContainsFunc(strings.Split(err.Error(), "\n"),
			func(line string) bool { return strings.HasSuffix(line, want) }) {
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
	full := strings.NewReplacer("/run/secrets/client", secret, "/run/secrets/session-keys", keys, "./dist", dist,
		"# admin_token_file: /run/secrets/admin-token", "admin_token_file: "+secret,
		"# tls:", "tls:", "#   cert_file", "  cert_file", "#   key_file", "  key_file").Replace(string(text))
	c := mustLoad(t, full, nil)
	if err := build(c); err != nil {
		t.Fatal(err)
	}
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
	c, err := Load("../../configs/compose.yaml", func(name string) string { return env[name] })
	if err != nil {
		t.Fatal(err)
	}
	if err := build(c); err != nil {
		t.Fatal(err)
	}
}

// missingKeys returns the keys of the configuration that a commented file does
// not mention.
func missingKeys(text string) []string {
	var missing []string
	for _, key := range allKeys(reflect.TypeFor[Config]()) {
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
		if !f.IsExported() {
			continue
		}
		switch {
		case f.Type.Kind() == reflect.Struct:
			keys = append(keys, allKeys(f.Type)...)
		case (f.Type.Kind() == reflect.Slice || f.Type.Kind() == reflect.Pointer) &&
			f.Type.Elem().Kind() == reflect.Struct:
			keys = append(keys, allKeys(f.Type.Elem())...)
		default:
			keys = append(keys, f.Tag.Get("yaml"))
		}
	}
	return keys
}

func TestTheLoggedConfigurationHasNoSecrets(t *testing.T) {
	c := mustLoad(t, "oidc: {client_secret: hunter2, client_id: spa}\nstore: {url: 'redis://:hunter2@h'}\nsession: "+
		"{keys: [hunter2]}\nserver: {admin_token: hunter2}\nroutes: [{path: /api/}]\n", nil)
	var out bytes.Buffer
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "in_force", c)
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "in_force", c)
	if strings.Contains(out.String(), "hunter2") || !strings.Contains(out.String(), "/api/") ||
		!strings.Contains(out.String(), "spa") {
		t.Errorf("got %s", out.String())
	}
}

func TestTrustingHalfTheInternetIsWarnedAbout(t *testing.T) {
	for networks, warned := range map[string]bool{
		"0.0.0.0/1, 128.0.0.0/1":                       true,
		"0.0.0.0/2":                                    true,
		"64.0.0.0/3,203.0.113.7":                       true,
		"::/1, 8000::/1":                               true,
		"2000::/3":                                     true,
		"::ffff:0.0.0.0/97":                            true,
		"::ffff:10.0.0.0/104":                          false,
		"10.0.0.0/8, 192.168.0.0/16":                   false,
		"fc00::/7,fe80::/10,127.0.0.1":                 false,
		"203.0.113.0/24":                               false,
		"2a00:1450::/32":                               false,
		"103.21.244.0/22,104.16.0.0/13,2606:4700::/32": false, // a content delivery network's
	} {
		c := mustLoad(t, "", map[string]string{"CLOAKROOM_SERVER_TRUSTED_PROXIES": networks})
		if got := c.Warnings(); (len(got) == 1) != warned ||
			warned && !strings.HasPrefix(got[0].Error(), "server.trusted_proxies: ") {
			t.Errorf("%s: got %q", networks, got)
		}
	}
}

func TestShortAdminTokenIsWarnedAbout(t *testing.T) {
	for token, warned := range map[string]bool{"": false, "nineteen characters": true, "twenty of characters": false} {
		c := mustLoad(t, "", map[string]string{"CLOAKROOM_SERVER_ADMIN_TOKEN": token})
		got := c.Warnings()
		if (len(got) == 1) != warned || warned && !strings.HasPrefix(got[0].Error(),
			"server.admin_token: [redacted] ") {
			t.Errorf("%q: got %q, want a warning: %v", token, got, warned)
		}
	}
}
