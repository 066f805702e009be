package bff_test

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/oidc"
	"github.com/cloakroom-bff/cloakroom/internal/configerr"
	"github.com/cloakroom-bff/cloakroom/session"
)

// docs/embedding.md shows the body of the package's example.
func TestEmbeddingDocShowsExample(t *testing.T) {
	t.Parallel()
	source, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../docs/embedding.md")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?ms)^func Example\(\) \{\n(.*?)^\}`).FindSubmatch(source)
	if m == nil {
		t.Fatal("example_test.go has no func Example")
	}
	want := regexp.MustCompile(`(?m)^\t`).ReplaceAllString(string(m[1]), "")
	want = strings.ReplaceAll(want, "\t", "    ")
	if !strings.Contains(string(doc), "```go\n"+want+"```") {
		t.Errorf("docs/embedding.md does not contain this block:\n```go\n%s```", want)
	}
}

// A ConfigError names the field in the Config that a program has made.
func TestConfigErrorNamesAField(t *testing.T) {
	t.Parallel()
	_, err := bff.New(bff.Config{
		Prefix: "x", LogUsers: "x", Routes: []bff.Route{{MaxBody: -1}}, Limits: bff.Limits{Connections: -1},
		Provider: bff.ProviderConfig{Wait: -1, ResponseMode: "x"},
		Sessions: session.Config{Keys: [][]byte{nil}, CacheMaxAge: -1, MaxPerUser: -1},
	})
	_, providerErr := oidc.New(oidc.Config{PushedRequests: "x"})
	index := regexp.MustCompile(`\[.*?\]`)
	for config, err := range map[reflect.Type]error{
		reflect.TypeFor[bff.Config](): err, reflect.TypeFor[oidc.Config](): providerErr,
	} {
		mistakes := configerr.All(err)
		if len(mistakes) < 3 {
			t.Errorf("%v: got %v, want more mistakes", config, err)
		}
		for _, e := range mistakes {
			key := e.(*bff.ConfigError).Key
			in := config
			for name := range strings.SplitSeq(index.ReplaceAllString(key, ""), ".") {
				if in.Kind() == reflect.Slice {
					in = in.Elem()
				}
				field, ok := in.FieldByName(name)
				if !ok {
					t.Errorf("%v: there is no field %s: %v", config, key, e)
					break
				}
				in = field.Type
			}
		}
	}
}
