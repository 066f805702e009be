package oidc

import (
	"context"
	"crypto/rand"
	"errors"
	"net/http"
	"net/url"
	"strings"

	"github.com/cloakroom-bff/cloakroom/session"
)

// CheckClient reports whether the provider accepts this client's
// authentication. It sends a token request with a made-up code, which the
// provider refuses and logs. The error is nil if the provider refuses the code
// alone (invalid_grant). Discover has to succeed before.
func (c *Client) CheckClient(ctx context.Context) error {
	m, err := c.discovered(ctx)
	if err != nil {
		return err
	}
	key, err := c.newRequestKey()
	if err != nil {
		return err
	}
	form := url.Values{
		"grant_type":    {"authorization_code"},
		"code":          {"cloakroom-check-" + rand.Text()},
		"redirect_uri":  {c.cfg.RedirectURI},
		"code_verifier": {rand.Text() + rand.Text()}, // 43 characters at least (RFC 7636, section 4.1)
	}
	c.setSessionTarget(form, c.cfg.Scopes)
	private, err := parseKey(key)
	if err != nil {
		return err
	}
	_, err = c.post(ctx, m, formRequest{c.client, m.Token, form, private}, http.StatusOK)
	switch {
	case err == nil:
		return errors.New("the provider accepted a made-up code")
	case errors.Is(err, session.ErrRefused):
		return nil
	}
	return err
}

// newRequestKey returns a key for DPoP; empty if tokens are not bound by it.
func (c *Client) newRequestKey() (session.Secret, error) {
	if c.cfg.SenderConstraint != SenderConstraintDPoP {
		return "", nil
	}
	return NewKey()
}

// PushesRequests reports whether authorization requests are pushed. Discover
// has to succeed before.
func (c *Client) PushesRequests() bool {
	m := c.current.Load()
	return c.cfg.PushedRequests == PushAlways || c.cfg.PushedRequests == PushAuto && m != nil && m.Pushed != ""
}

// CheckRequest reports whether the provider accepts an authorization request of
// this client, with its redirect URI and scopes. It pushes one, or sends one
// with prompt=none, which a browser without cookies would send. No login
// results. If the provider neither refuses the request nor redirects to the
// redirect URI, the error is nil. Discover has to succeed before.
func (c *Client) CheckRequest(ctx context.Context) error {
	key, err := c.newRequestKey()
	if err != nil {
		return err
	}
	u, err := c.AuthorizationURL(ctx, Request{
		State: rand.Text(), Nonce: rand.Text(), Verifier: session.Secret(rand.Text() + rand.Text()), Key: key,
		Parameters: url.Values{"prompt": {"none"}},
	})
	if err != nil || c.PushesRequests() {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "text/html")
	resp, err := c.client.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode >= 400 {
		return &Error{Status: resp.StatusCode}
	}
	location := resp.Header.Get("Location")
	to, err := url.Parse(location)
	if err != nil || !strings.HasPrefix(location, c.cfg.RedirectURI) {
		return nil
	}
	if code := to.Query().Get("error"); !userRequired[code] && errorCode.MatchString(code) {
		description := CleanDescription(to.Query().Get("error_description"))
		return &Error{Status: resp.StatusCode, Code: code, Description: description}
	}
	return nil
}

// HTTPClient returns the client for requests to the provider. It trusts the
// configured CAs, shows the client certificate, and follows no redirects.
func (c *Client) HTTPClient() *http.Client { return c.client }
