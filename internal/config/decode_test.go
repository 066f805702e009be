package config

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
)

// field is one key of the configuration, as a struct field.
type field struct {
	key  string
	path []int // for reflect.Value.FieldByIndex
	typ  reflect.Type
}

func (f field) variable() string {
	return "CLOAKROOM_" + strings.ToUpper(strings.ReplaceAll(f.key, ".", "_"))
}

// fields returns all keys that the environment can set.
func fields(t reflect.Type, key string, path []int) []field {
	var all []field
	for i := range t.NumField() {
		f := t.Field(i)
		if !f.IsExported() {
			continue
		}
		at, here := join(key, tag(f)), append(append([]int(nil), path...), i)
		if f.Type.Kind() == reflect.Struct {
			all = append(all, fields(f.Type, at, here)...)
			continue
		}
		all = append(all, field{at, here, f.Type})
	}
	return all
}

// goodValues are, for each type of a key, texts in the environment and what
// they mean.
var goodValues = map[reflect.Type]map[string]any{
	reflect.TypeFor[string](): {"x": "x", "https://x.example/?a=b&c={d}": "https://x.example/?a=b&c={d}",
		"null": "null", "0123": "0123"},
	reflect.TypeFor[session.Secret](): {"s": session.Secret("s"), " s\r\n": session.Secret("s"),
		"0123": session.Secret("0123"), "{a: b}": session.Secret("{a: b}")},
	reflect.TypeFor[time.Duration](): {"90s": 90 * time.Second},
	reflect.TypeFor[int]():           {"3": 3},
	reflect.TypeFor[bool]():          {"true": true, "1": true},
	reflect.TypeFor[[]string](): {"a, b": []string{"a", "b"}, "[a, b]": []string{"a", "b"},
		"a": []string{"a"}},
	reflect.TypeFor[[]session.Secret](): {"a,b": []session.Secret{"a", "b"}, "[a, b]": []session.Secret{"a", "b"},
		"a\nb\n": []session.Secret{"a", "b"}},
	reflect.TypeFor[map[string]string](): {
		"{access_type: offline}":          map[string]string{"access_type": "offline"},
		"access_type: offline\nprompt: a": map[string]string{"access_type": "offline", "prompt": "a"},
	},
	reflect.TypeFor[ByteRate]():  {"1KiB/s": ByteRate(1024), "off": noRate},
	reflect.TypeFor[EventRate](): {"4/s": EventRate(4), "30/m": EventRate(0.5)},
	reflect.TypeFor[Delay]():     {"0s": Delay(0), "5s": Delay(5 * time.Second)},
	reflect.TypeFor[map[string][]string](): {
		"{img-src: [https://a.example, 'data:']}": map[string][]string{"img-src": {"https://a.example", "data:"}},
		"script-src: \"'self'\"":                  map[string][]string{"script-src": {"'self'"}},
	},
	reflect.TypeFor[map[string]any](): {
		`{"a": 1, "b": [true, null, 1.5], "c": {"d": "1"}}`: map[string]any{
			"a": 1, "b": []any{true, nil, 1.5}, "c": map[string]any{"d": "1"}},
		"date: 2026-01-02\nversion: '1.0'": map[string]any{"date": "2026-01-02", "version": "1.0"},
	},
	reflect.TypeFor[MaxAge]():    {"24h": MaxAge(24 * time.Hour), "0s": forgetHSTS},
	reflect.TypeFor[*bool]():     {"false": new(bool), "0": new(bool)},
	reflect.TypeFor[BurstSize](): {"40": BurstSize(40)},
	reflect.TypeFor[[]Route]():   {"[{path: /api/}]": []Route{{Path: "/api/"}}},
}

// Every key of every type can be set by the environment.
func TestEveryKeyCanBeSetByTheEnvironment(t *testing.T) {
	for _, f := range fields(reflect.TypeFor[Config](), "", nil) {
		values, ok := goodValues[f.typ]
		if !ok && f.typ != reflect.TypeFor[ByteSize]() {
			t.Errorf("%s: a type %v without values to test", f.key, f.typ)
		}
		for text, want := range values {
			c, err := load(t, "", map[string]string{f.variable(): text})
			if err != nil {
				t.Errorf("%s=%s: %v", f.variable(), text, err)
				continue
			}
			if got := reflect.ValueOf(*c).FieldByIndex(f.path).Interface(); !reflect.DeepEqual(got, want) {
				t.Errorf("%s=%s: got %#v, want %#v", f.variable(), text, got, want)
			}
		}
	}
}

// Whatever stands in a key or a variable, it is a value or a mistake that names
// the key, never a panic.
func TestNoValueOfAnyKeyPanics(t *testing.T) {
	t.Parallel()
	deep := make(map[reflect.Type]bool) // nesting takes long to parse: one key of each type is enough
	for _, f := range fields(reflect.TypeFor[Config](), "", nil) {
		texts := []string{"{", "[", "[[a]]", "{a: {b: c}}", "- a\n- {b: c}", "*a", "&a [*a]", "!!binary x", "\x00",
			"\xff", "~", "-", "a: b: c", "<<: x", "{<<: [a]}"}
		if !deep[f.typ] {
			deep[f.typ] = true
			texts = append(texts, strings.Repeat("[", 20_000))
		}
		for _, text := range texts {
			load(t, "", map[string]string{f.variable(): text})
			indented := "\n" + strings.ReplaceAll("  "+text, "\n", "\n  ")
			yaml, depth := "", 0
			for name := range strings.SplitSeq(f.key, ".") {
				yaml += strings.Repeat(" ", depth) + name + ":\n"
				depth++
			}
			load(t, yaml+strings.ReplaceAll(indented[1:], "  ", strings.Repeat(" ", depth+1)), nil)
		}
	}
	for text, want := range map[string]string{
		"oidc: {authorization_parameters: [a]}":      "oidc.authorization_parameters",
		"oidc: {authorization_parameters: {a: [b]}}": "oidc.authorization_parameters.a",
		"oidc: {client_secret: {a: b}}":              "oidc.client_secret",
		"oidc: {client_secret_file: [a]}":            "oidc.client_secret_file",
		"session: {max_per_user: many}":              "session.max_per_user",
		"routes: {a: b}":                             "routes",
		"routes: [[a]]":                              "routes[0]",
		"routes: [{accept_bearer: x}]":               "routes[0].accept_bearer",
	} {
		if _, err := load(t, text, nil); err == nil || !strings.Contains(err.Error(), want+":") {
			t.Errorf("%s: got %v, want a mistake of %s", text, err, want)
		}
	}
}

// YAML 1.1 merge keys: what is said beside one wins, then what comes first.
func TestMergeKeysAreMerged(t *testing.T) {
	for name, text := range map[string]string{
		"one": `
x-api: &api {upstream: http://a:1, token: user, methods: [GET]}
routes:
  - {<<: *api, path: /a/, token: none}
`,
		"a list": `
x-api: &api {upstream: http://a:1, token: user}
x-get: &get {methods: [GET], token: optional}
routes:
  - {path: /a/, token: none, <<: [*api, *get]}
`,
		"nested": `
x-base: &base {upstream: http://a:1, token: optional}
x-api: &api {<<: *base, token: user, methods: [GET]}
routes:
  - path: /a/
    <<: *api
    token: none
`,
		"written out": `
routes:
  - {<<: {upstream: http://a:1, methods: [GET]}, path: /a/, token: none}
`,
	} {
		c := mustLoad(t, text, nil)
		want := Route{Path: "/a/", Upstream: []string{"http://a:1"}, Methods: []string{"GET"}, Token: "none"}
		if len(c.Routes) != 1 || !reflect.DeepEqual(c.Routes[0], want) {
			t.Errorf("%s: got %+v, want %+v", name, c.Routes, want)
		}
	}
	c := mustLoad(t, `
x-timeouts: &t {timeouts: {connect: 3s}}
x-names: &names {X-User: sub}
routes:
  - {path: /a/, <<: *t, headers: {<<: *names, X-Email: email}}
server: &s {public_url: https://a.example}
`, nil)
	if r := c.Routes[0]; r.Timeouts.Connect != 3*time.Second ||
		!reflect.DeepEqual(r.Headers, map[string]string{"X-User": "sub", "X-Email": "email"}) {
		t.Errorf("got %+v", r)
	}
}

func TestMistakesInMergedMappings(t *testing.T) {
	for text, want := range map[string]string{
		"x-a: &a {upstraem: x}\nroutes: [{<<: *a}]": "routes[0].upstraem: unknown key; did you mean " +
			"upstream?",
		"routes: [{<<: 3}]":                                  "routes[0].<<: a merge key needs a mapping",
		"x-a: &a [b]\nroutes: [{<<: *a}]":                    "routes[0].<<: a merge key needs a mapping",
		"x-a: &a {path: /b/}\nroutes: [{<<: [*a, c]}]":       "routes[0].<<: a merge key needs a mapping",
		"routes: [{path: /a/, path: /b/}]":                   "routes[0].path: occurs twice",
		"x-a: &a {path: /a/, path: /b/}\nroutes: [{<<: *a}]": "routes[0].path: occurs twice",
		"routes: [{x-note: b}]":                              "routes[0].x-note: unknown key",
	} {
		if _, err := load(t, text, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
}

// A merge that names itself ends, and one that doubles at each level is cheap.
func TestMergesAreBounded(t *testing.T) {
	load(t, "x-a: &a {<<: *a, path: /a/}\nroutes: [*a]", nil)
	var text strings.Builder
	text.WriteString("x-0: &a0 {token: none}\n")
	for i := 1; i < 40; i++ {
		fmt.Fprintf(&text, "x-%d: &a%d {<<: [*a%d, *a%d, *a%d]}\n", i, i, i-1, i-1, i-1)
	}
	text.WriteString("routes: [{<<: *a39, path: /a/}]")
	began := time.Now()
	c := mustLoad(t, text.String(), nil)
	if took := time.Since(began); c.Routes[0].Token != "none" || took > 10*time.Second {
		t.Errorf("got %+v after %v", c.Routes[0], took)
	}
}

// A secret is the same from a file, from the environment and from YAML.
func TestSecretsAreTheSameFromAllSources(t *testing.T) {
	t.Parallel()
	for _, secret := range []string{"s3cret", "0123", "1e3", "yes", "a b", "päss", `with "quotes" and 'others'`,
		"a,b:c#d{e}[f]&*!|>%@`", "-----BEGIN X-----\nabc\n-----END X-----"} {
		for _, around := range [][2]string{{"", ""}, {"", "\n"}, {"", "\r\n\n"}, {" ", "\t "}, {"\ufeff", "\n"}} {
			text := around[0] + secret + around[1]
			got := make(map[string]session.Secret)
			read := func(source, yaml string, env map[string]string) {
				got[source] = mustLoad(t, yaml, env).OIDC.ClientSecret
			}
			file := writeFile(t, "secret", text)
			read("file", "oidc:\n  client_secret_file: "+file, nil)
			read("environment", "", map[string]string{"CLOAKROOM_OIDC_CLIENT_SECRET": text})
			read("environment, file", "", map[string]string{"CLOAKROOM_OIDC_CLIENT_SECRET_FILE": file})
			escapes := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "\r", `\r`, "\t", `\t`)
			read("YAML", "oidc:\n  client_secret: \""+escapes.Replace(text)+`"`, nil)
			for source, s := range got {
				if s.Reveal() != secret {
					t.Errorf("%q from %s: got %q", text, source, s.Reveal())
				}
			}
		}
	}
	if got := mustLoad(t, "oidc: {client_secret: 0123}", nil).OIDC.ClientSecret.Reveal(); got != "0123" {
		t.Errorf("a number in YAML: got %q", got)
	}
	for _, f := range fields(reflect.TypeFor[Config](), "", nil) {
		if !isSecret(reflect.Zero(f.typ)) {
			continue
		}
		for text, want := range map[string]string{
			"": "is empty", " \r\n": "is empty",
			"a\x00b": "is not UTF-8 text", "\xff\xfea\x00": "is not UTF-8 text",
		} {
			_, err := load(t, "", map[string]string{f.variable() + "_FILE": writeFile(t, "secret", text)})
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), f.key) {
				t.Errorf("%s from a file with %q: got %v, want %q", f.key, text, err, want)
			}
		}
		_, err := load(t, "", map[string]string{f.variable(): "a", f.variable() + "_FILE": writeFile(t, "secret", "b")})
		if err == nil || !strings.Contains(err.Error(), "not both") {
			t.Errorf("%s twice: got %v", f.key, err)
		}
		_, err = load(t, "", map[string]string{f.variable(): " \n"})
		if err == nil || !strings.Contains(err.Error(), f.variable()) {
			t.Errorf("%s of white space: got %v", f.key, err)
		}
	}
}

func TestMisspeltVariablesGiveWarnings(t *testing.T) {
	got := StrayVariables([]string{
		"CLOAKROOM_OIDC_CLIENT_SECRT=hidden", "CLOAKROOM_OIDC_CLIENTID=x", "CLOAKROOM_SESSION_KEYS_FLE=x",
		"CLOAKROOM_FRONTEND_HSTSS=off", "CLOAKROOM_ROUTS=[]",
		"CLOAKROOM_SESSION_KEYS=x", "CLOAKROOM_OIDC_CLIENT_SECRET_FILE=x",
		"CLOAKROOM_FRONTEND_CSP_IMG_SRC=x", "CLOAKROOM_ROUTES_0_PATH=/api/", "CLOAKROOM_OIDC_CLIENT_ID_FILE=x",
		"CLOAKROOM_SERVER_TSL={}", "CLOAKROOM_SERVER_SERVICE_HOST=10.0.0.1", "CLOAKROOM_SERVER_LIMITS_PORT=80",
		"CLOAKROOM_SERVER_TLS={}", "CLOAKROOM_TAG=1", "CLOAKROOM_LOG={}",
		"CLOAKROOM_SERVICE_HOST=10.0.0.1", "CLOAKROOM_PORT_80_TCP=tcp://10.0.0.1:80",
		"PATH=x", "CLOAKROOM_", "CLOAKROOM",
	})
	want := []string{"CLOAKROOM_OIDC_CLIENT_SECRET?", "CLOAKROOM_OIDC_CLIENT_ID?", "CLOAKROOM_SESSION_KEYS_FILE?",
		"CLOAKROOM_FRONTEND_HSTS?", "CLOAKROOM_ROUTES?", "CLOAKROOM_FRONTEND_CSP?", "CLOAKROOM_ROUTES?",
		"CLOAKROOM_OIDC_CLIENT_ID?", "CLOAKROOM_SERVER_TLS?"}
	keys := []string{"oidc.client_secret", "oidc.client_id", "session.keys_file", "frontend.hsts", "routes",
		"frontend.csp", "routes", "oidc.client_id", "server.tls"}
	if len(got) != len(want) {
		t.Fatalf("got %q, want %d warnings", got, len(want))
	}
	for i, w := range want {
		if !strings.HasSuffix(got[i].String(), w) || strings.Contains(got[i].String(), "hidden") {
			t.Errorf("got %q, want it to suggest %s", got[i], w)
		}
		if got[i].Key != keys[i] {
			t.Errorf("%s: got key %q, want %q", got[i].Name, got[i].Key, keys[i])
		}
	}
}
