// Package urlpath decides whether two servers could read a path of a URL in two
// ways.
package urlpath

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// Check returns an error if two servers could take a path for two different
// paths: this broker, which decides by it, and the upstream, which serves it
// (RFC 3986, section 6.2.2). escaped is the path as it is in the request line,
// and it is sent to the upstream unchanged.
func Check(escaped string) error { return check(escaped, false) }

// CheckExceptSlashes is Check, but accepts encoded slashes. They are data then,
// and separate no segments.
func CheckExceptSlashes(escaped string) error { return check(escaped, true) }

func check(escaped string, passSlashes bool) error {
	switch {
	case !strings.HasPrefix(escaped, "/"):
		return Error(escaped, "does not begin with a slash")
	case strings.Contains(escaped, "//"):
		return Error(escaped, "has an empty segment")
	}
	path := escaped
	if !isUnreserved(escaped) {
		var err error
		if path, err = url.PathUnescape(escaped); err != nil {
			return Error(escaped, "has an invalid percent-encoding")
		}
		if err := checkEscapes(escaped, path, passSlashes); err != nil {
			return err
		}
	}
	for segment := range strings.SplitSeq(compatible(path)[1:], "/") {
		name, _, hasParameters := strings.Cut(segment, ";") // Java servers ignore path parameters: ..;x is ..
		switch strings.TrimSpace(name) {
		case ".", "..":
			return Error(escaped, "has a dot segment")
		case "":
			if hasParameters {
				return Error(escaped, "has an empty segment")
			}
		}
	}
	return nil
}

// checkEscapes checks a path that is not plain, and that was decoded once.
func checkEscapes(escaped, path string, passSlashes bool) error {
	if !utf8.ValidString(path) {
		return Error(escaped, "is not UTF-8")
	}
	for i := range len(path) {
		switch c := path[i]; {
		case c < ' ' || c == 0x7f || c == '\\':
			return Error(escaped, "has a control character or a backslash")
		case c == '%' && escapeLength(path[i:]) > 0:
			return Error(escaped, "is encoded twice")
		}
	}
	for i := range len(escaped) {
		switch {
		case isEscape(escaped[i:], '2', 'e'):
			return Error(escaped, "has an encoded dot")
		case isEscape(escaped[i:], '2', 'f') && !passSlashes:
			return Error(escaped, "has an encoded slash")
		}
	}
	return nil
}

// Error returns an error about a path. It quotes only the beginning, because
// clients choose the length.
func Error(escaped, problem string) error {
	return fmt.Errorf("path %.80q %s", escaped, problem)
}

// isEscape reports whether s begins with a percent-encoding of two digits, the
// second of which is a lower-case letter here.
func isEscape(s string, first, second byte) bool {
	return len(s) >= 3 && s[0] == '%' && s[1] == first && s[2]|0x20 == second
}

// isUnreserved reports whether a path has only slashes and the characters that
// are never encoded (RFC 3986, section 2.3).
func isUnreserved(path string) bool {
	for i := range len(path) {
		switch c := path[i]; {
		case 'a' <= c|0x20 && c|0x20 <= 'z', '0' <= c && c <= '9', c == '/', c == '-', c == '.', c == '_', c == '~':
		default:
			return false
		}
	}
	return true
}

// Raw returns the path of a request as it was sent. If a handler in front
// of this one has changed the URL, that counts.
func Raw(r *http.Request) string {
	raw, _, _ := strings.Cut(r.RequestURI, "?")
	if raw == r.URL.Path && !strings.Contains(raw, "%") {
		return raw
	}
	if decoded, err := url.PathUnescape(raw); err == nil && decoded == r.URL.Path && raw != "" {
		return raw
	}
	return r.URL.EscapedPath()
}

// DecodeExceptSlashes decodes a path except for its encoded slashes, so that
// these separate no segments.
func DecodeExceptSlashes(escaped string) string {
	kept := strings.NewReplacer("%2F", "%252F", "%2f", "%252f").Replace(escaped)
	path, err := url.PathUnescape(kept)
	if err != nil {
		return escaped // CheckExceptSlashes refuses it
	}
	return path
}

// Under reports whether path is prefix or lies below it. A prefix ends on a
// segment boundary.
func Under(path, prefix string) bool {
	if strings.HasSuffix(prefix, "/") {
		return strings.HasPrefix(path, prefix)
	}
	return path == prefix || strings.HasPrefix(path, prefix) && path[len(prefix)] == '/'
}

// AnyReading reports whether some server could read a path as one for which
// match reports true. escaped is the path as it is in a request line or a URL,
// without query and fragment. The result is true for a path that is too long to
// find out. match covers what LenientlyUnder does.
func AnyReading(escaped string, match func(decoded string) bool) bool {
	if len(escaped) > maxReadPath || !strings.HasPrefix(escaped, "/") {
		return true
	}
	all, size := []string{escaped}, 0
	for i := 0; i < len(all); i++ {
		if match(all[i]) {
			return true
		}
		for _, read := range lenientReaders {
			if next := read(all[i]); !slices.Contains(all, next) {
				all = append(all, next)
				size += len(next)
			}
		}
		if len(all) > maxReadings || size > maxReadingBytes {
			return true // such a path is never meant
		}
	}
	return false
}

// maxReadPath, maxReadings and maxReadingBytes bound what it costs to read a
// path in all ways.
const (
	maxReadPath     = 4 << 10
	maxReadings     = 64
	maxReadingBytes = 16 << 10
)

// lenientReaders are what servers do to a path besides taking it as it is, in
// any order and repeatedly. LenientlyUnder covers the rest.
var lenientReaders = []func(path string) string{
	DecodeLeniently,
	decodeOverlong,
	compatible,
	func(path string) string { return strings.ReplaceAll(path, `\`, "/") },
	func(path string) string { return eachSegment(path, withoutParameters) },
	func(path string) string { return eachSegment(path, trimSegment) },
	mergeSlashes,
	removeDotSegments,
	func(path string) string { // the end of a string in C, a query, a fragment
		if i := strings.IndexAny(path, "\x00?#"); i >= 0 {
			return path[:i]
		}
		return path
	},
}

// DecodeLeniently decodes what is percent-encoded, also as %u0041, and leaves
// the rest.
func DecodeLeniently(path string) string {
	if !strings.Contains(path, "%") {
		return path
	}
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		n := escapeLength(path[i:])
		if n == 0 {
			b.WriteByte(path[i])
			continue
		}
		code, _ := strconv.ParseUint(strings.Trim(path[i:i+n], "%uU"), 16, 16)
		if n == len("%41") {
			b.WriteByte(byte(code))
		} else {
			b.WriteRune(rune(code))
		}
		i += n - 1
	}
	return b.String()
}

// escapeLength returns the length of the escape that s begins with, such as %41
// or %u0041, or 0.
func escapeLength(s string) int {
	digits := func(s string, n int) bool {
		return len(s) >= n && strings.IndexFunc(s[:n], func(c rune) bool { return c > 'f' || !isHex(byte(c)) }) < 0
	}
	switch {
	case s == "" || s[0] != '%':
		return 0
	case digits(s[1:], 2):
		return len("%41")
	case len(s) > 1 && s[1]|0x20 == 'u' && digits(s[2:], 4):
		return len("%u0041")
	}
	return 0
}

// decodeOverlong replaces the invalid encodings of ASCII characters in two to
// four bytes (RFC 3629, section 3) by these characters.
func decodeOverlong(path string) string {
	if utf8.ValidString(path) {
		return path
	}
	var b []byte
	for i := 0; i < len(path); i++ {
		n := 0 // bytes that follow
		switch rest := path[i:]; {
		case rest[0] == 0xc0, rest[0] == 0xc1:
			n = 1
		case strings.HasPrefix(rest, "\xe0\x80"), strings.HasPrefix(rest, "\xe0\x81"):
			n = 2
		case strings.HasPrefix(rest, "\xf0\x80\x80"), strings.HasPrefix(rest, "\xf0\x80\x81"):
			n = 3
		}
		if n == 0 || i+n >= len(path) {
			b = append(b, path[i])
			continue
		}
		b = append(b, (path[i+n-1]&1)<<6|path[i+n]&0x3f)
		i += n
	}
	return string(b)
}

func eachSegment(path string, edit func(string) string) string {
	segments := strings.Split(path, "/")
	for i, segment := range segments {
		segments[i] = edit(segment)
	}
	return strings.Join(segments, "/")
}

func withoutParameters(segment string) string {
	name, _, _ := strings.Cut(segment, ";")
	return name
}

// trimSegment removes trailing dots and spaces from a segment, as Windows does
// in file names. A dot segment stays one.
func trimSegment(segment string) string {
	if segment = strings.TrimRight(segment, " "); segment == "." || segment == ".." {
		return segment
	}
	return strings.TrimRight(segment, ". ")
}

func mergeSlashes(path string) string {
	for strings.Contains(path, "//") {
		path = strings.ReplaceAll(path, "//", "/")
	}
	return path
}

// removeDotSegments is RFC 3986, section 5.2.4.
func removeDotSegments(path string) string {
	var out []string
	segments := strings.Split(path, "/")
	for i, segment := range segments {
		last := i == len(segments)-1
		switch segment {
		case ".":
		case "..":
			out = out[:max(min(1, len(out)), len(out)-1)] // the empty one before the first slash stays
		default:
			out = append(out, segment)
			continue
		}
		if last {
			out = append(out, "")
		}
	}
	return strings.Join(out, "/")
}

// LenientlyUnder reports whether a lenient server could read a decoded path as
// lying under prefix: one that merges slashes, appends one, folds case, removes
// path parameters, removes spaces and trailing dots, or replaces compatibility
// characters.
func LenientlyUnder(path, prefix string) bool {
	path, prefix = compatible(path), compatible(strings.Trim(prefix, "/"))
	for prefix != "" {
		var got, want string
		want, prefix, _ = strings.Cut(prefix, "/")
		for got == "" && path != "" { // empty segments, as they are or once trimmed
			got, path, _ = strings.Cut(path, "/")
			got = bareSegment(got)
		}
		if got != want && !equalFolded(got, bareSegment(want)) {
			return false
		}
	}
	return true
}

// compatible returns a path in Unicode's normalization form KC, as some servers
// read it: ／ (U+FF0F) is a slash then, ａ (U+FF41) an a, and ‥ (U+2025) two
// dots.
func compatible(path string) string {
	if isASCII(path) {
		return path
	}
	return norm.NFKC.String(path)
}

// bareSegment returns what every server sees in a segment, at least.
func bareSegment(segment string) string {
	for i := range len(segment) {
		if c := segment[i]; c == ';' || c == '?' || c == '#' || c == 0 {
			segment = segment[:i]
			break
		}
	}
	if segment == "" || !isTrimmable(segment[0]) && !isTrimmable(segment[len(segment)-1]) {
		return segment
	}
	segment = strings.TrimRightFunc(segment, func(c rune) bool { return c == '.' || unicode.IsSpace(c) })
	return strings.TrimLeftFunc(segment, unicode.IsSpace)
}

// isTrimmable reports whether a byte can be part of a dot or a space.
func isTrimmable(c byte) bool { return c == '.' || c <= ' ' || c >= utf8.RuneSelf }

// equalFolded reports whether two texts are equal for some way of folding case:
// that of Unicode, where K (U+212A) is k and ſ (U+017F) is s, or that of Java,
// where İ and ı are i too.
func equalFolded(a, b string) bool {
	for a != "" && b != "" {
		c, n := utf8.DecodeRuneInString(a)
		d, m := utf8.DecodeRuneInString(b)
		if c != d && foldRune(c) != foldRune(d) {
			return false
		}
		a, b = a[n:], b[m:]
	}
	return a == "" && b == ""
}

// foldRune returns the same rune for all that are equal but for case.
func foldRune(c rune) rune {
	if c < utf8.RuneSelf {
		return unicode.ToLower(c)
	}
	c = unicode.ToLower(unicode.ToUpper(c))
	folded := c
	for next := unicode.SimpleFold(c); next != c; next = unicode.SimpleFold(next) {
		folded = min(folded, next)
	}
	return unicode.ToLower(folded)
}

// CheckTarget returns an error if a request target is not in the origin form
// (RFC 9112, section 3.2.1), or has what no target can have, so that it would
// be changed on its way. It accepts the empty target of a request that did not
// come from a server.
func CheckTarget(target string) error {
	switch {
	case target != "" && target[0] != '/': // net/url takes foo:/a for the path /a
		return fmt.Errorf("target %.80q does not begin with a slash", target)
	case !isASCII(target): // RFC 3986, section 2: it is to be percent-encoded
		return fmt.Errorf("target %.80q is not ASCII", target)
	case strings.Contains(target, "#"):
		return errors.New("target has a fragment")
	}
	return nil
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
