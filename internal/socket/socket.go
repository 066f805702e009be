// Package socket reads and writes network connections. It is for those that
// calls wait for: to clients, upstreams, Redis and the provider.
package socket

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
)

// Conn reads and writes a connection. If Quiet or a write finds that the peer
// has reset it, reads return that error too. Linux returns it only once, and
// then a read would find the end.
type Conn interface {
	io.ReadWriter

	// Quiet reports whether the connection is open and has no unread data. It
	// does not wait. known is false if it cannot tell.
	Quiet() (quiet, known bool)

	// RoundTrip writes a request to a quiet connection, waits, and reads the
	// first bytes of the response into p. If it cannot write all without
	// waiting, it returns the rest, and reads nothing. If the connection is not
	// known to be quiet, it writes nothing and returns ErrNotQuiet.
	RoundTrip(request, p []byte) (n int, rest []byte, err error)
}

// ErrNotQuiet reports that a connection is closed or has unread data. In HTTP
// it is no longer of use: unread data could be taken for the next response.
var ErrNotQuiet = errors.New("the connection was closed or has unread data")

// New returns a Conn of c. It does what c does, deadlines and errors included,
// and costs less where it can: on Linux, if c is a *net.TCPConn or a
// *net.UnixConn.
func New(c net.Conn) Conn {
	if fast := newSocket(c); fast != nil {
		return fast
	}
	return &plain{Conn: c, peek: newPeek(c)}
}

// NetConn returns c with the reads and writes of New(c).
func NetConn(c net.Conn) net.Conn { return netConn{c, New(c)} }

type netConn struct {
	net.Conn
	rw Conn
}

func (c netConn) Read(p []byte) (int, error)  { return c.rw.Read(p) }
func (c netConn) Write(p []byte) (int, error) { return c.rw.Write(p) }

// plain is a Conn of any connection.
type plain struct {
	net.Conn
	peek func() error          // peeks at a byte without waiting; nil: it cannot
	lost atomic.Pointer[error] // what Quiet or a write has found; nil: nothing
}

func (c *plain) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if lost := c.lost.Load(); lost != nil && err == io.EOF {
		err = *lost
	}
	return n, err
}

func (c *plain) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if errors.Is(err, syscall.ECONNRESET) {
		c.lost.Store(&err)
	}
	return n, err
}

func (c *plain) Quiet() (quiet, known bool) {
	if c.peek == nil {
		return false, false
	}
	err := c.peek()
	if err != nil && !wouldWait(err) {
		c.lost.Store(&err)
	}
	return wouldWait(err), true
}

// RoundTrip writes nothing, since Write may wait.
func (c *plain) RoundTrip(request, _ []byte) (n int, rest []byte, err error) {
	if quiet, _ := c.Quiet(); !quiet {
		return 0, nil, ErrNotQuiet
	}
	return 0, request, nil
}
