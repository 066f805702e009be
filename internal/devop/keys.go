package devop

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"time"

	"github.com/go-jose/go-jose/v4"
)

type key struct {
	id      string
	private *rsa.PrivateKey
}

// maxKeys is how many keys are published: the one that signs, and those that signed what may still be about.
const maxKeys = 3

// RotateKeys makes a new key that signs from now on. The ones before stay published for a while.
func (p *Provider) RotateKeys() error {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
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
		set = append(set, jose.JSONWebKey{Key: k.private.Public(), KeyID: k.id, Algorithm: "RS256", Use: "sig"})
	}
	p.mu.Unlock()
	body := map[string]any{"keys": set}
	if edit := p.hooks.Load().EditJWKS; edit != nil {
		edit(body)
	}
	writeJSON(w, http.StatusOK, body)
}

// Sign signs a JWT with the provider's current key, whatever is in it. Header members alg and kid are set where they are missing.
func (p *Provider) Sign(header, claims map[string]any) (string, error) {
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	return p.SignPayload(header, payload)
}

// SignPayload is Sign for claims that are JSON already, or something like it.
func (p *Provider) SignPayload(header map[string]any, payload []byte) (string, error) {
	p.mu.Lock()
	k := p.keys[0]
	p.mu.Unlock()
	header = maps.Clone(header)
	for name, value := range map[string]any{"alg": "RS256", "kid": k.id} {
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
	signature, err := rsa.SignPKCS1v15(nil, k.private, crypto.SHA256, sum[:])
	if err != nil {
		return "", err
	}
	return input + "." + encode(signature), nil
}

// SigningInput returns what of a JWT is signed (RFC 7515 5.1).
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

// PublicKey returns the public half of the key that signs.
func (p *Provider) PublicKey() *rsa.PublicKey {
	p.mu.Lock()
	defer p.mu.Unlock()
	return &p.keys[0].private.PublicKey
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// idToken makes an ID token (OpenID Connect Core 2) for what a refresh token stands for, which is the same at login.
func (p *Provider) idToken(t *refreshToken, accessToken string) (string, error) {
	now := time.Now()
	sum := sha256.Sum256([]byte(accessToken))
	header := map[string]any{"typ": "JWT"}
	claims := map[string]any{
		"iss": p.cfg.Issuer, "aud": t.client, "sub": t.user.Sub, "sid": t.sid,
		"iat": now.Unix(), "exp": now.Add(p.cfg.IDTokenTTL).Unix(), "auth_time": t.authTime.Unix(),
		"at_hash": encode(sum[:16]), "acr": t.acr,
		"name": t.user.Name, "email": t.user.Email, "email_verified": true,
	}
	if t.nonce != "" {
		claims["nonce"] = t.nonce
	}
	h := p.hooks.Load()
	if h.EditIDToken != nil {
		h.EditIDToken(header, claims)
	}
	if h.SignIDToken != nil {
		return h.SignIDToken(header, claims)
	}
	return p.Sign(header, claims)
}

// accessToken makes a JWT access token (RFC 9068).
func (p *Provider) accessToken(t *refreshToken) (string, error) {
	now := time.Now()
	header := map[string]any{"typ": "at+jwt"}
	claims := map[string]any{
		"iss": p.cfg.Issuer, "sub": t.user.Sub, "client_id": t.client, "scope": t.scope,
		"iat": now.Unix(), "exp": now.Add(p.cfg.AccessTokenTTL).Unix(), "jti": rand.Text(),
	}
	switch len(t.resource) {
	case 0:
		claims["aud"] = p.cfg.Audience
	case 1:
		claims["aud"] = t.resource[0]
	default:
		claims["aud"] = t.resource
	}
	if t.sid != "" {
		claims["sid"], claims["auth_time"], claims["acr"] = t.sid, t.authTime.Unix(), t.acr
		claims["name"] = t.user.Name
	}
	if t.jkt != "" {
		claims["cnf"] = map[string]any{"jkt": t.jkt} // RFC 9449 6.1
	}
	if edit := p.hooks.Load().EditAccessToken; edit != nil {
		edit(header, claims)
	}
	return p.Sign(header, claims)
}
