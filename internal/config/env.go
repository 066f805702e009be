package config

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// readEnvironment overrides every key whose environment variable is set.
func (l *loader) readEnvironment(v reflect.Value, key string) {
	for i := range v.NumField() {
		f, at := v.Field(i), join(key, tag(v.Type().Field(i)))
		name := variable(at)
		if f.Kind() == reflect.Struct {
			if text := l.getenv(name); text != "" && f.Type() == reflect.TypeFor[HSTS]() { // it can be off
				l.decodeText(name, text, f, at)
			}
			l.readEnvironment(f, at)
			continue
		}
		fail := func(source, value, format string, args ...any) {
			l.problems = append(l.problems, &Error{Source: source, Key: at, Value: value,
				Err: fmt.Errorf(format, args...)})
		}
		if isSecret(f) {
			if path := l.getenv(name + "_FILE"); path != "" {
				if l.getenv(name) != "" {
					fail(name+"_FILE", path, "set either %s or %s_FILE, not both", name, name)
				}
				l.files[at] = path
				f.SetZero()
			}
		}
		text := l.getenv(name)
		if text == "" {
			continue
		}
		delete(l.files, at)
		if isSecret(f) && cleanSecret(text) == "" {
			fail(name, "", "contains white space only")
			continue
		}
		// Lists and mappings are YAML, usually in flow style. A list can also
		// be separated by commas.
		list := f.Kind() == reflect.Slice && !isStructSlice(f)
		if isComposite(f) && !list || list && strings.HasPrefix(strings.TrimSpace(text), "[") {
			l.decodeText(name, text, f, at)
			continue
		}
		if err := setText(f, text); err != nil {
			fail(name, text, "%w", err)
		}
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
}

func (v StrayVariable) String() string {
	return fmt.Sprintf("environment variable %s has no effect; did you mean %s?", v.Name, v.Near)
}

// Key returns the key that the variable was meant to set.
func (v StrayVariable) Key() string {
	for _, k := range Keys {
		switch variable(k.Name) {
		case v.Near:
			return k.Name
		case strings.TrimSuffix(v.Near, "_FILE"):
			return k.Name + "_file"
		}
	}
	return strings.ToLower(strings.TrimPrefix(v.Near, "CLOAKROOM_")) // a list, such as routes
}

// StrayVariables returns those of an environment.
func StrayVariables(environ []string) []StrayVariable {
	var names []string
	collectVariables(reflect.TypeFor[Config](), "CLOAKROOM", &names)
	var strays []StrayVariable
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, "CLOAKROOM_") || slices.Contains(names, name) {
			continue
		}
		if near := suggest(name, names); near != "" {
			strays = append(strays, StrayVariable{name, near})
		}
	}
	return strays
}

// collectVariables appends the names of the environment variables that set the
// fields of a struct.
func collectVariables(t reflect.Type, prefix string, names *[]string) {
	for i := range t.NumField() {
		f := t.Field(i)
		name := prefix + "_" + strings.ToUpper(tag(f))
		if f.Type.Kind() == reflect.Struct {
			if f.Type == reflect.TypeFor[HSTS]() {
				*names = append(*names, name)
			}
			collectVariables(f.Type, name, names)
			continue
		}
		*names = append(*names, name)
		if isSecret(reflect.Zero(f.Type)) {
			*names = append(*names, name+"_FILE")
		}
	}
}

// readSecrets reads the secrets that are in files.
func (l *loader) readSecrets(v reflect.Value, key string) {
	for i := range v.NumField() {
		f, at := v.Field(i), join(key, tag(v.Type().Field(i)))
		if f.Kind() == reflect.Struct {
			l.readSecrets(f, at)
			continue
		}
		path, ok := l.files[at]
		if !ok {
			continue
		}
		fail := func(key, format string, args ...any) {
			l.problems = append(l.problems, &Error{Key: key, Value: path, Err: fmt.Errorf(format, args...)})
		}
		if !f.IsZero() {
			fail(at, "set either %s or %s_file, not both", at, at)
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			fail(at+"_file", "%w", err)
			continue
		}
		if !utf8.Valid(text) || bytes.IndexByte(text, 0) >= 0 {
			fail(at+"_file", "%s is not UTF-8 text", path)
			continue
		}
		if cleanSecret(string(text)) == "" {
			fail(at+"_file", "%s is empty", path)
			continue
		}
		setText(f, string(text)) // does not fail for secrets
	}
}
