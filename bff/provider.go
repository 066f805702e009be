package bff

import (
	"cmp"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/time/rate"

	"github.com/cloakroom-bff/cloakroom/session"
)

// ProviderConfig says who signs users in, who we are to them, and what is asked of them.
type ProviderConfig struct {
	Issuer   string // as the provider writes it, to the character; https, or http on a loopback host
	ClientID string

	// ClientAuth is how we say who we are: client_secret_basic (the default) or client_secret_post, for which ClientSecret is needed; private_key_jwt, for
	// which ClientKeys are; tls_client_auth or self_signed_tls_client_auth, for which ClientCertificate is.
	ClientAuth   string
	ClientSecret session.Secret
	// ClientKeys sign client assertions and request objects: RSA of 2048 bits or more, P-256, P-384, P-521 or Ed25519. The first signs, and all are published at
	// Prefix/jwks.json, so that a new one can be made known before it is used.
	ClientKeys []crypto.Signer
	// ClientCertificate is shown to the provider where it asks for one. With SenderConstraint mtls it is shown to upstreams too.
	ClientCertificate *tls.Certificate
	// AssertionAudience is the aud of client assertions for a provider that does not go by its issuer (RFC 10070 4): a URL, or endpoint for the one that is called.
	// Then the keys must not be used anywhere else. Empty means the issuer.
	AssertionAudience string
	// TrustedAudiences may be named beside us in the tokens that the provider makes for us (OpenID Connect Core 3.1.3.7 (3)). None by default.
	TrustedAudiences []string

	Scopes     []string          // openid is added where it is missing, and those of routes; empty means openid, profile, email, offline_access
	Resources  []string          // what the access token is for (RFC 8707); those of routes are asked for besides
	Audience   string            // the same for providers that have a parameter audience; empty: not sent
	Parameters map[string]string // what else goes into the authorization request, access_type=offline say

	// PushedRequests says whether authorization requests go to the provider directly (RFC 9126): auto, the default, where it offers that; always; never.
	PushedRequests string
	// SignRequests has authorization requests signed (RFC 9101). They are too where the provider demands it.
	SignRequests bool
	// ResponseMode is how the answer to one comes back: query, the default, or form_post, which keeps the code out of URLs.
	ResponseMode string
	// SenderConstraint binds access tokens to a key, so that nobody else can use them: dpop (RFC 9449, a key for each session) or mtls (RFC 8705, the
	// ClientCertificate); empty: they are bearer tokens.
	SenderConstraint string
	// UserInfo has the user's claims fetched from there too.
	UserInfo bool
	// FAPI2 demands what the FAPI 2.0 Security Profile does, of the provider and of the other fields.
	FAPI2 bool

	// LogoutURL is where users sign out at a provider that does not announce it, and LogoutRedirectParameter what that calls post_logout_redirect_uri. Empty
	// means end_session_endpoint and the standard's name.
	LogoutURL               string
	LogoutRedirectParameter string

	RootCAs *x509.CertPool // who vouches for the provider; nil: the system's
	// HTTPClient reaches the provider; nil means one that takes 15 s at most for a request. Redirects are never followed. With it, neither RootCAs nor
	// ClientCertificate can be set: its transport has them.
	HTTPClient *http.Client
}

// provider speaks OpenID Connect with the one provider of this server. This file and its neighbours are the ones that speak with it: authorize.go (the
// authorization request), token.go (the token endpoint), clientauth.go (who we are), dpop.go, userinfo.go, idtoken.go and logouttoken.go (what of such a
// token is believed).
type provider struct {
	cfg         ProviderConfig
	redirectURI string // a constant: no request header takes part in it (RFC 9700 4.1.3)
	claims      Claims
	keys        []signingKey
	targets     map[string]target // what routes want tokens for
	nonces      nonces
	client      *http.Client
	keyClient   *http.Client // the same, for the key set
	// logoutKeyClient is the same, for the key set that logout tokens are checked with: anybody can send those, and must not use up what logins need.
	logoutKeyClient *http.Client
	log             *slog.Logger

	found      atomic.Pointer[metadata] // nil until the provider has been found
	firstFound chan struct{}            // closed then
}

// metadata is what the provider says of itself (OpenID Connect Discovery 3, RFC 8414 2), and what was made of it.
type metadata struct {
	Authorization string `json:"authorization_endpoint"`
	JWKS          string `json:"jwks_uri"`
	called
	Aliases called `json:"mtls_endpoint_aliases"` // RFC 8705 5

	EndSession          string   `json:"end_session_endpoint"`
	CertificateBound    bool     `json:"tls_client_certificate_bound_access_tokens"`
	IssParameter        bool     `json:"authorization_response_iss_parameter_supported"`
	RequirePushed       bool     `json:"require_pushed_authorization_requests"`
	RequireSigned       bool     `json:"require_signed_request_object"`
	IDTokenAlgorithms   []string `json:"id_token_signing_alg_values_supported"`
	AssertionAlgorithms []string `json:"token_endpoint_auth_signing_alg_values_supported"`
	RequestAlgorithms   []string `json:"request_object_signing_alg_values_supported"`
	ProofAlgorithms     []string `json:"dpop_signing_alg_values_supported"`

	keys       oidc.KeySet
	logoutKeys oidc.KeySet
}

// called are the endpoints that we call ourselves, where browsers take no part.
type called struct {
	Token      string `json:"token_endpoint"`
	Revocation string `json:"revocation_endpoint"`
	Pushed     string `json:"pushed_authorization_request_endpoint"`
	UserInfo   string `json:"userinfo_endpoint"`
}

const (
	providerTimeout = 15 * time.Second
	maxAnswer       = 1 << 20 // bytes of any answer of the provider

	// metadataLife is how long the metadata and the key set are taken as current; a key that the provider withdraws is trusted no longer than that.
	metadataLife = 10 * time.Minute
)

func newProvider(cfg ProviderConfig, redirectURI string, log *slog.Logger) (*provider, error) {
	var errs []error
	fail := func(name string, err error) {
		errs = append(errs, &session.FieldError{Field: "Provider." + name, Err: err})
	}
	if err := checkProviderURL(cfg.Issuer, cfg.Issuer); err != nil {
		fail("Issuer", err)
	}
	if cfg.LogoutURL != "" {
		if err := checkProviderURL(cfg.LogoutURL, cfg.Issuer); err != nil {
			fail("LogoutURL", err)
		}
	}
	if cfg.ClientID == "" {
		fail("ClientID", errors.New("missing"))
	}
	keys, err := newSigningKeys(cfg.ClientKeys, cfg.ClientCertificate)
	if err != nil {
		fail("ClientKeys", err)
	}
	checkClientAuth(&cfg, fail)
	checkRequests(&cfg, fail)
	if len(cfg.Scopes) == 0 {
		cfg.Scopes = []string{"openid", "profile", "email", "offline_access"}
	}
	if !slices.Contains(cfg.Scopes, "openid") {
		cfg.Scopes = append([]string{"openid"}, cfg.Scopes...)
	}
	client := &http.Client{Timeout: providerTimeout}
	if cfg.HTTPClient != nil {
		*client = *cfg.HTTPClient
		if cfg.RootCAs != nil || cfg.ClientCertificate != nil {
			fail("HTTPClient", errors.New("it has a transport of its own, which RootCAs and ClientCertificate would have no part in"))
		}
	} else if cfg.RootCAs != nil || cfg.ClientCertificate != nil {
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.TLSClientConfig = &tls.Config{RootCAs: cfg.RootCAs, MinVersion: tls.VersionTLS12}
		if cfg.ClientCertificate != nil {
			transport.TLSClientConfig.Certificates = []tls.Certificate{*cfg.ClientCertificate}
		}
		client.Transport = transport
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // a redirected token request would carry the secret and the refresh token elsewhere
	}
	client.Transport = limitedAnswers{client.Transport}
	return &provider{
		cfg: cfg, redirectURI: redirectURI, keys: keys, targets: make(map[string]target), log: log, firstFound: make(chan struct{}),
		client: client, keyClient: limited(client), logoutKeyClient: limited(client),
	}, errors.Join(errs...)
}

// checkProviderURL accepts https, and http where host and issuer are both on this machine.
func checkProviderURL(raw, issuer string) error {
	u, err := url.Parse(raw)
	switch {
	case raw == "":
		return errors.New("missing")
	case err != nil || u.Host == "":
		return fmt.Errorf("%q is not an absolute URL", raw)
	case u.Scheme == "https":
	case u.Scheme != "http":
		return fmt.Errorf("%q: the scheme has to be https", raw)
	case !isLoopback(u.Hostname()) || !strings.HasPrefix(issuer, "http:"):
		return fmt.Errorf("%q: plain http is for a provider on a loopback host alone", raw)
	}
	return nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || ip != nil && ip.IsLoopback()
}

// keepFound finds the provider and keeps what is known of it current, until ctx ends. It may be down at start and at any time after.
func (p *provider) keepFound(ctx context.Context) {
	const firstWait = 500 * time.Millisecond
	wait := firstWait
	for {
		next := metadataLife
		switch found, err := p.discover(ctx); {
		case err == nil:
			if p.found.Swap(found) == nil {
				close(p.firstFound)
				p.log.InfoContext(ctx, "provider found", "issuer", p.cfg.Issuer)
			}
			wait = firstWait
		case ctx.Err() != nil:
			return
		default:
			p.log.ErrorContext(ctx, "provider not found; nobody can sign in until it is, who is signed in stays so", "issuer", p.cfg.Issuer, "retry_in", wait.String(), "err", err)
			if p.found.Load() != nil {
				p.log.WarnContext(ctx, "going on with what was known of the provider before")
			}
			next, wait = wait, min(2*wait, 10*time.Second)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(next):
		}
	}
}

// discover reads the provider's metadata. Nothing of it is used unless all of it is right (OpenID Connect Discovery 4.3).
func (p *provider) discover(ctx context.Context) (*metadata, error) {
	ctx, cancel := context.WithTimeout(ctx, providerTimeout)
	defer cancel()
	answer, err := oidc.NewProvider(oidc.ClientContext(ctx, p.client), p.cfg.Issuer)
	if err != nil {
		return nil, fmt.Errorf("discover: %w", err)
	}
	m, all := new(metadata), json.RawMessage(nil)
	if err := errors.Join(answer.Claims(m), answer.Claims(&all)); err != nil {
		return nil, fmt.Errorf("discover: %w", err)
	}
	if _, err := parseObject(all); err != nil {
		return nil, fmt.Errorf("discover: %w", err)
	}
	if strings.HasSuffix(p.cfg.ClientAuth, "tls_client_auth") || p.cfg.SenderConstraint == "mtls" { // RFC 8705 5
		m.Token, m.Revocation = cmp.Or(m.Aliases.Token, m.Token), cmp.Or(m.Aliases.Revocation, m.Revocation)
		m.Pushed, m.UserInfo = cmp.Or(m.Aliases.Pushed, m.Pushed), cmp.Or(m.Aliases.UserInfo, m.UserInfo)
	}
	m.EndSession = cmp.Or(p.cfg.LogoutURL, m.EndSession)
	if err := errors.Join(p.checkEndpoints(m), p.checkOffers(m)); err != nil {
		return nil, fmt.Errorf("discover: %w", err)
	}
	m.keys = oidc.NewRemoteKeySet(oidc.ClientContext(ctx, p.keyClient), m.JWKS)
	m.logoutKeys = oidc.NewRemoteKeySet(oidc.ClientContext(ctx, p.logoutKeyClient), m.JWKS)
	return m, nil
}

// checkEndpoints accepts URLs that what we send is safe at. Those that we can do without may be missing.
func (p *provider) checkEndpoints(m *metadata) error {
	var errs []error
	for name, endpoint := range map[string]string{"authorization_endpoint": m.Authorization, "token_endpoint": m.Token, "jwks_uri": m.JWKS} {
		if err := checkProviderURL(endpoint, p.cfg.Issuer); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	for name, endpoint := range map[string]string{
		"end_session_endpoint": m.EndSession, "revocation_endpoint": m.Revocation, "pushed_authorization_request_endpoint": m.Pushed, "userinfo_endpoint": m.UserInfo,
	} {
		if err := checkProviderURL(endpoint, p.cfg.Issuer); err != nil && endpoint != "" {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// checkOffers says whether the provider offers what we are configured to use.
func (p *provider) checkOffers(m *metadata) error {
	var errs []error
	lacks := func(format string, args ...any) { errs = append(errs, fmt.Errorf("the provider "+format, args...)) }
	if p.cfg.PushedRequests == "always" && m.Pushed == "" {
		lacks("has no pushed_authorization_request_endpoint, and pushed requests are wanted always")
	}
	if p.cfg.PushedRequests == "never" && m.RequirePushed {
		lacks("requires pushed authorization requests, and they are never to be used")
	}
	if m.RequireSigned && len(p.keys) == 0 {
		lacks("requires signed authorization requests, and there is no client key to sign them with")
	}
	if p.cfg.SenderConstraint == "dpop" && len(m.ProofAlgorithms) > 0 && !slices.Contains(m.ProofAlgorithms, "ES256") {
		lacks("takes no DPoP proofs with ES256, only with %q", m.ProofAlgorithms)
	}
	if p.cfg.SenderConstraint == "mtls" && !m.CertificateBound { // RFC 8705 3.3
		lacks("does not bind access tokens to certificates (tls_client_certificate_bound_access_tokens), and mtls is wanted")
	}
	if p.cfg.UserInfo && m.UserInfo == "" {
		lacks("has no userinfo_endpoint, and the user's claims are to be fetched from there")
	}
	if p.cfg.FAPI2 && !m.IssParameter {
		lacks("does not send iss in authorization responses (RFC 9207), which FAPI 2.0 demands")
	}
	return errors.Join(errs...)
}

// metadata returns what is known of the provider, or errProviderUnavailable.
func (p *provider) metadata() (*metadata, error) {
	if m := p.found.Load(); m != nil {
		return m, nil
	}
	return nil, errProviderUnavailable.because(errors.New("the provider has not been found yet"))
}

// logoutURL is where the browser goes to log out at the provider too (OpenID Connect RP-Initiated Logout 2), or "" where it has no such place.
func (p *provider) logoutURL(hint logoutHint, redirectURI, state string) string {
	m := p.found.Load()
	if m == nil || m.EndSession == "" {
		return ""
	}
	u, err := url.Parse(m.EndSession)
	if err != nil {
		return ""
	}
	q := u.Query()
	q.Set("client_id", p.cfg.ClientID)
	q.Set(cmp.Or(p.cfg.LogoutRedirectParameter, "post_logout_redirect_uri"), redirectURI)
	q.Set("state", state)
	without := len(u.Scheme) + len(u.Host) + len(u.EscapedPath()) + len(q.Encode())
	if token := hint.idToken.Reveal(); token != "" && without+len(token) <= maxLogoutURL {
		q.Set("id_token_hint", token)
	} else if hint.user != "" {
		q.Set("logout_hint", hint.user)
	}
	u.RawQuery = q.Encode()
	return u.String()
}

// maxLogoutURL bounds the URL with an id_token_hint. nginx has a buffer of 4 kB for
// the header of our response, of which the rest takes up less than one.
const maxLogoutURL = 3000

// canLogout reports whether users can sign out at the provider.
func (p *provider) canLogout() bool {
	m := p.found.Load()
	return m != nil && m.EndSession != ""
}

// trusts says whether a token for an audience besides us is good for us.
func (p *provider) trusts(audience string) bool {
	return audience == p.cfg.ClientID || slices.Contains(p.cfg.TrustedAudiences, audience)
}

// origin is that of the issuer.
func (p *provider) origin() string {
	u, err := url.Parse(p.cfg.Issuer)
	if err != nil {
		return "'none'"
	}
	return u.Scheme + "://" + u.Host
}

// limitedAnswers keeps what the provider sends within maxAnswer bytes.
type limitedAnswers struct{ base http.RoundTripper }

func (t limitedAnswers) RoundTrip(r *http.Request) (*http.Response, error) {
	base := t.base
	if base == nil {
		base = http.DefaultTransport
	}
	resp, err := base.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	resp.Body = &limitedBody{resp.Body, maxAnswer + 1}
	return resp, nil
}

type limitedBody struct {
	io.ReadCloser
	left int
}

func (b *limitedBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, fmt.Errorf("the answer is larger than %d bytes", maxAnswer)
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// errKeysCurrent says that the key set was fetched a moment ago: a token that it does not verify is wrong, or signed with a key that is newer still.
var errKeysCurrent = errors.New("the key set was fetched a moment ago")

// limitedRequests lets a request through now and then: a token signed by nobody makes the verifier look for new keys, and
// anybody can send such tokens.
type limitedRequests struct {
	base  http.RoundTripper
	limit *rate.Limiter
}

func limited(c *http.Client) *http.Client {
	l := *c
	l.Transport = limitedRequests{c.Transport, rate.NewLimiter(rate.Every(10*time.Second), 3)}
	return &l
}

func (t limitedRequests) RoundTrip(r *http.Request) (*http.Response, error) {
	if !t.limit.Allow() {
		return nil, errKeysCurrent
	}
	return t.base.RoundTrip(r)
}
