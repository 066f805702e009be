// Package docs_test keeps docs/events.md equal to the code that it describes.
package docs_test

import (
	"cmp"
	_ "embed"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/events.md")

const (
	root       = "../.."
	eventsPage = root + "/docs/events.md"
)

// logging are the packages whose log lines operators see.
var logging = []string{
	"bff", "session", "tokenstore", "bearer", "web", "internal/jwks", "internal/replicas", "internal/tracing",
	"cmd/cloakroom",
}

func TestEventsPageIsThatOfTheCode(t *testing.T) {
	t.Parallel()
	want := page(t)
	if *update {
		if err := os.WriteFile(eventsPage, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(eventsPage)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("docs/events.md is not that of the code; run go test ./internal/docs -update")
	}
}

// intro is the beginning of docs/events.md.
//
//go:embed events_intro.md
var intro string

// eventsIntro is the beginning of the section Events.
//
//go:embed events_section.md
var eventsIntro string

func page(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	b.WriteString(intro)
	b.WriteString("\n## Events\n\n" + eventsIntro + "\n| event | when |\n|---|---|\n")
	event := parse(t, filepath.Join(root, "session", "event.go"))
	kinds := append(constants(event, "Kind"),
		constants(parse(t, filepath.Join(root, "bff", "event.go")), "EventKind")...)
	for _, c := range kinds {
		fmt.Fprintf(&b, "| `%s` | %s |\n", c.value, forOperators.Replace(c.doc))
	}
	b.WriteString("\n`session.ended` and `session.returned` have one of these reasons:\n\n")
	b.WriteString("| reason | why the session ended |\n|---|---|\n")
	for _, c := range constants(event, "Reason") {
		fmt.Fprintf(&b, "| `%s` | %s |\n", c.value, forOperators.Replace(c.doc))
	}
	b.WriteString("\n## Log lines\n\n| msg | level | attributes | package |\n|---|---|---|---|\n")
	for _, l := range lines(t) {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", l.message, l.level, strings.Join(l.attributes, ", "), l.pkg)
	}
	return b.String()
}

// forOperators replaces names of Go in comments by those that operators know.
var forOperators = strings.NewReplacer(
	"Config.IdleTimeout", "`session.idle_timeout`",
	"Config.MaxLifetime", "`session.max_lifetime`",
	"Config.MaxPerUser", "`session.max_per_user`",
	"Config.Keys", "`session.keys`",
	" (ErrRefused)", " (`invalid_grant`)",
	"Event.Reason", "`reason`",
)

// constant is a typed constant of Go.
type constant struct{ value, doc string }

// constants returns the string constants of a type. Their comments begin with
// their names, which the page leaves out.
func constants(f *ast.File, typ string) (all []constant) {
	for _, d := range f.Decls {
		group, ok := d.(*ast.GenDecl)
		if !ok || group.Tok != token.CONST {
			continue
		}
		for _, spec := range group.Specs {
			v := spec.(*ast.ValueSpec)
			if name, ok := v.Type.(*ast.Ident); !ok || name.Name != typ {
				continue
			}
			_, doc, _ := strings.Cut(strings.Join(strings.Fields(v.Doc.Text()), " "), ": ")
			all = append(all, constant{literal(v.Values[0]), strings.ToUpper(doc[:1]) + doc[1:]})
		}
	}
	return all
}

// line is a call of a slog.Logger.
type line struct {
	message, level, pkg string
	attributes          []string
}

// lines returns the log lines of all packages, without duplicates.
func lines(t *testing.T) []line {
	t.Helper()
	var all []line
	for _, pkg := range logging {
		err := filepath.WalkDir(filepath.Join(root, pkg), func(path string, d fs.DirEntry, err error) error {
			isCode := strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go")
			if err != nil || d.IsDir() || !isCode {
				return err
			}
			dir, err := filepath.Rel(root, filepath.Dir(path))
			for _, decl := range parse(t, path).Decls {
				if f, ok := decl.(*ast.FuncDecl); ok && f.Body != nil {
					all = append(all, linesOf(f, filepath.ToSlash(dir))...)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.SortFunc(all, func(a, b line) int {
		return cmp.Or(cmp.Compare(a.message, b.message), cmp.Compare(a.pkg, b.pkg), cmp.Compare(a.level, b.level),
			slices.Compare(a.attributes, b.attributes))
	})
	return slices.CompactFunc(all, func(a, b line) bool {
		same := a.message == b.message && a.pkg == b.pkg && a.level == b.level
		return same && slices.Equal(a.attributes, b.attributes)
	})
}

// linesOf returns the log lines of a function.
func linesOf(f *ast.FuncDecl, pkg string) (all []line) {
	ast.Inspect(f, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		method, ok := call.Fun.(*ast.SelectorExpr)
		if !ok || !isLogger(method.X) && method.Sel.Name != "NewRecord" {
			return true
		}
		args := call.Args
		level, withContext := strings.CutSuffix(method.Sel.Name, "Context")
		if withContext {
			args = args[1:]
		}
		switch level {
		case "Debug", "Info", "Warn", "Error":
			if message := literal(args[0]); message != "" {
				all = append(all, line{message, strings.ToUpper(level), pkg, attributes(f, args[1:])})
			}
		case "LogAttrs", "NewRecord": // the level and often the message are those of the cause
			for _, message := range messages(f, args[2]) {
				all = append(all, line{message, "by cause", pkg, slogAttributes(f)})
			}
		}
		return true
	})
	return all
}

// isLogger reports whether an expression is a logger, by its name.
func isLogger(x ast.Expr) bool {
	name := ""
	switch x := x.(type) {
	case *ast.Ident:
		name = x.Name
	case *ast.SelectorExpr:
		name = x.Sel.Name
	}
	return name == "log" || name == "Logger" || name == "direct"
}

// attributes returns the keys among the arguments of a log call. A list that
// the function builds beforehand counts too.
func attributes(f *ast.FuncDecl, args []ast.Expr) (keys []string) {
	for i := 0; i < len(args); i += 2 {
		if key := literal(args[i]); key != "" {
			keys = append(keys, "`"+key+"`")
		} else {
			keys = append(keys, listed(f)...)
		}
	}
	return keys
}

// listed returns the keys in the []any literals of a function.
func listed(f *ast.FuncDecl) (keys []string) {
	ast.Inspect(f, func(n ast.Node) bool {
		list, ok := n.(*ast.CompositeLit)
		if !ok {
			return true
		}
		if array, ok := list.Type.(*ast.ArrayType); !ok || fmt.Sprint(array.Elt) != "any" {
			return true
		}
		for i := 0; i < len(list.Elts); i += 2 {
			if key := literal(list.Elts[i]); key != "" {
				keys = append(keys, "`"+key+"`")
			}
		}
		return true
	})
	return keys
}

// slogAttributes returns the keys of all slog.Attr values that a function
// makes.
func slogAttributes(f *ast.FuncDecl) (keys []string) {
	ast.Inspect(f, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok || len(call.Args) == 0 {
			return true
		}
		if fun, ok := call.Fun.(*ast.SelectorExpr); ok && fmt.Sprint(fun.X) == "slog" {
			if key := literal(call.Args[0]); key != "" && !slices.Contains(keys, "`"+key+"`") {
				keys = append(keys, "`"+key+"`")
			}
		}
		return true
	})
	return keys
}

// messages returns the message of a log call, or all that the function assigns
// to the variable that has it.
func messages(f *ast.FuncDecl, x ast.Expr) (all []string) {
	if message := literal(x); message != "" {
		return []string{message}
	}
	variable, ok := x.(*ast.Ident)
	if !ok {
		return nil
	}
	ast.Inspect(f, func(n ast.Node) bool {
		set, ok := n.(*ast.AssignStmt)
		if !ok || len(set.Lhs) != len(set.Rhs) {
			return true
		}
		for i, left := range set.Lhs {
			if name, ok := left.(*ast.Ident); ok && name.Name == variable.Name {
				if message := literal(set.Rhs[i]); message != "" {
					all = append(all, message)
				}
			}
		}
		return true
	})
	return all
}

// literal returns the value of a string literal, or "".
func literal(x ast.Expr) string {
	lit, ok := x.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return ""
	}
	text, err := strconv.Unquote(lit.Value)
	if err != nil {
		return ""
	}
	return strings.ReplaceAll(text, "|", `\|`)
}

func parse(t *testing.T, path string) *ast.File {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	return f
}
