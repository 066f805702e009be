// Package devop is an OpenID provider for development: the demo's, and the tests'. It is real OpenID Connect (discovery, a rotating
// key set, authorization code with PKCE, PAR, RFC 9207, refresh rotation with reuse detection, RP-initiated and back-channel logout,
// revocation, userinfo, client credentials, DPoP), and it signs in whoever asks: it has no passwords. So its issuer has to
// be on a loopback host.
//
// To sign in without a browser: GET the authorization URL, then POST the same URL with the page's hidden field csrf and user=alice, and
// the cookie that came with the page. The answer is the redirect back to the client.
//
// Hooks make it misbehave in one way at a time. Without them it keeps to the standards.
package devop

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Config says who may use the provider. The zero value of every other field than Issuer and Clients is usable.
type Config struct {
	Issuer  string // http on a loopback host, with a path or without
	Clients []Client
	Users   []User // none means DefaultUsers

	AccessTokenTTL   time.Duration // zero means 5 minutes
	IDTokenTTL       time.Duration // zero means 5 minutes
	RefreshTokenTTL  time.Duration // zero means 12 hours
	RefreshGrace     time.Duration // for so long a replaced refresh token is answered with its successor; zero: using it revokes the family
	Audience         string        // aud of access tokens when the request names no resource; empty means "api"
	RequireDPoPNonce bool          // a DPoP proof needs a nonce of the provider

	Logger *slog.Logger // nil means slog.Default()
}

// Client is a relying party.
type Client struct {
	ID, Secret             string
	RedirectURIs           []string
	PostLogoutRedirectURIs []string
	BackchannelLogoutURI   string
	Scopes                 []string // what it may ask for; none means anything
}

// User is somebody who can be picked.
type User struct {
	Sub, Name, Email string
}

// DefaultUsers are alice and bob.
func DefaultUsers() []User {
	return []User{{"alice", "Alice Liddell", "alice@example.com"}, {"bob", "Bob Builder", "bob@example.com"}}
}

// Provider is the provider as an http.Handler.
type Provider struct {
	cfg   Config
	path  string // of the issuer
	mux   *http.ServeMux
	log   *slog.Logger
	hooks atomic.Pointer[Hooks]

	mu       sync.Mutex // guards all below
	keys     []key      // the newest signs, all are published
	codes    map[string]*code
	pushed   map[string]*pushedRequest
	sessions map[string]*session // :: sid →
	refresh  map[string]*refreshToken
	proofs   map[string]time.Time // :: jti of a DPoP proof → when it is forgotten
	stats    Stats
	grace    time.Duration

	proofNonce     string
	proofNonceMade time.Time
}

// code is an authorization code: good for a minute, and for one use. Its second use revokes what the first one obtained.
type code struct {
	request authRequest
	client  *Client
	session *session
	expires time.Time
	issued  string // the family of refresh tokens that it was redeemed for
}

// session is a user's session at the provider.
type session struct {
	sid      string
	cookie   string
	user     User
	authTime time.Time
	clients  map[string]bool // which clients have tokens of it
}

// refreshToken is one of a family of which the newest is good.
type refreshToken struct {
	family    string
	client    string
	sid       string
	user      User
	authTime  time.Time
	acr       string
	nonce     string
	scope     string
	resource  []string
	jkt       string
	expires   time.Time
	replaced  time.Time // zero: it is the newest
	successor string
}

// Stats is what has happened, for tests to look at.
type Stats struct {
	Tokens             map[string]int // :: grant type → token requests, refused ones too
	Reuses             int            // of replaced refresh tokens
	Authorizations     int
	PushedRequests     int
	Revocations        int
	DiscoveryFetches   int
	JWKSFetches        int
	LiveRefreshTokens  map[string]int // :: sid → refresh tokens that are good
	BackchannelLogouts int            // that a client acknowledged
}

// New returns a Provider. The error joins every mistake in cfg.
func New(cfg Config) (*Provider, error) {
	var errs []error
	u, err := url.Parse(cfg.Issuer)
	if err != nil || u.Scheme != "http" || !loopback(u.Hostname()) || u.RawQuery != "" || u.Fragment != "" {
		errs = append(errs, fmt.Errorf("issuer %q is not an http URL with a loopback host: this provider signs in whoever asks", cfg.Issuer))
	}
	for i, c := range cfg.Clients {
		if c.ID == "" || c.Secret == "" {
			errs = append(errs, fmt.Errorf("client %d: ID and Secret are needed", i))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if len(cfg.Users) == 0 {
		cfg.Users = DefaultUsers()
	}
	for d, otherwise := range map[*time.Duration]time.Duration{&cfg.AccessTokenTTL: 5 * time.Minute, &cfg.IDTokenTTL: 5 * time.Minute, &cfg.RefreshTokenTTL: 12 * time.Hour} {
		if *d == 0 {
			*d = otherwise
		}
	}
	if cfg.Audience == "" {
		cfg.Audience = "api"
	}
	p := &Provider{
		cfg: cfg, path: strings.TrimSuffix(u.Path, "/"), mux: http.NewServeMux(), log: cfg.Logger,
		codes: make(map[string]*code), pushed: make(map[string]*pushedRequest), sessions: make(map[string]*session),
		refresh: make(map[string]*refreshToken), proofs: make(map[string]time.Time), stats: Stats{Tokens: make(map[string]int)}, grace: cfg.RefreshGrace,
	}
	if p.log == nil {
		p.log = slog.Default()
	}
	p.SetHooks(Hooks{})
	if err := p.RotateKeys(); err != nil {
		return nil, err
	}
	for pattern, h := range map[string]http.HandlerFunc{
		"GET /.well-known/openid-configuration": p.discovery,
		"GET /jwks":                             p.jwks,
		"GET /authorize":                        p.authorize,
		"POST /authorize":                       p.pick,
		"POST /par":                             p.push,
		"POST /token":                           p.token,
		"POST /revoke":                          p.revoke,
		"/userinfo":                             p.userinfo,
		"/logout":                               p.endSession,
	} {
		method, path, found := strings.Cut(pattern, " ")
		if !found {
			method, path = "", pattern
		}
		p.mux.HandleFunc(strings.TrimSpace(method+" "+p.path+path), h)
	}
	return p, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (p *Provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if intercept := p.hooks.Load().Intercept; intercept != nil {
		intercept(w, r, p.mux)
		return
	}
	p.mux.ServeHTTP(w, r)
}

// Stats returns what has happened so far.
func (p *Provider) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.stats
	s.Tokens = maps.Clone(s.Tokens)
	s.LiveRefreshTokens = make(map[string]int)
	for _, t := range p.refresh {
		if t.replaced.IsZero() && time.Now().Before(t.expires) {
			s.LiveRefreshTokens[t.sid]++
		}
	}
	return s
}

func (p *Provider) client(id string) *Client {
	for i := range p.cfg.Clients {
		if p.cfg.Clients[i].ID == id {
			return &p.cfg.Clients[i]
		}
	}
	return nil
}

// prune forgets what has expired. The caller holds mu.
func (p *Provider) prune() {
	now := time.Now()
	maps.DeleteFunc(p.codes, func(_ string, c *code) bool { return now.After(c.expires.Add(10 * time.Minute)) })
	maps.DeleteFunc(p.pushed, func(_ string, r *pushedRequest) bool { return now.After(r.expires) })
	maps.DeleteFunc(p.refresh, func(_ string, t *refreshToken) bool { return now.After(t.expires) })
	maps.DeleteFunc(p.proofs, func(_ string, until time.Time) bool { return now.After(until) })
}

func (p *Provider) discovery(w http.ResponseWriter, _ *http.Request) {
	p.mu.Lock()
	p.stats.DiscoveryFetches++
	p.mu.Unlock()
	iss := p.cfg.Issuer
	base := strings.TrimSuffix(iss, "/")
	d := map[string]any{
		"issuer":                                         iss,
		"authorization_endpoint":                         base + "/authorize",
		"token_endpoint":                                 base + "/token",
		"jwks_uri":                                       base + "/jwks",
		"userinfo_endpoint":                              base + "/userinfo",
		"end_session_endpoint":                           base + "/logout",
		"revocation_endpoint":                            base + "/revoke",
		"pushed_authorization_request_endpoint":          base + "/par",
		"response_types_supported":                       []string{"code"},
		"response_modes_supported":                       []string{"query", "form_post"},
		"grant_types_supported":                          []string{"authorization_code", "refresh_token", "client_credentials"},
		"subject_types_supported":                        []string{"public"},
		"id_token_signing_alg_values_supported":          []string{"RS256"},
		"token_endpoint_auth_methods_supported":          []string{"client_secret_basic", "client_secret_post"},
		"code_challenge_methods_supported":               []string{"S256"},
		"scopes_supported":                               []string{"openid", "profile", "email", "offline_access"},
		"claims_supported":                               []string{"sub", "name", "email", "email_verified", "auth_time", "acr", "sid"},
		"acr_values_supported":                           []string{"silver", "gold"},
		"prompt_values_supported":                        []string{"none", "login", "select_account"},
		"dpop_signing_alg_values_supported":              []string{"ES256"},
		"authorization_response_iss_parameter_supported": true,
		"backchannel_logout_supported":                   true,
		"backchannel_logout_session_supported":           true,
		"require_pushed_authorization_requests":          false,
	}
	if edit := p.hooks.Load().EditDiscovery; edit != nil {
		edit(d)
	}
	writeJSON(w, http.StatusOK, d)
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(body)
}
