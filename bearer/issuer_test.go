package bearer_test

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/cloakroom-bff/cloakroom/bearer"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

const (
	issuerURL = "https://id.example"
	jwksURL   = "https://id.example/keys"
	audience  = "orders"
)

type object = map[string]any

// signer is a key of the issuer.
type signer struct {
	kid, alg string
	private  crypto.Signer
}

// Generating keys is slow, so tests share these.
var (
	rsaKey     = sync.OnceValue(func() *signer { return newRSA("rsa", "RS256", 2048) })
	ecKey      = sync.OnceValue(func() *signer { return newEC("ec", "ES256", elliptic.P256()) })
	otherEC    = sync.OnceValue(func() *signer { return newEC("ec", "ES256", elliptic.P256()) })
	ed25519Key = sync.OnceValue(func() *signer {
		_, private, err := ed25519.GenerateKey(rand.Reader)
		return &signer{"ed", "EdDSA", must(private, err)}
	})
)

func newRSA(kid, alg string, bits int) *signer {
	return &signer{kid, alg, must(rsa.GenerateKey(rand.Reader, bits))}
}

func newEC(kid, alg string, curve elliptic.Curve) *signer {
	return &signer{kid, alg, must(ecdsa.GenerateKey(curve, rand.Reader))}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// jwk returns the public key as the issuer publishes it. It has no alg unless a
// test sets it.
func (s *signer) jwk(edits ...object) object {
	var key object
	encoded := must(json.Marshal(jose.JSONWebKey{Key: s.private.Public(), KeyID: s.kid}))
	must(0, json.Unmarshal(encoded, &key))
	return edit(key, edits...)
}

// sign returns a compact JWS with any header and payload, signed with the
// signer's algorithm.
func (s *signer) sign(header, payload []byte) string {
	input := base64.RawURLEncoding.EncodeToString(header) + "." + base64.RawURLEncoding.EncodeToString(payload)
	return input + "." + base64.RawURLEncoding.EncodeToString(s.signature([]byte(input)))
}

func (s *signer) signature(input []byte) []byte {
	hash := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384,
		"512": crypto.SHA512}[strings.TrimLeft(s.alg, "RSPE")]
	digest := input
	var options crypto.SignerOpts = crypto.Hash(0)
	if s.alg != "EdDSA" {
		h := hash.New()
		h.Write(input)
		digest, options = h.Sum(nil), hash
	}
	if key, ok := s.private.(*ecdsa.PrivateKey); ok {
		r, ss, err := ecdsa.Sign(rand.Reader, key, digest)
		must(0, err)
		size := (key.Params().BitSize + 7) / 8
		return append(r.FillBytes(make([]byte, size)), ss.FillBytes(make([]byte, size))...)
	}
	if strings.HasPrefix(s.alg, "PS") {
		options = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}
	}
	return must(s.private.Sign(rand.Reader, digest, options))
}

// token returns a valid token of the user alice. edits replace its claims.
func (s *signer) token(edits ...object) string { return s.tokenWithHeader(nil, edits...) }

func (s *signer) tokenWithHeader(headerEdit object, claimEdits ...object) string {
	header := edit(object{"typ": "at+jwt", "alg": s.alg, "kid": s.kid}, headerEdit)
	return s.sign(must(json.Marshal(header)), must(json.Marshal(claims(claimEdits...))))
}

// claims returns the claims of a valid token. edits replace them.
func claims(edits ...object) object {
	now := time.Now().Unix()
	return edit(object{
		"iss": issuerURL, "sub": "alice", "aud": audience, "client_id": "spa", "scope": "orders:read orders:write",
		"iat": now, "exp": now + 300, "jti": "token-1",
	}, edits...)
}

// edit sets the members of edits in o and deletes those that are nil.
func edit(o object, edits ...object) object {
	for _, e := range edits {
		for name, value := range e {
			if value == nil {
				delete(o, name)
			} else {
				o[name] = value
			}
		}
	}
	return o
}

// issuer is an in-process issuer. It is the transport of the verifier's HTTP
// client.
type issuer struct {
	mu           sync.Mutex
	keys         []object
	cacheControl string
	answer       http.HandlerFunc // replaces all responses; nil: none
	elsewhere    http.HandlerFunc // for other URLs than those of metadata and keys; nil: 404
	asked        map[string]int   // requests by URL
}

func newIssuer(keys ...object) *issuer { return &issuer{keys: keys, asked: make(map[string]int)} }

func (i *issuer) RoundTrip(r *http.Request) (*http.Response, error) {
	i.mu.Lock()
	i.asked[r.URL.String()]++
	answer, keys, cacheControl := i.answer, i.keys, i.cacheControl
	i.mu.Unlock()
	w := httptest.NewRecorder()
	switch {
	case answer != nil:
		answer(w, r)
	case r.URL.String() == issuerURL+"/.well-known/openid-configuration":
		json.NewEncoder(w).Encode(object{"issuer": issuerURL, "jwks_uri": jwksURL})
	case r.URL.String() == jwksURL:
		if cacheControl != "" {
			w.Header().Set("Cache-Control", cacheControl)
		}
		json.NewEncoder(w).Encode(object{"keys": keys})
	case i.elsewhere != nil:
		i.elsewhere(w, r)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	resp := w.Result()
	resp.Request = r
	return resp, nil
}

// publish replaces the keys.
func (i *issuer) publish(keys ...object) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = keys
}

// misbehave makes h handle all requests. Nil restores the normal responses.
func (i *issuer) misbehave(h http.HandlerFunc) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.answer = h
}

// fetches returns the number of requests for the keys.
func (i *issuer) fetches() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked[jwksURL]
}

// requests returns the number of requests by URL.
func (i *issuer) requests() map[string]int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return maps.Clone(i.asked)
}

func isDown(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }

func hangs(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

func (i *issuer) verifier(t testing.TB, edits ...func(*bearer.Config)) *bearer.Verifier {
	t.Helper()
	cfg := bearer.Config{
		Issuer: issuerURL, Audience: audience,
		HTTPClient: &http.Client{Transport: i},
		Logger:     slog.New(slog.DiscardHandler),
	}
	for _, e := range edits {
		e(&cfg)
	}
	v, err := bearer.NewVerifier(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func wantGood(t *testing.T, v *bearer.Verifier, raw, why string) *bearer.Token {
	t.Helper()
	token, err := v.Verify(t.Context(), raw)
	if err != nil {
		t.Fatalf("%s: got %v, want it accepted", why, err)
	}
	return token
}

// These are all the reasons of InvalidTokenError that tests expect.
const (
	notCompact    = "the token is not a signed JWT in compact form"
	badHeader     = "the token's header is not acceptable"
	badAlgorithm  = "the token's algorithm is not accepted"
	badType       = "the token is not an access token"
	badSignature  = "the token's signature is not valid"
	badClaims     = "the token's claims cannot be read"
	otherIssuer   = "the token is from another issuer"
	otherAudience = "the token is for another audience"
	lacksClaim    = "the token lacks a claim"
	expired       = "the token has expired"
	notYet        = "the token is not valid yet"
	boundToKey    = "the token is bound to a key and cannot be used as a bearer token"
)

func wantInvalid(t *testing.T, v *bearer.Verifier, raw, reason string) {
	t.Helper()
	_, err := v.Verify(t.Context(), raw)
	invalid, ok := isInvalid(err)
	if !ok || invalid.Reason != reason {
		t.Fatalf("got %v, want an InvalidTokenError for the reason that %s", err, reason)
	}
	if strings.ContainsFunc(invalid.Reason, func(c rune) bool { return c < ' ' || c > '~' || c == '"' || c == '\\' }) {
		t.Errorf("the reason %q is not a valid error_description", invalid.Reason)
	}
	for _, part := range strings.Split(raw, ".") {
		if len(part) > 20 && strings.Contains(err.Error(), part[:20]) {
			t.Errorf("the error contains a part of the token: %v", err)
		}
	}
	if len(err.Error()) > 500 {
		t.Errorf("the error is %d bytes long", len(err.Error()))
	}
}

func isInvalid(err error) (*bearer.InvalidTokenError, bool) {
	invalid, ok := err.(*bearer.InvalidTokenError)
	return invalid, ok
}

// logs is a log that can be read concurrently.
type logs struct{ testenv.Buffer }

// send sends a request with the Authorization headers to h.
func send(h http.Handler, target string, authorization ...string) *http.Response {
	r := httptest.NewRequestWithContext(context.Background(), "GET", cmp.Or(target, "/"), nil)
	for _, value := range authorization {
		r.Header.Add("Authorization", value)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func (l *logs) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// Helpers of the example.

func exampleIssuer() *http.Client { return &http.Client{Transport: newIssuer(ecKey().jwk())} }

func aliceToken() string { return ecKey().token() }

func call(h http.Handler, method, token string) {
	r := httptest.NewRequest(method, "/orders", nil)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	fmt.Println(method, w.Code, http.StatusText(w.Code))
}
