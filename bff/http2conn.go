package bff

import (
	"crypto/tls"
	"net"
	"sync"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/http2frame"
)

// http2Conn is a connection with HTTP/2. It bounds how long the client may take
// for a header, as net/http does in HTTP/1.1 only. While memory is scarce, it
// closes the connection of a large header. It sends a GOAWAY that loses no
// request.
type http2Conn struct {
	net.Conn // a *tls.Conn, whose methods would make net/http take it for one with HTTP/1.1
	checks   *checks

	// Of what was read. Only one goroutine reads.
	in    http2frame.Scanner
	timer *time.Timer

	mu     sync.Mutex // held while frames are written; guards the fields below
	out    http2frame.Scanner
	leave  time.Time // since when GOAWAY is to be sent; zero: it is not
	goAway bool      // it was sent
}

const (
	// headerTimeout is how long a header may take, and a frame that is not
	// DATA. Of DATA, Config.BodyMinRate bounds the rate.
	headerTimeout = 10 * time.Second
	// overloadedBlock is the size of a header that is large, in bytes: as in
	// HTTP/1.1, see http1.ServerConn.
	overloadedBlock = 8 << 10
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
	return &http2Conn{Conn: c, checks: checks, in: http2frame.Scanner{Preface: http2frame.PrefaceLength}}
}

func (c *http2Conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.in.Scan(p[:n])
	switch open := err == nil && c.in.AwaitsMore(); {
	case open && c.timer == nil:
		c.timer = time.AfterFunc(headerTimeout, func() { c.Close() }) // stopped by Read
	case !open && c.timer != nil:
		c.timer.Stop()
		c.timer = nil
	}
	if c.in.BlockSize() > overloadedBlock && c.checks.memory.isScarce() {
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
	c.out.Scan(p[:n])
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

// writeGoAway writes the GOAWAY that is to be sent, unless it has to wait for
// the end of a frame. c.mu is held.
func (c *http2Conn) writeGoAway() {
	if c.leave.IsZero() || c.goAway || !c.out.Between() {
		return
	}
	c.goAway = true
	c.Conn.Write(goAwayFrame) // an error is that of the next Write, too
}

// NetConn returns the connection that c reads from.
func (c *http2Conn) NetConn() net.Conn { return c.Conn }
