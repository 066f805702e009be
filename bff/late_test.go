package bff_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

// A browser that restores its tabs starts a login in each of them, more than
// attempts are kept.
func TestEveryRestoredTabReturnsToItsPage(t *testing.T) {
	t.Parallel()
	for _, order := range [][]int{{0, 1, 2, 3, 4, 5, 6, 7}, {7, 6, 5, 4, 3, 2, 1, 0}, {3, 0, 7, 1, 6, 2, 5, 4}} {
		a := newApp(t, unpushed)
		b := a.browser()
		logins := make([]*bfftest.Response, len(order))
		for i := range logins {
			logins[i] = b.Navigate(fmt.Sprintf("/bff/login?return_to=/tab%d?x=%%26%%23y", i))
		}
		for n, i := range order {
			resp := b.Navigate(b.Authorize("alice", logins[i].Location(t).String()).Location(t).String())
			if resp.StatusCode == 302 { // only the first may restart
				if n > 0 {
					t.Errorf("%v: tab %d starts a login despite the session", order, i)
				}
				resp = b.Navigate(b.Authorize("alice", resp.Location(t).String()).Location(t).String(),
					"Sec-Fetch-Site", "cross-site")
				resp = b.Navigate(relayURL(t, resp), "Sec-Fetch-Site", "same-origin")
			}
			if want := fmt.Sprintf("/tab%d?x=&#y", i); resp.StatusCode != 303 || resp.Header.Get("Location") != want {
				t.Errorf("%v: tab %d: got %d to %q, want %s", order, i, resp.StatusCode,
					resp.Header.Get("Location"), want)
			}
		}
		a.wantSession(b, "alice")
	}
}

func TestRestartedLoginEvictsNoAttempt(t *testing.T) {
	t.Parallel()
	a := newApp(t, unpushed)
	b := a.browser()
	stale := b.Navigate("/bff/login?return_to=/stale").Location(t).Query().Get("state")
	b.ClearCookies()
	var logins []*bfftest.Response
	for i := range 5 {
		logins = append(logins, b.Navigate(fmt.Sprintf("/bff/login?return_to=/tab%d", i)))
	}
	for range 10 { // another site could cause this navigation
		again := "/bff/callback?" + url.Values{"state": {stale}, "code": {"x"}}.Encode()
		if got := b.Navigate(again).StatusCode; got != 302 {
			t.Fatalf("stale response: got %d, want a restarted login", got)
		}
		if n := len(b.Cookies()); n > 6 {
			t.Fatalf("%d attempts in the browser", n)
		}
	}
	for i, resp := range logins {
		resp = b.Navigate(b.Authorize("alice", resp.Location(t).String()).Location(t).String())
		if want := fmt.Sprintf("/tab%d", i); resp.StatusCode != 303 || resp.Header.Get("Location") != want {
			t.Errorf("tab %d: got %d to %q", i, resp.StatusCode, resp.Header.Get("Location"))
		}
	}
}

// On the redirect from the provider the browser withholds the Strict session
// cookie.
func TestLateResponseFindsSessionDespiteStrictCookie(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.browser()
	u := b.AuthResponse("alice", "return_to=/late").Location(t)
	b.ClearCookies()
	cases := map[string]string{"a code": u.String()}
	for _, code := range []string{"access_denied", "login_required", "temporarily_unavailable", "server_error"} {
		q := u.Query()
		q.Del("code")
		q.Set("error", code)
		cases[code] = "/bff/callback?" + q.Encode()
	}
	signedIn := a.signedIn()
	ticket := *signedIn.Cookies()[0]
	for name, late := range cases {
		signedIn.ClearCookies()
		page := signedIn.Navigate(late, "Sec-Fetch-Site", "cross-site")
		again := relayURL(t, page)
		signedIn.SetCookie(&http.Cookie{Name: ticket.Name, Value: ticket.Value, Path: "/"})
		resp := signedIn.Navigate(again, "Sec-Fetch-Site", "same-origin")
		if resp.StatusCode != 303 || resp.Header.Get("Location") != "/late" {
			t.Errorf("%s: got %d to %q, want 303 to /late", name, resp.StatusCode, resp.Header.Get("Location"))
		}
		a.wantSession(signedIn, "alice")
	}
	// A made-up state is rejected.
	wantPage(t, signedIn.Navigate("/bff/callback?state=x&code=y", "Sec-Fetch-Site", "cross-site"), 400, "bad_callback")
}

func TestLateResponseKeepsAShortReturnTo(t *testing.T) {
	t.Parallel()
	a := newApp(t, unpushed)
	for _, n := range []int{1, 200, 256, 257, 1000} {
		path := "/" + strings.Repeat("a", n-1)
		b := a.browser()
		to := b.AuthResponse("alice", url.Values{"return_to": {path}}.Encode()).Location(t)
		if state := to.Query().Get("state"); len(state) > 700 {
			t.Errorf("%d bytes: the state has %d", n, len(state))
		}
		b.Navigate(to.String())
		want := path
		if n > 256 {
			want = "/"
		}
		if resp := b.Navigate(to.String()); resp.StatusCode != 303 || resp.Header.Get("Location") != want {
			t.Errorf("%d bytes: got %d to %.20q", n, resp.StatusCode, resp.Header.Get("Location"))
		}
	}
}

// The user clicks twice: the browser aborts the first request and loses the
// cookie of its response.
func TestAbortedCallbackIsCompletedByARetry(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.browser()
	u := b.AuthResponse("alice", "return_to=/here").Location(t).String()
	arrived, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	a.recordCalls(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, "/token") {
			once.Do(func() { close(arrived) })
			<-release
		}
		next.ServeHTTP(w, r)
	}})
	before := a.provider.TokenRequests()
	first, leave := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(first, "GET", u, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range b.Cookies() {
		req.AddCookie(c)
	}
	left := make(chan error)
	go func() {
		resp, err := httpClient.Transport.RoundTrip(req)
		if err == nil {
			resp.Body.Close()
		}
		left <- err
	}()
	<-arrived
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Fatalf("the first request ended with %v before the browser aborted it", err)
	}
	second := make(chan *bfftest.Response)
	go func() { second <- b.Navigate(u) }()
	time.AfterFunc(200*time.Millisecond, func() { close(release) }) // either may come first
	if body := <-second; body.StatusCode != 303 || body.Header.Get("Location") != "/here" {
		t.Errorf("got %d to %q\n%s", body.StatusCode, body.Header.Get("Location"), body.Text)
	}
	a.wantSession(b, "alice")
	if n := a.provider.TokenRequests() - before; n != 1 {
		t.Errorf("%d token requests, want 1", n)
	}
}

// The record of a completed login contains no credentials and starts no session
// later.
func TestCompletedAttemptStartsNoSecondSession(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.browser()
	u := b.AuthResponse("alice", "return_to=/here").Location(t).String()
	attempt := *b.Cookies()[0]
	b.Navigate(u)
	b.Fetch("POST", "/bff/logout")
	thief := a.browser()
	thief.SetCookie(&http.Cookie{Name: attempt.Name, Value: attempt.Value, Path: "/"})
	before := a.provider.TokenRequests()
	thief.Navigate(u)
	a.wantSession(thief, "") // the session has ended by now
	if n := a.provider.TokenRequests() - before; n > 0 {
		t.Errorf("the code was redeemed twice")
	}
	other := a.browser() // without the attempt cookie
	other.Navigate(u)
	a.wantSession(other, "")
}

func TestRepeatedCallbacksGetTheSameResponse(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	twice := func(ask func() *bfftest.Response) (got [2]*bfftest.Response) {
		var both sync.WaitGroup
		for i := range got {
			both.Go(func() { got[i] = ask() })
		}
		both.Wait()
		return got
	}
	t.Run("a login", func(t *testing.T) {
		b := a.browser()
		for _, resp := range twice(func() *bfftest.Response { return b.Navigate("/bff/login?return_to=/x") }) {
			end := b.Navigate(b.Authorize("alice", resp.Location(t).String()).Location(t).String())
			if end.StatusCode != 303 || end.Header.Get("Location") != "/x" {
				t.Errorf("got %d to %q", end.StatusCode, end.Header.Get("Location"))
			}
		}
		a.wantSession(b, "alice")
	})
	t.Run("an authorization response, on two replicas", func(t *testing.T) {
		var cfg bff.Config
		a := newApp(t, func(_ *app, c *bff.Config) { cfg = *c })
		other, at := replica(t, cfg)
		if err := other.WaitForProvider(t.Context()); err != nil {
			t.Fatal(err)
		}
		b := a.browser()
		u := b.AuthResponse("alice", "return_to=/here").Location(t).String()
		attempt := b.Cookies()[0]
		header := []string{"Host", strings.TrimPrefix(a.url, "http://"), "Cookie", attempt.Name + "=" + attempt.Value}
		before := a.provider.TokenRequests()
		var both sync.WaitGroup
		for _, target := range []string{u, strings.Replace(u, a.url, at, 1)} {
			both.Go(func() {
				twin := a.browser()
				resp := twin.Navigate(target, header...)
				wantRedirect(t, target, resp, 303, "/here")
				if !slices.ContainsFunc(resp.Cookies(), func(c *http.Cookie) bool {
					return !strings.Contains(c.Name, "-login-") && c.MaxAge > 0
				}) {
					t.Errorf("%s: no session cookie in %v", target, resp.Cookies())
				}
			})
		}
		both.Wait()
		if n := a.provider.TokenRequests() - before; n != 1 {
			t.Errorf("%d token requests, want 1", n)
		}
	})
	t.Run("a rejected code", func(t *testing.T) {
		b := a.browser()
		u := b.AuthResponse("alice", "").Location(t)
		q := u.Query()
		q.Set("code", "junk")
		before := a.provider.TokenRequests()
		for _, resp := range twice(func() *bfftest.Response { return b.Navigate("/bff/callback?" + q.Encode()) }) {
			if resp.StatusCode != 502 && resp.StatusCode != 302 { // 302: the first was complete, its attempt removed
				t.Errorf("got %d %s", resp.StatusCode, resp.Text)
			}
		}
		if n := a.provider.TokenRequests() - before; n > 2 {
			t.Errorf("%d token requests", n)
		}
	})
	t.Run("a logout", func(t *testing.T) {
		for _, send := range []func(b *bfftest.Browser) *bfftest.Response{
			func(b *bfftest.Browser) *bfftest.Response {
				return b.Submit("/bff/logout", url.Values{"return_to": {"/bye"}})
			},
			func(b *bfftest.Browser) *bfftest.Response { return b.Fetch("POST", "/bff/logout") },
		} {
			b := a.signedIn()
			got := twice(func() *bfftest.Response { return send(b) })
			if got[0].StatusCode != got[1].StatusCode || got[0].StatusCode >= 400 {
				t.Errorf("got %d and %d", got[0].StatusCode, got[1].StatusCode)
			}
			a.wantSession(b, "")
		}
	})
	t.Run("the callback of a logout", func(t *testing.T) {
		b := a.signedIn()
		logout := b.Submit("/bff/logout", url.Values{"return_to": {"/bye"}})
		back := b.Navigate(logout.Location(t).String()).Location(t).String()
		for _, resp := range twice(func() *bfftest.Response { return b.Navigate(back) }) {
			wantRedirect(t, "callback of the logout", resp, 303, "/bye")
		}
	})
	t.Run("a refresh", func(t *testing.T) {
		b := a.signedIn()
		for _, resp := range twice(func() *bfftest.Response { return b.Fetch("POST", "/bff/session/refresh") }) {
			wantOK(t, resp)
		}
	})
}

func TestExpiredLoginAtTheProviderRestartsOnce(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	expired := devidp.Hooks{EditCallback: func(params url.Values) {
		params.Del("code")
		params.Set("error", "temporarily_unavailable")
		params.Set("error_description", "authentication_expired")
	}}
	t.Run("then succeeds", func(t *testing.T) {
		b := a.browser()
		a.recordCalls(expired)
		back := b.AuthResponse("alice", "return_to=/here&max_age=300").Location(t).String()
		c := a.recordCalls(devidp.Hooks{})
		again := b.Navigate(back)
		switch {
		case again.StatusCode != 302:
			t.Fatalf("status: got %d, want 302:\n%s", again.StatusCode, again.Text)
		case c.to("/par")[0].form.Get("max_age") != "300":
			t.Fatalf("max_age: got %q, want 300", c.to("/par")[0].form.Get("max_age"))
		}
		resp := b.Navigate(b.Authorize("alice", again.Location(t).String()).Location(t).String())
		if resp.StatusCode != 303 || resp.Header.Get("Location") != "/here" {
			t.Errorf("got %d to %q", resp.StatusCode, resp.Header.Get("Location"))
		}
		a.wantSession(b, "alice")
	})
	t.Run("or fails twice", func(t *testing.T) {
		a.recordCalls(expired)
		b := a.browser()
		again := b.Navigate(b.AuthResponse("alice", "return_to=/here").Location(t).String())
		resp := b.Navigate(b.Authorize("alice", again.Location(t).String()).Location(t).String())
		wantPage(t, resp, 503, "provider_unavailable")
		if !strings.Contains(resp.Text, "return_to=%2Fhere") {
			t.Error("the link to try again has no return_to")
		}
	})
	t.Run("the attempt is lost", func(t *testing.T) {
		a.recordCalls(expired)
		b := a.browser()
		u := b.AuthResponse("alice", "return_to=/here").Location(t).String()
		b.ClearCookies()
		again := b.Navigate(relayURL(t, b.Navigate(u, "Sec-Fetch-Site", "cross-site")), "Sec-Fetch-Site", "same-origin")
		if again.StatusCode != 302 {
			t.Errorf("got %d, want a restarted login", again.StatusCode)
		}
		b.ClearCookies()
		u = b.Authorize("alice", again.Location(t).String()).Location(t).String()
		wantPage(t, b.Navigate(u), 400, "bad_callback")
	})
	t.Run("from another site", func(t *testing.T) {
		a.recordCalls(expired)
		b := a.browser()
		login := b.Navigate("/bff/login", "Sec-Fetch-Site", "cross-site")
		callback := b.Authorize("alice", login.Location(t).String()).Location(t).String()
		relayed := relayURL(t, b.Navigate(callback, "Sec-Fetch-Site", "cross-site"))
		got := b.Navigate(relayed, "Sec-Fetch-Site", "same-origin").StatusCode
		if got != 302 {
			t.Errorf("got %d, want 302", got)
		}
	})
	t.Run("in a frame the result is unauthenticated", func(t *testing.T) {
		a.recordCalls(expired)
		wantSilent(t, silentLogin(a.browser()), "false")
	})
	t.Run("with a form post response", func(t *testing.T) {
		a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Provider.ResponseMode = "form_post" })
		a.recordCalls(expired)
		b := a.browser()
		page := b.Follow(b.Navigate("/bff/login"), "")
		page = b.Submit(page.Request.URL.String(), url.Values{
			"user": {"alice"},
			"csrf": {brokertest.HiddenFields(page.Text).Get("csrf")},
		})
		page = b.Do("POST", "/bff/callback", brokertest.HiddenFields(page.Text).Encode(),
			"Content-Type", "application/x-www-form-urlencoded", "Sec-Fetch-Site", "cross-site",
			"Sec-Fetch-Mode", "navigate")
		resp := b.Submit("/bff/callback", brokertest.HiddenFields(page.Text))
		if resp.StatusCode != 303 || !strings.HasPrefix(resp.Header.Get("Location"), a.provider.Issuer) {
			t.Errorf("got %d to %q", resp.StatusCode, resp.Header.Get("Location"))
		}
	})
	t.Run("another error description does not restart", func(t *testing.T) {
		for _, text := range []string{"", "overloaded", "not authentication_expired"} {
			a.recordCalls(devidp.Hooks{EditCallback: func(params url.Values) {
				params.Del("code")
				params.Set("error", "temporarily_unavailable")
				params.Set("error_description", text)
			}})
			wantPage(t, a.browser().SignIn("alice", ""), 503, "provider_unavailable")
		}
	})
}

func TestErrorDescriptionIsLoggedSanitised(t *testing.T) {
	t.Parallel()
	secret := "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.c2VjcmV0"
	for _, test := range []struct{ text, want, not string }{
		{"The user has no licence for this app", "The user has no licence for this app", ""},
		{"AADSTS50105: not assigned", "AADSTS50105: not assigned", ""},
		{"authentication_expired", "authentication_expired", ""},
		{"token " + secret + " is bad", "token … is bad", secret},
		{"a\r\nb\x00c\x1b[31md\u202ee", "a  b c [31md e", "\\u202e"},
		{strings.Repeat("word ", 1000), strings.Repeat("word ", 59), strings.Repeat("word ", 61)},
		{strings.Repeat("ü ", 1000), "ü ü", strings.Repeat("ü ", 101)},
		{"half \xff byte", "half  byte", "\\xff"},
	} {
		a := newApp(t, nil)
		b := a.browser()
		u, q := callback(t, b)
		q.Del("code")
		q.Set("error", "access_denied")
		q["error_description"] = []string{test.text, "twice"}
		u.RawQuery = q.Encode()
		resp := b.Navigate(u.String())
		wantPage(t, resp, 403, "login_cancelled")
		lines := 0
		for _, l := range a.logs.lines(t, "request") {
			if l["path"] == "/bff/callback" {
				lines++
				err := fmt.Sprint(l["err"])
				if !strings.Contains(err, test.want) ||
					test.not != "" && strings.Contains(err, test.not) || len(err) > 500 {
					t.Errorf("%.40q: logged as %q", test.text, err)
				}
			}
		}
		if lines != 1 {
			t.Errorf("%.40q: %d lines in the log", test.text, lines)
		}
		if strings.Contains(resp.Text, "licence") {
			t.Errorf("body: got %q, want it not to contain licence", resp.Text)
		}
		if strings.Contains(resp.Text, "AADSTS") {
			t.Errorf("body: got %q, want it not to contain AADSTS", resp.Text)
		}
	}
}

// RFC 6749 4.1.2: unrecognised parameters are ignored.
func TestUnusedCallbackParametersAreIgnored(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	for _, more := range []string{
		"session_state=x&session_state=y", "state2=x", "scope=", "error_description=x&error_uri=y",
		"session_state=a;b", "client_info=%22%7B", "x=" + strings.Repeat("y", 10000), "iss2", "&&",
		"id_token=x&access_token=y", "code2=x",
	} {
		b := a.browser()
		u := b.AuthResponse("alice", "return_to=/here").Location(t).String()
		switch resp := b.Navigate(u + "&" + more); {
		case resp.StatusCode != 303:
			t.Errorf("%.40q: status: got %d, want 303:\n%s", more, resp.StatusCode, resp.Text)
		case resp.Header.Get("Location") != "/here":
			t.Errorf("%.40q: Location: got %q, want /here", more, resp.Header.Get("Location"))
		}
		a.wantSession(b, "alice")
	}
	for _, more := range []string{"utm_source=x", "prompt2=evil", "max_ages=x", "scope=x&scope=y", "x=%22%3B"} {
		if got := a.browser().Navigate("/bff/login?" + more).StatusCode; got != 302 {
			t.Errorf("a login with %s: got %d, want 302", more, got)
		}
	}
}
