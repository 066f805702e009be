// Package socket reads and writes network connections. It is for the
// connections that a proxy has to clients and upstreams.
package socket

import (
	"io"
	"net"
)

// New returns a reader and writer of c. It does what c does, deadlines and
// errors included, and costs less where it can: on Linux, if c is a
// *net.TCPConn or a *net.UnixConn. Elsewhere it is c itself.
func New(c net.Conn) io.ReadWriter { return newSocket(c) }
