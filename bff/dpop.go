package bff

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
)

// What DPoP (RFC 9449) needs: a key, which a session has from its login on, and a proof for each request.

// newKey makes a key to bind tokens to, as it is kept in a session.
func newKey() (session.Secret, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", fmt.Errorf("make a DPoP key: %w", err)
	}
	scalar, err := key.Bytes()
	if err != nil {
		return "", fmt.Errorf("make a DPoP key: %w", err)
	}
	return session.Secret(base64.RawURLEncoding.EncodeToString(scalar)), nil
}

// parseKey is the reverse of newKey; nil for no key.
func parseKey(text session.Secret) (*ecdsa.PrivateKey, error) {
	if text == "" {
		return nil, nil
	}
	scalar, err := base64.RawURLEncoding.DecodeString(text.Reveal())
	if err != nil {
		return nil, errors.New("the DPoP key is not in base64url")
	}
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar)
	if err != nil {
		return nil, errors.New("the DPoP key is not one of P-256")
	}
	return key, nil
}

// publicJWK is a public key as RFC 7638 hashes it.
func publicJWK(key *ecdsa.PrivateKey) string {
	point, err := key.PublicKey.Bytes() // 4, x and y
	if err != nil {
		panic(err) // it is one of P-256
	}
	encode := base64.RawURLEncoding.EncodeToString
	return `{"crv":"P-256","kty":"EC","x":"` + encode(point[1:33]) + `","y":"` + encode(point[33:]) + `"}`
}

// thumbprint is a key's in dpop_jkt (RFC 9449 10).
func thumbprint(key *ecdsa.PrivateKey) string {
	sum := sha256.Sum256([]byte(publicJWK(key)))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// proof is a DPoP proof (RFC 9449 4.2) for one request with a method to a URL. With a token, which the request then carries, it is good for that one only;
// with a nonce for the server that gave it. No proof is sent twice.
func proof(key *ecdsa.PrivateKey, method string, u *url.URL, token, nonce string) (string, error) {
	claims := struct {
		ID     string `json:"jti"`
		Method string `json:"htm"`
		URI    string `json:"htu"`
		Issued int64  `json:"iat"`
		Token  string `json:"ath,omitempty"`
		Nonce  string `json:"nonce,omitempty"`
	}{ID: rand.Text(), Method: method, URI: u.Scheme + "://" + u.Host + u.EscapedPath(), Issued: time.Now().Unix(), Nonce: nonce}
	if token != "" {
		sum := sha256.Sum256([]byte(token))
		claims.Token = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	encode := base64.RawURLEncoding.EncodeToString
	signed := encode([]byte(`{"typ":"dpop+jwt","alg":"ES256","jwk":`+publicJWK(key)+`}`)) + "." + encode(payload)
	digest := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		return "", fmt.Errorf("sign a DPoP proof: %w", err)
	}
	var signature [64]byte // RFC 7518 3.4
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return signed + "." + encode(signature[:]), nil
}

// nonces are those that the provider's servers have given last, each for itself (RFC 9449 8.2, 9): one that another server gave would be refused.
type nonces struct {
	mu sync.Mutex
	of map[string]string // :: scheme://host → nonce
}

func (n *nonces) get(u *url.URL) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.of[u.Scheme+"://"+u.Host]
}

// learn keeps the nonce of an answer, if it has one.
func (n *nonces) learn(u *url.URL, h http.Header) {
	nonce := nonceOf(h)
	if nonce == "" {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.of == nil {
		n.of = make(map[string]string)
	}
	n.of[u.Scheme+"://"+u.Host] = nonce
}

// nonceOf returns the nonce for the next proof. What cannot be one (RFC 9449 8.1) is none.
func nonceOf(h http.Header) string {
	values := h["Dpop-Nonce"]
	if len(values) != 1 || len(values[0]) > 1024 || strings.ContainsFunc(values[0], func(c rune) bool { return c <= ' ' || c > '~' || c == '"' || c == '\\' }) {
		return ""
	}
	return values[0]
}

// wantsNonce says whether a server wants the proof to have its nonce (RFC 9449 9).
func wantsNonce(resp *http.Response) bool {
	if resp.StatusCode != http.StatusUnauthorized || nonceOf(resp.Header) == "" {
		return false
	}
	for _, challenge := range resp.Header["Www-Authenticate"] {
		if c := strings.ToLower(challenge); strings.Contains(c, "dpop") && strings.Contains(c, "use_dpop_nonce") {
			return true
		}
	}
	return false
}
