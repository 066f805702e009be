package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/internal/http1"
	"github.com/cloakroom-bff/cloakroom/internal/monotonic"
)

// serverSet is the servers of an upstream.
type serverSet struct {
	servers []*server
	retry   bool
	next    atomic.Uint32
}

// close closes the connections that are not in use.
func (u *serverSet) close() {
	for _, s := range u.servers {
		for _, a := range s.current(monotonic.Now()) {
			a.close()
		}
	}
}

// address is one address of a server.
type address struct {
	*server
	at    string      // host:port, or the path of a socket
	ip    netip.Addr  // of a name
	spare atomic.Bool // it is used only while all that are not spare have failed

	dial      dialFunc
	transport transport
	upgrades  transport // for WebSockets, which HTTP/2 has not

	busy    atomic.Int64 // requests in flight
	retryAt atomic.Int64 // as monotonic.Now says; 0: it has not failed
	suspect atomic.Bool  // there are failures below
	retired atomic.Bool  // its name does not lead to it any more
	used    atomic.Bool  // a connection was made

	mu          sync.Mutex // guards all below
	failures    int        // how often in a row it was marked as failed
	unreachable bool       // the last time because no connection could be made
	failing     []string   // requests that failed in a row on connections of their own
}

func (a *address) close() {
	a.transport.CloseIdle()
	a.upgrades.CloseIdle()
}

const (
	connectTimeout = 10 * time.Second
	headerTimeout  = time.Minute
	// A failed address is left alone for a while, which doubles with each
	// failure in a row. It is short, so that recovery is noticed soon.
	minDown, maxDown = time.Second, 5 * time.Second
	// An address has failed when so many different requests have, in a row.
	maxFailing = 3
	// maxCompared is how many addresses are compared for a request, unless all
	// of these have failed. To compare a thousand would cost 2.6 µs, 6 % of the
	// request.
	maxCompared = 16
)

func newServerSet(u Upstream, g *Group) (*serverSet, error) {
	if len(u.URLs) == 0 {
		return nil, errors.New("missing")
	}
	set := &serverSet{retry: !u.NoRetry}
	for i, raw := range u.URLs {
		s, err := newServer(raw, u, g)
		if err != nil {
			return nil, err
		}
		s.index = i
		set.servers = append(set.servers, s)
	}
	return set, nil
}

// selectAddress returns the address with the fewest requests in flight of those
// that have not been tried, or of some of them if there are many. One that has
// failed is returned only if all have, or to find out whether it is back; nil
// means that all have been tried.
func (u *serverSet) selectAddress(tried []*address) *address {
	now := monotonic.Now()
	all := u.servers[0].current(now)
	for _, s := range u.servers[1:] {
		all = append(all[:len(all):len(all)], s.current(now)...)
	}
	if len(all) == 1 && len(tried) == 0 {
		return all[0]
	}
	if len(all) > maxCompared {
		var some [maxCompared]*address
		for i := range some {
			some[i] = all[rand.IntN(len(all))]
		}
		if a, preferred := selectFrom(some[:], 0, tried, now); preferred {
			return a
		}
	}
	a, _ := selectFrom(all, int(u.next.Add(1)), tried, now)
	return a
}

// selectFrom is selectAddress for some addresses. Of those that are equal it
// returns the first one, counted from an index on. It reports whether that has
// not failed and is not spare, or is to be tried again.
func selectFrom(all []*address, first int, tried []*address, now int64) (best *address, preferred bool) {
	const healthy, spare, failed = 0, 1, 2
	var bestRank int
	var bestBusy int64
	if len(all) == 0 {
		return nil, false
	}
	i := first % len(all)
	for range all {
		a := all[i]
		if i++; i == len(all) {
			i = 0
		}
		if slices.Contains(tried, a) {
			continue
		}
		rank := healthy
		if at := a.retryAt.Load(); at != 0 {
			rank = failed
			if at <= now && a.retry(at) {
				return a, true
			}
		} else if a.spare.Load() {
			rank = spare
		}
		busy := a.busy.Load()
		if best == nil || cmp.Or(rank-bestRank, cmp.Compare(busy, bestBusy)) < 0 {
			best, bestRank, bestBusy = a, rank, busy
		}
	}
	return best, best != nil && bestRank == healthy
}

// retry reports whether a request is to find out if a failed address is back.
// Where no connection could be made that takes no request: it is tried in the
// background. at is what retryAt was.
func (a *address) retry(at int64) bool {
	a.mu.Lock()
	pause, unreachable := a.pause(), a.unreachable
	a.mu.Unlock()
	if !a.retryAt.CompareAndSwap(at, monotonic.Now()+int64(pause)) {
		return false // another request is faster
	}
	if unreachable {
		go a.probe() // ends after the time for a connection attempt
		return false
	}
	return true
}

func (a *address) probe() {
	c, err := a.dial(context.Background())
	if err != nil {
		a.dialFailed()
		return
	}
	c.Close()
	a.markHealthy()
}

// pause returns how long a failed address is left alone. a.mu is held.
func (a *address) pause() time.Duration { return min(minDown<<min(a.failures-1, 10), maxDown) }

// markHealthy records that the address has responded.
func (a *address) markHealthy() {
	if !a.suspect.Load() {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failures, a.unreachable, a.failing = 0, false, nil
	a.retryAt.Store(0)
	a.suspect.Store(false)
}

// markFailed has other addresses tried first. a.mu is held.
func (a *address) markFailed(unreachable bool) {
	a.failures++
	a.unreachable = unreachable
	a.retryAt.Store(monotonic.Now() + int64(a.pause()))
	a.suspect.Store(true)
}

// dialFailed records that no connection could be made.
func (a *address) dialFailed() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.markFailed(true)
}

// requestFailed records that a request has failed on a connection of its own.
// The request may be the reason, so only several different ones mean that the
// address has failed.
func (a *address) requestFailed(request string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.suspect.Store(true)
	if !slices.Contains(a.failing, request) && len(a.failing) < maxFailing {
		a.failing = append(a.failing, request)
	}
	if len(a.failing) == maxFailing && !a.unreachable {
		a.markFailed(false)
	}
}

// send sends a request to one of the addresses, and returns the response and
// the address, which is busy until release is called. A request goes to another
// address if no connection could be made. One whose connection ended before a
// response is sent once more, on a fresh connection, if that does no harm (RFC
// 9110, section 9.2.2).
func (u *serverSet) send(
	x *exchange, req *http.Request, body *requestBody,
) (*http.Response, *address, error) {
	a, err := u.firstAddress(req.Context())
	if err != nil {
		return nil, nil, err
	}
	began, before := time.Now(), x.record.UpstreamTime
	state := attempts{retried: !u.retry}
	for n := 0; ; n++ {
		if n > 0 {
			x.record.Retries++
			req = req.WithContext(req.Context()) // the transport may still read it
		}
		if err := x.prepareFor(req, a); err != nil {
			return nil, nil, err
		}
		reader, ok := body.reader()
		if !ok {
			return nil, nil, err // of the attempt before: the first one has a reader
		}
		if req.Body = reader; body != nil {
			req.GetBody = body.getBody
		}
		var resp *http.Response
		resp, err = a.roundTrip(x, req, n > 0)
		x.record.Upstream, x.record.Server, x.record.UpstreamTime = a.at, a.index, before+time.Since(began)
		if err == nil {
			return resp, a, nil
		}
		if req.Context().Err() != nil || body.err() != nil {
			return nil, nil, err
		}
		if a, err = u.afterFailure(x, req, a, err, &state); a == nil {
			return nil, nil, err
		}
	}
}

// attempts is what send remembers of attempts that failed.
type attempts struct {
	tried    []*address // no connection could be made to them
	undialed error      // why
	retried  bool       // a request was sent and must not be sent once more
}

// afterFailure records that an attempt at a has failed with err, and returns
// the address for the next attempt. If there is to be none, it returns nil and
// the error of the request. With an address, the error is that of the attempt.
func (u *serverSet) afterFailure(
	x *exchange, req *http.Request, a *address, err error, state *attempts,
) (*address, error) {
	var failed *http1.Error
	switch {
	case errors.As(err, new(*dialError)):
		a.dialFailed()
		return u.afterDialError(req.Context(), a, err, state)
	case errors.As(err, &failed):
		if failed.Fresh {
			a.requestFailed(x.opts.Client + " " + req.Method + " " + req.URL.Path)
		}
		if state.retried || !errors.Is(err, http1.ErrConnClosed) || !idempotent(req.Method) {
			return nil, err
		}
		state.retried = true
		other := u.selectAddress(append(state.tried, a))
		if other != nil && other.retryAt.Load() == 0 {
			a = other
		}
		return a, err
	case errors.Is(err, http1.ErrInvalidRequest):
		return nil, problem.BadRequest.WithCause(err)
	}
	return nil, err
}

// afterDialError is afterFailure if no connection could be made to a.
func (u *serverSet) afterDialError(
	ctx context.Context, a *address, err error, state *attempts,
) (*address, error) {
	state.tried = append(state.tried, a)
	if state.undialed != nil {
		err = fmt.Errorf("%w; %w", state.undialed, err)
	}
	state.undialed = err
	next := u.selectAddress(state.tried)
	if next == nil {
		u.resolve(ctx) // the name may have moved
		next = u.selectAddress(state.tried)
	}
	if next == nil && len(u.servers) > 1 {
		err = problem.UpstreamUnavailable.WithCause(err)
	}
	return next, err
}

// firstAddress selects an address for a new request.
func (u *serverSet) firstAddress(ctx context.Context) (*address, error) {
	if a := u.selectAddress(nil); a != nil {
		return a, nil
	}
	err := u.resolve(ctx) // for the first time
	if a := u.selectAddress(nil); a != nil {
		return a, nil
	}
	return nil, err
}

// resolve looks up the names of all servers.
func (u *serverSet) resolve(ctx context.Context) error {
	var errs []error
	for _, s := range u.servers {
		if s.name != "" {
			errs = append(errs, s.resolve(ctx))
		}
	}
	return errors.Join(errs...)
}

// idempotent reports whether a method is idempotent (RFC 9110, section 9.2.2;
// RFC 10008).
func idempotent(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "PUT", "DELETE", "QUERY":
		return true
	}
	return false
}

// roundTrip sends the request of an exchange to the address, on a fresh
// connection for a retry.
func (a *address) roundTrip(x *exchange, req *http.Request, retry bool) (*http.Response, error) {
	t := a.transport
	if isWebSocket(x.r.Header) {
		t = a.upgrades
	}
	a.busy.Add(1)
	resp, err := t.RoundTrip(req, x.fields, retry)
	if err != nil {
		a.release()
		return nil, err
	}
	a.markHealthy()
	return resp, nil
}

// release ends an exchange with the address.
func (a *address) release() {
	if a.busy.Add(-1) == 0 && a.retired.Load() {
		a.close() // an HTTP/2 connection could not be closed while it was in use
	}
}
