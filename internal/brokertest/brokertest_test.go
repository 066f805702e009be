package brokertest_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
)

func TestTokenLikeReturnsEachLongWordOnce(t *testing.T) {
	long := strings.Repeat("aZ09_.+/=-", 4) // 40 characters
	text := long + " " + long[1:] + ` "` + long + `x",` + long + "€" + long[:20] + "~" + long[20:] +
		"\x00" + strings.Repeat("b", 100) + "\xff" + long
	got := brokertest.TokenLike(text)
	slices.Sort(got)
	want := slices.Compact(slices.Sorted(slices.Values(regexp.MustCompile(`[\w.+/=-]{40,}`).FindAllString(text, -1))))
	if len(want) != 3 || !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
