// Package http1 is HTTP/1.1 on the wire, for a proxy: a client for upstreams, and a look at what a server is sent
// before it reads it.
//
// The client exists because a proxy's request is one goroutine from beginning to end. It writes and reads on the goroutine that calls it, where
// http.Transport hands each request to two of its own. And an answer that nobody asked for, which an upstream sends behind another, is seen before its
// connection is used again.
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

// ErrDied says that a connection ended before there was any of an answer: the upstream has restarted, or has closed it while it was idle.
var ErrDied = errors.New("the connection ended before an answer")

// ErrInvalidRequest reports that a request cannot be written: its target, its
// header or its method holds what would end it. Nothing has been dialed.
var ErrInvalidRequest = errors.New("the request cannot be written")

// Error is a failure on a connection to the upstream.
type Error struct {
	Fresh bool // the connection was made for this request
	Err   error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Client is an http.RoundTripper for one upstream. It follows no redirects, adds no header but those of framing (RFC 9112 6), asks for no
// compression and repeats nothing. A request's header is sent as it is; its context ends the exchange until the answer's body is read or closed.
// Like that of http.Transport, the body of an answer with status 101 is an io.ReadWriteCloser, which also has CloseWrite.
type Client struct {
	// Dial connects to the upstream, with TLS where that is to be: a *tls.Conn that has shaken hands.
	Dial func(ctx context.Context) (net.Conn, error)
	// HeaderTimeout bounds how long the upstream takes from when it has the request to its answer's header; zero: it does not.
	HeaderTimeout time.Duration
	// MaxAge is how old a connection may be when it takes a request; zero means any age.
	MaxAge time.Duration

	mu       sync.Mutex // guards all below
	idle     []*conn    // the one used last at the end
	sweeping bool       // sweep is to be called
	closed   bool
}

const (
	readBuffer = 2 << 10
	// maxIdle and maxIdleTime bound the connections that are kept for the next request.
	maxIdle     = 1024
	maxIdleTime = 60 * time.Second
	// continueTimeout is how long a body is held back that the client wants to be asked for (RFC 9110 10.1.1).
	continueTimeout = time.Second
)

// conn is one connection to the upstream.
type conn struct {
	net.Conn
	r         *bufio.Reader
	secure    *tls.Conn // nil: it is in plain text
	look      look
	made      time.Time
	used      bool // by another request before
	idleSince time.Time
}

// RoundTrip makes one exchange. The error is one of Dial's or of the request's
// body or context, wraps ErrInvalidRequest, or is an *Error. That wraps ErrDied
// or os.ErrDeadlineExceeded, or says what is wrong with the answer.
func (c *Client) RoundTrip(req *http.Request) (*http.Response, error) {
	return c.roundTrip(req, false)
}

// RoundTripFresh is RoundTrip on a connection of its own. A retry needs that:
// what ended one idle connection may have ended the others too.
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
	if unread := (unreadError{}); errors.As(err, &unread) {
		return nil, unread.error
	}
	if cn.used && errors.Is(err, ErrDied) {
		c.dropIdle(cn.idleSince)
	}
	return nil, &Error{Fresh: !cn.used, Err: err}
}

// heads holds buffers for the heads of requests.
var heads = sync.Pool{New: func() any { return new(make([]byte, 0, 2<<10)) }}

// maxPooledHead bounds the buffers that are kept in heads.
const maxPooledHead = 16 << 10

// CloseIdle closes the connections that are not in use, and those that are when they are not any more.
func (c *Client) CloseIdle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, cn := range c.idle {
		cn.Close()
	}
	c.idle = nil
}

// idleConn returns the idle connection that was used last, or nil.
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

// dial returns a new connection.
func (c *Client) dial(ctx context.Context) (*conn, error) {
	raw, err := c.Dial(ctx)
	if err != nil {
		return nil, err
	}
	cn := &conn{Conn: raw, r: bufio.NewReaderSize(raw, readBuffer), made: time.Now()}
	if cn.secure, _ = raw.(*tls.Conn); cn.secure != nil {
		raw = cn.secure.NetConn()
	}
	cn.look.at(raw)
	return cn, nil
}

// tooOld reports whether a connection takes no more requests because of its age.
func (c *Client) tooOld(cn *conn, now time.Time) bool {
	return c.MaxAge > 0 && now.Sub(cn.made) >= c.MaxAge
}

// dropIdle closes the connections that have been idle at least as long as one
// that was found dead. Those that were used later are known to be alive.
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

// quiet says whether an idle connection is open, and nothing has come on it that nobody asked for.
func (cn *conn) quiet() bool {
	if !cn.look.quiet() {
		return false
	}
	if cn.secure == nil {
		return true
	}
	cn.SetReadDeadline(time.Unix(1, 0)) // what TLS has read ahead it gives all the same
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

// sweep closes the connections that have been idle for too long, now and again until there is none.
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

// exchange is one request and its answer.
type exchange struct {
	client *Client
	conn   *conn
	ctx    context.Context
	method string
	stop   func() bool // takes back that the end of ctx closes the connection
	upload *upload     // nil: the request has no body
}

// end gives the connection back, or closes it when it is not to be used again.
func (x *exchange) end(reusable bool) {
	if x.conn == nil {
		return
	}
	cn := x.conn
	x.conn = nil
	open := x.stop() // else it is being closed, perhaps not before the next request has it
	// What comes after an answer was not asked for: the next request must not get it.
	if open && reusable && (x.upload == nil || x.upload.complete()) && cn.r.Buffered() == 0 {
		x.client.push(cn)
		return
	}
	cn.Close()
}

// receive waits for the response's head.
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
			x.upload.goOn()
		}
	}
}

// readHead waits for the head of a response. It adds its length to read, which is
// bounded: an upstream can send any number of interim responses.
func (x *exchange) readHead(read *int) (*http.Response, error) {
	err := x.await()
	if err == nil {
		var resp *http.Response
		if resp, err = readHead(x.conn.r, read); err == nil {
			x.conn.SetReadDeadline(time.Time{})
			return resp, nil
		}
	} else if !errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("%w: %w", ErrDied, err)
	}
	if x.upload != nil && x.upload.over() && x.upload.unread != nil { // which explains why there is no answer
		return nil, unreadError{x.upload.unread}
	}
	return nil, err
}

// await waits for the first byte of an answer. The time for it runs from when the upstream has the whole request.
func (x *exchange) await() error {
	for t := x.client.HeaderTimeout; ; {
		uploading := x.upload != nil && !x.upload.over()
		if t > 0 {
			x.conn.SetReadDeadline(time.Now().Add(t))
		}
		_, err := x.conn.r.Peek(1)
		if err == nil || !uploading || !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
}

var buffers = sync.Pool{New: func() any { return new([uploadBuffer]byte) }}

const uploadBuffer = 64 << 10

// send writes the request's head, and begins to send its body.
func (x *exchange) send(req *http.Request, head []byte) error {
	if _, err := x.conn.Write(head); err != nil {
		return fmt.Errorf("%w: %w", ErrDied, err)
	}
	if hasBody(req) {
		x.upload = startUpload(x, req)
	}
	return nil
}

func hasBody(req *http.Request) bool {
	return req.Body != nil && req.Body != http.NoBody
}

// CheckRequest returns an error that wraps ErrInvalidRequest if RoundTrip would.
// It is for requests that another client sends.
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

// checkTarget checks what the first two lines of a request hold.
func checkTarget(req *http.Request, path string) error {
	if !token(req.Method) || !fieldValue(req.Host) {
		return errors.New("the request's method or host is not one")
	}
	for _, part := range [...]string{path, req.URL.RawQuery} {
		for i := range len(part) {
			if c := part[i]; c <= ' ' || c == 0x7f {
				return errors.New("the request's target holds a space or a control character")
			}
		}
	}
	return nil
}

func checkField(name, value string) error {
	if !token(name) {
		return fmt.Errorf("the request's header has the name %.40q", name)
	}
	if !fieldValue(value) {
		return fmt.Errorf("the request's header %s holds a control character", name)
	}
	return nil
}

// appendHead writes a request's head. What could be read as more than one header field is refused, though the caller should know.
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

// upload sends a request's body while the answer is awaited, and longer: an upstream may answer before it has all of it.
type upload struct {
	goOn func() // the upstream wants the body
	done chan struct{}
	// Set before done is closed:
	unread error // why the body could not be read
	sent   bool  // all of it
}

// startUpload sends the body on a goroutine that ends with the body, with an error of its reader, or with the connection. It closes the body then.
func startUpload(x *exchange, req *http.Request) *upload {
	u := &upload{done: make(chan struct{}), goOn: func() {}}
	wanted := make(chan struct{})
	if strings.EqualFold(req.Header.Get("Expect"), "100-continue") {
		u.goOn = sync.OnceFunc(func() { close(wanted) })
	} else {
		close(wanted)
	}
	cn, body, length := x.conn, req.Body, req.ContentLength // the request is its caller's again when there is an answer
	go func() {
		select {
		case <-wanted:
		case <-time.After(continueTimeout):
		case <-x.ctx.Done():
		}
		err := sendBody(cn, body, length)
		u.sent = err == nil
		if unread := (unreadError{}); errors.As(err, &unread) {
			u.unread = unread.error
		}
		body.Close()
		close(u.done)
		if u.unread != nil {
			cn.Close() // the upstream must not take what it has for all
		}
	}()
	return u
}

func (u *upload) over() bool {
	select {
	case <-u.done:
		return true
	default:
		return false
	}
}

// complete says whether all of the body was sent.
func (u *upload) complete() bool { return u.over() && u.sent }

// unreadError is an error in reading a request's body.
type unreadError struct{ error }

// sendBody writes a request's body with its framing: in chunks where the length is negative.
func sendBody(w io.Writer, body io.Reader, length int64) error {
	buf := buffers.Get().(*[uploadBuffer]byte)
	defer buffers.Put(buf)
	const size, end = 8, 2 // of the lines around a chunk: its length in four hexadecimal digits is enough
	chunked := length < 0
	var sent int64
	for {
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
			return unreadError{errors.New("the request's body is longer than its Content-Length")}
		case n > 0:
			if _, err := w.Write(buf[size : size+n]); err != nil {
				return err
			}
		}
		switch {
		case err != nil && err != io.EOF:
			return unreadError{err}
		case err == io.EOF && chunked:
			_, err := io.WriteString(w, "0\r\n\r\n")
			return err
		case err == io.EOF && sent < length:
			return unreadError{io.ErrUnexpectedEOF}
		case err == io.EOF:
			return nil
		}
	}
}
