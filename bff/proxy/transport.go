package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/http1"
	"github.com/cloakroom-bff/cloakroom/internal/http2frame"
	"github.com/cloakroom-bff/cloakroom/internal/monotonic"
)

// transport sends requests to one address. RoundTrip is that of http1.Client,
// also in HTTP/2. CloseIdle is called when the address is not used any more.
type transport interface {
	RoundTrip(req *http.Request, fields *http1.Fields, fresh bool) (*http.Response, error)
	CloseIdle()
}

// dialFunc makes a connection.
type dialFunc func(ctx context.Context) (net.Conn, error)

// maxConnAge is how old a connection to an upstream is when it takes its last
// request. Whatever balances connections can then move the load.
const maxConnAge = time.Minute

// http2Transport sends requests in HTTP/2. It repeats those that the server has
// refused or left out before it closed (RFC 9113 8.7), if their body can be
// read again. connect returns a connection on which HTTP/2 can begin.
type http2Transport struct {
	connect       dialFunc
	headerTimeout time.Duration

	current atomic.Pointer[http2Pool]
}

// http2Pool holds the connections that are not too old for new requests.
type http2Pool struct {
	*http.Transport
	until time.Time
}

// pool returns the pool for a new request. A pool that is too old finishes what
// it has begun; its connections close when they have been idle for a while.
func (t *http2Transport) pool() *http2Pool {
	old, now := t.current.Load(), time.Now()
	if old != nil && now.Before(old.until) {
		return old
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		c, err := t.connect(ctx)
		if err != nil {
			return nil, err
		}
		return newCheckedConn(c), nil
	}
	next := &http2Pool{until: now.Add(maxConnAge), Transport: &http.Transport{
		DialContext:           dial,
		DialTLSContext:        dial, // connect has shaken hands; to http.Transport the connection is plain
		Protocols:             new(http.Protocols),
		HTTP2:                 &http.HTTP2Config{WriteByteTimeout: 30 * time.Second},
		ResponseHeaderTimeout: t.headerTimeout,
		// As in HTTP/1.1.
		MaxResponseHeaderBytes: http1.MaxResponseHead,
		IdleConnTimeout:        time.Minute,
		ExpectContinueTimeout:  time.Second,
		DisableCompression:     true, // what the upstream sends is what the browser gets
	}}
	next.Protocols.SetUnencryptedHTTP2(true)
	if !t.current.CompareAndSwap(old, next) {
		return t.current.Load()
	}
	if old != nil {
		old.CloseIdleConnections()
	}
	return next
}

func (t *http2Transport) CloseIdle() {
	if p := t.current.Load(); p != nil {
		p.CloseIdleConnections()
	}
}

// RoundTrip sends a request. It ignores fresh: a connection that was found dead
// is closed.
func (t *http2Transport) RoundTrip(req *http.Request, fields *http1.Fields, _ bool) (*http.Response, error) {
	if err := http1.CheckRequest(req, fields); err != nil {
		return nil, err
	}
	header, err := fields.Header()
	if err != nil {
		return nil, err
	}
	if _, ok := header["User-Agent"]; !ok {
		header["User-Agent"] = nil // http.Transport would send its own
	}
	fresh := false
	ctx := httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) { fresh = !info.Reused },
		WroteRequest: func(info httptrace.WroteRequestInfo) {
			if body, ok := req.Body.(*bodyReader); ok && info.Err == nil {
				body.upload.Stop() // http.Transport closes it only when the response is over
			}
		},
	})
	out := req.WithContext(ctx)
	out.Header = header
	resp, err := t.pool().RoundTrip(out)
	var timeout net.Error
	switch {
	case err == nil:
		if resp.ContentLength < 0 { // http.Transport has ignored it, and net/http would send two different ones
			delete(resp.Header, "Content-Length")
		}
		return resp, nil
	case errors.As(err, new(*dialError)), errors.Is(err, errOtherProtocol):
		return nil, err
	case errors.As(err, &timeout) && timeout.Timeout():
		return nil, &http1.Error{Fresh: fresh, Err: err}
	}
	// http.Transport does not tell how a connection ended, only that there is
	// no response.
	return nil, &http1.Error{Fresh: fresh, Err: fmt.Errorf("%w: %w", http1.ErrConnClosed, err)}
}

const (
	// pingAfter is how long a request waits for any sign of life of an HTTP/2
	// connection before a PING is sent, pingTimeout how long for its
	// acknowledgment.
	pingAfter   = 2 * time.Second
	pingTimeout = 2 * time.Second
)

// checkedConn is an HTTP/2 connection that is closed if its peer is gone: when
// something was written and nothing comes back, it sends a PING (RFC 9113 6.7).
//
// http.Transport can send PINGs too, but sends them whenever nothing arrives.
// Servers take PINGs on a stream that is quiet for long as an attack, gRPC's
// the third and Tomcat's the eleventh, and close the connection. Here there is
// at most one PING after each thing that was written.
type checkedConn struct {
	net.Conn
	read atomic.Int64 // when something arrived, as monotonic.Now says

	writing sync.Mutex         // held during each write; a PING goes between two frames
	frames  http2frame.Scanner // guarded by writing

	mu    sync.Mutex // guards all below
	timer *time.Timer
	armed bool  // check is to be called
	wrote int64 // when the first of what was written since the last read was
	ping  int64 // when the last PING was sent
}

func newCheckedConn(c net.Conn) *checkedConn {
	cc := &checkedConn{Conn: c, frames: http2frame.Scanner{Preface: http2frame.PrefaceLength}}
	cc.timer = time.AfterFunc(time.Hour, cc.check) // stopped by Close
	cc.timer.Stop()
	return cc
}

func (c *checkedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.read.Store(monotonic.Now())
	}
	return n, err
}

func (c *checkedConn) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.mu.Lock()
	if c.wrote <= c.read.Load() {
		c.wrote = monotonic.Now()
	}
	if !c.armed {
		c.armed = true
		c.timer.Reset(pingAfter)
	}
	c.mu.Unlock()
	n, err := c.Conn.Write(p)
	c.frames.Scan(p[:n])
	return n, err
}

func (c *checkedConn) Close() error {
	c.mu.Lock()
	c.timer.Stop()
	c.armed = true // nothing starts it again
	c.mu.Unlock()
	return c.Conn.Close()
}

// check runs while nothing may have arrived since the last write.
func (c *checkedConn) check() {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, read := monotonic.Now(), c.read.Load()
	if read >= c.wrote {
		c.armed = false
		return
	}
	if c.ping > read {
		go c.Conn.Close() // the transport notices; with TLS it may take a while
		return
	}
	wait := time.Duration(c.wrote + int64(pingAfter) - now)
	if wait <= 0 {
		if wait = pingAfter; c.sendPing() {
			c.ping, wait = now, pingTimeout
		}
	}
	c.timer.Reset(wait)
}

// sendPing reports whether it sent a PING. It does not while something else is
// being written, which http.Transport bounds in time.
func (c *checkedConn) sendPing() bool {
	if !c.writing.TryLock() {
		return false
	}
	defer c.writing.Unlock()
	if !c.frames.Between() {
		return false
	}
	c.Conn.SetWriteDeadline(time.Now().Add(pingTimeout))
	defer c.Conn.SetWriteDeadline(time.Time{})
	c.Conn.Write([]byte("\x00\x00\x08\x06\x00\x00\x00\x00\x00cloakrm!")) // if that fails, no acknowledgment arrives
	return true
}

// secureTransport speaks HTTP/2 with a server that offers it, and HTTP/1.1 with
// the others. Which it is each handshake shows, and is remembered.
type secureTransport struct {
	dial    dialFunc
	timeout time.Duration // of a handshake
	either  *tls.Config   // offers both protocols
	http1   *http1.Client
	http2   *http2Transport

	protocol atomic.Pointer[string] // what the server chose last; nil: not known
}

// newSecureTransport returns a transport, and another one for WebSockets, which
// HTTP/2 has not. cfg may have a session cache.
func newSecureTransport(dial dialFunc, cfg *tls.Config, timeout, headerTimeout time.Duration) (
	s *secureTransport, upgrades *http1.Client,
) {
	s = &secureTransport{dial: dial, timeout: timeout, either: cfg.Clone()}
	s.either.NextProtos = []string{"h2", "http/1.1"}
	s.http1 = &http1.Client{
		Dial:          func(ctx context.Context) (net.Conn, error) { return s.connectFor(ctx, false) },
		HeaderTimeout: headerTimeout,
		MaxAge:        maxConnAge,
	}
	s.http2 = &http2Transport{
		connect:       func(ctx context.Context) (net.Conn, error) { return s.connectFor(ctx, true) },
		headerTimeout: headerTimeout,
	}
	plain := cfg.Clone()
	plain.NextProtos = []string{"http/1.1"}
	return s, &http1.Client{
		Dial:          func(ctx context.Context) (net.Conn, error) { return s.connect(ctx, plain) },
		HeaderTimeout: headerTimeout,
	}
}

func (s *secureTransport) CloseIdle() {
	s.http1.CloseIdle()
	s.http2.CloseIdle()
}

func (s *secureTransport) RoundTrip(
	req *http.Request, fields *http1.Fields, fresh bool,
) (*http.Response, error) {
	protocol := s.protocol.Load()
	if protocol == nil {
		if err := http1.CheckRequest(req, fields); err != nil {
			return nil, err
		}
		c, err := s.connect(req.Context(), s.either)
		if err != nil {
			return nil, err
		}
		first := new(firstConn)
		first.Store(c)
		defer first.close() // if it was not needed
		req = req.WithContext(context.WithValue(req.Context(), firstConnKey{}, first))
		protocol = s.protocol.Load()
	}
	resp, err := s.of(*protocol).RoundTrip(req, fields, fresh)
	if !errors.Is(err, errOtherProtocol) { // since the last handshake; nothing has been sent
		return resp, err
	}
	if req.Body != nil && req.Body != http.NoBody && req.GetBody != nil { // http.Transport may have taken another one
		again := *req
		if again.Body, err = req.GetBody(); err != nil {
			return nil, err
		}
		req = &again
	}
	return s.of(*s.protocol.Load()).RoundTrip(req, fields, fresh)
}

// of returns the transport for a protocol.
func (s *secureTransport) of(protocol string) transport {
	if protocol == "h2" {
		return s.http2
	}
	return s.http1
}

// errOtherProtocol reports that a server has chosen another protocol than
// before.
var errOtherProtocol = errors.New("the server has changed its protocol")

// connectFor returns a connection for HTTP/2, or for HTTP/1.1.
func (s *secureTransport) connectFor(ctx context.Context, http2 bool) (net.Conn, error) {
	if first, ok := ctx.Value(firstConnKey{}).(*firstConn); ok {
		if c := first.Swap(nil); c != nil {
			return c, nil
		}
	}
	c, err := s.connect(ctx, s.either)
	if err != nil {
		return nil, err
	}
	if (c.ConnectionState().NegotiatedProtocol == "h2") != http2 {
		c.Close()
		return nil, errOtherProtocol
	}
	return c, nil
}

// connect returns a connection that has shaken hands.
func (s *secureTransport) connect(ctx context.Context, cfg *tls.Config) (*tls.Conn, error) {
	raw, err := s.dial(ctx)
	if err != nil {
		return nil, err
	}
	c := tls.Client(raw, cfg)
	shaking, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	if err := c.HandshakeContext(shaking); err != nil {
		raw.Close()
		advice := ""
		if errors.As(err, new(x509.UnknownAuthorityError)) {
			advice = " (put the CA of the upstream's certificate into upstream_tls.ca_file)"
		}
		return nil, &dialError{fmt.Errorf("TLS: %w%s", err, advice)}
	}
	if cfg == s.either {
		s.protocol.Store(new(c.ConnectionState().NegotiatedProtocol))
	}
	return c, nil
}

// firstConn is the connection that has shown what a server speaks, for the
// request that had to know.
type firstConn struct{ atomic.Pointer[tls.Conn] }

type firstConnKey struct{}

func (f *firstConn) close() {
	if c := f.Swap(nil); c != nil {
		c.Close()
	}
}
