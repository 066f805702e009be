package session

import (
	"cmp"
	"context"
	"encoding/base64"
	"slices"
	"time"
)

// EndByID ends the session with an ID, for a caller without the session's
// ticket. found is false if there is no such session. If the error wraps
// ErrStore, the session may still exist.
//
// The tokens of a session that is ended for ReasonRevoked are revoked as soon
// as a replica has the session's ticket: at once if the session is in the cache
// of a replica, otherwise when a replica next receives the cookie. Until the
// cookie is received, the tokens cannot be read. If the store is full, the
// session ends, and its tokens are revoked only if they are in the cache of
// this replica.
func (m *Manager) EndByID(ctx context.Context, id string, reason Reason) (found bool, err error) {
	ctx = context.WithoutCancel(ctx)
	sealed, _, found, err := m.sealed(ctx, id)
	if err != nil || !found {
		return false, err
	}
	return true, m.endSealed(ctx, sealed, ending{
		id: id, reason: reason, until: time.Now().Add(m.cfg.maxLifetime()),
	})
}

// EndOther ends another session of the user of s, for ReasonRevoked: the user
// has requested it in s. found is false if there is no session with the ID, if
// it is a session of another user, or if it is s itself. EndByID says what
// happens to the tokens of the session. If the error wraps ErrStore, the
// session may still exist.
func (m *Manager) EndOther(ctx context.Context, s *Session, id string) (found bool, err error) {
	ended, err := m.endOthers(ctx, s, func(other string) bool { return other == id })
	return len(ended) > 0, err
}

// EndOthers is EndOther for all other sessions of the user of s, and returns
// the IDs of those that it ended, also beside an error. Logins in progress are
// not affected.
func (m *Manager) EndOthers(ctx context.Context, s *Session) ([]string, error) {
	return m.endOthers(ctx, s, func(string) bool { return true })
}

// endOthers ends those of the other sessions of the user of s that match.
func (m *Manager) endOthers(ctx context.Context, s *Session, match func(id string) bool) (ended []string, err error) {
	ctx = context.WithoutCancel(ctx)
	listed, err := m.listedFor(ctx, s.Issuer, s.Subject, "")
	if err != nil {
		return nil, storeError("list sessions", err)
	}
	listed = slices.DeleteFunc(listed, func(l listedSession) bool { return l.id == s.ID || !match(l.id) })
	return endEach(listed, func(l listedSession) (bool, error) {
		return m.endListed(ctx, l, s.Subject, ReasonRevoked)
	})
}

// maxEndFailures is after how many sessions that could not be ended endEach
// gives up. In an outage of the store, each may take seconds.
const maxEndFailures = 8

// endEach calls end for sessions, and returns the IDs of those for which end
// returned true. After an error endEach goes on, because the sessions may be on
// different servers. The error is the first one.
func endEach(listed []listedSession, end func(l listedSession) (bool, error)) (ended []string, err error) {
	failures := 0
	for _, l := range listed {
		found, failure := end(l)
		switch {
		case failure != nil:
			err = cmp.Or(err, failure)
			if failures++; failures == maxEndFailures {
				return ended, err
			}
		case found:
			ended = append(ended, l.id)
		}
	}
	return ended, err
}

// sealed returns the record of the session with an ID, and its time to live.
// found is false if there is no such record, or if none of the session keys
// sealed the record.
func (m *Manager) sealed(ctx context.Context, id string) (record []byte, ttl time.Duration, found bool, err error) {
	if raw, err := base64.RawURLEncoding.Strict().DecodeString(id); err != nil || len(raw) != 16 {
		return nil, 0, false, nil
	}
	record, ttl, found, err = m.cfg.Store.Get(ctx, recordKey(id))
	if err != nil {
		return nil, 0, false, storeError("read", err)
	}
	_, ours := m.ring.keyOf(record)
	return record, ttl, found && ours, nil
}

// endSealed ends a session that is known by its record alone.
func (m *Manager) endSealed(ctx context.Context, sealed []byte, e ending) error {
	cached := m.cache.peek(e.id, time.Now())
	if cached != nil {
		e.subject = cached.Subject
	}
	var unkept error // a full store deletes the record nevertheless
	if e.reason == ReasonRevoked {
		unkept = m.keepTokens(ctx, e.id, sealed)
	}
	if err := m.end(ctx, e); err != nil {
		return storeError("delete", err)
	}
	switch {
	case e.reason != ReasonRevoked || m.cfg.Revoke == nil:
	case unkept == nil && cached != nil:
		m.revokeKept(ctx, cached.ticket)
	case unkept != nil && cached != nil:
		m.working.Go(func() { m.revokeTokens(ctx, cached) }) // until Config.Revoke returns
	case unkept != nil:
		m.logUnrevoked(ctx, e.id, unkept)
	}
	return nil
}

// keepTokens keeps the record of a session that is about to end for
// ReasonRevoked, and announces that to all replicas, before the session leaves
// their caches.
func (m *Manager) keepTokens(ctx context.Context, id string, sealed []byte) error {
	if _, err := m.cfg.Store.Create(ctx, revokedKey(id), sealed, m.cfg.maxLifetime()); err != nil {
		return storeError("keep the tokens to revoke", err)
	}
	if _, err := m.cfg.Store.Acquire(ctx, revocationKey(id), m.id, time.Second); err != nil {
		// Its tokens are revoked when the cookie comes back.
		m.log.DebugContext(ctx, "revocation not announced", "session", id, "err", err)
	}
	return nil
}

// revokedKey is the key in the store of the record of a session that was ended
// for ReasonRevoked. The record is kept until its tokens are revoked or the
// session's cookie expires. Only the ticket opens the record.
func revokedKey(id string) string { return "revoked:" + id }

// revokedPrefix begins the name of the lease that announces a revocation to
// other replicas, which follow leases.
const revokedPrefix = "revoked."

func revocationKey(id string) string { return leaseKey(revokedPrefix + id) }

// revokeCached revokes the tokens of a session that another replica is about to
// end for ReasonRevoked, if it is in the cache.
func (m *Manager) revokeCached(id string) {
	if s := m.cache.peek(id, time.Now()); s != nil {
		m.working.Go(func() { m.revokeKept(context.Background(), s.ticket) }) // a read of the store
	}
}

// revokeKept revokes the tokens of a session that was ended for ReasonRevoked.
// A session that ended for another reason costs one read of the store. If
// revokeKept fails, the next request with the cookie retries.
func (m *Manager) revokeKept(ctx context.Context, t Ticket) {
	id := t.sessionID
	if m.cfg.Revoke == nil || !m.revoked.add(id) {
		return
	}
	sealed, _, found, err := m.cfg.Store.Get(ctx, revokedKey(id))
	if err != nil || !found {
		if err != nil {
			m.revoked.remove(id)
		}
		return
	}
	ctx = context.WithoutCancel(ctx)
	m.working.Go(func() { // until Config.Revoke returns
		s, err := m.ring.open(t, sealed)
		if err == nil {
			err = m.cfg.Revoke(ctx, s.Tokens)
		}
		if err == nil {
			err = m.cfg.Store.Delete(ctx, revokedKey(id))
		}
		if err != nil {
			m.revoked.remove(id)
			m.log.WarnContext(ctx, "tokens of a revoked session not revoked yet", "session", id, "err", err)
		}
	})
}
