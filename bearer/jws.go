package bearer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	_ "crypto/sha256" // linked in for crypto.Hash
	_ "crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"strings"
)

// maxToken is the length of the longest token that is looked at.
const maxToken = 16 << 10

// base64url refuses what does not come out the same when encoded again. It skips line breaks all the same.
var base64url = base64.RawURLEncoding.Strict()

// jws is a token taken apart.
type jws struct {
	signed    []byte // header and payload as they came, with the dot: what the signature is over
	header    []byte
	payload   []byte
	signature []byte
}

// looksLikeJWT says whether raw has the form of a JWT, signed or encrypted.
func looksLikeJWT(raw string) bool { n := strings.Count(raw, "."); return n == 2 || n == 4 }

// parseJWS takes a JWS in compact serialization (RFC 7515 section 7.1) apart, and nothing that merely resembles one (RFC 8725bis section 3.14).
func parseJWS(raw string) (*jws, error) {
	if len(raw) > maxToken {
		return nil, fmt.Errorf("it is longer than %d bytes", maxToken)
	}
	if n := strings.Count(raw, "."); n != 2 { // 4 in a JWE
		return nil, fmt.Errorf("it has %d dots, want 2", n)
	}
	if strings.IndexByte(raw, '\r') >= 0 || strings.IndexByte(raw, '\n') >= 0 {
		return nil, errors.New("it has a line break")
	}
	token := []byte(raw)
	first, second := strings.IndexByte(raw, '.'), strings.LastIndexByte(raw, '.')
	j := &jws{signed: token[:second]}
	for _, part := range []struct {
		name    string
		encoded []byte
		decoded *[]byte
	}{
		{"header", token[:first], &j.header},
		{"payload", token[first+1 : second], &j.payload},
		{"signature", token[second+1:], &j.signature},
	} {
		decoded, err := base64url.AppendDecode(nil, part.encoded)
		if err != nil {
			return nil, fmt.Errorf("its %s is not base64url", part.name)
		}
		*part.decoded = decoded
	}
	return j, nil
}

// header is what counts of a token's header. What is deliberately absent: jwk, jku, x5u, x5c and their like, for a key that comes with the
// token proves nothing (RFC 8725 section 3.10).
type header struct {
	alg, typ, kid string
}

func parseHeader(object []byte) (header, error) {
	var h header
	err := members(object, func(name, value []byte) (err error) {
		switch string(name) {
		case "alg":
			h.alg, err = text(value)
		case "typ":
			h.typ, err = text(value)
		case "kid":
			h.kid, err = text(value)
		case "crit", "b64", "zip", "enc": // none of the extensions there are is understood (RFC 7515 section 4.1.11); enc is a JWE's
			err = errors.New("it is not supported")
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	})
	return h, err
}

// algorithm is a signature algorithm and the kind of key it takes.
type algorithm struct {
	kty, crv string
	hash     crypto.Hash // zero for an algorithm that hashes itself
	verify   func(key crypto.PublicKey, hash crypto.Hash, digest, signature []byte) bool
}

// algorithms are those that verify with a public key (RFC 7518 section 3.1, RFC 8037 section 3.1, RFC 9864 section 2.2).
var algorithms = map[string]algorithm{
	"RS256":   {"RSA", "", crypto.SHA256, verifyPKCS1v15},
	"RS384":   {"RSA", "", crypto.SHA384, verifyPKCS1v15},
	"RS512":   {"RSA", "", crypto.SHA512, verifyPKCS1v15},
	"PS256":   {"RSA", "", crypto.SHA256, verifyPSS},
	"PS384":   {"RSA", "", crypto.SHA384, verifyPSS},
	"PS512":   {"RSA", "", crypto.SHA512, verifyPSS},
	"ES256":   {"EC", "P-256", crypto.SHA256, verifyECDSA},
	"ES384":   {"EC", "P-384", crypto.SHA384, verifyECDSA},
	"ES512":   {"EC", "P-521", crypto.SHA512, verifyECDSA},
	"EdDSA":   {"OKP", "Ed25519", 0, verifyEd25519},
	"Ed25519": {"OKP", "Ed25519", 0, verifyEd25519},
}

// verifies says whether the signature of j is by the key, which has to be of the algorithm's kind.
func (a algorithm) verifies(key *publicKey, j *jws) bool {
	digest := j.signed
	if a.hash != 0 {
		d := a.hash.New()
		d.Write(j.signed)
		digest = d.Sum(nil)
	}
	return a.verify(key.public, a.hash, digest, j.signature)
}

func verifyPKCS1v15(key crypto.PublicKey, hash crypto.Hash, digest, signature []byte) bool {
	return rsa.VerifyPKCS1v15(key.(*rsa.PublicKey), hash, digest, signature) == nil
}

func verifyPSS(key crypto.PublicKey, hash crypto.Hash, digest, signature []byte) bool {
	options := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash} // RFC 7518 section 3.5
	return rsa.VerifyPSS(key.(*rsa.PublicKey), hash, digest, signature, options) == nil
}

// verifyECDSA takes r and s side by side, each as long as the curve's order (RFC 7518 section 3.4), and not in DER.
func verifyECDSA(key crypto.PublicKey, _ crypto.Hash, digest, signature []byte) bool {
	public := key.(*ecdsa.PublicKey)
	size := coordinateSize(public.Curve)
	if len(signature) != 2*size {
		return false
	}
	r, s := new(big.Int).SetBytes(signature[:size]), new(big.Int).SetBytes(signature[size:])
	return ecdsa.Verify(public, digest, r, s) // false when either is zero, or not below the order
}

func verifyEd25519(key crypto.PublicKey, _ crypto.Hash, message, signature []byte) bool {
	return ed25519.Verify(key.(ed25519.PublicKey), message, signature)
}

// errUnknownKey says that no key at hand is the signer's.
var errUnknownKey = errors.New("no key of the issuer fits")

// verify checks the signature. The error is errUnknownKey when newer keys of the issuer might make a difference.
func (s *keySet) verify(h header, j *jws) error {
	a := algorithms[h.alg]
	if h.kid == "" {
		key, err := s.only(h.alg)
		if err != nil {
			return err
		}
		if !a.verifies(key, j) {
			return fmt.Errorf("%w: there is no kid, and the one key for %s is not the signer's", errUnknownKey, h.alg)
		}
		return nil
	}
	known := false
	for i := range s.keys {
		key := &s.keys[i]
		if key.id != h.kid {
			continue
		}
		known = true
		if key.fits(h.alg) && a.verifies(key, j) {
			return nil
		}
	}
	if !known {
		return fmt.Errorf("%w: kid is %.80q", errUnknownKey, h.kid)
	}
	return fmt.Errorf("the key %.80q has not made it with %s", h.kid, h.alg)
}

// only returns the one key that fits alg, for a token that names none.
func (s *keySet) only(alg string) (*publicKey, error) {
	var found *publicKey
	for i := range s.keys {
		switch {
		case !s.keys[i].fits(alg):
		case found != nil:
			return nil, fmt.Errorf("there is no kid, and more than one key for %s", alg)
		default:
			found = &s.keys[i]
		}
	}
	if found == nil {
		return nil, fmt.Errorf("%w: there is no kid, and no key for %s", errUnknownKey, alg)
	}
	return found, nil
}
