package oidc

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// maxLogoutTokenAge is the maximum age of a logout token. Providers should
	// let them expire after two minutes (OpenID Connect Back-Channel Logout,
	// section 4).
	maxLogoutTokenAge = 5 * time.Minute
	// maxLogoutToken is the maximum length of a logout token in bytes.
	maxLogoutToken = 16 << 10
)

// LogoutToken holds the claims of a verified logout token. It has Subject, SID
// or both.
type LogoutToken struct {
	Subject string    // sub
	SID     string    // sid
	ID      string    // jti
	Expiry  time.Time // exp
}

// Life returns how long VerifyLogoutToken may accept the token again at most,
// from now: exp may be centuries ahead, but iat is soon too old.
func (t *LogoutToken) Life() time.Duration {
	return min(time.Until(t.Expiry), maxLogoutTokenAge+ClockSkew) + 2*ClockSkew
}

// VerifyLogoutToken verifies a logout token (OpenID Connect Back-Channel
// Logout, section 2.6). It does NOT detect a token that was sent before: the
// caller does that with ID. Any client can send one, so the signature is
// verified last. Only a token that is valid otherwise can cause a fetch of the
// key set.
func (c *Client) VerifyLogoutToken(ctx context.Context, raw string) (*LogoutToken, error) {
	m, err := c.discovered(ctx)
	if err != nil {
		return nil, err
	}
	if len(raw) > maxLogoutToken {
		return nil, fmt.Errorf("it is longer than %d bytes", maxLogoutToken)
	}
	t, err := parseToken(raw, "logout+jwt")
	if err != nil {
		return nil, err
	}
	logout, err := c.readLogoutToken(t)
	if err != nil {
		return nil, err
	}
	if _, err := c.verify(ctx, m, t, c.logoutFetches, "exp"); err != nil {
		return nil, err
	}
	return logout, nil
}

const logoutEvent = "http://schemas.openid.net/event/backchannel-logout"

// readLogoutToken checks the claims of a logout token.
func (c *Client) readLogoutToken(t *providerToken) (*LogoutToken, error) {
	if !t.namesThisClient(&c.cfg) {
		return nil, errors.New("iss is not the provider, or aud does not name this client")
	}
	audience, err := t.claims.Texts("aud")
	if err != nil {
		return nil, err
	}
	for _, aud := range audience {
		if !c.trusts(aud) {
			return nil, fmt.Errorf("aud names %q beside us", aud)
		}
	}
	if t.claims.Has("nonce") {
		return nil, errors.New("it has the claim nonce of an ID token")
	}
	events, err := t.claims.Object("events")
	if err != nil {
		return nil, err
	}
	if event, err := events.Object(logoutEvent); err != nil || event == nil {
		return nil, errors.New("its events do not say that it is a logout")
	}
	var logout LogoutToken
	for name, value := range map[string]*string{"sub": &logout.Subject, "sid": &logout.SID, "jti": &logout.ID} {
		if *value, err = t.claims.Text(name); err != nil || *value == "" && t.claims.Has(name) {
			return nil, fmt.Errorf("%s is not a string with something in it", name)
		}
	}
	if logout.ID == "" {
		return nil, errors.New("jti is missing")
	}
	if logout.Subject == "" && logout.SID == "" {
		return nil, errors.New("neither sub nor sid is there")
	}
	if logout.Expiry, err = t.claims.Date("exp"); err != nil {
		return nil, err
	}
	issued, err := t.claims.Date("iat")
	switch age := time.Since(issued); {
	case err != nil:
		return nil, err
	case issued.IsZero():
		return nil, errors.New("iat is missing")
	case age > maxLogoutTokenAge+ClockSkew:
		return nil, fmt.Errorf("iat is %v ago", age.Round(time.Second))
	case age < -ClockSkew:
		return nil, fmt.Errorf("iat is %v ahead of our clock", -age.Round(time.Second))
	}
	return &logout, nil
}
