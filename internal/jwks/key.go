package jwks

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/cloakroom-bff/cloakroom/internal/strictjson"
)

const (
	maxKeys    = 100
	minRSABits = 2048 // RFC 7518, section 3.3
	maxRSABits = 8192 // the work of a verification grows with the square
	maxSkipped = 5    // of the keys that were ignored, how many an error names
)

// Key is a public key that verifies signatures.
type Key struct {
	id       string // empty if the issuer names none
	kty, crv string
	alg      string // the one algorithm it is for; empty: any that its type allows
	public   crypto.PublicKey
}

// Fits reports whether signatures of the algorithm may be checked with the key:
// its type is right, and it is not for another algorithm (RFC 8725, section
// 3.1).
func (k *Key) Fits(alg string) bool {
	a := algorithms[alg]
	return k.kty == a.kty && k.crv == a.crv && (k.alg == "" || k.alg == alg || k.kty == "OKP")
}

// Verifies reports whether the token was signed with the key, which has to fit
// its algorithm.
func (k *Key) Verifies(t *Token) bool {
	a := algorithms[t.Algorithm]
	digest := t.signed
	if a.hash != 0 {
		d := a.hash.New()
		d.Write(t.signed)
		digest = d.Sum(nil)
	}
	return a.verify(k.public, a.hash, digest, t.signature)
}

// Thumbprint is that of RFC 7638, section 3, and RFC 8037, section 2.
func (k *Key) Thumbprint() string {
	encode := base64url.EncodeToString
	var members string
	switch public := k.public.(type) {
	case *rsa.PublicKey:
		e := big.NewInt(int64(public.E)).Bytes()
		members = `{"e":"` + encode(e) + `","kty":"RSA","n":"` + encode(public.N.Bytes()) + `"}`
	case *ecdsa.PublicKey:
		point, err := public.Bytes() // 4, x and y
		if err != nil {
			return ""
		}
		half := (len(point) - 1) / 2
		x, y := encode(point[1:1+half]), encode(point[1+half:])
		members = `{"crv":"` + k.crv + `","kty":"EC","x":"` + x + `","y":"` + y + `"}`
	case ed25519.PublicKey:
		members = `{"crv":"Ed25519","kty":"OKP","x":"` + encode(public) + `"}`
	default:
		return ""
	}
	sum := sha256.Sum256([]byte(members))
	return encode(sum[:])
}

// parseSet returns the keys of a JWK Set that verify signatures. Keys that are
// not understood, incomplete, out of range, private, or for something else are
// ignored (RFC 7517, section 5), and skipped says why. It fails if no key is
// left.
//
// No error quotes more of a key than its kid and the names of its type, use,
// algorithm and curve.
func parseSet(body []byte) (keys []Key, skipped, err error) {
	set, err := strictjson.Parse(body)
	if err != nil {
		return nil, nil, fmt.Errorf("JWK Set: %w", err)
	}
	list, err := set.Raw("keys")
	if err != nil {
		return nil, nil, fmt.Errorf("JWK Set: %w", err)
	}
	if list == nil {
		list = []byte("[]")
	}
	var ignored []error
	n := 0
	err = strictjson.Elements(list, func(raw []byte) error {
		if n++; n > maxKeys {
			return fmt.Errorf("it has more than %d keys", maxKeys)
		}
		key, err := ParseKey(raw)
		if err != nil {
			ignored = append(ignored, fmt.Errorf("key %d: %w", n-1, err))
			return nil
		}
		keys = append(keys, key)
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("JWK Set: keys: %w", err)
	}
	if more := len(ignored) - maxSkipped; more > 0 {
		ignored = append(ignored[:maxSkipped], fmt.Errorf("and %d more", more))
	}
	if len(keys) == 0 {
		none := fmt.Errorf("JWK Set: none of its %d keys verifies signatures", n)
		return nil, nil, errors.Join(append([]error{none}, ignored...)...)
	}
	return keys, errors.Join(ignored...), nil
}

// privateMembers make a JWK one that others can sign with, or that is no public
// key at all (RFC 7518, sections 6.2.2, 6.3.2 and 6.4.1).
var privateMembers = []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k"}

// ParseKey reads a JWK that verifies signatures (RFC 7517, section 4; RFC 7518,
// section 6; RFC 8037, section 2). Members that it does not use are not looked
// at.
func ParseKey(raw []byte) (Key, error) {
	jwk, err := strictjson.Parse(raw)
	if err != nil {
		return Key{}, err
	}
	var m struct{ kid, kty, use, alg, crv string }
	for name, text := range map[string]*string{
		"kid": &m.kid, "kty": &m.kty, "use": &m.use, "alg": &m.alg, "crv": &m.crv,
	} {
		if *text, err = jwk.Text(name); err != nil {
			return Key{}, err
		}
	}
	key := Key{id: m.kid, kty: m.kty, crv: m.crv, alg: m.alg}
	if err := key.read(jwk, m.use); err != nil {
		return Key{}, fmt.Errorf("kid %.80q: %w", m.kid, err)
	}
	return key, nil
}

func (k *Key) read(jwk strictjson.Object, use string) (err error) {
	operations, err := jwk.Texts("key_ops")
	switch {
	case err != nil:
		return err
	case use != "" && use != "sig":
		return fmt.Errorf("use is %.40q", use)
	case operations != nil && !slices.Contains(operations, "verify"):
		return errors.New("key_ops lacks verify")
	case slices.ContainsFunc(privateMembers, jwk.Has):
		return errors.New("its private part is published, so an attacker may have signed")
	}
	switch k.kty {
	case "RSA":
		k.crv = ""
		k.public, err = rsaKey(jwk)
	case "EC":
		k.public, err = ecdsaKey(jwk, k.crv)
	case "OKP":
		k.public, err = ed25519Key(jwk, k.crv)
	default:
		return fmt.Errorf("kty %.40q is not supported", k.kty)
	}
	if err != nil {
		return err
	}
	if a, ok := algorithms[k.alg]; k.alg != "" && (!ok || a.kty != k.kty || a.crv != k.crv) {
		return fmt.Errorf("alg %.40q is not for verifying signatures with such a key", k.alg)
	}
	return nil
}

// octets decodes a member in base64url.
func octets(jwk strictjson.Object, name string) ([]byte, error) {
	text, err := jwk.Text(name)
	if err != nil {
		return nil, err
	}
	b, err := base64url.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("%s is not base64url", name)
	}
	return b, nil
}

func rsaKey(jwk strictjson.Object) (*rsa.PublicKey, error) {
	n, errN := octets(jwk, "n")
	e, errE := octets(jwk, "e")
	if err := errors.Join(errN, errE); err != nil {
		return nil, err
	}
	modulus, exponent := new(big.Int).SetBytes(n), new(big.Int).SetBytes(e)
	switch bits := modulus.BitLen(); {
	case bits < minRSABits || bits > maxRSABits:
		return nil, fmt.Errorf("n has %d bits, and not between %d and %d", bits, minRSABits, maxRSABits)
	case modulus.Bit(0) == 0:
		return nil, errors.New("n is even")
	// With the exponent 1, every message would be its own signature.
	case exponent.BitLen() < 2 || exponent.BitLen() > 31 || exponent.Bit(0) == 0:
		return nil, errors.New("e is not an odd number between 3 and 2^31")
	}
	return &rsa.PublicKey{N: modulus, E: int(exponent.Int64())}, nil
}

func ecdsaKey(jwk strictjson.Object, crv string) (*ecdsa.PublicKey, error) {
	curve, ok := map[string]elliptic.Curve{
		"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521(),
	}[crv]
	if !ok {
		return nil, fmt.Errorf("crv %.40q is not supported", crv)
	}
	x, errX := octets(jwk, "x")
	y, errY := octets(jwk, "y")
	if err := errors.Join(errX, errY); err != nil {
		return nil, err
	}
	if size := coordinateSize(curve); len(x) != size || len(y) != size { // RFC 7518, section 6.2.1.2
		return nil, fmt.Errorf("x and y are not %d bytes each", size)
	}
	const uncompressed = 4
	point := slices.Concat([]byte{uncompressed}, x, y)
	public, err := ecdsa.ParseUncompressedPublicKey(curve, point)
	if err != nil { // RFC 8725, section 3.4
		return nil, fmt.Errorf("x and y are not a point on %s", crv)
	}
	return public, nil
}

func ed25519Key(jwk strictjson.Object, crv string) (ed25519.PublicKey, error) {
	if crv != "Ed25519" {
		return nil, fmt.Errorf("crv %.40q is not supported", crv)
	}
	x, err := octets(jwk, "x")
	if err != nil {
		return nil, err
	}
	if len(x) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("x is not %d bytes", ed25519.PublicKeySize)
	}
	return x, nil
}

// coordinateSize is the length of a coordinate of a point on the curve, and of
// either half of a signature.
func coordinateSize(curve elliptic.Curve) int { return (curve.Params().BitSize + 7) / 8 }
