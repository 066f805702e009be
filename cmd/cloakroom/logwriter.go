package main

import (
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// logBuffer is the maximum number of bytes that wait for a slow reader.
const logBuffer = 4 << 20

// droppedLines counts the log lines of this process that were dropped.
var droppedLines atomic.Uint64

// logWriter writes log lines to another writer in the background: a request
// must not hang because the log is not read. Lines that do not fit into the
// buffer are dropped and counted. Lines stay in order. Use newLogger.
type logWriter struct {
	to      io.Writer
	log     *slog.Logger  // writes here
	direct  *slog.Logger  // writes to that other writer; only run uses it
	written chan struct{} // closed when run has returned

	mu      sync.Mutex
	wake    *sync.Cond // when buf is not empty, or closed is set
	buf     []byte
	spare   []byte // the previous buffer, for reuse
	dropped int
	closed  bool // no lines are expected after those in buf
	ended   bool // run has returned
}

// newLogger returns a logger that writes to a writer through a logWriter.
// handler returns the handler that formats the lines. Call stop at the end.
func newLogger(to io.Writer, handler func(io.Writer) slog.Handler) (log *slog.Logger, stop func()) {
	w := &logWriter{to: to, written: make(chan struct{})}
	w.wake = sync.NewCond(&w.mu)
	w.log, w.direct = slog.New(handler(w)), slog.New(handler(to))
	go w.run() // until close
	return w.log, w.close
}

// Write buffers a line, or drops it. It never blocks and returns no error.
func (w *logWriter) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.buf)+len(line) > logBuffer || w.ended {
		w.dropped++
		droppedLines.Add(1)
		return len(line), nil
	}
	w.buf = append(w.buf, line...)
	w.wake.Signal()
	return len(line), nil
}

func (w *logWriter) run() {
	defer close(w.written)
	for {
		w.mu.Lock()
		for len(w.buf) == 0 && !w.closed {
			w.wake.Wait()
		}
		if len(w.buf) == 0 {
			w.ended = true
			w.mu.Unlock()
			return
		}
		lines, dropped := w.buf, w.dropped
		w.buf, w.dropped = w.spare[:0], 0
		w.mu.Unlock()
		// An error, such as that of a closed pipe, cannot be logged.
		w.to.Write(lines)
		if dropped > 0 {
			w.direct.Warn("log lines dropped", "count", dropped) // through the buffer it could be dropped
		}
		w.mu.Lock()
		w.spare = lines
		w.mu.Unlock()
	}
}

// close waits until the buffer is written, at most a second.
func (w *logWriter) close() {
	w.mu.Lock()
	w.closed = true
	w.wake.Signal()
	w.mu.Unlock()
	select {
	case <-w.written:
	case <-time.After(time.Second):
	}
}
