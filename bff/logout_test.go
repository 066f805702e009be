package bff_test

import (
	"encoding/base64"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
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
		if resp.StatusCode != 200 || !strings.HasPrefix(got.RedirectTo, "/bff/logout/continue?") {
			t.Fatalf("got %d %s, want a path of this origin", resp.StatusCode, resp.Text)
		}
		onward := b.Navigate(got.RedirectTo, "Sec-Fetch-Site", "same-origin")
		u := onward.Location(t)
		if onward.StatusCode != 303 || !strings.HasPrefix(u.String(), a.provider.Issuer) ||
			u.Query().Get("client_id") != a.provider.Client.ID {
			t.Errorf("got %d to %s, want the provider's end_session", onward.StatusCode, u)
		}
		a.wantSession(b, "")
		b.SetCookie(&http.Cookie{Name: old.Name, Value: old.Value, Path: "/"})
		a.wantSession(b, "")
		wantProblem(t, b.Fetch("GET", "/api/x"), 401, "not_signed_in")
		if n := a.provider.LiveRefreshTokens(); n != 0 {
			t.Errorf("%d refresh tokens are still good", n)
		}
	})
	t.Run("without a session the answer is the same", func(t *testing.T) {
		b := a.browser()
		got := b.Submit("/bff/logout", nil)
		if got.StatusCode != 303 || !strings.HasPrefix(got.Location(t).String(), a.provider.Issuer) {
			t.Errorf("by form: got %d", got.StatusCode)
		}
		if got := b.Fetch("POST", "/bff/logout"); got.StatusCode != 200 || !strings.Contains(got.Text, "redirect_to") {
			t.Errorf("by fetch: got %d %s", got.StatusCode, got.Text)
		}
	})
	t.Run("of another site", func(t *testing.T) {
		b := a.signedIn()
		for name, resp := range map[string]*bfftest.Response{
			"form": b.Do("POST", "/bff/logout", "", "Origin", "https://evil.example",
				"Sec-Fetch-Site", "cross-site"),
			"form of a sibling": b.Do("POST", "/bff/logout", "", "Origin", "http://evil.localhost",
				"Sec-Fetch-Site", "same-site"),
			"who says nothing": b.Do("POST", "/bff/logout", ""),
			"sandboxed":        b.Do("POST", "/bff/logout", "", "Origin", "null"),
		} {
			if resp.StatusCode != 403 || resp.Code() != "csrf" || len(resp.Cookies()) > 0 {
				t.Errorf("%s: got %d %s with cookies %v, want 403 csrf and none", name,
					resp.StatusCode, resp.Code(), resp.Cookies())
			}
		}
		wantProblem(t, b.Navigate("/bff/logout"), 405, "method_not_allowed")
		a.wantSession(b, "alice")
	})
	t.Run("the provider out of reach", func(t *testing.T) {
		for _, m := range brokertest.RevocationFaults {
			before := a.provider.LiveRefreshTokens()
			b := a.signedIn()
			a.provider.Misbehave(t, m)
			if got := b.Submit("/bff/logout", nil).StatusCode; got != 303 {
				t.Errorf("%s: got %d, want 303", m.Name, got)
			}
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
			if got := back.Location(t).String(); back.StatusCode != 303 || got != a.url+want {
				t.Errorf("%q: got %d to %s, want 303 to %s", returnTo, back.StatusCode, got, want)
			}
		}
	})
	t.Run("a state that is not ours", func(t *testing.T) {
		b := a.browser()
		for _, state := range []string{"", "x", "//evil.example", base64.URLEncoding.EncodeToString([]byte("/x"))} {
			got := b.Navigate("/bff/logout/callback?state=" + url.QueryEscape(state))
			if got.StatusCode != 303 || got.Location(t).String() != a.url+"/" {
				t.Errorf("%q: got %d to %s, want 303 to /", state, got.StatusCode, got.Location(t))
			}
		}
	})
}

func TestLogoutRevokesBothTokens(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		respond func(w http.ResponseWriter, hint string) bool // false: the provider's own
		log     string
	}{
		"as it should be": {func(http.ResponseWriter, string) bool { return false }, ""},
		"a provider that does not revoke access tokens": {func(w http.ResponseWriter, hint string) bool {
			if hint == "access_token" {
				w.WriteHeader(400)
				w.Write([]byte(`{"error":"unsupported_token_type"}`))
			}
			return hint == "access_token"
		}, ""},
		"a provider that refuses": {func(w http.ResponseWriter, _ string) bool {
			w.WriteHeader(401)
			w.Write([]byte(`{"error":"invalid_client"}`))
			return true
		}, "not revoked"},
		"a body that means nothing": {func(w http.ResponseWriter, _ string) bool {
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
			if resp := b.Submit("/bff/logout", nil); resp.StatusCode != 303 {
				t.Errorf("got %d", resp.StatusCode)
			}
			hints := make(map[string]int)
			for _, call := range c.to("/revoke") {
				hints[call.form.Get("token_type_hint")]++
			}
			if hints["refresh_token"] != 1 || hints["access_token"] != 1 {
				t.Errorf("revoked: %v", hints)
			}
			if said := strings.Contains(a.logs.String(), "not revoked"); said != (test.log != "") {
				t.Errorf("a fault is logged: %v", said)
			}
			a.wantSession(b, "")
		})
	}
}

func TestNonStandardLogoutEndpoints(t *testing.T) {
	t.Parallel()
	t.Run("an address and a parameter of their own", func(t *testing.T) {
		a := newApp(t, func(a *app, cfg *bff.Config) {
			cfg.Provider.LogoutURL = "https://login.example/logout?tenant=1"
			cfg.Provider.LogoutRedirectParameter = "logout_uri"
		})
		b := a.signedIn()
		to := b.Submit("/bff/logout", nil).Location(t)
		q := to.Query()
		if to.Host != "login.example" || q.Get("tenant") != "1" ||
			q.Get("logout_uri") != a.url+"/bff/logout/callback" ||
			q.Has("post_logout_redirect_uri") || q.Get("client_id") != "spa" {
			t.Errorf("sent to %s", to)
		}
	})
	t.Run("not at all", func(t *testing.T) {
		a := newApp(t, func(a *app, cfg *bff.Config) {
			a.provider.Misbehave(t, brokertest.Discovery("", func(m map[string]any) {
				delete(m, "end_session_endpoint")
				delete(m, "revocation_endpoint")
			}))
		})
		a.waitReady()
		b := a.signedIn()
		resp := b.Submit("/bff/logout", url.Values{"return_to": {"/bye"}})
		if resp.StatusCode != 303 || resp.Header.Get("Location") != "/bye" {
			t.Errorf("got %d %s", resp.StatusCode, resp.Header.Get("Location"))
		}
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
				t.Errorf("keep %v: got %s, want %s", keep, got, want)
			}
		}
	}
}

// RFC 7009 2.2.1.
func TestRefreshTokenRevocationIsRetried(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	var mu sync.Mutex
	tries := 0
	a.recordCalls(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
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

// RP-Initiated Logout 2, 3.
func TestLogoutRequestParameters(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	constant := func(t *testing.T, resp *bfftest.Response) url.Values {
		t.Helper()
		to := resp.Location(t)
		q := to.Query()
		if !strings.HasPrefix(to.String(), a.provider.Issuer+"/logout?") ||
			q.Get("client_id") != "spa" || q.Get("post_logout_redirect_uri") != a.url+"/bff/logout/callback" {
			t.Errorf("sent to %s", to)
		}
		return to.Query()
	}
	post := func(b *bfftest.Browser) *bfftest.Response {
		return b.Do("POST", "/bff/logout", "", "Content-Type", "application/x-www-form-urlencoded",
			"Accept", "text/html", "Origin", a.url, "Sec-Fetch-Site", "same-origin", "Sec-Fetch-Mode", "navigate",
			"X-Forwarded-Host", "evil.example", "X-Forwarded-Proto", "https",
			"X-Forwarded-Prefix", "/evil", "Forwarded", "host=evil.example")
	}
	t.Run("the ID token, though it has expired", func(t *testing.T) {
		var idToken string
		a.recordCalls(devidp.Hooks{
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

// RFC 7009 2.2.1.
func TestRevocationRetriesAreBounded(t *testing.T) {
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
			a.recordCalls(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
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
			if err := a.stop(); err != nil { // waits for those that are to be made
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
