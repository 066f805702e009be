package bff

import (
	"context"
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
	"golang.org/x/oauth2"
	"golang.org/x/time/rate"

	"github.com/cloakroom-bff/cloakroom/session"
)

// ProviderConfig says who signs users in, and who we are to them.
type ProviderConfig struct {
	Issuer       string // as the provider writes it, to the character; https, or http on a loopback host
	ClientID     string
	ClientSecret session.Secret
	ClientAuth   string   // client_secret_basic (the default) or client_secret_post
	Scopes       []string // openid is added where it is missing; empty means openid, profile, email, offline_access

	// HTTPClient reaches the provider; nil means one that takes 15 s at most for a request. Redirects are never followed.
	HTTPClient *http.Client
}

// provider speaks OpenID Connect with the one provider of this server. This file and its neighbours, token.go (the token endpoint),
// idtoken.go and logouttoken.go (what of such a token is believed), are the ones that speak with it.
type provider struct {
	cfg         ProviderConfig
	redirectURI string // a constant: no request header takes part in it (RFC 9700 4.1.3)
	client      *http.Client
	keyClient   *http.Client // the same, for the key set
	// logoutKeyClient is the same, for the key set that logout tokens are checked with: anybody can send those, and must not use up what logins need.
	logoutKeyClient *http.Client
	log             *slog.Logger

	found      atomic.Pointer[metadata] // nil until the provider has been found
	firstFound chan struct{}            // closed then
}

// metadata is what the provider says of itself (OpenID Connect Discovery 3), and what was made of it.
type metadata struct {
	EndSession        string   `json:"end_session_endpoint"`
	Revocation        string   `json:"revocation_endpoint"`
	IssParameter      bool     `json:"authorization_response_iss_parameter_supported"`
	JWKS              string   `json:"jwks_uri"`
	IDTokenAlgorithms []string `json:"id_token_signing_alg_values_supported"`

	authorization oauth2.Endpoint
	keys          oidc.KeySet
	logoutKeys    oidc.KeySet
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
	if cfg.ClientID == "" {
		fail("ClientID", errors.New("missing"))
	}
	switch cfg.ClientAuth {
	case "":
		cfg.ClientAuth = "client_secret_basic"
	case "client_secret_basic", "client_secret_post":
	default:
		fail("ClientAuth", fmt.Errorf("%q is none of client_secret_basic, client_secret_post", cfg.ClientAuth))
	}
	if cfg.ClientSecret == "" {
		fail("ClientSecret", errors.New("missing; a client without credentials is refused (RFC 10017 6.1.3.1)"))
	}
	if len(cfg.Scopes) == 0 {
		cfg.Scopes = []string{"openid", "profile", "email", "offline_access"}
	}
	if !slices.Contains(cfg.Scopes, "openid") {
		cfg.Scopes = append([]string{"openid"}, cfg.Scopes...)
	}
	client := &http.Client{Timeout: providerTimeout}
	if cfg.HTTPClient != nil {
		*client = *cfg.HTTPClient
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // a redirected token request would carry the secret and the refresh token elsewhere
	}
	client.Transport = limitedAnswers{client.Transport}
	return &provider{
		cfg: cfg, redirectURI: redirectURI, log: log, firstFound: make(chan struct{}),
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
	m := new(metadata)
	if err := answer.Claims(m); err != nil {
		return nil, fmt.Errorf("discover: %w", err)
	}
	m.authorization = answer.Endpoint()
	var errs []error
	for name, endpoint := range map[string]string{"authorization_endpoint": m.authorization.AuthURL, "token_endpoint": m.authorization.TokenURL, "jwks_uri": m.JWKS} {
		if err := checkProviderURL(endpoint, p.cfg.Issuer); err != nil {
			errs = append(errs, fmt.Errorf("discover: %s: %w", name, err))
		}
	}
	for name, endpoint := range map[string]string{"end_session_endpoint": m.EndSession, "revocation_endpoint": m.Revocation} {
		if err := checkProviderURL(endpoint, p.cfg.Issuer); err != nil && endpoint != "" {
			errs = append(errs, fmt.Errorf("discover: %s: %w", name, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	m.keys = oidc.NewRemoteKeySet(oidc.ClientContext(ctx, p.keyClient), m.JWKS)
	m.logoutKeys = oidc.NewRemoteKeySet(oidc.ClientContext(ctx, p.logoutKeyClient), m.JWKS)
	return m, nil
}

// metadata returns what is known of the provider, or errProviderUnavailable.
func (p *provider) metadata() (*metadata, error) {
	if m := p.found.Load(); m != nil {
		return m, nil
	}
	return nil, errProviderUnavailable.because(errors.New("the provider has not been found yet"))
}

// authURL is where the browser goes to log in: authorization code with PKCE, state and nonce, always (RFC 9700 2.1.1).
func (p *provider) authURL(a *attempt, extra url.Values) (string, error) {
	m, err := p.metadata()
	if err != nil {
		return "", err
	}
	options := []oauth2.AuthCodeOption{oauth2.S256ChallengeOption(a.Verifier.Reveal()), oidc.Nonce(a.Nonce)}
	for name := range extra {
		options = append(options, oauth2.SetAuthURLParam(name, extra.Get(name)))
	}
	c := oauth2.Config{ClientID: p.cfg.ClientID, RedirectURL: p.redirectURI, Endpoint: m.authorization, Scopes: p.cfg.Scopes}
	return c.AuthCodeURL(a.State, options...), nil
}

// logoutURL is where the browser goes to log out at the provider too (OpenID Connect RP-Initiated Logout 2), or "" where it has no such place.
func (p *provider) logoutURL(idToken session.Secret, redirectURI, state string) string {
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
	if idToken != "" {
		q.Set("id_token_hint", idToken.Reveal())
	}
	q.Set("post_logout_redirect_uri", redirectURI)
	q.Set("state", state)
	u.RawQuery = q.Encode()
	return u.String()
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
