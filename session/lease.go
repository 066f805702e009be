package session

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// leaseWait is how long a refresh waits for the lease that another replica
	// holds. Callers wait no longer than Config.Wait.
	leaseWait = 45 * time.Second
	// leaseTTL is how long a replica that dies during a refresh delays the
	// others. The lease is renewed while the work lasts, however long that is.
	leaseTTL   = 4 * time.Second
	leaseRenew = leaseTTL / 5
	// leasePoll is the polling interval of a waiting replica. Lease expiry
	// produces no notification.
	leasePoll = 500 * time.Millisecond
	// leaseGrace is how long no replica takes a lease after the store was away,
	// or may have lost leases in a failover. Within leaseGrace the holder of a
	// lease that has expired acquires the lease again.
	leaseGrace = 2*leaseRenew + ioGrace
	ioGrace    = 500 * time.Millisecond
)

// errLeaseGrace means that no lease could be taken because of leaseGrace.
var errLeaseGrace = storeError("acquire the lease to refresh",
	errors.New("its connection for cache invalidation is lost, or was a moment ago; check what closes it"))

// lease acquires the lease to refresh s, and keeps it until release is called.
// If another replica refreshes the session while lease waits, lease returns the
// refreshed session as elsewhere, without acquiring the lease.
func (m *Manager) lease(
	ctx context.Context, s *Session, target string,
) (release func(), elsewhere *Session, err error) {
	owner, key := rand.Text(), leaseKey(s.ID)
	waiting, cancel := context.WithTimeout(ctx, leaseWait)
	defer cancel()
	began := time.Now()
	changed, stop := m.notifier.wait(s.ID)
	defer stop()
	for first := true; ; first = false {
		if !first {
			latest, err := m.load(waiting, s.ticket)
			if err != nil {
				return nil, nil, err
			}
			if latest.tokenChanged(s, target) && m.usable(latest, target, time.Now()) {
				return nil, latest, nil
			}
		}
		wait := m.leaseGraceRemaining(began)
		if wait <= 0 {
			acquired, err := m.cfg.Store.Acquire(waiting, key, owner, leaseTTL)
			if err != nil {
				return nil, nil, storeError("acquire the lease to refresh", err)
			}
			if acquired {
				break
			}
			wait = leasePoll
		}
		select {
		case <-changed:
		case <-time.After(min(wait, leasePoll)):
		case <-waiting.Done():
			if m.leaseGraceRemaining(began) > 0 {
				return nil, nil, errLeaseGrace
			}
			return nil, nil, retryLater(
				fmt.Errorf("another replica held the lease to refresh the session for %v", leaseWait))
		}
	}
	working, finished := context.WithCancel(ctx)
	var renewing sync.WaitGroup
	renewing.Go(func() { m.renewLease(working, key, owner, s) }) // until release
	return func() {
		finished()
		renewing.Wait()
		if err := m.cfg.Store.Release(ctx, key, owner); err != nil {
			m.log.DebugContext(ctx, "lease to refresh not released; it expires",
				"session", s.ID, "in", leaseTTL.String(), "err", err)
		}
	}, nil, nil
}

// renewLease renews a lease until ctx is done.
func (m *Manager) renewLease(ctx context.Context, key, owner string, s *Session) {
	pause := leaseRenew
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		acquired, err := m.cfg.Store.Acquire(ctx, key, owner, leaseTTL)
		if ctx.Err() != nil {
			return
		}
		pause = leaseRenew
		switch {
		case err != nil:
			m.log.DebugContext(ctx, "lease to refresh not renewed", "session", s.ID, "err", err)
			pause = leaseRenew / 4
		case !acquired:
			m.log.WarnContext(ctx, "lease to refresh taken by another replica", "session", s.ID)
			pause = leaseRenew / 4
		}
	}
}

// leaseGraceRemaining returns how much longer a refresh that started at began
// must not take a lease. The wait ends leaseGrace after the store was away, and
// does not end while the store seems to be away.
func (m *Manager) leaseGraceRemaining(began time.Time) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	since := m.missedAt
	if m.cache.invalidated(now) && began.After(since) {
		since = began
	}
	return since.Add(leaseGrace).Sub(now)
}
