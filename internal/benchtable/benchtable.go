// Package benchtable is what the benchmarks share: figures by round, and the
// section of a Markdown file that they are written into.
package benchtable

import (
	"errors"
	"fmt"
	"iter"
	"os"
	"runtime"
	"slices"
	"strings"
)

// Results are what was measured in each round.
type Results map[string][]float64 // :: what → a value for each round

// Add keeps a value of this round.
func (r Results) Add(what string, value float64) { r[what] = append(r[what], value) }

// Has reports whether there is a value.
func (r Results) Has(what string) bool { return len(r[what]) > 0 }

// Median returns the median of the rounds. It panics where nothing was
// measured.
func (r Results) Median(what string) float64 {
	if len(r[what]) == 0 {
		panic("not measured: " + what)
	}
	return median(slices.Values(r[what]))
}

// Ratio returns the median of the ratios within each round. A machine that is
// slow in one round slows both values of the ratio. It panics unless both were
// measured in every round.
func (r Results) Ratio(what, to string) float64 {
	above, below := r[what], r[to]
	if len(above) == 0 || len(above) != len(below) {
		panic("not measured in the same rounds: " + what + ", " + to)
	}
	return median(func(yield func(float64) bool) {
		for i := range above {
			if !yield(above[i] / below[i]) {
				return
			}
		}
	})
}

func median(all iter.Seq[float64]) float64 {
	values := slices.Sorted(all)
	return (values[(len(values)-1)/2] + values[len(values)/2]) / 2
}

// Duration writes seconds with three digits.
func Duration(seconds float64) string {
	switch {
	case seconds < 1e-3:
		return fmt.Sprintf("%.3g µs", seconds*1e6)
	case seconds < 1:
		return fmt.Sprintf("%.3g ms", seconds*1e3)
	}
	return fmt.Sprintf("%.3g s", seconds)
}

// Processor returns what the processor calls itself, where Linux tells: up to
// 47 characters.
func Processor() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// WriteSection replaces what is between the lines <!-- name --> and <!-- /name
// --> of a file. A file without them gets them at its end.
func WriteSection(file, name, section string) error {
	begin, end := "<!-- "+name+" -->\n", "<!-- /"+name+" -->\n"
	old, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	before, rest, found := strings.Cut(string(old), begin)
	_, after, closed := strings.Cut(rest, end)
	if found && !closed {
		return fmt.Errorf("%s has no line %s", file, strings.TrimSpace(end))
	}
	if !found && before != "" {
		before = strings.TrimRight(before, "\n") + "\n\n"
	}
	return os.WriteFile(file, []byte(before+begin+section+end+after), 0o644)
}
