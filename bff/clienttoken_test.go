package bff_test

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/bff/oidc"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// newClientTokenApp starts a broker with a route for the client token and one
// for either token.
func newClientTokenApp(t *testing.T, hooks devidp.Hooks) (a *app, requested *atomic.Int32) {
	t.Helper()
	requested = new(atomic.Int32)
	intercept := hooks.Intercept
	hooks.Intercept = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == "POST" && strings.HasSuffix(r.URL.Path, "/token") &&
			r.PostFormValue("grant_type") == "client_credentials" {
			requested.Add(1)
			if intercept != nil {
				intercept(w, r, next)
				return
			}
		}
		next.ServeHTTP(w, r)
	}
	a = newApp(t, func(a *app, cfg *bff.Config) {
		a.provider.SetHooks(hooks)
		for path, token := range map[string]bff.Token{
			"/machine/": bff.TokenClient, "/either/": bff.TokenUserOrClient,
		} {
			cfg.Routes = append(cfg.Routes, bff.Route{Path: path, Token: token, Upstream: []string{a.echo.URL}})
		}
	})
	return a, requested
}

func bearerOf(t *testing.T, a *app, resp *bfftest.Response) string {
	t.Helper()
	token, ok := strings.CutPrefix(echoed(t, resp).Header.Get("Authorization"), "Bearer ")
	if !ok {
		t.Fatal("the upstream got no bearer token")
	}
	if !a.provider.Issued(token) {
		t.Fatalf("the provider did not issue the token with the digest %q", token)
	}
	return token
}

func TestClientTokenIsRequestedOnce(t *testing.T) {
	t.Parallel()
	a, requested := newClientTokenApp(t, devidp.Hooks{})
	var all sync.WaitGroup
	tokens := make([]string, 20)
	for i := range tokens {
		b := a.browser()
		all.Go(func() { tokens[i] = b.Fetch("GET", "/machine/x").Text })
	}
	all.Wait()
	first := bearerOf(t, a, a.browser().Fetch("GET", "/machine/x"))
	if requested.Load() != 1 {
		t.Errorf("%d requests to the provider, want 1", requested.Load())
	}
	for _, text := range tokens {
		if !strings.Contains(text, first) {
			t.Errorf("another token: %s", text)
		}
	}
}

// RFC 6749 4.4: routes with the same target share one token. Other targets have
// their own.
func TestClientTokenIsSharedPerTarget(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(a *app, cfg *bff.Config) {
		route := func(path, resource string, scopes ...string) bff.Route {
			return bff.Route{
				Path:     path,
				Upstream: []string{a.echo.URL},
				Token:    "client",
				Resource: resource,
				Scopes:   scopes,
			}
		}
		cfg.Routes = []bff.Route{
			route("/one/", "https://a.example", "x"), route("/same/", "https://a.example", "x"),
			route("/resource/", "https://b.example", "x"),
			route("/scope/", "https://a.example", "y"), route("/none/", ""),
		}
	})
	c := a.recordCalls(devidp.Hooks{})
	b := a.browser()
	tokens := make(map[string]string)
	for range 2 {
		for _, path := range []string{"/one/", "/same/", "/resource/", "/scope/", "/none/"} {
			tokens[path] = bearerOf(t, a, b.Fetch("GET", path))
		}
	}
	if tokens["/one/"] != tokens["/same/"] {
		t.Error("two routes with the same target have different tokens")
	}
	different := slices.Compact(slices.Sorted(maps.Values(tokens)))
	if len(different) != 4 || len(c.to("/token")) != 4 {
		t.Errorf("%d tokens in %d requests, want 4 of each", len(different), len(c.to("/token")))
	}
}

func TestUserOrClientPrefersTheUserToken(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	a, requested := newClientTokenApp(t, devidp.Hooks{})
	b := a.signedIn()
	user := bearerOf(t, a, b.Fetch("GET", "/either/x"))
	if requested.Load() != 0 || user != bearerOf(t, a, b.Fetch("GET", "/api/x")) {
		t.Errorf("with a session the user's token is not used; %d client tokens were requested", requested.Load())
	}
	switch client := bearerOf(t, a, a.browser().Fetch("GET", "/either/x")); {
	case client == user:
		t.Errorf("client and user are both %v", client)
	case requested.Load() != 1:
		t.Errorf("client tokens requested: got %d, want 1", requested.Load())
	}
	b = a.expired()
	a.provider.Misbehave(t, brokertest.ProviderDown)
	wantProblem(t, b.Fetch("GET", "/either/x"), 503, "provider_unavailable") // never the client token instead
}

func TestClientTokenIsRenewedBeforeItExpires(t *testing.T) {
	t.Parallel()
	a, requested := newClientTokenApp(t,
		devidp.Hooks{EditTokenResponse: func(grant string, _ int, body map[string]any) {
			if grant == "client_credentials" {
				body["expires_in"] = 2
			}
		}})
	b := a.browser()
	first := bearerOf(t, a, b.Fetch("GET", "/machine/x"))
	waitFor(t, "another token", func() bool { return bearerOf(t, a, b.Fetch("GET", "/machine/x")) != first })
	if n := requested.Load(); n != 2 {
		t.Errorf("%d requests to the provider, want 1", n)
	}
}

func TestClientTokenDuringAnOutageOfTheProvider(t *testing.T) {
	t.Parallel()
	var down atomic.Bool
	a, requested := newClientTokenApp(t, devidp.Hooks{
		EditTokenResponse: func(grant string, _ int, body map[string]any) {
			if grant == "client_credentials" {
				body["expires_in"] = 3
			}
		},
		Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if down.Load() {
				http.Error(w, "down", http.StatusServiceUnavailable)
				return
			}
			next.ServeHTTP(w, r)
		},
	})
	b := a.browser()
	first := bearerOf(t, a, b.Fetch("GET", "/machine/x"))
	down.Store(true)
	ends := time.Now().Add(5 * time.Second)
	var last *bfftest.Response
	for time.Now().Before(ends) {
		if last = b.Fetch("GET", "/machine/x"); last.StatusCode != 200 {
			break
		}
		if got := bearerOf(t, a, last); got != first {
			t.Fatal("another token")
		}
		time.Sleep(20 * time.Millisecond)
	}
	wantProblem(t, last, 503, "provider_unavailable")
	if last.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	if n := requested.Load(); n > 4 {
		t.Errorf("%d requests to the provider in three seconds", n)
	}
	down.Store(false)
	waitFor(t, "a token is issued again", func() bool { return b.Fetch("GET", "/machine/x").StatusCode == 200 })
}

// Retry-After also applies to requests for the client's token.
func TestClientTokenRequestsHonourRetryAfter(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(a *app, cfg *bff.Config) {
		cfg.Routes = []bff.Route{{Path: "/machine/", Upstream: []string{a.echo.URL}, Token: "client"}}
	})
	c := a.recordCalls(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.PostFormValue("grant_type") != "client_credentials" {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Retry-After", "20")
		w.WriteHeader(429)
	}})
	b := a.browser()
	b.Fetch("GET", "/machine/x")
	time.Sleep(2100 * time.Millisecond)
	b.Fetch("GET", "/machine/x")
	if n := len(c.to("/token")); n != 1 {
		t.Errorf("%d token requests within 3 s of Retry-After: 20, want 1", n)
	}
}

// A token that was issued for other credentials is not used: an administrator
// may have changed them because they have leaked.
func TestReloadKeepsClientTokensOfTheSameClient(t *testing.T) {
	t.Parallel()
	cert := certificate(t, ecKey(t))
	for name, test := range map[string]struct {
		constraint oidc.SenderConstraint
		change     func(*app, *bff.Config)
		want       int // token requests
	}{
		"the same": {want: 1, change: func(*app, *bff.Config) {}},
		"another route": {want: 1, change: func(_ *app, cfg *bff.Config) {
			cfg.Routes = append([]bff.Route{{Path: "/new/", Upstream: cfg.Routes[0].Upstream, Token: "none"}},
				cfg.Routes...)
		}},
		"the same with DPoP": {oidc.SenderConstraintDPoP, func(*app, *bff.Config) {}, 1},
		"another method": {want: 2, change: func(_ *app, cfg *bff.Config) {
			cfg.Provider.ClientAuth = oidc.ClientSecretPost
		}},
		"another secret": {want: 2, change: func(_ *app, cfg *bff.Config) { cfg.Provider.ClientSecret = "another" }},
		"another certificate": {want: 2, change: func(a *app, cfg *bff.Config) {
			cfg.Provider.ClientCertificate, cfg.Provider.RootCAs = cert, a.provider.Roots
		}},
		"another target": {want: 2, change: func(_ *app, cfg *bff.Config) {
			cfg.Routes[0].Scopes = []string{"y"}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var cfg bff.Config
			a := newApp(t, func(a *app, c *bff.Config) {
				c.Provider.SenderConstraint = test.constraint
				c.Routes = []bff.Route{{Path: "/machine/", Upstream: []string{a.echo.URL}, Token: "client",
					Scopes: []string{"x"}}}
				cfg = *c
				cfg.Routes = slices.Clone(c.Routes)
			})
			c := a.recordCalls(devidp.Hooks{})
			authorization := func() string {
				t.Helper()
				return echoed(t, a.browser().Fetch("GET", "/machine/x")).Header.Get("Authorization")
			}
			first := authorization()
			test.change(a, &cfg)
			if err := reload(t, a.server, cfg); err != nil {
				t.Fatal(err)
			}
			if name == "another secret" { // which the provider does not accept
				if got := a.browser().Fetch("GET", "/machine/x").StatusCode; got < 500 {
					t.Errorf("got %d, want a refusal: the token of the secret before was used", got)
				}
			} else if got := authorization(); (got == first) != (test.want == 1) {
				t.Errorf("got the same token: %t, want %t", got == first, test.want == 1)
			}
			if n := len(c.to("/token")); n != test.want {
				t.Errorf("token requests: got %d, want %d", n, test.want)
			}
		})
	}
}

func TestRejectedClientTokenIsReplaced(t *testing.T) {
	t.Parallel()
	echo, rejected := newRejectingUpstream(t, 1)
	a, b := newRoutedApp(t, bff.Route{Path: "/strict/", Token: "client", Upstream: []string{echo.URL}})
	first := bearerOf(t, a, b.Fetch("GET", "/strict/x"))
	if rejected.Load() != 1 || bearerOf(t, a, b.Fetch("GET", "/strict/x")) != first {
		t.Errorf("%d tokens were rejected, or the token is not cached", rejected.Load())
	}
	echo, rejected = newRejectingUpstream(t, 1<<30)
	_, b = newRoutedApp(t, bff.Route{Path: "/strict/", Token: "client", Upstream: []string{echo.URL}})
	for range 5 {
		if got := b.Fetch("GET", "/strict/x").StatusCode; got != 401 {
			t.Errorf("got %d, want 401", got)
		}
	}
	if rejected.Load() != 6 {
		t.Errorf("five calls caused %d requests, want 6", rejected.Load())
	}
}

func TestClientTokenWorksWithEachClientAuth(t *testing.T) {
	t.Parallel()
	key := ecKey(t)
	cert := certificate(t, key)
	withKey, signing := withKeys(key)
	secret := func(method oidc.ClientAuth) func(*app, *bff.Config) {
		return func(_ *app, cfg *bff.Config) { cfg.Provider.ClientAuth = method }
	}
	for method, test := range map[string]struct {
		provider func(*devidp.Config)
		edit     func(*app, *bff.Config)
		path     string
		proves   func(call) bool
	}{
		"client_secret_basic": {
			nil,
			secret("client_secret_basic"),
			"/token",
			func(c call) bool { return strings.HasPrefix(c.header.Get("Authorization"), "Basic ") },
		},
		"client_secret_post": {
			nil,
			secret("client_secret_post"),
			"/token",
			func(c call) bool { return c.form.Has("client_secret") },
		},
		"private_key_jwt": {withKey, signing, "/token", func(c call) bool { return c.form.Has("client_assertion") }},
		"self_signed_tls_client_auth": {
			func(c *devidp.Config) { c.Clients[0].Certificate, c.Clients[0].Secret = cert.Leaf, "" },
			func(a *app, cfg *bff.Config) {
				cfg.Provider.ClientSecret = ""
				cfg.Provider.ClientAuth = "self_signed_tls_client_auth"
				cfg.Provider.ClientCertificate = cert
				cfg.Provider.RootCAs = a.provider.Roots
			}, "/mtls/token", func(c call) bool { return c.secure && c.form.Get("client_id") == "spa" }},
	} {
		t.Run(method, func(t *testing.T) {
			a := newAppWith(t, test.provider, func(a *app, cfg *bff.Config) {
				test.edit(a, cfg)
				cfg.Routes = append(cfg.Routes, bff.Route{
					Path:     "/machine/",
					Token:    "client",
					Upstream: []string{a.echo.URL},
				})
			})
			c := a.recordCalls(devidp.Hooks{})
			bearerOf(t, a, a.browser().Fetch("GET", "/machine/x"))
			calls := c.to(test.path)
			if len(calls) != 1 {
				t.Fatalf("%d token requests, want 1", len(calls))
			}
			if got := calls[0].form.Get("grant_type"); got != "client_credentials" {
				t.Errorf("grant_type: got %q, want client_credentials", got)
			}
			if !test.proves(calls[0]) {
				t.Errorf("the request does not authenticate the client: %v", calls[0])
			}
		})
	}
}
