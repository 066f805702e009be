// Command textlint checks the text of the repository: line widths, the names of
// test functions and the subjects of commits. CONTRIBUTING.md has the rules.
//
//	go run ./internal/textlint [-base REVISION]
//
// It reads the tracked files below the working directory, which is the root of
// the repository. Every violation is a line of its output; if there is any, the
// exit status is 1.
package main

import (
	_ "embed"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// unclean lists the files and folders that do not follow the rules yet. It is
// to be emptied.
//
//go:embed unclean.txt
var unclean string

func main() {
	base := flag.String("base", "origin/main", "check the subjects of the commits after this `revision`, if it exists")
	flag.Parse()
	l := linter{dir: ".", unclean: parseList(unclean)}
	if err := l.run(*base); err != nil {
		fmt.Fprintln(os.Stderr, "textlint:", err)
		os.Exit(2)
	}
	for _, f := range l.findings {
		fmt.Println(f)
	}
	for _, path := range l.cleanEntries() {
		fmt.Fprintf(os.Stderr, "%s is clean: remove it from internal/textlint/unclean.txt\n", path)
	}
	if len(l.findings) > 0 {
		os.Exit(1)
	}
}

// parseList returns the lines of text that are neither empty nor comments.
func parseList(text string) []string {
	var entries []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			entries = append(entries, line)
		}
	}
	return entries
}

// linter checks one repository.
type linter struct {
	dir     string   // the root of the repository
	unclean []string // a file, or a folder if it ends with a slash

	findings []finding
	skipped  map[string]int // entry of unclean → number of violations below it
}

// run checks all tracked Go and Markdown files, and the commits after base.
func (l *linter) run(base string) error {
	l.skipped = map[string]int{}
	list, err := l.git("ls-files", "-z", "--", "*.go", "*.md")
	if err != nil {
		return err
	}
	for path := range strings.SplitSeq(strings.TrimSuffix(list, "\x00"), "\x00") {
		src, err := os.ReadFile(filepath.Join(l.dir, filepath.FromSlash(path)))
		if os.IsNotExist(err) { // deleted, but not committed yet; or no file is tracked
			continue
		} else if err != nil {
			return err
		}
		check := checkMarkdown
		if strings.HasSuffix(path, ".go") {
			check = checkGo
		}
		findings := check(path, src)
		if entry := l.uncleanEntry(path); entry != "" {
			l.skipped[entry] += len(findings)
			continue
		}
		l.findings = append(l.findings, findings...)
	}
	return l.checkCommits(base)
}

// uncleanEntry returns the entry of the list that covers path, or "".
func (l *linter) uncleanEntry(path string) string {
	for _, entry := range l.unclean {
		if path == entry || strings.HasSuffix(entry, "/") && strings.HasPrefix(path, entry) {
			return entry
		}
	}
	return ""
}

// cleanEntries returns the entries of the list below which there is no
// violation.
func (l *linter) cleanEntries() []string {
	var clean []string
	for _, entry := range l.unclean {
		if l.skipped[entry] == 0 {
			clean = append(clean, entry)
		}
	}
	return clean
}

// checkCommits checks the commits after base. A shallow clone may lack base,
// then there is nothing to check.
func (l *linter) checkCommits(base string) error {
	if _, err := l.git("rev-parse", "--verify", "--quiet", base+"^{commit}"); err != nil {
		return nil
	}
	log, err := l.git("log", "--no-merges", "--format=%h %s", base+"..HEAD")
	if err != nil {
		return err
	}
	for line := range strings.Lines(log) {
		hash, subject, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		l.findings = append(l.findings, checkSubject(hash, subject)...)
	}
	return nil
}

func (l *linter) git(args ...string) (string, error) {
	cmd := exec.Command("git", args...)
	cmd.Dir = l.dir
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("git %s: %w", args[0], err)
	}
	return string(out), nil
}
