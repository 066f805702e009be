package bff_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

// tokenAPI starts an upstream that returns claims of the access token, but not
// the token.
func tokenAPI(t *testing.T) *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		_, claims := unverified(t, token)
		json.NewEncoder(w).Encode(map[string]any{
			"sub":    claims["sub"],
			"aud":    claims["aud"],
			"scope":  claims["scope"],
			"digest": brokertest.Digest(token),
		})
	}))
	t.Cleanup(s.Close)
	return s
}

type seenToken struct{ Sub, Aud, Scope, Digest string }

func (a *app) tokenSeen(b *bfftest.Browser, path string) seenToken {
	a.t.Helper()
	resp := b.Fetch("GET", path)
	var got seenToken
	if resp.StatusCode != 200 {
		a.t.Fatalf("%s: got %d %s\n%s", path, resp.StatusCode, resp.Text, a.logs)
	}
	resp.Decode(a.t, &got)
	return got
}

// newTargetApp starts a broker with a route for each kind of target.
func newTargetApp(t *testing.T, edit func(*app, *bff.Config)) *app {
	api := tokenAPI(t)
	return newAppWith(t, func(c *devidp.Config) { c.AccessTokenTTL = 20 * time.Second }, func(a *app, cfg *bff.Config) {
		route := func(path string) bff.Route {
			return bff.Route{Path: path, Upstream: []string{api.URL}, Token: "user"}
		}
		own, orders, billing := route("/own/"), route("/orders/"), route("/billing/")
		few, exchanged, machine := route("/few/"), route("/exchanged/"), route("/machine/")
		orders.Resource, billing.Resource = "https://orders.example", "https://billing.example"
		// a scope that the session's own token lacks
		few.Scopes, few.Require.Scopes = []string{"profile", "few:read"}, []string{"few:read"}
		own.Require.Scopes = []string{"email"}
		exchanged.Audience, exchanged.Grant = "legacy", "token-exchange"
		machine.Token, machine.Resource, machine.Scopes = "client", "https://robots.example", []string{"robots:run"}
		cfg.Provider.Resources = []string{"https://own.example"}
		cfg.Routes = []bff.Route{own, orders, billing, few, exchanged, machine}
		if edit != nil {
			edit(a, cfg)
		}
	})
}

func TestEachRouteGetsItsOwnToken(t *testing.T) {
	t.Parallel()
	a := newTargetApp(t, nil)
	c := a.recordCalls(devidp.Hooks{})
	b := a.signedIn()
	all := "openid profile email offline_access"
	for range 2 {
		for path, want := range map[string]seenToken{
			"/own/":       {"alice", "https://own.example", all, ""},
			"/orders/":    {"alice", "https://orders.example", all, ""},
			"/billing/":   {"alice", "https://billing.example", all, ""},
			"/few/":       {"alice", "https://own.example", "profile few:read", ""},
			"/exchanged/": {"alice", "legacy", all, ""},
			"/machine/":   {"spa", "https://robots.example", "robots:run", ""},
		} {
			got := a.tokenSeen(b, path+"x")
			if got.Sub != want.Sub || got.Aud != want.Aud || !sameScopes(got.Scope, want.Scope) {
				t.Errorf("%s: got %+v, want %+v", path, got, want)
			}
		}
	}
	if n := len(c.to("/token")); n != 6 {
		t.Errorf("%d token requests, want 6", n)
	}
	if n := a.provider.Reuses(); n > 0 {
		t.Errorf("%d refresh tokens were used twice", n)
	}
	for _, call := range c.to("/token") {
		if call.form.Get("grant_type") != "urn:ietf:params:oauth:grant-type:token-exchange" {
			continue
		}
		for name, want := range map[string]string{
			"subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
			"audience":           "legacy",
		} {
			if got := call.form.Get(name); got != want {
				t.Errorf("token exchange: %s: got %q, want %q", name, got, want)
			}
		}
		if call.form.Has("refresh_token") {
			t.Error("token exchange: refresh_token is present, want none")
		}
	}
	if got := b.Submit("/bff/logout", nil).StatusCode; got != 303 {
		t.Errorf("logout: got %d, want 303", got)
	}
	hints := make(map[string]int)
	for _, call := range c.to("/revoke") {
		hints[call.form.Get("token_type_hint")]++
	}
	if hints["refresh_token"] != 1 || hints["access_token"] != 5 {
		t.Errorf("revoked at logout: got %v", hints)
	}
	for _, path := range []string{"/own/x", "/orders/x", "/exchanged/x"} {
		wantProblem(t, b.Fetch("GET", path), 401, "not_signed_in")
	}
}

// RFC 6749 6: a refresh requests no scope that was not granted.
func TestRefreshRequestsOnlyGrantedScopes(t *testing.T) {
	t.Parallel()
	a := newTargetApp(t, nil)
	c := a.recordCalls(devidp.Hooks{EditTokenResponse: func(grant string, _ int, body map[string]any) {
		if grant == "authorization_code" {
			body["scope"] = "openid profile offline_access" // the user does not grant email
		}
	}})
	b := a.signedIn()
	wantOK(t, b.Fetch("POST", "/bff/session/refresh"))
	for _, call := range c.to("/token") {
		if call.form.Get("grant_type") == "refresh_token" &&
			slices.Contains(strings.Fields(call.form.Get("scope")), "email") {
			t.Errorf("scope: got %q, want no email", call.form.Get("scope"))
		}
	}
}

// The same with a provider that refuses a refresh with more scopes (RFC 6749
// 5.2).
func TestUserWhoGrantsFewerScopesStaysSignedIn(t *testing.T) {
	t.Parallel()
	api := tokenAPI(t)
	a := newAppWith(t, func(c *devidp.Config) {
		c.Scopes = []string{"openid", "profile", "offline_access", "few:read"}
	}, func(_ *app, cfg *bff.Config) {
		cfg.Routes = []bff.Route{
			{Path: "/own/", Upstream: []string{api.URL}, Token: "user"},
			{Path: "/few/", Upstream: []string{api.URL}, Token: "user", Scopes: []string{"few:read"}},
		}
	})
	b := a.browser()
	if resp := b.SignIn("alice", ""); resp.StatusCode != 303 {
		t.Errorf("sign in: got %d, want 303\n%s", resp.StatusCode, a.logs.lines(t, "request"))
	}
	if resp := b.Fetch("POST", "/bff/session/refresh"); resp.StatusCode != 200 {
		t.Errorf("refresh: got %d, want 200", resp.StatusCode)
	}
}

// RFC 8707 2: every token request names the resources of the login.
func TestEveryTokenRequestNamesTheResource(t *testing.T) {
	t.Parallel()
	a := newTargetApp(t, func(_ *app, cfg *bff.Config) {
		cfg.Provider.Resources = []string{"https://own.example", "https://second.example"}
	})
	c := a.recordCalls(devidp.Hooks{})
	b := a.signedIn()
	wantOK(t, b.Fetch("POST", "/bff/session/refresh"))
	for _, call := range c.to("/token") {
		if got := call.form["resource"]; !slices.Equal(got, []string{"https://own.example", "https://second.example"}) {
			t.Errorf("%s: resource: got %q, want those of the configuration", call.form.Get("grant_type"), got)
		}
	}
	got := c.to("/par")[0].form["resource"]
	for _, want := range []string{"https://own.example", "https://orders.example"} {
		if !slices.Contains(got, want) {
			t.Errorf("resource at login: got %q, want it to contain %s", got, want)
		}
	}
	if len(got) != 4 {
		t.Errorf("resource at login: got %q, want 4 values", got)
	}
	if n := len(c.to("/token")); n != 2 {
		t.Errorf("%d token requests, want 2", n)
	}
}

func sameScopes(a, b string) bool {
	one, other := strings.Fields(a), strings.Fields(b)
	slices.Sort(one)
	slices.Sort(other)
	return slices.Equal(one, other)
}

// Concurrent calls of several users to several targets, also during a refresh:
// each gets its own token.
func TestTargetTokensAreNeverMixedUp(t *testing.T) {
	t.Parallel()
	a := newTargetApp(t, nil)
	users := []string{"alice", "bob"}
	var browsers []*bfftest.Browser
	for i := range 4 {
		b := a.browser()
		if resp := b.SignIn(users[i%2], ""); resp.StatusCode != 303 {
			t.Fatalf("got %d, want 303", resp.StatusCode)
		}
		browsers = append(browsers, b)
	}
	targets := map[string]string{
		"/own/":       "https://own.example",
		"/orders/":    "https://orders.example",
		"/billing/":   "https://billing.example",
		"/exchanged/": "legacy",
	}
	var mu sync.Mutex
	owner := make(map[string]string) // :: token → its user and target
	var all sync.WaitGroup
	for i, b := range browsers {
		for path, aud := range targets {
			for range 3 {
				all.Go(func() {
					for range 5 {
						resp := b.Fetch("GET", path+"x")
						var got seenToken
						if err := json.Unmarshal([]byte(resp.Text), &got); resp.StatusCode != 200 || err != nil {
							t.Errorf("%s: got %d %s", path, resp.StatusCode, resp.Text)
							return
						}
						if got.Sub != users[i%2] {
							t.Errorf("%s of %s: Sub: got %v, want %v", path, users[i%2], got.Sub, users[i%2])
						}
						if got.Aud != aud {
							t.Errorf("%s of %s: Aud: got %v, want %v", path, users[i%2], got.Aud, aud)
						}
						mu.Lock()
						if mine := fmt.Sprint(i, aud); owner[got.Digest] == "" {
							owner[got.Digest] = mine
						} else if owner[got.Digest] != mine {
							t.Errorf("the token of %s is used by %s", owner[got.Digest], mine)
						}
						mu.Unlock()
					}
				})
			}
		}
	}
	all.Wait()
	if len(owner) != len(browsers)*len(targets) {
		t.Errorf("%d tokens for %d sessions and %d targets", len(owner), len(browsers), len(targets))
	}
	if n := a.provider.Reuses(); n > 0 {
		t.Errorf("%d refresh tokens were used twice", n)
	}
}

// The userinfo endpoint gets the session's own token.
func TestUserInfoDoesNotGetTheTokenOfAnAPI(t *testing.T) {
	t.Parallel()
	a := newTargetApp(t, func(_ *app, cfg *bff.Config) { cfg.Provider.UserInfo = true })
	b := a.signedIn()
	c := a.recordCalls(devidp.Hooks{})
	a.tokenSeen(b, "/orders/x")
	for _, call := range c.to("/userinfo") {
		_, token, _ := strings.Cut(call.header.Get("Authorization"), " ")
		if _, claims := unverified(t, token); claims["aud"] == "https://orders.example" {
			t.Errorf("the userinfo endpoint got the token for %v", claims["aud"])
		}
	}
}

func TestUnavailableTargetKeepsTheSession(t *testing.T) {
	t.Parallel()
	a := newTargetApp(t, func(_ *app, cfg *bff.Config) {
		cfg.Routes[4].Audience = "unknown"
	})
	b := a.signedIn()
	wantProblem(t, b.Fetch("GET", "/exchanged/x"), 503, "provider_unavailable")
	for _, fault := range []string{`{"error":"invalid_grant"}`, `{"error":"invalid_target"}`, `{}`, `<html>`} {
		c := a.recordCalls(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if !strings.HasSuffix(r.PostFormValue("grant_type"), "token-exchange") {
				next.ServeHTTP(w, r)
				return
			}
			w.WriteHeader(400)
			io.WriteString(w, fault)
		}})
		b := a.signedIn()
		wantProblem(t, b.Fetch("GET", "/exchanged/x"), 503, "provider_unavailable")
		wantProblem(t, b.Fetch("GET", "/exchanged/x"), 503, "provider_unavailable")
		a.tokenSeen(b, "/own/x")
		a.tokenSeen(b, "/orders/x")
		a.wantSession(b, "alice")
		exchanges := 0
		for _, call := range c.to("/token") {
			if strings.HasSuffix(call.form.Get("grant_type"), "token-exchange") {
				exchanges++
			}
		}
		if exchanges != 1 {
			t.Errorf("%s: %d requests to the provider, want 1 during the backoff", fault, exchanges)
		}
	}
	t.Run("Retry-After", func(t *testing.T) {
		a := newTargetApp(t, nil)
		b := a.signedIn()
		a.recordCalls(replaceResponse("/token", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "20")
			w.WriteHeader(429)
		}))
		resp := b.Fetch("GET", "/exchanged/x")
		wantProblem(t, resp, 503, "provider_unavailable")
		if got, _ := strconv.Atoi(resp.Header.Get("Retry-After")); got < 20 || got > 25 { // with jitter
			t.Errorf("Retry-After: got %d, want 20 to 25", got)
		}
	})
	t.Run("another type of response", func(t *testing.T) {
		for _, kind := range []any{nil, "urn:ietf:params:oauth:token-type:refresh_token", 7} {
			a := newTargetApp(t, nil)
			b := a.signedIn()
			a.recordCalls(devidp.Hooks{EditTokenResponse: func(grant string, _ int, body map[string]any) {
				if strings.HasSuffix(grant, "token-exchange") {
					body["issued_token_type"] = kind
				}
			}})
			wantProblem(t, b.Fetch("GET", "/exchanged/x"), 503, "provider_unavailable")
		}
	})
	t.Run("a rejected refresh for a target applies to all targets", func(t *testing.T) {
		a := newTargetApp(t, nil)
		b := a.signedIn()
		a.recordCalls(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.PostFormValue("grant_type") != "refresh_token" {
				next.ServeHTTP(w, r)
				return
			}
			w.WriteHeader(400)
			io.WriteString(w, `{"error":"invalid_grant"}`)
		}})
		wantProblem(t, b.Fetch("GET", "/orders/x"), 401, "not_signed_in")
		a.wantSession(b, "")
	})
}

// The subject of a token exchange is a valid token of the session. The
// exchanged token expires with it.
func TestExchangedTokenExpiresWithItsSubject(t *testing.T) {
	t.Parallel()
	a := newTargetApp(t, nil)
	b := a.signedIn()
	c := a.recordCalls(devidp.Hooks{EditTokenResponse: func(grant string, _ int, body map[string]any) {
		if strings.HasSuffix(grant, "token-exchange") {
			body["expires_in"] = 3600
		} else {
			body["expires_in"] = 3
		}
	}})
	wantOK(t, b.Fetch("POST", "/bff/session/refresh")) // from now on the session's own token lives 3 s
	one := a.tokenSeen(b, "/exchanged/x")
	if two := a.tokenSeen(b, "/exchanged/x"); two.Digest != one.Digest {
		t.Error("the token is exchanged for each request")
	}
	time.Sleep(3 * time.Second)
	if three := a.tokenSeen(b, "/exchanged/x"); three.Digest == one.Digest {
		t.Error("the exchanged token outlives its subject token")
	}
	if n := len(c.to("/token")); n < 4 {
		t.Errorf("%d token requests, want two refreshes and two exchanges", n)
	}
}

// If neither the request nor the response of a token exchange has a scope, the
// scopes of the token are unknown.
func TestExchangedTokenWithoutScopeGrantsNothing(t *testing.T) {
	t.Parallel()
	a := newTargetApp(t, func(_ *app, cfg *bff.Config) { cfg.Routes[4].Require.Scopes = []string{"email"} })
	a.recordCalls(devidp.Hooks{EditTokenResponse: func(grant string, _ int, body map[string]any) {
		if strings.HasSuffix(grant, "token-exchange") {
			delete(body, "scope")
		}
	}})
	wantProblem(t, a.signedIn().Fetch("GET", "/exchanged/x"), 403, "insufficient_scope")
}

func TestRejectedTargetTokenIsReplaced(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	rejected := ""
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if rejected == "" {
			rejected = r.Header.Get("Authorization")
		}
		if r.Header.Get("Authorization") == rejected {
			w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
			w.WriteHeader(401)
		}
	}))
	defer api.Close()
	a := newTargetApp(t, func(_ *app, cfg *bff.Config) { cfg.Routes[1].Upstream = []string{api.URL} })
	b := a.signedIn()
	own := a.tokenSeen(b, "/own/x")
	wantOK(t, b.Fetch("GET", "/orders/x"))
	if a.tokenSeen(b, "/own/x").Digest != own.Digest {
		t.Error("the session's own token was replaced")
	}
}

// The upstream rejects a token that has expired and was removed from the
// session in the meantime.
func TestRejectionOfExpiredTokenDoesNotPanic(t *testing.T) {
	t.Parallel()
	arrived, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		once.Do(func() {
			close(arrived)
			<-release
		})
		w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
		w.WriteHeader(401)
	}))
	defer api.Close()
	a := newTargetApp(t, func(_ *app, cfg *bff.Config) { cfg.Routes[1].Upstream = []string{api.URL} })
	a.recordCalls(devidp.Hooks{
		EditTokenResponse: func(_ string, _ int, body map[string]any) { body["expires_in"] = 2 },
	})
	b := a.signedIn()
	status := make(chan string)
	go func() {
		req, _ := http.NewRequest("GET", a.url+"/orders/x", nil)
		req.Header.Set("X-CSRF", "1")
		for _, c := range b.Cookies() {
			req.AddCookie(c)
		}
		resp, err := httpClient.Do(req)
		if err != nil {
			status <- err.Error()
			return
		}
		resp.Body.Close()
		status <- resp.Status
	}()
	<-arrived
	time.Sleep(2200 * time.Millisecond)
	a.tokenSeen(b, "/billing/x")
	close(release)
	if got := <-status; !strings.HasPrefix(got, "401") {
		t.Errorf("status: got %s, want the upstream's 401", got)
	}
	if n := len(a.logs.lines(t, "panic")); n > 0 {
		t.Errorf("%d panics, want none: %v", n, a.logs.lines(t, "panic")[0]["cause"])
	}
}

func TestInvalidTargets(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		edit func(*bff.Route)
		want string
	}{
		"a relative resource": {
			func(r *bff.Route) { r.Resource = "/orders" }, "Routes[0].Resource",
		},
		"a scope with a space": {
			func(r *bff.Route) { r.Scopes = []string{"a b"} },
			"Routes[0].Scopes",
		},
		"an unknown grant": {
			func(r *bff.Route) { r.Resource, r.Grant = "https://a.example", "password" },
			"Routes[0].Grant",
		},
		"a grant for nothing": {
			func(r *bff.Route) { r.Grant = "token-exchange" },
			"Routes[0].Grant: the route needs resource, audience or scopes",
		},
		"an audience by refresh": {func(r *bff.Route) { r.Audience = "a" }, "Routes[0].Audience"},
		"a resource where no token goes": {
			func(r *bff.Route) { r.Resource, r.Token = "https://a.example", "none" },
			"Routes[0].Token",
		},
		"an exchange of the broker's own": {
			func(r *bff.Route) { r.Audience, r.Grant, r.Token = "a", "token-exchange", "client" },
			"Routes[0].Grant",
		},
		"a resource beside one that is not named": {
			func(r *bff.Route) { r.Token = "user" }, "Provider.Resources: missing",
		},
		"mtls to an upstream without mtls": {nil, "Routes[0].Upstream"},
	} {
		a := bff.Config{
			PublicURL: "https://app.example",
			Provider:  bff.ProviderConfig{Issuer: "https://id.example", ClientID: "spa", ClientSecret: "s"},
			Routes:    []bff.Route{{Path: "/api/", Upstream: []string{"http://api.internal"}, Token: "user"}},
		}
		if strings.Contains(name, "beside") {
			a.Routes = append(a.Routes, bff.Route{
				Path:     "/b/",
				Upstream: []string{"http://b.internal"},
				Token:    "user",
				Resource: "https://b.example",
			})
		}
		if test.edit != nil {
			test.edit(&a.Routes[0])
		} else {
			a.Provider.SenderConstraint, a.Provider.ClientCertificate = "mtls", certificate(t, ecKey(t))
		}
		if _, err := bff.New(a); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %s", name, err, test.want)
		}
	}
}
