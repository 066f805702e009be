package http1

import "bytes"

// chunks parses a body in chunks (RFC 9112, section 7.1), part by part as it
// arrives.
type chunks struct {
	state   chunkState
	lines   lineParser
	left    int64  // of the current chunk
	trailer []byte // its lines, each ending with a line feed
}

type chunkState int

const (
	chunkSize  chunkState = iota // the line before a chunk
	chunkData                    // the chunk
	chunkEnd                     // the line end after it
	chunkTrail                   // a line of the trailer, or the empty line after it
	chunksDone
)

// maxLine is the maximum length of the line before a chunk, and of a trailer.
const maxLine = 64 << 10

// next parses the beginning of b. It returns the number of bytes that it has
// parsed, and whether they are data. n is -1 if they are invalid.
func (c *chunks) next(b []byte) (n int, data bool) {
	if c.state == chunkData {
		n := min(int64(len(b)), c.left)
		if c.left -= n; c.left == 0 {
			c.state = chunkEnd
		}
		return int(n), true
	}
	line, n, ok := c.lines.cut(b)
	switch {
	case len(line)+len(c.lines)+len(c.trailer) > maxLine:
		return -1, false
	case ok && !c.parseLine(line):
		return -1, false
	}
	return n, false
}

// parseLine parses a line outside the data, and reports whether it is valid.
func (c *chunks) parseLine(line []byte) bool {
	switch c.state {
	case chunkSize:
		size, extension, _ := bytes.Cut(line, []byte(";"))
		left, ok := digits(bytes.TrimRight(size, " \t"), 16)
		if c.left, c.state = left, chunkData; left == 0 {
			c.state = chunkTrail
		}
		return ok && isFieldValue(extension)
	case chunkEnd:
		c.state = chunkSize
		return len(line) == 0
	}
	if len(line) == 0 {
		c.state = chunksDone
		return true
	}
	c.trailer = append(append(c.trailer, line...), '\n')
	name, value, ok := bytes.Cut(line, []byte(":"))
	return ok && isToken(name) && isFieldValue(value)
}

// lineParser is the beginning of a line whose end has not arrived.
type lineParser []byte

// cut returns the next line of b without its end, and its length in b. If the
// line is incomplete, it is stored and ok is false. n is -1 if it does not end
// with CRLF (RFC 9112, section 2.2).
func (p *lineParser) cut(b []byte) (line []byte, n int, ok bool) {
	i := bytes.IndexByte(b, '\n')
	if i < 0 {
		*p = append(*p, b...)
		return nil, len(b), false
	}
	line = b[:i]
	if len(*p) > 0 {
		line = append(*p, line...)
		*p = line[:0]
	}
	if end := len(line) - 1; end >= 0 && line[end] == '\r' {
		return line[:end], i + 1, true
	}
	return nil, -1, false
}
