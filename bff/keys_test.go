package bff_test

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// withJunkKeys publishes JSON values before and after the provider's keys.
func withJunkKeys(junk ...string) devidp.Hooks {
	return devidp.Hooks{EditJWKS: func(set map[string]any) {
		var all []any
		for _, j := range junk {
			all = append(all, json.RawMessage(j))
		}
		good := set["keys"].([]any)
		set["keys"] = append(append(append([]any{}, all...), good...), all...)
	}}
}

// RFC 7517, section 5: unknown, incomplete or out-of-range keys are ignored,
// and the others are used.
func TestUnusableKeysAreIgnored(t *testing.T) {
	t.Parallel()
	secret := strings.Repeat("c2VjcmV0", 20)
	for name, junk := range map[string]string{
		"RSA without a modulus":     `{"kty":"RSA","kid":"old","use":"sig"}`,
		"RSA with an empty modulus": `{"kty":"RSA","kid":"old","n":"","e":"AQAB"}`,
		"RSA that is no base64url":  `{"kty":"RSA","kid":"old","n":"***","e":"AQAB"}`,
		"RSA of 1024 bits":          `{"kty":"RSA","kid":"old","n":"` + strings.Repeat("_", 171) + `","e":"AQAB"}`,
		"secp256k1 without alg":     `{"kty":"EC","crv":"secp256k1","kid":"k1","x":"AAAA","y":"AAAA"}`,
		"a point that is off the curve": `{"kty":"EC","crv":"P-256","kid":"p","x":"` +
			strings.Repeat("A", 43) + `","y":"` + strings.Repeat("A", 43) + `"}`,
		"EC without a curve":             `{"kty":"EC","kid":"p","x":"AAAA","y":"AAAA"}`,
		"Ed448":                          `{"kty":"OKP","crv":"Ed448","kid":"o","x":"AAAA"}`,
		"an unknown key type":            `{"kty":"AKP","alg":"ML-DSA-65","kid":"pq","pub":"AAAA"}`,
		"a shared secret":                `{"kty":"oct","kid":"s","k":"` + secret + `"}`,
		"a private key":                  `{"kty":"RSA","kid":"d","n":"AQAB","e":"AQAB","d":"` + secret + `"}`,
		"a key for encryption":           `{"kty":"RSA","kid":"e","use":"enc","n":"AQAB","e":"AQAB"}`,
		"an empty object":                `{}`,
		"null":                           `null`,
		"a number":                       `7`,
		"a string":                       `"key"`,
		"a list":                         `[]`,
		"kty that is a number":           `{"kty":7}`,
		"kid that is a number":           `{"kty":"RSA","kid":7,"n":"AQAB","e":"AQAB"}`,
		"a member that is there twice":   `{"kty":"RSA","kty":"EC","kid":"t"}`,
		"a certificate that is none":     `{"kty":"RSA","kid":"x","x5c":["AAAA"],"n":"AQAB","e":"AQAB"}`,
		"a key with a member in another": `{"KTY":"RSA","kid":"x","n":"AQAB","e":"AQAB"}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newApp(t, nil)
			a.recordCalls(withJunkKeys(junk))
			a.signedIn()
			if strings.Contains(a.logs.String(), secret[:20]) {
				t.Error("the log contains key material")
			}
		})
	}
	t.Run("no key is left", func(t *testing.T) {
		t.Parallel()
		a := newApp(t, nil)
		a.recordCalls(devidp.Hooks{EditJWKS: func(set map[string]any) {
			var all []any
			for i := range 50 {
				all = append(all,
					json.RawMessage(fmt.Sprintf(`{"kty":"RSA","kid":"old%d","use":"sig","n":"%s"}`, i, secret)))
			}
			set["keys"] = all
		}})
		wantPage(t, a.browser().SignIn("alice", ""), 503, "provider_unavailable")
		for _, line := range a.logs.lines(t, "request") {
			if text := fmt.Sprint(line["err"]); strings.Contains(text, secret[:20]) || len(text) > 1000 {
				t.Errorf("length of the log line: got %d bytes: %s", len(text), text)
			}
		}
	})
}

// An unknown key does not affect the user: the new tokens are used, and the
// previous ID token is kept.
func TestRefreshedIDTokenOfUnknownKeyKeepsSession(t *testing.T) {
	t.Parallel()
	unknown := func(header, _ map[string]any) { header["kid"] = rand.Text() }
	jwks := func(serve http.HandlerFunc) func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if strings.HasSuffix(r.URL.Path, "/jwks") {
				serve(w, r)
				return
			}
			next.ServeHTTP(w, r)
		}
	}
	respond := func(status int, body string) func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		return jwks(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			fmt.Fprint(w, body)
		})
	}
	for name, hooks := range map[string]devidp.Hooks{
		"a kid that is not listed": {EditIDToken: unknown},
		"an empty kid": {
			EditIDToken: func(header, claims map[string]any) { unknown(header, claims); header["kid"] = " " },
		},
		"no keys": {
			EditIDToken: unknown,
			EditJWKS:    func(set map[string]any) { set["keys"] = []any{} },
		},
		"keys that are null": {EditIDToken: unknown, EditJWKS: func(set map[string]any) { set["keys"] = nil }},
		"no member keys": {
			EditIDToken: unknown,
			EditJWKS:    func(set map[string]any) { delete(set, "keys") },
		},
		"keys of no use": {
			EditIDToken: unknown,
			EditJWKS:    func(set map[string]any) { set["keys"] = []any{map[string]any{"kty": "oct", "k": "AAAA"}} },
		},
		"503":  {EditIDToken: unknown, Intercept: respond(503, "down")},
		"404":  {EditIDToken: unknown, Intercept: respond(404, "{}")},
		"HTML": {EditIDToken: unknown, Intercept: respond(200, "<html>")},
		"a connection that breaks": {
			EditIDToken: unknown,
			Intercept:   jwks(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }),
		},
		"a redirect": {
			EditIDToken: unknown,
			Intercept: jwks(func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "/elsewhere", http.StatusFound)
			}),
		},
		"another sub, unknown kid": {
			EditIDToken: func(header, claims map[string]any) { unknown(header, claims); claims["sub"] = "bob" },
		},
		"another iss, unknown kid": {
			EditIDToken: func(header, claims map[string]any) {
				unknown(header, claims)
				claims["iss"] = "https://evil.example"
			},
		},
		"a nonce of no login, ditto": {
			EditIDToken: func(header, claims map[string]any) { unknown(header, claims); claims["nonce"] = "x" },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newApp(t, nil)
			b := a.signedIn()
			hint := func() string {
				return b.Submit("/bff/logout", nil).Location(t).Query().Get("id_token_hint")
			}
			a.recordCalls(hooks)
			for range 5 { // as many as may be forced
				wantOK(t, b.Fetch("POST", "/bff/session/refresh"))
			}
			a.wantSession(b, "alice")
			if n := len(a.logs.lines(t, "ID token of a refresh not verified; the one before is kept")); n != 5 {
				t.Errorf("%d warnings for 5 refreshes", n)
			}
			a.provider.Behave()
			a.logs.wantNo(t, "tokens of a response that is not trusted not revoked")
			if hint() == "" {
				t.Error("the previous ID token is lost")
			}
		})
	}
}

// wantNo fails the test if a log line has the message.
func (b *buffer) wantNo(t *testing.T, msg string) {
	t.Helper()
	if lines := b.lines(t, msg); len(lines) > 0 {
		t.Errorf("log: %v", lines[0])
	}
}

// A key set that cannot be fetched, or is empty, is an outage: the token is not
// judged.
func TestLoginWithoutVerificationKeysIs503(t *testing.T) {
	t.Parallel()
	for name, hooks := range map[string]devidp.Hooks{
		"503": {Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if strings.HasSuffix(r.URL.Path, "/jwks") {
				http.Error(w, "down", http.StatusServiceUnavailable)
				return
			}
			next.ServeHTTP(w, r)
		}},
		"no response": {Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if strings.HasSuffix(r.URL.Path, "/jwks") {
				panic(http.ErrAbortHandler)
			}
			next.ServeHTTP(w, r)
		}},
		"no keys": {EditJWKS: func(set map[string]any) { set["keys"] = []any{} }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newApp(t, nil)
			a.recordCalls(hooks)
			b := a.browser()
			for range 5 {
				resp := b.SignIn("alice", "")
				wantPage(t, resp, 503, "provider_unavailable")
				if resp.Header.Get("Retry-After") == "" {
					t.Error("no Retry-After")
				}
			}
			a.wantSession(b, "")
			a.provider.Behave()
			waitFor(t, "the provider has recovered", func() bool { return b.SignIn("alice", "").StatusCode == 303 })
		})
	}
}

// A provider may reuse the kid of an old key for a new one.
func TestKeyMayBeReplacedUnderItsKid(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	rotated := a.renamedKeys("the-key")
	a.recordCalls(rotated)
	b := a.signedIn()
	other, sid := b, ""
	for range 2 {
		if err := a.provider.RotateKeys(); err != nil {
			t.Fatal(err)
		}
		wantOK(t, b.Fetch("POST", "/bff/session/refresh"))
	}
	a.logs.wantNo(t, "ID token of a refresh not verified; the one before is kept")
	hooks := rotated
	hooks.EditIDToken = func(header, claims map[string]any) {
		rotated.EditIDToken(header, claims)
		sid, _ = claims["sid"].(string)
	}
	a.recordCalls(hooks)
	other = a.signedIn()
	if err := a.provider.RotateKeys(); err != nil {
		t.Fatal(err)
	}
	token := a.logoutToken("", sid, rotated)
	a.recordCalls(rotated)
	if resp := a.sendLogoutToken(url.Values{"logout_token": {token}}); resp.StatusCode != 200 {
		t.Errorf("logout: got %d %s, want 200", resp.StatusCode, resp.Text)
	}
	a.wantSession(other, "")
	a.wantSession(b, "alice")
}

// ID tokens come from the provider itself, so that one that rotates its keys
// again and again, as after a leak, gets a fetch for each key.
func TestKeysMayBeRotatedInARow(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	a.recordCalls(a.renamedKeys("the-key"))
	for range 6 { // the first one fetches the keys anyway
		if err := a.provider.RotateKeys(); err != nil {
			t.Fatal(err)
		}
		if resp := a.browser().SignIn("alice", ""); resp.StatusCode != 303 {
			t.Errorf("login after a rotation: got %d, want 303", resp.StatusCode)
		}
	}
}

// renamedKeys makes the provider publish its newest key only, and sign with it,
// under the kid.
func (a *app) renamedKeys(kid string) devidp.Hooks {
	rename := func(header, _ map[string]any) { header["kid"] = kid }
	return devidp.Hooks{EditIDToken: rename, EditLogoutToken: rename, EditJWKS: func(set map[string]any) {
		key := set["keys"].([]any)[0].(jose.JSONWebKey)
		key.KeyID = kid
		set["keys"] = []any{key}
	}}
}

// Any client can send logout tokens with made-up key ids. They must neither
// delay the keys for a genuine token nor cause unlimited fetches.
func TestJunkLogoutTokensDoNotBlockAGenuineOne(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	a := newApp(t, nil)
	b, sid := a.signedInWithSID()
	other, otherSID := a.signedInWithSID()
	junk := func() {
		token := a.logoutToken("alice", "", devidp.Hooks{
			EditLogoutToken: func(header, _ map[string]any) { header["kid"] = rand.Text() },
		})
		if got := a.sendLogoutToken(url.Values{"logout_token": {token}}).StatusCode; got != 400 {
			t.Errorf("junk: got %d, want 400", got)
		}
	}
	before, began := a.provider.JWKSFetches(), time.Now()
	every := time.NewTicker(time.Second)
	defer every.Stop()
	for i, genuine := range []struct {
		b   *bfftest.Browser
		sid string
	}{{b, sid}, {other, otherSID}} {
		for range 3 {
			junk()
			<-every.C
		}
		junk()
		if err := a.provider.RotateKeys(); err != nil {
			t.Fatal(err)
		}
		resp := a.sendLogoutToken(url.Values{"logout_token": {a.logoutToken("", genuine.sid, devidp.Hooks{})}})
		if resp.StatusCode != 200 {
			t.Errorf("genuine token %d: got %d %s, want 200", i+1, resp.StatusCode, resp.Text)
		}
		a.wantSession(genuine.b, "")
	}
	bound := 4 + int(time.Since(began)/(700*time.Millisecond))
	if n := a.provider.JWKSFetches() - before; n > bound {
		t.Errorf("%d fetches of the key set, want at most %d", n, bound)
	}
	if err := a.provider.RotateKeys(); err != nil {
		t.Fatal(err)
	}
	junk()
	a.signedIn() // its ID token is signed with the new key too
}

// A refresh of the metadata keeps the cached keys and the limit of fetches for
// unknown keys.
func TestKeysOutliveTheMetadata(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b, sid := a.signedInWithSID()
	before := a.provider.JWKSFetches()
	for range 3 {
		if err := a.server.Rediscover(t.Context()); err != nil {
			t.Fatal(err)
		}
		a.signedIn()
	}
	if n := a.provider.JWKSFetches() - before; n != 0 {
		t.Errorf("%d fetches of the key set, want none", n)
	}
	junk := func() {
		token := a.logoutToken("alice", "", devidp.Hooks{
			EditLogoutToken: func(header, _ map[string]any) { header["kid"] = rand.Text() },
		})
		a.sendLogoutToken(url.Values{"logout_token": {token}})
	}
	began := time.Now()
	for range 10 {
		junk()
		if err := a.server.Rediscover(t.Context()); err != nil {
			t.Fatal(err)
		}
		got := a.sendLogoutToken(url.Values{"logout_token": {a.logoutToken("carol", "", devidp.Hooks{})}}).StatusCode
		if got != 200 {
			t.Errorf("genuine logout token after a metadata refresh: got %d, want 200", got)
		}
	}
	if n, bound := a.provider.JWKSFetches()-before, 4+int(time.Since(began)/(700*time.Millisecond)); n > bound {
		t.Errorf("%d fetches of the key set, want at most %d", n, bound)
	}
	got := a.sendLogoutToken(url.Values{"logout_token": {a.logoutToken("", sid, devidp.Hooks{})}}).StatusCode
	if got != 200 {
		t.Errorf("got %d, want 200", got)
	}
	a.wantSession(b, "")

	// Another jwks_uri has other keys.
	a.recordCalls(devidp.Hooks{
		EditDiscovery: func(m map[string]any) { m["jwks_uri"] = fmt.Sprint(m["jwks_uri"], "?v=2") },
	})
	before = a.provider.JWKSFetches()
	if err := a.server.Rediscover(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.signedIn()
	if n := a.provider.JWKSFetches() - before; n != 1 {
		t.Errorf("%d fetches of the key set at its new URL, want 1", n)
	}
}

// An invalid logout token is rejected before any key is fetched.
func TestInvalidLogoutTokenFetchesNoKeys(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	before := a.provider.JWKSFetches()
	for _, edit := range []func(claims map[string]any){
		func(c map[string]any) { c["iss"] = "https://evil.example" },
		func(c map[string]any) { c["aud"] = "other" },
		func(c map[string]any) { delete(c, "events") },
		func(c map[string]any) { delete(c, "jti") },
		func(c map[string]any) { c["iat"] = 1 },
		func(c map[string]any) { c["nonce"] = "x" },
		func(c map[string]any) { c["x"] = strings.Repeat("x", 16<<10) },
	} {
		token := a.logoutToken("alice", "", devidp.Hooks{
			EditLogoutToken: func(header, claims map[string]any) { header["kid"] = rand.Text(); edit(claims) },
		})
		wantRefused(t, "wrong", a.sendLogoutToken(url.Values{"logout_token": {token}}), "bad_logout_token")
	}
	if n := a.provider.JWKSFetches() - before; n != 0 {
		t.Errorf("%d fetches of the key set", n)
	}
}
