package config

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// urlsWithUserinfo returns a mistake for each URL with a user name or a
// password (RFC 3986, section 3.2.1). Only secrets can have them, such as
// store.url. Other values are printed: in the log, in errors, and on the page
// for administrators.
func urlsWithUserinfo(c *Config) (problems Errors) {
	var look func(key string, v reflect.Value)
	look = func(key string, v reflect.Value) {
		switch {
		case isSecret(v):
		case v.Kind() == reflect.String:
			if hasUserinfo(v.String()) {
				problems = append(problems, &Error{Key: key, Value: "[redacted]",
					Err: errors.New("[redacted] has a user name or a password; this URL cannot have them")})
			}
		case v.Kind() == reflect.Pointer && !v.IsNil():
			look(key, v.Elem())
		case v.Kind() == reflect.Struct:
			for name, f := range fieldsOf(v) {
				if name != "" {
					look(join(key, name), f)
				}
			}
		case v.Kind() == reflect.Map:
			for entries := v.MapRange(); entries.Next(); {
				look(key+"."+entries.Key().String(), entries.Value())
			}
		case v.Kind() == reflect.Slice:
			for i := range v.Len() {
				item := key
				if isStructSlice(v) {
					item = fmt.Sprintf("%s[%d]", key, i)
				}
				look(item, v.Index(i))
			}
		}
	}
	look("", reflect.ValueOf(*c))
	return problems
}

// hasUserinfo reports whether text is a URL with a user name, whatever else is
// wrong with it.
func hasUserinfo(text string) bool {
	_, rest, isURL := strings.Cut(text, "://")
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	return isURL && strings.Contains(rest[:end], "@")
}

// replaceIn returns all with the mistakes of the keys in e replaced by those in
// e: the text of a mistake quotes the value.
func (e Errors) replaceIn(all Errors) Errors {
	others := slices.DeleteFunc(all, func(problem *Error) bool {
		return slices.ContainsFunc(e, func(mine *Error) bool {
			return problem.Key == mine.Key || strings.HasPrefix(problem.Key, mine.Key+"[")
		})
	})
	return append(others, e...)
}
