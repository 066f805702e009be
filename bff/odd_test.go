package bff_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/session"
)

// An upstream that rejects a token which has run out and been forgotten meanwhile.
func TestATokenThatIsRejectedWhenItHasRunOutIsNoPanic(t *testing.T) {
	t.Parallel()
	arrived, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		once.Do(func() { close(arrived); <-goOn })
		w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
		w.WriteHeader(401)
	}))
	defer api.Close()
	a := newTargetApp(t, func(_ *app, cfg *bff.Config) { cfg.Routes[1].Upstream = []string{api.URL} })
	a.takeDown(devidp.Hooks{EditTokenResponse: func(_ string, _ int, body map[string]any) { body["expires_in"] = 2 }})
	b := a.signedIn()
	status := make(chan string)
	go func() {
		req, _ := http.NewRequest("GET", a.url+"/orders/x", nil)
		req.Header.Set("X-CSRF", "1")
		for _, c := range b.Cookies() {
			req.AddCookie(c)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			status <- err.Error()
			return
		}
		resp.Body.Close()
		status <- resp.Status
	}()
	<-arrived
	time.Sleep(2200 * time.Millisecond)
	a.told(b, "/billing/x")
	close(goOn)
	if got := <-status; !strings.HasPrefix(got, "401") {
		t.Errorf("the client got %s, want the upstream's 401", got)
	}
	if n := len(a.logs.lines(t, "panic")); n > 0 {
		t.Errorf("%d panics: %v", n, a.logs.lines(t, "panic")[0]["cause"])
	}
}

func (a *app) sessionID(b *bfftest.Browser) string {
	var body sessionBody
	b.Fetch("GET", "/bff/session").Decode(a.t, &body)
	return body.Session.ID
}

// Where a stale callback begins the login again the session that there is counts too: anybody can get a state to be stale.
func TestAStaleCallbackOfAnotherSiteDoesNotChangeWhoIsSignedIn(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Cookie.SameSite = http.SameSiteLaxMode })
	u := a.browser().AnswerOfProvider("bob", "").Location(t) // the attacker's; its state was begun here
	b := a.signedIn()
	before := a.sessionID(b)
	stale := "/bff/callback?" + url.Values{"state": {u.Query().Get("state")}, "code": {"x"}}.Encode()
	if answer := b.Navigate(stale, "Sec-Fetch-Site", "cross-site"); answer.StatusCode != 303 || answer.Header.Get("Location") != "/" {
		t.Errorf("with a session: got %d to %s, want no login", answer.StatusCode, answer.Header.Get("Location"))
	}
	// The session comes about while the login that began anew is under way. The provider knows the victim as bob (a login CSRF there, a shared
	// computer, another account picked).
	victim := a.browser()
	to := victim.Navigate(onwards(t, victim.Navigate(stale, "Sec-Fetch-Site", "cross-site")), "Sec-Fetch-Site", "same-origin").Location(t)
	for _, c := range b.Cookies() {
		victim.SetCookie(&http.Cookie{Name: c.Name, Value: c.Value, Path: "/"})
	}
	answer := victim.Navigate(pickAs(t, a, victim, "bob", to.String()), "Sec-Fetch-Site", "cross-site")
	wantPage(t, victim.Navigate(onwards(t, answer), "Sec-Fetch-Site", "same-origin"), 403, "other_account")
	a.wantSession(victim, "alice")
	a.wantSession(b, "alice")
	if got := a.sessionID(b); got != before {
		t.Errorf("the session %s was replaced, and not ended", before)
	}
}

// pickAs completes an authorization request as another user than the provider's cookie in b says.
func pickAs(t *testing.T, a *app, b *bfftest.Browser, user, authorization string) string {
	t.Helper()
	fresh := a.browser() // without the provider's cookie: its page is shown
	return fresh.Pick(user, authorization).Location(t).String()
}

// A provider, or what is in front of it, that quotes a secret in a refusal.
func TestARefusalThatQuotesASecretIsLoggedWithoutIt(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]func(form url.Values, secret string) (string, string){
		"a refresh token in the code": func(form url.Values, _ string) (string, string) {
			return `{"error":"unknown token ` + form.Get("refresh_token")[:32] + `"}`, form.Get("refresh_token")[:32]
		},
		"the client secret in the code": func(_ url.Values, secret string) (string, string) {
			return string(must(json.Marshal(map[string]string{"error": "bad secret " + secret}))), secret
		},
		"the client secret where the text is cut": func(_ url.Values, secret string) (string, string) {
			most := secret[:len(secret)-1]
			return string(must(json.Marshal(map[string]string{"error": "server_error", "error_description": strings.Repeat("x ", 150)[:300-len(most)] + secret}))), strings.ReplaceAll(most, `"`, ``)
		},
		"the client secret as it is in a form": func(_ url.Values, secret string) (string, string) {
			text := url.QueryEscape(secret)
			return string(must(json.Marshal(map[string]string{"error": "server_error", "error_description": "bad request: client_secret=" + text}))), "3Awith%2Fodd%2Bcharacters%25%26"
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Provider.ClientAuth = "client_secret_post" })
			b := a.signedIn()
			var leaked string
			a.takeDown(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.PostFormValue("grant_type") != "refresh_token" {
					next.ServeHTTP(w, r)
					return
				}
				body, secret := answer(r.PostForm, a.provider.Client.Secret)
				leaked = secret
				w.WriteHeader(400)
				io.WriteString(w, body)
			}})
			b.Fetch("POST", "/bff/session/refresh")
			if leaked == "" || strings.Contains(strings.ReplaceAll(a.logs.String(), `\u0026`, "&"), leaked) {
				t.Errorf("the log holds %q", leaked)
			}
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// What is wrong with an ID token of a refresh and says nothing of whose it is.
func TestOddIDTokensOfARefreshEndNoSession(t *testing.T) {
	t.Parallel()
	for name, hooks := range map[string]devidp.Hooks{
		"a new algorithm that the metadata, which is ten minutes old, does not list": {SignIDToken: func(h, c map[string]any) (string, error) {
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				return "", err
			}
			h["alg"] = "ES256"
			input, err := devidp.SigningInput(h, c)
			_ = key
			return input + "." + strings.Repeat("A", 86), err
		}},
		"nbf ten minutes ahead of our clock": {EditIDToken: func(_, c map[string]any) { c["nbf"] = time.Now().Add(10 * time.Minute).Unix() }},
		"claims of 70 KB":                    {EditIDToken: func(_, c map[string]any) { c["groups"] = strings.Repeat("x", 70<<10) }},
	} {
		t.Run(name, func(t *testing.T) {
			a := newApp(t, nil)
			b := a.signedIn()
			a.takeDown(hooks)
			if answer := b.Fetch("POST", "/bff/session/refresh"); answer.StatusCode == 401 {
				t.Errorf("got %d %s", answer.StatusCode, answer.Code())
			}
			a.wantSession(b, "alice")
		})
	}
}

// OpenID Connect Core 12.2: the nonce is absent or that of the login. Absent once, and there the next time.
func TestANonceMayComeBack(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	var mu sync.Mutex
	var nonce any
	refreshes := 0
	a.takeDown(devidp.Hooks{EditIDToken: func(_, claims map[string]any) {
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
		if answer := b.Fetch("POST", "/bff/session/refresh"); answer.StatusCode != 200 {
			t.Errorf("refresh %d: got %d %s", i+1, answer.StatusCode, answer.Code())
		}
	}
	a.wantSession(b, "alice")
}

// OpenID Connect Core 12.2: auth_time is that of the sign-in. One that moves with each refresh must not open routes that want a fresh one.
func TestARefreshMakesNoSignInNew(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Routes[0].Require.MaxAge = time.Minute })
	a.takeDown(devidp.Hooks{EditIDToken: func(_, claims map[string]any) {
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
		t.Errorf("after a refresh, without any sign-in: got %d, want 401", got)
	}
}

// Userinfo gets the token that is for it.
func TestATokenForAnAPIIsNotSentToUserInfo(t *testing.T) {
	t.Parallel()
	a := newTargetApp(t, func(_ *app, cfg *bff.Config) { cfg.Provider.UserInfo = true })
	b := a.signedIn()
	c := a.takeDown(devidp.Hooks{})
	a.told(b, "/orders/x")
	for _, call := range c.to("/userinfo") {
		_, token, _ := strings.Cut(call.header.Get("Authorization"), " ")
		if _, claims := unverified(t, token); claims["aud"] == "https://orders.example" {
			t.Errorf("userinfo was asked with the token for %v", claims["aud"])
		}
	}
}

// A provider that is busy does not end sessions, whatever its body says.
func TestTooManyRequestsEndNoSession(t *testing.T) {
	t.Parallel()
	for _, status := range []int{408, 429} {
		a := newApp(t, nil)
		b := a.signedIn()
		a.takeDown(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.PostFormValue("grant_type") != "refresh_token" {
				next.ServeHTTP(w, r)
				return
			}
			w.WriteHeader(status)
			io.WriteString(w, `{"error":"invalid_grant","error_description":"too many requests"}`)
		}})
		b.Fetch("POST", "/bff/session/refresh")
		a.wantSession(b, "alice")
	}
}

// A provider that binds tokens to certificates says so (RFC 8705 3.3), and a route cannot show another one than they are bound to.
func TestTokensHaveToBeBoundToTheCertificateThatIsShown(t *testing.T) {
	t.Parallel()
	cert, other := certificate(t, ecKey(t)), certificate(t, ecKey(t))
	t.Run("the provider does not bind", func(t *testing.T) {
		a := newAppWith(t, func(c *devidp.Config) { c.Clients[0].Certificate, c.Clients[0].Secret = cert.Leaf, "" }, func(a *app, cfg *bff.Config) {
			cfg.Provider.ClientSecret, cfg.Provider.ClientAuth, cfg.Provider.ClientCertificate = "", "self_signed_tls_client_auth", cert
			cfg.Provider.SenderConstraint, cfg.Provider.RootCAs = "mtls", a.provider.Roots
			cfg.Routes = nil
			a.provider.Misbehave(t, bfftest.Discovery("", func(m map[string]any) { delete(m, "tls_client_certificate_bound_access_tokens") }))
		})
		waitFor(t, "it is said", func() bool { return strings.Contains(a.logs.String(), "does not bind access tokens to certificates") })
		wantPage(t, a.browser().Navigate("/bff/login"), 503, "provider_unavailable")
	})
	t.Run("the route shows another", func(t *testing.T) {
		_, err := bff.New(bff.Config{PublicURL: "https://app.example", Provider: bff.ProviderConfig{
			Issuer: "https://id.example", ClientID: "spa", ClientAuth: "tls_client_auth", ClientCertificate: cert, SenderConstraint: "mtls",
		}, Routes: []bff.Route{{Path: "/api/", Upstream: []string{"https://api.internal"}, Token: "user", TLS: &tls.Config{Certificates: []tls.Certificate{*other}, RootCAs: x509.NewCertPool()}}}})
		if err == nil || !strings.Contains(err.Error(), "Routes[0]") {
			t.Errorf("got %v", err)
		}
	})
}

// FAPI 2.0 5.4: PS256, ES256 and EdDSA.
func TestFAPI2TakesNoRS256(t *testing.T) {
	t.Parallel()
	provider, edit := withKeys(ecKey(t))
	a := newAppWith(t, provider, func(a *app, cfg *bff.Config) {
		edit(a, cfg)
		cfg.Provider.FAPI2 = true
	})
	var alg string
	a.takeDown(devidp.Hooks{EditTokenResponse: func(_ string, _ int, body map[string]any) {
		if raw, ok := body["id_token"].(string); ok {
			header, _ := unverified(t, raw)
			alg = fmt.Sprint(header["alg"])
		}
	}})
	if answer := a.browser().SignIn("alice", ""); answer.StatusCode == 303 {
		t.Errorf("an ID token signed with %s is taken", alg)
	}
}

// NaN is no time.
func TestExpiresInThatIsNotANumberSaysNothing(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	a.takeDown(devidp.Hooks{EditTokenResponse: func(_ string, _ int, body map[string]any) { body["expires_in"] = "NaN" }})
	b := a.signedIn()
	for range 10 {
		b.Fetch("GET", "/api/x")
	}
	if n := a.provider.Refreshes(); n > 1 {
		t.Errorf("%d refreshes for 10 API calls", n)
	}
}

// OpenID Connect Core 3.1.3.7 (12, 13): what is asked for is looked at, whoever asked.
func TestWhatTheOperatorAlwaysAsksForIsVerified(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.Provider.Parameters = map[string]string{"acr_values": "gold", "max_age": "60"}
	})
	a.takeDown(devidp.Hooks{EditIDToken: func(_, claims map[string]any) {
		claims["acr"], claims["auth_time"] = "silver", time.Now().Add(-time.Hour).Unix()
	}})
	if answer := a.browser().SignIn("alice", ""); answer.StatusCode == 303 {
		t.Error("acr_values=gold and max_age=60 were sent, silver of an hour ago is taken")
	}
}

// A scope that is there and empty is none.
func TestAnEmptyScopeIsNone(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Routes[0].Require.Scopes = []string{"email"} })
	a.takeDown(devidp.Hooks{EditTokenResponse: func(_ string, _ int, body map[string]any) { body["scope"] = "" }})
	b := a.signedIn()
	wantProblem(t, b.Fetch("GET", "/api/x"), 403, "insufficient_scope")
}

// A token that was exchanged without a scope in the request or the answer has none that could be relied on.
func TestAnExchangedTokenHasNoScopesThatNobodyGranted(t *testing.T) {
	t.Parallel()
	a := newTargetApp(t, func(_ *app, cfg *bff.Config) { cfg.Routes[4].Require.Scopes = []string{"email"} })
	a.takeDown(devidp.Hooks{EditTokenResponse: func(grant string, _ int, body map[string]any) {
		if strings.HasSuffix(grant, "token-exchange") {
			delete(body, "scope")
		}
	}})
	wantProblem(t, a.signedIn().Fetch("GET", "/exchanged/x"), 403, "insufficient_scope")
}

// Retry-After counts for the broker's own token too.
func TestTheBrokersOwnTokenIsAskedForWhenTheProviderSays(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(a *app, cfg *bff.Config) {
		cfg.Routes = []bff.Route{{Path: "/machine/", Upstream: []string{a.echo.URL}, Token: "client"}}
	})
	c := a.takeDown(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.PostFormValue("grant_type") != "client_credentials" {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Retry-After", "20")
		w.WriteHeader(429)
	}})
	b := a.browser()
	b.Fetch("GET", "/machine/x")
	time.Sleep(2100 * time.Millisecond)
	b.Fetch("GET", "/machine/x")
	if n := len(c.to("/token")); n != 1 {
		t.Errorf("asked %d times within 3 s of Retry-After: 20", n)
	}
}

// RFC 9700 4.12: redirects after a POST are 303. And no form-action keeps a browser from following one to the provider.
func TestAPostedAnswerThatBeginsAgainReachesTheProvider(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Provider.ResponseMode = "form_post" })
	b := a.browser()
	page := b.Follow(b.Navigate("/bff/login"), "")
	page = b.Submit(page.Request.URL.String(), url.Values{"user": {"alice"}, "csrf": {bfftest.HiddenFields(page.Text).Get("csrf")}})
	form := bfftest.HiddenFields(page.Text)
	b.DropCookies() // stale
	first := b.Do("POST", "/bff/callback", form.Encode(), "Content-Type", "application/x-www-form-urlencoded", "Accept", "text/html", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document", "Sec-Fetch-Site", "cross-site")
	answer := b.Submit("/bff/callback", bfftest.HiddenFields(first.Text))
	if answer.StatusCode != 303 {
		t.Errorf("got %d to %s after a POST, want 303", answer.StatusCode, answer.Location(t).Host)
	}
	if csp := first.Header.Get("Content-Security-Policy"); strings.Contains(csp, "form-action") { // which Chromium applies to the redirects after a form
		t.Errorf("the page says %s", csp)
	}
}

// One whose characters take more room than they seem to.
func TestAReturnToThatDoesNotFitIntoTheCookieIsTheFrontPage(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	if answer := a.browser().Navigate("/bff/login?" + url.Values{"return_to": {"/?" + strings.Repeat(`"`, 1000)}}.Encode()); answer.StatusCode != 302 {
		t.Errorf("got %d", answer.StatusCode)
	}
}

// RFC 9101 4.
func TestMaxAgeInASignedRequestIsANumber(t *testing.T) {
	t.Parallel()
	provider, edit := withKeys(ecKey(t))
	a := newAppWith(t, provider, func(a *app, cfg *bff.Config) {
		edit(a, cfg)
		cfg.Provider.SignRequests, cfg.Provider.PushedRequests = true, "never"
	})
	u := a.browser().Navigate("/bff/login?max_age=60").Location(t)
	_, claims := unverified(t, u.Query().Get("request"))
	if _, ok := claims["max_age"].(float64); !ok {
		t.Errorf("max_age is %#v", claims["max_age"])
	}
}

// RFC 7009 2.2.1.
func TestARefreshTokenIsRevokedLaterWhateverBecomesOfTheAccessToken(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	var mu sync.Mutex
	tries := 0
	a.takeDown(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch {
		case !strings.HasSuffix(r.URL.Path, "/revoke"):
		case r.PostFormValue("token_type_hint") == "access_token":
			w.WriteHeader(400)
			io.WriteString(w, `{"error":"invalid_request"}`)
			return
		default:
			mu.Lock()
			tries++
			first := tries == 1
			mu.Unlock()
			if first {
				panic(http.ErrAbortHandler)
			}
		}
		next.ServeHTTP(w, r)
	}})
	b.Submit("/bff/logout", nil)
	time.Sleep(3 * time.Second)
	mu.Lock()
	defer mu.Unlock()
	if n := a.provider.LiveRefreshTokens(); n > 0 {
		t.Errorf("the refresh token lives on; %d tries", tries)
	}
}

// A provider whose answer to a refresh is refused, for its token_type say, has rotated the refresh token all the same.
func TestARefusedAnswerLosesNoRotatedRefreshToken(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(body map[string]any){
		"token_type":      func(body map[string]any) { body["token_type"] = "DPoP" },
		"no access_token": func(body map[string]any) { delete(body, "access_token") },
	} {
		t.Run(name, func(t *testing.T) {
			a := newApp(t, nil)
			b := a.signedIn()
			a.takeDown(devidp.Hooks{EditTokenResponse: func(grant string, _ int, body map[string]any) { spoil(body) }})
			wantProblem(t, b.Fetch("POST", "/bff/session/refresh"), 503, "provider_unavailable")
			a.provider.Behave()
			time.Sleep(1200 * time.Millisecond)
			wantOK(t, b.Fetch("POST", "/bff/session/refresh"))
			a.wantSession(b, "alice")
			if n := a.provider.Reuses(); n > 0 {
				t.Errorf("%d spent refresh tokens were sent", n)
			}
		})
	}
}

// Where tokens are to be bound from now on, those of sessions from before are too.
func TestSessionsFromBeforeTokensWereBoundAreBoundAtTheirNextRefresh(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	next, err := bff.New(bff.Config{
		PublicURL: a.url,
		Provider:  bff.ProviderConfig{Issuer: a.provider.Issuer, ClientID: a.provider.Client.ID, ClientSecret: session.Secret(a.provider.Client.Secret), SenderConstraint: "dpop"},
		Sessions:  session.Config{Store: a.store, Keys: [][]byte{bytes.Repeat([]byte("k"), 32)}},
		Routes:    []bff.Route{{Path: "/api/", Upstream: []string{a.echo.URL}, Token: "user"}},
		Logger:    slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: next}
	go server.Serve(l)
	next.Start()
	defer next.Close(context.Background())
	defer server.Close()
	if err := next.Found(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, call := range [][2]string{{"POST", "/bff/session/refresh"}, {"GET", "/api/x"}} {
		req, _ := http.NewRequest(call[0], "http://"+l.Addr().String()+call[1], nil)
		req.Host = strings.TrimPrefix(a.url, "http://")
		req.Header.Set("X-CSRF", "1")
		req.AddCookie(&http.Cookie{Name: b.Cookies()[0].Name, Value: b.Cookies()[0].Value})
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if strings.Contains(string(text), `"Bearer `) {
			t.Errorf("%s: the upstream got a bearer token, sender_constraint is dpop", call[1])
		}
	}
}

// FAPI 2.0 5.4 again: what we sign with.
func TestFAPI2TakesNoKeyOfP384(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, err = bff.New(bff.Config{PublicURL: "https://app.example", Provider: bff.ProviderConfig{
		Issuer: "https://id.example", ClientID: "spa", ClientAuth: "private_key_jwt", ClientKeys: []crypto.Signer{key}, FAPI2: true,
	}})
	if err == nil || !strings.Contains(err.Error(), "ClientKeys") {
		t.Errorf("got %v, want ClientKeys refused: ES384 is not among PS256, ES256 and Ed25519", err)
	}
}
