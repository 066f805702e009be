//go:build unix

package http1

import (
	"net"
	"syscall"
)

// peek reads from an idle connection without waiting, before it is reused: the
// upstream may have closed it, or sent data.
type peek struct {
	raw  syscall.RawConn       // nil if the connection does not offer it
	read func(fd uintptr) bool // allocated once
	err  error                 // of the last read
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
	p.read = func(fd uintptr) bool {
		var b [1]byte
		_, p.err = syscall.Read(int(fd), b[:]) // a byte that it reads is lost: the connection is closed then
		return true
	}
}

// quiet reports whether the connection is open and has no unread data.
func (p *peek) quiet() bool {
	if p.raw == nil {
		return false
	}
	if err := p.raw.Read(p.read); err != nil {
		return false
	}
	return p.err == syscall.EAGAIN || p.err == syscall.EWOULDBLOCK
}
