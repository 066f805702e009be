package oidc

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

const (
	// assertionTypes precedes a ClientAssertionType in a request.
	assertionTypes = "urn:ietf:params:oauth:client-assertion-type:"
	// signedLife is the lifetime of signed JWTs. They are sent immediately.
	signedLife = time.Minute
)

// checkClientAuth verifies that the credentials which ClientAuth needs are
// configured, and that no client secret is configured without use.
func checkClientAuth(cfg *Config, fail func(name string, value any, err error)) {
	needs := func(name string, missing bool, what string) {
		if missing {
			fail(name, nil, fmt.Errorf("missing; %s", what))
		}
	}
	unneeded := func() {
		if cfg.ClientSecret != "" {
			fail("ClientSecret", nil, fmt.Errorf("%s does not use it, and a leaked secret could still "+
				"authenticate this client; remove it", cfg.ClientAuth))
		}
	}
	switch cfg.ClientAuth {
	case "":
		cfg.ClientAuth = ClientSecretBasic
		fallthrough
	case ClientSecretBasic, ClientSecretPost:
		needs("ClientSecret", cfg.ClientSecret == "", "a client without credentials is refused (RFC 10017 6.1.3.1)")
	case PrivateKeyJWT:
		unneeded()
		needs("ClientKeys", len(cfg.ClientKeys) == 0, "private_key_jwt signs with it")
	case JWTFile:
		unneeded()
		needs("ClientAssertionFile", cfg.ClientAssertionFile == "", "jwt_file sends the JWT in it")
	case TLSClientAuth, SelfSignedTLSClientAuth:
		unneeded()
		needs("ClientCertificate", cfg.ClientCertificate == nil, string(cfg.ClientAuth)+" authenticates with it")
	default:
		fail("ClientAuth", cfg.ClientAuth, fmt.Errorf("%q is none of client_secret_basic, client_secret_post, "+
			"private_key_jwt, jwt_file, tls_client_auth, self_signed_tls_client_auth", cfg.ClientAuth))
	}
	checkAssertionFile(cfg, fail)
}

// sameCredentials reports whether both configurations authenticate the same
// client at the same provider in the same way.
func (c *Config) sameCredentials(other *Config) bool {
	return c.Issuer == other.Issuer && c.ClientID == other.ClientID && c.ClientAuth == other.ClientAuth &&
		c.ClientSecret == other.ClientSecret && c.ClientAssertionFile == other.ClientAssertionFile &&
		c.ClientAssertionType == other.ClientAssertionType && c.SenderConstraint == other.SenderConstraint &&
		slices.EqualFunc(c.ClientKeys, other.ClientKeys, func(a, b crypto.Signer) bool {
			return isKeyOf(a.Public(), b.Public())
		}) && slices.EqualFunc(chainOf(c.ClientCertificate), chainOf(other.ClientCertificate), bytes.Equal)
}

func chainOf(cert *tls.Certificate) [][]byte {
	if cert == nil {
		return nil
	}
	return cert.Certificate
}

// signingKey is one of Config.ClientKeys.
type signingKey struct {
	private crypto.Signer
	public  jose.JSONWebKey // its KeyID is the thumbprint (RFC 7638)
}

// newSigningKeys checks the keys. The key of cert is published with cert.
func newSigningKeys(keys []crypto.Signer, cert *tls.Certificate) ([]signingKey, error) {
	var all []signingKey
	for i, private := range keys {
		if err := strongEnough(private.Public()); err != nil {
			return nil, fmt.Errorf("key %d: %w", i+1, err)
		}
		public := jose.JSONWebKey{Key: private.Public(), Use: "sig"}
		thumbprint, err := public.Thumbprint(crypto.SHA256)
		if err != nil {
			return nil, fmt.Errorf("key %d: %w", i+1, err)
		}
		public.KeyID = base64.RawURLEncoding.EncodeToString(thumbprint)
		if cert != nil && len(cert.Certificate) > 0 {
			if leaf, err := x509.ParseCertificate(cert.Certificate[0]); err == nil &&
				isKeyOf(leaf.PublicKey, private.Public()) {
				public.Certificates = []*x509.Certificate{leaf}
				sum := sha256.Sum256(leaf.Raw)
				public.CertificateThumbprintSHA256 = sum[:]
			}
		}
		all = append(all, signingKey{private, public})
	}
	return all, nil
}

func isKeyOf(a, b crypto.PublicKey) bool {
	key, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(b)
}

// strongEnough accepts the keys that the FAPI 2.0 Security Profile does,
// section 5.4.
func strongEnough(public crypto.PublicKey) error {
	switch k := public.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() < 2048 {
			return fmt.Errorf("an RSA key of %d bits is too weak; 2048 are needed", k.N.BitLen())
		}
	case *ecdsa.PublicKey:
		if k.Curve.Params().BitSize < 256 {
			return fmt.Errorf("a key on the curve %s is too weak; P-256 is the least", k.Curve.Params().Name)
		}
	case ed25519.PublicKey:
	default:
		return fmt.Errorf("a %T is of none of the kinds RSA, EC and Ed25519", public)
	}
	return nil
}

// algorithm returns the signature algorithm for a key. supported lists the
// provider's algorithms; it is empty if the metadata has none.
func (k signingKey) algorithm(supported []string, fapi bool) jose.SignatureAlgorithm {
	switch public := k.private.Public().(type) {
	case *ecdsa.PublicKey:
		return map[int]jose.SignatureAlgorithm{256: jose.ES256, 384: jose.ES384,
			521: jose.ES512}[public.Curve.Params().BitSize]
	case ed25519.PublicKey:
		return jose.EdDSA
	default:
		if fapi || slices.Contains(supported, string(jose.PS256)) { // RS256 is what FAPI 2.0 5.4 does without
			return jose.PS256
		}
		return jose.RS256
	}
}

// sign returns a JWT of a type, signed with the first of the client's keys. It
// adds iat, exp and jti to claims.
func (c *Client) sign(typ string, claims map[string]any, supported []string) (string, error) {
	k := c.keys[0]
	options := new(jose.SignerOptions).WithType(jose.ContentType(typ)).WithHeader("kid", k.public.KeyID)
	if sum := k.public.CertificateThumbprintSHA256; sum != nil {
		// For providers that know the certificate, and not the key.
		options.WithHeader("x5t#S256", base64.RawURLEncoding.EncodeToString(sum))
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: k.algorithm(supported, c.cfg.FAPI2),
		Key: k.private}, options)
	if err != nil {
		return "", fmt.Errorf("sign for the provider: %w", err)
	}
	now := time.Now()
	claims["iat"], claims["exp"], claims["jti"] = now.Unix(), now.Add(signedLife).Unix(), rand.Text()
	signed, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		return "", fmt.Errorf("sign for the provider: %w", err)
	}
	return signed, nil
}

// authenticate adds the client authentication to a request, by exactly one
// method (RFC 6749, section 2.3).
func (c *Client) authenticate(m *metadata, req *http.Request, form url.Values) error {
	switch c.cfg.ClientAuth {
	case ClientSecretBasic:
		// Both are form-encoded before they go into the header (RFC 6749
		// 2.3.1).
		req.SetBasicAuth(url.QueryEscape(c.cfg.ClientID), url.QueryEscape(c.cfg.ClientSecret.Reveal()))
	case ClientSecretPost:
		form.Set("client_id", c.cfg.ClientID)
		form.Set("client_secret", c.cfg.ClientSecret.Reveal())
	case PrivateKeyJWT: // RFC 7523 3, RFC 10070 4
		audience := cmp.Or(c.cfg.AssertionAudience, c.cfg.Issuer)
		if audience == "endpoint" {
			audience = req.URL.String()
		}
		assertion, err := c.sign("client-authentication+jwt",
			map[string]any{"iss": c.cfg.ClientID, "sub": c.cfg.ClientID, "aud": audience}, m.AssertionAlgorithms)
		if err != nil {
			return err
		}
		setAssertion(form, JWTBearer, assertion)
	case JWTFile:
		assertion, err := readAssertion(c.cfg.ClientAssertionFile)
		if err != nil {
			return outage{fmt.Errorf("client assertion: %w", err)}
		}
		form.Set("client_id", c.cfg.ClientID) // its sub is the name of the workload
		setAssertion(form, cmp.Or(c.cfg.ClientAssertionType, JWTBearer), assertion)
	default: // the TLS certificate authenticates the client with this id (RFC 8705, section 2)
		form.Set("client_id", c.cfg.ClientID)
	}
	return nil
}

func setAssertion(form url.Values, typ ClientAssertionType, assertion string) {
	form.Set("client_assertion_type", assertionTypes+string(typ))
	form.Set("client_assertion", assertion)
}

// JWKS returns the public keys with which the provider verifies what this
// client signs. It may be empty.
func (c *Client) JWKS() jose.JSONWebKeySet {
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for _, k := range c.keys {
		set.Keys = append(set.Keys, k.public)
	}
	return set
}
