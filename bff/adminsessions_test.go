package bff_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

const adminToken = "the token of administrators"

func withAdminToken(_ *app, cfg *bff.Config) { cfg.AdminToken = adminToken }

// admin sends a request to an admin listener.
func (a *app) admin(method, path, body string, header ...string) *http.Response {
	a.t.Helper()
	if a.adminURL == "" {
		s := httptest.NewServer(a.server.Admin())
		a.t.Cleanup(s.Close)
		a.adminURL = s.URL
	}
	req, err := http.NewRequest(method, a.adminURL+path, strings.NewReader(body))
	if err != nil {
		a.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+adminToken)
	for h := range slices.Chunk(header, 2) {
		if req.Header.Set(h[0], h[1]); h[1] == "" {
			req.Header.Del(h[0])
		}
	}
	resp, err := httpClient.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	resp.Body.Close()
	resp.Body = io.NopCloser(strings.NewReader(string(text)))
	a.provider.CheckLeaks(a.t, path, string(text))
	return resp
}

// text returns the body of a response of admin.
func text(resp *http.Response) string {
	b, _ := io.ReadAll(resp.Body) // it is in memory
	return string(b)
}

// listedSession is an element of the response to GET /admin/sessions.
type listedSession struct {
	ID, Sub, SID  string
	CreatedAt     time.Time `json:"created_at"`
	LastSeenAt    time.Time `json:"last_seen_at"`
	IdleExpiresAt time.Time `json:"idle_expires_at"`
	ExpiresAt     time.Time `json:"expires_at"`
}

func (a *app) listSessions(query string) (list []listedSession) {
	a.t.Helper()
	resp := a.admin("GET", "/admin/sessions?"+query, "")
	if resp.StatusCode != 200 {
		a.t.Fatalf("sessions of %s: got %d %s", query, resp.StatusCode, text(resp))
	}
	body := text(resp)
	if err := json.Unmarshal([]byte(body), &list); err != nil || !strings.HasPrefix(body, "[") {
		a.t.Fatalf("sessions of %s: got %s, %v, want an array", query, body, err)
	}
	return list
}

// signedIn is a browser with a session.
type signedIn struct {
	*bfftest.Browser
	id string
}

func (a *app) signInUser(user string) signedIn {
	a.t.Helper()
	b := bfftest.NewBrowser(a.t, a.url)
	if got := b.SignIn(user, ""); got.StatusCode != 303 {
		a.t.Fatalf("callback: got %d %s", got.StatusCode, got.Text)
	}
	return a.idOf(b)
}

func (a *app) idOf(b *bfftest.Browser) signedIn {
	a.t.Helper()
	var body struct{ Session struct{ ID string } }
	b.Fetch("GET", "/bff/session").Decode(a.t, &body)
	return signedIn{b, body.Session.ID}
}

// startSessions starts n sessions of a user, without logins.
func (a *app) startSessions(user string, n int) {
	a.t.Helper()
	m, err := session.NewManager(session.Config{
		Store: a.store, Keys: [][]byte{bytes.Repeat([]byte("k"), 32)},
		App: session.App{Issuer: a.provider.Issuer, ClientID: a.provider.Client.ID, Origin: a.url},
		Refresh: func(context.Context, *session.Session, string) (session.RefreshResult, error) {
			return session.RefreshResult{}, errors.New("unexpected")
		},
	})
	if err != nil {
		a.t.Fatal(err)
	}
	for range n {
		if _, err := m.Start(a.t.Context(), session.New{
			Issuer: a.provider.Issuer, Subject: user, Tokens: session.Tokens{Access: "x", Refresh: "y"},
		}); err != nil {
			a.t.Fatal(err)
		}
	}
}

func wantCall(t *testing.T, b signedIn, want int) {
	t.Helper()
	if got := b.Fetch("GET", "/api/x"); got.StatusCode != want {
		t.Errorf("call: got %d %s, want %d", got.StatusCode, got.Text, want)
	}
}

func TestAdminListsSessionsOfUser(t *testing.T) {
	t.Parallel()
	a := newApp(t, withAdminToken)
	before := time.Now().Add(-time.Second)
	first := a.signInUser("alice")
	time.Sleep(2 * time.Millisecond) // their ages differ in milliseconds
	second := a.signInUser("alice")
	a.signInUser("bob")
	list := a.listSessions("sub=alice")
	if len(list) != 2 {
		t.Fatalf("got %v, want two sessions", list)
	}
	for i, want := range []string{second.id, first.id} {
		if list[i].ID != want {
			t.Errorf("session %d: got %s, want %s", i, list[i].ID, want)
		}
	}
	s := list[0]
	if s.Sub != "alice" {
		t.Errorf("sub: got %q, want alice", s.Sub)
	}
	for name, times := range map[string][2]time.Time{
		"created_at":      {before, s.CreatedAt},
		"last_seen_at":    {before, s.LastSeenAt},
		"idle_expires_at": {s.CreatedAt.Add(29 * time.Minute), s.IdleExpiresAt},
		"expires_at":      {s.IdleExpiresAt, s.ExpiresAt},
	} {
		if times[1].Before(times[0]) {
			t.Errorf("%s: got %v, want not before %v", name, times[1], times[0])
		}
	}
	if got := a.admin("GET", "/admin/sessions?sub=alice", "").Header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("Cache-Control: got %q, want no-store", got)
	}
}

func TestAdminSessionsNeedTheToken(t *testing.T) {
	t.Parallel()
	a := newApp(t, withAdminToken)
	b := a.signInUser("alice")
	for _, request := range [][3]string{
		{"GET", "/admin/sessions?sub=alice", ""}, {"DELETE", "/admin/sessions/" + b.id, ""},
		{"POST", "/admin/revoke", `{"sub": "alice"}`},
	} {
		for _, given := range []string{
			"", "Bearer", "Bearer ", "Bearer wrong", "Bearer " + adminToken + "x", "Basic " + adminToken, adminToken,
			"Bearer " + strings.Repeat("x", 8000),
		} {
			resp := a.admin(request[0], request[1], request[2], "Authorization", given)
			if resp.StatusCode != 401 {
				t.Errorf("%s %s with %.40q: got %d, want 401", request[0], request[1], given, resp.StatusCode)
			}
			if body := text(resp); strings.Contains(body, b.id) {
				t.Errorf("%s %s with %.40q: the response names the session: %s", request[0], request[1], given, body)
			}
		}
	}
	wantCall(t, b, 200)
}

func TestAdminSessionsRefuseOtherOrigins(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil) // no token: the loopback interface is enough
	b := a.signInUser("alice")
	for _, request := range [][3]string{
		{"DELETE", "/admin/sessions/" + b.id, ""}, {"POST", "/admin/revoke", `{"sub": "alice"}`},
	} {
		resp := a.admin(request[0], request[1], request[2], "Authorization", "", "Sec-Fetch-Site", "cross-site")
		if resp.StatusCode != 403 {
			t.Errorf("%s %s from another origin: got %d, want 403", request[0], request[1], resp.StatusCode)
		}
	}
	wantCall(t, b, 200)
	if resp := a.admin("DELETE", "/admin/sessions/"+b.id, "", "Authorization", ""); resp.StatusCode != 204 {
		t.Errorf("without a page: got %d, want 204", resp.StatusCode)
	}
	wantCall(t, b, 401)
}

func TestAdminRevokesOneSession(t *testing.T) {
	t.Parallel()
	a := newApp(t, withAdminToken)
	b, other := a.signInUser("alice"), a.signInUser("alice")
	for _, want := range []int{204, 404} {
		if resp := a.admin("DELETE", "/admin/sessions/"+b.id, ""); resp.StatusCode != want {
			t.Errorf("got %d %s, want %d", resp.StatusCode, text(resp), want)
		}
	}
	wantCall(t, b, 401)
	wantCall(t, other, 200)
	if list := a.listSessions("sub=alice"); len(list) != 1 || list[0].ID != other.id {
		t.Errorf("list: got %v, want the other session", list)
	}
	waitFor(t, "the refresh token is revoked", func() bool { return a.provider.LiveRefreshTokens() == 1 })
	if n := strings.Count(a.logs.String(), `"reason":"revoked"`); n == 0 {
		t.Error("no event has the reason revoked")
	}
}

func TestAdminRevokesByUserAndProviderSession(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"sub", "sid"} {
		a := newApp(t, withAdminToken)
		browser, sid := a.signedInWithSID()
		first, second, bob := a.idOf(browser), a.signInUser("alice"), a.signInUser("bob")
		value, want := "alice", []string{first.id, second.id}
		if name == "sid" {
			value, want = sid, []string{first.id}
		}
		body, err := json.Marshal(map[string]string{name: value})
		if err != nil {
			t.Fatal(err)
		}
		resp := a.admin("POST", "/admin/revoke", string(body))
		var result struct{ Revoked []string }
		if err := json.Unmarshal([]byte(text(resp)), &result); err != nil || resp.StatusCode != 200 {
			t.Fatalf("%s: got %d, %v", name, resp.StatusCode, err)
		}
		slices.Sort(want)
		slices.Sort(result.Revoked)
		if !slices.Equal(result.Revoked, want) {
			t.Errorf("%s: revoked: got %v, want %v", name, result.Revoked, want)
		}
		wantCall(t, first, 401)
		wantCall(t, bob, 200)
		if name == "sub" {
			wantCall(t, second, 401)
		}
		if again := text(a.admin("POST", "/admin/revoke", string(body))); again != "{\"revoked\":[]}\n" {
			t.Errorf("%s: revoked again: got %s, want none", name, again)
		}
	}
}

func TestAdminSessionsRefuseMistakes(t *testing.T) {
	t.Parallel()
	a := newApp(t, withAdminToken)
	b := a.signInUser("alice")
	for _, query := range []string{
		"", "sub=", "sub=&sid=", "user=alice", "sub=alice&sub=bob", "sub=alice&x=1", "sub=%zz", "sub=alice;sid=x",
		"sub=alice&offset=-1", "sub=alice&offset=x", "sub=alice&offset=99999999999999999999",
		"sub=" + strings.Repeat("x", 1025),
	} {
		if resp := a.admin("GET", "/admin/sessions?"+query, ""); resp.StatusCode != 400 {
			t.Errorf("GET %.40q: got %d, want 400", query, resp.StatusCode)
		}
	}
	for _, body := range []string{
		"", "{", "null", "[]", `"alice"`, `{}`, `{"sub": ""}`, `{"sub": null}`, `{"sub": 1}`, `{"sub": ["alice"]}`,
		`{"sub": "alice", "sid": "x"}`, `{"Sub": "alice"}`, `{"user": "alice"}`, `{"sub": "alice", "x": 1}`,
		`{"sub": "alice", "sub": "bob"}`, `{"sub": "alice"} {}`, "{\"sub\": \"alice\xff\"}", `{"sub": "\ud800"}`,
		`{"sub": "` + strings.Repeat("x", 1025) + `"}`, `{"sub": "alice"` + strings.Repeat(" ", 9000) + `}`,
	} {
		if resp := a.admin("POST", "/admin/revoke", body); resp.StatusCode != 400 {
			t.Errorf("POST %.40q: got %d, want 400", body, resp.StatusCode)
		}
	}
	for _, id := range []string{
		"x", "alice", "*", b.id + "x", b.id[:21], "..%2F" + b.id, b.id + "%00", "%0A" + b.id, strings.Repeat("x", 5000),
		b.id + "%2F..", "%ff",
	} {
		if resp := a.admin("DELETE", "/admin/sessions/"+id, ""); resp.StatusCode != 404 {
			t.Errorf("DELETE %.40q: got %d, want 404", id, resp.StatusCode)
		}
	}
	for _, request := range [][2]string{
		{"POST", "/admin/sessions"}, {"DELETE", "/admin/sessions"}, {"GET", "/admin/revoke"}, {"PUT", "/admin/revoke"},
	} {
		if resp := a.admin(request[0], request[1], ""); resp.StatusCode != 405 {
			t.Errorf("%s %s: got %d, want 405", request[0], request[1], resp.StatusCode)
		}
	}
	wantCall(t, b, 200)
}

func TestAdminSearchTakesAnyText(t *testing.T) {
	t.Parallel()
	a := newApp(t, withAdminToken)
	b := a.signInUser("alice")
	for _, search := range []string{
		"*", "al*", "alice\x00", "alice\r\nSet-Cookie: x=y", "<script>alert(1)</script>", "' OR 1=1 --", "../../x",
		"%", "\xff\xfe", "{user}", "alice ", "Alice", "\u202ealice", "\u200balice", strings.Repeat("\u00e9", 512),
		"user:alice", "cloakroom:session:" + b.id, "${jndi:ldap://x}",
	} {
		for _, name := range []string{"sub", "sid"} {
			query := url.Values{name: {search}}.Encode()
			if list := a.listSessions(query); len(list) != 0 {
				t.Errorf("%q: got %v, want none", search, list)
			}
		}
	}
	if list := a.listSessions("sub=alice"); len(list) != 1 {
		t.Errorf("alice: got %v, want one session", list)
	}
}

func TestAdminListRefersToTheNextPage(t *testing.T) {
	t.Parallel()
	a := newApp(t, withAdminToken)
	a.startSessions("many & more", 201)
	resp := a.admin("GET", "/admin/sessions?sub=many+%26+more", "")
	var list []listedSession
	if err := json.Unmarshal([]byte(text(resp)), &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 200 {
		t.Errorf("first page: got %d sessions, want 200", len(list))
	}
	link := resp.Header.Get("Link")
	next, ok := strings.CutSuffix(strings.TrimPrefix(link, "<"), `>; rel="next"`)
	if !ok {
		t.Fatalf("Link: got %q", link)
	}
	resp = a.admin("GET", next, "")
	if err := json.Unmarshal([]byte(text(resp)), &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 {
		t.Errorf("second page: got %d sessions, want 1", len(list))
	}
	if link := resp.Header.Get("Link"); link != "" {
		t.Errorf("Link of the second page: got %q, want none", link)
	}
}

func TestAdminSessionsWhileStoreIsDown(t *testing.T) {
	t.Parallel()
	a := newApp(t, withAdminToken)
	b := a.signInUser("alice")
	a.store.setDown(errors.New("connection refused"))
	for _, request := range [][3]string{
		{"GET", "/admin/sessions?sub=alice", ""}, {"DELETE", "/admin/sessions/" + b.id, ""},
		{"POST", "/admin/revoke", `{"sub": "alice"}`},
	} {
		resp := a.admin(request[0], request[1], request[2])
		if resp.StatusCode != 503 {
			t.Errorf("%s %s: got %d, want 503", request[0], request[1], resp.StatusCode)
		}
		if body := text(resp); strings.Contains(body, "connection refused") {
			t.Errorf("%s %s: the response shows the cause: %s", request[0], request[1], body)
		}
	}
	a.store.setDown(nil)
	wantCall(t, b, 200)
}

// An administrator may interrupt the command before it has ended all sessions.
func TestRevocationEndsSessionsAlsoIfTheClientIsGone(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(a *app, cfg *bff.Config) {
		withAdminToken(a, cfg)
		cfg.Sessions.Store = obedientStore{new(tokenstore.Memory)}
	})
	gone, leave := context.WithCancel(t.Context())
	leave()
	// In this order: all of a user includes a login that begins in the same
	// millisecond.
	for _, name := range []string{"one", "all of a user"} {
		b := a.signedIn()
		r := httptest.NewRequestWithContext(gone, "DELETE", "/admin/sessions/"+a.sessionID(b), nil)
		if name != "one" {
			r = httptest.NewRequestWithContext(gone, "POST", "/admin/revoke", strings.NewReader(`{"sub": "alice"}`))
		}
		r.Header.Set("Authorization", "Bearer "+adminToken)
		w := httptest.NewRecorder()
		a.server.Admin().ServeHTTP(w, r)
		if resp := b.Fetch("GET", "/api/x"); resp.StatusCode != 401 {
			t.Errorf("%s: the session goes on: got %d, want 401; the response was %d %s", name, resp.StatusCode,
				w.Code, w.Body)
		}
	}
}
