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

// settledAfter is how long after its creation a listed session either has a
// record, or never gets one. Start adds a session to the indexes before it
// writes the record, and the write takes seconds at most.
const settledAfter = time.Minute

// listedSession is a session as it is in the indexes.
type listedSession struct {
	id      string // Session.ID
	created time.Time
	member  string
	keys    []string // of the sets that it is in
}

// settled reports whether the session never gets a record if it has none now.
func (l listedSession) settled() bool { return time.Since(l.created) > settledAfter }

// latestEnd returns when a listed session and its cookie end at the latest.
func (m *Manager) latestEnd(l listedSession) time.Time { return l.created.Add(m.cfg.maxLifetime()) }

// listed returns the sessions that are in all of the given indexes under the
// same session key, whichever that is. Each session is there once, the oldest
// first. A session is added to all its indexes under a session key at once.
func (m *Manager) listed(ctx context.Context, indexes ...func(serverKey) string) ([]listedSession, error) {
	var all []listedSession
	at := make(map[string]int) // :: member → its index in all
	for _, k := range m.ring.current() {
		keys := make([]string, len(indexes))
		for i, key := range indexes {
			keys[i] = key(k)
		}
		members, err := m.cfg.Store.Members(ctx, keys...)
		if err != nil {
			return nil, err
		}
		times := make(map[string]int) // :: member → how many of the sets have it
		for _, member := range members {
			times[member]++
			if times[member] != len(indexes) || len(member) != memberSize { // another release has other members
				continue
			}
			i, ok := at[member]
			if !ok {
				i = len(all)
				at[member] = i
				all = append(all, parseMember(member))
			}
			all[i].keys = append(all[i].keys, keys...)
		}
	}
	slices.SortFunc(all, func(a, b listedSession) int {
		return cmp.Or(a.created.Compare(b.created), strings.Compare(a.id, b.id))
	})
	return all, nil
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
	offset, limit = max(0, offset), max(0, limit)
	listed = listed[min(offset, len(listed)):]
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

// endOldest ends the oldest sessions of the user of s until there are
// MaxPerUser. If several logins happen at the same time, each login that lists
// the sessions after the last login began comes to the same result.
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
		} else if l.settled() { // it has expired
			m.removeListed(ctx, l)
		}
	}
	for _, l := range alive[:max(0, len(alive)-m.cfg.MaxPerUser)] {
		if err := m.end(ctx, ending{id: l.id, subject: s.Subject, reason: ReasonLimit,
			until: m.latestEnd(l)}); err != nil {
			return err
		}
		m.removeListed(ctx, l)
	}
	return nil
}

// EndAll ends, on every replica, the sessions of a user (subject), or of one
// session at the provider (sid). If both are given, EndAll ends the sessions
// that match both. Subject or sid may be empty, not both. A login of that user
// or sid that began before the call fails with ErrEnded (see Start). EndAll
// returns the IDs of the sessions that it ended, also beside an error. If the
// error wraps ErrStore, some of the others, or such a login, may still exist.
// EndByID says what happens to the tokens of the sessions.
func (m *Manager) EndAll(ctx context.Context, issuer, subject, sid string, reason Reason) ([]string, error) {
	if subject == "" && sid == "" {
		return nil, errors.New("end sessions: subject or sid is required")
	}
	ctx = context.WithoutCancel(ctx)
	// The end is written before the sessions are listed: see Start. A full
	// store refuses that, but deletes the records.
	now, ends := strconv.FormatInt(time.Now().UnixMilli(), 10), make(map[string]string)
	for _, k := range m.ring.current() {
		ends[k.endedKey(issuer, subject, sid)] = now
	}
	err := m.cfg.Store.Add(ctx, ends, endedMemory)
	if err != nil {
		err = storeError("remember a logout", err)
	}
	listed, unlisted := m.listedFor(ctx, issuer, subject, sid)
	if unlisted != nil {
		return nil, cmp.Or(err, storeError("list sessions", unlisted))
	}
	ids, failure := endEach(listed, func(l listedSession) (bool, error) {
		found, err := m.endListed(ctx, l, subject, reason)
		if err == nil && !found {
			if err = m.delete(ctx, l.id); err != nil { // Start may be about to write it
				err = storeError("delete", err)
			}
		}
		return found, err
	})
	return ids, cmp.Or(err, failure)
}

// endListed ends a session that is in the indexes of a user (subject, which may
// be empty). found is false if the session has no record.
func (m *Manager) endListed(ctx context.Context, l listedSession, subject string, reason Reason) (
	found bool, err error,
) {
	sealed, _, found, err := m.cfg.Store.Get(ctx, recordKey(l.id))
	if err != nil {
		return false, storeError("read", err)
	}
	if found {
		e := ending{id: l.id, subject: subject, reason: reason, until: m.latestEnd(l)}
		if err := m.endSealed(ctx, sealed, e); err != nil {
			return false, err
		}
	}
	if found || l.settled() {
		m.removeListed(ctx, l)
	}
	return found, nil
}

// listedFor returns the listed sessions of a user, of one session at the
// provider, or those that are both.
func (m *Manager) listedFor(ctx context.Context, issuer, subject, sid string) ([]listedSession, error) {
	bySID := func(k serverKey) string { return k.sidKey(issuer, sid) }
	byUser := func(k serverKey) string { return k.userKey(issuer, subject) }
	switch {
	case sid == "":
		return m.listed(ctx, byUser)
	case subject == "":
		return m.listed(ctx, bySID)
	}
	return m.listed(ctx, bySID, byUser)
}

// removeListed removes an ended session from the sets in which it was found.
func (m *Manager) removeListed(ctx context.Context, l listedSession) {
	members := make(map[string]string)
	for _, key := range l.keys {
		members[key] = l.member
	}
	m.removeMembers(ctx, l.id, members)
}
