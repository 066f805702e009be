package session

import (
	"context"
	"maps"
	"time"
)

// ExpireTokens makes the access tokens of s look expired, so that the next call
// of Fresh refreshes them. It is for tools of developers. The error is ErrNone
// if the session has ended, or wraps ErrStore. If another write wins, such as
// that of a refresh, nothing changes.
func (m *Manager) ExpireTokens(ctx context.Context, s *Session) error {
	latest, err := m.load(ctx, s.ticket)
	if err != nil {
		return err
	}
	past := time.Now().Add(-time.Second)
	next := *latest
	next.Tokens.Expiry = past
	next.Tokens.Others = maps.Clone(latest.Tokens.Others) // the session that was read shares the map
	for target, other := range next.Tokens.Others {
		other.Expiry = past
		next.Tokens.Others[target] = other
	}
	if next.sealed, err = m.sealRefreshed(ctx, latest, &next); err != nil {
		return err
	}
	if _, err = m.cfg.Store.Replace(ctx, recordKey(s.ID), latest.sealed, next.sealed); err != nil {
		return storeError("expire tokens", err)
	}
	m.cache.drop(s.ID)
	return nil
}
