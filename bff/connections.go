package bff

import (
	"container/list"
	"io"
	"log/slog"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/descriptors"
	"github.com/cloakroom-bff/cloakroom/internal/socket"
	"github.com/cloakroom-bff/cloakroom/internal/usertimeout"
)

// connections are the open connections of a Server's listeners. Their number is
// limited. Beyond the limit, the connection that has waited longest without
// sending a request is closed for a new one. If there is none, the new one is
// reset at once: a load balancer then tries another replica, while in the
// backlog it would have to wait. Idle connections that have sent requests are
// not closed: another request may be on its way.
type connections struct {
	log                       *slog.Logger
	memory                    *memory
	full, exhausted, replaced refusals
	streams                   atomic.Int64 // requests in flight in HTTP/2
	manyStreams               refusals

	mu          sync.Mutex // guards all below
	limit       int
	open        int
	waiting     list.List     // of *limitedConn: those that have not sent a request, oldest first
	userTimeout time.Duration // of new connections
}

// userTimeout is how long a client may acknowledge neither data nor a
// keep-alive probe before its connection is closed. Without it, the streams of
// a client that has vanished stay open for a quarter of an hour.
const userTimeout = time.Minute

// minWait is how long a connection may wait for its first request before it is
// closed for another one. Otherwise many new clients would displace each other.
const minWait = time.Second

// defaultConnections returns the limit that is derived from the file
// descriptors and the memory limit. It is half of the descriptors for
// connections: each request in flight may need one more for its upstream.
func defaultConnections() int {
	byMemory := min(memoryLimit()/memoryPerConnection, math.MaxInt32)
	return max(1, min(descriptors.ForConnections()/2, int(byMemory)))
}

// setLimit sets the number of connections from Limits.Connections. Those beyond
// it that are open stay open.
func (s *connections) setLimit(configured int) {
	n := configured
	if n == 0 {
		n = defaultConnections()
	}
	if most := descriptors.ForConnections(); n > most {
		s.log.Warn("connection limit lowered to the file descriptors of the process (ulimit -n)",
			"connections", n, "limit", most)
		n = most
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit = n
}

// enterStream counts a request in HTTP/2 until leaveStream, unless there are as
// many as connections may be open. It reports whether it does. In HTTP/1.1 the
// limit of connections is one of requests.
func (s *connections) enterStream(client string) bool {
	s.mu.Lock()
	limit := s.limit
	s.mu.Unlock()
	if s.streams.Add(1) <= int64(limit) {
		return true
	}
	s.leaveStream()
	s.manyStreams.add(func(count uint64) {
		s.log.Warn("requests refused beyond server.limits.connections",
			"count", count, "limit", limit, "client", client)
	})
	return false
}

func (s *connections) leaveStream() { s.streams.Add(-1) }

// count returns the number of open connections and its limit, which is zero
// before Run.
func (s *connections) count() (open, limit int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open, s.limit
}

// admit returns the connection to serve for one that was accepted, or nil if it
// was refused.
func (s *connections) admit(c net.Conn) net.Conn {
	if sc, ok := c.(syscall.Conn); ok && descriptors.IsReserved(sc) {
		reset(c)
		s.reportExhausted(syscall.EMFILE)
		return nil
	}
	scarce := s.memory.isScarce()
	s.mu.Lock()
	limit, timeout := s.limit, s.userTimeout
	var old *limitedConn
	if s.open >= limit || scarce {
		old = s.removeOldest()
	}
	admitted := s.open < limit && !scarce
	var lc *limitedConn
	if admitted {
		s.open++
		lc = &limitedConn{Conn: c, rw: socket.New(c), set: s, accepted: time.Now()}
		lc.waiting = s.waiting.PushBack(lc)
	}
	s.mu.Unlock()
	s.closeReplaced(old)
	if !admitted {
		reset(c)
		client := clientOf(c)
		if scarce {
			s.memory.refuse(s.log, client)
			return nil
		}
		s.full.add(func(count uint64) {
			s.log.Warn("connections refused", "count", count, "limit", limit, "client", client)
		})
		return nil
	}
	s.setUserTimeout(c, timeout)
	return lc
}

// setUserTimeout has a connection fail whose client has vanished.
func (s *connections) setUserTimeout(c net.Conn, timeout time.Duration) {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err == nil {
		err = usertimeout.Set(raw, timeout)
	}
	if err != nil { // mostly because it has ended
		s.log.Debug("connection without TCP_USER_TIMEOUT", "client", clientOf(c), "err", err)
	}
}

// reportExhausted counts a connection for which there is no file descriptor.
func (s *connections) reportExhausted(err error) {
	s.exhausted.add(func(count uint64) {
		s.log.Warn("connections refused without file descriptors (ulimit -n)", "count", count, "err", err)
	})
}

// closeOldest closes the connection that has waited longest for its first
// request, if it has for minWait.
func (s *connections) closeOldest() {
	s.mu.Lock()
	old := s.removeOldest()
	s.mu.Unlock()
	s.closeReplaced(old)
}

// removeOldest is closeOldest, but only removes the connection and returns it.
// It returns nil if there is none. It is called with mu held.
func (s *connections) removeOldest() *limitedConn {
	first := s.waiting.Front()
	if first == nil || time.Since(first.Value.(*limitedConn).accepted) < minWait {
		return nil
	}
	c := first.Value.(*limitedConn)
	s.remove(c)
	return c
}

// closeReplaced closes a connection that removeOldest has removed, unless it is
// nil.
func (s *connections) closeReplaced(c *limitedConn) {
	if c == nil {
		return
	}
	c.Close()
	client := clientOf(c)
	s.replaced.add(func(count uint64) {
		s.log.Warn("connections without a request closed for new ones", "count", count, "client", client)
	})
}

// remove ends the accounting of a connection. It is called with mu held,
// perhaps several times.
func (s *connections) remove(c *limitedConn) {
	if c.removed {
		return
	}
	c.removed = true
	s.open--
	if c.waiting != nil {
		s.waiting.Remove(c.waiting)
		c.waiting = nil
	}
}

// requested records that a connection of an http.Server has sent a request, or
// the preface of HTTP/2.
func (s *connections) requested(c net.Conn) {
	lc := limitedOf(c)
	if lc == nil || lc.requested.Swap(true) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if lc.waiting != nil {
		s.waiting.Remove(lc.waiting)
		lc.waiting = nil
	}
}

// limitedOf returns the limitedConn within a connection, or nil.
func limitedOf(c net.Conn) *limitedConn {
	for {
		switch outer := c.(type) {
		case *limitedConn:
			return outer
		case interface{ NetConn() net.Conn }:
			c = outer.NetConn()
		default:
			return nil
		}
	}
}

// clientOf returns the address of a connection's client, without its port.
func clientOf(c net.Conn) string {
	client, _, _ := net.SplitHostPort(c.RemoteAddr().String())
	return client
}

// reset closes a connection so that the client sees an error at once and the
// kernel keeps nothing of it.
func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	c.Close()
}

// limitedConn is a connection that counts until it is closed.
type limitedConn struct {
	net.Conn
	rw        io.ReadWriter // of Conn
	set       *connections
	accepted  time.Time
	requested atomic.Bool // has sent a request

	waiting *list.Element // in set.waiting, or nil; guarded by set.mu
	removed bool          // guarded by set.mu
}

// Read waits while the process has no memory for what was read. It closes the
// connection if that takes long.
func (c *limitedConn) Read(p []byte) (int, error) {
	n, err := c.rw.Read(p)
	if n > 0 && !c.set.memory.awaitRead(n) {
		c.set.memory.refuse(c.set.log, clientOf(c))
		c.Close()
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *limitedConn) Write(p []byte) (int, error) { return c.rw.Write(p) }

func (c *limitedConn) Close() error {
	err := c.Conn.Close()
	c.set.mu.Lock()
	defer c.set.mu.Unlock()
	c.set.remove(c)
	return err
}

// ReadFrom lets the server use splice.
func (c *limitedConn) ReadFrom(r io.Reader) (int64, error) { return io.Copy(c.Conn, r) }

// CloseWrite closes the direction to the client.
func (c *limitedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

// SetLinger is that of a *net.TCPConn.
func (c *limitedConn) SetLinger(seconds int) error {
	if tcp, ok := c.Conn.(interface{ SetLinger(seconds int) error }); ok {
		return tcp.SetLinger(seconds)
	}
	return nil
}

// limitedListener accepts connections within the limit.
type limitedListener struct {
	net.Listener
	set *connections
}

// acceptPause is the pause after an attempt to accept without a file
// descriptor.
const acceptPause = 50 * time.Millisecond

func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if temporary, ok := err.(interface{ Temporary() bool }); ok && temporary.Temporary() {
			l.set.closeOldest() // frees a file descriptor
			l.set.reportExhausted(err)
			time.Sleep(acceptPause)
			continue
		}
		if err != nil {
			return nil, err
		}
		if c = l.set.admit(c); c != nil {
			return c, nil
		}
	}
}
