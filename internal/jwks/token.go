package jwks

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

	"github.com/cloakroom-bff/cloakroom/internal/strictjson"
)

// base64url refuses text that is not the encoding of what it decodes to. It
// skips line breaks all the same.
var base64url = base64.RawURLEncoding.Strict()

// Token is a parsed JWS. Its signature has not been verified.
type Token struct {
	Header  []byte // the JSON
	Payload []byte

	// Header parameters, set by ReadHeader. jwk, jku, x5u and x5c are ignored
	// on purpose: a key that comes with the token proves nothing (RFC 8725,
	// section
	// 3.10).
	Algorithm, Type, KeyID string

	signed    []byte // the encoded header and payload, with the dot
	signature []byte
}

// Split parses a JWS in compact serialization (RFC 7515, section 7.1). It
// rejects what only resembles one (RFC 8725bis, section 3.14). It does not
// parse the JSON of the header, see ReadHeader.
func Split(raw string) (*Token, error) {
	if n := strings.Count(raw, "."); n != 2 { // 4 in a JWE
		return nil, fmt.Errorf("it has %d dots, want 2", n)
	}
	if strings.IndexByte(raw, '\r') >= 0 || strings.IndexByte(raw, '\n') >= 0 {
		return nil, errors.New("it has a line break")
	}
	token := []byte(raw)
	first, second := strings.IndexByte(raw, '.'), strings.LastIndexByte(raw, '.')
	t := &Token{signed: token[:second]}
	for _, part := range []struct {
		name    string
		encoded []byte
		decoded *[]byte
	}{
		{"header", token[:first], &t.Header},
		{"payload", token[first+1 : second], &t.Payload},
		{"signature", token[second+1:], &t.signature},
	} {
		decoded, err := base64url.AppendDecode(nil, part.encoded)
		if err != nil {
			return nil, fmt.Errorf("its %s is not base64url", part.name)
		}
		*part.decoded = decoded
	}
	return t, nil
}

// decisive are the header parameters that decide on a token.
var decisive = []string{"alg", "typ", "kid", "crit", "b64", "zip", "enc"}

// ReadHeader reads Algorithm, Type and KeyID. It fails for extensions that
// change what the token means, because none is understood (RFC 7515, section
// 4.1.11).
func (t *Token) ReadHeader() error {
	return strictjson.Members(t.Header, decisive, func(name, value []byte) (err error) {
		switch string(name) {
		case "alg":
			t.Algorithm, err = strictjson.Text(value)
		case "typ":
			t.Type, err = strictjson.Text(value)
		case "kid":
			t.KeyID, err = strictjson.Text(value)
		case "crit", "b64", "zip", "enc": // enc is a JWE's
			err = errors.New("it is not supported")
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	})
}

// algorithm is a signature algorithm and the kind of key it takes.
type algorithm struct {
	kty, crv string
	hash     crypto.Hash // zero for an algorithm that hashes itself
	verify   func(key crypto.PublicKey, hash crypto.Hash, digest, signature []byte) bool
}

// algorithms are those that verify with a public key (RFC 7518, section 3.1;
// RFC 8037, section 3.1; RFC 9864, section 2.2).
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

// IsAlgorithm reports whether name is the name of an algorithm that verifies
// with a public key. Neither none nor HMAC is one (RFC 8725, sections 2.1, 3.1,
// 3.2).
func IsAlgorithm(name string) bool { _, ok := algorithms[name]; return ok }

func verifyPKCS1v15(key crypto.PublicKey, hash crypto.Hash, digest, signature []byte) bool {
	return rsa.VerifyPKCS1v15(key.(*rsa.PublicKey), hash, digest, signature) == nil
}

func verifyPSS(key crypto.PublicKey, hash crypto.Hash, digest, signature []byte) bool {
	options := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash} // RFC 7518, section 3.5
	return rsa.VerifyPSS(key.(*rsa.PublicKey), hash, digest, signature, options) == nil
}

// verifyECDSA takes r and s side by side, each as long as the curve's order
// (RFC 7518, section 3.4), and not in DER.
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
