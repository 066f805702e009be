package check

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/cloakroom-bff/cloakroom/internal/config"
	"github.com/cloakroom-bff/cloakroom/internal/terminal"
)

// Severity is how bad a Finding is.
type Severity string

const (
	// SeverityError means that something does not work.
	SeverityError Severity = "error"
	// SeverityWarning means that it works, but not well, or not for long.
	SeverityWarning Severity = "warning"
)

// Finding is a mistake, or a fault of what the broker depends on.
type Finding struct {
	// Key is the key of the configuration with which the operator can fix it,
	// such as oidc.issuer or routes[0].upstream. It is empty if the whole file
	// is affected, and version if replicas run another version.
	Key      string   `json:"key"`
	Problem  string   `json:"problem"` // what is wrong, in one or two sentences
	Fix      string   `json:"fix"`     // what to do
	Severity Severity `json:"severity"`
}

func failure(key, problem, fix string) Finding { return Finding{key, problem, fix, SeverityError} }

func warning(key, problem, fix string) Finding { return Finding{key, problem, fix, SeverityWarning} }

// HasErrors reports whether one of the findings is an error.
func HasErrors(findings []Finding) bool {
	return slices.ContainsFunc(findings, func(f Finding) bool { return f.Severity == SeverityError })
}

// sorted returns the findings without repetitions: errors first, then in the
// order of the keys in the configuration.
func sorted(findings []Finding) []Finding {
	position := func(key string) int {
		for i, k := range config.Keys {
			if name := withoutIndexes(key); strings.HasPrefix(name, k.Name) || strings.HasPrefix(k.Name, name) {
				return i
			}
		}
		return len(config.Keys)
	}
	slices.SortStableFunc(findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Severity, b.Severity), // error comes before warning
			cmp.Compare(position(a.Key), position(b.Key)),
			cmp.Compare(len(a.Key), len(b.Key)), cmp.Compare(a.Key, b.Key), // routes[9] before routes[10]
			cmp.Compare(a.Problem, b.Problem))
	})
	return slices.Compact(findings)
}

// withoutIndexes returns routes[].path for routes[0].path.
func withoutIndexes(key string) string {
	before, rest, ok := strings.Cut(key, "[")
	if !ok {
		return key
	}
	_, after, _ := strings.Cut(rest, "]")
	return before + "[]" + withoutIndexes(after)
}

const (
	tableWidth = 80
	indent     = len("warning  ")
)

// WriteTable writes the findings for a person, in lines of at most 80 columns
// as far as words allow.
func WriteTable(w io.Writer, findings []Finding) error {
	var b strings.Builder
	errors := 0
	for _, f := range findings {
		if f.Severity == SeverityError {
			errors++
		}
		fmt.Fprintf(&b, "%-*s%s\n", indent, f.Severity, cmp.Or(f.Key, "(the whole file)"))
		writeWrapped(&b, "", terminal.OneLine(f.Problem)) // a server can choose a part of it
		writeWrapped(&b, "fix", terminal.OneLine(f.Fix))
		b.WriteString("\n")
	}
	switch warnings := len(findings) - errors; {
	case len(findings) == 0:
		b.WriteString("All is well: no errors, no warnings.\n")
	default:
		fmt.Fprintf(&b, "%s, %s.\n", count(errors, "error"), count(warnings, "warning"))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// count returns a number with a noun.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// writeWrapped writes a text in indented lines, with a label before the first.
func writeWrapped(b *strings.Builder, label, text string) {
	line := fmt.Sprintf("%*s", indent, label)
	if label != "" {
		line = fmt.Sprintf("%*s  ", indent-2, label)
	}
	empty := true
	for word := range strings.FieldsSeq(text) {
		if !empty && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > tableWidth {
			b.WriteString(line + "\n")
			line, empty = strings.Repeat(" ", indent), true
		}
		if !empty {
			line += " "
		}
		line, empty = line+word, false
	}
	b.WriteString(line + "\n")
}
