package session_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

// recorder records events.
type recorder struct {
	mu     sync.Mutex // guards events
	events []session.Event
}

func (r *recorder) observe(_ context.Context, e session.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

// of returns the events of one kind.
func (r *recorder) of(kind session.Kind) []session.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []session.Event
	for _, e := range r.events {
		if e.Kind == kind {
			found = append(found, e)
		}
	}
	return found
}

// wantEnd checks that one end was reported: that of a session, for a reason.
func (r *recorder) wantEnd(t *testing.T, id string, reason session.Reason) {
	t.Helper()
	ended := r.of(session.SessionEnded)
	if len(ended) != 1 {
		t.Fatalf("got %d ends, want 1: %v", len(ended), ended)
	}
	e := ended[0]
	if e.Session != id {
		t.Errorf("session: got %s, want %s", e.Session, id)
	}
	if e.Reason != reason {
		t.Errorf("reason: got %s, want %s", e.Reason, reason)
	}
	if e.App != here {
		t.Errorf("app: got %v, want %v", e.App, here)
	}
	if !e.At.Equal(time.Now()) {
		t.Errorf("time: got %v, want %v", e.At, time.Now())
	}
	if refused := reason == session.ReasonRefused; errors.Is(e.Err, session.ErrRefused) != refused {
		t.Errorf("cause: got %v, want ErrRefused: %v", e.Err, refused)
	}
}

func TestEachEndIsReportedOnceWithReason(t *testing.T) {
	const idle, lifetime = 30 * time.Minute, time.Hour
	for name, test := range map[string]struct {
		reason session.Reason
		cfg    session.Config
		end    func(ctx context.Context, m *session.Manager, s *session.Session) error
	}{
		"logout": {session.ReasonLogout, session.Config{}, func(
			ctx context.Context, m *session.Manager, s *session.Session,
		) error {
			return m.End(ctx, s, session.ReasonLogout)
		}},
		"logout twice": {session.ReasonLogout, session.Config{}, func(
			ctx context.Context, m *session.Manager, s *session.Session,
		) error {
			return errors.Join(m.End(ctx, s, session.ReasonLogout), m.End(ctx, s, session.ReasonLogout))
		}},
		"front-channel": {session.ReasonFrontchannel, session.Config{}, func(
			ctx context.Context, m *session.Manager, s *session.Session,
		) error {
			return m.End(ctx, s, session.ReasonFrontchannel)
		}},
		"back-channel": {session.ReasonBackchannel, session.Config{}, func(
			ctx context.Context, m *session.Manager, s *session.Session,
		) error {
			_, err := m.EndAll(ctx, s.Issuer, "", s.SID, session.ReasonBackchannel)
			return err
		}},
		"revoked": {session.ReasonRevoked, session.Config{}, func(
			ctx context.Context, m *session.Manager, s *session.Session,
		) error {
			_, err := m.EndAll(ctx, s.Issuer, s.Subject, "", session.ReasonRevoked)
			return err
		}},
		"replaced": {session.ReasonReplaced, session.Config{}, func(
			ctx context.Context, m *session.Manager, s *session.Session,
		) error {
			_, err := m.Start(ctx, session.New{
				Subject: "bob", Tokens: tokens(), Replaces: []session.Ticket{s.Ticket()},
			})
			return err
		}},
		"limit": {session.ReasonLimit, session.Config{MaxPerUser: 1}, func(
			ctx context.Context, m *session.Manager, s *session.Session,
		) error {
			time.Sleep(time.Second) // so that the session is the oldest
			_, err := m.Start(ctx, session.New{Issuer: s.Issuer, Subject: s.Subject, Tokens: tokens()})
			return err
		}},
		"refused": {session.ReasonRefused, session.Config{}, func(
			ctx context.Context, m *session.Manager, s *session.Session,
		) error {
			if _, err := m.Refresh(ctx, s); !errors.Is(err, session.ErrEnded) {
				return fmt.Errorf("got %v, want ErrEnded", err)
			}
			return nil
		}},
		"idle": {session.ReasonIdle, session.Config{}, func(context.Context, *session.Manager, *session.Session) error {
			time.Sleep(idle)
			return nil
		}},
		"lifetime": {session.ReasonLifetime, session.Config{}, func(
			ctx context.Context, m *session.Manager, s *session.Session,
		) error {
			for range 3 {
				time.Sleep(lifetime / 4)
				now, err := m.Find(ctx, s.Ticket())
				if err == nil {
					err = m.Touch(ctx, now)
				}
				if err != nil {
					return err
				}
			}
			time.Sleep(lifetime / 4)
			return nil
		}},
	} {
		synctest.Test(t, func(t *testing.T) {
			var r recorder
			cfg := test.cfg
			cfg.Store, cfg.App, cfg.IdleTimeout, cfg.MaxLifetime = new(tokenstore.Memory), here, idle, lifetime
			cfg.Observe = r.observe
			cfg.Refresh = func(context.Context, *session.Session, string) (session.RefreshResult, error) {
				return session.RefreshResult{}, session.ErrRefused
			}
			one, other := newManager(t, cfg), newManager(t, cfg)
			s, ticket := signIn(t, one, tokens())
			if err := test.end(t.Context(), one, s); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			for range 2 { // two requests with the cookie
				wantNone(t, one, ticket, name)
				wantNone(t, other, ticket, name+", at another replica")
			}
			t.Log(name)
			r.wantEnd(t, s.ID, test.reason)
			r.wantReturns(t, s.ID, test.reason)
			if err := one.Drain(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// wantReturns fails the test unless every replica but one that reported the end
// because of the cookie has reported once that the cookie came back.
func (r *recorder) wantReturns(t *testing.T, id string, reason session.Reason) {
	t.Helper()
	returned := r.of(session.SessionReturned)
	want := 2
	if reason == session.ReasonIdle || reason == session.ReasonLifetime {
		want = 1
	}
	if len(returned) != want {
		t.Errorf("got %d returns, want %d", len(returned), want)
	}
	for _, e := range returned {
		if e.Session != id || e.Reason != reason {
			t.Errorf("got a return of %s with reason %s, want %s and %s", e.Session, e.Reason, id, reason)
		}
	}
}

// The refresh token expires before the record.
func TestRefreshTokenExpiryIsReportedAsLifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		m := newManager(t, session.Config{App: here, Observe: r.observe})
		tk := tokens()
		tk.RefreshExpiry = time.Now().Add(time.Minute)
		s, ticket := signIn(t, m, tk)
		time.Sleep(time.Minute)
		wantNone(t, m, ticket, "after the expiry of its refresh token")
		wantNone(t, m, ticket, "a second time")
		r.wantEnd(t, s.ID, session.ReasonLifetime)
	})
}

// There is no request with the cookie, but a stream is open.
func TestExpiryIsReportedWhileWatched(t *testing.T) {
	for reason, cfg := range map[session.Reason]session.Config{
		session.ReasonIdle:     {IdleTimeout: time.Minute},
		session.ReasonLifetime: {MaxLifetime: time.Minute},
	} {
		synctest.Test(t, func(t *testing.T) {
			var r recorder
			cfg.App, cfg.Observe = here, r.observe
			m := newManager(t, cfg)
			watch(t, m)
			s, _ := signIn(t, m, tokens())
			ended := make(chan struct{})
			m.OnEnd(s, func() { close(ended) })
			<-ended
			r.wantEnd(t, s.ID, reason)
		})
	}
}

func TestLogoutDuringLoginIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		store := &interposedStore{Memory: new(tokenstore.Memory)}
		m := newManager(t, session.Config{Store: store, App: here, Observe: r.observe})
		store.before("Create", func() {
			endAll(t, m, "i", "alice", "")
		})
		_, err := m.Start(t.Context(), session.New{Issuer: "i", Subject: "alice", Tokens: tokens()})
		if !errors.Is(err, session.ErrEnded) {
			t.Errorf("got %v, want ErrEnded", err)
		}
		if started := r.of(session.SessionStarted); len(started) > 0 {
			t.Errorf("got %v as started, want none", started)
		}
		if ended := r.of(session.SessionEnded); len(ended) != 1 {
			t.Errorf("got %d ends, want 1", len(ended))
		} else if got := ended[0].Reason; got != session.ReasonBackchannel {
			t.Errorf("reason: got %s, want %s", got, session.ReasonBackchannel)
		}
	})
}

func TestRemovedKeyIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		store := new(tokenstore.Memory)
		s, ticket := signIn(t, newManager(t, session.Config{Store: store, App: here}), tokens())
		m := newManager(t, session.Config{Store: store, App: here, Keys: [][]byte{keyB}, Observe: r.observe})
		wantNone(t, m, ticket, "without its key")
		r.wantEnd(t, s.ID, session.ReasonKeyRemoved)
	})
}

// A ticket with the id of a session and another data key must not end it.
func TestForgedTicketReportsNoEnd(t *testing.T) {
	var r recorder
	m := newManager(t, session.Config{App: here, Observe: r.observe})
	s, ticket := signIn(t, m, tokens())
	wantNone(t, m, session.TicketWithOtherKey(s), "another data key")
	wantAlive(t, m, ticket, "its own ticket")
	if ended := r.of(session.SessionEnded); len(ended) > 0 {
		t.Errorf("got ends %v, want none", ended)
	}
}

// A store that fails does not end sessions, and a failed end is not reported.
func TestStoreOutageReportsNoEnd(t *testing.T) {
	var r recorder
	store := &brokenStore{Store: new(tokenstore.Memory)}
	m := newManager(t, session.Config{Store: store, App: here, Observe: r.observe})
	s, ticket := signIn(t, m, tokens())
	store.fail(errors.New("connection refused"), nil)
	if err := m.End(t.Context(), s, session.ReasonLogout); !errors.Is(err, session.ErrStore) {
		t.Errorf("End: got %v, want ErrStore", err)
	}
	if _, err := m.Find(t.Context(), ticket); !errors.Is(err, session.ErrStore) {
		t.Errorf("Find: got %v, want ErrStore", err)
	}
	store.fail(nil, nil)
	wantAlive(t, m, ticket, "after the outage")
	if ended := r.of(session.SessionEnded); len(ended) > 0 {
		t.Errorf("got ends %v, want none", ended)
	}
	if err := m.End(t.Context(), s, session.ReasonLogout); err != nil {
		t.Error(err)
	}
	if ended := r.of(session.SessionEnded); len(ended) != 1 {
		t.Errorf("got %d ends after the outage, want 1", len(ended))
	}
}

// noticing is a store that calls a function after it has deleted a record.
type noticing struct {
	tokenstore.Memory
	deleted func()
}

func (s *noticing) Delete(ctx context.Context, keys ...string) error {
	err := s.Memory.Delete(ctx, keys...)
	if s.deleted != nil && strings.HasPrefix(keys[0], "session:") {
		s.deleted()
	}
	return err
}

// The cookie may come back as soon as the record is gone.
func TestEndThatARequestNoticesAtOnceIsReported(t *testing.T) {
	var r recorder
	store := new(noticing)
	m := newManager(t, session.Config{Store: store, App: here, Observe: r.observe})
	s, ticket := signIn(t, m, tokens())
	store.deleted = func() { wantNone(t, m, ticket, "during the end") }
	if err := m.End(t.Context(), s, session.ReasonRevoked); err != nil {
		t.Fatal(err)
	}
	if ended := r.of(session.SessionEnded); len(ended) != 1 {
		t.Errorf("got %d ends, want 1", len(ended))
	}
}

func TestStartsAndRefreshesAreReported(t *testing.T) {
	var r recorder
	fault := errors.New("down")
	p := &tokenEndpoint{respond: func(n int, next session.Tokens) (session.Tokens, error) {
		switch n {
		case 1:
			return next, nil
		case 2:
			return session.Tokens{}, fault
		}
		return session.Tokens{}, session.ErrUserRequired
	}}
	withProvider(t, p, session.Config{App: here, Observe: r.observe}, func(
		t *testing.T, m *session.Manager, ticket session.Ticket,
	) {
		started := r.of(session.SessionStarted)
		if len(started) != 1 {
			t.Fatalf("got %d starts, want 1", len(started))
		}
		s, err := findRefresh(t.Context(), m, ticket)
		if err != nil {
			t.Fatal(err)
		}
		if got := started[0].Session; got != s.ID {
			t.Errorf("started: got %s, want %s", got, s.ID)
		}
		synctest.Wait()
		refreshed := r.of(session.SessionRefreshed)
		if len(refreshed) != 1 {
			t.Fatalf("got %d refreshes, want 1", len(refreshed))
		}
		if got := refreshed[0].TokenExpiry; !got.Equal(s.Tokens.Expiry) {
			t.Errorf("token expiry: got %v, want %v", got, s.Tokens.Expiry)
		}
		for i, cause := range []error{fault, session.ErrUserRequired} {
			time.Sleep(30 * time.Second) // until the backoff is over
			if _, err := findRefresh(t.Context(), m, ticket); !errors.Is(err, cause) {
				t.Errorf("got %v, want %v", err, cause)
			}
			synctest.Wait()
			failed := r.of(session.RefreshFailed)
			if len(failed) != i+1 {
				t.Fatalf("got %d failures, want %d", len(failed), i+1)
			}
			if got := failed[i].Err; !errors.Is(got, cause) {
				t.Errorf("cause: got %v, want %v", got, cause)
			}
		}
	})
}

// Two replicas end a session at the same time, for example because the browser
// sent the logout twice.
func TestEndOnTwoReplicasIsReportedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		store := new(tokenstore.Memory)
		cfg := session.Config{Store: store, App: here, Observe: r.observe}
		first, second := newManager(t, cfg), newManager(t, cfg)
		s, ticket := signIn(t, first, tokens())
		same := wantAlive(t, second, ticket, "on the other replica")
		for m, s := range map[*session.Manager]*session.Session{first: s, second: same} {
			if err := m.End(t.Context(), s, session.ReasonLogout); err != nil {
				t.Fatal(err)
			}
		}
		r.wantEnd(t, s.ID, session.ReasonLogout)
	})
}

// A store that fails in the middle of an end does not hide it.
func TestEndIsReportedAfterARetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		store := &undeletable{Memory: new(tokenstore.Memory)}
		m := newManager(t, session.Config{Store: store, App: here, Observe: r.observe})
		s, _ := signIn(t, m, tokens())
		store.err = errors.New("down")
		if err := m.End(t.Context(), s, session.ReasonLogout); !errors.Is(err, session.ErrStore) {
			t.Fatalf("End with a store that fails: got %v, want ErrStore", err)
		}
		store.err = nil
		if err := m.End(t.Context(), s, session.ReasonLogout); err != nil {
			t.Fatal(err)
		}
		r.wantEnd(t, s.ID, session.ReasonLogout)
	})
}

// A store that fails when a cookie of an ended session comes back hides neither
// the end nor the return: the next request with the cookie reports them.
func TestEndAndReturnAreReportedAfterARetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		store := &partlyDown{Memory: new(tokenstore.Memory)}
		cfg := session.Config{Store: store, App: here, Observe: r.observe}
		m := newManager(t, cfg)
		s, expired := signIn(t, m, tokens())
		time.Sleep(session.DefaultIdleTimeout)
		other, ended := signIn(t, m, tokens())
		if err := newManager(t, cfg).End(t.Context(), other, session.ReasonLogout); err != nil {
			t.Fatal(err)
		}
		for _, store.down = range []string{"tombstone:", ""} {
			wantNone(t, m, expired, "expired")
			wantNone(t, m, ended, "ended")
		}
		if got := r.of(session.SessionEnded); len(got) != 2 || got[1].Session != s.ID {
			t.Errorf("ends: got %v, want that of %s after that of %s", got, s.ID, other.ID)
		}
		if got := r.of(session.SessionReturned); len(got) != 1 || got[0].Session != other.ID {
			t.Errorf("returns: got %v, want that of %s", got, other.ID)
		}
	})
}

// partlyDown is a store that fails for keys that begin with down; empty: none.
type partlyDown struct {
	*tokenstore.Memory
	down string
}

func (s *partlyDown) check(keys ...string) error {
	isDown := func(key string) bool { return s.down != "" && strings.HasPrefix(key, s.down) }
	if slices.ContainsFunc(keys, isDown) {
		return errors.New("down")
	}
	return nil
}

func (s *partlyDown) Create(ctx context.Context, key string, value []byte, ttl time.Duration) (bool, error) {
	if err := s.check(key); err != nil {
		return false, err
	}
	return s.Memory.Create(ctx, key, value, ttl)
}

func (s *partlyDown) Get(ctx context.Context, key string) ([]byte, time.Duration, bool, error) {
	if err := s.check(key); err != nil {
		return nil, 0, false, err
	}
	return s.Memory.Get(ctx, key)
}

func (s *partlyDown) Delete(ctx context.Context, keys ...string) error {
	if err := s.check(keys...); err != nil {
		return err
	}
	return s.Memory.Delete(ctx, keys...)
}

func (s *partlyDown) Add(ctx context.Context, members map[string]string, ttl time.Duration) error {
	if err := s.check(slices.Collect(maps.Keys(members))...); err != nil {
		return err
	}
	return s.Memory.Add(ctx, members, ttl)
}

func (s *partlyDown) Members(ctx context.Context, keys ...string) ([]string, error) {
	if err := s.check(keys...); err != nil {
		return nil, err
	}
	return s.Memory.Members(ctx, keys...)
}

// In a Redis Cluster, the server of the info can fail while that of the record
// works.
func TestEndWithoutTheInfo(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, m *session.Manager, s *session.Session) error{
		"End": func(t *testing.T, m *session.Manager, s *session.Session) error {
			return m.End(t.Context(), s, session.ReasonLogout)
		},
		"EndAll": func(t *testing.T, m *session.Manager, s *session.Session) error {
			ids, err := m.EndAll(t.Context(), s.Issuer, s.Subject, "", session.ReasonLogout)
			if len(ids) != 1 {
				t.Errorf("EndAll: got %v, want the session", ids)
			}
			return err
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			var r recorder
			m := newManager(t, session.Config{
				Store: infoUndeletable{new(tokenstore.Memory)}, App: here, Observe: r.observe,
			})
			s, ticket := signIn(t, m, tokens())
			wantAlive(t, m, ticket, "before the end")
			if err := end(t, m, s); err != nil {
				t.Errorf("%s: got %v, want nil", name, err)
			}
			wantNone(t, m, ticket, "after "+name)
			r.wantEnd(t, s.ID, session.ReasonLogout)
		})
	}
}

// infoUndeletable is a store whose Delete fails for the info of a session.
type infoUndeletable struct{ *tokenstore.Memory }

func (s infoUndeletable) Delete(ctx context.Context, keys ...string) error {
	isInfo := func(key string) bool { return strings.HasPrefix(key, "info:") }
	s.Memory.Delete(ctx, slices.DeleteFunc(slices.Clone(keys), isInfo)...)
	if slices.ContainsFunc(keys, isInfo) {
		return errors.New("down")
	}
	return nil
}

// undeletable is a store whose Delete fails with err.
type undeletable struct {
	*tokenstore.Memory
	err error
}

func (s *undeletable) Delete(ctx context.Context, keys ...string) error {
	if s.err != nil {
		return s.err
	}
	return s.Memory.Delete(ctx, keys...)
}
