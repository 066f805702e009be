// Package usertimeout detects that the other end of a TCP connection has
// vanished without closing it.
package usertimeout

import (
	"syscall"
	"time"
)

// tcpUserTimeout is TCP_USER_TIMEOUT (RFC 5482), which package syscall lacks.
const tcpUserTimeout = 18

// Set has a connection fail whose data, or keep-alive probe, is not
// acknowledged for a time. Without it, a connection with unacknowledged data
// fails after about 15 minutes. It does nothing on other systems than Linux.
func Set(c syscall.RawConn, timeout time.Duration) error {
	var err error
	if cerr := c.Control(func(fd uintptr) {
		err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(timeout.Milliseconds()))
	}); cerr != nil {
		return cerr
	}
	return err
}
