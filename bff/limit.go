package bff

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"sync"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/internal/configerr"
)

// RateLimit bounds how often something may happen: Burst times at once, and
// Rate times a second in the long run.
type RateLimit struct {
	Rate  float64 // a second; at least once an hour
	Burst int     // at most 1000000
}

// Limits bound what clients can make the broker do.
type Limits struct {
	// Connections is how many connections the listeners of Run serve at once.
	// Beyond it, a connection that has not sent a request for a second is
	// closed for a new one. If there is none, the new one is reset. It is also
	// the maximum number of requests in flight in HTTP/2. Zero means half of
	// the file descriptors that are not reserved for other purposes, but no
	// more than one for each 128 KiB of the memory limit (GOMEMLIMIT). The
	// reserve is a quarter of RLIMIT_NOFILE, at most 256.
	Connections int
	// HeaderBytes is the maximum size of a request's header, with the request
	// line. A larger one gets 431, and so does one of more than 1000 fields. It
	// is at least 4096 and at most 1 MiB. Zero means 64 KiB. Reload does not
	// change it. It applies to the listeners of Run.
	HeaderBytes int
	// Logins bounds the logins that one client address starts, silent ones
	// included, and separately its code exchanges that fail. The addresses of
	// an IPv6 /64 network share a limit. A request beyond it gets 429. A zero
	// Rate means 4, a zero Burst 40.
	Logins RateLimit
}

// setDefaults replaces zero values by their defaults. Connections has its own.
func (l *Limits) setDefaults() {
	l.HeaderBytes = cmp.Or(l.HeaderBytes, 64<<10)
	l.Logins.Rate = cmp.Or(l.Logins.Rate, 4)
	l.Logins.Burst = cmp.Or(l.Logins.Burst, 40)
}

// check reports mistakes in limits that have their defaults.
func (l *Limits) check() error {
	var errs []error
	if l.Connections < 0 {
		errs = append(errs, configerr.New("Limits.Connections", l.Connections,
			fmt.Errorf("%d is not a number of connections", l.Connections)))
	}
	if l.HeaderBytes < 4<<10 || l.HeaderBytes > 1<<20 {
		errs = append(errs, configerr.New("Limits.HeaderBytes", l.HeaderBytes,
			fmt.Errorf("%d is not between 4096 and 1048576", l.HeaderBytes)))
	}
	if rate := l.Logins.Rate; math.IsNaN(rate) || math.IsInf(rate, 0) || rate < 0 {
		errs = append(errs, configerr.New("Limits.Logins.Rate", rate,
			fmt.Errorf("%v is not a rate such as 4 a second", rate)))
	} else if rate < 1.0/3600 {
		errs = append(errs, configerr.New("Limits.Logins.Rate", rate,
			fmt.Errorf("%v is less than once an hour", rate)))
	}
	if l.Logins.Burst < 1 || l.Logins.Burst > 1e6 {
		errs = append(errs, configerr.New("Limits.Logins.Burst", l.Logins.Burst,
			fmt.Errorf("%d is not between 1 and 1000000", l.Logins.Burst)))
	}
	return errors.Join(errs...)
}

// refreshLimit is how often a session's tokens may be refreshed by
// POST /bff/session/refresh.
var refreshLimit = RateLimit{Rate: 0.5, Burst: 5}

// maxLimited bounds the memory of a limiter: the number of keys that it knows.
const maxLimited = 1 << 16

// limiter keeps one budget for each key, in the memory of this replica. It
// forgets the keys that were not used for longest when there are too many.
type limiter[K comparable] struct {
	interval time.Duration // in which a budget grows by one
	most     time.Duration // Burst intervals

	mu sync.Mutex // guards all below
	// When each key's budget is full again. A key that is in neither map has a
	// full budget. When recent has half of maxLimited keys it becomes older.
	recent, older map[K]time.Time
}

func newLimiter[K comparable](limit RateLimit) *limiter[K] {
	interval := time.Duration(max(1, float64(time.Second)/limit.Rate))
	return &limiter[K]{interval: interval, most: time.Duration(limit.Burst) * interval, recent: make(map[K]time.Time)}
}

// take spends one of a key's budget. It returns how long to wait before there
// is one again, and spends nothing, if there is none.
func (l *limiter[K]) take(key K) (wait time.Duration) {
	return l.spend(key, l.interval)
}

// check is take, but spends nothing in either case.
func (l *limiter[K]) check(key K) (wait time.Duration) {
	return l.spend(key, 0)
}

// giveBack returns what take has spent.
func (l *limiter[K]) giveBack(key K) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, known := range []map[K]time.Time{l.recent, l.older} {
		if full, ok := known[key]; ok {
			known[key] = full.Add(-l.interval)
			return
		}
	}
}

func (l *limiter[K]) spend(key K, cost time.Duration) (wait time.Duration) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	full, recent := l.recent[key]
	if !recent {
		full = l.older[key]
	}
	if full.Before(now) {
		full = now
	}
	wait = max(0, full.Sub(now)+l.interval-l.most)
	if wait == 0 {
		full = full.Add(cost)
	}
	if !recent && full.After(now) && len(l.recent) >= maxLimited/2 {
		l.recent, l.older = make(map[K]time.Time), l.recent
	}
	if full.After(now) {
		l.recent[key] = full
	}
	return wait
}

// addressKey is what of a client address a budget is kept for: the whole of an
// IPv4 address, in either notation, and the /64 network of an IPv6 address,
// all of which one user may have. Clients without an address share a key.
func addressKey(client string) (key [16]byte) {
	ip, err := netip.ParseAddr(client)
	if err != nil {
		return key
	}
	key = ip.Unmap().As16()
	if !ip.Unmap().Is4() {
		clear(key[8:])
	}
	return key
}

// tooManyRequests is the refusal of a client that has used up a budget.
func tooManyRequests(wait time.Duration, cause string) error {
	return problem.TooManyRequests.WithCause(errors.New(cause)).WithRetryAfter(wait)
}

// tooManyExchanges is the refusal of a client whose code exchanges have failed
// too often.
func tooManyExchanges(wait time.Duration) error {
	return tooManyRequests(wait, "too many code exchanges of the client address have failed (server.limits.logins)")
}

// keepLimiters takes over the budgets of another configuration with the same
// limits: a reload does not fill them.
func (a *app) keepLimiters(before *app) {
	if a.limits.Logins == before.limits.Logins {
		a.logins, a.exchanges = before.logins, before.exchanges
	}
	a.refreshes = before.refreshes
}

// limitLogin spends one of the client's logins.
func (a *app) limitLogin(w *response) error {
	if wait := a.logins.take(addressKey(w.client)); wait > 0 {
		return tooManyRequests(wait, "the client address has used up its logins (server.limits.logins; if "+
			"it is a proxy's, add it to server.trusted_proxies)")
	}
	return nil
}
