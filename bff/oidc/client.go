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

// Config is the configuration of a Client: the provider, this client's
// registration there, and what is requested for each login.
type Config struct {
	// Issuer is the issuer identifier, exactly as the provider's metadata has
	// it. It uses https, or http on a loopback host.
	Issuer   string
	ClientID string

	// ClientAuth is the method of client authentication. Empty means
	// client_secret_basic.
	//   - client_secret_basic and client_secret_post need ClientSecret.
	//   - private_key_jwt needs ClientKeys.
	//   - tls_client_auth and self_signed_tls_client_auth need
	//     ClientCertificate.
	ClientAuth   string
	ClientSecret session.Secret
	// ClientKeys sign client assertions and request objects: RSA of 2048 bits
	// or more, P-256, P-384, P-521 or Ed25519. The first one signs. All are
	// published at Prefix/jwks.json, so that a new key is known before it is
	// used.
	ClientKeys []crypto.Signer
	// ClientCertificate is the TLS client certificate for the provider. If
	// SenderConstraint is mtls, upstreams receive it too.
	ClientCertificate *tls.Certificate
	// AssertionAudience is the aud of client assertions, for a provider that
	// does not accept its issuer (RFC 10070, section 4): a URL, or "endpoint"
	// for the URL of the endpoint that receives the assertion. Then the keys
	// must not be used anywhere else. Empty means the issuer.
	AssertionAudience string
	// TrustedAudiences may occur beside ClientID in the aud of the provider's
	// tokens (OpenID Connect Core, section 3.1.3.7 (3)). Empty means none.
	TrustedAudiences []string

	// Scopes are requested at login, besides openid and the scopes of Targets.
	// Empty means openid, profile, email and offline_access.
	Scopes []string
	// Resources are the resource indicators of the session's own access token
	// (RFC 8707). Those of Targets are requested besides.
	Resources []string
	// Audience is the parameter audience, which some providers have in place of
	// resource. Empty means that it is not sent.
	Audience string
	// Parameters are added to authorization requests, such as
	// access_type=offline.
	Parameters map[string]string

	// PushedRequests selects when authorization requests are pushed (RFC 9126):
	// auto (if the provider has an endpoint for them), always or never. Empty
	// means auto.
	PushedRequests string
	// SignRequests signs authorization requests (RFC 9101). They are also
	// signed if the provider's metadata requires it.
	SignRequests bool
	// ResponseMode is the response mode of authorization requests: query, or
	// form_post, which keeps the code out of URLs. Empty means query.
	ResponseMode string
	// SenderConstraint binds access tokens to a key, so that a stolen token is
	// of no use: dpop (RFC 9449, a key for each session) or mtls (RFC 8705, the
	// key of ClientCertificate). Empty means bearer tokens.
	SenderConstraint string
	// UserInfo adds the claims of the userinfo endpoint to those of the ID
	// token.
	UserInfo bool
	// IDTokenAlg is the algorithm of ID tokens, logout tokens and signed
	// userinfo responses, such as RS256, as this client is registered for it.
	// Empty means any with a public key that the provider's metadata lists.
	IDTokenAlg string
	// FAPI2 enforces the FAPI 2.0 Security Profile, for the provider and for
	// the other fields.
	FAPI2 bool

	// LogoutURL replaces the end_session_endpoint of the metadata, for a
	// provider that has none there. Empty means end_session_endpoint.
	LogoutURL string
	// LogoutRedirectParameter is the name of the parameter with the redirect
	// URI in a logout request. Empty means post_logout_redirect_uri.
	LogoutRedirectParameter string

	// Wait is how long a request waits for the provider before it is refused
	// with 503. Zero means 5 seconds.
	Wait time.Duration
	// AccessTokenLifetime is how long an access token is used if neither the
	// token response nor the token says when it expires. Zero means 5 minutes.
	AccessTokenLifetime time.Duration

	// The rest is set by bff.New.

	// RedirectURI is where the provider sends the browser back to. It is
	// constant: no request header takes part in it (RFC 9700, section 4.1.3).
	RedirectURI string
	// ClaimMap adds claims under other names: name → the path of the value.
	ClaimMap map[string]string
	// Targets are those for which sessions get access tokens besides their own.
	Targets []Target
	// WithoutLogin means that nobody signs in: only client credentials are
	// used, for which the metadata needs no authorization_endpoint and no
	// jwks_uri.
	WithoutLogin bool
	Logger       *slog.Logger

	// RootCAs verify the provider's certificate. Nil means those of the system.
	RootCAs *x509.CertPool
	// HTTPClient reaches the provider. Nil means one that notices a dead
	// connection within 30 seconds. Redirects are never followed, and its
	// Timeout does not apply to token requests, whose refresh token may have
	// been rotated already. With it, neither RootCAs nor ClientCertificate can
	// be set: its transport has them. It should use HTTP/1.1: on one connection
	// of HTTP/2, a provider that stops would fail all requests in flight.
	HTTPClient *http.Client
}

// Client is the OpenID Connect client of one provider. It is safe for
// concurrent use. Run has to run for it to become ready.
type Client struct {
	cfg     Config
	keys    []signingKey
	targets map[string]Target // :: Target.Key → the target
	nonces  nonces
	client  *http.Client
	// tokenClient is client without a timeout: a request that is aborted may
	// have rotated the refresh token already.
	tokenClient *http.Client
	breaker     *breaker
	log         *slog.Logger

	// Limits of the fetches of the key set that an unknown key id causes. ID
	// tokens come from the provider, but anybody can send logout tokens. Logout
	// tokens have a limit of their own, so that they never use up the fetches
	// of logins. At one forged token a second, a genuine one with a new key
	// still gets a fetch.
	idTokenFetches, logoutFetches *rate.Limiter

	noRefreshToken sync.Once // logs the missing refresh token
	ignored        string    // the ignored members of the metadata that were logged last; only Run uses it

	current atomic.Pointer[metadata] // nil until the first successful discovery
	ready   chan struct{}            // closed by the first successful discovery
}

// metadata is the provider's metadata (OpenID Connect Discovery, section 3; RFC
// 8414, section 2). A missing member is empty.
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

// backchannelEndpoints are the endpoints that this client calls directly, not
// through a browser.
type backchannelEndpoints struct {
	Token      string
	Revocation string
	Pushed     string
	UserInfo   string
}

const (
	providerTimeout = 15 * time.Second
	maxResponse     = 1 << 20 // bytes of a response body

	// metadataLife is the maximum age of the metadata and of the key set. While
	// the key set can be fetched, a withdrawn key is trusted no longer than
	// that.
	metadataLife = 10 * time.Minute
)

// New returns a client. It makes no request. All mistakes in the configuration
// are reported together, each as a *session.FieldError.
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
		// A redirected token request would send the secret and the refresh
		// token to another server.
		return http.ErrUseLastResponse
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
// uses HTTP/1.1, where a connection carries one request at a time. So a
// connection that fails takes no other request with it, whose refresh token may
// have been rotated.
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

// probe requests the metadata, which has no side effects. Any response is a
// success. After probePatience without one it also sends a GET to the token
// endpoint, which may be on another host and is the one that matters.
func (c *Client) probe(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	results := make(chan error, 2)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	ask := func(url string) { asking.Go(func() { results <- c.probeURL(ctx, url) }) }
	ask(c.metadataURL())
	m, patience := c.current.Load(), time.NewTimer(probePatience)
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
func (c *Client) probeURL(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Close = true
	resp, err := c.client.Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// metadataURL returns the URL of the provider's metadata (OpenID Connect
// Discovery, section 4.1).
func (c *Client) metadataURL() string {
	return strings.TrimSuffix(c.cfg.Issuer, "/") + "/.well-known/openid-configuration"
}

// Admit waits until a token request may be sent for a session, at most for
// wait. It is session.Config.Ready. Until the metadata has been read for the
// first time, requests wait for that.
func (c *Client) Admit(ctx context.Context, sessionID string, wait time.Duration) (epoch uint64, err error) {
	begun := time.Now()
	select {
	case <-c.ready:
	default:
		limit := time.NewTimer(wait)
		defer limit.Stop()
		select {
		case <-c.ready:
		case <-limit.C:
			return 0, &session.RefreshError{RetryAfter: time.Second, Err: errors.New("the provider has not been found yet")}
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	return c.breaker.admit(ctx, sessionID, wait-time.Since(begun))
}

// Config returns the configuration, with defaults filled in.
func (c *Client) Config() *Config { return &c.cfg }

// Discovered reports whether the metadata has been read at least once.
func (c *Client) Discovered() bool { return c.current.Load() != nil }

// WaitReady waits until the metadata has been read for the first time, or ctx
// ends.
func (c *Client) WaitReady(ctx context.Context) error {
	select {
	case <-c.ready:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("discover provider: %w", ctx.Err())
	}
}

// Discover reads the metadata now.
func (c *Client) Discover(ctx context.Context) error {
	m, err := c.discover(ctx)
	if err != nil {
		return err
	}
	if c.current.Swap(m) == nil {
		c.log.InfoContext(ctx, "provider found", "issuer", c.cfg.Issuer)
		close(c.ready)
	}
	return nil
}

// Probe probes the provider while it does not respond, until ctx ends.
// Refreshes in flight need it.
func (c *Client) Probe(ctx context.Context) { c.breaker.run(ctx) }

// checkProviderURL accepts https. It accepts http only if raw and issuer both
// have a loopback host.
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

// Run discovers the provider and keeps its metadata current, until ctx ends.
// The provider may be down at start and at any time after. Until the first
// discovery succeeds, it is retried at least every second, because sign-in
// waits for it.
func (c *Client) Run(ctx context.Context) {
	const firstWait, longestWait, logAgain = 500 * time.Millisecond, 10 * time.Second, time.Minute
	wait := firstWait
	var logged string // the cause that was logged last, at loggedAt
	var loggedAt time.Time
	for {
		next := metadataLife
		switch err := c.Discover(ctx); {
		case err == nil:
			wait, logged = firstWait, ""
		case ctx.Err() != nil:
			return
		default:
			known := c.current.Load() != nil
			if text := err.Error(); text != logged || time.Since(loggedAt) > logAgain {
				logged, loggedAt = text, time.Now()
				if known {
					c.log.WarnContext(ctx, "provider metadata not refreshed; the metadata before stay in use", "issuer", c.cfg.Issuer, "err", err)
				} else {
					c.log.ErrorContext(ctx, "provider discovery failed; sign-in is unavailable, existing sessions are not affected", "issuer", c.cfg.Issuer, "err", err)
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

// discover reads the provider's metadata. It fails if any member that is needed
// is invalid (OpenID Connect Discovery, section 4.3).
func (c *Client) discover(ctx context.Context) (*metadata, error) {
	ctx, cancel := context.WithTimeout(ctx, providerTimeout)
	defer cancel()
	found, _, err := jwks.Discover(ctx, c.client, c.cfg.Issuer)
	if err != nil {
		return nil, fmt.Errorf("discover provider: %w%s", err, discoveryAdvice(err))
	}
	m, ignored, err := c.readMetadata(found)
	if err != nil {
		return nil, fmt.Errorf("discover provider: %w", err)
	}
	if text := fmt.Sprint(ignored); text != c.ignored && ignored != nil {
		c.log.WarnContext(ctx, "members of the provider's metadata ignored", "issuer", c.cfg.Issuer, "err", ignored)
		c.ignored = text
	}
	m.EndSession = cmp.Or(c.cfg.LogoutURL, m.EndSession)
	if err := errors.Join(c.checkEndpoints(m), c.checkCapabilities(m)); err != nil {
		return nil, fmt.Errorf("discover provider: %w", err)
	}
	m.keys = c.keySet(m.JWKS)
	return m, nil
}

// discoveryAdvice returns advice for the operator, to be appended to an error
// of discovery. It is empty for errors that may be transient.
func discoveryAdvice(err error) string {
	status, network := (*jwks.StatusError)(nil), net.Error(nil)
	switch {
	case errors.As(err, &status) && status.Location != "":
		return " (redirects are not followed; set oidc.issuer to the issuer that the metadata there name)"
	case errors.As(err, &status) && status.Status >= 500, errors.As(err, &network):
		return ""
	}
	return " (check oidc.issuer)"
}

// keySet returns the key set at a URL: the current one if the URL is the same.
func (c *Client) keySet(from string) *jwks.Set {
	if from == "" {
		return nil
	}
	if before := c.current.Load(); before != nil && before.JWKS == from {
		return before.keys
	}
	return jwks.NewSet(jwks.Config{
		Issuer: c.cfg.Issuer, KidsReused: true, MaxLifetime: metadataLife, Logger: c.log,
		Fetch: func(ctx context.Context) (*jwks.Document, error) {
			document, err := jwks.Get(ctx, c.client, from)
			if status := (*jwks.StatusError)(nil); errors.As(err, &status) && status.Location != "" {
				err = fmt.Errorf("%w (redirects are not followed; the provider's jwks_uri has to be the URL of the keys)", err)
			}
			return document, err
		},
	})
}

// readMetadata reads the members of the metadata that this client uses. Null
// and the empty string count as missing. A member that occurs twice, or has a
// type other than the standard's, is an error if the configuration needs it.
// Otherwise it counts as missing, and ignored names it.
func (c *Client) readMetadata(found strictjson.Object) (m *metadata, ignored, err error) {
	m = new(metadata)
	var wrong, skipped []error
	note := func(name string, err error) {
		switch {
		case err == nil:
		case c.needs(name):
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
	if strings.HasSuffix(c.cfg.ClientAuth, "tls_client_auth") || c.cfg.SenderConstraint == "mtls" { // RFC 8705 5
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
func (c *Client) needs(member string) bool {
	switch member {
	case "token_endpoint":
		return true
	case "authorization_endpoint", "jwks_uri":
		return !c.cfg.WithoutLogin
	case "pushed_authorization_request_endpoint":
		return c.cfg.PushedRequests == "always"
	case "userinfo_endpoint":
		return c.cfg.UserInfo
	case "tls_client_certificate_bound_access_tokens":
		return c.cfg.SenderConstraint == "mtls"
	case "authorization_response_iss_parameter_supported":
		return c.cfg.FAPI2
	}
	return false
}

// checkEndpoints verifies that all endpoints are safe to send credentials to.
// Optional ones may be missing.
func (c *Client) checkEndpoints(m *metadata) error {
	var errs []error
	for _, e := range []struct {
		name, url string
		optional  bool // see also checkCapabilities
	}{
		{"authorization_endpoint", m.Authorization, c.cfg.WithoutLogin},
		{"token_endpoint", m.Token, false},
		{"jwks_uri", m.JWKS, c.cfg.WithoutLogin},
		{"end_session_endpoint", m.EndSession, true},
		{"revocation_endpoint", m.Revocation, true},
		{"pushed_authorization_request_endpoint", m.Pushed, true},
		{"userinfo_endpoint", m.UserInfo, true},
	} {
		if e.url == "" && e.optional {
			continue
		}
		if err := checkProviderURL(e.url, c.cfg.Issuer); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", e.name, err))
		}
	}
	return errors.Join(errs...)
}

// checkCapabilities verifies that the provider supports what the configuration
// uses.
func (c *Client) checkCapabilities(m *metadata) error {
	var errs []error
	lacks := func(format string, args ...any) { errs = append(errs, fmt.Errorf("the provider "+format, args...)) }
	if c.cfg.PushedRequests == "always" && m.Pushed == "" {
		lacks("has no pushed_authorization_request_endpoint, and pushed requests are wanted always")
	}
	if c.cfg.PushedRequests == "never" && m.RequirePushed {
		lacks("requires pushed authorization requests, and they are never to be used")
	}
	if m.RequireSigned && len(c.keys) == 0 {
		lacks("requires signed authorization requests, and there is no client key to sign them with")
	}
	if c.cfg.SenderConstraint == "dpop" && len(m.ProofAlgorithms) > 0 && !slices.Contains(m.ProofAlgorithms, "ES256") {
		lacks("takes no DPoP proofs with ES256, only with %q", m.ProofAlgorithms)
	}
	if c.cfg.SenderConstraint == "mtls" && !m.CertificateBound { // RFC 8705 3.3
		lacks("does not bind access tokens to certificates (tls_client_certificate_bound_access_tokens), and mtls is wanted")
	}
	if c.cfg.UserInfo && m.UserInfo == "" {
		lacks("has no userinfo_endpoint, and the user's claims are to be fetched from there")
	}
	if alg := c.cfg.IDTokenAlg; alg != "" && len(m.IDTokenAlgorithms) > 0 && !slices.Contains(m.IDTokenAlgorithms, alg) {
		lacks("does not sign ID tokens with %s, only with %q (check oidc.id_token_alg)", alg, m.IDTokenAlgorithms)
	}
	if c.cfg.FAPI2 && !m.IssParameter {
		lacks("does not send iss in authorization responses (RFC 9207), which FAPI 2.0 demands")
	}
	return errors.Join(errs...)
}

// discovered returns the metadata. The error wraps ErrUnavailable until it has
// been read for the first time.
func (c *Client) discovered() (*metadata, error) {
	if m := c.current.Load(); m != nil {
		return m, nil
	}
	return nil, errNotDiscovered
}

// EndSessionURL returns the URL to which the browser is sent to log out at the
// provider too (OpenID Connect RP-Initiated Logout, section 2). It is empty if
// the provider has no such endpoint or has not been discovered.
func (c *Client) EndSessionURL(idToken session.Secret, user, redirectURI, state string) string {
	m := c.current.Load()
	if m == nil || m.EndSession == "" {
		return ""
	}
	u, err := url.Parse(m.EndSession)
	if err != nil {
		return ""
	}
	q := u.Query()
	q.Set("client_id", c.cfg.ClientID)
	q.Set(cmp.Or(c.cfg.LogoutRedirectParameter, "post_logout_redirect_uri"), redirectURI)
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

// maxEndSessionURL is the maximum length of a URL with an id_token_hint. nginx
// has a buffer of 4 kB for a response header, and our other fields need less
// than one.
const maxEndSessionURL = 3000

// HasEndSession reports whether users can sign out at the provider too.
func (c *Client) HasEndSession() bool {
	m := c.current.Load()
	return m != nil && m.EndSession != ""
}

// trusts reports whether a token may name an audience: this client, or one of
// TrustedAudiences.
func (c *Client) trusts(audience string) bool {
	return audience == c.cfg.ClientID || slices.Contains(c.cfg.TrustedAudiences, audience)
}

// IssuerOrigin returns the origin of the issuer, as a source in a CSP.
func (c *Client) IssuerOrigin() string {
	u, err := url.Parse(c.cfg.Issuer)
	if err != nil {
		return "'none'"
	}
	return u.Scheme + "://" + u.Host
}

// limitResponses fails the reading of a response body beyond maxResponse bytes.
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
