package bff

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
)

const (
	// storeCheck is the interval at which a store is checked in an outage.
	// Otherwise it is checked every idleChecks intervals, so that an outage is
	// logged also while there are no requests.
	storeCheck = time.Second
	idleChecks = 5
	// storeTimeout is the maximum duration of a check.
	storeTimeout = 5 * time.Second
	// probeSize is the size of what a check writes, in bytes: about that of a
	// session. On a full disk there can be space for less.
	probeSize = 4 << 10
)

// storeOutage logs the beginning and the end of an outage of the store, each
// once: failed calls are too many to be logged one by one.
type storeOutage struct {
	log *slog.Logger

	mu       sync.Mutex // guards all below
	since    time.Time  // when the outage began; zero: there is none
	failedAt time.Time  // when the last call failed
	err      error      // of the last call that failed
}

// failed records a call that failed with err.
func (o *storeOutage) failed(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.failedAt, o.err = time.Now(), err
	if o.since.IsZero() {
		o.since = o.failedAt
		o.log.Error("store unavailable; sessions are kept", "since", o.since.UTC(), "err", err)
	}
}

// watch checks a store, which calls failed, until ctx ends.
func (o *storeOutage) watch(ctx context.Context, store session.Store) {
	for n := 0; ; n++ {
		if down := o.down(); down || n%idleChecks == 0 {
			o.check(ctx, store, down)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(storeCheck):
		}
	}
}

// down reports whether there is an outage.
func (o *storeOutage) down() bool { return o.current() != nil }

// current returns the error of the last call that failed in an outage, or nil.
func (o *storeOutage) current() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.since.IsZero() {
		return nil
	}
	return o.err
}

// check makes a call. In an outage the call writes a record, because reads may
// succeed while writes fail, and leases may be elsewhere than records. A record
// that exists would not be written, so each has another key. The outage ends
// with a write that succeeds if no other call has failed for a while.
func (o *storeOutage) check(ctx context.Context, store session.Store, down bool) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	var err error
	if down {
		_, err = store.Create(ctx, "probe:"+rand.Text(), make([]byte, probeSize), storeCheck)
	} else {
		_, _, _, err = store.Get(ctx, "probe")
	}
	if errors.Is(err, context.DeadlineExceeded) {
		o.failed(err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if down && err == nil && !o.since.IsZero() && time.Since(o.failedAt) > storeCheck {
		o.log.Warn("store recovered", "after", time.Since(o.since).Round(time.Millisecond).String())
		o.since = time.Time{}
	}
}
