// Package archtest tests which packages of this module import each other.
package archtest

import (
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	module = "github.com/cloakroom-bff/cloakroom"
	root   = "../.."
)

// arrows lists, for each package, the packages of this module that it may
// import. Test files are exempt. A new arrow is a decision: add it here and to
// the table in .github/CONTRIBUTING.md.
//
//   - bff is the only package that knows a provider, an upstream, a problem and
//     a session. oidc and proxy do not know each other.
//   - oidc does not know problem: bff turns its errors into problems.
//   - session, tokenstore, bearer and web know none of these. They are used
//     without bff.
var arrows = map[string][]string{
	"cmd/cloakroom": {"bearer", "bff", "bff/adminpage", "session", "tokenstore", "web",
		"internal/check", "internal/config", "internal/devidp", "internal/devserver",
		"internal/devtools", "internal/expiry", "internal/loopback", "internal/replicas", "internal/sampleapi",
		"internal/scaffold", "internal/terminal", "internal/tracing"},
	"cmd/sample-api": {"internal/sampleapi"},

	"internal/config": {"bearer", "bff", "bff/oidc", "bff/proxy", "session", "tokenstore", "web",
		"internal/configerr", "internal/loopback", "internal/smallfile"},

	"internal/check": {"bff/oidc", "session", "tokenstore",
		"internal/config", "internal/descriptors", "internal/expiry", "internal/jwks", "internal/replicas",
		"internal/strictjson", "internal/terminal", "internal/tracing"},

	"bff": {"bff/adminpage", "bff/oidc", "bff/problem", "bff/proxy", "session",
		"internal/backlog", "internal/cancel", "internal/configerr", "internal/descriptors", "internal/expiry",
		"internal/hijack", "internal/http1", "internal/http2frame", "internal/loopback", "internal/monotonic",
		"internal/pace", "internal/pagetext", "internal/socket", "internal/span", "internal/strictjson",
		"internal/urlpath", "internal/usertimeout"},
	"bff/oidc": {"session",
		"internal/configerr", "internal/dpop", "internal/flight",
		"internal/jwks", "internal/loopback", "internal/smallfile", "internal/socket", "internal/span",
		"internal/strictjson", "internal/usertimeout"},
	"bff/proxy": {"bff/problem",
		"internal/cancel", "internal/descriptors", "internal/dpop", "internal/hijack", "internal/http1",
		"internal/http2frame", "internal/monotonic", "internal/pace", "internal/span", "internal/urlpath"},
	"bff/adminpage": {},
	"bff/problem":   {},

	"session":    {"internal/configerr", "internal/flight", "internal/span"},
	"tokenstore": {"internal/configerr", "internal/socket"},
	"bearer": {"internal/configerr", "internal/flight", "internal/jwks", "internal/loopback",
		"internal/strictjson"},
	"web": {"internal/configerr", "internal/flight", "internal/loopback", "internal/terminal"},

	"internal/cancel":      {},
	"internal/configerr":   {},
	"internal/descriptors": {},
	"internal/dpop":        {},
	"internal/expiry":      {},
	"internal/flight":      {},
	"internal/hijack":      {},
	"internal/backlog":     {},
	"internal/http2frame":  {},
	"internal/http1":       {"internal/cancel", "internal/monotonic", "internal/socket"},
	"internal/jwks":        {"internal/flight", "internal/strictjson"},
	"internal/loopback":    {},
	"internal/monotonic":   {},
	"internal/pace":        {},
	"internal/pagetext":    {},
	"internal/replicas":    {"session"},
	"internal/scaffold":    {"internal/smallfile"},
	"internal/smallfile":   {},
	"internal/socket":      {},
	"internal/span":        {},
	"internal/strictjson":  {},
	"internal/terminal":    {},
	"internal/tracing":     {},
	"internal/urlpath":     {},
	"internal/usertimeout": {},

	// The rest is for development.
	"bff/bfftest":                {"bff", "session", "tokenstore", "internal/brokertest"},
	"tokenstore/storetest":       {"session"},
	"docs/apis/go":               {"bearer"},
	"internal/benchtable":        {},
	"internal/brokertest":        {"internal/devidp", "internal/testenv"},
	"internal/devidp":            {"internal/loopback", "internal/pagetext", "internal/smallfile"},
	"internal/devserver":         {},
	"internal/devtools":          {"bff", "bff/adminpage", "session", "internal/devidp", "internal/pagetext"},
	"internal/devidp/cmd/devidp": {"internal/devidp", "internal/sampleapi"},
	"internal/proxybench":        {"internal/benchtable", "internal/devidp"},
	"internal/redistest":         {"internal/testenv"},
	"internal/sampleapi":         {"bearer"},
	"internal/sessionbench":      {"session", "tokenstore", "internal/benchtable"},
	"internal/testenv":           {},
	"internal/textlint":          {},
}

// sessionHTTPFile is the only file of package session that imports net/http:
// the rest of the package works without an HTTP request.
const sessionHTTPFile = "session/cookie.go"

func TestPackagesImportOnlyWhatTheirArrowsAllow(t *testing.T) {
	t.Parallel()
	files := imports(t)
	if len(files) == 0 {
		t.Fatal("found no Go files")
	}
	for _, file := range slices.Sorted(maps.Keys(files)) {
		from := path.Dir(file)
		allowed, ok := arrows[from]
		if !ok {
			t.Errorf("%s: package %s has no entry in arrows", file, from)
			continue
		}
		for _, imported := range files[file] {
			to, ours := strings.CutPrefix(imported, module+"/")
			if ours && !slices.Contains(allowed, to) {
				t.Errorf("%s: %s imports %s, want one of %q", file, from, to, allowed)
			}
		}
	}
}

func TestSessionImportsHTTPInCookieFileOnly(t *testing.T) {
	t.Parallel()
	files := imports(t)
	if !slices.Contains(files[sessionHTTPFile], "net/http") {
		t.Errorf("%s does not import net/http, got %q", sessionHTTPFile, files[sessionHTTPFile])
	}
	for _, file := range slices.Sorted(maps.Keys(files)) {
		if path.Dir(file) != "session" || file == sessionHTTPFile {
			continue
		}
		if slices.Contains(files[file], "net/http") {
			t.Errorf("%s imports net/http, only %s may", file, sessionHTTPFile)
		}
	}
}

// Time is measured with package monotonic. Otherwise a clock that is set back
// stops what waits for a time to pass, until the clock is there again.
func TestTimeIsNotMeasuredInUnixNanoseconds(t *testing.T) {
	t.Parallel()
	walk(t, func(name, file string) error {
		src, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		for i, line := range strings.Split(string(src), "\n") {
			code, _, _ := strings.Cut(line, "//")
			if strings.Contains(code, ".UnixNano()") && !strings.Contains(code, "ModTime().UnixNano()") {
				t.Errorf("%s:%d: use monotonic.Now: %s", file, i+1, strings.TrimSpace(line))
			}
		}
		return nil
	})
}

// imports returns the imports of every Go file of the module, except tests, by
// its path from the root with slashes. Files for other systems are included.
func imports(t *testing.T) map[string][]string {
	t.Helper()
	files := make(map[string][]string)
	walk(t, func(name, file string) error {
		parsed, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		var imported []string
		for _, spec := range parsed.Imports {
			unquoted, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			imported = append(imported, unquoted)
		}
		files[file] = imported
		return nil
	})
	return files
}

// walk calls visit with the name of every Go file of the module, except tests,
// and with its path from the root with slashes.
func walk(t *testing.T, visit func(name, file string) error) {
	t.Helper()
	err := filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			return skip(name, entry.Name())
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		relative, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		return visit(name, filepath.ToSlash(relative))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// skip returns fs.SkipDir for a folder that holds no packages of this module.
func skip(name, base string) error {
	if name == root {
		return nil
	}
	if base == "testdata" || base == "node_modules" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") {
		return fs.SkipDir
	}
	if _, err := os.Stat(filepath.Join(name, "go.mod")); err == nil {
		return fs.SkipDir // another module
	}
	return nil
}
