package oidc

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"log/slog"
	"net/url"
	"sync"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
)

// ClientCredentials is the source of the client's own access tokens for one
// target (RFC 6749, section 4.4). Routes that need no signed-in user use it. It
// is safe for concurrent use.
type ClientCredentials struct {
	client  *Client
	target  Target
	key     session.Secret // DPoP key of the tokens; empty: they are bearer tokens
	private *ecdsa.PrivateKey

	mu        sync.Mutex // guards all below
	tokens    session.Tokens
	token     AccessToken   // zero: there is no token yet
	inFlight  *tokenFetch   // nil: no request is in flight
	failed    time.Time     // when the last request failed; zero: it succeeded
	err       error         // why
	pause     time.Duration // between failed and the next request
	renewedAt time.Time     // of the last request that a rejected token caused
}

// ClientCredentials returns the source of the broker's own tokens for a target.
func (c *Client) ClientCredentials(t Target) (*ClientCredentials, error) {
	credentials := &ClientCredentials{client: c, target: t}
	if c.cfg.SenderConstraint != SenderConstraintDPoP {
		return credentials, nil
	}
	// The key lives as long as this process, and so do the tokens.
	var err error
	if credentials.key, err = NewKey(); err != nil {
		return nil, err
	}
	if credentials.private, err = parseKey(credentials.key); err != nil {
		return nil, err
	}
	return credentials, nil
}

// Inherit takes over the token of another configuration, with the key that it
// is bound to. It does nothing if there is none, or if the target, the provider
// or the client's credentials differ. It is called before the first use of c.
func (c *ClientCredentials) Inherit(from *ClientCredentials) {
	if c.target.Key() != from.target.Key() || !c.client.cfg.sameCredentials(&from.client.cfg) {
		return
	}
	from.mu.Lock()
	defer from.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if from.token.Authorization == nil {
		return
	}
	c.key, c.private = from.key, from.private
	c.tokens, c.token, c.renewedAt = from.tokens, from.token, from.renewedAt
}

// AccessToken is an access token as it is sent to an upstream. The zero value
// is none.
type AccessToken struct {
	Authorization []string          // the value of the header; nil: there is no token
	Key           *ecdsa.PrivateKey // to which it is bound; nil: it is a bearer token
}

// tokenFetch is one token request, shared by all callers that wait for it.
type tokenFetch struct {
	done  chan struct{} // closed when all below are set
	token AccessToken
	err   error
}

const (
	fetchTimeout = 30 * time.Second
	// renewAhead is how long before its expiry a token is replaced, but at most
	// half its lifetime.
	renewAhead = time.Minute
	// defaultLifetime is the lifetime of a token without expires_in.
	defaultLifetime = 5 * time.Minute
	// minBackoff and maxBackoff bound the pause after a failed request. A
	// Retry-After of the provider counts between them.
	minBackoff = 2 * time.Second
	maxBackoff = 30 * time.Second
	// minRenewInterval is the minimum time between two requests that rejected
	// tokens cause.
	minRenewInterval = 10 * time.Second
)

// Token returns the token. It waits only if there is no valid one: a token is
// replaced in the background before it expires. The error is a
// *session.RefreshError, or the context's.
func (c *ClientCredentials) Token(ctx context.Context) (AccessToken, error) {
	c.mu.Lock()
	now := time.Now()
	life := c.tokens.Expiry.Sub(c.tokens.Issued)
	good := c.token.Authorization != nil && now.Before(c.tokens.Expiry.Add(-min(5*time.Second, life/10)))
	if good && now.Before(c.tokens.Expiry.Add(-min(renewAhead, life/2))) {
		defer c.mu.Unlock()
		return c.token, nil
	}
	if pause := c.pause - now.Sub(c.failed); !c.failed.IsZero() && pause > 0 && c.inFlight == nil {
		defer c.mu.Unlock()
		if good {
			return c.token, nil
		}
		return AccessToken{}, &session.RefreshError{RetryAfter: pause, Err: c.err}
	}
	flight, token := c.fetch(ctx), c.token
	c.mu.Unlock()
	if good {
		return token, nil
	}
	return c.wait(ctx, flight)
}

// Renew returns a token that replaces rejected, which an upstream did not
// accept. It returns rejected itself if it requested a token within
// minRenewInterval.
func (c *ClientCredentials) Renew(ctx context.Context, rejected AccessToken) (AccessToken, error) {
	c.mu.Lock()
	switch {
	case c.token.Authorization != nil && c.token.Authorization[0] != rejected.Authorization[0]:
		defer c.mu.Unlock()
		return c.token, nil
	case time.Since(c.renewedAt) < minRenewInterval:
		defer c.mu.Unlock()
		return rejected, nil
	}
	c.renewedAt = time.Now()
	flight := c.fetch(ctx)
	c.mu.Unlock()
	return c.wait(ctx, flight)
}

// fetch starts a token request, or returns the one in flight. The caller holds
// mu.
func (c *ClientCredentials) fetch(ctx context.Context) *tokenFetch {
	if c.inFlight != nil {
		return c.inFlight
	}
	flight := &tokenFetch{done: make(chan struct{})}
	c.inFlight = flight
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTimeout)
	go func() { // bounded by fetchTimeout
		defer cancel()
		_, notReady := c.client.Admit(ctx, "", fetchTimeout)
		var tokens session.Tokens
		err := notReady
		if err == nil {
			tokens, err = c.client.clientCredentials(ctx, c.target, c.key)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.inFlight = nil
		if notReady != nil {
			flight.err = notReady
		} else if err != nil {
			var unrefreshed *session.RefreshError
			if !errors.As(err, &unrefreshed) {
				unrefreshed = &session.RefreshError{Err: err}
			}
			unrefreshed.RetryAfter = min(max(unrefreshed.RetryAfter, minBackoff), maxBackoff)
			c.pause = unrefreshed.RetryAfter
			flight.err = unrefreshed
			c.failed, c.err = time.Now(), unrefreshed.Err
			level := slog.LevelWarn
			if errors.Is(err, ErrUnavailable) { // the outage is logged once, not for each attempt
				level = slog.LevelDebug
			}
			c.client.log.LogAttrs(ctx, level, "no token for the broker itself", slog.Any("err", err))
		} else {
			if tokens.Expiry.IsZero() {
				tokens.Expiry = tokens.Issued.Add(defaultLifetime)
			}
			c.failed, c.tokens = time.Time{}, tokens
			c.token = AccessToken{Authorization: []string{tokens.Authorization()}, Key: c.private}
			flight.token = c.token
		}
		close(flight.done)
	}()
	return flight
}

// wait returns the result of a fetch. It waits for at most Config.MaxWait.
func (c *ClientCredentials) wait(ctx context.Context, f *tokenFetch) (AccessToken, error) {
	limit := time.NewTimer(c.client.cfg.MaxWait())
	defer limit.Stop()
	select {
	case <-f.done:
		return f.token, f.err
	case <-limit.C:
		return AccessToken{}, &session.RefreshError{RetryAfter: minBackoff, Err: errProviderSilent}
	case <-ctx.Done():
		return AccessToken{}, ctx.Err()
	}
}

// clientCredentials requests a token of the client's own (RFC 6749, section
// 4.4). A refresh token in the response is not used: section 4.4.3 advises
// against it.
func (c *Client) clientCredentials(ctx context.Context, t Target, key session.Secret) (session.Tokens, error) {
	m, err := c.discovered(ctx)
	if err != nil {
		return session.Tokens{}, err
	}
	form := url.Values{"grant_type": {"client_credentials"}}
	t.addTo(form)
	resp, err := c.requestTokens(ctx, m, form, key)
	if err != nil {
		return session.Tokens{}, err
	}
	return resp.tokens, nil
}
