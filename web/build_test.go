package web

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// buildOf returns what readBuild finds in files besides an empty index.html.
func buildOf(t testing.TB, files map[string]string) *Build {
	t.Helper()
	app := fstest.MapFS{"index.html": {Data: []byte("<!doctype html>")}}
	for name, text := range files {
		app[name] = &fstest.MapFile{Data: []byte(text)}
	}
	b, err := readBuild(app)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// needLines returns needs in a short form. A guess has a question mark, what is
// allowed by default an equals sign.
func needLines(needs []Need) []string {
	var all []string
	for _, n := range needs {
		line := n.Place() + " " + n.Directive + " " + strings.Join(n.Sources, " ")
		if n.Guess {
			line += " ?"
		}
		if n.Default {
			line += " ="
		}
		all = append(all, strings.TrimSpace(line))
	}
	return all
}

func TestNeedsOfABuild(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		file, text string
		want       []string
	}{
		{"index.html", `<script src="/a.js"></script><img src="a.png"><link rel=manifest href=/m.json>`, nil},
		{"index.html", "<!doctype html>\n<link rel=stylesheet href=a.css media=print\n onload=\"this.media='all'\">",
			[]string{"index.html:2 script-src 'unsafe-hashes' " + hashOf("this.media='all'")}},
		{"index.html", `<p onclick="a(&quot;b&quot;)">`,
			[]string{"index.html:1 script-src 'unsafe-hashes' " + hashOf(`a("b")`)}},
		{"index.html", "<script>a()</script>\n<style>b{}</style><p style='c:d'><base href=/>",
			[]string{"index.html:1 script-src " + hashOf("a()") + " =", "index.html:2 style-src 'unsafe-inline' =",
				"index.html:2 style-src 'unsafe-inline' =", "index.html:2 base-uri 'self' ="}},
		{"about/index.html", `<img srcset="https://a.example/1.png 1x, https://b.example/2.png 2x">`,
			[]string{"about/index.html:1 img-src https://a.example", "about/index.html:1 img-src https://b.example"}},
		{"index.html", `<link rel=stylesheet href="https://fonts.googleapis.com/css2?family=Inter">`,
			[]string{"index.html:1 style-src https://fonts.googleapis.com",
				"index.html:1 font-src https://fonts.gstatic.com ?"}},
		{"index.html", `<base href="https://cdn.example.com/app/"><script src="main.js"></script>`,
			[]string{"index.html:1 script-src https://cdn.example.com",
				"index.html:1 base-uri https://cdn.example.com"}},
		{"index.html", `<script src="//CDN.example.com:8443/a.js"></script>`,
			[]string{"index.html:1 script-src https://cdn.example.com:8443"}},
		{"index.html", `<script src="http://cdn.example.com/a.js"></script>`, []string{"index.html:1 script-src"}},
		{"index.html", `<script src="data:text/javascript,a()"></script>`, []string{"index.html:1 script-src"}},
		{"index.html", `<a href=" JavaScript:a()">`, []string{"index.html:1 script-src"}},
		{"index.html", `<embed src="manual.pdf"><form action="https://pay.example.com/">`,
			[]string{"index.html:1 object-src 'self'", "index.html:1 form-action https://pay.example.com"}},
		{"index.html", `<video poster="https://a.example/p.jpg"><source src="https://b.example/v.mp4">`,
			[]string{"index.html:1 img-src https://a.example", "index.html:1 media-src https://b.example"}},
		{"index.html", `<svg><image href="https://a.example/i.svg"/></svg>`,
			[]string{"index.html:1 img-src https://a.example"}},

		{"a.css", "@import url(https://a.example/b.css);\n@font-face{src:url(\"https://f.example/x.woff2\")}\n" +
			"p{background:url(//i.example/p.png);content:\"https://text.example\"}",
			[]string{"a.css:1 style-src https://a.example", "a.css:3 img-src https://i.example",
				"a.css:2 font-src https://f.example"}},

		{"app.wasm", "\x00asm", []string{"app.wasm script-src 'wasm-unsafe-eval'"}},
		{"a.js", "\nWebAssembly.instantiateStreaming(fetch('/app.wasm'))",
			[]string{"a.js:2 script-src 'wasm-unsafe-eval' ?"}},
		{"a.js", "typeof WebAssembly; x.eval(y); isFunction('a'); Function('return this')(); new Function('');", nil},
		{"a.js", "const f=new Function('a','return a')", []string{"a.js:1 script-src 'unsafe-eval' ?"}},
		{"a.js", "(0,eval)(code)", []string{"a.js:1 script-src 'unsafe-eval' ?"}},
		{"a.js", "new Worker(URL.createObjectURL(new Blob([s])))", []string{"a.js:1 worker-src blob: ? ="}},
		{"a.js", "fetch('https://api.example.com/v1/orders')",
			[]string{"a.js:1 connect-src https://api.example.com ?"}},
		{"a.js", "fetch(`https://api.example.com/${id}`)", []string{"a.js:1 connect-src https://api.example.com ?"}},
		{"a.js", "x.open(\"POST\",\"https://api.example.com/a\")",
			[]string{"a.js:1 connect-src https://api.example.com ?"}},
		{"a.js", "new WebSocket(\"wss://live.example.com/\")", []string{"a.js:1 connect-src wss://live.example.com ?"}},
		{"a.js", "navigator.sendBeacon('https://b.example/x')", []string{"a.js:1 connect-src https://b.example ?"}},
		{"a.js", "init({dsn:\"https://0123abcd@o1.example.com/42\"})",
			[]string{"a.js:1 connect-src https://o1.example.com ?"}},
		{"a.js", "const base=\"https://api.example.com\";\nfetch(base+\"/x\")",
			[]string{"a.js:1 connect-src https://api.example.com ?"}},
		{"a.js", "e=document.createElement(\"script\"),e.src=\"https://js.example.com/v3\"",
			[]string{"a.js:1 script-src https://js.example.com ?"}},
		{"a.js", "jsx(\"img\",{alt:\"\",src:\"https://i.example.com/a\"})",
			[]string{"a.js:1 img-src https://i.example.com ?"}},
		{"a.js", "import(\"https://esm.example.com/x\")", []string{"a.js:1 script-src https://esm.example.com ?"}},
		{"a.js", "importScripts('https://w.example.com/x.js')", []string{"a.js:1 script-src https://w.example.com ?"}},
		{"a.js", "css`@font-face{src:url(https://f.example/x.woff2)}`",
			[]string{"a.js:1 font-src https://f.example ?"}},
		{"a.js", "throw Error('https://react.dev/errors/1'); ns='http://www.w3.org/2000/svg'", nil},
		{"a.js", "'x'!==new URL('https://a@b').username;new URL('https://x.example/#y').hash", nil},
		{"a.js", "fetch('http://localhost');fetch('http://localhost:3000/')", []string{
			"a.js:1 connect-src http://localhost:3000 ?"}},
		{"a.js", "link='https://help.example.com/faq'", nil}, // a mention
		{"index.html", "<script>\nfetch('https://api.example.com/')</script>",
			[]string{"index.html:1 script-src " + hashOf("\nfetch('https://api.example.com/')") + " =",
				"index.html:2 connect-src https://api.example.com ?"}},

		{".git/a.js", "eval(x)", nil},
		{"a.js.map", "fetch('https://api.example.com/')", nil},
		{"a.txt", "fetch('https://api.example.com/')", nil},
	} {
		got := buildOf(t, map[string]string{test.file: test.text})
		if lines := needLines(got.Needs); !slices.Equal(lines, test.want) {
			t.Errorf("%s %s:\ngot  %q\nwant %q", test.file, test.text, lines, test.want)
		}
		for _, n := range got.Needs {
			if n.What == "" || n.Fix == "" && !n.Default {
				t.Errorf("%s %s: %s has no text: %+v", test.file, test.text, n.Directive, n)
			}
		}
	}
}

func TestSameNeedsAreCounted(t *testing.T) {
	t.Parallel()
	b := buildOf(t, map[string]string{
		"index.html": strings.Repeat(`<img src="https://a.example/1.png">`, 3) + "<p onclick=a()><p onclick=a()>",
		"a.js":       "x='https://help.example.com/1';y='https://help.example.com/2'",
	})
	want := []string{"index.html:1 script-src 'unsafe-hashes' " + hashOf("a()"),
		"index.html:1 img-src https://a.example"}
	if got := needLines(b.Needs); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := b.Needs[1].More; got != 2 {
		t.Errorf("got %d more, want 2", got)
	}
	if got := fmt.Sprint(b.Mentions); got != "[{https://help.example.com a.js 1}]" {
		t.Errorf("mentions: got %s, want one", got)
	}
}

// What ReadBuild proposes is accepted, and allows what it found.
func TestProposedPolicyAllowsTheBuild(t *testing.T) {
	t.Parallel()
	build := fstest.MapFS{
		"index.html": {Data: []byte(`<base href=/><link rel=stylesheet href=a.css onload="this.media='all'">` +
			`<script src="https://js.example.com/a.js"></script><img src="https://i.example:8443/a.png">` +
			`<script>a()</script><style>b{}</style><object data=a.pdf></object><iframe src="https://f.example/x">`)},
		"a.js": {Data: []byte("new WebSocket('wss://live.example.com');WebAssembly.compile(x)")},
	}
	h, err := New(Config{FS: build})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := h.Violations(); err != nil || len(got) != 7 {
		t.Errorf("with the default policy: got %q, %v, want 7 violations", needLines(got), err)
	}
	b, err := readBuild(build)
	if err != nil {
		t.Fatal(err)
	}
	additions, impossible := b.Policy()
	if impossible {
		t.Error("got impossible, want not")
	}
	if h, err = New(Config{FS: build, CSP: additions}); err != nil {
		t.Fatal(err)
	}
	if got, err := h.Violations(); err != nil || len(got) > 0 {
		t.Errorf("with the proposed policy: got %q, %v, want no violation", needLines(got), err)
	}
}

func TestRemovedInlineStylesAreViolations(t *testing.T) {
	t.Parallel()
	build := fstest.MapFS{"index.html": {Data: []byte("<style>a{}</style><style>b{}</style>")}}
	h, err := New(Config{FS: build, CSP: map[string][]string{"style-src": {hashOf("a{}")}}})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := h.Violations(); err != nil || len(got) != 1 || got[0].hash != hashOf("b{}") {
		t.Errorf("got %+v, %v, want the style without a hash", got, err)
	}
}

func TestSourcesMatchURLs(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		source, image string
		want          bool
	}{
		{"https://a.example", "https://a.example/x.png", true},
		{"https://a.example", "https://A.example:443/x.png", true},
		{"https://a.example", "https://a.example:444/x.png", false},
		{"https://a.example:*", "https://a.example:444/x.png", true},
		{"https://a.example", "https://b.a.example/x.png", false},
		{"https://*.a.example", "https://b.a.example/x.png", true},
		{"https://*.a.example", "https://a.example/x.png", false},
		{"https://a.example/img/", "https://a.example/img/x.png", true},
		{"https://a.example/img/", "https://a.example/x.png", false},
		{"https://a.example/x.png", "https://a.example/x.png", true},
		{"http://a.example", "https://a.example/x.png", true},
		{"https://a.example", "http://a.example/x.png", false},
		{"https:", "https://a.example/x.png", true},
		{"https:", "http://a.example/x.png", false},
		{"https://a.example", "//a.example/x.png", true},
	} {
		h, err := New(Config{
			FS:  fstest.MapFS{"index.html": {Data: []byte(`<img src="` + test.image + `">`)}},
			CSP: map[string][]string{"img-src": {test.source}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := h.Violations(); err != nil || (len(got) == 0) != test.want {
			t.Errorf("%s for %s: got %q, %v, want allowed %t", test.source, test.image, needLines(got), err, test.want)
		}
	}
}

// cpuTime returns how long this process has kept processors busy. Unlike the
// elapsed time, it does not depend on what else the machine does.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// It is not parallel: it measures the CPU time of the process.
func TestHostileBuildsAreReadWithinLimits(t *testing.T) {
	testenv.Slow(t)
	junk := make([]byte, 1<<18)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range junk {
		junk[i] = byte(random.Uint32())
	}
	began := cpuTime(t)
	b := buildOf(t, map[string]string{
		"index.html":       strings.Repeat("<a onclick=x"+strings.Repeat("y", 50)+" href=javascript:a>", 5_000),
		"junk.html":        string(junk),
		"junk.js":          string(junk),
		"junk.css":         string(junk),
		"empty.js":         "",
		"unclosed.html":    "<script src=" + strings.Repeat("x", 1<<20),
		"deep.html":        strings.Repeat("<div style=a:b>", 25_000),
		"urls.js":          strings.Repeat(`fetch("https://a.example/x");`, 25_000),
		"hosts.js":         manyHosts(2000),
		"slashes.js":       strings.Repeat("://", 100_000),
		"quotes.js":        strings.Repeat("\"https://", 50_000),
		"evals.js":         strings.Repeat("eval(", 100_000),
		"font.css":         strings.Repeat("@font-face{", 25_000) + strings.Repeat("url(https://a.example/", 25_000),
		"large.html":       strings.Repeat(" ", maxBuildFile) + "<script src=https://late.example/>",
		"new\nline\x1b.js": "fetch('https://b.example/')",
	})
	if took := cpuTime(t) - began; took > time.Minute {
		t.Errorf("took %v of CPU time, want less than a minute", took)
	}
	if len(b.Needs) > maxNeeds || len(b.Mentions) > maxMentions || len(b.Notes) > maxMentions {
		t.Errorf("got %d needs, %d mentions, %d notes", len(b.Needs), len(b.Mentions), len(b.Notes))
	}
	if text := fmt.Sprint(b.Notes); !strings.Contains(text, "large.html: only the first 16 MiB were read") {
		t.Errorf("notes: got %s, want large.html", text)
	}
	for _, n := range b.Needs {
		text := n.Place() + n.What + strings.Join(n.Sources, "") + n.Fix
		if strings.ContainsAny(text, "\n\x1b") || len(text) > 600 {
			t.Errorf("got %q, want a short line", text)
		}
	}
	additions, _ := b.Policy()
	if _, err := newPolicy(additions); err != nil {
		t.Errorf("the proposed policy is not accepted: %v", err)
	}
}

// manyHosts returns a script that loads from n hosts.
func manyHosts(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "fetch('https://h%d.example/');link='https://m%d.example/'\n", i, i)
	}
	return b.String()
}

func TestReadBuildStaysInTheDirectory(t *testing.T) {
	t.Parallel()
	outside, dir := t.TempDir(), t.TempDir()
	for name, text := range map[string]string{
		filepath.Join(outside, "secret.js"): "fetch('https://outside.example/')",
		filepath.Join(dir, "index.html"):    "<!doctype html>",
		filepath.Join(dir, "a.js"):          "fetch('https://inside.example/')",
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"out.js": filepath.Join(outside, "secret.js"), "outside": outside, "pipe.js": "pipe", "loop.js": "loop.js",
		"gone.js": "nowhere", "linked.js": "a.js",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "direct.js"), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := ReadBuild(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"a.js:1 connect-src https://inside.example ?"}
	if got := needLines(b.Needs); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if _, err := ReadBuild(outside); err == nil || !strings.Contains(err.Error(), "index.html") {
		t.Errorf("without an index.html: got %v, want an error", err)
	}
}

func FuzzReadBuild(f *testing.F) {
	f.Add([]byte(`<script src="https://a.example/a.js" onload=x></script><style>@import "//b.example"</style>`))
	f.Add([]byte("const u=\"https://a.example\";fetch(u);new Function(x)"))
	f.Add([]byte("@font-face{src:url(https://[::1]:99999/x)} p{background:url('http://\xff')}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		b, err := readBuild(fstest.MapFS{
			"index.html": {Data: text}, "a.js": {Data: text}, "a.css": {Data: bytes.Clone(text)},
		})
		if err != nil {
			t.Fatal(err)
		}
		additions, _ := b.Policy()
		if _, err := newPolicy(additions); err != nil {
			t.Errorf("the proposed policy is not accepted: %v", err)
		}
		for _, n := range b.Needs {
			if !fs.ValidPath(n.File) || n.Line < 0 || strings.ContainsAny(n.What, "\n\x1b\x00") {
				t.Errorf("got %+v", n)
			}
		}
	})
}
