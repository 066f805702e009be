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

// decodeText decodes the YAML in an environment variable into v.
func (l *loader) decodeText(name, text string, v reflect.Value, key string) {
	inEnvironment := *l
	inEnvironment.source, inEnvironment.problems = name, nil
	var doc yaml.Node
	switch err := yaml.Load([]byte(text), &doc); {
	case err != nil && isSecret(v): // the error may quote it
		err = errors.New("[redacted] is not YAML")
		inEnvironment.problems = Errors{{Source: name, Key: key, Value: "[redacted]", Err: err}}
	case err != nil:
		err = fmt.Errorf("not YAML: %w", err)
		inEnvironment.problems = Errors{{Source: name, Key: key, Value: text, Err: err}}
	case len(doc.Content) > 0:
		inEnvironment.decode(doc.Content[0], v, key)
	}
	l.problems = append(l.problems, inEnvironment.problems...)
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
	eachVariable(reflect.ValueOf(Config{}), "", func(key string, v reflect.Value) {
		keys[variable(key)] = key
		if isSecret(v) {
			keys[variable(key)+"_FILE"] = key + "_file"
		}
	})
	names := slices.Sorted(maps.Keys(keys))
	var strays []StrayVariable
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		if _, known := keys[name]; known || !strings.HasPrefix(name, "CLOAKROOM_") {
			continue
		}
		if near := suggest(name, names); near != "" {
			strays = append(strays, StrayVariable{name, near, keys[near]})
		}
	}
	return strays
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
