package web

import (
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/cloakroom-bff/cloakroom/internal/terminal"
)

// Need is something in a build that a Content-Security-Policy must allow.
type Need struct {
	Directive string   `json:"directive"` // such as script-src
	Sources   []string `json:"sources"`   // that allow it; empty: none that Config.CSP accepts
	What      string   `json:"what"`      // such as "the script https://cdn.example.com/a.js"
	File      string   `json:"file"`      // where it was found first
	Line      int      `json:"line"`      // 0: the file itself
	More      int      `json:"more"`      // how many other places need the same
	// Guess means that it was found in a script, which may never do it.
	Guess bool `json:"guess"`
	// Default means that the policy allows it without an entry in Config.CSP.
	Default bool `json:"default"`
	// Risky means that one of the sources weakens the policy much.
	Risky bool   `json:"risky"`
	Fix   string `json:"fix"` // what to do in the app instead of extending the policy

	url  *url.URL // what is loaded; nil: something else
	hash string   // of an inline style sheet, which allows it as well; empty: it is none
}

// Place returns the file and line, such as "index.html:12".
func (n Need) Place() string {
	if n.Line == 0 {
		return terminal.OneLine(n.File)
	}
	return fmt.Sprintf("%s:%d", terminal.OneLine(n.File), n.Line)
}

// Problem returns what happens without the sources.
func (n Need) Problem() string {
	verb := "blocks"
	if n.Guess {
		verb = "may block"
	}
	problem := fmt.Sprintf("the Content-Security-Policy %s %s (%s)", verb, n.What, n.Directive)
	if n.More > 0 {
		problem += fmt.Sprintf(", and the same in %d more places", n.More)
	}
	return problem
}

// Advice returns what to do about the problem. key is what configures
// Config.CSP.
func (n Need) Advice(key string) string {
	if len(n.Sources) == 0 {
		return n.Fix
	}
	add := fmt.Sprintf("add %s to %s.%s", strings.Join(n.Sources, " and "), key, n.Directive)
	if n.Risky {
		add += ", which weakens the policy much"
	}
	if n.Fix == "" {
		return add
	}
	return n.Fix + ", or " + add
}

// Build is what ReadBuild finds.
type Build struct {
	Needs []Need `json:"needs"`
	// Mentions are the other origins that scripts mention.
	Mentions []Mention `json:"mentions"`
	// Notes are files that were not read to their end, and what else is
	// unusual.
	Notes []string `json:"notes"`
}

// Mention is an origin in a script that may be loaded, or be just a text.
type Mention struct {
	Origin string `json:"origin"`
	File   string `json:"file"`
	Line   int    `json:"line"`
}

// Limits of what ReadBuild reads and returns.
const (
	maxBuildFile  = 16 << 20
	maxBuild      = 128 << 20
	maxBuildFiles = 20_000
	maxNeeds      = 500
	maxMentions   = 100
)

// ReadBuild finds what the build in a directory needs of its
// Content-Security-Policy. It reads the pages, style sheets and scripts, up to
// 128 MiB in all and 16 MiB of each. What scripts load is a guess. Dotfiles are
// not read: they are not served. It fails only if there is no index.html.
func ReadBuild(dir string) (*Build, error) {
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return readBuild(rootFiles{root})
}

func readBuild(files fs.FS) (*Build, error) {
	f, info, err := open(files, index)
	if err != nil {
		return nil, err
	}
	f.Close()
	s := &scan{files: files, needs: make(map[string]int)}
	s.Needs, s.Mentions, s.Notes = []Need{}, []Mention{}, []string{} // lists in JSON, too
	// A file that cannot be read does not end the walk.
	_ = fs.WalkDir(files, ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil && name == ".": // a CDN, whose files cannot be listed
			s.readFile(index, fs.FileInfoToDirEntry(info))
			return nil
		case err != nil:
			s.skip(name, err.Error())
			return nil
		case name != "." && strings.HasPrefix(path.Base(name), ".") && name != ".well-known":
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		case entry.IsDir():
			return nil
		}
		if s.count++; s.count > maxBuildFiles {
			s.skip(name, fmt.Sprintf("only the first %d files are read", maxBuildFiles))
			return fs.SkipAll
		}
		s.readFile(name, entry)
		return nil
	})
	slices.SortStableFunc(s.Needs, func(a, b Need) int { return directiveOrder(a) - directiveOrder(b) })
	return &s.Build, nil
}

// directiveOrder sorts needs as the directives are sent.
func directiveOrder(n Need) int {
	return slices.IndexFunc(directives, func(d directive) bool { return d.name == n.Directive })
}

// scan is the state of ReadBuild.
type scan struct {
	Build
	files fs.FS
	read  int64          // bytes
	count int            // files
	needs map[string]int // :: directive, sources and kind → index in Needs
	full  bool           // there are more needs than are listed
}

// skip notes that a file was not read.
func (s *scan) skip(name, why string) {
	if len(s.Notes) < maxMentions {
		s.Notes = append(s.Notes, terminal.OneLine(name)+": "+terminal.OneLine(why))
	}
}

// readFile finds the needs of one file.
func (s *scan) readFile(name string, entry fs.DirEntry) {
	find := map[string]func(file string, text []byte){
		".html": s.page, ".htm": s.page, ".js": s.script, ".mjs": s.script, ".cjs": s.script, ".css": s.styleSheet,
	}[strings.ToLower(path.Ext(name))]
	isWASM := strings.EqualFold(path.Ext(name), ".wasm")
	if find == nil && !isWASM {
		return
	}
	if !entry.Type().IsRegular() { // a link may lead to a pipe, which would block
		info, err := fs.Stat(s.files, name)
		if err != nil || !info.Mode().IsRegular() {
			return
		}
	}
	if isWASM {
		s.add(Need{Directive: "script-src", Sources: []string{"'wasm-unsafe-eval'"}, File: name,
			What: "WebAssembly", Fix: "build without WebAssembly"})
		return
	}
	text, err := s.text(name)
	if err != nil {
		s.skip(name, err.Error())
		return
	}
	find(name, text)
}

// text returns the beginning of a file, within the limits.
func (s *scan) text(name string) ([]byte, error) {
	f, info, err := open(s.files, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	limit := min(maxBuildFile, maxBuild-s.read)
	if limit <= 0 {
		return nil, fmt.Errorf("not read: only the first %d MiB of a build are", maxBuild>>20)
	}
	text, err := io.ReadAll(io.LimitReader(f, limit))
	s.read += int64(len(text))
	if err == nil && info.Size() > int64(len(text)) {
		s.skip(name, fmt.Sprintf("only the first %d MiB were read", len(text)>>20))
	}
	return text, err
}

// add appends a need, or counts it if there is one like it.
func (s *scan) add(n Need) {
	key := fmt.Sprint(n.Directive, n.Sources, n.Guess, n.hash)
	if len(n.Sources) == 0 || n.url == nil {
		key += n.What
	}
	if i, ok := s.needs[key]; ok {
		s.Needs[i].More++
		return
	}
	if len(s.Needs) == maxNeeds {
		if !s.full {
			s.full = true
			s.skip(n.File, fmt.Sprintf("only the first %d needs of the build are listed", maxNeeds))
		}
		return
	}
	d, _ := findDirective(n.Directive)
	for _, source := range n.Sources {
		n.Risky = n.Risky || slices.Contains(d.risky, source)
	}
	// Tokens are in no policy, but hashes of scripts in a page.
	n.Default = n.Default || len(n.Sources) > 0 && !slices.ContainsFunc(n.Sources, func(source string) bool {
		return !slices.Contains(d.defaults, source)
	})
	s.needs[key] = len(s.Needs)
	s.Needs = append(s.Needs, n)
}

// load adds what loads a URL. kind is what is loaded, such as "the script". It
// adds nothing for what the app's own origin serves, unless the directive does
// not allow it.
func (s *scan) load(n Need, kind, raw string, base *url.URL) {
	u, err := url.Parse(strings.TrimSpace(raw))
	switch {
	case raw == "", strings.HasPrefix(strings.ToLower(strings.TrimSpace(raw)), "javascript:"): // found elsewhere
		return
	case err != nil:
		return // browsers do not load it, or guess what is meant
	case base != nil && n.Directive != "base-uri":
		u = base.ResolveReference(u)
	}
	n.What = kind + " " + terminal.OneLine(shorten(raw))
	n.url = u
	d, _ := findDirective(n.Directive)
	switch {
	case u.Scheme == "" && u.Host == "":
		if n.Directive != "object-src" {
			return // 'self'; <base> is found elsewhere
		}
		n.Sources = []string{self}
	case u.Host == "":
		n.Sources = []string{u.Scheme + ":"}
	default:
		scheme := u.Scheme
		if scheme == "" {
			scheme = "https"
		}
		n.Sources = []string{strings.ToLower(scheme + "://" + u.Host)}
	}
	if d.check(d, n.Sources[0]) != nil {
		n.Sources = nil
	}
	if n.Fix == "" {
		switch n.Directive {
		case "connect-src":
			n.Fix = "call it through a route of this origin"
		case "frame-src":
			n.Fix = "link to the page"
		default:
			n.Fix = "put the file into the app's own files"
		}
		if len(n.Sources) == 0 && u.Scheme == "http" {
			n.Fix = "use https, or " + n.Fix
		}
	}
	s.add(n)
}

// shorten cuts a text that is part of a message.
func shorten(text string) string {
	const most = 120
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}

// Violations returns what the Content-Security-Policy of h blocks in the build.
// See ReadBuild for what it finds.
func (h *Handler) Violations() ([]Need, error) {
	files := h.openFiles()
	defer closeFiles(files)
	build, err := readBuild(files)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(build.Needs, h.policy.allows), nil
}

// Policy returns the additions to Config.CSP that a build needs, those that are
// allowed by default excepted, and whether there is something that no addition
// allows.
func (b *Build) Policy() (additions map[string][]string, impossible bool) {
	additions = make(map[string][]string)
	for _, n := range b.Needs {
		impossible = impossible || len(n.Sources) == 0
		if n.Default || n.Risky {
			continue
		}
		for _, source := range n.Sources {
			if !slices.Contains(additions[n.Directive], source) {
				additions[n.Directive] = append(additions[n.Directive], source)
			}
		}
	}
	return additions, impossible
}

// allows reports whether the policy allows what a build needs.
func (p policy) allows(n Need) bool {
	if len(n.Sources) == 0 {
		return false
	}
	if n.Default && n.Directive != "style-src" { // of which 'unsafe-inline' can be removed
		return true
	}
	for _, needed := range n.Sources {
		allowed := func(source string) bool {
			return source == needed || source == n.hash && n.hash != "" || n.url != nil && matches(source, n.url)
		}
		if !slices.ContainsFunc(p[n.Directive], allowed) {
			return false
		}
	}
	return true
}

// matches reports whether a source of a policy allows a URL (CSP Level 3,
// section 6.7.2). The scheme of a URL without one is that of the page.
func matches(source string, u *url.URL) bool {
	if scheme, ok := strings.CutSuffix(source, ":"); ok {
		return u.Scheme == scheme || u.Scheme == "" && scheme == "https"
	}
	m := originSource.FindStringSubmatch(source)
	if m == nil || u.Host == "" {
		return false
	}
	scheme, isWildcard, host, port, folder := m[1], m[2] != "", strings.ToLower(m[3]), m[4], m[5]
	name := strings.ToLower(u.Hostname())
	if strings.Contains(name, ":") {
		name = "[" + name + "]"
	}
	sameHost := name == host && !isWildcard || isWildcard && strings.HasSuffix(name, "."+host)
	sameScheme := u.Scheme == "" || u.Scheme == scheme || scheme == "http" && u.Scheme == "https" ||
		scheme == "ws" && u.Scheme == "wss"
	samePort := port == ":*" || portOf(u.Scheme, u.Port()) == portOf(scheme, strings.TrimPrefix(port, ":")) ||
		port == "" && scheme != u.Scheme && u.Port() == ""
	samePath := folder == "" || folder == "/" || u.Path == folder ||
		strings.HasSuffix(folder, "/") && strings.HasPrefix(u.Path, folder)
	return sameHost && sameScheme && samePort && samePath
}

// portOf returns the port of a URL, of its scheme if it names none.
func portOf(scheme, port string) string {
	switch {
	case port != "":
		return port
	case scheme == "http", scheme == "ws":
		return "80"
	}
	return "443"
}
