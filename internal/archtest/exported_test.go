package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// publicPackages can be imported by other modules.
var publicPackages = []string{
	"bearer", "bff", "bff/bfftest", "bff/oidc", "bff/problem", "bff/proxy",
	"session", "tokenstore", "tokenstore/storetest", "web",
}

// Other modules cannot name a type of an internal package, so it must not occur
// in an exported declaration. An alias makes it public.
func TestExportedDeclarationsHaveNoInternalTypes(t *testing.T) {
	t.Parallel()
	for _, public := range publicPackages {
		names, err := filepath.Glob(filepath.Join(root, public, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		if len(names) == 0 {
			t.Errorf("%s: found no Go files", public)
		}
		for _, name := range names {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			src, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			fset := token.NewFileSet()
			file, err := parser.ParseFile(fset, name, src, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, found := range internalTypes(file) {
				t.Errorf("%s: exported declaration with %s.%s",
					fset.Position(found.Pos()), found.X.(*ast.Ident).Name, found.Sel.Name)
			}
		}
	}
}

// internalTypes returns the names of internal packages in the types of a file's
// exported declarations.
func internalTypes(file *ast.File) []*ast.SelectorExpr {
	internal := make(map[string]bool) // :: name of an imported package
	for _, spec := range file.Imports {
		imported, _ := strconv.Unquote(spec.Path.Value)
		if !strings.HasPrefix(imported, module+"/internal/") {
			continue
		}
		name := path.Base(imported)
		if spec.Name != nil {
			name = spec.Name.Name
		}
		internal[name] = true
	}
	var found []*ast.SelectorExpr
	search := func(node ast.Node) {
		ast.Inspect(node, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.Field:
				return len(n.Names) == 0 || ast.IsExported(n.Names[0].Name)
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && internal[x.Name] {
					found = append(found, n)
				}
			}
			return true
		})
	}
	for _, decl := range file.Decls {
		switch decl := decl.(type) {
		case *ast.FuncDecl:
			if exportedFunc(decl) {
				searchFunc(decl.Type, search)
			}
		case *ast.GenDecl:
			for _, spec := range decl.Specs {
				switch spec := spec.(type) {
				case *ast.TypeSpec:
					if spec.Name.IsExported() && !spec.Assign.IsValid() {
						search(spec.Type)
					}
				case *ast.ValueSpec:
					if spec.Names[0].IsExported() && spec.Type != nil {
						search(spec.Type)
					}
				}
			}
		}
	}
	return found
}

// exportedFunc reports whether a function, or a method and its type, are
// exported.
func exportedFunc(f *ast.FuncDecl) bool {
	if f.Recv == nil {
		return f.Name.IsExported()
	}
	receiver := f.Recv.List[0].Type
	if star, ok := receiver.(*ast.StarExpr); ok {
		receiver = star.X
	}
	name, ok := receiver.(*ast.Ident)
	return ok && name.IsExported() && f.Name.IsExported()
}

// searchFunc searches the types of parameters and results. Their names are not
// exported, but their types are visible.
func searchFunc(f *ast.FuncType, search func(ast.Node)) {
	for _, list := range []*ast.FieldList{f.Params, f.Results} {
		if list == nil {
			continue
		}
		for _, field := range list.List {
			search(field.Type)
		}
	}
}
