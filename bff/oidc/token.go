package oidc

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/strictjson"
	"github.com/cloakroom-bff/cloakroom/session"
)

// Exchange redeems an authorization code (RFC 6749, section 4.1.3; RFC 7636,
// section 4.5), and verifies the response before it uses the access token.
// accept decides on the verified identity; its error is returned as it is. With
// an error, Exchange returns the tokens that were issued nevertheless, so that
// the caller can revoke them.
func (c *Client) Exchange(
	ctx context.Context, code string, r Request, accept func(*Identity) error,
) (session.Tokens, *Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.MaxWait())
	defer cancel()
	m, err := c.discovered(ctx)
	if err != nil {
		return session.Tokens{}, nil, err
	}
	if _, err := c.breaker.admit(ctx, "", c.cfg.MaxWait()); err != nil {
		return session.Tokens{}, nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if bound := c.cfg.SenderConstraint == SenderConstraintDPoP; bound != (r.Key != "") {
		return session.Tokens{}, nil, errors.New("redeem code: the login began under another sender_constraint")
	}
	form := url.Values{
		"grant_type":    {"authorization_code"},
		"code":          {code},
		"redirect_uri":  {c.cfg.RedirectURI},
		"code_verifier": {r.Verifier.Reveal()},
	}
	c.setSessionTarget(form, c.cfg.Scopes)
	resp, err := c.requestTokens(ctx, m, form, r.Key)
	if resp == nil {
		return session.Tokens{}, nil, fmt.Errorf("redeem code: %w", err)
	}
	tokens := resp.tokens
	if err != nil {
		return tokens, nil, fmt.Errorf("redeem code: %w", err)
	}
	if tokens.Scope == "" { // RFC 6749, section 5.1: as requested
		tokens.Scope = strings.Join(c.cfg.Scopes, " ")
	}
	if tokens.ID == "" {
		return tokens, nil, errors.New("redeem code: the response has no id_token")
	}
	id, err := c.verifyIDToken(ctx, m, tokens)
	if err == nil {
		err = r.checkNonce(id)
	}
	if err == nil {
		err = accept(id) // before the access token is used
	}
	if err == nil && c.cfg.UserInfo {
		err = c.addUserInfo(ctx, m, tokens, id)
	}
	if err != nil {
		return tokens, nil, err
	}
	if tokens.Refresh == "" && slices.Contains(c.cfg.Scopes, "offline_access") {
		c.noRefreshToken.Do(func() {
			c.log.WarnContext(ctx, "provider issued no refresh token though offline_access was requested; "+
				"sessions end with their access token", "issuer", c.cfg.Issuer,
				"advice", "allow refresh tokens for this client at the provider, or leave offline_access "+
					"out of oidc.scopes")
		})
	}
	return tokens, id, nil
}

// setSessionTarget adds the resources and scopes of the session's own token to
// a token request. The grant may cover more: those of Targets.
func (c *Client) setSessionTarget(form url.Values, scopes []string) {
	if len(c.cfg.Resources) > 0 {
		form["resource"] = c.cfg.Resources
	}
	if len(c.scopes()) > len(c.cfg.Scopes) {
		form.Set("scope", strings.Join(scopes, " "))
	}
}

// tokenResponse is the response of a token endpoint (RFC 6749, section 5.1).
type tokenResponse struct {
	tokens          session.Tokens
	issuedTokenType string // RFC 8693, section 2.2.1
}

// noScope is the scope of a token of which the provider says that it has none.
// The empty string means that the provider does not say.
const noScope = " "

// requestTokens makes one token request. The tokens are bound to the key,
// unless that is empty. The ID token is not verified. With an error,
// requestTokens returns the tokens that were issued nevertheless, or nil.
func (c *Client) requestTokens(
	ctx context.Context, m *metadata, form url.Values, key session.Secret,
) (resp *tokenResponse, err error) {
	private, err := parseKey(key)
	if err != nil {
		return nil, err
	}
	sent := time.Now()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := c.breaker.supervise(sent, cancel)
	defer stop()
	defer func() {
		noResponse := errors.Is(err, session.ErrNoResponse) || errors.Is(err, errUnreachable)
		if err == nil || noResponse || aboutProvider(form.Get("grant_type"), err) {
			c.breaker.report(sent, err)
		}
	}()
	body, err := c.post(ctx, m, formRequest{c.tokenClient, m.Token, form, private}, http.StatusOK)
	if err != nil {
		return nil, err
	}
	want := "Bearer"
	if private != nil {
		want = "DPoP" // RFC 9449, section 5: a token that is not bound is not what was requested
	}
	// Lifetimes count from before the response, so that no token is taken to
	// live longer than it does.
	resp, err = parseTokenResponse(body, want, sent)
	if err == nil {
		resp.tokens.Key = key
	} else if refusal := c.parseError(http.StatusOK, body, form); refusal.Code != "" {
		// No standard has errors with 200. So this one decides nothing, but it
		// is logged.
		err = fmt.Errorf("%w: %v", err, refusal)
	}
	return resp, err
}

// parseTokenResponse parses the body of a token response. Lifetimes count from
// issued. With an error it returns the refresh token that was issued
// nevertheless, or nil.
func parseTokenResponse(body []byte, tokenType string, issued time.Time) (*tokenResponse, error) {
	members, err := strictjson.Parse(body)
	if err == nil {
		err = members.Unambiguous("access_token", "token_type", "refresh_token", "id_token", "scope",
			"expires_in", "issued_token_type")
	}
	if err != nil {
		// The cause may quote a token.
		return nil, errors.New("the token response is not a JSON object, or a member occurs twice")
	}
	text := func(name string) string { // a member that is not a string is ignored
		s, _ := members.Text(name)
		return s
	}
	resp := &tokenResponse{
		issuedTokenType: text("issued_token_type"),
		tokens:          session.Tokens{Refresh: session.Secret(text("refresh_token"))},
	}
	if text("access_token") == "" {
		return resp, errors.New("the token response has no access_token")
	}
	if strings.ContainsFunc(text("access_token"), notInToken) {
		return resp, errors.New("the access_token has a character that no token may have")
	}
	if got := text("token_type"); !strings.EqualFold(got, tokenType) {
		return resp, fmt.Errorf("the token response has token_type %.20q, want %s", got, tokenType)
	}
	resp.tokens.Access = session.Secret(text("access_token"))
	resp.tokens.ID = session.Secret(text("id_token"))
	resp.tokens.Scope = scopeOf(members)
	resp.tokens.Issued = issued
	life, _ := members.Value("expires_in")
	if seconds, ok := parseSeconds(life); ok {
		resp.tokens.Expiry = issued.Add(seconds)
	} else {
		resp.tokens.Expiry = jwtExpiry(text("access_token"))
	}
	life, _ = members.Value("refresh_token_expires_in")
	if seconds, ok := parseSeconds(life); ok {
		resp.tokens.RefreshExpiry = issued.Add(seconds)
	}
	return resp, nil
}

// notInToken reports whether a character is in no access token (RFC 6749,
// appendix A.12). It could not be sent in a header.
func notInToken(r rune) bool { return r < ' ' || r > '~' }

// aboutProvider reports whether the response to a token request, which is an
// error, can be a sign of an outage. Any browser can send a code. That the
// provider refuses another grant than a refresh says nothing about refreshes.
func aboutProvider(grantType string, err error) bool {
	var refusal *Error
	switch grantType {
	case "refresh_token":
		return true
	case "authorization_code":
		return false
	}
	return errors.As(err, &refusal) && refusal.serverFault()
}

// jwtExpiry returns the exp claim of an access token of which the response does
// not say when it expires. It is a hint, so the signature is not verified; the
// zero time means that there is none.
func jwtExpiry(token string) time.Time {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return time.Time{}
	}
	claims, err := strictjson.Parse(payload)
	if err != nil {
		return time.Time{}
	}
	exp, err := claims.Date("exp")
	if err != nil || exp.Unix() <= 0 || exp.Unix() > 1e11 {
		return time.Time{}
	}
	return exp
}

// scopeOf returns the scope of a token response. It is empty if the member is
// missing, which means the scope that was requested (RFC 6749, section 5.1).
// Some providers send an array. Any other value means that no scope was
// granted.
func scopeOf(members strictjson.Object) string {
	if raw, err := members.Raw("scope"); err == nil && raw == nil {
		return ""
	}
	scopes, err := members.Texts("scope")
	scope := strings.Join(scopes, " ")
	if err != nil || strings.TrimSpace(scope) == "" {
		return noScope
	}
	return scope
}

// parseSeconds parses expires_in. Some providers send the number as a string.
func parseSeconds(value any) (time.Duration, bool) {
	seconds, err := strconv.ParseFloat(fmt.Sprint(value), 64)
	if err != nil || !(seconds > 0 && seconds <= 1e9) {
		return 0, false
	}
	return time.Duration(seconds * float64(time.Second)), true
}
