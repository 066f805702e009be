package session

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strconv"
	"time"
)

// endedFor is how long it is remembered that the provider ended a session: longer than a login takes that was under way.
const endedFor = 15 * time.Minute

// The indexes are sets of sessions: one for each user, one for each session at
// the provider. The sets "ended:…" hold when such a one was ended. Their keys
// are made with a session key and the App, so that the store does not tell who
// has a session, and no App finds another's. A session is in an index until its
// absolute end, whatever the maximum lifetime is elsewhere.

func (k serverKey) userKey(issuer, subject string) string {
	return "user:" + k.name("user", issuer, subject)
}

func (k serverKey) sidKey(issuer, sid string) string { return "sid:" + k.name("sid", issuer, sid) }

// endedKey is where the end of all sessions of a user, or of one session at the provider, or of that one if it is this user's, is remembered.
func (k serverKey) endedKey(issuer, subject, sid string) string {
	return "ended:" + k.name("ended", issuer, subject, sid)
}

func (k serverKey) name(purpose string, parts ...string) string {
	return base64.RawURLEncoding.EncodeToString(derive(k.secret, nil, fmt.Sprintf("index %s %x", purpose, k.app.Digest(parts...)), 16))
}

// enlist puts a session into the indexes that the first key names, until its
// absolute end.
func (m *Manager) enlist(ctx context.Context, s *Session) error {
	life := time.Until(s.limit)
	if life <= 0 {
		return nil
	}
	if s.SID != "" {
		if err := m.cfg.Store.Add(ctx, m.ring.keys[0].sidKey(s.Issuer, s.SID), memberOf(s), life); err != nil {
			return err
		}
	}
	return m.cfg.Store.Add(ctx, m.ring.keys[0].userKey(s.Issuer, s.Subject), memberOf(s), life)
}

// delist takes an ended session out of the indexes.
func (m *Manager) delist(ctx context.Context, s *Session) {
	for _, k := range m.ring.keys {
		m.forgetMember(ctx, k.userKey(s.Issuer, s.Subject), s.ID, memberOf(s))
		if s.SID != "" {
			m.forgetMember(ctx, k.sidKey(s.Issuer, s.SID), s.ID, memberOf(s))
		}
	}
}

// checkEnded ends a session that has just begun again if the provider has said
// meanwhile that it is over.
func (m *Manager) checkEnded(ctx context.Context, s *Session, began time.Time) error {
	over, err := m.endedAtProvider(ctx, s, began)
	if err != nil {
		return storeError("look for a logout", err)
	}
	if !over {
		return nil
	}
	if err := m.end(ctx, s.ID, ReasonBackchannel, s.limit, nil); err != nil {
		return storeError("delete", err)
	}
	m.delist(ctx, s)
	return ErrEnded
}

// endedAtProvider says whether a logout of the session's user or sid has reached us since the login began.
func (m *Manager) endedAtProvider(ctx context.Context, s *Session, began time.Time) (bool, error) {
	for _, k := range m.ring.keys {
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

// A member of an index is the 16 octets of a session's ID, and 6 octets of
// Session.CreatedAt in Unix milliseconds. It never changes while the session
// lives.
const memberSize = 16 + 6

func memberOf(s *Session) string {
	id, err := base64.RawURLEncoding.DecodeString(s.ID)
	if err != nil {
		panic(err) // we made it
	}
	created := binary.BigEndian.AppendUint64(nil, uint64(s.CreatedAt.UnixMilli()))
	return string(append(id, created[2:]...))
}

func parseMember(member string) listedSession {
	created := binary.BigEndian.Uint64(append([]byte{0, 0}, member[16:]...))
	return listedSession{
		id:      base64.RawURLEncoding.EncodeToString([]byte(member[:16])),
		created: time.UnixMilli(int64(created)), member: member,
	}
}
