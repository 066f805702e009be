package bff_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/session"
)

// hookedStore calls before each call of some methods, and fails with its error.
type hookedStore struct {
	session.Store
	before atomic.Pointer[func(method, key string) error] // nil: nothing is called
}

func (s *hookedStore) hook(before func(method, key string) error) { s.before.Store(&before) }

func (s *hookedStore) call(method, key string) error {
	if before := s.before.Load(); before != nil {
		return (*before)(method, key)
	}
	return nil
}

func (s *hookedStore) Delete(ctx context.Context, keys ...string) error {
	for _, key := range keys {
		if err := s.call("Delete", key); err != nil {
			return err
		}
	}
	return s.Store.Delete(ctx, keys...)
}

func (s *hookedStore) Add(ctx context.Context, members map[string]string, ttl time.Duration) error {
	for key := range members {
		if err := s.call("Add", key); err != nil {
			return err
		}
	}
	return s.Store.Add(ctx, members, ttl)
}

func (s *hookedStore) Members(ctx context.Context, keys ...string) ([]string, error) {
	for _, key := range keys {
		if err := s.call("Members", key); err != nil {
			return nil, err
		}
	}
	return s.Store.Members(ctx, keys...)
}

// newAuditedApp returns an app with administrators, whose events are in log and
// whose store is store.
func newAuditedApp(t *testing.T) (a *app, log *eventLog, store *hookedStore, cfg bff.Config) {
	log, store = new(eventLog), new(hookedStore)
	a = newApp(t, func(a *app, c *bff.Config) {
		store.Store = a.store
		c.AdminToken, c.Observe, c.Sessions.Store = adminToken, log.observe, store
		cfg = *c
	})
	return a, log, store, cfg
}

// TestAdminEventsNameWhatWasAsked tells who did what to which session.
func TestAdminEventsNameWhatWasAsked(t *testing.T) {
	t.Parallel()
	a, log, _, _ := newAuditedApp(t)
	browser, sid := a.signedInWithSID()
	first, second := a.idOf(browser), a.signInUser("alice")
	started := log.of("session.started")
	hash, request := started[0].User, started[0].Request
	waitFor(t, "the history has the starts of alice", func() bool {
		return strings.Count(text(a.admin("GET", "/admin/why?user=alice", "")), "session.started") == 2
	})
	const listed, read, revoked = bff.AdminSessionsListed, bff.AdminEventsRead, bff.AdminSessionRevoked
	for _, test := range []struct {
		method, path, body        string
		kind                      bff.EventKind
		by, target, session, user string
	}{
		{"GET", "/admin/sessions?sub=alice", "", listed, "sub", hash, "", hash},
		{"GET", "/admin/sessions?sid=" + sid, "", listed, "sid", sid, "", ""},
		{"GET", "/admin/sessions?sub=alice&sid=" + sid, "", listed, "sid", sid, "", hash},
		{"GET", "/admin/sessions?id=" + first.id, "", listed, "id", first.id, first.id, hash},
		{"GET", "/admin/sessions?id=unknown", "", listed, "id", "unknown", "", ""},
		{"GET", "/admin/why?user=alice", "", read, "sub", hash, "", hash},
		{"GET", "/admin/why?user=" + hash, "", read, "sub", hash, "", hash},
		{"GET", "/admin/why?session=" + first.id, "", read, "id", first.id, first.id, hash},
		{"GET", "/admin/why?request=" + request, "", read, "request", request, "", ""},
		{"GET", "/admin/why?any=" + request, "", read, "request", request, "", ""},
		{"GET", "/admin/why?any=alice", "", read, "sub", hash, "", hash},
		{"GET", "/admin/why?any=" + first.id, "", read, "id", first.id, first.id, hash},
		{"POST", "/admin/revoke", `{"sid": "` + sid + `"}`, revoked, "sid", sid, first.id, hash},
		{"DELETE", "/admin/sessions/" + first.id, "", revoked, "id", first.id, "", ""}, // it has ended
		{"POST", "/admin/revoke", `{"sub": "alice"}`, revoked, "sub", hash, second.id, hash},
	} {
		name := test.method + " " + test.path
		before := len(log.of(test.kind))
		id := a.admin(test.method, test.path, test.body).Header.Get("X-Request-Id")
		var events []bff.Event
		waitFor(t, name+": an event", func() bool {
			events = log.of(test.kind)[before:]
			return len(events) > 0
		})
		if len(events) != 1 {
			t.Errorf("%s: got %d events, want 1", name, len(events))
			continue
		}
		e := events[0]
		if id == "" || e.Request != id {
			t.Errorf("%s: request: got %q, want that of the response, %q", name, e.Request, id)
		}
		if e.Client != "127.0.0.1" {
			t.Errorf("%s: client: got %q, want 127.0.0.1", name, e.Client)
		}
		if e.By != test.by {
			t.Errorf("%s: by: got %q, want %q", name, e.By, test.by)
		}
		if e.Target != test.target {
			t.Errorf("%s: target: got %q, want %q", name, e.Target, test.target)
		}
		if e.Session != test.session {
			t.Errorf("%s: session: got %q, want %q", name, e.Session, test.session)
		}
		if e.User != test.user {
			t.Errorf("%s: user: got %q, want %q", name, e.User, test.user)
		}
	}
	ended := log.of("session.ended")
	if last := ended[len(ended)-1]; last.Request == "" {
		t.Error("the end of the session does not name the request of the administrator")
	}
}

// TestSearchOnTheAdminPageIsOneEvent searches in each way.
func TestSearchOnTheAdminPageIsOneEvent(t *testing.T) {
	t.Parallel()
	a, log, _, _ := newAuditedApp(t)
	browser, sid := a.signedInWithSID()
	b := a.idOf(browser)
	c := a.openAdminPage()
	c.signIn()
	for _, test := range []struct{ by, text, kind string }{
		{"sub", "alice", "admin.events_read"}, {"id", b.id, "admin.events_read"},
		{"request", "unknown", "admin.events_read"}, {"sid", sid, "admin.sessions_listed"},
	} {
		count := func() int { return len(log.of(bff.AdminEventsRead)) + len(log.of(bff.AdminSessionsListed)) }
		before := count()
		c.want(200, "GET", "/admin/?"+url.Values{"by": {test.by}, "q": {test.text}}.Encode(), nil)
		waitFor(t, test.by+": an event", func() bool { return count() > before })
		if got := count() - before; got != 1 {
			t.Errorf("%s: got %d events, want 1", test.by, got)
		}
		if all := log.of(bff.EventKind(test.kind)); len(all) == 0 || all[len(all)-1].Target == "" {
			t.Errorf("%s: got %+v, want an event %s with a target", test.by, all, test.kind)
		}
	}
}

// TestPartialRevocationTellsWhatHasEnded revokes two sessions, of which the
// store deletes one.
func TestPartialRevocationTellsWhatHasEnded(t *testing.T) {
	t.Parallel()
	a, log, store, _ := newAuditedApp(t)
	a.signInUser("alice")
	a.signInUser("alice")
	var deleted atomic.Int32
	store.hook(func(method, key string) error {
		if method != "Delete" || !strings.HasPrefix(key, "session:") {
			return nil
		}
		if n := deleted.Add(1); n == 2 || n == 3 { // of the second session, which is tried twice
			return errors.New("connection reset")
		}
		return nil
	})
	resp := a.admin("POST", "/admin/revoke", `{"sub": "alice"}`)
	if resp.StatusCode != 503 {
		t.Errorf("got %d, want 503", resp.StatusCode)
	}
	if body := text(resp); !strings.Contains(body, "sessions revoked: 1") {
		t.Errorf("got %q, want it to say that one session was revoked", body)
	}
	left := a.listSessions("sub=alice")
	if len(left) != 1 {
		t.Fatalf("got %d sessions left, want 1", len(left))
	}
	for _, kind := range []bff.EventKind{"session.ended", bff.AdminSessionRevoked} {
		events := log.of(kind)
		if len(events) != 1 {
			t.Errorf("%s: got %d events, want 1", kind, len(events))
		} else if id := events[0].Session; id == "" || id == left[0].ID {
			t.Errorf("%s: got session %q, want the one that ended", kind, id)
		}
	}
	if resp := a.admin("POST", "/admin/revoke", `{"sub": "alice"}`); resp.StatusCode != 200 {
		t.Errorf("repeated: got %d, want 200", resp.StatusCode)
	}
	for _, kind := range []bff.EventKind{"session.ended", bff.AdminSessionRevoked} {
		if got := len(log.of(kind)); got != 2 {
			t.Errorf("repeated: %s: got %d events, want 2", kind, got)
		}
	}
}

// TestEventsWaitForNoStore revokes a session whose user only the store knows,
// while reads of the history hang.
func TestEventsWaitForNoStore(t *testing.T) {
	t.Parallel()
	a, _, store, cfg := newAuditedApp(t)
	b := a.signInUser("alice")
	waitFor(t, "the history has the start", func() bool {
		return strings.Contains(text(a.admin("GET", "/admin/why?user=alice", "")), "session.started")
	})
	var log eventLog
	cfg.Observe = log.observe
	a.server, _ = replica(t, cfg)
	a.adminURL = ""
	release := make(chan struct{})
	var once sync.Once
	defer once.Do(func() { close(release) })
	store.hook(func(method, key string) error {
		if method == "Members" && strings.HasPrefix(key, "history:") {
			<-release
		}
		return nil
	})
	done := make(chan int)
	go func() { done <- a.admin("DELETE", "/admin/sessions/"+b.id, "").StatusCode }() // ends with the response
	select {
	case status := <-done:
		if status != 204 {
			t.Errorf("got %d, want 204", status)
		}
	case <-time.After(15 * time.Second):
		once.Do(func() { close(release) })
		<-done
		t.Fatal("the response waits for a read of the history")
	}
	once.Do(func() { close(release) })
	for _, kind := range []bff.EventKind{"session.ended", bff.AdminSessionRevoked} {
		waitFor(t, string(kind)+" is reported", func() bool { return len(log.of(kind)) == 1 })
		if e := log.of(kind)[0]; e.User == "" {
			t.Errorf("%s: it has no user", kind)
		}
	}
}

// TestFloodOfRefreshesKeepsEndsInTheHistory lets more refreshes wait for a slow
// store than there is room for.
func TestFloodOfRefreshesKeepsEndsInTheHistory(t *testing.T) {
	t.Parallel()
	a, log, store, _ := newAuditedApp(t)
	b := a.signInUser("alice")
	release := make(chan struct{})
	store.hook(func(method, key string) error {
		if method == "Add" && strings.HasPrefix(key, "history:") {
			<-release
		}
		return nil
	})
	for range 3000 {
		bff.AddToHistory(a.server, bff.Event{Kind: "session.refreshed", Session: "another", Time: time.Now()})
	}
	b.Fetch("POST", "/bff/logout")
	if got := len(log.of("session.ended")); got != 1 {
		t.Errorf("got %d ends, want 1", got)
	}
	close(release)
	waitFor(t, "the end in the history", func() bool {
		return strings.Contains(text(a.admin("GET", "/admin/why?session="+b.id, "")), "session.ended")
	})
	if len(a.logs.lines(t, "events not kept for cloakroom why: the store is slow")) == 0 {
		t.Error("the log does not say that events were not kept")
	}
}

// TestWhyReadsTheNewestSessions asks for a user with more sessions than one
// response has.
func TestWhyReadsTheNewestSessions(t *testing.T) {
	t.Parallel()
	const sessions, most = 230, 200
	a, _, _, _ := newAuditedApp(t)
	id := func(i int) string { return fmt.Sprintf("session-%014d", i*7919%sessions) } // in no order of time
	start := time.Now().Add(-time.Hour)
	for i := range sessions {
		bff.AddStartToHistory(a.server, "alice", id(i), start.Add(time.Duration(i)*time.Second))
	}
	waitFor(t, "the last session in the history", func() bool {
		return strings.Contains(text(a.admin("GET", "/admin/why?session="+id(sessions-1), "")), "started")
	})
	path, first := "/admin/why?user=alice", sessions-most
	for _, want := range []int{most, sessions - most} {
		resp := a.admin("GET", path, "")
		var events []bff.Event
		if err := json.Unmarshal([]byte(text(resp)), &events); err != nil {
			t.Fatal(err)
		}
		if len(events) != want {
			t.Fatalf("%s: got %d events, want %d", path, len(events), want)
		}
		if got := events[0].Session; got != id(first) {
			t.Errorf("%s: the oldest session: got %s, want %s", path, got, id(first))
		}
		link := resp.Header.Get("Link")
		next, more := strings.CutSuffix(strings.TrimPrefix(link, "<"), `>; rel="next"`)
		if more != (want == most) {
			t.Errorf("%s: Link: got %q", path, link)
		}
		path, first = next, 0
	}
	c := a.openAdminPage()
	c.signIn()
	if body := c.want(200, "GET", "/admin/?by=sub&q=alice", nil); !strings.Contains(body, "Only the newest events") {
		t.Error("the page does not say that there are more events")
	}
}

// TestWhyNamesMistakesInParameters sends parameters that it does not know.
func TestWhyNamesMistakesInParameters(t *testing.T) {
	t.Parallel()
	a, _, _, _ := newAuditedApp(t)
	for query, want := range map[string]string{
		"":                                 "send one of the parameters user, session, request and any",
		"user=":                            "send one of",
		"offset=1":                         "send one of",
		"user=a&session=b":                 "send one of",
		"user=&session=":                   "send one of",
		"user=alice&user=bob":              "user is there 2 times",
		"user=alice&limit=5":               `unknown parameter "limit": known are user, session, request, any, offset`,
		"User=alice":                       `unknown parameter "User"`,
		"sub=alice":                        `unknown parameter "sub"`,
		"user=%zz":                         "the query cannot be parsed",
		"user=alice;user=bob":              "the query cannot be parsed",
		"user=alice&offset=-1":             `offset: "-1" is not a number from 0`,
		"user=alice&offset=a":              `offset: "a" is not`,
		"any=" + strings.Repeat("x", 1025): "1024 bytes",
	} {
		resp := a.admin("GET", "/admin/why?"+query, "")
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%.40q: got %d, want 400", query, resp.StatusCode)
		}
		if body := text(resp); !strings.Contains(body, want) {
			t.Errorf("%.40q: got %q, want %q", query, body, want)
		}
	}
	// A form sends all of its fields.
	if resp := a.admin("GET", "/admin/why?user=alice&session=&request=", ""); resp.StatusCode != http.StatusOK {
		t.Errorf("one of three parameters with a value: got %d, want 200", resp.StatusCode)
	}
}

// TestRefusedRequestNamesItsSession sends the cookie without a proof of origin.
func TestRefusedRequestNamesItsSession(t *testing.T) {
	t.Parallel()
	a, log, _, _ := newAuditedApp(t)
	b := a.signInUser("alice")
	for path, want := range map[string]string{"/bff/session/refresh": b.id, "/api/x": b.id, "/api/forged": ""} {
		before := len(log.of(bff.CSRFRefused))
		if want != "" {
			b.Do("POST", path, "")
		} else {
			a.browser().Do("POST", path, "", "Cookie", a.cookieName()+"=x")
		}
		events := log.of(bff.CSRFRefused)[before:]
		if len(events) != 1 {
			t.Errorf("%s: got %d events, want 1", path, len(events))
		} else if got := events[0].Session; got != want {
			t.Errorf("%s: session: got %q, want %q", path, got, want)
		}
	}
	waitFor(t, "the refusal in the history", func() bool {
		var events []bff.Event
		json.Unmarshal([]byte(text(a.admin("GET", "/admin/why?session="+b.id, ""))), &events) // [] beside an error
		return slices.Contains(kinds(events), "csrf.refused")
	})
}
