//go:build !386

package socket

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"unsafe"
)

// socket reads and writes with syscall.RawSyscall. With syscall.Syscall, the
// runtime expects that a call may take long. If it takes 20 microseconds, which
// is often due to other processes, the runtime has another thread go on with
// the other goroutines, and looks for such calls again and again. A call on a
// socket of package net never waits, so that is wasted.
type socket struct {
	in, out direction
	raw     syscall.RawConn
	look    func(fd uintptr)      // sets quiet and lost; allocated once
	trip    func(fd uintptr) bool // tryRoundTrip; allocated once

	mu    sync.Mutex // guards quiet and lost
	quiet bool
	lost  syscall.Errno // what Quiet or a write has found; 0: nothing

	// Guarded by the mutex of in:
	request []byte // nil: it was sent
	sent    int    // bytes of request, or -1: the connection was not quiet
}

// direction is what a socket has for reads, or for writes.
type direction struct {
	conn net.Conn
	name string                               // read or write
	call uintptr                              // the number of the system call
	wait func(ready func(uintptr) bool) error // of syscall.RawConn
	try  func(fd uintptr) bool                // allocated once

	mu    sync.Mutex // guards all below
	p     []byte
	done  int // bytes of p
	errno syscall.Errno
}

// maxCall is the most that one call moves. The garbage collector may have to
// wait for a call.
const maxCall = 128 << 10

// newSocket returns nil if c cannot have a socket.
func newSocket(c net.Conn) Conn {
	var raw syscall.RawConn
	var err error
	switch c := c.(type) {
	case *net.TCPConn:
		raw, err = c.SyscallConn()
	case *net.UnixConn:
		raw, err = c.SyscallConn()
	}
	if raw == nil || err != nil {
		return nil
	}
	s := &socket{raw: raw}
	s.in.conn, s.in.name, s.in.call, s.in.wait = c, "read", syscall.SYS_READ, raw.Read
	s.out.conn, s.out.name, s.out.call, s.out.wait = c, "write", syscall.SYS_WRITE, raw.Write
	s.in.try, s.out.try = s.in.tryRead, s.out.tryWrite
	s.look = func(fd uintptr) {
		errno := peek(fd)
		s.quiet = errno == syscall.EAGAIN
		if errno != 0 && !s.quiet {
			s.lost = errno
		}
	}
	s.trip = s.tryRoundTrip
	return s
}

// Read is io.Reader.
func (s *socket) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return s.in.conn.Read(p)
	}
	return s.atEnd(s.in.move(p))
}

// atEnd adds lost or io.EOF if nothing was read.
func (s *socket) atEnd(n int, err error) (int, error) {
	if n > 0 || err != nil {
		return n, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost != 0 {
		return 0, s.in.opError(os.NewSyscallError(s.in.name, s.lost))
	}
	return 0, io.EOF
}

// Write is io.Writer.
func (s *socket) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return s.out.conn.Write(p)
	}
	n, err := s.out.move(p)
	switch {
	case n < len(p) && err == nil:
		err = io.ErrShortWrite
	case errors.Is(err, syscall.ECONNRESET):
		s.mu.Lock()
		s.lost = syscall.ECONNRESET
		s.mu.Unlock()
	}
	return n, err
}

// Quiet is that of Conn.
func (s *socket) Quiet() (quiet, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.quiet = false
	err := s.raw.Control(s.look) // RawConn.Read would fail after a deadline
	return s.quiet && err == nil, true
}

// RoundTrip is that of Conn. It saves the read that finds nothing: RawConn.Read
// resets what the runtime knows of the connection, then calls tryRoundTrip,
// which writes the request, and the runtime learns of the response in any case.
// No other goroutine may write.
func (s *socket) RoundTrip(request, p []byte) (n int, rest []byte, err error) {
	s.in.mu.Lock()
	s.request, s.sent = request, 0
	n, err = s.in.moveWith(s.trip, p)
	s.request = nil
	sent := s.sent
	s.in.mu.Unlock()
	switch {
	case err != nil || sent == len(request):
		n, err = s.atEnd(n, err)
		return n, nil, err
	case sent < 0:
		return 0, nil, ErrNotQuiet
	}
	return 0, request[sent:], nil
}

// tryRoundTrip writes the request when it is called first, and reports whether
// that is all it can do. Later it is tryRead.
func (s *socket) tryRoundTrip(fd uintptr) bool {
	request := s.request
	if request == nil {
		return s.in.tryRead(fd)
	}
	s.request = nil
	if peek(fd) != syscall.EAGAIN {
		s.sent = -1
		return true
	}
	s.sent, _ = transfer(syscall.SYS_WRITE, fd, request[:min(len(request), maxCall)], 0) // Write gets the error again
	return s.sent < len(request)
}

// peek looks for a byte without waiting. The result is EAGAIN if the socket is
// open and has no unread data.
func peek(fd uintptr) syscall.Errno {
	var b [1]byte
	_, errno := transfer(syscall.SYS_RECVFROM, fd, b[:], syscall.MSG_PEEK)
	return errno
}

// move waits until something was read into p, or until all of it was written.
func (d *direction) move(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.moveWith(d.try, p)
}

// moveWith is move with another function than d.try. d.mu must be locked.
func (d *direction) moveWith(try func(fd uintptr) bool, p []byte) (int, error) {
	d.p, d.done, d.errno = p, 0, 0
	err := d.wait(try)
	d.p = nil
	if d.errno != 0 {
		err = os.NewSyscallError(d.name, d.errno)
	}
	if err != nil {
		if op := (*net.OpError)(nil); errors.As(err, &op) {
			err = op.Err // its operation is raw-read or raw-write
		}
		err = d.opError(err)
	}
	return d.done, err
}

// opError is err as package net returns it.
func (d *direction) opError(err error) error {
	local, remote := d.conn.LocalAddr(), d.conn.RemoteAddr()
	return &net.OpError{Op: d.name, Net: local.Network(), Source: local, Addr: remote, Err: err}
}

// tryRead reports whether there was something to read.
func (d *direction) tryRead(fd uintptr) bool {
	_, ok := d.attempt(fd)
	return ok
}

// tryWrite reports whether all was written.
func (d *direction) tryWrite(fd uintptr) bool {
	for d.done < len(d.p) {
		if n, ok := d.attempt(fd); n == 0 {
			return ok
		}
	}
	return true
}

// attempt makes one system call. It returns false if that would have to wait.
func (d *direction) attempt(fd uintptr) (n int, ok bool) {
	rest := d.p[d.done:]
	n, errno := transfer(d.call, fd, rest[:min(len(rest), maxCall)], 0)
	d.done += n
	if errno == syscall.EAGAIN {
		return 0, false
	}
	d.errno = errno
	return n, true
}

// transfer makes a system call that reads into p or writes p, until it is not
// interrupted.
func transfer(call, fd uintptr, p []byte, flags uintptr) (int, syscall.Errno) {
	if raceEnabled && call == syscall.SYS_WRITE {
		syscall.Write(-1, nil) // on fd it could find a reset
	}
	for {
		at, length := unsafe.Pointer(unsafe.SliceData(p)), uintptr(len(p))
		n, _, errno := syscall.RawSyscall6(call, fd, uintptr(at), length, flags, 0, 0)
		switch errno {
		case 0:
			if raceEnabled && call == syscall.SYS_READ {
				syscall.Read(int(fd), nil)
			}
			return int(n), 0
		case syscall.EINTR:
		default:
			return 0, errno
		}
	}
}
