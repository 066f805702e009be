//go:build unix

package main

import "testing"

func TestTokensHaveTheConfiguredSize(t *testing.T) {
	for _, c := range columns {
		s := login(c.refreshIsJWT)
		refresh := refreshSize
		if c.refreshIsJWT {
			refresh = accessSize
		}
		for name, sizes := range map[string][2]int{
			"access":  {len(s.Tokens.Access.Reveal()), accessSize},
			"refresh": {len(s.Tokens.Refresh.Reveal()), refresh},
			"ID":      {len(s.Tokens.ID.Reveal()), idSize},
		} {
			if sizes[0] != sizes[1] {
				t.Errorf("%s token has %d bytes, want %d", name, sizes[0], sizes[1])
			}
		}
	}
}
