package devop

import (
	"crypto"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const proofLife = 5 * time.Minute

// checkProof verifies the DPoP proof of a request, if it has one, and returns the thumbprint of its key (RFC 9449 4.3), or answers what is wrong.
func (p *Provider) checkProof(w http.ResponseWriter, r *http.Request) (jkt string, ok bool) {
	proofs := r.Header.Values("DPoP")
	if len(proofs) == 0 {
		return "", true
	}
	fail := func(code string) (string, bool) {
		oauthError(w, http.StatusBadRequest, code)
		return "", false
	}
	if len(proofs) > 1 {
		return fail("invalid_dpop_proof")
	}
	jws, err := jose.ParseSignedCompact(proofs[0], []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return fail("invalid_dpop_proof")
	}
	header := jws.Signatures[0].Header
	if header.JSONWebKey == nil || !header.JSONWebKey.IsPublic() || header.ExtraHeaders[jose.HeaderType] != "dpop+jwt" {
		return fail("invalid_dpop_proof")
	}
	payload, err := jws.Verify(header.JSONWebKey)
	if err != nil {
		return fail("invalid_dpop_proof")
	}
	var claims struct {
		ID     string `json:"jti"`
		Method string `json:"htm"`
		URI    string `json:"htu"`
		Issued int64  `json:"iat"`
		Nonce  string `json:"nonce"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		return fail("invalid_dpop_proof")
	}
	age := time.Since(time.Unix(claims.Issued, 0))
	origin := strings.TrimSuffix(strings.TrimSuffix(p.cfg.Issuer, "/"), p.path)
	if claims.ID == "" || claims.Method != r.Method || claims.URI != origin+r.URL.Path || age > proofLife || age < -time.Minute {
		return fail("invalid_dpop_proof")
	}
	if p.cfg.RequireDPoPNonce {
		nonce := p.nonce()
		w.Header().Set("DPoP-Nonce", nonce)
		if claims.Nonce != nonce {
			return fail("use_dpop_nonce")
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, seen := p.proofs[claims.ID]; seen {
		return fail("invalid_dpop_proof")
	}
	p.proofs[claims.ID] = time.Now().Add(2 * proofLife)
	thumbprint, err := header.JSONWebKey.Thumbprint(crypto.SHA256)
	if err != nil {
		return fail("invalid_dpop_proof")
	}
	return encode(thumbprint), true
}

// nonce is the one that proofs have to carry now; it changes every proofLife (RFC 9449 8).
func (p *Provider) nonce() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.proofNonce == "" || time.Since(p.proofNonceMade) > proofLife {
		p.proofNonce, p.proofNonceMade = rand.Text(), time.Now()
	}
	return p.proofNonce
}
