package session_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/gorilla/securecookie"

	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
	"github.com/cloakroom-bff/cloakroom/tokenstore/storetest"
)

// stores are the stores that a test of indexes runs against.
func stores(t *testing.T) map[string]session.Store {
	t.Helper()
	redis, err := tokenstore.NewRedis(tokenstore.RedisConfig{URL: storetest.StartRedis(t).URL()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { redis.Close() })
	return map[string]session.Store{"memory": new(tokenstore.Memory), "redis": redis}
}

var here = session.App{Issuer: "https://id.example", ClientID: "spa", Origin: "https://app.example"}

// otherApps differ from here in one of the three, or in where one ends and the next begins.
var otherApps = map[string]session.App{
	"issuer":    {Issuer: "https://id2.example", ClientID: "spa", Origin: "https://app.example"},
	"client":    {Issuer: "https://id.example", ClientID: "spa2", Origin: "https://app.example"},
	"origin":    {Issuer: "https://id.example", ClientID: "spa", Origin: "https://app.example:8443"},
	"scheme":    {Issuer: "https://id.example", ClientID: "spa", Origin: "http://app.example"},
	"a slash":   {Issuer: "https://id.example/", ClientID: "spa", Origin: "https://app.example"},
	"a case":    {Issuer: "https://id.example", ClientID: "SPA", Origin: "https://app.example"},
	"boundary":  {Issuer: "https://id.examples", ClientID: "pa", Origin: "https://app.example"},
	"boundary2": {Issuer: "https://id.example", ClientID: "spah", Origin: "ttps://app.example"},
	"a NUL":     {Issuer: "https://id.example\x00spa", ClientID: "", Origin: "https://app.example"},
	"none":      {},
}

func TestAnAppSeesNothingOfAnother(t *testing.T) {
	t.Parallel()
	for kind, store := range stores(t) {
		manager := func(app session.App, refused *[]session.CookieState) *session.Manager {
			return newManager(t, session.Config{Store: store, App: app, MaxPerUser: 1, CookieRefused: func(_ *http.Request, state session.CookieState) {
				*refused = append(*refused, state)
			}})
		}
		var none []session.CookieState
		m := manager(here, &none)
		_, r := signIn(t, m, tokens())
		for name, app := range otherApps {
			var refused []session.CookieState
			other := manager(app, &refused)
			if _, err := other.Get(t.Context(), r); !errors.Is(err, session.ErrNone) || !errors.Is(err, session.ErrForeign) {
				t.Errorf("%s, %s: got %v, want ErrNone and ErrForeign", kind, name, err)
			}
			w := httptest.NewRecorder()
			if ended, err := other.End(t.Context(), w, r); ended != nil || err != nil || len(w.Result().Cookies()) > 0 {
				t.Errorf("%s, %s: End returns %v, %v and sets %v", kind, name, ended, err, w.Result().Cookies())
			}
			if !slices.Equal(refused, []session.CookieState{session.CookieForeign, session.CookieForeign}) {
				t.Errorf("%s, %s: refused %v, want it twice, as foreign", kind, name, refused)
			}
			for _, who := range [][2]string{{"alice", ""}, {"", "sid-1"}, {"alice", "sid-1"}} {
				if ended, err := other.EndAll(t.Context(), "https://id.example", who[0], who[1]); len(ended) > 0 || err != nil {
					t.Errorf("%s, %s: EndAll of %q ends %v, %v", kind, name, who, ended, err)
				}
			}
			time.Sleep(2 * time.Millisecond) // a login in the millisecond of a logout is ended by it
			signIn(t, other, tokens())       // the limit of one session a user is one in each app
			wantAlive(t, m, r, name)
		}
		signIn(t, m, tokens())
		if len(none) > 0 {
			t.Errorf("%s: its own cookie was refused: %v", kind, none)
		}
		if _, err := m.Get(t.Context(), r); !errors.Is(err, session.ErrNone) || errors.Is(err, session.ErrForeign) {
			t.Errorf("%s: a session that has ended: got %v, want ErrNone alone", kind, err)
		}
	}
}

// A record does not open for another app, not even for one that knows its ticket.
func TestARecordIsBoundToItsApp(t *testing.T) {
	t.Parallel()
	store := new(tokenstore.Memory)
	s, _ := signIn(t, newManager(t, session.Config{Store: store, App: here}), tokens())
	for name, app := range otherApps {
		other := newManager(t, session.Config{Store: store, App: app})
		if got, err := other.Open(t.Context(), s); !errors.Is(err, session.ErrNone) {
			t.Errorf("%s: got %v, %v, want ErrNone", name, got, err)
		}
	}
}

func TestWhatSessionKeysSealOpensForItsAppAlone(t *testing.T) {
	t.Parallel()
	keys := [][]byte{keyA, keyB}
	codecs := func(app session.App, purpose string) []securecookie.Codec {
		c, err := session.Codecs(keys, app, purpose, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	value, err := securecookie.EncodeMulti("n", []byte("payload"), codecs(here, "p")...)
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	if err := securecookie.DecodeMulti("n", value, &got, codecs(here, "p")...); err != nil || string(got) != "payload" || session.IsForeign(err) {
		t.Errorf("got %q, %v", got, err)
	}
	for name, app := range otherApps {
		got = nil
		if err := securecookie.DecodeMulti("n", value, &got, codecs(app, "p")...); !session.IsForeign(err) || got != nil {
			t.Errorf("%s: got %q, %v, want a foreign one", name, got, err)
		}
	}
	for what, err := range map[string]error{
		"another purpose": securecookie.DecodeMulti("n", value, &got, codecs(here, "q")...),
		"another name":    securecookie.DecodeMulti("m", value, &got, codecs(here, "p")...),
		"noise":           securecookie.DecodeMulti("n", "noise", &got, codecs(here, "p")...),
	} {
		if err == nil || session.IsForeign(err) {
			t.Errorf("%s: got %v, want an error that is not about another app", what, err)
		}
	}
}

func TestACookieThatIsNotUsedHasAState(t *testing.T) {
	t.Parallel()
	var refused []session.CookieState
	m := newManager(t, session.Config{App: here, CookieRefused: func(_ *http.Request, state session.CookieState) { refused = append(refused, state) }})
	_, r := signIn(t, m, tokens())
	good := r.Cookies()[0]
	_, strange := signIn(t, newManager(t, session.Config{App: here, Keys: [][]byte{keyB}}), tokens())
	for name, test := range map[string]struct {
		r    *http.Request
		want []session.CookieState
	}{
		"none":        {requestWith(), nil},
		"good":        {r, nil},
		"another key": {strange, []session.CookieState{session.CookieUnopenable}},
		"cut":         {requestWith(&http.Cookie{Name: good.Name, Value: good.Value[:20]}), []session.CookieState{session.CookieUnopenable}},
		"empty":       {requestWith(&http.Cookie{Name: good.Name}), []session.CookieState{session.CookieUnopenable}},
		"twice":       {requestWith(good, good), []session.CookieState{session.CookieDuplicate}},
	} {
		refused = nil
		m.Get(context.Background(), test.r)
		if !slices.Equal(refused, test.want) {
			t.Errorf("%s: got %v, want %v", name, refused, test.want)
		}
	}
	refused = nil
	m.End(t.Context(), httptest.NewRecorder(), r)
	wantNone(t, m, r, "ended")
	if len(refused) > 0 {
		t.Errorf("the cookie of a session that has ended: got %v, want no state", refused)
	}
}
