// Package monotonic measures time. Its clock does not jump when the clock of
// the machine is set, as time.Now().UnixNano() does.
package monotonic

import "time"

// Now returns nanoseconds since the process began. It is positive.
func Now() int64 { return max(1, int64(time.Since(began))) }

var began = time.Now()
