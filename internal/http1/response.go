package http1

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
)

// MaxResponseHead is the maximum size of a response head, in bytes.
const MaxResponseHead = 256 << 10

var errHead = errors.New("the head of the response is too long")

// readHead reads the status line and the header of a response (RFC 9112,
// sections 4 and 5). It adds their length to read, the length of the heads
// before it.
func readHead(r *bufio.Reader, read *int) (*http.Response, error) {
	text, err := readLines(r)
	if err != nil {
		return nil, err
	}
	if *read += len(text); *read > MaxResponseHead {
		return nil, errHead
	}
	status, text, _ := strings.Cut(text, "\n")
	status = strings.TrimSuffix(status, "\r")
	resp := &http.Response{ProtoMajor: 1, Proto: "HTTP/1.1", ProtoMinor: 1}
	version, rest, _ := strings.Cut(status, " ")
	switch version {
	case "HTTP/1.1":
	case "HTTP/1.0":
		resp.Proto, resp.ProtoMinor = version, 0
	default:
		return nil, fmt.Errorf("the response begins with %.20q", version)
	}
	code, _, _ := strings.Cut(rest, " ")
	if resp.StatusCode, err = strconv.Atoi(code); err != nil || len(code) != 3 || resp.StatusCode < 100 {
		return nil, fmt.Errorf("invalid status %.20q in the response", code)
	}
	resp.Header, err = parseFields(text)
	return resp, err
}

// readLines reads up to the first empty line and returns the lines, with their
// ends.
func readLines(r *bufio.Reader) (string, error) {
	// Usually everything has arrived already.
	buffered, _ := r.Peek(r.Buffered())
	if n := headLength(buffered); n > 0 {
		text := string(buffered[:n])
		r.Discard(n)
		return text, nil
	}
	var all []byte
	for line := 0; ; {
		part, err := r.ReadSlice('\n')
		all = append(all, part...)
		switch {
		case len(all) > MaxResponseHead:
			return "", errHead
		case err == bufio.ErrBufferFull:
		case err == io.EOF:
			return "", io.ErrUnexpectedEOF
		case err != nil:
			return "", err
		case headLength(all[line:]) > 0:
			return string(all), nil
		default:
			line = len(all)
		}
	}
}

// headLength returns the length of b up to and including the first empty line,
// or 0 if there is none.
func headLength(b []byte) int {
	for at := 0; ; {
		i := bytes.IndexByte(b[at:], '\n')
		if i < 0 {
			return 0
		}
		if i == 0 || i == 1 && b[at] == '\r' {
			return at + i + 1
		}
		at += i + 1
	}
}

// parseFields parses header fields, one per line, and skips empty lines. It
// rejects folded lines and everything else that readers could interpret in two
// ways.
func parseFields(text string) (http.Header, error) {
	n := max(1, strings.Count(text, "\n")) - 1 // the last line of a head is empty
	fields := make([]string, 0, 2*n)
	for line := range strings.SplitSeq(text, "\n") {
		if line = strings.TrimSuffix(line, "\r"); line == "" {
			continue
		}
		name, value, ok := cutField(line)
		if !ok {
			return nil, errors.New("malformed header line in the response") // not shown: it may be secret
		}
		if !isFieldValue(value) {
			return nil, fmt.Errorf("the header %.40s of the response contains a control character", name)
		}
		fields = append(fields, name, value)
	}
	return newHeader(fields), nil
}

// body determines the length of the body (RFC 9112, section 6.3) and sets
// resp.Body. It releases the connection if there is no body.
func (x *exchange) body(resp *http.Response) error {
	h := resp.Header
	encoding, lengths := h["Transfer-Encoding"], h["Content-Length"]
	delete(h, "Transfer-Encoding")
	keep := resp.ProtoMinor == 1 && !closes(h["Connection"])
	resp.ContentLength = -1
	b := &body{x: x, resp: resp, keep: keep}
	switch {
	case len(encoding) > 0 && (len(lengths) > 0 || resp.ProtoMinor == 0 ||
		len(encoding) > 1 || !strings.EqualFold(encoding[0], "chunked")):
		// Possibly response splitting (RFC 9112, section 6.1).
		return errors.New("the response has a Transfer-Encoding other than chunked, or a Content-Length as well")
	case len(lengths) > 0:
		length, err := contentLength(lengths)
		if err != nil {
			return err
		}
		resp.ContentLength, b.left = length, length
		h["Content-Length"] = lengths[:1]
	}
	switch {
	case x.method == http.MethodHead,
		resp.StatusCode == http.StatusNoContent, resp.StatusCode == http.StatusNotModified:
		if resp.StatusCode == http.StatusNoContent && (len(encoding) > 0 || b.left > 0) {
			b.keep = false // a body may follow that must not be taken for the next response
		}
		b.left = 0
	case len(encoding) > 0:
		b.left, b.chunks = -1, new(chunks)
		resp.Trailer = announcedTrailer(h["Trailer"])
	case len(lengths) == 0:
		b.left, b.keep = -1, false // until the upstream closes the connection
	}
	if resp.Body = b; b.left == 0 {
		resp.Body = http.NoBody
		x.end(b.keep)
	}
	return nil
}

// contentLength parses Content-Length. It may occur several times with the same
// value (RFC 9110, section 8.6).
func contentLength(values []string) (int64, error) {
	for _, v := range values {
		if v != values[0] {
			return 0, errors.New("the response has two values of Content-Length")
		}
	}
	length, err := strconv.ParseUint(values[0], 10, 63)
	if err != nil {
		return 0, fmt.Errorf("invalid Content-Length %.20q in the response", values[0])
	}
	return int64(length), nil
}

// closes reports whether a Connection header has the option close.
func closes(values []string) bool {
	for _, v := range values {
		for option := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(trimSpace(option), "close") {
				return true
			}
		}
	}
	return false
}

// announcedTrailer returns the names in a Trailer header, without values.
func announcedTrailer(values []string) http.Header {
	var trailer http.Header
	for _, v := range values {
		for name := range strings.SplitSeq(v, ",") {
			if name = textproto.CanonicalMIMEHeaderKey(trimSpace(name)); name != "" {
				if trailer == nil {
					trailer = make(http.Header)
				}
				trailer[name] = nil
			}
		}
	}
	return trailer
}

// body is the body of a response. At its end the connection is released.
type body struct {
	x      *exchange
	resp   *http.Response
	keep   bool    // the connection can be reused afterwards
	chunks *chunks // nil if the body is not chunked
	left   int64   // bytes that remain; -1 if the length is unknown
	err    error   // returned by every further Read
}

func (b *body) Read(p []byte) (int, error) {
	for {
		if n, err := b.ReadPart(p); n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
	}
}

// ReadPart is Read, but waits only once. It returns 0 and no error if what has
// arrived by then contains no data, such as the end of a chunk.
func (b *body) ReadPart(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := b.read(p)
	if err == nil {
		return n, nil
	}
	if b.err = err; err != io.EOF && b.x.ctx.Err() != nil {
		b.err = b.x.ctx.Err()
	}
	b.x.end(b.keep && err == io.EOF)
	return n, b.err
}

func (b *body) read(p []byte) (int, error) {
	switch {
	case b.chunks != nil:
		n, err := b.x.conn.readBody(p)
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return b.decode(p[:n], err)
	case b.left < 0:
		return b.x.conn.readBody(p)
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.x.conn.readBody(p)
	switch b.left -= int64(n); {
	case b.left == 0:
		err = io.EOF
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// decode replaces what has arrived of a chunked body by the data in it, and
// returns the length of that. err is the error of reading it.
func (b *body) decode(p []byte, err error) (int, error) {
	length := 0
	for at := 0; at < len(p); {
		if b.chunks.state == chunksDone {
			b.keep = false // the rest belongs to no response
			break
		}
		n, data := b.chunks.next(p[at:])
		if n < 0 {
			return length, errors.New("the chunks of the response are malformed")
		}
		if data {
			length += copy(p[length:], p[at:at+n])
		}
		at += n
	}
	if b.chunks.state != chunksDone {
		return length, err
	}
	if len(b.chunks.trailer) > 0 {
		if b.resp.Trailer, err = parseFields(string(b.chunks.trailer)); err != nil {
			return length, err
		}
	}
	return length, io.EOF
}

// Arrived returns the rest of the body if it is buffered. It is valid until the
// body is closed, which keeps the connection then.
func (b *body) Arrived() (rest []byte, ok bool) {
	if b.err != nil || b.chunks != nil || b.left < 0 || int64(b.x.conn.r.Buffered()) < b.left {
		return nil, false
	}
	rest, _ = b.x.conn.r.Peek(int(b.left))
	return rest, true
}

// Ready reports whether the next Read is known to return without waiting. It is
// not known with TLS.
func (b *body) Ready() bool {
	if b.err != nil || b.x.conn.r.Buffered() > 0 {
		return true
	}
	if b.x.conn.secure != nil {
		return false
	}
	quiet, known := b.x.conn.rw.Quiet()
	return known && !quiet
}

// Close ends the exchange. It does not wait for the rest of the body.
func (b *body) Close() error {
	if b.err == nil {
		rest, arrived := b.Arrived()
		b.x.conn.r.Discard(len(rest))
		b.err = http.ErrBodyReadAfterClose
		b.x.end(b.keep && arrived)
	}
	return nil
}

// tunnel is the connection after status 101.
type tunnel struct{ x *exchange }

func (t *tunnel) Read(p []byte) (int, error)  { return t.x.conn.r.Read(p) }
func (t *tunnel) Write(p []byte) (int, error) { return t.x.conn.Write(p) }

// CloseWrite closes the direction to the upstream.
func (t *tunnel) CloseWrite() error {
	if c, ok := t.x.conn.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

func (t *tunnel) Close() error {
	t.x.stop.Stop()
	return t.x.conn.Close()
}
