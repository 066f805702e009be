package session

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"
)

// settledAfter is how long after its creation a session that is in an index has
// a record for certain, or never gets one. Start lists a session before it
// writes the record; the write takes seconds at most.
const settledAfter = time.Minute

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

// latestEnd is when a listed session ends at the latest, and its cookie with it.
func (m *Manager) latestEnd(l listedSession) time.Time { return l.created.Add(m.cfg.maxLifetime()) }

// listed returns the sessions in an index, whichever session key names it, each
// of them once, the oldest first.
func (m *Manager) listed(ctx context.Context, key func(serverKey) string) ([]listedSession, error) {
	var all []listedSession
	at := make(map[string]int) // :: member → its place in all
	for _, k := range m.ring.keys {
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
		if err := m.end(ctx, l.id, ReasonLimit, m.latestEnd(l), nil); err != nil {
			return err
		}
		m.forgetListed(ctx, l)
	}
	return nil
}

// EndAll ends, on every replica, the sessions of a user, or those of one session at the provider, or those of them that are both; subject or sid may be
// empty, not both. Logins that are under way for them fail with ErrEnded. It returns the IDs of the sessions that it
// ended; that there were none is not an error. The error wraps ErrStore, and then some of them may still be there.
func (m *Manager) EndAll(ctx context.Context, issuer, subject, sid string, reason Reason) ([]string, error) {
	if subject == "" && sid == "" {
		return nil, errors.New("end all sessions of whom? Neither subject nor sid is given")
	}
	// Remember first, look second: see Start.
	now := strconv.FormatInt(time.Now().UnixMilli(), 10)
	for _, k := range m.ring.keys {
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
		if found {
			err = m.end(ctx, l.id, reason, m.latestEnd(l), nil)
			ids = append(ids, l.id)
		} else {
			err = m.delete(ctx, l.id) // Start may write it just now
		}
		if err != nil {
			return nil, storeError("delete", err)
		}
		if found || l.settled() {
			m.forgetListed(ctx, l)
		}
	}
	return ids, nil
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
