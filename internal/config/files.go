package config

import (
	"reflect"
	"slices"
	"strings"
)

// Files returns the files on which a configuration depends: the file itself,
// and those that it names for secrets, keys, certificates and CAs.
func Files(file string, getenv func(string) string) []string {
	l := newLoader(file, getenv)
	c := l.load()
	var files []string
	if file != "" {
		files = append(files, file)
	}
	for _, secret := range l.files {
		files = append(files, secret)
	}
	files = appendFiles(files, reflect.ValueOf(c).Elem())
	slices.Sort(files)
	return slices.Compact(files)
}

// appendFiles appends the values of all keys of v that end in _file.
func appendFiles(files []string, v reflect.Value) []string {
	for i := range v.NumField() {
		f := v.Field(i)
		if f.Kind() == reflect.Pointer && !f.IsNil() {
			f = f.Elem()
		}
		switch {
		case f.Kind() == reflect.Struct:
			files = appendFiles(files, f)
		case isStructSlice(f):
			for j := range f.Len() {
				files = appendFiles(files, f.Index(j))
			}
		case f.Kind() == reflect.String && strings.HasSuffix(tag(v.Type().Field(i)), "_file") && f.String() != "":
			files = append(files, f.String())
		}
	}
	return files
}
