package config

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"
)

const (
	schemaFile  = "../../configs/cloakroom.schema.json"
	exampleFile = "../../configs/cloakroom.yaml"
)

// compileSchema returns the schema as a validator.
func compileSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("schema.json", document); err != nil {
		t.Fatal(err)
	}
	compiled, err := c.Compile("schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return compiled
}

// validate validates a configuration in YAML.
func validate(t *testing.T, schema *jsonschema.Schema, text string) error {
	t.Helper()
	var value any
	if strings.TrimSpace(text) == "" { // an empty file
		return schema.Validate(nil)
	}
	if err := yaml.Load([]byte(text), &value); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return schema.Validate(value)
}

func TestSchemaFileIsThatOfTheCode(t *testing.T) {
	t.Parallel()
	if *update {
		if err := os.WriteFile(schemaFile, Schema(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, Schema()) {
		t.Errorf("%s is not that of the code; run go test ./internal/config -update", schemaFile)
	}
}

// The values of the Helm chart have the configuration as their key config.
func TestChartHasTheSchemaOfTheConfiguration(t *testing.T) {
	t.Parallel()
	const (
		file   = "../../configs/helm/values.schema.json"
		marker = `"$defs": {"configuration": `
	)
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	values, _, found := strings.Cut(string(got), marker)
	if !found {
		t.Fatalf("%s has no %s", file, marker)
	}
	want := values + marker + strings.TrimSpace(string(Schema())) + "}\n}\n"
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(got) != want {
		t.Errorf("%s has not the schema of the code; run go test ./internal/config -update", file)
	}
}

func TestExampleNamesTheSchemaForEditors(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(exampleFile)
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(text), "\n")
	name, ok := strings.CutPrefix(first, "# yaml-language-server: $schema=")
	if !ok {
		t.Fatalf("first line: got %q, want the schema", first)
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(exampleFile), name)); err != nil {
		t.Errorf("schema of the example: %v", err)
	}
}

// configurationStart matches the beginning of a configuration in a document.
var configurationStart = regexp.MustCompile(`(?m)^(server|oidc|store|session|routes|frontend):`)

// yamlBlock matches a code block of YAML in Markdown.
var yamlBlock = regexp.MustCompile("(?s)```ya?ml\n(.*?)```")

// configurations returns every configuration in the repository, by its file.
func configurations(t *testing.T) map[string]string {
	t.Helper()
	found := make(map[string]string)
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && slices.Contains([]string{"node_modules", ".git"}, d.Name()) {
			return skipDir(err)
		}
		ext := filepath.Ext(path)
		if d.IsDir() || ext != ".md" && !(ext == ".yaml" && strings.HasPrefix(filepath.Base(path), "cloakroom")) {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if ext == ".yaml" {
			found[path] = string(text)
			return nil
		}
		for _, block := range yamlBlock.FindAllStringSubmatch(string(text), -1) {
			if configurationStart.MatchString(block[1]) {
				found[path] += "---\n" + block[1]
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// skipDir returns err, or else fs.SkipDir.
func skipDir(err error) error {
	if err != nil {
		return err
	}
	return fs.SkipDir
}

func TestConfigurationsOfTheRepositoryAreValid(t *testing.T) {
	t.Parallel()
	schema := compileSchema(t)
	found := configurations(t)
	if found[exampleFile] == "" || len(found) < 10 {
		t.Errorf("got %d files with configurations, want %s among them", len(found), exampleFile)
	}
	for path, text := range found {
		for part := range strings.SplitSeq(text, "---\n") {
			if err := validate(t, schema, part); err != nil {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
}

// What the schema and Load say about one value of one key.
func TestSchemaAcceptsWhatLoadAccepts(t *testing.T) {
	t.Parallel()
	schema := compileSchema(t)
	for text, valid := range map[string]bool{
		"": true,
		"x-anchors: &a {idle_timeout: 5m}\nsession: {<<: *a}": true,
		"session: {claims: }":                                                    true,
		"session: {idle_timeout: 1h30m}":                                         true,
		"session: {idle_timeout: 1.5h}":                                          true,
		"session: {idle_timeout: 30 minutes}":                                    false,
		"session: {idle_timeout: 30}":                                            false,
		"session: {idle_tmeout: 30m}":                                            false,
		"sesion: {idle_timeout: 30m}":                                            false,
		"session: {max_per_user: 3}":                                             true,
		"session: {max_per_user: three}":                                         false,
		"session: {keep_storage: true}":                                          true,
		"session: {keep_storage: maybe}":                                         false,
		"session: {keys: [a, b]}":                                                true,
		"session: {cookie: {same_site: none}}":                                   false,
		"session: {cookie: {same_site: lax}}":                                    true,
		"session: 5":                                                             false,
		"oidc: {scopes: openid profile}":                                         true,
		"oidc: {scopes: {openid: true}}":                                         false,
		"oidc: {issuer_file: /x}":                                                false,
		"oidc: {authorization_parameters: {max_age: 3600}}":                      true,
		"oidc: {client_auth: basic}":                                             false,
		"server: {shutdown_delay: 0s}":                                           true,
		"server: {limits: {header_bytes: 64KiB}}":                                true,
		"server: {limits: {header_bytes: 65536}}":                                true,
		"server: {limits: {header_bytes: 64 KibiBytes}}":                         false,
		"server: {limits: {body_min_rate: off}}":                                 true,
		"server: {limits: {body_min_rate: 1KiB/s}}":                              true,
		"server: {limits: {body_min_rate: 1KiB}}":                                false,
		"server: {limits: {logins: {rate: 4/s, burst: 40}}}":                     true,
		"server: {limits: {logins: {rate: 4/day}}}":                              false,
		"server: {limits: {logins: {burst: 0}}}":                                 false,
		"routes: [{path: /a/, upstream: 'http://a', token: user, retry: never}]": true,
		"routes: [{path: /a/, upstream: ['http://a', 'http://b'], token: user}]": true,
		"routes: [{path: /a/, upstream: 'http://a', token: user, require: {claims: {admin: true}}}]": true,
		"routes: [{path: /a/, upstream: 'http://a', token: user, require: {claims: {r: [a, b]}}}]":   true,
		"routes: [{path: /a/, upstream: 'http://a', token: bearer}]":                                 false,
		"routes: [{path: /a/, upstream: 'http://a', token: user, methods: GET}]":                     true,
		"routes: {path: /a/}": false,
	} {
		err := validate(t, schema, text)
		if got := err == nil; got != valid {
			t.Errorf("schema of %q: got %v, want valid %t", text, err, valid)
		}
		c, err := Load(writeConfig(t, text), func(string) string { return "" })
		if err == nil && !valid && !hasEnumMistake(c, text) {
			t.Errorf("Load of %q: got no error, want one", text)
		}
		if err != nil && valid {
			t.Errorf("Load of %q: got %v, want no error", text, err)
		}
	}
}

// hasEnumMistake reports whether a value is one that only Validate refuses.
func hasEnumMistake(c *Config, text string) bool {
	return c.Session.Cookie.SameSite == "none" || c.OIDC.ClientAuth == "basic" || strings.Contains(text, "bearer")
}

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "cloakroom.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// The documentation of a key names each value that the schema lists.
func TestEnumsAreDocumented(t *testing.T) {
	t.Parallel()
	for key, values := range enums {
		i := slices.IndexFunc(Keys, func(k Key) bool { return k.Name == key })
		if i < 0 {
			t.Errorf("%s is no key", key)
			continue
		}
		for _, value := range values {
			if text, ok := value.(string); ok && !strings.Contains(Keys[i].Doc, "`"+text+"`") {
				t.Errorf("%s: %q is not documented in %q", key, text, Keys[i].Doc)
			}
		}
	}
}

func TestEveryValueHasASchema(t *testing.T) {
	t.Parallel()
	for typ := range typeNames {
		if len(valueSchema(typ)) == 0 {
			t.Errorf("%v has no schema", typ)
		}
	}
	if got := valueSchema(reflect.TypeFor[chan int]()); len(got) > 0 {
		t.Errorf("a channel: got %v, want nothing", got)
	}
}
