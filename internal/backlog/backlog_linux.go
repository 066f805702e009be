// Package backlog closes listeners without losing the connections in their
// backlog.
package backlog

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// handshake is how long a client may take to complete a connection that it
	// has begun: one round trip.
	handshake = 250 * time.Millisecond
	// maxDrain is how long all connections may take to be accepted.
	maxDrain = 5 * time.Second
)

// ignoreNew is a filter that drops the first packet of a new connection: the
// 14th byte of a TCP header has the flag SYN (RFC 9293, section 3.1).
var ignoreNew = []unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 13},
	{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: 0x02, Jt: 0, Jf: 1},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
}

// Close closes a listener of package net after all connections were accepted
// that clients have opened, which another goroutine does. The kernel would
// reset the others, with the requests in them. It only closes other listeners.
//
// For the last 250 milliseconds the kernel ignores new connections, so their
// clients try again after a second (RFC 6298, section 2.1), and are refused
// then, or find the next process. It does not if the listener supports
// Multipath TCP (net.ListenConfig), which has no filters. Then a client may be
// reset that has begun to connect when the listener is closed.
func Close(l net.Listener) error {
	undo := drain(l)
	defer undo()
	return l.Close()
}

// drain waits until all connections were accepted, and ignores new ones. undo
// ends that. It is called when the listener is closed here, because another
// process may have it, too.
func drain(l net.Listener) (undo func()) {
	undo = func() {}
	sc, ok := l.(syscall.Conn)
	if !ok {
		return undo
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return undo
	}
	raw.Control(func(fd uintptr) {
		again, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return
		}
		filter := unix.SockFprog{Len: uint16(len(ignoreNew)), Filter: &ignoreNew[0]}
		unix.SetsockoptSockFprog(again, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &filter) // fails for Multipath TCP
		undo = func() {
			unix.SetsockoptInt(again, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
			unix.Close(again)
		}
	})
	begun := time.Now()
	for empty := false; !empty && time.Since(begun) < maxDrain; {
		time.Sleep(handshake)
		raw.Control(func(fd uintptr) {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			empty = n == 0 && err == nil
		})
	}
	return undo
}
