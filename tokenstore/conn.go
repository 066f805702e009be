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

	"github.com/cloakroom-bff/cloakroom/internal/socket"
)

const (
	// maxIdle is how long a connection may be idle before it is closed.
	// Firewalls, load balancers and NAT gateways drop idle connections
	// silently, after a minute or more.
	maxIdle = 30 * time.Second
	// tryTimeout limits the first try of an operation. Without a response by
	// then the connection may have been dropped silently, and a retry still
	// fits into opTimeout.
	tryTimeout = 750 * time.Millisecond
)

// keepAlive lets the kernel detect a dead connection within 30 s, and keeps
// connections in use from looking idle to a firewall.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}

// dial returns a dialer. secure is nil without TLS.
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
		tracked := &conn{Conn: c, rw: socket.New(c), suspect: &s.suspect, clock: s.clock}
		tracked.read.Store(s.clock())
		return tracked, nil
	}
}

// clock returns nanoseconds since the store was made.
func (s *Redis) clock() int64 { return int64(time.Since(s.made)) }

// conn records when it was last read from. The pool calls SyscallConn to check
// an idle connection before it is used.
type conn struct {
	net.Conn
	rw      socket.Conn   // of Conn
	read    atomic.Int64  // Redis.clock of the last read
	suspect *atomic.Int64 // Redis.suspect
	clock   func() int64
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.rw.Read(b)
	if n > 0 {
		c.read.Store(c.clock())
	}
	return n, err
}

func (c *conn) Write(b []byte) (int, error) { return c.rw.Write(b) }

var errSuspect = errors.New("connection was idle when another connection was found dead")

// SyscallConn returns an error, on which the pool drops the connection, if it
// was last read from before another connection was found dead.
func (c *conn) SyscallConn() (syscall.RawConn, error) {
	if c.read.Load() < c.suspect.Load() {
		return nil, errSuspect
	}
	if quiet, known := c.rw.Quiet(); quiet && known { // which costs less than the pool's check
		return uncheckedConn{}, nil
	}
	if raw, ok := c.Conn.(syscall.Conn); ok {
		return raw.SyscallConn()
	}
	return uncheckedConn{}, nil // TLS records may be pending on a healthy connection
}

// uncheckedConn is a syscall.RawConn that does nothing.
type uncheckedConn struct{}

func (uncheckedConn) Control(func(fd uintptr)) error    { return nil }
func (uncheckedConn) Read(func(fd uintptr) bool) error  { return nil }
func (uncheckedConn) Write(func(fd uintptr) bool) error { return nil }

// do performs one operation. If its connection fails, or does not respond in
// time, do retries once on another connection that works, or on a new one.
// Writes are retried too: they are idempotent (see session.Store).
func (s *Redis) do(ctx context.Context, op func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	try, endTry := context.WithTimeout(ctx, tryTimeout)
	err := op(try)
	endTry()
	switch {
	case ctx.Err() != nil:
		return withHint(err)
	case connectionFailed(err):
		// Another connection may have been dropped too, also one that worked
		// while this operation waited.
		s.suspectBefore(s.clock())
	case redis.IsAuthError(err) || errors.Is(err, errPassword): // it may be in the process of being replaced
		select {
		case <-ctx.Done():
		case <-time.After(authPause):
		}
	default:
		return withHint(err)
	}
	return withHint(op(ctx))
}

// suspectBefore makes the pool drop connections that were last read from before
// moment.
func (s *Redis) suspectBefore(moment int64) {
	for {
		old := s.suspect.Load()
		if old >= moment || s.suspect.CompareAndSwap(old, moment) {
			return
		}
	}
}

// connectionFailed reports whether err means that an existing connection
// failed. A failure to connect is another error.
func connectionFailed(err error) bool {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" && !op.Timeout() {
		return false
	}
	return isTimeout(err) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.EOF) ||
		errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
