package session_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

// cookieJar is a browser with the session cookie of one App. It is the
// http.ResponseWriter of the responses that the browser gets.
type cookieJar struct {
	cookie *session.Cookie
	*httptest.ResponseRecorder
}

func newCookieJar(m *session.Manager) cookieJar { return newCookieJarFor(m, session.CookieConfig{}) }

func newCookieJarFor(m *session.Manager, cfg session.CookieConfig) cookieJar {
	return cookieJar{session.NewCookie(m.Keyring(), cfg), httptest.NewRecorder()}
}

// request returns a request with the cookies that the browser got.
func (j cookieJar) request() *http.Request { return requestWith(j.Result().Cookies()...) }

func requestWith(cookies ...*http.Cookie) *http.Request {
	r := httptest.NewRequest("GET", "/", nil)
	for _, c := range cookies {
		r.AddCookie(c)
	}
	return r
}

func TestCookieAttributes(t *testing.T) {
	for name, test := range map[string]struct {
		cookie session.CookieConfig
		want   string
	}{
		"by default": {
			session.CookieConfig{},
			"__Host-Http-cloakroom=VALUE; Path=/; Max-Age=43200; HttpOnly; Secure; SameSite=Strict",
		},
		"lax": {
			session.CookieConfig{SameSite: http.SameSiteLaxMode},
			"__Host-Http-cloakroom=VALUE; Path=/; Max-Age=43200; HttpOnly; Secure; SameSite=Lax",
		},
		"localhost": {
			session.CookieConfig{InsecureHTTP: true, Port: "8080"},
			"cloakroom-8080=VALUE; Path=/; Max-Age=43200; HttpOnly; SameSite=Strict",
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			m := newManager(t, session.Config{})
			jar := newCookieJarFor(m, test.cookie)
			s, _ := signIn(t, m, tokens())
			jar.cookie.Write(jar, s)
			c := jar.Result().Cookies()[0]
			if got := strings.Replace(jar.Header().Get("Set-Cookie"), c.Value, "VALUE", 1); got != test.want {
				t.Errorf("%s: got  %s\nwant %s", name, got, test.want)
			}
			if len(c.Name)+len(c.Value) > 300 {
				t.Errorf("%s: got %d bytes, want at most 300", name, len(c.Name)+len(c.Value))
			}
			w := httptest.NewRecorder()
			jar.cookie.Clear(w)
			deleted := strings.NewReplacer("=VALUE", "=", "Max-Age=43200", "Max-Age=0").Replace(test.want)
			if got := w.Header().Get("Set-Cookie"); got != deleted {
				t.Errorf("%s, Clear: got  %s\nwant %s", name, got, deleted)
			}
		})
	}
}

func TestCookieReadsWhatItWrote(t *testing.T) {
	m := newManager(t, session.Config{})
	jar := newCookieJar(m)
	s, ticket := signIn(t, m, tokens())
	jar.cookie.Write(jar, s)
	for range 2 { // the second time from the cache
		got, state := jar.cookie.Read(jar.request())
		if !got.Equal(ticket) {
			t.Error("got another ticket")
		}
		if state != session.CookieCurrent {
			t.Errorf("got %s, want current", state)
		}
	}
}

func TestModifiedCookiesDoNotOpen(t *testing.T) {
	m := newManager(t, session.Config{})
	jar := newCookieJar(m)
	s, _ := signIn(t, m, tokens())
	jar.cookie.Write(jar, s)
	good := jar.Result().Cookies()[0]
	with := func(value string) *http.Cookie { return &http.Cookie{Name: good.Name, Value: value} }
	wantState := func(want session.CookieState, name string, cookies ...*http.Cookie) {
		t.Helper()
		ticket, state := jar.cookie.Read(requestWith(cookies...))
		if state != want {
			t.Errorf("%s: got %s, want %s", name, state, want)
		}
		if used := want == session.CookieCurrent; used == (ticket == session.Ticket{}) {
			t.Errorf("%s: got a ticket: %v, want %v", name, !used, used)
		}
	}
	for i := range len(good.Value) {
		flipped := []byte(good.Value)
		flipped[i] ^= 1
		if i < len(good.Value)-2 { // the last character of base64 may have unused bits
			wantState(session.CookieUnopenable, fmt.Sprintf("bit of character %d flipped", i), with(string(flipped)))
		}
		wantState(session.CookieUnopenable, "truncated", with(good.Value[:i]))
	}
	other := newManager(t, session.Config{Keys: [][]byte{keyB}})
	otherJar := newCookieJar(other)
	otherSession, _ := signIn(t, other, tokens())
	otherJar.cookie.Write(otherJar, otherSession)
	wantState(session.CookieUnopenable, "from another key", otherJar.Result().Cookies()...)
	wantState(session.CookieUnopenable, "4 KB of noise", with(strings.Repeat("noise", 800)))
	wantState(session.CookieUnopenable, "empty", with(""))
	wantState(session.CookieDuplicate, "twice", good, good)
	wantState(session.CookieDuplicate, "twice, the good one first", good, with("x"))
	wantState(session.CookieDuplicate, "twice, the good one last", with("x"), good)
	wantState(session.CookieAbsent, "none")
	wantState(session.CookieAbsent, "in another case of letters", &http.Cookie{
		Name: strings.ToLower(good.Name), Value: good.Value,
	})
	wantState(session.CookieAbsent, "under another name", &http.Cookie{Name: "cloakroom", Value: good.Value})
	wantState(session.CookieCurrent, "among a hundred others", append(others(100), good)...)
	wantState(session.CookieCurrent, "good", good)
}

func others(n int) []*http.Cookie {
	var cookies []*http.Cookie
	for i := range n {
		cookies = append(cookies, &http.Cookie{Name: fmt.Sprintf("other%d", i), Value: "x"})
	}
	return cookies
}

func TestRefusedCookieStates(t *testing.T) {
	for state, want := range map[session.CookieState]bool{
		session.CookieAbsent: false, session.CookieCurrent: false, session.CookieOutdated: false,
		session.CookieForeign: true, session.CookieUnopenable: true, session.CookieDuplicate: true,
	} {
		if got := state.Refused(); got != want {
			t.Errorf("%s: got %v, want %v", state, got, want)
		}
	}
}

func TestCookieIsOutdatedAfterKeyRotation(t *testing.T) {
	store := new(tokenstore.Memory)
	before := newManager(t, session.Config{Store: store, Keys: [][]byte{keyA}})
	m := newManager(t, session.Config{Store: store, Keys: [][]byte{keyB, keyA}})
	old, jar := newCookieJar(before), newCookieJar(m)
	s, ticket := signIn(t, before, tokens())
	old.cookie.Write(old, s)
	got, state := jar.cookie.Read(old.request())
	if state != session.CookieOutdated {
		t.Errorf("cookie of the old key: got %s, want outdated", state)
	}
	if !got.Equal(ticket) {
		t.Error("got another ticket")
	}
	jar.cookie.Write(jar, wantAlive(t, m, got, "both keys"))
	if _, state := jar.cookie.Read(jar.request()); state != session.CookieCurrent {
		t.Errorf("cookie of the new key: got %s, want current", state)
	}
	after := newCookieJar(newManager(t, session.Config{Store: store, Keys: [][]byte{keyB}}))
	if _, state := after.cookie.Read(jar.request()); state != session.CookieCurrent {
		t.Errorf("new cookie without the old key: got %s, want current", state)
	}
	if _, state := after.cookie.Read(old.request()); state != session.CookieUnopenable {
		t.Errorf("old cookie without the old key: got %s, want unopenable", state)
	}
}

func FuzzCookie(f *testing.F) {
	m, err := session.NewManager(session.Config{Store: new(tokenstore.Memory), Keys: [][]byte{keyA}, Refresh: func(
		context.Context, *session.Session, string,
	) (session.RefreshResult, error) {
		return session.RefreshResult{}, nil
	}})
	if err != nil {
		f.Fatal(err)
	}
	s, err := m.Start(context.Background(), session.New{Tokens: session.Tokens{Access: "a", Refresh: "r"}})
	if err != nil {
		f.Fatal(err)
	}
	jar := newCookieJar(m)
	jar.cookie.Write(jar, s)
	good := jar.Result().Cookies()[0]
	f.Add(good.Name + "=" + good.Value)
	f.Add(good.Name + "=")
	f.Add(good.Name + "=x; " + good.Name + "=y")
	f.Add(";;=;")
	f.Add(good.Name + `="` + good.Value + `"`)
	f.Add(strings.Repeat("a=b; ", 200))
	f.Fuzz(func(t *testing.T, line string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header["Cookie"] = []string{line}
		ticket, _ := jar.cookie.Read(r)
		s, err := m.Find(t.Context(), ticket)
		if err == nil && !strings.Contains(line, good.Value[:len(good.Value)-4]) {
			t.Errorf("%q: got the session %v", line, s)
		}
		if err != nil && !errors.Is(err, session.ErrNone) {
			t.Errorf("%q: got %v, want ErrNone", line, err)
		}
	})
}
