package bff

import (
	"crypto/tls"
	"net"
	"time"
)

// http2Conn is a connection with HTTP/2. It bounds how long the client may take
// for a header, as net/http does in HTTP/1.1 only. While memory is scarce, it
// closes the connection of a large header.
type http2Conn struct {
	net.Conn // a *tls.Conn, whose methods would make net/http take it for one with HTTP/1.1
	checks   *checks

	// Of what was read. Only one goroutine reads.
	preface int     // how much of the client's preface is missing, in bytes
	head    [9]byte // of a frame (RFC 9113, section 4.1)
	read    int     // how much of head was read
	left    int     // of the frame's payload
	header  int     // size of the header block so far; 0: none has begun
	timer   *time.Timer
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

func newHTTP2Conn(c *tls.Conn, checks *checks) *http2Conn {
	return &http2Conn{Conn: c, checks: checks, preface: prefaceLength}
}

func (c *http2Conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.scan(p[:n])
	switch open := err == nil && c.open(); {
	case open && c.timer == nil:
		c.timer = time.AfterFunc(headerTimeout, func() { c.Close() }) // stopped by Read
	case !open && c.timer != nil:
		c.timer.Stop()
		c.timer = nil
	}
	if c.header > overloadedBlock && c.checks.memory.isScarce() {
		c.checks.memory.refuse(c.checks.log, clientOf(c))
		c.Close()
		return 0, net.ErrClosed
	}
	return n, err
}

// NetConn returns the connection that c reads from.
func (c *http2Conn) NetConn() net.Conn { return c.Conn }

// open reports whether a header block has begun and not ended, or a frame other
// than DATA, or the preface.
func (c *http2Conn) open() bool {
	return c.preface > 0 || c.header > 0 || c.read > 0 && c.head[3] != frameData
}

// scan follows the frames.
func (c *http2Conn) scan(p []byte) {
	n := min(c.preface, len(p))
	c.preface -= n
	for p = p[n:]; len(p) > 0; {
		if c.read < len(c.head) {
			n := copy(c.head[c.read:], p)
			c.read += n
			p = p[n:]
			if c.read < len(c.head) {
				return
			}
			c.left = int(c.head[0])<<16 | int(c.head[1])<<8 | int(c.head[2])
			if c.isHeader() {
				c.header += len(c.head) + c.left
			}
		}
		n := min(c.left, len(p))
		c.left -= n
		p = p[n:]
		if c.left == 0 {
			c.endFrame()
		}
	}
}

func (c *http2Conn) isHeader() bool {
	kind := c.head[3]
	return kind == frameHeaders || kind == framePush || kind == frameContinued
}

func (c *http2Conn) endFrame() {
	if c.isHeader() && c.head[4]&flagEndHeaders != 0 {
		c.header = 0
	}
	c.read = 0
}
