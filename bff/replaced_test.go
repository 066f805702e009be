package bff_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

// navigateStrict handles a SameSite=Strict session cookie as a browser does in
// a cross-site navigation: it sends none, and accepts a new one.
func (a *app) navigateStrict(b *bfftest.Browser, navigate func() *bfftest.Response) *bfftest.Response {
	a.t.Helper()
	before := a.sessionCookie(b)
	if before == nil {
		return navigate()
	}
	b.SetCookie(&http.Cookie{Name: before.Name, MaxAge: -1, Path: "/"})
	resp := navigate()
	if a.sessionCookie(b) == nil {
		b.SetCookie(&http.Cookie{Name: before.Name, Value: before.Value, Path: "/"})
	}
	return resp
}

func (a *app) wantNoLiveRefreshTokens(why string) {
	a.t.Helper()
	waitFor(a.t, why+": no refresh token is live", func() bool { return a.provider.LiveRefreshTokens() == 0 })
}

// After a logout no refresh token of the browser is valid, whatever the order
// of its logins.
func TestLogoutRevokesTokensOfReplacedSessions(t *testing.T) {
	t.Parallel()
	t.Run("one after the other", func(t *testing.T) {
		t.Parallel()
		a := newApp(t, nil)
		b := a.browser()
		for range 5 {
			callback := b.AuthResponse("alice", "").Location(t).String()
			got := a.navigateStrict(b, func() *bfftest.Response {
				return b.Navigate(callback, "Sec-Fetch-Site", "cross-site")
			})
			if got.StatusCode != 303 {
				t.Fatalf("sign in: got %d, want 303\n%s", got.StatusCode, got.Text)
			}
		}
		if n := a.provider.Stats().Revocations; n != 0 {
			t.Errorf("%d revocations before the logout: a provider may end all grants of a user with one", n)
		}
		if got := b.Fetch("POST", "/bff/session/refresh"); got.StatusCode != 200 {
			t.Errorf("a refresh after the logins: got %d, want 200", got.StatusCode)
		}
		b.Submit("/bff/logout", nil)
		a.wantNoLiveRefreshTokens("five logins")
	})
	t.Run("started concurrently, finished one after the other", func(t *testing.T) {
		t.Parallel()
		for _, strict := range []bool{true, false} {
			a := newApp(t, nil)
			b := a.browser()
			var callbacks []string
			for range 5 {
				callbacks = append(callbacks, b.AuthResponse("alice", "").Location(t).String())
			}
			for _, callback := range callbacks {
				complete := func() *bfftest.Response { return b.Navigate(callback, "Sec-Fetch-Site", "cross-site") }
				finish := complete
				if strict {
					finish = func() *bfftest.Response { return a.navigateStrict(b, complete) }
				}
				if got := finish(); got.StatusCode != 303 {
					t.Fatalf("callback: got %d, want 303\n%s", got.StatusCode, got.Text)
				}
			}
			b.Submit("/bff/logout", nil)
			a.wantNoLiveRefreshTokens("five tabs")
		}
	})
	t.Run("another user in the meantime", func(t *testing.T) {
		t.Parallel()
		a := newApp(t, nil)
		b := a.browser()
		for _, user := range []string{"alice", "alice", "bob", "alice"} {
			if got := b.SignIn(user, "prompt=login"); got.StatusCode != 303 {
				t.Fatalf("sign in as %s: got %d, want 303", user, got.StatusCode)
			}
		}
		b.Submit("/bff/logout", nil)
		a.wantNoLiveRefreshTokens("alice, bob, alice")
	})
}

// The tokens of another user's session are revoked immediately. The login does
// not wait for that.
func TestLoginAsAnotherUserRevokesOldTokens(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	release := make(chan struct{})
	a.provider.SetHooks(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, "/revoke") {
			<-release
		}
		next.ServeHTTP(w, r)
	}})
	t.Cleanup(a.provider.Behave)
	if got := b.SignIn("bob", "prompt=login"); got.StatusCode != 303 {
		t.Fatalf("sign in as bob: got %d, want 303\n%s", got.StatusCode, got.Text)
	}
	a.wantSession(b, "bob")
	close(release)
	waitFor(t, "the refresh token of alice's session is revoked", func() bool {
		return a.provider.LiveRefreshTokens() == 1
	})
	if n := len(a.logs.lines(t, "session ended")); n != 1 {
		t.Errorf("%d lines about the end of a session, want one", n)
	}
}

// An attempt that names the session it replaces is no session cookie and
// reveals nothing of it.
func TestReplacingAttemptIsSmallAndOpaque(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	line := b.Navigate("/bff/login?return_to=/x").Header.Get("Set-Cookie")
	value, _, _ := strings.Cut(line, ";")
	if len(value) > 1500 {
		t.Errorf("length of the attempt cookie: got %d bytes", len(value))
	}
	_, value, _ = strings.Cut(value, "=")
	thief := a.browser()
	thief.SetCookie(&http.Cookie{Name: a.cookieName(), Value: value, Path: "/"})
	a.wantSession(thief, "")
	a.wantSession(b, "alice")
}

// Another login that completes in the meantime does not extend the lifetime of
// an attempt.
func TestAttemptKeepsItsAge(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.browser()
	b.Navigate("/bff/login")
	time.Sleep(1100 * time.Millisecond)
	lines := b.SignIn("alice", "").Header["Set-Cookie"]
	for _, line := range lines {
		if strings.Contains(line, "-login-") && !strings.Contains(line, "Max-Age=0") &&
			(!strings.Contains(line, "Max-Age=59") || strings.Contains(line, "Max-Age=600")) {
			t.Errorf("the other attempt is set again: %s", line)
		}
	}
	if len(lines) != 3 { // the session, the finished attempt and the other one
		t.Errorf("got %d cookies: %v", len(lines), lines)
	}
}
