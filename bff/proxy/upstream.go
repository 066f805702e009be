package proxy

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/net/idna"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/internal/dpop"
	"github.com/cloakroom-bff/cloakroom/internal/http1"
	"github.com/cloakroom-bff/cloakroom/internal/urlpath"
)

// serverSet is the servers of an upstream.
type serverSet struct {
	servers []*server
	retry   bool
	plain   bool // all use http1.Client, which is done with a request's header when there is a response
	next    atomic.Uint32
}

// headers holds empty headers. To make one for each request would be a tenth of all
// allocations.
var headers = sync.Pool{New: func() any { return make(http.Header, 32) }}

// newHeader returns an empty header for a request.
func (u *serverSet) newHeader() http.Header {
	if u.plain {
		return headers.Get().(http.Header)
	}
	return make(http.Header)
}

// freeHeader returns a header of newHeader to the pool. It ignores nil.
func (u *serverSet) freeHeader(h http.Header) {
	if u.plain && h != nil {
		clear(h)
		headers.Put(h)
	}
}

// close closes the connections that are not in use.
func (u *serverSet) close() {
	for _, s := range u.servers {
		for _, a := range s.current(time.Now()) {
			a.close()
		}
	}
}

// server is one of the URLs of an upstream.
type server struct {
	url    *url.URL // scheme and host as http.Transport wants them, and what goes before a request's path
	host   string   // of the Host header
	dialer *net.Dialer
	// newAddress makes the address at which the server is: host:port, or the path of a socket.
	newAddress func(at string) *address

	name  string // to be looked up; empty: the server has one address
	port  uint16
	group *Group // for its resolver

	addresses atomic.Pointer[[]*address] // nil: the name has not been resolved yet
	resolveAt atomic.Int64               // Unix nanoseconds
	resolving chan struct{}              // holds something while resolve runs
	resolved  time.Time                  // guarded by resolving

	proofNonce atomic.Pointer[string] // for the next DPoP proof
}

// nonce returns the nonce for the next DPoP proof (RFC 9449, section 9), or an empty
// string.
func (s *server) nonce() string {
	if n := s.proofNonce.Load(); n != nil {
		return *n
	}
	return ""
}

// learnNonce stores the nonce of a response, if it has one.
func (s *server) learnNonce(h http.Header) {
	if nonce := dpop.NonceOf(h); nonce != "" {
		s.proofNonce.Store(&nonce)
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
	retryAt atomic.Int64 // Unix nanoseconds; 0: it has not failed
	suspect atomic.Bool  // there are failures below
	retired atomic.Bool  // its name does not lead to it any more

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
	// A failed address is left alone for a while, which doubles with each failure
	// in a row. It is short, so that recovery is noticed soon.
	minDown, maxDown = time.Second, 5 * time.Second
	// An address has failed when so many different requests have, in a row.
	maxFailing = 3
)

func newServerSet(u Upstream, g *Group) (*serverSet, error) {
	if len(u.URLs) == 0 {
		return nil, errors.New("missing")
	}
	set := &serverSet{retry: !u.NoRetry, plain: true}
	for _, raw := range u.URLs {
		s, err := newServer(raw, u, g)
		if err != nil {
			return nil, err
		}
		set.servers = append(set.servers, s)
		set.plain = set.plain && s.url.Scheme == "http" && !strings.HasPrefix(raw, "h2c:")
	}
	return set, nil
}

func newServer(raw string, cfg Upstream, g *Group) (*server, error) {
	wrong := fmt.Errorf("%q is not a URL such as http://orders.internal:8080 or unix:/run/orders.sock", raw)
	u, err := url.Parse(raw)
	if err != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.User != nil || u.Opaque != "" {
		return nil, wrong
	}
	s := &server{
		dialer:    &net.Dialer{Timeout: cmp.Or(cfg.Timeouts.Connect, connectTimeout), KeepAlive: 30 * time.Second},
		group:     g,
		resolving: make(chan struct{}, 1),
	}
	network, at, speaks := "tcp", "", u.Scheme
	switch u.Scheme {
	case "http", "https", "h2c":
		if u.Hostname() == "" || u.Path != "" && urlpath.Check(u.EscapedPath()) != nil {
			return nil, wrong
		}
		if !isASCII(u.Host) { // it is looked up as its A-label
			ascii, err := idna.Lookup.ToASCII(u.Hostname())
			if err != nil {
				return nil, fmt.Errorf("%q: %w", raw, err)
			}
			u.Host = strings.Replace(u.Host, u.Hostname(), ascii, 1)
		}
		port := cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443", "h2c": "80"}[u.Scheme])
		at = net.JoinHostPort(u.Hostname(), port)
		ip, err := netip.ParseAddr(u.Hostname())
		if err != nil || !linkLocal(ip) {
			s.dialer.Control = refuseLinkLocal
		}
		if err != nil {
			n, err := strconv.ParseUint(port, 10, 16)
			if err != nil {
				return nil, wrong
			}
			s.name, s.port = u.Hostname(), uint16(n)
		}
	case "unix":
		if u.Host != "" || !strings.HasPrefix(u.Path, "/") {
			return nil, wrong
		}
		network, at = "unix", u.Path
		u = &url.URL{Scheme: "http", Host: "localhost"}
	default:
		return nil, wrong
	}
	s.url, s.host = u, u.Host
	if speaks == "h2c" {
		u.Scheme = "http"
	}
	secure := cmp.Or(cfg.TLS, new(tls.Config)).Clone()
	secure.ServerName = cmp.Or(secure.ServerName, u.Hostname())
	// A session stays with the CAs and the certificate that it began with. So the
	// cache is this server's alone, and there is none if the certificate may change.
	if secure.ClientSessionCache == nil && secure.GetClientCertificate == nil {
		secure.ClientSessionCache = tls.NewLRUClientSessionCache(0)
	}
	header := cmp.Or(cfg.Timeouts.ResponseHeader, headerTimeout)
	s.newAddress = func(at string) *address {
		a := &address{server: s, at: at}
		a.dial = func(ctx context.Context) (net.Conn, error) {
			c, err := s.dialer.DialContext(ctx, network, at)
			if err != nil {
				return nil, &dialError{err}
			}
			return c, nil
		}
		switch plain := (&http1.Client{Dial: a.dial, HeaderTimeout: header, MaxAge: maxConnAge}); speaks {
		case "https":
			a.transport, a.upgrades = newSecureTransport(a.dial, secure, s.dialer.Timeout, header)
		case "h2c":
			a.transport, a.upgrades = &http2Transport{connect: a.dial, headerTimeout: header}, plain
		default:
			a.transport, a.upgrades = plain, plain
		}
		return a
	}
	if s.name == "" {
		s.addresses.Store(&[]*address{s.newAddress(at)})
	}
	return s, nil
}

// dialError means that no connection could be made: nothing was sent.
type dialError struct{ error }

func (e *dialError) Unwrap() error { return e.error }

// refuseLinkLocal refuses the addresses at which clouds give credentials to every
// caller. A name must not lead to them; an upstream that is there has to be configured as
// an address.
func refuseLinkLocal(_, addr string, _ syscall.RawConn) error {
	if at, err := netip.ParseAddrPort(addr); err != nil || linkLocal(at.Addr()) {
		return fmt.Errorf("the upstream's name leads to the link-local address %s", addr)
	}
	return nil
}

func linkLocal(ip netip.Addr) bool {
	ip = ip.Unmap()
	return ip.IsLinkLocalUnicast() || ip.IsMulticast() || ip.IsUnspecified() || ip.WithZone("") == ec2Metadata
}

var ec2Metadata = netip.MustParseAddr("fd00:ec2::254")

// selectAddress returns the address with the fewest requests in flight of those
// that have not been tried. One that has failed is returned only if all have, or
// to find out whether it is back; nil means that all have been tried.
func (u *serverSet) selectAddress(tried []*address) *address {
	now := time.Now()
	if len(u.servers) == 1 && len(tried) == 0 {
		if list := u.servers[0].current(now); len(list) == 1 {
			return list[0]
		}
	}
	const healthy, spare, failed = 0, 1, 2
	var best *address
	var bestRank, bestPlace int
	var bestBusy int64
	n, from := 0, int(u.next.Add(1)&0xffff)
	for _, s := range u.servers {
		n += len(s.current(now))
	}
	i := 0
	for _, s := range u.servers {
		for _, a := range s.current(now) {
			i++
			if slices.Contains(tried, a) {
				continue
			}
			rank := healthy
			if at := a.retryAt.Load(); at != 0 {
				rank = failed
				if at <= now.UnixNano() && a.retry(at) {
					return a
				}
			} else if a.spare.Load() {
				rank = spare
			}
			// Of those that are equal each request begins with another one.
			place, busy := (i+from)%n, a.busy.Load()
			if best == nil || cmp.Or(rank-bestRank, cmp.Compare(busy, bestBusy), place-bestPlace) < 0 {
				best, bestRank, bestBusy, bestPlace = a, rank, busy, place
			}
		}
	}
	return best
}

// retry reports whether a request is to find out if a failed address is back. Where
// no connection could be made that takes no request: it is tried in the background.
// at is what retryAt was.
func (a *address) retry(at int64) bool {
	a.mu.Lock()
	pause, unreachable := a.pause(), a.unreachable
	a.mu.Unlock()
	if !a.retryAt.CompareAndSwap(at, time.Now().Add(pause).UnixNano()) {
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
	a.retryAt.Store(time.Now().Add(a.pause()).UnixNano())
	a.suspect.Store(true)
}

// dialFailed records that no connection could be made.
func (a *address) dialFailed() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.markFailed(true)
}

// requestFailed records that a request has failed on a connection of its own. The
// request may be the reason, so only several different ones mean that the address has
// failed.
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

// send sends a request to one of the addresses, and returns the response and the
// address, which is busy until release is called. A request goes to another address
// if no connection could be made. One whose connection ended before a response is
// sent once more, on a fresh connection, if that does no harm (RFC 9110 9.2.2).
func (u *serverSet) send(x *exchange, req *http.Request, body *requestBody) (*http.Response, *address, error) {
	a, err := u.firstAddress(req.Context())
	if err != nil {
		return nil, nil, err
	}
	began := time.Now()
	var tried []*address // no connection could be made to them
	var undialed error
	for attempt, retried := 0, !u.retry; ; attempt++ {
		if attempt > 0 {
			req = req.WithContext(req.Context()) // the transport may still read it
		}
		if err := x.prepareFor(req, a); err != nil {
			return nil, nil, err
		}
		reader, ok := body.reader()
		if !ok {
			return nil, nil, err // of the attempt before: the first one has a reader
		}
		req.Body, req.GetBody = reader, body.getBody
		var resp *http.Response
		resp, err = a.roundTrip(req, attempt > 0)
		x.record.Upstream, x.record.UpstreamTime = a.at, x.record.UpstreamTime+time.Since(began)
		if err == nil {
			return resp, a, nil
		}
		if req.Context().Err() != nil || body.err() != nil {
			return nil, nil, err
		}
		var failed *http1.Error
		switch {
		case errors.As(err, new(*dialError)):
			a.dialFailed()
			if tried = append(tried, a); undialed != nil {
				err = fmt.Errorf("%w; %w", undialed, err)
			}
			undialed = err
			if a = u.selectAddress(tried); a == nil {
				u.resolve(req.Context()) // the name may have moved
				a = u.selectAddress(tried)
			}
			if a == nil && len(u.servers) > 1 {
				err = problem.UpstreamUnavailable.WithCause(err)
			}
			if a == nil {
				return nil, nil, err
			}
		case errors.As(err, &failed):
			if failed.Fresh {
				a.requestFailed(x.opts.Client + " " + req.Method + " " + req.URL.Path)
			}
			if retried || !errors.Is(err, http1.ErrDied) || !idempotent(req.Method) {
				return nil, nil, err
			}
			retried = true
			if other := u.selectAddress(append(tried, a)); other != nil && other.retryAt.Load() == 0 {
				a = other
			}
		default:
			if errors.Is(err, http1.ErrInvalidRequest) {
				err = problem.BadRequest.WithCause(err)
			}
			return nil, nil, err
		}
	}
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

// idempotent reports whether a method is idempotent (RFC 9110, section 9.2.2; RFC
// 10008).
func idempotent(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "PUT", "DELETE", "QUERY":
		return true
	}
	return false
}

// roundTrip sends a request to the address, on a fresh connection for a retry.
func (a *address) roundTrip(req *http.Request, retry bool) (resp *http.Response, err error) {
	t := a.transport
	if len(req.Header["Upgrade"]) > 0 {
		t = a.upgrades
	}
	a.busy.Add(1)
	if retry {
		resp, err = t.RoundTripFresh(req)
	} else {
		resp, err = t.RoundTrip(req)
	}
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

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(c rune) bool { return c >= utf8.RuneSelf }) < 0
}
