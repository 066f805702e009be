package urlpath

import (
	"net/url"
	"path"
	"strings"
	"testing"
)

var ambiguousPaths = []string{
	"", "*", "x", "/api/../x", "/api/..", "/..", "/./api", "/api/.", "/api/%2e%2e/x", "/api/x%2ey",
	"/api/%2E%2E/x", "/api/.%2e/x", "/api/%2e", "/api/..%2fx", "/api%2fx", "/api%2Fx",
	"/api/..%5cx", "/api/x%5c", "/api/..\\x", "/api/..;/x", "/api/..;a=b/x", "/api/.;/x",
	"/api/%252e%252e/x", "/api/%252fx", "/api/%25%32%65", "/api/%00", "/api/x%00.html",
	"/api/;x", "/;x/api", "//api", "/api//x", "//", "/api/%ff", "/api/%c0%ae", "/api/%0a",
	"/api/%0d%0a", "/api/%7f", "/api/%", "/api/%2", "/api/%zz",
}

var plainPaths = []string{
	"/", "/api", "/api/", "/api/x.y", "/api/...", "/api/.well-known", "/api/a;b=c", "/api/%20",
	"/api/%C3%BC", "/api/ü", "/api/100%25", "/api/50%25-off", "/api/a..b", "/api/%41", "/a:b/@c",
	"/api/%3Fx", "/api/%23x",
}

func TestAPathThatCanBeReadInTwoWaysIsRefused(t *testing.T) {
	t.Parallel()
	for _, p := range ambiguousPaths {
		if Check(p) == nil {
			t.Errorf("%q passes", p)
		}
	}
	for _, p := range plainPaths {
		if err := Check(p); err != nil {
			t.Errorf("%q: %v", p, err)
		}
	}
}

func FuzzPath(f *testing.F) {
	for _, p := range append(ambiguousPaths, plainPaths...) {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, escaped string) {
		if Check(escaped) != nil {
			return
		}
		once, err := url.PathUnescape(escaped)
		if err != nil {
			t.Fatalf("%q passes and cannot be decoded: %v", escaped, err)
		}
		readings := []string{escaped, once}
		if twice, err := url.PathUnescape(once); err == nil {
			readings = append(readings, twice)
		}
		for _, reading := range readings {
			var stripped []string // of path parameters, as servlet containers do
			for s := range strings.SplitSeq(reading, "/") {
				name, _, _ := strings.Cut(s, ";")
				stripped = append(stripped, name)
			}
			for _, p := range []string{reading, strings.ReplaceAll(reading, "\\", "/"), strings.Join(stripped, "/")} {
				if p != strings.Join(stripped, "/") && path.Clean(p) != strings.TrimSuffix(p, "/") && p != "/" {
					t.Fatalf("%q passes and can be read as %q", escaped, path.Clean(p))
				}
				segments := strings.Count(strings.TrimSuffix(escaped, "/"), "/")
				if strings.Count(path.Clean(p), "/") != segments && p != "/" && !strings.Contains(p, ";") {
					t.Fatalf("%q passes and has other segments as %q", escaped, p)
				}
			}
		}
	})
}

func TestAPrefixEndsOnASegmentBoundary(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		path, prefix string
		want         bool
	}{
		{"/api", "/api", true}, {"/api/", "/api", true}, {"/api/x", "/api", true},
		{"/apix", "/api", false}, {"/ap", "/api", false},
		{"/api/", "/api/", true}, {"/api/x", "/api/", true}, {"/api", "/api/", false},
		{"/apix/y", "/api/", false}, {"/API/x", "/api/", false},
	} {
		if got := Under(test.path, test.prefix); got != test.want {
			t.Errorf("Under(%q, %q): got %v, want %v", test.path, test.prefix, got, test.want)
		}
	}
}
