package session

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// endedFor is how long it is remembered that the provider ended a session: longer than a login takes that was under way.
const endedFor = 15 * time.Minute

// settledAfter is how long after its creation a session that is in an index has
// a record for certain, or never gets one. Start lists a session before it
// writes the record; the write takes seconds at most.
const settledAfter = time.Minute

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
		if err := m.cfg.Store.Add(ctx, m.ring[0].sidKey(s.Issuer, s.SID), memberOf(s), life); err != nil {
			return err
		}
	}
	return m.cfg.Store.Add(ctx, m.ring[0].userKey(s.Issuer, s.Subject), memberOf(s), life)
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
	if err := m.delete(ctx, s.ID); err != nil {
		return storeError("delete", err)
	}
	m.delist(ctx, s)
	m.log.InfoContext(ctx, "session ended", "session", s.ID, "reason", "signed out at the provider before the login was complete")
	return ErrEnded
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

// endOldest ends the user's oldest sessions as long as there are more than
// MaxPerUser. Of logins that happen at once, each one that looks after the last
// has begun comes to the same result.
func (m *Manager) endOldest(ctx context.Context, s *Session) error {
	listed, err := m.listed(ctx, func(k serverKey) string { return k.userKey(s.Issuer, s.Subject) })
	if err != nil || len(listed) <= m.cfg.MaxPerUser {
		return err
	}
	var alive []listedSession
	for _, l := range listed {
		_, _, found, err := m.cfg.Store.Get(ctx, recordKey(l.id))
		if err != nil {
			return err
		}
		if found {
			alive = append(alive, l)
		} else if l.settled() { // it ended without us
			m.forgetListed(ctx, l)
		}
	}
	for _, l := range alive[:max(0, len(alive)-m.cfg.MaxPerUser)] {
		if err := m.delete(ctx, l.id); err != nil {
			return err
		}
		m.forgetListed(ctx, l)
		m.log.InfoContext(ctx, "session ended", "session", l.id, "reason", "the user has signed in elsewhere too often", "max_per_user", m.cfg.MaxPerUser)
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
	var listed []listedSession
	var err error
	if sid != "" {
		if listed, err = m.listed(ctx, func(k serverKey) string { return k.sidKey(issuer, sid) }); err != nil {
			return nil, storeError("look up sessions", err)
		}
	}
	if subject != "" {
		users, err := m.listed(ctx, func(k serverKey) string { return k.userKey(issuer, subject) })
		if err != nil {
			return nil, storeError("look up sessions", err)
		}
		if sid == "" {
			listed = users
		} else {
			listed = inBoth(listed, users)
		}
	}
	var ids []string
	for _, l := range listed {
		_, _, found, err := m.cfg.Store.Get(ctx, recordKey(l.id))
		if err != nil {
			return nil, storeError("read", err)
		}
		if err := m.delete(ctx, l.id); err != nil { // also if it was not found: Start may write it just now
			return nil, storeError("delete", err)
		}
		if found {
			ids = append(ids, l.id)
		}
		if found || l.settled() {
			m.forgetListed(ctx, l)
		}
	}
	return ids, nil
}

// inBoth returns the sessions that are in both a and b.
func inBoth(a, b []listedSession) []listedSession {
	var both []listedSession
	for _, l := range a {
		if i := slices.IndexFunc(b, func(other listedSession) bool { return other.member == l.member }); i >= 0 {
			l.keys = append(l.keys, b[i].keys...)
			both = append(both, l)
		}
	}
	return both
}

// delist takes an ended session out of the indexes.
func (m *Manager) delist(ctx context.Context, s *Session) {
	for _, k := range m.ring {
		m.forgetMember(ctx, k.userKey(s.Issuer, s.Subject), s.ID, memberOf(s))
		if s.SID != "" {
			m.forgetMember(ctx, k.sidKey(s.Issuer, s.SID), s.ID, memberOf(s))
		}
	}
}

// listedSession is a session as it is in the indexes of one user, or of one
// session at the provider.
type listedSession struct {
	id      string // Session.ID
	created time.Time
	member  string
	keys    []string // of the sets that it is in
}

// settled reports whether the session, if it has no record, never gets one.
func (l listedSession) settled() bool { return time.Since(l.created) > settledAfter }

// listed returns the sessions in an index, whichever session key names it, each
// of them once, the oldest first.
func (m *Manager) listed(ctx context.Context, key func(serverKey) string) ([]listedSession, error) {
	var all []listedSession
	at := make(map[string]int) // :: member → its place in all
	for _, k := range m.ring {
		members, err := m.cfg.Store.Members(ctx, key(k))
		if err != nil {
			return nil, err
		}
		for _, member := range members {
			if len(member) != memberSize {
				continue // another release wrote it
			}
			i, ok := at[member]
			if !ok {
				i = len(all)
				at[member] = i
				all = append(all, parseMember(member))
			}
			all[i].keys = append(all[i].keys, key(k))
		}
	}
	slices.SortFunc(all, func(a, b listedSession) int {
		return cmp.Or(a.created.Compare(b.created), strings.Compare(a.id, b.id))
	})
	return all, nil
}

// forgetListed takes a session that has ended out of the sets that it was found in.
func (m *Manager) forgetListed(ctx context.Context, l listedSession) {
	for _, key := range l.keys {
		m.forgetMember(ctx, key, l.id, l.member)
	}
}

// forgetMember tidies an index. That it fails does no harm: whoever finds the ID there finds no session, and one day it expires.
func (m *Manager) forgetMember(ctx context.Context, key, id, member string) {
	if err := m.cfg.Store.Remove(ctx, key, member); err != nil {
		m.log.DebugContext(ctx, "ended session still in an index", "session", id, "err", err)
	}
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
