package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// New is a session that is about to start.
type New struct {
	Issuer  string          // iss of the ID token
	Subject string          // sub of the ID token
	SID     string          // sid of the ID token, empty where the provider has none
	Claims  json.RawMessage // of the user, a JSON object; see Session.Claim
	Tokens  Tokens          // that the provider issued

	// ExpiresAt is when the provider ends the session. Zero means unknown.
	ExpiresAt time.Time
	// Device is a short name of the browser and its system, for lists of the
	// user's sessions (see Info). At most 64 bytes of Device are kept. Empty
	// means unknown.
	Device string
	// Began is when the login began. Zero means now. If EndAll was called for
	// the user or the sid since Began, Start fails with ErrEnded.
	Began time.Time

	// Replaces are the tickets of the sessions that the new session replaces.
	// Start ends these sessions. Zero tickets are ignored.
	Replaces []Ticket
	// Replaced is called with each session of Replaces after Start has ended
	// the session, and must not block. Replaced may be nil. If kept is true,
	// old belonged to the user of the new session, and the refresh token of old
	// is now in Tokens.Superseded of the new session. If kept is false,
	// Replaced should revoke the tokens of old.
	Replaced func(old *Session, kept bool)
}

// maxSuperseded is how many refresh tokens of replaced sessions a session
// keeps. The oldest tokens beyond maxSuperseded are dropped, and expire.
const maxSuperseded = 16

// Start starts a session. The session has a new secret id and a new data key,
// whatever the browser sent, so that no session can be fixated. The caller
// sends the session's cookie with Cookie.Write.
//
// The error wraps ErrEnded if EndAll was called for the session's user or sid
// since New.Began, or if New.ExpiresAt or the expiry of the refresh token has
// passed. The error wraps ErrStore if the store failed.
func (m *Manager) Start(ctx context.Context, n New) (*Session, error) {
	now := time.Now()
	if n.Began.IsZero() {
		n.Began = now
	}
	s, err := m.newSession(n, now)
	if err != nil {
		return nil, err
	}
	old, err := m.openReplaced(ctx, s, n.Replaces)
	if err != nil {
		return nil, err
	}
	if s.sealed, err = m.ring.seal(s); err != nil {
		return nil, err
	}
	// In this order a logout at the provider that happens meanwhile either
	// finds the session in the index or is found by finishStart.
	if err := m.addToIndexes(ctx, s); err != nil {
		return nil, storeError("add to indexes", err)
	}
	if err := m.writeInfo(ctx, s, n.Device); err != nil {
		return nil, err
	}
	created, err := m.cfg.Store.Create(ctx, recordKey(s.ID), s.sealed, s.recordEnds.Sub(now))
	if err != nil {
		return nil, storeError("create", err)
	}
	if !created {
		return nil, errors.New("start session: its random id is taken")
	}
	if err := m.finishStart(ctx, s, n.Began); err != nil {
		return nil, err
	}
	for _, o := range old { // before endOldest, so that they do not count
		if err := m.end(ctx, o.ending(ReasonReplaced, nil)); err != nil {
			return nil, storeError("end the session before", err)
		}
		m.removeFromIndexes(ctx, o)
		if n.Replaced != nil {
			n.Replaced(o, o.sameUser(s))
		}
	}
	if m.cfg.MaxPerUser > 0 {
		if err := m.endOldest(ctx, s); err != nil {
			return nil, storeError("end the oldest session", err)
		}
	}
	m.cache.noteLimit(s.ID, s.limit)
	m.emit(ctx, Event{Kind: SessionStarted, Session: s.ID, Subject: s.Subject})
	return s, nil
}

// newSession returns a session with a new ticket, unless it would have ended by
// now.
func (m *Manager) newSession(n New, now time.Time) (*Session, error) {
	t := newTicket()
	s := &Session{
		ID: t.sessionID, Issuer: n.Issuer, Subject: n.Subject, SID: n.SID, Claims: n.Claims, Tokens: n.Tokens,
		CreatedAt: now, limit: now.Add(m.cfg.maxLifetime()), ticket: t, lazy: new(lazy),
	}
	if !n.ExpiresAt.IsZero() {
		s.limit = earlier(s.limit, n.ExpiresAt)
	}
	if s.Tokens.Key != "" && s.Key() == nil {
		return nil, errors.New("start session: the key of its tokens is not one of P-256")
	}
	if s.Tokens.Refresh == "" && !s.Tokens.Expiry.IsZero() {
		s.limit = earlier(s.limit, s.Tokens.Expiry) // there can be no other access token
	}
	s.recordEnds = now.Add(m.idleTTL(s, now))
	s.setEnd()
	switch {
	case s.ExpiresAt.After(now):
		return s, nil
	case !s.limit.After(now) && s.limit.Equal(s.Tokens.Expiry):
		return nil, errors.New("start session: the access token has expired and there is no refresh token")
	}
	return nil, fmt.Errorf("%w: it ended the session, or lets it end, at %v", ErrEnded, s.ExpiresAt)
}

// openReplaced returns the sessions that tickets open, and adds the refresh
// tokens of those that belong to the user of s to Superseded of s.
func (m *Manager) openReplaced(ctx context.Context, s *Session, tickets []Ticket) ([]*Session, error) {
	var all []*Session
	for _, t := range tickets {
		if slices.ContainsFunc(all, func(o *Session) bool { return o.ID == t.sessionID }) {
			continue
		}
		o, err := m.load(ctx, t)
		if errors.Is(err, ErrNone) {
			continue // it has ended
		}
		if err != nil {
			return nil, err
		}
		all = append(all, o)
		if !o.sameUser(s) {
			continue
		}
		kept := append(s.Tokens.Superseded, o.Tokens.Superseded...)
		if o.Tokens.Refresh != "" {
			kept = append(kept, o.Tokens.Refresh)
		}
		s.Tokens.Superseded = kept[max(0, len(kept)-maxSuperseded):]
	}
	return all, nil
}
