package bearer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// maxMembers bounds the comparison of each name with each other.
const maxMembers = 250

// members calls visit with each member of a JSON object in turn, its name unquoted and its value as it is written.
//
// It is for headers and claims, where encoding/json is too kind: a name that comes twice is refused (RFC 7515 section 5.2, RFC 7519 section 4), and
// so is one that differs from another in case only, because readers disagree about which of the two counts.
func members(object []byte, visit func(name, value []byte) error) error {
	if !utf8.Valid(object) || !json.Valid(object) {
		return errors.New("it is not JSON")
	}
	rest := skipSpace(object)
	if rest[0] != '{' {
		return errors.New("it is not a JSON object")
	}
	names := make([][]byte, 0, 32)
	// What follows relies on the JSON being valid: rest begins with the character before a member, or is at the end of the object.
	for rest = skipSpace(rest[1:]); rest[0] != '}'; {
		if rest[0] == ',' {
			rest = skipSpace(rest[1:])
		}
		var name, value []byte
		name, rest = cutValue(rest)
		rest = skipSpace(rest)[1:] // the colon
		value, rest = cutValue(skipSpace(rest))
		rest = skipSpace(rest)

		name, err := unquote(name)
		if err != nil {
			return err
		}
		for _, earlier := range names {
			if bytes.EqualFold(earlier, name) {
				return fmt.Errorf("%.40q comes twice", name)
			}
		}
		if names = append(names, name); len(names) > maxMembers {
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

// cutValue cuts b behind the value that it begins with. That value is followed by more: it is a member of an object or of an array.
func cutValue(b []byte) (value, rest []byte) {
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
		case depth > 0:
			if c == '}' || c == ']' {
				depth--
			}
		case strings.IndexByte(",:}] \t\r\n", c) >= 0:
			return b[:i], b[i:]
		}
	}
	return b, nil
}

var (
	errNotString  = errors.New("it is not a string")
	errNotStrings = errors.New("it is neither a string nor an array of strings")
)

// unquote returns what a JSON string stands for.
func unquote(value []byte) ([]byte, error) {
	switch {
	case value[0] != '"':
		return nil, errNotString
	case bytes.IndexByte(value, '\\') < 0:
		return value[1 : len(value)-1], nil
	}
	var s string
	err := json.Unmarshal(value, &s)
	return []byte(s), err
}

func text(value []byte) (string, error) {
	s, err := unquote(value)
	return string(s), err
}

// texts reads an array of strings, or one string for an array of one (RFC 7519 section 4.1.3).
func texts(value []byte) ([]string, error) {
	if value[0] == '"' {
		s, err := text(value)
		return []string{s}, err
	}
	if value[0] != '[' {
		return nil, errNotStrings
	}
	many := []string{}
	for rest := skipSpace(value[1:]); rest[0] != ']'; { // as in members
		if rest[0] == ',' {
			rest = skipSpace(rest[1:])
		}
		var element []byte
		element, rest = cutValue(rest)
		rest = skipSpace(rest)
		s, err := text(element)
		if err != nil {
			return nil, errNotStrings
		}
		many = append(many, s)
	}
	return many, nil
}

// date reads a NumericDate (RFC 7519 section 2), to the second.
func date(value []byte) (time.Time, error) {
	const year5000 = 95617584000
	seconds, err := strconv.ParseFloat(string(value), 64)
	if err != nil || !(seconds >= 0 && seconds < year5000) {
		return time.Time{}, errors.New("it is not a date")
	}
	return time.Unix(int64(seconds), 0), nil
}
