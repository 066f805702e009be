package web

import (
	"path"
	"regexp"
	"strings"
)

// hasContentHash reports whether a file name contains a hash of the content, as
// bundlers write it:
//
//	index-BkRj3xGh.js          Vite, Rollup: 8 characters of base64url
//	main-5VXQ4T7B.js           esbuild, Angular: 8 characters of base32
//	main.4f3a2b1c.chunk.css    webpack, Parcel: 8 to 64 hexadecimal digits
//	0f9e8d7c6b5a4321.css       Next.js
//
// Browsers cache such a file for a year. So what could be a word or a date is
// not taken for a hash. A hash that is not recognized costs a revalidation.
func hasContentHash(name string) bool {
	parts := strings.Split(path.Base(name), ".")
	for i, part := range parts[:len(parts)-1] {
		token := part[strings.LastIndexByte(part, '-')+1:]
		if isHexHash(token) && (i > 0 || token != part || len(token) >= 16) {
			return true
		}
		const n = 8
		switch {
		case len(part) == n && i > 0:
			token = part
		case len(part) > n && part[len(part)-n-1] == '-': // - is a character of base64url
			token = part[len(part)-n:]
		default:
			continue
		}
		if isBase32Hash(token) || isBase64Hash(token) {
			return true
		}
	}
	return false
}

var (
	hexDigits  = regexp.MustCompile(`^[0-9a-f]{8,64}$`)
	base32Text = regexp.MustCompile(`^[A-Z2-7]{8}$`)
	base64Text = regexp.MustCompile(`^[A-Za-z0-9_-]{8}$`)
	wordText   = regexp.MustCompile(`^[a-z]*([A-Z]+[a-z]{2,})*[A-Z]*[0-9]*$`) // SemiBold, Version2, HTMLPage, 2024
)

const (
	digits = "0123456789"
	lower  = "abcdefghijklmnopqrstuvwxyz"
	upper  = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

func isHexHash(s string) bool {
	return hexDigits.MatchString(s) && strings.ContainsAny(s, digits) && strings.ContainsAny(s, lower)
}

func isBase32Hash(s string) bool {
	return base32Text.MatchString(s) && strings.ContainsAny(s, digits) &&
		strings.ContainsAny(s, upper) && !wordText.MatchString(s)
}

func isBase64Hash(s string) bool {
	if !base64Text.MatchString(s) || !strings.ContainsAny(s, lower) || !strings.ContainsAny(s, upper) {
		return false
	}
	for word := range strings.FieldsFuncSeq(s, func(c rune) bool { return c == '-' || c == '_' }) {
		if !wordText.MatchString(word) {
			return true
		}
	}
	return false
}
