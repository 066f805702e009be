package bff_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/session"
)

// ownSession is an element of the response of /bff/sessions.
type ownSession struct {
	ID            string     `json:"id"`
	CreatedAt     time.Time  `json:"created_at"`
	LastSeenAt    *time.Time `json:"last_seen_at"`
	IdleExpiresAt time.Time  `json:"idle_expires_at"`
	ExpiresAt     *time.Time `json:"expires_at"`
	Device        string
	Current       bool
}

const (
	firefox = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
	iPhone  = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) Version/26.0 Mobile/15E148 Safari/604.1"
)

// signedInOn returns a browser in which a user has signed in with a User-Agent.
func (a *app) signedInOn(user, userAgent string) *bfftest.Browser {
	a.t.Helper()
	b := a.browser()
	resp := b.Navigate(b.AuthResponse(user, "").Location(a.t).String(), "User-Agent", userAgent)
	if resp.StatusCode != 303 {
		a.t.Fatalf("sign in: got %d, want 303: %s", resp.StatusCode, resp.Text)
	}
	return b
}

func listSessions(t *testing.T, b *bfftest.Browser) (list []ownSession) {
	t.Helper()
	resp := b.Fetch("GET", "/bff/sessions")
	wantOK(t, resp)
	resp.Decode(t, &list)
	return list
}

func TestSessionsListTellsDevices(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	began := time.Now().Add(-time.Second)
	laptop := a.signedInOn("alice", firefox)
	time.Sleep(2 * time.Millisecond) // their ages differ in milliseconds
	phone := a.signedInOn("alice", iPhone)
	a.signedInOn("bob", firefox)
	list := listSessions(t, laptop)
	if len(list) != 2 {
		t.Fatalf("got %v, want alice's two sessions", list)
	}
	for i, want := range []struct {
		id, device string
		current    bool
	}{
		{a.sessionID(phone), "Safari on iPhone", false}, {a.sessionID(laptop), "Firefox on Linux", true},
	} {
		got := list[i]
		if got.ID != want.id {
			t.Errorf("session %d: got ID %s, want %s", i, got.ID, want.id)
		}
		if got.Device != want.device {
			t.Errorf("session %d: got device %q, want %q", i, got.Device, want.device)
		}
		if got.Current != want.current {
			t.Errorf("session %d: got current %v, want %v", i, got.Current, want.current)
		}
		if got.CreatedAt.Before(began) || got.CreatedAt.After(time.Now()) {
			t.Errorf("session %d: got created at %v", i, got.CreatedAt)
		}
		if seen := got.LastSeenAt; seen == nil || seen.Before(got.CreatedAt) || seen.After(time.Now()) {
			t.Errorf("session %d: got last seen at %v", i, seen)
		}
		if end := got.ExpiresAt; end == nil || !near(*end, time.Now().Add(12*time.Hour)) {
			t.Errorf("session %d: got an end at %v, want one in 12 hours", i, end)
		}
		if !near(got.IdleExpiresAt, time.Now().Add(30*time.Minute)) {
			t.Errorf("session %d: got an idle end at %v, want one in 30 minutes", i, got.IdleExpiresAt)
		}
	}
}

func TestUserEndsASessionOnAnotherDevice(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	laptop, phone, bob := a.signedInOn("alice", firefox), a.signedInOn("alice", iPhone), a.signedInOn("bob", firefox)
	id := a.sessionID(phone)
	stream := openEvents(t, phone, "")
	stream.next("session-changed")
	for name, id := range map[string]string{
		"another user": a.sessionID(bob), "unknown": strings.Repeat("A", 22), "junk": "x",
		"long":       strings.Repeat("A", 4000),
		"a wildcard": "*", "braces": "{id}", "a prefix": a.sessionID(phone)[:20], "below": "x/y",
	} {
		if resp := laptop.Fetch("DELETE", "/bff/sessions/"+id); resp.StatusCode != 404 || resp.Code() != "not_found" {
			t.Errorf("%s: got %d %s, want 404 not_found", name, resp.StatusCode, resp.Code())
		}
	}
	stream.wantNone()
	wantStatus(t, "end", laptop.Fetch("DELETE", "/bff/sessions/"+id), 204)
	stream.wantEnd("revoked")
	wantProblem(t, phone.Fetch("GET", "/api/x"), 401, "not_signed_in")
	wantStatus(t, "end again", laptop.Fetch("DELETE", "/bff/sessions/"+id), 404)
	a.wantSession(laptop, "alice")
	a.wantSession(bob, "bob")
	ended := a.logs.lines(t, "session ended")
	if len(ended) != 1 || ended[0]["event"] != "session.ended" || ended[0]["reason"] != "revoked" ||
		ended[0]["session"] != id || ended[0]["user"] == nil || ended[0]["request"] == nil {
		t.Errorf("got %v, want one event session.ended of the phone", ended)
	}
	waitFor(t, "the tokens are revoked", func() bool { return a.provider.LiveRefreshTokens() == 2 })
}

func TestUserEndsAllOtherSessions(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	laptop, bob := a.signedInOn("alice", firefox), a.signedInOn("bob", firefox)
	others := []*bfftest.Browser{a.signedInOn("alice", iPhone), a.signedInOn("alice", firefox)}
	for range 2 {
		wantStatus(t, "end the others", laptop.Fetch("DELETE", "/bff/sessions"), 204)
		for _, b := range others {
			a.wantSession(b, "")
		}
		a.wantSession(laptop, "alice")
		a.wantSession(bob, "bob")
		if list := listSessions(t, laptop); len(list) != 1 || !list[0].Current {
			t.Errorf("got %v, want the current session", list)
		}
	}
}

func TestUserEndsTheCurrentSession(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	resp := b.Fetch("DELETE", "/bff/sessions/"+a.sessionID(b))
	wantStatus(t, "end", resp, 204)
	if got := resp.Header.Get("Clear-Site-Data"); got != `"storage"` {
		t.Errorf("Clear-Site-Data: got %q, want that of a logout", got)
	}
	if len(b.Cookies()) > 0 {
		t.Errorf("got cookies %v, want none", b.Cookies())
	}
	if ended := a.logs.lines(t, "session ended"); len(ended) != 1 || ended[0]["reason"] != "logout" {
		t.Errorf("got %v, want one end by a logout", ended)
	}
	if n := a.provider.LiveRefreshTokens(); n != 0 {
		t.Errorf("got %d refresh tokens, want none", n)
	}
}

func TestSessionsOfAnotherAppAreUnknown(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	other := newApp(t, func(_ *app, c *bff.Config) { c.Sessions.Store = a.store })
	b, stranger := a.signedIn(), other.signedIn()
	if list := listSessions(t, b); len(list) != 1 {
		t.Errorf("got %v, want one session", list)
	}
	wantProblem(t, b.Fetch("DELETE", "/bff/sessions/"+other.sessionID(stranger)), 404, "not_found")
	wantStatus(t, "end the others", b.Fetch("DELETE", "/bff/sessions"), 204)
	other.wantSession(stranger, "alice")
}

func TestSessionsEndpointsAreGuarded(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	for _, request := range []struct{ method, path string }{
		{"GET", "/bff/sessions"}, {"DELETE", "/bff/sessions"}, {"DELETE", "/bff/sessions/" + a.sessionID(b)},
	} {
		for _, header := range [][]string{
			{}, {"Sec-Fetch-Site", "same-origin"}, {"X-CSRF", "1", "Sec-Fetch-Site", "cross-site"},
			{"X-CSRF", "1", "Origin", "https://evil.example"},
		} {
			wantProblem(t, b.Do(request.method, request.path, "", header...), 403, "csrf")
		}
		wantProblem(t, a.browser().Fetch(request.method, request.path), 401, "not_signed_in")
	}
	for path, method := range map[string]string{"/bff/sessions": "POST", "/bff/sessions/x": "GET"} {
		wantProblem(t, b.Fetch(method, path), 405, "method_not_allowed")
	}
	wantProblem(t, b.Fetch("DELETE", "/bff/sessions/"), 404, "not_found")
	for _, offset := range []string{"-1", "x", "1e3", "99999999999999999999", "1&offset=2"} {
		wantProblem(t, b.Fetch("GET", "/bff/sessions?offset="+offset), 400, "bad_parameter")
	}
	a.wantSession(b, "alice")
	a.signedIn()
	a.store.setDown(errors.New("connection refused"))
	wantProblem(t, b.Fetch("GET", "/bff/sessions"), 503, "store_unavailable")
	wantProblem(t, b.Fetch("DELETE", "/bff/sessions"), 503, "store_unavailable")
	a.store.setDown(nil)
	a.wantSession(b, "alice")
}

func TestSessionsListIsBounded(t *testing.T) {
	t.Parallel()
	var cfg bff.Config
	a := newApp(t, func(_ *app, c *bff.Config) { cfg = *c })
	b := a.signedIn()
	sessions := cfg.Sessions
	sessions.App = session.App{Issuer: a.provider.Issuer, ClientID: a.provider.Client.ID, Origin: a.url}
	sessions.Refresh = func(context.Context, *session.Session, string) (session.RefreshResult, error) {
		return session.RefreshResult{}, errors.New("unexpected refresh")
	}
	m := must(session.NewManager(sessions))
	const n = 1000
	for range n {
		must(m.Start(t.Context(), session.New{
			Issuer: a.provider.Issuer, Subject: "alice", Claims: json.RawMessage(`{}`),
			Tokens: session.Tokens{Access: "x", Refresh: "y", Expiry: time.Now().Add(time.Hour)},
		}))
	}
	seen := make(map[string]bool)
	last := time.Now().Add(time.Second)
	pages := 0
	for path := "/bff/sessions"; path != ""; pages++ {
		resp := b.Fetch("GET", path)
		wantOK(t, resp)
		var list []ownSession
		resp.Decode(t, &list)
		if len(list) > 100 {
			t.Fatalf("%s: got %d sessions, want at most 100", path, len(list))
		}
		for _, s := range list {
			if seen[s.ID] = true; s.CreatedAt.After(last) {
				t.Errorf("%s: got a session of %v after one of %v, want the newest first", path, s.CreatedAt, last)
			}
			last = s.CreatedAt
		}
		link, more := strings.CutSuffix(resp.Header.Get("Link"), `>; rel="next"`)
		if path = ""; more {
			path = strings.TrimPrefix(link, "<")
		}
	}
	if len(seen) != n+1 || pages != 11 {
		t.Errorf("got %d sessions on %d pages, want %d on 11", len(seen), pages, n+1)
	}
	began := time.Now()
	wantStatus(t, "end the others", b.Fetch("DELETE", "/bff/sessions"), 204)
	t.Logf("%d sessions ended in %v", n, time.Since(began))
	if list := listSessions(t, b); len(list) != 1 {
		t.Errorf("got %d sessions, want 1", len(list))
	}
}
