package config

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/cloakroom-bff/cloakroom/session"
)

// Files returns the files on which a configuration depends: the file itself,
// and those that it names for secrets, keys, certificates and CAs. It leaves
// out oidc.client_assertion_file, which is read for each request and may be
// replaced every few minutes.
func Files(file string, getenv func(string) string) []string {
	files := newLoader(file, getenv).load().files
	delete(files, "oidc.client_assertion_file")
	return slices.Compact(slices.Sorted(maps.Values(files)))
}

// NamedFiles returns the files that a configuration names for secrets, keys,
// certificates and CAs, by the keys that name them, such as
// oidc.client_secret_file or routes[0].upstream_tls.ca_file.
func NamedFiles(file string, getenv func(string) string) map[string]string {
	files := newLoader(file, getenv).load().files
	delete(files, "")
	return files
}

// allFiles returns the value of Config.files.
func (l *loader) allFiles(c *Config) map[string]string {
	files := make(map[string]string)
	if l.source != "" {
		files[""] = l.source
	}
	for key, secret := range l.files {
		files[key+"_file"] = secret
	}
	addFiles(files, reflect.ValueOf(c).Elem(), "")
	return files
}

// addFiles adds the values of all keys of v that end in _file. key is that of
// v.
func addFiles(files map[string]string, v reflect.Value, key string) {
	for name, f := range fieldsOf(v) {
		at := join(key, name)
		if f.Kind() == reflect.Pointer && !f.IsNil() {
			f = f.Elem()
		}
		switch {
		case f.Kind() == reflect.Struct:
			addFiles(files, f, at)
		case isStructSlice(f):
			for j := range f.Len() {
				addFiles(files, f.Index(j), fmt.Sprintf("%s[%d]", at, j))
			}
		case f.Kind() == reflect.String && strings.HasSuffix(at, "_file") && f.String() != "":
			files[at] = f.String()
		}
	}
}

// HasSecrets reports whether a file contains the value of a secret. It is false
// if the file cannot be read.
func HasSecrets(file string) bool {
	l := newLoader(file, func(string) string { return "" })
	c := new(Config)
	l.readFile(c)
	return anySecret(reflect.ValueOf(c).Elem())
}

func anySecret(v reflect.Value) bool {
	for name, f := range fieldsOf(v) {
		switch {
		case isSecret(f) && f.Type() == reflect.TypeFor[session.Secret](): // a store URL may have no password
			text := f.String()
			if text != "" && (name != "url" || hasPassword(text)) {
				return true
			}
		case isSecret(f) && f.Len() > 0, f.Kind() == reflect.Struct && anySecret(f):
			return true
		}
	}
	return false
}
