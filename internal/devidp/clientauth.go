package devidp

import (
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

const (
	jwtBearer        = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	longestAssertion = 10 * time.Minute // maximum lifetime of a client assertion, whose jti is kept until it expires
)

// assertionAlgorithms are those of private_key_jwt, proofAlgorithms those of
// DPoP. None is symmetric (RFC 9449 4.2).
var (
	assertionAlgorithms = []jose.SignatureAlgorithm{jose.RS256, jose.PS256, jose.ES256, jose.EdDSA}
	proofAlgorithms     = []jose.SignatureAlgorithm{jose.ES256, jose.PS256, jose.EdDSA}
)

// authenticate returns the client that sent a form. A request must use exactly
// one method (RFC 6749, section 2.3).
func (p *Provider) authenticate(r *http.Request) (*Client, *oauthError) {
	form := r.PostForm
	methods := 0
	for _, used := range []bool{r.Header.Get("Authorization") != "", form.Has("client_secret"),
		form.Has("client_assertion")} {
		if used {
			methods++
		}
	}
	if methods > 1 {
		return nil, &oauthError{"invalid_request", "the client authenticates in more than one way"}
	}
	if form.Has("client_assertion") {
		return p.checkAssertion(form)
	}
	id, secret := form.Get("client_id"), form.Get("client_secret")
	if r.Header.Get("Authorization") != "" {
		user, password, ok := r.BasicAuth()
		var errID, errSecret error
		id, errID = url.QueryUnescape(user) // RFC 6749 2.3.1
		secret, errSecret = url.QueryUnescape(password)
		if !ok || errID != nil || errSecret != nil || form.Has("client_id") && form.Get("client_id") != id {
			return nil, &oauthError{"invalid_client", "the Authorization header is not valid for a client"}
		}
	}
	client := p.client(id)
	if client != nil && methods == 0 && client.shows(r) {
		return client, nil
	}
	if client == nil || client.Secret == "" || subtle.ConstantTimeCompare([]byte(secret),
		[]byte(client.Secret)) != 1 {
		return nil, &oauthError{"invalid_client", "the client is unknown, or its secret is wrong"}
	}
	return client, nil
}

// shows reports whether a request has the client's certificate (RFC 8705,
// section 2.2).
func (c *Client) shows(r *http.Request) bool {
	return c.Certificate != nil && strings.Contains(r.URL.Path, "/mtls/") && r.TLS != nil &&
		len(r.TLS.PeerCertificates) > 0 &&
		r.TLS.PeerCertificates[0].Equal(c.Certificate)
}

// checkAssertion verifies private_key_jwt (RFC 7523, section 3). The audience
// must be the issuer alone (RFC 10070, section 4): the receiver of an assertion
// for several servers could use it at another one.
func (p *Provider) checkAssertion(form url.Values) (*Client, *oauthError) {
	refused := func(why string) (*Client, *oauthError) { return nil, &oauthError{"invalid_client", why} }
	if form.Get("client_assertion_type") != jwtBearer {
		return refused("client_assertion_type is not " + jwtBearer)
	}
	jws, err := jose.ParseSignedCompact(form.Get("client_assertion"), assertionAlgorithms)
	if err != nil {
		return refused("client_assertion is not a JWT")
	}
	var claims jwt.Claims
	if err := json.Unmarshal(jws.UnsafePayloadWithoutVerification(), &claims); err != nil {
		return refused("client_assertion has no claims")
	}
	client := p.client(claims.Subject) // not trusted until the signature is verified
	if client == nil || !client.signed(jws) {
		return refused("client_assertion is not signed by a known client")
	}
	now := time.Now()
	switch typ := jws.Signatures[0].Header.ExtraHeaders[jose.HeaderType]; {
	// typ is optional (RFC 10070 section 5), but must not name another kind.
	case typ != nil && typ != "JWT" && typ != "client-authentication+jwt":
		return refused("client_assertion is a JWT of another kind")
	case claims.Issuer != client.ID:
		return refused("client_assertion: iss is not the client")
	case form.Has("client_id") && form.Get("client_id") != client.ID:
		return refused("client_id is not the client of the assertion")
	case len(claims.Audience) != 1 || claims.Audience[0] != p.cfg.Issuer:
		return refused("client_assertion: aud must be the issuer")
	case claims.Expiry == nil || now.After(claims.Expiry.Time()) || claims.Expiry.Time().Sub(now) > longestAssertion:
		return refused("client_assertion: exp is missing, past, or more than 10 minutes ahead")
	case claims.NotBefore != nil && claims.NotBefore.Time().Sub(now) > clockSkew:
		return refused("client_assertion: nbf is in the future")
	case claims.ID == "" || len(claims.ID) > longestName ||
		!p.useOnce("assertion "+client.ID+" "+claims.ID, claims.Expiry.Time()):
		return refused("client_assertion: jti is missing or was used before")
	}
	return client, nil
}

// readSigned returns the parameters of a signed authorization request (RFC
// 9101). Parameters outside of it are ignored.
func (p *Provider) readSigned(client *Client, q url.Values) (url.Values, error) {
	jws, err := jose.ParseSignedCompact(q.Get("request"), assertionAlgorithms)
	if err != nil || !client.signed(jws) {
		return nil, errors.New("the request object is not signed by the client")
	}
	if typ := jws.Signatures[0].Header.ExtraHeaders[jose.HeaderType]; typ != "oauth-authz-req+jwt" {
		return nil, errors.New("the request object is a JWT of another kind")
	}
	var claims jwt.Claims
	var parameters map[string]any
	payload := jws.UnsafePayloadWithoutVerification() // verified above
	if json.Unmarshal(payload, &claims) != nil || json.Unmarshal(payload, &parameters) != nil {
		return nil, errors.New("the request object has no claims")
	}
	now := time.Now()
	switch {
	case claims.Issuer != client.ID, parameters["client_id"] != client.ID, claims.Subject != "":
		return nil, errors.New("the request object has a wrong iss or client_id, or has a sub")
	case len(claims.Audience) != 1 || claims.Audience[0] != p.cfg.Issuer:
		return nil, errors.New("the request object is not for this issuer")
	case claims.Expiry == nil || now.After(claims.Expiry.Time()) || claims.Expiry.Time().Sub(now) > longestAssertion:
		return nil, errors.New("the request object has no exp, or one that is past or more than 10 minutes ahead")
	}
	signed := make(url.Values)
	for name, value := range parameters {
		switch v := value.(type) {
		case string:
			signed.Set(name, v)
		case []any:
			for _, item := range v {
				signed.Add(name, fmt.Sprint(item))
			}
		}
	}
	return signed, nil
}

// signed reports whether one of the client's keys signed jws.
func (c *Client) signed(jws *jose.JSONWebSignature) bool {
	id := jws.Signatures[0].Header.KeyID
	for _, k := range c.Keys {
		if id != "" && k.KeyID != "" && id != k.KeyID {
			continue
		}
		if _, err := jws.Verify(k.Key); err == nil {
			return true
		}
	}
	return false
}
