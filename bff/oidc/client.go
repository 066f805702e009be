package oidc

import (
	"cmp"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/cloakroom-bff/cloakroom/internal/jwks"
	"github.com/cloakroom-bff/cloakroom/internal/loopback"
	"github.com/cloakroom-bff/cloakroom/internal/strictjson"
	"github.com/cloakroom-bff/cloakroom/session"
)

// Config says who signs users in, who we are to them, and what is asked of them.
type Config struct {
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
	// IDTokenAlg is the algorithm of ID tokens, logout tokens and signed userinfo
	// responses, such as RS256, as this client is registered for it. Empty means
	// any with a public key that the provider's metadata lists.
	IDTokenAlg string
	// FAPI2 demands what the FAPI 2.0 Security Profile does, of the provider and of the other fields.
	FAPI2 bool

	// LogoutURL is where users sign out at a provider that does not announce it, and LogoutRedirectParameter what that calls post_logout_redirect_uri. Empty
	// means end_session_endpoint and the standard's name.
	LogoutURL               string
	LogoutRedirectParameter string

	// Wait is how long a request waits for the provider before it is refused with
	// 503. Zero means 5 seconds.
	Wait time.Duration
	// AccessTokenLifetime is how long an access token is used if neither the token
	// response nor the token says when it expires. Zero means 5 minutes.
	AccessTokenLifetime time.Duration

	// The rest is set by bff.New.

	// RedirectURI is where the provider sends the browser back to. It is constant: no
	// request header takes part in it (RFC 9700, section 4.1.3).
	RedirectURI string
	// ClaimMap adds claims under other names: name → the path of the value.
	ClaimMap map[string]string
	// Targets are those for which sessions get access tokens besides their own.
	Targets []Target
	// WithoutLogin means that nobody signs in: only client credentials are used, for
	// which the metadata needs no authorization_endpoint and no jwks_uri.
	WithoutLogin bool
	Logger       *slog.Logger

	RootCAs *x509.CertPool // who vouches for the provider; nil: the system's
	// HTTPClient reaches the provider. Nil means one that notices a dead connection
	// within 30 seconds. Redirects are never followed, and its Timeout does not
	// apply to token requests, whose refresh token may have been rotated already.
	// With it, neither RootCAs nor ClientCertificate can be set: its transport has
	// them. It should use HTTP/1.1: on one connection of HTTP/2, a provider that
	// stops would fail all requests in flight.
	HTTPClient *http.Client
}

// provider speaks OpenID Connect with the one provider of this server. This file and its neighbours are the ones that speak with it: authorize.go (the
// authorization request), token.go (the token endpoint), clientauth.go (who we are), dpop.go, userinfo.go, idtoken.go and logouttoken.go (what of such a
// token is believed).
type Client struct {
	cfg     Config
	keys    []signingKey
	targets map[string]Target // what routes want tokens for
	nonces  nonces
	client  *http.Client
	// tokenClient is client without a timeout: a refresh token may have been
	// rotated by a request that is given up.
	tokenClient *http.Client
	breaker     *breaker
	log         *slog.Logger

	// How often the key set is fetched for the sake of a key that it does not list.
	// ID tokens come from the provider. Logout tokens come from anybody: one with a
	// made-up key every second leaves fetches for a genuine one with a new key, and
	// none of them takes a fetch that a login needs.
	idTokenFetches, logoutFetches *rate.Limiter

	noRefreshToken sync.Once // warns of it
	ignored        string    // members of the metadata, as was logged last; Run alone uses it

	current atomic.Pointer[metadata] // nil until the provider has been found
	ready   chan struct{}            // closed then
}

// metadata is what the provider says of itself (OpenID Connect Discovery 3, RFC 8414 2), and what was made of it. A member that it lacks is empty.
type metadata struct {
	Authorization string
	JWKS          string
	backchannelEndpoints

	EndSession          string
	CertificateBound    bool
	IssParameter        bool
	RequirePushed       bool
	RequireSigned       bool
	IDTokenAlgorithms   []string
	AssertionAlgorithms []string
	RequestAlgorithms   []string
	ProofAlgorithms     []string

	keys *jwks.Set // nil without jwks_uri
}

// called are the endpoints that we call ourselves, where browsers take no part.
type backchannelEndpoints struct {
	Token      string
	Revocation string
	Pushed     string
	UserInfo   string
}

const (
	providerTimeout = 15 * time.Second
	maxResponse     = 1 << 20 // bytes of any answer of the provider

	// metadataLife is how long the metadata are taken as current, and the key set at most; a key that the provider withdraws is trusted no longer than
	// that while the key set can be fetched.
	metadataLife = 10 * time.Minute
)

func New(cfg Config) (*Client, error) {
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
	if err := checkIDTokenAlg(&cfg); err != nil {
		fail("IDTokenAlg", err)
	}
	if len(cfg.Scopes) == 0 {
		cfg.Scopes = []string{"openid", "profile", "email", "offline_access"}
	}
	if !slices.Contains(cfg.Scopes, "openid") {
		cfg.Scopes = append([]string{"openid"}, cfg.Scopes...)
	}
	client := new(http.Client)
	if cfg.HTTPClient != nil {
		*client = *cfg.HTTPClient
		if cfg.RootCAs != nil || cfg.ClientCertificate != nil {
			fail("HTTPClient", errors.New("it has a transport of its own, which RootCAs and ClientCertificate would have no part in"))
		}
	} else {
		client.Transport = newProviderTransport(&cfg)
	}
	client.Timeout = cmp.Or(client.Timeout, providerTimeout)
	client.CheckRedirect = func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // a redirected token request would carry the secret and the refresh token elsewhere
	}
	client.Transport = limitResponses{client.Transport}
	tokenClient := *client
	tokenClient.Timeout = 0
	p := &Client{
		cfg: cfg, keys: keys, targets: make(map[string]Target), log: cfg.Logger,
		client: client, tokenClient: &tokenClient, ready: make(chan struct{}),
		idTokenFetches: rate.NewLimiter(rate.Every(10*time.Second), 3),
		logoutFetches:  rate.NewLimiter(rate.Every(700*time.Millisecond), 3),
	}
	for _, t := range cfg.Targets {
		p.targets[t.Key()] = t
	}
	p.breaker = newBreaker(cfg.Logger, p.probe)
	return p, errors.Join(errs...)
}

// newProviderTransport returns the transport for requests to the provider. It
// uses HTTP/1.1, where a connection carries one request: what happens to one does
// not decide on others, whose refresh tokens may have been rotated.
func newProviderTransport(cfg *Config) *http.Transport {
	dialer := &net.Dialer{
		Timeout: 5 * time.Second,
		// A dead connection fails within 30 seconds, whether it is idle or not.
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 4},
		Control:         setUserTimeout,
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DialContext = dialer.DialContext
	transport.TLSHandshakeTimeout = 5 * time.Second
	transport.MaxIdleConnsPerHost = 32
	transport.IdleConnTimeout = 30 * time.Second
	transport.Protocols = new(http.Protocols)
	transport.Protocols.SetHTTP1(true)
	transport.TLSClientConfig = &tls.Config{RootCAs: cfg.RootCAs, MinVersion: tls.VersionTLS12}
	if cfg.ClientCertificate != nil {
		transport.TLSClientConfig.Certificates = []tls.Certificate{*cfg.ClientCertificate}
	}
	return transport
}

// MaxWait returns Wait, or its default.
func (c *Config) MaxWait() time.Duration { return cmp.Or(c.Wait, 5*time.Second) }

// probe asks the provider for its metadata, which changes nothing. Any response
// will do. If there is none soon, it asks the token endpoint too, without a
// token request: that may be on another host, and is what matters.
func (p *Client) probe(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	results := make(chan error, 2)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	ask := func(url string) { asking.Go(func() { results <- p.probeURL(ctx, url) }) }
	ask(p.metadataURL())
	m, patience := p.current.Load(), time.NewTimer(probePatience)
	defer patience.Stop()
	if m == nil {
		return <-results
	}
	var err error
	asked := 1
	for answered := 0; answered < 2; {
		select {
		case err = <-results:
			if err == nil {
				return nil
			}
			answered++
		case <-patience.C:
		}
		if asked == 1 {
			asked++
			ask(m.Token)
		}
	}
	return err
}

// probePatience is how long a probe of the metadata may take before the token
// endpoint is probed. It is less than silence.
const probePatience = 500 * time.Millisecond

// probeURL makes a harmless request, on a connection of its own.
func (p *Client) probeURL(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Close = true
	resp, err := p.client.Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// metadataURL is where the provider's metadata is (OpenID Connect Discovery 4.1).
func (p *Client) metadataURL() string {
	return strings.TrimSuffix(p.cfg.Issuer, "/") + "/.well-known/openid-configuration"
}

// Admit waits until a token request may be sent for a session, at most for wait.
// It is session.Config.Ready. Until the metadata has been read for the first time,
// requests wait for that.
func (p *Client) Admit(ctx context.Context, sessionID string, wait time.Duration) (epoch uint64, err error) {
	begun := time.Now()
	select {
	case <-p.ready:
	default:
		limit := time.NewTimer(wait)
		defer limit.Stop()
		select {
		case <-p.ready:
		case <-limit.C:
			return 0, &session.RefreshError{RetryAfter: time.Second, Err: errors.New("the provider has not been found yet")}
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	return p.breaker.admit(ctx, sessionID, wait-time.Since(begun))
}

// Config returns the configuration, with defaults filled in.
func (p *Client) Config() *Config { return &p.cfg }

// Discovered reports whether the metadata has been read at least once.
func (p *Client) Discovered() bool { return p.current.Load() != nil }

// WaitReady waits until the metadata has been read for the first time, or ctx ends.
func (p *Client) WaitReady(ctx context.Context) error {
	select {
	case <-p.ready:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("discover provider: %w", ctx.Err())
	}
}

// Discover reads the metadata now.
func (p *Client) Discover(ctx context.Context) error {
	m, err := p.discover(ctx)
	if err != nil {
		return err
	}
	if p.current.Swap(m) == nil {
		close(p.ready)
		p.log.InfoContext(ctx, "provider found", "issuer", p.cfg.Issuer)
	}
	return nil
}

// Probe probes the provider while it does not respond, until ctx ends. Refreshes in
// flight need it.
func (p *Client) Probe(ctx context.Context) { p.breaker.run(ctx) }

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
	case !loopback.IsHost(u.Hostname()) || !strings.HasPrefix(issuer, "http:"):
		return fmt.Errorf("%q: plain http is for a provider on a loopback host alone", raw)
	}
	return nil
}

// Run discovers the provider and keeps its metadata current, until ctx
// ends. The provider may be down at start and at any time after. Until it was
// found first, it is asked each second, for sign-in waits for it.
func (p *Client) Run(ctx context.Context) {
	const firstWait, longestWait, logAgain = 500 * time.Millisecond, 10 * time.Second, time.Minute
	wait := firstWait
	var logged string // the cause that was logged last, at loggedAt
	var loggedAt time.Time
	for {
		next := metadataLife
		switch err := p.Discover(ctx); {
		case err == nil:
			wait, logged = firstWait, ""
		case ctx.Err() != nil:
			return
		default:
			known := p.current.Load() != nil
			if text := err.Error(); text != logged || time.Since(loggedAt) > logAgain {
				logged, loggedAt = text, time.Now()
				if known {
					p.log.WarnContext(ctx, "provider metadata not refreshed; the metadata before stay in use", "issuer", p.cfg.Issuer, "err", err)
				} else {
					p.log.ErrorContext(ctx, "provider discovery failed; sign-in is unavailable, existing sessions are not affected", "issuer", p.cfg.Issuer, "err", err)
				}
			}
			next = wait
			if wait = min(2*wait, longestWait); !known {
				wait = min(wait, time.Second)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(next):
		}
	}
}

// discover reads the provider's metadata. Nothing of it is used unless all of it that is needed is right (OpenID Connect Discovery 4.3).
func (p *Client) discover(ctx context.Context) (*metadata, error) {
	ctx, cancel := context.WithTimeout(ctx, providerTimeout)
	defer cancel()
	found, _, err := jwks.Discover(ctx, p.client, p.cfg.Issuer)
	if err != nil {
		return nil, fmt.Errorf("discover provider: %w%s", err, discoveryAdvice(err))
	}
	m, ignored, err := p.readMetadata(found)
	if err != nil {
		return nil, fmt.Errorf("discover provider: %w", err)
	}
	if text := fmt.Sprint(ignored); text != p.ignored && ignored != nil {
		p.log.WarnContext(ctx, "members of the provider's metadata ignored", "issuer", p.cfg.Issuer, "err", ignored)
		p.ignored = text
	}
	m.EndSession = cmp.Or(p.cfg.LogoutURL, m.EndSession)
	if err := errors.Join(p.checkEndpoints(m), p.checkCapabilities(m)); err != nil {
		return nil, fmt.Errorf("discover provider: %w", err)
	}
	m.keys = p.keySet(m.JWKS)
	return m, nil
}

// discoveryAdvice says what an operator can do about metadata that cannot be used.
func discoveryAdvice(err error) string {
	status, network := (*jwks.StatusError)(nil), net.Error(nil)
	switch {
	case errors.As(err, &status) && status.Location != "":
		return " (redirects are not followed; set oidc.issuer to the issuer that the metadata there name)"
	case errors.As(err, &status) && status.Status >= 500, errors.As(err, &network):
		return "" // it may pass
	}
	return " (check oidc.issuer)"
}

// keySet returns the key set at a URL: the one of before if that has not changed.
func (p *Client) keySet(from string) *jwks.Set {
	if from == "" {
		return nil
	}
	if before := p.current.Load(); before != nil && before.JWKS == from {
		return before.keys
	}
	return jwks.NewSet(jwks.Config{
		Issuer: p.cfg.Issuer, KidsReused: true, MaxLifetime: metadataLife, Logger: p.log,
		Fetch: func(ctx context.Context) (*jwks.Document, error) {
			document, err := jwks.Get(ctx, p.client, from)
			if status := (*jwks.StatusError)(nil); errors.As(err, &status) && status.Location != "" {
				err = fmt.Errorf("%w (redirects are not followed; the provider's jwks_uri has to be the URL of the keys)", err)
			}
			return document, err
		},
	})
}

// readMetadata reads those members of the metadata that we use. A member of another type than the standard's, or that is there twice, is an error if
// the configuration needs it; otherwise it counts as missing, and ignored says so. Null and the empty string count as missing.
func (p *Client) readMetadata(found strictjson.Object) (m *metadata, ignored, err error) {
	m = new(metadata)
	var wrong, skipped []error
	note := func(name string, err error) {
		switch {
		case err == nil:
		case p.needs(name):
			wrong = append(wrong, err)
		default:
			skipped = append(skipped, err)
		}
	}
	read := func(o strictjson.Object, name string, text *string) {
		value, err := o.Text(name)
		*text = cmp.Or(value, *text)
		note(name, err)
	}
	read(found, "authorization_endpoint", &m.Authorization)
	read(found, "jwks_uri", &m.JWKS)
	read(found, "end_session_endpoint", &m.EndSession)
	readCalled := func(o strictjson.Object) {
		read(o, "token_endpoint", &m.Token)
		read(o, "revocation_endpoint", &m.Revocation)
		read(o, "pushed_authorization_request_endpoint", &m.Pushed)
		read(o, "userinfo_endpoint", &m.UserInfo)
	}
	readCalled(found)
	if strings.HasSuffix(p.cfg.ClientAuth, "tls_client_auth") || p.cfg.SenderConstraint == "mtls" { // RFC 8705 5
		aliases, err := found.Object("mtls_endpoint_aliases")
		note("mtls_endpoint_aliases", err)
		readCalled(aliases)
	}
	for name, flag := range map[string]*bool{
		"tls_client_certificate_bound_access_tokens":     &m.CertificateBound,
		"authorization_response_iss_parameter_supported": &m.IssParameter,
		"require_pushed_authorization_requests":          &m.RequirePushed,
		"require_signed_request_object":                  &m.RequireSigned,
	} {
		value, err := found.Bool(name)
		*flag = value
		note(name, err)
	}
	for name, list := range map[string]*[]string{
		"id_token_signing_alg_values_supported":            &m.IDTokenAlgorithms,
		"token_endpoint_auth_signing_alg_values_supported": &m.AssertionAlgorithms,
		"request_object_signing_alg_values_supported":      &m.RequestAlgorithms,
		"dpop_signing_alg_values_supported":                &m.ProofAlgorithms,
	} {
		value, err := found.Texts(name)
		*list = value
		note(name, err)
	}
	slices.SortFunc(skipped, func(a, b error) int { return cmp.Compare(a.Error(), b.Error()) })
	return m, errors.Join(skipped...), errors.Join(wrong...)
}

// needs reports whether the configuration needs a member of the metadata.
func (p *Client) needs(member string) bool {
	switch member {
	case "token_endpoint":
		return true
	case "authorization_endpoint", "jwks_uri":
		return !p.cfg.WithoutLogin
	case "pushed_authorization_request_endpoint":
		return p.cfg.PushedRequests == "always"
	case "userinfo_endpoint":
		return p.cfg.UserInfo
	case "tls_client_certificate_bound_access_tokens":
		return p.cfg.SenderConstraint == "mtls"
	case "authorization_response_iss_parameter_supported":
		return p.cfg.FAPI2
	}
	return false
}

// checkEndpoints accepts URLs that what we send is safe at. Those that we can do without may be missing.
func (p *Client) checkEndpoints(m *metadata) error {
	var errs []error
	for _, e := range []struct {
		name, url string
		optional  bool // see also checkCapabilities
	}{
		{"authorization_endpoint", m.Authorization, p.cfg.WithoutLogin},
		{"token_endpoint", m.Token, false},
		{"jwks_uri", m.JWKS, p.cfg.WithoutLogin},
		{"end_session_endpoint", m.EndSession, true},
		{"revocation_endpoint", m.Revocation, true},
		{"pushed_authorization_request_endpoint", m.Pushed, true},
		{"userinfo_endpoint", m.UserInfo, true},
	} {
		if e.url == "" && e.optional {
			continue
		}
		if err := checkProviderURL(e.url, p.cfg.Issuer); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", e.name, err))
		}
	}
	return errors.Join(errs...)
}

// checkCapabilities says whether the provider offers what we are configured to use.
func (p *Client) checkCapabilities(m *metadata) error {
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
	if alg := p.cfg.IDTokenAlg; alg != "" && len(m.IDTokenAlgorithms) > 0 && !slices.Contains(m.IDTokenAlgorithms, alg) {
		lacks("does not sign ID tokens with %s, only with %q (check oidc.id_token_alg)", alg, m.IDTokenAlgorithms)
	}
	if p.cfg.FAPI2 && !m.IssParameter {
		lacks("does not send iss in authorization responses (RFC 9207), which FAPI 2.0 demands")
	}
	return errors.Join(errs...)
}

// discovered returns the metadata. The error wraps ErrUnavailable until it has been
// read for the first time.
func (p *Client) discovered() (*metadata, error) {
	if m := p.current.Load(); m != nil {
		return m, nil
	}
	return nil, errNotDiscovered
}

// EndSessionURL is where the browser goes to log out at the provider too (OpenID Connect RP-Initiated Logout 2), or "" where it has no such place.
func (p *Client) EndSessionURL(idToken session.Secret, user, redirectURI, state string) string {
	m := p.current.Load()
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
	if token := idToken.Reveal(); token != "" && without+len(token) <= maxEndSessionURL {
		q.Set("id_token_hint", token)
	} else if user != "" {
		q.Set("logout_hint", user)
	}
	u.RawQuery = q.Encode()
	return u.String()
}

// maxEndSessionURL bounds the URL with an id_token_hint. nginx has a buffer of 4 kB for
// the header of our response, of which the rest takes up less than one.
const maxEndSessionURL = 3000

// HasEndSession reports whether users can sign out at the provider too.
func (p *Client) HasEndSession() bool {
	m := p.current.Load()
	return m != nil && m.EndSession != ""
}

// trusts says whether a token for an audience besides us is good for us.
func (p *Client) trusts(audience string) bool {
	return audience == p.cfg.ClientID || slices.Contains(p.cfg.TrustedAudiences, audience)
}

// IssuerOrigin returns the origin of the issuer, as a source in a CSP.
func (p *Client) IssuerOrigin() string {
	u, err := url.Parse(p.cfg.Issuer)
	if err != nil {
		return "'none'"
	}
	return u.Scheme + "://" + u.Host
}

// limitResponses keeps what the provider sends within maxResponse bytes.
type limitResponses struct{ base http.RoundTripper }

func (t limitResponses) RoundTrip(r *http.Request) (*http.Response, error) {
	base := t.base
	if base == nil {
		base = http.DefaultTransport
	}
	resp, err := base.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	resp.Body = &limitedBody{resp.Body, maxResponse + 1}
	return resp, nil
}

type limitedBody struct {
	io.ReadCloser
	left int
}

func (b *limitedBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, fmt.Errorf("the answer is larger than %d bytes", maxResponse)
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}
