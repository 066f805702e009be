//go:build unix

package main

import (
	"bufio"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

const (
	eventsPath    = "/events/steady" // of a stream that has an event every eventInterval
	eventInterval = 10 * time.Millisecond
	socketPath    = "/events/socket"
	socketKey     = "dGhlIHNhbXBsZSBub25jZQ==" // of RFC 6455, section 1.3
)

// serveEvents sends an event of 128 bytes every eventInterval, until the other
// side closes.
func serveEvents(c net.Conn) {
	io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
	event := []byte("80\r\ndata: " + strings.Repeat("e", 128-len("data: \n\n")) + "\n\n\r\n")
	for {
		if _, err := c.Write(event); err != nil {
			return
		}
		time.Sleep(eventInterval)
	}
}

// serveSocket accepts a WebSocket, and sends each message back.
func serveSocket(c net.Conn, r *bufio.Reader, key string) {
	fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Accept: %s\r\n\r\n", acceptSocket(key))
	for {
		message, err := readFrame(r)
		if err != nil {
			return
		}
		if _, err := c.Write(appendFrame(nil, message, nil)); err != nil {
			return
		}
	}
}

// acceptSocket returns the Sec-WebSocket-Accept for a key (RFC 6455, section
// 4.2.2).
func acceptSocket(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// appendFrame appends a binary message of 126 to 65535 bytes as one frame (RFC
// 6455, section 5.2). The mask is that of a client, or nil.
func appendFrame(b, message, mask []byte) []byte {
	b = append(b, 0x82, 126)
	b = binary.BigEndian.AppendUint16(b, uint16(len(message)))
	if mask == nil {
		return append(b, message...)
	}
	b[len(b)-3] |= 0x80
	b = append(b, mask...)
	for i, octet := range message {
		b = append(b, octet^mask[i%4])
	}
	return b
}

// readFrame reads a frame of appendFrame, and returns the message.
func readFrame(r *bufio.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	if head[0] != 0x82 || head[1]&^0x80 != 126 {
		return nil, fmt.Errorf("a frame begins with %x", head)
	}
	var mask [4]byte // all zero: none
	if head[1]&0x80 != 0 {
		if _, err := io.ReadFull(r, mask[:]); err != nil {
			return nil, err
		}
	}
	message := make([]byte, binary.BigEndian.Uint16(head[2:]))
	if _, err := io.ReadFull(r, message); err != nil {
		return nil, err
	}
	for i := range message {
		message[i] ^= mask[i%4]
	}
	return message, nil
}
