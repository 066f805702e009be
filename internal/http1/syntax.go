package http1

// token says whether a name is one that a header field or a method can have (RFC 9110 5.6.2).
func token[T string | []byte](name T) bool {
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

// fieldValue says whether a value holds nothing that could end it (RFC 9110 5.5).
func fieldValue[T string | []byte](value T) bool {
	for i := range len(value) {
		if c := value[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}
