package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/internal/config"
)

// auditLog writes events to where log.audit says, one JSON object a line. It
// never blocks a request: events that do not fit into its buffer are counted in
// the log.
type auditLog struct {
	stdout io.Writer
	log    *slog.Logger
	buffer *logWriter  // which writes to the auditLog
	used   atomic.Bool // to is not nil

	mu     sync.Mutex // guards all below; not held during a write, which may hang
	to     io.Writer  // nil: nowhere
	failed bool       // the last write
}

func newAuditLog(stdout io.Writer, log *slog.Logger) *auditLog {
	a := &auditLog{stdout: stdout, log: log}
	a.buffer = newLogWriter(a, func(dropped int) { log.Error("events missing in the audit log", "count", dropped) })
	return a
}

// open returns the destination for a value of log.audit: nil for the empty one,
// standard output for stdout, otherwise a regular file that is appended to. The
// error is a *config.Error. open does not wait for the reader of a pipe.
func (a *auditLog) open(audit string) (io.Writer, error) {
	switch audit {
	case "":
		return nil, nil
	case "stdout":
		return a.stdout, nil
	}
	file, err := openRegular(audit)
	if err != nil {
		return nil, &config.Error{Key: "log.audit", Value: audit, Err: err}
	}
	return file, nil
}

// openRegular opens a file to append to it, and creates it if it is not there.
// A file of another type is an error, and is not opened: that could hang or
// have an effect.
func openRegular(name string) (*os.File, error) {
	if info, err := os.Stat(name); err == nil && !info.Mode().IsRegular() {
		return nil, notRegular(info)
	}
	// O_NONBLOCK: it may have become a pipe meanwhile.
	file, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = notRegular(info)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// notRegular is the error of a file that events cannot be appended to.
func notRegular(info os.FileInfo) error {
	kind := "neither a file nor a folder"
	switch mode := info.Mode(); {
	case mode.IsDir():
		kind = "a folder"
	case mode&os.ModeNamedPipe != 0:
		kind = "a pipe"
	case mode&os.ModeDevice != 0:
		kind = "a device"
	case mode&os.ModeSocket != 0:
		kind = "a socket"
	}
	return fmt.Errorf("it is %s: name a regular file, or stdout", kind)
}

// closeFile closes a destination of open if it is a file.
func closeFile(to io.Writer) {
	if file, ok := to.(*os.File); ok && file != os.Stdout {
		file.Close()
	}
}

// use writes events to another destination from now on, and closes the one
// before if it is a file.
func (a *auditLog) use(to io.Writer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	closeFile(a.to)
	a.to, a.failed = to, false
	a.used.Store(to != nil)
}

// observe is bff.Config.Observe.
func (a *auditLog) observe(_ context.Context, e bff.Event) {
	if !a.used.Load() {
		return
	}
	line, err := json.Marshal(e)
	if err != nil {
		a.log.Error("event not written to the audit log", "event", string(e.Kind), "err", err)
		return
	}
	a.buffer.Write(append(line, '\n'))
}

// Write writes lines to the destination. A fault is logged once until it ends.
// It is returned too, so that the buffer counts the events that are missing and
// ends the line that was written in part.
func (a *auditLog) Write(lines []byte) (int, error) {
	for {
		a.mu.Lock()
		to := a.to
		a.mu.Unlock()
		if to == nil {
			return len(lines), nil
		}
		if n, err := to.Write(lines); a.written(to, err) {
			return n, err
		}
	}
}

// written records the result of a write. It returns false if use had replaced
// and closed the destination before the write: then nothing was written.
func (a *auditLog) written(to io.Writer, err error) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.to != to {
		return !errors.Is(err, os.ErrClosed)
	}
	if failed := err != nil; failed != a.failed {
		a.failed = failed
		if failed {
			a.log.Error("audit log not written; events are missing in it", "err", err)
		} else {
			a.log.Warn("audit log written again")
		}
	}
	return true
}

// close writes what is buffered.
func (a *auditLog) close() {
	a.buffer.close()
	a.use(nil)
}
