package bff

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
)

var testTicket, _ = session.ParseTicket(session.Secret(strings.Repeat("id", 32)))

// newTestAttempts uses a random key, another one in each process of a fuzz run.
func newTestAttempts(t testing.TB) *attempts {
	key := make([]byte, 32)
	rand.Read(key)
	ring, err := session.NewKeyring([][]byte{key}, session.App{})
	if err != nil {
		t.Fatal(err)
	}
	as := newAttempts(session.CookieConfig{}, ring)
	return &as
}

// startAttempt starts an attempt and returns it with its cookie.
func startAttempt(t testing.TB, as *attempts, a *attempt) (*attempt, *http.Cookie) {
	w := httptest.NewRecorder()
	if err := as.prepare(a, true); err != nil {
		t.Fatal(err)
	}
	if err := as.begin(w, httptest.NewRequest("GET", "/bff/login", nil), a); err != nil {
		t.Fatal(err)
	}
	return a, w.Result().Cookies()[0]
}

func TestAttemptSurvivesItsCookie(t *testing.T) {
	t.Parallel()
	as := newTestAttempts(t)
	want, cookie := startAttempt(t, as, &attempt{
		ReturnTo: "/x?y#z", Prompt: "login", MaxAge: "60", ACRValues: "gold", Replaces: testTicket,
		Subject: "alice", CrossSite: true, Restarted: true,
	})
	r := httptest.NewRequest("GET", "/bff/callback", nil)
	r.AddCookie(cookie)
	w := httptest.NewRecorder()
	got := as.find(r, want.State)
	as.drop(w, r, want.State)
	if got == nil || *got != *want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	c := w.Result().Cookies()
	switch {
	case len(c) != 1:
		t.Errorf("cookies that remove the attempt: got %d, want 1", len(c))
	case c[0].Name != cookie.Name:
		t.Errorf("the attempt cookie is not removed: c[0].Name: got %v, want %v", c[0].Name, cookie.Name)
	case c[0].MaxAge >= 0:
		t.Errorf("the attempt cookie is not removed: c[0].MaxAge: got %v, want less than 0", c[0].MaxAge)
	case !c[0].Secure:
		t.Error("the attempt cookie is not removed: c[0].Secure: got false, want true")
	case c[0].Path != "/":
		t.Errorf("the attempt cookie is not removed: c[0].Path: got %v, want /", c[0].Path)
	case !strings.HasPrefix(c[0].Name, "__Host-Http-cloakroom-login-"):
		t.Errorf("the attempt cookie is not removed: got %s, want prefix __Host-Http-cloakroom-login-", c[0].Name)
	}
	for _, s := range []string{fmt.Sprint(want), fmt.Sprintf("%+v", *want), string(must(json.Marshal(want)))} {
		if strings.Contains(s, want.Verifier.Reveal()) {
			t.Errorf("the verifier is printed: %s", s)
		}
	}
}

func TestAttemptIsBoundToItsState(t *testing.T) {
	t.Parallel()
	as := newTestAttempts(t)
	a, _ := startAttempt(t, as, &attempt{ReturnTo: "/"})
	other, _ := startAttempt(t, as, &attempt{ReturnTo: "/"})
	name := as.cookieName(other.State) // as if the tags of the two states collided
	value, err := as.seal(name, a)
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest("GET", "/bff/callback", nil)
	r.AddCookie(&http.Cookie{Name: name, Value: value})
	if got := as.find(r, other.State); got != nil {
		t.Errorf("accepted for another state: %+v", got)
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

func TestAttemptLastsTenMinutesAndItsStateADay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		as := newTestAttempts(t)
		a, cookie := startAttempt(t, as, &attempt{ReturnTo: "/"})
		restarted, _ := startAttempt(t, as, &attempt{ReturnTo: "/", Restarted: true})
		r := httptest.NewRequest("GET", "/bff/callback", nil)
		r.AddCookie(cookie)
		time.Sleep(attemptLife - time.Second)
		if as.find(r, a.State) == nil {
			t.Error("the attempt expired too early")
		}
		time.Sleep(2 * time.Second)
		if as.find(r, a.State) != nil {
			t.Error("the attempt did not expire")
		}
		for state, want := range map[string]struct{ ok, restarted bool }{
			a.State:         {true, false},
			restarted.State: {true, true},
			"x":             {},
			"":              {},
		} {
			switch got, ok := as.openState(state); {
			case ok != want.ok:
				t.Errorf("state %.20q: ok: got %v, want %v", state, ok, want.ok)
			case got.restarted != want.restarted:
				t.Errorf("state %.20q: restarted: got %v, want %v", state, got.restarted, want.restarted)
			}
		}
		time.Sleep(stateLife)
		if _, ok := as.openState(a.State); ok {
			t.Error("the state did not expire")
		}
	})
}

// Only a cookie and a state that begin created together are accepted. No input
// panics.
func FuzzAttempt(f *testing.F) {
	as := newTestAttempts(f)
	a, cookie := startAttempt(f, as, &attempt{ReturnTo: "/"})
	other, otherCookie := startAttempt(f, as, &attempt{ReturnTo: "/other"})
	f.Add(a.State, cookie.Name+"="+cookie.Value)
	f.Add(a.State, cookie.Name+"="+otherCookie.Value)
	f.Add(other.State, cookie.Name+"="+cookie.Value+"; "+otherCookie.Name+"="+otherCookie.Value)
	f.Add(a.State, cookie.Name+"="+cookie.Value+"; "+cookie.Name+"="+cookie.Value)
	f.Add("", as.name+"=;;=")
	f.Add("x", as.name+"x="+strings.Repeat("A", 5000))
	f.Fuzz(func(t *testing.T, state, line string) {
		r := httptest.NewRequest("GET", "/bff/callback", nil)
		r.Header["Cookie"] = []string{line}
		got := as.find(r, state)
		if got != nil &&
			!(state == a.State && strings.Contains(line, cookie.Value[:len(cookie.Value)-4]) ||
				state == other.State && strings.Contains(line, otherCookie.Value[:len(otherCookie.Value)-4])) {
			t.Errorf("state %q with cookies %q is accepted as %+v", state, line, got)
		}
		_, ok := as.openState(state)
		if ok && state != a.State && state != other.State &&
			!strings.HasPrefix(state, a.State[:len(a.State)-4]) &&
			!strings.HasPrefix(state, other.State[:len(other.State)-4]) {
			t.Errorf("forged state %q is accepted", state)
		}
		as.drop(httptest.NewRecorder(), r, state)
		as.prune(httptest.NewRecorder(), r, 100, false)
		resp, err := parseAuthResponse("state=" + url.QueryEscape(state) + "&" + line)
		if err == nil && (resp.State == "" || (resp.Code == "") == (resp.Error == "")) {
			t.Errorf("%q is accepted as the response %+v", line, resp)
		}
	})
}

// RFC 7636 4.1, RFC 6749 10.10: verifier, nonce and state are random, long
// enough and unique.
func TestAttemptSecretsAreLongAndUnique(t *testing.T) {
	t.Parallel()
	as := newTestAttempts(t)
	unreserved := regexp.MustCompile(`^[A-Za-z0-9._~-]{43,128}$`)
	seen := make(map[string]bool)
	for range 10_000 {
		a := &attempt{ReturnTo: "/"}
		if err := as.prepare(a, false); err != nil {
			t.Fatal(err)
		}
		if !unreserved.MatchString(a.Verifier.Reveal()) || len(a.Nonce) < 22 || len(a.Nonce) > 64 || len(a.State) < 22 {
			t.Fatalf("got a verifier of %d characters, the nonce %s, the state %s",
				len(a.Verifier.Reveal()), a.Nonce, a.State)
		}
		for _, secret := range []string{a.Verifier.Reveal(), a.Nonce, a.State} {
			if seen[secret] {
				t.Fatalf("%s is repeated", secret)
			}
			seen[secret] = true
		}
	}
	for position := range 43 { // no structure: every position of the nonce varies
		values := make(map[byte]bool)
		for range 1000 {
			a := &attempt{ReturnTo: "/"}
			as.prepare(a, false)
			values[a.Nonce[position]] = true
		}
		if len(values) < 16 {
			t.Errorf("position %d of the nonce has %d values, want at least 16", position, len(values))
		}
	}
}
