package config

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// readVariable overrides the value of a key with that of its environment
// variable, if it is set.
func (l *loader) readVariable(key string, v reflect.Value) {
	name := variable(key)
	fail := func(source, value, format string, args ...any) {
		l.problems = append(l.problems, &Error{Source: source, Key: key, Value: value,
			Err: fmt.Errorf(format, args...)})
	}
	if isSecret(v) {
		if path := l.getenv(name + "_FILE"); path != "" {
			if l.getenv(name) != "" {
				fail(name+"_FILE", path, "set either %s or %s_FILE, not both", name, name)
			}
			l.files[key] = path
			v.SetZero()
		}
	}
	text := l.getenv(name)
	if text == "" {
		return
	}
	delete(l.files, key)
	if isSecret(v) && cleanSecret(text) == "" {
		fail(name, "", "contains white space only")
		return
	}
	// Lists and mappings are YAML, usually in flow style. A list can also be
	// separated by commas.
	list := v.Kind() == reflect.Slice && !isStructSlice(v)
	if isComposite(v) && !list || list && strings.HasPrefix(strings.TrimSpace(text), "[") {
		l.decodeText(name, text, v, key)
		return
	}
	if err := setText(v, text); err != nil {
		fail(name, text, "%w", err)
	}
}

// decodeText decodes the YAML in an environment variable into v. Of a section
// it sets the keys that the YAML has.
func (l *loader) decodeText(name, text string, v reflect.Value, key string) {
	inEnvironment := *l
	inEnvironment.source, inEnvironment.problems = name, nil
	redacted := func(problem string) {
		inEnvironment.problems = Errors{{Source: name, Key: key, Value: "[redacted]",
			Err: errors.New("[redacted] is " + problem)}}
	}
	switch doc, err := parseDocument([]byte(text)); {
	case err != nil && holdsSecrets(v): // the error may quote it
		redacted("not YAML")
	case err != nil:
		err = fmt.Errorf("not YAML: %w", err)
		inEnvironment.problems = Errors{{Source: name, Key: key, Value: text, Err: err}}
	case len(doc.Content) == 0:
	case v.Kind() == reflect.Struct && holdsSecrets(v) && doc.Content[0].Kind != yaml.MappingNode:
		redacted("not a mapping of keys to values")
	default:
		if v.Kind() == reflect.Struct {
			inEnvironment.unsetSecrets(doc.Content[0], v, key)
		}
		inEnvironment.decode(doc.Content[0], v, key)
	}
	l.problems = append(l.problems, inEnvironment.problems...)
}

// unsetSecrets unsets the secrets of a section that n, a mapping in an
// environment variable, sets by value or by file. Otherwise the value of one
// source and the file of another would be a conflict.
func (l *loader) unsetSecrets(n *yaml.Node, section reflect.Value, key string) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	silent := *l // decode reports the mistakes
	silent.problems = nil
	for _, p := range silent.pairs(n, key) {
		name := p.name.Value
		f, ok := fieldNamed(section, name)
		if secret, isFile := strings.CutSuffix(name, "_file"); !ok && isFile {
			name = secret
			f, ok = fieldNamed(section, secret)
		}
		switch {
		case !ok, p.value.Tag == "!!null":
		case isSecret(f):
			f.SetZero()
			delete(l.files, join(key, name))
		case f.Kind() == reflect.Struct:
			l.unsetSecrets(p.value, f, join(key, name))
		}
	}
}

// StrayVariable is an environment variable whose name is not that of a key, but
// close to one.
type StrayVariable struct {
	Name string
	Near string // the name that is close to it
	Key  string // that Near sets
}

func (v StrayVariable) String() string {
	return fmt.Sprintf("environment variable %s has no effect; did you mean %s?", v.Name, v.Near)
}

// StrayVariables returns those of an environment.
func StrayVariables(environ []string) []StrayVariable {
	keys := make(map[string]string) // :: variable → key
	sections := make(map[string]bool)
	eachVariable(reflect.ValueOf(Config{}), "", func(key string, v reflect.Value) {
		keys[variable(key)] = key
		if isSecret(v) {
			keys[variable(key)+"_FILE"] = key + "_file"
		}
		sections[variable(key)] = v.Kind() == reflect.Struct && !hasText(v)
	})
	// CLOAKROOM_TAG is not CLOAKROOM_LOG: the names of such sections are too
	// short. CLOAKROOM_SERVER_PORT is one of Kubernetes.
	names := slices.DeleteFunc(slices.Sorted(maps.Keys(keys)), func(name string) bool {
		return sections[name] && !strings.Contains(keys[name], ".")
	})
	values := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return sections[name] })
	var strays []StrayVariable
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		if _, known := keys[name]; known || !strings.HasPrefix(name, "CLOAKROOM_") {
			continue
		}
		near := suggest(name, names)
		if near == "" {
			near = prefixOf(name, values)
		}
		if near != "" {
			strays = append(strays, StrayVariable{name, near, keys[near]})
		}
	}
	return strays
}

// prefixOf returns the longest of names that a name goes on from, or "":
// CLOAKROOM_FRONTEND_CSP for CLOAKROOM_FRONTEND_CSP_IMG_SRC.
func prefixOf(name string, names []string) (longest string) {
	for _, n := range names {
		if strings.HasPrefix(name, n+"_") && len(n) > len(longest) {
			longest = n
		}
	}
	return longest
}

// readSecretFile reads the file with the value of a key, if it has one.
func (l *loader) readSecretFile(key string, v reflect.Value) {
	path, ok := l.files[key]
	if !ok {
		return
	}
	fail := func(key, format string, args ...any) {
		l.problems = append(l.problems, &Error{Key: key, Value: path, Err: fmt.Errorf(format, args...)})
	}
	if !v.IsZero() {
		fail(key, "set either %s or %s_file, not both", key, key)
		return
	}
	text, err := os.ReadFile(path)
	switch {
	case err != nil:
		fail(key+"_file", "%w", err)
	case !utf8.Valid(text) || bytes.IndexByte(text, 0) >= 0:
		fail(key+"_file", "%s is not UTF-8 text", path)
	case cleanSecret(string(text)) == "":
		fail(key+"_file", "%s is empty", path)
	default:
		setText(v, string(text)) // does not fail for secrets
	}
}
