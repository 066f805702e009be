package config

import (
	"flag"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write docs/configuration.md")

// keyNames returns the names of all keys of the schema, in its order.
func keyNames(t reflect.Type, prefix string) []string {
	var names []string
	for i := range t.NumField() {
		f := t.Field(i)
		if !f.IsExported() {
			continue
		}
		name, typ := join(prefix, tag(f)), f.Type
		if isStructSlice(reflect.Zero(typ)) {
			name, typ = name+"[]", typ.Elem()
		} else if typ.Kind() == reflect.Pointer {
			typ = typ.Elem()
		}
		if typ.Kind() == reflect.Struct {
			names = append(names, keyNames(typ, name)...)
		} else {
			names = append(names, name)
		}
	}
	return names
}

func TestKeysAreThoseOfTheSchema(t *testing.T) {
	t.Parallel()
	var got []string
	for _, k := range Keys {
		got = append(got, k.Name)
	}
	want := keyNames(reflect.TypeFor[Config](), "")
	for _, name := range want {
		if !slices.Contains(got, name) {
			t.Errorf("%s is not described", name)
		}
	}
	for _, name := range got {
		if !slices.Contains(want, name) {
			t.Errorf("%s is no key", name)
		}
	}
	if len(got) != len(want) {
		t.Errorf("got %d keys, want %d", len(got), len(want))
	}
}

func TestDefaultsAreThoseThatAreDescribed(t *testing.T) {
	t.Parallel()
	var c Config
	c.SetDefaults()
	for _, k := range Keys {
		if k.Type() == "" {
			t.Errorf("%s has an unknown type", k.Name)
		}
		f, ok := valueAt(reflect.ValueOf(c), k.Name)
		if !ok || f.IsZero() {
			continue // another package has the default
		}
		want := reflect.New(f.Type()).Elem()
		if err := setText(want, k.Default); err != nil {
			t.Errorf("%s: default %q: %v", k.Name, k.Default, err)
		} else if !reflect.DeepEqual(f.Interface(), want.Interface()) {
			t.Errorf("%s: default is %v, described as %s", k.Name, f.Interface(), k.Default)
		}
	}
}

// valueAt returns the value of a key that is not in a list.
func valueAt(v reflect.Value, name string) (reflect.Value, bool) {
	for part := range strings.SplitSeq(name, ".") {
		f, ok := fieldNamed(v, part)
		if !ok {
			return f, false
		}
		v = f
	}
	return v, true
}

func TestReloadRefusesWhatNeedsARestart(t *testing.T) {
	t.Parallel()
	for _, k := range Keys {
		var before, after Config
		f, ok := valueAt(reflect.ValueOf(&after).Elem(), k.Name)
		if !ok {
			continue
		}
		switch f.Kind() {
		case reflect.String:
			f.SetString("other")
		case reflect.Int, reflect.Int64:
			f.SetInt(int64(time.Second))
		default:
			continue
		}
		if err := after.CheckReload(&before); (err == nil) != k.AppliedOnReload() {
			t.Errorf("%s: got %v, applied on reload is %v", k.Name, err, k.AppliedOnReload())
		}
	}
}

func TestTheDocumentationOfKeysIsUpToDate(t *testing.T) {
	t.Parallel()
	const file = "../../docs/configuration.md"
	want := keysDocument()
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("docs/configuration.md is not up to date; run go test ./internal/config -update")
	}
}

func keysDocument() string {
	var b strings.Builder
	b.WriteString(`# Configuration

All keys of ` + "`cloakroom serve`" + `. Generated from the code: run
` + "`go test ./internal/config -update`" + ` after a change there.
[configs/cloakroom.yaml](../configs/cloakroom.yaml) is a commented example.

- Environment variables win over the file. Lists and maps in them are YAML.
- A section has a variable too: ` + "`CLOAKROOM_SERVER_LIMITS_LOGINS='{rate: 2/s, burst: 20}'`" + `. Keys
  that it leaves out keep their values. The variable of a key wins over that of its section.
- The sections ` + "`metrics` and `tracing`" + ` have no keys.
- A key of type secret also has a twin that names a file: its name with ` + "`_file`" + ` appended, in
  the environment ` + "`_FILE`" + `.
- Reload: whether a reload applies a change of the key. Otherwise the change needs a restart.
- The elements of ` + "`routes`" + ` have no variables of their own: ` + "`CLOAKROOM_ROUTES`" + ` sets the list.

| Key | Type | Default | Environment | Reload | Description |
|---|---|---|---|---|---|
`)
	for _, k := range Keys {
		reload, code := "no", func(s string) string { return "`" + s + "`" }
		if k.AppliedOnReload() {
			reload = "yes"
		}
		name := ""
		if v := k.Variable(); v != "" {
			name = code(v)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", code(k.Name), k.Type(), k.Default, name, reload, k.Doc)
	}
	return b.String()
}
