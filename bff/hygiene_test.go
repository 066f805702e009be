package bff_test

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
)

// Requirements on a proxy in front of an API, from RFC 10017 6.1.3, RFC 9110
// 7.6 and known attacks. Framing, paths and streams have tests of their own.
func TestHygiene(t *testing.T) {
	t.Parallel()
	var respond func(w http.ResponseWriter, r *http.Request) // the upstream's handler in one case
	a := newApp(t, func(a *app, cfg *bff.Config) {
		echo := a.echo.Config.Handler
		a.echo.Handler = nil
		inner := brokertest.NewEcho(t)
		inner.Handler = func(w http.ResponseWriter, r *http.Request) {
			if respond != nil {
				respond(w, r)
				return
			}
			echo.ServeHTTP(w, r)
		}
		cfg.Routes = []bff.Route{
			{Path: "/api/", Upstream: []string{inner.URL}, Token: "user", CSRF: "header"},
			{Path: "/public/", Upstream: []string{inner.URL}, Token: "none", CSRF: "header"},
			{Path: "/stream/", Upstream: []string{inner.URL}, Token: "user", CSRF: "fetch-metadata"},
		}
	})
	b := a.signedIn()
	upstreamSays := func(t *testing.T, f func(w http.ResponseWriter, r *http.Request)) {
		respond = f
		t.Cleanup(func() { respond = nil })
	}
	refused := func(t *testing.T, ask func() *bfftest.Response, status int, code string) {
		t.Helper()
		before := a.echo.Calls()
		wantProblem(t, ask(), status, code)
		if n := a.echo.Calls(); n != before {
			t.Errorf("the upstream got a request, want none")
		}
	}

	t.Run("an unsafe cross-site request is refused on both kinds of routes", func(t *testing.T) {
		for _, site := range []string{"cross-site", "same-site", "none", "odd", "same-origin, cross-site"} {
			for _, path := range []string{"/api/x", "/stream/x"} {
				refused(t, func() *bfftest.Response {
					return b.Fetch("POST", path, "Sec-Fetch-Site", site)
				}, 403, "csrf")
			}
		}
	})
	t.Run("without Sec-Fetch-Site the Origin must match in scheme, host and port", func(t *testing.T) {
		host := strings.TrimPrefix(a.url, "http://")
		for _, origin := range []string{
			"null", "https://" + host, "http://localhost", a.url + "0", "http://evil." + host,
			a.url + ".evil.example", "http://" + strings.ToUpper(host), a.url + "/",
			"http://127.0.0.1", "file://",
		} {
			refused(t, func() *bfftest.Response {
				return b.Fetch("POST", "/api/x", "Sec-Fetch-Site", "", "Origin", origin)
			}, 403, "csrf")
			refused(t, func() *bfftest.Response {
				return b.Fetch("POST", "/stream/x", "Sec-Fetch-Site", "", "Origin", origin)
			}, 403, "csrf")
		}
		echoed(t, b.Fetch("POST", "/stream/x", "Sec-Fetch-Site", "", "Origin", a.url, "X-CSRF", ""))
	})
	t.Run("without Sec-Fetch-Site and Origin the CSRF header decides", func(t *testing.T) {
		echoed(t, b.Fetch("POST", "/api/x", "Sec-Fetch-Site", ""))
		refused(t, func() *bfftest.Response {
			return b.Fetch("POST", "/api/x", "Sec-Fetch-Site", "", "X-CSRF", "")
		}, 403, "csrf")
		refused(t, func() *bfftest.Response {
			return b.Fetch("POST", "/stream/x", "Sec-Fetch-Site", "", "X-CSRF", "")
		}, 403, "csrf")
	})
	t.Run("safe methods are protected like unsafe ones", func(t *testing.T) {
		for _, method := range []string{"GET", "HEAD", "OPTIONS", "QUERY", "gEt"} {
			if got := b.Fetch(method, "/api/x", "X-CSRF", "").StatusCode; got != 403 {
				t.Errorf("%s: got %d, want 403", method, got)
			}
			if got := b.Fetch(method, "/stream/x", "Sec-Fetch-Site", "cross-site").StatusCode; got != 403 {
				t.Errorf("%s: got %d, want 403", method, got)
			}
		}
		got := echoed(t, b.Do("QUERY", "/api/x", "the question", "X-CSRF", "1"))
		if got.Method != "QUERY" {
			t.Errorf("a same-origin QUERY: Method: got %v, want QUERY", got.Method)
		}
		if got.Body != "the question" {
			t.Errorf("a same-origin QUERY: body: got %q, want the question", got.Body)
		}
	})
	t.Run("a preflight is neither allowed nor forwarded", func(t *testing.T) {
		var resp *bfftest.Response
		refused(t, func() *bfftest.Response {
			resp = b.Do("OPTIONS", "/api/x", "", "Origin", "https://evil.example",
				"Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "x-csrf")
			return resp
		}, 403, "csrf")
		for name := range resp.Header {
			if strings.HasPrefix(name, "Access-Control-") {
				t.Errorf("%s is present", name)
			}
		}
	})
	t.Run("a response of an API is not rendered as a document", func(t *testing.T) {
		refused(t, func() *bfftest.Response { return b.Navigate("/api/x") }, 403, "csrf")
		refused(t, func() *bfftest.Response {
			return b.Navigate("/api/x", "Sec-Fetch-Site", "cross-site")
		}, 403, "csrf")
	})
	t.Run("JSON as text/plain is refused cross-site", func(t *testing.T) {
		refused(t, func() *bfftest.Response {
			return b.Do("POST", "/api/x", `{"a":1}`, "Content-Type", "text/plain", "Sec-Fetch-Site", "cross-site")
		}, 403, "csrf")
		refused(t, func() *bfftest.Response {
			return b.Do("POST", "/stream/x", `{"a":1}`, "Content-Type", "text/plain", "Origin", "https://evil.example")
		}, 403, "csrf")
	})
	t.Run("refusals vary by these headers and are not cached", func(t *testing.T) {
		if got := b.Fetch("GET", "/api/x", "X-CSRF", "").Header.Get("Cache-Control"); got != "no-store" {
			t.Errorf("Cache-Control: got %q", got)
		}
	})
	t.Run("hop-by-hop headers are removed in both directions", func(t *testing.T) {
		upstreamSays(t, func(w http.ResponseWriter, r *http.Request) {
			for _, name := range []string{
				"Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Proxy-Authenticate",
				"Proxy-Authorization", "X-Listed", "Connection",
			} {
				if v := r.Header[name]; len(v) > 0 {
					t.Errorf("the upstream got %s: %q", name, v)
				}
			}
			h := w.Header()
			h.Set("Connection", "X-Hop")
			h.Set("X-Hop", "x")
			h.Set("Keep-Alive", "timeout=5")
			h.Set("Proxy-Authenticate", "Basic")
			h.Set("Proxy-Connection", "x")
		})
		got := b.Fetch("GET", "/api/x", "Connection", "X-Listed, keep-alive", "X-Listed", "x",
			"Keep-Alive", "timeout=5", "TE", "trailers", "Proxy-Connection", "x",
			"Proxy-Authenticate", "x", "Trailer", "X").Header
		for _, name := range []string{"X-Hop", "Keep-Alive", "Proxy-Authenticate", "Proxy-Connection"} {
			if v := got[name]; len(v) > 0 {
				t.Errorf("the browser got %s: %q", name, v)
			}
		}
	})
	t.Run("Connection cannot remove headers of the broker, in any case", func(t *testing.T) {
		for _, connection := range []string{
			"Authorization", "authorization, cookie", "AUTHORIZATION",
			"close, X-Forwarded-Host, x-forwarded-proto, Via, X-Request-Id",
		} {
			got := echoed(t, b.Fetch("GET", "/api/x", "Connection", connection)).Header
			for _, name := range []string{
				"Authorization", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-For", "Via",
				"X-Request-Id",
			} {
				if len(got[name]) != 1 {
					t.Errorf("Connection: %s: the upstream got %s: %q", connection, name, got[name])
				}
			}
		}
	})
	t.Run("client credentials are removed without a session too", func(t *testing.T) {
		got := echoed(t,
			a.browser().Fetch("GET", "/public/x", "Authorization", "Bearer x",
				"Proxy-Authorization", "Basic x", "DPoP", "x")).Header
		for _, name := range []string{"Authorization", "Proxy-Authorization", "Dpop"} {
			if len(got[name]) > 0 {
				t.Errorf("the upstream got %s", name)
			}
		}
	})
	t.Run("headers with paths, users or methods are ignored", func(t *testing.T) {
		for _, name := range []string{
			"X-Forwarded-Uri", "X-Forwarded-Path", "X-Forwarded-Prefix", "X-Original-URL",
			"X-Rewrite-URL", "X-Original-URI",
		} {
			refused(t, func() *bfftest.Response {
				return a.browser().Fetch("GET", "/api/x", name, "/public/x")
			}, 401, "not_signed_in")
			got := echoed(t, b.Fetch("GET", "/public/x", name, "/api/x"))
			if got.URI != "/public/x" {
				t.Errorf("%s: URI: got %v, want /public/x", name, got.URI)
			}
			if len(got.Header["Authorization"]) > 0 {
				t.Errorf("%s: Authorization: got %v, want none", name, got.Header["Authorization"])
			}
		}
		if got := echoed(t, b.Fetch("POST", "/api/x", "X-HTTP-Method-Override", "DELETE")); got.Method != "POST" {
			t.Errorf("got %s", got.Method)
		}
		refused(t, func() *bfftest.Response {
			return a.browser().Fetch("GET", "/api/x", "User-Agent", "GoogleHC/1.0")
		}, 401, "not_signed_in")
		refused(t, func() *bfftest.Response {
			return a.browser().Fetch("GET", "/api/x?x=/public/&/public/x")
		}, 401, "not_signed_in")
	})
	t.Run("the broker's cookies are removed from every Cookie line", func(t *testing.T) {
		req, err := http.NewRequest("GET", a.url+"/public/x", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header = http.Header{
			"X-Csrf": {"1"},
			"Cookie": {"cloakroom=a; keep=1", "Cloakroom=b", "cloakroom-login-x=c; keep=2;cloakroom=d"},
		}
		resp, err := httpClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		got := echoed(t, &bfftest.Response{Response: resp, Text: string(text)}).Header["Cookie"]
		if strings.Join(got, "|") != "keep=1|keep=2" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("challenges that open a password dialogue are replaced, others pass", func(t *testing.T) {
		const bearer = `Bearer error="insufficient_user_authentication", acr_values="gold"`
		for sent, want := range map[string]string{
			`Basic realm="x"`: `Cookie realm="cloakroom"`, "Negotiate": `Cookie realm="cloakroom"`,
			"NTLM": `Cookie realm="cloakroom"`, `Bearer realm="x", basic realm="y"`: `Cookie realm="cloakroom"`,
			`Digest realm="x", nonce="y"`: `Cookie realm="cloakroom"`,
			bearer:                        bearer,
			"":                            `Cookie realm="cloakroom"`,
			"no header":                   "",
		} {
			upstreamSays(t, func(w http.ResponseWriter, _ *http.Request) {
				if sent != "no header" {
					w.Header().Set("WWW-Authenticate", sent)
				}
				w.WriteHeader(http.StatusUnauthorized)
			})
			if got := b.Fetch("GET", "/api/x").Header.Values("WWW-Authenticate"); strings.Join(got, "|") != want {
				t.Errorf("%s: got %q, want %s", sent, got, want)
			}
		}
	})
	t.Run("a redirect is passed to the browser, and the token is not sent to its target", func(t *testing.T) {
		upstreamSays(t, func(w http.ResponseWriter, _ *http.Request) {
			http.Redirect(w, &http.Request{}, "http://127.0.0.1:1/elsewhere", http.StatusTemporaryRedirect)
		})
		got := b.Fetch("POST", "/api/x")
		if got.StatusCode != 307 || got.Header.Get("Location") != "http://127.0.0.1:1/elsewhere" {
			t.Errorf("got %d to %s", got.StatusCode, got.Header.Get("Location"))
		}
	})
	t.Run("headers that act on the public origin are removed", func(t *testing.T) {
		names := []string{"Clear-Site-Data", "Strict-Transport-Security", "Service-Worker-Allowed",
			"Alt-Svc", "Refresh", "Public-Key-Pins", "Access-Control-Allow-Origin",
			"Access-Control-Allow-Credentials", "Access-Control-Allow-Methods",
			"Access-Control-Allow-Headers", "Access-Control-Expose-Headers",
			"Access-Control-Max-Age", "Access-Control-Allow-Private-Network",
			"Secure-Session-Registration", "Secure-Session-Challenge", "NEL", "Report-To",
			"Reporting-Endpoints", "Origin-Agent-Cluster", "Set-Login"}
		upstreamSays(t, func(w http.ResponseWriter, _ *http.Request) {
			for _, name := range names {
				w.Header().Set(name, "x")
			}
		})
		got := b.Fetch("GET", "/api/x").Header
		for _, name := range names {
			if len(got.Values(name)) > 0 {
				t.Errorf("the browser got %s", name)
			}
		}
	})
	t.Run("Via is extended, without internal names", func(t *testing.T) {
		got := echoed(t, b.Fetch("GET", "/api/x", "Via", "1.1 front")).Header["Via"]
		if strings.Join(got, ", ") != "1.1 front, 1.1 cloakroom" {
			t.Errorf("got %q", got)
		}
		upstreamSays(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Via", "1.1 internal-proxy.corp:3128")
		})
		if got := b.Fetch("GET", "/api/x").Header.Values("Via"); len(got) > 0 {
			t.Errorf("the browser got %q", got)
		}
	})
	t.Run("a response without cache directives is not cached, others are unchanged", func(t *testing.T) {
		for _, test := range []struct{ sent, want []string }{
			{nil, []string{"private, no-store"}},
			{[]string{""}, []string{"private, no-store"}},
			{[]string{" , ", ""}, []string{"private, no-store"}},
			{[]string{"", "no-cache"}, []string{"", "no-cache"}},
			{[]string{"no-cache"}, []string{"no-cache"}},
			{[]string{"public, max-age=60"}, []string{"public, max-age=60"}},
		} {
			others := []string{"Pragma", "Surrogate-Control", "CDN-Cache-Control", "Cloudflare-CDN-Cache-Control",
				"X-Accel-Expires"}
			upstreamSays(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header()["Cache-Control"] = test.sent
				for _, name := range others {
					w.Header().Set(name, "60")
				}
			})
			got := b.Fetch("GET", "/api/x").Header
			if !slices.Equal(got["Cache-Control"], test.want) {
				t.Errorf("%q: got %q, want %q", test.sent, got["Cache-Control"], test.want)
			}
			for _, name := range others {
				if pass := !slices.Equal(test.want, []string{"private, no-store"}); (got.Get(name) != "") != pass {
					t.Errorf("%q: got %s: %q, passes %v", test.sent, name, got.Get(name), pass)
				}
			}
		}
	})
	t.Run("errors of the upstream pass unchanged", func(t *testing.T) {
		for _, status := range []int{400, 403, 404, 409, 418, 500, 502, 503} {
			upstreamSays(t, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(status)
				io.WriteString(w, "of the API")
			})
			if got := b.Fetch("GET", "/api/x"); got.StatusCode != status || got.Text != "of the API" {
				t.Errorf("%d: got %d %s", status, got.StatusCode, got.Text)
			}
		}
	})
	t.Run("internal endpoints are not public", func(t *testing.T) {
		for _, path := range []string{
			"/debug/pprof/", "/debug/vars", "/metrics", "/healthz", "/readyz", "/admin/sessions",
		} {
			if got := b.Navigate(path); got.Text != "the app" {
				t.Errorf("%s: got %d %.80s", path, got.StatusCode, got.Text)
			}
		}
		for _, path := range []string{"/bff/metrics", "/bff/debug", "/api", "/bff/"} {
			switch got := b.Fetch("GET", path); {
			case got.StatusCode != 404:
				t.Errorf("%s: status: got %d, want 404:\n%s", path, got.StatusCode, got.Text)
			case got.Code() != "not_found":
				t.Errorf("%s: code: got %q, want not_found", path, got.Code())
			}
		}
	})
	t.Run("a path that resembles a route does not match it", func(t *testing.T) {
		for _, path := range []string{"/apix", "/apis.", "/ap", "/publicx/"} {
			if got := b.Fetch("GET", path); got.Text != "the app" {
				t.Errorf("%s: got %d %.80s", path, got.StatusCode, got.Text)
			}
		}
	})
	t.Run("a forged token in another place is ignored", func(t *testing.T) {
		other := a.signedIn() // another session
		for _, header := range [][]string{
			{"Cookie", "__Host-Http-cloakroom=x"}, {"X-Session", "x"},
			{"Authorization", "Bearer x"},
		} {
			refused(t, func() *bfftest.Response {
				return a.browser().Fetch("GET", "/api/x", header...)
			}, 401, "not_signed_in")
		}
		var both []string
		for _, c := range append(b.Cookies(), other.Cookies()...) {
			if c.Name == a.cookieName() {
				both = append(both, c.Name+"="+c.Value)
			}
		}
		refused(t, func() *bfftest.Response {
			return a.browser().Fetch("GET", "/api/x", "Cookie", strings.Join(both, "; "))
		}, 401, "not_signed_in") // one of them may have been injected
	})
}
