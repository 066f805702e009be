package main

import (
	"context"
	"io"
	"log/slog"
	"strconv"
	"sync"
	"time"
)

// jsonHandler writes the lines of slog.JSONHandler. It formats those without
// reflection that contain nothing but plain values, as the lines of the access
// log do, and gives the others to slog.JSONHandler.
type jsonHandler struct {
	slog.Handler // a slog.JSONHandler for w
	w            io.Writer
	plain        bool // without attributes and groups of With
}

func newJSONHandler(w io.Writer, opts *slog.HandlerOptions) *jsonHandler {
	w = &lockedWriter{Writer: w}
	return &jsonHandler{slog.NewJSONHandler(w, opts), w, true}
}

// lockedWriter lets two handlers write to one writer.
type lockedWriter struct {
	mu sync.Mutex
	io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Writer.Write(p)
}

var logLines = sync.Pool{New: func() any { return new(make([]byte, 0, 1<<10)) }}

func (h *jsonHandler) Handle(ctx context.Context, r slog.Record) error {
	if !h.plain || r.Time.IsZero() {
		return h.Handler.Handle(ctx, r)
	}
	buf := logLines.Get().(*[]byte)
	defer logLines.Put(buf)
	b, ok := (*buf)[:0], true
	b = append(b, `{"time":"`...)
	b = r.Time.AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","level":"`...)
	b = append(b, r.Level.String()...)
	b = append(b, `","msg":`...)
	b, ok = appendPlainString(b, r.Message)
	r.Attrs(func(a slog.Attr) bool {
		b, ok = appendPlainAttr(b, a, ok)
		return ok
	})
	if *buf = b; !ok {
		return h.Handler.Handle(ctx, r)
	}
	*buf = append(b, "}\n"...)
	_, err := h.w.Write(*buf)
	return err
}

func (h *jsonHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &jsonHandler{h.Handler.WithAttrs(attrs), h.w, false}
}

func (h *jsonHandler) WithGroup(name string) slog.Handler {
	return &jsonHandler{h.Handler.WithGroup(name), h.w, false}
}

// appendPlainAttr appends a member of an object. It returns false if another
// way has to be found, or ok is false.
func appendPlainAttr(b []byte, a slog.Attr, ok bool) ([]byte, bool) {
	if !ok || a.Key == "" {
		return b, false
	}
	b = append(b, ',')
	if b, ok = appendPlainString(b, a.Key); !ok {
		return b, false
	}
	b = append(b, ':')
	switch a.Value.Kind() {
	case slog.KindString:
		return appendPlainString(b, a.Value.String())
	case slog.KindInt64:
		return strconv.AppendInt(b, a.Value.Int64(), 10), true
	case slog.KindFloat64:
		f := a.Value.Float64()
		return strconv.AppendFloat(b, f, 'f', -1, 64), f == 0 || 1e-6 <= f && f < 1e21
	}
	return b, false
}

// appendPlainString appends a string in quotes. It returns false if a character
// has to be escaped or is not in ASCII.
func appendPlainString(b []byte, text string) ([]byte, bool) {
	for i := range len(text) {
		if c := text[i]; c < ' ' || c >= 0x7f || c == '"' || c == '\\' {
			return b, false
		}
	}
	b = append(b, '"')
	b = append(b, text...)
	return append(b, '"'), true
}
