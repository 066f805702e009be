package bff_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/session"
)

// whoAmI responds with the subject of the session, or with "nobody" without
// one.
func whoAmI(a *app) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
			return
		}
		current, err := a.server.Session(r)
		switch {
		case errors.Is(err, session.ErrNone):
			io.WriteString(w, "nobody")
		case err != nil:
			http.Error(w, err.Error(), http.StatusInternalServerError)
		default:
			io.WriteString(w, current.Subject)
		}
	})
}

// newHandlerApp starts a broker with routes to Go handlers.
func newHandlerApp(t *testing.T) *app {
	return newApp(t, func(a *app, cfg *bff.Config) {
		cfg.Routes = []bff.Route{
			{Path: "/go/", Handler: whoAmI(a), Token: bff.TokenUser, MaxBody: 10},
			{Path: "/either/", Handler: whoAmI(a), Token: bff.TokenOptional},
			{
				Path:    "/admin/",
				Handler: whoAmI(a),
				Token:   bff.TokenUser,
				Require: bff.Require{Scopes: []string{"admin"}},
			},
		}
		cfg.Frontend = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			a.server.RequireSession(whoAmI(a)).ServeHTTP(w, r)
		})
	})
}

func wantText(t *testing.T, resp *bfftest.Response, want string) {
	t.Helper()
	if resp.StatusCode != http.StatusOK || resp.Text != want {
		t.Errorf("%s: got %d %q, want 200 %q", resp.Request.URL.Path, resp.StatusCode, resp.Text, want)
	}
}

func TestRouteCanHaveAGoHandler(t *testing.T) {
	t.Parallel()
	a := newHandlerApp(t)
	stranger, alice := a.browser(), a.signedIn()

	wantProblem(t, stranger.Fetch("GET", "/go/x"), 401, "not_signed_in")
	wantText(t, stranger.Fetch("GET", "/either/x"), "nobody")

	resp := alice.Fetch("GET", "/go/x")
	wantText(t, resp, "alice")
	if got := resp.Header.Get("Cache-Control"); got != "private, no-store" {
		t.Errorf("Cache-Control: got %q", got)
	}
	wantText(t, alice.Fetch("GET", "/either/x"), "alice")
	wantProblem(t, alice.Do("POST", "/go/x", ""), 403, "csrf")
	wantProblem(t, alice.Fetch("GET", "/admin/x"), 403, "insufficient_scope")
	wantProblem(t, alice.Do("POST", "/go/x", "0123456789a", "X-CSRF", "1"), 413, "body_too_large")
}

func TestHandlerBodyOfUnknownLengthIsLimited(t *testing.T) {
	t.Parallel()
	a := newHandlerApp(t)
	alice := a.signedIn()
	body := struct{ io.Reader }{strings.NewReader("0123456789a")}
	r := httptest.NewRequest("POST", "/go/x", body)
	r.Host, r.ContentLength = strings.TrimPrefix(a.url, "http://"), -1
	r.Header.Set("X-CSRF", "1")
	for _, c := range alice.Cookies() {
		r.AddCookie(c)
	}
	w := httptest.NewRecorder()
	a.server.ServeHTTP(w, r)
	if w.Code != http.StatusRequestEntityTooLarge {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
}

func TestRequireSessionProtectsAHandler(t *testing.T) {
	t.Parallel()
	a := newHandlerApp(t)
	stranger, alice := a.browser(), a.signedIn()

	t.Run("within the frontend", func(t *testing.T) {
		wantProblem(t, stranger.Fetch("GET", "/page"), 401, "not_signed_in")
		wantText(t, alice.Fetch("GET", "/page"), "alice")
		wantText(t, alice.Navigate("/page"), "alice")
		wantProblem(t, alice.Do("POST", "/page", ""), 403, "csrf")
	})

	t.Run("elsewhere", func(t *testing.T) {
		u, err := url.Parse(a.url)
		if err != nil {
			t.Fatal(err)
		}
		get := func(host string, cookies []*http.Cookie) *httptest.ResponseRecorder {
			r := httptest.NewRequest("GET", "/outside", nil)
			r.Host = host
			r.Header.Set("X-CSRF", "1")
			for _, c := range cookies {
				r.AddCookie(c)
			}
			w := httptest.NewRecorder()
			a.server.RequireSession(whoAmI(a)).ServeHTTP(w, r)
			return w
		}
		if w := get(u.Host, nil); w.Code != 401 {
			t.Errorf("without a session: got %d, want 401", w.Code)
		}
		switch w := get(u.Host, alice.Cookies()); {
		case w.Code != 200:
			t.Errorf("in a session: w.Code: got %v, want 200", w.Code)
		case w.Body.String() != "alice":
			t.Errorf("in a session: w.Body.String(): got %v, want alice", w.Body.String())
		}
		if w := get("evil.example", alice.Cookies()); w.Code != 421 {
			t.Errorf("for another host: got %d, want 421", w.Code)
		}
		if !strings.Contains(a.logs.String(), `"path":"/outside"`) {
			t.Error("the requests are missing in the access log")
		}
	})
}

func TestInvalidRoutesWithAHandler(t *testing.T) {
	t.Parallel()
	handler := http.NotFoundHandler()
	for name, test := range map[string]struct {
		route bff.Route
		field string
	}{
		"an upstream":      {bff.Route{Upstream: []string{"http://127.0.0.1"}, Token: bff.TokenUser}, "Upstream"},
		"a client's token": {bff.Route{Token: bff.TokenClient}, "Token"},
		"claim headers":    {bff.Route{Token: bff.TokenUser, Headers: map[string]string{"X-User": "sub"}}, "Headers"},
	} {
		test.route.Path, test.route.Handler = "/go/", handler
		_, err := bff.New(bff.Config{Routes: []bff.Route{test.route}})
		if err == nil || !strings.Contains(err.Error(), "Routes[0]."+test.field+":") {
			t.Errorf("%s: got %v, want an error about %s", name, err, test.field)
		}
	}
}
