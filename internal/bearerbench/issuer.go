package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"time"
)

const (
	audience = "https://orders.example.com"
	scope    = "openid profile orders:read orders:write"
)

var algorithms = []string{"RS256", "PS256", "ES256", "EdDSA"}

// size is how much a token says.
type size int

const (
	small size = iota // the claims of most tokens
	large             // with a hundred groups
)

// issuer signs tokens and has its metadata and keys on the loopback interface.
type issuer struct {
	url   string
	keys  map[string]crypto.Signer // :: algorithm →
	first string                   // a valid token, to warm up with
	stop  func()
}

func newIssuer() *issuer {
	iss := &issuer{keys: map[string]crypto.Signer{
		"RS256": must(rsa.GenerateKey(rand.Reader, 2048)), "PS256": must(rsa.GenerateKey(rand.Reader, 2048)),
		"ES256": must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)),
	}}
	_, iss.keys["EdDSA"], _ = ed25519.GenerateKey(rand.Reader)
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	iss.url, iss.stop = server.URL, server.Close
	answer := func(v any) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Cache-Control", "max-age=3600")
			w.Write(must(json.Marshal(v)))
		}
	}
	var set []any
	for _, alg := range algorithms {
		set = append(set, jwkOf(alg, iss.keys[alg].Public()))
	}
	mux.HandleFunc("GET /keys", answer(map[string]any{"keys": set}))
	mux.HandleFunc("GET /.well-known/openid-configuration",
		answer(map[string]any{"issuer": iss.url, "jwks_uri": iss.url + "/keys"}))
	iss.first = iss.token("ES256", small, nil)
	return iss
}

func (iss *issuer) close() { iss.stop() }

func jwkOf(alg string, public crypto.PublicKey) map[string]any {
	key := map[string]any{"kid": "key-for-" + alg, "alg": alg, "use": "sig"}
	switch public := public.(type) {
	case *rsa.PublicKey:
		key["kty"], key["n"], key["e"] = "RSA", encode(public.N.Bytes()), encode(big.NewInt(int64(public.E)).Bytes())
	case *ecdsa.PublicKey:
		point := must(public.Bytes())
		key["kty"], key["crv"], key["x"], key["y"] = "EC", "P-256", encode(point[1:33]), encode(point[33:])
	case ed25519.PublicKey:
		key["kty"], key["crv"], key["x"] = "OKP", "Ed25519", encode(public)
	}
	return key
}

// token signs an access token of RFC 9068 with claims as providers write them.
func (iss *issuer) token(alg string, s size, edit map[string]any) string {
	now := time.Now()
	claims := map[string]any{
		"iss": iss.url, "aud": []string{audience, "account"}, "sub": "alice", "client_id": "spa", "azp": "spa",
		"scope": scope, "jti": rand.Text(),
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Hour).Unix(),
		"auth_time": now.Unix(), "acr": "1", "sid": rand.Text(),
		"name": "Alice Liddell", "email": "alice@example.com",
		"realm_access": map[string]any{"roles": []string{"user", "clerk", "offline_access"}},
	}
	if s == large {
		var groups []string
		for i := range 100 {
			groups = append(groups, fmt.Sprintf("/departments/%03d/cloakrooms", i))
		}
		claims["groups"] = groups
	}
	for name, value := range edit {
		claims[name] = value
	}
	header := map[string]any{"typ": "at+jwt", "alg": alg, "kid": "key-for-" + alg}
	input := encode(must(json.Marshal(header))) + "." + encode(must(json.Marshal(claims)))
	return input + "." + encode(sign(alg, iss.keys[alg], []byte(input)))
}

func sign(alg string, key crypto.Signer, input []byte) []byte {
	digest := sha256.Sum256(input)
	switch alg {
	case "RS256":
		return must(key.Sign(rand.Reader, digest[:], crypto.SHA256))
	case "PS256":
		options := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
		return must(key.Sign(rand.Reader, digest[:], options))
	case "ES256":
		r, s, err := ecdsa.Sign(rand.Reader, key.(*ecdsa.PrivateKey), digest[:])
		if err != nil {
			panic(err)
		}
		signature := make([]byte, 64)
		r.FillBytes(signature[:32])
		s.FillBytes(signature[32:])
		return signature
	default:
		return must(key.Sign(rand.Reader, input, crypto.Hash(0)))
	}
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
