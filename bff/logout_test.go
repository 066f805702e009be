package bff_test

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

func TestLogout(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	t.Run("by fetch", func(t *testing.T) {
		b := a.signedIn()
		old := b.Cookies()[0]
		resp := b.Fetch("POST", "/bff/logout")
		var got struct {
			RedirectTo string `json:"redirect_to"`
		}
		resp.Decode(t, &got)
		wantStatus(t, "logout", resp, 200)
		if !strings.HasPrefix(got.RedirectTo, "/bff/logout/continue?") {
			t.Fatalf("redirect_to: got %q, want a path of this origin", got.RedirectTo)
		}
		onward := b.Navigate(got.RedirectTo, "Sec-Fetch-Site", "same-origin")
		u := onward.Location(t)
		wantStatus(t, "redirect_to", onward, 303)
		if !strings.HasPrefix(u.String(), a.provider.Issuer) {
			t.Errorf("Location: got %s, want the provider's end_session_endpoint", u)
		}
		if got := u.Query().Get("client_id"); got != a.provider.Client.ID {
			t.Errorf("client_id: got %q, want %q", got, a.provider.Client.ID)
		}
		a.wantSession(b, "")
		b.SetCookie(&http.Cookie{Name: old.Name, Value: old.Value, Path: "/"})
		a.wantSession(b, "")
		wantProblem(t, b.Fetch("GET", "/api/x"), 401, "not_signed_in")
		if n := a.provider.LiveRefreshTokens(); n != 0 {
			t.Errorf("%d refresh tokens are still valid, want none", n)
		}
	})
	t.Run("without a session the response is the same", func(t *testing.T) {
		b := a.browser()
		byForm := b.Submit("/bff/logout", nil)
		wantStatus(t, "by form", byForm, 303)
		if to := byForm.Location(t).String(); !strings.HasPrefix(to, a.provider.Issuer) {
			t.Errorf("by form: Location: got %s, want the provider", to)
		}
		byFetch := b.Fetch("POST", "/bff/logout")
		wantStatus(t, "by fetch", byFetch, 200)
		if !strings.Contains(byFetch.Text, "redirect_to") {
			t.Errorf("by fetch: no redirect_to in %s", byFetch.Text)
		}
	})
	t.Run("from another site", func(t *testing.T) {
		b := a.signedIn()
		for name, resp := range map[string]*bfftest.Response{
			"form": b.Do("POST", "/bff/logout", "", "Origin", "https://evil.example",
				"Sec-Fetch-Site", "cross-site"),
			"same-site form": b.Do("POST", "/bff/logout", "", "Origin", "http://evil.localhost",
				"Sec-Fetch-Site", "same-site"),
			"no headers": b.Do("POST", "/bff/logout", ""),
			"sandboxed":  b.Do("POST", "/bff/logout", "", "Origin", "null"),
		} {
			wantStatus(t, name, resp, 403)
			if got := resp.Code(); got != "csrf" {
				t.Errorf("%s: code: got %q, want csrf", name, got)
			}
			if got := resp.Cookies(); len(got) > 0 {
				t.Errorf("%s: cookies: got %v, want none", name, got)
			}
		}
		wantProblem(t, b.Navigate("/bff/logout"), 405, "method_not_allowed")
		a.wantSession(b, "alice")
	})
	t.Run("with a provider that fails", func(t *testing.T) {
		for _, m := range brokertest.RevocationFaults {
			before := a.provider.LiveRefreshTokens()
			b := a.signedIn()
			a.provider.Misbehave(t, m)
			wantStatus(t, m.Name, b.Submit("/bff/logout", nil), 303)
			a.wantSession(b, "")
			a.provider.Behave()
			waitFor(t, m.Name+": the token is revoked later", func() bool {
				return a.provider.LiveRefreshTokens() == before
			})
		}
	})
	t.Run("return_to", func(t *testing.T) {
		for returnTo, want := range map[string]string{
			"/bye?x=1":             "/bye?x=1",
			"//evil.example":       "/",
			"https://evil.example": "/",
			"":                     "/",
		} {
			b := a.signedIn()
			out := b.Submit("/bff/logout", url.Values{"return_to": {returnTo}})
			back := b.Navigate(b.Navigate(out.Location(t).String()).Location(t).String())
			wantRedirect(t, returnTo, back, 303, want)
		}
		b := a.signedIn()
		out := b.Submit("/bff/logout?return_to=/bye;a=1&x=%", nil)
		back := b.Navigate(b.Navigate(out.Location(t).String()).Location(t).String())
		wantRedirect(t, "a query as browsers leave it", back, 303, "/bye;a=1")
	})
	t.Run("with a forged state", func(t *testing.T) {
		b := a.browser()
		for _, state := range []string{"", "x", "//evil.example", base64.URLEncoding.EncodeToString([]byte("/x"))} {
			got := b.Navigate("/bff/logout/callback?state=" + url.QueryEscape(state))
			wantRedirect(t, "state "+state, got, 303, "/")
		}
	})
}

func TestLogoutRevokesBothTokens(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		respond func(w http.ResponseWriter, hint string) bool // false: let the provider respond
		log     string
	}{
		"success": {func(http.ResponseWriter, string) bool { return false }, ""},
		"access tokens are not supported": {func(w http.ResponseWriter, hint string) bool {
			if hint == "access_token" {
				w.WriteHeader(400)
				w.Write([]byte(`{"error":"unsupported_token_type"}`))
			}
			return hint == "access_token"
		}, ""},
		"invalid_client": {func(w http.ResponseWriter, _ string) bool {
			w.WriteHeader(401)
			w.Write([]byte(`{"error":"invalid_client"}`))
			return true
		}, "not revoked"},
		"200 with an error in the body": {func(w http.ResponseWriter, _ string) bool {
			w.Write([]byte(`{"error":"invalid_client"}`))
			return true
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			a := newApp(t, nil)
			b := a.signedIn()
			c := a.recordCalls(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if !strings.HasSuffix(r.URL.Path, "/revoke") || !test.respond(w, r.PostFormValue("token_type_hint")) {
					next.ServeHTTP(w, r)
				}
			}})
			wantStatus(t, "logout", b.Submit("/bff/logout", nil), 303)
			hints := make(map[string]int)
			for _, call := range c.to("/revoke") {
				hints[call.form.Get("token_type_hint")]++
			}
			for _, hint := range []string{"refresh_token", "access_token"} {
				if hints[hint] != 1 {
					t.Errorf("revocations of the %s: got %d, want 1", hint, hints[hint])
				}
			}
			if got, want := strings.Contains(a.logs.String(), "not revoked"), test.log != ""; got != want {
				t.Errorf("failure is logged: got %v, want %v", got, want)
			}
			a.wantSession(b, "")
		})
	}
}

func TestNonStandardLogoutEndpoints(t *testing.T) {
	t.Parallel()
	t.Run("another URL and parameter", func(t *testing.T) {
		a := newApp(t, func(a *app, cfg *bff.Config) {
			cfg.Provider.LogoutURL = "https://login.example/logout?tenant=1"
			cfg.Provider.LogoutRedirectParameter = "logout_uri"
		})
		b := a.signedIn()
		to := b.Submit("/bff/logout", nil).Location(t)
		q := to.Query()
		if to.Host != "login.example" {
			t.Errorf("host: got %s, want login.example", to.Host)
		}
		for name, want := range map[string]string{
			"tenant": "1", "logout_uri": a.url + "/bff/logout/callback", "client_id": "spa",
		} {
			if got := q.Get(name); got != want {
				t.Errorf("%s: got %q, want %q", name, got, want)
			}
		}
		if q.Has("post_logout_redirect_uri") {
			t.Errorf("post_logout_redirect_uri is present in %s", to)
		}
	})
	t.Run("no endpoint", func(t *testing.T) {
		a := newApp(t, func(a *app, cfg *bff.Config) {
			a.provider.Misbehave(t, brokertest.Discovery("", func(m map[string]any) {
				delete(m, "end_session_endpoint")
				delete(m, "revocation_endpoint")
			}))
		})
		a.waitReady()
		b := a.signedIn()
		resp := b.Submit("/bff/logout", url.Values{"return_to": {"/bye"}})
		wantRedirect(t, "logout", resp, 303, "/bye")
		a.wantSession(b, "")
	})
}

func TestLogoutClearsBrowserStorage(t *testing.T) {
	t.Parallel()
	for keep, want := range map[bool]string{false: `"storage"`, true: ""} {
		a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.KeepStorage = keep })
		b := a.signedIn()
		for _, resp := range []*bfftest.Response{b.Fetch("POST", "/bff/logout"), b.Submit("/bff/logout", nil)} {
			if got := resp.Header.Get("Clear-Site-Data"); got != want {
				t.Errorf("KeepStorage %v: Clear-Site-Data: got %q, want %q", keep, got, want)
			}
		}
	}
}

// RFC 7009 2.2.1: a failed revocation of the refresh token is retried, also if
// the provider does not revoke access tokens.
func TestRefreshTokenRevocationIsRetried(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	var mu sync.Mutex
	attempts := 0
	a.recordCalls(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch {
		case !strings.HasSuffix(r.URL.Path, "/revoke"):
		case r.PostFormValue("token_type_hint") == "access_token":
			w.WriteHeader(400)
			io.WriteString(w, `{"error":"invalid_request"}`)
			return
		default:
			mu.Lock()
			attempts++
			first := attempts == 1
			mu.Unlock()
			if first {
				panic(http.ErrAbortHandler)
			}
		}
		next.ServeHTTP(w, r)
	}})
	b.Submit("/bff/logout", nil)
	a.wantNoLiveRefreshTokens("a revocation that failed once")
}

// A replica that has just started does not know yet where to revoke tokens.
func TestLogoutBeforeDiscoveryRevokesTheTokens(t *testing.T) {
	t.Parallel()
	for name, failures := range map[string]int32{"the first attempt is slow": 0, "the first attempt fails": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var cfg bff.Config
			a := newApp(t, func(_ *app, c *bff.Config) { cfg = *c })
			b := a.signedIn()
			var attempts atomic.Int32
			slow := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if strings.Contains(r.URL.Path, "/.well-known/") {
					time.Sleep(300 * time.Millisecond)
					if attempts.Add(1) <= failures {
						w.WriteHeader(503)
						return
					}
				}
				next.ServeHTTP(w, r)
			}
			a.provider.SetHooks(devidp.Hooks{Intercept: slow})
			_, at := replica(t, cfg)
			resp := b.Fetch("POST", at+"/bff/logout", "Host", strings.TrimPrefix(a.url, "http://"))
			wantStatus(t, "logout", resp, 200)
			if atProvider := strings.Contains(resp.Text, "/bff/logout/continue"); atProvider != (failures == 0) {
				t.Errorf("sign-out at the provider: got %t: %s", atProvider, resp.Text)
			}
			a.wantNoLiveRefreshTokens(name)
		})
	}
}

// The tokens of a refresh whose response comes after the logout are revoked,
// also if the first attempt fails.
func TestTokensOfARefreshDuringALogoutAreRevoked(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.expired()
	issued, release := make(chan string, 1), make(chan struct{})
	var mu sync.Mutex
	attempts := make(map[string]int) // :: token → requests to revoke it
	a.provider.SetHooks(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch {
		case r.PostFormValue("grant_type") == "refresh_token":
			resp := httptest.NewRecorder()
			next.ServeHTTP(resp, r)
			var tokens struct {
				Refresh string `json:"refresh_token"`
			}
			json.Unmarshal(resp.Body.Bytes(), &tokens)
			issued <- tokens.Refresh
			<-release
			w.Header().Set("Content-Type", "application/json")
			w.Write(resp.Body.Bytes())
			return
		case strings.HasSuffix(r.URL.Path, "/revoke"):
			mu.Lock()
			attempts[r.PostFormValue("token")]++
			first := attempts[r.PostFormValue("token")] == 1
			mu.Unlock()
			if first {
				w.Header().Set("Retry-After", "1")
				w.WriteHeader(503)
				return
			}
		}
		next.ServeHTTP(w, r)
	}})
	var calling sync.WaitGroup
	calling.Go(func() { b.Fetch("GET", "/api/x") })
	token := <-issued
	wantStatus(t, "logout", b.Submit("/bff/logout", nil), 303)
	close(release)
	calling.Wait()
	waitFor(t, "the new refresh token is revoked at the second attempt", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return attempts[token] == 2
	})
}

// RP-Initiated Logout 2, 3.
func TestLogoutRequestParameters(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	// checkFixed checks the parameters that every logout request has.
	checkFixed := func(t *testing.T, resp *bfftest.Response) url.Values {
		t.Helper()
		to := resp.Location(t)
		q := to.Query()
		if want := a.provider.Issuer + "/logout?"; !strings.HasPrefix(to.String(), want) {
			t.Errorf("Location: got %s, want prefix %s", to, want)
		}
		if got := q.Get("client_id"); got != "spa" {
			t.Errorf("client_id: got %q, want spa", got)
		}
		if got, want := q.Get("post_logout_redirect_uri"), a.url+"/bff/logout/callback"; got != want {
			t.Errorf("post_logout_redirect_uri: got %q, want %q", got, want)
		}
		return q
	}
	post := func(b *bfftest.Browser) *bfftest.Response {
		return b.Do("POST", "/bff/logout", "", "Content-Type", "application/x-www-form-urlencoded",
			"Accept", "text/html", "Origin", a.url, "Sec-Fetch-Site", "same-origin", "Sec-Fetch-Mode", "navigate",
			"X-Forwarded-Host", "evil.example", "X-Forwarded-Proto", "https",
			"X-Forwarded-Prefix", "/evil", "Forwarded", "host=evil.example")
	}
	t.Run("an expired ID token is the hint", func(t *testing.T) {
		var idToken string
		a.recordCalls(devidp.Hooks{
			EditIDToken: func(_, claims map[string]any) {
				claims["iat"] = time.Now().Add(-time.Minute).Unix()
				claims["exp"] = time.Now().Add(-time.Second).Unix()
			},
			EditTokenResponse: func(_ string, _ int, body map[string]any) { idToken, _ = body["id_token"].(string) },
		})
		b := a.signedIn()
		q := checkFixed(t, post(b))
		if idToken == "" {
			t.Fatal("the provider issued no ID token")
		}
		if q.Get("id_token_hint") != idToken {
			t.Error("id_token_hint is not the ID token of the login")
		}
	})
	t.Run("without a session there is no hint", func(t *testing.T) {
		if q := checkFixed(t, post(a.browser())); q.Has("id_token_hint") {
			t.Error("id_token_hint is present, want none")
		}
	})
}

// RFC 7009 2.2.1: only a 503 is retried, after Retry-After, a few times.
func TestRevocationRetriesAreBounded(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		status     int
		retryAfter string
		attempts   int           // for the refresh token
		gap        time.Duration // minimum between the first two
	}{
		"503 every time": {503, "1", 4, time.Second},
		"503 once":       {503, "3", 2, 3 * time.Second},
		"other error":    {400, "1", 1, 0},
		"unknown client": {401, "", 1, 0},
		"not found":      {404, "", 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newApp(t, nil)
			b := a.signedIn()
			var mu sync.Mutex
			var attempts []time.Time
			a.recordCalls(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if !strings.HasSuffix(r.URL.Path, "/revoke") || r.PostFormValue("token_type_hint") != "refresh_token" {
					next.ServeHTTP(w, r)
					return
				}
				mu.Lock()
				attempts = append(attempts, time.Now())
				n := len(attempts)
				mu.Unlock()
				if name == "503 once" && n > 1 {
					next.ServeHTTP(w, r)
					return
				}
				if test.retryAfter != "" {
					w.Header().Set("Retry-After", test.retryAfter)
				}
				w.WriteHeader(test.status)
			}})
			wantStatus(t, "logout", b.Submit("/bff/logout", nil), 303)
			if err := a.stop(); err != nil { // waits for pending revocations
				t.Fatal(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if len(attempts) != test.attempts {
				t.Fatalf("attempts at %v, want %d", attempts, test.attempts)
			}
			if test.gap > 0 && attempts[1].Sub(attempts[0]) < test.gap {
				t.Errorf("second attempt %v after the first, want at least %v",
					attempts[1].Sub(attempts[0]), test.gap)
			}
			if !strings.Contains(a.logs.String(), "not revoked") {
				t.Error(`no log line with "not revoked"`)
			}
		})
	}
}
