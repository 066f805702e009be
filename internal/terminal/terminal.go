// Package terminal makes texts of clients and servers fit to be printed.
package terminal

import "strings"

// OneLine replaces control characters and those that change the direction of
// text: they could disturb a terminal, or hide what is printed.
func OneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return '\ufffd'
		}
		return r
	}, text)
}
