// Package brokertest has the peers of a broker under test: an OpenID provider
// that misbehaves in one way at a time, and an upstream that responds with the
// request it received. Package bfftest has the browser.
package brokertest

import (
	"bytes"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"maps"
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

// Provider is a development identity provider on a free port. It records the
// tokens that it issues.
type Provider struct {
	*devidp.Provider
	Issuer         string
	Client         devidp.Client
	AccessTokenTTL time.Duration
	Roots          *x509.CertPool // that verify its certificate; nil: it uses plain HTTP

	redirected atomic.Int32 // requests that followed the redirect of a Fault

	mu           sync.Mutex // guards all below
	issued       []string   // all tokens
	idTokens     []string   // the ID tokens among them
	discoverable bool
}

// NewProvider starts a provider with the users alice and bob and one client:
// the app at an origin. It stops when the test ends.
func NewProvider(t testing.TB, origin string) *Provider {
	t.Helper()
	return StartProvider(t, origin, nil)
}

// StartProvider is NewProvider with a configuration that edit may change. The
// app is the first client, and the issuer is only a path. If that client has a
// certificate, the provider uses TLS.
func StartProvider(t testing.TB, origin string, edit func(*devidp.Config)) *Provider {
	t.Helper()
	p := &Provider{discoverable: true}
	server := httptest.NewUnstartedServer(http.HandlerFunc(p.serve))
	newKey := func() (*rsa.PrivateKey, error) { return testenv.RSAKey(t), nil }
	cfg := devidp.Config{Issuer: "/op", AccessTokenTTL: 5 * time.Minute, NewKey: newKey, Clients: []devidp.Client{{
		ID:                     "spa",
		Secret:                 "s3cret:with/odd+characters%&",
		RedirectURIs:           []string{origin + "/bff/callback"},
		PostLogoutRedirectURIs: []string{origin + "/bff/logout/callback"},
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
		if n := p.redirected.Load(); n > 0 {
			t.Errorf("%d requests with credentials followed a redirect of the token endpoint", n)
		}
	})
	return p
}

// redirectPath is the target of a Fault that redirects token requests.
const redirectPath = "/elsewhere"

// serve serves a request and records the tokens in the response.
func (p *Provider) serve(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == redirectPath {
		p.redirected.Add(1)
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
	var response map[string]any
	if json.NewDecoder(bytes.NewReader(b)).Decode(&response) == nil {
		w.provider.mu.Lock()
		for _, name := range []string{"access_token", "refresh_token", "id_token"} {
			if token, _ := response[name].(string); len(token) > 10 {
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

// CheckLeaks fails the test if text contains the client secret or an issued
// token.
func (p *Provider) CheckLeaks(t testing.TB, name, text string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	words := strings.Join(TokenLike(text), " ")
	for _, secret := range append(p.issued, p.Client.Secret) {
		searched := text
		if len(secret) >= minToken && strings.IndexFunc(secret, notInToken) < 0 {
			searched = words // shorter, and contains the secret if the text does
		}
		if secret != "" && strings.Contains(searched, secret) {
			t.Errorf("%s: contains the secret %.12s…", name, secret)
		}
	}
}

// minToken is the length of the shortest word that may contain a token.
const minToken = 40

// notInToken reports whether a character is in no token.
func notInToken(r rune) bool {
	switch {
	case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
		return false
	}
	return !strings.ContainsRune("_.+/=-", r)
}

// TokenLike returns the distinct words of a text that may contain a token:
// those of 40 or more characters of [A-Za-z0-9_.+/=-]. A test that receives
// much text can keep them instead of the text, for CheckLeaks.
//
// There is much text, and a regular expression is slow under the race detector.
func TokenLike(text string) []string {
	words := make(map[string]bool)
	for word := range strings.FieldsFuncSeq(text, notInToken) {
		if len(word) >= minToken {
			words[word] = true
		}
	}
	return slices.Collect(maps.Keys(words))
}

func (p *Provider) firstIDToken() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.idTokens[0]
}

func marshal(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // a value that a test made
	}
	return string(b)
}

// Issued reports whether a token with this Digest was issued.
func (p *Provider) Issued(digest string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.issued, func(token string) bool { return Digest(token) == digest })
}

// Discoverable reports whether discovery succeeds with the current Fault.
func (p *Provider) Discoverable() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.discoverable
}

// TokenRequests returns the number of token requests with a code.
func (p *Provider) TokenRequests() int { return p.Stats().Tokens["authorization_code"] }

// Refreshes returns the number of refresh requests.
func (p *Provider) Refreshes() int { return p.Stats().Tokens["refresh_token"] }

// Reuses returns the number of refresh requests with a token that had been
// rotated.
func (p *Provider) Reuses() int { return p.Stats().Reuses }

// JWKSFetches returns the number of requests for the key set.
func (p *Provider) JWKSFetches() int { return p.Stats().JWKSFetches }

// LiveRefreshTokens returns the number of valid refresh tokens.
func (p *Provider) LiveRefreshTokens() int {
	n := 0
	for _, live := range p.Stats().LiveRefreshTokens {
		n += live
	}
	return n
}

// Misbehave puts a Fault in force until Behave or the end of the test. It
// replaces the one before.
func (p *Provider) Misbehave(t testing.TB, f Fault) {
	p.mu.Lock()
	p.discoverable = !f.undiscoverable
	p.mu.Unlock()
	p.SetHooks(f.hooks(p))
	t.Cleanup(p.Behave)
}

// Behave ends the Fault in force.
func (p *Provider) Behave() {
	p.mu.Lock()
	p.discoverable = true
	p.mu.Unlock()
	p.SetHooks(devidp.Hooks{})
}
