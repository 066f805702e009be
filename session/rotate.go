package session

import (
	"context"
	"crypto/rand"
	"errors"
)

// reseal lets the first of the session keys seal a record that another one has sealed. It leaves a session alone that is being refreshed, whose new tokens
// would not find the record that they replace. If it fails there is another Touch.
func (m *Manager) reseal(ctx context.Context, s *Session) {
	if m.ring.sealedWithPrimary(s.sealed) {
		return
	}
	owner := rand.Text()
	acquired, err := m.cfg.Store.Acquire(ctx, leaseKey(s.ID), owner, leaseTTL)
	if err == nil && !acquired {
		return
	}
	var sealed []byte
	if err == nil {
		err = m.enlist(ctx, s)
	}
	if err == nil {
		sealed, err = m.ring.seal(s)
	}
	if err == nil {
		_, err = m.cfg.Store.Replace(ctx, recordKey(s.ID), s.sealed, sealed)
		m.cache.drop(s.ID)
	}
	if acquired {
		err = errors.Join(err, m.cfg.Store.Release(ctx, leaseKey(s.ID), owner))
	}
	if err != nil {
		m.log.WarnContext(ctx, "session not sealed with the new key yet", "session", s.ID, "err", err)
	}
}

// sealRefreshed seals next, which a refresh made of s. Where that moves the
// record to another key, the session is put into the indexes that this key
// names first, so that they list it when the old key is gone. While that fails
// the record stays with the old key, and is moved by a later refresh or Touch.
func (m *Manager) sealRefreshed(ctx context.Context, s, next *Session) ([]byte, error) {
	k, ok := m.ring.keyOf(s.sealed)
	if !ok || m.ring.sealedWithPrimary(s.sealed) {
		return m.ring.seal(next)
	}
	if err := m.enlist(ctx, next); err != nil {
		m.log.WarnContext(ctx, "session not sealed with the new key yet", "session", s.ID, "err", err)
		return k.seal(next)
	}
	return m.ring.seal(next)
}
