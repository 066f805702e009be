package session_test

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

// signInOn starts a session of a user on a device.
func signInOn(t *testing.T, m *session.Manager, subject, device string) *session.Session {
	t.Helper()
	s, err := m.Start(t.Context(), session.New{Issuer: "i", Subject: subject, Tokens: tokens(), Device: device})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// deviceOf returns the device of alice's only session.
func deviceOf(t *testing.T, m *session.Manager) string {
	t.Helper()
	infos := list(t, m, "alice", "")
	if len(infos) != 1 {
		t.Fatalf("got %v, want one session", infos)
	}
	return infos[0].Device
}

func TestListTellsDevice(t *testing.T) {
	t.Parallel()
	for kind, store := range stores(t) {
		m := newManager(t, session.Config{Store: store})
		s := signInOn(t, m, "alice", "Firefox on Linux")
		wantEqual(t, kind+": device", deviceOf(t, m), "Firefox on Linux")
		i, found, err := m.Info(t.Context(), s.ID)
		if err != nil || !found {
			t.Fatalf("%s: got %v, %v", kind, found, err)
		}
		wantEqual(t, kind+": device of the ID", i.Device, "Firefox on Linux")
		wantEqual(t, kind+": created", i.CreatedAt.UnixMilli(), s.CreatedAt.UnixMilli())
		wantEqual(t, kind+": expires", i.ExpiresAt.UnixMilli(), s.ExpiresAt.UnixMilli())
	}
}

func TestDeviceIsBounded(t *testing.T) {
	t.Parallel()
	for _, device := range []string{strings.Repeat("x", 1<<20), strings.Repeat("€", 1000)} {
		m := newManager(t, session.Config{})
		signInOn(t, m, "alice", device)
		got := deviceOf(t, m)
		if len(got) > 64 || len(got) < 60 || !utf8.ValidString(got) || !strings.HasPrefix(device, got) {
			t.Errorf("got %q, want up to 64 bytes of %.5q…", got, device)
		}
	}
}

func TestInfoOpensForItsSessionAndAppOnly(t *testing.T) {
	store := &dumpStore{Store: new(tokenstore.Memory), dump: make(map[string][]byte)}
	m := newManager(t, session.Config{Store: store, App: here})
	s, other := signInOn(t, m, "alice", "Firefox on Linux"), signInOn(t, m, "bob", "Safari on iPhone")
	for key, value := range store.dump {
		if bytes.Contains(value, []byte("Firefox")) || bytes.Contains(value, []byte("iPhone")) {
			t.Errorf("record %s contains the device", key)
		}
	}
	store.swap = map[string]string{"info:" + s.ID: "info:" + other.ID, "info:" + other.ID: "info:" + s.ID}
	wantEqual(t, "device with the infos swapped", deviceOf(t, m), "")
	store.swap = nil
	wantEqual(t, "device", deviceOf(t, m), "Firefox on Linux")
	for name, app := range otherApps {
		foreign := newManager(t, session.Config{Store: store, App: app})
		if infos := list(t, foreign, "alice", ""); len(infos) > 0 {
			t.Errorf("%s: got %v, want no session", name, infos)
		}
		if i, _, err := foreign.Info(t.Context(), s.ID); err != nil || i.Device != "" {
			t.Errorf("%s: got device %q, %v, want none", name, i.Device, err)
		}
	}
}

func TestDeviceSurvivesKeyRotation(t *testing.T) {
	for name, use := range map[string]func(*testing.T, *session.Manager, session.Ticket){
		"activity": func(t *testing.T, m *session.Manager, ticket session.Ticket) {
			if err := m.Touch(t.Context(), wantAlive(t, m, ticket, "in use")); err != nil {
				t.Fatal(err)
			}
		},
		"a refresh": func(t *testing.T, m *session.Manager, ticket session.Ticket) {
			if _, err := findRefresh(t.Context(), m, ticket); err != nil {
				t.Fatal(err)
			}
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			store := new(tokenstore.Memory)
			p := new(tokenEndpoint)
			manager := func(keys ...[]byte) *session.Manager {
				return newManager(t, session.Config{Store: store, Keys: keys, Refresh: p.refresh})
			}
			ticket := signInOn(t, manager(keyA), "alice", "Firefox on Linux").Ticket()
			time.Sleep(time.Minute)
			use(t, manager(keyB, keyA), ticket)
			wantEqual(t, "device after the old key was removed, moved by "+name, deviceOf(t, manager(keyB)),
				"Firefox on Linux")
		})
	}
}

// The record of such a session cannot live longer, so that its time to live
// does not tell of activity.
func TestLastSeenMovesUntilTheAbsoluteEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &countingStore{Store: new(tokenstore.Memory), touches: make(map[string]int)}
		m := newManager(t, session.Config{Store: store, IdleTimeout: 8 * time.Hour, MaxLifetime: 8 * time.Hour})
		tk := tokens()
		tk.Expiry = time.Now().Add(24 * time.Hour)
		_, ticket := signIn(t, m, tk)
		for range 60 {
			for range 7 {
				time.Sleep(time.Minute)
				if err := m.Touch(t.Context(), wantAlive(t, m, ticket, "in use")); err != nil {
					t.Fatal(err)
				}
			}
			infos, _, err := m.List(t.Context(), "https://id.example", "alice", "", 0, 10)
			if err != nil || len(infos) != 1 {
				t.Fatalf("got %v, %v, want one session", infos, err)
			}
			if ago := time.Since(infos[0].LastSeenAt); ago < 0 || ago > 8*time.Minute {
				t.Errorf("got last seen %v ago, want at most 8 minutes", ago)
			}
		}
		if n := store.touches["info"]; n > 60 {
			t.Errorf("got %d writes, want at most 60", n)
		}
	})
}

func TestInfoEndsWithItsSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(tokenstore.Memory)
		m := newManager(t, session.Config{Store: store, MaxLifetime: time.Hour})
		exists := func(s *session.Session) bool {
			_, _, found, err := store.Get(t.Context(), "info:"+s.ID)
			if err != nil {
				t.Fatal(err)
			}
			return found
		}
		ended, expired := signInOn(t, m, "alice", "Firefox"), signInOn(t, m, "alice", "Firefox")
		wantEqual(t, "info of a new session", exists(ended), true)
		if err := m.End(t.Context(), ended, session.ReasonLogout); err != nil {
			t.Fatal(err)
		}
		wantEqual(t, "info of an ended session", exists(ended), false)
		time.Sleep(32 * time.Minute)
		wantNone(t, m, expired.Ticket(), "idle")
		wantEqual(t, "info of an expired session", exists(expired), false)
	})
}

// A release without the second record started the session.
func TestSessionWithoutInfoIsListed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(tokenstore.Memory)
		m := newManager(t, session.Config{Store: store})
		s := signInOn(t, m, "alice", "Firefox")
		for name, change := range map[string]func(){
			"no info": func() { store.Delete(t.Context(), "info:"+s.ID) },
			"junk": func() {
				store.Delete(t.Context(), "info:"+s.ID)
				store.Create(t.Context(), "info:"+s.ID, []byte("junk"), time.Hour)
			},
			"a later release": func() {
				store.Delete(t.Context(), "info:"+s.ID)
				store.Create(t.Context(), "info:"+s.ID, append([]byte{2}, make([]byte, 60)...), time.Hour)
			},
		} {
			change()
			infos := list(t, m, "alice", "")
			if len(infos) != 1 {
				t.Fatalf("%s: got %v, want one session", name, infos)
			}
			wantEqual(t, name+": device", infos[0].Device, "")
			wantEqual(t, name+": created", infos[0].CreatedAt.UnixMilli(), s.CreatedAt.UnixMilli())
			wantEqual(t, name+": last seen", infos[0].LastSeenAt.UnixMilli(), s.CreatedAt.UnixMilli())
		}
		time.Sleep(time.Minute)
		if err := m.Touch(t.Context(), wantAlive(t, m, s.Ticket(), "without info")); err != nil {
			t.Fatal(err)
		}
		wantEqual(t, "last seen after activity", list(t, m, "alice", "")[0].LastSeenAt.UnixMilli(),
			time.Now().UnixMilli())
	})
}

func TestEndOtherEndsSessionsOfTheUserOnly(t *testing.T) {
	t.Parallel()
	for kind, store := range stores(t) {
		var r recorder
		m := newManager(t, session.Config{Store: store, Observe: r.observe})
		mine, phone := signInOn(t, m, "alice", "Firefox"), signInOn(t, m, "alice", "Safari")
		bob := signInOn(t, m, "bob", "Chrome")
		foreign := signInOn(t, newManager(t, session.Config{Store: store, App: here}), "alice", "Edge")
		for name, id := range map[string]string{
			"another user": bob.ID, "another app": foreign.ID, "itself": mine.ID, "unknown": strings.Repeat("A", 22),
			"empty": "", "junk": "../session:\x00*", "a wildcard": "*",
		} {
			if found, err := m.EndOther(t.Context(), mine, id); found || err != nil {
				t.Errorf("%s: %s: got %v, %v, want not found", kind, name, found, err)
			}
		}
		for _, want := range []bool{true, false} {
			found, err := m.EndOther(t.Context(), mine, phone.ID)
			if err != nil {
				t.Fatal(err)
			}
			wantEqual(t, kind+": found", found, want)
		}
		wantNone(t, m, phone.Ticket(), kind+": ended")
		wantAlive(t, m, mine.Ticket(), kind+": itself")
		wantAlive(t, m, bob.Ticket(), kind+": another user")
		ended := r.of(session.SessionEnded)
		if len(ended) != 1 {
			t.Fatalf("%s: got %v, want one end", kind, ended)
		}
		wantEqual(t, kind+": session of the event", ended[0].Session, phone.ID)
		wantEqual(t, kind+": reason of the event", ended[0].Reason, session.ReasonRevoked)
		wantEqual(t, kind+": subject of the event", ended[0].Subject, "alice")
	}
}

func TestEndOthersKeepsTheSessionItself(t *testing.T) {
	t.Parallel()
	for kind, store := range stores(t) {
		m := newManager(t, session.Config{Store: store})
		mine, bob := signInOn(t, m, "alice", "Firefox"), signInOn(t, m, "bob", "Chrome")
		var want []string
		for range 3 {
			want = append(want, signInOn(t, m, "alice", "Safari").ID)
		}
		ended, err := m.EndOthers(t.Context(), mine)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(want)
		if slices.Sort(ended); !slices.Equal(ended, want) {
			t.Errorf("%s: got %v ended, want %v", kind, ended, want)
		}
		wantAlive(t, m, mine.Ticket(), kind+": itself")
		wantAlive(t, m, bob.Ticket(), kind+": another user")
		if got := idsOf(list(t, m, "alice", "")); !slices.Equal(got, []string{mine.ID}) {
			t.Errorf("%s: got %v listed, want one", kind, got)
		}
	}
}

func TestEndOtherReportsStoreFailure(t *testing.T) {
	t.Parallel()
	store := &brokenStore{Store: new(tokenstore.Memory)}
	m := newManager(t, session.Config{Store: store})
	mine, phone := signInOn(t, m, "alice", "Firefox"), signInOn(t, m, "alice", "Safari")
	store.fail(context.DeadlineExceeded, nil)
	if _, err := m.EndOther(t.Context(), mine, phone.ID); err == nil {
		t.Error("got no error")
	}
	store.fail(nil, nil)
	wantAlive(t, m, phone.Ticket(), "after a failure of the store")
}
