package main

import (
	"io"
	"log/slog"
	"sync"
	"time"
)

// logBuffer is how many octets of log lines wait for a reader that is slow.
const logBuffer = 4 << 20

// logWriter writes log lines to another writer without making the caller wait
// for it: a request must not hang because nobody reads the log. What does not fit
// into the buffer is dropped and counted. Lines stay in order. Use newLogger.
type logWriter struct {
	to      io.Writer
	log     *slog.Logger  // writes here
	direct  *slog.Logger  // writes to that other writer; for run alone
	written chan struct{} // closed when the writing goroutine has ended

	mu      sync.Mutex
	wake    *sync.Cond // when there is something to write, or closed is set
	buf     []byte
	spare   []byte // the buffer that was written before
	dropped int
	closed  bool // what is in the buffer is the last
	ended   bool // nothing is written any more
}

// newLogger returns a logger whose lines a handler formats and a logWriter writes
// to another writer. Call stop at the end.
func newLogger(to io.Writer, handler func(io.Writer) slog.Handler) (log *slog.Logger, stop func()) {
	w := &logWriter{to: to, written: make(chan struct{})}
	w.wake = sync.NewCond(&w.mu)
	w.log, w.direct = slog.New(handler(w)), slog.New(handler(to))
	go w.run() // until close
	return w.log, w.close
}

// Write takes a line. It never fails and never waits.
func (w *logWriter) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.buf)+len(line) > logBuffer || w.ended {
		w.dropped++
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
		// An error, such as that of a closed pipe, is nothing that could be logged.
		w.to.Write(lines)
		if dropped > 0 {
			w.direct.Warn("log lines dropped", "count", dropped) // in the buffer it could be dropped itself
		}
		w.mu.Lock()
		w.spare = lines
		w.mu.Unlock()
	}
}

// close writes what is left, and waits for that at most a second.
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
