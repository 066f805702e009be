// Package dpop makes proofs of possession for access tokens (RFC 9449).
package dpop

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// publicJWK returns a public key in the form of which RFC 7638 takes the hash.
func publicJWK(key *ecdsa.PrivateKey) string {
	point, err := key.PublicKey.Bytes() // 4, x, y
	if err != nil {
		panic(err) // it is one of P-256
	}
	encode := base64.RawURLEncoding.EncodeToString
	return `{"crv":"P-256","kty":"EC","x":"` + encode(point[1:33]) + `","y":"` + encode(point[33:]) + `"}`
}

// Thumbprint returns the value of the parameter dpop_jkt for a key (RFC 9449,
// section 10).
func Thumbprint(key *ecdsa.PrivateKey) string {
	sum := sha256.Sum256([]byte(publicJWK(key)))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// Proof returns a proof for one request (RFC 9449, section 4.2). token is the
// access token that the request carries, or empty for a token request; nonce is
// the one that the server gave last, or empty. A proof must not be sent twice.
func Proof(key *ecdsa.PrivateKey, method string, u *url.URL, token, nonce string) (string, error) {
	claims := struct {
		ID     string `json:"jti"`
		Method string `json:"htm"`
		URI    string `json:"htu"`
		Issued int64  `json:"iat"`
		Token  string `json:"ath,omitempty"`
		Nonce  string `json:"nonce,omitempty"`
	}{
		ID:     rand.Text(),
		Method: method,
		URI:    u.Scheme + "://" + u.Host + u.EscapedPath(),
		Issued: time.Now().Unix(),
		Nonce:  nonce,
	}
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
	var signature [64]byte // RFC 7518, section 3.4
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return signed + "." + encode(signature[:]), nil
}

// maxNonce bounds the length of a nonce, which goes into every proof.
const maxNonce = 1024

// NonceOf returns the nonce that a response gives for the next proof, or an
// empty string if it gives none, or one that is not valid (RFC 9449, section
// 8.1).
func NonceOf(h http.Header) string {
	values := h["Dpop-Nonce"]
	invalid := func(c rune) bool { return c <= ' ' || c > '~' || c == '"' || c == '\\' }
	if len(values) != 1 || len(values[0]) > maxNonce || strings.ContainsFunc(values[0], invalid) {
		return ""
	}
	return values[0]
}

// WantsNonce reports whether a resource server refused a request because its
// proof lacks the nonce that the response gives (RFC 9449, section 9).
func WantsNonce(resp *http.Response) bool {
	if resp.StatusCode != http.StatusUnauthorized || NonceOf(resp.Header) == "" {
		return false
	}
	for _, challenge := range resp.Header["Www-Authenticate"] {
		if c := strings.ToLower(challenge); strings.Contains(c, "dpop") && strings.Contains(c, "use_dpop_nonce") {
			return true
		}
	}
	return false
}
