package http1

import (
	"net/http"
	"net/textproto"
	"strings"
)

// isToken reports whether name is a token, as header names and methods are (RFC
// 9110, section 5.6.2).
func isToken[T string | []byte](name T) bool {
	for i := range len(name) {
		if !tokenByte[name[i]] {
			return false
		}
	}
	return len(name) > 0
}

var tokenByte = func() (is [256]bool) {
	for c := byte('0'); c <= '9'; c++ {
		is[c] = true
	}
	for c := byte('a'); c <= 'z'; c++ {
		is[c], is[c-'a'+'A'] = true, true
	}
	for _, c := range []byte("!#$%&'*+-.^_`|~") {
		is[c] = true
	}
	return is
}()

// isFieldValue reports whether value contains no control characters except tabs
// (RFC 9110, section 5.5). Access tokens and cookies are long, so it looks at
// eight bytes at a time, and at each only if one is a control character.
func isFieldValue[T string | []byte](value T) bool {
	const ones, high = 0x0101010101010101, 0x8080808080808080
	i := 0
	for ; i+8 <= len(value); i += 8 {
		v := value[i : i+8]
		eight := uint64(v[0]) | uint64(v[1])<<8 | uint64(v[2])<<16 | uint64(v[3])<<24 |
			uint64(v[4])<<32 | uint64(v[5])<<40 | uint64(v[6])<<48 | uint64(v[7])<<56
		del := eight ^ 0x7f*ones
		// The high bit of a byte is set if it is less than a space, or is DEL.
		if ((eight-' '*ones)&^eight|(del-ones)&^del)&high != 0 && !isPlainValue(v) {
			return false
		}
	}
	return isPlainValue(value[i:])
}

func isPlainValue[T string | []byte](value T) bool {
	for i := range len(value) {
		if c := value[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// trimSpace removes the spaces and tabs around a field value.
func trimSpace(value string) string {
	for len(value) > 0 && (value[0] == ' ' || value[0] == '\t') {
		value = value[1:]
	}
	for len(value) > 0 && (value[len(value)-1] == ' ' || value[len(value)-1] == '\t') {
		value = value[:len(value)-1]
	}
	return value
}

// cutField returns the name of a field line, in the spelling of
// textproto.CanonicalMIMEHeaderKey, and the value without the spaces around it.
// It looks nothing up for a name that is canonical, and allocates nothing for
// those that browsers and proxies send in lower case. ok is false if the line
// does not begin with a token and a colon.
func cutField(line string) (name, value string, ok bool) {
	canonical, first := true, true // first of a word
	at := 0
	for ; at < len(line) && tokenByte[line[at]]; at++ {
		c := line[at]
		if first && 'a' <= c && c <= 'z' || !first && 'A' <= c && c <= 'Z' {
			canonical = false
		}
		first = c == '-'
	}
	if at == 0 || at == len(line) || line[at] != ':' {
		return "", "", false
	}
	name, value = line[:at], trimSpace(line[at+1:])
	if canonical {
		return name, value, true
	}
	if known, ok := knownNames[name]; ok {
		return known, value, true
	}
	return textproto.CanonicalMIMEHeaderKey(name), value, true
}

// knownNames are canonical names by what clients send.
var knownNames = func() map[string]string {
	names := map[string]string{"X-CSRF": "X-Csrf", "DNT": "Dnt"}
	for name := range strings.FieldsSeq("Accept Accept-Encoding Accept-Language Authorization Cache-Control " +
		"Connection Content-Length Content-Type Cookie Dnt Host If-Modified-Since If-None-Match Origin Pragma " +
		"Priority Range Referer Sec-Ch-Ua Sec-Ch-Ua-Mobile Sec-Ch-Ua-Platform Sec-Fetch-Dest Sec-Fetch-Mode " +
		"Sec-Fetch-Site Sec-Fetch-User Sec-Gpc Traceparent Upgrade-Insecure-Requests User-Agent " +
		"X-Csrf X-Forwarded-For X-Forwarded-Host X-Forwarded-Proto X-Request-Id X-Requested-With") {
		names[strings.ToLower(name)] = name
	}
	return names
}()

// newHeader returns a header of fields: canonical names, each with a value. It
// keeps the slice.
func newHeader(fields []string) http.Header {
	h := make(http.Header, len(fields)/2)
	for i := 1; i < len(fields); i += 2 {
		h[fields[i-1]] = fields[i : i+1 : i+1]
	}
	if 2*len(h) < len(fields) { // of a name with several values, the last has replaced the others
		clear(h)
		for i := 1; i < len(fields); i += 2 {
			h[fields[i-1]] = append(h[fields[i-1]], fields[i])
		}
	}
	return h
}
