package session_test

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/redistest"
	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

// endings are the ways to end the session s of alice. other is another session
// of alice.
var endings = map[string]func(ctx context.Context, m *session.Manager, s, other *session.Session) error{
	"End": func(ctx context.Context, m *session.Manager, s, _ *session.Session) error {
		return m.End(ctx, s, session.ReasonLogout)
	},
	"EndByID": func(ctx context.Context, m *session.Manager, s, _ *session.Session) error {
		_, err := m.EndByID(ctx, s.ID, session.ReasonRevoked)
		return err
	},
	"EndOther": func(ctx context.Context, m *session.Manager, s, other *session.Session) error {
		_, err := m.EndOther(ctx, other, s.ID)
		return err
	},
	"EndOthers": func(ctx context.Context, m *session.Manager, _, other *session.Session) error {
		_, err := m.EndOthers(ctx, other)
		return err
	},
	"EndAll": func(ctx context.Context, m *session.Manager, s, _ *session.Session) error {
		_, err := m.EndAll(ctx, s.Issuer, s.Subject, "", session.ReasonBackchannel)
		return err
	},
	"EndAll revoked": func(ctx context.Context, m *session.Manager, s, _ *session.Session) error {
		_, err := m.EndAll(ctx, s.Issuer, "", s.SID, session.ReasonRevoked)
		return err
	},
}

// Redis at its memory limit refuses to write anything, but deletes.
func TestSessionsEndInFullRedis(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	for name, end := range endings {
		for _, cached := range []bool{false, true} {
			redis, err := tokenstore.NewRedis(tokenstore.RedisConfig{URL: server.URL()})
			if err != nil {
				t.Fatal(err)
			}
			store := &heardStore{Redis: redis, heard: make(chan string, 100)}
			p, log := new(tokenEndpoint), new(strings.Builder)
			m := newManager(t, session.Config{
				Store: store, Revoke: p.revoke, Logger: slog.New(slog.NewTextHandler(log, nil)),
			})
			server.Do("FLUSHALL")
			for watch(t, m); cached && !m.CacheValid(); {
				time.Sleep(time.Millisecond)
			}
			other, otherTicket := signIn(t, m, tokens())
			s, ticket := signIn(t, m, tokens())
			if cached {
				for key := ""; key != "session:"+s.ID; { // later, it would remove the session from the cache
					key = <-store.heard
				}
				wantAlive(t, m, otherTicket, name)
				wantAlive(t, m, ticket, name)
			}
			server.Do("CONFIG", "SET", "maxmemory", "1")
			err = end(t.Context(), m, s, other)
			wantNone(t, m, ticket, name)
			server.Do("CONFIG", "SET", "maxmemory", "0")
			remembers := strings.HasPrefix(name, "EndAll") // for logins in progress
			if failed := errors.Is(err, session.ErrStore); failed != remembers {
				t.Errorf("%s: got %v, want an error of the store: %v", name, err, remembers)
			}
			if err := m.Drain(t.Context()); err != nil {
				t.Fatal(err)
			}
			if name == "End" || name == "EndAll" {
				continue // its tokens are not revoked
			}
			revoked := slices.Contains(p.revoked, "refresh-1")
			logged := strings.Contains(log.String(), "not revoked; they stay valid until they expire")
			if revoked != cached || logged == cached {
				t.Errorf("%s, cached %v: revoked %v, logged %v, want revoked if cached, else logged\n%s",
					name, cached, revoked, logged, log)
			}
			store.Close()
		}
	}
}

// heardStore sends the keys that it has announced.
type heardStore struct {
	*tokenstore.Redis
	heard chan string
}

func (s *heardStore) Watch(ctx context.Context, onChange func(key string), onValid func(until time.Time)) {
	s.Redis.Watch(ctx, func(key string) {
		onChange(key)
		select {
		case s.heard <- key:
		default: // of no interest any more
		}
	}, onValid)
}

// The sessions of a user are on several servers, one of which fails.
func TestSessionsEndDespiteFailureOfOthers(t *testing.T) {
	t.Parallel()
	for name, end := range endings {
		store := &stubbornStore{Memory: new(tokenstore.Memory)}
		m := newManager(t, session.Config{Store: store})
		other, _ := signIn(t, m, tokens())
		first, firstTicket := signIn(t, m, tokens())
		time.Sleep(2 * time.Millisecond) // the oldest session comes first
		_, second := signIn(t, m, tokens())
		store.key = "session:" + first.ID
		err := end(t.Context(), m, first, other)
		if !errors.Is(err, session.ErrStore) {
			t.Errorf("%s: got %v, want an error of the store", name, err)
		}
		wantAlive(t, m, firstTicket, name)
		if name == "EndOthers" || strings.HasPrefix(name, "EndAll") {
			wantNone(t, m, second, name)
		}
	}
}

// stubbornStore does not delete the record under key.
type stubbornStore struct {
	*tokenstore.Memory
	key     string
	refused int
}

func (s *stubbornStore) Delete(ctx context.Context, keys ...string) error {
	if slices.Contains(keys, s.key) || s.key == "*" {
		s.refused++
		return errors.New("CLUSTERDOWN")
	}
	return s.Memory.Delete(ctx, keys...)
}

// Each call of a store that is down may take seconds.
func TestEndingOfManySessionsStopsInAnOutage(t *testing.T) {
	t.Parallel()
	store := &stubbornStore{Memory: new(tokenstore.Memory)}
	m := newManager(t, session.Config{Store: store})
	for range 100 {
		signIn(t, m, tokens())
	}
	store.key = "*"
	if _, err := m.EndAll(t.Context(), "https://id.example", "alice", "", session.ReasonBackchannel); err == nil {
		t.Error("got no error")
	}
	if store.refused > 20 {
		t.Errorf("got %d calls that failed, want at most 20", store.refused)
	}
}

// The context of a request ends when the browser goes away.
func TestSessionsEndAlsoIfTheCallerIsGone(t *testing.T) {
	for name, end := range endings {
		synctest.Test(t, func(t *testing.T) {
			store := &obedientStore{Memory: new(tokenstore.Memory)}
			m := newManager(t, session.Config{Store: store})
			other, _ := signIn(t, m, tokens())
			s, ticket := signIn(t, m, tokens())
			for _, after := range []time.Duration{0, 1500 * time.Millisecond} { // of seconds
				ctx, leave := context.WithTimeout(t.Context(), after)
				store.takes = time.Second
				if err := end(ctx, m, s, other); err != nil {
					t.Errorf("%s, gone after %v: %v", name, after, err)
				}
				leave()
				store.takes = 0
				wantNone(t, m, ticket, name)
				s, ticket = signIn(t, m, tokens())
			}
		})
	}
}

// A call of a Redis that does not respond takes 2.5 s. Users wait for 5 s at
// most.
func TestEndingOfASessionFailsSoonInAnOutage(t *testing.T) {
	for name, end := range endings {
		synctest.Test(t, func(t *testing.T) {
			store := &obedientStore{Memory: new(tokenstore.Memory)}
			m := newManager(t, session.Config{Store: store})
			other, _ := signIn(t, m, tokens())
			s, ticket := signIn(t, m, tokens())
			store.takes, store.fails = 2500*time.Millisecond, errors.New("i/o timeout")
			began := time.Now()
			if err := end(t.Context(), m, s, other); !errors.Is(err, session.ErrStore) {
				t.Errorf("%s: got %v, want an error of the store", name, err)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("%s: took %v, want 5 s at most", name, took)
			}
			store.takes, store.fails = 0, nil
			wantAlive(t, m, ticket, name)
		})
	}
}

// obedientStore takes time, and stops when the context is done. If fails is
// set, that is the error of all calls.
type obedientStore struct {
	*tokenstore.Memory
	takes time.Duration
	fails error
}

func (s *obedientStore) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(s.takes):
		return cmp.Or(ctx.Err(), s.fails)
	}
}

func (s *obedientStore) Create(ctx context.Context, key string, value []byte, ttl time.Duration) (bool, error) {
	if err := s.wait(ctx); err != nil {
		return false, err
	}
	return s.Memory.Create(ctx, key, value, ttl)
}

func (s *obedientStore) Get(ctx context.Context, key string) ([]byte, time.Duration, bool, error) {
	if err := s.wait(ctx); err != nil {
		return nil, 0, false, err
	}
	return s.Memory.Get(ctx, key)
}

func (s *obedientStore) Delete(ctx context.Context, keys ...string) error {
	if err := s.wait(ctx); err != nil {
		return err
	}
	return s.Memory.Delete(ctx, keys...)
}

func (s *obedientStore) Members(ctx context.Context, keys ...string) ([]string, error) {
	if err := s.wait(ctx); err != nil {
		return nil, err
	}
	return s.Memory.Members(ctx, keys...)
}

func (s *obedientStore) Add(ctx context.Context, members map[string]string, ttl time.Duration) error {
	if err := s.wait(ctx); err != nil {
		return err
	}
	return s.Memory.Add(ctx, members, ttl)
}
