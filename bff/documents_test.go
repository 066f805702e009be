package bff_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/bff/oidc"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
)

// ownPage has the headers of a navigation that a page of the app starts.
var ownPage = []string{"Sec-Fetch-Site", "same-origin"}

// documentsApp starts a broker with a route that allows documents, and others
// that do not.
func documentsApp(t *testing.T, edit func(*bff.Config)) *app {
	return newApp(t, func(a *app, cfg *bff.Config) {
		cfg.Routes = append(cfg.Routes,
			bff.Route{Path: "/files/", Upstream: []string{a.echo.URL}, Token: "user", CSRF: "fetch-metadata"},
			bff.Route{
				Path:      "/docs/",
				Upstream:  []string{a.echo.URL},
				Token:     "user",
				CSRF:      "fetch-metadata",
				Documents: "allow",
			},
			bff.Route{Path: "/docs/private/", Upstream: []string{a.echo.URL}, Token: "user", CSRF: "fetch-metadata"},
		)
		if edit != nil {
			edit(cfg)
		}
	})
}

// landingPage signs alice in from a login link. It returns the path where the
// browser ends.
func landingPage(t *testing.T, b *bfftest.Browser, returnTo string, header ...string) string {
	t.Helper()
	login := b.Navigate("/bff/login?"+url.Values{"return_to": {returnTo}}.Encode(), header...)
	if login.StatusCode != 302 {
		t.Fatalf("login: got %d, want 302", login.StatusCode)
	}
	resp := b.Navigate(b.Authorize("alice", login.Location(t).String()).Location(t).String(),
		"Sec-Fetch-Site", "cross-site")
	if resp.StatusCode == 200 {
		resp = b.Navigate(relayURL(t, resp), "Sec-Fetch-Site", "same-origin")
	}
	if resp.StatusCode != 303 {
		t.Fatalf("return_to %q: got %d, want 303", returnTo, resp.StatusCode)
	}
	return resp.Header.Get("Location")
}

func TestReturnToUnderARouteNeedsOwnLoginAndDocuments(t *testing.T) {
	t.Parallel()
	a := documentsApp(t, nil)
	t.Run("origin of the login", func(t *testing.T) {
		for name, test := range map[string]struct {
			header []string
			want   string
		}{
			"the app":           {ownPage, "/docs/x.html?y=1#z"},
			"another site":      {[]string{"Sec-Fetch-Site", "cross-site"}, "/"},
			"a sibling":         {[]string{"Sec-Fetch-Site", "same-site"}, "/"},
			"the user":          {[]string{"Sec-Fetch-Site", "none"}, "/"},
			"no origin headers": {[]string{"Sec-Fetch-Site", "", "Sec-Fetch-Mode", "", "Sec-Fetch-Dest", ""}, "/"},
			"a service worker":  {[]string{"Sec-Fetch-Site", "same-origin", "Sec-Fetch-Dest", "empty"}, "/"},
		} {
			if got := landingPage(t, a.browser(), "/docs/x.html?y=1#z", test.header...); got != test.want {
				t.Errorf("%s: ended at %s, want %s", name, got, test.want)
			}
		}
	})
	t.Run("target of return_to", func(t *testing.T) {
		for returnTo, want := range map[string]string{
			"/docs/": "/docs/", "/docs/a/b?x=%2F": "/docs/a/b?x=%2F",
			"/files/x.html": "/", "/files/": "/", "/files": "/", "/api/x": "/", "/public/x": "/", "/stream/x": "/",
			"/docs/private/x": "/", "/docs/private": "/", "/docs": "/",
			// Other interpretations of the path.
			"/Files/x": "/", "/files;a=b/x": "/", "/files./x": "/", "/files%20/x": "/",
			"/x%2F..%2Ffiles/x": "/", "/%66iles/x": "/", "/%2566iles/x": "/", "/files%2Fx": "/", "/files%252Fx": "/",
			"/x/..%2Ffiles/x": "/", "/fileſ/x": "/", "/files%3Fx": "/", "/files%23/x": "/",
			"/docs/Private/x": "/", "/docs/private;x/y": "/", "/docs//private/x": "/",
			"/docs%2Fprivate/x": "/", "/docs/a%2Fb": "/",
			// The broker's own endpoints.
			"/bff": "/", "/bff/": "/", "/bff/logout/callback": "/", "/bff/session": "/",
			"/BFF/login": "/", "/bff%2Flogin": "/", "/bff;x/login": "/", "/bff./login": "/", "/x%2F..%2Fbff/login": "/",
			// Paths of the app, even if they are ambiguous.
			"/group%2Fproject":           "/group%2Fproject",
			"/app/files/group%2Fproject": "/app/files/group%2Fproject",
			"/search/a%2520b":            "/search/a%2520b", "/orders//42": "/orders//42", "/a;b=c/x": "/a;b=c/x",
			"/filesystem": "/filesystem", "/bffs": "/bffs", "/apiary/": "/apiary/",
			"/50%25": "/50%25", "/x?next=/files/x": "/x?next=/files/x", "/#/files/x": "/#/files/x",
		} {
			if got := landingPage(t, a.browser(), returnTo, ownPage...); got != want {
				t.Errorf("%s: ended at %s, want %s", returnTo, got, want)
			}
		}
	})
}

// A cross-site login does not become one of the app: neither by the error
// page's link nor by a stale response.
func TestReturnToRuleCannotBeBypassed(t *testing.T) {
	t.Parallel()
	a := documentsApp(t, nil)
	link := "/bff/login?return_to=%2Fdocs%2Fx.html"
	t.Run("the error page of a login", func(t *testing.T) {
		for _, resp := range []*bfftest.Response{
			a.browser().Navigate(link+"&prompt=evil", "Sec-Fetch-Site", "cross-site"),
			a.browser().Navigate("/bff/callback?state=x&code=y&return_to=%2Fdocs%2Fx.html",
				"Sec-Fetch-Site", "cross-site"),
		} {
			if resp.StatusCode != 400 || strings.Contains(resp.Text, "docs") ||
				strings.Contains(resp.Text, "return_to") {
				t.Errorf("got %d:\n%s", resp.StatusCode, resp.Text)
			}
		}
		resp := a.browser().Navigate(link+"&prompt=evil", ownPage...)
		if !strings.Contains(resp.Text, "return_to=%2Fdocs%2Fx.html") {
			t.Errorf("own login: the page has no link to try again:\n%s", resp.Text)
		}
	})
	t.Run("a state of an attempt of the attacker", func(t *testing.T) {
		attacker := a.browser()
		state := attacker.Navigate(link, ownPage...).Location(t)
		form := attacker.Authorize("alice", state.String()).Location(t).Query()
		stale := "/bff/callback?" + url.Values{"state": form["state"], "code": {"x"}}.Encode()
		signedIn := a.signedIn()
		if resp := signedIn.Navigate(stale, "Sec-Fetch-Site", "cross-site"); resp.Header.Get("Location") != "/" {
			t.Errorf("with a session: Location: got %q, want /", resp.Header.Get("Location"))
		}
		stranger := a.browser()
		relayed := relayURL(t, stranger.Navigate(stale, "Sec-Fetch-Site", "cross-site"))
		restarted := stranger.Navigate(relayed, "Sec-Fetch-Site", "same-origin")
		callback := stranger.Authorize("alice", restarted.Location(t).String()).Location(t).String()
		relayed = relayURL(t, stranger.Navigate(callback, "Sec-Fetch-Site", "cross-site"))
		resp := stranger.Navigate(relayed, "Sec-Fetch-Site", "same-origin")
		if got := resp.Header.Get("Location"); got != "/" {
			t.Errorf("without a session: Location: got %q, want /", got)
		}
	})
}

func TestLogoutReturnToFollowsTheLoginRule(t *testing.T) {
	t.Parallel()
	a := documentsApp(t, nil)
	for returnTo, want := range map[string]string{
		"/bye": "/bye", "/docs/bye.html": "/docs/bye.html", "/files/x": "/", "/api/x": "/",
		"/bff/login": "/", "/bff/logout/callback": "/", "/BFF/login": "/", "/bff%2Flogin": "/", "/docs/private/x": "/",
	} {
		submitter, b := a.signedIn(), a.signedIn()
		byForm := submitter.Submit("/bff/logout", url.Values{"return_to": {returnTo}}).Location(t).String()
		var script struct {
			RedirectTo string `json:"redirect_to"`
		}
		b.Do("POST", "/bff/logout", url.Values{"return_to": {returnTo}}.Encode(),
			"Content-Type", "application/x-www-form-urlencoded", "Accept", "application/json",
			"X-CSRF", "1", "Sec-Fetch-Site", "same-origin", "Sec-Fetch-Mode", "cors",
			"Sec-Fetch-Dest", "empty").Decode(t, &script)
		byScript := b.Navigate(script.RedirectTo, ownPage...).Location(t).String()
		for how, browser := range map[string]*bfftest.Browser{"form": submitter, "script": b} {
			out := map[string]string{"form": byForm, "script": byScript}[how]
			resp := browser.Navigate(browser.Navigate(out).Location(t).String())
			switch got := resp.Header.Get("Location"); {
			case resp.StatusCode != 303:
				t.Errorf("%s, %s: status: got %d, want 303", how, returnTo, resp.StatusCode)
			case got != want:
				t.Errorf("%s, %s: got %v, want %v", how, returnTo, got, want)
			}
		}
	}
	// A request without fetch metadata. Origin and X-CSRF do not prove its
	// origin.
	b := a.signedIn()
	out := b.Do("POST", "/bff/logout", "return_to=/docs/bye.html",
		"Content-Type", "application/x-www-form-urlencoded", "Accept", "text/html", "Origin", a.url)
	resp := b.Navigate(b.Navigate(out.Location(t).String()).Location(t).String())
	switch got := resp.Header.Get("Location"); {
	case resp.StatusCode != 303:
		t.Errorf("without Sec-Fetch-Site: status: got %d, want 303", resp.StatusCode)
	case got != "/":
		t.Errorf("without Sec-Fetch-Site: got %v, want /", got)
	}
}

// No login, cross-site or not, in any response mode, calls the upstream of a
// route without documents.
func TestCrossSiteLoginReachesNoUpstream(t *testing.T) {
	t.Parallel()
	for _, mode := range []oidc.ResponseMode{oidc.ResponseModeQuery, oidc.ResponseModeFormPost} {
		a := documentsApp(t, func(cfg *bff.Config) { cfg.Provider.ResponseMode = mode })
		b := a.browser()
		if mode == oidc.ResponseModeQuery {
			if got := landingPage(t, b, "/files/x.html", "Sec-Fetch-Site", "cross-site"); got != "/" {
				t.Errorf("%s: ended at %s", mode, got)
			}
		} else {
			page := b.Follow(b.Navigate("/bff/login?return_to=/files/x.html", "Sec-Fetch-Site", "cross-site"), "")
			page = b.Submit(page.Request.URL.String(), url.Values{
				"user": {"alice"},
				"csrf": {brokertest.HiddenFields(page.Text).Get("csrf")},
			})
			page = b.Do("POST", "/bff/callback", brokertest.HiddenFields(page.Text).Encode(),
				"Content-Type", "application/x-www-form-urlencoded", "Sec-Fetch-Site", "cross-site",
				"Sec-Fetch-Mode", "navigate")
			resp := b.Submit("/bff/callback", brokertest.HiddenFields(page.Text))
			if got := resp.Header.Get("Location"); resp.StatusCode != 303 || got != "/" {
				t.Errorf("%s: got %d to %s", mode, resp.StatusCode, got)
			}
		}
		a.wantSession(b, "alice")
		if n := a.echo.Calls(); n > 0 {
			t.Errorf("%s: %d requests to the upstream", mode, n)
		}
	}
}

func TestDocumentsIsAllowOrNothing(t *testing.T) {
	t.Parallel()
	for value, good := range map[bff.Documents]bool{
		"":        true,
		"allow":   true,
		"Allow":   false,
		"true":    false,
		"sandbox": false,
	} {
		_, err := bff.New(bff.Config{
			Routes: []bff.Route{
				{Path: "/docs/", Upstream: []string{"http://docs.internal"}, Token: "user", Documents: value},
			},
		})
		reported := strings.Contains(fmt.Sprint(err), fmt.Sprintf("Routes[0].Documents: %q", value))
		if reported == good {
			t.Errorf("%q: got %v", value, err)
		}
	}
}
