package benchtable

import (
	"os"
	"path/filepath"
	"testing"
)

const begin, end = "<!-- bench -->\n", "<!-- /bench -->\n"

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
		if err := WriteSection(name, "bench", "new\n"); err != nil {
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
	if err := WriteSection(name, "bench", "new\n"); err == nil {
		t.Error("no error")
	}
	if got, _ := os.ReadFile(name); string(got) != text {
		t.Errorf("the file became %q", got)
	}
}

func TestTheMedian(t *testing.T) {
	r := make(Results)
	for _, v := range []float64{5, 1, 3} {
		r.Add("x", v)
	}
	if got := r.Median("x"); got != 3 {
		t.Errorf("got %v", got)
	}
	if r.Add("x", 4); r.Median("x") != 3.5 || r.Has("y") {
		t.Errorf("got %v", r.Median("x"))
	}
}

// A machine that becomes slower must not change a ratio.
func TestARatioComparesWithinTheRound(t *testing.T) {
	r := make(Results)
	for _, round := range []struct{ a, b float64 }{{2, 1}, {40, 20}, {9, 3}} {
		r.Add("a", round.a)
		r.Add("b", round.b)
	}
	if got := r.Ratio("a", "b"); got != 2 {
		t.Errorf("got %v", got)
	}
}
