package descriptors

import (
	"errors"
	"math"
	"net"
	"syscall"
	"testing"
)

func TestAQuarterIsReservedAtMost256(t *testing.T) {
	t.Parallel()
	for limit, want := range map[uint64]int{
		64: 48, 256: 192, 1024: 768, 4096: 3840, 1 << 20: 1<<20 - 256, math.MaxUint64: math.MaxInt32,
	} {
		if got := forConnections(limit); got != want {
			t.Errorf("of %d: got %d, want %d", limit, got, want)
		}
	}
}

func TestLastDescriptorsAreReserved(t *testing.T) {
	t.Parallel()
	for fd, want := range map[uintptr]bool{
		3: false, uintptr(ForConnections() - 1): false, uintptr(ForConnections()): true,
	} {
		if got := IsReserved(conn(fd)); got != want {
			t.Errorf("%d: got %t, want %t", fd, got, want)
		}
		if got := errors.Is(Control("", "", conn(fd)), syscall.EMFILE); got != want {
			t.Errorf("%d: refused: got %t, want %t", fd, got, want)
		}
	}
}

func TestClosedConnectionsAreNotReserved(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if IsReserved(l.(*net.TCPListener)) {
		t.Error("got true, want false")
	}
}

// conn is a connection with a file descriptor.
type conn uintptr

func (c conn) SyscallConn() (syscall.RawConn, error) { return c, nil }
func (c conn) Control(f func(uintptr)) error         { f(uintptr(c)); return nil }
func (c conn) Read(func(uintptr) bool) error         { return nil }
func (c conn) Write(func(uintptr) bool) error        { return nil }
