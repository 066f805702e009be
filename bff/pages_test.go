package bff_test

import (
	"html/template"
	"net/url"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
)

func TestNavigationGetsAPageInsteadOfJSON(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.browser()
	for _, target := range []string{"/bff/unknown", "/bff/logout", "/api", "/bff/login?max_age=x"} {
		page := b.Navigate(target)
		if got := page.Header.Get("Content-Type"); got != "text/html; charset=utf-8" {
			t.Errorf("navigation to %s: Content-Type: got %q, want HTML", target, got)
		}
		fetched := b.Fetch("GET", target)
		if got := fetched.Header.Get("Content-Type"); got != "application/problem+json" {
			t.Errorf("fetch of %s: Content-Type: got %q, want a problem", target, got)
		}
	}
	if got := b.Navigate("/api/x").Header.Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("navigation to a route: Content-Type: got %q, want a problem", got)
	}
	if got := b.Navigate("/bff/unknown", "Sec-Fetch-Dest", "iframe").Header.Get("Content-Type"); got !=
		"application/problem+json" {
		t.Errorf("frame: Content-Type: got %q, want a problem", got)
	}
}

func TestPageIsInTheLanguageOfTheBrowser(t *testing.T) {
	t.Parallel()
	page := newApp(t, nil).browser().Navigate("/bff/callback?state=x", "Accept-Language", "de-CH, en;q=0.5")
	wantStatus(t, "callback", page, 400)
	for _, want := range []string{
		`<html lang="de">`, "Diese Anmeldung kann nicht abgeschlossen werden", "Erneut versuchen", "bad_callback",
	} {
		if !strings.Contains(page.Text, want) {
			t.Errorf("the page lacks %q:\n%s", want, page.Text)
		}
	}
	if got := page.Header.Get("Content-Language"); got != "de" {
		t.Errorf("Content-Language: got %q, want de", got)
	}
}

func TestLogoutMayReturnToThePageThatSaysSo(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	left := b.Submit("/bff/logout", url.Values{"return_to": {"/bff/signed-out"}})
	page := b.Follow(left, "never")
	if got := page.Request.URL.Path; got != "/bff/signed-out" {
		t.Errorf("logout leads to %s, want /bff/signed-out", got)
	}
	if !strings.Contains(page.Text, "You are signed out") || !strings.Contains(page.Text, `href="/bff/login"`) {
		t.Errorf("the page lacks its text or its link:\n%s", page.Text)
	}
	b.SignIn("alice", "?return_to=/bff/signed-out")
	a.wantSession(b, "alice")
	for _, other := range []string{"/bff/signed-out/", "/bff/signed-out?x", "/bff/session", "/bff/signed-outx"} {
		left := b.Submit("/bff/logout", url.Values{"return_to": {other}})
		if got := b.Follow(left, "never").Request.URL.Path; got != "/" {
			t.Errorf("return_to %s leads to %s, want /", other, got)
		}
	}
}

func TestPageTemplateReplacesTheBuiltInPage(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.Page = template.Must(template.New("").Parse(
			`<link rel=stylesheet href=/own.css><h1 lang={{.Language}}>{{.Title}}</h1>{{.Code}} {{.RequestID}}`))
	})
	page := a.browser().Navigate("/bff/unknown")
	wantStatus(t, "unknown path", page, 404)
	want := "<link rel=stylesheet href=/own.css><h1 lang=en>Not found</h1>not_found " +
		page.Header.Get("X-Request-Id")
	if page.Text != want {
		t.Errorf("page: got %q, want %q", page.Text, want)
	}
	policy := page.Header.Get("Content-Security-Policy")
	if !strings.Contains(policy, "default-src 'none'; style-src 'self'") || strings.Contains(policy, "script-src") {
		t.Errorf("Content-Security-Policy: got %q, want own styles and no script", policy)
	}
}
