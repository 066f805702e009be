package devidp

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// checkProof verifies the DPoP proof of a request, if it has one, and returns
// the thumbprint of its key (RFC 9449 4.3). With an access token it is the
// proof for using that token; without, for obtaining one, and may need a nonce.
func (p *Provider) checkProof(w http.ResponseWriter, r *http.Request, accessToken string) (
	jkt string, fault *oauthError,
) {
	refused := func(why string) (string, *oauthError) { return "", &oauthError{"invalid_dpop_proof", why} }
	proofs := r.Header.Values("DPoP")
	switch len(proofs) {
	case 0:
		return "", nil
	case 1:
	default:
		return refused("there is more than one proof")
	}
	key, claims, fault := readProof(proofs[0])
	if fault != nil {
		return "", fault
	}
	requested, _, _ := strings.Cut(r.RequestURI, "?") // as the client wrote it
	if requested == "" {
		requested = r.URL.Path
	}
	uri, _, _ := strings.Cut(claims.URI, "#")
	uri, _, _ = strings.Cut(uri, "?")
	age := time.Since(time.Unix(int64(claims.Issued), 0))
	hash := sha256.Sum256([]byte(accessToken))
	switch {
	case claims.Method != r.Method:
		return refused("htm is not the method of the request")
	case uri != p.root()+requested:
		return refused("htu is not this endpoint")
	case age > proofLife || age < -clockSkew:
		return refused("iat is not within five minutes of now")
	case accessToken != "" && claims.AccessToken != encode(hash[:]):
		return refused("ath does not match the access token")
	}
	if p.cfg.RequireDPoPNonce && accessToken == "" {
		nonce := p.nonce()
		w.Header().Set("DPoP-Nonce", nonce)
		if claims.Nonce != nonce {
			return "", &oauthError{"use_dpop_nonce", "use the nonce in the header DPoP-Nonce"}
		}
	}
	if claims.ID == "" || len(claims.ID) > longestName ||
		!p.useOnce("proof "+claims.ID, time.Now().Add(2*proofLife)) {
		return refused("jti is missing or was used before")
	}
	thumbprint, err := key.Thumbprint(crypto.SHA256)
	if err != nil {
		return refused("jwk has no thumbprint")
	}
	return encode(thumbprint), nil
}

// proofClaims are the claims of a DPoP proof (RFC 9449 4.2).
type proofClaims struct {
	ID          string  `json:"jti"`
	Method      string  `json:"htm"`
	URI         string  `json:"htu"`
	Issued      float64 `json:"iat"`
	Nonce       string  `json:"nonce"`
	AccessToken string  `json:"ath"`
}

// readProof verifies the signature of a DPoP proof, and returns its key and its
// claims.
func readProof(proof string) (key *jose.JSONWebKey, claims proofClaims, fault *oauthError) {
	refused := func(why string) (*jose.JSONWebKey, proofClaims, *oauthError) {
		return nil, proofClaims{}, &oauthError{"invalid_dpop_proof", why}
	}
	jws, err := jose.ParseSignedCompact(proof, proofAlgorithms)
	if err != nil {
		return refused("the proof is not a JWT with an accepted signature algorithm")
	}
	header := jws.Signatures[0].Protected
	if header.ExtraHeaders[jose.HeaderType] != "dpop+jwt" {
		return refused("typ is not dpop+jwt")
	}
	if header.JSONWebKey == nil || !header.JSONWebKey.IsPublic() {
		return refused("jwk is not a public key")
	}
	payload, err := jws.Verify(header.JSONWebKey)
	if err != nil {
		return refused("the signature does not match the jwk")
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		return refused("the claims cannot be read")
	}
	return header.JSONWebKey, claims, nil
}

// nonce returns the nonce that proofs must contain. It changes over time (RFC
// 9449 section 8.2).
func (p *Provider) nonce() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dpopNonce == "" || time.Since(p.dpopNonceMade) > proofLife {
		p.dpopNonce, p.dpopNonceMade = rand.Text(), time.Now()
	}
	return p.dpopNonce
}

// RotateDPoPNonce changes the nonce now: a proof with the old one
// gets use_dpop_nonce.
func (p *Provider) RotateDPoPNonce() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dpopNonce = ""
}
