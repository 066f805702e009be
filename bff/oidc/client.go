// Package oidc is an OpenID Connect client of one provider, for a server that
// holds the tokens of its users. Package bff makes one from Config.Provider and
// sets the rest of Config; the client can also be used by itself.
//
// A Client needs Run to become ready. A login has two steps:
//
//   - The server makes a Request with a random State, Nonce and Verifier, and a
//     Key from NewKey if tokens are bound by DPoP. It keeps the Request for
//     this browser, and redirects to Client.AuthorizationURL.
//   - At Config.RedirectURI, ParseResponse reads the Response. The server finds
//     the Request by its State, and calls Client.CheckIssuer and
//     Client.Exchange, which verifies the ID token.
//
// Client.Refresh, Client.Admit and Client.Revoke are made for session.Config.
// The provider may be down at any time. An error that wraps ErrUnavailable is
// transient; an *Error is a response of the provider.
package oidc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"golang.org/x/time/rate"

	"github.com/cloakroom-bff/cloakroom/internal/configerr"
	"github.com/cloakroom-bff/cloakroom/internal/loopback"
	"github.com/cloakroom-bff/cloakroom/session"
)

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
	tokenClient  *http.Client
	breaker      *breaker
	certificates *peerCertificates
	log          *slog.Logger

	// Limits of the fetches of the key set that an unknown key id causes. ID
	// tokens come from the provider, but any client can send logout tokens.
	// Logout tokens have a limit of their own, so that they never use up the
	// fetches of logins. At one forged token a second, a genuine one with a new
	// key still gets a fetch.
	idTokenFetches, logoutFetches *rate.Limiter

	noRefreshToken sync.Once              // logs the missing refresh token
	noRotation     sync.Once              // logs that refresh tokens are not rotated
	ignored        atomic.Pointer[string] // the ignored members of the metadata that were logged last

	current atomic.Pointer[metadata] // nil until the first successful discovery
	ready   chan struct{}            // closed by the first successful discovery
	failure atomic.Pointer[error]    // of the last attempt to read the metadata, nil if it succeeded
	// attempted is closed when Run has attempted the first discovery.
	attempted chan struct{}
}

const (
	providerTimeout = 15 * time.Second
	maxResponse     = 1 << 20 // bytes of a response body

	// metadataLife is the maximum age of the metadata and of the key set. While
	// the key set can be fetched, a withdrawn key is trusted no longer than
	// that.
	metadataLife = 10 * time.Minute
)

// New returns a client. It makes no request. The error joins a
// *session.ConfigError for every mistake in cfg. The client that New returns
// with an error is good for Discover only.
func New(cfg Config) (*Client, error) {
	var errs []error
	fail := func(name string, value any, err error) {
		errs = append(errs, configerr.New(name, value, err))
	}
	if err := checkProviderURL(cfg.Issuer, cfg.Issuer); err != nil {
		fail("Issuer", cfg.Issuer, err)
	}
	if cfg.LogoutURL != "" {
		if err := checkProviderURL(cfg.LogoutURL, cfg.Issuer); err != nil {
			fail("LogoutURL", cfg.LogoutURL, err)
		}
	}
	switch id := cfg.ClientID; {
	case id == "":
		fail("ClientID", nil, errors.New("missing"))
	case strings.TrimSpace(id) != id, strings.ContainsFunc(id, unicode.IsControl): // often from a file
		fail("ClientID", id, fmt.Errorf("%q has white space around it, or a control character", id))
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	keys, err := newSigningKeys(cfg.ClientKeys, cfg.ClientCertificate)
	if err != nil {
		fail("ClientKeys", nil, err)
	}
	checkClientAuth(&cfg, fail)
	checkRequests(&cfg, fail)
	if err := checkIDTokenAlg(&cfg); err != nil {
		fail("IDTokenAlg", cfg.IDTokenAlg, err)
	}
	if len(cfg.Scopes) == 0 {
		cfg.Scopes = []string{"openid", "profile", "email", "offline_access"}
	}
	if !slices.Contains(cfg.Scopes, "openid") {
		cfg.Scopes = append([]string{"openid"}, cfg.Scopes...)
	}
	if cfg.HTTPClient != nil && (cfg.RootCAs != nil || cfg.ClientCertificate != nil) {
		fail("HTTPClient", nil, errors.New("it has a transport of its own, which RootCAs and "+
			"ClientCertificate would have no part in"))
	}
	p := &Client{
		cfg: cfg, keys: keys, targets: make(map[string]Target), log: cfg.Logger,
		certificates: new(peerCertificates),
		ready:        make(chan struct{}), attempted: make(chan struct{}),
		idTokenFetches: rate.NewLimiter(rate.Every(time.Second), 5),
		logoutFetches:  rate.NewLimiter(rate.Every(700*time.Millisecond), 3),
	}
	for _, t := range cfg.Targets {
		p.targets[t.Key()] = t
	}
	p.client = p.newHTTPClient()
	tokenClient := *p.client
	tokenClient.Timeout = 0
	p.tokenClient = &tokenClient
	p.breaker = newBreaker(cfg.Logger, p.probe)
	return p, errors.Join(errs...)
}

// probe requests the metadata, which has no side effects. Any response is a
// success. After probePatience without one it also sends a GET to the token
// endpoint, which may be on another host and is the one that matters.
func (c *Client) probe(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	results := make(chan error, 2)
	var requests sync.WaitGroup
	defer requests.Wait()
	defer cancel()
	send := func(url string) { requests.Go(func() { results <- c.probeURL(ctx, url) }) }
	send(c.metadataURL())
	m, patience := c.current.Load(), time.NewTimer(probePatience)
	defer patience.Stop()
	if m == nil {
		return <-results
	}
	var err error
	sent := 1
	for failed := 0; failed < 2; {
		select {
		case err = <-results:
			if err == nil {
				return nil
			}
			failed++
		case <-patience.C:
		}
		if sent == 1 {
			sent++
			send(m.Token)
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
			return 0, &session.RefreshError{RetryAfter: time.Second,
				Err: errors.New("the provider has not been found yet")}
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	return c.breaker.admit(ctx, sessionID, wait-time.Since(begun))
}

// Status returns nil if the provider was discovered and responds, as far as is
// known from the last requests. Otherwise it returns why not.
func (c *Client) Status() error {
	if !c.Discovered() {
		if failure := c.failure.Load(); failure != nil {
			return *failure
		}
		return errNotDiscovered
	}
	return c.breaker.status()
}

// Breaker returns the state of the circuit breaker. Before the discovery it is
// closed.
func (c *Client) Breaker() BreakerState { return c.breaker.current() }

// Config returns the configuration, with defaults filled in.
func (c *Client) Config() *Config { return &c.cfg }

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
	case !loopback.IsHost(u.Hostname()) || !isHTTP(issuer):
		return fmt.Errorf("%q: plain http is for a provider on a loopback host alone", raw)
	}
	return nil
}

func isHTTP(raw string) bool {
	scheme, _, _ := strings.Cut(raw, ":")
	return strings.EqualFold(scheme, "http")
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
