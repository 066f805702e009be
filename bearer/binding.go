package bearer

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/jwks"
	"github.com/cloakroom-bff/cloakroom/internal/strictjson"
)

// confirmation is the cnf claim of a token (RFC 7800 section 3.1).
type confirmation struct {
	key         string // jkt: the thumbprint of a DPoP key (RFC 9449 section 6.1)
	certificate string // x5t#S256: the hash of a certificate (RFC 8705 section 3.1)
	unknown     bool   // cnf has no member that is supported
}

func (c confirmation) bound() bool { return c != confirmation{} }

func readConfirmation(value []byte) (c confirmation, err error) {
	err = strictjson.Members(value, []string{"jkt", "x5t#S256"}, func(name, value []byte) (err error) {
		switch string(name) {
		case "jkt":
			c.key, err = strictjson.Text(value)
		case "x5t#S256":
			c.certificate, err = strictjson.Text(value)
		}
		return err
	})
	c.unknown = c.key == "" && c.certificate == ""
	return c, err
}

// VerifyRequest returns the token of a request if it is valid. If the token is
// bound to its sender, the request must prove possession. Otherwise the error
// is an [*InvalidTokenError], wraps [ErrUnavailable], or describes another
// fault of the request. [Verifier.Handler] maps each of them to a status and a
// challenge.
func (v *Verifier) VerifyRequest(r *http.Request) (*Token, error) {
	scheme, raw, err := v.credentials(r)
	if err != nil {
		return nil, err
	}
	t, err := v.verify(r.Context(), raw)
	if err != nil {
		return nil, err
	}
	if err := v.checkBinding(r.Context(), r, scheme, raw, t); err != nil {
		return nil, err
	}
	return t, nil
}

// checkBinding verifies that the request comes from the sender the token is
// bound to. If the token is bound to both a key and a certificate, both are
// checked.
func (v *Verifier) checkBinding(ctx context.Context, r *http.Request, scheme scheme, raw string, t *Token) error {
	if !t.cnf.bound() && scheme == schemeBearer {
		return v.checkUnbound(t)
	}
	switch {
	case t.cnf.unknown:
		return invalid("the token's confirmation method is not supported", nil)
	case t.cnf.key == "" && scheme == schemeDPoP: // RFC 9449 section 7.1
		return invalid("the token is not bound to a DPoP key", nil)
	case t.cnf.key != "" && v.origin == "", t.cnf.certificate != "" && v.certificate == nil:
		return invalid("the token is bound to a key and cannot be used as a bearer token", nil)
	case t.cnf.key != "" && scheme != schemeDPoP:
		return invalid("the token is bound to a DPoP key and needs a proof", nil)
	}
	if want := t.cnf.certificate; want != "" {
		certificate := v.certificate(r)
		if certificate == nil {
			return invalid("the token is bound to a certificate and the client sent none", nil)
		}
		if subtle.ConstantTimeCompare([]byte(thumbprintOf(certificate.Raw)), []byte(want)) != 1 {
			return invalid("the token is bound to another certificate", nil)
		}
	}
	if t.cnf.key == "" {
		return nil
	}
	return v.checkProof(r, raw, t)
}

// PeerCertificate returns the client certificate of the TLS connection that r
// came on, or nil. tls.Config.ClientAuth must request one. For bound tokens it
// need not be verified against a CA: the handshake proves possession of its
// private key.
func PeerCertificate(r *http.Request) *x509.Certificate {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil
	}
	return r.TLS.PeerCertificates[0]
}

func thumbprintOf(b []byte) string {
	sum := sha256.Sum256(b)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// proofLife is the maximum age of a DPoP proof, without the leeway for clocks.
const proofLife = time.Minute

// checkProof verifies the DPoP proof of a request (RFC 9449 section 4.3). The
// numbers in its comments are those of the steps in that section.
func (v *Verifier) checkProof(r *http.Request, raw string, t *Token) error {
	fail := func(reason string, err error) error { return &proofError{reason, err} }
	headers := r.Header["Dpop"]
	if len(headers) != 1 { // (1)
		return fail("exactly one DPoP proof is required", fmt.Errorf("got %d", len(headers)))
	}
	proof, err := split(headers[0])
	if err != nil { // (2)
		return fail("the DPoP proof is not a signed JWT", err)
	}
	key, err := readProofHeader(proof)
	switch {
	case err != nil: // (4), (5), (7)
		return fail("the DPoP proof's header is not acceptable", err)
	case !slices.Contains(proofAlgorithms, proof.Algorithm): // (5)
		return fail("the DPoP proof's algorithm is not accepted", fmt.Errorf("alg is %.40q", proof.Algorithm))
	case !key.Fits(proof.Algorithm) || !key.Verifies(proof): // (6)
		return fail("the DPoP proof's signature is not valid", nil)
	}
	var p struct {
		id, method, uri, hash string
		issued                time.Time
	}
	err = strictjson.Members(proof.Payload, proofClaims, func(name, value []byte) (err error) { // (3)
		switch string(name) {
		case "jti":
			p.id, err = strictjson.Text(value)
		case "htm":
			p.method, err = strictjson.Text(value)
		case "htu":
			p.uri, err = strictjson.Text(value)
		case "ath":
			p.hash, err = strictjson.Text(value)
		case "iat":
			p.issued, err = strictjson.Date(value)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	})
	now := time.Now()
	leeway := v.leeway(t)
	switch {
	case err != nil:
		return fail("the DPoP proof's claims cannot be read", err)
	case p.id == "" || len(p.id) > 256 || p.issued.IsZero(): // (3)
		return fail("the DPoP proof lacks a claim",
			errors.New("jti or iat is missing, or jti is longer than 256 bytes"))
	case p.method != r.Method: // (8)
		return fail("the DPoP proof is for another method", fmt.Errorf("htm is %.20q", p.method))
	case !v.isURL(r, p.uri): // (9)
		return fail("the DPoP proof is for another URL",
			fmt.Errorf("htu is %.200q, want %q", p.uri, v.origin+pathOf(r)))
	case now.Before(p.issued.Add(-leeway)) || !now.Before(p.issued.Add(proofLife+leeway)): // (11)
		return fail("the DPoP proof is too old or from the future", fmt.Errorf("iat is %v", p.issued.UTC()))
	case subtle.ConstantTimeCompare([]byte(p.hash), []byte(thumbprintOf([]byte(raw)))) != 1: // (12)
		return fail("the DPoP proof is for another token", nil)
	case subtle.ConstantTimeCompare([]byte(key.Thumbprint()), []byte(t.cnf.key)) != 1: // (12)
		return invalid("the token is bound to another DPoP key", nil)
	case !v.proofs.markUsed(t.cnf.key+" "+p.id, now): // section 11.1
		return fail("the DPoP proof was used before", nil)
	}
	return nil
}

// leeway returns the leeway of the token's issuer.
func (v *Verifier) leeway(t *Token) time.Duration {
	for _, i := range v.issuers {
		if i.url == t.Issuer {
			return i.leeway
		}
	}
	return 0
}

// proofAlgorithms are the accepted algorithms of DPoP proofs, all of them
// asymmetric (RFC 9449 section 4.2). Metadata and challenges list them.
var proofAlgorithms = []string{"ES256", "ES384", "ES512", "EdDSA", "Ed25519", "PS256", "PS384",
	"PS512", "RS256", "RS384", "RS512"}

// proofClaims are the claims of a proof that are checked.
var proofClaims = []string{"jti", "htm", "htu", "ath", "iat"}

// readProofHeader reads the header of a proof and returns its public key.
func readProofHeader(proof *jwks.Token) (*jwks.Key, error) {
	if err := proof.ReadHeader(); err != nil {
		return nil, err
	}
	if !strings.EqualFold(strings.TrimPrefix(proof.Type, "application/"), "dpop+jwt") {
		return nil, fmt.Errorf("typ is %.40q, want dpop+jwt", proof.Type)
	}
	var key *jwks.Key
	err := strictjson.Members(proof.Header, []string{"jwk"}, func(name, value []byte) error {
		if string(name) != "jwk" {
			return nil
		}
		k, err := jwks.ParseKey(value)
		key = &k
		return err
	})
	if err == nil && key == nil {
		err = errors.New("jwk is missing")
	}
	return key, err
}

// isURL reports whether a proof's htu is the URL of r without query and
// fragment (RFC 9449 section 4.3, step 9).
func (v *Verifier) isURL(r *http.Request, htu string) bool {
	u, err := url.Parse(htu)
	if err != nil || u.User != nil {
		return false
	}
	path := u.EscapedPath()
	if path == "" {
		path = "/"
	}
	return originOf(u) == v.origin && path == pathOf(r)
}

// pathOf returns the path of r as the client sent it, even if an outer handler
// has stripped a prefix.
func pathOf(r *http.Request) string {
	if path, _, _ := strings.Cut(r.RequestURI, "?"); strings.HasPrefix(path, "/") {
		return path
	}
	return r.URL.EscapedPath()
}

// originOf returns a URL's scheme and host in normal form (RFC 3986 sections
// 6.2.2.1 and 6.2.3).
func originOf(u *url.URL) string {
	scheme, host := strings.ToLower(u.Scheme), strings.ToLower(u.Host)
	switch scheme {
	case "https":
		host = strings.TrimSuffix(host, ":443")
	case "http":
		host = strings.TrimSuffix(host, ":80")
	}
	return scheme + "://" + host
}

// parseOrigin parses Config.Origin. The default is the origin of the resource.
func parseOrigin(raw string, resource *url.URL) (string, error) {
	switch {
	case raw == "" && resource == nil:
		return "", nil
	case raw == "":
		return originOf(resource), nil
	}
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && u.Scheme != "http" ||
		strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf("%q is not a scheme and host such as https://api.example.com", raw)
	}
	return originOf(u), nil
}

// proofs remembers which proofs were used. Only a client with a valid token can
// add one. An entry is dropped when its proof would be too old anyway, so the
// number is bounded by the request rate.
type proofs struct {
	mu           sync.Mutex // guards the fields below
	now, earlier map[[sha256.Size]byte]struct{}
	since        time.Time // when now was created
}

// markUsed records a proof and reports whether it was new.
func (p *proofs) markUsed(id string, at time.Time) bool {
	const life = proofLife + 2*maxLeeway
	key := hashOf(id)
	p.mu.Lock()
	defer p.mu.Unlock()
	if age := at.Sub(p.since); p.now == nil || age >= life {
		p.earlier = p.now
		if age >= 2*life {
			p.earlier = nil
		}
		p.now, p.since = make(map[[sha256.Size]byte]struct{}), at
	}
	_, new := p.now[key]
	_, old := p.earlier[key]
	p.now[key] = struct{}{}
	return !new && !old
}

// proofError reports an invalid DPoP proof.
type proofError struct {
	reason string // for the client, like InvalidTokenError.Reason
	err    error
}

func (e *proofError) Error() string {
	if e.err != nil {
		return e.reason + ": " + e.err.Error()
	}
	return e.reason
}

func (e *proofError) Unwrap() error { return e.err }
