package web

import (
	"path"
	"regexp"
	"strings"
)

// hasContentHash reports whether a file name contains a hash of the content, as
// bundlers write it:
//
//	index-BkRj3xGh.js          Vite, Rollup, Astro: 8 characters of base64url
//	main-5VXQ4T7B.js           esbuild, Angular: 8 characters of base32
//	main.4f3a2b1c.chunk.css    webpack, Parcel: 8 to 64 hexadecimal digits
//	0f9e8d7c6b5a4321.css       Next.js
//	2u1d16houkiyo.js           Next.js with Turbopack, in _next/static
//
// Browsers cache such a file for a year. So what could be a word or a date is
// not taken for a hash: about one of seven hashes of Vite. A hash that is not
// recognized costs a revalidation. In a folder in which the framework writes a
// hash into each name, only lower case is taken for a word.
func hasContentHash(name string) bool {
	if esbuildName.MatchString(path.Base(name)) || strings.HasPrefix(name, "_app/immutable/") {
		return true
	}
	inHashedDir := hashedDir.MatchString(name)
	inNext := strings.HasPrefix(name, "_next/static/")
	parts := strings.Split(path.Base(name), ".")
	for i, part := range parts[:len(parts)-1] {
		if inNext && (turbopackHash.MatchString(part) || nextFontHash.MatchString(part)) {
			return true
		}
		token := part[strings.LastIndexByte(part, '-')+1:]
		if isHexHash(token) && (i > 0 || token != part || len(token) >= 16) {
			return true
		}
		const n = 8
		switch {
		case len(part) == n && (i > 0 || inHashedDir):
			token = part
		case len(part) > n && part[len(part)-n-1] == '-': // - is a character of base64url
			token = part[len(part)-n:]
		default:
			continue
		}
		if isBase32Hash(token) || isBase64Hash(token) ||
			inHashedDir && base64Text.MatchString(token) && strings.Trim(token, lower) != "" {
			return true
		}
	}
	return false
}

var (
	// About a quarter of the hashes of esbuild could be a word: in these names
	// they are none.
	esbuildName   = regexp.MustCompile(`^(main|chunk|polyfills|styles|scripts)-[A-Z2-7]{8}\.(js|css)$`)
	hashedDir     = regexp.MustCompile(`^(_nuxt|_astro)/`) // in Nuxt, a name can be only a hash
	turbopackHash = regexp.MustCompile(`(^|-)[0-9][0-9a-z_~-]{12}$`)
	nextFontHash  = regexp.MustCompile(`^[0-9a-f]{16}-s$`) // 79f9b672174387aa-s.p.woff2

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
