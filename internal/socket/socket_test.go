package socket

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

// connect returns both ends of a connection.
func connect(tb testing.TB, network string) (here, there net.Conn) {
	tb.Helper()
	address := map[string]string{"tcp": "127.0.0.1:0", "unix": filepath.Join(tb.TempDir(), "s")}[network]
	l, err := net.Listen(network, address)
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	here, err = net.Dial(network, l.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	there, err = l.Accept()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		here.Close()
		there.Close()
	})
	return here, there
}

// networks are those whose connections New replaces on Linux.
var networks = []string{"tcp", "unix"}

func TestReplacesConnectionsOnLinux(t *testing.T) {
	t.Parallel()
	for _, network := range networks {
		c, _ := connect(t, network)
		if _, isPlain := New(c).(*plain); isPlain == (runtime.GOOS == "linux") {
			t.Errorf("%s: plain %v", network, isPlain)
		}
	}
	c, _ := net.Pipe()
	if _, isPlain := New(c).(*plain); !isPlain {
		t.Error("a pipe is not plain")
	}
}

// Whatever happens to a connection, the results are those of the connection
// itself.
func TestDoesWhatTheConnectionDoes(t *testing.T) {
	t.Parallel()
	const large = 16 << 20
	soon := func() time.Time { return time.Now().Add(50 * time.Millisecond) }
	reset := func(c net.Conn) {
		if tcp, ok := c.(*net.TCPConn); ok {
			tcp.SetLinger(0)
		}
		c.Close()
		time.Sleep(20 * time.Millisecond) // until it has arrived
	}
	for name, do := range map[string]func(rw io.ReadWriter, here, there net.Conn) (int, error){
		"read": func(rw io.ReadWriter, here, there net.Conn) (int, error) {
			io.WriteString(there, "four")
			return rw.Read(make([]byte, large))
		},
		"read later": func(rw io.ReadWriter, here, there net.Conn) (int, error) {
			time.AfterFunc(30*time.Millisecond, func() { io.WriteString(there, "four") })
			return rw.Read(make([]byte, large))
		},
		"read the end": func(rw io.ReadWriter, here, there net.Conn) (int, error) {
			there.Close()
			return rw.Read(make([]byte, large))
		},
		"read nothing": func(rw io.ReadWriter, here, there net.Conn) (int, error) { return rw.Read(nil) },
		"read nothing after a deadline": func(rw io.ReadWriter, here, there net.Conn) (int, error) {
			here.SetReadDeadline(time.Unix(1, 0))
			return rw.Read(nil)
		},
		"read until a deadline": func(rw io.ReadWriter, here, there net.Conn) (int, error) {
			here.SetReadDeadline(soon())
			return rw.Read(make([]byte, large))
		},
		"read after a deadline": func(rw io.ReadWriter, here, there net.Conn) (int, error) {
			here.SetReadDeadline(time.Unix(1, 0))
			return rw.Read(make([]byte, large))
		},
		"read until the close": func(rw io.ReadWriter, here, there net.Conn) (int, error) {
			time.AfterFunc(30*time.Millisecond, func() { here.Close() })
			return rw.Read(make([]byte, large))
		},
		"read after the close": func(rw io.ReadWriter, here, there net.Conn) (int, error) {
			here.Close()
			return rw.Read(make([]byte, large))
		},
		"read after a reset": func(rw io.ReadWriter, here, there net.Conn) (int, error) {
			reset(there)
			return rw.Read(make([]byte, large))
		},
		"write": func(rw io.ReadWriter, here, there net.Conn) (int, error) {
			go io.Copy(io.Discard, there)
			return rw.Write(make([]byte, large))
		},
		"write nothing": func(rw io.ReadWriter, here, there net.Conn) (int, error) { return rw.Write(nil) },
		"write nothing after the end": func(rw io.ReadWriter, here, there net.Conn) (int, error) {
			here.(interface{ CloseWrite() error }).CloseWrite()
			return rw.Write(nil)
		},
		"write after a deadline": func(rw io.ReadWriter, here, there net.Conn) (int, error) {
			here.SetWriteDeadline(time.Unix(1, 0))
			return rw.Write(make([]byte, large))
		},
		"write after the close": func(rw io.ReadWriter, here, there net.Conn) (int, error) {
			here.Close()
			return rw.Write(make([]byte, large))
		},
		"write after a reset": func(rw io.ReadWriter, here, there net.Conn) (int, error) {
			reset(there)
			here.Read(make([]byte, 1)) // takes the error of the reset
			return rw.Write(make([]byte, large))
		},
	} {
		for _, network := range networks {
			t.Run(name+" "+network, func(t *testing.T) {
				t.Parallel()
				here, there := connect(t, network)
				want := result(do(here, here, there))
				here, there = connect(t, network)
				if got := result(do(New(here), here, there)); got != want {
					t.Errorf("got %s, want %s", got, want)
				}
			})
		}
	}
}

var port = regexp.MustCompile(`:\d+|(/\S+)?/\d+/s\b`)

// result describes the result of a call.
func result(n int, err error) string {
	var timeout net.Error
	return fmt.Sprintf("%d, %s (EOF %v, deadline %v, closed %v, timeout %v, reset %v, pipe %v)", n,
		port.ReplaceAllString(fmt.Sprint(err), ""), err == io.EOF, errors.Is(err, os.ErrDeadlineExceeded),
		errors.Is(err, net.ErrClosed), errors.As(err, &timeout) && timeout.Timeout(),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE))
}

// A write to a peer that does not read ends at its deadline, and says how much
// was written.
func TestAWriteEndsAtItsDeadline(t *testing.T) {
	t.Parallel()
	here, there := connect(t, "tcp")
	rw := New(here)
	here.SetWriteDeadline(time.Now().Add(2 * time.Second))
	n, err := rw.Write(make([]byte, 64<<20))
	if !errors.Is(err, os.ErrDeadlineExceeded) || n == 0 {
		t.Fatalf("got %d and %v, want the deadline", n, err)
	}
	here.Close()
	if read, err := io.Copy(io.Discard, there); read != int64(n) || err != nil {
		t.Errorf("the peer has read %d bytes and got %v, want %d", read, err, n)
	}
}

// Everything arrives in order, in both directions at the same time, however the
// peer reads.
func TestMovesEverything(t *testing.T) {
	t.Parallel()
	for _, network := range networks {
		here, there := connect(t, network)
		text := make([]byte, 8<<20)
		seed := rand.NewChaCha8(sha256.Sum256([]byte(network)))
		seed.Read(text)
		ends := [...]io.ReadWriter{New(here), New(there)}
		var moving sync.WaitGroup
		for i, rw := range ends {
			moving.Go(func() {
				if n, err := rw.Write(text); n != len(text) || err != nil {
					t.Errorf("wrote %d and got %v", n, err)
				}
			})
			moving.Go(func() {
				got := make([]byte, 0, len(text))
				for len(got) < len(text) {
					size := 1 + (len(got)*7+i)%(100<<10)
					n, err := rw.Read(got[len(got):min(cap(got), len(got)+size)])
					if err != nil {
						t.Error(err)
						return
					}
					got = got[:len(got)+n]
				}
				if !bytes.Equal(got, text) {
					t.Error("the text has changed")
				}
			})
		}
		moving.Wait()
	}
}

// Writes of several goroutines do not mix.
func TestWritesDoNotMix(t *testing.T) {
	t.Parallel()
	here, there := connect(t, "tcp")
	rw := New(here)
	const size, writers, writes = 300 << 10, 4, 8
	var writing sync.WaitGroup
	for i := range writers {
		writing.Go(func() {
			for range writes {
				rw.Write(bytes.Repeat([]byte{'a' + byte(i)}, size))
			}
		})
	}
	go func() { // until the last writer has returned
		writing.Wait()
		here.Close()
	}()
	all, err := io.ReadAll(there)
	if err != nil || len(all) != size*writers*writes {
		t.Fatalf("got %d bytes and %v", len(all), err)
	}
	for part := range slices.Chunk(all, size) {
		if bytes.Count(part, part[:1]) != size {
			t.Fatal("two writes have mixed")
		}
	}
}
