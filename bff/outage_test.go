package bff_test

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// onRefresh lets deal handle the refresh requests to the provider. n counts
// them from 1.
func (a *app) onRefresh(deal func(n int, w http.ResponseWriter, r *http.Request, provider http.Handler)) *calls {
	var mu sync.Mutex
	n := 0
	return a.recordCalls(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, provider http.Handler) {
		if r.PostForm.Get("grant_type") != "refresh_token" {
			provider.ServeHTTP(w, r)
			return
		}
		mu.Lock()
		n++
		this := n
		mu.Unlock()
		deal(this, w, r, provider)
	}})
}

func refuse(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"error":%q}`, code)
}

// OpenID Connect Core 3.1.2.6: only a login resolves these errors.
func TestInteractionRequiredAsksForALogin(t *testing.T) {
	t.Parallel()
	for _, code := range []string{
		"interaction_required", "login_required", "consent_required", "account_selection_required",
	} {
		for _, status := range []int{400, 401, 403} {
			t.Run(fmt.Sprint(code, " ", status), func(t *testing.T) {
				t.Parallel()
				a := newApp(t, nil)
				b := a.expired()
				calls := a.onRefresh(func(_ int, w http.ResponseWriter, _ *http.Request, _ http.Handler) {
					refuse(w, status, code)
				})
				for range 5 {
					resp := b.Fetch("GET", "/api/x")
					wantProblem(t, resp, 401, "insufficient_user_authentication")
					if !strings.Contains(resp.Text, `"login_url":"/bff/login"`) {
						t.Errorf("no login_url in %s", resp.Text)
					}
					got := resp.Header.Get("WWW-Authenticate")
					if !strings.Contains(got, "insufficient_user_authentication") {
						t.Errorf("WWW-Authenticate: got %q, want insufficient_user_authentication", got)
					}
				}
				wantProblem(t, b.Fetch("POST", "/bff/session/refresh"), 401, "insufficient_user_authentication")
				if n := len(calls.to("/token")); n != 1 {
					t.Errorf("%d token requests, want 1 until the user has signed in", n)
				}
				a.wantSession(b, "alice")
				a.provider.Behave()
				if got := b.SignIn("alice", ""); got.StatusCode != 303 {
					t.Fatalf("second login: got %d, want 303\n%s", got.StatusCode, got.Text)
				}
				wantOK(t, b.Fetch("GET", "/api/x"))
			})
		}
	}
}

func TestInteractionRequiredKeepsAValidToken(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Sessions.RefreshAhead = time.Hour })
	b := a.signedIn()
	a.onRefresh(func(_ int, w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		refuse(w, 400, "interaction_required")
	})
	wantProblem(t, b.Fetch("POST", "/bff/session/refresh"), 401, "insufficient_user_authentication")
	wantOK(t, b.Fetch("GET", "/api/x"))
}

// unsigned returns an access token with these claims and an invalid signature.
func unsigned(claims string) string {
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(`{"alg":"RS256","typ":"at+jwt"}`)) + "." + encode([]byte(claims)) + ".c2ln"
}

// RFC 6749 5.1: without expires_in the lifetime is unknown, not endless.
func TestTokenWithoutExpiresInExpires(t *testing.T) {
	t.Parallel()
	exp := func(in time.Duration) string { return fmt.Sprintf(`{"exp":%d}`, time.Now().Add(in).Unix()) }
	for name, test := range map[string]struct {
		access   func() string
		lifetime time.Duration
		want     int // number of refreshes after two calls
	}{
		"exp in an hour":                  {func() string { return unsigned(exp(time.Hour)) }, time.Millisecond, 0},
		"exp passed":                      {func() string { return unsigned(exp(-time.Hour)) }, time.Hour, 1},
		"opaque, short lifetime":          {func() string { return "opaque" }, time.Millisecond, 1},
		"opaque, long lifetime":           {func() string { return "opaque" }, time.Hour, 0},
		"opaque, default lifetime":        {func() string { return "opaque" }, 0, 0},
		"no exp, short lifetime":          {func() string { return unsigned(`{"sub":"alice"}`) }, time.Millisecond, 1},
		"exp is a string":                 {func() string { return unsigned(`{"exp":"soon"}`) }, time.Millisecond, 1},
		"exp is negative":                 {func() string { return unsigned(`{"exp":-1}`) }, time.Hour, 0},
		"exp is out of range":             {func() string { return unsigned(`{"exp":1e300}`) }, time.Millisecond, 1},
		"EXP instead of exp":              {func() string { return unsigned(`{"EXP":1}`) }, time.Hour, 0},
		"not JSON":                        {func() string { return "a.b.c" }, time.Millisecond, 1},
		"claims that are not an object":   {func() string { return unsigned(`[1]`) }, time.Millisecond, 1},
		"claims with the same name twice": {func() string { return unsigned(`{"exp":1,"exp":2}`) }, time.Hour, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Provider.AccessTokenLifetime = test.lifetime })
			a.provider.SetHooks(devidp.Hooks{
				SignAccessToken:   func(_, _ map[string]any) (string, error) { return test.access(), nil },
				EditTokenResponse: func(_ string, _ int, body map[string]any) { delete(body, "expires_in") },
			})
			b := a.signedIn()
			time.Sleep(10 * time.Millisecond)
			a.provider.Behave()
			for range 2 {
				wantOK(t, b.Fetch("GET", "/api/x"))
			}
			if n := a.provider.Refreshes(); n != test.want {
				t.Errorf("%d refreshes, want %d", n, test.want)
			}
		})
	}
}

// RFC 9110 10.2.3: what the provider asks for at a login is passed on, within
// bounds.
func TestLoginPassesRetryAfterOn(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		path   string
		status int
		asked  string
		want   string
	}{
		"pushed request, 429":      {"/par", 429, "20", "20"},
		"pushed request, 503":      {"/par", 503, "", "5"},
		"code exchange, 429":       {"/token", 429, "20", "20"},
		"code exchange, 503":       {"/token", 503, "", "5"},
		"code exchange, no number": {"/token", 503, "soon", "5"},
		"code exchange, an hour":   {"/token", 503, "3600", "30"},
		"code exchange, for ever":  {"/token", 503, "Fri, 31 Dec 9999 23:59:59 GMT", "30"},
		"userinfo, 429":            {"/userinfo", 429, "20", "20"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Provider.UserInfo = true })
			a.recordCalls(replaceResponse(test.path, func(w http.ResponseWriter, _ *http.Request) {
				if test.asked != "" {
					w.Header().Set("Retry-After", test.asked)
				}
				w.WriteHeader(test.status)
			}))
			b := a.browser()
			resp := b.Navigate("/bff/login")
			if test.path != "/par" {
				resp = b.SignIn("alice", "")
			}
			wantPage(t, resp, 503, "provider_unavailable")
			if got := resp.Header.Get("Retry-After"); got != test.want {
				t.Errorf("Retry-After: got %q, want %q", got, test.want)
			}
		})
	}
}

// RFC 9110 10.2.3: the refresh waits for the Retry-After of the provider, which
// is passed on.
func TestRefreshHonoursRetryAfter(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	for _, status := range []int{429, 503} {
		a := newApp(t, nil)
		b := a.expired()
		c := a.recordCalls(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.PostFormValue("grant_type") != "refresh_token" {
				next.ServeHTTP(w, r)
				return
			}
			w.Header().Set("Retry-After", "20")
			w.WriteHeader(status)
		}})
		for range 2 {
			resp := b.Fetch("GET", "/api/x")
			wantProblem(t, resp, 503, "provider_unavailable")
			// With jitter.
			got, err := strconv.Atoi(resp.Header.Get("Retry-After"))
			if err != nil {
				t.Errorf("%d: Retry-After: %v", status, err)
			}
			if got < 20 || got > 25 {
				t.Errorf("%d: Retry-After: got %d, want 20 to 25", status, got)
			}
			time.Sleep(1100 * time.Millisecond) // longer than the default backoff
		}
		if n := len(c.to("/token")); n != 1 {
			t.Errorf("%d: %d token requests, want 1", status, n)
		}
		a.provider.Behave()
		a.wantSession(b, "alice")
	}
}

// An expires_in that is not a number counts as missing.
func TestExpiresInNaNIsIgnored(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	a.recordCalls(devidp.Hooks{
		EditTokenResponse: func(_ string, _ int, body map[string]any) { body["expires_in"] = "NaN" },
	})
	b := a.signedIn()
	for range 10 {
		b.Fetch("GET", "/api/x")
	}
	if n := a.provider.Refreshes(); n > 1 {
		t.Errorf("%d refreshes for 10 API calls, want at most 1", n)
	}
}

// A busy provider does not end sessions, even with invalid_grant in the body.
func TestStatus408And429KeepTheSession(t *testing.T) {
	t.Parallel()
	for _, status := range []int{408, 429} {
		a := newApp(t, nil)
		b := a.signedIn()
		a.recordCalls(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
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

// A refresh request that may have arrived is not repeated: the provider may
// have rotated the refresh token. Callers wait for it at most for oidc.wait.
func TestRefreshInFlightIsNotRepeated(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Provider.Wait = 2 * time.Second })
	b := a.expired()
	release := make(chan struct{})
	calls := a.onRefresh(func(_ int, w http.ResponseWriter, r *http.Request, provider http.Handler) {
		<-release
		provider.ServeHTTP(w, r)
	})
	for until := time.Now().Add(6 * time.Second); time.Now().Before(until); {
		resp := b.Fetch("GET", "/api/x")
		wantProblem(t, resp, 503, "provider_unavailable")
		if resp.Header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
	}
	close(release)
	waitFor(t, "the refresh succeeds", func() bool { return b.Fetch("GET", "/api/x").StatusCode == 200 })
	if n := len(calls.to("/token")); n != 1 {
		t.Errorf("%d refresh requests, want 1", n)
	}
	a.wantSession(b, "alice")
}

// In an outage the provider gets one probe at a time, however many sessions
// wait. The first success ends the outage for all of them.
func TestAllSessionsWaitForTheProviderTogether(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	a := newApp(t, nil)
	const users = 8
	var expired []func() int
	for range users {
		b := a.expired()
		expired = append(expired, func() int { return b.Fetch("GET", "/api/x").StatusCode })
	}
	var mu sync.Mutex
	down := true
	calls := a.onRefresh(func(_ int, w http.ResponseWriter, r *http.Request, provider http.Handler) {
		mu.Lock()
		fail := down
		mu.Unlock()
		if fail {
			http.Error(w, "out of order", http.StatusServiceUnavailable)
			return
		}
		provider.ServeHTTP(w, r)
	})
	callAll := func() map[int]int {
		var all sync.WaitGroup
		statuses := make(map[int]int)
		for _, call := range expired {
			all.Go(func() {
				status := call()
				mu.Lock()
				defer mu.Unlock()
				statuses[status]++
			})
		}
		all.Wait()
		return statuses
	}
	if got := callAll(); got[503] != users {
		t.Errorf("during the outage: %v, want %d times 503", got, users)
	}
	first := len(calls.to("/token")) // the first calls were concurrent
	if got := callAll(); got[503] != users {
		t.Errorf("during the outage: %v, want %d times 503", got, users)
	}
	if n := len(calls.to("/token")) - first; n > 10 {
		t.Errorf("%d token requests in 5 s of the outage, want one in 0.8 s", n)
	}
	mu.Lock()
	down = false
	mu.Unlock()
	if got := callAll(); got[200] != users {
		t.Errorf("after the outage: %v, want %d times 200", got, users)
	}
	text := a.logs.String()
	// before the outage was detected
	if n := strings.Count(text, `"level":"WARN","msg":"tokens not refreshed`); n > 3 {
		t.Errorf("%d log lines about failed refreshes, want at most 3", n)
	}
	for _, line := range []string{"provider unavailable", "provider recovered"} {
		if n := strings.Count(text, `"`+line); n != 1 {
			t.Errorf("%d log lines %q, want 1", n, line)
		}
	}
}

// A fault of one session's refresh is no outage.
func TestOneSessionThatFailsDelaysNoOther(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Provider.Wait = 2 * time.Second })
	poisoned := a.expired()
	first := ""
	a.onRefresh(func(n int, w http.ResponseWriter, r *http.Request, provider http.Handler) {
		if n == 1 {
			first = r.PostForm.Get("refresh_token")
		}
		if r.PostForm.Get("refresh_token") == first {
			http.Error(w, "out of order", http.StatusInternalServerError)
			return
		}
		provider.ServeHTTP(w, r)
	})
	wantProblem(t, poisoned.Fetch("GET", "/api/x"), 503, "provider_unavailable")
	for range 5 {
		b := a.signedIn()
		wantOK(t, b.Fetch("POST", "/bff/session/refresh"))
		wantProblem(t, poisoned.Fetch("GET", "/api/x"), 503, "provider_unavailable")
	}
}

// Any client can send codes, so a rejected code is no sign of an outage.
func TestFailedCodesDoNotOpenTheBreaker(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Provider.Wait = 2 * time.Second })
	b := a.expired()
	a.recordCalls(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, provider http.Handler) {
		if r.PostForm.Get("grant_type") == "authorization_code" {
			http.Error(w, "out of order", http.StatusInternalServerError)
			return
		}
		provider.ServeHTTP(w, r)
	}})
	for range 5 {
		wantPage(t, a.browser().SignIn("bob", ""), 503, "provider_unavailable")
	}
	wantOK(t, b.Fetch("GET", "/api/x"))
	if strings.Contains(a.logs.String(), "provider unavailable;") {
		t.Error("failed codes opened the circuit breaker")
	}
}

// If the provider does not respond, requests of every kind wait at most for
// oidc.wait.
func TestSilentProviderDelaysRequestsBriefly(t *testing.T) {
	t.Parallel()
	const wait = 2 * time.Second
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.Provider.Wait, cfg.Provider.UserInfo = wait, true
	})
	release := make(chan struct{})
	defer close(release)
	b := a.expired()
	callback := a.browser()
	u := callback.AuthResponse("alice", "").Location(t).String()
	a.recordCalls(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}})
	for name, call := range map[string]func() int{
		"an API call": func() int { return b.Fetch("GET", "/api/x").StatusCode },
		"a refresh":   func() int { return b.Fetch("POST", "/bff/session/refresh").StatusCode },
		"a login":     func() int { return a.browser().Navigate("/bff/login").StatusCode },
		"a callback":  func() int { return callback.Navigate(u).StatusCode },
	} {
		began := time.Now()
		if got := call(); got != 503 {
			t.Errorf("%s: got %d, want 503", name, got)
		}
		if took := time.Since(began); took > wait+5*time.Second {
			t.Errorf("%s: took %v", name, took)
		}
	}
	a.wantSession(b, "alice")
}

// broken fails requests to the token endpoint with err while it is set.
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
	return httpClient.Transport.RoundTrip(r)
}

// Network faults of a refresh say nothing about the session.
func TestNetworkFaultsOfRefreshKeepTheSession(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]error{
		"unknown host":        &net.DNSError{Err: "no such host", Name: "id.example", IsNotFound: true},
		"invalid certificate": &tls.CertificateVerificationError{Err: errors.New("unknown authority")},
		"refused connection":  &net.OpError{Op: "dial", Err: errors.New("connection refused")},
		"timeout":             context.DeadlineExceeded,
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
			waitFor(t, "the refresh succeeds", func() bool { return b.Fetch("GET", "/api/x").StatusCode == 200 })
		})
	}
}

// An outage of the provider that is longer than the idle timeout ends idle
// sessions only.
func TestCallsInAnOutageCountAsActivity(t *testing.T) {
	t.Parallel()
	const idle = 5 * time.Second
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.Sessions.IdleTimeout = idle
		cfg.Provider.Wait = 500 * time.Millisecond // for the sign-ins on a busy machine
	})
	// Both at once: the idle timeout of the first must not pass in the setup.
	a.provider.Misbehave(t, brokertest.ShortLived)
	active, background := a.signedIn(), a.signedIn()
	a.provider.Behave()
	time.Sleep(1100 * time.Millisecond)
	var down atomic.Bool
	down.Store(true)
	a.onRefresh(func(_ int, w http.ResponseWriter, r *http.Request, provider http.Handler) {
		if down.Load() {
			w.WriteHeader(503)
			return
		}
		provider.ServeHTTP(w, r)
	})
	for end := time.Now().Add(idle + idle/5); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if got := active.Fetch("GET", "/api/x").StatusCode; got != 503 {
			t.Fatalf("in the outage: got %d, want 503", got)
		}
		background.Fetch("GET", "/api/x", "X-Background", "1")
	}
	down.Store(false)
	waitFor(t, "the active user's calls succeed", func() bool {
		got := active.Fetch("GET", "/api/x").StatusCode
		if got == 401 {
			t.Fatal("the active user was signed out")
		}
		return got == 200
	})
	if got := background.Fetch("GET", "/api/x").StatusCode; got != 401 {
		t.Errorf("idle user with background requests: got %d, want 401", got)
	}
}
