package http1

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
// (RFC 9110, section 5.5).
func isFieldValue[T string | []byte](value T) bool {
	for i := range len(value) {
		if c := value[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}
