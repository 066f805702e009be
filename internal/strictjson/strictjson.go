// Package strictjson parses JSON objects from other parties: tokens, metadata,
// key sets and responses of providers.
//
// encoding/json is too lenient for them. It accepts a member named SUB or ſub
// as sub, uses the last of two members of one name, and fails as a whole if one
// member has an unexpected type. Here names are compared octet by octet, a name
// that occurs twice is an error where it is read, a member is decoded when it
// is needed, and depth and number of members are bounded.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	maxMembers = 1000 // of one object: each name is compared with each other
	maxDepth   = 64
)

var (
	errNotJSON    = errors.New("it is not JSON")
	errNotObject  = errors.New("it is not a JSON object")
	errNotArray   = errors.New("it is not an array")
	errNotString  = errors.New("it is not a string")
	errNotStrings = errors.New("it is neither a string nor an array of strings")
	errNotBool    = errors.New("it is neither true nor false")
	errNotDate    = errors.New("it is not a date")
	errTwice      = errors.New("it is there twice")
	errDeep       = fmt.Errorf("it is nested deeper than %d levels", maxDepth)
	errSurrogate  = errors.New("it holds half of a surrogate pair")
)

// Members calls visit with each member of a JSON object in turn, its name
// unquoted and its value as it is written. It fails if a name occurs twice
// (RFC 7515, section 5.2; RFC 7519, section 4).
//
// It also fails if two names differ only in case and one of them is in
// decisive, the names that the caller decides on: a reader that folds case
// would see another value than the caller. Apart from that, names that differ
// in case are different names.
func Members(object []byte, decisive []string, visit func(name, value []byte) error) error {
	names := make([][]byte, 0, 32)
	return each(object, func(name, value []byte) error {
		for _, earlier := range names {
			if bytes.Equal(earlier, name) {
				return fmt.Errorf("%.40q comes twice", name)
			}
			if len(decisive) > 0 && bytes.EqualFold(earlier, name) &&
				(slices.Contains(decisive, string(name)) || slices.Contains(decisive, string(earlier))) {
				return fmt.Errorf("%.40q comes twice, in different cases", name)
			}
		}
		names = append(names, name)
		return visit(name, value)
	})
}

// each is Members without a comparison of the names.
func each(object []byte, visit func(name, value []byte) error) error {
	if !utf8.Valid(object) || !json.Valid(object) {
		return errNotJSON
	}
	rest := skipSpace(object)
	if rest[0] != '{' {
		return errNotObject
	}
	// The JSON is valid: rest begins with the character before a member, or is
	// at the end of the object.
	n := 0
	for rest = skipSpace(rest[1:]); rest[0] != '}'; {
		if rest[0] == ',' {
			rest = skipSpace(rest[1:])
		}
		var name, value []byte
		var deep bool
		name, rest, _ = cutValue(rest)
		rest = skipSpace(rest)[1:] // the colon
		value, rest, deep = cutValue(skipSpace(rest))
		if deep {
			return errDeep
		}
		rest = skipSpace(rest)

		name, err := unquote(name)
		if err != nil {
			return err
		}
		if n++; n > maxMembers {
			return fmt.Errorf("it has more than %d members", maxMembers)
		}
		if err := visit(name, value); err != nil {
			return err
		}
	}
	return nil
}

func skipSpace(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t' || b[0] == '\r' || b[0] == '\n') {
		b = b[1:]
	}
	return b
}

// cutValue cuts b behind the value that it begins with, and reports whether
// that is nested too deep. More follows the value: it is a member of an object
// or of an array.
func cutValue(b []byte) (value, rest []byte, deep bool) {
	depth, quoted := 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			depth++
			deep = deep || depth > maxDepth
		case depth > 0:
			if c == '}' || c == ']' {
				depth--
			}
		case strings.IndexByte(",:}] \t\r\n", c) >= 0:
			return b[:i], b[i:], deep
		}
	}
	return b, nil, deep
}

// unquote returns the text of a JSON string.
func unquote(value []byte) ([]byte, error) {
	switch {
	case value[0] != '"':
		return nil, errNotString
	case bytes.IndexByte(value, '\\') < 0:
		return value[1 : len(value)-1], nil
	case hasLoneSurrogate(value):
		return nil, errSurrogate // encoding/json would make the same U+FFFD of all of them
	}
	var s string
	err := json.Unmarshal(value, &s)
	return []byte(s), err
}

// hasLoneSurrogate reports whether a JSON string has an escaped half of a
// surrogate pair without the other half (RFC 8259, section 8.2).
func hasLoneSurrogate(value []byte) bool {
	for i := 0; i+1 < len(value); i++ {
		if value[i] != '\\' {
			continue
		}
		i++
		if value[i] != 'u' {
			continue
		}
		switch unit := codeUnit(value[i:]); {
		case unit < 0xd800 || unit > 0xdfff:
		case unit > 0xdbff, len(value) < i+11, value[i+5] != '\\', value[i+6] != 'u':
			return true
		default:
			if low := codeUnit(value[i+6:]); low < 0xdc00 || low > 0xdfff {
				return true
			}
			i += 6
		}
	}
	return false
}

// codeUnit returns the UTF-16 code unit of a valid escape, which is the letter
// u and four hexadecimal digits.
func codeUnit(escape []byte) uint64 {
	if len(escape) < 5 {
		return 0
	}
	unit, err := strconv.ParseUint(string(escape[1:5]), 16, 16)
	if err != nil {
		return 0
	}
	return unit
}

// Text decodes a string.
func Text(value []byte) (string, error) {
	s, err := unquote(value)
	return string(s), err
}

// Texts decodes an array of strings, or one string as an array of one (RFC
// 7519, section 4.1.3).
func Texts(value []byte) ([]string, error) {
	if value[0] == '"' {
		s, err := Text(value)
		return []string{s}, err
	}
	many := []string{}
	err := Elements(value, func(element []byte) error {
		s, err := Text(element)
		if err == nil {
			many = append(many, s)
		}
		return err
	})
	if err != nil {
		return nil, errNotStrings
	}
	return many, nil
}

// Elements calls visit with each element of an array, as it is written.
func Elements(value []byte, visit func(element []byte) error) error {
	if value[0] != '[' {
		return errNotArray
	}
	for rest := skipSpace(value[1:]); rest[0] != ']'; { // as in each
		if rest[0] == ',' {
			rest = skipSpace(rest[1:])
		}
		var element []byte
		element, rest, _ = cutValue(rest)
		rest = skipSpace(rest)
		if err := visit(element); err != nil {
			return err
		}
	}
	return nil
}

// Date decodes a NumericDate (RFC 7519, section 2), to the second.
func Date(value []byte) (time.Time, error) {
	const year5000 = 95617584000
	seconds, err := strconv.ParseFloat(string(value), 64)
	if err != nil || !(seconds >= 0 && seconds < year5000) {
		return time.Time{}, errNotDate
	}
	return time.Unix(int64(seconds), 0), nil
}

// IsNull reports whether a value is null.
func IsNull(value []byte) bool { return string(value) == "null" }

// Object is a JSON object whose members are decoded when they are asked for.
//
// A member that is null counts as missing: its zero value is returned without
// an error. A member of another type than is asked for, or that occurs twice,
// is an error.
type Object map[string]member

type member struct {
	value []byte
	twice bool
}

// Parse reads an object. It does not fail because a name occurs twice, because
// nothing may depend on that member: see Unique and Unambiguous.
func Parse(b []byte) (Object, error) {
	o := make(Object)
	err := each(b, func(name, value []byte) error {
		_, twice := o[string(name)]
		o[string(name)] = member{value, twice}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return o, nil
}

// Unique fails if a name occurs twice.
func (o Object) Unique() error {
	for name, m := range o {
		if m.twice {
			return fmt.Errorf("%.40q comes twice", name)
		}
	}
	return nil
}

// Unambiguous fails if one of the names occurs twice, or beside one that
// differs from it only in case: a reader that folds case would see another
// value.
func (o Object) Unambiguous(names ...string) error {
	for _, known := range names {
		if m, ok := o[known]; !ok {
			continue
		} else if m.twice {
			return fmt.Errorf("%.40q comes twice", known)
		}
		for name := range o {
			if name != known && strings.EqualFold(name, known) {
				return fmt.Errorf("%.40q comes twice, in different cases", known)
			}
		}
	}
	return nil
}

// Has reports whether there is a member of the name, null included.
func (o Object) Has(name string) bool { _, ok := o[name]; return ok }

// Raw returns a member as it is written; nil if it is missing or null.
func (o Object) Raw(name string) ([]byte, error) {
	m, ok := o[name]
	switch {
	case !ok:
		return nil, nil
	case m.twice:
		return nil, fmt.Errorf("%s: %w", name, errTwice)
	case IsNull(m.value):
		return nil, nil
	}
	return m.value, nil
}

// decode decodes one member by a function.
func decode[T any](o Object, name string, by func([]byte) (T, error)) (v T, err error) {
	raw, err := o.Raw(name)
	if err != nil || raw == nil {
		return v, err
	}
	if v, err = by(raw); err != nil {
		var zero T
		return zero, fmt.Errorf("%s: %w", name, err)
	}
	return v, nil
}

// Text returns a string.
func (o Object) Text(name string) (string, error) { return decode(o, name, Text) }

// Texts returns an array of strings, or one string as an array of one.
func (o Object) Texts(name string) ([]string, error) { return decode(o, name, Texts) }

// Date returns a NumericDate; the zero time if it is missing.
func (o Object) Date(name string) (time.Time, error) { return decode(o, name, Date) }

// Object returns an object; nil if it is missing.
func (o Object) Object(name string) (Object, error) { return decode(o, name, Parse) }

// Bool returns true or false; false if it is missing.
func (o Object) Bool(name string) (bool, error) {
	return decode(o, name, func(value []byte) (bool, error) {
		if string(value) == "true" || string(value) == "false" {
			return string(value) == "true", nil
		}
		return false, errNotBool
	})
}

// Value returns a member as encoding/json decodes it into any, with exact
// numbers. It fails if in an object within it a name occurs twice.
func (o Object) Value(name string) (any, error) { return decode(o, name, decodeValue) }

func decodeValue(value []byte) (v any, err error) {
	switch value[0] {
	case '{':
		object := make(map[string]any)
		err := Members(value, nil, func(name, value []byte) error {
			v, err := decodeValue(value)
			object[string(name)] = v
			return err
		})
		return object, err
	case '[':
		array := []any{}
		err := Elements(value, func(element []byte) error {
			v, err := decodeValue(element)
			array = append(array, v)
			return err
		})
		return array, err
	case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
		return json.Number(value), nil
	}
	err = json.Unmarshal(value, &v)
	return v, err
}

// Map returns all members as Value does. It leaves out those that Value fails
// for.
func (o Object) Map() map[string]any {
	all := make(map[string]any, len(o))
	for name := range o {
		if value, err := o.Value(name); err == nil {
			all[name] = value
		}
	}
	return all
}
