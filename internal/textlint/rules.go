package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// Widths in columns, with a tab every four.
const (
	maxComment  = 80
	maxCode     = 120
	maxMarkdown = 100
	maxTestName = 60
	maxSubject  = 72
)

// finding is one violation. A commit has no line.
type finding struct {
	path    string
	line    int
	message string
}

func (f finding) String() string {
	if f.line == 0 {
		return fmt.Sprintf("%s: %s", f.path, f.message)
	}
	return fmt.Sprintf("%s:%d: %s", f.path, f.line, f.message)
}

// checkGo checks a Go file: widths, names of tests, and how the comment of a
// boolean function begins.
func checkGo(path string, src []byte) []finding {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, path, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return []finding{{path: path, line: 1, message: "cannot be parsed"}}
	}
	var findings []finding
	report := func(line int, format string, args ...any) {
		findings = append(findings, finding{path, line, fmt.Sprintf(format, args...)})
	}

	comments := commentLines(fset, file)
	raw := rawStringLines(fset, file)
	number := 0
	for line := range strings.Lines(string(src)) {
		number++
		line = strings.TrimRight(line, "\r\n")
		if strings.Contains(strings.ToLower(line), "says "+"whether") {
			report(number, `write "reports whether"`)
		}
		columns, limit, kind := width(line), maxCode, "line"
		if comments[number] && isComment(line) {
			if !wrappable(line) {
				continue
			}
			limit, kind = maxComment, "comment"
			if vague.MatchString(line) {
				report(number, vagueMessage)
			}
		}
		if columns > limit && !raw[number] {
			report(number, "%s of %d columns, at most %d", kind, columns, limit)
		}
	}

	if strings.HasSuffix(path, "_test.go") {
		for _, decl := range file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if ok && f.Recv == nil && isTest(f.Name.Name) && len(f.Name.Name) > maxTestName {
				report(fset.Position(f.Pos()).Line, "test name of %d characters, at most %d",
					len(f.Name.Name), maxTestName)
			}
		}
	}
	slices.SortStableFunc(findings, func(a, b finding) int { return a.line - b.line })
	return findings
}

// vague is a subject that hides who or what is meant. Names in code style are
// excepted.
var vague = regexp.MustCompile(`(?i)(^|[^\w"/=-])no` + `body([^\w"/]|$)`)

const vagueMessage = `name who or what, or use the passive`

// commentLines returns the numbers of the lines with comments.
func commentLines(fset *token.FileSet, file *ast.File) map[int]bool {
	lines := map[int]bool{}
	for _, group := range file.Comments {
		for line := fset.Position(group.Pos()).Line; line <= fset.Position(group.End()).Line; line++ {
			lines[line] = true
		}
	}
	return lines
}

// rawStringLines returns the numbers of the lines that raw strings continue on:
// line breaks would change the text.
func rawStringLines(fset *token.FileSet, file *ast.File) map[int]bool {
	lines := map[int]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok && strings.HasPrefix(lit.Value, "`") {
			first := fset.Position(lit.Pos()).Line
			for i := range strings.Count(lit.Value, "\n") {
				lines[first+1+i] = true
			}
		}
		return true
	})
	return lines
}

// isComment reports whether the line is a comment only. A comment after code
// counts as code.
func isComment(line string) bool {
	return strings.HasPrefix(strings.TrimSpace(line), "//")
}

// wrappable reports whether a comment can be wrapped: it is neither a
// directive, nor preformatted, nor does it hold a URL.
func wrappable(line string) bool {
	text := strings.TrimPrefix(strings.TrimSpace(line), "//")
	return !strings.HasPrefix(text, "go:") && !strings.HasPrefix(text, "\t") && !strings.Contains(text, "://")
}

func isTest(name string) bool {
	for _, prefix := range []string{"Test", "Benchmark", "Fuzz", "Example"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// linkTarget matches the target of a Markdown link, which cannot be wrapped.
var linkTarget = regexp.MustCompile(`\]\([^)]*\)|<https?://[^>]*>`)

// checkMarkdown checks the width of lines outside tables and code blocks,
// without the targets of links. A single long word is allowed.
func checkMarkdown(path string, src []byte) []finding {
	var findings []finding
	number, fence := 0, ""
	for line := range strings.Lines(string(src)) {
		number++
		line = strings.TrimRight(line, "\r\n")
		text := strings.TrimSpace(line)
		if fence != "" {
			if strings.HasPrefix(text, fence) {
				fence = ""
			}
			continue
		}
		if strings.HasPrefix(text, "```") || strings.HasPrefix(text, "~~~") {
			fence = text[:3]
			continue
		}
		if vague.MatchString(line) {
			findings = append(findings, finding{path, number, vagueMessage})
		}
		if strings.HasPrefix(text, "|") || strings.HasPrefix(line, "\t") || !strings.Contains(text, " ") {
			continue
		}
		if columns := width(linkTarget.ReplaceAllString(line, "]")); columns > maxMarkdown {
			findings = append(findings, finding{path, number,
				fmt.Sprintf("line of %d columns, at most %d", columns, maxMarkdown)})
		}
	}
	return findings
}

// subjectForm is "package: verb ...". Several packages are separated by commas.
var subjectForm = regexp.MustCompile(`^[\w./*-]+(, [\w./*-]+)*: [a-z]`)

// checkSubject checks the first line of a commit message.
func checkSubject(hash, subject string) []finding {
	var findings []finding
	if n := utf8.RuneCountInString(subject); n > maxSubject {
		findings = append(findings, finding{path: "commit " + hash,
			message: fmt.Sprintf("subject of %d characters, at most %d: %s", n, maxSubject, subject)})
	}
	if !subjectForm.MatchString(subject) {
		findings = append(findings, finding{path: "commit " + hash,
			message: `subject is not of the form "package: verb ...": ` + subject})
	}
	return findings
}

// width returns the number of columns of a line.
func width(line string) int {
	columns := 0
	for _, r := range line {
		if r == '\t' {
			columns += 4 - columns%4
		} else {
			columns++
		}
	}
	return columns
}
