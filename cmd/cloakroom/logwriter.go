package main

import (
	"bytes"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// logBuffer is the maximum number of bytes that wait for a slow reader.
const logBuffer = 4 << 20

// logPause is the least time between two writes of lines. Each write may wake
// the scheduler's monitor, which then is busy for some milliseconds.
const logPause = 20 * time.Millisecond

// droppedLines counts the log lines of this process that were dropped.
var droppedLines atomic.Uint64

// logWriter writes log lines to another writer in the background: a request
// must not hang because the log is not read. Lines that do not fit into the
// buffer, or cannot be written, are dropped and counted. Lines stay in order.
type logWriter struct {
	to      io.Writer
	report  func(dropped int) // called by run
	written chan struct{}     // closed when run has returned

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
	direct := slog.New(handler(to)) // through the buffer the line could be dropped
	w := newLogWriter(to, func(dropped int) { direct.Warn("log lines dropped", "count", dropped) })
	return slog.New(handler(w)), w.close
}

// newLogWriter returns a logWriter that writes to a writer until close. It
// calls report after it has dropped lines.
func newLogWriter(to io.Writer, report func(dropped int)) *logWriter {
	w := &logWriter{to: to, report: report, written: make(chan struct{})}
	w.wake = sync.NewCond(&w.mu)
	go w.run() // until close
	return w
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
	var last time.Time // when lines were written
	torn := false      // the last line was written in part
	for {
		w.mu.Lock()
		for len(w.buf) == 0 && !w.closed {
			w.wake.Wait()
		}
		if pause := time.Until(last.Add(logPause)); pause > 0 && !w.closed {
			w.mu.Unlock()
			time.Sleep(pause)
			w.mu.Lock()
		}
		if len(w.buf) == 0 {
			w.ended = true
			w.mu.Unlock()
			return
		}
		lines, dropped := w.buf, w.dropped
		w.buf, w.dropped = w.spare[:0], 0
		w.mu.Unlock()
		if torn {
			_, err := io.WriteString(w.to, "\n")
			torn = err != nil
		}
		n, err := w.to.Write(lines)
		last = time.Now()
		if err == nil && dropped > 0 {
			w.report(dropped)
		}
		w.mu.Lock()
		w.spare = lines
		if err != nil { // such as that of a full disk; it cannot be logged now
			lost := bytes.Count(lines[n:], []byte("\n"))
			droppedLines.Add(uint64(lost))
			w.dropped += dropped + lost
			torn = torn || n > 0 && lines[n-1] != '\n'
		}
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
