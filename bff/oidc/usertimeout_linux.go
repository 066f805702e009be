package oidc

import (
	"syscall"
	"time"
)

// tcpUserTimeout is TCP_USER_TIMEOUT (RFC 5482), which package syscall lacks.
const tcpUserTimeout = 18

// setUserTimeout has a connection fail whose data is not acknowledged within 30
// seconds. Keep-alive alone notices only those that are idle.
func setUserTimeout(_, _ string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) {
		err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(30*time.Second/time.Millisecond))
	}); cerr != nil {
		return cerr
	}
	return err
}
