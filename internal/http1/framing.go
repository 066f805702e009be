package http1

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
)

// ServerConn returns a connection from which a server reads only requests with
// unambiguous framing (RFC 9112, sections 2.2, 5, 6 and 7). If another server
// could see a different end of a request, or two requests, the data is
// corrupted on the way: the server then responds with 400 and closes the
// connection.
//
// If the head of a request, its request line and header, is larger than maxHead
// bytes or has more than MaxFields fields, the server reads letters instead of
// the rest, without end, until it responds with 431.
//
// While overloaded returns true, a connection is closed if it sends a head
// larger than 8 KiB. It may be nil.
//
// refused is called with the cause for each request that reaches no handler:
// one that is corrupted, or that net/http rejects by itself. The status is that
// of the response, or 503 if an overload closed the connection. It may be nil.
//
// ServerConn is for HTTP/1.1. It does not check what follows a request to
// switch protocols. A server that does not switch must close the connection.
func ServerConn(
	c net.Conn, maxHead int, overloaded func() bool, refused func(status int, cause string),
) net.Conn {
	if refused == nil {
		refused = func(int, string) {}
	}
	return &serverConn{Conn: c, framing: framing{maxHead: maxHead}, overloaded: overloaded, refused: refused}
}

// MaxFields is the maximum number of fields in a header. A server needs about
// 100 bytes of memory for each, however short it is.
const MaxFields = 1000

// overloadedHead is the maximum length of a head while the server is
// overloaded.
const overloadedHead = 8 << 10

var errOverloaded = errors.New("the server is overloaded")

type serverConn struct {
	net.Conn
	unread     []byte // was read from Conn before
	framing    framing
	overloaded func() bool
	refused    func(status int, cause string)
	told       atomic.Bool // refused has been called; Read and Write run concurrently
	inBody     atomic.Bool // the rest of a body is to follow
	closing    atomic.Bool // Close has been called
	broken     []byte      // replaces what the client sends, unless it is nil
}

// breaker is invalid anywhere in a request: a server that reads it rejects the
// request.
var breaker = []byte("\x00\r\n\r\n")

func (c *serverConn) Read(p []byte) (int, error) {
	if c.framing.tooLarge {
		for i := range p {
			p[i] = 'a'
		}
		return len(p), nil
	}
	if c.broken != nil {
		if len(c.broken) == 0 {
			return 0, io.EOF
		}
		n := copy(p, c.broken)
		c.broken = c.broken[n:]
		return n, nil
	}
	n, err := copy(p, c.unread), error(nil)
	if c.unread = c.unread[n:]; n == 0 {
		n, err = c.Conn.Read(p)
	}
	good := c.framing.parse(p[:n])
	c.inBody.Store(c.framing.inBody)
	if c.framing.inHead && c.framing.head > overloadedHead && c.overloaded != nil && c.overloaded() {
		c.refused(http.StatusServiceUnavailable, errOverloaded.Error())
		return 0, &net.OpError{Op: "read", Err: errOverloaded} // to which net/http does not respond
	}
	if c.framing.tooLarge {
		if good == 0 {
			return c.Read(p)
		}
		return good, nil
	}
	if good < n {
		c.broken = breaker
		c.told.Store(true)
		if c.framing.inHead { // otherwise a handler gets an error from the body
			c.refused(http.StatusBadRequest, c.framing.problem)
		}
		if good == 0 && n > 0 {
			return c.Read(p)
		}
		return good, nil
	}
	if c.framing.expectation {
		c.framing.expectation = false
		c.refused(http.StatusExpectationFailed, "unknown expectation") // the response of net/http
	}
	return n, err
}

// Write detects responses of net/http itself, to a request that it cannot parse
// or that is too large. Only such a response begins with ownHeader.
func (c *serverConn) Write(p []byte) (int, error) {
	status, rest, _ := bytes.Cut(p[:min(len(p), maxOwn)], []byte("\r\n"))
	if !c.told.Load() && bytes.HasPrefix(rest, ownHeader) {
		digits := status[min(len(status), len("HTTP/1.1 ")):min(len(status), len("HTTP/1.1 400"))]
		if code, err := strconv.Atoi(string(digits)); err == nil {
			c.refused(code, string(bytes.TrimPrefix(rest, ownHeader)))
		}
	}
	return c.Conn.Write(p)
}

// ownHeader is the header of net/http's own responses, which have no Date.
// maxOwn is how much of a response is searched for it.
var ownHeader = []byte("Content-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n")

const maxOwn = 256

// ReadFrom lets the server use splice: Write need not see proxied data.
func (c *serverConn) ReadFrom(r io.Reader) (int64, error) { return io.Copy(c.Conn, r) }

// Close closes the connection. If the client still sends the body of a request,
// it first gets the time to read the response.
func (c *serverConn) Close() error {
	if c.inBody.Load() && !c.closing.Swap(true) {
		go func() { // for lingerTime at most
			linger(c.Conn)
			c.Conn.Close()
		}()
		return nil
	}
	return c.Conn.Close()
}

// NetConn returns the connection that c reads from.
func (c *serverConn) NetConn() net.Conn { return c.Conn }

// CloseWrite closes the direction to the client.
func (c *serverConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Conn.Close()
}

// framing parses the framing of the requests on a connection.
type framing struct {
	// state parses the next part of a request. It returns how many bytes it has
	// parsed, or -1 if they are invalid. nil stands for a request line.
	state  func(*framing, []byte) int
	lines  lineParser // of the head
	left   int64      // of a body with a length
	chunks chunks     // of another body

	maxHead  int  // maximum length of a head
	head     int  // length of the head so far
	fields   int  // in the head so far
	tooLarge bool // the head is larger than maxHead, or has more than MaxFields

	problem     string // why the request is invalid
	inHead      bool   // in the head of a request: no handler has it yet
	inBody      bool   // in the body of a request
	expectation bool   // net/http rejects the request because of Expect

	// Of the head that is being parsed:
	http10                 bool
	host, lengths, codings int // number of these fields
	length                 int64
	upgrade                bool
	expected               bool // something other than 100-continue
}

// parse parses what the client sends. It returns how much of it is valid:
// len(b), or the length up to the first error.
func (f *framing) parse(b []byte) int {
	seen := 0
	for seen < len(b) {
		if f.state == nil {
			f.state, f.inHead, f.head, f.fields = (*framing).requestLine, true, 0, 0
		}
		inHead := f.inHead
		n := f.state(f, b[seen:])
		if inHead {
			f.head += max(0, n)
			f.tooLarge = f.head > f.maxHead || f.fields > MaxFields
		}
		if n < 0 || f.tooLarge {
			return seen
		}
		seen += n
	}
	return seen
}

// reject records why the request is invalid, and returns -1.
func (f *framing) reject(problem string) int {
	f.problem = problem
	return -1
}

// cutLine is lineParser.cut for a line of the head.
func (f *framing) cutLine(b []byte) (line []byte, n int, ok bool) {
	if line, n, ok = f.lines.cut(b); n < 0 {
		f.reject("a line does not end with CRLF")
	}
	return line, n, ok
}

// requestLine parses a request line (RFC 9112, section 3).
func (f *framing) requestLine(b []byte) int {
	line, n, ok := f.cutLine(b)
	if !ok {
		return n
	}
	method, rest, _ := bytes.Cut(line, space)
	target, version, _ := bytes.Cut(rest, space)
	control := func(c rune) bool { return c <= ' ' || c == 0x7f }
	if !isToken(method) || len(target) == 0 || bytes.ContainsFunc(target, control) {
		return f.reject("the request line is malformed")
	}
	*f = framing{
		lines: f.lines, state: (*framing).field, inHead: true, http10: string(version) == "HTTP/1.0",
		maxHead: f.maxHead, head: f.head,
	}
	if !f.http10 && string(version) != "HTTP/1.1" {
		return f.reject("the version is neither HTTP/1.1 nor HTTP/1.0")
	}
	return n
}

var space = []byte(" ")

// field parses a header line, or the empty line after the header (RFC 9112,
// section 5).
func (f *framing) field(b []byte) int {
	line, n, ok := f.cutLine(b)
	switch {
	case !ok:
		return n
	case len(line) == 0:
		return f.endOfHead(n)
	}
	f.fields++
	name, value, ok := bytes.Cut(line, []byte(":"))
	if !ok || !isToken(name) || !isFieldValue(value) { // includes folded lines, which begin with a space
		return f.reject("a header line is malformed")
	}
	value = bytes.Trim(value, " \t")
	switch len(name) {
	case len("Host"):
		if equalFold(name, "host") {
			f.host++
		}
	case len("Expect"):
		if equalFold(name, "expect") && len(value) > 0 &&
			!bytes.Contains(bytes.ToLower(value), []byte("100-continue")) {
			f.expected = true
		}
	case len("Upgrade"):
		// Servers switch to no other protocol.
		if equalFold(name, "upgrade") && bytes.Contains(bytes.ToLower(value), []byte("websocket")) {
			f.upgrade = true
		}
	case len("Content-Length"):
		if equalFold(name, "content-length") {
			f.lengths++
			if f.length, ok = digits(value, 10); !ok {
				return f.reject("the Content-Length is not a number")
			}
		}
	case len("Transfer-Encoding"):
		if equalFold(name, "transfer-encoding") {
			if f.codings++; !equalFold(value, "chunked") {
				return f.reject("the Transfer-Encoding is not chunked")
			}
		}
	}
	return n
}

func equalFold(b []byte, lower string) bool {
	return len(b) == len(lower) && bytes.EqualFold(b, []byte(lower))
}

// digits parses a number without a sign.
func digits(b []byte, base int64) (n int64, ok bool) {
	for _, c := range b {
		d := int64(0xff)
		switch {
		case '0' <= c && c <= '9':
			d = int64(c - '0')
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			d = int64(c|0x20-'a') + 10
		}
		if d >= base || n > (1<<62)/base {
			return 0, false
		}
		n = n*base + d
	}
	return n, len(b) > 0
}

// endOfHead determines the length of the body (RFC 9112, section 6.3).
// Ambiguity here is what request smuggling exploits.
func (f *framing) endOfHead(n int) int {
	f.expectation = f.expected
	switch {
	case f.host > 1 || f.host == 0 && !f.http10: // RFC 9112, section 3.2
		return f.reject("there is not exactly one Host")
	case f.lengths > 1 || f.codings > 1 || f.lengths > 0 && f.codings > 0 || f.codings > 0 && f.http10:
		return f.reject("Content-Length and Transfer-Encoding contradict each other, or one of them is there twice")
	case f.upgrade && (f.codings > 0 || f.length > 0):
		return f.reject("a request to switch protocols has a body")
	case f.upgrade:
		f.state = (*framing).otherProtocol
	case f.codings > 0:
		f.state = (*framing).chunk
	case f.length > 0:
		f.state, f.left = (*framing).body, f.length
	default:
		f.state = nil
	}
	f.inHead, f.inBody = false, f.codings > 0 || f.length > 0
	return n
}

func (f *framing) otherProtocol(b []byte) int { return len(b) }

func (f *framing) body(b []byte) int {
	n := min(int64(len(b)), f.left)
	if f.left -= n; f.left == 0 {
		f.state, f.inBody = nil, false
	}
	return int(n)
}

func (f *framing) chunk(b []byte) int {
	n, _ := f.chunks.next(b)
	if f.chunks.state == chunksDone {
		f.state, f.inBody = nil, false
	}
	return n
}
