// Package terminal makes texts of clients and servers fit to be printed.
package terminal

import "strings"

// OneLine replaces what could disturb a terminal or hide what is printed:
// control characters, separators of lines, those that change the direction of
// text, and what is not UTF-8.
func OneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r >= 0x2028 && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return '\ufffd'
		}
		return r
	}, text)
}
