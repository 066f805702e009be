package bff_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

// Lines of the standards that no other test in this package would see broken.

// RFC 9700 2.1.1, RFC 7636 7.2.
func TestPlainPKCEIsNeverSpoken(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(a *app, cfg *bff.Config) {
		cfg.Provider.PushedRequests = "never"
		a.provider.Misbehave(t, bfftest.Discovery("", func(m map[string]any) { m["code_challenge_methods_supported"] = []string{"plain"} }))
	})
	a.waitReady()
	a.takeDown(devidp.Hooks{EditCallback: func(answer url.Values) {
		answer.Del("code")
		answer.Set("error", "invalid_request")
		answer.Set("error_description", "code_challenge_method S256 is not supported")
	}})
	b := a.browser()
	to := b.Navigate("/bff/login").Location(t)
	if got := to.Query(); got.Get("code_challenge_method") != "S256" || len(got.Get("code_challenge")) != 43 {
		t.Errorf("asked with %v", got)
	}
	wantPage(t, b.Navigate(b.Pick("alice", to.String()).Location(t).String()), 502, "login_refused")
}

// RFC 9700 4.7.1: what a browser holds of an attempt is good as it was made, under its own name and for its own state.
func TestAnAttemptThatWasTamperedWithIsNone(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	for name, tamper := range map[string]func(mine, other *http.Cookie){
		"a bit of its beginning": func(mine, _ *http.Cookie) { mine.Value = flip(mine.Value, 2) },
		"a bit of its middle":    func(mine, _ *http.Cookie) { mine.Value = flip(mine.Value, len(mine.Value)/2) },
		"a bit of its end":       func(mine, _ *http.Cookie) { mine.Value = flip(mine.Value, len(mine.Value)-4) },
		"its end cut off":        func(mine, _ *http.Cookie) { mine.Value = mine.Value[:len(mine.Value)-8] },
		"another's in its place": func(mine, other *http.Cookie) { mine.Value = other.Value },
	} {
		t.Run(name, func(t *testing.T) {
			attacker, b := a.browser(), a.browser()
			attacker.AnswerOfProvider("bob", "")
			u := b.AnswerOfProvider("alice", "").Location(t)
			mine, other := *b.Cookies()[0], *attacker.Cookies()[0]
			tamper(&mine, &other)
			b.SetCookie(&http.Cookie{Name: mine.Name, Value: mine.Value, Path: "/"})
			before := a.provider.TokenRequests()
			if answer := b.Navigate(u.String()); answer.StatusCode == 303 || answer.StatusCode >= 500 {
				t.Errorf("got %d", answer.StatusCode)
			}
			if n := a.provider.TokenRequests() - before; n > 0 {
				t.Errorf("%d token requests", n)
			}
			a.wantSession(b, "")
		})
	}
}

func flip(value string, at int) string {
	b := []byte(value)
	b[at] ^= 1
	return string(b)
}

// RFC 9700 4.11.1: an error leads to a page and never to another login, not even where its attempt is gone.
func TestAnErrorBeginsNoLogin(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	for _, code := range []string{"access_denied", "login_required", "server_error"} {
		b := a.browser()
		u, q := callback(t, b)
		q.Del("code")
		q.Set("error", code)
		u.RawQuery = q.Encode()
		b.DropCookies()
		wantPage(t, b.Navigate(u.String()), 400, "bad_callback")
	}
}

// RFC 9700 4.11.1: what the login link says, and not only what returnto.go reads.
func TestALoginLeadsToNoOtherOrigin(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	for _, returnTo := range []string{"//evil.example", `/\evil.example`, "https://evil.example/x", "/%2fevil.example", "/\t/evil.example", "@evil.example", "javascript:alert(1)", "/x\r\nLocation: https://evil.example", "/" + strings.Repeat("a", 2000)} {
		answer := a.browser().SignIn("alice", url.Values{"return_to": {returnTo}}.Encode())
		if got := answer.Header.Values("Location"); answer.StatusCode != 303 || len(got) != 1 || got[0] != "/" {
			t.Errorf("%.40q: got %d to %q", returnTo, answer.StatusCode, got)
		}
	}
}

// RFC 9700 4.2.4: code and state are in the address of these pages.
func TestPagesOnTheWayBackTellNobodyWhereTheyAre(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Provider.ResponseMode = "form_post" })
	other := newApp(t, nil)
	b := other.browser()
	again := b.Navigate(b.Pick("alice", b.Navigate("/bff/login", "Sec-Fetch-Site", "cross-site").Location(t).String()).Location(t).String(), "Sec-Fetch-Site", "cross-site")
	success := other.browser().SignIn("alice", "")
	for name, page := range map[string]*bfftest.Answer{
		"a silent login's":     silently(other.browser()),
		"that leads on":        again,
		"that is posted again": a.browser().Do("POST", "/bff/callback", "state=x&code=y", "Content-Type", "application/x-www-form-urlencoded"),
		"the redirect":         success,
	} {
		csp := page.Header.Get("Content-Security-Policy")
		if page.StatusCode >= 400 || page.Header.Get("Referrer-Policy") != "no-referrer" || page.Header.Get("Cache-Control") != "no-store" || !strings.HasPrefix(csp, "default-src 'none'") {
			t.Errorf("the page %s: got %d %v", name, page.StatusCode, page.Header)
		}
		for _, outside := range []string{"http:", "https:", `="//`, "src="} {
			if strings.Contains(page.Text, outside) {
				t.Errorf("the page %s loads from elsewhere:\n%s", name, page.Text)
			}
		}
	}
}

// RFC 9700 4.12: what we send goes to the provider, and nowhere that it points to.
func TestNoRedirectOfTheProviderIsFollowed(t *testing.T) {
	t.Parallel()
	var strayed atomic.Int32
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		strayed.Add(1)
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, "{}")
	}))
	defer elsewhere.Close()
	for _, path := range []string{"/par", "/token", "/userinfo", "/jwks", "/revoke", "/openid-configuration"} {
		for _, status := range []int{302, 307} {
			redirect := devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if !strings.HasSuffix(r.URL.Path, path) {
					next.ServeHTTP(w, r)
					return
				}
				http.Redirect(w, r, elsewhere.URL+r.URL.Path, status)
			}}
			if path == "/openid-configuration" {
				a := newApp(t, func(a *app, _ *bff.Config) {
					a.provider.Misbehave(t, bfftest.ProviderDown)
					a.provider.SetHooks(redirect)
				})
				waitFor(t, "the provider is not found", func() bool { return strings.Contains(a.logs.String(), "provider discovery failed") })
				continue
			}
			a := newApp(t, withUserInfo)
			b := a.browser()
			if path == "/revoke" {
				b = a.signedIn()
			}
			a.provider.SetHooks(redirect)
			switch answer := b.Navigate("/bff/login"); {
			case path == "/par":
				wantPage(t, answer, 502, "login_refused")
			case path == "/revoke":
				if got := b.Submit("/bff/logout", nil).StatusCode; got != 303 {
					t.Errorf("logout: got %d", got)
				}
			default:
				if got := b.Navigate(b.Pick("alice", answer.Location(t).String()).Location(t).String()).StatusCode; got/100 != 5 {
					t.Errorf("%s: got %d", path, got)
				}
			}
			a.provider.Behave()
		}
	}
	if n := strayed.Load(); n > 0 {
		t.Errorf("%d requests went elsewhere", n)
	}
}

// Whatever a link says, a request has the parameters that it has without; that there is another issuer (Core 4) is one of the things a link may say.
func TestALinkAddsNothingToTheRequest(t *testing.T) {
	t.Parallel()
	a := newApp(t, unpushed)
	link := make(url.Values)
	for _, name := range []string{
		"client_id", "scope", "redirect_uri", "response_type", "response_mode", "claims", "request", "request_uri", "state", "nonce", "code_challenge", "code_challenge_method", "dpop_jkt", "resource", "audience",
		"id_token_hint", "display", "registration", "claims_locales", "authorization_details", "iss", "target_link_uri", "post_logout_redirect_uri", "exotic",
	} {
		link.Set(name, "https://evil.example")
	}
	for _, query := range []string{"", link.Encode()} {
		to := a.browser().Navigate("/bff/login?" + query).Location(t)
		got := slices.Sorted(maps.Keys(to.Query()))
		want := []string{"client_id", "code_challenge", "code_challenge_method", "nonce", "redirect_uri", "response_type", "scope", "state"}
		if !strings.HasPrefix(to.String(), a.provider.Issuer+"/authorize?") || strings.Contains(to.String(), "evil") || !slices.Equal(got, want) {
			t.Errorf("sent to %s, want these parameters alone: %v", to, want)
		}
	}
}

// OpenID Connect Discovery 4.2.
func TestAProviderThatIsSlowToBeFoundIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	a := newApp(t, func(a *app, cfg *bff.Config) {
		cfg.Provider.HTTPClient = &http.Client{Timeout: 2 * time.Second}
		a.provider.Misbehave(t, bfftest.ProviderDown) // not to be waited for by newApp
		a.provider.SetHooks(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			select {
			case <-release:
				next.ServeHTTP(w, r)
			case <-r.Context().Done():
			}
		}})
	})
	defer close(release)
	began := time.Now()
	wantPage(t, a.browser().Navigate("/bff/login"), 503, "provider_unavailable")
	if d := time.Since(began); d > 30*time.Second {
		t.Errorf("a login took %v to fail", d)
	}
	waitFor(t, "it is given up", func() bool { return strings.Contains(a.logs.String(), "provider discovery failed") })
	a.provider.Behave()
	a.waitReady()
	if answer := a.browser().SignIn("alice", ""); answer.StatusCode != 303 {
		t.Errorf("once it answers: got %d", answer.StatusCode)
	}
}

func signedByHMAC(key []byte) func(header, claims map[string]any) (string, error) {
	return func(header, claims map[string]any) (string, error) {
		header["alg"] = "HS256"
		input, err := devidp.SigningInput(header, claims)
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(input))
		return input + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil)), err
	}
}

func signedByNobody(header, claims map[string]any) (string, error) {
	header["alg"] = "none"
	input, err := devidp.SigningInput(header, claims)
	return input + ".", err
}

// RFC 8725 3.1, 3.2: not even where the provider says that it signs so.
func TestAlgorithmsThatProveNothingAreTakenFromNoMetadata(t *testing.T) {
	t.Parallel()
	for name, listed := range map[string]any{"beside RS256": []string{"none", "HS256", "RS256"}, "alone": []string{"none", "HS256"}, "nothing": nil} {
		t.Run(name, func(t *testing.T) {
			a := newApp(t, func(a *app, _ *bff.Config) {
				a.provider.Misbehave(t, bfftest.Discovery("", func(m map[string]any) {
					if m["id_token_signing_alg_values_supported"] = listed; listed == nil {
						delete(m, "id_token_signing_alg_values_supported")
					}
				}))
			})
			a.waitReady()
			for _, sign := range []func(h, c map[string]any) (string, error){signedByNobody, signedByHMAC([]byte(a.provider.Client.Secret))} {
				a.takeDown(devidp.Hooks{SignIDToken: sign})
				wantPage(t, a.browser().SignIn("alice", ""), 502, "login_invalid")
			}
			a.provider.Behave()
			if answer := a.browser().SignIn("alice", ""); answer.StatusCode != 303 { // RS256 is the default (Core 2)
				t.Errorf("RS256: got %d", answer.StatusCode)
			}
		})
	}
}

// OpenID Connect Core 3.1.3.6: at_hash is made with the hash of the algorithm that the ID token is signed with.
func TestTheAccessTokensHashFollowsTheSignature(t *testing.T) {
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
		{jose.RS384, rs, middle, short}, {jose.ES384, ec384, middle, long}, {jose.PS512, rs, long, short}, {jose.EdDSA, edKey(t), long, short},
	} {
		t.Run(string(test.alg), func(t *testing.T) {
			keys := func(set map[string]any) {
				set["keys"] = []any{jose.JSONWebKey{Key: test.key.Public(), KeyID: "k", Use: "sig"}}
			}
			a := newApp(t, func(a *app, _ *bff.Config) {
				a.provider.Misbehave(t, bfftest.Discovery("", func(m map[string]any) { m["id_token_signing_alg_values_supported"] = []string{string(test.alg)} }))
			})
			a.waitReady()
			for _, hash := range []func(string) []byte{test.right, test.wrong, func(token string) []byte { return test.right(token + "x") }} {
				var access string
				a.takeDown(devidp.Hooks{
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
				if answer := a.browser().SignIn("alice", ""); (answer.StatusCode == 303) != good {
					t.Errorf("at_hash right is %v: got %d", good, answer.StatusCode)
				}
			}
		})
	}
}

func signJWT(alg jose.SignatureAlgorithm, key any, kid string, claims map[string]any) (string, error) {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, new(jose.SignerOptions).WithHeader("kid", kid).WithType("JWT"))
	if err != nil {
		return "", err
	}
	jws, err := signer.Sign(must(json.Marshal(claims)))
	if err != nil {
		return "", err
	}
	return jws.CompactSerialize()
}

// OpenID Connect Core 3.1.2.1.
func TestEveryLoginAsksForOpenID(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.Provider.PushedRequests, cfg.Provider.Scopes = "never", []string{"profile"}
	})
	if got := a.browser().Navigate("/bff/login").Location(t).Query().Get("scope"); !slices.Contains(strings.Fields(got), "openid") {
		t.Errorf("scope is %q", got)
	}
}

// RFC 8725 3.10, Core 5.6.2: where a token says that keys or claims are is nowhere we go.
func TestNothingThatATokenNamesIsFetched(t *testing.T) {
	t.Parallel()
	key := rsaKey(t, 2048)
	cert := certificate(t, key)
	var fetched atomic.Int32
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fetched.Add(1)
		w.Header().Set("Content-Type", "application/json")
		w.Write(must(json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k", Use: "sig"}}})))
	}))
	defer web.Close()
	a := newApp(t, nil)
	for name, value := range map[string]any{
		"jku": web.URL, "x5u": web.URL, "jwk": jose.JSONWebKey{Key: key.Public(), KeyID: "k", Use: "sig"}, "x5c": []string{base64.StdEncoding.EncodeToString(cert.Certificate[0])},
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
		a.takeDown(devidp.Hooks{SignIDToken: forge})
		wantPage(t, a.browser().SignIn("alice", ""), 502, "login_invalid")
		a.provider.Behave()
		b := a.signedIn()
		wantRefused(t, name, a.tellLogout(url.Values{"logout_token": {a.logoutToken("alice", "", devidp.Hooks{SignLogoutToken: forge})}}), "bad_logout_token")
		a.wantSession(b, "alice")
	}
	a.takeDown(devidp.Hooks{EditIDToken: func(header, claims map[string]any) {
		header["jku"], header["x5u"] = web.URL, web.URL // beside a signature that is right
		claims["_claim_names"] = map[string]any{"address": "src"}
		claims["_claim_sources"] = map[string]any{"src": map[string]any{"endpoint": web.URL, "access_token": "x"}}
	}})
	if got := user(t, a.signedIn()); got["address"] != nil || got["_claim_sources"] != nil {
		t.Errorf("the user is %v", got)
	}
	if n := fetched.Load(); n > 0 {
		t.Errorf("%d requests", n)
	}
}

// OpenID Connect Core 3.1.2.6, each of the four.
func TestPromptNoneThatFailsIsAnAnswer(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	for _, code := range []string{"login_required", "interaction_required", "consent_required", "account_selection_required"} {
		a.takeDown(devidp.Hooks{EditCallback: func(answer url.Values) {
			answer.Del("code")
			answer.Set("error", code)
		}})
		b := a.browser()
		answer := b.Follow(b.Navigate("/bff/login?prompt=none&return_to=/back"), a.url+"/back")
		if answer.StatusCode != 303 || answer.Header.Get("Location") != "/back" || len(b.Cookies()) > 0 {
			t.Errorf("%s: got %d to %s, cookies %v", code, answer.StatusCode, answer.Header.Get("Location"), cookieNames(b))
		}
		a.wantSession(b, "")
	}
}

// RP-Initiated Logout 2, 3.
func TestWhatIsSaidAtALogout(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	constant := func(t *testing.T, answer *bfftest.Answer) url.Values {
		t.Helper()
		to := answer.Location(t)
		if q := to.Query(); !strings.HasPrefix(to.String(), a.provider.Issuer+"/logout?") || q.Get("client_id") != "spa" || q.Get("post_logout_redirect_uri") != a.url+"/bff/logout/callback" {
			t.Errorf("sent to %s", to)
		}
		return to.Query()
	}
	post := func(b *bfftest.Browser) *bfftest.Answer {
		return b.Do("POST", "/bff/logout", "", "Content-Type", "application/x-www-form-urlencoded", "Accept", "text/html", "Origin", a.url, "Sec-Fetch-Site", "same-origin", "Sec-Fetch-Mode", "navigate",
			"X-Forwarded-Host", "evil.example", "X-Forwarded-Proto", "https", "X-Forwarded-Prefix", "/evil", "Forwarded", "host=evil.example")
	}
	t.Run("the ID token, though it has expired", func(t *testing.T) {
		var idToken string
		a.takeDown(devidp.Hooks{
			EditIDToken: func(_, claims map[string]any) {
				claims["iat"], claims["exp"] = time.Now().Add(-time.Minute).Unix(), time.Now().Add(-time.Second).Unix()
			},
			EditTokenResponse: func(_ string, _ int, body map[string]any) { idToken, _ = body["id_token"].(string) },
		})
		b := a.signedIn()
		if q := constant(t, post(b)); idToken == "" || q.Get("id_token_hint") != idToken {
			t.Error("the hint is another one")
		}
	})
	t.Run("without a session no ID token", func(t *testing.T) {
		if q := constant(t, post(a.browser())); q.Has("id_token_hint") {
			t.Error("there is a hint")
		}
	})
}

// Back-Channel Logout 2.6 (2, 3), 2.7, and RFC 8725 3.12 for what is signed by the same keys.
func TestWhatElseIsNoLogoutToken(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	var idToken, accessToken string
	a.takeDown(devidp.Hooks{EditTokenResponse: func(_ string, _ int, body map[string]any) {
		idToken, accessToken = fmt.Sprint(body["id_token"]), fmt.Sprint(body["access_token"])
	}})
	b, sid := a.signedInWithSIDAs(&idToken, &accessToken)
	ec := ecKey(t)
	for name, token := range map[string]string{
		"an ID token":                    idToken,
		"an access token":                accessToken,
		"HS256 with the client's secret": a.logoutToken("alice", sid, devidp.Hooks{SignLogoutToken: signedByHMAC([]byte(a.provider.Client.Secret))}),
		"an algorithm that is not listed": a.logoutToken("alice", sid, devidp.Hooks{SignLogoutToken: func(_, claims map[string]any) (string, error) {
			return signJWT(jose.ES256, ec, "k", claims)
		}}),
		"an ID token with the event": a.logoutToken("alice", sid, devidp.Hooks{EditLogoutToken: func(header, claims map[string]any) {
			header["typ"], claims["nonce"] = "JWT", "n"
		}}),
	} {
		wantRefused(t, name, a.tellLogout(url.Values{"logout_token": {token}}), "bad_logout_token")
		a.wantSession(b, "alice")
	}
	for _, of := range []string{"", "again"} { // the second with a jti of its own: there is nothing left to end
		if answer := a.tellLogout(url.Values{"logout_token": {a.logoutToken("", sid, devidp.Hooks{})}}); answer.StatusCode != 200 {
			t.Errorf("%s: got %d", of, answer.StatusCode)
		}
		a.wantSession(b, "")
	}
	if answer := a.tellLogout(url.Values{"logout_token": {a.logoutToken("", "unknown", devidp.Hooks{})}}); answer.StatusCode != 200 {
		t.Errorf("an unknown sid: got %d", answer.StatusCode)
	}
}

// signedInWithSIDAs is signedInWithSID, which also says which tokens there are.
func (a *app) signedInWithSIDAs(idToken, accessToken *string) (*bfftest.Browser, string) {
	a.t.Helper()
	var sid string
	a.takeDown(devidp.Hooks{
		EditIDToken: func(_, claims map[string]any) { sid, _ = claims["sid"].(string) },
		EditTokenResponse: func(_ string, _ int, body map[string]any) {
			*idToken, *accessToken = fmt.Sprint(body["id_token"]), fmt.Sprint(body["access_token"])
		},
	})
	defer a.provider.Behave()
	return a.signedIn(), sid
}

// Back-Channel Logout 2.8: what failed on the way is not remembered as done, and may be sent again.
func TestALogoutThatFailsHalfwayMayBeSentAgain(t *testing.T) {
	t.Parallel()
	store := &forgetfulStore{Memory: new(tokenstore.Memory)}
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Sessions.Store = store })
	b, sid := a.signedInWithSID()
	form := url.Values{"logout_token": {a.logoutToken("", sid, devidp.Hooks{})}}
	store.down.Store(true)
	wantRefused(t, "while the index is down", a.tellLogout(form), "store_unavailable")
	a.wantSession(b, "alice")
	store.down.Store(false)
	if answer := a.tellLogout(form); answer.StatusCode != 200 {
		t.Errorf("sent again: got %d %s", answer.StatusCode, answer.Text)
	}
	a.wantSession(b, "")
}

// forgetfulStore does not know who has which sessions, while it is down.
type forgetfulStore struct {
	*tokenstore.Memory
	down atomic.Bool
}

func (s *forgetfulStore) Members(ctx context.Context, key string) ([]string, error) {
	if s.down.Load() {
		return nil, errors.New("LOADING")
	}
	return s.Memory.Members(ctx, key)
}

// Whoever can reach the endpoint must not have us ask the provider each time.
func TestJunkLogoutTokensAskForNoKeys(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	a.signedIn()
	before, began := a.provider.JWKSFetches(), time.Now()
	for range 30 {
		token := a.logoutToken("alice", "", devidp.Hooks{EditLogoutToken: func(header, _ map[string]any) { header["kid"] = rand.Text() }})
		if got := a.tellLogout(url.Values{"logout_token": {token}}).StatusCode; got != 400 {
			t.Fatalf("got %d", got)
		}
	}
	n, took := a.provider.JWKSFetches()-before, time.Since(began)
	if most := 4 + int(took/(700*time.Millisecond)); n > most { // three at once, then one in 0.7 s
		t.Errorf("30 tokens of unknown keys caused %d fetches of the key set in %v, want %d at most", n, took, most)
	}
}

// RFC 9110 10.2.3: the provider says when it wants to be asked again, and that is passed on.
func TestARefreshIsTriedAgainWhenTheProviderSays(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	for _, status := range []int{429, 503} {
		a := newApp(t, nil)
		b := a.expired()
		c := a.takeDown(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.PostFormValue("grant_type") != "refresh_token" {
				next.ServeHTTP(w, r)
				return
			}
			w.Header().Set("Retry-After", "20")
			w.WriteHeader(status)
		}})
		for range 2 {
			answer := b.Fetch("GET", "/api/x")
			wantProblem(t, answer, 503, "provider_unavailable")
			if got, err := strconv.Atoi(answer.Header.Get("Retry-After")); err != nil || got < 20 || got > 25 { // not everybody at once
				t.Errorf("%d: Retry-After is %d, %v", status, got, err)
			}
			time.Sleep(1100 * time.Millisecond) // longer than the pause that there would be otherwise
		}
		if n := len(c.to("/token")); n != 1 {
			t.Errorf("%d: asked %d times", status, n)
		}
		a.provider.Behave()
		a.wantSession(b, "alice")
	}
}

// broken fails requests to the token endpoint with an error, while there is one.
type broken struct {
	mu  sync.Mutex
	err error
}

func (b *broken) set(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
}

func (b *broken) RoundTrip(r *http.Request) (*http.Response, error) {
	b.mu.Lock()
	err := b.err
	b.mu.Unlock()
	if err != nil && strings.HasSuffix(r.URL.Path, "/token") {
		return nil, err
	}
	return http.DefaultTransport.RoundTrip(r)
}

// What keeps a refresh from reaching the provider, or its answer from us, says nothing about the session.
func TestFaultsOnTheWayToTheProviderKeepTheSession(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]error{
		"a name that is not found": &net.DNSError{Err: "no such host", Name: "id.example", IsNotFound: true},
		"a certificate":            &tls.CertificateVerificationError{Err: errors.New("unknown authority")},
		"a refused connection":     &net.OpError{Op: "dial", Err: errors.New("connection refused")},
		"a time-out":               context.DeadlineExceeded,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			way := new(broken)
			a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Provider.HTTPClient = &http.Client{Transport: way} })
			b := a.expired()
			way.set(fault)
			wantProblem(t, b.Fetch("GET", "/api/x"), 503, "provider_unavailable")
			a.wantSession(b, "alice")
			way.set(nil)
			waitFor(t, "the refresh works again", func() bool { return b.Fetch("GET", "/api/x").StatusCode == 200 })
		})
	}
}

// RFC 6750 3.1: of an upstream's refusals one speaks of the token.
func TestOtherRefusalsOfAnUpstreamRefreshNothing(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		status    int
		challenge string
	}{
		{403, ""}, {403, `Bearer error="insufficient_scope", scope="orders:write"`}, {403, `Bearer error="invalid_token"`}, {400, `Bearer error="invalid_request"`},
		{401, ""}, {401, "Bearer"}, {401, `Bearer realm="api"`}, {401, `Bearer error="invalid_request"`}, {401, `Bearer error="insufficient_user_authentication", acr_values="gold", max_age="60"`}, {401, `Custom error="invalid_token"`},
	} {
		api := bfftest.NewEcho(t)
		api.Answer = func(w http.ResponseWriter, _ *http.Request) {
			if test.challenge != "" {
				w.Header().Set("WWW-Authenticate", test.challenge)
			}
			w.WriteHeader(test.status)
		}
		a, b := routed(t, bff.Route{Path: "/strict/", Token: "user", Upstream: []string{api.URL}})
		answer := b.Fetch("GET", "/strict/x")
		if answer.StatusCode != test.status || answer.Code() != "" || strings.HasPrefix(test.challenge, "Bearer") && answer.Header.Get("WWW-Authenticate") != test.challenge {
			t.Errorf("%d %s: got %d %v", test.status, test.challenge, answer.StatusCode, answer.Header)
		}
		if n := a.provider.Refreshes(); n > 0 || api.Calls() != 1 {
			t.Errorf("%d %s: %d refreshes, %d requests", test.status, test.challenge, n, api.Calls())
		}
		a.wantSession(b, "alice")
	}
}

// RFC 6749 10.4: a refresh token is for the token endpoint, and at the end for the one that revokes it.
func TestARefreshTokenGoesWhereItIsTradedAndNowhereElse(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var secrets []string
	elsewhere := make(map[string]string) // :: where → what was sent there
	see := func(where string, r *http.Request, body string) {
		var all strings.Builder
		fmt.Fprintf(&all, "%s %s\n", r.Method, r.RequestURI)
		r.Header.Write(&all)
		mu.Lock()
		defer mu.Unlock()
		elsewhere[where] += all.String() + body
	}
	api := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		see("the upstream", r, string(body))
	}))
	defer api.Close()
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.Provider.UserInfo = true
		cfg.Routes = []bff.Route{{Path: "/api/", Upstream: []string{api.URL}, Token: "user"}, {Path: "/exchanged/", Upstream: []string{api.URL}, Token: "user", Audience: "legacy", Grant: "token-exchange"}, {Path: "/machine/", Upstream: []string{api.URL}, Token: "client"}}
	})
	traded := 0
	a.provider.SetHooks(devidp.Hooks{
		Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			r.ParseForm()
			form := r.PostForm.Encode()
			switch {
			case strings.HasSuffix(r.URL.Path, "/token") && r.PostForm.Get("grant_type") == "refresh_token", strings.HasSuffix(r.URL.Path, "/revoke") && r.PostForm.Get("token_type_hint") == "refresh_token":
				mu.Lock()
				traded++
				mu.Unlock()
			default:
				see(r.URL.Path, r, form)
			}
			next.ServeHTTP(w, r)
		},
		EditTokenResponse: func(_ string, _ int, body map[string]any) {
			if token, _ := body["refresh_token"].(string); token != "" {
				mu.Lock()
				secrets = append(secrets, token)
				mu.Unlock()
			}
		},
	})
	defer a.provider.Behave()
	b := a.signedIn()
	for _, path := range []string{"/api/x", "/exchanged/x", "/machine/x"} {
		wantOK(t, b.Fetch("POST", path))
	}
	wantOK(t, b.Fetch("POST", "/bff/session/refresh"))
	wantOK(t, b.Fetch("GET", "/api/x"))
	b.Navigate(b.Submit("/bff/logout", nil).Location(t).String())
	mu.Lock()
	defer mu.Unlock()
	if len(secrets) != 2 || traded != 2 {
		t.Errorf("%d refresh tokens were traded %d times, want one refreshed and one revoked", len(secrets), traded)
	}
	for where, text := range elsewhere {
		for _, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("%s got a refresh token", where)
			}
		}
	}
}

// RFC 7009 2.2.1.
func TestRevocationsAreTriedAgainWithinReason(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		status     int
		retryAfter string
		tries      int           // of each token
		gap        time.Duration // between the first two at least
	}{
		"503, each time":   {503, "1", 4, time.Second},
		"503 for a while":  {503, "3", 2, 3 * time.Second},
		"another error":    {400, "1", 1, 0},
		"a client unknown": {401, "", 1, 0},
		"no such address":  {404, "", 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newApp(t, nil)
			b := a.signedIn()
			var mu sync.Mutex
			var tried []time.Time
			a.takeDown(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if !strings.HasSuffix(r.URL.Path, "/revoke") || r.PostFormValue("token_type_hint") != "refresh_token" {
					next.ServeHTTP(w, r)
					return
				}
				mu.Lock()
				tried = append(tried, time.Now())
				n := len(tried)
				mu.Unlock()
				if name == "503 for a while" && n > 1 {
					next.ServeHTTP(w, r)
					return
				}
				if test.retryAfter != "" {
					w.Header().Set("Retry-After", test.retryAfter)
				}
				w.WriteHeader(test.status)
			}})
			if got := b.Submit("/bff/logout", nil).StatusCode; got != 303 {
				t.Errorf("logout: got %d", got)
			}
			if err := a.server.Close(t.Context()); err != nil { // waits for those that are to be made
				t.Fatal(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if len(tried) != test.tries || test.gap > 0 && tried[1].Sub(tried[0]) < test.gap {
				t.Errorf("tried at %v, want %d times, the second %v after the first", tried, test.tries, test.gap)
			}
			if said := strings.Contains(a.logs.String(), "not revoked"); !said {
				t.Error("nothing is logged")
			}
		})
	}
}

// RFC 6749 4.4: one token for all that is the same, and another for what is not.
func TestTheBrokersOwnTokenIsOneForEachTarget(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(a *app, cfg *bff.Config) {
		route := func(path, resource string, scopes ...string) bff.Route {
			return bff.Route{Path: path, Upstream: []string{a.echo.URL}, Token: "client", Resource: resource, Scopes: scopes}
		}
		cfg.Routes = []bff.Route{
			route("/one/", "https://a.example", "x"), route("/same/", "https://a.example", "x"),
			route("/resource/", "https://b.example", "x"), route("/scope/", "https://a.example", "y"), route("/none/", ""),
		}
	})
	c := a.takeDown(devidp.Hooks{})
	b := a.browser()
	tokens := make(map[string]string)
	for range 2 {
		for _, path := range []string{"/one/", "/same/", "/resource/", "/scope/", "/none/"} {
			tokens[path] = bearerOf(t, a, b.Fetch("GET", path))
		}
	}
	if tokens["/one/"] != tokens["/same/"] {
		t.Error("two routes for one target have two tokens")
	}
	if different := slices.Compact(slices.Sorted(maps.Values(tokens))); len(different) != 4 || len(c.to("/token")) != 4 {
		t.Errorf("%d tokens in %d requests, want 4 of each", len(different), len(c.to("/token")))
	}
}

// RFC 9449 8.2: a nonce that comes with a good answer counts from the next request on.
func TestTheNonceOfAGoodAnswerIsTheNextOne(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Provider.SenderConstraint = "dpop" })
	given := 0
	c := a.takeDown(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, "/token") {
			given++
			w.Header().Set("DPoP-Nonce", fmt.Sprint("nonce-", given))
		}
		next.ServeHTTP(w, r)
	}})
	b := a.signedIn()
	for range 2 {
		wantOK(t, b.Fetch("POST", "/bff/session/refresh"))
	}
	var got []any
	for _, call := range c.to("/token") {
		_, claims := unverified(t, call.header.Get("DPoP"))
		got = append(got, claims["nonce"])
	}
	if fmt.Sprint(got) != "[<nil> nonce-1 nonce-2]" {
		t.Errorf("the nonces were %v", got)
	}
}

// RFC 9449 7.3: no proof is sent twice, whatever a request is made again for.
func TestARequestThatIsMadeAgainHasANewProof(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(w http.ResponseWriter){
		"a connection that breaks": func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
		"a token that is rejected": func(w http.ResponseWriter) {
			w.Header().Set("WWW-Authenticate", `DPoP error="invalid_token"`)
			w.WriteHeader(401)
		},
		"a nonce": func(w http.ResponseWriter) {
			w.Header().Set("DPoP-Nonce", "n")
			w.Header().Set("WWW-Authenticate", `DPoP error="use_dpop_nonce"`)
			w.WriteHeader(401)
		},
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			var got []proven
			var api *httptest.Server
			api = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				p, err := checkProof(r, api.URL+r.URL.EscapedPath())
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				got = append(got, p)
				first := len(got) == 1
				mu.Unlock()
				if first {
					fail(w)
				}
			}))
			defer api.Close()
			a, _ := newBoundApp(t, func(_ *app, cfg *bff.Config) { cfg.Routes[0].Upstream = []string{api.URL} })
			wantOK(t, a.signedIn().Fetch("GET", "/api/x"))
			mu.Lock()
			defer mu.Unlock()
			if len(got) != 2 || got[0].jti == got[1].jti || got[0].jkt != got[1].jkt {
				t.Errorf("the upstream got %v", got)
			}
		})
	}
}

// RFC 6749 2.3.1: the id is form-encoded as well.
func TestAClientIDMayHaveAnyCharacters(t *testing.T) {
	t.Parallel()
	for _, method := range []string{"client_secret_basic", "client_secret_post"} {
		a := newAppWith(t, func(c *devidp.Config) { c.Clients[0].ID = "https://app.example/?a=b:c%20+é" }, func(_ *app, cfg *bff.Config) { cfg.Provider.ClientAuth = method })
		aLife(t, a)
	}
}

// RFC 8707 2: what was asked for at login is asked for with every token.
func TestTheResourceIsNamedInEveryTokenRequest(t *testing.T) {
	t.Parallel()
	a := newTargetApp(t, func(_ *app, cfg *bff.Config) {
		cfg.Provider.Resources = []string{"https://own.example", "https://second.example"}
	})
	c := a.takeDown(devidp.Hooks{})
	b := a.signedIn()
	wantOK(t, b.Fetch("POST", "/bff/session/refresh"))
	for _, call := range c.to("/token") {
		if got := call.form["resource"]; !slices.Equal(got, []string{"https://own.example", "https://second.example"}) {
			t.Errorf("%s: resource is %q", call.form.Get("grant_type"), got)
		}
	}
	if got := c.to("/par")[0].form["resource"]; !slices.Contains(got, "https://own.example") || !slices.Contains(got, "https://orders.example") || len(got) != 4 {
		t.Errorf("at login resource is %q", got)
	}
	if n := len(c.to("/token")); n != 2 {
		t.Errorf("%d token requests", n)
	}
}

// RFC 6749 6: a refresh asks for no scope that was not granted.
func TestARefreshAsksForNoMoreThanWasGranted(t *testing.T) {
	t.Parallel()
	a := newTargetApp(t, nil)
	c := a.takeDown(devidp.Hooks{EditTokenResponse: func(grant string, _ int, body map[string]any) {
		if grant == "authorization_code" {
			body["scope"] = "openid profile offline_access" // the user did not grant email
		}
	}})
	b := a.signedIn()
	wantOK(t, b.Fetch("POST", "/bff/session/refresh"))
	for _, call := range c.to("/token") {
		if call.form.Get("grant_type") == "refresh_token" && slices.Contains(strings.Fields(call.form.Get("scope")), "email") {
			t.Errorf("asked for %q", call.form.Get("scope"))
		}
	}
}

// The same with a provider that refuses such a refresh, as RFC 6749 5.2 has it.
func TestAUserWhoGrantsLessIsSignedInAndStaysSo(t *testing.T) {
	t.Parallel()
	api := tokenAPI(t)
	a := newAppWith(t, func(c *devidp.Config) { c.Scopes = []string{"openid", "profile", "offline_access", "few:read"} }, func(_ *app, cfg *bff.Config) {
		cfg.Routes = []bff.Route{{Path: "/own/", Upstream: []string{api.URL}, Token: "user"}, {Path: "/few/", Upstream: []string{api.URL}, Token: "user", Scopes: []string{"few:read"}}}
	})
	b := a.browser()
	if answer := b.SignIn("alice", ""); answer.StatusCode != 303 {
		t.Errorf("sign in: got %d\n%s", answer.StatusCode, a.logs.lines(t, "request"))
	}
	if answer := b.Fetch("POST", "/bff/session/refresh"); answer.StatusCode != 200 {
		t.Errorf("refresh: got %d", answer.StatusCode)
	}
}

// RFC 7519 2: a NumericDate is a number. iat and auth_time in quotes are refused.
func TestAnExpiryInQuotesIsNone(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	quoted := func(_, claims map[string]any) { claims["exp"] = fmt.Sprint(claims["exp"]) }
	b := a.signedIn()
	a.takeDown(devidp.Hooks{EditIDToken: quoted})
	wantPage(t, a.browser().SignIn("alice", ""), 502, "login_invalid")
	a.provider.Behave()
	wantRefused(t, "a logout token", a.tellLogout(url.Values{"logout_token": {a.logoutToken("alice", "", devidp.Hooks{EditLogoutToken: quoted})}}), "bad_logout_token")
	a.wantSession(b, "alice")
}

// RFC 9110 11.2: the value of an auth-param is a token or a quoted string.
func TestARejectionWithoutQuotesIsOneToo(t *testing.T) {
	t.Parallel()
	for _, challenge := range []string{"Bearer error=invalid_token", `Bearer realm="api", error=invalid_token, error_description="it has expired"`} {
		echo, rejected := rejectingWith(t, challenge)
		a, b := routed(t, bff.Route{Path: "/strict/", Token: "user", Upstream: []string{echo.URL}})
		if answer := b.Fetch("GET", "/strict/x"); answer.StatusCode != 200 || a.provider.Refreshes() != 1 {
			t.Errorf("%s: got %d after %d rejections and %d refreshes", challenge, answer.StatusCode, *rejected, a.provider.Refreshes())
		}
	}
}

// rejectingWith is an upstream that rejects the first token.
func rejectingWith(t *testing.T, challenge string) (*bfftest.Echo, *int) {
	echo, rejected := bfftest.NewEcho(t), new(int)
	echo.Answer = func(w http.ResponseWriter, _ *http.Request) {
		if *rejected++; *rejected == 1 {
			w.Header().Set("WWW-Authenticate", challenge)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}
	return echo, rejected
}

// RFC 9440 4: what a client says of its certificate is not what a proxy says of it.
func TestAClientCannotSayWhichCertificateItShowed(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	for _, name := range []string{"Client-Cert", "Client-Cert-Chain"} {
		for _, path := range []string{"/api/x", "/public/x"} {
			if got := echoed(t, b.Fetch("GET", path, name, ":Zm9yZ2Vk:")).Header.Values(name); len(got) > 0 {
				t.Errorf("%s: the upstream got %s: %q", path, name, got)
			}
		}
	}
}

// FAPI 2.0 5.4: RSA keys have 2048 bits or more, the provider's as well.
func TestFAPI2TakesNoSmallKeyOfTheProviders(t *testing.T) {
	t.Parallel()
	keys, edit := withKeys(ecKey(t))
	small := rsaKey(t, 1024)
	a := newAppWith(t, func(c *devidp.Config) { keys(c); c.SigningAlgorithm = "PS256" }, func(a *app, cfg *bff.Config) {
		edit(a, cfg)
		cfg.Provider.FAPI2 = true
	})
	a.takeDown(devidp.Hooks{
		EditJWKS: func(set map[string]any) {
			set["keys"] = []any{jose.JSONWebKey{Key: small.Public(), KeyID: "small", Use: "sig"}}
		},
		SignIDToken: func(header, claims map[string]any) (string, error) {
			header["alg"], header["kid"] = "PS256", "small"
			input, err := devidp.SigningInput(header, claims)
			if err != nil {
				return "", err
			}
			sum := sha256.Sum256([]byte(input))
			signature, err := rsa.SignPSS(rand.Reader, small, crypto.SHA256, sum[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
			return input + "." + base64.RawURLEncoding.EncodeToString(signature), err
		},
	})
	if answer := a.browser().SignIn("alice", ""); answer.StatusCode == 303 {
		t.Error("an ID token is taken that is signed by a key of 1024 bits")
	}
}
