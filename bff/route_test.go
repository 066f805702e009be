package bff_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// newRoutedApp starts a broker with an additional route, and signs alice in.
func newRoutedApp(t *testing.T, route bff.Route, provider ...func(*app)) (*app, *bfftest.Browser) {
	t.Helper()
	a := newApp(t, func(a *app, cfg *bff.Config) {
		if route.Upstream == nil {
			route.Upstream = []string{a.echo.URL}
		}
		cfg.Routes = append(cfg.Routes, route)
		for _, edit := range provider {
			edit(a)
		}
	})
	return a, a.signedIn()
}

func TestPrefixIsStrippedAndUpstreamPathPrepended(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ path, base, ask, want string }{
		{"/orders/", "", "/orders/1?q=a%2Fb", "/1?q=a%2Fb"},
		{"/orders/", "", "/orders/a%20b/c", "/a%20b/c"},
		{"/orders/", "", "/orders/", "/"},
		{"/orders", "", "/orders", "/"},
		{"/orders", "", "/orders/1", "/1"},
		{"/orders/", "/v1", "/orders/1", "/v1/1"},
		{"/orders/", "/v1/", "/orders/1", "/v1/1"},
		{"/orders", "/v1", "/orders", "/v1"},
		{"/orders", "/v1", "/orders?q", "/v1?q"},
		{"/orders", "/v1/", "/orders", "/v1"},
		{"/orders", "/v1", "/orders/", "/v1/"},
		{"/orders/", "/v1", "/orders/", "/v1/"},
	} {
		_, b := newRoutedApp(t, bff.Route{
			Path:        test.path,
			Token:       "user",
			StripPrefix: true,
			Upstream:    []string{brokertest.NewEcho(t).URL + test.base},
		})
		if got := echoed(t, b.Fetch("GET", test.ask)).URI; got != test.want {
			t.Errorf("%s of the route %s to %q: the upstream got %s, want %s", test.ask, test.path,
				test.base, got, test.want)
		}
	}
}

func TestUpstreamRedirectsAreRewrittenToTheRoute(t *testing.T) {
	t.Parallel()
	echo := brokertest.NewEcho(t)
	var location atomic.Value
	echo.Handler = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", location.Load().(string))
		w.WriteHeader(303)
	}
	host := strings.TrimPrefix(echo.URL, "http://")
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.Routes = append(cfg.Routes,
			bff.Route{Path: "/plain/", Token: "user", Upstream: []string{echo.URL}},
			bff.Route{Path: "/stripped/", Token: "user", Upstream: []string{echo.URL}, StripPrefix: true},
			bff.Route{Path: "/based/", Token: "user", Upstream: []string{echo.URL + "/v1"}, StripPrefix: true})
	})
	b := a.signedIn()
	for _, test := range []struct{ route, location, want string }{
		{"/plain/", echo.URL + "/plain/x?q=1#f", "/plain/x?q=1#f"},
		{"/plain/", "//" + host + "/plain/x", "/plain/x"},
		{"/plain/", "/plain/x", "/plain/x"},
		{"/plain/", "x", "x"},
		{"/plain/", "https://elsewhere.example/x", "https://elsewhere.example/x"},
		{"/plain/", "https://" + host + "/x", "https://" + host + "/x"},
		{"/plain/", echo.URL, "/"},
		{"/plain/", echo.URL + "//evil.example/x", echo.URL + "//evil.example/x"},
		{"/stripped/", "/x", "/stripped/x"},
		{"/stripped/", echo.URL + "/x%2Fy", "/stripped/x%2Fy"},
		{"/stripped/", "../x", "../x"},
		{"/based/", "/v1/x", "/based/x"},
		{"/based/", echo.URL + "/v1/x", "/based/x"},
		{"/based/", "/v12/x", "/v12/x"},
	} {
		location.Store(test.location)
		if got := b.Fetch("GET", test.route+"a").Header.Get("Location"); got != test.want {
			t.Errorf("%s, Location %s: got %s, want %s", test.route, test.location, got, test.want)
		}
	}
}

func TestOnlyMethodsOfTheRouteAreAllowed(t *testing.T) {
	t.Parallel()
	a, b := newRoutedApp(t, bff.Route{Path: "/read/", Token: "user", Methods: []string{"GET", "HEAD"}})
	echoed(t, b.Fetch("GET", "/read/x"))
	before := a.echo.Calls()
	for _, method := range []string{"POST", "DELETE", "get", "OPTIONS"} {
		resp := b.Fetch(method, "/read/x")
		wantProblem(t, resp, 405, "method_not_allowed")
		if got := resp.Header.Get("Allow"); got != "GET, HEAD" {
			t.Errorf("Allow: got %q", got)
		}
	}
	if n := a.echo.Calls() - before; n > 0 {
		t.Errorf("%d requests to the upstream", n)
	}
}

func TestOptionalTokenIsSentWithASession(t *testing.T) {
	t.Parallel()
	a, b := newRoutedApp(t, bff.Route{Path: "/maybe/", Token: "optional", Headers: map[string]string{"X-User": "sub"}})
	got := echoed(t, b.Fetch("GET", "/maybe/x")).Header
	if !a.provider.Issued(strings.TrimPrefix(got.Get("Authorization"), "Bearer ")) {
		t.Error("the token was not issued by the provider")
	}
	if got.Get("X-User") != "alice" {
		t.Errorf("X-User: got %q, want alice", got.Get("X-User"))
	}
	forged := []string{"Authorization", "Bearer forged", "X-User", "mallory"}
	got = echoed(t, a.browser().Fetch("GET", "/maybe/x", forged...)).Header
	for _, name := range []string{"Authorization", "X-User"} {
		if got.Get(name) != "" {
			t.Errorf("without a session: %s: got %q, want none", name, got.Get(name))
		}
	}
}

func TestClaimHeadersCannotBeForged(t *testing.T) {
	t.Parallel()
	a, b := newRoutedApp(t, bff.Route{Path: "/who/", Token: "user", Headers: map[string]string{
		"X-User": "sub", "x-email": "email", "X-Groups": "groups", "X-Level": "level",
		"X-Admin": "admin", "X-None": "nothing", "X-Object": "address", "X-Odd": "odd", "X-Name": "name",
	}}, func(a *app) {
		a.provider.SetHooks(devidp.Hooks{EditIDToken: func(_, claims map[string]any) {
			claims["groups"] = []any{"a", "b", 3, []any{"nested"}}
			claims["level"], claims["admin"] = 7, true
			claims["address"] = map[string]any{"country": "NO"}
			claims["odd"] = "two\r\nlines: 1"
			claims["name"] = "Ålice"
		}})
	})
	forged := []string{
		"X-User", "mallory", "X-Email", "x", "X-Groups", "root", "X-None", "x", "X-Object", "x",
		"X-Odd", "x", "X_User", "mallory", "Connection", "X-User, X-Email",
	}
	got := echoed(t, b.Fetch("GET", "/who/x", forged...)).Header
	for name, want := range map[string]string{
		"X-User": "alice", "X-Email": "alice@example.com", "X-Groups": "a,b,3", "X-Level": "7",
		"X-Admin": "true", "X-None": "", "X-Object": "", "X-Odd": "", "X-Name": "Ålice", "X_User": "",
	} {
		if values := got.Values(name); strings.Join(values, "|") != want {
			t.Errorf("%s: got %q, want %q", name, values, want)
		}
	}
	_ = a
}

func TestRouteRequirementsAreEnforced(t *testing.T) {
	t.Parallel()
	signedInAt := time.Now().Add(-10 * time.Minute)
	a := newApp(t, func(a *app, cfg *bff.Config) {
		a.provider.SetHooks(devidp.Hooks{EditIDToken: func(_, claims map[string]any) {
			claims["groups"], claims["level"] = []any{"staff", "ops"}, 2
			claims["acr"], claims["auth_time"] = "silver", signedInAt.Unix()
		}})
		cfg.Provider.Scopes = []string{"openid", "profile", "orders:read"}
		for name, require := range map[string]bff.Require{
			"scope":      {Scopes: []string{"openid", "orders:read"}},
			"scope-not":  {Scopes: []string{"orders:read", "orders:write"}},
			"claim":      {Claims: map[string][]string{"groups": {"admin", "ops"}, "level": {"2"}}},
			"claim-not":  {Claims: map[string][]string{"groups": {"staff"}, "level": {"3"}}},
			"claim-none": {Claims: map[string][]string{"nothing": {"x"}}},
			"acr":        {ACR: []string{"gold", "silver"}}, "acr-not": {ACR: []string{"gold", "platinum"}},
			"age": {MaxAge: time.Hour}, "age-not": {MaxAge: 5 * time.Minute},
			"both-not": {ACR: []string{"gold"}, MaxAge: 5 * time.Minute},
		} {
			cfg.Routes = append(cfg.Routes, bff.Route{
				Path:     "/" + name + "/",
				Token:    "optional",
				Upstream: []string{a.echo.URL},
				Require:  require,
			})
		}
	})
	b := a.signedIn()
	for _, name := range []string{"scope", "claim", "acr", "age"} {
		echoed(t, b.Fetch("GET", "/"+name+"/x"))
	}
	before := a.echo.Calls()
	for _, test := range []struct {
		name, code, challenge, login string
		status                       int
	}{
		{
			"scope-not", "insufficient_scope",
			`Bearer error="insufficient_scope", scope="orders:read orders:write"`, "", 403,
		},
		{"claim-not", "forbidden", "", "", 403},
		{"claim-none", "forbidden", "", "", 403},
		{
			"acr-not", "insufficient_user_authentication",
			`Bearer error="insufficient_user_authentication", acr_values="gold platinum"`,
			"/bff/login?acr_values=gold+platinum", 401,
		},
		{
			"age-not", "insufficient_user_authentication",
			`Bearer error="insufficient_user_authentication", max_age="300"`,
			"/bff/login?max_age=300", 401,
		},
		{
			"both-not", "insufficient_user_authentication",
			`Bearer error="insufficient_user_authentication", acr_values="gold", max_age="300"`,
			"/bff/login?acr_values=gold&max_age=300", 401,
		},
	} {
		resp := b.Fetch("GET", "/"+test.name+"/x")
		wantProblem(t, resp, test.status, test.code)
		var body struct {
			LoginURL string `json:"login_url"`
		}
		resp.Decode(t, &body)
		if got := resp.Header.Get("WWW-Authenticate"); got != test.challenge || body.LoginURL != test.login {
			t.Errorf("%s: challenge and login: got %s and %s, want %s and %s", test.name, got,
				body.LoginURL, test.challenge, test.login)
		}
	}
	for _, name := range []string{"scope", "claim", "acr", "age"} { // a session is required, whatever the token
		wantProblem(t, a.browser().Fetch("GET", "/"+name+"/x"), 401, "not_signed_in")
	}
	if n := a.echo.Calls() - before; n > 0 {
		t.Errorf("%d requests to the upstream", n)
	}
	wantSession := b.Fetch("GET", "/bff/session")
	if !strings.Contains(wantSession.Text, `"authenticated":true`) {
		t.Errorf("the challenge has ended the session: %s", wantSession.Text)
	}
}

// RFC 6749 5.1: a token response without a scope grants the requested scopes.
func TestMissingScopeMeansTheRequestedScopes(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(a *app, cfg *bff.Config) {
		a.provider.SetHooks(devidp.Hooks{
			EditTokenResponse: func(_ string, _ int, body map[string]any) { delete(body, "scope") },
		})
		cfg.Provider.Scopes = []string{"openid", "orders:read"}
		for _, scope := range []string{"orders:read", "orders:write"} {
			cfg.Routes = append(cfg.Routes, bff.Route{
				Path:     "/" + scope + "/",
				Token:    "user",
				Upstream: []string{a.echo.URL},
				Require:  bff.Require{Scopes: []string{scope}},
			})
		}
	})
	b := a.signedIn()
	echoed(t, b.Fetch("GET", "/orders:read/x"))
	wantProblem(t, b.Fetch("GET", "/orders:write/x"), 403, "insufficient_scope")
}

// An empty scope grants no scopes, unlike a missing one.
func TestEmptyScopeGrantsNothing(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Routes[0].Require.Scopes = []string{"email"} })
	a.recordCalls(devidp.Hooks{EditTokenResponse: func(_ string, _ int, body map[string]any) { body["scope"] = "" }})
	b := a.signedIn()
	wantProblem(t, b.Fetch("GET", "/api/x"), 403, "insufficient_scope")
}

func TestSlowUpstreamTimesOut(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	defer close(release)
	echo := brokertest.NewEcho(t)
	echo.Handler = func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if r.URL.Path == "/slow/body" {
			io.WriteString(w, "begun")
			w.(http.Flusher).Flush()
		}
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}
	for _, test := range []struct{ path, method string }{{"/slow/header", "GET"}, {"/slow/header", "POST"}} {
		a, b := newRoutedApp(t, bff.Route{
			Path:     "/slow/",
			Token:    "user",
			Upstream: []string{echo.URL},
			Timeouts: bff.Timeouts{ResponseHeader: 50 * time.Millisecond},
		})
		wantProblem(t, b.Do(test.method, "/slow/header", "", "X-CSRF", "1"), 504, "upstream_timeout")
		wantProblem(t, b.Do("POST", "/slow/header", "a body", "X-CSRF", "1"), 504, "upstream_timeout")
		_ = a
	}
	_, b := newRoutedApp(t, bff.Route{
		Path:     "/slow/",
		Token:    "user",
		CSRF:     "fetch-metadata",
		Upstream: []string{echo.URL},
		Timeouts: bff.Timeouts{Idle: time.Second},
	})
	wantProblem(t, b.Fetch("GET", "/slow/header"), 504, "upstream_timeout")
	resp := b.Open("/slow/body")
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); string(text) != "begun" || err == nil {
		t.Errorf("stalled response: got %q and the error %v, want an error", text, err)
	}
}

func TestTooLargeBodyIsRefused(t *testing.T) {
	t.Parallel()
	a, b := newRoutedApp(t, bff.Route{Path: "/small/", Token: "user", MaxBody: 10})
	if got := echoed(t, b.Do("POST", "/small/x", "0123456789", "X-CSRF", "1")).Body; got != "0123456789" {
		t.Errorf("of ten bytes the upstream got %q", got)
	}
	before := a.echo.Calls()
	wantProblem(t, b.Do("POST", "/small/x", "0123456789a", "X-CSRF", "1"), 413, "body_too_large")
	if n := a.echo.Calls() - before; n > 0 {
		t.Errorf("%d requests to the upstream", n)
	}
	body := struct{ io.Reader }{strings.NewReader(strings.Repeat("x", 1<<20))} // of unknown length
	req, err := http.NewRequest("POST", a.url+"/small/x", body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-CSRF", "1")
	for _, c := range b.Cookies() {
		req.AddCookie(c)
	}
	resp, err := httpClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, _ := io.ReadAll(resp.Body); resp.StatusCode != 413 || !strings.Contains(string(text), "body_too_large") {
		t.Errorf("in chunks: got %d %s", resp.StatusCode, text)
	}
}

// newAbortingUpstream starts an upstream that closes the connections of the
// first requests without a response. requests returns the number of requests.
func newAbortingUpstream(t *testing.T, first int) (url string, requests func() int) {
	var n atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if n.Add(1) <= int32(first) {
			panic(http.ErrAbortHandler)
		}
		w.Write(body)
	}))
	t.Cleanup(s.Close)
	return s.URL, func() int { return int(n.Load()) }
}

func TestSafeRequestIsRetriedOnce(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		method   string
		first    int // requests without a response
		never    bool
		status   int
		requests int
	}{
		{"GET", 1, false, 200, 2}, {"PUT", 1, false, 200, 2}, {"DELETE", 1, false, 200, 2}, {"QUERY", 1, false, 200, 2},
		{"GET", 2, false, 502, 2}, {"POST", 1, false, 502, 1}, {"PATCH", 1, false, 502, 1}, {"GET", 1, true, 502, 1},
	} {
		upstream, requests := newAbortingUpstream(t, test.first)
		_, b := newRoutedApp(t, bff.Route{
			Path:     "/flaky/",
			Token:    "user",
			Upstream: []string{upstream},
			NoRetry:  test.never,
		})
		resp := b.Do(test.method, "/flaky/x", "the body", "X-CSRF", "1")
		if resp.StatusCode != test.status {
			t.Errorf("%s, %d aborted, NoRetry %v: status: got %d, want %d:\n%s", test.method,
				test.first, test.never, resp.StatusCode, test.status, resp.Text)
		}
		if requests() != test.requests {
			t.Errorf("%s, %d aborted, NoRetry %v: requests: got %v, want %v", test.method,
				test.first, test.never, requests(), test.requests)
		}
		if test.status == 200 && resp.Text != "the body" {
			t.Errorf("%s, %d aborted, NoRetry %v: body: got %q, want the body", test.method,
				test.first, test.never, resp.Text)
		}
	}
}

func TestFailedUpstreamAddressIsSkipped(t *testing.T) {
	t.Parallel()
	dead := "http://127.0.0.1:" + testenv.FreePort(t) // no other test gets it
	one, two := brokertest.NewEcho(t), brokertest.NewEcho(t)
	_, b := newRoutedApp(t, bff.Route{
		Path:     "/many/",
		Token:    "user",
		Upstream: []string{dead, one.URL, dead, two.URL},
	})
	for range 20 {
		echoed(t, b.Fetch("GET", "/many/x"))
	}
	if one.Calls() < 5 || two.Calls() < 5 || one.Calls()+two.Calls() != 20 {
		t.Errorf("20 requests: got %d and %d, want at least 5 each", one.Calls(), two.Calls())
	}
	if got := echoed(t, b.Do("POST", "/many/x", "a body", "X-CSRF", "1")).Body; got != "a body" {
		t.Errorf("body: got %q, want a body", got)
	}
	one.Close()
	two.Close()
	first := b.Fetch("GET", "/many/x")
	if first.StatusCode != 502 && first.StatusCode != 503 {
		t.Errorf("all down: got %d, want 502 or 503", first.StatusCode)
	}
	b.Fetch("GET", "/many/x")
	resp := b.Fetch("GET", "/many/x")
	wantProblem(t, resp, 503, "upstream_unavailable")
	if resp.Header.Get("Retry-After") != "1" {
		t.Errorf("Retry-After: got %q, want 1 to 3600", resp.Header.Get("Retry-After"))
	}
}

// startHTTP2 starts an upstream with HTTP/2 over TLS. It returns its URL and
// what trusts it.
func startHTTP2(t *testing.T, h http.Handler) (url string, trust *tls.Config) {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return s.URL, &tls.Config{RootCAs: roots}
}

// startH2C starts an upstream with HTTP/2 without TLS, and returns its URL.
func startH2C(t *testing.T, h http.Handler) (url string) {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return "h2c" + strings.TrimPrefix(s.URL, "http")
}

func TestUpstreamsOfEveryKind(t *testing.T) {
	t.Parallel()
	handler := brokertest.NewEcho(t).Config.Handler
	overTLS, trust := startHTTP2(t, handler)
	h2c := startH2C(t, handler)
	socket := filepath.Join(t.TempDir(), "api.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	overUnix := &httptest.Server{Listener: l, Config: &http.Server{Handler: handler}}
	overUnix.Start()
	defer overUnix.Close()

	for _, test := range []struct {
		name, upstream string
		tls            *tls.Config
	}{
		{"https", overTLS, trust},
		{"h2c", h2c, nil},
		{"unix", "unix:" + socket, nil},
	} {
		_, b := newRoutedApp(t, bff.Route{
			Path:     "/kind/",
			Token:    "user",
			Upstream: []string{test.upstream},
			TLS:      test.tls,
		})
		got := echoed(t, b.Do("POST", "/kind/a%20b?q=1", "a body", "X-CSRF", "1"))
		if got.URI != "/kind/a%20b?q=1" {
			t.Errorf("%s: URI: got %v, want /kind/a%%20b?q=1", test.name, got.URI)
		}
		if got.Body != "a body" {
			t.Errorf("%s: body: got %q, want a body", test.name, got.Body)
		}
		if !strings.HasPrefix(got.Header.Get("Authorization"), "Bearer ") {
			t.Errorf("%s: Authorization: got %q, want prefix Bearer ", test.name, got.Header.Get("Authorization"))
		}
		if got.Header.Get("User-Agent") == "" {
			t.Errorf("%s: User-Agent is missing", test.name)
		}
	}
	for name, cfg := range map[string]*tls.Config{"none": nil, "others": {RootCAs: x509.NewCertPool()}} {
		a, b := newRoutedApp(t, bff.Route{Path: "/kind/", Token: "user", Upstream: []string{overTLS}, TLS: cfg})
		wantProblem(t, b.Fetch("GET", "/kind/x"), 502, "upstream_failed")
		for _, want := range []string{"certificate signed by unknown authority", "upstream_tls.ca_file"} {
			if !strings.Contains(a.logs.String(), want) {
				t.Errorf("%s: the log lacks %q", name, want)
			}
		}
	}
}

func TestUpstreamMayRequireAClientCertificate(t *testing.T) {
	t.Parallel()
	trusted := httptest.NewUnstartedServer(nil)
	trusted.StartTLS()
	defer trusted.Close()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, len(r.TLS.PeerCertificates))
	}))
	s.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	s.StartTLS()
	defer s.Close()
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	_, b := newRoutedApp(t, bff.Route{
		Path:     "/mtls/",
		Token:    "user",
		Upstream: []string{s.URL},
		TLS:      &tls.Config{RootCAs: roots, Certificates: trusted.TLS.Certificates},
	})
	if resp := b.Fetch("GET", "/mtls/x"); resp.StatusCode != 200 || resp.Text != "1" {
		t.Errorf("got %d %s", resp.StatusCode, resp.Text)
	}
	_, b = newRoutedApp(t, bff.Route{
		Path:     "/mtls/",
		Token:    "user",
		Upstream: []string{s.URL},
		TLS:      &tls.Config{RootCAs: roots},
	})
	wantProblem(t, b.Fetch("GET", "/mtls/x"), 502, "upstream_failed")
}

// newRejectingUpstream starts an upstream that rejects the first tokens.
func newRejectingUpstream(t *testing.T, first int) (*brokertest.Echo, *atomic.Int32) {
	var rejected atomic.Int32
	echo := brokertest.NewEcho(t)
	inner := brokertest.NewEcho(t)
	echo.Handler = func(w http.ResponseWriter, r *http.Request) {
		if int(rejected.Load()) < first {
			rejected.Add(1)
			io.Copy(io.Discard, r.Body)
			w.Header().Set("WWW-Authenticate", `Bearer realm="api", error="invalid_token"`)
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		inner.Config.Handler.ServeHTTP(w, r)
	}
	return echo, &rejected
}

func TestRejectedTokenIsRefreshedAndTheRequestRetried(t *testing.T) {
	t.Parallel()
	for _, method := range []string{"GET", "POST", "PUT"} {
		echo, _ := newRejectingUpstream(t, 1)
		a, b := newRoutedApp(t, bff.Route{Path: "/strict/", Token: "user", Upstream: []string{echo.URL}})
		got := echoed(t, b.Do(method, "/strict/x", "the body", "X-CSRF", "1"))
		if got.Body != "the body" {
			t.Errorf("%s: body: got %q, want the body", method, got.Body)
		}
		if !a.provider.Issued(strings.TrimPrefix(got.Header.Get("Authorization"), "Bearer ")) {
			t.Errorf("%s: the token was not issued by the provider", method)
		}
		if a.provider.Refreshes() != 1 {
			t.Errorf("%s: refreshes: got %d, want 1", method, a.provider.Refreshes())
		}
	}
}

func TestRejectionsDoNotRefreshEveryTime(t *testing.T) {
	t.Parallel()
	echo, rejected := newRejectingUpstream(t, 1<<30)
	a, b := newRoutedApp(t, bff.Route{Path: "/strict/", Token: "user", Upstream: []string{echo.URL}})
	for range 5 {
		resp := b.Fetch("GET", "/strict/x")
		if resp.StatusCode != 401 {
			t.Errorf("status: got %d, want 401:\n%s", resp.StatusCode, resp.Text)
		}
		if resp.Code() != "" {
			t.Errorf("code: got %q, want none", resp.Code())
		}
		if !strings.Contains(resp.Header.Get("WWW-Authenticate"), "invalid_token") {
			t.Errorf("WWW-Authenticate: got %q, want it to contain invalid_token", resp.Header.Get("WWW-Authenticate"))
		}
	}
	if a.provider.Refreshes() != 1 || rejected.Load() != 6 {
		t.Errorf("%d refreshes and %d requests for five calls, want 1 and 6", a.provider.Refreshes(), rejected.Load())
	}
	a.wantSession(b, "alice")
}

// RFC 6750 3.1: only a 401 with invalid_token means that the token is rejected.
func TestOtherErrorsOfAnUpstreamRefreshNothing(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		status    int
		challenge string
	}{
		{403, ""}, {403, `Bearer error="insufficient_scope", scope="orders:write"`},
		{403, `Bearer error="invalid_token"`}, {400, `Bearer error="invalid_request"`},
		{401, ""}, {401, "Bearer"}, {401, `Bearer realm="api"`},
		{401, `Bearer error="invalid_request"`},
		{401, `Bearer error="insufficient_user_authentication", acr_values="gold", max_age="60"`},
		{401, `Custom error="invalid_token"`},
	} {
		api := brokertest.NewEcho(t)
		api.Handler = func(w http.ResponseWriter, _ *http.Request) {
			if test.challenge != "" {
				w.Header().Set("WWW-Authenticate", test.challenge)
			}
			w.WriteHeader(test.status)
		}
		a, b := newRoutedApp(t, bff.Route{Path: "/strict/", Token: "user", Upstream: []string{api.URL}})
		resp := b.Fetch("GET", "/strict/x")
		name := fmt.Sprint(test.status, " ", test.challenge)
		wantStatus(t, name, resp, test.status)
		if got := resp.Code(); got != "" {
			t.Errorf("%s: got the problem %s, want the upstream's response", name, got)
		}
		if got := resp.Header.Get("WWW-Authenticate"); strings.HasPrefix(test.challenge, "Bearer") &&
			got != test.challenge {
			t.Errorf("%s: WWW-Authenticate: got %q, want it unchanged", name, got)
		}
		if n := a.provider.Refreshes(); n > 0 {
			t.Errorf("%s: %d refreshes, want none", name, n)
		}
		if n := api.Calls(); n != 1 {
			t.Errorf("%s: %d requests to the upstream, want 1", name, n)
		}
		a.wantSession(b, "alice")
	}
}

// RFC 9110 11.2: the value of an auth-param is a token or a quoted string, so
// invalid_token needs no quotes.
func TestUnquotedInvalidTokenCausesARefresh(t *testing.T) {
	t.Parallel()
	for _, challenge := range []string{
		"Bearer error=invalid_token",
		`Bearer realm="api", error=invalid_token, error_description="it has expired"`,
	} {
		echo, rejected := newRejectingUpstreamWith(t, challenge)
		a, b := newRoutedApp(t, bff.Route{Path: "/strict/", Token: "user", Upstream: []string{echo.URL}})
		if resp := b.Fetch("GET", "/strict/x"); resp.StatusCode != 200 || a.provider.Refreshes() != 1 {
			t.Errorf("%s: got %d after %d rejections and %d refreshes", challenge, resp.StatusCode,
				*rejected, a.provider.Refreshes())
		}
	}
}

// newRejectingUpstreamWith starts an upstream that rejects the first token with
// a challenge.
func newRejectingUpstreamWith(t *testing.T, challenge string) (*brokertest.Echo, *int) {
	echo, rejected := brokertest.NewEcho(t), new(int)
	echo.Handler = func(w http.ResponseWriter, _ *http.Request) {
		if *rejected++; *rejected == 1 {
			w.Header().Set("WWW-Authenticate", challenge)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}
	return echo, rejected
}

func TestUnbufferedBodyIsNotRetried(t *testing.T) {
	t.Parallel()
	echo, rejected := newRejectingUpstream(t, 1)
	a, b := newRoutedApp(t, bff.Route{Path: "/strict/", Token: "user", Upstream: []string{echo.URL}})
	resp := b.Do("POST", "/strict/x", strings.Repeat("x", 1<<20), "X-CSRF", "1")
	if resp.StatusCode != 401 || rejected.Load() != 1 || a.provider.Refreshes() != 0 {
		t.Errorf("got %d after %d rejections and %d refreshes", resp.StatusCode, rejected.Load(),
			a.provider.Refreshes())
	}
}

func TestRejectedTokenDuringAProviderOutage(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	echo, _ := newRejectingUpstream(t, 1)
	a, b := newRoutedApp(t, bff.Route{Path: "/strict/", Token: "user", Upstream: []string{echo.URL}})
	a.provider.Misbehave(t, brokertest.ProviderDown)
	switch resp := b.Fetch("GET", "/strict/x"); {
	case resp.StatusCode != 401:
		t.Errorf("status: got %d, want 401:\n%s", resp.StatusCode, resp.Text)
	case resp.Code() != "":
		t.Errorf("code: got %q, want none", resp.Code())
	}
	a.wantSession(b, "alice")
}

func TestInvalidRoutes(t *testing.T) {
	t.Parallel()
	for want, route := range map[string]bff.Route{
		"Routes[0].Upstream: missing": {Path: "/x/", Token: "user"},
		`Routes[0].Upstream: "ftp://x" is not a URL`: {
			Path:     "/x/",
			Token:    "user",
			Upstream: []string{"ftp://x"},
		},
		`Routes[0].Upstream: "http://u:p@x" is not a URL`: {
			Path:     "/x/",
			Token:    "user",
			Upstream: []string{"http://u:p@x"},
		},
		`Routes[0].Upstream: "http://x/../y" is not a URL`: {
			Path:     "/x/",
			Token:    "user",
			Upstream: []string{"http://x/../y"},
		},
		`Routes[0].Upstream: "unix:sock" is not a URL`: {
			Path:     "/x/",
			Token:    "user",
			Upstream: []string{"unix:sock"},
		},
		`Routes[0].Upstream: "http://y?q" is not a URL`: {
			Path:     "/x/",
			Token:    "user",
			Upstream: []string{"http://x", "http://y?q"},
		},
		`Routes[0].Methods: "get" is not a method`: {
			Path:     "/x/",
			Token:    "user",
			Upstream: []string{"http://x"},
			Methods:  []string{"get"},
		},
		`Routes[0].Methods: "TRACE" is not a method`: {
			Path:     "/x/",
			Token:    "user",
			Upstream: []string{"http://x"},
			Methods:  []string{"TRACE"},
		},
		`Routes[0].Token: "cliant" is none of`: {
			Path:     "/x/",
			Token:    "cliant",
			Upstream: []string{"http://x"},
		},
		`Routes[0].Token: none excludes`: {
			Path:     "/x/",
			Token:    "none",
			Upstream: []string{"http://x"},
			Headers:  map[string]string{"X-User": "sub"},
		},
		`Routes[0].CSRF: "off" is none of`: {
			Path:     "/x/",
			Token:    "user",
			CSRF:     "off",
			Upstream: []string{"http://x"},
		},
		`Routes[0].Headers: "Authorization" is not a header`: {
			Path:     "/x/",
			Token:    "user",
			Upstream: []string{"http://x"},
			Headers:  map[string]string{"Authorization": "sub"},
		},
		`Routes[0].Headers: "x-forwarded-user" is not a header`: {
			Path:     "/x/",
			Token:    "user",
			Upstream: []string{"http://x"},
			Headers:  map[string]string{"x-forwarded-user": "sub"},
		},
		`Routes[0].Headers: "X_User" is not a header`: {
			Path:     "/x/",
			Token:    "user",
			Upstream: []string{"http://x"},
			Headers:  map[string]string{"X_User": "sub"},
		},
		`Routes[0].Headers: "host" is not a header`: {
			Path:     "/x/",
			Token:    "user",
			Upstream: []string{"http://x"},
			Headers:  map[string]string{"host": "sub"},
		},
		`Routes[0].Headers: "X-User" has no claim`: {
			Path:     "/x/",
			Token:    "user",
			Upstream: []string{"http://x"},
			Headers:  map[string]string{"X-User": ""},
		},
		`Routes[0].Require.Claims: "role" has no value`: {
			Path:     "/x/",
			Token:    "user",
			Upstream: []string{"http://x"},
			Require:  bff.Require{Claims: map[string][]string{"role": nil}},
		},
		`Routes[0].Require.Scopes: "a b" is not a scope`: {
			Path:     "/x/",
			Token:    "user",
			Upstream: []string{"http://x"},
			Require:  bff.Require{Scopes: []string{"a b"}},
		},
		`Routes[0].Require.ACR: "" is not an acr`: {
			Path:     "/x/",
			Token:    "user",
			Upstream: []string{"http://x"},
			Require:  bff.Require{ACR: []string{""}},
		},
		`Routes[0].Timeouts.Idle: -1s is negative`: {
			Path:     "/x/",
			Token:    "user",
			Upstream: []string{"http://x"},
			Timeouts: bff.Timeouts{Idle: -time.Second},
		},
		`Routes[0].MaxBody: -1 is negative`: {Path: "/x/", Token: "user", Upstream: []string{"http://x"}, MaxBody: -1},
	} {
		_, err := bff.New(bff.Config{Routes: []bff.Route{route}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %s, got\n%v", want, err)
		}
	}
}

func TestClientThatDoesNotReadIsAborted(t *testing.T) {
	t.Parallel()
	echo := brokertest.NewEcho(t)
	echo.Handler = func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			w.Write(make([]byte, 1<<20))
		}
	}
	a, b := newRoutedApp(t, bff.Route{
		Path:     "/much/",
		Token:    "user",
		CSRF:     "fetch-metadata",
		Upstream: []string{echo.URL},
		Timeouts: bff.Timeouts{Idle: 100 * time.Millisecond},
	})
	resp := b.Open("/much/x")
	defer resp.Body.Close()
	waitFor(t, "the request is over", func() bool {
		lines := a.logs.lines(t, "request")
		return lines[len(lines)-1]["path"] == "/much/x"
	})
}
