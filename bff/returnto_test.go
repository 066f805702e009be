package bff

import (
	"net/url"
	"strings"
	"testing"
)

// Known inputs that mislead browsers and proxies.
var hostileReturnTos = []string{
	"", "x", "foo/bar", "https://evil.example", "http:evil.example", "https:evil.example",
	"//evil.example", "///evil.example", "////evil.example",
	"/\\evil.example", "\\\\evil.example", "\\/evil.example", "/\\/evil.example", "/\t/evil.example",
	"/\n/evil.example", "/\r/evil.example", "\t//evil.example", " //evil.example", "/ /evil.example",
	"/%2fevil.example", "/%2Fevil.example", "/%5cevil.example", "/%5Cevil.example",
	"/%09/evil.example", "/%0a/evil.example", "/%0d/evil.example",
	"/%0d%0aLocation:%20https://evil.example", "/%00", "/%0b/evil.example",
	"/..//evil.example", "/../evil", "/./evil", "/.//evil.example", "/%2e%2e/evil", "/%2e/evil",
	"/%252e%252e/evil", "/..;/evil",
	"@evil.example", "javascript:alert(1)", "data:text/html,x", "/\x00", "/\x7f",
	"/\u0085/evil.example", "/\u00a0/evil.example", "/a\u2028b\xff", "/%zz", "/%",
	"/" + strings.Repeat("a", 2000),
}

var localReturnTos = []string{
	"/", "/orders", "/orders/", "/orders/17?tab=lines&x=%2F#top", "/?next=https://other.example/",
	"/a:b@c", "/orders?q=//x", "/orders#//x", "/über/straße", "/%C3%BC", "/a%20b", "/100%25", "/a;b=c", "/a//b",
}

func TestReturnToIsALocalPathOrRoot(t *testing.T) {
	t.Parallel()
	for _, raw := range hostileReturnTos {
		if got := parseReturnTo(raw); got != "/" {
			t.Errorf("%q: got %q, want /", raw, got)
		}
	}
	for _, raw := range localReturnTos {
		if got := parseReturnTo(raw); got != raw {
			t.Errorf("%q: got %q, want it unchanged", raw, got)
		}
	}
}

func FuzzReturnTo(f *testing.F) {
	for _, raw := range append(hostileReturnTos, localReturnTos...) {
		f.Add(raw)
	}
	base, _ := url.Parse("https://app.example.com/bff/callback")
	f.Fuzz(func(t *testing.T, raw string) {
		got := parseReturnTo(raw)
		if got != "/" && got != raw {
			t.Fatalf("%q became %q", raw, got)
		}
		// As a browser parses a Location (WHATWG URL): tabs and line ends are
		// removed, backslashes are slashes.
		seen := strings.Trim(got, "\x00\x01\x02\x03\x04\x05\x06\x07\x08\t\n\v\f\r\x0e\x0f\x10 ")
		seen = strings.NewReplacer("\t", "", "\n", "", "\r", "", "\\", "/").Replace(seen)
		u, err := base.Parse(seen)
		switch {
		case err != nil:
			t.Fatalf("%q: error: got %v, want none", got, err)
		case u.Scheme != "https":
			t.Fatalf("%q: scheme: got %q, want https", got, u.Scheme)
		case u.Host != "app.example.com":
			t.Fatalf("%q: host: got %q, want app.example.com", got, u.Host)
		case strings.HasPrefix(seen, "//"):
			t.Fatalf("%q: read as %q, want no prefix //", got, seen)
		}
	})
}
