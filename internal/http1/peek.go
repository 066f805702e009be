//go:build unix

package http1

import (
	"net"
	"syscall"
)

// look looks at an idle connection before it is used again: whether the upstream has closed it, or has said something that nobody asked for.
type look struct {
	raw  syscall.RawConn
	read func(fd uintptr) bool // one closure for all looks
	err  error                 // what the last one found
}

func (l *look) at(c net.Conn) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	l.raw = raw
	l.read = func(fd uintptr) bool {
		var b [1]byte
		_, l.err = syscall.Read(int(fd), b[:]) // what it reads is lost with the connection
		return true
	}
}

// quiet says whether the connection is open and nothing has arrived on it.
func (l *look) quiet() bool {
	if l.raw == nil {
		return false
	}
	if err := l.raw.Read(l.read); err != nil {
		return false
	}
	return l.err == syscall.EAGAIN || l.err == syscall.EWOULDBLOCK
}
