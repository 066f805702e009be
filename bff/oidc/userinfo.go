package oidc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"mime"
	"net/http"

	"github.com/cloakroom-bff/cloakroom/internal/dpop"
	"github.com/cloakroom-bff/cloakroom/internal/strictjson"
	"github.com/cloakroom-bff/cloakroom/session"
)

// addUserInfo adds the claims of the userinfo response to id (OpenID Connect
// Core, section 5.3). A claim that is in both has the value of the ID token,
// which is signed.
func (c *Client) addUserInfo(ctx context.Context, m *metadata, tokens session.Tokens, id *Identity) error {
	told, err := c.userInfo(ctx, m, tokens)
	if err != nil {
		return fmt.Errorf("userinfo: %w", err)
	}
	if sub, err := told.Text("sub"); err != nil || sub != id.Subject { // Core 5.3.2: then it is another user's
		return errors.New("userinfo: its sub is not that of the ID token")
	}
	own, err := strictjson.Parse(id.User)
	if err != nil {
		return err
	}
	more := told.Map()
	dropProtocolClaims(more)
	for _, name := range signInClaims {
		delete(more, name)
	}
	maps.Copy(more, own.Map())
	applyMap(c.cfg.ClaimMap, more)
	return id.setUser(more)
}

// userInfo fetches the user's claims: JSON, or a signed JWT for this client
// (OpenID Connect Core, section 5.3.2).
func (c *Client) userInfo(ctx context.Context, m *metadata, tokens session.Tokens) (strictjson.Object, error) {
	resp, body, err := c.askUserInfo(ctx, m, tokens)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, &session.RefreshError{RetryAfter: retryAfter(resp.Header.Get("Retry-After")),
			Err: &Error{Status: resp.StatusCode}}
	}
	switch mediaType, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); mediaType {
	case "application/json":
		told, err := strictjson.Parse(body)
		if err != nil {
			return nil, err
		}
		return told, errors.Join(told.Unique(), told.Unambiguous("sub"))
	case "application/jwt":
		t, err := parseToken(string(body), "jwt")
		if err != nil {
			return nil, err
		}
		if _, err := c.verify(ctx, m, t, c.idTokenFetches); err != nil {
			return nil, err
		}
		return t.claims, nil
	default:
		return nil, fmt.Errorf("its Content-Type is %.80q", mediaType)
	}
}

// askUserInfo sends the userinfo request. It retries once if the response
// requires a DPoP nonce (RFC 9449, section 9).
func (c *Client) askUserInfo(ctx context.Context, m *metadata, tokens session.Tokens) (*http.Response, []byte, error) {
	key, err := parseKey(tokens.Key)
	if err != nil {
		return nil, nil, err
	}
	for first := true; ; first = false {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.UserInfo, nil)
		if err != nil {
			return nil, nil, err
		}
		req.Header.Set("Accept", "application/json, application/jwt")
		req.Header.Set("Authorization", tokens.Authorization())
		if key != nil {
			signed, err := dpop.Proof(key, req.Method, req.URL, tokens.Access.Reveal(), c.nonces.get(req.URL))
			if err != nil {
				return nil, nil, err
			}
			req.Header.Set("DPoP", signed)
		}
		resp, body, err := c.do(c.client, req)
		if err != nil || !first || key == nil || !dpop.WantsNonce(resp) {
			return resp, body, err
		}
	}
}
