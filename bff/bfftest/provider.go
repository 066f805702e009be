// Package bfftest is what a test of the broker needs around it: an identity provider that can be told to misbehave in one way at a
// time, an upstream that says what it got, and a browser.
package bfftest

import (
	"bytes"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// Provider is a development identity provider on a free port.
type Provider struct {
	*devidp.Provider
	Issuer         string
	Client         devidp.Client
	AccessTokenTTL time.Duration
	Roots          *x509.CertPool // who vouches for it; nil: nobody, for it speaks plain HTTP

	strayed atomic.Int32 // requests to elsewhere

	mu       sync.Mutex // guards all below
	issued   []string   // every token that was issued
	idTokens []string   // those of them that are ID tokens
	up       bool
}

// NewProvider starts a provider that knows the app at a URL, and alice and bob. It stops when the test ends.
func NewProvider(t testing.TB, app string) *Provider {
	t.Helper()
	return StartProvider(t, app, nil)
}

// StartProvider is NewProvider with a configuration that edit may change: the app is its first client, and the issuer has only a path. A provider whose first
// client has a certificate speaks TLS.
func StartProvider(t testing.TB, app string, edit func(*devidp.Config)) *Provider {
	t.Helper()
	p := &Provider{up: true}
	server := httptest.NewUnstartedServer(http.HandlerFunc(p.serve))
	newKey := func() (*rsa.PrivateKey, error) { return testenv.RSAKey(t), nil }
	cfg := devidp.Config{Issuer: "/op", AccessTokenTTL: 5 * time.Minute, NewKey: newKey, Clients: []devidp.Client{{
		ID:                     "spa",
		Secret:                 "s3cret:with/odd+characters%&",
		RedirectURIs:           []string{app + "/bff/callback"},
		PostLogoutRedirectURIs: []string{app + "/bff/logout/callback"},
	}}}
	if edit != nil {
		edit(&cfg)
	}
	secure := cfg.Clients[0].Certificate != nil
	scheme := "http://"
	if secure {
		scheme = "https://"
	}
	cfg.Issuer = scheme + server.Listener.Addr().String() + cfg.Issuer
	p.Issuer, p.Client, p.AccessTokenTTL = cfg.Issuer, cfg.Clients[0], cfg.AccessTokenTTL
	var err error
	if p.Provider, err = devidp.New(cfg); err != nil {
		t.Fatal(err)
	}
	if secure {
		server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
		server.StartTLS()
		p.Roots = x509.NewCertPool()
		p.Roots.AddCert(server.Certificate())
	} else {
		server.Start()
	}
	t.Cleanup(func() {
		server.Close()
		if n := p.strayed.Load(); n > 0 {
			t.Errorf("%d requests followed a redirect of the token endpoint, with all they carry", n)
		}
	})
	return p
}

// elsewhere is where a token endpoint that redirects sends its clients.
const elsewhere = "/elsewhere"

// serve passes requests to the provider, and takes down which tokens it issues.
func (p *Provider) serve(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == elsewhere {
		p.strayed.Add(1)
	}
	if !strings.HasSuffix(r.URL.Path, "/token") {
		p.Provider.ServeHTTP(w, r)
		return
	}
	p.Provider.ServeHTTP(&recorder{ResponseWriter: w, provider: p}, r)
}

type recorder struct {
	http.ResponseWriter
	provider *Provider
}

func (w *recorder) Write(b []byte) (int, error) {
	var answer map[string]any
	if json.NewDecoder(bytes.NewReader(b)).Decode(&answer) == nil {
		w.provider.mu.Lock()
		for _, name := range []string{"access_token", "refresh_token", "id_token"} {
			if token, _ := answer[name].(string); len(token) > 10 {
				w.provider.issued = append(w.provider.issued, token)
				if name == "id_token" {
					w.provider.idTokens = append(w.provider.idTokens, token)
				}
			}
		}
		w.provider.mu.Unlock()
	}
	return w.ResponseWriter.Write(b)
}

func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// NothingLeaked fails the test if text holds a token that was issued, the client's secret, or their like.
func (p *Provider) NothingLeaked(t testing.TB, where, text string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, secret := range append(p.issued, p.Client.Secret) {
		if secret != "" && strings.Contains(text, secret) {
			t.Errorf("%s holds the secret %.12s…", where, secret)
		}
	}
}

func (p *Provider) firstIDToken() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.idTokens[0]
}

func marshal(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // what a test made up
	}
	return string(b)
}

// Issued says whether a token with this Digest was issued.
func (p *Provider) Issued(digest string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.issued, func(token string) bool { return Digest(token) == digest })
}

// Up says whether the provider answers discovery as it should.
func (p *Provider) Up() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.up
}

// TokenRequests returns how many times the token endpoint was asked to redeem a code.
func (p *Provider) TokenRequests() int { return p.Stats().Tokens["authorization_code"] }

// Refreshes returns how many refresh requests arrived.
func (p *Provider) Refreshes() int { return p.Stats().Tokens["refresh_token"] }

// Reuses returns how many refresh tokens were used after they had been replaced.
func (p *Provider) Reuses() int { return p.Stats().Reuses }

// JWKSFetches returns how many times the key set was fetched.
func (p *Provider) JWKSFetches() int { return p.Stats().JWKSFetches }

// LiveRefreshTokens returns how many refresh tokens are good.
func (p *Provider) LiveRefreshTokens() int {
	n := 0
	for _, live := range p.Stats().LiveRefreshTokens {
		n += live
	}
	return n
}

// Misbehave makes the provider wrong in one way, until Behave or the end of the test.
func (p *Provider) Misbehave(t testing.TB, f Fault) {
	p.mu.Lock()
	p.up = !f.undiscoverable
	p.mu.Unlock()
	p.SetHooks(f.hooks(p))
	t.Cleanup(p.Behave)
}

// Behave makes the provider right again.
func (p *Provider) Behave() {
	p.mu.Lock()
	p.up = true
	p.mu.Unlock()
	p.SetHooks(devidp.Hooks{})
}

// Grace lets a replaced refresh token be used again for so long.
func (p *Provider) Grace(d time.Duration) { p.SetRefreshGrace(d) }
