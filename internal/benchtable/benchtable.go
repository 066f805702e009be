// Package benchtable is what the benchmarks share: figures by round, and the
// section of a Markdown file that they are written into.
package benchtable

import (
	"errors"
	"fmt"
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
	values := slices.Sorted(slices.Values(r[what]))
	if len(values) == 0 {
		panic("not measured: " + what)
	}
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

// Processor returns what the processor calls itself, where Linux tells.
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
