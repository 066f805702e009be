// Package http1 implements HTTP/1.1 for a proxy: a client for upstreams, a
// server of plain requests, and a connection for other servers that rejects
// requests with ambiguous framing.
//
// Client differs from http.Transport in two ways. It writes and reads on the
// goroutine of its caller, while http.Transport hands each request to two
// goroutines of its own. And before it reuses a connection, it checks that the
// upstream has sent nothing after the last response.
package http1

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/cancel"
	"github.com/cloakroom-bff/cloakroom/internal/socket"
)

// ErrConnClosed reports that a connection was closed before the first byte of a
// response: the upstream has restarted, or has closed it while it was idle.
var ErrConnClosed = errors.New("the upstream closed the connection before it sent a response")

// ErrInvalidRequest reports that the method, the target or a header field of a
// request contains a character that is not allowed there. Nothing was dialed.
var ErrInvalidRequest = errors.New("invalid request")

// Error is a failure on a connection to the upstream.
type Error struct {
	Fresh bool // the connection was opened for this request
	Err   error
}

func (e *Error) Error() string { return e.Err.Error() }

func (e *Error) Unwrap() error { return e.Err }

// Client sends requests to one upstream. To the fields of a request it adds
// only Host and those of framing (RFC 9112, section 6). It does not follow
// redirects, ask for compression or retry. The context of a request applies
// until the body of the response is read or closed. The body of a response with
// status 101 is an io.ReadWriteCloser, as with http.Transport, and also has
// CloseWrite.
type Client struct {
	// Dial connects to the upstream. With TLS it returns a *tls.Conn after the
	// handshake.
	Dial func(ctx context.Context) (net.Conn, error)
	// HeaderTimeout is the maximum time between the end of the request and the
	// header of the response, which may end up to a 64th later; zero means no
	// limit.
	HeaderTimeout time.Duration
	// MaxAge is the maximum age of a connection at the start of a request; zero
	// means no limit.
	MaxAge time.Duration

	mu      sync.Mutex  // guards all below
	idle    []*conn     // the most recently used one is the last
	sweeper *time.Timer // is going to call sweep; nil: there is no need to
	closed  bool
}

const (
	readBuffer = 2 << 10
	// maxIdle and maxIdleTime limit the idle connections and their idle time.
	maxIdle     = 1024
	maxIdleTime = 60 * time.Second
	// continueTimeout is how long a body with Expect: 100-continue waits for
	// that response before it is sent anyway (RFC 9110, section 10.1.1).
	continueTimeout = time.Second
)

// conn is one connection to the upstream.
type conn struct {
	net.Conn
	rw        socket.Conn   // of Conn
	below     socket.Conn   // of the connection below TLS; without TLS it is rw
	r         *bufio.Reader // calls Read
	secure    *tls.Conn     // nil without TLS
	unsent    []byte        // a request that the next Read sends, or the rest after errUnsent
	opened    time.Time
	used      bool // by an earlier request
	idleSince time.Time
	deadline  time.Time // of reads; zero: none
	closeNow  func()    // Close; allocated once
}

// RoundTrip sends a request with header fields, and returns the response. It
// ignores req.Header. fresh means on a new connection. A retry needs that:
// whatever closed one idle connection may have closed the others, too.
//
// The error is the one of Dial, of the request's body or of its context, or it
// wraps ErrInvalidRequest, or it is an *Error. An *Error wraps ErrConnClosed or
// os.ErrDeadlineExceeded, or describes what is wrong with the response.
func (c *Client) RoundTrip(req *http.Request, fields *Fields, fresh bool) (*http.Response, error) {
	buf := heads.Get().(*[]byte)
	head, err := appendHead((*buf)[:0], req, fields)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidRequest, err)
	}
	var resp *http.Response
	for again := true; again; again = errors.Is(err, socket.ErrNotQuiet) {
		resp, err = c.send(req, fields, head, fresh)
	}
	if *buf = head; cap(head) <= maxPooledHead {
		heads.Put(buf)
	}
	return resp, err
}

// send sends a request on one connection and waits for the response. The error
// is socket.ErrNotQuiet if an idle connection was of no use.
func (c *Client) send(
	req *http.Request, fields *Fields, head []byte, fresh bool,
) (resp *http.Response, err error) {
	var cn *conn
	if !fresh {
		cn = c.idleConn(hasBody(req))
	}
	if cn == nil {
		if cn, err = c.dial(req.Context()); err != nil {
			return nil, err
		}
	}
	x := &exchange{client: c, conn: cn, ctx: req.Context(), method: req.Method}
	x.stop = cancel.AfterFunc(x.ctx, cn.closeNow)
	if err = x.send(req, fields, head); err == nil {
		resp, err = x.receive()
	}
	if err == nil {
		return resp, nil
	}
	x.end(false)
	if errors.Is(err, socket.ErrNotQuiet) {
		return nil, err
	}
	if cause := context.Cause(x.ctx); cause != nil {
		return nil, cause
	}
	if unread := (bodyReadError{}); errors.As(err, &unread) {
		return nil, unread.error
	}
	if cn.used && errors.Is(err, ErrConnClosed) {
		c.dropIdle(cn.idleSince)
	}
	return nil, &Error{Fresh: !cn.used, Err: err}
}

// heads holds buffers for request heads.
var heads = sync.Pool{New: func() any { return new(make([]byte, 0, 2<<10)) }}

// maxPooledHead is the maximum size of a buffer in heads.
const maxPooledHead = 16 << 10

// CloseIdle closes the idle connections at once. Those in use are closed when
// they become idle.
func (c *Client) CloseIdle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, cn := range c.idle {
		cn.Close()
	}
	c.idle = nil
	if c.sweeper != nil {
		c.sweeper.Stop() // it would keep what Dial needs for another minute
	}
}

// idleConn returns the most recently used idle connection that is still open,
// or nil. Without TLS and a body, send finds out whether it is.
func (c *Client) idleConn(body bool) *conn {
	for {
		cn := c.pop()
		if cn == nil {
			return nil
		}
		now := time.Now()
		if now.Sub(cn.idleSince) < maxIdleTime && !c.tooOld(cn, now) && (cn.sendsOnRead(body) || cn.quiet()) {
			return cn
		}
		cn.Close()
	}
}

// dial opens a connection.
func (c *Client) dial(ctx context.Context) (*conn, error) {
	raw, err := c.Dial(ctx)
	if err != nil {
		return nil, err
	}
	rw := socket.New(raw)
	cn := &conn{Conn: raw, rw: rw, below: rw, opened: time.Now()}
	cn.r, cn.closeNow = bufio.NewReaderSize(cn, readBuffer), func() { cn.Close() }
	if cn.secure, _ = raw.(*tls.Conn); cn.secure != nil {
		cn.below = socket.New(cn.secure.NetConn())
	}
	return cn, nil
}

// tooOld reports whether a connection has reached MaxAge.
func (c *Client) tooOld(cn *conn, now time.Time) bool {
	return c.MaxAge > 0 && now.Sub(cn.opened) >= c.MaxAge
}

// dropIdle closes the connections that have been idle at least as long as one
// that turned out to be closed. Those used later are known to be alive.
func (c *Client) dropIdle(since time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = slices.DeleteFunc(c.idle, func(cn *conn) bool {
		suspect := !cn.idleSince.After(since)
		if suspect {
			cn.Close()
		}
		return suspect
	})
}

// limitReads has reads fail after HeaderTimeout, or up to a 64th of it later:
// to set a deadline costs as much as a short read, and so one serves several
// requests.
func (c *Client) limitReads(cn *conn, now time.Time) {
	least, most := c.HeaderTimeout, c.HeaderTimeout+c.HeaderTimeout/64
	if left := cn.deadline.Sub(now); least > 0 && (left < least || left > most) {
		cn.setDeadline(now.Add(most))
	}
}

// sendsOnRead reports whether the next read sends the request, which costs
// less. A body is sent on another goroutine, and TLS reads and writes several
// times.
func (cn *conn) sendsOnRead(body bool) bool { return cn.used && cn.secure == nil && !body }

// errUnsent reports that a request could not be sent without waiting.
var errUnsent = errors.New("a part of the request was not sent")

// Read is that of rw, after unsent has been sent. If that needs writeUnsent, it
// returns errUnsent.
func (cn *conn) Read(p []byte) (int, error) {
	if request := cn.unsent; request != nil {
		n, rest, err := cn.rw.RoundTrip(request, p)
		if cn.unsent = rest; rest != nil {
			err = errUnsent
		}
		return n, err
	}
	return cn.rw.Read(p)
}

// writeUnsent sends what Read could not.
func (cn *conn) writeUnsent() error {
	_, err := cn.Write(cn.unsent)
	cn.unsent = nil
	return err
}

// Write is that of rw.
func (cn *conn) Write(p []byte) (int, error) { return cn.rw.Write(p) }

// setDeadline has reads fail at a time. Zero means that they do not.
func (cn *conn) setDeadline(at time.Time) {
	cn.deadline = at
	cn.SetReadDeadline(at)
}

// readBody reads a part of a body, for which limitReads does not apply.
func (cn *conn) readBody(p []byte) (int, error) {
	n, err := cn.r.Read(p)
	if !cn.deadline.IsZero() && errors.Is(err, os.ErrDeadlineExceeded) {
		cn.setDeadline(time.Time{})
		if n > 0 { // TLS 1.2 was waiting for the rest of an alert
			return n, nil
		}
		return cn.r.Read(p)
	}
	return n, err
}

// quiet reports whether an idle connection is open and has no unread data.
func (cn *conn) quiet() bool {
	if quiet, _ := cn.below.Quiet(); !quiet {
		return false
	}
	if cn.secure == nil {
		return true
	}
	cn.SetReadDeadline(time.Unix(1, 0)) // data that TLS has buffered is still returned
	defer cn.setDeadline(time.Time{})
	var b [1]byte
	n, err := cn.secure.Read(b[:])
	return n == 0 && errors.Is(err, os.ErrDeadlineExceeded)
}

func (c *Client) pop() *conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.idle) == 0 {
		return nil
	}
	cn := c.idle[len(c.idle)-1]
	c.idle = c.idle[:len(c.idle)-1]
	return cn
}

func (c *Client) push(cn *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if c.closed || len(c.idle) >= maxIdle || c.tooOld(cn, now) {
		cn.Close()
		return
	}
	cn.used, cn.idleSince = true, now
	c.idle = append(c.idle, cn)
	if c.sweeper == nil {
		c.sweeper = time.AfterFunc(maxIdleTime, c.sweep)
	}
}

// sweep closes the connections that have been idle for too long. It calls
// itself again until none is left.
func (c *Client) sweep() {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	c.idle = slices.DeleteFunc(c.idle, func(cn *conn) bool {
		old := now.Sub(cn.idleSince) >= maxIdleTime || c.tooOld(cn, now)
		if old {
			cn.Close()
		}
		return old
	})
	c.sweeper = nil
	if len(c.idle) > 0 {
		c.sweeper = time.AfterFunc(maxIdleTime/4, c.sweep)
	}
}
