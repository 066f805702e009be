package session

import (
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"time"
)

const (
	// leaseWait is how long a refresh waits for the lease that another replica
	// holds. Callers wait no longer than Config.Wait.
	leaseWait = 45 * time.Second
	// leaseTTL is for how long a replica that dies in the middle of a refresh keeps the others waiting. The lease is renewed while the work
	// lasts, however long that is.
	leaseTTL   = 4 * time.Second
	leaseRenew = leaseTTL / 5
	// leaseLook is how often a replica that waits for another looks by itself: nobody announces that a lease has run out.
	leaseLook = 500 * time.Millisecond
	// leaseGrace is how long nobody takes a lease after the store was away, or may have lost it in a failover: whoever is at work
	// under one that has run out meanwhile is to have it again.
	leaseGrace = 2*leaseRenew + ioGrace
	ioGrace    = 500 * time.Millisecond
)

// lease waits for the right to refresh s, and keeps it until release is called. If another replica refreshes the session meanwhile, it
// returns that session instead.
func (m *Manager) lease(ctx context.Context, s *Session, target string) (release func(), elsewhere *Session, err error) {
	owner, key := rand.Text(), leaseKey(s.ID)
	waiting, cancel := context.WithTimeout(ctx, leaseWait)
	defer cancel()
	began := time.Now()
	changed, stop := m.waking.wait(s.ID)
	defer stop()
	for first := true; ; first = false {
		if !first {
			now, err := m.load(waiting, s.ticket)
			if err != nil {
				return nil, nil, err
			}
			if now.differs(s, target) && m.usable(now, target, time.Now()) {
				return nil, now, nil
			}
		}
		wait := m.leaseGraceLeft(began)
		if wait <= 0 {
			acquired, err := m.cfg.Store.Acquire(waiting, key, owner, leaseTTL)
			if err != nil {
				return nil, nil, storeError("acquire the lease to refresh", err)
			}
			if acquired {
				break
			}
			wait = leaseLook
		}
		select {
		case <-changed:
		case <-time.After(min(wait, leaseLook)):
		case <-waiting.Done():
			return nil, nil, retryLater(errors.New("another replica has been refreshing the session all the time"))
		}
	}
	working, finished := context.WithCancel(ctx)
	var renewing sync.WaitGroup
	renewing.Go(func() { m.renew(working, key, owner, s) }) // until release
	return func() {
		finished()
		renewing.Wait()
		if err := m.cfg.Store.Release(ctx, key, owner); err != nil {
			m.log.WarnContext(ctx, "lease to refresh not released; it ends by itself", "session", s.ID, "in", leaseTTL.String(), "err", err)
		}
	}, nil, nil
}

// renew keeps a lease until ctx ends.
func (m *Manager) renew(ctx context.Context, key, owner string, s *Session) {
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
		if err != nil || !acquired {
			m.log.WarnContext(ctx, "lease to refresh not renewed", "session", s.ID, "taken", err == nil, "err", err)
			pause = leaseRenew / 4
		}
	}
}

// leaseGraceLeft is how long it still is until a flight that began at a moment may take a lease: after the store was away, and while it seems to be.
func (m *Manager) leaseGraceLeft(began time.Time) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	since := m.missedAt
	if m.cache.lost(now) && began.After(since) {
		since = began
	}
	return since.Add(leaseGrace).Sub(now)
}
