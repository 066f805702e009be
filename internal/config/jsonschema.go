package config

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/web"
)

// node is a JSON Schema, or a part of one.
type node = map[string]any

// Schema returns the JSON Schema (2020-12) of a configuration file. Keys may be
// null, which sets nothing. Almost none is required, because the environment
// can set them.
func Schema() []byte {
	schema := sectionSchema(reflect.TypeFor[Config](), "")
	maps.Copy(schema, node{
		"$schema":           "https://json-schema.org/draft/2020-12/schema",
		"title":             "Configuration of cloakroom serve",
		"patternProperties": node{"^x-": true}, // hold anchors
	})
	text, err := json.MarshalIndent(schema, "", "  ")
	if err != nil {
		panic(err) // it consists of maps, lists and strings
	}
	return append(text, '\n')
}

// sectionSchema returns the schema of a struct. key is its key.
func sectionSchema(t reflect.Type, key string) node {
	properties := make(node)
	for name, f := range fieldsOf(reflect.Zero(t)) {
		at := join(key, name)
		properties[name] = keySchema(f.Type(), at)
		if isSecret(f) {
			properties[name+"_file"] = node{"type": []string{"string", "null"},
				"description": "File with the value of " + at + "."}
		}
	}
	section := node{"type": []string{"object", "null"}, "properties": properties, "additionalProperties": false}
	if key == "routes[]" {
		section["required"] = []string{"path", "upstream", "token"}
	}
	return section
}

// keySchema returns the schema of a value.
func keySchema(t reflect.Type, key string) node {
	zero := reflect.Zero(t)
	switch {
	case t.Kind() == reflect.Pointer:
		return keySchema(t.Elem(), key)
	case t.Kind() == reflect.Struct && hasText(zero):
		return node{"anyOf": []node{valueSchema(t), sectionSchema(t, key)}}
	case t.Kind() == reflect.Struct:
		return sectionSchema(t, key)
	case isStructSlice(zero):
		return node{"type": []string{"array", "null"}, "items": sectionSchema(t.Elem(), key+"[]")}
	}
	schema := valueSchema(t)
	for _, k := range Keys {
		if k.Name != key {
			continue
		}
		schema["description"] = k.Doc
		if value := k.defaultValue(t); value != nil {
			schema["default"] = value
		}
	}
	if values, ok := enums[key]; ok {
		schema = node{"enum": append(slices.Clone(values), nil), "description": schema["description"],
			"default": schema["default"]}
		maps.DeleteFunc(schema, func(_ string, value any) bool { return value == nil })
	}
	return schema
}

// Patterns of values that have a unit.
const (
	durationPattern = `^([0-9]+(\.[0-9]*)?(ns|us|µs|ms|s|m|h))+$`
	delayPattern    = `^(0|([0-9]+(\.[0-9]*)?(ns|us|µs|ms|s|m|h))+)$`
	sizePattern     = `^[1-9][0-9]* *(B|kB|KB|MB|GB|KiB|MiB|GiB)?$`
	byteRatePattern = `^(off|0|0B/s|[1-9][0-9]* *(B|kB|KB|MB|GB|KiB|MiB|GiB)? */s)$`
	ratePattern     = `^[0-9]+(\.[0-9]+)? */ *(s|m|h)$`
)

// valueSchema returns the schema of a value that is no section, or of the text
// of a section.
func valueSchema(t reflect.Type) node {
	scalar := []string{"string", "number", "boolean"}
	list := node{"type": []string{"array", "string", "null"}, "items": node{"type": scalar}}
	text := func(pattern string, types ...string) node {
		return node{"type": append([]string{"string", "null"}, types...), "pattern": pattern}
	}
	switch t {
	case reflect.TypeFor[time.Duration]():
		return text(durationPattern)
	case reflect.TypeFor[Delay](), reflect.TypeFor[MaxAge]():
		return text(delayPattern, "integer")
	case reflect.TypeFor[ByteSize]():
		return text(sizePattern, "integer")
	case reflect.TypeFor[ByteRate]():
		return text(byteRatePattern, "integer")
	case reflect.TypeFor[EventRate]():
		return text(ratePattern)
	case reflect.TypeFor[BurstSize]():
		return node{"type": []string{"integer", "null"}, "minimum": 1}
	case reflect.TypeFor[HSTS]():
		return node{"enum": []any{"off", false}}
	case reflect.TypeFor[[]session.Secret]():
		return node{"type": []string{"array", "string", "null"}, "items": node{"type": "string"}}
	case reflect.TypeFor[[]string]():
		return list
	case reflect.TypeFor[map[string]string]():
		return node{"type": []string{"object", "null"}, "additionalProperties": node{"type": scalar}}
	case reflect.TypeFor[map[string]any]():
		return node{"type": []string{"object", "null"}}
	case reflect.TypeFor[map[string][]string]():
		return node{"type": []string{"object", "null"}, "additionalProperties": node{
			"anyOf": []node{{"type": scalar}, {"type": "array", "items": node{"type": scalar}}}}}
	}
	switch t.Kind() {
	case reflect.Bool:
		return node{"type": []string{"boolean", "null"}}
	case reflect.Int:
		return node{"type": []string{"integer", "null"}}
	case reflect.String:
		return node{"type": []string{"string", "null"}}
	}
	return node{}
}

// defaultValue returns the default as JSON has it. It returns nil if there is
// none, or if Default describes it.
func (k Key) defaultValue(t reflect.Type) any {
	described := strings.Contains(k.Default, " ") && !strings.Contains(k.Default, ", ")
	isKey := slices.ContainsFunc(Keys, func(other Key) bool { return other.Name == k.Default })
	if k.Default == "" || described || isKey {
		return nil
	}
	value := reflect.New(t).Elem()
	switch err := setText(value, k.Default); {
	case err != nil:
		return nil
	case t.Kind() == reflect.Slice && value.Len() == 1: // all, any
		return nil
	case t.Kind() == reflect.Slice, t.Kind() == reflect.Bool, t == reflect.TypeFor[int](),
		t == reflect.TypeFor[BurstSize]():
		return value.Interface()
	}
	return k.Default
}

// anyOf returns texts as values of JSON.
func anyOf(texts []string) []any {
	values := make([]any, len(texts))
	for i, text := range texts {
		values[i] = text
	}
	return values
}

// enums are the keys that accept only some values.
var enums = map[string][]any{
	"oidc.client_auth": {"client_secret_basic", "client_secret_post", "private_key_jwt", "jwt_file",
		"tls_client_auth", "self_signed_tls_client_auth"},
	"oidc.client_assertion_type": {"jwt-bearer", "jwt-spiffe"},
	"oidc.profile":               {"fapi2"},
	"oidc.pushed_requests":       {"auto", "always", "never"},
	"oidc.prompt_after_end":      {"login", "select_account", "provider"},
	"oidc.response_mode":         {"query", "form_post"},
	"oidc.sender_constraint":     {"dpop", "mtls"},
	"session.cookie.same_site":   {"strict", "lax"},
	"frontend.fallback":          {"auto", "index", "none"},
	"frontend.referrer_policy":   anyOf(web.ReferrerPolicies()),
	"frontend.opener_policy":     anyOf(web.OpenerPolicies()),
	"log.level":                  {"error", "warn", "info", "debug"},
	"log.format":                 {"json", "text"},
	"log.access":                 {"all", "errors", "none"},
	"log.users":                  {"hash", "plain", "none"},
	"routes[].token":             {"user", "optional", "client", "user-or-client", "none"},
	"routes[].grant":             {"refresh-token", "token-exchange"},
	"routes[].csrf":              {"header", "fetch-metadata", "auto"},
	"routes[].documents":         {"allow"},
	"routes[].encoded_slashes":   {"pass"},
	"routes[].retry":             {"once", "never", true, false},
}
