package oidc

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"

	"github.com/cloakroom-bff/cloakroom/internal/dpop"
	"github.com/cloakroom-bff/cloakroom/session"
)

// NewKey returns a new DPoP key (RFC 9449) in the form in which sessions store
// it. A session gets its key at login and keeps it.
func NewKey() (session.Secret, error) {
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

// parseKey decodes a key of NewKey. It returns nil for an empty text.
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

// nonces holds the last DPoP nonce of each of the provider's servers (RFC 9449,
// sections 8.2 and 9). A server rejects the nonces of another.
type nonces struct {
	mu sync.Mutex        // guards of
	of map[string]string // :: scheme://host → nonce
}

func (n *nonces) get(u *url.URL) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.of[u.Scheme+"://"+u.Host]
}

// learn stores the nonce of a response, if it has one.
func (n *nonces) learn(u *url.URL, h http.Header) {
	nonce := dpop.NonceOf(h)
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
