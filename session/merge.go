package session

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"time"
)

// RefreshResult is what a refresh brought. An empty field means that the provider sent none, and what was there stays.
type RefreshResult struct {
	Tokens Tokens          // Access, Scope, Issued and Expiry are of the target that was asked for; another Key binds them from now on, and makes an end of Others
	Claims json.RawMessage // as Session.Claims is to be

	ExpiresAt time.Time // when the provider ends the session
}

// take puts what a refresh for a target brought into s. What the response does
// not hold stays as it was (RFC 6749 6; OpenID Connect Core 12.2).
func (m *Manager) take(s *Session, r RefreshResult, target string) {
	t, got := &s.Tokens, r.Tokens
	if got.Key != "" && got.Key != t.Key {
		t.Key, t.Others = got.Key, nil
	}
	t.Refresh, t.ID = cmp.Or(got.Refresh, t.Refresh), cmp.Or(got.ID, t.ID)
	s.moveEnd(r)
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

// moveEnd moves ExpiresAt after a refresh. A refresh token that came without an
// end has none that is known. The provider's end of the session is final: a
// later one does not move it back.
func (s *Session) moveEnd(r RefreshResult) {
	if r.Tokens.Refresh != "" || !r.Tokens.RefreshExpiry.IsZero() {
		s.Tokens.RefreshExpiry = r.Tokens.RefreshExpiry
	}
	if !r.ExpiresAt.IsZero() {
		s.limit = earlier(s.limit, r.ExpiresAt)
	}
	s.setEnd()
}

// save puts next in the place of the record it replaces, on condition that it is still there: a session that was ended stays
// ended, and the tokens obtained for it meanwhile are given back.
func (m *Manager) save(ctx context.Context, next *Session) (*Session, error) {
	replaced, err := m.cfg.Store.Replace(ctx, recordKey(next.ID), next.replaces, next.sealed)
	if err != nil {
		return nil, storeError("save refreshed tokens", err)
	}
	if replaced {
		m.journal.replaced(next.ID, next.replaces, next.sealed)
		m.cache.drop(next.ID)
		m.emit(ctx, Event{Kind: SessionRefreshed, Session: next.ID, TokenExpiry: next.Tokens.Expiry})
		return next, nil
	}
	now, err := m.load(ctx, next.ticket) // ours, by a write whose answer was lost, or somebody else's, or none
	if errors.Is(err, ErrNone) && m.cfg.Revoke != nil {
		if err := m.cfg.Revoke(ctx, next.Tokens); err != nil {
			m.log.WarnContext(ctx, "tokens of an ended session not revoked", "session", next.ID, "err", err)
		}
	}
	return now, err
}

// retrySave saves tokens that exist in this process alone, for their predecessors are spent, as soon as the store takes them.
// Meanwhile the session's flight stays known, so that nobody spends the old refresh token again.
func (m *Manager) retrySave(ctx context.Context, next *Session) {
	for time.Now().Before(next.ExpiresAt) {
		time.Sleep(minRetryAfter)
		_, err := m.save(ctx, next)
		if errors.Is(err, ErrStore) {
			continue
		}
		m.log.InfoContext(ctx, "refreshed tokens saved at last", "session", next.ID, "err", err)
		return
	}
}
