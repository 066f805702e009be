package tokenstore

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// maxIdle is how long a connection may be idle. We close it then, before a
	// firewall, load balancer or NAT gateway on the way drops it silently: their
	// idle timeouts are a minute or more.
	maxIdle = 30 * time.Second
	// tryTimeout is how long the first try of an operation takes at most. If there
	// is no response by then, the connection may have been dropped silently, and
	// there is time for another one within opTimeout.
	tryTimeout = 750 * time.Millisecond
)

// keepAlive has the kernel find a dead connection within 30 s, and keeps those
// that are in use for long from being taken for idle on the way.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}

// dial connects to a server. secure is nil without TLS.
func (s *Redis) dial(secure *tls.Config) func(ctx context.Context, network, addr string) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAliveConfig: keepAlive}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		var c net.Conn
		var err error
		if secure == nil {
			c, err = dialer.DialContext(ctx, network, addr)
		} else {
			c, err = (&tls.Dialer{NetDialer: dialer, Config: secure}).DialContext(ctx, network, addr)
		}
		if err != nil {
			return nil, err
		}
		tracked := &conn{Conn: c, suspect: &s.suspect, clock: s.clock}
		tracked.read.Store(s.clock())
		return tracked, nil
	}
}

// clock is the time by which connections are compared: nanoseconds since the
// store was made.
func (s *Redis) clock() int64 { return int64(time.Since(s.made)) }

// conn is a connection that knows when it was last read from. The pool checks
// each idle connection by its syscall.Conn before it is used.
type conn struct {
	net.Conn
	read    atomic.Int64  // Redis.clock of the last read
	suspect *atomic.Int64 // Redis.suspect
	clock   func() int64
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.read.Store(c.clock())
	}
	return n, err
}

var errSuspect = errors.New("the connection was idle when another one was found dead")

// SyscallConn returns an error for a connection that was last read from before
// another one was found dead. So the pool drops it.
func (c *conn) SyscallConn() (syscall.RawConn, error) {
	if c.read.Load() < c.suspect.Load() {
		return nil, errSuspect
	}
	if raw, ok := c.Conn.(syscall.Conn); ok {
		return raw.SyscallConn()
	}
	return uncheckedConn{}, nil // TLS: what there is to read says nothing
}

// uncheckedConn is a syscall.RawConn that does nothing.
type uncheckedConn struct{}

func (uncheckedConn) Control(func(fd uintptr)) error    { return nil }
func (uncheckedConn) Read(func(fd uintptr) bool) error  { return nil }
func (uncheckedConn) Write(func(fd uintptr) bool) error { return nil }

// do performs one operation. If its connection fails, or does not respond in
// time, it is tried once more on a connection that is known to work, or on a
// new one. Writes too: each of them can be made twice (see session.Store).
func (s *Redis) do(ctx context.Context, op func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	began := s.clock()
	try, endTry := context.WithTimeout(ctx, tryTimeout)
	err := op(try)
	endTry()
	switch {
	case ctx.Err() != nil:
		return explain(err)
	case connectionFailed(err):
		s.suspectBefore(began)
	case s.password != nil && redis.IsAuthError(err): // it may have been replaced after it was read
	default:
		return explain(err)
	}
	return explain(op(ctx))
}

// suspectBefore has the pool drop the connections that were last read from
// before a moment.
func (s *Redis) suspectBefore(moment int64) {
	for {
		old := s.suspect.Load()
		if old >= moment || s.suspect.CompareAndSwap(old, moment) {
			return
		}
	}
}

// connectionFailed reports whether an error says nothing but that a connection
// was of no use. That none can be made is another error.
func connectionFailed(err error) bool {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" && !op.Timeout() {
		return false
	}
	return isTimeout(err) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
