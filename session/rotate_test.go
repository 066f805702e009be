package session_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

// After a key rotation the first request of a session both refreshes in the
// background and moves the record to the new key.
func TestTouchDuringRefreshAfterKeyRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(tokenstore.Memory)
		p := &tokenEndpoint{takes: 100 * time.Millisecond}
		_, ticket := signIn(
			t, newManager(t, session.Config{Store: store, Keys: [][]byte{keyA}, Refresh: p.refresh}), minute(),
		)
		m := newManager(t, session.Config{
			Store: store, Keys: [][]byte{keyB, keyA}, Refresh: p.refresh, Revoke: p.revoke,
		})
		watch(t, m)
		time.Sleep(40 * time.Second) // the token is good, and refreshed in the background
		s, err := findFresh(t.Context(), m, ticket, "")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond) // the refresh is in progress
		if err := m.Touch(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		m.Drain(t.Context())
		got, err := m.Find(t.Context(), ticket)
		if err != nil {
			t.Fatal(err)
		}
		if rt := got.Tokens.Refresh.Reveal(); rt != "refresh-2" {
			t.Errorf("refresh token: got %s, want the rotated one", rt)
		}
		findFresh(t.Context(), m, ticket, "")
		m.Drain(t.Context())
		if n := p.reused.Load(); n > 0 {
			t.Errorf("got %d refreshes with a spent token, want none", n)
		}
		time.Sleep(time.Minute)
	})
}

// The same happens while a token for a target is obtained.
func TestFreshReturnsTokenForTargetOrError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(tokenstore.Memory)
		p := &tokenEndpoint{takes: 100 * time.Millisecond}
		_, ticket := signIn(
			t, newManager(t, session.Config{Store: store, Keys: [][]byte{keyA}, Refresh: p.refresh}), tokens(),
		)
		m := newManager(t, session.Config{
			Store: store, Keys: [][]byte{keyB, keyA}, Refresh: p.refresh, Revoke: p.revoke,
		})
		watch(t, m)
		time.Sleep(40 * time.Second)
		done := make(chan struct{})
		go func() { // a request of another route
			defer close(done)
			time.Sleep(10 * time.Millisecond)
			s, err := findFresh(context.Background(), m, ticket, "")
			if err == nil {
				err = m.Touch(context.Background(), s)
			}
			if err != nil {
				t.Error(err)
			}
		}()
		s, err := findFresh(t.Context(), m, ticket, "orders")
		<-done
		if err == nil && len(s.Authorization("orders")) == 0 {
			t.Error("Fresh: got neither an error nor a token for the target")
		}
		m.Drain(t.Context())
		time.Sleep(time.Minute)
	})
}

// An expired token for one target is dropped when one for another target is
// obtained.
func TestRefreshRejectedReturnsTokenForTarget(t *testing.T) {
	p := &tokenEndpoint{}
	withProvider(t, p, session.Config{}, func(t *testing.T, m *session.Manager, ticket session.Ticket) {
		rejected, err := findFresh(t.Context(), m, ticket, "orders")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(61 * time.Second) // until the token for orders expires
		if _, err := findFresh(t.Context(), m, ticket, "billing"); err != nil {
			t.Fatal(err)
		}
		got, err := m.RefreshRejected(t.Context(), rejected, "orders")
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Authorization("orders")) == 0 {
			t.Error("RefreshRejected: got neither an error nor a token for the target")
		}
	})
}

// A replaced Manager still follows sessions, for streams and other long
// requests, while its successor moves their records to a new key.
func TestReplacedManagerUsesNewKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(tokenstore.Memory)
		events := new(recorder)
		p := new(tokenEndpoint)
		var all []*session.Manager
		for _, keys := range [][][]byte{{keyA}, {keyA, keyB}, {keyB, keyA}} {
			m := newManager(t, session.Config{Store: store, Keys: keys, Refresh: p.refresh, Observe: events.observe})
			watch(t, m)
			if len(all) > 0 {
				all[len(all)-1].Keyring().ReplacedBy(m.Keyring())
			}
			all = append(all, m)
		}
		first, last := all[0], all[2]
		s, ticket := signIn(t, first, tokens())
		reasons := make(chan session.Reason, 10)
		defer first.Follow(s, nil, func(reason session.Reason) { reasons <- reason })()
		time.Sleep(time.Minute)
		if err := last.Touch(t.Context(), wantAlive(t, last, ticket, "before Touch")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		wantAlive(t, first, ticket, "after Touch")
		// It uses the new key from now on, too.
		if _, err := findRefresh(t.Context(), first, ticket); err != nil {
			t.Fatal(err)
		}
		after := newManager(t, session.Config{Store: store, Keys: [][]byte{keyB}})
		wantAlive(t, after, ticket, "after the removal of the old key")
		if ended := events.of(session.SessionEnded); len(ended) > 0 {
			t.Errorf("got %v, want no end", ended)
		}
		if err := findEnd(t.Context(), last, ticket); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		wantEqual(t, "reason", <-reasons, session.ReasonLogout)
	})
}

// Keys are not used for the sessions of another App.
func TestReplacedManagerKeepsKeysForAnotherApp(t *testing.T) {
	store := new(tokenstore.Memory)
	m := newManager(t, session.Config{Store: store})
	other := newManager(t, session.Config{Store: store, App: here, Keys: [][]byte{keyB}})
	m.Keyring().ReplacedBy(other.Keyring())
	_, ticket := signIn(t, m, tokens())
	wantAlive(t, newManager(t, session.Config{Store: store}), ticket, "sealed with the old key")
}
