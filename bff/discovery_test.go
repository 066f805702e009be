package bff_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

const discoveryFailed = "provider discovery failed; sign-in is unavailable, existing sessions are not affected"

// replaceResponse serves the requests for paths that end with path instead of
// the provider.
func replaceResponse(path string, serve http.HandlerFunc) devidp.Hooks {
	return devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, path) {
			serve(w, r)
			return
		}
		next.ServeHTTP(w, r)
	}}
}

// The log describes a response that is no metadata or key set: its URL, its
// status, the target of a redirect. It does not quote the body.
func TestInvalidMetadataIsDescribedInTheLog(t *testing.T) {
	t.Parallel()
	redirect := func(status int, location string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", location)
			w.WriteHeader(status)
			io.WriteString(w, "the b0dy")
		}
	}
	respond := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			io.WriteString(w, "the b0dy")
		}
	}
	const metadata, keys = "/openid-configuration", "/jwks"
	for name, test := range map[string]struct {
		path  string
		serve http.HandlerFunc
		want  []string
	}{
		"metadata, 301": {
			metadata,
			redirect(301, "https://login.example/op/.well-known/openid-configuration?sig=s3cr3t#x"),
			[]string{
				"discover provider: GET ",
				"/op/.well-known/openid-configuration: 301 Moved Permanently to " +
					"https://login.example/op/.well-known/openid-configuration (",
				"oidc.issuer",
			},
		},
		"metadata, 302": {
			metadata,
			redirect(302, "https://user:s3cr3t@login.example/"),
			[]string{"302 Found to https://login.example/ ("},
		},
		"metadata, 307": {
			metadata,
			redirect(307, "/elsewhere?s3cr3t"),
			[]string{"307 Temporary Redirect to http://127.0.0.1:", "/elsewhere ("},
		},
		"metadata, 308": {
			metadata,
			redirect(308, "//other.example/x"),
			[]string{"308 Permanent Redirect to http://other.example/x ("},
		},
		"metadata, 302 bare": {
			metadata,
			respond(302),
			[]string{"openid-configuration: 302 Found (check oidc.issuer)"},
		},
		"metadata, 404": {
			metadata,
			respond(404),
			[]string{
				"discover provider: GET http://127.0.0.1:",
				"/op/.well-known/openid-configuration: 404 Not Found (check oidc.issuer)",
			},
		},
		"metadata, 401": {metadata, respond(401), []string{"401 Unauthorized (check oidc.issuer)"}},
		"metadata, 503": {
			metadata,
			respond(503),
			[]string{"/op/.well-known/openid-configuration: 503 Service Unavailable"},
		},
		"metadata, 204": {metadata, respond(204), []string{"204 No Content"}},
		"metadata, 799": {metadata, respond(799), []string{": 799"}},
		"metadata, no JSON": {
			metadata,
			respond(200),
			[]string{"/op/.well-known/openid-configuration: it is not JSON (check oidc.issuer)"},
		},
		"metadata, a long redirect": {
			metadata,
			redirect(302, "https://login.example/"+strings.Repeat("x", 5000)),
			[]string{"302 Found to https://login.example/xxx"},
		},
		"keys, 302": {
			keys,
			redirect(302, "https://keys.example/jwks?sig=s3cr3t"),
			[]string{"GET http://127.0.0.1:", "/op/jwks: 302 Found to https://keys.example/jwks (", "jwks_uri"},
		},
		"keys, 404":     {keys, respond(404), []string{"/op/jwks: 404 Not Found"}},
		"keys, 500":     {keys, respond(500), []string{"/op/jwks: 500 Internal Server Error"}},
		"keys, no JSON": {keys, respond(200), []string{"/op/jwks: JWK Set: it is not JSON"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var text string
			if test.path == keys {
				a := newApp(t, nil)
				a.recordCalls(replaceResponse(test.path, test.serve))
				wantPage(t, a.browser().SignIn("alice", ""), 503, "provider_unavailable")
				for _, line := range a.logs.lines(t, "request") {
					if line["err"] != nil {
						text = fmt.Sprint(line["err"])
					}
				}
			} else {
				a := newApp(t, func(a *app, _ *bff.Config) {
					a.provider.Misbehave(t, brokertest.ProviderDown)
					a.provider.SetHooks(replaceResponse(test.path, test.serve))
				})
				waitFor(t, "the problem is logged", func() bool { return len(a.logs.lines(t, discoveryFailed)) > 0 })
				text = fmt.Sprint(a.logs.lines(t, discoveryFailed)[0]["err"])
			}
			for _, want := range test.want {
				if !strings.Contains(text, want) {
					t.Errorf("got %s\nwant %s", text, want)
				}
			}
			if strings.Contains(text, "b0dy") || strings.Contains(text, "s3cr3t") || len(text) > 1000 {
				t.Errorf("the log quotes the body: %s", text)
			}
		})
	}
}

// Metadata that the configuration does not need may be invalid. The log names
// invalid metadata that it needs.
func TestUnneededMetadataMayBeInvalid(t *testing.T) {
	t.Parallel()
	const (
		found  = "" // the login works
		broken = "-"
	)
	all := func(m *bff.ProviderConfig) { m.UserInfo, m.PushedRequests = true, "always" }
	var unneeded []string
	values := make(map[string][]any) // of the needed ones
	odd := []any{nil, "", "x", 7, true, []any{}, []any{1, nil}, map[string]any{}, map[string]any{"x": 1}}
	for _, test := range []struct {
		member string
		values []any
		edit   func(*bff.ProviderConfig)
		want   string
	}{
		{"scopes_supported", odd, nil, found},
		{"response_types_supported", odd, nil, found},
		{"subject_types_supported", odd, nil, found},
		{"claims_supported", odd, nil, found},
		{"grant_types_supported", odd, nil, found},
		{"code_challenge_methods_supported", odd, nil, found},
		{"service_documentation", odd, nil, found},
		{"backchannel_logout_supported", odd, nil, found},
		{"device_authorization_endpoint", odd, nil, found},
		{"registration_endpoint", append(odd, "http://id.example/"), nil, found},
		{"signed_metadata", odd, nil, found},
		{"mtls_endpoint_aliases", odd, nil, found},
		{"an-extension", odd, nil, found},
		{"end_session_endpoint", []any{nil, "", 7, true, []any{"https://id.example/"}, map[string]any{}}, nil, found},
		{"revocation_endpoint", []any{nil, "", 7, true, []any{"https://id.example/"}, map[string]any{}}, nil, found},
		{
			"pushed_authorization_request_endpoint",
			[]any{nil, "", 7, true, []any{"https://id.example/"}, map[string]any{}},
			nil,
			found,
		},
		{"userinfo_endpoint", []any{nil, "", 7, true, []any{"https://id.example/"}, map[string]any{}}, nil, found},
		{"require_pushed_authorization_requests", odd, nil, found},
		{"require_signed_request_object", []any{nil, "", "true", 7, []any{}, map[string]any{}}, nil, found},
		{"authorization_response_iss_parameter_supported", odd, nil, found},
		{"tls_client_certificate_bound_access_tokens", odd, nil, found},
		{
			"id_token_signing_alg_values_supported",
			[]any{nil, "", "RS256", 7, true, []any{}, []any{"RS256", 7}, []any{"none", "HS256"}, map[string]any{}},
			nil,
			found,
		},
		{"token_endpoint_auth_signing_alg_values_supported", odd, nil, found},
		{"request_object_signing_alg_values_supported", odd, nil, found},
		{"dpop_signing_alg_values_supported", odd, nil, found},

		{"issuer", []any{nil, "", 7, []any{}, map[string]any{}}, nil, broken},
		{"authorization_endpoint", []any{nil, "", "x", 7, true, []any{}, map[string]any{}}, nil, broken},
		{"token_endpoint", []any{nil, "", "x", 7, true, []any{}, map[string]any{}}, nil, broken},
		{"jwks_uri", []any{nil, "", "x", 7, true, []any{}, map[string]any{}}, nil, broken},
		{"userinfo_endpoint", []any{nil, "", "x", 7, true, []any{}, map[string]any{}}, all, broken},
		{"pushed_authorization_request_endpoint", []any{nil, "", "x", 7, true, []any{}, map[string]any{}}, all, broken},
		// the browser would be redirected there
		{"end_session_endpoint", []any{"x", "http://id.example/"}, nil, broken},
		{"revocation_endpoint", []any{"x", "http://id.example/"}, nil, broken},
	} {
		if test.want == found {
			unneeded = append(unneeded, test.member)
			values[test.member] = test.values
			continue
		}
		for _, value := range test.values {
			t.Run(fmt.Sprintf("%s is %#v", test.member, value), func(t *testing.T) {
				t.Parallel()
				a := newApp(t, func(a *app, cfg *bff.Config) {
					if test.edit != nil {
						test.edit(&cfg.Provider)
					}
					a.provider.Misbehave(t, brokertest.Discovery(test.member, func(m map[string]any) {
						m[test.member] = value
					}))
				})
				waitFor(t, "the problem is logged", func() bool { return len(a.logs.lines(t, discoveryFailed)) > 0 })
				text := fmt.Sprint(a.logs.lines(t, discoveryFailed)[0]["err"])
				if !strings.Contains(text, test.member) {
					t.Errorf("the log does not name %s: %s", test.member, text)
				}
				wantPage(t, a.browser().Navigate("/bff/login"), 503, "provider_unavailable")
			})
		}
	}
	for i := range 10 {
		t.Run(fmt.Sprintf("what is not needed is odd, %d", i), func(t *testing.T) {
			t.Parallel()
			a := newApp(t, func(a *app, _ *bff.Config) {
				a.provider.SetHooks(devidp.Hooks{EditDiscovery: func(m map[string]any) {
					for _, member := range unneeded {
						m[member] = values[member][i%len(values[member])]
					}
				}})
			})
			b := a.signedIn()
			wantOK(t, b.Fetch("POST", "/bff/session/refresh"))
			if got := b.Submit("/bff/logout", nil).StatusCode; got != 303 {
				t.Errorf("logout: got %d, want 303", got)
			}
		})
	}
	t.Run("the ignored metadata is logged", func(t *testing.T) {
		t.Parallel()
		a := newApp(t, func(a *app, _ *bff.Config) {
			a.provider.SetHooks(devidp.Hooks{
				EditDiscovery: func(m map[string]any) {
					m["end_session_endpoint"], m["revocation_endpoint"] = 7, []string{"x"}
				},
			})
		})
		lines := a.logs.lines(t, "members of the provider's metadata ignored")
		switch {
		case len(lines) != 1:
			t.Errorf("len(lines): got %d, want 1", len(lines))
		case !strings.Contains(fmt.Sprint(lines[0]["err"]),
			"end_session_endpoint: it is not a string\nrevocation_endpoint: it is not a string"):
			t.Errorf("err: got %q, want it to contain %q", fmt.Sprint(lines[0]["err"]),
				"end_session_endpoint: it is not a string\nrevocation_endpoint: it is not a string")
		}
	})
	t.Run("twice", func(t *testing.T) {
		t.Parallel()
		for member, up := range map[string]bool{
			"scopes_supported":     true,
			"x":                    true,
			"end_session_endpoint": true,
			"jwks_uri":             false,
			"issuer":               false,
		} {
			twice := replaceResponse("/openid-configuration", nil)
			twice.Intercept = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if !strings.HasSuffix(r.URL.Path, "/openid-configuration") {
					next.ServeHTTP(w, r)
					return
				}
				recorded := httptest.NewRecorder()
				next.ServeHTTP(recorded, r)
				w.Header().Set("Content-Type", "application/json")
				io.WriteString(w,
					strings.Replace(recorded.Body.String(), "{",
						`{"`+member+`":"https://evil.example/x","`+member+`":"https://evil.example/x",`, 1))
			}
			a := newApp(t, func(a *app, _ *bff.Config) {
				if !up {
					a.provider.Misbehave(t, brokertest.ProviderDown)
				}
				a.provider.SetHooks(twice)
			})
			if up {
				b := a.signedIn()
				if to := b.Submit("/bff/logout", nil).Header.Get("Location"); strings.Contains(to, "evil") {
					t.Errorf("logout redirects to %s", to)
				}
				continue
			}
			waitFor(t, "the problem is logged", func() bool {
				return strings.Contains(a.logs.String(), "it is there twice")
			})
		}
	})
}

// A provider for client tokens only needs no authorization endpoint. Its
// metadata may be at the URL of RFC 8414.
func TestClientTokenOnlyNeedsNoAuthorizationEndpoint(t *testing.T) {
	t.Parallel()
	client := func(token bff.Token) func(*app, *bff.Config) {
		return func(a *app, cfg *bff.Config) {
			cfg.Routes = []bff.Route{
				{Path: "/machine/", Upstream: []string{a.echo.URL}, Token: token},
				{Path: "/public/", Upstream: []string{a.echo.URL}, Token: "none"},
			}
		}
	}
	without := func(names ...string) devidp.Hooks {
		return devidp.Hooks{EditDiscovery: func(m map[string]any) {
			for _, name := range names {
				delete(m, name)
			}
		}}
	}
	for name, hooks := range map[string]devidp.Hooks{
		"no authorization_endpoint": without("authorization_endpoint"),
		"no jwks_uri":               without("jwks_uri"),
		"neither": without("authorization_endpoint", "jwks_uri",
			"response_types_supported", "subject_types_supported", "id_token_signing_alg_values_supported"),
		"both of another type": {EditDiscovery: func(m map[string]any) {
			m["authorization_endpoint"], m["jwks_uri"] = 7, []string{}
		}},
		"metadata of OAuth": {Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			switch {
			case strings.HasSuffix(r.URL.Path, "/openid-configuration"):
				http.NotFound(w, r)
			case r.URL.Path == "/.well-known/oauth-authorization-server/op":
				issuer := "http://" + r.Host + "/op"
				json.NewEncoder(w).Encode(map[string]any{"issuer": issuer, "token_endpoint": issuer + "/token"})
			default:
				next.ServeHTTP(w, r)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newApp(t, func(a *app, cfg *bff.Config) {
				client("client")(a, cfg)
				a.provider.SetHooks(hooks)
			})
			b := a.browser()
			if got := b.Fetch("GET", "/machine/x"); got.StatusCode != 200 {
				t.Errorf("got %d %s, want 200\n%s", got.StatusCode, got.Text, a.logs)
			}
			wantPage(t, b.Navigate("/bff/login"), 502, "login_refused")
			if !strings.Contains(a.logs.String(), "the metadata has no authorization_endpoint or no jwks_uri") {
				t.Errorf("the log does not name the cause: %s", a.logs)
			}
			if name == "neither" {
				token := a.logoutToken("alice", "", devidp.Hooks{})
				resp := a.sendLogoutToken(url.Values{"logout_token": {token}})
				wantRefused(t, "a logout token", resp, "provider_unavailable")
			}
		})
	}
	t.Run("but not if users sign in", func(t *testing.T) {
		t.Parallel()
		for _, token := range []bff.Token{"user", "optional", "user-or-client", "none"} {
			a := newApp(t, func(a *app, cfg *bff.Config) {
				client(token)(a, cfg)
				a.provider.Misbehave(t, brokertest.Discovery("", func(m map[string]any) { delete(m, "jwks_uri") }))
			})
			waitFor(t, string(token), func() bool { return strings.Contains(a.logs.String(), "jwks_uri: missing") })
		}
	})
}

// RFC 9700 4.12: requests to the provider are not redirected elsewhere.
func TestRedirectsOfTheProviderAreNotFollowed(t *testing.T) {
	t.Parallel()
	var strayed atomic.Int32
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		strayed.Add(1)
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, "{}")
	}))
	defer elsewhere.Close()
	for _, path := range []string{"/par", "/token", "/userinfo", "/jwks", "/revoke", "/openid-configuration"} {
		for _, status := range []int{302, 307} {
			redirect := devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if !strings.HasSuffix(r.URL.Path, path) {
					next.ServeHTTP(w, r)
					return
				}
				http.Redirect(w, r, elsewhere.URL+r.URL.Path, status)
			}}
			if path == "/openid-configuration" {
				a := newApp(t, func(a *app, _ *bff.Config) {
					a.provider.Misbehave(t, brokertest.ProviderDown)
					a.provider.SetHooks(redirect)
				})
				waitFor(t, "discovery fails", func() bool {
					return strings.Contains(a.logs.String(), "provider discovery failed")
				})
				continue
			}
			a := newApp(t, withUserInfo)
			b := a.browser()
			if path == "/revoke" {
				b = a.signedIn()
			}
			a.provider.SetHooks(redirect)
			switch resp := b.Navigate("/bff/login"); {
			case path == "/par":
				wantPage(t, resp, 502, "login_refused")
			case path == "/revoke":
				if got := b.Submit("/bff/logout", nil).StatusCode; got != 303 {
					t.Errorf("logout: got %d, want 303", got)
				}
			default:
				got := b.Navigate(b.Authorize("alice", resp.Location(t).String()).Location(t).String()).StatusCode
				if got/100 != 5 {
					t.Errorf("login with %d of %s: got %d, want 5xx", status, path, got)
				}
			}
			a.provider.Behave()
		}
	}
	if n := strayed.Load(); n > 0 {
		t.Errorf("%d redirects were followed, want none", n)
	}
}

// OpenID Connect Discovery 4.2: a login fails soon while discovery is slow.
func TestLoginDoesNotWaitForSlowDiscovery(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	a := newApp(t, func(a *app, cfg *bff.Config) {
		cfg.Provider.HTTPClient = &http.Client{Transport: httpClient.Transport, Timeout: 2 * time.Second}
		a.provider.Misbehave(t, brokertest.ProviderDown) // so that newApp does not wait for it
		a.provider.SetHooks(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			select {
			case <-release:
				next.ServeHTTP(w, r)
			case <-r.Context().Done():
			}
		}})
	})
	defer close(release)
	began := time.Now()
	wantPage(t, a.browser().Navigate("/bff/login"), 503, "provider_unavailable")
	if d := time.Since(began); d > 30*time.Second {
		t.Errorf("a login took %v to fail, want at most 30 s", d)
	}
	waitFor(t, "discovery times out", func() bool {
		return strings.Contains(a.logs.String(), "provider discovery failed")
	})
	a.provider.Behave()
	a.waitReady()
	if resp := a.browser().SignIn("alice", ""); resp.StatusCode != 303 {
		t.Errorf("login after discovery: got %d, want 303", resp.StatusCode)
	}
}
