package bff_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

func TestInvalidIDTokensFailTheLogin(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	for _, m := range brokertest.IDTokenFaults {
		t.Run(m.Name, func(t *testing.T) {
			b := a.signedIn()
			stranger := a.browser()
			u := stranger.AuthResponse("bob", "").Location(t)
			a.provider.Misbehave(t, m)
			wantPage(t, stranger.Navigate(u.String()), 502, "login_invalid")
			a.wantSession(stranger, "")

			// An existing session is kept.
			wantPage(t, b.SignIn("alice", "prompt=login"), 502, "login_invalid")
			a.wantSession(b, "alice")
			a.provider.Behave()
			wantStatus(t, "login after the fault", stranger.SignIn("bob", ""), 303)
		})
	}
}

func TestUnusualButValidIDTokensAreAccepted(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	for _, m := range brokertest.IDTokenOddities {
		t.Run(m.Name, func(t *testing.T) {
			a.provider.Misbehave(t, m)
			b := a.browser()
			if resp := b.SignIn("alice", ""); resp.StatusCode != 303 {
				t.Errorf("got %d, want 303:\n%s", resp.StatusCode, a.logs.lines(t, "request"))
			}
			a.wantSession(b, "alice")
		})
	}
}

func TestReplayedIDTokenIsRejected(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	a.signedIn()
	a.provider.Misbehave(t, brokertest.IDTokenReplayed(a.provider))
	b := a.browser()
	wantPage(t, b.SignIn("alice", ""), 502, "login_invalid")
	a.wantSession(b, "")
}

// These faults of a refreshed ID token say nothing about its subject, so they
// do not end the session.
func TestUnusableIDTokenOfRefreshKeepsSession(t *testing.T) {
	t.Parallel()
	for name, hooks := range map[string]devidp.Hooks{
		"a new algorithm that the cached metadata does not list": {
			SignIDToken: func(h, c map[string]any) (string, error) {
				h["alg"] = "ES256"
				input, err := devidp.SigningInput(h, c)
				return input + "." + strings.Repeat("A", 86), err
			}},
		"nbf ten minutes in the future": {
			EditIDToken: func(_, c map[string]any) { c["nbf"] = time.Now().Add(10 * time.Minute).Unix() },
		},
		"claims of 70 KB": {EditIDToken: func(_, c map[string]any) { c["groups"] = strings.Repeat("x", 70<<10) }},
	} {
		t.Run(name, func(t *testing.T) {
			a := newApp(t, nil)
			b := a.signedIn()
			a.recordCalls(hooks)
			if resp := b.Fetch("POST", "/bff/session/refresh"); resp.StatusCode == 401 {
				t.Errorf("refresh: got 401 %s, want another status", resp.Code())
			}
			a.wantSession(b, "alice")
		})
	}
}

// OpenID Connect Core 12.2: the nonce of a refreshed ID token is absent or that
// of the login. It may be absent once and present the next time.
func TestRefreshedIDTokenMayRepeatTheNonce(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	var mu sync.Mutex
	var nonce any
	refreshes := 0
	a.recordCalls(devidp.Hooks{EditIDToken: func(_, claims map[string]any) {
		mu.Lock()
		defer mu.Unlock()
		if claims["nonce"] != nil {
			nonce = claims["nonce"]
		} else if refreshes++; refreshes == 2 {
			claims["nonce"] = nonce
		}
	}})
	b := a.signedIn()
	for i := range 2 {
		if resp := b.Fetch("POST", "/bff/session/refresh"); resp.StatusCode != 200 {
			t.Errorf("refresh %d: got %d %s, want 200", i+1, resp.StatusCode, resp.Code())
		}
	}
	a.wantSession(b, "alice")
}

// OpenID Connect Core 12.2: auth_time is the time of the login. A value that
// moves with each refresh must not satisfy a route that requires a recent one.
func TestRefreshDoesNotRenewAuthTime(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Routes[0].Require.MaxAge = time.Minute })
	a.recordCalls(devidp.Hooks{EditIDToken: func(_, claims map[string]any) {
		if claims["nonce"] != nil {
			claims["auth_time"] = time.Now().Add(-time.Hour).Unix()
		} else {
			claims["auth_time"], claims["acr"] = time.Now().Unix(), "gold"
		}
	}})
	b := a.signedIn()
	wantProblem(t, b.Fetch("GET", "/api/x"), 401, "insufficient_user_authentication")
	b.Fetch("POST", "/bff/session/refresh")
	if got := b.Fetch("GET", "/api/x").StatusCode; got != 401 {
		t.Errorf("after a refresh without a login: got %d, want 401", got)
	}
}

// signedByHMAC signs with HS256 and the key.
func signedByHMAC(key []byte) func(header, claims map[string]any) (string, error) {
	return func(header, claims map[string]any) (string, error) {
		header["alg"] = "HS256"
		input, err := devidp.SigningInput(header, claims)
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(input))
		return input + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil)), err
	}
}

// withoutSignature leaves the signature empty and names the algorithm none.
func withoutSignature(header, claims map[string]any) (string, error) {
	header["alg"] = "none"
	input, err := devidp.SigningInput(header, claims)
	return input + ".", err
}

// RFC 8725 3.1, 3.2: none and HMAC are rejected even if the metadata lists
// them.
func TestNoneAndHMACAreRejectedEvenIfListed(t *testing.T) {
	t.Parallel()
	for name, listed := range map[string]any{
		"with RS256": []string{"none", "HS256", "RS256"},
		"alone":      []string{"none", "HS256"},
		"absent":     nil,
	} {
		t.Run(name, func(t *testing.T) {
			a := newApp(t, func(a *app, _ *bff.Config) {
				a.provider.Misbehave(t, brokertest.Discovery("", func(m map[string]any) {
					if m["id_token_signing_alg_values_supported"] = listed; listed == nil {
						delete(m, "id_token_signing_alg_values_supported")
					}
				}))
			})
			a.waitReady()
			for _, sign := range []func(h, c map[string]any) (string, error){
				withoutSignature, signedByHMAC([]byte(a.provider.Client.Secret)),
			} {
				a.recordCalls(devidp.Hooks{SignIDToken: sign})
				wantPage(t, a.browser().SignIn("alice", ""), 502, "login_invalid")
			}
			a.provider.Behave()
			wantStatus(t, "login with RS256, the default (Core 2)", a.browser().SignIn("alice", ""), 303)
		})
	}
}

// OpenID Connect Core 3.1.3.6: at_hash uses the hash function of the algorithm
// that signs the ID token.
func TestAtHashUsesTheHashOfTheSignature(t *testing.T) {
	t.Parallel()
	ec384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	short := func(token string) []byte { sum := sha256.Sum256([]byte(token)); return sum[:16] }
	middle := func(token string) []byte { sum := sha512.Sum384([]byte(token)); return sum[:24] }
	long := func(token string) []byte { sum := sha512.Sum512([]byte(token)); return sum[:32] }
	rs := rsaKey(t, 2048)
	for _, test := range []struct {
		alg   jose.SignatureAlgorithm
		key   crypto.Signer
		right func(token string) []byte
		wrong func(token string) []byte
	}{
		{jose.RS256, rs, short, long}, {jose.PS256, rs, short, middle}, {jose.ES256, ecKey(t), short, long},
		{jose.RS384, rs, middle, short}, {jose.ES384, ec384, middle, long},
		{jose.PS512, rs, long, short}, {jose.EdDSA, edKey(t), long, short},
	} {
		t.Run(string(test.alg), func(t *testing.T) {
			keys := func(set map[string]any) {
				set["keys"] = []any{jose.JSONWebKey{Key: test.key.Public(), KeyID: "k", Use: "sig"}}
			}
			a := newApp(t, func(a *app, _ *bff.Config) {
				a.provider.Misbehave(t, brokertest.Discovery("", func(m map[string]any) {
					m["id_token_signing_alg_values_supported"] = []string{string(test.alg)}
				}))
			})
			a.waitReady()
			for _, hash := range []func(string) []byte{
				test.right,
				test.wrong,
				func(token string) []byte { return test.right(token + "x") },
			} {
				var access string
				a.recordCalls(devidp.Hooks{
					EditJWKS: keys,
					SignAccessToken: func(h, c map[string]any) (string, error) {
						var err error
						access, err = a.provider.Sign(h, c)
						return access, err
					},
					EditIDToken: func(_, claims map[string]any) {
						claims["at_hash"] = base64.RawURLEncoding.EncodeToString(hash(access))
					},
					SignIDToken: func(_, claims map[string]any) (string, error) {
						return signJWT(test.alg, test.key, "k", claims)
					},
				})
				good := string(hash("a")) == string(test.right("a"))
				if resp := a.browser().SignIn("alice", ""); (resp.StatusCode == 303) != good {
					t.Errorf("login with a correct at_hash (%v): got %d, want 303: %v", good, resp.StatusCode, good)
				}
			}
		})
	}
}

// signJWT returns a JWT with the claims, signed with key.
func signJWT(alg jose.SignatureAlgorithm, key any, kid string, claims map[string]any) (string, error) {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key},
		new(jose.SignerOptions).WithHeader("kid", kid).WithType("JWT"))
	if err != nil {
		return "", err
	}
	jws, err := signer.Sign(must(json.Marshal(claims)))
	if err != nil {
		return "", err
	}
	return jws.CompactSerialize()
}

// RFC 8725 3.10, Core 5.6.2: the broker fetches neither the keys nor the claims
// that a token points to.
func TestURLsInTokensAreNotFetched(t *testing.T) {
	t.Parallel()
	key := rsaKey(t, 2048)
	cert := certificate(t, key)
	var fetched atomic.Int32
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fetched.Add(1)
		w.Header().Set("Content-Type", "application/json")
		w.Write(must(json.Marshal(jose.JSONWebKeySet{
			Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k", Use: "sig"}},
		})))
	}))
	defer web.Close()
	a := newApp(t, nil)
	for name, value := range map[string]any{
		"jku": web.URL, "x5u": web.URL,
		"jwk": jose.JSONWebKey{Key: key.Public(), KeyID: "k", Use: "sig"},
		"x5c": []string{base64.StdEncoding.EncodeToString(cert.Certificate[0])},
	} {
		forge := func(header, claims map[string]any) (string, error) {
			header["alg"], header["kid"], header[name] = "RS256", "k", value
			input, err := devidp.SigningInput(header, claims)
			if err != nil {
				return "", err
			}
			sum := sha256.Sum256([]byte(input))
			signature, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, sum[:])
			return input + "." + base64.RawURLEncoding.EncodeToString(signature), err
		}
		a.recordCalls(devidp.Hooks{SignIDToken: forge})
		wantPage(t, a.browser().SignIn("alice", ""), 502, "login_invalid")
		a.provider.Behave()
		b := a.signedIn()
		token := a.logoutToken("alice", "", devidp.Hooks{SignLogoutToken: forge})
		wantRefused(t, name, a.sendLogoutToken(url.Values{"logout_token": {token}}), "bad_logout_token")
		a.wantSession(b, "alice")
	}
	a.recordCalls(devidp.Hooks{EditIDToken: func(header, claims map[string]any) {
		header["jku"], header["x5u"] = web.URL, web.URL // the signature is valid
		claims["_claim_names"] = map[string]any{"address": "src"}
		claims["_claim_sources"] = map[string]any{"src": map[string]any{"endpoint": web.URL, "access_token": "x"}}
	}})
	got := user(t, a.signedIn())
	for _, name := range []string{"address", "_claim_sources"} {
		if got[name] != nil {
			t.Errorf("claim %s: got %v, want none", name, got[name])
		}
	}
	if n := fetched.Load(); n > 0 {
		t.Errorf("%d requests to URLs in tokens, want none", n)
	}
}

// RFC 7519 2: a NumericDate is a number, so exp as a string is rejected.
func TestExpAsStringIsRejected(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	quoted := func(_, claims map[string]any) { claims["exp"] = fmt.Sprint(claims["exp"]) }
	b := a.signedIn()
	a.recordCalls(devidp.Hooks{EditIDToken: quoted})
	wantPage(t, a.browser().SignIn("alice", ""), 502, "login_invalid")
	a.provider.Behave()
	token := a.logoutToken("alice", "", devidp.Hooks{EditLogoutToken: quoted})
	wantRefused(t, "a logout token", a.sendLogoutToken(url.Values{"logout_token": {token}}), "bad_logout_token")
	a.wantSession(b, "alice")
}
