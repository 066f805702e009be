package main

import (
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"github.com/cloakroom-bff/cloakroom/internal/config"
)

var errInterrupted = errors.New("interrupted")

// interruptible is a reader that returns errInterrupted when ctx ends: a read
// that waits for a person does not end with a signal.
type interruptible struct {
	ctx context.Context
	io.Reader
}

func (r interruptible) Read(p []byte) (int, error) {
	own := make([]byte, len(p)) // the read can end after Read has returned
	var n int
	var err error
	if interrupted := runInterruptibly(r.ctx, func() { n, err = r.Reader.Read(own) }); interrupted != nil {
		return 0, interrupted
	}
	return copy(p, own[:n]), err
}

// runInterruptibly runs f. It returns errInterrupted when ctx ends, while f
// still runs.
func runInterruptibly(ctx context.Context, f func()) error {
	ended := make(chan struct{})
	go func() { // until f ends; at the latest, with the process
		f()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return errInterrupted
	}
}

// awaitConfig reads the file of --config if it is a pipe, such as that of
// --config <(sops decrypt cloakroom.yaml). A signal ends the wait for a writer.
func awaitConfig(c *cobra.Command, _ []string) error {
	file := c.Flags().Lookup("config")
	if file == nil || file.Value.String() == "" {
		return nil
	}
	return runInterruptibly(c.Context(), func() { config.ReadPipe(file.Value.String()) })
}
