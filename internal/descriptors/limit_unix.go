//go:build unix

package descriptors

import (
	"math"
	"syscall"
)

// limit returns the limit of the process. Go raises it to the hard limit at
// start.
func limit() uint64 {
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil {
		return math.MaxInt32
	}
	return uint64(r.Cur)
}
