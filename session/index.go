package session

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// An index is a set of sessions: there is one for each user, and one for each
// session at the provider. The sets under "ended:" hold the times at which the
// provider ended the sessions of such an index. The keys of all these sets are
// derived from a session key and the App. So the store does not reveal who has
// a session, and no App finds sessions of another. A session stays in an index
// until its absolute end, whatever MaxLifetime other replicas have.

func (k serverKey) userKey(issuer, subject string) string {
	return "user:" + k.name("user", issuer, subject)
}

func (k serverKey) sidKey(issuer, sid string) string { return "sid:" + k.name("sid", issuer, sid) }

// endedKey is the key of the set of ends of a user's sessions (subject), of one
// session at the provider (sid), or of the sessions that match both. Subject or
// sid may be empty.
func (k serverKey) endedKey(issuer, subject, sid string) string {
	return "ended:" + k.name("ended", issuer, subject, sid)
}

func (k serverKey) name(purpose string, parts ...string) string {
	info := fmt.Sprintf("index %s %x", purpose, k.app.Digest(parts...))
	return base64.RawURLEncoding.EncodeToString(derive(k.secret, nil, info, 16))
}

// addToIndexes adds a session to the indexes of the primary key, until its
// absolute end.
func (m *Manager) addToIndexes(ctx context.Context, s *Session) error {
	life := time.Until(s.limit)
	if life <= 0 {
		return nil
	}
	return m.cfg.Store.Add(ctx, s.memberships(m.ring.current()[:1]), life)
}

// memberships returns the member of a session in the indexes of keys.
func (s *Session) memberships(keys []serverKey) map[string]string {
	members := make(map[string]string)
	for _, k := range keys {
		members[k.userKey(s.Issuer, s.Subject)] = memberOf(s)
		if s.SID != "" {
			members[k.sidKey(s.Issuer, s.SID)] = memberOf(s)
		}
	}
	return members
}

// removeFromIndexes removes an ended session from the indexes of all keys.
func (m *Manager) removeFromIndexes(ctx context.Context, s *Session) {
	m.removeMembers(ctx, s.ID, s.memberships(m.ring.current()))
}

// removeMembers removes an ended session from indexes. A failure does no harm:
// the members name a session that does not exist, and expire.
func (m *Manager) removeMembers(ctx context.Context, id string, members map[string]string) {
	if err := m.cfg.Store.Remove(ctx, members); err != nil {
		m.log.DebugContext(ctx, "ended session still in an index", "session", id, "err", err)
	}
}

// endedMemory is how long the end of sessions at the provider is remembered,
// for logins in progress. No login takes longer.
const endedMemory = 15 * time.Minute

// finishStart ends a session that has just been written, if the provider ended
// it since its login began.
func (m *Manager) finishStart(ctx context.Context, s *Session, began time.Time) error {
	ended, err := m.endedAtProvider(ctx, s, began)
	if err != nil {
		return storeError("look for a logout", err)
	}
	if !ended {
		return nil
	}
	if err := m.end(ctx, s.ending(ReasonBackchannel, nil)); err != nil {
		return storeError("delete", err)
	}
	m.removeFromIndexes(ctx, s)
	return ErrEnded
}

// endedAtProvider reports whether EndAll was called for the session's user or
// sid since its login began.
func (m *Manager) endedAtProvider(ctx context.Context, s *Session, began time.Time) (bool, error) {
	var keys []string
	for _, k := range m.ring.current() {
		keys = append(keys, k.endedKey(s.Issuer, s.Subject, ""))
		if s.SID != "" {
			keys = append(keys, k.endedKey(s.Issuer, "", s.SID), k.endedKey(s.Issuer, s.Subject, s.SID))
		}
	}
	ends, err := m.cfg.Store.Members(ctx, keys...)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(ends, func(at string) bool {
		ms, err := strconv.ParseInt(at, 10, 64)
		return err != nil || ms >= began.UnixMilli()
	}), nil
}

// memberSize is the size of a member of an index: the 16 octets of Session.ID,
// and Session.CreatedAt in Unix milliseconds, as 6 octets. A member never
// changes.
const memberSize = 16 + 6

func memberOf(s *Session) string {
	id, err := base64.RawURLEncoding.DecodeString(s.ID)
	if err != nil {
		panic(err) // it comes from Ticket.withSessionID
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
