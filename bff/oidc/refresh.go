package oidc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/cloakroom-bff/cloakroom/session"
)

// grantedScopes returns those of the session's own scopes that were granted. A
// refresh may request no others (RFC 6749, section 6). openid and
// offline_access are always included: not every provider lists them in scope,
// but the ID token and the refresh token show that they were granted.
func (c *Client) grantedScopes(s *session.Session) []string {
	granted := strings.Fields(s.Tokens.Scope)
	var scopes []string
	for _, scope := range c.cfg.Scopes {
		if scope == "openid" || scope == "offline_access" || slices.Contains(granted, scope) {
			scopes = append(scopes, scope)
		}
	}
	return scopes
}

// Refresh implements session.Config.Refresh. During an outage of the provider
// its error is a *session.RefreshError with Outage set.
func (c *Client) Refresh(ctx context.Context, s *session.Session, key string) (session.RefreshResult, error) {
	result, err := c.refreshOnce(ctx, s, key)
	refused := errors.Is(err, session.ErrRefused) || errors.Is(err, session.ErrUserRequired)
	if err == nil || refused || !c.breaker.outage() {
		return result, err
	}
	outage := &session.RefreshError{Outage: true, Err: err}
	if given := (*session.RefreshError)(nil); errors.As(err, &given) {
		outage.RetryAfter = given.RetryAfter
	}
	return result, outage
}

// refreshOnce makes one refresh request (RFC 6749, section 6; OpenID Connect
// Core, section 12). For another target than the session's own it also uses RFC
// 8707 or RFC 8693.
func (c *Client) refreshOnce(ctx context.Context, s *session.Session, key string) (session.RefreshResult, error) {
	m, err := c.discovered(ctx)
	if err != nil {
		return session.RefreshResult{}, err
	}
	t, err := c.target(key)
	if err != nil {
		return session.RefreshResult{}, err
	}
	if t.Exchange {
		return c.tokenExchange(ctx, m, s, t)
	}
	if s.Tokens.Refresh == "" {
		return session.RefreshResult{}, errors.New("the session has no refresh token to obtain another token with")
	}
	form := url.Values{
		"grant_type":    {"refresh_token"},
		"refresh_token": {s.Tokens.Refresh.Reveal()},
	}
	c.setSessionTarget(form, c.grantedScopes(s))
	t.addTo(form)
	bound, err := c.refreshKey(s, key)
	if err != nil {
		return session.RefreshResult{}, err
	}
	resp, err := c.requestTokens(ctx, m, form, bound)
	if err != nil {
		var spent session.RefreshResult
		if resp != nil {
			spent.Tokens.Refresh = resp.tokens.Refresh
		}
		return spent, err
	}
	c.logRotation(ctx, s, resp.tokens)
	result := session.RefreshResult{Tokens: resp.tokens}
	if key != "" && result.Tokens.Scope == "" {
		result.Tokens.Scope = cmp.Or(form.Get("scope"), s.Tokens.Scope)
	}
	if resp.tokens.ID == "" {
		return result, nil
	}
	return c.acceptIDToken(ctx, m, s, key, result)
}

// logRotation logs once that the provider does not rotate refresh tokens. Those
// that are bound to a key need no rotation (RFC 9700, section 4.14.2).
func (c *Client) logRotation(ctx context.Context, s *session.Session, tokens session.Tokens) {
	isRotated := tokens.Refresh != "" && tokens.Refresh != s.Tokens.Refresh
	if isRotated || c.cfg.SenderConstraint != "" {
		return
	}
	c.noRotation.Do(func() {
		c.log.InfoContext(ctx, "provider did not rotate the refresh token", "issuer", c.cfg.Issuer,
			"advice", "turn on rotation for this client at the provider if it has it: a stolen refresh token "+
				"is then noticed")
	})
}

// refreshKey returns the DPoP key to which refreshed tokens are bound, empty if
// they are bearer tokens. A session that began before SenderConstraint was dpop
// gets a key.
func (c *Client) refreshKey(s *session.Session, target string) (session.Secret, error) {
	if c.cfg.SenderConstraint != "dpop" || s.Tokens.Key != "" {
		return s.Tokens.Key, nil
	}
	if target != "" {
		return "", errors.New("the session's own token has to be bound to a key first")
	}
	return NewKey()
}

// acceptIDToken verifies the ID token of a refresh and takes over what it says
// about the session. An ID token of another user or login ends the session.
func (c *Client) acceptIDToken(
	ctx context.Context, m *metadata, s *session.Session, target string, result session.RefreshResult,
) (session.RefreshResult, error) {
	tokens := result.Tokens
	// Bounded, because the new refresh token has to be stored, and callers wait
	// for the new access token.
	ctx, cancel := context.WithTimeout(ctx, c.cfg.MaxWait()/2)
	defer cancel()
	id, err := c.verifyIDToken(ctx, m, tokens)
	if err == nil {
		err = id.matchesSession(s)
	}
	switch {
	case errors.Is(err, errTokenMismatch):
		if failed := c.Revoke(ctx, tokens); failed != nil {
			c.log.WarnContext(ctx, "tokens of a response that is not trusted not revoked", "session", s.ID,
				"err", failed)
		}
		return session.RefreshResult{}, fmt.Errorf("%w: the response is not trusted: %w", session.ErrRefused, err)
	case err != nil:
		// The refresh token of before is spent, so the new tokens must not be
		// lost. Only the ID token is discarded, because it cannot be verified
		// now.
		c.log.WarnContext(ctx, "ID token of a refresh not verified; the one before is kept",
			"session", s.ID, "err", err)
		result.Tokens.ID = ""
		return result, nil
	}
	result.ExpiresAt = id.SessionExpiry
	if id.Nonce == "" {
		// A later ID token may have a nonce, which then is the login's (OpenID
		// Connect Core, section 12.2). So the ID token of the login is kept.
		result.Tokens.ID = ""
	}
	if target == "" || !c.cfg.UserInfo { // the token of a target is not for userinfo
		result.Claims = c.renewedClaims(ctx, m, s, tokens, id)
	}
	return result, nil
}

// tokenExchange exchanges the session's access token for one for another target
// (RFC 8693). A refusal does not end the session.
func (c *Client) tokenExchange(
	ctx context.Context, m *metadata, s *session.Session, t Target,
) (session.RefreshResult, error) {
	form := url.Values{
		"grant_type":           {"urn:ietf:params:oauth:grant-type:token-exchange"},
		"subject_token":        {s.Tokens.Access.Reveal()},
		"subject_token_type":   {accessTokenType},
		"requested_token_type": {accessTokenType},
	}
	t.addTo(form)
	resp, err := c.requestTokens(ctx, m, form, s.Tokens.Key)
	if errors.Is(err, session.ErrUserRequired) {
		return session.RefreshResult{}, fmt.Errorf("exchange the access token: %w", err)
	}
	if refusal := (*Error)(nil); errors.As(err, &refusal) {
		kept := &session.RefreshError{Err: fmt.Errorf("exchange the access token: %w", refusal)}
		if transient := (*session.RefreshError)(nil); errors.As(err, &transient) {
			kept.RetryAfter = transient.RetryAfter
		}
		return session.RefreshResult{}, kept
	}
	if err != nil {
		return session.RefreshResult{}, fmt.Errorf("exchange the access token: %w", err)
	}
	if issued := resp.issuedTokenType; issued != accessTokenType && issued != "urn:ietf:params:oauth:token-type:jwt" {
		// RFC 8693 2.2.1.
		return session.RefreshResult{}, fmt.Errorf("exchange the access token: issued_token_type is %.80q", issued)
	}
	got := session.Tokens{
		Access: resp.tokens.Access, Scope: cmp.Or(resp.tokens.Scope, form.Get("scope"), noScope),
		Issued: resp.tokens.Issued, Expiry: resp.tokens.Expiry,
	}
	// It lives no longer than the token that it was exchanged for.
	if end := s.Tokens.Expiry; !end.IsZero() && (got.Expiry.IsZero() || end.Before(got.Expiry)) {
		got.Expiry = end
	}
	return session.RefreshResult{Tokens: got}, nil
}

const accessTokenType = "urn:ietf:params:oauth:token-type:access_token"
