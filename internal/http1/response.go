package http1

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/textproto"
	"strconv"
	"strings"
)

// maxHead bounds the head of an answer, and its trailer.
const maxHead = 256 << 10

var errHead = errors.New("the answer's head is too long")

// readHead reads the status line and the header of a response (RFC 9112, sections
// 4 and 5). read is how much has been read of the heads before it, and is updated.
func readHead(r *bufio.Reader, read *int) (*http.Response, error) {
	text, err := readLines(r)
	if err != nil {
		return nil, err
	}
	if *read += len(text); *read > maxHead {
		return nil, errHead
	}
	status, text, _ := strings.Cut(text, "\n")
	resp := &http.Response{ProtoMajor: 1, Proto: "HTTP/1.1", ProtoMinor: 1}
	version, rest, _ := strings.Cut(status, " ")
	switch version {
	case "HTTP/1.1":
	case "HTTP/1.0":
		resp.Proto, resp.ProtoMinor = version, 0
	default:
		return nil, fmt.Errorf("the answer begins with %.20q", version)
	}
	code, _, _ := strings.Cut(rest, " ")
	if resp.StatusCode, err = strconv.Atoi(code); err != nil || len(code) != 3 || resp.StatusCode < 100 {
		return nil, fmt.Errorf("the answer has the status %.20q", code)
	}
	resp.Header, err = parseFields(text)
	return resp, err
}

// readLines reads up to an empty line, and returns what is before it with a line feed at each line's end.
func readLines(r *bufio.Reader) (string, error) {
	// Mostly it has arrived at once.
	buffered, _ := r.Peek(r.Buffered())
	if n := headLength(buffered); n > 0 {
		text := joined(buffered[:n])
		r.Discard(n)
		return text, nil
	}
	var all []byte
	for line := 0; ; {
		part, err := r.ReadSlice('\n')
		all = append(all, part...)
		switch {
		case len(all) > maxHead:
			return "", errHead
		case err == bufio.ErrBufferFull:
		case err == io.EOF:
			return "", io.ErrUnexpectedEOF
		case err != nil:
			return "", err
		case headLength(all[line:]) > 0:
			return joined(all), nil
		default:
			line = len(all)
		}
	}
}

// headLength returns the length of what b begins with up to the end of the first empty line; 0 if there is none.
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

// joined returns lines without the carriage returns at their ends and without the empty line.
func joined(b []byte) string {
	var text strings.Builder
	text.Grow(len(b))
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		line := bytes.TrimSuffix(b[:i], []byte("\r"))
		if len(line) > 0 {
			text.Write(line)
			text.WriteByte('\n')
		}
		b = b[i+1:]
	}
	return text.String()
}

// parseFields reads header fields, a line each. A folded one is refused, as is whatever else two readers could take for two things.
func parseFields(text string) (http.Header, error) {
	n := strings.Count(text, "\n")
	h := make(http.Header, n)
	values := make([]string, 0, n)
	for line := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
		if line == "" {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || !token(name) {
			return nil, errors.New("the answer's header has a line that is not a field") // it may hold what is secret
		}
		value = strings.Trim(value, " \t")
		if !fieldValue(value) {
			return nil, fmt.Errorf("the answer's header %.40s holds a control character", name)
		}
		name = textproto.CanonicalMIMEHeaderKey(name)
		if before, ok := h[name]; ok {
			h[name] = append(before, value)
			continue
		}
		values = append(values, value)
		h[name] = values[len(values)-1 : len(values) : len(values)]
	}
	return h, nil
}

// body finds out where an answer's body ends (RFC 9112 6.3), and gives the connection back where there is none.
func (x *exchange) body(resp *http.Response) error {
	h := resp.Header
	encoding, lengths := h["Transfer-Encoding"], h["Content-Length"]
	delete(h, "Transfer-Encoding")
	keep := resp.ProtoMinor == 1 && !closes(h["Connection"])
	resp.ContentLength = -1
	b := &body{x: x, resp: resp, keep: keep}
	switch {
	case len(encoding) > 0 && (len(lengths) > 0 || resp.ProtoMinor == 0 || len(encoding) > 1 || !strings.EqualFold(encoding[0], "chunked")):
		return errors.New("the answer's Transfer-Encoding is not chunked, or it has a Content-Length too") // RFC 9112 6.1: somebody is being smuggled past
	case len(lengths) > 0:
		length, err := contentLength(lengths)
		if err != nil {
			return err
		}
		resp.ContentLength, b.left = length, length
		h["Content-Length"] = lengths[:1]
	}
	switch {
	case x.method == http.MethodHead, resp.StatusCode == http.StatusNoContent, resp.StatusCode == http.StatusNotModified:
		b.left = 0
	case len(encoding) > 0:
		b.left, b.chunks = -1, httputil.NewChunkedReader(x.conn.r)
		resp.Trailer = announced(h["Trailer"])
	case len(lengths) == 0:
		b.left, b.keep = -1, false // until the upstream hangs up
	}
	if resp.Body = b; b.left == 0 {
		resp.Body = http.NoBody
		x.end(b.keep)
	}
	return nil
}

// contentLength reads a length that may be there several times, but says one thing (RFC 9110 8.6).
func contentLength(values []string) (int64, error) {
	for _, v := range values {
		if v != values[0] {
			return 0, errors.New("the answer has two values of Content-Length")
		}
	}
	length, err := strconv.ParseUint(values[0], 10, 63)
	if err != nil {
		return 0, fmt.Errorf("the answer's Content-Length is %.20q", values[0])
	}
	return int64(length), nil
}

// closes says whether a Connection header closes the connection.
func closes(values []string) bool {
	for _, v := range values {
		for option := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.Trim(option, " \t"), "close") {
				return true
			}
		}
	}
	return false
}

// announced are the names of a trailer as the header announces them, without values yet.
func announced(values []string) http.Header {
	var trailer http.Header
	for _, v := range values {
		for name := range strings.SplitSeq(v, ",") {
			if name = textproto.CanonicalMIMEHeaderKey(strings.Trim(name, " \t")); name != "" {
				if trailer == nil {
					trailer = make(http.Header)
				}
				trailer[name] = nil
			}
		}
	}
	return trailer
}

// body is an answer's body. At its end the connection can take the next request.
type body struct {
	x      *exchange
	resp   *http.Response
	keep   bool      // the connection is not to be closed after it
	chunks io.Reader // of a body in chunks
	left   int64     // of one with a length; -1: it has none
	err    error     // what Read returns from now on
}

func (b *body) Read(p []byte) (int, error) {
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
		n, err := b.chunks.Read(p)
		if err == io.EOF {
			err = b.readTrailer()
		}
		return n, err
	case b.left < 0:
		return b.x.conn.r.Read(p)
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.x.conn.r.Read(p)
	switch b.left -= int64(n); {
	case b.left == 0:
		err = io.EOF
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// Arrived reports whether all of the body is here, so that reading it waits for nothing.
func (b *body) Arrived() bool {
	return b.err == nil && b.chunks == nil && b.left >= 0 && int64(b.x.conn.r.Buffered()) >= b.left
}

// readTrailer reads what is behind the last chunk, and returns io.EOF.
func (b *body) readTrailer() error {
	text, err := readLines(b.x.conn.r)
	if err != nil {
		return err
	}
	if text != "" {
		if b.resp.Trailer, err = parseFields(text); err != nil {
			return err
		}
	}
	return io.EOF
}

// Close ends the exchange. What was not read is not waited for.
func (b *body) Close() error {
	if b.err == nil {
		b.err = http.ErrBodyReadAfterClose
		b.x.end(false)
	}
	return nil
}

// tunnel is the connection after a switch of protocols.
type tunnel struct{ x *exchange }

func (t *tunnel) Read(p []byte) (int, error)  { return t.x.conn.r.Read(p) }
func (t *tunnel) Write(p []byte) (int, error) { return t.x.conn.Write(p) }

// CloseWrite tells the upstream that nothing more will come.
func (t *tunnel) CloseWrite() error {
	if c, ok := t.x.conn.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

func (t *tunnel) Close() error {
	t.x.stop()
	return t.x.conn.Close()
}
