package oidc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/flight"
	"github.com/cloakroom-bff/cloakroom/internal/jwks"
	"github.com/cloakroom-bff/cloakroom/internal/strictjson"
)

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

	inherited bool // from another client (Client.Inherit), whose keys these are
}

// backchannelEndpoints are the endpoints that this client calls directly, not
// through a browser.
type backchannelEndpoints struct {
	Token      string
	Revocation string
	Pushed     string
	UserInfo   string
}

// metadataURL returns the URL of the provider's metadata (OpenID Connect
// Discovery, section 4.1).
func (c *Client) metadataURL() string {
	return strings.TrimSuffix(c.cfg.Issuer, "/") + "/.well-known/openid-configuration"
}

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

// WaitAttempt waits until Run has attempted to read the metadata for the first
// time, or ctx ends.
func (c *Client) WaitAttempt(ctx context.Context) {
	select {
	case <-c.attempted:
	case <-c.ready:
	case <-ctx.Done():
	}
}

// Discover reads the metadata now. Run does so by itself. If it fails, the
// metadata that were read before stay in use.
func (c *Client) Discover(ctx context.Context) error {
	m, err := c.discover(ctx)
	c.failure.Store(&err)
	if err != nil {
		return err
	}
	switch before := c.current.Swap(m); {
	case before == nil:
		close(c.ready)
		fallthrough
	case before.inherited:
		c.log.InfoContext(ctx, "provider found", "issuer", c.cfg.Issuer)
	}
	return nil
}

// Inherit uses the metadata of another client of the same provider until this
// one can read them. It does nothing if this one has metadata, or could not use
// those of the other.
func (c *Client) Inherit(from *Client) {
	m := from.current.Load()
	if m == nil || from.cfg.Issuer != c.cfg.Issuer || from.cfg.LogoutURL != c.cfg.LogoutURL ||
		from.usesAliases() != c.usesAliases() {
		return
	}
	inherited := *m
	inherited.inherited = true
	if c.checkEndpoints(&inherited) != nil || c.checkCapabilities(&inherited) != nil {
		return
	}
	if c.current.CompareAndSwap(nil, &inherited) {
		close(c.ready)
	}
}

// Run discovers the provider and keeps its metadata current, until ctx ends.
// The provider may be down at start and at any time after. Until the first
// discovery succeeds, it is retried at least every second.
func (c *Client) Run(ctx context.Context) {
	const firstWait, longestWait = 500 * time.Millisecond, 10 * time.Second
	const logAgain = time.Minute // another cause is not logged earlier
	wait := firstWait
	var logged string // the cause that was logged last, at loggedAt
	var loggedAt time.Time
	for first := true; ; first = false {
		next := metadataLife
		err := c.Discover(ctx)
		if first {
			close(c.attempted)
		}
		switch {
		case err == nil:
			wait, logged = firstWait, ""
		case ctx.Err() != nil:
			return
		default:
			known := c.current.Load() != nil
			switch text := err.Error(); {
			case text == logged, logged != "" && time.Since(loggedAt) < logAgain:
			case known && c.Breaker() != BreakerClosed: // the outage has been logged
			case known:
				logged, loggedAt = text, time.Now()
				c.log.WarnContext(ctx, "provider metadata not refreshed; the metadata before stay in use",
					"issuer", c.cfg.Issuer, "err", err)
			default:
				logged, loggedAt = text, time.Now()
				c.log.ErrorContext(ctx, "provider discovery failed; sign-in is unavailable, "+
					"existing sessions are not affected", "issuer", c.cfg.Issuer, "err", err)
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

// discover returns the provider's metadata. As long as none are known, it sends
// another request each second, so that one that is lost delays no sign-in. The
// first response counts.
func (c *Client) discover(ctx context.Context) (*metadata, error) {
	ctx, cancel := context.WithTimeout(ctx, providerTimeout)
	defer cancel()
	if c.current.Load() != nil {
		return c.readDiscovery(ctx)
	}
	return flight.Repeat(ctx, time.Second, c.readDiscovery)
}

// readDiscovery requests the provider's metadata. It fails if any member that
// is needed is invalid (OpenID Connect Discovery, section 4.3).
func (c *Client) readDiscovery(ctx context.Context) (*metadata, error) {
	found, _, err := jwks.Discover(ctx, c.client, c.cfg.Issuer)
	if err != nil {
		if advice := discoveryAdvice(err); advice != "" {
			return nil, fmt.Errorf("discover provider: %w%s", err, advice)
		}
		return nil, outage{fmt.Errorf("discover provider: %w", err)}
	}
	m, ignored, err := c.readMetadata(found)
	if err != nil {
		return nil, fmt.Errorf("discover provider: %w", err)
	}
	if ignored != nil {
		text := ignored.Error()
		if logged := c.ignored.Swap(&text); logged == nil || *logged != text {
			c.log.WarnContext(ctx, "members of the provider's metadata ignored", "issuer", c.cfg.Issuer, "err", ignored)
		}
	}
	m.EndSession = cmp.Or(c.cfg.LogoutURL, m.EndSession)
	if err := errors.Join(c.checkEndpoints(m), c.checkCapabilities(m)); err != nil {
		return nil, fmt.Errorf("discover provider: %w", err)
	}
	m.keys = c.keySet(m.JWKS)
	return m, nil
}

// discoveryAdvice returns advice for the operator, to be appended to an error
// of discovery. It is empty for errors that may be transient, and for those
// that have advice already.
func discoveryAdvice(err error) string {
	status, network := (*jwks.StatusError)(nil), net.Error(nil)
	switch {
	case errors.As(err, &status) && status.Location != "":
		return " (redirects are not followed; set oidc.issuer to the issuer that the metadata there name)"
	case errors.As(err, &status) && status.Status >= 500, errors.As(err, &network), tlsAdvice(err) != "":
		return ""
	}
	return " (check oidc.issuer)"
}

// keySet returns the key set at a URL: the current one if the URL is the same.
func (c *Client) keySet(from string) *jwks.Set {
	if from == "" {
		return nil
	}
	if before := c.current.Load(); before != nil && before.JWKS == from && !before.inherited {
		return before.keys
	}
	return jwks.NewSet(jwks.Config{
		Issuer: c.cfg.Issuer, KidsReused: true, MaxLifetime: metadataLife, Logger: c.log,
		Fetch: func(ctx context.Context) (*jwks.Document, error) {
			document, err := jwks.Get(ctx, c.client, from)
			if status := (*jwks.StatusError)(nil); errors.As(err, &status) && status.Location != "" {
				err = fmt.Errorf("%w (redirects are not followed; the provider's jwks_uri has to be the "+
					"URL of the keys)", err)
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
			wrong = append(wrong, MetadataError(err.Error()))
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
	if c.usesAliases() {
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

// usesAliases reports whether the endpoints for mutual TLS are used (RFC 8705,
// section 5).
func (c *Client) usesAliases() bool {
	return c.cfg.ClientAuth.usesTLS() || c.cfg.SenderConstraint == SenderConstraintMTLS
}

// needs reports whether the configuration needs a member of the metadata.
func (c *Client) needs(member string) bool {
	switch member {
	case "token_endpoint":
		return true
	case "authorization_endpoint", "jwks_uri":
		return !c.cfg.WithoutLogin
	case "pushed_authorization_request_endpoint":
		return c.cfg.PushedRequests == PushAlways
	case "userinfo_endpoint":
		return c.cfg.UserInfo
	case "tls_client_certificate_bound_access_tokens":
		return c.cfg.SenderConstraint == SenderConstraintMTLS
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
			errs = append(errs, MetadataError(e.name+": "+err.Error()))
		}
	}
	return errors.Join(errs...)
}

// checkCapabilities verifies that the provider supports what the configuration
// uses.
func (c *Client) checkCapabilities(m *metadata) error {
	var errs []error
	lacks := func(format string, args ...any) {
		errs = append(errs, CapabilityError("the provider "+fmt.Sprintf(format, args...)))
	}
	if c.cfg.PushedRequests == PushAlways && m.Pushed == "" {
		lacks("has no pushed_authorization_request_endpoint, and pushed requests are wanted always")
	}
	if c.cfg.PushedRequests == PushNever && m.RequirePushed {
		lacks("requires pushed authorization requests, and they are never to be used")
	}
	if m.RequireSigned && len(c.keys) == 0 {
		lacks("requires signed authorization requests, and there is no client key to sign them with")
	}
	if c.cfg.SenderConstraint == SenderConstraintDPoP && len(m.ProofAlgorithms) > 0 &&
		!slices.Contains(m.ProofAlgorithms, "ES256") {
		lacks("takes no DPoP proofs with ES256, only with %q", m.ProofAlgorithms)
	}
	if c.cfg.SenderConstraint == SenderConstraintMTLS && !m.CertificateBound { // RFC 8705 3.3
		lacks("does not bind access tokens to certificates (tls_client_certificate_bound_access_tokens), " +
			"and mtls is wanted")
	}
	if c.cfg.UserInfo && m.UserInfo == "" {
		lacks("has no userinfo_endpoint, and the user's claims are to be fetched from there")
	}
	if alg := c.cfg.IDTokenAlg; alg != "" && len(m.IDTokenAlgorithms) > 0 &&
		!slices.Contains(m.IDTokenAlgorithms, alg) {
		lacks("does not sign ID tokens with %s, only with %q (check oidc.id_token_alg)", alg, m.IDTokenAlgorithms)
	}
	if c.cfg.FAPI2 && !m.IssParameter {
		lacks("does not send iss in authorization responses (RFC 9207), which FAPI 2.0 demands")
	}
	return errors.Join(errs...)
}

// discovered returns the metadata. If Run has just begun, it waits for the
// first attempt to read them. The error wraps ErrUnavailable until one has
// succeeded.
func (c *Client) discovered(ctx context.Context) (*metadata, error) {
	if m := c.current.Load(); m != nil {
		return m, nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.MaxWait())
	defer cancel()
	c.WaitAttempt(ctx)
	if m := c.current.Load(); m != nil {
		return m, nil
	}
	return nil, errNotDiscovered
}
