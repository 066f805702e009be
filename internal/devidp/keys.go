package devidp

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

type key struct {
	id      string
	private *rsa.PrivateKey
}

// maxKeys is the number of published keys: the signing key and earlier ones
// whose tokens may still be valid.
const maxKeys = 3

// RotateKeys creates a new signing key. Earlier keys stay published for a
// while.
func (p *Provider) RotateKeys() error {
	private, err := p.cfg.NewKey()
	if err != nil {
		return fmt.Errorf("make signing key: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys = append([]key{{rand.Text()[:8], private}}, p.keys...)
	p.keys = p.keys[:min(len(p.keys), maxKeys)]
	return nil
}

func (p *Provider) jwks(w http.ResponseWriter, _ *http.Request) {
	p.mu.Lock()
	p.stats.JWKSFetches++
	var set []any
	for _, k := range p.keys {
		set = append(
			set,
			jose.JSONWebKey{Key: k.private.Public(), KeyID: k.id, Algorithm: p.cfg.SigningAlgorithm, Use: "sig"},
		)
	}
	p.mu.Unlock()
	body := map[string]any{"keys": set}
	if edit := p.hooks.Load().EditJWKS; edit != nil {
		edit(body)
	}
	writeJSON(w, http.StatusOK, body)
}

// Sign signs any JWT with the current key. It sets the header parameters alg
// and kid if they are missing.
func (p *Provider) Sign(header, claims map[string]any) (string, error) {
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	return p.SignPayload(header, payload)
}

// SignPayload signs like Sign. payload need not be valid JSON.
func (p *Provider) SignPayload(header map[string]any, payload []byte) (string, error) {
	p.mu.Lock()
	k := p.keys[0]
	p.mu.Unlock()
	header = maps.Clone(header)
	for name, value := range map[string]any{"alg": p.cfg.SigningAlgorithm, "kid": k.id} {
		if _, ok := header[name]; !ok {
			header[name] = value
		}
	}
	h, err := json.Marshal(header)
	if err != nil {
		return "", err
	}
	input := encode(h) + "." + encode(payload)
	sum := sha256.Sum256([]byte(input))
	var signature []byte
	if header["alg"] == "PS256" {
		signature, err = rsa.SignPSS(
			rand.Reader,
			k.private,
			crypto.SHA256,
			sum[:],
			&rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash},
		)
	} else {
		signature, err = rsa.SignPKCS1v15(nil, k.private, crypto.SHA256, sum[:])
	}
	if err != nil {
		return "", err
	}
	return input + "." + encode(signature), nil
}

// SigningInput returns the signing input of a JWT (RFC 7515 section 5.1).
func SigningInput(header, claims map[string]any) (string, error) {
	h, err := json.Marshal(header)
	if err != nil {
		return "", err
	}
	c, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	return encode(h) + "." + encode(c), nil
}

// PublicKey returns the public key of the signing key.
func (p *Provider) PublicKey() *rsa.PublicKey {
	p.mu.Lock()
	defer p.mu.Unlock()
	return &p.keys[0].private.PublicKey
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// newIDToken returns an ID token (OpenID Connect Core, section 2).
func (p *Provider) newIDToken(t tokenRequest, accessToken string) (string, error) {
	g, now := t.grant, time.Now()
	sum := sha256.Sum256([]byte(accessToken))
	header := map[string]any{"typ": "JWT"}
	claims := map[string]any{
		"iss": p.cfg.Issuer, "aud": g.client.ID, "sub": g.user.Sub, "sid": g.sid,
		"iat": now.Unix(), "exp": now.Add(p.cfg.IDTokenTTL).Unix(), "auth_time": g.authTime.Unix(), "acr": g.acr,
		"at_hash": encode(sum[:len(sum)/2]), // OpenID Connect Core 3.1.3.6
	}
	p.describe(g.user, claims, t.scope)
	if g.nonce != "" && t.first { // one from a refresh should have none (OpenID Connect Core 12.2)
		claims["nonce"] = g.nonce
	}
	h := p.hooks.Load()
	return p.make(header, claims, h.EditIDToken, h.SignIDToken)
}

// newAccessToken returns a JWT access token (RFC 9068 section 2.2).
func (p *Provider) newAccessToken(t tokenRequest, bound binding) (string, error) {
	g, now := t.grant, time.Now()
	header := map[string]any{"typ": "at+jwt"}
	claims := map[string]any{
		"iss": p.cfg.Issuer, "sub": g.user.Sub, "client_id": g.client.ID,
		"iat": now.Unix(), "exp": now.Add(p.cfg.AccessTokenTTL).Unix(), "jti": rand.Text(),
	}
	switch len(t.resource) { // RFC 9068 3
	case 0:
		claims["aud"] = p.cfg.Audience
	case 1:
		claims["aud"] = t.resource[0]
	default:
		claims["aud"] = t.resource
	}
	if t.scope != "" {
		claims["scope"] = t.scope
	}
	if g.sid != "" {
		claims["sid"], claims["auth_time"], claims["acr"] = g.sid, g.authTime.Unix(), g.acr
		p.describe(g.user, claims, t.scope)
	}
	switch {
	case bound.jkt != "":
		claims["cnf"] = map[string]any{"jkt": bound.jkt} // RFC 9449 6.1
	case bound.x5t != "":
		claims["cnf"] = map[string]any{"x5t#S256": bound.x5t} // RFC 8705 3.1
	}
	h := p.hooks.Load()
	return p.make(header, claims, h.EditAccessToken, h.SignAccessToken)
}

// LogoutToken returns a logout token (OpenID Connect Back-Channel Logout,
// section 2.4) after the hooks have edited it. It does not send it. An empty
// sub or sid is omitted.
func (p *Provider) LogoutToken(clientID, sub, sid string) (string, error) {
	now := time.Now()
	header := map[string]any{"typ": "logout+jwt"}
	claims := map[string]any{
		"iss": p.cfg.Issuer, "aud": clientID, "iat": now.Unix(), "exp": now.Add(
			2 * time.Minute).Unix(), "jti": rand.Text(),
		"events": map[string]any{"http://schemas.openid.net/event/backchannel-logout": map[string]any{}},
	}
	if sub != "" {
		claims["sub"] = sub
	}
	if sid != "" {
		claims["sid"] = sid
	}
	h := p.hooks.Load()
	return p.make(header, claims, h.EditLogoutToken, h.SignLogoutToken)
}

// make signs a JWT and applies its hooks. They may be nil.
func (p *Provider) make(
	header, claims map[string]any,
	edit func(header, claims map[string]any),
	sign func(header, claims map[string]any) (string, error),
) (string, error) {
	if edit != nil {
		edit(header, claims)
	}
	if sign == nil {
		sign = p.Sign
	}
	return sign(header, claims)
}

// readOwnIDToken parses an ID token signed with any of this provider's keys. It
// may have expired: it is used as a hint.
func (p *Provider) readOwnIDToken(raw string) (idTokenClaims, error) {
	p.mu.Lock()
	keys := slices.Clone(p.keys)
	p.mu.Unlock()
	jws, err := jose.ParseSignedCompact(raw, []jose.SignatureAlgorithm{jose.RS256, jose.PS256})
	if err != nil {
		return idTokenClaims{}, err
	}
	for _, k := range keys {
		payload, err := jws.Verify(&k.private.PublicKey)
		if err != nil {
			continue
		}
		var claims idTokenClaims
		if err := json.Unmarshal(payload, &claims); err != nil {
			return idTokenClaims{}, err
		}
		if claims.Issuer != p.cfg.Issuer {
			return idTokenClaims{}, errors.New("it has another issuer")
		}
		return claims, nil
	}
	return idTokenClaims{}, errors.New("it was not signed by this provider")
}

type idTokenClaims struct {
	jwt.Claims
	SessionID string `json:"sid"`
}
