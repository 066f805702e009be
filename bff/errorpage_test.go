package bff_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/web"
)

func TestFrontendShowsErrorsAsTheServerDoes(t *testing.T) {
	t.Parallel()
	files := fstest.MapFS{"index.html": {Data: []byte("the app")}}
	frontend, err := web.New(web.Config{FS: files, Fallback: web.FallbackNone, ErrorPage: bff.ErrorPage})
	if err != nil {
		t.Fatal(err)
	}
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Frontend = frontend })
	page := a.browser().Navigate("/nowhere/at/all")
	wantStatus(t, "unknown path", page, 404)
	for _, text := range []string{"<h1>Not found</h1>", page.Header.Get("X-Request-Id"), "<code>not_found</code>"} {
		if text == "" || !strings.Contains(page.Text, text) {
			t.Errorf("the page does not contain %q:\n%s", text, page.Text)
		}
	}
	if got := page.Header.Get("Content-Type"); got != "text/html; charset=utf-8" {
		t.Errorf("got Content-Type %q, want text/html", got)
	}
	if got := page.Header.Get("Content-Security-Policy"); !strings.Contains(got, "default-src 'none'") {
		t.Errorf("got Content-Security-Policy %q, want that of the page", got)
	}
	delete(files, "index.html") // a deploy
	page = a.browser().Navigate("/")
	wantStatus(t, "no index.html", page, 503)
	if !strings.Contains(page.Text, "The app is temporarily unavailable") || page.Header.Get("Retry-After") == "" {
		t.Errorf("got no page with Retry-After:\n%s", page.Text)
	}
}

func TestErrorPageWithoutServerIsPlainText(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	bff.ErrorPage(w, httptest.NewRequest(http.MethodGet, "/", nil), 404)
	if got := w.Body.String(); w.Code != 404 || got != "Not Found\n" {
		t.Errorf("got %d %q, want 404 and its text", w.Code, got)
	}
}
