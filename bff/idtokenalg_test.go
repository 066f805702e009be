package bff_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"net/url"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

// An algorithm that the client is not registered for is rejected, even if the
// provider lists it and publishes keys for it.
func TestIDTokenAlgorithmCanBePinned(t *testing.T) {
	t.Parallel()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	es256 := func(header, claims map[string]any) (string, error) {
		header["alg"], header["kid"] = "ES256", "ec"
		input, err := devidp.SigningInput(header, claims)
		if err != nil {
			return "", err
		}
		sum := sha256.Sum256([]byte(input))
		r, s, err := ecdsa.Sign(rand.Reader, ec, sum[:])
		if err != nil {
			return "", err
		}
		signature := append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
		return input + "." + base64.RawURLEncoding.EncodeToString(signature), nil
	}
	both := devidp.Hooks{
		EditDiscovery: func(m map[string]any) {
			m["id_token_signing_alg_values_supported"] = []string{"RS256", "PS256", "ES256"}
		},
		EditJWKS: func(set map[string]any) {
			set["keys"] = append(set["keys"].([]any), jose.JSONWebKey{Key: ec.Public(), KeyID: "ec", Use: "sig"})
		},
	}
	for _, test := range []struct {
		pinned string
		good   map[string]bool // keyed by the algorithm of the token
	}{
		{"", map[string]bool{"RS256": true, "ES256": true}},
		{"RS256", map[string]bool{"RS256": true}},
		{"ES256", map[string]bool{"ES256": true}},
		{"PS256", map[string]bool{}},
	} {
		t.Run("pinned "+test.pinned, func(t *testing.T) {
			t.Parallel()
			a := newAppWith(t, func(c *devidp.Config) {
				c.Clients[0].SignedUserInfo = true
			}, func(a *app, cfg *bff.Config) {
				cfg.Provider.IDTokenAlg = test.pinned
				a.provider.SetHooks(both)
			})
			signers := map[string]func(header, claims map[string]any) (string, error){"RS256": nil, "ES256": es256}
			for alg, sign := range signers {
				hooks := both
				hooks.SignIDToken = sign
				a.recordCalls(hooks)
				b := a.browser()
				resp := b.SignIn("alice", "")
				if test.good[alg] {
					if resp.StatusCode != 303 {
						t.Errorf("an ID token with %s: got %d, want 303", alg, resp.StatusCode)
					}
				} else {
					wantPage(t, resp, 502, "login_invalid")
				}
				token := a.logoutToken("carol", "", devidp.Hooks{SignLogoutToken: sign})
				a.recordCalls(both) // the provider's keys
				got := a.sendLogoutToken(url.Values{"logout_token": {token}}).StatusCode
				if (got == 200) != test.good[alg] {
					t.Errorf("a logout token with %s: got %d", alg, got)
				}
			}
		})
		t.Run("userinfo, pinned "+test.pinned, func(t *testing.T) {
			t.Parallel()
			a := newAppWith(t, func(c *devidp.Config) {
				c.Clients[0].SignedUserInfo = true
			}, func(a *app, cfg *bff.Config) {
				cfg.Provider.IDTokenAlg, cfg.Provider.UserInfo = test.pinned, true
				a.provider.SetHooks(both)
			})
			hooks := both
			if test.pinned == "ES256" {
				hooks.SignIDToken = es256
			}
			a.recordCalls(hooks) // userinfo is signed with RS256
			if got := a.browser().SignIn("alice", "").StatusCode; (got == 303) != test.good["RS256"] {
				t.Errorf("got %d", got)
			}
		})
	}
	t.Run("a refresh with another algorithm keeps the session, but not the ID token", func(t *testing.T) {
		t.Parallel()
		a := newApp(t, func(a *app, cfg *bff.Config) {
			cfg.Provider.IDTokenAlg = "RS256"
			a.provider.SetHooks(both)
		})
		b := a.signedIn()
		hooks := both
		hooks.SignIDToken = es256
		a.recordCalls(hooks)
		wantOK(t, b.Fetch("POST", "/bff/session/refresh"))
		a.wantSession(b, "alice")
		if n := len(a.logs.lines(t, "ID token of a refresh not verified; the one before is kept")); n != 1 {
			t.Errorf("%d warnings", n)
		}
	})
}

func TestNoneAndHMACCannotBePinned(t *testing.T) {
	t.Parallel()
	for _, alg := range []string{
		"none", "None", "HS256", "HS512", "rs256", "RS256 ", "RS1", "dir", "ES256K", "ML-DSA-65",
		"RS256,ES256",
	} {
		_, err := bff.New(bff.Config{PublicURL: "https://app.example", Provider: bff.ProviderConfig{
			Issuer: "https://id.example", ClientID: "spa", ClientSecret: "x", IDTokenAlg: alg,
		}})
		switch {
		case err == nil:
			t.Errorf("%q: error is missing", alg)
		case !strings.Contains(err.Error(), "Provider.IDTokenAlg: "):
			t.Errorf("%q: err.Error(): got %q, want it to contain Provider.IDTokenAlg: ", alg, err.Error())
		case !strings.Contains(err.Error(), alg):
			t.Errorf("%q: err.Error(): got %q, want it to contain %q", alg, err.Error(), alg)
		}
	}
	for alg, good := range map[string]bool{
		"RS256":   false,
		"ES384":   false,
		"PS256":   true,
		"ES256":   true,
		"EdDSA":   true,
		"Ed25519": true,
	} {
		_, err := bff.New(bff.Config{PublicURL: "https://app.example", Provider: bff.ProviderConfig{
			Issuer: "https://id.example", ClientID: "spa", ClientAuth: "private_key_jwt",
			ClientKeys: []crypto.Signer{ecKey(t)}, FAPI2: true, IDTokenAlg: alg,
		}})
		if bad := err != nil && strings.Contains(err.Error(), "IDTokenAlg"); bad == good {
			t.Errorf("FAPI 2.0 with %s: got %v", alg, err)
		}
	}
}

func TestProviderWithoutThePinnedAlgorithmIsLogged(t *testing.T) {
	t.Parallel()
	pinned := func(list any) *app {
		return newApp(t, func(a *app, cfg *bff.Config) {
			cfg.Provider.IDTokenAlg = "ES256"
			a.provider.Misbehave(t, brokertest.Discovery("", func(m map[string]any) {
				m["id_token_signing_alg_values_supported"] = list
			}))
		})
	}
	a := pinned([]string{"RS256", "PS256"})
	waitFor(t, "the problem is logged", func() bool {
		return strings.Contains(a.logs.String(),
			`does not sign ID tokens with ES256, only with [\"RS256\" \"PS256\"] (check oidc.id_token_alg)`)
	})
	wantPage(t, a.browser().Navigate("/bff/login"), 503, "provider_unavailable")
	for _, list := range []any{nil, 7, []string{}} { // the metadata has no such member
		pinned(list).waitReady()
	}
}
