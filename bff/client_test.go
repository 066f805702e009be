package bff_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
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
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

// call is one request of the broker to the provider.
type call struct {
	path   string // below the issuer
	form   url.Values
	header http.Header
	secure bool // with a client certificate
}

// calls are the requests to the provider since recordCalls.
type calls struct {
	mu  sync.Mutex
	all []call
}

// to returns the requests to a path.
func (c *calls) to(path string) []call {
	c.mu.Lock()
	defer c.mu.Unlock()
	var found []call
	for _, call := range c.all {
		if call.path == path {
			found = append(found, call)
		}
	}
	return found
}

// recordCalls records the requests to the provider. It replaces the provider's
// hooks by h.
func (a *app) recordCalls(h devidp.Hooks) *calls {
	c := new(calls)
	intercept := h.Intercept
	h.Intercept = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == "POST" {
			r.ParseForm()
		}
		c.mu.Lock()
		c.all = append(c.all, call{
			strings.TrimPrefix(r.URL.Path, "/op"), r.PostForm, r.Header.Clone(),
			r.TLS != nil && len(r.TLS.PeerCertificates) > 0,
		})
		c.mu.Unlock()
		if intercept != nil {
			intercept(w, r, next)
			return
		}
		next.ServeHTTP(w, r)
	}
	a.provider.SetHooks(h)
	a.t.Cleanup(a.provider.Behave)
	return c
}

// unverified returns the header and the claims of a JWT.
func unverified(t *testing.T, raw string) (header, claims map[string]any) {
	t.Helper()
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		t.Fatalf("%.40q is not a JWT", raw)
	}
	for i, v := range []*map[string]any{&header, &claims} {
		b, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, v); err != nil {
			t.Fatal(err)
		}
	}
	return header, claims
}

func ecKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func rsaKey(t *testing.T, bits int) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func edKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// certificate returns a self-signed certificate.
func certificate(t *testing.T, key crypto.Signer) *tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "spa"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// withKeys configures private_key_jwt with keys, at the provider and the app.
func withKeys(keys ...crypto.Signer) (func(*devidp.Config), func(*app, *bff.Config)) {
	return func(c *devidp.Config) {
			c.Clients[0].Secret = ""
			for _, k := range keys {
				c.Clients[0].Keys = append(c.Clients[0].Keys, jose.JSONWebKey{Key: k.Public()})
			}
		}, func(_ *app, cfg *bff.Config) {
			cfg.Provider.ClientSecret, cfg.Provider.ClientAuth, cfg.Provider.ClientKeys = "", "private_key_jwt", keys
		}
}

// checkLifecycle checks a login, a refresh, an API call and a logout.
func checkLifecycle(t *testing.T, a *app) {
	t.Helper()
	b := a.signedIn()
	if got := b.Fetch("POST", "/bff/session/refresh").StatusCode; got != 200 {
		t.Errorf("refresh: got %d, want 200\n%s", got, a.logs)
	}
	if got := b.Fetch("GET", "/api/x").StatusCode; got != 200 {
		t.Errorf("API call: got %d, want 200", got)
	}
	if got := b.Submit("/bff/logout", nil).StatusCode; got != 303 {
		t.Errorf("logout: got %d, want 303", got)
	}
}

func TestClientSecretIsSentByOneMethod(t *testing.T) {
	t.Parallel()
	for _, method := range []oidc.ClientAuth{oidc.ClientSecretBasic, oidc.ClientSecretPost} {
		t.Run(string(method), func(t *testing.T) {
			a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Provider.ClientAuth = method })
			c := a.recordCalls(devidp.Hooks{})
			checkLifecycle(t, a)
			for _, path := range []string{"/par", "/token", "/revoke"} {
				if len(c.to(path)) == 0 {
					t.Errorf("no request to %s", path)
				}
				for _, call := range c.to(path) {
					basic, post := call.header.Get("Authorization"), call.form.Has("client_secret")
					if (basic != "") != (method == oidc.ClientSecretBasic) {
						t.Errorf(`%s: (basic != ""): got %v, want %v`, path, (basic != ""),
							(method == oidc.ClientSecretBasic))
					}
					if post != (method == oidc.ClientSecretPost) {
						t.Errorf("%s: post: got %v, want %v", path, post, (method == oidc.ClientSecretPost))
					}
					if call.form.Has("client_assertion") {
						t.Errorf("%s: client_assertion is present, want none", path)
					}
				}
			}
		})
	}
}

// RFC 6749 2.3.1: the client id is form-encoded, as the secret is.
func TestClientIDMayContainAnyCharacter(t *testing.T) {
	t.Parallel()
	for _, method := range []oidc.ClientAuth{oidc.ClientSecretBasic, oidc.ClientSecretPost} {
		a := newAppWith(t, func(c *devidp.Config) {
			c.Clients[0].ID = "https://app.example/?a=b:c%20+é"
		}, func(_ *app, cfg *bff.Config) { cfg.Provider.ClientAuth = method })
		checkLifecycle(t, a)
	}
}

func TestClientAssertionIsForTheIssuerAndUsedOnce(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		key crypto.Signer
		alg string
	}{"RSA": {rsaKey(t, 2048), "PS256"}, "P-256": {ecKey(t), "ES256"}, "Ed25519": {edKey(t), "EdDSA"}} {
		t.Run(name, func(t *testing.T) {
			a := newAppWith(t, first(withKeys(test.key)), second(withKeys(test.key)))
			c := a.recordCalls(devidp.Hooks{})
			checkLifecycle(t, a)
			seen := make(map[any]bool)
			for _, path := range []string{"/par", "/token", "/token", "/revoke"} {
				for _, call := range c.to(path) {
					if call.header.Get("Authorization") != "" {
						t.Errorf("%s: Authorization: got %q, want none", path, call.header.Get("Authorization"))
					}
					if call.form.Has("client_secret") {
						t.Errorf("%s: client_secret is present, want none", path)
					}
					got := call.form.Get("client_assertion_type")
					if got != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" {
						t.Errorf("%s: client_assertion_type: got %q, want jwt-bearer", path, got)
					}
					header, claims := unverified(t, call.form.Get("client_assertion"))
					if header["typ"] != "client-authentication+jwt" || header["alg"] != test.alg ||
						header["kid"] == nil {
						t.Errorf("%s: header of the assertion: got %v", path, header)
					}
					if claims["aud"] != a.provider.Issuer || claims["iss"] != "spa" || claims["sub"] != "spa" {
						t.Errorf("%s: claims of the assertion: got %v", path, claims)
					}
					if life := claims["exp"].(float64) - claims["iat"].(float64); life <= 0 || life > 60 {
						t.Errorf("%s: lifetime of the assertion: got %v s, want at most 60", path, life)
					}
				}
			}
			for _, path := range []string{"/par", "/token", "/revoke"} {
				for _, call := range c.to(path) {
					_, claims := unverified(t, call.form.Get("client_assertion"))
					if seen[claims["jti"]] {
						t.Errorf("%s: jti %v is repeated", path, claims["jti"])
					}
					seen[claims["jti"]] = true
				}
			}
			if len(seen) < 5 {
				t.Errorf("%d assertions, want one for each of five requests", len(seen))
			}
		})
	}
}

func first[A, B any](a A, _ B) A { return a }

func second[A, B any](_ A, b B) B { return b }

func TestAssertionAudienceCanBeConfigured(t *testing.T) {
	t.Parallel()
	key := ecKey(t)
	provider, edit := withKeys(key)
	a := newAppWith(t, provider, func(a *app, cfg *bff.Config) {
		edit(a, cfg)
		cfg.Provider.AssertionAudience = a.provider.Issuer + "/token"
	})
	c := a.recordCalls(devidp.Hooks{})
	wantPage(t, a.browser().Navigate("/bff/login"), 502, "login_refused") // the development provider expects its issuer
	_, claims := unverified(t, c.to("/par")[0].form.Get("client_assertion"))
	if claims["aud"] != a.provider.Issuer+"/token" {
		t.Errorf("aud: got %v, want the configured audience", claims["aud"])
	}
	a = newAppWith(t, provider, func(a *app, cfg *bff.Config) {
		edit(a, cfg)
		cfg.Provider.AssertionAudience = "endpoint"
	})
	c = a.recordCalls(devidp.Hooks{})
	a.browser().Navigate("/bff/login")
	_, claims = unverified(t, c.to("/par")[0].form.Get("client_assertion"))
	if claims["aud"] != a.provider.Issuer+"/par" {
		t.Errorf("aud: got %v, want the endpoint", claims["aud"])
	}
}

func TestTrustedAudiencesAreAcceptedBesideTheClient(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Provider.TrustedAudiences = []string{"project", "sibling"} })
	named := func(aud ...string) devidp.Hooks {
		return devidp.Hooks{
			EditIDToken:     func(_, claims map[string]any) { claims["aud"] = aud },
			EditLogoutToken: func(_, claims map[string]any) { claims["aud"] = aud },
		}
	}
	for _, test := range []struct {
		aud  []string
		good bool
	}{
		{[]string{"spa", "project"}, true}, {[]string{"sibling", "spa", "project"}, true},
		{[]string{"project"}, false}, {[]string{"spa", "other"}, false},
		{[]string{"spa", "Project"}, false},
	} {
		time.Sleep(2 * time.Millisecond) // later than the previous logout
		a.recordCalls(named(test.aud...))
		b := a.browser()
		if resp := b.SignIn("alice", ""); (resp.StatusCode == 303) != test.good {
			t.Errorf("%q: got %d", test.aud, resp.StatusCode)
		}
		got := a.sendLogoutToken(url.Values{
			"logout_token": {a.logoutToken("alice", "", named(test.aud...))},
		}).StatusCode
		if (got == 200) != test.good {
			t.Errorf("a logout token for %q: got %d", test.aud, got)
		}
	}
}

func TestClientKeysArePublishedAndTheFirstSigns(t *testing.T) {
	t.Parallel()
	old, next := rsaKey(t, 2048), ecKey(t)
	provider, edit := withKeys(old, next)
	a := newAppWith(t, provider, edit)
	c := a.recordCalls(devidp.Hooks{})
	checkLifecycle(t, a)
	// the provider may use an internal name
	resp := a.browser().Do("GET", "/bff/jwks.json", "", "Host", "cloakroom.internal:8080")
	var set jose.JSONWebKeySet
	resp.Decode(t, &set)
	switch {
	case len(set.Keys) != 2:
		t.Fatalf("len(set.Keys): got %d, want 2", len(set.Keys))
	case !set.Keys[0].IsPublic():
		t.Fatal("set.Keys[0].IsPublic(): got false, want true")
	case !set.Keys[1].IsPublic():
		t.Fatal("set.Keys[1].IsPublic(): got false, want true")
	case strings.Contains(resp.Text, `"d"`):
		t.Fatalf(`body: got %q, want it not to contain "d"`, resp.Text)
	case resp.Header.Get("Cache-Control") != "no-store":
		t.Fatalf("Cache-Control: got %q, want no-store", resp.Header.Get("Cache-Control"))
	}
	for _, call := range c.to("/token") {
		header, _ := unverified(t, call.form.Get("client_assertion"))
		if header["kid"] != set.Keys[0].KeyID {
			t.Errorf("signed by %v, want %s", header["kid"], set.Keys[0].KeyID)
		}
	}
	wantProblem(t, newApp(t, nil).browser().Fetch("GET", "/bff/jwks.json"), 404, "not_found")
}

func TestClientCertificateIsUsedForProviderAndUpstream(t *testing.T) {
	t.Parallel()
	cert := certificate(t, ecKey(t))
	shown := make(chan []*x509.Certificate, 10)
	api := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		shown <- r.TLS.PeerCertificates
	}))
	api.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	api.StartTLS()
	defer api.Close()
	trust := x509.NewCertPool()
	trust.AddCert(api.Certificate())
	var bound string
	a := newAppWith(t, func(c *devidp.Config) {
		c.Clients[0].Certificate, c.Clients[0].Secret = cert.Leaf, ""
	}, func(a *app, cfg *bff.Config) {
		cfg.Provider.ClientSecret = ""
		cfg.Provider.ClientAuth = "self_signed_tls_client_auth"
		cfg.Provider.ClientCertificate = cert
		cfg.Provider.SenderConstraint, cfg.Provider.RootCAs, cfg.Provider.UserInfo = "mtls", a.provider.Roots, true
		cfg.Routes = []bff.Route{
			{Path: "/api/", Upstream: []string{api.URL}, Token: "user", TLS: &tls.Config{RootCAs: trust}},
			{Path: "/none/", Upstream: []string{api.URL}, Token: "none", TLS: &tls.Config{RootCAs: trust}},
		}
	})
	c := a.recordCalls(devidp.Hooks{
		EditAccessToken: func(_, claims map[string]any) { bound = fmt.Sprint(claims["cnf"]) },
	})
	b := a.signedIn()
	for _, path := range []string{"/mtls/par", "/mtls/token", "/mtls/userinfo"} {
		for _, call := range c.to(path) {
			if !call.secure {
				t.Errorf("%s: call.secure: got false, want true", path)
			}
			if path != "/mtls/userinfo" && call.form.Get("client_id") != "spa" {
				t.Errorf("%s: client_id: got %q, want spa", path, call.form.Get("client_id"))
			}
		}
		if len(c.to(path)) != 1 || len(c.to(strings.TrimPrefix(path, "/mtls"))) > 0 {
			t.Errorf("%s: got %d requests and %d at the endpoint it replaces", path, len(c.to(path)),
				len(c.to(strings.TrimPrefix(path, "/mtls"))))
		}
	}
	sum := sha256.Sum256(cert.Leaf.Raw)
	if want := "map[x5t#S256:" + base64.RawURLEncoding.EncodeToString(sum[:]) + "]"; bound != want {
		t.Errorf("the token is bound to %s, want %s", bound, want)
	}
	if resp := b.Fetch("GET", "/api/x"); resp.StatusCode != 200 {
		t.Fatalf("got %d %s, want 200", resp.StatusCode, resp.Text)
	}
	switch got := <-shown; {
	case len(got) != 1:
		t.Errorf("len(got): got %d, want 1", len(got))
	case !got[0].Equal(cert.Leaf):
		t.Error("got[0].Equal(cert.Leaf): got false, want true")
	}
	b.Fetch("GET", "/none/x")
	if got := <-shown; len(got) != 0 {
		t.Errorf("a route without token: the upstream got %d certificates, want none", len(got))
	}
	b.Submit("/bff/logout", nil)
	revoked := c.to("/mtls/revoke")
	for _, call := range revoked {
		if !call.secure {
			t.Error("/mtls/revoke: call.secure: got false, want true")
		}
		if call.form.Get("client_id") != "spa" {
			t.Errorf("/mtls/revoke: client_id: got %q, want spa", call.form.Get("client_id"))
		}
	}
	if len(revoked) != 2 || len(c.to("/revoke")) > 0 {
		t.Errorf("/mtls/revoke: got %d requests and %d at /revoke", len(revoked), len(c.to("/revoke")))
	}
}

// A provider that binds tokens to certificates announces it (RFC 8705 3.3). A
// route cannot use another certificate than the one they are bound to.
func TestTokensMustBeBoundToTheClientCertificate(t *testing.T) {
	t.Parallel()
	cert, other := certificate(t, ecKey(t)), certificate(t, ecKey(t))
	t.Run("the provider does not bind", func(t *testing.T) {
		a := newAppWith(t, func(c *devidp.Config) {
			c.Clients[0].Certificate, c.Clients[0].Secret = cert.Leaf, ""
		}, func(a *app, cfg *bff.Config) {
			cfg.Provider.ClientSecret = ""
			cfg.Provider.ClientAuth = "self_signed_tls_client_auth"
			cfg.Provider.ClientCertificate = cert
			cfg.Provider.SenderConstraint, cfg.Provider.RootCAs = "mtls", a.provider.Roots
			cfg.Routes = nil
			a.provider.Misbehave(t, brokertest.Discovery("", func(m map[string]any) {
				delete(m, "tls_client_certificate_bound_access_tokens")
			}))
		})
		waitFor(t, "the log names the missing metadata", func() bool {
			return strings.Contains(a.logs.String(), "does not bind access tokens to certificates")
		})
		wantPage(t, a.browser().Navigate("/bff/login"), 503, "provider_unavailable")
	})
	t.Run("the route has another certificate", func(t *testing.T) {
		_, err := bff.New(bff.Config{
			PublicURL: "https://app.example",
			Provider: bff.ProviderConfig{
				Issuer: "https://id.example", ClientID: "spa", ClientAuth: "tls_client_auth",
				ClientCertificate: cert, SenderConstraint: "mtls",
			},
			Routes: []bff.Route{{
				Path: "/api/", Upstream: []string{"https://api.internal"}, Token: "user",
				TLS: &tls.Config{Certificates: []tls.Certificate{*other}, RootCAs: x509.NewCertPool()},
			}},
		})
		if err == nil || !strings.Contains(err.Error(), "Routes[0]") {
			t.Errorf("error: got %v, want one that names Routes[0]", err)
		}
	})
}

func TestInvalidClientAuthentication(t *testing.T) {
	t.Parallel()
	weak, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		edit func(*bff.ProviderConfig)
		want string
	}{
		"an unknown method": {
			func(p *bff.ProviderConfig) { p.ClientAuth = "none" },
			"Provider.ClientAuth",
		},
		"no secret": {
			func(p *bff.ProviderConfig) { p.ClientSecret = "" },
			"Provider.ClientSecret: missing",
		},
		"no key": {
			func(p *bff.ProviderConfig) { p.ClientAuth, p.ClientSecret = "private_key_jwt", "" },
			"Provider.ClientKeys: missing",
		},
		"no certificate": {
			func(p *bff.ProviderConfig) { p.ClientAuth, p.ClientSecret = "tls_client_auth", "" },
			"Provider.ClientCertificate: missing",
		},
		"a secret beside a key": {
			func(p *bff.ProviderConfig) { p.ClientAuth, p.ClientKeys = "private_key_jwt", []crypto.Signer{ecKey(t)} },
			"Provider.ClientSecret: private_key_jwt does not use it",
		},
		"a weak RSA key": {
			func(p *bff.ProviderConfig) { p.ClientKeys = []crypto.Signer{rsaKey(t, 1024)} },
			"1024 bits",
		},
		"a weak curve": {
			func(p *bff.ProviderConfig) { p.ClientKeys = []crypto.Signer{weak} },
			"P-224",
		},
		"mtls without a certificate": {
			func(p *bff.ProviderConfig) { p.SenderConstraint = "mtls" },
			"Provider.ClientCertificate: missing; mtls",
		},
		"an unknown constraint": {
			func(p *bff.ProviderConfig) { p.SenderConstraint = "cookie" },
			"Provider.SenderConstraint",
		},
		"signed requests without a key": {
			func(p *bff.ProviderConfig) { p.SignRequests = true },
			"Provider.ClientKeys: missing; signed requests",
		},
		"a resource that is a path": {
			func(p *bff.ProviderConfig) { p.Resources = []string{"/orders"} },
			"Provider.Resources",
		},
		"a resource with a fragment": {
			func(p *bff.ProviderConfig) { p.Resources = []string{"https://orders.example/#x"} },
			"Provider.Resources",
		},
		"another redirect URI": {
			func(p *bff.ProviderConfig) { p.Parameters = map[string]string{"redirect_uri": "https://evil.example"} },
			"Provider.Parameters",
		},
		"a response mode": {
			func(p *bff.ProviderConfig) { p.ResponseMode = "fragment" },
			"Provider.ResponseMode",
		},
		"FAPI 2.0 with a secret": {
			func(p *bff.ProviderConfig) { p.FAPI2 = true },
			"Provider.ClientAuth: client_secret_basic is not for FAPI 2.0",
		},
		"FAPI 2.0 with an assertion of another issuer": {
			func(p *bff.ProviderConfig) {
				p.FAPI2, p.ClientSecret, p.ClientAuth, p.ClientAssertionFile = true, "", "jwt_file", "/nowhere"
			},
			"Provider.ClientAuth: jwt_file is not for FAPI 2.0",
		},
		"no assertion": {
			func(p *bff.ProviderConfig) { p.ClientAuth, p.ClientSecret = "jwt_file", "" },
			"Provider.ClientAssertionFile: missing",
		},
		"an assertion that cannot be read": {
			func(p *bff.ProviderConfig) {
				p.ClientAuth, p.ClientSecret, p.ClientAssertionFile = "jwt_file", "", "/nowhere"
			},
			"Provider.ClientAssertionFile: open /nowhere: no such file",
		},
		"a secret beside an assertion": {
			func(p *bff.ProviderConfig) { p.ClientAuth, p.ClientAssertionFile = "jwt_file", "/nowhere" },
			"Provider.ClientSecret: jwt_file does not use it",
		},
		"an assertion without its method": {
			func(p *bff.ProviderConfig) { p.ClientAssertionFile = "/nowhere" },
			"Provider.ClientAssertionFile: client_secret_basic does not use it",
		},
		"an assertion of an unknown type": {
			func(p *bff.ProviderConfig) { p.ClientAssertionType = "saml2-bearer" },
			"Provider.ClientAssertionType",
		},
		"an audience for an assertion that has one": {
			func(p *bff.ProviderConfig) {
				p.ClientAuth, p.ClientSecret, p.AssertionAudience = "jwt_file", "", "endpoint"
			},
			"Provider.AssertionAudience: the JWT of jwt_file",
		},
		"a logout URL without TLS": {
			func(p *bff.ProviderConfig) { p.LogoutURL = "http://id.example/logout" },
			"Provider.LogoutURL",
		},
		"a certificate and a transport": {
			func(p *bff.ProviderConfig) { p.HTTPClient, p.RootCAs = new(http.Client), x509.NewCertPool() },
			"Provider.HTTPClient",
		},
		"FAPI 2.0 with another audience": {
			func(p *bff.ProviderConfig) { p.FAPI2, p.AssertionAudience = true, "https://id.example/token" },
			"Provider.AssertionAudience",
		},
	} {
		cfg := bff.Config{
			PublicURL: "https://app.example",
			Provider:  bff.ProviderConfig{Issuer: "https://id.example", ClientID: "spa", ClientSecret: "s"},
			Sessions:  session.Config{Store: new(tokenstore.Memory), Keys: [][]byte{bytes.Repeat([]byte("k"), 32)}},
		}
		test.edit(&cfg.Provider)
		if _, err := bff.New(cfg); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %s", name, err, test.want)
		}
	}
}

// FAPI 2.0 Security Profile 5.3.3, with a provider that enforces it.
func TestFAPI2(t *testing.T) {
	t.Parallel()
	key := ecKey(t)
	provider, edit := withKeys(key)
	a := newAppWith(t, func(c *devidp.Config) {
		provider(c)
		c.SigningAlgorithm = "PS256"
		c.RequireDPoPNonce, c.Clients[0].DPoPBound, c.Clients[0].PushesRequests = true, true, true
	}, func(a *app, cfg *bff.Config) {
		edit(a, cfg)
		cfg.Provider.FAPI2 = true
	})
	c := a.recordCalls(devidp.Hooks{})
	b := a.browser()
	q := b.Navigate("/bff/login").Location(t).Query()
	if len(q) != 2 {
		t.Errorf("authorization request: len(q): got %d, want 2", len(q))
	}
	if !q.Has("client_id") {
		t.Error("authorization request: client_id is missing")
	}
	if !q.Has("request_uri") {
		t.Error("authorization request: request_uri is missing")
	}
	checkLifecycle(t, a)
	for _, call := range c.to("/par") {
		nonce := call.form.Get("nonce")
		if len(nonce) < 22 {
			t.Errorf("pushed request: len(nonce): got %d, want at least 22", len(nonce))
		}
		if len(nonce) > 64 {
			t.Errorf("pushed request: len(nonce): got %d, want at most 64", len(nonce))
		}
		if call.form.Get("code_challenge_method") != "S256" {
			t.Errorf("pushed request: code_challenge_method: got %q, want S256", call.form.Get("code_challenge_method"))
		}
	}
	t.Run("an issuer without iss in responses", func(t *testing.T) {
		a := newAppWith(t, provider, func(a *app, cfg *bff.Config) {
			edit(a, cfg)
			cfg.Provider.FAPI2 = true
			a.provider.Misbehave(t, brokertest.Discovery("no iss", func(m map[string]any) {
				delete(m, "authorization_response_iss_parameter_supported")
			}))
		})
		waitFor(t, "the metadata is rejected", func() bool { return strings.Contains(a.logs.String(), "RFC 9207") })
	})
	t.Run("a provider without pushed requests", func(t *testing.T) {
		a := newAppWith(t, provider, func(a *app, cfg *bff.Config) {
			edit(a, cfg)
			cfg.Provider.FAPI2 = true
			a.provider.Misbehave(t, brokertest.Discovery("", func(m map[string]any) {
				delete(m, "pushed_authorization_request_endpoint")
			}))
		})
		waitFor(t, "the metadata is rejected", func() bool {
			return strings.Contains(a.logs.String(), "no pushed_authorization_request_endpoint")
		})
	})
	t.Run("RSA signs with PS256", func(t *testing.T) {
		keys, edit := withKeys(rsaKey(t, 2048))
		a := newAppWith(t, func(c *devidp.Config) {
			keys(c)
			c.SigningAlgorithm = "PS256"
		}, func(a *app, cfg *bff.Config) {
			edit(a, cfg)
			cfg.Provider.FAPI2 = true
			a.provider.Misbehave(t, brokertest.Discovery("", func(m map[string]any) {
				delete(m, "token_endpoint_auth_signing_alg_values_supported")
			}))
		})
		a.waitReady()
		c := a.recordCalls(devidp.Hooks{})
		checkLifecycle(t, a)
		header, _ := unverified(t, c.to("/token")[0].form.Get("client_assertion"))
		if header["alg"] != "PS256" {
			t.Errorf("alg: got %v, want PS256", header["alg"])
		}
	})
}

// FAPI 2.0 5.4: ID tokens are signed with PS256, ES256 or EdDSA.
func TestFAPI2RejectsRS256(t *testing.T) {
	t.Parallel()
	provider, edit := withKeys(ecKey(t))
	a := newAppWith(t, provider, func(a *app, cfg *bff.Config) {
		edit(a, cfg)
		cfg.Provider.FAPI2 = true
	})
	var alg string
	a.recordCalls(devidp.Hooks{EditTokenResponse: func(_ string, _ int, body map[string]any) {
		if raw, ok := body["id_token"].(string); ok {
			header, _ := unverified(t, raw)
			alg = fmt.Sprint(header["alg"])
		}
	}})
	if resp := a.browser().SignIn("alice", ""); resp.StatusCode == 303 {
		t.Errorf("login with an ID token signed with %s: got 303, want a failure", alg)
	}
}

// FAPI 2.0 5.4: RSA keys, also those of the provider, have 2048 bits or more.
func TestFAPI2RejectsSmallKeyOfTheProvider(t *testing.T) {
	t.Parallel()
	keys, edit := withKeys(ecKey(t))
	small := rsaKey(t, 1024)
	a := newAppWith(t, func(c *devidp.Config) { keys(c); c.SigningAlgorithm = "PS256" }, func(a *app, cfg *bff.Config) {
		edit(a, cfg)
		cfg.Provider.FAPI2 = true
	})
	a.recordCalls(devidp.Hooks{
		EditJWKS: func(set map[string]any) {
			set["keys"] = []any{jose.JSONWebKey{Key: small.Public(), KeyID: "small", Use: "sig"}}
		},
		SignIDToken: func(header, claims map[string]any) (string, error) {
			header["alg"], header["kid"] = "PS256", "small"
			input, err := devidp.SigningInput(header, claims)
			if err != nil {
				return "", err
			}
			sum := sha256.Sum256([]byte(input))
			signature, err := rsa.SignPSS(rand.Reader, small, crypto.SHA256, sum[:],
				&rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
			return input + "." + base64.RawURLEncoding.EncodeToString(signature), err
		},
	})
	if resp := a.browser().SignIn("alice", ""); resp.StatusCode == 303 {
		t.Error("login with an ID token signed by a key of 1024 bits: got 303, want a failure")
	}
}

// FAPI 2.0 5.4: ES384 is not allowed for client assertions.
func TestFAPI2RejectsP384Key(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, err = bff.New(bff.Config{PublicURL: "https://app.example", Provider: bff.ProviderConfig{
		Issuer: "https://id.example", ClientID: "spa", ClientAuth: "private_key_jwt",
		ClientKeys: []crypto.Signer{key}, FAPI2: true,
	}})
	if err == nil || !strings.Contains(err.Error(), "ClientKeys") {
		t.Errorf("error: got %v, want one that names ClientKeys", err)
	}
}

func TestAuthorizationRequestsArePushed(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	c := a.recordCalls(devidp.Hooks{})
	b := a.browser()
	seen := make(map[string]bool)
	for range 2 {
		q := b.Navigate("/bff/login?login_hint=alice").Location(t).Query()
		if len(q) != 2 {
			t.Errorf("authorization request: got %v, want client_id and request_uri only", q)
		}
		if got := q.Get("client_id"); got != "spa" {
			t.Errorf("client_id: got %q, want spa", got)
		}
		if got := q.Get("request_uri"); seen[got] {
			t.Errorf("request_uri %q is repeated", got)
		}
		seen[q.Get("request_uri")] = true
	}
	pushed := c.to("/par")
	switch {
	case len(pushed) != 2:
		t.Errorf("pushed request: len(pushed): got %d, want 2", len(pushed))
	case pushed[0].form.Get("login_hint") != "alice":
		t.Errorf("pushed request: login_hint: got %q, want alice", pushed[0].form.Get("login_hint"))
	case pushed[0].form.Has("request_uri"):
		t.Error("pushed request: request_uri is present, want none")
	case pushed[0].form.Get("redirect_uri") == "":
		t.Error("pushed request: redirect_uri is missing")
	}
	if resp := b.SignIn("alice", ""); resp.StatusCode != 303 {
		t.Errorf("got %d, want 303", resp.StatusCode)
	}
}

func TestFailedPushStartsNoLogin(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	respond := func(status int, body string) devidp.Hooks {
		return devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if !strings.HasSuffix(r.URL.Path, "/par") {
				next.ServeHTTP(w, r)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			io.WriteString(w, body)
		}}
	}
	good := `{"request_uri":"urn:x","expires_in":60}`
	for _, test := range []struct {
		status int
		body   string
		want   int
		code   string
	}{
		{200, good, 502, "login_refused"},
		{201, `{"expires_in":60}`, 502, "login_refused"},
		{201, `{"request_uri":"urn:x"}`, 502, "login_refused"},
		{201, `{"request_uri":7,"expires_in":60}`, 502, "login_refused"},
		{201, `<html>`, 502, "login_refused"},
		{201, strings.Repeat(" ", 2<<20), 503, "provider_unavailable"},
		{307, good, 502, "login_refused"},
		{400, `{"error":"invalid_request"}`, 502, "login_refused"},
		{400, `{"error":"invalid_grant"}`, 502, "login_refused"},
		{401, `{"error":"invalid_client"}`, 502, "login_refused"},
		{405, ``, 502, "login_refused"},
		{413, ``, 502, "login_refused"},
		{429, ``, 503, "provider_unavailable"},
		{500, ``, 503, "provider_unavailable"},
	} {
		c := a.recordCalls(respond(test.status, test.body))
		b := a.browser()
		got := b.Navigate("/bff/login?return_to=/x")
		wantPage(t, got, test.want, test.code)
		if n := len(c.to("/par")); n != 1 || len(got.Cookies()) > 0 {
			t.Errorf("%d %s: pushed %d times, cookies %v", test.status,
				test.body[:min(len(test.body), 60)], n, got.Cookies())
		}
	}
}

func TestPushedRequestsFollowConfigurationAndMetadata(t *testing.T) {
	t.Parallel()
	a := newApp(t, unpushed)
	switch q := a.browser().Navigate("/bff/login").Location(t).Query(); {
	case q.Has("request_uri"):
		t.Error("never: request_uri is present, want none")
	case !q.Has("state"):
		t.Error("never: state is missing")
	}
	for name, test := range map[string]struct {
		mode oidc.PushedRequests
		edit func(m map[string]any)
		want string
	}{
		"always, and there is no endpoint": {
			"always",
			func(m map[string]any) { delete(m, "pushed_authorization_request_endpoint") },
			"no pushed_authorization_request_endpoint",
		},
		"never, and it is required": {
			"never",
			func(m map[string]any) { m["require_pushed_authorization_requests"] = true },
			"requires pushed authorization requests",
		},
		"an endpoint without TLS": {
			"",
			func(m map[string]any) { m["pushed_authorization_request_endpoint"] = "http://id.example/par" },
			"pushed_authorization_request_endpoint",
		},
	} {
		a := newApp(t, func(a *app, cfg *bff.Config) {
			cfg.Provider.PushedRequests = test.mode
			a.provider.Misbehave(t, brokertest.Discovery(name, test.edit))
		})
		waitFor(t, name, func() bool { return strings.Contains(a.logs.String(), test.want) })
		wantPage(t, a.browser().Navigate("/bff/login"), 503, "provider_unavailable")
	}
}

func TestAuthorizationRequestsAreSigned(t *testing.T) {
	t.Parallel()
	for _, pushed := range []oidc.PushedRequests{oidc.PushAlways, oidc.PushNever} {
		t.Run("pushed "+string(pushed), func(t *testing.T) {
			key := ecKey(t)
			a := newAppWith(t, func(c *devidp.Config) {
				c.Clients[0].Keys, c.Clients[0].SignsRequests = []jose.JSONWebKey{{Key: key.Public()}}, true
			}, func(_ *app, cfg *bff.Config) {
				cfg.Provider.ClientKeys, cfg.Provider.PushedRequests = []crypto.Signer{key}, pushed
				cfg.Provider.SignRequests = true
				cfg.Provider.Resources = []string{"https://a.example", "https://b.example"}
			})
			c := a.recordCalls(devidp.Hooks{})
			b := a.browser()
			if resp := b.SignIn("alice", "login_hint=alice&return_to=/x"); resp.StatusCode != 303 {
				t.Fatalf("got %d, want 303\n%s", resp.StatusCode, a.logs)
			}
			var request string
			if pushed == oidc.PushAlways {
				form := c.to("/par")[0].form
				request = form.Get("request")
				for _, name := range []string{"state", "scope", "request_uri"} {
					if form.Has(name) {
						t.Errorf("pushed request: %s is present, want it in the request object only", name)
					}
				}
			} else {
				q := b.Navigate("/bff/login?login_hint=alice").Location(t).Query()
				switch request = q.Get("request"); {
				case q.Get("client_id") != "spa":
					t.Errorf("authorization request: client_id: got %q, want spa", q.Get("client_id"))
				case q.Has("request_uri"):
					t.Error("authorization request: request_uri is present, want none")
				case q.Has("state"):
					t.Error("authorization request: state is present, want none")
				case q.Has("nonce"):
					t.Error("authorization request: nonce is present, want none")
				}
			}
			header, claims := unverified(t, request)
			if header["typ"] != "oauth-authz-req+jwt" || claims["iss"] != "spa" ||
				claims["aud"] != a.provider.Issuer || claims["client_id"] != "spa" || claims["sub"] != nil ||
				claims["exp"] == nil || claims["login_hint"] != "alice" ||
				claims["code_challenge"] == nil || claims["redirect_uri"] != a.url+"/bff/callback" {
				t.Errorf("header %v, claims %v", header, claims)
			}
			if got := fmt.Sprint(claims["resource"]); got != "[https://a.example https://b.example]" {
				t.Errorf("resource: got %s, want both", got)
			}
		})
	}
	t.Run("required by the provider", func(t *testing.T) {
		key := ecKey(t)
		a := newAppWith(t, func(c *devidp.Config) {
			c.Clients[0].Keys = []jose.JSONWebKey{{Key: key.Public()}}
		}, func(a *app, cfg *bff.Config) {
			cfg.Provider.ClientKeys = []crypto.Signer{key}
			f := brokertest.Discovery("", func(m map[string]any) { m["require_signed_request_object"] = true })
			a.provider.Misbehave(t, f)
		})
		a.waitReady()
		c := a.recordCalls(devidp.Hooks{})
		a.browser().Navigate("/bff/login")
		if !c.to("/par")[0].form.Has("request") {
			t.Error("the request is not signed")
		}
	})
}

// RFC 9101 4: parameters of a request object have JSON types.
func TestMaxAgeInSignedRequestIsANumber(t *testing.T) {
	t.Parallel()
	provider, edit := withKeys(ecKey(t))
	a := newAppWith(t, provider, func(a *app, cfg *bff.Config) {
		edit(a, cfg)
		cfg.Provider.SignRequests, cfg.Provider.PushedRequests = true, "never"
	})
	u := a.browser().Navigate("/bff/login?max_age=60").Location(t)
	_, claims := unverified(t, u.Query().Get("request"))
	if _, ok := claims["max_age"].(float64); !ok {
		t.Errorf("max_age: got %#v, want a number", claims["max_age"])
	}
}

func TestAuthorizationRequestHasConfiguredParameters(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		p := &cfg.Provider
		p.PushedRequests = "never"
		p.Resources = []string{"https://a.example", "https://b.example"}
		p.Audience = "https://orders.example"
		p.Parameters = map[string]string{"access_type": "offline", "prompt": "consent"}
		cfg.Routes[0].Resource, cfg.Routes[0].Scopes = "https://c.example", []string{"orders:read"}
	})
	b := a.browser()
	q := b.Navigate("/bff/login?resource=https://evil.example&audience=evil&access_type=online").Location(t).Query()
	if !slices.Equal(q["resource"], []string{
		"https://a.example", "https://b.example", "https://c.example",
	}) || q.Get("audience") != "https://orders.example" ||
		q.Get("access_type") != "offline" || q.Get("prompt") != "consent" ||
		q.Get("scope") != "openid profile email offline_access orders:read" {
		t.Errorf("got %v", q)
	}
	if q := b.Navigate("/bff/login?prompt=login").Location(t).Query(); q.Get("prompt") != "consent login" {
		t.Errorf("prompt: got %q, want the values of configuration and app", q["prompt"])
	}
}

func TestAuthorizationResponseByFormPost(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Provider.ResponseMode = "form_post" })
	posted := func(t *testing.T, b *bfftest.Browser) url.Values {
		t.Helper()
		page := b.Follow(b.Navigate("/bff/login?return_to=/x"), "")
		form := url.Values{"user": {"alice"}, "csrf": {brokertest.HiddenFields(page.Text).Get("csrf")}}
		page = b.Submit(page.Request.URL.String(), form)
		fields := brokertest.HiddenFields(page.Text)
		if !fields.Has("code") {
			t.Fatal("code is missing")
		}
		if !fields.Has("state") {
			t.Fatal("state is missing")
		}
		if !fields.Has("iss") {
			t.Fatal("iss is missing")
		}
		return fields
	}
	crossSite := func(b *bfftest.Browser, form url.Values) *bfftest.Response {
		return b.Do("POST", "/bff/callback", form.Encode(),
			"Content-Type", "application/x-www-form-urlencoded", "Accept", "text/html",
			"Origin", "https://id.example", "Sec-Fetch-Mode", "navigate",
			"Sec-Fetch-Dest", "document", "Sec-Fetch-Site", "cross-site")
	}
	t.Run("posted again by the broker's page", func(t *testing.T) {
		b := a.browser()
		form := posted(t, b)
		form.Set("x", `"><script>`)
		page := crossSite(a.browser(), form) // without cookies
		again := brokertest.HiddenFields(page.Text)
		if page.StatusCode != 200 {
			t.Fatalf("status: got %d, want 200:\n%s", page.StatusCode, page.Text)
		}
		if again.Get("code") != form.Get("code") {
			t.Fatalf("code: got %q, want %q", again.Get("code"), form.Get("code"))
		}
		if again.Get("state") != form.Get("state") {
			t.Fatalf("state: got %q, want %q", again.Get("state"), form.Get("state"))
		}
		if again.Get("iss") != form.Get("iss") {
			t.Fatalf("iss: got %q, want %q", again.Get("iss"), form.Get("iss"))
		}
		if again.Has("x") {
			t.Fatal("x is present, want none")
		}
		csp := page.Header.Get("Content-Security-Policy")
		if !strings.Contains(csp, "default-src 'none'") {
			t.Errorf("Content-Security-Policy: got %q, want it to contain default-src 'none'", csp)
		}
		if strings.Contains(csp, "form-action") {
			t.Errorf("Content-Security-Policy: got %q, want it not to contain form-action", csp)
		}
		if strings.Contains(csp, "unsafe") {
			t.Errorf("Content-Security-Policy: got %q, want it not to contain unsafe", csp)
		}
		if page.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("Cache-Control: got %q, want no-store", page.Header.Get("Cache-Control"))
		}
		if resp := b.Submit("/bff/callback", again); resp.StatusCode != 303 || resp.Header.Get("Location") != "/x" {
			t.Errorf("got %d %s\n%s", resp.StatusCode, resp.Header.Get("Location"), resp.Text)
		}
		a.wantSession(b, "alice")
		before := a.provider.TokenRequests()
		// there is a session now
		resp := b.Submit("/bff/callback", again)
		if resp.StatusCode != 303 || resp.Header.Get("Location") != "/x" || a.provider.TokenRequests() != before {
			t.Errorf("repeated: got %d to %s and %d more token requests, want 303 to /x and none", resp.StatusCode,
				resp.Header.Get("Location"), a.provider.TokenRequests()-before)
		}
	})
	t.Run("as a query", func(t *testing.T) {
		b := a.browser()
		form := posted(t, b)
		wantProblem(t, b.Navigate("/bff/callback?"+form.Encode()), 405, "method_not_allowed")
		a.wantSession(b, "")
	})
	t.Run("by another browser", func(t *testing.T) {
		form := posted(t, a.browser())
		form.Set("cloakroom_again", "1")
		b := a.browser()
		resp := crossSite(b, form) // a stale attempt restarts the login here
		if resp.StatusCode != 303 {
			t.Errorf("status: got %d, want 303", resp.StatusCode)
		}
		if !strings.HasPrefix(resp.Header.Get("Location"), a.provider.Issuer) {
			t.Errorf("Location: got %q, want prefix %q", resp.Header.Get("Location"), a.provider.Issuer)
		}
		a.wantSession(b, "")
	})
	t.Run("twice", func(t *testing.T) {
		b := a.browser()
		form := posted(t, b)
		form.Add("code", "another")
		wantPage(t, b.Submit("/bff/callback", brokertest.HiddenFields(crossSite(b, form).Text)), 400, "bad_callback")
		form.Set("cloakroom_again", "1")
		wantPage(t, b.Submit("/bff/callback", form), 400, "bad_callback")
	})
	t.Run("malformed", func(t *testing.T) {
		for _, test := range [][2]string{
			{"", ""},
			{"", "application/x-www-form-urlencoded"},
			{"x=%zz", "application/x-www-form-urlencoded"},
			{"{}", "application/json"},
			{strings.Repeat("a", 70<<10), "application/x-www-form-urlencoded"},
		} {
			resp := a.browser().Do("POST", "/bff/callback", test[0], "Content-Type", test[1])
			// the page with nothing in it leads to 400
			if resp.StatusCode != 400 && !(resp.StatusCode == 200 && test[0] == "") {
				t.Errorf("%.20q as %s: got %d", test[0], test[1], resp.StatusCode)
			}
		}
	})
}

// RFC 9700 4.12: a redirect after a POST is a 303. The page with the form has
// no form-action, which Chromium also applies to that redirect.
func TestRestartAfterFormPostRedirectsWith303(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Provider.ResponseMode = "form_post" })
	b := a.browser()
	page := b.Follow(b.Navigate("/bff/login"), "")
	page = b.Submit(page.Request.URL.String(), url.Values{
		"user": {"alice"},
		"csrf": {brokertest.HiddenFields(page.Text).Get("csrf")},
	})
	form := brokertest.HiddenFields(page.Text)
	b.ClearCookies() // the attempt becomes stale
	first := b.Do("POST", "/bff/callback", form.Encode(),
		"Content-Type", "application/x-www-form-urlencoded", "Accept", "text/html",
		"Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document", "Sec-Fetch-Site", "cross-site")
	resp := b.Submit("/bff/callback", brokertest.HiddenFields(first.Text))
	wantStatus(t, "restarted login", resp, 303)
	if csp := first.Header.Get("Content-Security-Policy"); strings.Contains(csp, "form-action") {
		t.Errorf("Content-Security-Policy: got %q, want no form-action", csp)
	}
}
