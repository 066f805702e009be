//go:build unix

package socket

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"
)

// newPlain returns the Conn of connections that are no sockets.
func newPlain(c net.Conn) Conn { return &plain{Conn: c, peek: newPeek(c)} }

// A socket does what a plain connection does.
func TestRoundTripDoesWhatAPlainConnectionDoes(t *testing.T) {
	t.Parallel()
	request, later := []byte("request"), 30*time.Millisecond
	roundTripInto := func(c Conn, request, p []byte) (int, error) {
		n, rest, err := c.RoundTrip(request, p)
		if rest == nil {
			return n, err
		}
		if _, err := c.Write(rest); err != nil {
			return 0, err
		}
		return c.Read(p)
	}
	roundTrip := func(c Conn, request []byte) (int, error) { return roundTripInto(c, request, make([]byte, 64)) }
	// respond responds once it has received a request of a length.
	respond := func(there net.Conn, length int64) {
		io.CopyN(io.Discard, there, length)
		io.WriteString(there, "response")
	}
	for name, do := range map[string]func(c Conn, here, there net.Conn) (int, error){
		"a response": func(c Conn, here, there net.Conn) (int, error) {
			go respond(there, int64(len(request)))
			return roundTrip(c, request)
		},
		"a late response": func(c Conn, here, there net.Conn) (int, error) {
			time.AfterFunc(later, func() { respond(there, int64(len(request))) })
			return roundTrip(c, request)
		},
		"a long request": func(c Conn, here, there net.Conn) (int, error) {
			long := bytes.Repeat(request, 1<<20)
			go respond(there, int64(len(long)))
			return roundTrip(c, long)
		},
		"a second request": func(c Conn, here, there net.Conn) (int, error) {
			go respond(there, int64(len(request)))
			roundTrip(c, request)
			go respond(there, int64(len(request)))
			return roundTrip(c, request)
		},
		"unread data": func(c Conn, here, there net.Conn) (int, error) {
			io.WriteString(there, "unexpected")
			waitForData(c)
			return roundTrip(c, request)
		},
		"the rest of a response": func(c Conn, here, there net.Conn) (int, error) {
			go respond(there, int64(len(request)))
			roundTripInto(c, request, make([]byte, 1))
			return roundTrip(c, request)
		},
		"the peer has left": func(c Conn, here, there net.Conn) (int, error) {
			there.Close()
			waitForData(c)
			return roundTrip(c, request)
		},
		"the peer leaves": func(c Conn, here, there net.Conn) (int, error) {
			time.AfterFunc(later, func() {
				io.CopyN(io.Discard, there, int64(len(request)))
				there.Close()
			})
			return roundTrip(c, request)
		},
		"the peer leaves during a long request": func(c Conn, here, there net.Conn) (int, error) {
			go func() {
				there.Read(make([]byte, 1))
				time.Sleep(later)
				there.Close()
			}()
			n, err := roundTrip(c, make([]byte, 64<<20))
			if err != nil && err != ErrNotQuiet {
				err = errors.New("a reset, or a broken pipe")
			}
			return n, err
		},
		"a deadline": func(c Conn, here, there net.Conn) (int, error) {
			here.SetReadDeadline(time.Now().Add(later))
			return roundTrip(c, request)
		},
		"the close": func(c Conn, here, there net.Conn) (int, error) {
			go func() { // once the request was sent, since nothing is sent after the close
				io.CopyN(io.Discard, there, int64(len(request)))
				here.Close()
			}()
			return roundTrip(c, request)
		},
	} {
		for _, network := range networks {
			t.Run(name+" "+network, func(t *testing.T) {
				t.Parallel()
				here, there := connect(t, network)
				want := result(do(newPlain(here), here, there))
				here, there = connect(t, network)
				if got := result(do(New(here), here, there)); got != want {
					t.Errorf("got %s, want %s", got, want)
				}
			})
		}
	}
}

// waitForData waits until a connection has something to read, or its end.
func waitForData(c Conn) {
	for quiet := true; quiet; time.Sleep(time.Millisecond) {
		quiet, _ = c.Quiet()
	}
}

// Nothing is sent: the request can go to another connection.
func TestSendsNothingIfTheConnectionIsNotQuiet(t *testing.T) {
	t.Parallel()
	for _, newConn := range []func(net.Conn) Conn{New, newPlain} {
		here, there := connect(t, "tcp")
		io.WriteString(there, "unexpected")
		c := newConn(here)
		waitForData(c)
		here.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, rest, err := c.RoundTrip([]byte("request"), make([]byte, 64)); err != ErrNotQuiet || rest != nil {
			t.Errorf("got %q and %v, want ErrNotQuiet", rest, err)
		}
		here.Close()
		if got, err := io.ReadAll(there); len(got) > 0 {
			t.Errorf("the peer has received %q (%v)", got, err)
		}
	}
}

func TestIsQuietUntilSomethingArrives(t *testing.T) {
	t.Parallel()
	for _, newConn := range []func(net.Conn) Conn{New, newPlain} {
		here, there := connect(t, "tcp")
		c := newConn(here)
		here.SetReadDeadline(time.Unix(1, 0)) // makes no difference
		if quiet, known := c.Quiet(); !quiet || !known {
			t.Errorf("got %v, %v for an open connection", quiet, known)
		}
		io.WriteString(there, "x")
		waitForData(c)
		here.SetReadDeadline(time.Time{})
		if n, err := c.Read(make([]byte, 2)); n != 1 || err != nil {
			t.Errorf("after a look at it, the byte reads as %d, %v", n, err)
		}
		here.Close()
		if quiet, known := c.Quiet(); quiet || !known {
			t.Errorf("got %v, %v for a closed connection", quiet, known)
		}
	}
	c, _ := net.Pipe()
	if quiet, known := New(c).Quiet(); quiet || known {
		t.Errorf("got %v, %v for a pipe", quiet, known)
	}
}

// What was received before a reset may be incomplete.
func TestAResetThatWasFoundIsNoEnd(t *testing.T) {
	t.Parallel()
	for name, find := range map[string]func(c Conn){
		"a look": waitForData,
		"a write": func(c Conn) {
			for err := error(nil); err == nil; time.Sleep(time.Millisecond) {
				_, err = c.Write([]byte("x"))
			}
		},
	} {
		for _, newConn := range []func(net.Conn) Conn{New, newPlain} {
			here, there := connect(t, "tcp")
			c := newConn(here)
			there.(*net.TCPConn).SetLinger(0)
			there.Close()
			find(c)
			for range 2 {
				if n, err := c.Read(make([]byte, 1)); n > 0 || !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("%s: got %d, %v, want a reset", name, n, err)
				}
			}
		}
	}
}

// The response wakes the caller, whenever it arrives.
func TestNoResponseIsMissed(t *testing.T) {
	t.Parallel()
	const conns, requests = 8, 5000
	var running sync.WaitGroup
	for i := range conns {
		here, there := connect(t, "tcp")
		go func() {
			buf := make([]byte, 64)
			for {
				n, err := there.Read(buf)
				if err != nil {
					return
				}
				for range i * 100 { // vary the time
					buf[n]++
				}
				there.Write(buf[:n])
			}
		}()
		running.Go(func() {
			c, buf := New(here), make([]byte, 64)
			here.SetReadDeadline(time.Now().Add(time.Minute))
			for range requests {
				if n, _, err := c.RoundTrip([]byte("request"), buf); string(buf[:n]) != "request" || err != nil {
					t.Errorf("got %q and %v", buf[:n], err)
					return
				}
			}
		})
	}
	running.Wait()
}
