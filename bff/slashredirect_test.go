package bff_test

import (
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
)

// slashServer is an upstream that serves each path with or without a slash at
// its end, and redirects the other form to it.
type slashServer struct {
	*brokertest.Echo
	slash  bool                                               // paths end with one
	status atomic.Int64                                       // of the redirects
	name   atomic.Pointer[func(*http.Request, string) string] // of a path in Location
}

func newSlashServer(t *testing.T, slash bool) *slashServer {
	t.Helper()
	s := &slashServer{Echo: brokertest.NewEcho(t), slash: slash}
	s.status.Store(http.StatusMovedPermanently)
	s.Handler = func(w http.ResponseWriter, r *http.Request) {
		to := strings.TrimSuffix(r.URL.Path, "/")
		if slash {
			to += "/"
		}
		if r.URL.Path == to || r.URL.Path == "/" {
			body, _ := io.ReadAll(r.Body)
			io.WriteString(w, r.Method+" "+r.RequestURI+" "+string(body))
			return
		}
		w.Header().Set("Location", (*s.name.Load())(r, to)+strings.TrimPrefix(r.RequestURI, r.URL.Path))
		w.WriteHeader(int(s.status.Load()))
	}
	s.naming(func(_ *http.Request, to string) string { return to })
	return s
}

// naming sets how redirects name a path.
func (s *slashServer) naming(name func(r *http.Request, to string) string) { s.name.Store(&name) }

// slashRoutes are routes of all kinds to a server.
func slashRoutes(server string) []bff.Route {
	return []bff.Route{
		{Path: "/slash/", Token: "none", Upstream: []string{server + "/v1"}, StripPrefix: true},
		{Path: "/exact", Token: "none", Upstream: []string{server + "/v1"}, StripPrefix: true},
		{Path: "/two/names/", Token: "none", Upstream: []string{server + "/v1/orders/"}, StripPrefix: true},
		{Path: "/root/", Token: "none", Upstream: []string{server}, StripPrefix: true},
		{Path: "/v1/", Token: "none", Upstream: []string{server}},
		{Path: "/below/", Token: "none", Upstream: []string{server + "/v1"}},
	}
}

func TestRedirectsBetweenAPathAndItsSlashEnd(t *testing.T) {
	t.Parallel()
	for _, slash := range []bool{false, true} {
		s := newSlashServer(t, slash)
		a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Routes = slashRoutes(s.URL) })
		_, shop := newShop(t, func(_ *app, cfg *bff.Config) { cfg.Routes = slashRoutes(s.URL) })
		for name, f := range map[string]func(*http.Request, string) string{
			"a path":                func(_ *http.Request, to string) string { return to },
			"a URL of the upstream": func(_ *http.Request, to string) string { return s.URL + to },
			"a URL of the host":     func(r *http.Request, to string) string { return "//" + r.Host + to },
			"a URL of the public host": func(r *http.Request, to string) string {
				return r.Header.Get("X-Forwarded-Proto") + "://" + r.Header.Get("X-Forwarded-Host") + to
			},
		} {
			s.naming(f)
			for _, test := range []struct{ ask, want string }{
				{"/slash/", "/v1"}, {"/slash/?x=1", "/v1?x=1"}, {"/slash/orders", "/v1/orders"},
				{"/slash/orders/", "/v1/orders"},
				{"/exact", "/v1"}, {"/exact/", "/v1"}, {"/exact?x=1", "/v1?x=1"}, {"/exact/?x=1", "/v1?x=1"},
				{"/two/names/", "/v1/orders"}, {"/two/names/1/", "/v1/orders/1"},
				{"/root/", "/"}, {"/root/orders/", "/orders"}, {"/root/orders", "/orders"},
				{"/v1/", "/v1"}, {"/v1/orders/", "/v1/orders"},
				{"/below/", "/v1/below"}, {"/below/orders/", "/v1/below/orders"},
			} {
				if target, query, _ := strings.Cut(test.want, "?"); slash && target != "/" {
					test.want = strings.TrimSuffix(target+"/?"+query, "?")
				}
				for at, b := range map[string]*bfftest.Browser{"": a.browser(), "/shop": shop} {
					got := b.Follow(b.Navigate(test.ask), "")
					if want := "GET " + test.want + " "; got.StatusCode != 200 || got.Text != want {
						t.Errorf("%s%s, redirected to %s, slash %t: got %d %q, want 200 %q", at, test.ask, name, slash,
							got.StatusCode, got.Text, want)
					}
				}
			}
		}
	}
}

func TestSlashRedirectsThatTheProxyFollows(t *testing.T) {
	t.Parallel()
	s := newSlashServer(t, false)
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Routes = slashRoutes(s.URL) })
	b := a.browser()
	large := strings.Repeat("x", 65<<10)
	as := func(status int64, method, ask, body string) *bfftest.Response {
		s.status.Store(status)
		return b.Do(method, ask, body, "X-CSRF", "1", "Sec-Fetch-Site", "same-origin")
	}
	for _, test := range []struct {
		status    int64
		method    string
		ask, body string
		want      int
		text      string
	}{
		{301, "GET", "/slash/", "", 200, "GET /v1 "},
		{303, "GET", "/slash/", "", 200, "GET /v1 "},
		{307, "POST", "/slash/?x", "order", 200, "POST /v1?x order"},
		{308, "PUT", "/v1/", "order", 200, "PUT /v1 order"},
		// A client sends GET then.
		{301, "POST", "/slash/", "order", 301, ""},
		{303, "POST", "/slash/", "order", 303, ""},
		// Too large to be sent twice.
		{307, "POST", "/slash/", large, 307, ""},
		// Their own paths lead to both.
		{308, "POST", "/exact/", "order", 308, ""},
		{308, "POST", "/exact", "order", 200, "POST /v1 order"},
	} {
		got := as(test.status, test.method, test.ask, test.body)
		if got.StatusCode != test.want || got.Text != test.text {
			t.Errorf("%s %s, redirected with %d: got %d %q, want %d %q", test.method, test.ask, test.status,
				got.StatusCode, got.Text, test.want, test.text)
		}
	}
	if head := as(301, "HEAD", "/slash/", ""); head.StatusCode != 200 {
		t.Errorf("HEAD: got %d, want 200", head.StatusCode)
	}
	for to, want := range map[string]string{
		"/v1/":                        "/slash/", // a page may set a cookie and redirect to itself
		"/v1?y":                       "/slash/?y",
		"/":                           "/",
		"/v2":                         "/v2",
		"http://elsewhere.example/v1": "http://elsewhere.example/v1",
	} {
		s.naming(func(*http.Request, string) string { return to })
		calls := s.Calls()
		got := as(302, "GET", "/slash/", "")
		if got.StatusCode != 302 || got.Header.Get("Location") != want || s.Calls() != calls+1 {
			t.Errorf("redirect to %s: got %d to %s after %d requests, want 302 to %s after one", to,
				got.StatusCode, got.Header.Get("Location"), s.Calls()-calls, want)
		}
	}
	s.naming(func(_ *http.Request, to string) string { return "../" + path.Base(to) })
	if got := as(302, "GET", "/slash/", ""); got.StatusCode != 200 {
		t.Errorf("relative redirect: got %d, want 200", got.StatusCode)
	}
}

func TestContentLocationWithoutTheSlashOfTheRoute(t *testing.T) {
	t.Parallel()
	echo := brokertest.NewEcho(t)
	echo.Handler = func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Location", (&url.URL{Path: strings.TrimSuffix(r.URL.Path, "/")}).String())
	}
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Routes = slashRoutes(echo.URL) })
	for ask, want := range map[string]string{
		"/slash/": "/slash/", "/exact/": "/exact", "/exact": "/exact", "/v1/": "/v1/", "/below/": "/below/",
		"/slash/orders/": "/slash/orders",
	} {
		if got := a.browser().Fetch("GET", ask).Header.Get("Content-Location"); got != want {
			t.Errorf("%s: got %s, want %s", ask, got, want)
		}
	}
}
