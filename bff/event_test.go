package bff_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/adminpage"
	"github.com/cloakroom-bff/cloakroom/session"
)

// eventLog is a Config.Observe that keeps what it gets.
type eventLog struct {
	mu     sync.Mutex // guards all below
	events []bff.Event
}

func (l *eventLog) observe(_ context.Context, e bff.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
}

func (l *eventLog) of(kind bff.EventKind) (found []bff.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.events {
		if e.Kind == kind {
			found = append(found, e)
		}
	}
	return found
}

// TestEveryEventNamesItsCause causes each kind of event that a client can
// cause, and checks its members.
func TestEveryEventNamesItsCause(t *testing.T) {
	t.Parallel()
	var log eventLog
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Observe, cfg.LogUsers = log.observe, bff.UsersPlain })
	b := a.signedIn()
	id := a.sessionID(b)
	for _, test := range []struct {
		kind          bff.EventKind
		reason        string
		session, user bool
		ask           func()
	}{
		{"login.started", "", false, false, func() { a.browser().Navigate("/bff/login") }},
		{"login.returned", "", false, false, func() { a.signedIn() }},
		{"session.started", "", false, true, func() { a.signedIn() }},
		{"login.refused", "bad_callback", false, false,
			func() { a.browser().Navigate("/bff/callback?code=x&state=y") }},
		{"login.refused", "bad_login_parameter", false, false, func() { a.browser().Navigate("/bff/login?max_age=x") }},
		{"csrf.refused", "csrf", false, false, func() { b.Do("GET", "/bff/session", "") }},
		{"csrf.refused", "csrf", false, false, func() { b.Do("POST", "/api/x", "") }},
		{"cookie.unopenable", "", false, false, func() {
			a.browser().Fetch("GET", "/bff/session", "Cookie", a.cookieName()+"=x")
		}},
		{"logout.refused", "bad_logout_token", false, false, func() {
			b.Do("POST", "/bff/backchannel-logout", "logout_token=x", "Content-Type",
				"application/x-www-form-urlencoded")
		}},
		{"session.refreshed", "", true, true, func() { b.Fetch("POST", "/bff/session/refresh") }},
		{"session.ended", "logout", true, true, func() { b.Fetch("POST", "/bff/logout") }},
	} {
		before := len(log.of(test.kind))
		test.ask()
		events := log.of(test.kind)[before:]
		if len(events) != 1 {
			t.Errorf("%s: got %d events, want 1", test.kind, len(events))
			continue
		}
		e := events[0]
		if e.Reason != test.reason {
			t.Errorf("%s: reason: got %q, want %q", test.kind, e.Reason, test.reason)
		}
		if u, _ := url.Parse(a.url); e.App != u.Host {
			t.Errorf("%s: app: got %q, want %q", test.kind, e.App, u.Host)
		}
		if e.Request == "" {
			t.Errorf("%s: it has no request", test.kind)
		}
		if e.Client != "127.0.0.1" {
			t.Errorf("%s: client: got %q, want 127.0.0.1", test.kind, e.Client)
		}
		if test.session && e.Session != id {
			t.Errorf("%s: session: got %q, want %q", test.kind, e.Session, id)
		}
		if test.user && e.User != "alice" {
			t.Errorf("%s: user: got %q, want alice", test.kind, e.User)
		}
		if age := time.Since(e.Time); age < 0 || age > time.Minute {
			t.Errorf("%s: it is from %v", test.kind, e.Time)
		}
	}
}

// TestEventsThatAnybodyCausesAreLimited floods the log with refusals.
func TestEventsThatAnybodyCausesAreLimited(t *testing.T) {
	t.Parallel()
	var log eventLog
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Observe = log.observe })
	const flood = 2000
	began := time.Now()
	for range flood {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "/bff/session", nil)
		r.Host = strings.TrimPrefix(a.url, "http://")
		a.server.ServeHTTP(w, r)
		if w.Code != http.StatusForbidden {
			t.Fatalf("got %d, want 403", w.Code)
		}
	}
	most := 201 + int(20*time.Since(began).Seconds())
	if got := len(log.of(bff.CSRFRefused)); got > most {
		t.Errorf("got %d events of %d requests, want at most %d", got, flood, most)
	}
	if len(a.logs.lines(t, "events not reported: too many")) == 0 {
		t.Error("the log does not say that events were not reported")
	}
}

// why asks the admin listener for events.
func why(t *testing.T, s *bff.Server, query string) (status int, events []bff.Event) {
	t.Helper()
	r := httptest.NewRequest("GET", "http://localhost/admin/why?"+query, nil)
	r.Header.Set("Authorization", "Bearer admin-token")
	w := httptest.NewRecorder()
	s.Admin().ServeHTTP(w, r)
	if w.Code == http.StatusOK {
		if err := json.Unmarshal(w.Body.Bytes(), &events); err != nil {
			t.Fatalf("%q: %v", w.Body, err)
		}
	}
	return w.Code, events
}

// kinds returns the kinds of events in their order.
func kinds(events []bff.Event) (all []string) {
	for _, e := range events {
		all = append(all, string(e.Kind))
	}
	return all
}

// TestWhyTellsTheStoryOfASession asks a replica that has not seen the session.
func TestWhyTellsTheStoryOfASession(t *testing.T) {
	t.Parallel()
	var cfg bff.Config
	a := newApp(t, func(_ *app, c *bff.Config) {
		c.AdminToken = "admin-token"
		cfg = *c
	})
	b := a.signedIn()
	id := a.sessionID(b)
	b.Fetch("POST", "/bff/session/refresh")
	b.Fetch("POST", "/bff/logout")
	other, _ := replica(t, cfg)
	want := []string{"session.started", "session.refreshed", "session.ended"}
	var events []bff.Event
	waitFor(t, "three events of the session", func() bool {
		_, events = why(t, other, "session="+id)
		return len(events) >= len(want)
	})
	if got := kinds(events); !slices.Equal(got, want) {
		t.Errorf("by session: got %q, want %q", got, want)
	}
	end := events[len(events)-1]
	if end.Reason != string(session.ReasonLogout) {
		t.Errorf("reason: got %q, want logout", end.Reason)
	}
	if end.User == "" || end.User == "alice" {
		t.Errorf("user: got %q, want a hash", end.User)
	}
	for _, query := range []string{"user=alice", "user=" + end.User, "request=" + end.Request} {
		if _, events := why(t, other, query); !slices.Equal(kinds(events), want) {
			t.Errorf("%s: got %q, want %q", query, kinds(events), want)
		}
	}
	for query, status := range map[string]int{
		"session=unknown": 200, "user=nobody": 200, "": 400, "session=": 400, "session=x&user=y": 400, "sub=alice": 400,
		"user=" + url.QueryEscape("alice' OR 1=1\x00*"): 200,
	} {
		if got, events := why(t, other, query); got != status || len(events) > 0 {
			t.Errorf("%q: got %d and %d events, want %d and none", query, got, len(events), status)
		}
	}
}

// TestWhyFindsARefusedRequest asks for a request without a session.
func TestWhyFindsARefusedRequest(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.AdminToken = "admin-token" })
	resp := a.browser().Do("GET", "/bff/session", "")
	var body struct {
		Request string `json:"request_id"`
	}
	resp.Decode(t, &body)
	_, events := why(t, a.server, "request="+body.Request)
	if got, want := kinds(events), []string{"csrf.refused"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestRefusedAdministratorsAreReported sends the wrong token.
func TestRefusedAdministratorsAreReported(t *testing.T) {
	t.Parallel()
	var log eventLog
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.AdminToken, cfg.Observe = "another", log.observe })
	if status, _ := why(t, a.server, "user=alice"); status != http.StatusUnauthorized {
		t.Errorf("got %d, want 401", status)
	}
	events := log.of(bff.AdminRefused)
	if len(events) != 1 {
		t.Fatalf("got %d events, want 1", len(events))
	}
	mux := http.NewServeMux()
	mux.Handle("/", a.server.Admin())
	mux.Handle("/admin/", a.server.AdminPage(func(context.Context, *adminpage.Page) {}))
	page := httptest.NewServer(mux)
	defer page.Close()
	for _, test := range []struct{ method, path, header, value string }{
		{"POST", "/admin/page/revoke", "Cookie", "cloakroom-admin=forged"},
		{"POST", "/admin/page/sign-in", "Sec-Fetch-Site", "cross-site"},
		{"GET", "/admin/", "Authorization", "Bearer guessed"},
		{"GET", "/readyz?verbose", "Authorization", "Bearer guessed"},
	} {
		before := len(log.of(bff.AdminRefused))
		r, err := http.NewRequest(test.method, page.URL+test.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = "admin.example.com"
		r.Header.Set(test.header, test.value)
		resp, err := page.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := len(log.of(bff.AdminRefused)) - before; got != 1 {
			t.Errorf("%s %s: got %d events, want 1", test.method, test.path, got)
		}
	}
	if events[0].Client != "192.0.2.1" { // of httptest
		t.Errorf("client: got %q, want 192.0.2.1", events[0].Client)
	}
}

// TestReturnOfAnEndedSessionIsReported uses the cookie of a session that the
// provider has ended.
func TestReturnOfAnEndedSessionIsReported(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.AdminToken = "admin-token" })
	b := a.signedIn()
	id := a.sessionID(b)
	waitFor(t, "the history names the user", func() bool {
		_, events := why(t, a.server, "session="+id)
		return len(events) > 0
	})
	r := httptest.NewRequest("POST", "http://localhost/admin/revoke", strings.NewReader(`{"sub": "alice"}`))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer admin-token")
	w := httptest.NewRecorder()
	a.server.Admin().ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		t.Fatalf("revoke: got %d %q, want 200", w.Code, w.Body)
	}
	resp := b.Fetch("GET", "/api/x")
	wantProblem(t, resp, 401, "not_signed_in")
	var body struct {
		Request string `json:"request_id"`
	}
	resp.Decode(t, &body)
	var events []bff.Event
	waitFor(t, "the events of the request", func() bool {
		_, events = why(t, a.server, "request="+body.Request)
		return slices.Contains(kinds(events), "session.returned")
	})
	last := events[len(events)-1]
	if last.Reason != string(session.ReasonRevoked) {
		t.Errorf("reason: got %q, want revoked", last.Reason)
	}
	if last.Session != id {
		t.Errorf("session: got %q, want %q", last.Session, id)
	}
	if last.User == "" {
		t.Error("the event has no user")
	}
}

// TestHistoryIsBounded refreshes a session often. Its start and its end are
// kept.
func TestHistoryIsBounded(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.AdminToken = "admin-token" })
	b := a.signedIn()
	id := a.sessionID(b)
	for i := range 199 {
		bff.AddToHistory(a.server, bff.Event{
			Kind: bff.CSRFRefused, Session: id, Request: strconv.Itoa(i), Time: time.Now(),
		})
		bff.AddRefreshToHistory(a.server, id, 1+i, time.Now())
	}
	last := time.Now().Add(time.Minute)
	bff.AddRefreshToHistory(a.server, id, 200, last)
	b.Fetch("POST", "/bff/logout")
	var events []bff.Event
	// The end is written before the events that wait.
	waitFor(t, "the end and the last event in the history", func() bool {
		_, events = why(t, a.server, "session="+id)
		return slices.Contains(kinds(events), "session.ended") && events[len(events)-1].Time.Equal(last)
	})
	count := make(map[bff.EventKind]int)
	for _, e := range events {
		count[e.Kind]++
	}
	if got := count["session.refreshed"]; got < 5 || got > 15 { // trimmed to 5 after every tenth refresh
		t.Errorf("got %d refreshes, want 5 to 15", got)
	}
	if got := count[bff.CSRFRefused]; got != 30 {
		t.Errorf("got %d refused requests, want 30", got)
	}
	if kinds(events)[0] != "session.started" {
		t.Errorf("the first event: got %s, want session.started", events[0].Kind)
	}
}
