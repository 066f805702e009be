// Package http1 implements HTTP/1.1 for a proxy: a client for upstreams, and a
// connection for servers that rejects requests with ambiguous framing.
//
// Client differs from http.Transport in two ways. It writes and reads on the
// goroutine of its caller, while http.Transport hands each request to two
// goroutines of its own. And before it reuses a connection, it checks that the
// upstream has sent nothing after the last response.
package http1

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
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

// Client is an http.RoundTripper for one upstream. It sends the header of a
// request unchanged and adds only the fields of framing (RFC 9112, section 6).
// It does not follow redirects, ask for compression or retry. The context of a
// request applies until the body of the response is read or closed. The body of
// a response with status 101 is an io.ReadWriteCloser, as with http.Transport,
// and also has CloseWrite.
type Client struct {
	// Dial connects to the upstream. With TLS it returns a *tls.Conn after the
	// handshake.
	Dial func(ctx context.Context) (net.Conn, error)
	// HeaderTimeout is the maximum time between the end of the request and the
	// header of the response; zero means no limit.
	HeaderTimeout time.Duration
	// MaxAge is the maximum age of a connection at the start of a request; zero
	// means no limit.
	MaxAge time.Duration

	mu       sync.Mutex // guards all below
	idle     []*conn    // the most recently used one is the last
	sweeping bool       // a timer is going to call sweep
	closed   bool
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
	r         *bufio.Reader
	secure    *tls.Conn // nil without TLS
	peek      peek
	opened    time.Time
	used      bool // by an earlier request
	idleSince time.Time
}

// RoundTrip sends a request and returns the response. The error is the one of
// Dial, of the request's body or of its context, or it wraps ErrInvalidRequest,
// or it is an *Error. An *Error wraps ErrConnClosed or os.ErrDeadlineExceeded,
// or describes what is wrong with the response.
func (c *Client) RoundTrip(req *http.Request) (*http.Response, error) {
	return c.roundTrip(req, false)
}

// RoundTripFresh is RoundTrip on a new connection. A retry needs it: whatever
// closed one idle connection may have closed the others, too.
func (c *Client) RoundTripFresh(req *http.Request) (*http.Response, error) {
	return c.roundTrip(req, true)
}

func (c *Client) roundTrip(req *http.Request, fresh bool) (*http.Response, error) {
	buf := heads.Get().(*[]byte)
	head, err := appendHead((*buf)[:0], req)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidRequest, err)
	}
	var cn *conn
	if !fresh {
		cn = c.idleConn()
	}
	if cn == nil {
		if cn, err = c.dial(req.Context()); err != nil {
			return nil, err
		}
	}
	x := &exchange{client: c, conn: cn, ctx: req.Context(), method: req.Method}
	x.stop = context.AfterFunc(x.ctx, func() { cn.Close() })
	err = x.send(req, head)
	if *buf = head; cap(head) <= maxPooledHead {
		heads.Put(buf)
	}
	var resp *http.Response
	if err == nil {
		resp, err = x.receive()
	}
	if err == nil {
		return resp, nil
	}
	x.end(false)
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
}

// idleConn returns the most recently used idle connection that is still open,
// or nil.
func (c *Client) idleConn() *conn {
	for {
		cn := c.pop()
		if cn == nil {
			return nil
		}
		if now := time.Now(); now.Sub(cn.idleSince) < maxIdleTime && !c.tooOld(cn, now) && cn.quiet() {
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
	cn := &conn{Conn: raw, r: bufio.NewReaderSize(raw, readBuffer), opened: time.Now()}
	if cn.secure, _ = raw.(*tls.Conn); cn.secure != nil {
		raw = cn.secure.NetConn()
	}
	cn.peek.init(raw)
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

// quiet reports whether an idle connection is open and has no unread data.
func (cn *conn) quiet() bool {
	if !cn.peek.quiet() {
		return false
	}
	if cn.secure == nil {
		return true
	}
	cn.SetReadDeadline(time.Unix(1, 0)) // data that TLS has buffered is still returned
	defer cn.SetReadDeadline(time.Time{})
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
	if !c.sweeping {
		c.sweeping = true
		time.AfterFunc(maxIdleTime, c.sweep)
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
	if c.sweeping = len(c.idle) > 0; c.sweeping {
		time.AfterFunc(maxIdleTime/4, c.sweep)
	}
}

// exchange is one request and its response.
type exchange struct {
	client *Client
	conn   *conn
	ctx    context.Context
	method string
	stop   func() bool // keeps ctx from closing the connection
	upload *upload     // nil if the request has no body
}

// end returns the connection to the idle ones, or closes it if it cannot be
// reused.
func (x *exchange) end(reusable bool) {
	if x.conn == nil {
		return
	}
	cn := x.conn
	x.conn = nil
	open := x.stop() // false: the context is closing it, perhaps during the next request
	// Data after a response must not be taken for the response to the next
	// request.
	if open && reusable && (x.upload == nil || x.upload.complete()) && cn.r.Buffered() == 0 {
		x.client.push(cn)
		return
	}
	cn.Close()
}

// receive waits for the head of the final response.
func (x *exchange) receive() (*http.Response, error) {
	for interim := 0; ; {
		head, err := x.readHead(&interim)
		switch {
		case err != nil:
			return nil, err
		case head.StatusCode == http.StatusSwitchingProtocols:
			head.Body = &tunnel{x: x}
			return head, nil
		case head.StatusCode >= 200:
			return head, x.body(head)
		case head.StatusCode == http.StatusContinue && x.upload != nil:
			x.upload.proceed()
		}
	}
}

// readHead waits for the head of a response and adds its length to read. The
// sum is limited, because an upstream can send any number of interim responses.
func (x *exchange) readHead(read *int) (*http.Response, error) {
	err := x.await()
	if err == nil {
		var resp *http.Response
		if resp, err = readHead(x.conn.r, read); err == nil {
			x.conn.SetReadDeadline(time.Time{})
			return resp, nil
		}
	} else if !errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("%w: %w", ErrConnClosed, err)
	}
	if x.upload != nil && x.upload.finished() && x.upload.readErr != nil { // the cause of the missing response
		return nil, bodyReadError{x.upload.readErr}
	}
	return nil, err
}

// await waits for the first byte of a response. HeaderTimeout starts when the
// whole request has been sent.
func (x *exchange) await() error {
	for t := x.client.HeaderTimeout; ; {
		uploading := x.upload != nil && !x.upload.finished()
		if t > 0 {
			x.conn.SetReadDeadline(time.Now().Add(t))
		}
		_, err := x.conn.r.Peek(1)
		if err == nil || !uploading || !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
}

// Buffers of bodies. A body has a small one while the client is slow: many may
// be on their way at once.
var (
	smallBuffers = sync.Pool{New: func() any { return new(make([]byte, 2<<10)) }}
	largeBuffers = sync.Pool{New: func() any { return new(make([]byte, 64<<10)) }}
)

// send writes the head of the request and starts to send its body.
func (x *exchange) send(req *http.Request, head []byte) error {
	if _, err := x.conn.Write(head); err != nil {
		return fmt.Errorf("%w: %w", ErrConnClosed, err)
	}
	if hasBody(req) {
		x.upload = startUpload(x, req)
	}
	return nil
}

func hasBody(req *http.Request) bool {
	return req.Body != nil && req.Body != http.NoBody
}

// CheckRequest returns the error that wraps ErrInvalidRequest if RoundTrip
// would return one. It is for requests that another client sends.
func CheckRequest(req *http.Request) error {
	if err := checkTarget(req, req.URL.EscapedPath()); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalidRequest, err)
	}
	for name, values := range req.Header {
		for _, v := range values {
			if err := checkField(name, v); err != nil {
				return fmt.Errorf("%w: %w", ErrInvalidRequest, err)
			}
		}
	}
	return nil
}

// checkTarget checks the method, the target and the host of a request.
func checkTarget(req *http.Request, path string) error {
	if !isToken(req.Method) || !isFieldValue(req.Host) {
		return errors.New("invalid method or host")
	}
	for _, part := range [...]string{path, req.URL.RawQuery} {
		for i := range len(part) {
			if c := part[i]; c <= ' ' || c == 0x7f {
				return errors.New("the target contains a space or a control character")
			}
		}
	}
	return nil
}

func checkField(name, value string) error {
	if !isToken(name) {
		return fmt.Errorf("invalid header name %.40q", name)
	}
	if !isFieldValue(value) {
		return fmt.Errorf("the header %s contains a control character", name)
	}
	return nil
}

// appendHead appends the head of a request. It fails for a value that a reader
// could take for several header fields, even though callers should check that.
func appendHead(b []byte, req *http.Request) ([]byte, error) {
	path := cmp.Or(req.URL.Opaque, req.URL.EscapedPath()) // Opaque is a path that net/url would change
	if err := checkTarget(req, path); err != nil {
		return nil, err
	}
	b = append(b, req.Method...)
	b = append(b, ' ')
	b = append(b, path...)
	if req.URL.RawQuery != "" || req.URL.ForceQuery {
		b = append(b, '?')
		b = append(b, req.URL.RawQuery...)
	}
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, req.Host...)
	b = append(b, "\r\n"...)
	for name, values := range req.Header {
		for _, v := range values {
			if err := checkField(name, v); err != nil {
				return nil, err
			}
			b = append(b, name...)
			b = append(b, ": "...)
			b = append(b, v...)
			b = append(b, "\r\n"...)
		}
	}
	switch {
	case !hasBody(req):
		if req.Method == http.MethodPost || req.Method == http.MethodPut || req.Method == http.MethodPatch {
			b = append(b, "Content-Length: 0\r\n"...)
		}
	case req.ContentLength >= 0:
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, req.ContentLength, 10)
		b = append(b, "\r\n"...)
	default:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	}
	return append(b, "\r\n"...), nil
}

// upload sends the body of a request while the response is read: an upstream
// may respond before it has received the whole body.
type upload struct {
	proceed func() // called when the upstream asks for the body
	done    chan struct{}
	// Set before done is closed:
	readErr error // why the body could not be read
	sent    bool  // completely
}

// startUpload sends the body on a goroutine and then closes it. The goroutine
// ends with the body, with an error of its reader, or when the connection is
// closed.
func startUpload(x *exchange, req *http.Request) *upload {
	u := &upload{done: make(chan struct{}), proceed: func() {}}
	wanted := make(chan struct{})
	if strings.EqualFold(req.Header.Get("Expect"), "100-continue") {
		u.proceed = sync.OnceFunc(func() { close(wanted) })
	} else {
		close(wanted)
	}
	cn, body, length := x.conn, req.Body, req.ContentLength // the caller may change the request once it has a response
	go func() {
		select {
		case <-wanted:
		case <-time.After(continueTimeout):
		case <-x.ctx.Done():
		}
		err := sendBody(cn, body, length)
		u.sent = err == nil
		if unread := (bodyReadError{}); errors.As(err, &unread) {
			u.readErr = unread.error
		}
		body.Close()
		close(u.done)
		if u.readErr != nil {
			cn.Close() // the upstream must not take a part for the whole body
		}
	}()
	return u
}

// finished reports whether the goroutine has ended.
func (u *upload) finished() bool {
	select {
	case <-u.done:
		return true
	default:
		return false
	}
}

// complete reports whether the whole body was sent.
func (u *upload) complete() bool { return u.finished() && u.sent }

// bodyReadError is an error from reading the body of a request.
type bodyReadError struct{ error }

// sendBody writes the body of a request. If length is negative, it is sent in
// chunks (RFC 9112, section 7.1).
func sendBody(w io.Writer, body io.Reader, length int64) error {
	pool := &smallBuffers
	held := pool.Get().(*[]byte)
	defer func() { pool.Put(held) }()
	const size, end = 8, 2 // of the lines around a chunk: four hexadecimal digits hold its length
	chunked := length < 0
	var sent int64
	for {
		buf := *held
		n, err := body.Read(buf[size : len(buf)-end])
		sent += int64(n)
		switch {
		case n > 0 && chunked:
			line := strconv.AppendInt(buf[:0:size], int64(n), 16)
			start := size - len(line) - 2
			copy(buf[start:], line)
			copy(buf[size-2:], "\r\n")
			copy(buf[size+n:], "\r\n")
			if _, err := w.Write(buf[start : size+n+end]); err != nil {
				return err
			}
		case n > 0 && sent > length:
			return bodyReadError{errors.New("the body is longer than its Content-Length")}
		case n > 0:
			if _, err := w.Write(buf[size : size+n]); err != nil {
				return err
			}
		}
		switch {
		case err != nil && err != io.EOF:
			return bodyReadError{err}
		case err == io.EOF && chunked:
			_, err := io.WriteString(w, "0\r\n\r\n")
			return err
		case err == io.EOF && sent < length:
			return bodyReadError{io.ErrUnexpectedEOF}
		case err == io.EOF:
			return nil
		}
		if next := bufferFor(n); next != pool {
			pool.Put(held)
			pool, held = next, next.Get().(*[]byte)
		}
	}
}

// bufferFor returns the pool of the buffer for the next read, after one of n
// bytes.
func bufferFor(n int) *sync.Pool {
	if n > 1<<10 {
		return &largeBuffers
	}
	return &smallBuffers
}
