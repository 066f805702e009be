package bff_test

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/bff/oidc"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/session"
)

// proven is a request whose DPoP proof was checked (RFC 9449 4.3), except for
// its nonce.
type proven struct {
	jkt, jti, nonce string
	token           string // digest
}

// checkProof checks the proof of a request for a URL as a resource server does.
func checkProof(r *http.Request, target string) (proven, error) {
	proofs, credentials := r.Header.Values("DPoP"), r.Header.Values("Authorization")
	if len(proofs) != 1 || len(credentials) != 1 {
		return proven{}, fmt.Errorf("%d proofs, %d Authorization", len(proofs), len(credentials))
	}
	scheme, token, _ := strings.Cut(credentials[0], " ")
	if scheme != "DPoP" {
		return proven{}, fmt.Errorf("scheme: got %s", scheme)
	}
	jws, err := jose.ParseSignedCompact(proofs[0], []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return proven{}, err
	}
	header := jws.Signatures[0].Protected
	if header.ExtraHeaders["typ"] != "dpop+jwt" || header.JSONWebKey == nil || !header.JSONWebKey.IsPublic() {
		return proven{}, fmt.Errorf("header: got %v", header)
	}
	payload, err := jws.Verify(header.JSONWebKey)
	if err != nil {
		return proven{}, err
	}
	var claims struct{ JTI, HTM, HTU, ATH, Nonce string }
	var issued struct{ IAT float64 }
	if err := json.Unmarshal(payload, &claims); err != nil {
		return proven{}, err
	}
	if err := json.Unmarshal(payload, &issued); err != nil {
		return proven{}, err
	}
	sum := sha256.Sum256([]byte(token))
	age := time.Since(time.Unix(int64(issued.IAT), 0))
	if claims.HTM != r.Method || claims.HTU != target ||
		claims.ATH != base64.RawURLEncoding.EncodeToString(sum[:]) || age > time.Minute || age < -time.Second {
		return proven{}, fmt.Errorf("the claims are %s, want them for %s %s", payload, r.Method, target)
	}
	thumbprint, err := header.JSONWebKey.Thumbprint(crypto.SHA256)
	if err != nil {
		return proven{}, err
	}
	b := proven{base64.RawURLEncoding.EncodeToString(thumbprint), claims.JTI, claims.Nonce, brokertest.Digest(token)}
	var confirmation struct{ CNF struct{ JKT string } }
	encoded, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err != nil {
		return proven{}, err
	}
	if err := json.Unmarshal(encoded, &confirmation); err != nil || confirmation.CNF.JKT != b.jkt {
		return proven{}, fmt.Errorf("the token is bound to %q, the proof is by %q", confirmation.CNF.JKT, b.jkt)
	}
	return b, nil
}

// boundAPI is an upstream that requires proofs, and a nonce if one is set.
type boundAPI struct {
	*httptest.Server
	mu    sync.Mutex
	nonce string
	got   []proven
	body  string
}

func newBoundAPI(t *testing.T) *boundAPI {
	a := new(boundAPI)
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		b, err := checkProof(r, a.URL+r.URL.EscapedPath())
		a.mu.Lock()
		defer a.mu.Unlock()
		switch {
		case err != nil:
			w.Header().Set("WWW-Authenticate", `DPoP error="invalid_dpop_proof"`)
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		case slices.ContainsFunc(a.got, func(other proven) bool { return other.jti == b.jti }):
			http.Error(w, "this proof was here before", http.StatusUnauthorized)
			return
		}
		a.got = append(a.got, b)
		if a.nonce != "" {
			w.Header().Set("DPoP-Nonce", a.nonce)
			if b.nonce != a.nonce {
				w.Header().Set("WWW-Authenticate", `DPoP error="use_dpop_nonce", error_description="again"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
		}
		a.body = string(body)
		io.WriteString(w, "ok")
	}))
	t.Cleanup(a.Close)
	return a
}

func (a *boundAPI) want(nonce string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.nonce, a.got = nonce, nil
}

func (a *boundAPI) requests() []proven {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.got)
}

// newBoundApp starts a broker whose tokens are bound to keys, with a provider
// that requires nonces.
func newBoundApp(t *testing.T, edit func(*app, *bff.Config)) (*app, *boundAPI) {
	t.Helper()
	api := newBoundAPI(t)
	return newAppWith(t, func(c *devidp.Config) {
		c.RequireDPoPNonce, c.Clients[0].DPoPBound = true, true
	}, func(a *app, cfg *bff.Config) {
		cfg.Provider.SenderConstraint = "dpop"
		cfg.Routes = []bff.Route{
			{Path: "/api/", Upstream: []string{api.URL}, Token: "user"},
			{Path: "/v1/", Upstream: []string{api.URL + "/orders"}, StripPrefix: true, Token: "user"},
			{Path: "/machines/", Upstream: []string{api.URL}, Token: "client"},
			{Path: "/none/", Upstream: []string{a.echo.URL}, Token: "none"},
		}
		if edit != nil {
			edit(a, cfg)
		}
	}), api
}

func wantOK(t *testing.T, a *bfftest.Response) {
	t.Helper()
	if a.StatusCode != 200 {
		t.Errorf("%s %s: got %d %v, want 200 %s", a.Request.Method, a.Request.URL.Path, a.StatusCode, a.Header, a.Text)
	}
}

func TestTokensAreBoundToTheSessionKey(t *testing.T) {
	t.Parallel()
	a, api := newBoundApp(t, nil)
	b := a.signedIn()
	wantOK(t, b.Fetch("GET", "/api/a%20b?q=1", "DPoP", "forged", "Authorization", "DPoP forged"))
	wantOK(t, b.Fetch("PUT", "/v1/a;b"))
	wantOK(t, b.Fetch("POST", "/bff/session/refresh"))
	wantOK(t, b.Fetch("GET", "/api/x"))
	other := a.signedIn()
	wantOK(t, other.Fetch("GET", "/api/x"))
	got := api.requests()
	if len(got) != 4 {
		t.Fatalf("the upstream got %v", got)
	}
	switch {
	case got[0].jkt != got[1].jkt:
		t.Errorf("one session, a refresh before the third: got[0].jkt: got %v, want %v", got[0].jkt, got[1].jkt)
	case got[1].jkt != got[2].jkt:
		t.Errorf("one session, a refresh before the third: got[1].jkt: got %v, want %v", got[1].jkt, got[2].jkt)
	case got[1].token == got[2].token:
		t.Errorf("one session, a refresh before the third: got[1].token and got[2].token are both %v", got[1].token)
	}
	if got[3].jkt == got[0].jkt {
		t.Error("two sessions share a key")
	}
	if resp := echoed(t, b.Fetch("GET", "/none/x", "DPoP", "forged")); resp.Header.Get("DPoP") != "" {
		t.Error("a route without token got a proof")
	}
}

func TestClientTokenIsBoundByDPoP(t *testing.T) {
	t.Parallel()
	a, api := newBoundApp(t, nil)
	b := a.browser()
	wantOK(t, b.Fetch("GET", "/machines/x"))
	wantOK(t, b.Fetch("GET", "/machines/y"))
	switch got := api.requests(); {
	case len(got) != 2:
		t.Errorf("len(got): got %d, want 2", len(got))
	case got[0].jkt != got[1].jkt:
		t.Errorf("got[0].jkt: got %v, want %v", got[0].jkt, got[1].jkt)
	case got[0].token != got[1].token:
		t.Errorf("got[0].token: got %v, want %v", got[0].token, got[1].token)
	}
}

// The provider requires a nonce: the first request without one is retried once,
// and later requests have it (RFC 9449 8, 8.2).
func TestProviderDPoPNonceIsUsed(t *testing.T) {
	t.Parallel()
	a, api := newBoundApp(t, nil)
	c := a.recordCalls(devidp.Hooks{})
	b := a.signedIn()
	nonceIn := func(call call) any {
		_, claims := unverified(t, call.header.Get("DPoP"))
		return claims["nonce"]
	}
	pushed := c.to("/par")
	switch {
	case len(pushed) != 2:
		t.Errorf("len(pushed): got %d, want 2", len(pushed))
	case nonceIn(pushed[0]) != nil:
		t.Errorf("nonceIn(pushed[0]): got %v, want none", nonceIn(pushed[0]))
	case nonceIn(pushed[1]) == nil:
		t.Error("nonceIn(pushed[1]) is missing")
	case pushed[0].form.Get("state") != pushed[1].form.Get("state"):
		t.Errorf("state: got %q, want %q", pushed[0].form.Get("state"), pushed[1].form.Get("state"))
	}
	if redeemed := c.to("/token"); len(redeemed) != 1 || nonceIn(redeemed[0]) == nil {
		t.Errorf("the code was sent %d times, want once, with the nonce of the push", len(redeemed))
	}
	a.provider.RotateDPoPNonce()
	wantOK(t, b.Fetch("POST", "/bff/session/refresh"))
	wantOK(t, b.Fetch("POST", "/bff/session/refresh"))
	all := c.to("/token")
	if len(all) != 4 || nonceIn(all[1]) == nonceIn(all[2]) || nonceIn(all[2]) != nonceIn(all[3]) {
		t.Errorf("%d token requests for a login and two refreshes with a new nonce between, want 4", len(all))
	}
	seen := make(map[any]bool)
	for _, call := range append(c.to("/par"), c.to("/token")...) {
		header, claims := unverified(t, call.header.Get("DPoP"))
		if header["typ"] != "dpop+jwt" || header["alg"] != "ES256" || claims["ath"] != nil ||
			claims["htm"] != "POST" || claims["htu"] != a.provider.Issuer+call.path || seen[claims["jti"]] {
			t.Errorf("%s: header %v, claims %v", call.path, header, claims)
		}
		if jwk := header["jwk"].(map[string]any); len(jwk) != 4 || jwk["d"] != nil {
			t.Errorf("jwk: got %v", jwk)
		}
		seen[claims["jti"]] = true
	}
	wantOK(t, b.Fetch("GET", "/api/x"))
	if got := api.requests(); got[0].nonce != "" {
		t.Errorf("the upstream got the provider's nonce %q", got[0].nonce)
	}
	if n := a.provider.Reuses(); n > 0 {
		t.Errorf("%d refresh tokens were used twice", n)
	}
}

// A nonce is used for the server that sent it, also if a provider has several
// (RFC 9449 9).
func TestDPoPNoncesAreKeptPerServer(t *testing.T) {
	t.Parallel()
	var a *app
	a, _ = newBoundApp(t, func(a *app, cfg *bff.Config) {
		cfg.Provider.UserInfo = true
		a.provider.Misbehave(t, brokertest.Discovery("", func(m map[string]any) {
			m["userinfo_endpoint"] = strings.Replace(m["userinfo_endpoint"].(string), "127.0.0.1", "localhost", 1)
		}))
	})
	a.waitReady()
	var nonces []any
	a.recordCalls(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !strings.HasSuffix(r.URL.Path, "/userinfo") {
			next.ServeHTTP(w, r)
			return
		}
		_, claims := unverified(t, r.Header.Get("DPoP"))
		nonces = append(nonces, claims["nonce"])
		w.Header().Set("DPoP-Nonce", "of-userinfo")
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"sub":"alice"}`)
	}})
	a.signedIn()
	a.signedIn()
	if len(nonces) != 2 || nonces[0] != nil || nonces[1] != "of-userinfo" {
		t.Errorf("userinfo got the nonces %v", nonces)
	}
}

// A provider that demands another nonce each time is a transient error. The
// request is retried once.
func TestDPoPNonceIsRetriedOnce(t *testing.T) {
	t.Parallel()
	a, _ := newBoundApp(t, nil)
	b := a.signedIn()
	c := a.recordCalls(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !strings.HasSuffix(r.URL.Path, "/token") {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("DPoP-Nonce", fmt.Sprint(time.Now().UnixNano()))
		w.WriteHeader(400)
		io.WriteString(w, `{"error":"use_dpop_nonce"}`)
	}})
	wantProblem(t, b.Fetch("POST", "/bff/session/refresh"), 503, "provider_unavailable")
	if n := len(c.to("/token")); n != 2 {
		t.Errorf("%d requests, want 2", n)
	}
	a.provider.Behave()
	a.wantSession(b, "alice")
}

// RFC 9449 8.2: a nonce in a successful response is used from the next request
// on.
func TestDPoPNonceOfASuccessIsUsedNext(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Provider.SenderConstraint = "dpop" })
	given := 0
	c := a.recordCalls(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, "/token") {
			given++
			w.Header().Set("DPoP-Nonce", fmt.Sprint("nonce-", given))
		}
		next.ServeHTTP(w, r)
	}})
	b := a.signedIn()
	for range 2 {
		wantOK(t, b.Fetch("POST", "/bff/session/refresh"))
	}
	var got []any
	for _, call := range c.to("/token") {
		_, claims := unverified(t, call.header.Get("DPoP"))
		got = append(got, claims["nonce"])
	}
	if fmt.Sprint(got) != "[<nil> nonce-1 nonce-2]" {
		t.Errorf("nonces: got %v, want none, nonce-1, nonce-2", got)
	}
}

// An upstream requires its own nonce: the request is retried with it, body
// included (RFC 9449 9).
func TestUpstreamDPoPNonceIsUsed(t *testing.T) {
	t.Parallel()
	a, api := newBoundApp(t, nil)
	c := a.recordCalls(devidp.Hooks{})
	b := a.signedIn()
	api.want("upstream-1")
	resp := b.Do("POST", "/api/x", "the body", "X-CSRF", "1")
	wantOK(t, resp)
	if api.body != "the body" || resp.Header.Get("DPoP-Nonce") != "" {
		t.Errorf("body: got %q; response headers: %v", api.body, resp.Header)
	}
	wantOK(t, b.Fetch("GET", "/api/x"))
	wantOK(t, b.Fetch("GET", "/v1/x"))
	got := api.requests()
	switch {
	case len(got) != 5:
		t.Errorf("len(got): got %d, want 5", len(got))
	case got[0].nonce != "":
		t.Errorf("got[0].nonce: got %v, want none", got[0].nonce)
	case got[1].nonce != "upstream-1":
		t.Errorf("got[1].nonce: got %v, want upstream-1", got[1].nonce)
	case got[2].nonce != "upstream-1":
		t.Errorf("got[2].nonce: got %v, want upstream-1", got[2].nonce)
	case got[4].nonce != "upstream-1":
		t.Errorf("got[4].nonce: got %v, want upstream-1", got[4].nonce)
	}
	api.want("upstream-2")
	wantOK(t, b.Fetch("GET", "/api/x"))
	wantOK(t, b.Fetch("POST", "/bff/session/refresh"))
	for _, call := range c.to("/token") {
		_, claims := unverified(t, call.header.Get("DPoP"))
		if strings.HasPrefix(fmt.Sprint(claims["nonce"]), "upstream") {
			t.Error("the provider got the upstream's nonce")
		}
	}
	if n := len(c.to("/token")); n != 2 {
		t.Errorf("%d token requests, want 2: a nonce causes no refresh", n)
	}
	api.want("upstream-3")
	large := strings.Repeat("x", 100<<10)
	if resp := b.Do("POST", "/api/x", large, "X-CSRF", "1"); resp.StatusCode != 401 || len(api.requests()) != 1 {
		t.Errorf("unbuffered body: got %d after %d requests", resp.StatusCode, len(api.requests()))
	}
	wantOK(t, b.Do("POST", "/api/x", large, "X-CSRF", "1"))
}

// RFC 9449 7.3: a retried request has a new proof, whatever the retry is for.
func TestRetriedRequestHasANewDPoPProof(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(w http.ResponseWriter){
		"a broken connection": func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
		"a rejected token": func(w http.ResponseWriter) {
			w.Header().Set("WWW-Authenticate", `DPoP error="invalid_token"`)
			w.WriteHeader(401)
		},
		"a nonce": func(w http.ResponseWriter) {
			w.Header().Set("DPoP-Nonce", "n")
			w.Header().Set("WWW-Authenticate", `DPoP error="use_dpop_nonce"`)
			w.WriteHeader(401)
		},
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			var got []proven
			var api *httptest.Server
			api = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				p, err := checkProof(r, api.URL+r.URL.EscapedPath())
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				got = append(got, p)
				first := len(got) == 1
				mu.Unlock()
				if first {
					fail(w)
				}
			}))
			defer api.Close()
			a, _ := newBoundApp(t, func(_ *app, cfg *bff.Config) { cfg.Routes[0].Upstream = []string{api.URL} })
			wantOK(t, a.signedIn().Fetch("GET", "/api/x"))
			mu.Lock()
			defer mu.Unlock()
			if len(got) != 2 {
				t.Fatalf("the upstream got %d requests, want 2", len(got))
			}
			if got[0].jti == got[1].jti {
				t.Errorf("both proofs have the jti %s", got[0].jti)
			}
			if got[0].jkt != got[1].jkt {
				t.Errorf("keys of the proofs: got %s and %s, want the same", got[0].jkt, got[1].jkt)
			}
		})
	}
}

// Two sessions at once, while the nonce changes: neither gets the other's
// token, which the checks of the proof would report.
func TestDPoPNoncesDoNotMixSessions(t *testing.T) {
	t.Parallel()
	a, api := newBoundApp(t, nil)
	browsers := []*bfftest.Browser{a.signedIn(), a.signedIn(), a.signedIn()}
	api.want("0")
	var all sync.WaitGroup
	for i, b := range browsers {
		all.Go(func() {
			for n := range 30 {
				if i == 0 && n%10 == 9 {
					api.mu.Lock()
					api.nonce = fmt.Sprint(n)
					api.mu.Unlock()
				}
				resp := b.Fetch("GET", "/api/x")
				// it changed twice
				if resp.StatusCode != 200 && !strings.Contains(resp.Header.Get("WWW-Authenticate"), "use_dpop_nonce") {
					t.Errorf("got %d %s", resp.StatusCode, resp.Text)
				}
			}
		})
	}
	all.Wait()
	keys := make(map[string]string) // :: token → key
	for _, r := range api.requests() {
		if key, ok := keys[r.token]; ok && key != r.jkt {
			t.Error("a token was sent with two keys")
		}
		keys[r.token] = r.jkt
	}
}

// successor starts another broker with the store and keys of the app and its
// own configuration. It returns a function that sends it the request of a
// browser.
func (a *app) successor(edit func(*bff.Config)) func(b *bfftest.Browser, method, path string) *http.Response {
	a.t.Helper()
	cfg := bff.Config{
		PublicURL: a.url,
		Provider: bff.ProviderConfig{
			Issuer: a.provider.Issuer, ClientID: a.provider.Client.ID,
			ClientSecret: session.Secret(a.provider.Client.Secret),
		},
		Sessions: session.Config{Store: a.store, Keys: [][]byte{bytes.Repeat([]byte("k"), 32)}},
		Logger:   slog.New(slog.DiscardHandler),
	}
	edit(&cfg)
	next, err := bff.New(cfg)
	if err != nil {
		a.t.Fatal(err)
	}
	server := httptest.NewServer(next)
	stop := run(a.t, next)
	a.t.Cleanup(func() {
		server.Close()
		stop()
	})
	if err := next.WaitForProvider(a.t.Context()); err != nil {
		a.t.Fatal(err)
	}
	client := &http.Client{
		Transport:     httpClient.Transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return func(b *bfftest.Browser, method, path string) *http.Response {
		req, err := http.NewRequestWithContext(a.t.Context(), method, server.URL+path, nil)
		if err != nil {
			a.t.Fatal(err)
		}
		req.Host = strings.TrimPrefix(a.url, "http://")
		for _, c := range b.Cookies() {
			req.AddCookie(&http.Cookie{Name: c.Name, Value: c.Value})
		}
		if !strings.Contains(path, "/callback") {
			req.Header.Set("X-CSRF", "1")
		}
		resp, err := client.Do(req)
		if err != nil {
			a.t.Fatal(err)
		}
		resp.Body.Close()
		return resp
	}
}

// The key is kept with the session, so another process with the same store
// continues with it.
func TestDPoPKeySurvivesARestart(t *testing.T) {
	t.Parallel()
	a, api := newBoundApp(t, nil)
	b := a.signedIn()
	wantOK(t, b.Fetch("GET", "/api/x"))
	ask := a.successor(func(cfg *bff.Config) {
		cfg.Provider.SenderConstraint = "dpop"
		cfg.Routes = []bff.Route{{Path: "/api/", Upstream: []string{api.URL}, Token: "user"}}
	})
	for _, call := range [][2]string{{"GET", "/api/x"}, {"POST", "/bff/session/refresh"}, {"GET", "/api/x"}} {
		if got := ask(b, call[0], call[1]).StatusCode; got != 200 {
			t.Errorf("%s: got %d, want 200", call, got)
		}
	}
	switch got := api.requests(); {
	case len(got) != 3:
		t.Errorf("len(got): got %d, want 3", len(got))
	case got[0].jkt != got[1].jkt:
		t.Errorf("got[0].jkt: got %v, want %v", got[0].jkt, got[1].jkt)
	case got[0].jkt != got[2].jkt:
		t.Errorf("got[0].jkt: got %v, want %v", got[0].jkt, got[2].jkt)
	}
}

// If tokens must be bound from now on, the tokens of existing sessions are
// bound at their next refresh.
func TestOldSessionIsBoundAtItsNextRefresh(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	next, err := bff.New(bff.Config{
		PublicURL: a.url,
		Provider: bff.ProviderConfig{
			Issuer: a.provider.Issuer, ClientID: a.provider.Client.ID,
			ClientSecret: session.Secret(a.provider.Client.Secret), SenderConstraint: "dpop",
		},
		Sessions: session.Config{Store: a.store, Keys: [][]byte{bytes.Repeat([]byte("k"), 32)}},
		Routes:   []bff.Route{{Path: "/api/", Upstream: []string{a.echo.URL}, Token: "user"}},
		Logger:   slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: next}
	go server.Serve(l)
	run(t, next)
	defer server.Close()
	if err := next.WaitForProvider(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, call := range [][2]string{{"POST", "/bff/session/refresh"}, {"GET", "/api/x"}} {
		req, _ := http.NewRequest(call[0], "http://"+l.Addr().String()+call[1], nil)
		req.Host = strings.TrimPrefix(a.url, "http://")
		req.Header.Set("X-CSRF", "1")
		req.AddCookie(&http.Cookie{Name: b.Cookies()[0].Name, Value: b.Cookies()[0].Value})
		resp, err := httpClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if strings.Contains(string(text), `"Bearer `) {
			t.Errorf("%s: the upstream got a bearer token, want one bound by DPoP", call[1])
		}
	}
}

// A login finishes with the sender constraint it started with, also if the
// configuration has changed since.
func TestLoginFinishesWithItsOwnBinding(t *testing.T) {
	t.Parallel()
	for _, constraint := range []oidc.SenderConstraint{"", oidc.SenderConstraintDPoP} {
		a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Provider.SenderConstraint = constraint })
		b := a.browser()
		back := b.AuthResponse("alice", "").Location(t)
		other := oidc.SenderConstraintDPoP
		if constraint == other {
			other = ""
		}
		ask := a.successor(func(cfg *bff.Config) { cfg.Provider.SenderConstraint = other })
		if got := ask(b, "GET", back.RequestURI()).StatusCode; got != 502 || a.provider.TokenRequests() > 0 {
			t.Errorf("started with %q, finished with %q: got %d after %d token requests", constraint,
				other, got, a.provider.TokenRequests())
		}
	}
}

func TestUnboundTokenIsRefused(t *testing.T) {
	t.Parallel()
	t.Run("at login", func(t *testing.T) {
		a := newApp(t, func(a *app, cfg *bff.Config) { cfg.Provider.SenderConstraint = "dpop" })
		a.recordCalls(devidp.Hooks{
			EditTokenResponse: func(_ string, _ int, body map[string]any) { body["token_type"] = "Bearer" },
		})
		wantPage(t, a.browser().SignIn("alice", ""), 502, "login_invalid")
	})
	t.Run("at a refresh", func(t *testing.T) {
		a, _ := newBoundApp(t, nil)
		b := a.signedIn()
		a.recordCalls(devidp.Hooks{
			EditTokenResponse: func(_ string, _ int, body map[string]any) { body["token_type"] = "Bearer" },
		})
		wantProblem(t, b.Fetch("POST", "/bff/session/refresh"), 503, "provider_unavailable")
		a.wantSession(b, "alice")
	})
	t.Run("bound by dpop_jkt, want an unbound request", func(t *testing.T) {
		a := newApp(t, nil)
		a.recordCalls(devidp.Hooks{
			EditTokenResponse: func(_ string, _ int, body map[string]any) { body["token_type"] = "DPoP" },
		})
		wantPage(t, a.browser().SignIn("alice", ""), 502, "login_invalid")
	})
	t.Run("a provider without ES256", func(t *testing.T) {
		a := newApp(t, func(a *app, cfg *bff.Config) {
			cfg.Provider.SenderConstraint = "dpop"
			a.provider.Misbehave(t, brokertest.Discovery("no ES256", func(m map[string]any) {
				m["dpop_signing_alg_values_supported"] = []string{"RS256"}
			}))
		})
		waitFor(t, "the problem is logged", func() bool {
			return strings.Contains(a.logs.String(), "takes no DPoP proofs with ES256")
		})
	})
}

// The code is bound to the key from the start (RFC 9449 10): by dpop_jkt in the
// request if it is not pushed with a proof.
func TestAuthorizationCodeIsBoundToTheKey(t *testing.T) {
	t.Parallel()
	a, _ := newBoundApp(t, func(_ *app, cfg *bff.Config) { cfg.Provider.PushedRequests = "never" })
	b := a.browser()
	q := b.Navigate("/bff/login").Location(t).Query()
	switch jkt, err := base64.RawURLEncoding.DecodeString(q.Get("dpop_jkt")); {
	case err != nil:
		t.Errorf("error: got %v, want none", err)
	case len(jkt) != 32:
		t.Errorf("len(jkt): got %d, want 32", len(jkt))
	}
	if other := b.Navigate("/bff/login").Location(t).Query(); other.Get("dpop_jkt") == q.Get("dpop_jkt") {
		t.Error("two logins share a key")
	}
	if resp := b.SignIn("alice", ""); resp.StatusCode != 303 {
		t.Errorf("got %d, want 303", resp.StatusCode)
	}
}

// A nonce that could escape from a header or a log line is ignored.
func TestInvalidDPoPNonceIsIgnored(t *testing.T) {
	t.Parallel()
	a, api := newBoundApp(t, nil)
	b := a.signedIn()
	for _, nonce := range []string{`a"b`, `a\b`, "a b", strings.Repeat("n", 2000)} {
		api.want(nonce)
		if resp := b.Fetch("GET", "/api/x"); resp.StatusCode != 401 || len(api.requests()) != 1 {
			t.Errorf("%.20q: got %d after %d requests", nonce, resp.StatusCode, len(api.requests()))
		}
	}
}
