package session

import (
	"context"
	"crypto/rand"
	"errors"
)

// reseal re-encrypts the record under the primary key. reseal skips a session
// that is being refreshed, because the conditional write of the refresh would
// fail. If reseal fails, the next Touch retries.
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
		err = m.moveToPrimary(ctx, s)
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
		m.log.DebugContext(ctx, "session not sealed with the new key yet", "session", s.ID, "err", err)
	}
}

// moveToPrimary adds a session to the indexes of the primary key, which list
// the session when the old key is removed, and re-encrypts its info.
func (m *Manager) moveToPrimary(ctx context.Context, s *Session) error {
	return errors.Join(m.addToIndexes(ctx, s), m.resealInfo(ctx, s.ID))
}

// sealRefreshed seals next, which a refresh made of s, with the primary key. If
// another key sealed s, everything else of the session is first moved to the
// primary key. If that fails, sealRefreshed seals next with the old key, and a
// later refresh or Touch moves the record to the primary key.
func (m *Manager) sealRefreshed(ctx context.Context, s, next *Session) ([]byte, error) {
	k, ok := m.ring.keyOf(s.sealed)
	if !ok || m.ring.sealedWithPrimary(s.sealed) {
		return m.ring.seal(next)
	}
	if err := m.moveToPrimary(ctx, next); err != nil {
		m.log.DebugContext(ctx, "session not sealed with the new key yet", "session", s.ID, "err", err)
		return k.seal(next)
	}
	return m.ring.seal(next)
}
