package bff

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
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/http1"
)

// upstream is the servers of a route.
type upstream struct {
	addresses []*address
	retry     bool
	plain     bool // all of them are spoken to by our own client, which is done with a request's header when it has an answer
	next      atomic.Uint32
}

// headers are empty ones. To make one for each request would be a tenth of all that the broker allocates.
var headers = sync.Pool{New: func() any { return make(http.Header, 32) }}

// newHeader returns an empty header for a request, freeHeader takes it back, or nil.
func (u *upstream) newHeader() http.Header {
	if u.plain {
		return headers.Get().(http.Header)
	}
	return make(http.Header)
}

func (u *upstream) freeHeader(h http.Header) {
	if u.plain && h != nil {
		clear(h)
		headers.Put(h)
	}
}

// close closes the connections that are not in use.
func (u *upstream) close() {
	for _, a := range u.addresses {
		a.close()
	}
}

// address is one server of an upstream.
type address struct {
	url       *url.URL // scheme and host as http.Transport wants them, and what goes before a request's path
	host      string   // of the Host header
	transport http.RoundTripper
	upgrades  http.RoundTripper // for WebSockets, which HTTP/2 has not
	dialer    *net.Dialer
	close     func() // idle connections

	busy      atomic.Int64 // requests under way
	failed    atomic.Int32 // how often in a row
	downUntil atomic.Int64 // Unix nanoseconds; it is not asked before

	proofNonce atomic.Pointer[string] // for the next DPoP proof
}

// nonce returns what the next DPoP proof for the address has to have; empty: nothing (RFC 9449 9).
func (a *address) nonce() string {
	if n := a.proofNonce.Load(); n != nil {
		return *n
	}
	return ""
}

func (a *address) learnNonce(h http.Header) {
	if nonce := nonceOf(h); nonce != "" {
		a.proofNonce.Store(&nonce)
	}
}

const (
	connectTimeout = 10 * time.Second
	headerTimeout  = time.Minute
	// An address that fails is left alone for a while, which doubles with each failure in a row.
	minDown, maxDown = time.Second, 30 * time.Second
)

func newUpstream(r Route) (*upstream, error) {
	if len(r.Upstream) == 0 {
		return nil, errors.New("missing")
	}
	u := &upstream{retry: !r.NoRetry, plain: true}
	for _, raw := range r.Upstream {
		a, err := newAddress(raw, r)
		if err != nil {
			return nil, err
		}
		u.addresses = append(u.addresses, a)
		_, plain := a.transport.(*http1.Client)
		u.plain = u.plain && plain
	}
	return u, nil
}

func newAddress(raw string, r Route) (*address, error) {
	wrong := fmt.Errorf("%q is not a URL such as http://orders.internal:8080 or unix:/run/orders.sock", raw)
	u, err := url.Parse(raw)
	if err != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.User != nil || u.Opaque != "" {
		return nil, wrong
	}
	dialer := &net.Dialer{Timeout: cmp.Or(r.Timeouts.Connect, connectTimeout), KeepAlive: 30 * time.Second}
	network, at := "tcp", u.Host
	switch u.Scheme {
	case "http", "https", "h2c":
		if u.Hostname() == "" || u.Path != "" && checkPath(u.EscapedPath()) != nil {
			return nil, wrong
		}
		if u.Port() == "" {
			at = net.JoinHostPort(u.Hostname(), map[string]string{"http": "80", "https": "443", "h2c": "80"}[u.Scheme])
		}
		if ip, err := netip.ParseAddr(u.Hostname()); err != nil || !linkLocal(ip) {
			dialer.Control = refuseLinkLocal
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
	a := &address{url: u, host: u.Host, dialer: dialer}
	dial := func(ctx context.Context) (net.Conn, error) {
		c, err := dialer.DialContext(ctx, network, at)
		if err != nil {
			return nil, &dialError{err}
		}
		return c, nil
	}
	header := cmp.Or(r.Timeouts.ResponseHeader, headerTimeout)
	http2 := &http.Transport{
		DialContext:           func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		ResponseHeaderTimeout: header,
		TLSClientConfig:       r.TLS.Clone(),
		TLSHandshakeTimeout:   dialer.Timeout,
		IdleConnTimeout:       time.Minute,
		ExpectContinueTimeout: time.Second,
		DisableCompression:    true, // what the upstream sends is what the browser gets
		Protocols:             new(http.Protocols),
	}
	switch u.Scheme {
	case "h2c":
		http2.Protocols.SetUnencryptedHTTP2(true)
		u.Scheme = "http"
		plain := &http1.Client{Dial: dial, HeaderTimeout: header}
		a.transport, a.upgrades = http2Transport{http2}, plain
		a.close = func() { plain.CloseIdle(); http2.CloseIdleConnections() }
	case "https":
		http2.Protocols.SetHTTP2(true)
		s := &secureTransport{cfg: cmp.Or(r.TLS, new(tls.Config)).Clone(), dial: dial, timeout: dialer.Timeout, http2: http2Transport{http2}}
		s.cfg.ServerName = cmp.Or(s.cfg.ServerName, u.Hostname())
		s.http1 = &http1.Client{Dial: func(ctx context.Context) (net.Conn, error) { return s.connect(ctx, "http/1.1") }, HeaderTimeout: header}
		a.transport, a.upgrades = s, s.http1
		a.close = func() { s.http1.CloseIdle(); http2.CloseIdleConnections() }
	default:
		plain := &http1.Client{Dial: dial, HeaderTimeout: header}
		a.transport, a.upgrades, a.close = plain, plain, plain.CloseIdle
	}
	return a, nil
}

// http2Transport is http.Transport, which does not tell how a connection ended, only that there is no answer.
type http2Transport struct{ *http.Transport }

func (t http2Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.Transport.RoundTrip(req)
	var timeout net.Error
	if err != nil && !(errors.As(err, &timeout) && timeout.Timeout()) {
		err = fmt.Errorf("%w: %w", http1.ErrDied, err)
	}
	return resp, err
}

// secureTransport speaks HTTP/2 with a server that offers it, and HTTP/1.1 with the others. Which it is it finds out with a connection of its own, and again
// after one that could not be made.
type secureTransport struct {
	cfg     *tls.Config
	dial    func(ctx context.Context) (net.Conn, error)
	timeout time.Duration // of a handshake
	http1   *http1.Client
	http2   http2Transport

	offers atomic.Pointer[string] // what the server has chosen; nil: not known
}

func (s *secureTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	offers := s.offers.Load()
	if offers == nil {
		c, err := s.connect(req.Context(), "h2", "http/1.1")
		if err != nil {
			return nil, err
		}
		offers = new(c.(*tls.Conn).ConnectionState().NegotiatedProtocol)
		s.offers.Store(offers)
		c.Close()
	}
	var resp *http.Response
	var err error
	if *offers == "h2" {
		resp, err = s.http2.RoundTrip(req)
	} else {
		resp, err = s.http1.RoundTrip(req)
	}
	if err != nil && req.Context().Err() == nil {
		s.offers.Store(nil)
	}
	return resp, err
}

// connect makes a connection on which the server has chosen one of the protocols.
func (s *secureTransport) connect(ctx context.Context, protocols ...string) (net.Conn, error) {
	raw, err := s.dial(ctx)
	if err != nil {
		return nil, err
	}
	cfg := s.cfg.Clone()
	cfg.NextProtos = protocols
	c := tls.Client(raw, cfg)
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, &dialError{fmt.Errorf("TLS: %w", err)}
	}
	return c, nil
}

// dialError says that a connection could not be made: nothing has been sent.
type dialError struct{ error }

func (e *dialError) Unwrap() error { return e.error }

// refuseLinkLocal refuses what a name must not lead to: the addresses at which clouds give credentials to whoever asks. An upstream that is there has to be
// written as an address.
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

// pick returns the address with the least to do of those that are up and are not tried already.
func (u *upstream) pick(tried *address) *address {
	if len(u.addresses) == 1 {
		return u.addresses[0]
	}
	now := time.Now().UnixNano()
	var best *address
	from := int(u.next.Add(1))
	for i := range u.addresses {
		a := u.addresses[(from+i)%len(u.addresses)]
		if a != tried && a.downUntil.Load() <= now && (best == nil || a.busy.Load() < best.busy.Load()) {
			best = a
		}
	}
	return best
}

// up and down say how an address did.
func (a *address) up() {
	if a.failed.Load() != 0 {
		a.failed.Store(0)
		a.downUntil.Store(0)
	}
}

func (a *address) down() {
	pause := min(minDown<<min(a.failed.Add(1)-1, 10), maxDown)
	a.downUntil.Store(time.Now().Add(pause).UnixNano())
}

// send makes a request of one of the addresses. It asks another one if no connection could be made, and asks once more if the connection ended
// before an answer and nobody is harmed by doing it twice (RFC 9110 9.2.2). aim sets in a request what depends on the address. The
// answer's address is busy until done is called.
func (u *upstream) send(req *http.Request, body *requestBody, aim func(*http.Request, *address) error) (resp *http.Response, a *address, err error) {
	if a = u.pick(nil); a == nil {
		return nil, nil, errUpstreamsDown
	}
	for asked, repeated := 1, !u.retry; ; asked++ {
		if asked > 1 {
			req = req.WithContext(req.Context()) // what sent it before may still look at it
		}
		if err := aim(req, a); err != nil {
			return nil, nil, err
		}
		var again bool
		if req.Body, again = body.reader(); !again {
			return nil, nil, err // of the try before: the first one has a reader
		}
		if resp, err = a.roundTrip(req); err == nil {
			return resp, a, nil
		}
		if req.Context().Err() != nil || body.err() != nil {
			return nil, nil, err
		}
		a.down()
		undialled := (*dialError)(nil)
		switch {
		case errors.As(err, &undialled) && asked < len(u.addresses): // nothing was sent
		case !repeated && errors.Is(err, http1.ErrDied) && idempotent(req.Method):
			repeated = true
		default:
			return nil, nil, err
		}
		if other := u.pick(a); other != nil {
			a = other
		} else if undialled != nil {
			return nil, nil, err
		}
	}
}

// idempotent lists the methods of RFC 9110 9.2.2, and that of RFC 10008.
func idempotent(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "PUT", "DELETE", "QUERY":
		return true
	}
	return false
}

func (a *address) roundTrip(req *http.Request) (*http.Response, error) {
	transport := a.transport
	if len(req.Header["Upgrade"]) > 0 {
		transport = a.upgrades
	}
	a.busy.Add(1)
	resp, err := transport.RoundTrip(req)
	if err != nil {
		a.done()
		return nil, err
	}
	a.up()
	return resp, nil
}

// done says that an exchange with the address is over.
func (a *address) done() { a.busy.Add(-1) }
