//go:build race

package socket

// raceEnabled: for the race detector, what happens before a write to any file
// happens before a read from any file. The calls of package syscall say so,
// those of a socket do not. So a socket makes calls that move nothing.
const raceEnabled = true
