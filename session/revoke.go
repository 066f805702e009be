package session

import (
	"context"
	"encoding/base64"
	"errors"
	"slices"
	"time"
)

// Info is what the store reveals of a session without the session's ticket.
type Info struct {
	ID        string    // Session.ID
	CreatedAt time.Time // zero: unknown
	// LastSeenAt is the last activity that was recorded (see Manager.Touch).
	// Zero means unknown. LastSeenAt is inaccurate if Config.IdleTimeout has
	// changed since the activity.
	LastSeenAt time.Time
	// IdleExpiresAt is when the session ends if Manager.Touch is not called
	// again.
	IdleExpiresAt time.Time
	// ExpiresAt is the absolute end as it was at the start of the session. Zero
	// means unknown. Of a session that a release without such records started,
	// ExpiresAt is CreatedAt plus Config.MaxLifetime, although the provider may
	// have set an earlier end.
	ExpiresAt time.Time
	Device    string // New.Device; empty: unknown
}

// List returns sessions of a user (subject), or of one session at the provider
// (sid), the newest first. If both are given, List returns the sessions that
// match both. Subject or sid may be empty, not both.
//
// List skips offset sessions and examines the next limit sessions. List leaves
// out sessions that have ended, so infos may have fewer than limit. more
// reports whether there are sessions after those that were examined. The error
// wraps ErrStore if the store failed.
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
		if !found {
			continue
		}
		i := m.info(l, time.Now(), ttl)
		if err := m.addInfo(ctx, &i); err != nil {
			return nil, false, err
		}
		infos = append(infos, i)
	}
	return infos, more, nil
}

// Info returns what the store reveals of the session with an ID. found is false
// if there is no such session. The error wraps ErrStore if the store failed.
func (m *Manager) Info(ctx context.Context, id string) (i Info, found bool, err error) {
	_, ttl, found, err := m.sealed(ctx, id)
	if err != nil || !found {
		return Info{}, false, err
	}
	i = Info{ID: id, IdleExpiresAt: time.Now().Add(ttl)}
	return i, true, m.addInfo(ctx, &i)
}

// addInfo adds to i what the info of the session says.
func (m *Manager) addInfo(ctx context.Context, i *Info) error {
	rec, lastSeen, err := m.readInfo(ctx, i.ID)
	if err != nil || rec.CreatedAt == 0 {
		return err
	}
	i.CreatedAt = time.UnixMilli(rec.CreatedAt)
	i.ExpiresAt = time.UnixMilli(rec.CreatedAt + rec.ExpiresAt)
	i.Device = rec.Device
	if !lastSeen.IsZero() {
		// A replica of a release without such records touches the record only.
		i.LastSeenAt = latest(latest(lastSeen, i.LastSeenAt), i.CreatedAt)
	}
	return nil
}

// info returns what is known of a session whose record has a time to live,
// without its info. The last activity is calculated from the idle timeout, and
// not known if IdleExpiresAt may be the absolute end.
func (m *Manager) info(l listedSession, now time.Time, ttl time.Duration) Info {
	i := Info{ID: l.id, CreatedAt: l.created, IdleExpiresAt: now.Add(ttl), ExpiresAt: m.latestEnd(l)}
	seen := i.IdleExpiresAt.Add(-m.cfg.idleTimeout())
	if i.IdleExpiresAt.Before(i.ExpiresAt.Add(-time.Second)) && !seen.After(now) {
		i.LastSeenAt = latest(seen, i.CreatedAt)
	}
	return i
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// EndByID ends the session with an ID, for a caller without the session's
// ticket. found is false if there is no such session. If the error wraps
// ErrStore, the session may still exist.
//
// The tokens of a session that is ended for ReasonRevoked are revoked as soon
// as a replica has the session's ticket: at once if the session is in the cache
// of a replica, otherwise when a replica next receives the cookie. Until the
// cookie is received, the tokens cannot be read.
func (m *Manager) EndByID(ctx context.Context, id string, reason Reason) (found bool, err error) {
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
// their IDs. Logins in progress are not affected.
func (m *Manager) EndOthers(ctx context.Context, s *Session) ([]string, error) {
	return m.endOthers(ctx, s, func(string) bool { return true })
}

// endOthers ends those of the other sessions of the user of s that match.
func (m *Manager) endOthers(ctx context.Context, s *Session, match func(id string) bool) (ended []string, err error) {
	listed, err := m.listedFor(ctx, s.Issuer, s.Subject, "")
	if err != nil {
		return nil, storeError("list sessions", err)
	}
	for _, l := range listed {
		if l.id == s.ID || !match(l.id) {
			continue
		}
		record, _, found, err := m.sealed(ctx, l.id)
		if err != nil {
			return ended, err
		}
		if found {
			e := ending{id: l.id, subject: s.Subject, reason: ReasonRevoked, until: m.latestEnd(l)}
			if err := m.endSealed(ctx, record, e); err != nil {
				return ended, err
			}
			ended = append(ended, l.id)
		}
		if found || l.settled() {
			m.removeListed(ctx, l)
		}
	}
	return ended, nil
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
	cached := m.cache.get(e.id, time.Now())
	if cached != nil {
		e.subject = cached.Subject
	}
	if e.reason == ReasonRevoked {
		if _, err := m.cfg.Store.Create(ctx, revokedKey(e.id), sealed, m.cfg.maxLifetime()); err != nil {
			return storeError("keep the tokens to revoke", err)
		}
		// Announced to all replicas, before the record leaves their caches.
		if _, err := m.cfg.Store.Acquire(ctx, revocationKey(e.id), m.id, time.Second); err != nil {
			return storeError("announce the revocation", err)
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
	if s := m.cache.get(id, time.Now()); s != nil {
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
