package bff_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/session"
)

func TestUpstreamGetsNoCredentialsOrForgedHeaders(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	b.Navigate("/bff/login") // an attempt cookie beside the session cookie
	forged := []string{
		"Authorization", "Bearer forged", "Proxy-Authorization", "forged", "DPoP", "forged", "Forwarded", "for=forged",
		"X-Forwarded-For", "6.6.6.6", "X-Forwarded-Host", "forged", "X-Forwarded-Proto", "forged",
		"X-Forwarded-Uri", "/forged", "X-Forwarded-User", "forged",
		"X-Real-IP", "forged", "X-Original-URL", "/forged", "X-Rewrite-URL", "/forged",
		"X-HTTP-Method-Override", "FORGED", "X-HTTP-Method", "FORGED", "X-Method-Override", "FORGED",
		"X_Forwarded_User", "forged", "X-Forwarded_User", "forged", "Tenant_Name", "forged", "Connection",
		"Authorization, X-Forwarded-For, Cookie", "X-Background", "1",
	}
	for _, path := range []string{"/api/x", "/public/x"} {
		e := echoed(t, b.Fetch("POST", path, forged...))
		for name, values := range e.Header {
			if strings.Contains(strings.ToLower(strings.Join(values, " ")), "forged") ||
				strings.Contains(name, "_") || strings.Contains(strings.Join(values, " "), "6.6.6.6") {
				t.Errorf("%s: upstream got %s: %q", path, name, values)
			}
		}
		for _, name := range []string{"Cookie", "X-Csrf", "X-Background", "Proxy-Authorization", "Dpop", "Forwarded"} {
			if v, ok := e.Header[name]; ok {
				t.Errorf("%s: upstream got %s: %q", path, name, v)
			}
		}
		wantToken := path == "/api/x"
		got := e.Header["Authorization"]
		switch {
		case !wantToken && len(got) > 0:
			t.Errorf("%s: Authorization: got %q, want none", path, got)
		case wantToken && len(got) != 1:
			t.Errorf("%s: Authorization: got %q, want one value", path, got)
		case wantToken && !a.provider.Issued(strings.TrimPrefix(got[0], "Bearer ")):
			t.Errorf("%s: the provider did not issue the token with the digest %q", path, got[0])
		}
		if got := e.Header.Get("X-Forwarded-For"); got != "127.0.0.1" && got != "::1" {
			t.Errorf("%s: X-Forwarded-For: got %q, want the peer", path, got)
		}
		if got := e.Header.Get("X-Forwarded-Host") + " " +
			e.Header.Get("X-Forwarded-Proto"); got != strings.TrimPrefix(a.url, "http://")+" http" {
			t.Errorf("%s: forwarded as %s", path, got)
		}
	}
}

func TestOtherCookiesAreForwarded(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	for sent, want := range map[string]string{
		"theme=dark; cloakroom=x; lang=de":                     "theme=dark; lang=de",
		"cloakroom=x; cloakroom=y; CLOAKROOM=z; Cloakroom = q": "",
		"cloakroom-login-abc=x; cloakrooms=kept":               "cloakrooms=kept",
		" ; ;; a=b;":                                           "a=b",
		"=; noequals; cloakroom":                               "=; noequals",
	} {
		e := echoed(t, a.browser().Fetch("GET", "/public/x", "Cookie", sent))
		if got := strings.Join(e.Header["Cookie"], " | "); got != want {
			t.Errorf("%q: upstream got %q, want %q", sent, got, want)
		}
	}
}

func TestForwardedHeadersOfTrustedProxiesAreUsed(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.TrustedProxies = []netip.Prefix{
			netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"),
			netip.MustParsePrefix("10.0.0.0/8"),
		}
	})
	for sent, want := range map[string]string{
		"203.0.113.7": "203.0.113.7", "6.6.6.6, 203.0.113.7": "203.0.113.7",
		"6.6.6.6, 203.0.113.7, 10.1.2.3": "203.0.113.7", "junk": "", "6.6.6.6, junk, 10.1.2.3": "10.1.2.3",
	} {
		e := echoed(t, a.browser().Fetch("GET", "/public/x", "X-Forwarded-For", sent))
		got := e.Header.Get("X-Forwarded-For")
		if got != want && !(want == "" && (got == "127.0.0.1" || got == "::1")) {
			t.Errorf("%q: upstream got %q, want %q", sent, got, want)
		}
	}
	host := strings.TrimPrefix(a.url, "http://")
	for _, forwarded := range []string{host, "evil.example"} {
		req, _ := http.NewRequest("GET", a.url+"/bff/login", nil)
		req.Host = "broker.internal:8080"
		req.Header.Set("X-Forwarded-Host", forwarded)
		resp, err := httpClient.Transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if want := map[bool]int{true: 302, false: 421}[forwarded == host]; resp.StatusCode != want {
			t.Errorf("X-Forwarded-Host %s: got %d, want %d", forwarded, resp.StatusCode, want)
		}
	}
}

// RFC 9440 4: only a proxy may set these headers, so those of a client are
// removed.
func TestClientCertHeadersOfClientsAreRemoved(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	for _, name := range []string{"Client-Cert", "Client-Cert-Chain"} {
		for _, path := range []string{"/api/x", "/public/x"} {
			if got := echoed(t, b.Fetch("GET", path, name, ":Zm9yZ2Vk:")).Header.Values(name); len(got) > 0 {
				t.Errorf("%s: the upstream got %s: %q", path, name, got)
			}
		}
	}
}

func TestUpstreamCannotActOnThePublicOrigin(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	a.echo.Handler = func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		for _, name := range []string{
			"Clear-Site-Data", "Strict-Transport-Security", "Service-Worker-Allowed", "Alt-Svc",
			"Refresh", "Access-Control-Allow-Origin", "Access-Control-Allow-Credentials", "Server",
			"X-Powered-By", "Secure-Session-Registration",
		} {
			h.Set(name, "x")
		}
		if r.URL.Query().Has("cache") {
			h.Set("Cache-Control", "max-age=60")
		}
		for _, c := range []string{
			"cloakroom=x; Path=/", "__Host-Http-cloakroom=x", "__Secure-x=y", "cloakroom-login-x=y",
			" CLOAKROOM =x", "theme=dark",
		} {
			if c != "theme=dark" || !r.URL.Query().Has("plain") {
				h.Add("Set-Cookie", c)
			}
		}
		io.WriteString(w, "ok")
	}
	b := a.signedIn()
	resp := b.Fetch("GET", "/api/x")
	for name := range resp.Header {
		switch name {
		case "Cache-Control", "Content-Length", "Content-Type", "Date", "Set-Cookie":
		default:
			t.Errorf("the browser got %s: %q", name, resp.Header[name])
		}
	}
	if got := resp.Header["Set-Cookie"]; len(got) != 1 || got[0] != "theme=dark; Path=/api/" {
		t.Errorf("cookies: got %q, want the theme alone", got)
	}
	if got := resp.Header.Get("Cache-Control"); got != "private, no-store" {
		t.Errorf("Cache-Control: got %q", got)
	}
	if got := b.Fetch("GET", "/api/x?cache&plain").Header.Get("Cache-Control"); got != "max-age=60" {
		t.Errorf("existing Cache-Control: got %q", got)
	}
	if got := b.Fetch("GET", "/api/x?cache").Header.Get("Cache-Control"); got != "private, no-store" {
		t.Errorf("Cache-Control beside a cookie: got %q", got)
	}
	a.wantSession(b, "alice")
}

func TestAuthorizedPathIsSentUnchanged(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	for _, path := range []string{
		"/api/a%20b", "/api/%C3%BC?q=%2F..%2F", "/api/a;b=c", "/api/x?/public/../", "/api/%41",
	} {
		if e := echoed(t, b.Fetch("GET", path)); e.URI != path {
			t.Errorf("%s: upstream got %s", path, e.URI)
		}
	}
	before := a.echo.Calls()
	for _, path := range []string{
		"/public/../api/x", "/public/%2e%2e/api/x", "/public/..%2fapi/x", "/public/..;/api/x",
		"/public//x", "/public/%5c..%5cx", "/public/%252e%252e/x", "/public/x%00",
	} {
		u, err := url.Parse(a.url)
		if err != nil {
			t.Fatal(err)
		}
		u.Opaque = "//" + u.Host + path // as it stands, past the client's own cleaning
		req := &http.Request{Method: "GET", URL: u, Host: u.Host, Header: http.Header{"X-Csrf": {"1"}}}
		resp, err := httpClient.Transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 400 {
			t.Errorf("%s: got %d, want 400", path, resp.StatusCode)
		}
	}
	if a.echo.Calls() != before {
		t.Error("an ambiguous path reached the upstream")
	}
	if got := b.Fetch("GET", "/apix").Text; got != "the app" {
		t.Errorf("/apix is not under /api/: got %q, want the app", got)
	}
	wantProblem(t, b.Fetch("GET", "/api"), 404, "not_found")
}

func TestTRACEAndCONNECTAreRefused(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	for _, path := range []string{"/api/x", "/", "/bff/session"} {
		for _, method := range []string{"TRACE", "trace", "Connect"} {
			resp := b.Fetch(method, path)
			wantProblem(t, resp, 405, "method_not_allowed")
			wantAllow(t, resp, "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
		}
	}
}

func TestUnreachableUpstreamIs502(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	a.echo.Close()
	resp := b.Fetch("GET", "/api/x")
	wantProblem(t, resp, 502, "upstream_failed")
	if strings.Contains(resp.Text, strings.TrimPrefix(a.echo.URL, "http://")) {
		t.Errorf("the address of the upstream is visible: %s", resp.Text)
	}
}

func TestQueryIsForwardedUnchanged(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	const query = "b=1;2&a=%zz&c=3&&d"
	if got := echoed(t, b.Fetch("GET", "/api/x?"+query)).URI; got != "/api/x?"+query {
		t.Errorf("got %s", got)
	}
}

func TestUpstreamCannotSetBrokerCookies(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	a.echo.Handler = func(w http.ResponseWriter, _ *http.Request) {
		for _, line := range []string{
			"=cloakroom=x", "=__Host-x=y", "cloakroom; Path=/", "cloakroom", " cloakroom =x",
			"CLOAKROOM=x", "__Secure-x=y", "; Path=/", "wide=1; domain=example.com",
			"wide=1; Path=/;Domain = localhost", "fine=1; Path=/",
		} {
			w.Header().Add("Set-Cookie", line)
		}
	}
	got := a.signedIn().Fetch("GET", "/api/x").Header.Values("Set-Cookie")
	switch {
	case len(got) != 1:
		t.Errorf("len(got): got %d, want 1", len(got))
	case got[0] != "fine=1; Path=/api/":
		t.Errorf("got[0]: got %v, want fine=1; Path=/api/", got[0])
	}
}

// Early hints and trailers of an upstream are headers too.
func TestHintsAndTrailersCannotActOnTheOrigin(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	a.echo.Handler = func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h.Set("Link", "</x.js>; rel=preload")
		h.Set("Set-Cookie", "__Host-Http-cloakroom=x")
		w.WriteHeader(http.StatusEarlyHints)
		h.Del("Link")
		h.Del("Set-Cookie")
		h.Set("Trailer", "Set-Cookie, Clear-Site-Data, X-Checksum")
		io.WriteString(w, "body")
		h.Set("Set-Cookie", "cloakroom=x")
		h.Set("Clear-Site-Data", "*")
		h.Set("X-Checksum", "17")
		h.Set(http.TrailerPrefix+"Strict-Transport-Security", "max-age=1")
	}
	b := a.signedIn()
	var hints []int
	ctx := httptrace.WithClientTrace(t.Context(),
		&httptrace.ClientTrace{Got1xxResponse: func(code int, _ textproto.MIMEHeader) error {
			hints = append(hints, code)
			return nil
		}})
	req, err := http.NewRequestWithContext(ctx, "GET", a.url+"/api/x", nil)
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
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "body" {
		t.Errorf("got %q, %v", body, err)
	}
	if len(hints) > 0 {
		t.Errorf("hints got through: %v", hints)
	}
	switch got := resp.Trailer; {
	case len(got) != 1:
		t.Errorf("trailer: len(got): got %d, want 1", len(got))
	case got.Get("X-Checksum") != "17":
		t.Errorf("trailer: X-Checksum: got %q, want 17", got.Get("X-Checksum"))
	}
}

func TestInvalidUpgradesAreRefused(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	before := a.echo.Calls()
	upgrade := func(path string, header ...string) *bfftest.Response {
		return b.Do("GET", path, "", append([]string{"Connection", "Upgrade", "X-CSRF", "1"}, header...)...)
	}
	for _, path := range []string{"/api/x", "/public/x"} {
		wantProblem(t, upgrade(path, "Upgrade", "websocket, h2c", "Origin", a.url), 400, "upgrade_refused")
		wantProblem(t, upgrade(path, "Upgrade", "websocket"), 403, "csrf")
	}
	for _, origin := range []string{
		"", "null", "https://evil.example",
		strings.Replace(a.url, "localhost", "evil.localhost", 1), a.url + ".evil.example",
	} {
		resp := upgrade("/stream/x", "Upgrade", "websocket", "Origin", origin, "Sec-Fetch-Site", "same-origin")
		wantProblem(t, resp, 403, "csrf")
	}
	if n := a.echo.Calls() - before; n != 0 {
		t.Errorf("%d connections to the upstream, want none", n)
	}
}

func TestTokenInTheQueryIsRefused(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	for _, query := range []string{
		"access_token=x", "a=1&access_token", "a=1;access_token=x", "access%5ftoken=x",
		"Access_Token=x",
	} {
		wantProblem(t, b.Fetch("GET", "/api/x?"+query), 400, "token_in_query")
	}
	got := echoed(t, b.Fetch("GET", "/api/x?my_access_token=x&q=access_token")).Header.Get("Via")
	if got != "1.1 cloakroom" {
		t.Errorf("Via: got %q", got)
	}
}

func TestCookieOfAnOldKeyIsRenewed(t *testing.T) {
	t.Parallel()
	keyA, keyB := bytes.Repeat([]byte("a"), 32), bytes.Repeat([]byte("b"), 32)
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Sessions.Keys = [][]byte{keyB, keyA} })
	before, err := session.NewManager(session.Config{
		Store: a.store, Keys: [][]byte{keyA},
		App: session.App{Issuer: a.provider.Issuer, ClientID: a.provider.Client.ID, Origin: a.url},
		Refresh: func(context.Context, *session.Session, string) (session.RefreshResult, error) {
			return session.RefreshResult{}, errors.New("unexpected")
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	started, err := before.Start(t.Context(), session.New{
		Subject: "alice",
		Tokens:  session.Tokens{Access: "token", Issued: time.Now(), Expiry: time.Now().Add(time.Hour)},
	})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	session.NewCookie(before.Keyring(), session.CookieConfig{
		InsecureHTTP: true, Port: strings.TrimPrefix(a.url, "http://localhost:"),
	}).Write(w, started)
	a.echo.Handler = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "public, max-age=31536000")
	}
	for path, want := range map[string]string{"/api/x": "private, no-store", "/bff/session": "no-store"} {
		b := a.browser()
		b.SetCookie(w.Result().Cookies()[0])
		first := b.Fetch("GET", path)
		if first.Header.Get("Set-Cookie") == "" || first.Header.Get("Cache-Control") != want {
			t.Errorf("%s: got %v", path, first.Header)
		}
		if second := b.Fetch("GET", path); second.StatusCode != 200 || second.Header.Get("Set-Cookie") != "" {
			t.Errorf("%s with the new cookie: got %d %v", path, second.StatusCode, second.Header)
		}
	}
}

func TestLateResponseOfReplacedSessionKeepsTheNewOne(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	arrived := make(chan struct{})
	a.echo.Handler = func(_ http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done()
	}
	b := a.signedIn()
	late := make(chan *bfftest.Response)
	go func() { late <- b.Fetch("GET", "/api/slow") }()
	<-arrived
	time.Sleep(600 * time.Millisecond) // until the end of its session is watched
	if resp := b.SignIn("alice", ""); resp.StatusCode != 303 {
		t.Fatalf("second login: got %d, want 303", resp.StatusCode)
	}
	resp := <-late
	wantProblem(t, resp, 401, "not_signed_in")
	if got := resp.Header.Values("Set-Cookie"); len(got) > 0 {
		t.Errorf("the response changes cookies: %q", got)
	}
	a.wantSession(b, "alice")
}

func TestPanicIsLoggedAndEndsOneRequest(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.Frontend = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("a bug") })
	})
	if resp, err := httpClient.Get(a.url + "/"); err == nil {
		resp.Body.Close()
		t.Errorf("got %d, want the connection closed", resp.StatusCode)
	}
	lines := a.logs.lines(t, "panic")
	switch {
	case len(lines) != 1:
		t.Errorf("len(lines): got %d, want 1", len(lines))
	case lines[0]["cause"] != "a bug":
		t.Errorf("cause: got %v, want a bug", lines[0]["cause"])
	case !strings.Contains(fmt.Sprint(lines[0]["stack"]), "proxy_test.go"):
		t.Errorf("stack: got %q, want it to contain proxy_test.go", fmt.Sprint(lines[0]["stack"]))
	}
}

func TestEventsAreFlushed(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	next := make(chan string)
	a.echo.Handler = func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.(http.Flusher).Flush()
		for event := range next {
			fmt.Fprintf(w, "data: %s\n\n", event)
			w.(http.Flusher).Flush()
		}
	}
	b := a.signedIn()
	resp := b.Open("/stream/x")
	defer resp.Body.Close()
	defer close(next)
	lines := bufio.NewReader(resp.Body)
	for i := range 3 {
		next <- fmt.Sprint(i)
		if line, err := lines.ReadString('\n'); err != nil || line != fmt.Sprintf("data: %d\n", i) {
			t.Fatalf("event %d: got %q, %v", i, line, err)
		}
		lines.ReadString('\n')
	}
}

func TestEachRequestIsLoggedOnce(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Routes[0].CSRF = "header" })
	b := a.signedIn()
	before := len(a.logs.lines(t, "request"))
	b.Fetch("GET", "/api/orders?secret=in-the-query")
	b.Fetch("GET", "/api/orders", "X-CSRF", "")
	lines := a.logs.lines(t, "request")[before:]
	if len(lines) != 2 {
		t.Fatalf("%d lines for 2 requests", len(lines))
	}
	l := lines[0]
	if l["status"] != 200.0 || l["path"] != "/api/orders" || l["level"] != "INFO" ||
		l["session"] == nil || l["method"] != "GET" {
		t.Errorf("got %v", l)
	}
	switch l := lines[1]; {
	case l["status"] != 403.0:
		t.Errorf("status: got %v, want 403.0", l["status"])
	case l["level"] != "WARN":
		t.Errorf("level: got %v, want WARN", l["level"])
	case l["err"] != "csrf: the header X-CSRF is missing":
		t.Errorf("err: got %q, want a missing header", l["err"])
	}
	if strings.Contains(a.logs.String(), "in-the-query") {
		t.Error("a query is in the log, want only paths")
	}
}

func TestRequestIDIsTheTraceIDOfATrustedProxy(t *testing.T) {
	t.Parallel()
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	})
	b := a.signedIn()
	for parent, want := range map[string]bool{
		"00-" + trace + "-00f067aa0ba902b7-01":                   true,
		"cc-" + trace + "-00f067aa0ba902b7-01-more":              true,
		"00-" + trace + "-00f067aa0ba902b7-01-more":              false,
		"ff-" + trace + "-00f067aa0ba902b7-01":                   false,
		"00-" + trace + "-0000000000000000-01":                   false,
		"00-" + strings.Repeat("0", 32) + "-00f067aa0ba902b7-01": false,
		"00-" + strings.ToUpper(trace) + "-00f067aa0ba902b7-01":  false,
		"00-" + trace[:31] + "\"-00f067aa0ba902b7-01":            false,
		"nonsense": false,
		"":         false,
	} {
		got := echoed(t, b.Fetch("GET", "/api/x", "Traceparent", parent, "X-Request-Id", "<forged>")).Header
		if id := got.Values("X-Request-Id"); len(id) != 1 || (id[0] == trace) != want || id[0] == "<forged>" {
			t.Errorf("traceparent %q: X-Request-Id: got %q", parent, id)
		}
		if got.Get("Traceparent") != parent {
			t.Errorf("traceparent %q: the upstream got %q", parent, got.Get("Traceparent"))
		}
	}
	a.echo.Close()
	resp := b.Fetch("GET", "/api/x", "Traceparent", "00-"+trace+"-00f067aa0ba902b7-01")
	wantProblem(t, resp, 502, "upstream_failed")
	if !strings.Contains(resp.Text, `"request_id":"`+trace+`"`) {
		t.Errorf("the problem does not name the trace: %s", resp.Text)
	}
}
