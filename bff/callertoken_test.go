package bff_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/cloakroom-bff/cloakroom/bearer"
	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

// newGateway starts a broker with the route /orders/. It accepts caller tokens
// with the audience api and the scope orders:read.
func newGateway(t *testing.T, edit func(*app, *bff.Config)) *app {
	t.Helper()
	return newApp(t, func(a *app, cfg *bff.Config) {
		verifier, err := bearer.NewVerifier(bearer.Config{
			Issuer: a.provider.Issuer, Audience: "api", Origin: a.url, Logger: cfg.Logger,
		})
		if err != nil {
			t.Fatal(err)
		}
		cfg.Routes = append(cfg.Routes, bff.Route{
			Path: "/orders/", Upstream: []string{a.echo.URL}, Token: "user",
			Headers: map[string]string{"X-User": "sub"},
			AcceptBearer: func(next http.Handler) http.Handler {
				return verifier.Handler(bearer.Require("orders:read")(next))
			},
		})
		if edit != nil {
			edit(a, cfg)
		}
	})
}

// machineToken returns a token for client credentials. It is bound to the key
// of proof unless that is empty.
func (a *app) machineToken(scope, proof string) string {
	a.t.Helper()
	form := url.Values{"grant_type": {"client_credentials"}, "scope": {scope}}
	req, err := http.NewRequestWithContext(a.t.Context(), "POST", a.provider.Issuer+"/token",
		strings.NewReader(form.Encode()))
	if err != nil {
		a.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth(url.QueryEscape(a.provider.Client.ID), url.QueryEscape(a.provider.Client.Secret))
	if proof != "" {
		req.Header.Set("DPoP", proof)
	}
	resp, err := httpClient.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer resp.Body.Close()
	var response struct {
		Token string `json:"access_token"`
	}
	body, err := io.ReadAll(resp.Body)
	if err == nil {
		err = json.Unmarshal(body, &response)
	}
	if err != nil || response.Token == "" {
		a.t.Fatalf("no token for the machine: %v %s", err, body)
	}
	return response.Token
}

// call sends a request as a machine does, with these headers only: name, value,
// name, value.
func (a *app) call(path string, header ...string) *bfftest.Response {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.t.Context(), "GET", a.url+path, nil)
	if err != nil {
		a.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := httpClient.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	a.provider.CheckLeaks(a.t, "a response", string(text))
	return &bfftest.Response{Response: resp, Text: string(text)}
}

func TestRouteAcceptsACallerToken(t *testing.T) {
	t.Parallel()
	a := newGateway(t, nil)
	token := a.machineToken("orders:read", "")
	refreshes, calls := a.provider.Stats(), a.echo.Calls()
	for range 3 {
		resp := a.call("/orders/7", "Authorization", "bearer "+token, "X-User", "root")
		got := echoed(t, resp)
		if resp.StatusCode != 200 || got.URI != "/orders/7" ||
			got.Header.Get("Authorization") != "bearer "+brokertest.Digest(token) {
			t.Errorf("got %d, the upstream got %s %v", resp.StatusCode, got.URI, got.Header["Authorization"])
		}
		if user := got.Header.Values("X-User"); len(user) > 0 {
			t.Errorf("the upstream got X-User %q, want none", user)
		}
		if len(resp.Header.Values("Set-Cookie")) > 0 || resp.Header.Get("Cache-Control") != "private, no-store" {
			t.Errorf("response headers: got %v, want no Set-Cookie and private, no-store", resp.Header)
		}
	}
	after := a.provider.Stats()
	if after.Tokens["client_credentials"] != refreshes.Tokens["client_credentials"] {
		t.Errorf("client_credentials: got %v, want %v", after.Tokens["client_credentials"],
			refreshes.Tokens["client_credentials"])
	}
	if a.echo.Calls()-calls != 3 {
		t.Errorf("a.echo.Calls()-calls: got %v, want 3", a.echo.Calls()-calls)
	}
	resp := a.browser().Do("POST", "/orders/", strings.Repeat("x", 100<<10), "Authorization", "Bearer "+token)
	if resp.StatusCode != 200 {
		t.Errorf("with a body: status: got %d, want 200", resp.StatusCode)
	}
	if !strings.Contains(resp.Text, "xxxx") {
		t.Errorf("with a body: body: got %q, want it to contain xxxx", resp.Text)
	}
}

func TestInvalidCallerTokensAreRejected(t *testing.T) {
	t.Parallel()
	a := newGateway(t, nil)
	good := a.machineToken("orders:read", "")
	edited := func(edit func(header, claims map[string]any)) string {
		a.recordCalls(devidp.Hooks{EditAccessToken: edit})
		defer a.provider.Behave()
		return a.machineToken("orders:read", "")
	}
	claim := func(name string, value any) string {
		return edited(func(_, claims map[string]any) { claims[name] = value })
	}
	parts := strings.Split(good, ".")
	var user, idToken string
	a.recordCalls(devidp.Hooks{EditTokenResponse: func(_ string, _ int, body map[string]any) {
		user, _ = body["access_token"].(string)
		idToken, _ = body["id_token"].(string)
	}})
	a.signedIn()
	a.provider.Behave()
	for name, test := range map[string]struct {
		path      string
		header    []string
		status    int
		challenge string // a part of WWW-Authenticate
	}{
		"for another API": {
			header:    []string{"Authorization", "Bearer " + claim("aud", "other")},
			status:    401,
			challenge: `error="invalid_token"`,
		},
		"for more than one, none of it us": {
			header:    []string{"Authorization", "Bearer " + claim("aud", []string{"api2", "API"})},
			status:    401,
			challenge: `error="invalid_token"`,
		},
		"of another issuer": {
			header:    []string{"Authorization", "Bearer " + claim("iss", "https://id.example")},
			status:    401,
			challenge: `error="invalid_token"`,
		},
		"expired": {
			header:    []string{"Authorization", "Bearer " + claim("exp", time.Now().Add(-5*time.Minute).Unix())},
			status:    401,
			challenge: `error="invalid_token"`,
		},
		"of the type of an ID token": {
			header: []string{
				"Authorization",
				"Bearer " + edited(func(header, _ map[string]any) { header["typ"] = "JWT" }),
			},
			status:    401,
			challenge: `error="invalid_token"`,
		},
		"bound to a key, without a proof": {
			header:    []string{"Authorization", "Bearer " + claim("cnf", map[string]any{"jkt": "x"})},
			status:    401,
			challenge: `error="invalid_token"`,
		},
		"with a signature of its own": {
			header: []string{
				"Authorization",
				"Bearer " + parts[0] + "." + parts[1] + "." + base64.RawURLEncoding.EncodeToString(make([]byte, 256)),
			},
			status:    401,
			challenge: `error="invalid_token"`,
		},
		"unsigned": {
			header:    []string{"Authorization", "Bearer eyJhbGciOiJub25lIiwidHlwIjoiYXQrand0In0." + parts[1] + "."},
			status:    401,
			challenge: `error="invalid_token"`,
		},
		"junk": {
			header:    []string{"Authorization", "Bearer junk"},
			status:    401,
			challenge: `error="invalid_token"`,
		},
		"nothing": {
			header:    []string{"Authorization", "Bearer"},
			status:    400,
			challenge: `error="invalid_request"`,
		},
		"two words": {
			header:    []string{"Authorization", "Bearer " + good + " x"},
			status:    400,
			challenge: `error="invalid_request"`,
		},
		"twice": {
			header:    []string{"Authorization", "Bearer " + good, "Authorization", "Bearer " + good},
			status:    400,
			challenge: `error="invalid_request"`,
		},
		"beside another scheme": {
			header:    []string{"Authorization", "Basic eDp5", "Authorization", "Bearer " + good},
			status:    400,
			challenge: `error="invalid_request"`,
		},
		"also in the query": {
			path:   "/orders/7?access_token=" + good,
			header: []string{"Authorization", "Bearer " + good},
			status: 400,
		},
		"also in the query, in disguise": {
			path:   "/orders/7?Access%5fToken=x",
			header: []string{"Authorization", "Bearer " + good},
			status: 400,
		},
		"without the scope": {
			header:    []string{"Authorization", "Bearer " + a.machineToken("orders:write", "")},
			status:    403,
			challenge: `scope="orders:read"`,
		},
		"without the scope, but longer": {
			header:    []string{"Authorization", "Bearer " + claim("scope", "orders:readwrite")},
			status:    403,
			challenge: `error="insufficient_scope"`,
		},
		"a user's, without the scope": {
			header:    []string{"Authorization", "Bearer " + user},
			status:    403,
			challenge: `error="insufficient_scope"`,
		},
		"an ID token": {
			header:    []string{"Authorization", "Bearer " + idToken},
			status:    401,
			challenge: `error="invalid_token"`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			before, logged := a.echo.Calls(), len(a.logs.lines(t, "request"))
			path := test.path
			if path == "" {
				path = "/orders/7"
			}
			resp := a.call(path, test.header...)
			if resp.StatusCode != test.status ||
				!strings.Contains(resp.Header.Get("WWW-Authenticate"), test.challenge) {
				t.Errorf("got %d %v\n%s", resp.StatusCode, resp.Header, resp.Text)
			}
			got := resp.Header.Get("Content-Type")
			if got != "application/problem+json" || resp.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("Content-Type: got %s, want a problem with no-store: %v", got, resp.Header)
			}
			if a.echo.Calls() != before {
				t.Error("the upstream got a request, want none")
			}
			waitFor(t, "the request is logged", func() bool { return len(a.logs.lines(t, "request")) > logged })
			line := a.logs.lines(t, "request")[logged]
			if line["status"] != float64(test.status) {
				t.Errorf("logged: status: got %v, want %v", line["status"], float64(test.status))
			}
			if !strings.Contains(fmt.Sprint(line["err"]), test.challenge) {
				t.Errorf("logged: err: got %q, want it to contain %q", fmt.Sprint(line["err"]), test.challenge)
			}
			if line["err"] == nil {
				t.Error("logged: err is missing")
			}
		})
	}
}

func TestSessionAndCallerTokenTogetherAreRefused(t *testing.T) {
	t.Parallel()
	a := newGateway(t, nil)
	token := a.machineToken("orders:read", "")
	b := a.signedIn()
	cookie := b.Cookies()[0]
	before := a.echo.Calls()
	for _, header := range [][]string{
		{"Authorization", "Bearer " + token},
		{"Authorization", "Bearer junk"},
		{"Authorization", "dpop x"},
		{"Authorization", "Basic eDp5", "Authorization", "Bearer " + token},
	} {
		wantProblem(t, b.Fetch("GET", "/orders/7", header...), 400, "two_credentials")
		wantProblem(t, b.Do("GET", "/orders/7", "", header...), 400, "two_credentials")
		wantProblem(t, a.call("/orders/7", append(header, "Cookie", cookie.Name+"=of-nobody")...),
			400, "two_credentials")
	}
	if a.echo.Calls() != before {
		t.Error("the upstream got a request, want none")
	}
	a.wantSession(b, "alice")
	if resp := b.Fetch("GET", "/orders/7"); resp.StatusCode != 200 || echoed(t, resp).Header.Get("X-User") != "alice" {
		t.Errorf("the session alone: got %d", resp.StatusCode)
	}
	// only a request with a token needs no CSRF header
	wantProblem(t, b.Fetch("GET", "/orders/7", "X-CSRF", "", "Sec-Fetch-Site", ""), 403, "csrf")
	got := echoed(t, a.call("/orders/7", "Authorization", "Bearer "+token, "Cookie", "theme=dark"))
	if got.Header.Get("Cookie") != "theme=dark" {
		t.Errorf("another cookie: the upstream got %q", got.Header.Get("Cookie"))
	}
}

func TestCrossSiteRequestWithATokenIsRefused(t *testing.T) {
	t.Parallel()
	a := newGateway(t, nil)
	token := a.machineToken("orders:read", "")
	before := a.echo.Calls()
	for _, header := range [][]string{
		{"Origin", "https://evil.example"}, {"Origin", "null"}, {"Sec-Fetch-Site", "cross-site"},
		{"Sec-Fetch-Site", "same-site"},
		{"Sec-Fetch-Site", "none", "Sec-Fetch-Site", "none"},
		{"Sec-Fetch-Site", "same-origin", "Origin", "https://evil.example"},
	} {
		wantProblem(t, a.call("/orders/7", append(header, "Authorization", "Bearer "+token)...), 403, "csrf")
	}
	preflight := a.browser().Do("OPTIONS", "/orders/7", "", "Origin", "https://evil.example",
		"Access-Control-Request-Method", "GET", "Access-Control-Request-Headers", "authorization")
	if preflight.StatusCode < 400 || preflight.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("a preflight: got %d %v", preflight.StatusCode, preflight.Header)
	}
	if a.echo.Calls() != before {
		t.Error("the upstream got a request, want none")
	}
}

func TestOtherRoutesRejectCallerTokens(t *testing.T) {
	t.Parallel()
	a := newGateway(t, nil)
	token := "Bearer " + a.machineToken("orders:read", "")
	wantProblem(t, a.browser().Fetch("GET", "/api/x", "Authorization", token), 401, "not_signed_in")
	wantProblem(t, a.call("/api/x", "Authorization", token), 403, "csrf")
	got := echoed(t, a.browser().Fetch("GET", "/public/x", "Authorization", token)).Header.Values("Authorization")
	if len(got) > 0 {
		t.Errorf("a route without token: the upstream got Authorization %q, want none", got)
	}
	own := a.signedIn().Fetch("GET", "/api/x", "Authorization", token)
	if got := bearerOf(t, a, own); got == brokertest.Digest(strings.TrimPrefix(token, "Bearer ")) {
		t.Error("the upstream got the caller's token, want the session's")
	}
	body := a.browser().Fetch("GET", "/bff/session", "Authorization", token).Text
	if strings.TrimSpace(body) != `{"authenticated":false}` {
		t.Errorf("session: got %s, want an unauthenticated one", body)
	}
	for _, header := range [][]string{
		nil, {"Authorization", "Basic eDp5"}, {"Authorization", ""}, {"X-Authorization", token},
		{"Proxy-Authorization", token},
	} {
		wantProblem(t, a.browser().Fetch("GET", "/orders/7", header...), 401, "not_signed_in")
	}
}

func TestRejectionOfACallerTokenIsPassedOn(t *testing.T) {
	t.Parallel()
	echo, rejected := newRejectingUpstream(t, 100)
	a := newGateway(t, func(_ *app, cfg *bff.Config) { cfg.Routes[3].Upstream = []string{echo.URL} })
	resp := a.call("/orders/7", "Authorization", "Bearer "+a.machineToken("orders:read", ""))
	if resp.StatusCode != 401 ||
		!strings.Contains(resp.Header.Get("WWW-Authenticate"), "invalid_token") || rejected.Load() != 1 {
		t.Errorf("got %d %v after %d requests", resp.StatusCode, resp.Header, rejected.Load())
	}
}

func TestCallerTokenWithoutIssuerKeysIs503(t *testing.T) {
	t.Parallel()
	a := newGateway(t, nil)
	token := a.machineToken("orders:read", "")
	a.provider.Misbehave(t, brokertest.ProviderDown)
	resp := a.call("/orders/7", "Authorization", "Bearer "+token)
	if resp.StatusCode != 503 {
		t.Errorf("status: got %d, want 503", resp.StatusCode)
	}
	if resp.Header.Get("Retry-After") == "" {
		t.Error("Retry-After is missing")
	}
	if a.echo.Calls() > 0 {
		t.Errorf("requests to echo: got %d, want none", a.echo.Calls())
	}
	if !strings.Contains(a.logs.String(), "own_token: access tokens cannot be verified now") {
		t.Error("the log line of the request has no cause")
	}
}

func TestBoundCallerTokenIsForwardedWithItsProof(t *testing.T) {
	t.Parallel()
	a := newGateway(t, nil)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	token := a.machineToken("orders:read", proofBy(t, key, "POST", a.provider.Issuer+"/token", ""))
	proof := proofBy(t, key, "GET", a.url+"/orders/7", token)
	got := echoed(t, a.call("/orders/7", "Authorization", "DPoP "+token, "DPoP", proof))
	if got.Header.Get("Authorization") != "DPoP "+brokertest.Digest(token) || got.Header.Get("DPoP") != proof {
		t.Errorf("the upstream got %v", got.Header)
	}
	for name, header := range map[string][]string{
		"as a bearer token": {"Authorization", "Bearer " + token},
		"without a proof":   {"Authorization", "DPoP " + token},
		"with two":          {"Authorization", "DPoP " + token, "DPoP", proof, "DPoP", proof},
		"for another method": {
			"Authorization", "DPoP " + token, "DPoP",
			proofBy(t, key, "POST", a.url+"/orders/7", token),
		},
		"for another address": {
			"Authorization", "DPoP " + token, "DPoP",
			proofBy(t, key, "GET", a.url+"/orders/8", token),
		},
	} {
		if resp := a.call("/orders/7", header...); resp.StatusCode != 401 {
			t.Errorf("%s: got %d, want 401", name, resp.StatusCode)
		}
	}
	if n := a.echo.Calls(); n != 1 {
		t.Errorf("%d requests to the upstream", n)
	}
}

// proofBy returns a DPoP proof (RFC 9449 4.2).
func proofBy(t *testing.T, key *ecdsa.PrivateKey, method, address, token string) string {
	t.Helper()
	claims := map[string]any{"jti": rand.Text(), "htm": method, "htu": address, "iat": time.Now().Unix()}
	if token != "" {
		sum := sha256.Sum256([]byte(token))
		claims["ath"] = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	options := new(jose.SignerOptions).WithType("dpop+jwt")
	options.EmbedJWK = true
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, options)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	compact, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return compact
}

func TestInvalidRoutesWithAcceptBearer(t *testing.T) {
	t.Parallel()
	accept := func(next http.Handler) http.Handler { return next }
	for want, route := range map[string]bff.Route{
		"Routes[0].AcceptBearer: it has no use with token none": {
			Path:         "/x/",
			Upstream:     []string{"http://127.0.0.1:1"},
			Token:        "none",
			AcceptBearer: accept,
		},
		"Routes[0].AcceptBearer: it excludes require": {
			Path:         "/x/",
			Upstream:     []string{"http://127.0.0.1:1"},
			Token:        "user",
			AcceptBearer: accept,
			Require:      bff.Require{Scopes: []string{"x"}},
		},
	} {
		_, err := bff.New(bff.Config{Routes: []bff.Route{route}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
