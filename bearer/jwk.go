package bearer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
)

const (
	maxKeys    = 100
	minRSABits = 2048 // RFC 7518 section 3.3
	maxRSABits = 8192 // the work of a verification grows with the square
)

// publicKey is a key of the issuer that verifies signatures.
type publicKey struct {
	id       string // empty where the issuer names none
	kty, crv string
	alg      string // the one algorithm it is for; empty: any that its type allows
	public   crypto.PublicKey
}

// fits says whether signatures of the algorithm may be checked with the key: its type is right, and it is not for another algorithm (RFC 8725
// section 3.1).
func (k *publicKey) fits(alg string) bool {
	a := algorithms[alg]
	return k.kty == a.kty && k.crv == a.crv && (k.alg == "" || k.alg == alg || k.kty == "OKP")
}

// jwk is a key as it is published (RFC 7517 section 4, RFC 7518 section 6, RFC 8037 section 2).
type jwk struct {
	Type       string          `json:"kty"`
	Use        string          `json:"use"`
	Operations []string        `json:"key_ops"`
	Algorithm  string          `json:"alg"`
	ID         string          `json:"kid"`
	Curve      string          `json:"crv"`
	N          string          `json:"n"`
	E          string          `json:"e"`
	X          string          `json:"x"`
	Y          string          `json:"y"`
	D          json.RawMessage `json:"d"`
}

// parseKeys returns those keys of a JWK Set that verify signatures. What cannot be used is skipped (RFC 7517 section 5) and explained in
// skipped; that none can be used, is an error.
func parseKeys(body []byte) (keys []publicKey, skipped []error, err error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(body, &set); err != nil {
		return nil, nil, fmt.Errorf("JWK Set: %w", err)
	}
	if len(set.Keys) > maxKeys {
		return nil, nil, fmt.Errorf("JWK Set: it has %d keys, more than %d", len(set.Keys), maxKeys)
	}
	for i, raw := range set.Keys {
		key, err := parseKey(raw)
		if err != nil {
			skipped = append(skipped, fmt.Errorf("key %d: %w", i, err))
			continue
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, nil, errors.Join(append([]error{errors.New("JWK Set: it has no key that verifies signatures")}, skipped...)...)
	}
	return keys, skipped, nil
}

func parseKey(raw []byte) (publicKey, error) {
	var k jwk
	if err := json.Unmarshal(raw, &k); err != nil {
		return publicKey{}, err
	}
	fail := func(format string, args ...any) (publicKey, error) {
		return publicKey{}, fmt.Errorf("kid %.80q: "+format, append([]any{k.ID}, args...)...)
	}
	switch {
	case k.Use != "" && k.Use != "sig":
		return fail("use is %.40q", k.Use)
	case k.Operations != nil && !slices.Contains(k.Operations, "verify"):
		return fail("key_ops does not hold verify")
	case k.D != nil:
		return fail("it is published with its private part, so anybody may have signed")
	}
	key := publicKey{id: k.ID, kty: k.Type, crv: k.Curve, alg: k.Algorithm}
	var err error
	switch k.Type {
	case "RSA":
		key.crv = ""
		key.public, err = k.rsa()
	case "EC":
		key.public, err = k.ecdsa()
	case "OKP":
		key.public, err = k.ed25519()
	default: // oct among them: what is published is no secret
		return fail("kty %.40q is not supported", k.Type)
	}
	if err != nil {
		return fail("%w", err)
	}
	if a, ok := algorithms[key.alg]; key.alg != "" && (!ok || a.kty != key.kty || a.crv != key.crv) {
		return fail("alg %.40q is not for verifying signatures with such a key", key.alg)
	}
	return key, nil
}

func (k *jwk) rsa() (*rsa.PublicKey, error) {
	n, err := base64url.DecodeString(k.N)
	if err != nil {
		return nil, errors.New("n is not base64url")
	}
	e, err := base64url.DecodeString(k.E)
	if err != nil {
		return nil, errors.New("e is not base64url")
	}
	modulus, exponent := new(big.Int).SetBytes(n), new(big.Int).SetBytes(e)
	switch {
	case modulus.BitLen() < minRSABits || modulus.BitLen() > maxRSABits:
		return nil, fmt.Errorf("n has %d bits, and not between %d and %d", modulus.BitLen(), minRSABits, maxRSABits)
	case modulus.Bit(0) == 0:
		return nil, errors.New("n is even")
	case exponent.BitLen() < 2 || exponent.BitLen() > 31 || exponent.Bit(0) == 0: // with 1, every message would be its own signature
		return nil, errors.New("e is not an odd number between 3 and 2^31")
	}
	return &rsa.PublicKey{N: modulus, E: int(exponent.Int64())}, nil
}

func (k *jwk) ecdsa() (*ecdsa.PublicKey, error) {
	curve, ok := map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()}[k.Curve]
	if !ok {
		return nil, fmt.Errorf("crv %.40q is not supported", k.Curve)
	}
	x, errX := base64url.DecodeString(k.X)
	y, errY := base64url.DecodeString(k.Y)
	if size := coordinateSize(curve); errX != nil || errY != nil || len(x) != size || len(y) != size { // RFC 7518 section 6.2.1.2
		return nil, fmt.Errorf("x and y are not %d bytes each", size)
	}
	const uncompressed = 4
	public, err := ecdsa.ParseUncompressedPublicKey(curve, slices.Concat([]byte{uncompressed}, x, y))
	if err != nil { // RFC 8725 section 3.4
		return nil, fmt.Errorf("x and y are not a point on %s", k.Curve)
	}
	return public, nil
}

func (k *jwk) ed25519() (ed25519.PublicKey, error) {
	if k.Curve != "Ed25519" {
		return nil, fmt.Errorf("crv %.40q is not supported", k.Curve)
	}
	x, err := base64url.DecodeString(k.X)
	if err != nil || len(x) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("x is not %d bytes", ed25519.PublicKeySize)
	}
	return x, nil
}

// coordinateSize is the length of a coordinate of a point on the curve, and of either half of a signature.
func coordinateSize(curve elliptic.Curve) int { return (curve.Params().BitSize + 7) / 8 }
