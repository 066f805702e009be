//go:build unix

package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestOnlyTheSectionIsReplaced(t *testing.T) {
	for _, c := range []struct{ before, after string }{
		{"", begin + "new\n" + end},
		{"# Performance\n", "# Performance\n\n" + begin + "new\n" + end},
		{"above\n" + begin + "old\n" + end + "below\n", "above\n" + begin + "new\n" + end + "below\n"},
	} {
		name := filepath.Join(t.TempDir(), "performance.md")
		if c.before != "" {
			if err := os.WriteFile(name, []byte(c.before), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := writeSection(name, "new\n"); err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(name); string(got) != c.after {
			t.Errorf("%q became %q, want %q", c.before, got, c.after)
		}
	}
}

func TestASectionThatDoesNotEndIsLeftAlone(t *testing.T) {
	name := filepath.Join(t.TempDir(), "performance.md")
	const text = begin + "old\n"
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := writeSection(name, "new\n"); err == nil {
		t.Error("no error")
	}
	if got, _ := os.ReadFile(name); string(got) != text {
		t.Errorf("the file became %q", got)
	}
}

func TestTokensHaveTheirSize(t *testing.T) {
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
