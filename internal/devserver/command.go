// Package devserver runs the command of a development server, and finds out
// where the server listens.
package devserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// Command is a command that runs with all its descendants in a process group of
// its own: the signals of a terminal do not reach them, Stop ends all of them.
// If this process dies, even by SIGKILL, they end too.
type Command struct {
	cmd    *exec.Cmd
	stdin  io.Closer // held open: some servers end with their standard input
	guard  *guard
	output sync.WaitGroup // that is being copied
	exited chan struct{}  // closed when the command itself has ended
	stop   sync.Once
}

// outputGrace is how long output is awaited after all processes have ended, as
// some process may have left the group with it.
const outputGrace = time.Second

// Start starts argv with env. Output goes to stdout and stderr as it comes.
func Start(argv, env []string, stdout, stderr io.Writer) (*Command, error) {
	c := &Command{cmd: exec.Command(argv[0], argv[1:]...), exited: make(chan struct{})}
	c.cmd.Env = env
	setGroup(c.cmd)
	var ends []*os.File // of pipes, for the command
	closeEnds := func() {
		for _, f := range ends {
			f.Close()
		}
	}
	defer closeEnds()
	in, hold, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	ends, c.cmd.Stdin, c.stdin = append(ends, in), in, hold
	outputs := make(map[*os.File]io.Writer)
	for _, stream := range []struct {
		to   io.Writer
		file *io.Writer
	}{{stdout, &c.cmd.Stdout}, {stderr, &c.cmd.Stderr}} {
		r, w, err := os.Pipe()
		if err != nil {
			hold.Close()
			return nil, err
		}
		ends, outputs[r], *stream.file = append(ends, w), stream.to, w
	}
	if err := c.cmd.Start(); err != nil {
		hold.Close()
		for r := range outputs {
			r.Close()
		}
		return nil, startError(argv[0], err)
	}
	c.guard = startGuard(c.cmd.Process.Pid)
	for r, to := range outputs {
		c.output.Go(func() { // until no process has the pipe any more, or Stop closes it
			io.Copy(resilient{to}, r)
			r.Close()
		})
	}
	go func() { // until the command ends
		c.cmd.Wait()
		close(c.exited)
	}()
	return c, nil
}

// resilient is a writer whose errors are ignored, so that a command does not
// block or fail if its output is not read.
type resilient struct{ io.Writer }

func (w resilient) Write(p []byte) (int, error) {
	w.Writer.Write(p)
	return len(p), nil
}

// NotStartedError says why a command could not be started.
type NotStartedError struct {
	Status int // the exit status of shells in this case: 127 or 126
	Err    error
}

func (e *NotStartedError) Error() string { return e.Err.Error() }
func (e *NotStartedError) Unwrap() error { return e.Err }

func startError(name string, err error) error {
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		hint := "is it installed, and in PATH?"
		if strings.ContainsAny(name, " \t") {
			hint = "write the command without quotes, as separate words"
		}
		return &NotStartedError{127, fmt.Errorf("command not found: %s (%s)", name, hint)}
	}
	return &NotStartedError{126, fmt.Errorf("the command cannot be run: %w", err)}
}

// Exited is closed when the command itself has ended. Its descendants may still
// run, until Stop.
func (c *Command) Exited() <-chan struct{} { return c.exited }

// Status returns the exit status as a shell has it: 128 and the number of the
// signal that ended the command. Exited must be closed.
func (c *Command) Status() int { return exitStatus(c.cmd.ProcessState) }

// Stop asks all processes of the group to end (SIGTERM), and kills those that
// have not ended after a grace period, or when ctx ends. It returns when they
// have ended and their output was written. It may be called at any time, and
// more than once.
func (c *Command) Stop(ctx context.Context, grace time.Duration) {
	c.stop.Do(func() {
		ctx, cancel := context.WithTimeout(ctx, grace)
		defer cancel()
		terminateGroup(c.cmd.Process.Pid)
		for groupAlive(c.cmd.Process.Pid) && ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
		killGroup(c.cmd.Process.Pid)
		<-c.exited
		c.guard.stop()
		c.stdin.Close()
		written := make(chan struct{})
		go func() { // until the output ends
			c.output.Wait()
			close(written)
		}()
		select {
		case <-written:
		case <-time.After(outputGrace):
		}
	})
}
