package backlog_test

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/backlog"
)

// acceptLater accepts all connections after a while and sends each a byte.
func acceptLater(l net.Listener) {
	time.Sleep(400 * time.Millisecond)
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		c.Write([]byte("x"))
		c.Close()
	}
}

// dial connects and reads the byte of acceptLater.
func dial(addr net.Addr) error {
	c, err := net.DialTimeout(addr.Network(), addr.String(), 20*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = io.ReadFull(c, make([]byte, 1))
	return err
}

// listen returns a listener on a free port.
func listen(t *testing.T) *net.TCPListener {
	t.Helper()
	var c net.ListenConfig
	c.SetMultipathTCP(false)
	l, err := c.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l.(*net.TCPListener)
}

func TestCloseWaitsUntilConnectionsAreAccepted(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "") // shorter than that of t
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for _, address := range [][2]string{
		{"tcp4", "127.0.0.1:0"}, {"tcp6", "[::1]:0"}, {"tcp", ":0"}, {"unix", filepath.Join(dir, "s")},
	} {
		t.Run(address[0], func(t *testing.T) {
			l, err := net.Listen(address[0], address[1])
			if err != nil {
				t.Fatal(err)
			}
			const clients = 30
			results := make(chan error, clients)
			for range clients {
				c, err := net.Dial(l.Addr().Network(), l.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				go func() { // until the connection is closed
					defer c.Close()
					_, err := io.ReadFull(c, make([]byte, 1))
					results <- err
				}()
			}
			go acceptLater(l)
			if err := backlog.Close(l); err != nil {
				t.Error(err)
			}
			for range clients {
				if err := <-results; err != nil {
					t.Errorf("a connection in the backlog: %v", err)
				}
			}
			if _, err := net.Dial(l.Addr().Network(), l.Addr().String()); err == nil {
				t.Error("the listener is open")
			}
		})
	}
}

// Clients that connect while the listener is being closed are refused, and not
// reset: then they know that no server has read a request.
func TestCloseResetsNoConnection(t *testing.T) {
	t.Parallel()
	l := listen(t)
	go acceptLater(l)
	const clients = 50
	results := make(chan error, clients)
	for range clients {
		go func() { // until the listener is closed
			var err error
			for err == nil {
				err = dial(l.Addr())
			}
			results <- err
		}()
	}
	time.Sleep(500 * time.Millisecond)
	if err := backlog.Close(l); err != nil {
		t.Error(err)
	}
	for range clients {
		if err := <-results; !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("got %v, want it refused", err)
		}
	}
}

func TestCloseIgnoresNewConnections(t *testing.T) {
	t.Parallel()
	l := listen(t)
	waiting, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	closed := make(chan error, 1)
	go func() { closed <- backlog.Close(l) }()
	for ignored := false; !ignored; time.Sleep(20 * time.Millisecond) { // the backlog must not become full
		c, err := net.DialTimeout("tcp", l.Addr().String(), 100*time.Millisecond)
		if err == nil { // Close has not begun
			defer c.Close()
			continue
		}
		if ne := (net.Error)(nil); !errors.As(err, &ne) || !ne.Timeout() {
			t.Fatalf("got %v, want no response to a new connection", err)
		}
		ignored = true
	}
	go acceptLater(l)
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(waiting, make([]byte, 1)); err != nil {
		t.Errorf("a connection from before: %v", err)
	}
}

// The listener of another process, such as one that a socket unit of systemd
// has opened, still accepts.
func TestCloseLeavesASharedListenerUsable(t *testing.T) {
	t.Parallel()
	l := listen(t)
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	shared, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	defer shared.Close()
	if err := backlog.Close(l); err != nil {
		t.Error(err)
	}
	go acceptLater(shared)
	if err := dial(l.Addr()); err != nil {
		t.Error(err)
	}
}
