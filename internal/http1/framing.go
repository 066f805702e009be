package http1

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
)

// ServerConn returns a connection from which a server reads only requests whose framing can be read in one way (RFC 9112 2.2, 5, 6 and 7): one that
// another server could take to end somewhere else, or to be two, is broken on the way, so that the server answers 400 and hangs up.
// refused, unless it is nil, is called with the cause for each request of which no handler hears: one that is broken so, or that net/http answers itself.
// It is for HTTP/1.1; what follows a request to switch protocols is not looked at, and the server has to hang up where it does not switch.
func ServerConn(c net.Conn, refused func(status int, cause string)) net.Conn {
	if refused == nil {
		refused = func(int, string) {}
	}
	return &serverConn{Conn: c, refused: refused}
}

type serverConn struct {
	net.Conn
	framing framing
	refused func(status int, cause string)
	told    atomic.Bool // that the request is refused; Read and Write are called at once
	broken  []byte      // what the server reads from now on; nil: what the client sends
}

// breaker is no part of any request: a server that reads it refuses what it has read so far.
var breaker = []byte("\x00\r\n\r\n")

func (c *serverConn) Read(p []byte) (int, error) {
	if c.broken != nil {
		if len(c.broken) == 0 {
			return 0, io.EOF
		}
		n := copy(p, c.broken)
		c.broken = c.broken[n:]
		return n, nil
	}
	n, err := c.Conn.Read(p)
	if good := c.framing.look(p[:n]); good < n {
		c.broken = breaker
		c.told.Store(true)
		if c.framing.inHead { // otherwise a handler reads the body, and fails
			c.refused(http.StatusBadRequest, c.framing.problem)
		}
		if good == 0 && n > 0 {
			return c.Read(p)
		}
		return good, nil
	}
	if c.framing.expectation {
		c.framing.expectation = false
		c.refused(http.StatusExpectationFailed, "unknown expectation") // net/http answers so
	}
	return n, err
}

// Write sees what net/http itself answers to a request that it cannot read, or
// that is too large. Such a response, and no other, begins with ownHeader.
func (c *serverConn) Write(p []byte) (int, error) {
	if status, rest, ok := bytes.Cut(p[:min(len(p), maxOwn)], []byte("\r\n")); ok && !c.told.Load() && bytes.HasPrefix(rest, ownHeader) {
		if code, err := strconv.Atoi(string(status[min(len(status), len("HTTP/1.1 ")):min(len(status), len("HTTP/1.1 400"))])); err == nil {
			c.refused(code, string(bytes.TrimPrefix(rest, ownHeader)))
		}
	}
	return c.Conn.Write(p)
}

// ownHeader is what net/http writes before its own responses: it has no Date.
// maxOwn bounds how much of them is read.
var ownHeader = []byte("Content-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n")

const maxOwn = 256

// ReadFrom lets the server copy from an upstream's connection without looking at it.
func (c *serverConn) ReadFrom(r io.Reader) (int64, error) { return io.Copy(c.Conn, r) }

// CloseWrite tells the client that nothing more will come.
func (c *serverConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Conn.Close()
}

// framing follows the requests on a connection.
type framing struct {
	at   func(*framing, []byte) int // what comes next, and how much of it is there; -1: it is not right. nil: a request line
	line []byte                     // the beginning of a line whose end is not there yet
	left int64                      // of the body, or of the chunk

	problem     string // why it is not right
	inHead      bool   // the head of a request is being read: no handler has it
	expectation bool   // net/http refuses the request for what it expects

	// Of the request whose head is being read:
	old                    bool // HTTP/1.0
	host, lengths, codings int  // how often the field is there
	length                 int64
	upgrade                bool
	expected               bool // something else than 100-continue
}

// maxLine bounds what is kept of a line. A server takes none that is so long.
const maxLine = 64 << 10

// look follows what the client sends, and returns how much of it is right: all of it, or what is before the first thing that is not.
func (f *framing) look(b []byte) int {
	seen := 0
	for seen < len(b) {
		if f.at == nil {
			f.at, f.inHead = (*framing).requestLine, true
		}
		n := f.at(f, b[seen:])
		if n < 0 {
			return seen
		}
		seen += n
	}
	return seen
}

// refuse says why what comes next is not right.
func (f *framing) refuse(problem string) int {
	f.problem = problem
	return -1
}

// cut returns the line that b goes on with, without its end, and how much of b that is. A line that is not complete yet is kept, and ok is
// false. -1 says that it does not end with CRLF (RFC 9112 2.2).
func (f *framing) cut(b []byte) (line []byte, n int, ok bool) {
	i := bytes.IndexByte(b, '\n')
	if i < 0 {
		if f.line = append(f.line, b...); len(f.line) > maxLine {
			return nil, f.refuse("a line is too long"), false
		}
		return nil, len(b), false
	}
	line = b[:i]
	if len(f.line) > 0 {
		line = append(f.line, line...)
		f.line = line[:0]
	}
	if end := len(line) - 1; end >= 0 && line[end] == '\r' {
		return line[:end], i + 1, true
	}
	return nil, f.refuse("a line does not end with CRLF"), false
}

// requestLine is RFC 9112 3.
func (f *framing) requestLine(b []byte) int {
	line, n, ok := f.cut(b)
	if !ok {
		return n
	}
	method, rest, _ := bytes.Cut(line, space)
	target, version, _ := bytes.Cut(rest, space)
	if !token(method) || len(target) == 0 || bytes.ContainsFunc(target, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
		return f.refuse("the request line is malformed")
	}
	*f = framing{line: f.line, at: (*framing).field, inHead: true, old: string(version) == "HTTP/1.0"}
	if !f.old && string(version) != "HTTP/1.1" {
		return f.refuse("the version is neither HTTP/1.1 nor HTTP/1.0")
	}
	return n
}

var space = []byte(" ")

// field is a line of the header, or the empty line at its end (RFC 9112 5).
func (f *framing) field(b []byte) int {
	line, n, ok := f.cut(b)
	switch {
	case !ok:
		return n
	case len(line) == 0:
		return f.endOfHead(n)
	}
	name, value, ok := bytes.Cut(line, []byte(":"))
	if !ok || !token(name) || !fieldValue(value) { // so is a folded line, which begins with a space
		return f.refuse("a header line is malformed")
	}
	value = bytes.Trim(value, " \t")
	switch len(name) {
	case len("Host"):
		if equalFold(name, "host") {
			f.host++
		}
	case len("Expect"):
		if equalFold(name, "expect") && len(value) > 0 && !bytes.Contains(bytes.ToLower(value), []byte("100-continue")) {
			f.expected = true
		}
	case len("Upgrade"):
		if equalFold(name, "upgrade") && bytes.Contains(bytes.ToLower(value), []byte("websocket")) { // no server switches to another protocol
			f.upgrade = true
		}
	case len("Content-Length"):
		if equalFold(name, "content-length") {
			f.lengths++
			if f.length, ok = digits(value, 10); !ok {
				return f.refuse("the Content-Length is not a number")
			}
		}
	case len("Transfer-Encoding"):
		if equalFold(name, "transfer-encoding") {
			if f.codings++; !equalFold(value, "chunked") {
				return f.refuse("the Transfer-Encoding is not chunked")
			}
		}
	}
	return n
}

func equalFold(b []byte, lower string) bool {
	return len(b) == len(lower) && bytes.EqualFold(b, []byte(lower))
}

// digits reads a number that is written with digits alone.
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

// endOfHead finds out where the body ends (RFC 9112 6.3). It is where the requests smuggled past a proxy differ from others.
func (f *framing) endOfHead(n int) int {
	f.expectation = f.expected
	switch {
	case f.host > 1 || f.host == 0 && !f.old: // RFC 9112 3.2
		return f.refuse("there is not exactly one Host")
	case f.lengths > 1 || f.codings > 1 || f.lengths > 0 && f.codings > 0 || f.codings > 0 && f.old:
		return f.refuse("Content-Length and Transfer-Encoding contradict each other, or one of them is there twice")
	case f.upgrade && (f.codings > 0 || f.length > 0):
		return f.refuse("a request to switch protocols has a body")
	case f.upgrade:
		f.at = (*framing).otherProtocol
	case f.codings > 0:
		f.at = (*framing).chunkSize
	case f.length > 0:
		f.at, f.left = (*framing).body, f.length
	default:
		f.at = nil
	}
	f.inHead = false
	return n
}

func (f *framing) otherProtocol(b []byte) int { return len(b) }

func (f *framing) body(b []byte) int {
	n := min(int64(len(b)), f.left)
	if f.left -= n; f.left == 0 {
		f.at = nil
	}
	return int(n)
}

// chunkSize is the line before a chunk (RFC 9112 7.1).
func (f *framing) chunkSize(b []byte) int {
	line, n, ok := f.cut(b)
	if !ok {
		return n
	}
	size, extension, _ := bytes.Cut(line, []byte(";"))
	if f.left, ok = digits(bytes.TrimRight(size, " \t"), 16); !ok || !fieldValue(extension) {
		return -1
	}
	if f.at = (*framing).chunk; f.left == 0 {
		f.at = (*framing).trailer
	}
	return n
}

func (f *framing) chunk(b []byte) int {
	n := min(int64(len(b)), f.left)
	if f.left -= n; f.left == 0 {
		f.at = (*framing).chunkEnd
	}
	return int(n)
}

// chunkEnd is the empty line behind a chunk.
func (f *framing) chunkEnd(b []byte) int {
	line, n, ok := f.cut(b)
	switch {
	case !ok:
		return n
	case len(line) > 0:
		return -1
	}
	f.at = (*framing).chunkSize
	return n
}

// trailer is a line of the trailer, or the empty line at its end.
func (f *framing) trailer(b []byte) int {
	line, n, ok := f.cut(b)
	switch {
	case !ok:
		return n
	case len(line) == 0:
		f.at = nil
		return n
	}
	if name, value, ok := bytes.Cut(line, []byte(":")); !ok || !token(name) || !fieldValue(value) {
		return -1
	}
	return n
}
