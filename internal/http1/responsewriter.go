package http1

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/cancel"
)

// responseWriter is the http.ResponseWriter of a plain request. It behaves like
// that of net/http, but needs one write for a response that fits into its
// buffer and is not flushed.
type responseWriter struct {
	x      *serving
	ctx    cancel.Context // of req
	req    http.Request
	body   *requestBody // of the request; nil: none
	header http.Header

	status     int   // 0: WriteHeader was not called
	length     int64 // Content-Length of the handler; -1: none
	written    int64 // by the handler, of the body
	dated      bool  // the header has a Date
	typed      bool  // the body's type need not be determined
	began      bool  // the head was sent
	chunked    bool
	closing    bool  // the connection is closed after the response
	fullDuplex bool  // the handler reads the request's body while it responds
	err        error // why nothing more is sent; nil: it is

	// The lines that are known last end at out[from]. The other fields are
	// between from and bodyAt-chunkRoom, and the body begins at bodyAt.
	buf    *[]byte // nil while nothing is buffered
	out    []byte  // a part of *buf, or a larger one
	from   int
	bodyAt int

	readDeadline, writeDeadline atomic.Bool // were set
}

const (
	// headRoom is the room for the status line, Date, Content-Type,
	// Content-Length or Transfer-Encoding, and Connection.
	headRoom = 512
	// chunkRoom is the room for the line before a chunk.
	chunkRoom = 10
)

// answers holds buffers for a head and a large part of a proxied body.
var answers = sync.Pool{New: func() any { return new(make([]byte, 40<<10)) }}

// Header returns the header, which can be changed until WriteHeader is called.
func (w *responseWriter) Header() http.Header { return w.header }

// WriteHeader fixes the status and the header.
func (w *responseWriter) WriteHeader(status int) {
	switch {
	case w.status != 0:
		w.x.server.HTTP.ErrorLog.Printf("http: superfluous response.WriteHeader call")
		return
	case status < 100 || status > 999:
		panic("invalid WriteHeader code " + strconv.Itoa(status))
	case status < 200 && status != http.StatusSwitchingProtocols: // RFC 9110, section 15.2
		interim := appendFields(appendStatus(nil, status), w.header, status)
		w.send(append(interim, "\r\n"...))
		return
	}
	w.status, w.length = status, -1
	if lengths := w.header["Content-Length"]; len(lengths) > 0 {
		if length, err := strconv.ParseUint(lengths[0], 10, 63); err == nil {
			w.length = int64(length)
		}
	}
	_, w.dated = w.header["Date"]
	_, w.typed = w.header["Content-Type"]
	w.typed = w.typed || w.header.Get("Content-Encoding") != ""
	w.closing = w.req.Close || closes(w.header["Connection"])
	w.need()
	w.from = headRoom
	w.out = appendFields(w.out[:headRoom], w.header, status)
	for _, v := range w.header["Connection"] {
		if !w.closing {
			w.out = appendField(w.out, "Connection", v)
		}
	}
	w.out = append(w.out, "\r\n0123456789"...) // chunkRoom after the head
	w.bodyAt = len(w.out)
}

func appendStatus(b []byte, status int) []byte {
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	text := http.StatusText(status)
	if text == "" {
		text = "status code " + strconv.Itoa(status)
	}
	return append(append(b, text...), "\r\n"...)
}

// appendFields appends the fields of a header, except for those that prepare
// writes, trailers, and those that a response with this status must not have.
func appendFields(b []byte, h http.Header, status int) []byte {
	for name, values := range h {
		switch {
		case name == "Content-Length", name == "Transfer-Encoding", name == "Connection",
			name == "Content-Type" && status == http.StatusNotModified,
			strings.HasPrefix(name, http.TrailerPrefix), !isToken(name):
			continue
		}
		for _, v := range values {
			b = appendField(b, name, v)
		}
	}
	return b
}

// appendField appends a field, with spaces instead of line ends in its value.
func appendField(b []byte, name, value string) []byte {
	b = append(b, name...)
	b = append(b, ": "...)
	if !isFieldValue(value) {
		value = lineEnds.Replace(value)
	}
	b = append(b, trimSpace(value)...)
	return append(b, "\r\n"...)
}

var lineEnds = strings.NewReplacer("\r", " ", "\n", " ")

// need gets a buffer if there is none.
func (w *responseWriter) need() {
	if w.buf == nil {
		w.buf = answers.Get().(*[]byte)
		w.out, w.bodyAt = (*w.buf)[:chunkRoom], chunkRoom
	}
}

func (w *responseWriter) free() {
	if w.buf != nil {
		answers.Put(w.buf)
		w.buf, w.out = nil, nil
	}
}

// Write writes a part of the body.
func (w *responseWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	switch {
	case w.err != nil:
		return 0, w.err
	case len(p) == 0:
		return 0, nil
	case !bodyAllowed(w.status):
		return 0, http.ErrBodyNotAllowed
	}
	if w.written += int64(len(p)); w.length >= 0 && w.written > w.length { // nor may a shorter one follow
		return 0, http.ErrContentLength
	}
	for rest := p; len(rest) > 0; {
		w.need()
		n := min(len(rest), max(0, cap(w.out)-len(w.out)-chunkRoom))
		w.out = append(w.out, rest[:n]...)
		if rest = rest[n:]; len(rest) > 0 {
			if err := w.flush(false); err != nil {
				return len(p) - len(rest), err
			}
		}
	}
	return len(p), w.err
}

func bodyAllowed(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}

// Flush sends what was written.
func (w *responseWriter) Flush() { w.FlushError() }

// FlushError sends what was written.
func (w *responseWriter) FlushError() error {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	return w.flush(false)
}

// flush sends what is buffered. last means that the response is complete.
func (w *responseWriter) flush(last bool) error {
	if w.err != nil || w.began && w.buf == nil && !(last && w.chunked) {
		return w.err
	}
	w.need()
	var trailer http.Header
	if last && w.length < 0 { // otherwise it is not sent in chunks
		trailer = w.trailer()
	}
	start := w.bodyAt
	if !w.began {
		w.prepare(last && len(trailer) == 0)
	}
	if w.req.Method == http.MethodHead {
		w.out = w.out[:w.bodyAt]
	}
	if size := len(w.out) - w.bodyAt; w.chunked && size > 0 {
		start -= chunkLine(w.out[:w.bodyAt], size)
		w.out = append(w.out, "\r\n"...)
	}
	if !w.began { // the head ends where the body, or the line before it, begins
		w.began = true
		head := w.out[w.from : w.bodyAt-chunkRoom]
		start -= copy(w.out[start-len(head):], head)
	}
	if w.chunked && last {
		w.out = append(w.out, "0\r\n"...)
		w.out = append(appendFields(w.out, trailer, w.status), "\r\n"...)
	}
	if len(w.out) > start {
		w.send(w.out[start:])
	}
	w.free()
	return w.err
}

// chunkLine writes the line before a chunk at the end of b, and returns its
// length.
func chunkLine(b []byte, size int) int {
	at := len(b) - 2
	copy(b[at:], "\r\n")
	for ; size > 0; size >>= 4 {
		at--
		b[at] = "0123456789abcdef"[size&15]
	}
	return len(b) - at
}

// prepare writes the lines that are known last in front of the others. whole
// means that the whole body is buffered.
func (w *responseWriter) prepare(whole bool) {
	var room [headRoom]byte
	b := appendStatus(room[:0], w.status)
	if !w.dated {
		b = appendField(b, "Date", date())
	}
	if body := w.out[w.bodyAt:]; !w.typed && len(body) > 0 {
		b = appendField(b, "Content-Type", http.DetectContentType(body))
	}
	head := w.req.Method == http.MethodHead
	if whole && w.length < 0 && bodyAllowed(w.status) && (!head || w.written > 0) {
		w.length = w.written
	}
	switch {
	case !bodyAllowed(w.status): // RFC 9110, section 8.6
	case w.length >= 0:
		b = append(b, "Content-Length: "...)
		b = append(strconv.AppendInt(b, w.length, 10), "\r\n"...)
	case !head:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
		w.chunked = true
	}
	if w.closing = w.closing || !w.fullDuplex && !w.body.discard(); w.closing {
		b = appendField(b, "Connection", "close")
	}
	w.from -= len(b)
	copy(w.out[w.from:], b)
}

// date returns the value of Date (RFC 9110, section 6.6.1).
func date() string {
	now := time.Now()
	last := lastDate.Load()
	if last == nil || last.second != now.Unix() {
		last = &dateText{now.Unix(), now.UTC().Format(http.TimeFormat)}
		lastDate.Store(last)
	}
	return last.text
}

type dateText struct {
	second int64
	text   string
}

var lastDate atomic.Pointer[dateText]

// trailer returns what http.ResponseWriter says about trailers.
func (w *responseWriter) trailer() http.Header {
	trailer := announcedTrailer(w.header["Trailer"])
	for name := range trailer {
		trailer[name] = w.header[name]
	}
	for name, values := range w.header {
		if key, ok := strings.CutPrefix(name, http.TrailerPrefix); ok {
			if trailer == nil {
				trailer = make(http.Header)
			}
			trailer[key] = values
		}
	}
	return trailer
}

// send writes to the connection.
func (w *responseWriter) send(b []byte) {
	if w.err == nil {
		if _, w.err = w.x.conn.Write(b); w.err != nil {
			w.x.cancelRequest()
		}
	}
}

// finish completes the response. It reports whether the client has it all.
func (w *responseWriter) finish() bool {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if w.flush(true) != nil {
		return false
	}
	w.closing = w.closing || !w.body.discard()
	w.body.Close()
	return w.req.Method == http.MethodHead || !bodyAllowed(w.status) || w.chunked || w.written == w.length
}

// Hijack is http.Hijacker.
func (w *responseWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := w.x.hijack(w)
	if err == nil {
		w.err = http.ErrHijacked
	}
	return c, rw, err
}

// EnableFullDuplex keeps the rest of the request's body when the response
// begins.
func (w *responseWriter) EnableFullDuplex() error {
	w.fullDuplex = true
	return nil
}

// SetReadDeadline limits reads of the request's body.
func (w *responseWriter) SetReadDeadline(t time.Time) error {
	w.readDeadline.Store(true)
	return w.x.conn.SetReadDeadline(t)
}

// SetWriteDeadline limits writes of the response.
func (w *responseWriter) SetWriteDeadline(t time.Time) error {
	w.writeDeadline.Store(true)
	return w.x.setWriteDeadline(t)
}

// requestBody is the body of a plain request. A nil one is empty.
type requestBody struct {
	x    *serving
	left atomic.Int64 // what was not read; changed with mu held

	mu  sync.Mutex // guards all below
	err error      // of every further Read; nil: none
}

func (b *requestBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.err != nil:
		return 0, b.err
	case b.complete():
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), b.left.Load())]
	n := copy(p, b.x.unread)
	b.x.unread = b.x.unread[n:]
	if n == 0 && len(p) > 0 {
		if n, b.err = b.x.conn.Read(p); b.err == io.EOF {
			b.err = io.ErrUnexpectedEOF
		}
	}
	if b.left.Add(-int64(n)) == 0 {
		b.err = io.EOF
	}
	return n, b.err
}

// Close ends the reading of the body.
func (b *requestBody) Close() error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil {
		b.err = http.ErrBodyReadAfterClose
	}
	return nil
}

// complete reports whether the whole body was read.
func (b *requestBody) complete() bool { return b == nil || b.left.Load() == 0 }

// discard drops the rest of the body if it has arrived. It reports whether
// nothing of the body is left.
func (b *requestBody) discard() bool {
	if b.complete() {
		return true
	}
	if !b.mu.TryLock() {
		return false // it is being read
	}
	defer b.mu.Unlock()
	left := b.left.Load()
	if left > int64(len(b.x.unread)) {
		return false
	}
	b.x.unread, b.err = b.x.unread[left:], http.ErrBodyReadAfterClose
	b.left.Store(0)
	return true
}
