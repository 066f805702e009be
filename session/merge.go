package session

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"time"
)

// RefreshResult is what a refresh obtained. If an optional field is empty, the
// response did not have it, and the session keeps what it has.
type RefreshResult struct {
	// Tokens has Access and Issued for the target of the refresh, and Expiry,
	// which is unknown if zero. Scope, ID, Refresh, RefreshExpiry and Key are
	// optional. A new Refresh without RefreshExpiry has an unknown expiry. A
	// new Key deletes the session's Others, which are bound to the old key.
	// Others and Superseded of Tokens are ignored.
	Tokens Tokens
	// Claims, which is optional, replaces Session.Claims.
	Claims json.RawMessage
	// ExpiresAt, which is optional, is when the provider ends the session. A
	// refresh can only move this end to an earlier time.
	ExpiresAt time.Time
}

// merge puts the result of a refresh for a target into s. What the response
// does not have stays as it was (RFC 6749, section 6; OpenID Connect Core,
// section 12.2).
func (m *Manager) merge(s *Session, r RefreshResult, target string) {
	t, got := &s.Tokens, r.Tokens
	if got.Key != "" && got.Key != t.Key {
		t.Key, t.Others = got.Key, nil
	}
	t.Refresh, t.ID = cmp.Or(got.Refresh, t.Refresh), cmp.Or(got.ID, t.ID)
	s.mergeEnd(r)
	if r.Claims != nil {
		s.Claims = r.Claims
	}
	got.Scope = cmp.Or(got.Scope, t.For(target).Scope)
	if target == "" {
		t.Access, t.Scope, t.Issued, t.Expiry = got.Access, got.Scope, got.Issued, got.Expiry
		return
	}
	now := time.Now()
	others := maps.Clone(t.Others) // the session that was read shares the map
	maps.DeleteFunc(others, func(_ string, other Tokens) bool { return !m.unexpired(&other, now) })
	if others == nil {
		others = make(map[string]Tokens)
	}
	others[target] = got.For("")
	t.Others = others
}

// mergeEnd updates ExpiresAt. If the response has a new refresh token without
// an expiry, the expiry is unknown. The end that the provider sets for the
// session never becomes later.
func (s *Session) mergeEnd(r RefreshResult) {
	if r.Tokens.Refresh != "" || !r.Tokens.RefreshExpiry.IsZero() {
		s.Tokens.RefreshExpiry = r.Tokens.RefreshExpiry
	}
	if !r.ExpiresAt.IsZero() {
		s.limit = earlier(s.limit, r.ExpiresAt)
	}
	s.setEnd()
}

// save replaces the record that next was made of. If the store has another
// record, save replaces that one too, unless it is of a later refresh: the
// record was sealed with another key meanwhile, or the store has failed over
// and shows an earlier one. A session that was ended has no record, and stays
// ended: save revokes the tokens that were obtained for it.
func (m *Manager) save(ctx context.Context, next *Session) (*Session, error) {
	for old := next.replaces; ; {
		replaced, err := m.cfg.Store.Replace(ctx, recordKey(next.ID), old, next.sealed)
		if err != nil {
			return nil, storeError("save refreshed tokens", err)
		}
		if replaced {
			m.failover.refreshed(next)
			m.cache.drop(next.ID)
			if !next.rotated { // otherwise the refresh failed
				m.emit(ctx, Event{
					Kind: SessionRefreshed, Session: next.ID, Subject: next.Subject,
					TokenExpiry: next.Tokens.Expiry, Refreshes: next.refreshes,
				})
			}
			return next, nil
		}
		latest, err := m.load(ctx, next.ticket)
		if err == nil && latest.refreshes < next.refreshes {
			old = latest.sealed
			continue
		}
		if errors.Is(err, ErrNone) && m.cfg.Revoke != nil {
			m.working.Go(func() { m.revokeTokens(context.WithoutCancel(ctx), next) }) // until Config.Revoke returns
		}
		return latest, err
	}
}

// revokeTokens revokes the tokens of a session that has ended.
func (m *Manager) revokeTokens(ctx context.Context, s *Session) {
	if err := m.cfg.Revoke(ctx, s.Tokens); err != nil {
		m.logUnrevoked(ctx, s.ID, err)
	}
}

// logUnrevoked logs that nothing will revoke the tokens of an ended session.
func (m *Manager) logUnrevoked(ctx context.Context, id string, err error) {
	m.log.ErrorContext(ctx, "tokens of an ended session not revoked; they stay valid until they expire",
		"session", id, "err", err)
}

// saveRetryInterval is short: until tokens are saved, the end of the process
// loses them, and with them the session.
const saveRetryInterval = 200 * time.Millisecond

// retrySave saves tokens that only this process has, as soon as the store is
// back. The old refresh token may have been rotated. So the refresh is kept
// until the new tokens are saved, and no caller sends the old refresh token
// again.
func (m *Manager) retrySave(ctx context.Context, next *Session) {
	for time.Now().Before(next.ExpiresAt) {
		time.Sleep(saveRetryInterval)
		_, err := m.save(ctx, next)
		if errors.Is(err, ErrStore) {
			continue
		}
		m.log.DebugContext(ctx, "refreshed tokens saved", "session", next.ID, "err", err)
		return
	}
}
