package config

import (
	"iter"
	"reflect"

	"github.com/cloakroom-bff/cloakroom/session"
)

// fieldsOf yields the fields of a section, each with its key there.
func fieldsOf(section reflect.Value) iter.Seq2[string, reflect.Value] {
	return func(yield func(string, reflect.Value) bool) {
		for i := range section.NumField() {
			field := section.Type().Field(i)
			if field.IsExported() && !yield(tag(field), section.Field(i)) {
				return
			}
		}
	}
}

// eachVariable calls visit with all that an environment variable can set below
// a section: values and sections. A section comes before its fields, so that
// their variables take precedence. key is the key of the section.
func eachVariable(section reflect.Value, key string, visit func(key string, v reflect.Value)) {
	for name, f := range fieldsOf(section) {
		at := join(key, name)
		visit(at, f)
		if f.Kind() == reflect.Struct {
			eachVariable(f, at, visit)
		}
	}
}

func join(key, name string) string {
	if key == "" {
		return name
	}
	return key + "." + name
}

func tag(f reflect.StructField) string { return f.Tag.Get("yaml") }

func fieldNamed(v reflect.Value, name string) (reflect.Value, bool) {
	for known, f := range fieldsOf(v) {
		if known == name {
			return f, true
		}
	}
	return reflect.Value{}, false
}

func fieldNames(v reflect.Value) []string {
	var names []string
	for name, f := range fieldsOf(v) {
		names = append(names, name)
		if isSecret(f) {
			names = append(names, name+"_file")
		}
	}
	return names
}

func isSecret(v reflect.Value) bool {
	switch v.Interface().(type) {
	case session.Secret, []session.Secret:
		return true
	}
	return false
}

// holdsSecrets reports whether a value is a secret, or a section with secrets.
func holdsSecrets(v reflect.Value) bool {
	if v.Kind() != reflect.Struct {
		return isSecret(v)
	}
	for _, f := range fieldsOf(v) {
		if holdsSecrets(f) {
			return true
		}
	}
	return false
}

func isStructSlice(v reflect.Value) bool {
	return v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Struct
}

// isComposite reports whether a value consists of others.
func isComposite(v reflect.Value) bool {
	return v.Kind() == reflect.Slice || v.Kind() == reflect.Map || v.Kind() == reflect.Pointer ||
		v.Kind() == reflect.Struct
}
