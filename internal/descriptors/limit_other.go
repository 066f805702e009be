//go:build !unix

package descriptors

import "math"

// limit returns a number that is never reached: there is no limit here.
func limit() uint64 { return math.MaxInt32 }
