package session

import (
	"context"
	"encoding/base64"
	"errors"
	"slices"
	"time"
)

// Info is what the store reveals of a session without its ticket.
type Info struct {
	ID        string    // Session.ID
	CreatedAt time.Time // zero: unknown
	// LastSeenAt is the last activity that was recorded (see Manager.Touch).
	// Zero means that it is unknown: the session reaches its absolute end
	// before its idle timeout, or the idle timeout has been shortened.
	LastSeenAt    time.Time
	IdleExpiresAt time.Time
	// ExpiresAt is the absolute end by Config.MaxLifetime. The provider may
	// have set an earlier one. Zero means that it is unknown.
	ExpiresAt time.Time
}

// List returns sessions of a user (subject), or of one session at the provider
// (sid), the newest first. If both are given, it returns the sessions that
// match both. Subject or sid may be empty, not both.
//
// It skips offset sessions and examines at most limit ones. It leaves out those
// that have ended, so that there may be fewer. more reports whether there are
// others. The error wraps ErrStore if the store failed.
func (m *Manager) List(ctx context.Context, issuer, subject, sid string, offset, limit int) (
	infos []Info, more bool, err error,
) {
	if subject == "" && sid == "" {
		return nil, false, errors.New("list sessions: subject or sid is required")
	}
	listed, err := m.listedFor(ctx, issuer, subject, sid)
	if err != nil {
		return nil, false, storeError("list sessions", err)
	}
	slices.Reverse(listed)
	listed = listed[min(max(0, offset), len(listed)):]
	more = len(listed) > limit
	for _, l := range listed[:min(limit, len(listed))] {
		_, ttl, found, err := m.cfg.Store.Get(ctx, recordKey(l.id))
		if err != nil {
			return nil, false, storeError("read", err)
		}
		if found {
			infos = append(infos, m.info(l, time.Now(), ttl))
		}
	}
	return infos, more, nil
}

// Info returns what the store reveals of the session with an ID: only when it
// becomes idle. found is false if there is none. The error wraps ErrStore.
func (m *Manager) Info(ctx context.Context, id string) (i Info, found bool, err error) {
	_, ttl, found, err := m.sealed(ctx, id)
	if err != nil || !found {
		return Info{}, false, err
	}
	return Info{ID: id, IdleExpiresAt: time.Now().Add(ttl)}, true, nil
}

// info returns what is known of a session whose record has a time to live.
func (m *Manager) info(l listedSession, now time.Time, ttl time.Duration) Info {
	i := Info{ID: l.id, CreatedAt: l.created, IdleExpiresAt: now.Add(ttl), ExpiresAt: m.latestEnd(l)}
	seen := i.IdleExpiresAt.Add(-m.cfg.idleTimeout())
	if i.IdleExpiresAt.Before(i.ExpiresAt.Add(-time.Second)) && !seen.After(now) {
		i.LastSeenAt = seen
		if seen.Before(i.CreatedAt) {
			i.LastSeenAt = i.CreatedAt
		}
	}
	return i
}

// EndByID ends the session with an ID, for a caller without its ticket. found
// is false if there is none. If the error wraps ErrStore, the session may still
// exist.
//
// The tokens of a session that is ended for ReasonRevoked are revoked as soon
// as a replica has its ticket: at once if the session is in the cache,
// otherwise when the cookie comes back. Until then, nobody can read them.
func (m *Manager) EndByID(ctx context.Context, id string, reason Reason) (found bool, err error) {
	sealed, _, found, err := m.sealed(ctx, id)
	if err != nil || !found {
		return false, err
	}
	return true, m.endSealed(ctx, sealed, ending{
		id: id, reason: reason, until: time.Now().Add(m.cfg.maxLifetime()),
	})
}

// sealed returns the record of the session with an ID, and its time to live.
// found is false if there is none that one of the session keys has sealed.
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
	cached := m.cache.get(e.id, time.Now())
	if cached != nil {
		e.subject = cached.Subject
	}
	if e.reason == ReasonRevoked {
		if _, err := m.cfg.Store.Create(ctx, revokedKey(e.id), sealed, m.cfg.maxLifetime()); err != nil {
			return storeError("keep the tokens to revoke", err)
		}
	}
	if err := m.end(ctx, e); err != nil {
		return storeError("delete", err)
	}
	if e.reason == ReasonRevoked && cached != nil {
		m.revokeKept(ctx, cached.ticket)
	}
	return nil
}

// revokedKey is the key in the store of the record of a session that was ended
// for ReasonRevoked, until its tokens are revoked or its cookie expires. Only
// the ticket opens it.
func revokedKey(id string) string { return "revoked:" + id }

// revokeKept revokes the tokens of a session that was ended for ReasonRevoked.
// Other sessions that have ended cost one read. If it fails, the next cookie
// retries.
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
