package session

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// endedFor is how long it is remembered that the provider ended a session: longer than a login takes that was under way.
const endedFor = 15 * time.Minute

// The indexes are sets of session IDs: one for each user, one for each session at the provider. The sets "ended:…" hold when such a one was
// ended. Their keys are made with a session key, so that the store does not tell who has a session.

func (k serverKey) userKey(issuer, subject string) string {
	return "user:" + k.name("user", issuer, subject)
}
func (k serverKey) sidKey(issuer, sid string) string { return "sid:" + k.name("sid", issuer, sid) }

// endedKey is where the end of all sessions of a user, or of one session at the provider, or of that one if it is this user's, is remembered.
func (k serverKey) endedKey(issuer, subject, sid string) string {
	return "ended:" + k.name("ended", issuer, subject, sid)
}

func (k serverKey) name(purpose string, parts ...string) string {
	return base64.RawURLEncoding.EncodeToString(derive(k.secret, nil, fmt.Sprintf("index %s %q", purpose, parts), 16))
}

// enlist puts a session that is about to begin into the indexes. Its members are the IDs' bytes, for the store's memory.
func (m *Manager) enlist(ctx context.Context, s *Session) error {
	life := m.cfg.maxLifetime() // even if this session's is shorter: others are there too
	if s.SID != "" {
		if err := m.cfg.Store.Add(ctx, m.ring[0].sidKey(s.Issuer, s.SID), member(s.ID), life); err != nil {
			return err
		}
	}
	return m.cfg.Store.Add(ctx, m.ring[0].userKey(s.Issuer, s.Subject), member(s.ID), life)
}

// enlisted is called when a session has begun. It ends it again if the provider has said meanwhile that it is over, and ends others if there
// are too many.
func (m *Manager) enlisted(ctx context.Context, s *Session, began time.Time) error {
	over, err := m.endedAtProvider(ctx, s, began)
	if err != nil {
		return storeError("look for a logout", err)
	}
	if over {
		if err := m.delete(ctx, s.ID); err != nil {
			return storeError("delete", err)
		}
		m.delist(ctx, s)
		m.log.InfoContext(ctx, "session ended", "session", s.ID, "reason", "signed out at the provider before the login was complete")
		return ErrEnded
	}
	if m.cfg.MaxPerUser > 0 {
		if err := m.endOldest(ctx, s); err != nil {
			return storeError("end the oldest session", err)
		}
	}
	return nil
}

// endedAtProvider says whether a logout of the session's user or sid has reached us since the login began.
func (m *Manager) endedAtProvider(ctx context.Context, s *Session, began time.Time) (bool, error) {
	for _, k := range m.ring {
		keys := []string{k.endedKey(s.Issuer, s.Subject, "")}
		if s.SID != "" {
			keys = append(keys, k.endedKey(s.Issuer, "", s.SID), k.endedKey(s.Issuer, s.Subject, s.SID))
		}
		for _, key := range keys {
			ends, err := m.cfg.Store.Members(ctx, key)
			if err != nil {
				return false, err
			}
			for _, at := range ends {
				if ms, err := strconv.ParseInt(at, 10, 64); err != nil || ms >= began.UnixMilli() {
					return true, nil
				}
			}
		}
	}
	return false, nil
}

// endOldest ends the user's oldest sessions as long as there are more than MaxPerUser.
func (m *Manager) endOldest(ctx context.Context, s *Session) error {
	ids, err := m.members(ctx, func(k serverKey) string { return k.userKey(s.Issuer, s.Subject) })
	if err != nil || len(ids) <= m.cfg.MaxPerUser {
		return err
	}
	var alive []string
	for _, id := range ids {
		_, _, found, err := m.cfg.Store.Get(ctx, recordKey(id))
		if err != nil {
			return err
		}
		if found {
			alive = append(alive, id)
			continue
		}
		if err := m.cfg.Store.Remove(ctx, m.ring[0].userKey(s.Issuer, s.Subject), member(id)); err != nil { // it ended without us
			return err
		}
	}
	for _, id := range alive[:max(0, len(alive)-m.cfg.MaxPerUser)] {
		if err := m.delete(ctx, id); err != nil {
			return err
		}
		m.log.InfoContext(ctx, "session ended", "session", id, "reason", "the user has signed in elsewhere too often", "max_per_user", m.cfg.MaxPerUser)
	}
	return nil
}

// EndAll ends, on every replica, the sessions of a user, or those of one session at the provider, or those of them that are both; subject or sid may be
// empty, not both. Logins that are under way for them fail with ErrEnded. It returns the IDs of the sessions that it
// ended; that there were none is not an error. The error wraps ErrStore, and then some of them may still be there.
func (m *Manager) EndAll(ctx context.Context, issuer, subject, sid string) ([]string, error) {
	if subject == "" && sid == "" {
		return nil, errors.New("end all sessions of whom? Neither subject nor sid is given")
	}
	// Remember first, look second: see Start.
	now := strconv.FormatInt(time.Now().UnixMilli(), 10)
	for _, k := range m.ring {
		if err := m.cfg.Store.Add(ctx, k.endedKey(issuer, subject, sid), now, endedFor); err != nil {
			return nil, storeError("remember a logout", err)
		}
	}
	var ids []string
	var err error
	if sid != "" {
		if ids, err = m.members(ctx, func(k serverKey) string { return k.sidKey(issuer, sid) }); err != nil {
			return nil, storeError("look up sessions", err)
		}
	}
	if subject != "" {
		users, err := m.members(ctx, func(k serverKey) string { return k.userKey(issuer, subject) })
		if err != nil {
			return nil, storeError("look up sessions", err)
		}
		if sid == "" {
			ids = users
		} else {
			ids = slices.DeleteFunc(ids, func(id string) bool { return !slices.Contains(users, id) })
		}
	}
	for _, id := range ids {
		if err := m.delete(ctx, id); err != nil {
			return nil, storeError("delete", err)
		}
		for _, k := range m.ring {
			if subject != "" {
				m.forgetMember(ctx, k.userKey(issuer, subject), id)
			}
			if sid != "" {
				m.forgetMember(ctx, k.sidKey(issuer, sid), id)
			}
		}
	}
	return ids, nil
}

// delist takes an ended session out of the indexes.
func (m *Manager) delist(ctx context.Context, s *Session) {
	for _, k := range m.ring {
		m.forgetMember(ctx, k.userKey(s.Issuer, s.Subject), s.ID)
		if s.SID != "" {
			m.forgetMember(ctx, k.sidKey(s.Issuer, s.SID), s.ID)
		}
	}
}

// forgetMember tidies an index. That it fails does no harm: whoever finds the ID there finds no session, and one day it expires.
func (m *Manager) forgetMember(ctx context.Context, key, id string) {
	if err := m.cfg.Store.Remove(ctx, key, member(id)); err != nil {
		m.log.DebugContext(ctx, "ended session still in an index", "session", id, "err", err)
	}
}

// members returns the session IDs in an index, whichever key names it, the oldest first: those under keys that do not seal any more.
func (m *Manager) members(ctx context.Context, key func(serverKey) string) ([]string, error) {
	var ids []string
	for _, k := range slices.Backward(m.ring) {
		members, err := m.cfg.Store.Members(ctx, key(k))
		if err != nil {
			return nil, err
		}
		for _, member := range members {
			ids = append(ids, base64.RawURLEncoding.EncodeToString([]byte(member)))
		}
	}
	return ids, nil
}

// member is a session ID as it is in an index.
func member(id string) string {
	b, err := base64.RawURLEncoding.DecodeString(id)
	if err != nil {
		panic(err) // we made it
	}
	return string(b)
}
