//go:build unix

package http1

import (
	"net"
	"syscall"
)

// peek looks at a connection without waiting: the upstream may have closed it,
// or sent data.
type peek struct {
	raw  syscall.RawConn  // nil if the connection does not offer it
	look func(fd uintptr) // allocated once
	err  error            // of the last look
}

func (p *peek) init(c net.Conn) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	p.raw = raw
	p.look = func(fd uintptr) {
		var b [1]byte
		_, _, p.err = syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK)
	}
}

// quiet reports whether the connection is open and has no unread data. If it
// cannot be looked at, it is not quiet.
func (p *peek) quiet() bool {
	if p.raw == nil {
		return false
	}
	// RawConn.Read would fail after a deadline.
	if err := p.raw.Control(p.look); err != nil {
		return false
	}
	return p.err == syscall.EAGAIN || p.err == syscall.EWOULDBLOCK
}

// known reports whether quiet can look at the connection.
func (p *peek) known() bool { return p.raw != nil }
