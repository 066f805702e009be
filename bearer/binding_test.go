package bearer_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/cloakroom-bff/cloakroom/bearer"
)

const api = "https://api.example"

func withOrigin(c *bearer.Config) { c.Origin = api }

// thumbprint returns the RFC 7638 thumbprint of the key, computed by another
// library.
func (s *signer) thumbprint() string {
	key := jose.JSONWebKey{Key: s.private.Public()}
	return base64.RawURLEncoding.EncodeToString(must(key.Thumbprint(crypto.SHA256)))
}

// boundTo returns the cnf claim of a token that is bound to the signer's key.
func boundTo(s *signer) object { return object{"cnf": object{"jkt": s.thumbprint()}} }

func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// proof returns a DPoP proof for GET /orders with a token. header and edits
// replace members of its header and claims.
func (s *signer) proof(token string, header object, edits ...object) string {
	h := edit(object{"typ": "dpop+jwt", "alg": s.alg, "jwk": edit(s.jwk(), object{"kid": nil})}, header)
	claims := edit(object{
		"jti": rand.Text(), "htm": "GET", "htu": api + "/orders", "iat": time.Now().Unix(), "ath": hash(token),
	}, edits...)
	return s.sign(must(json.Marshal(h)), must(json.Marshal(claims)))
}

// sendBound sends a request with a token and proofs.
func sendBound(h http.Handler, target, authorization string, proofs ...string) *http.Response {
	r := httptest.NewRequest("GET", target, nil)
	r.Header.Set("Authorization", authorization)
	for _, p := range proofs {
		r.Header.Add("DPoP", p)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func TestDPoPProof(t *testing.T) {
	rs, ed := newRSA("", "PS256", 2048), ed25519Key()
	key := newEC("", "ES256", elliptic.P256())
	other := newEC("", "ES256", elliptic.P256())
	token := ecKey().token(boundTo(key))
	in := func(d time.Duration) object { return object{"iat": time.Now().Add(d).Unix()} }
	one := key.proof(token, nil)
	private := must(json.Marshal(jose.JSONWebKey{Key: key.private}))
	var withPrivate object
	must(0, json.Unmarshal(private, &withPrivate))

	for _, test := range []struct {
		name   string
		token  string
		proofs []string
		code   string // empty: accepted
	}{
		{"a proof", token, []string{one}, ""},
		// another token, since ECDSA signatures are randomized
		{"by RSA", ecKey().token(boundTo(rs)), []string{rs.proof(ecKey().token(boundTo(rs)), nil)},
			"invalid_dpop_proof"},
		{"the URL with a query", token, []string{key.proof(token, nil, object{"htu": api + "/orders?x=y#z"})}, ""},
		{"the URL with its port, in another case", token,
			[]string{key.proof(token, nil, object{"htu": "HTTPS://API.example:443/orders"})}, ""},
		{"a little old", token, []string{key.proof(token, nil, in(-60*time.Second))}, ""},
		{"of a clock that is ahead", token, []string{key.proof(token, nil, in(20*time.Second))}, ""},
		{"an unknown claim", token, []string{key.proof(token, nil, object{"nonce": "n"})}, ""},
		{"typ as a whole media type", token, []string{key.proof(token, object{"typ": "application/dpop+jwt"})}, ""},

		// The checks of RFC 9449 section 4.3, in order.
		{"no proof", token, nil, "invalid_dpop_proof"},
		{"two proofs", token, []string{key.proof(token, nil), key.proof(token, nil)}, "invalid_dpop_proof"},
		{"an empty proof", token, []string{""}, "invalid_dpop_proof"},
		{"no JWT", token, []string{"a.b"}, "invalid_dpop_proof"},
		{"no jti", token, []string{key.proof(token, nil, object{"jti": nil})}, "invalid_dpop_proof"},
		{"a jti of 300 bytes", token,
			[]string{key.proof(token, nil, object{"jti": strings.Repeat("j", 300)})}, "invalid_dpop_proof"},
		{"no iat", token, []string{key.proof(token, nil, object{"iat": nil})}, "invalid_dpop_proof"},
		{"no htm", token, []string{key.proof(token, nil, object{"htm": nil})}, "invalid_dpop_proof"},
		{"no htu", token, []string{key.proof(token, nil, object{"htu": nil})}, "invalid_dpop_proof"},
		{"no ath", token, []string{key.proof(token, nil, object{"ath": nil})}, "invalid_dpop_proof"},
		{"iat as a string", token, []string{key.proof(token, nil, object{"iat": "now"})}, "invalid_dpop_proof"},
		{"typ JWT", token, []string{key.proof(token, object{"typ": "JWT"})}, "invalid_dpop_proof"},
		{"an access token for a proof", token, []string{token}, "invalid_dpop_proof"},
		{"alg none", token, []string{key.proof(token, object{"alg": "none"})}, "invalid_dpop_proof"},
		{"HMAC", token, []string{key.proof(token, object{"alg": "HS256"})}, "invalid_dpop_proof"},
		{"another alg than the key's", token, []string{key.proof(token, object{"alg": "ES384"})}, "invalid_dpop_proof"},
		{"RS256 with a key of another type", token,
			[]string{key.proof(token, object{"alg": "RS256"})}, "invalid_dpop_proof"},
		{"EdDSA with a key of another type", token,
			[]string{key.proof(token, object{"alg": "EdDSA"})}, "invalid_dpop_proof"},
		{"no jwk", token, []string{key.proof(token, object{"jwk": nil})}, "invalid_dpop_proof"},
		{"jwk with the private key", token, []string{key.proof(token, object{"jwk": withPrivate})},
			"invalid_dpop_proof"},
		{"jwk that is symmetric", token,
			[]string{key.proof(token, object{"jwk": object{"kty": "oct", "k": "c2VjcmV0"}})}, "invalid_dpop_proof"},
		{"jwk that is null", token,
			[]string{key.proof(token, object{"jwk": json.RawMessage("null")})}, "invalid_dpop_proof"},
		{"jwk that is not on the curve", token,
			[]string{key.proof(token, object{"jwk": key.jwk(object{"x": key.jwk()["y"]})})}, "invalid_dpop_proof"},
		{"crit", token, []string{key.proof(token, object{"crit": []string{"exp"}})}, "invalid_dpop_proof"},
		{"signed by another key", token, []string{other.proof(token, object{"jwk": key.jwk()})}, "invalid_dpop_proof"},
		{"another method", token, []string{key.proof(token, nil, object{"htm": "POST"})}, "invalid_dpop_proof"},
		{"the method in another case", token, []string{key.proof(token, nil, object{"htm": "get"})},
			"invalid_dpop_proof"},
		{"another path", token, []string{key.proof(token, nil, object{"htu": api + "/orders/"})}, "invalid_dpop_proof"},
		{"another host", token,
			[]string{key.proof(token, nil, object{"htu": "https://evil.example/orders"})}, "invalid_dpop_proof"},
		{"a host that begins like ours", token,
			[]string{key.proof(token, nil, object{"htu": api + ".evil.example/orders"})}, "invalid_dpop_proof"},
		{"another scheme", token,
			[]string{key.proof(token, nil, object{"htu": "http://api.example/orders"})}, "invalid_dpop_proof"},
		{"another port", token,
			[]string{key.proof(token, nil, object{"htu": api + ":8443/orders"})}, "invalid_dpop_proof"},
		{"a user in the URL", token,
			[]string{key.proof(token, nil, object{"htu": "https://me@api.example/orders"})}, "invalid_dpop_proof"},
		{"too old", token, []string{key.proof(token, nil, in(-91*time.Second))}, "invalid_dpop_proof"},
		{"of tomorrow", token, []string{key.proof(token, nil, in(24*time.Hour))}, "invalid_dpop_proof"},
		{"for another token", token, []string{key.proof("x", nil)}, "invalid_dpop_proof"},
		{"by another key", token, []string{other.proof(token, nil)}, "invalid_token"},
		{"a claim twice", token,
			[]string{key.sign([]byte(`{"typ":"dpop+jwt","alg":"ES256","jwk":`+
				string(must(json.Marshal(key.jwk())))+`}`),
				[]byte(`{"jti":"a","jti":"b"}`))}, "invalid_dpop_proof"},
		{"the one proof again", token, []string{one}, "invalid_dpop_proof"},

		// RFC 9449 section 7.1
		{"a token that is bound to nothing", ecKey().token(),
			[]string{key.proof(ecKey().token(), nil)}, "invalid_token"},
		{"a token that is bound to a certificate",
			ecKey().token(object{"cnf": object{"x5t#S256": "x"}}), []string{one}, "invalid_token"},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := verifierFor(t, withOrigin)
			resp := sendBound(v.Handler(whoami), "/orders", "DPoP "+test.token, test.proofs...)
			wantCode(t, resp, test.code)
		})
	}
	for _, s := range []*signer{rs, ed, newEC("", "ES384", elliptic.P384()), newEC("", "ES512", elliptic.P521())} {
		bound := ecKey().token(boundTo(s))
		wantCode(t, sendBound(verifierFor(t, withOrigin).Handler(whoami), "/orders", "dpop "+bound,
			s.proof(bound, nil)), "")
	}
}

func theIssuer() *issuer { return newIssuer(ecKey().jwk()) }

var shared = map[string]*bearer.Verifier{}

// verifierFor returns one verifier for all cases of a test. It has seen the
// proofs of earlier cases.
func verifierFor(t *testing.T, edit func(*bearer.Config)) *bearer.Verifier {
	name, _, _ := strings.Cut(t.Name(), "/")
	if shared[name] == nil {
		shared[name] = theIssuer().verifier(t, edit)
	}
	return shared[name]
}

// wantCode verifies that a request was accepted (code is empty), or rejected
// with code in the body and the challenge.
func wantCode(t *testing.T, resp *http.Response, code string) {
	t.Helper()
	if code == "" {
		if resp.StatusCode != 200 {
			t.Errorf("got %d, %q, want it accepted", resp.StatusCode, resp.Header.Values("WWW-Authenticate"))
		}
		return
	}
	if resp.StatusCode != 401 {
		t.Errorf("got %d, want 401", resp.StatusCode)
	}
	if got := strings.Join(resp.Header.Values("WWW-Authenticate"), "\n"); !strings.Contains(got, `error="`+code+`"`) {
		t.Errorf("got the challenges %q, want error %s", got, code)
	}
	wantProblem(t, resp, 401)
}

func TestBoundTokenRejectedAsBearer(t *testing.T) {
	key := newEC("", "ES256", elliptic.P256())
	token := ecKey().token(boundTo(key))
	v := theIssuer().verifier(t, withOrigin)
	wantCode(t, sendBound(v.Handler(whoami), "/orders", "Bearer "+token, key.proof(token, nil)), "invalid_token")
	wantCode(t, sendBound(v.Handler(whoami), "/orders", "Bearer "+token), "invalid_token")
	wantInvalid(t, v, token, boundToKey)
	deaf := theIssuer().verifier(t) // without an origin
	if resp := sendBound(deaf.Handler(whoami), "/orders", "DPoP "+token,
		key.proof(token, nil)); resp.StatusCode != 401 || resp.Header.Get("WWW-Authenticate") != "Bearer" {
		t.Errorf("without an origin: got %d, %q", resp.StatusCode, resp.Header.Values("WWW-Authenticate"))
	}
	for _, cnf := range []object{{}, {"jwk": key.jwk()}, {"kid": "x"}} { // RFC 7800 has more ways
		wantCode(t, sendBound(v.Handler(whoami), "/orders",
			"Bearer "+ecKey().token(object{"cnf": cnf})), "invalid_token")
	}
}

func TestDPoPChallenge(t *testing.T) {
	v := theIssuer().verifier(t, withOrigin, func(c *bearer.Config) { c.Realm = "orders" })
	want := []string{`Bearer realm="orders"`,
		`DPoP realm="orders", algs="ES256 ES384 ES512 EdDSA Ed25519 PS256 PS384 PS512 RS256 RS384 RS512"`}
	if got := send(v.Handler(whoami), "").Header.Values("WWW-Authenticate"); len(got) != 2 ||
		got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %q, want %q", got, want)
	}
}

// The client signs the full path, including a prefix that an outer handler
// strips.
func TestDPoPProofOriginalPath(t *testing.T) {
	key := newEC("", "ES256", elliptic.P256())
	token := ecKey().token(boundTo(key))
	h := http.StripPrefix("/v1", theIssuer().verifier(t, withOrigin).Handler(whoami))
	wantCode(t, sendBound(h, "/v1/a%2Fb?x", "DPoP "+token, key.proof(token, nil, object{"htu": api + "/v1/a%2Fb"})), "")
	wantCode(t, sendBound(h, "/v1/a%2Fb?x", "DPoP "+token,
		key.proof(token, nil, object{"htu": api + "/a%2Fb"})), "invalid_dpop_proof")
}

func TestDPoPProofReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := newEC("", "ES256", elliptic.P256())
		token := ecKey().token(boundTo(key))
		h := theIssuer().verifier(t, withOrigin, func(c *bearer.Config) { c.Leeway = 60 * time.Second }).Handler(whoami)
		p := key.proof(token, nil, object{"iat": time.Now().Add(59 * time.Second).Unix()})
		wantCode(t, sendBound(h, "/orders", "DPoP "+token, p), "")
		for range 100 { // until it is too old
			wantCode(t, sendBound(h, "/orders", "DPoP "+token, p), "invalid_dpop_proof")
			newer := key.proof(token, nil)
			wantCode(t, sendBound(h, "/orders", "DPoP "+token, newer), "")
			time.Sleep(2 * time.Second)
			wantCode(t, sendBound(h, "/orders", "DPoP "+token, key.proof(token, nil)), "")
			wantCode(t, sendBound(h, "/orders", "DPoP "+token, newer), "invalid_dpop_proof")
		}
		// The same jti from another key is not a replay.
		other := newEC("", "ES256", elliptic.P256())
		same := object{"jti": "same"}
		theirs := ecKey().token(boundTo(other))
		wantCode(t, sendBound(h, "/orders", "DPoP "+token, key.proof(token, nil, same)), "")
		wantCode(t, sendBound(h, "/orders", "DPoP "+theirs, other.proof(theirs, nil, same)), "")
	})
}

func TestCertificateBoundToken(t *testing.T) {
	certificate := func() *x509.Certificate {
		key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
		template := &x509.Certificate{SerialNumber: big.NewInt(1)}
		return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template,
			template, &key.PublicKey, key))))
	}
	mine, other := certificate(), certificate()
	token := ecKey().token(object{"cnf": object{"x5t#S256": hash(string(mine.Raw))}})
	request := func(shown ...*x509.Certificate) *http.Request {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		r.TLS = &tls.ConnectionState{PeerCertificates: shown}
		return r
	}
	v := theIssuer().verifier(t, func(c *bearer.Config) { c.ClientCertificate = bearer.PeerCertificate })
	if _, err := v.VerifyRequest(request(mine, other)); err != nil {
		t.Errorf("with its certificate: got %v", err)
	}
	plain := request()
	plain.TLS = nil
	for name, r := range map[string]*http.Request{"another": request(other),
		"another before it": request(other, mine), "none": request(), "no TLS": plain} {
		if _, err := v.VerifyRequest(r); err == nil {
			t.Errorf("with %s: accepted", name)
		} else if _, ok := isInvalid(err); !ok {
			t.Errorf("with %s: got %v, want an InvalidTokenError", name, err)
		}
	}
	if _, err := theIssuer().verifier(t).VerifyRequest(request(mine)); err == nil {
		t.Error("accepted without Config.ClientCertificate")
	}
	wantInvalid(t, v, token, boundToKey)
}

func TestRequireBound(t *testing.T) {
	key := newEC("", "ES256", elliptic.P256())
	token := ecKey().token(boundTo(key))
	v := theIssuer().verifier(t, withOrigin, func(c *bearer.Config) { c.RequireBound = true })
	wantCode(t, sendBound(v.Handler(whoami), "/orders", "DPoP "+token, key.proof(token, nil)), "")
	wantCode(t, send(v.Handler(whoami), "/orders", "Bearer "+ecKey().token()), "invalid_token")
}
