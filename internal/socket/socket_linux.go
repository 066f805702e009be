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
type socket struct{ in, out direction }

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

func newSocket(c net.Conn) io.ReadWriter {
	var raw syscall.RawConn
	var err error
	switch c := c.(type) {
	case *net.TCPConn:
		raw, err = c.SyscallConn()
	case *net.UnixConn:
		raw, err = c.SyscallConn()
	}
	if raw == nil || err != nil {
		return c
	}
	s := new(socket)
	s.in.conn, s.in.name, s.in.call, s.in.wait = c, "read", syscall.SYS_READ, raw.Read
	s.out.conn, s.out.name, s.out.call, s.out.wait = c, "write", syscall.SYS_WRITE, raw.Write
	s.in.try, s.out.try = s.in.tryRead, s.out.tryWrite
	return s
}

// Read is io.Reader.
func (s *socket) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return s.in.conn.Read(p)
	}
	n, err := s.in.move(p)
	if n == 0 && err == nil {
		err = io.EOF
	}
	return n, err
}

// Write is io.Writer.
func (s *socket) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return s.out.conn.Write(p)
	}
	n, err := s.out.move(p)
	if n < len(p) && err == nil {
		err = io.ErrShortWrite
	}
	return n, err
}

// move waits until something was read into p, or until all of it was written.
func (d *direction) move(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.p, d.done, d.errno = p, 0, 0
	err := d.wait(d.try)
	d.p = nil
	if d.errno != 0 {
		err = os.NewSyscallError(d.name, d.errno)
	}
	if err != nil {
		if op := (*net.OpError)(nil); errors.As(err, &op) {
			err = op.Err // its operation is raw-read or raw-write
		}
		local, remote := d.conn.LocalAddr(), d.conn.RemoteAddr()
		err = &net.OpError{Op: d.name, Net: local.Network(), Source: local, Addr: remote, Err: err}
	}
	return d.done, err
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
	rest = rest[:min(len(rest), maxCall)]
	if raceEnabled && d.call == syscall.SYS_WRITE {
		syscall.Write(int(fd), nil)
	}
	for {
		at, length := unsafe.Pointer(unsafe.SliceData(rest)), uintptr(len(rest))
		moved, _, errno := syscall.RawSyscall(d.call, fd, uintptr(at), length)
		switch errno {
		case 0:
			if raceEnabled && d.call == syscall.SYS_READ {
				syscall.Read(int(fd), nil)
			}
			d.done += int(moved)
			return int(moved), true
		case syscall.EINTR:
		case syscall.EAGAIN:
			return 0, false
		default:
			d.errno = errno
			return 0, true
		}
	}
}
