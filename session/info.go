package session

import (
	"context"
	"crypto/cipher"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// Info is what the store reveals of a session without the session's ticket.
type Info struct {
	ID        string    // Session.ID
	CreatedAt time.Time // zero: unknown
	// LastSeenAt is the last activity that was recorded (see Manager.Touch).
	// Zero means unknown. LastSeenAt is inaccurate if Config.IdleTimeout has
	// changed since the activity.
	LastSeenAt time.Time
	// IdleExpiresAt is when the session ends if Manager.Touch is not called
	// again.
	IdleExpiresAt time.Time
	// ExpiresAt is the absolute end as it was at the start of the session. Zero
	// means unknown. Of a session that a release without such records started,
	// ExpiresAt is CreatedAt plus Config.MaxLifetime, although the provider may
	// have set an earlier end.
	ExpiresAt time.Time
	Device    string // New.Device; empty: unknown
}

// The info of a session is a second record under "info:". A replica reads it
// without the session's ticket, for lists of a user's sessions. It is sealed
// under a session key alone, bound to the App and to Session.ID. It begins like
// a session's record (see recordVersion), with infoVersion in octet 0. The
// plaintext is the JSON of infoRecord. The plaintext is never changed, so a
// later release can add members. The rules of recordVersion hold for other
// changes.
//
// The value does not say when the session was last seen. Its time to live does:
// each Touch sets the time to live to infoTTL. So a session has a last activity
// also when its own record cannot live longer. A session of a release without
// this record has no device, and nothing else is missing.
const infoVersion = 1

// maxDevice is how many bytes of New.Device are kept.
const maxDevice = 64

// infoRecord is the info of a session as it is stored.
type infoRecord struct {
	CreatedAt int64  `json:"b"` // Unix milliseconds
	ExpiresAt int64  `json:"e"` // milliseconds after CreatedAt
	Device    string `json:"v,omitempty"`
}

func infoKey(id string) string { return "info:" + id }

// infoTTL is the time to live of the info after an activity. The info is
// written shortly before or after the session's record, and must not expire
// earlier.
func (m *Manager) infoTTL() time.Duration { return m.cfg.idleTimeout() + time.Minute }

// writeInfo writes the info of a session that is about to start.
func (m *Manager) writeInfo(ctx context.Context, s *Session, device string) error {
	if len(device) > maxDevice {
		device = strings.ToValidUTF8(device[:maxDevice], "")
	}
	sealed, err := m.ring.current()[0].sealInfo(s.ID, infoRecord{
		CreatedAt: s.CreatedAt.UnixMilli(), ExpiresAt: s.limit.Sub(s.CreatedAt).Milliseconds(), Device: device,
	})
	if err != nil {
		return err
	}
	if _, err := m.cfg.Store.Create(ctx, infoKey(s.ID), sealed, m.infoTTL()); err != nil {
		return storeError("create info", err)
	}
	return nil
}

// readInfo returns the info of a session, and when the session was last seen.
// Both are zero if there is no info that can be read. lastSeen is also zero if
// it is not known: Config.IdleTimeout has changed since.
func (m *Manager) readInfo(ctx context.Context, id string) (rec infoRecord, lastSeen time.Time, err error) {
	sealed, ttl, found, err := m.cfg.Store.Get(ctx, infoKey(id))
	if err != nil {
		return infoRecord{}, time.Time{}, storeError("read info", err)
	}
	if !found {
		return infoRecord{}, time.Time{}, nil
	}
	if rec, err = m.ring.openInfo(id, sealed); err != nil {
		m.log.DebugContext(ctx, "info of a session does not open", "session", id, "err", err)
		return infoRecord{}, time.Time{}, nil
	}
	if ttl <= m.infoTTL() {
		lastSeen = time.Now().Add(ttl - m.infoTTL())
	}
	return rec, lastSeen, nil
}

// touchInfo records activity. A failure does no harm: the activity is recorded
// with the next one.
func (m *Manager) touchInfo(ctx context.Context, id string) {
	if _, err := m.cfg.Store.Touch(ctx, infoKey(id), m.infoTTL()); err != nil {
		m.log.DebugContext(ctx, "last activity of a session not recorded", "session", id, "err", err)
	}
}

// resealInfo re-encrypts the info of a session under the primary key.
func (m *Manager) resealInfo(ctx context.Context, id string) error {
	sealed, _, found, err := m.cfg.Store.Get(ctx, infoKey(id))
	if err != nil || !found || m.ring.sealedWithPrimary(sealed) {
		return err
	}
	rec, err := m.ring.openInfo(id, sealed)
	if err != nil {
		return nil // no key opens it any more
	}
	next, err := m.ring.current()[0].sealInfo(id, rec)
	if err != nil {
		return err
	}
	_, err = m.cfg.Store.Replace(ctx, infoKey(id), sealed, next)
	return err
}

// sealInfo returns the info of the session with an ID, encrypted under k.
func (k serverKey) sealInfo(id string, rec infoRecord) ([]byte, error) {
	plain, err := json.Marshal(rec)
	if err != nil {
		return nil, fmt.Errorf("seal info: %w", err)
	}
	header := append([]byte{infoVersion}, k.id[:]...)
	return k.infoAEAD().Seal(header, nil, plain, k.associated(infoVersion, id)), nil
}

// openInfo is the reverse of serverKey.sealInfo.
func (r *Keyring) openInfo(id string, sealed []byte) (rec infoRecord, err error) {
	if len(sealed) < recordHeader || sealed[0] != infoVersion {
		return infoRecord{}, errors.New("open info: not one of this version")
	}
	k, ok := r.keyOf(sealed)
	if !ok {
		return infoRecord{}, fmt.Errorf("open info: %w", errKeyRemoved)
	}
	plain, err := k.infoAEAD().Open(nil, nil, sealed[recordHeader:], k.associated(infoVersion, id))
	if err == nil {
		err = json.Unmarshal(plain, &rec)
	}
	if err != nil {
		return infoRecord{}, fmt.Errorf("open info: %w", err)
	}
	return rec, nil
}

// infoAEAD returns the cipher of infos, whose key depends on k alone.
func (k serverKey) infoAEAD() cipher.AEAD {
	return newAEAD(derive(k.secret, nil, "session info", 32))
}

// Info returns what the store reveals of the session with an ID. found is false
// if there is no such session. The error wraps ErrStore if the store failed.
func (m *Manager) Info(ctx context.Context, id string) (i Info, found bool, err error) {
	_, ttl, found, err := m.sealed(ctx, id)
	if err != nil || !found {
		return Info{}, false, err
	}
	i = Info{ID: id, IdleExpiresAt: time.Now().Add(ttl)}
	return i, true, m.addInfo(ctx, &i)
}

// addInfo adds to i what the info of the session says.
func (m *Manager) addInfo(ctx context.Context, i *Info) error {
	rec, lastSeen, err := m.readInfo(ctx, i.ID)
	if err != nil || rec.CreatedAt == 0 {
		return err
	}
	i.CreatedAt = time.UnixMilli(rec.CreatedAt)
	i.ExpiresAt = time.UnixMilli(rec.CreatedAt + rec.ExpiresAt)
	i.Device = rec.Device
	if !lastSeen.IsZero() {
		// A replica of a release without such records touches the record only.
		i.LastSeenAt = latest(latest(lastSeen, i.LastSeenAt), i.CreatedAt)
	}
	return nil
}

// info returns what is known of a session whose record has a time to live,
// without its info. The last activity is calculated from the idle timeout, and
// not known if IdleExpiresAt may be the absolute end.
func (m *Manager) info(l listedSession, now time.Time, ttl time.Duration) Info {
	i := Info{ID: l.id, CreatedAt: l.created, IdleExpiresAt: now.Add(ttl), ExpiresAt: m.latestEnd(l)}
	seen := i.IdleExpiresAt.Add(-m.cfg.idleTimeout())
	if i.IdleExpiresAt.Before(i.ExpiresAt.Add(-time.Second)) && !seen.After(now) {
		i.LastSeenAt = latest(seen, i.CreatedAt)
	}
	return i
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// lastSeen limits how often this replica records the activity of a session
// whose record it does not touch.
type lastSeen struct {
	mu sync.Mutex           // guards at
	at map[string]time.Time // :: Session.ID → when its activity was last recorded
}

// due reports whether the last activity was recorded at least an interval ago,
// and then counts now as recorded.
func (l *lastSeen) due(id string, now time.Time, interval time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if at, ok := l.at[id]; ok && now.Sub(at) < interval {
		return false
	}
	if l.at == nil || len(l.at) >= maxSessionSet {
		l.at = make(map[string]time.Time) // sessions in use are added again soon
	}
	l.at[strings.Clone(id)] = now
	return true
}
