package http1

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/cancel"
	"github.com/cloakroom-bff/cloakroom/internal/monotonic"
)

// Server serves plain requests in HTTP/1.1 (see parsePlain) on one goroutine
// for each connection. A connection with any other request goes to net/http,
// from that request on. To a handler it makes no difference, except that a
// client that leaves is noticed up to 0.2 seconds later.
type Server struct {
	// HTTP serves the other requests. Its Handler, IdleTimeout and
	// ReadHeaderTimeout also apply to plain requests. Its ErrorLog gets panics,
	// and is not nil.
	HTTP *http.Server
	// MaxHead is the maximum size of a head, in bytes. HTTP refuses larger
	// ones.
	MaxHead int
	// Check returns a connection of ServerConn that reads from c.
	Check func(c net.Conn) net.Conn
	// HandOver gives a connection of Check to HTTP.
	HandOver func(c net.Conn)
	// Requested is called with the first request of a connection.
	Requested func(c net.Conn)

	mu       sync.Mutex // guards all below
	conns    map[*serving]struct{}
	sweeping bool // a timer is going to call sweep
}

const (
	sweepInterval = 100 * time.Millisecond
	// lingerTime is how long a client that still sends may take to read the
	// last response before its connection is reset.
	lingerTime = 500 * time.Millisecond
)

var errReturned = errors.New("the handler has returned")

// serving is a connection while Server has it.
type serving struct {
	server *Server
	conn   net.Conn
	base   context.Context // of the requests
	remote string

	req    http.Request // without a context
	unread []byte       // a part of small, or of a larger buffer
	small  []byte

	asked atomic.Bool // for the first request
	ended atomic.Bool // hijacked
	// state is when the connection became idle, as monotonic.Now says. It is
	// negative while a request is served: the time when that began, as -t.
	state atomic.Int64

	mu       sync.Mutex // guards all below
	serves   *responseWriter
	watching chan struct{} // closed when watch has ended; nil: it does not run
	writeBy  time.Time     // a deadline that sweep sets; zero: none
	limited  bool          // a deadline of writes is set
}

// Serve begins to serve a connection, until that is closed, hijacked or handed
// over. From when it has returned, CloseIdle knows the connection.
func (s *Server) Serve(c net.Conn) {
	x := &serving{server: s, conn: c, remote: c.RemoteAddr().String(), small: make([]byte, 2<<10)}
	x.base = context.WithValue(context.WithValue(context.Background(), http.ServerContextKey, s.HTTP),
		http.LocalAddrContextKey, c.LocalAddr())
	go x.run(s.add(x))
}

// run serves the requests. A panic, of a handler or here, ends the connection
// alone.
func (x *serving) run(remove func()) {
	s, c, handedOver := x.server, x.conn, false
	defer func() {
		if cause := recover(); cause != nil && cause != http.ErrAbortHandler {
			s.HTTP.ErrorLog.Printf("http: panic serving %v: %v\n%s", x.remote, cause, debug.Stack())
		}
		remove()
		if !handedOver && !x.ended.Load() {
			c.Close() // which also ends watch
		}
	}()
	for {
		x.req = http.Request{}
		n, err := x.readHead(&x.req)
		if err != nil {
			return
		}
		if n < 0 {
			handedOver = true
			checked := s.Check(c)
			checked.(*serverConn).unread = bytes.Clone(x.unread)
			s.HandOver(checked)
			return
		}
		if !x.asked.Swap(true) {
			s.Requested(c)
		}
		x.unread = x.unread[n:]
		if !x.serve(&x.req) {
			return
		}
	}
}

// readHead waits for a request and parses its head. It returns the length of
// that, or -1 if the request is not plain.
func (x *serving) readHead(req *http.Request) (int, error) {
	x.state.Store(monotonic.Now())
	limited := false
	defer func() {
		if limited {
			x.conn.SetReadDeadline(time.Time{})
		}
	}()
	for {
		if len(x.unread) > 0 {
			if n := parsePlain(req, x.unread); n > x.server.MaxHead {
				return -1, nil
			} else if n != 0 {
				return n, nil
			}
			if !limited {
				limited = true
				if x.asked.Load() { // the request is on its way
					x.state.Store(monotonic.Now())
				}
				x.conn.SetReadDeadline(time.Now().Add(x.server.HTTP.ReadHeaderTimeout))
			}
		}
		if err := x.fill(); err == io.EOF && len(x.unread) > 0 {
			return -1, nil // net/http responds
		} else if err != nil {
			return 0, err
		}
	}
}

// fill reads more.
func (x *serving) fill() error {
	switch n := len(x.unread); {
	case n == 0:
		x.unread = x.small[:0]
	case n >= maxPlainHead:
		return io.ErrShortBuffer
	case n == cap(x.unread):
		x.unread = append(make([]byte, 0, maxPlainHead), x.unread...)
	}
	n, err := x.conn.Read(x.unread[len(x.unread):cap(x.unread)])
	x.unread = x.unread[:len(x.unread)+n]
	if n > 0 {
		return nil
	}
	return cmp.Or(err, io.ErrNoProgress)
}

// serve calls the handler and finishes the response. It reports whether the
// connection can have another request.
func (x *serving) serve(req *http.Request) (again bool) {
	x.state.Store(-monotonic.Now())
	w := &responseWriter{x: x, ctx: cancel.Context{Values: x.base}, header: make(http.Header)}
	defer w.ctx.Cancel(nil)
	req.RemoteAddr, req.Body = x.remote, http.NoBody // not TLS, which net/http does not see behind Check
	if req.ContentLength > 0 {
		w.body = &requestBody{x: x}
		w.body.left.Store(req.ContentLength)
		req.Body = w.body
	}
	w.req = *req.WithContext(&w.ctx)
	x.mu.Lock()
	x.serves = w
	x.mu.Unlock()
	x.server.HTTP.Handler.ServeHTTP(w, &w.req)
	completed := !x.stopWatching() && w.finish()
	w.free()
	w.err = errReturned // for what the handler has left running
	if !completed {
		return false
	}
	if w.readDeadline.Load() {
		x.conn.SetReadDeadline(time.Time{})
	}
	if w.writeDeadline.Load() {
		x.setWriteDeadline(time.Time{})
	}
	if w.closing && (!w.body.complete() || len(x.unread) > 0) {
		linger(x.conn)
	}
	return !w.closing
}

// linger lets a client read the last response although it still sends (RFC
// 9112, section 9.6): to close a connection with unread data resets it.
func linger(c net.Conn) {
	half, ok := c.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	c.SetReadDeadline(time.Now().Add(lingerTime))
	io.Copy(io.Discard, c)
}

// watch notices that the client leaves while its request is served. What it
// sends is kept. It runs from when the request has taken a while.
func (x *serving) watch(done chan struct{}) {
	defer close(done)
	for {
		if err := x.fill(); errors.Is(err, os.ErrDeadlineExceeded) || err == io.ErrShortBuffer {
			return
		} else if err != nil {
			x.cancelRequest()
			return
		}
	}
}

func (x *serving) cancelRequest() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.serves != nil {
		x.serves.ctx.Cancel(nil)
	}
}

// stopWatching ends watch, and reports whether the connection was hijacked.
func (x *serving) stopWatching() (hijacked bool) {
	x.mu.Lock()
	hijacked, watching := x.ended.Load(), x.watching
	x.serves, x.watching = nil, nil
	x.mu.Unlock()
	if watching != nil && !hijacked {
		x.interrupt(watching)
	}
	return hijacked
}

// interrupt ends watch, which may wait for the client.
func (x *serving) interrupt(watching chan struct{}) {
	x.conn.SetReadDeadline(time.Unix(1, 0))
	<-watching
	x.conn.SetReadDeadline(time.Time{})
}

// add registers a connection. remove takes that back.
func (s *Server) add(x *serving) (remove func()) {
	x.state.Store(monotonic.Now())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		s.conns = make(map[*serving]struct{})
	}
	s.conns[x] = struct{}{}
	if !s.sweeping {
		s.sweeping = true
		time.AfterFunc(sweepInterval, s.sweep)
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.conns, x)
	}
}

// setWriteDeadline limits the writes of a response, or no longer if t is zero.
// To set a deadline costs as much as a short write, and most responses are sent
// at once. So sweep sets one that is not near, if the response still is on its
// way then.
func (x *serving) setWriteDeadline(t time.Time) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.limited && !x.ended.Load() && (t.IsZero() || time.Until(t) > 2*sweepInterval) {
		x.writeBy = t
		return nil
	}
	x.writeBy, x.limited = time.Time{}, !t.IsZero()
	return x.conn.SetWriteDeadline(t)
}

// sweep closes connections that have been idle for too long, and watches those
// whose request takes a while. It calls itself again while there are any.
func (s *Server) sweep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := monotonic.Now()
	for x := range s.conns {
		timeout := s.HTTP.IdleTimeout
		if !x.asked.Load() {
			timeout = s.HTTP.ReadHeaderTimeout
		}
		switch state := x.state.Load(); {
		case state < 0 && now+state >= int64(sweepInterval):
			x.attend(state)
		case state > 0 && now-state >= int64(timeout):
			go x.conn.Close() // with TLS it may take a while
		}
	}
	if s.sweeping = len(s.conns) > 0; s.sweeping {
		time.AfterFunc(sweepInterval, s.sweep)
	}
}

// attend limits the writes to a client whose request takes a while, and starts
// watch if the request's body has been read.
func (x *serving) attend(state int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.writeBy.IsZero() {
		x.conn.SetWriteDeadline(x.writeBy)
		x.writeBy, x.limited = time.Time{}, true
	}
	if x.serves == nil || x.ended.Load() || x.watching != nil || x.state.Load() != state || !x.serves.body.complete() {
		return
	}
	x.watching = make(chan struct{})
	go x.watch(x.watching) // until stopWatching
}

// CloseIdle closes the connections that have been idle for a time, and returns
// the number of the others. With a negative time it closes all.
func (s *Server) CloseIdle(idle time.Duration) (open int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := monotonic.Now()
	for x := range s.conns {
		if state := x.state.Load(); idle < 0 || state > 0 && now-state >= int64(idle) {
			go x.conn.Close() // with TLS it may take a while
			continue
		}
		open++
	}
	return open
}

// hijack ends the serving of the connection, which is the caller's then.
func (x *serving) hijack(w *responseWriter) (net.Conn, *bufio.ReadWriter, error) {
	x.mu.Lock()
	if x.ended.Load() || x.serves != w {
		x.mu.Unlock()
		return nil, nil, http.ErrHijacked
	}
	x.ended.Store(true)
	watching := x.watching
	x.writeBy = time.Time{}
	x.mu.Unlock()
	if watching != nil {
		x.interrupt(watching)
	}
	x.conn.SetDeadline(time.Time{})
	rest := io.MultiReader(bytes.NewReader(bytes.Clone(x.unread)), x.conn)
	x.unread, x.small = nil, nil // the handler's context may live on
	return x.conn, bufio.NewReadWriter(bufio.NewReader(rest), bufio.NewWriter(x.conn)), nil
}
