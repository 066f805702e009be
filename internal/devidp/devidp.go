// Package devidp is an OpenID provider for development, used by the demo and
// the tests. It implements OpenID Connect (discovery, a rotating key set,
// authorization code with PKCE, PAR, JAR, RFC 9207, refresh rotation with reuse
// detection, RP-initiated and back-channel logout, revocation, userinfo, client
// credentials, token exchange, private_key_jwt, mTLS, DPoP), but it has no
// passwords: a visitor picks a user. Its issuer must therefore be on a loopback
// host.
//
// To sign in without a browser, keep cookies, and
//
//  1. GET the authorization URL. The response is the page to pick a user, or a
//     redirect to the client if the cookies identify a session.
//  2. POST to the same URL the form fields csrf, the value of the page's hidden
//     field, and user: the Sub of a user, or nothing to refuse.
//
// The response to that is the redirect to the client. Instead of user, the form
// can have claims: the claims of any user, as a JSON object with sub.
//
// A program that runs the provider can also sign in a user by a login_hint, see
// Provider.SignInOnce.
//
// Hooks make it misbehave for a test. Without them it follows the standards.
// All state is in memory, and expired state is removed.
package devidp

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/loopback"
)

// Provider is the provider as an http.Handler.
type Provider struct {
	cfg        Config
	base       string // of its URLs: the issuer without a slash at its end
	path       string // of base
	cookieName string
	mux        *http.ServeMux
	hooks      atomic.Pointer[Hooks]
	directory  atomic.Pointer[directory]

	mu            sync.Mutex                // guards all below
	keys          []key                     // the newest signs, all are published
	pushed        map[string]*pushedRequest // :: request_uri →
	codes         map[string]*code
	sessions      map[string]*session // :: its cookie →
	refreshTokens map[string]*refreshToken
	accessTokens  map[string]*accessToken
	used          map[string]time.Time       // :: kind and jti of a DPoP proof or client assertion → expiry
	prepared      map[string]*preparedSignIn // :: login_hint →
	dpopNonce     string
	dpopNonceMade time.Time
	refreshGrace  time.Duration
	pruned        time.Time // last run of prune
	stats         Stats
}

// Stats counts requests and events, for tests.
type Stats struct {
	// Tokens counts token requests by grant type, refused ones included. All
	// unknown grant types count as "unsupported".
	Tokens             map[string]int
	Reuses             int // of replaced refresh tokens
	Authorizations     int // authorization requests
	PushedRequests     int // that were accepted
	Revocations        int // of authenticated clients, of unknown tokens too
	DiscoveryFetches   int
	JWKSFetches        int
	LiveRefreshTokens  map[string]int // :: sid → valid refresh tokens
	BackchannelLogouts int            // that clients acknowledged
}

// New returns a Provider. The error joins every mistake in cfg.
func New(cfg Config) (*Provider, error) {
	u, err := cfg.check()
	if err != nil {
		return nil, err
	}
	cfg.setDefaults(u)
	p := &Provider{
		cfg:  cfg,
		base: strings.TrimSuffix(cfg.Issuer, "/"),
		path: strings.TrimSuffix(u.Path, "/"),
		// Cookies do not depend on the port (RFC 6265, section 8.5), and
		// another provider may listen on another port.
		cookieName: strings.TrimSuffix("devidp-"+u.Port(), "-"),
		mux:        http.NewServeMux(),

		pushed: make(map[string]*pushedRequest), codes: make(map[string]*code), sessions: make(map[string]*session),
		refreshTokens: make(map[string]*refreshToken), accessTokens: make(map[string]*accessToken),
		prepared:     make(map[string]*preparedSignIn),
		used:         make(map[string]time.Time),
		refreshGrace: cfg.RefreshGrace, stats: Stats{Tokens: make(map[string]int)},
	}
	p.SetHooks(Hooks{})
	if err := p.SetUsers(cfg.Users, cfg.ACRValues); err != nil {
		return nil, err
	}
	if err := p.RotateKeys(); err != nil {
		return nil, err
	}
	p.addEndpoints()
	return p, nil
}

func (p *Provider) addEndpoints() {
	for _, route := range []struct {
		method, path string
		handler      http.HandlerFunc
	}{
		{"GET", "/.well-known/openid-configuration", p.discovery},
		{"GET", "/jwks", p.jwks},
		{"GET", "/authorize", p.authorize},
		{"POST", "/authorize", p.authorize},
		{"POST", "/par", p.push},
		{"POST", "/token", p.token},
		{"POST", "/revoke", p.revoke},
		{"GET", "/userinfo", p.userinfo},
		{"POST", "/userinfo", p.userinfo},
		{"GET", "/logout", p.endSession},
		{"POST", "/logout", p.endSession},
		{"POST", "/mtls/par", p.push},
		{"POST", "/mtls/token", p.token},
		{"POST", "/mtls/revoke", p.revoke},
		{"GET", "/mtls/userinfo", p.userinfo},
		{"GET", "/style.css", serveFile("style.css")},
		{"GET", "/form-post.js", serveFile("form-post.js")},
	} {
		p.mux.HandleFunc(route.method+" "+p.path+route.path, route.handler)
	}
}

// ServeHTTP serves requests whose Host is a loopback host. Otherwise a page of
// another site could sign in by DNS rebinding.
func (p *Provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if host := (&url.URL{Host: r.Host}).Hostname(); !loopback.IsHost(host) {
		http.Error(w, "this provider serves loopback hosts only", http.StatusMisdirectedRequest)
		return
	}
	if intercept := p.hooks.Load().Intercept; intercept != nil {
		intercept(w, r, p.mux)
		return
	}
	p.mux.ServeHTTP(w, r)
}

// Stats returns the counts so far.
func (p *Provider) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.stats
	s.Tokens = maps.Clone(s.Tokens)
	s.LiveRefreshTokens = make(map[string]int)
	for _, t := range p.refreshTokens {
		if t.replaced.IsZero() && time.Now().Before(t.grant.expires) {
			s.LiveRefreshTokens[t.grant.sid]++
		}
	}
	return s
}

// root returns scheme and host of the issuer.
func (p *Provider) root() string { return strings.TrimSuffix(p.base, p.path) }

func (p *Provider) client(id string) *Client {
	for i := range p.cfg.Clients {
		if p.cfg.Clients[i].ID == id {
			return &p.cfg.Clients[i]
		}
	}
	return nil
}

// prune removes expired state, at most once a minute. The caller holds mu.
// Readers check the expiry themselves.
func (p *Provider) prune() {
	now := time.Now()
	if now.Sub(p.pruned) < time.Minute {
		return
	}
	p.pruned = now
	maps.DeleteFunc(p.pushed, func(_ string, r *pushedRequest) bool { return now.After(r.expires) })
	maps.DeleteFunc(p.codes, func(_ string, c *code) bool { return now.After(c.expires.Add(codeMemory)) })
	maps.DeleteFunc(p.sessions, func(_ string, s *session) bool { return now.After(s.expires) })
	maps.DeleteFunc(p.refreshTokens, func(_ string, t *refreshToken) bool { return now.After(t.grant.expires) })
	maps.DeleteFunc(p.accessTokens, func(_ string, t *accessToken) bool { return now.After(t.expires) })
	maps.DeleteFunc(p.prepared, func(_ string, s *preparedSignIn) bool { return now.After(s.expires) })
	maps.DeleteFunc(p.used, func(_ string, until time.Time) bool { return now.After(until) })
}

// useOnce reports whether an identifier is used for the first time. It is
// remembered until the given time.
func (p *Provider) useOnce(id string, until time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.prune()
	if _, used := p.used[id]; used {
		return false
	}
	p.used[id] = until
	return true
}

// discovery serves the metadata (OpenID Connect Discovery, section 4).
func (p *Provider) discovery(w http.ResponseWriter, _ *http.Request) {
	p.mu.Lock()
	p.stats.DiscoveryFetches++
	p.mu.Unlock()
	authMethods := []string{
		"client_secret_basic", "client_secret_post", "private_key_jwt", "self_signed_tls_client_auth",
	}
	metadata := map[string]any{
		"issuer":                                                p.cfg.Issuer,
		"authorization_endpoint":                                p.base + "/authorize",
		"token_endpoint":                                        p.base + "/token",
		"jwks_uri":                                              p.base + "/jwks",
		"userinfo_endpoint":                                     p.base + "/userinfo",
		"end_session_endpoint":                                  p.base + "/logout",
		"revocation_endpoint":                                   p.base + "/revoke",
		"pushed_authorization_request_endpoint":                 p.base + "/par",
		"response_types_supported":                              []string{"code"},
		"response_modes_supported":                              []string{"query", "form_post"},
		"grant_types_supported":                                 grantTypes,
		"subject_types_supported":                               []string{"public"},
		"id_token_signing_alg_values_supported":                 []string{p.cfg.SigningAlgorithm},
		"token_endpoint_auth_methods_supported":                 authMethods,
		"token_endpoint_auth_signing_alg_values_supported":      assertionAlgorithms,
		"revocation_endpoint_auth_methods_supported":            authMethods,
		"revocation_endpoint_auth_signing_alg_values_supported": assertionAlgorithms,
		"code_challenge_methods_supported":                      []string{"S256"},
		"scopes_supported": []string{
			"openid", "profile", "email", "offline_access",
		},
		"claims_supported": []string{
			"iss", "aud", "exp", "iat", "sub", "sid", "auth_time", "acr", "nonce", "at_hash", "name", "email",
			"email_verified",
		},
		"acr_values_supported":                           p.ACRValues(),
		"prompt_values_supported":                        prompts,
		"dpop_signing_alg_values_supported":              proofAlgorithms,
		"authorization_response_iss_parameter_supported": true,
		"backchannel_logout_supported":                   true,
		"backchannel_logout_session_supported":           true,
		"require_pushed_authorization_requests":          false,
		"request_parameter_supported":                    true,
		"request_object_signing_alg_values_supported":    assertionAlgorithms,
		"require_signed_request_object":                  false,
		"tls_client_certificate_bound_access_tokens":     true,
		"mtls_endpoint_aliases": map[string]string{
			"token_endpoint": p.base + "/mtls/token", "revocation_endpoint": p.base + "/mtls/revoke",
			"pushed_authorization_request_endpoint": p.base + "/mtls/par",
			"userinfo_endpoint":                     p.base + "/mtls/userinfo",
		},
		"request_uri_parameter_supported": false, // except for pushed requests
	}
	if edit := p.hooks.Load().EditDiscovery; edit != nil {
		edit(metadata)
	}
	writeJSON(w, http.StatusOK, metadata)
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(body)
}

// oauthError is an error response (RFC 6749, sections 4.1.2.1 and 5.2).
type oauthError struct {
	code, description string
}

func (e *oauthError) body() map[string]any {
	return map[string]any{"error": e.code, "error_description": e.description}
}

// status returns the status of the error at an endpoint for clients.
func (e *oauthError) status() int {
	switch e.code {
	case "invalid_client":
		return http.StatusUnauthorized
	case "server_error":
		return http.StatusInternalServerError
	}
	return http.StatusBadRequest
}

func (e *oauthError) write(w http.ResponseWriter) {
	if e.code == "invalid_client" {
		w.Header().Set("WWW-Authenticate", `Basic realm="devidp"`)
	}
	writeJSON(w, e.status(), e.body())
}

const maxForm = 64 << 10

// readForm parses the form of a client's request. No parameter except resource
// may occur twice (RFC 6749, section 3.2; RFC 8707, section 2).
func readForm(w http.ResponseWriter, r *http.Request) *oauthError {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		return &oauthError{"invalid_request", "the body cannot be read as a form"}
	}
	if name := repeated(r.PostForm); name != "" {
		return &oauthError{"invalid_request", "a parameter occurs twice: " + name}
	}
	return nil
}

func repeated(form url.Values) string {
	for name, values := range form {
		if len(values) > 1 && name != "resource" {
			return name
		}
	}
	return ""
}
