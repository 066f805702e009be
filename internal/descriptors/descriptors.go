// Package descriptors keeps some file descriptors of the process free of
// connections, so that the rest of the process works when clients use up all
// that connections may have.
package descriptors

import (
	"fmt"
	"math"
	"sync"
	"syscall"
)

// maxReserve is the maximum number of reserved file descriptors.
const maxReserve = 256

// ForConnections returns how many file descriptors connections may have. It is
// the limit of the process (RLIMIT_NOFILE) minus a reserve of a quarter, at
// most 256. It is math.MaxInt32 on systems without such a limit.
var ForConnections = sync.OnceValue(func() int { return forConnections(limit()) })

func forConnections(limit uint64) int {
	return int(min(limit-min(limit/4, maxReserve), math.MaxInt32))
}

// IsReserved reports whether c has one of the last file descriptors of the
// process. A new connection has the lowest free one, so the others are in use.
// It is false if the file descriptor is unknown.
func IsReserved(c syscall.Conn) bool {
	raw, err := c.SyscallConn()
	return err == nil && isReserved(raw)
}

func isReserved(raw syscall.RawConn) (reserved bool) {
	err := raw.Control(func(fd uintptr) { reserved = fd >= uintptr(ForConnections()) })
	return err == nil && reserved
}

// Control is a net.Dialer.Control. It refuses a connection that would have a
// reserved file descriptor. The error wraps syscall.EMFILE.
func Control(_, _ string, raw syscall.RawConn) error {
	if isReserved(raw) {
		return fmt.Errorf("no file descriptor left for connections (ulimit -n): %w", syscall.EMFILE)
	}
	return nil
}
