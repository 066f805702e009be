package bff

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
type clientToken struct {
	provider *provider
	target   target
	key      session.Secret // that the tokens are bound to; empty: they are not
	private  *ecdsa.PrivateKey

	mu     sync.Mutex // guards all below
	tokens session.Tokens
	token  accessToken   // without a header: there is no token yet
	asking *clientFlight // nil: the provider is not being asked
	failed time.Time     // when it was asked last without success, or zero
	err    error         // why
	pause  time.Duration // from then on until it is asked again
	forced time.Time     // when it was asked last because an upstream did not take the token
}

func newClientToken(p *provider, t target) (*clientToken, error) {
	c := &clientToken{provider: p, target: t}
	var err error
	if p.cfg.SenderConstraint == "dpop" { // a key for as long as this process lives, which is as long as the tokens are kept
		if c.key, err = newKey(); err == nil {
			c.private, err = parseKey(c.key)
		}
	}
	return c, err
}

// clientFlight is one request for a token, which everybody shares who needs it.
type clientFlight struct {
	done  chan struct{} // closed when all below are set
	token accessToken
	err   error
}

const (
	clientTokenTimeout = 30 * time.Second
	// clientTokenAhead is how long before its end a token is replaced, at most half its life; clientTokenLife is how long one lives whose end the provider does not tell.
	clientTokenAhead = time.Minute
	clientTokenLife  = 5 * time.Minute
	// clientTokenPause is how long the provider is not asked again after it has failed, clientTokenLongest if it wants to be left alone for longer, and
	// clientTokenForce how long because an upstream rejects its tokens.
	clientTokenPause   = 2 * time.Second
	clientTokenLongest = 30 * time.Second
	clientTokenForce   = 10 * time.Second
)

// get returns the token. Nobody waits while there is one that is good; it is replaced in the background before its end. The error is a
// *session.RefreshError, or the context's.
func (c *clientToken) get(ctx context.Context) (accessToken, error) {
	c.mu.Lock()
	now := time.Now()
	life := c.tokens.Expiry.Sub(c.tokens.Issued)
	good := c.token.header != nil && now.Before(c.tokens.Expiry.Add(-min(5*time.Second, life/10)))
	if good && now.Before(c.tokens.Expiry.Add(-min(clientTokenAhead, life/2))) {
		defer c.mu.Unlock()
		return c.token, nil
	}
	if pause := c.pause - now.Sub(c.failed); !c.failed.IsZero() && pause > 0 && c.asking == nil {
		defer c.mu.Unlock()
		if good {
			return c.token, nil
		}
		return accessToken{}, &session.RefreshError{RetryAfter: pause, Err: c.err}
	}
	flight, token := c.ask(ctx), c.token
	c.mu.Unlock()
	if good {
		return token, nil
	}
	return c.wait(ctx, flight)
}

// renew returns another token than rejected, which an upstream does not take; or rejected itself where that was done moments ago.
func (c *clientToken) renew(ctx context.Context, rejected accessToken) (accessToken, error) {
	c.mu.Lock()
	switch {
	case c.token.header != nil && c.token.header[0] != rejected.header[0]:
		defer c.mu.Unlock()
		return c.token, nil
	case time.Since(c.forced) < clientTokenForce:
		defer c.mu.Unlock()
		return rejected, nil
	}
	c.forced = time.Now()
	flight := c.ask(ctx)
	c.mu.Unlock()
	return c.wait(ctx, flight)
}

// ask asks the provider, unless that is being done. The caller holds mu.
func (c *clientToken) ask(ctx context.Context) *clientFlight {
	if c.asking != nil {
		return c.asking
	}
	flight := &clientFlight{done: make(chan struct{})}
	c.asking = flight
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), clientTokenTimeout)
	go func() { // bounded by clientTokenTimeout
		defer cancel()
		_, notReady := c.provider.ready(ctx, "", clientTokenTimeout)
		var tokens session.Tokens
		err := notReady
		if err == nil {
			tokens, err = c.provider.clientCredentials(ctx, c.target, c.key)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.asking = nil
		if notReady != nil {
			flight.err = notReady
		} else if err != nil {
			var unrefreshed *session.RefreshError
			if !errors.As(err, &unrefreshed) {
				unrefreshed = &session.RefreshError{Err: err}
			}
			unrefreshed.RetryAfter = min(max(unrefreshed.RetryAfter, clientTokenPause), clientTokenLongest)
			c.pause = unrefreshed.RetryAfter
			flight.err = unrefreshed
			c.failed, c.err = time.Now(), unrefreshed.Err
			c.provider.log.Warn("no token for the broker itself", "err", err)
		} else {
			if tokens.Expiry.IsZero() {
				tokens.Expiry = tokens.Issued.Add(clientTokenLife)
			}
			c.failed, c.tokens = time.Time{}, tokens
			c.token = accessToken{header: []string{tokens.Authorization()}, key: c.private}
			flight.token = c.token
		}
		close(flight.done)
	}()
	return flight
}

// wait returns the result of a flight. It does not wait longer for it than a
// request may wait for the provider.
func (c *clientToken) wait(ctx context.Context, f *clientFlight) (accessToken, error) {
	limit := time.NewTimer(c.provider.cfg.wait())
	defer limit.Stop()
	select {
	case <-f.done:
		return f.token, f.err
	case <-limit.C:
		return accessToken{}, &session.RefreshError{RetryAfter: clientTokenPause, Err: errProviderSilent}
	case <-ctx.Done():
		return accessToken{}, ctx.Err()
	}
}

// clientCredentials asks for a token of the client's own (RFC 6749 4.4). A refresh token that comes with it is not kept: there is no need for one.
func (p *provider) clientCredentials(ctx context.Context, t target, key session.Secret) (session.Tokens, error) {
	m, err := p.metadata()
	if err != nil {
		return session.Tokens{}, err
	}
	form := url.Values{"grant_type": {"client_credentials"}}
	t.addTo(form)
	answer, err := p.askTokens(ctx, m, form, key)
	if err != nil {
		return session.Tokens{}, err
	}
	return answer.tokens, nil
}
