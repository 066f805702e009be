package web_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/cloakroom-bff/cloakroom/web"
)

// files makes an app of names and contents, in pairs.
func files(pairs ...string) fstest.MapFS {
	all := make(fstest.MapFS)
	for i := 0; i < len(pairs); i += 2 {
		all[pairs[i]] = &fstest.MapFile{Data: []byte(pairs[i+1])}
	}
	return all
}

// export returns the output of a build with many pages.
func export() fstest.MapFS {
	return files(
		"index.html", "home",
		"404.html", "lost<script>lost()</script>",
		"about.html", "about",
		"about/team.html", "team",
		"about/team.txt", "team as text",
		"docs/index.html", "docs",
		"docs/v1.2/index.html", "v1.2",
		"blog/next.js.html", "a post about next.js",
		"both.html", "both.html",
		"both/index.html", "both/index.html",
		"LICENSE", "a file without an extension",
		"LICENSE.html", "not this",
		"folder.html/index.html", "in a directory named like a file",
		"empty.html", "",
	)
}

func TestMultiPageExport(t *testing.T) {
	h := newHandler(t, web.Config{FS: export()})
	for _, tt := range []struct {
		path   string
		status int
		body   string
	}{
		{"/", 200, "home"},
		{"/index.html", 200, "home"},
		{"/about", 200, "about"},
		{"/about/", 200, "about"},
		{"/about.html", 200, "about"},
		{"/about/team", 200, "team"},
		{"/about/team.txt", 200, "team as text"},
		{"/docs", 200, "docs"},
		{"/docs/", 200, "docs"},
		{"/docs/index.html", 200, "docs"},
		{"/docs/v1.2", 200, "v1.2"},
		{"/blog/next.js", 200, "a post about next.js"},
		{"/both", 200, "both.html"},
		{"/both/", 200, "both/index.html"},
		{"/LICENSE", 200, "a file without an extension"},
		{"/folder.html", 200, "in a directory named like a file"},
		{"/folder", 404, "lost"},
		{"/empty", 200, ""},
		{"/nowhere", 404, "lost"},
		{"/about/nobody", 404, "lost"},
		{"/missing.js", 404, "lost"},
		{"/.env", 404, "lost"},
		{"/about%2Fteam", 404, "lost"},
		{"/about//team", 404, "lost"},
		{"/404", 200, "lost"},
	} {
		resp := do(h, "GET", tt.path, navigate)
		if resp.StatusCode != tt.status {
			t.Errorf("%s: got status %d, want %d", tt.path, resp.StatusCode, tt.status)
		}
		if got := body(t, resp); !strings.HasPrefix(got, tt.body) || tt.body == "" && got != "" {
			t.Errorf("%s: got %q, want %q", tt.path, got, tt.body)
		}
		head := do(h, "HEAD", tt.path, navigate)
		for _, name := range []string{"Content-Length", "Content-Type", "Content-Security-Policy", "ETag", "Vary"} {
			if got, want := head.Header.Get(name), resp.Header.Get(name); got != want {
				t.Errorf("HEAD %s: got %s %q, want %q", tt.path, name, got, want)
			}
		}
		if got := body(t, head); got != "" {
			t.Errorf("HEAD %s: got body %q, want none", tt.path, got)
		}
	}
}

func TestNotFoundPageOfApp(t *testing.T) {
	h := newHandler(t, web.Config{FS: export()})
	resp := do(h, "GET", "/nowhere", navigate, "If-None-Match: *", "Range: bytes=0-1")
	if got := body(t, resp); resp.StatusCode != 404 || !strings.HasPrefix(got, "lost") {
		t.Errorf("got %d %q, want 404 with the whole page", resp.StatusCode, got)
	}
	wantHeader(t, resp, "Content-Type", "text/html; charset=utf-8")
	wantHeader(t, resp, "Cache-Control", "no-store")
	wantHeader(t, resp, "ETag", "")
	if csp := resp.Header.Get("Content-Security-Policy"); !strings.Contains(csp, hash("lost()")) {
		t.Errorf("got policy %q, want one that allows the page's script", csp)
	}
	for _, header := range []string{"Sec-Fetch-Mode: cors", "Accept: application/json"} {
		resp := do(h, "GET", "/nowhere", header)
		if got := body(t, resp); resp.StatusCode != 404 || strings.Contains(got, "lost") {
			t.Errorf("%s: got %d %q, want 404 without a page", header, resp.StatusCode, got)
		}
		wantHeader(t, resp, "Content-Type", "text/plain; charset=utf-8")
	}
}

func TestFallback(t *testing.T) {
	single := files("index.html", "home", "app.js", "1", "about.html", "about")
	many := files("index.html", "home", "404.html", "lost", "about.html", "about")
	const ours = "Not Found\n"
	for _, tt := range []struct {
		name     string
		files    fstest.MapFS
		fallback web.Fallback
		status   int
		body     string
	}{
		{"default without 404.html", single, "", 200, "home"},
		{"auto without 404.html", single, web.FallbackAuto, 200, "home"},
		{"auto with 404.html", many, web.FallbackAuto, 404, "lost"},
		{"index without 404.html", single, web.FallbackIndex, 200, "home"},
		{"index with 404.html", many, web.FallbackIndex, 200, "home"},
		{"none without 404.html", single, web.FallbackNone, 404, ours},
		{"none with 404.html", many, web.FallbackNone, 404, "lost"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHandler(t, web.Config{FS: tt.files, Fallback: tt.fallback})
			resp := do(h, "GET", "/orders/17", navigate)
			if got := body(t, resp); resp.StatusCode != tt.status || !strings.HasPrefix(got, tt.body) {
				t.Errorf("got %d %q, want %d %q", resp.StatusCode, got, tt.status, tt.body)
			}
			if resp := do(h, "GET", "/orders/17"); resp.StatusCode != 404 {
				t.Errorf("a fetch: got status %d, want 404", resp.StatusCode)
			}
			if resp := do(h, "GET", "/missing.js", navigate); resp.StatusCode != 404 {
				t.Errorf("an asset: got status %d, want 404", resp.StatusCode)
			}
			if got := body(t, do(h, "GET", "/about", navigate)); got != "about" {
				t.Errorf("a page: got %q, want about", got)
			}
		})
	}
	_, err := web.New(web.Config{FS: single, Fallback: "spa"})
	if want := `Fallback: "spa" is none of auto, index, none`; err == nil || err.Error() != want {
		t.Errorf("got error %v, want %s", err, want)
	}
}

func TestCopyOfIndexAs404CausesAWarning(t *testing.T) {
	for _, tt := range []struct {
		name     string
		notFound string
		fallback web.Fallback
		want     bool
	}{
		{"copy", "home", "", true},
		{"copy with auto", "home", web.FallbackAuto, true},
		{"copy with index", "home", web.FallbackIndex, false},
		{"copy with none", "home", web.FallbackNone, false},
		{"another page", "lost", "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := web.Config{FS: files("index.html", "home", "404.html", tt.notFound), Fallback: tt.fallback}
			warnings := cfg.Warnings()
			if got := len(warnings) == 1 && warnings[0].Key == "Fallback"; got != tt.want {
				t.Errorf("got %v, want a warning: %v", warnings, tt.want)
			}
		})
	}
	if got := (web.Config{FS: export()}).Warnings(); len(got) != 0 {
		t.Errorf("an export of many pages: got %v, want no warning", got)
	}
}

// A page with relative URLs works only if the URL ends as its file's place
// says.
func TestRedirectForRelativeURLs(t *testing.T) {
	const relative, absolute = `<img src="logo.png">`, `<img src="/logo.png">`
	for _, tt := range []struct {
		name, path, page, target string
		location                 string // empty: no redirect
	}{
		{"directory", "docs/index.html", relative, "/docs", "./docs/"},
		{"directory with slash", "docs/index.html", relative, "/docs/", ""},
		{"file", "docs.html", relative, "/docs", ""},
		{"file with slash", "docs.html", relative, "/docs/", "../docs"},
		{"file by its name", "docs.html", relative, "/docs.html", ""},
		{"index by its name", "docs/index.html", relative, "/docs/index.html", ""},
		{"below", "a/docs/index.html", relative, "/a/docs", "./docs/"},
		{"query", "docs/index.html", relative, "/docs?q=%22a%0Ab&r", "./docs/?q=%22a%0Ab&r"},
		{"colon", "a:b/index.html", relative, "/a:b", "./a:b/"},
		{"space and quote", `a "b/index.html`, relative, "/a%20%22b", "./a%20%22b/"},
		{"line feed", "a\nb/index.html", relative, "/a%0Ab", "./a%0Ab/"},
		{"looks like a host", "evil.example/index.html", relative, "/evil.example", "./evil.example/"},
		{"absolute, directory", "docs/index.html", absolute, "/docs", ""},
		{"absolute, file", "docs.html", absolute, "/docs/", ""},
		{"fragment and query", "docs/index.html", `<a href="#a"></a><a href="?b"></a>`, "/docs", ""},
		{"other origin", "docs/index.html", `<a href="https://a.example/"></a><a href="//b.example"></a>`, "/docs", ""},
		{"data", "docs/index.html", `<img src="data:image/png;base64,AA=="><a href="mailto:a@b"></a>`, "/docs", ""},
		{"form", "docs/index.html", `<form action="send"></form>`, "/docs", "./docs/"},
		{"absolute base", "docs/index.html", `<base href="/docs/">` + relative, "/docs", ""},
		{"relative base", "docs/index.html", `<base href="../">` + absolute, "/docs", "./docs/"},
		{"text", "docs/index.html", `<p>src="logo.png"`, "/docs", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHandler(t, web.Config{FS: files("index.html", "home", tt.path, tt.page)})
			resp := do(h, "GET", tt.target, navigate)
			wantHeader(t, resp, "Location", tt.location)
			if tt.location == "" {
				if got := body(t, resp); resp.StatusCode != 200 || got != tt.page {
					t.Errorf("got %d %q, want 200 and the page", resp.StatusCode, got)
				}
				return
			}
			if resp.StatusCode != 308 {
				t.Errorf("got status %d, want 308", resp.StatusCode)
			}
			wantHeader(t, resp, "Cache-Control", "no-cache")
		})
	}
}

// A Handler does not need to know the path that http.StripPrefix removes.
func TestAppUnderPath(t *testing.T) {
	app := newHandler(t, web.Config{Fallback: web.FallbackNone, FS: files(
		"index.html", "home", "docs/index.html", `<img src="logo.png">`, "docs/logo.png", "logo")})
	mux := http.NewServeMux()
	mux.Handle("/shop/", http.StripPrefix("/shop", app))
	server := httptest.NewServer(mux)
	defer server.Close()
	resp, err := http.Get(server.URL + "/shop/docs?q=1")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got := resp.Request.URL.RequestURI(); resp.StatusCode != 200 || got != "/shop/docs/?q=1" {
		t.Errorf("redirected to %s with %d, want /shop/docs/?q=1 and 200", got, resp.StatusCode)
	}
}

func TestErrorPage(t *testing.T) {
	cfg := web.Config{Dir: writeApp(t), Fallback: web.FallbackNone}
	cfg.ErrorPage = func(w http.ResponseWriter, _ *http.Request, status int) {
		w.WriteHeader(status)
		fmt.Fprint(w, "the page for ", status)
	}
	h := newHandler(t, cfg)
	wantPages := func(status int, targets ...string) {
		t.Helper()
		for _, target := range targets {
			resp := do(h, "GET", target, navigate)
			want := fmt.Sprint("the page for ", status)
			if got := body(t, resp); resp.StatusCode != status || got != want {
				t.Errorf("%s: got %d %q, want %d %q", target, resp.StatusCode, got, status, want)
			}
			resp = do(h, "GET", target)
			if got := body(t, resp); resp.StatusCode != status || strings.Contains(got, "page") {
				t.Errorf("%s: a fetch got %d %q, want %d and no page", target, resp.StatusCode, got, status)
			}
		}
	}
	wantPages(404, "/nowhere", "/missing.js", "/.env", "/a%2Fb", "/assets/")
	if err := os.RemoveAll(cfg.Dir); err != nil {
		t.Fatal(err)
	}
	wantPages(503, "/", "/index.html")
}
