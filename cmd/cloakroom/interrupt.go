package main

import (
	"context"
	"errors"
	"io"
)

var errInterrupted = errors.New("interrupted")

// interruptible is a reader that returns errInterrupted when ctx ends: a read
// that waits for a person does not end with a signal.
type interruptible struct {
	ctx context.Context
	io.Reader
}

func (r interruptible) Read(p []byte) (int, error) {
	type result struct {
		n   int
		err error
	}
	own := make([]byte, len(p)) // the read can end after Read has returned
	read := make(chan result, 1)
	go func() { // until the read ends; at the latest, with the process
		n, err := r.Reader.Read(own)
		read <- result{n, err}
	}()
	select {
	case got := <-read:
		return copy(p, own[:got.n]), got.err
	case <-r.ctx.Done():
		return 0, errInterrupted
	}
}
