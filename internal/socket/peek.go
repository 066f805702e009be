//go:build unix

package socket

import (
	"net"
	"syscall"
)

// newPeek returns nil if c is not a socket.
func newPeek(c net.Conn) func() error {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	return func() (err error) {
		// RawConn.Read would fail after a deadline.
		closed := raw.Control(func(fd uintptr) {
			var b [1]byte
			_, _, err = syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK)
		})
		if closed != nil {
			return closed
		}
		return err
	}
}

// wouldWait reports whether err says that there is nothing to read yet.
func wouldWait(err error) bool { return err == syscall.EAGAIN || err == syscall.EWOULDBLOCK }
