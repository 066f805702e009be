package bff

import (
	"fmt"
	"net/url"
	"strings"
	"unicode/utf8"
)

// checkPath refuses a path that two readers could take for two different paths: this broker, which decides by it, and the
// upstream, which serves it (RFC 3986 6.2.2). escaped is the path as it stands in the request line, and what passes is what is sent.
func checkPath(escaped string) error {
	if !strings.HasPrefix(escaped, "/") {
		return fmt.Errorf("path %q does not begin with a slash", escaped)
	}
	path, err := url.PathUnescape(escaped)
	if err != nil {
		return fmt.Errorf("path %q: %w", escaped, err)
	}
	if !utf8.ValidString(path) {
		return fmt.Errorf("path %q is not UTF-8", escaped)
	}
	for _, c := range path {
		if c < ' ' || c == 0x7f || c == '\\' {
			return fmt.Errorf("path %q holds a control character or a backslash", escaped)
		}
	}
	if lower := strings.ToLower(escaped); strings.Contains(lower, "%2e") || strings.Contains(lower, "%2f") {
		return fmt.Errorf("path %q holds an encoded dot or slash", escaped)
	}
	for i := 0; i+2 < len(path); i++ {
		if path[i] == '%' && isHex(path[i+1]) && isHex(path[i+2]) {
			return fmt.Errorf("path %q is encoded twice", escaped)
		}
	}
	for i, segment := range strings.Split(path[1:], "/") {
		name, _, _ := strings.Cut(segment, ";") // servers of Java drop what follows, and see .. in "..;"
		switch {
		case name == "." || name == "..":
			return fmt.Errorf("path %q holds a dot segment", escaped)
		case name == "" && (segment != "" || i < strings.Count(path[1:], "/")):
			return fmt.Errorf("path %q holds an empty segment", escaped)
		}
	}
	return nil
}

// underPath says whether path is prefix or lies below it; a prefix ends on a segment boundary.
func underPath(path, prefix string) bool {
	if strings.HasSuffix(prefix, "/") {
		return strings.HasPrefix(path, prefix)
	}
	return path == prefix || strings.HasPrefix(path, prefix) && path[len(prefix)] == '/'
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'f'
}
