package web

import (
	"strings"
	"testing"
	"testing/fstest"
)

func TestViolations(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ page, want string }{
		{`<!doctype html><script type="module" src="/assets/app.js"></script><link rel="stylesheet" href="a.css">`,
			""},
		{`<script>start()</script><style>a{}</style><p style="color: red">`,
			""},
		{`<img src="data:image/png;base64,AAAA"><a href="https://example.com">x</a>`,
			""},
		{`<base href="/shop/"><link rel="canonical" href="https://example.com/">`,
			""},
		{`<img src="https://tiles.example.com/a.png">`,
			""},
		{`<img src="https://a.cdn.example.com/a.png">`,
			""},
		{`<!-- <button onclick="go()"> --><p onclick>`,
			""},
		{`<button onclick="go()">`,
			"onclick of <button>"},
		{`<body ONLOAD='go()'>`,
			"onload of <body>"},
		{`<a href=" JavaScript:go()">`,
			"javascript: URL in href of <a>"},
		{`<script src="https://cdn.example.com/a.js"></script>`,
			"https://cdn.example.com/a.js (script-src)"},
		{`<script src="//cdn.example.com/a.js"></script>`,
			"//cdn.example.com/a.js (script-src)"},
		{`<link href="https://fonts.example.com/css" rel=stylesheet>`,
			"(style-src)"},
		{`<link rel="preload" as="font" href="https://fonts.example.com/a.woff2">`,
			"(font-src)"},
		{`<img src="https://evil.example.com/a.png">`,
			"(img-src)"},
		{`<img src="http://tiles.example.com/a.png">`,
			"(img-src)"},
		{`<iframe src="https://maps.example.com/"></iframe>`,
			"(frame-src)"},
		{`<object data="a.swf">`,
			"(object-src)"},
		{`<base href="https://evil.example.com/">`,
			"(base-uri)"},
		{`<script src="data:text/javascript,1"></script>`,
			"(script-src)"},
	} {
		page, want := test.page, test.want
		h, err := New(Config{
			FS:  fstest.MapFS{"index.html": {Data: []byte(page)}},
			CSP: map[string][]string{"img-src": {"https://tiles.example.com", "https://*.cdn.example.com"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		got, err := h.Violations()
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case want == "" && len(got) > 0:
			t.Errorf("%s: got %+v, want nothing", page, got)
		case want != "" && len(got) != 1:
			t.Errorf("%s: got %+v, want one violation", page, got)
		case want != "" && !strings.Contains(got[0].What+" ("+got[0].Directive+")", want):
			t.Errorf("%s: got %+v, want %q in it", page, got[0], want)
		case want != "" && got[0].Fix == "":
			t.Errorf("%s: got no fix", page)
		case strings.Contains(page, "<iframe") && got[0].Fix != "link to the page":
			t.Errorf("%s: fix: got %q, want a link", page, got[0].Fix)
		}
	}
}

func TestDemoHasNoViolations(t *testing.T) {
	t.Parallel()
	h, err := New(Config{FS: Demo()})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := h.Violations(); err != nil || len(got) > 0 {
		t.Errorf("got %+v, %v, want nothing", got, err)
	}
}
