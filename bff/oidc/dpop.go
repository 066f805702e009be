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

// The keys and nonces of DPoP (RFC 9449). A session has its key from its login on.

// NewKey makes a key to bind tokens to, as it is kept in a session.
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

// parseKey is the reverse of NewKey; nil for no key.
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
