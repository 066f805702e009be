package devtools

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
)

// TokenStore is a session.Store as the broker uses it.
type TokenStore interface {
	session.Store
	io.Closer
	CountSessions(ctx context.Context) (int, error)
}

// errStoreDown is the error of a store that is switched off.
var errStoreDown = errors.New("the store is switched off in the inspector")

// Store returns a store that fails while it is switched off.
func (t *Tools) Store(store TokenStore) TokenStore { return &switchedStore{store, t} }

type switchedStore struct {
	TokenStore
	tools *Tools
}

func (s *switchedStore) err() error {
	if s.tools.storeDown.Load() {
		return errStoreDown
	}
	return nil
}

func (s *switchedStore) Get(ctx context.Context, key string) ([]byte, time.Duration, bool, error) {
	if err := s.err(); err != nil {
		return nil, 0, false, err
	}
	return s.TokenStore.Get(ctx, key)
}

func (s *switchedStore) Create(ctx context.Context, key string, value []byte, ttl time.Duration) (bool, error) {
	if err := s.err(); err != nil {
		return false, err
	}
	return s.TokenStore.Create(ctx, key, value, ttl)
}

func (s *switchedStore) Replace(ctx context.Context, key string, old, value []byte) (bool, error) {
	if err := s.err(); err != nil {
		return false, err
	}
	return s.TokenStore.Replace(ctx, key, old, value)
}

func (s *switchedStore) Touch(ctx context.Context, key string, ttl time.Duration) (bool, error) {
	if err := s.err(); err != nil {
		return false, err
	}
	return s.TokenStore.Touch(ctx, key, ttl)
}

func (s *switchedStore) Delete(ctx context.Context, keys ...string) error {
	if err := s.err(); err != nil {
		return err
	}
	return s.TokenStore.Delete(ctx, keys...)
}

func (s *switchedStore) Acquire(ctx context.Context, key, owner string, ttl time.Duration) (bool, error) {
	if err := s.err(); err != nil {
		return false, err
	}
	return s.TokenStore.Acquire(ctx, key, owner, ttl)
}

func (s *switchedStore) Release(ctx context.Context, key, owner string) error {
	if err := s.err(); err != nil {
		return err
	}
	return s.TokenStore.Release(ctx, key, owner)
}

func (s *switchedStore) Add(ctx context.Context, members map[string]string, ttl time.Duration) error {
	if err := s.err(); err != nil {
		return err
	}
	return s.TokenStore.Add(ctx, members, ttl)
}

func (s *switchedStore) Members(ctx context.Context, keys ...string) ([]string, error) {
	if err := s.err(); err != nil {
		return nil, err
	}
	return s.TokenStore.Members(ctx, keys...)
}

func (s *switchedStore) Remove(ctx context.Context, members map[string]string) error {
	if err := s.err(); err != nil {
		return err
	}
	return s.TokenStore.Remove(ctx, members)
}

// Watch also empties the caller's cache when the store is switched off: then no
// call must succeed with what is in it.
func (s *switchedStore) Watch(ctx context.Context, onChange func(key string), onValid func(until time.Time)) {
	s.tools.watchers.Store(&onChange, onChange)
	defer s.tools.watchers.Delete(&onChange)
	s.TokenStore.Watch(ctx, onChange, onValid)
}

// switchStore switches the store off or on.
func (t *Tools) switchStore(down bool) {
	t.storeDown.Store(down)
	t.watchers.Range(func(_, onChange any) bool {
		onChange.(func(key string))("") // anything may have changed
		return true
	})
}
