package proxy

import (
	"cmp"
	"context"
	"io"
	"sync"
)

const smallBuffer, largeBuffer = 1 << 9, 32 << 10

var (
	smallBuffers = sync.Pool{New: func() any { return new([smallBuffer]byte) }}
	largeBuffers = sync.Pool{New: func() any { return new([largeBuffer]byte) }}
)

// buffer is the buffer of a copy: small while it waits, because most streams
// are idle most of the time, and large while much arrives.
type buffer struct {
	small *[smallBuffer]byte
	large *[largeBuffer]byte // nil: small is used
}

func newBuffer() buffer { return buffer{small: smallBuffers.Get().(*[smallBuffer]byte)} }

// get returns the buffer for the next read. much means that a lot of data is
// expected.
func (b *buffer) get(much bool) []byte {
	switch {
	case much && b.large == nil:
		b.large = largeBuffers.Get().(*[largeBuffer]byte)
	case !much && b.large != nil:
		largeBuffers.Put(b.large)
		b.large = nil
	}
	if b.large != nil {
		return b.large[:]
	}
	return b.small[:]
}

func (b *buffer) free() {
	smallBuffers.Put(b.small)
	if b.large != nil {
		largeBuffers.Put(b.large)
	}
}

// copyBody copies the response's body to w. After an abort the upstream may
// report a clean EOF, so the context's cause is checked too.
func (x *exchange) copyBody(ctx context.Context, w io.Writer) error {
	return cmp.Or(x.copyBuffered(w, x.resp.Body, x.resp.ContentLength), context.Cause(ctx))
}

// copyBuffered copies from to w until EOF, and flushes w before it waits for
// more. length is how much will arrive, or -1 if that is not known: then w is
// also flushed before it waits for the beginning.
func (x *exchange) copyBuffered(w io.Writer, from io.Reader, length int64) error {
	if length == 0 {
		return nil
	}
	if rest, ok := arrived(from); ok {
		_, err := w.Write(rest)
		return err
	}
	buf := newBuffer()
	defer buf.free()
	flusher, _ := w.(interface{ Flush() })
	read, ready := from.Read, func() bool { return false }
	if body, ok := from.(partReader); ok {
		read, ready = body.ReadPart, body.Ready
	}
	flush := func() {
		x.writing.Store(true)
		flusher.Flush()
		x.writing.Store(false)
	}
	unsent := flusher != nil && length < 0
	for much := length > smallBuffer; ; {
		if unsent && !ready() {
			flush()
			unsent = false
		}
		part := buf.get(much)
		n, err := read(part)
		if x.idle != nil {
			x.idle.Reset(x.p.Timeouts.Idle)
		}
		if n > 0 {
			x.writing.Store(true)
			_, err := w.Write(part[:n])
			x.writing.Store(false)
			if err != nil {
				return err
			}
			x.download.Add(n)
			unsent = flusher != nil
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			if unsent {
				flush()
			}
			return err
		}
		much = n > smallBuffer/2
	}
}

// partReader is a body of http1.Client.
type partReader interface {
	ReadPart(p []byte) (n int, err error)
	Ready() bool
	Arrived() (rest []byte, ok bool)
}

// arrived returns all of a body if it has arrived already.
func arrived(body io.Reader) (rest []byte, ok bool) {
	if body, ok := body.(partReader); ok {
		return body.Arrived()
	}
	return nil, false
}

// countingWriter counts what is written, for the record.
type countingWriter struct {
	io.Writer
	record *Record
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.record.Bytes += int64(n)
	return n, err
}
