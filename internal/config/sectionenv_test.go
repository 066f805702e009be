package config

import (
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/session"
)

// Every section can be set by the environment, as YAML.
func TestEverySectionCanBeSetByTheEnvironment(t *testing.T) {
	t.Parallel()
	for _, f := range fields(reflect.TypeFor[Config](), "", nil) {
		for text, want := range goodValues[f.typ] {
			isYAML := strings.HasPrefix(text, "{") || strings.HasPrefix(text, "[")
			if f.typ.Kind() == reflect.Map && !isYAML {
				continue // in block style, which is not possible within flow style
			}
			if f.typ.Kind() != reflect.Map && f.typ.Kind() != reflect.Slice || !isYAML {
				text = strconv.Quote(text)
			}
			parts := strings.Split(f.key, ".")
			for n := 1; n < len(parts); n++ {
				name := variable(strings.Join(parts[:n], "."))
				value := "{" + strings.Join(parts[n:], ": {") + ": " + text + strings.Repeat("}", len(parts)-n)
				c, err := load(t, "", map[string]string{name: value})
				if err != nil {
					t.Errorf("%s=%s: %v", name, value, err)
					continue
				}
				if got := reflect.ValueOf(*c).FieldByIndex(f.path).Interface(); !reflect.DeepEqual(got, want) {
					t.Errorf("%s=%s: got %#v, want %#v", name, value, got, want)
				}
			}
		}
	}
}

// The variable of a section sets the keys that it has. The variable of a key
// wins over that of its section, and both over the file.
func TestVariableOfASectionIsMerged(t *testing.T) {
	t.Parallel()
	c := mustLoad(t, "server: {prefix: /auth, limits: {connections: 100, logins: {rate: 1/s, burst: 10}}}",
		map[string]string{
			"CLOAKROOM_SERVER":                     "{prefix: /outer, limits: {connections: 200}}",
			"CLOAKROOM_SERVER_LIMITS":              "header_bytes: 32KiB\nlogins: {rate: 2/s, burst: 20}",
			"CLOAKROOM_SERVER_LIMITS_LOGINS_BURST": "30",
		})
	want := Limits{Connections: 200, HeaderBytes: 32 << 10, Logins: RateLimit{Rate: 2, Burst: 30}}
	if c.Server.Prefix != "/outer" || c.Server.Limits != want {
		t.Errorf("got %s and %+v, want /outer and %+v", c.Server.Prefix, c.Server.Limits, want)
	}
}

func TestSecretsInTheVariableOfASection(t *testing.T) {
	t.Parallel()
	file, other := writeFile(t, "secret", "from file"), writeFile(t, "other", "from other file")
	inline, named := "oidc: {client_id: spa, client_secret: from YAML}", "oidc: {client_secret_file: "+file+"}"
	for _, test := range []struct {
		yaml, section, key, want string
	}{
		{inline, "{client_secret: s}", "", "s"},
		{inline, "{client_secret_file: " + other + "}", "", "from other file"},
		{named, "{client_secret: s}", "", "s"},
		{named, "{client_secret_file: " + other + "}", "", "from other file"},
		{named, "{client_id: x}", "", "from file"},
		{inline, "{client_secret: ~}", "", "from YAML"},
		{inline, "{client_secret_file: " + other + "}", "k", "k"},
	} {
		env := map[string]string{"CLOAKROOM_OIDC": test.section}
		if test.key != "" {
			env["CLOAKROOM_OIDC_CLIENT_SECRET"] = test.key
		}
		c, err := load(t, test.yaml, env)
		if err != nil {
			t.Errorf("%s, %v: %v", test.yaml, env, err)
		} else if got := c.OIDC.ClientSecret; got != session.Secret(test.want) {
			t.Errorf("%s, %v: got %q, want %q", test.yaml, env, got.Reveal(), test.want)
		}
	}
	_, err := load(t, "", map[string]string{"CLOAKROOM_OIDC": "{client_secret: a, client_secret_file: " + file + "}"})
	if err == nil || !strings.Contains(err.Error(), "not both") {
		t.Errorf("a secret and its file: got %v", err)
	}
}

func TestMistakesInTheVariableOfASection(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, value, want string
	}{
		{"CLOAKROOM_SERVER_LIMITS_LOGINS", "{rate: 2/s, bust: 5}", "server.limits.logins.bust: unknown key"},
		{"CLOAKROOM_SERVER_LIMITS_LOGINS", "{rate: often}", "server.limits.logins.rate"},
		{"CLOAKROOM_LOG", "debug", `CLOAKROOM_LOG:1: log: "debug" is not a mapping`},
		{"CLOAKROOM_LOG", "[", "CLOAKROOM_LOG: not YAML"},
		{"CLOAKROOM_STORE", "redis://user:hidden@redis:6379", "CLOAKROOM_STORE: [redacted] is not a mapping"},
		{"CLOAKROOM_STORE", "{url: redis://user:hidden@redis", "CLOAKROOM_STORE: [redacted] is not YAML"},
		{"CLOAKROOM_OIDC", "[hidden]", "CLOAKROOM_OIDC: [redacted] is not a mapping"},
	} {
		_, err := load(t, "", map[string]string{test.name: test.value})
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%s=%s: got %v, want %q", test.name, test.value, err, test.want)
		}
	}
}
