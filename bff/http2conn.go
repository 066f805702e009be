package bff

import (
	"crypto/tls"
	"net"
	"sync"
	"time"
)

// http2Conn is a connection with HTTP/2. It bounds how long the client may take
// for a header, as net/http does in HTTP/1.1 only. While memory is scarce, it
// closes the connection of a large header. It sends a GOAWAY that loses no
// request.
type http2Conn struct {
	net.Conn // a *tls.Conn, whose methods would make net/http take it for one with HTTP/1.1
	checks   *checks

	// Of what was read. Only one goroutine reads.
	preface int // how much of the client's preface is missing, in bytes
	in      frames
	timer   *time.Timer

	mu     sync.Mutex // held while frames are written; guards the fields below
	out    frames
	leave  time.Time // since when GOAWAY is to be sent; zero: it is not
	goAway bool      // it was sent
}

const (
	prefaceLength = 24 // RFC 9113, section 3.4
	// headerTimeout is how long a header may take, and a frame that is not
	// DATA. Of DATA, Config.BodyMinRate bounds the rate.
	headerTimeout = 10 * time.Second

	frameData       = 0 // RFC 9113, section 6
	frameHeaders    = 1
	framePush       = 5
	frameContinued  = 9
	flagEndHeaders  = 4
	overloadedBlock = 8 << 10 // as in HTTP/1.1, see http1.ServerConn
)

// goAwayFrame is a GOAWAY without an error. Its last stream is the highest
// possible one, so that no request is lost that is on its way (RFC 9113,
// section 6.8). net/http names the last stream that it has read, and ignores
// those that follow.
var goAwayFrame = []byte{
	0, 0, 8, // length
	7, 0, // GOAWAY, no flags
	0, 0, 0, 0, // the connection
	0x7f, 0xff, 0xff, 0xff, // last stream
	0, 0, 0, 0, // NO_ERROR
}

func newHTTP2Conn(c *tls.Conn, checks *checks) *http2Conn {
	return &http2Conn{Conn: c, checks: checks, preface: prefaceLength}
}

func (c *http2Conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	read := min(c.preface, n)
	c.preface -= read
	c.in.scan(p[read:n])
	switch open := err == nil && (c.preface > 0 || c.in.open()); {
	case open && c.timer == nil:
		c.timer = time.AfterFunc(headerTimeout, func() { c.Close() }) // stopped by Read
	case !open && c.timer != nil:
		c.timer.Stop()
		c.timer = nil
	}
	if c.in.header > overloadedBlock && c.checks.memory.isScarce() {
		c.checks.memory.refuse(c.checks.log, clientOf(c))
		c.Close()
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *http2Conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := c.Conn.Write(p)
	c.out.scan(p[:n])
	c.writeGoAway()
	return n, err
}

// sendGoAway tells the client to send new requests elsewhere. Those on their
// way are served. It returns when it was called first.
func (c *http2Conn) sendGoAway() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.leave.IsZero() {
		c.leave = time.Now()
	}
	c.writeGoAway()
	return c.leave
}

// writeGoAway writes the GOAWAY that is to be sent, unless a frame or header
// block is incomplete. The server's first frame is SETTINGS (RFC 9113, section
// 3.4). c.mu is held.
func (c *http2Conn) writeGoAway() {
	if c.leave.IsZero() || c.goAway || !c.out.begun || c.out.read > 0 || c.out.header > 0 {
		return
	}
	c.goAway = true
	c.Conn.Write(goAwayFrame) // an error is that of the next Write, too
}

// NetConn returns the connection that c reads from.
func (c *http2Conn) NetConn() net.Conn { return c.Conn }

// frames follows the frames of one direction.
type frames struct {
	begun  bool    // there was a frame
	head   [9]byte // of a frame (RFC 9113, section 4.1)
	read   int     // how much of head was read
	left   int     // of the frame's payload
	header int     // size of the header block so far; 0: none has begun
}

// open reports whether a header block has begun and not ended, or a frame other
// than DATA.
func (f *frames) open() bool { return f.header > 0 || f.read > 0 && f.head[3] != frameData }

func (f *frames) scan(p []byte) {
	for len(p) > 0 {
		if f.read < len(f.head) {
			n := copy(f.head[f.read:], p)
			f.read += n
			p = p[n:]
			if f.read < len(f.head) {
				return
			}
			f.left = int(f.head[0])<<16 | int(f.head[1])<<8 | int(f.head[2])
			if f.isHeader() {
				f.header += len(f.head) + f.left
			}
		}
		n := min(f.left, len(p))
		f.left -= n
		p = p[n:]
		if f.left == 0 {
			f.endFrame()
		}
	}
}

func (f *frames) isHeader() bool {
	kind := f.head[3]
	return kind == frameHeaders || kind == framePush || kind == frameContinued
}

func (f *frames) endFrame() {
	if f.isHeader() && f.head[4]&flagEndHeaders != 0 {
		f.header = 0
	}
	f.begun = true
	f.read = 0
}
