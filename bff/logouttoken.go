package bff

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
)

// maxLogoutTokenAge is how old a logout token may be: providers let them live for two minutes (OpenID Connect Back-Channel Logout 4).
const maxLogoutTokenAge = 5 * time.Minute

// logoutToken is what is believed of a verified logout token. Subject or SID is there, or both.
type logoutToken struct {
	Subject string
	SID     string
	ID      string // jti
	Expiry  time.Time
}

// verifyLogoutToken checks a logout token by OpenID Connect Back-Channel Logout 2.6, all but whether it was sent before.
func (p *provider) verifyLogoutToken(ctx context.Context, m *metadata, raw string) (*logoutToken, error) {
	if err := checkTokenType(raw, "logout+jwt"); err != nil {
		return nil, err
	}
	// Signature, algorithm, iss, aud, exp, jti, no nonce, events, and sub or sid.
	keys := &keySet{KeySet: m.logoutKeys}
	verified, err := p.verifier(m, keys).VerifyLogout(ctx, raw)
	if keys.unreachable != nil {
		return nil, fmt.Errorf("%w: %w", errKeysUnreachable, keys.unreachable)
	}
	if err != nil {
		return nil, err
	}
	claims, err := claimsOf(verified)
	if err != nil {
		return nil, err
	}
	events, _ := claims["events"].(map[string]any)
	if _, ok := events["http://schemas.openid.net/event/backchannel-logout"].(map[string]any); !ok {
		return nil, errors.New("its events do not say that it is a logout")
	}
	for _, name := range []string{"sub", "sid", "jti"} {
		if value, ok := claims[name]; ok {
			if s, _ := value.(string); s == "" {
				return nil, fmt.Errorf("%s is not a string with something in it", name)
			}
		}
	}
	for _, aud := range verified.Audience {
		if !p.trusts(aud) {
			return nil, fmt.Errorf("aud names %q beside us", aud)
		}
	}
	if _, err := timeClaim(claims, "exp"); err != nil { // the verifier also reads one in quotes
		return nil, err
	}
	switch issued, err := timeClaim(claims, "iat"); {
	case err != nil:
		return nil, err
	case issued.IsZero():
		return nil, errors.New("iat is missing")
	case time.Since(issued) > maxLogoutTokenAge+clockSkew:
		return nil, fmt.Errorf("iat is %v ago", time.Since(issued).Round(time.Second))
	case time.Until(issued) > clockSkew:
		return nil, fmt.Errorf("iat is %v ahead of our clock", time.Until(issued).Round(time.Second))
	}
	return &logoutToken{Subject: verified.Subject, SID: verified.SessionID, ID: verified.TokenID, Expiry: verified.Expiry}, nil
}

// verifier checks the JWTs that the provider signs for us: signature, algorithm, iss, aud and exp. The algorithms are the provider's asymmetric
// ones: neither none nor HMAC can come up.
func (p *provider) verifier(m *metadata, keys oidc.KeySet) *oidc.IDTokenVerifier {
	return oidc.NewVerifier(p.cfg.Issuer, keys, &oidc.Config{
		ClientID:             p.cfg.ClientID,
		SupportedSigningAlgs: p.algorithms(m),
		Now:                  func() time.Time { return time.Now().Add(-clockSkew) },
	})
}
