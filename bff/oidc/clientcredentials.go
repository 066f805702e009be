package oidc

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"net/url"
	"sync"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
)

// clientToken is an access token of the broker itself, by client credentials (RFC 6749 4.4): for routes on which nobody has to be signed in. There is one for
// each target.
type ClientCredentials struct {
	client  *Client
	target  Target
	key     session.Secret // that the tokens are bound to; empty: they are not
	private *ecdsa.PrivateKey

	mu        sync.Mutex // guards all below
	tokens    session.Tokens
	token     AccessToken   // without a header: there is no token yet
	inFlight  *tokenFetch   // nil: the provider is not being asked
	failed    time.Time     // when it was asked last without success, or zero
	err       error         // why
	pause     time.Duration // from then on until it is asked again
	renewedAt time.Time     // when it was asked last because an upstream did not take the token
}

// ClientCredentials returns the source of the broker's own tokens for a target.
func (p *Client) ClientCredentials(t Target) (*ClientCredentials, error) {
	c := &ClientCredentials{client: p, target: t}
	var err error
	if p.cfg.SenderConstraint == "dpop" { // a key for as long as this process lives, which is as long as the tokens are kept
		if c.key, err = NewKey(); err == nil {
			c.private, err = parseKey(c.key)
		}
	}
	return c, err
}

// AccessToken is an access token as it is sent to an upstream. The zero value is
// none.
type AccessToken struct {
	Authorization []string          // the value of the header; nil: there is no token
	Key           *ecdsa.PrivateKey // to which it is bound; nil: it is a bearer token
}

// tokenFetch is one request for a token, which everybody shares who needs it.
type tokenFetch struct {
	done  chan struct{} // closed when all below are set
	token AccessToken
	err   error
}

const (
	fetchTimeout = 30 * time.Second
	// renewAhead is how long before its end a token is replaced, at most half its life; defaultLifetime is how long one lives whose end the provider does not tell.
	renewAhead      = time.Minute
	defaultLifetime = 5 * time.Minute
	// minBackoff is how long the provider is not asked again after it has failed, maxBackoff if it wants to be left alone for longer, and
	// minRenewInterval how long because an upstream rejects its tokens.
	minBackoff       = 2 * time.Second
	maxBackoff       = 30 * time.Second
	minRenewInterval = 10 * time.Second
)

// Token returns the token. Nobody waits while there is one that is good; it is replaced in the background before its end. The error is a
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

// Renew returns another token than rejected, which an upstream does not take; or rejected itself where that was done moments ago.
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

// fetch asks the provider, unless that is being done. The caller holds mu.
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
			c.client.log.Warn("no token for the broker itself", "err", err)
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

// wait returns the result of a flight. It does not wait longer for it than a
// request may wait for the provider.
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

// clientCredentials asks for a token of the client's own (RFC 6749 4.4). A refresh token that comes with it is not kept: there is no need for one.
func (p *Client) clientCredentials(ctx context.Context, t Target, key session.Secret) (session.Tokens, error) {
	m, err := p.discovered()
	if err != nil {
		return session.Tokens{}, err
	}
	form := url.Values{"grant_type": {"client_credentials"}}
	t.addTo(form)
	answer, err := p.requestTokens(ctx, m, form, key)
	if err != nil {
		return session.Tokens{}, err
	}
	return answer.tokens, nil
}
