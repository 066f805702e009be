package bff

import (
	"bytes"
	"net"
)

// WriteWithGoAway returns what a connection with HTTP/2 sends if GOAWAY is to
// be sent when n bytes of b were written.
func WriteWithGoAway(b []byte, n int) []byte {
	var sent sentBytes
	c := &http2Conn{Conn: &sent}
	c.Write(b[:n])
	c.sendGoAway()
	for i := range b[n:] {
		c.Write(b[n+i : n+i+1])
	}
	return sent.Bytes()
}

// sentBytes is a connection that keeps what is written.
type sentBytes struct {
	net.Conn
	bytes.Buffer
}

func (s *sentBytes) Read(p []byte) (int, error)  { return s.Buffer.Read(p) }
func (s *sentBytes) Write(p []byte) (int, error) { return s.Buffer.Write(p) }
