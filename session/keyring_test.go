package session_test

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/redistest"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

// stores returns the stores that tests of indexes run against.
func stores(t *testing.T) map[string]session.Store {
	t.Helper()
	redis, err := tokenstore.NewRedis(tokenstore.RedisConfig{URL: redistest.Start(t).URL()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { redis.Close() })
	return map[string]session.Store{"memory": new(tokenstore.Memory), "redis": redis}
}

var here = session.App{Issuer: "https://id.example", ClientID: "spa", Origin: "https://app.example"}

// otherApps differ from here in one field, or in the boundary of two fields.
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

func TestAppsDoNotSeeEachOthersSessions(t *testing.T) {
	t.Parallel()
	for kind, store := range stores(t) {
		manager := func(app session.App) *session.Manager {
			return newManager(t, session.Config{Store: store, App: app, MaxPerUser: 1})
		}
		m := manager(here)
		s, ticket := signIn(t, m, tokens())
		own := newCookieJar(m)
		own.cookie.Write(own, s)
		for name, app := range otherApps {
			other := manager(app)
			if _, err := other.Find(t.Context(), ticket); !errors.Is(err, session.ErrNone) {
				t.Errorf("%s, %s: got %v, want ErrNone", kind, name, err)
			}
			got, state := newCookieJar(other).cookie.Read(own.request())
			wantEqual(t, kind+", "+name+": the state", state, session.CookieForeign)
			if got != (session.Ticket{}) {
				t.Errorf("%s, %s: got a ticket", kind, name)
			}
			for _, of := range [][2]string{{"alice", ""}, {"", "sid-1"}, {"alice", "sid-1"}} {
				if ended := endAll(t, other, "https://id.example", of[0], of[1]); len(ended) > 0 {
					t.Errorf("%s, %s: EndAll of %q: got %v, want none", kind, name, of, ended)
				}
			}
			time.Sleep(2 * time.Millisecond) // a logout ends logins of the same millisecond
			signIn(t, other, tokens())       // MaxPerUser counts per app
			wantAlive(t, m, ticket, name)
		}
		signIn(t, m, tokens())
		if _, state := own.cookie.Read(own.request()); state != session.CookieCurrent {
			t.Errorf("%s: own cookie: got %s, want current", kind, state)
		}
		wantNone(t, m, ticket, "a session beyond the limit")
	}
}

// A record does not open for another app, even if that has its ticket.
func TestRecordIsBoundToItsApp(t *testing.T) {
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

func TestCodecOpensForItsAppOnly(t *testing.T) {
	t.Parallel()
	codec := func(app session.App, purpose string) *session.Codec {
		ring, err := session.NewKeyring([][]byte{keyA, keyB}, app)
		if err != nil {
			t.Fatal(err)
		}
		return ring.Codec(purpose, time.Minute)
	}
	value, err := codec(here, "p").Seal("n", []byte("payload"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := codec(here, "p").Open("n", value); err != nil || string(got) != "payload" {
		t.Errorf("got %q, %v, want payload", got, err)
	}
	for name, app := range otherApps {
		if got, err := codec(app, "p").Open("n", value); !errors.Is(err, session.ErrForeign) || got != nil {
			t.Errorf("%s: got %q, %v, want ErrForeign", name, got, err)
		}
	}
	for name, open := range map[string]func() ([]byte, error){
		"another purpose": func() ([]byte, error) { return codec(here, "q").Open("n", value) },
		"another name":    func() ([]byte, error) { return codec(here, "p").Open("m", value) },
		"noise":           func() ([]byte, error) { return codec(here, "p").Open("n", "noise") },
	} {
		if got, err := open(); err == nil || errors.Is(err, session.ErrForeign) || got != nil {
			t.Errorf("%s: got %q, %v, want an error that is not ErrForeign", name, got, err)
		}
	}
}

func TestCodecOpensUntilMaxAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ring, err := session.NewKeyring([][]byte{keyA}, here)
		if err != nil {
			t.Fatal(err)
		}
		for maxAge, ages := range map[time.Duration]struct{ opens, expired time.Duration }{
			time.Minute: {59 * time.Second, 61 * time.Second},
			0:           {opens: 400 * 24 * time.Hour},
		} {
			codec := ring.Codec("p", maxAge)
			value, err := codec.Seal("n", []byte("payload"))
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(ages.opens)
			if _, err := codec.Open("n", value); err != nil {
				t.Errorf("maximum age %v, after %v: got %v, want the payload", maxAge, ages.opens, err)
			}
			if ages.expired == 0 {
				continue
			}
			time.Sleep(ages.expired - ages.opens)
			if _, err := codec.Open("n", value); err == nil {
				t.Errorf("maximum age %v, after %v: got the payload, want an error", maxAge, ages.expired)
			}
		}
	})
}

// A record of another release, or a part of one, is no session. Each is logged
// once, however often the browser sends its cookie.
func TestRecordThatDoesNotOpenIsLoggedOnce(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(record []byte) []byte
		want   string
	}{
		"later release": {
			func(r []byte) []byte { return append([]byte{session.RecordVersion + 1}, r[1:]...) },
			fmt.Sprintf("the record has version %d, of another release; this one reads version %d",
				session.RecordVersion+1, session.RecordVersion),
		},
		"nothing":   {func([]byte) []byte { return nil }, "the record is incomplete"},
		"truncated": {func(r []byte) []byte { return r[:len(r)/2] }, "message authentication failed"},
	} {
		var log testenv.Buffer
		store := new(tokenstore.Memory)
		m := newManager(t, session.Config{Store: store, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		s, ticket := signIn(t, m, tokens())
		key := "session:" + s.ID
		value, ttl, found, err := store.Get(t.Context(), key)
		if err != nil || !found {
			t.Fatalf("%s: got %t, %v, want the record", name, found, err)
		}
		if err := store.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Create(t.Context(), key, test.change(slices.Clone(value)), ttl); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			wantNone(t, m, ticket, name)
		}
		if lines := strings.Split(strings.TrimSpace(log.String()), "\n"); len(lines) != 1 ||
			!strings.Contains(lines[0], test.want) || !strings.Contains(lines[0], "session="+s.ID) {
			t.Errorf("%s: got %q, want one line with %s", name, lines, test.want)
		}
	}
}
