package sampleapi_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/cloakroom-bff/cloakroom/internal/sampleapi"
)

// api is the sample API with an issuer of its own.
type api struct {
	t       *testing.T
	issuer  string
	signer  jose.Signer
	handler http.Handler
}

func newAPI(t *testing.T) *api {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key := jose.JSONWebKey{Key: private, KeyID: "1"}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: key},
		new(jose.SignerOptions).WithType("at+jwt"))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(map[string]string{"issuer": server.URL, "jwks_uri": server.URL + "/keys"})
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: public, KeyID: "1"}}})
	})
	handler, err := sampleapi.New(sampleapi.Config{Issuer: server.URL, Audience: "api",
		Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return &api{t, server.URL, signer, handler}
}

// token returns a token of alice with the scope, and more claims over those it
// has.
func (a *api) token(scope string, more map[string]any) string {
	a.t.Helper()
	now := time.Now()
	raw, err := jwt.Signed(a.signer).Claims(map[string]any{
		"iss": a.issuer, "aud": "api", "sub": "alice", "client_id": "spa", "jti": "id-1", "scope": scope,
		"iat": now.Unix(), "exp": now.Add(time.Minute).Unix(),
	}).Claims(more).Serialize()
	if err != nil {
		a.t.Fatal(err)
	}
	return raw
}

// call sends a request, and checks what holds for every answer.
func (a *api) call(method, path, token string) (status int, answer map[string]any, header http.Header) {
	a.t.Helper()
	r := httptest.NewRequest(method, path, nil)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	w := httptest.NewRecorder()
	a.handler.ServeHTTP(w, r)
	body := w.Body.String()
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		a.t.Errorf("%s %s: got %q, want JSON", method, path, body)
	}
	if got := w.Header().Get("Cache-Control"); got != "no-store" {
		a.t.Errorf("%s %s: got Cache-Control %q, want no-store", method, path, got)
	}
	for part := range strings.SplitSeq(token, ".") {
		if token != "" && strings.Contains(body, part) {
			a.t.Errorf("%s %s: the answer has a part of the token: %s", method, path, body)
		}
	}
	return w.Code, answer, w.Header()
}

func TestWhoIsAllowedWhat(t *testing.T) {
	a := newAPI(t)
	for _, test := range []struct {
		method, path, token string
		status              int
	}{
		{"GET", "/api/me", "", 401},
		{"GET", "/api/me", a.token("", nil), 200},
		{"GET", "/api/me", a.token("", map[string]any{"client_id": "alice"}), 403}, // a client of the user's name
		{"GET", "/api/me", a.token("", map[string]any{"name": 1}), 403},
		{"GET", "/api/me", a.token("", map[string]any{"aud": "other"}), 401},
		{"POST", "/api/me", a.token("", nil), 405},
		{"GET", "/api/orders", "", 401},
		{"GET", "/api/orders", a.token("orders:write", nil), 403},
		{"GET", "/api/orders", a.token("openid orders:read", nil), 200},
		{"GET", "/api/admin", a.token("openid orders:read", nil), 403},
		{"GET", "/api/admin", a.token("admin", nil), 200},
		{"GET", "/public/time", "", 200},
		{"GET", "/public/time", "no-token-at-all", 200},
		{"GET", "/api/nothing", a.token("", nil), 404},
		{"GET", "/", "", 404},
	} {
		status, answer, _ := a.call(test.method, test.path, test.token)
		if status != test.status {
			t.Errorf("%s %s: got %d, %v, want %d", test.method, test.path, status, answer, test.status)
		}
	}
}

func TestMeSaysWhoTheTokenIsFor(t *testing.T) {
	a := newAPI(t)
	for greeting, claims := range map[string]map[string]any{
		"Hello, Alice": {"name": "Alice", "preferred_username": "al"},
		"Hello, al":    {"preferred_username": "al"},
		"Hello, alice": nil,
	} {
		_, answer, _ := a.call("GET", "/api/me", a.token("openid orders:read", claims))
		if answer["message"] != greeting || answer["sub"] != "alice" ||
			answer["scope"] != "openid orders:read" || answer["token_id"] != "id-1" {
			t.Errorf("got %v, want %s and the claims of the token", answer, greeting)
		}
		issued, err1 := time.Parse(time.RFC3339, answer["token_issued_at"].(string))
		expires, err2 := time.Parse(time.RFC3339, answer["token_expires_at"].(string))
		if err1 != nil || err2 != nil || expires.Sub(issued) != time.Minute {
			t.Errorf("got issued at %v, expires at %v, want a minute between",
				answer["token_issued_at"], answer["token_expires_at"])
		}
	}
}

func TestThePublicPathSaysWhetherATokenCameAlong(t *testing.T) {
	a := newAPI(t)
	if _, answer, _ := a.call("GET", "/public/time", ""); answer["authorization_seen"] != false {
		t.Errorf("got %v without a token", answer)
	}
	if _, answer, _ := a.call("GET", "/public/time", a.token("", nil)); answer["authorization_seen"] != true {
		t.Errorf("got %v with a token", answer)
	}
}

func TestARefusalSaysWhichScopeIsNeeded(t *testing.T) {
	a := newAPI(t)
	_, _, header := a.call("GET", "/api/admin", a.token("orders:read", nil))
	if got := header.Get("WWW-Authenticate"); !strings.Contains(got, `error="insufficient_scope"`) ||
		!strings.Contains(got, `scope="admin"`) {
		t.Errorf("got %s", got)
	}
}

func TestTheConfigurationIsChecked(t *testing.T) {
	_, err := sampleapi.New(sampleapi.Config{})
	if err == nil || !strings.Contains(err.Error(), "Issuer") || !strings.Contains(err.Error(), "Audience") {
		t.Errorf("got %v, want the issuer and the audience reported", err)
	}
}
