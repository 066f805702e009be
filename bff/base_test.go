package bff_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

// below registers apps at base paths of an origin at the provider.
func below(origin string, bases ...string) func(*devidp.Config) {
	return func(cfg *devidp.Config) {
		for _, base := range bases {
			c := &cfg.Clients[0]
			c.RedirectURIs = append(c.RedirectURIs, origin+base+"/bff/callback")
			c.PostLogoutRedirectURIs = append(c.PostLogoutRedirectURIs, origin+base+"/bff/logout/callback")
		}
	}
}

// newShop returns an app below /shop, and a browser with its pages. The
// frontend responds with the path that it sees.
func newShop(t *testing.T, edit func(*app, *bff.Config)) (*app, *bfftest.Browser) {
	t.Helper()
	register := func(cfg *devidp.Config) {
		origin := strings.TrimSuffix(cfg.Clients[0].RedirectURIs[0], "/bff/callback")
		below(origin, "/shop")(cfg)
	}
	a := newAppWith(t, register, func(a *app, cfg *bff.Config) {
		cfg.PublicURL += "/shop"
		cfg.Frontend = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "app "+r.URL.Path+" "+r.RequestURI)
		})
		if edit != nil {
			edit(a, cfg)
		}
	})
	return a, bfftest.NewBrowser(t, a.url+"/shop")
}

func TestAppBelowABasePath(t *testing.T) {
	t.Parallel()
	a, b := newShop(t, nil)
	refused := b.Fetch("GET", "/api/x")
	var p struct {
		LoginURL string `json:"login_url"`
	}
	refused.Decode(t, &p)
	if refused.StatusCode != 401 || p.LoginURL != "/shop/bff/login" {
		t.Errorf("without a session: got %d, login_url %q, want 401, /shop/bff/login", refused.StatusCode, p.LoginURL)
	}
	if resp := b.SignIn("alice", "return_to="+url.QueryEscape("/shop/orders/1?x=2#y")); resp.StatusCode != 303 ||
		resp.Header.Get("Location") != "/shop/orders/1?x=2#y" {
		t.Fatalf("sign in: got %d to %q, want 303 to /shop/orders/1?x=2#y", resp.StatusCode,
			resp.Header.Get("Location"))
	}
	got := echoed(t, b.Fetch("GET", "/api/a%20b?q=%2F"))
	if prefix := got.Header.Get("X-Forwarded-Prefix"); got.URI != "/api/a%20b?q=%2F" || prefix != "/shop" {
		t.Errorf("the upstream got %s with the prefix %q, want /api/a%%20b?q=%%2F and /shop", got.URI, prefix)
	}
	if resp := b.Navigate("/orders//1%20;2?x"); resp.Text != "app /orders//1 ;2 /orders//1%20;2?x" {
		t.Errorf("the frontend saw %q, want /orders//1%%20;2", resp.Text)
	}
	out := b.Do("POST", "/bff/logout", "", "X-CSRF", "1", "Accept", "application/json", "Sec-Fetch-Site", "same-origin")
	var to struct {
		RedirectTo string `json:"redirect_to"`
	}
	out.Decode(t, &to)
	if !strings.HasPrefix(to.RedirectTo, "/shop/bff/logout/continue?") {
		t.Fatalf("logout: got %d %s, want a path below /shop/bff", out.StatusCode, out.Text)
	}
	atProvider := b.Navigate(a.url + to.RedirectTo)
	end := atProvider.Location(t)
	if want := a.url + "/shop/bff/logout/callback"; end.Query().Get("post_logout_redirect_uri") != want {
		t.Errorf("post_logout_redirect_uri: got %s, want %s", end, want)
	}
	if back := b.Follow(atProvider, a.url+"/shop/?"); back.StatusCode != 200 || back.Request.URL.Path != "/shop/" {
		t.Errorf("after the logout: got %d at %s, want 200 at /shop/", back.StatusCode, back.Request.URL)
	}
	if s := b.Fetch("GET", "/bff/session"); !strings.Contains(s.Text, `"authenticated":false`) {
		t.Errorf("after the logout: got the session %s", s.Text)
	}
}

func TestPathsOutsideOfTheBasePath(t *testing.T) {
	t.Parallel()
	a, _ := newShop(t, nil)
	b := a.browser()
	for path, want := range map[string]int{
		"/": 404, "/shopping": 404, "/bff/session": 404, "/api/x": 404, "/other/shop/": 404, "/sho": 404,
		"/Shop/": 400, "/%73hop/": 400, "/shop;x/": 400, "//shop/": 400, "/x/../shop/": 400,
		"/shop%2f": 400, "/shop./": 400,
		"/shop%2fbff/session": 400, "/./shop/x": 400, "/shop%00/": 400, "/shop/../x": 200,
		"/shop/..%2fbff/session": 400, "/shop/": 200, "/shop/shop": 200,
	} {
		if resp := b.Fetch("GET", path); resp.StatusCode != want {
			t.Errorf("%s: got %d %s, want %d", path, resp.StatusCode, resp.Text, want)
		}
	}
	page := b.Navigate("/elsewhere")
	if page.StatusCode != 404 || !strings.Contains(page.Text, `href="/shop/"`) {
		t.Errorf("navigation: got %d, want 404 with a link to the app:\n%s", page.StatusCode, page.Text)
	}
	for _, method := range []string{"GET", "HEAD"} {
		resp := b.Do(method, "/shop?x=%2F", "")
		if to := resp.Header.Get("Location"); resp.StatusCode != 307 || to != "/shop/?x=%2F" {
			t.Errorf("%s /shop: got %d to %q, want 307 to /shop/?x=%%2F", method, resp.StatusCode, to)
		}
	}
	if resp := b.Do("POST", "/shop", ""); resp.StatusCode != 404 {
		t.Errorf("POST /shop: got %d, want 404", resp.StatusCode)
	}
	if resp := b.Navigate("/shop", "Host", "evil.example"); resp.StatusCode != 421 {
		t.Errorf("another host: got %d, want 421", resp.StatusCode)
	}
	other := b.Do("POST", "/shop/bff/backchannel-logout", "", "Host", "cloakroom.internal")
	if other.StatusCode != 400 {
		t.Errorf("back-channel logout with another host: got %d, want 400 without a token", other.StatusCode)
	}
	if resp := b.Do("POST", "/bff/backchannel-logout", "", "Host", "cloakroom.internal"); resp.StatusCode != 421 {
		t.Errorf("back-channel logout outside: got %d, want 421", resp.StatusCode)
	}
}

func TestReturnToStaysBelowTheBasePath(t *testing.T) {
	t.Parallel()
	a, b := newShop(t, func(_ *app, cfg *bff.Config) {
		cfg.Routes[1].Documents = "allow" // /public/
	})
	for asked, want := range map[string]string{
		"/shop/orders": "/shop/orders", "/shop/": "/shop/", "/shop": "/shop/", "/shop?x=1": "/shop/?x=1", "": "/shop/",
		"/shop#x": "/shop/#x", "/": "/shop/", "/other": "/shop/", "/shopping": "/shop/", "/%73hop/x": "/shop/",
		"/shop//evil.example/": "/shop/", "//evil.example/shop/": "/shop/", "/shop/../other": "/shop/",
		"/shop/..%2fother": "/shop/", "/shop/bff/logout": "/shop/", "/shop/api/x": "/shop/", "/shop/public/x": "/shop/",
		"https://evil.example/shop/": "/shop/", "/Shop/x": "/shop/", "/shop/orders//1": "/shop/orders//1",
	} {
		if resp := b.SignIn("alice", "return_to="+url.QueryEscape(asked)); resp.Header.Get("Location") != want {
			t.Errorf("login to %q: got %q, want %q", asked, resp.Header.Get("Location"), want)
		}
		b.ClearCookies()
	}
	b.SignIn("alice", "")
	resp := b.Follow(b.Submit("/bff/logout", url.Values{"return_to": {"/shop/bye"}}), a.url+"/shop/bye")
	if to := resp.Header.Get("Location"); to != "/shop/bye" {
		t.Errorf("logout to /shop/bye: got %q", to)
	}
}

func TestReferencesOfAnUpstreamGetTheBasePath(t *testing.T) {
	t.Parallel()
	upstream := brokertest.NewEcho(t)
	upstream.Handler = func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", r.URL.Query().Get("location"))
		if path := r.URL.Query().Get("cookie"); path != "" {
			w.Header().Set("Set-Cookie", "theme=dark; Path="+path)
		}
		w.Header().Set("X-Prefix", r.Header.Get("X-Forwarded-Prefix"))
		w.WriteHeader(302)
	}
	a, b := newShop(t, func(_ *app, cfg *bff.Config) {
		cfg.Routes = []bff.Route{
			{Path: "/plain/", Token: "none", Upstream: []string{upstream.URL}},
			{Path: "/stripped/", Token: "none", Upstream: []string{upstream.URL}, StripPrefix: true},
			{Path: "/based/", Token: "none", Upstream: []string{upstream.URL + "/v1"}, StripPrefix: true},
		}
	})
	for _, test := range []struct{ route, location, want string }{
		{"/plain/", "/plain/1?x#y", "/shop/plain/1?x#y"}, {"/plain/", upstream.URL + "/plain/1", "/shop/plain/1"},
		{"/plain/", "/shop/plain/1", "/shop/plain/1"}, {"/plain/", a.url + "/shop/plain/1", "/shop/plain/1"},
		{"/plain/", "/start", "/shop/start"}, {"/plain/", "relative", "relative"},
		{"/plain/", "https://elsewhere.example/x", "https://elsewhere.example/x"},
		{"/stripped/", "/1", "/shop/stripped/1"}, {"/stripped/", "/shop/stripped/1", "/shop/stripped/1"},
		{"/stripped/", upstream.URL + "/1", "/shop/stripped/1"}, {"/stripped/", upstream.URL, "/shop/stripped/"},
		{"/based/", "/v1/x", "/shop/based/x"}, {"/based/", upstream.URL + "/v1", "/shop/based/"},
	} {
		resp := b.Navigate(test.route + "?location=" + url.QueryEscape(test.location))
		if got := resp.Header.Get("Location"); got != test.want {
			t.Errorf("%s: %s: got %q, want %q", test.route, test.location, got, test.want)
		}
	}
	for _, test := range []struct{ route, path, want string }{
		{"/plain/", "/", "/shop/plain/"}, {"/plain/", "/plain/x", "/shop/plain/x"},
		{"/stripped/", "/", "/shop/stripped/"}, {"/stripped/", "/x", "/shop/stripped/x"},
		{"/stripped/", "/shop/stripped/x", "/shop/stripped/x"},
	} {
		line := b.Navigate(test.route + "?cookie=" + test.path).Header.Get("Set-Cookie")
		if _, path, _ := strings.Cut(line, "Path="); path != test.want {
			t.Errorf("%s: cookie with the path %s: got %q, want %s", test.route, test.path, line, test.want)
		}
	}
	for route, want := range map[string]string{"/plain/": "/shop", "/stripped/": "/shop/stripped",
		"/based/": "/shop/based"} {
		if got := b.Navigate(route).Header.Get("X-Prefix"); got != want {
			t.Errorf("%s: X-Forwarded-Prefix: got %q, want %q", route, got, want)
		}
	}
}

// Two apps of one client, with the same keys and the same store, at two paths
// of one host.
func TestAppsAtTwoPathsOfAHostHaveTheirOwnSessions(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	origin := "http://localhost:" + port
	register := below(origin, "/shop", "/office")
	shop := newAppWith(t, register, func(_ *app, cfg *bff.Config) { cfg.PublicURL = origin + "/shop" })
	office := newAppWith(t, register, func(a *app, cfg *bff.Config) {
		a.provider = shop.provider
		cfg.Provider.Issuer, cfg.PublicURL, cfg.Sessions.Store = shop.provider.Issuer, origin+"/office", shop.store
	})
	mux := http.NewServeMux()
	mux.Handle("/shop/", shop.server)
	mux.Handle("/office/", office.server)
	front := httptest.NewUnstartedServer(mux)
	front.Listener.Close()
	front.Listener = l
	front.Start()
	t.Cleanup(front.Close)

	b := bfftest.NewBrowser(t, origin)
	signIn := func(base, user string) {
		t.Helper()
		login := b.Navigate(base + "/bff/login")
		callback := b.Authorize(user, login.Location(t).String()).Location(t)
		if resp := b.Navigate(callback.String()); resp.StatusCode != 303 || resp.Header.Get("Location") != base+"/" {
			t.Fatalf("sign in at %s: got %d to %q", base, resp.StatusCode, resp.Header.Get("Location"))
		}
	}
	userAt := func(base string) string {
		t.Helper()
		var s struct{ User struct{ Sub string } }
		b.Fetch("GET", base+"/bff/session").Decode(t, &s)
		return s.User.Sub
	}
	signIn("/shop", "alice")
	if got := userAt("/office"); got != "" {
		t.Errorf("office before its login: got %q, want no user", got)
	}
	signIn("/office", "alice")
	if shop, office := userAt("/shop"), userAt("/office"); shop != "alice" || office != "alice" {
		t.Errorf("after both logins: got %q and %q, want alice twice", shop, office)
	}
	got := echoed(t, b.Fetch("GET", "/shop/public/x"))
	if cookie := got.Header.Get("Cookie"); cookie != "" {
		t.Errorf("an upstream got the cookies %q", cookie)
	}
	var mine, other *http.Cookie
	for _, c := range b.Cookies() {
		if shop.server.CookieName() == c.Name {
			mine = c
		} else if office.server.CookieName() == c.Name {
			other = c
		}
	}
	if mine == nil || other == nil {
		t.Fatalf("cookies: got %v, want one of each app", b.Cookies())
	}
	thief := bfftest.NewBrowser(t, origin)
	thief.SetCookie(&http.Cookie{Name: other.Name, Value: mine.Value, Path: "/"})
	if s := thief.Fetch("GET", "/office/bff/session"); !strings.Contains(s.Text, `"authenticated":false`) {
		t.Errorf("office with the cookie of shop: got %s", s.Text)
	}
	b.Do("POST", "/office/bff/logout", "", "X-CSRF", "1", "Accept", "application/json")
	if shop, office := userAt("/shop"), userAt("/office"); shop != "alice" || office != "" {
		t.Errorf("after the logout at office: got %q and %q, want alice at shop only", shop, office)
	}
}

func TestPublicURLWithoutAPathBindsAsBefore(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"https://app.example.com": "https://app.example.com", "https://App.example.com:443/": "https://app.example.com",
		"https://app.example.com/shop/": "https://app.example.com/shop",
	} {
		a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.PublicURL, cfg.Provider.PushedRequests = raw, "never" })
		if got := a.server.App().Origin; got != want {
			t.Errorf("%s: bound to %q, want %q", raw, got, want)
		}
	}
}

func TestPublicURLWithABadPath(t *testing.T) {
	t.Parallel()
	for _, path := range []string{
		"//", "/shop//", "/shop/../x", "/./", "/..", "/%73hop", "/sh%2fop", "/shöp", "/shop;x", "/a b",
		"/shop?x", "/shop?",
		"/shop#x", "/shop#", "/shop\\x", "/shop,x",
	} {
		_, err := bff.New(bff.Config{PublicURL: "https://app.example.com" + path})
		if err == nil || !strings.Contains(err.Error(), "PublicURL: ") {
			t.Errorf("%s: got %v, want a mistake of PublicURL", path, err)
		}
	}
	for _, path := range []string{"", "/", "/shop", "/shop/", "/a/b.c-d_e~f"} {
		_, err := bff.New(bff.Config{PublicURL: "https://app.example.com" + path})
		if err != nil && strings.Contains(err.Error(), "PublicURL: ") {
			t.Errorf("%s: got %v, want no mistake of PublicURL", path, err)
		}
	}
}

// A character with a meaning in URLs would end the path in login_url and in the
// redirect URI.
func TestPrefixIsAPlainPath(t *testing.T) {
	t.Parallel()
	const mistake = "Prefix: "
	for _, prefix := range []string{
		"bff", "/", "/bff/", "/a//b", "/../a", "/a b", "/ä", "/a?b", "/a#b", "/a%20b", "/a;b",
	} {
		_, err := bff.New(bff.Config{Prefix: prefix})
		if !strings.Contains(fmt.Sprint(err), mistake) {
			t.Errorf("%q: got %v, want a mistake in it", prefix, err)
		}
	}
	for _, prefix := range []string{"", "/bff", "/a/b", "/_A-1.~"} {
		_, err := bff.New(bff.Config{Prefix: prefix})
		if strings.Contains(fmt.Sprint(err), mistake) {
			t.Errorf("%q: got %v, want no mistake in it", prefix, err)
		}
	}
}

func TestProofOfACallerIsForTheURLBelowTheBasePath(t *testing.T) {
	t.Parallel()
	a := newGateway(t, func(_ *app, cfg *bff.Config) { cfg.PublicURL += "/shop" })
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	token := a.machineToken("orders:read", proofBy(t, key, "POST", a.provider.Issuer+"/token", ""))
	for path, want := range map[string]int{"/shop/orders/7": 200, "/orders/7": 401} {
		proof := proofBy(t, key, "GET", a.url+path, token)
		resp := a.call("/shop/orders/7", "Authorization", "DPoP "+token, "DPoP", proof)
		if resp.StatusCode != want {
			t.Errorf("proof for %s: got %d, want %d", path, resp.StatusCode, want)
		}
		if want == 200 && echoed(t, resp).URI != "/orders/7" {
			t.Errorf("the upstream got %s, want /orders/7", echoed(t, resp).URI)
		}
	}
}

func TestLogHasTheWholePathAndExcludesPathsBelowTheBase(t *testing.T) {
	t.Parallel()
	a, b := newShop(t, func(_ *app, cfg *bff.Config) { cfg.LogExclude = []string{"/assets/"} })
	b.Navigate("/assets/app.js")
	b.Navigate("/orders")
	var paths []string
	for line := range strings.Lines(a.logs.String()) {
		var record struct{ Msg, Path string }
		if json.Unmarshal([]byte(line), &record) == nil && record.Msg == "request" {
			paths = append(paths, record.Path)
		}
	}
	if got := strings.Join(paths, " "); got != "/shop/orders" {
		t.Errorf("logged: got %s, want /shop/orders", got)
	}
}

// A development server with a base of its own, as Vite has with base: "/shop/".
func TestDevServerWithABaseBelowABasePath(t *testing.T) {
	t.Parallel()
	files := brokertest.NewEcho(t)
	_, b := newShop(t, func(_ *app, cfg *bff.Config) {
		cfg.FrontendServer = &bff.FrontendServer{URL: files.URL + "/shop", Dev: true}
	})
	got := echoed(t, b.Fetch("GET", "/@vite/client?x=%2F"))
	if got.URI != "/shop/@vite/client?x=%2F" || got.Header.Get("X-Forwarded-Prefix") != "" {
		t.Errorf("the server got %s with %q, want /shop/@vite/client?x=%%2F without X-Forwarded-Prefix",
			got.URI, got.Header)
	}
	files.Handler = func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Set-Cookie", "theme=dark; Path=/")
		http.Redirect(w, r, r.URL.Query().Get("to"), http.StatusFound)
	}
	for to, want := range map[string]string{
		"/shop/x": "/shop/x", files.URL + "/shop/x": "/shop/x",
		"https://elsewhere.example/": "https://elsewhere.example/",
	} {
		resp := b.Navigate("/?to=" + url.QueryEscape(to))
		if location := resp.Header.Get("Location"); location != want {
			t.Errorf("redirect to %s: got %s, want %s", to, location, want)
		}
		if cookie := resp.Header.Get("Set-Cookie"); !strings.HasSuffix(cookie, "Path=/shop/") {
			t.Errorf("cookie: got %s, want it for /shop/", cookie)
		}
	}
}

// Next.js with a basePath redirects /shop/ to /shop, and browsers find the
// start page at /shop/.
func TestStartPageOfADevServerThatRemovesSlashes(t *testing.T) {
	t.Parallel()
	files := brokertest.NewEcho(t)
	prefix := "" // of redirects
	files.Handler = func(w http.ResponseWriter, r *http.Request) {
		if path, ok := strings.CutSuffix(r.URL.Path, "/"); ok {
			w.Header().Set("Location", (&url.URL{Path: path, RawQuery: r.URL.RawQuery}).String())
			w.Header().Set("Location", prefix+w.Header().Get("Location"))
			w.WriteHeader(http.StatusPermanentRedirect)
			return
		}
		io.WriteString(w, "page "+r.RequestURI)
	}
	a, b := newShop(t, func(_ *app, cfg *bff.Config) {
		cfg.FrontendServer = &bff.FrontendServer{URL: files.URL + "/shop", Dev: true}
	})
	for _, prefix = range []string{"", files.URL} {
		if page := b.Navigate("/?x=1"); page.StatusCode != 200 || page.Text != "page /shop?x=1" {
			t.Errorf("start page, redirected to %s/shop: got %d %q to %s, want 200 and /shop?x=1", prefix,
				page.StatusCode, page.Text, page.Header.Get("Location"))
		}
	}
	if head := b.Do("HEAD", "/", ""); head.StatusCode != 200 {
		t.Errorf("HEAD of the start page: got %d, want 200", head.StatusCode)
	}
	for _, test := range []struct {
		name, target string
		status       int
		location     string
	}{
		{"the base path", a.url + "/shop", 307, "/shop/"},
		{"another page", "/orders/", 308, "/shop/orders"},
	} {
		got := b.Navigate(test.target)
		if got.StatusCode != test.status || got.Header.Get("Location") != test.location {
			t.Errorf("%s: got %d to %s, want %d to %s", test.name, got.StatusCode, got.Header.Get("Location"),
				test.status, test.location)
		}
	}
	if posted := b.Fetch("POST", "/"); posted.StatusCode != 200 || posted.Text != "page /shop" {
		t.Errorf("POST: got %d %q, want 200 and /shop", posted.StatusCode, posted.Text)
	}
	prefix = "http://elsewhere.example"
	if got := b.Navigate("/").Header.Get("Location"); got != prefix+"/shop" {
		t.Errorf("redirect to another host: got %s, want %s/shop", got, prefix)
	}
}
