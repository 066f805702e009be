package terminal_test

import (
	"testing"

	"github.com/cloakroom-bff/cloakroom/internal/terminal"
)

func TestOneLine(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"plain, with ü":       "plain, with ü",
		"\x1b]0;title\x07\nx": "\ufffd]0;title\ufffd\ufffdx",
		"\u202eabc\u0085":     "\ufffdabc\ufffd",
		"a\u2028b\u2029":      "a\ufffdb\ufffd",
		"a\xffb":              "a\ufffdb",
	} {
		if got := terminal.OneLine(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}
