package session

import (
	"context"
	"strings"
	"sync"
	"time"
)

// Kind is what happened to a session.
type Kind string

const (
	// SessionStarted: a user signed in.
	SessionStarted Kind = "session.started"
	// SessionRefreshed: the provider issued new tokens, and they are stored.
	SessionRefreshed Kind = "session.refreshed"
	// RefreshFailed: the tokens could not be refreshed. The session is kept.
	RefreshFailed Kind = "refresh.failed"
	// SessionEnded: the session cannot be used any more. Event.Reason says why.
	SessionEnded Kind = "session.ended"
	// SessionReturned: a browser has sent the cookie of a session that ended
	// before. Event.Reason says why the session ended. A replica reports only
	// the first such request.
	SessionReturned Kind = "session.returned"
)

// Reason is why a session ended.
type Reason string

const (
	// ReasonLogout: the user signed out in this browser.
	ReasonLogout Reason = "logout"
	// ReasonBackchannel: the provider sent a logout token (OpenID Connect
	// Back-Channel Logout 1.0), perhaps while the login was in progress.
	ReasonBackchannel Reason = "backchannel"
	// ReasonFrontchannel: the provider loaded the logout endpoint in the user's
	// browser (OpenID Connect Front-Channel Logout 1.0).
	ReasonFrontchannel Reason = "frontchannel"
	// ReasonIdle: the user was not active for Config.IdleTimeout. A session
	// that the store has lost looks the same, and has this reason too.
	ReasonIdle Reason = "idle"
	// ReasonLifetime: the session reached its absolute end, as set by
	// Config.MaxLifetime, the provider or the expiry of its refresh token.
	ReasonLifetime Reason = "lifetime"
	// ReasonRefused: the provider refused the refresh token (ErrRefused).
	ReasonRefused Reason = "refused"
	// ReasonReplaced: a login in the same browser replaced the session.
	ReasonReplaced Reason = "replaced"
	// ReasonLimit: the user signed in elsewhere, and the new session exceeded
	// Config.MaxPerUser.
	ReasonLimit Reason = "limit"
	// ReasonRevoked: an operator ended the session, or the user did so on
	// another device.
	ReasonRevoked Reason = "revoked"
	// ReasonKeyRemoved: the session key that sealed the record is not in
	// Config.Keys any more. A replica with that key may still use the session.
	ReasonKeyRemoved Reason = "key_removed"
)

// Event is a fact about a session that matters to its user's security.
type Event struct {
	Kind    Kind      // what happened
	App     App       // Config.App
	Session string    // Session.ID
	Subject string    // Session.Subject; empty if the replica does not know it
	Reason  Reason    // of SessionEnded and SessionReturned, else empty
	At      time.Time // when the replica noticed it

	// Err is the cause of RefreshFailed, and then wraps a *RefreshError or
	// ErrUserRequired. Err is also the cause of SessionEnded with
	// ReasonRefused. For all other events Err is nil.
	Err error
	// Failures counts the failed refreshes in a row, this one included, for
	// RefreshFailed with a *RefreshError.
	Failures int
	// TokenExpiry is Tokens.Expiry of the refreshed session, for
	// SessionRefreshed only. Zero means unknown.
	TokenExpiry time.Time
	// Refreshes counts the refreshes of the session on all replicas, this one
	// included, for SessionRefreshed only.
	Refreshes int
}

// emit reports an event to Config.Observe.
func (m *Manager) emit(ctx context.Context, e Event) {
	if m.cfg.Observe == nil {
		return
	}
	e.App, e.At = m.cfg.App, time.Now()
	m.cfg.Observe(ctx, e)
}

// tombstoneKey is the key in the store of the tombstone of a session: the
// reason why it ended. The tombstone lives until the cookie of the session
// expires. Without the tombstone a replica could not tell a session that
// another replica ended from a session that expired.
func tombstoneKey(id string) string { return "tombstone:" + id }

// bury writes the tombstone of a session whose cookie expires at until. first
// is false if the session already has a tombstone.
func (m *Manager) bury(ctx context.Context, id string, reason Reason, until time.Time) (first bool, err error) {
	ttl := time.Until(until)
	if ttl <= 0 {
		return true, nil
	}
	value := string(reason) + " " + m.id // different from that of any other replica
	return m.cfg.Store.Create(ctx, tombstoneKey(id), []byte(value), ttl)
}

// ending is the end of a session.
type ending struct {
	id      string
	subject string // empty: unknown
	reason  Reason
	until   time.Time // when the cookie of the session expires
	cause   error     // nil: none but the reason
}

// ending returns the end of s for a reason. The cause may be nil.
func (s *Session) ending(reason Reason, cause error) ending {
	return ending{id: s.ID, subject: s.Subject, reason: reason, until: s.limit, cause: cause}
}

// end ends a session and reports it, unless another replica does. The tombstone
// comes first, so that no replica takes the session for an expired one. If the
// store fails, the session may still exist.
func (m *Manager) end(ctx context.Context, e ending) error {
	id := e.id
	first, err := m.bury(ctx, id, e.reason, e.until)
	remove := m.delete
	if err != nil {
		remove = m.deleteApart
		first = true // reported twice rather than not at all
		m.log.DebugContext(ctx, "tombstone not written", "session", id, "err", err)
	}
	// Before the record is gone: noticeEnd would take the report for that of
	// another replica.
	report := first && m.reported.add(id)
	if err := remove(ctx, id); err != nil {
		if report {
			m.reported.remove(id)
		}
		return err
	}
	if report {
		m.emit(ctx, Event{Kind: SessionEnded, Session: id, Subject: e.subject, Reason: e.reason, Err: e.cause})
	}
	return nil
}

// noticeEnd reports the end of a session that no replica ended. Of all replicas
// that notice the end, one reports the end.
func (m *Manager) noticeEnd(ctx context.Context, e ending) {
	if !m.reported.add(e.id) {
		return
	}
	first, err := m.bury(ctx, e.id, e.reason, time.Now().Add(m.cfg.maxLifetime()))
	if err != nil {
		m.reported.remove(e.id) // the next caller retries
		m.log.DebugContext(ctx, "end of a session not reported", "session", e.id, "err", err)
		return
	}
	if first {
		m.returned.add(e.id)
		m.emit(ctx, Event{Kind: SessionEnded, Session: e.id, Subject: e.subject, Reason: e.reason})
	}
}

// noticeReturn reports that the cookie of an ended session came back.
func (m *Manager) noticeReturn(ctx context.Context, id string) {
	if !m.returned.add(id) {
		return
	}
	reason, err := m.buriedReason(ctx, id)
	if err != nil {
		m.returned.remove(id) // the next caller retries
		m.log.DebugContext(ctx, "return of an ended session not reported", "session", id, "err", err)
		return
	}
	if reason != "" {
		m.emit(ctx, Event{Kind: SessionReturned, Session: id, Reason: reason})
	}
}

// buriedReason returns the reason in the tombstone of a session. The reason is
// empty if there is no tombstone.
func (m *Manager) buriedReason(ctx context.Context, id string) (Reason, error) {
	value, _, _, err := m.cfg.Store.Get(ctx, tombstoneKey(id))
	reason, _, _ := strings.Cut(string(value), " ")
	return Reason(reason), err
}

// EndReason returns why the session of a ticket ended. It is for a ticket for
// which Find returned ErrNone. The reason is empty if it is not known: for the
// zero Ticket, and after the cookie of the session has expired. The error wraps
// ErrStore.
func (m *Manager) EndReason(ctx context.Context, t Ticket) (Reason, error) {
	if t.sessionID == "" {
		return "", nil
	}
	reason, err := m.buriedReason(ctx, t.sessionID)
	if err != nil {
		return "", storeError("read why a session ended", err)
	}
	return reason, nil
}

// expiryReason returns why a session expired whose record is gone.
func (m *Manager) expiryReason(id string, now time.Time) Reason {
	if limit, ok := m.cache.limit(id); ok && !now.Before(limit) {
		return ReasonLifetime
	}
	return ReasonIdle
}

// sessionSet is a set of the IDs of ended sessions. A sessionSet bounds how
// often a cookie that comes back costs a call to the store, or a log line.
type sessionSet struct {
	mu  sync.Mutex // guards ids
	ids map[string]struct{}
}

const maxSessionSet = 10_000 // a megabyte

// add adds a session, and returns false if the set already has the session.
func (r *sessionSet) add(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.ids[id]; ok {
		return false
	}
	if r.ids == nil || len(r.ids) >= maxSessionSet {
		r.ids = make(map[string]struct{})
	}
	r.ids[strings.Clone(id)] = struct{}{}
	return true
}

func (r *sessionSet) remove(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.ids, id)
}
