package bfftest_test

import (
	"context"
	"io"
	"log"
	"slices"
	"testing"
)

// exampleT is a testing.TB for an example, which has none.
type exampleT struct {
	testing.TB
	ctx     context.Context
	cancel  context.CancelFunc
	cleanup []func()
}

func newT() *exampleT {
	ctx, cancel := context.WithCancel(context.Background())
	return &exampleT{ctx: ctx, cancel: cancel}
}

// end does what happens at the end of a test.
func (t *exampleT) end() {
	t.cancel()
	for _, f := range slices.Backward(t.cleanup) {
		f()
	}
}

func (t *exampleT) Helper()                           {}
func (t *exampleT) Context() context.Context          { return t.ctx }
func (t *exampleT) Cleanup(f func())                  { t.cleanup = append(t.cleanup, f) }
func (t *exampleT) Output() io.Writer                 { return io.Discard }
func (t *exampleT) Error(args ...any)                 { log.Fatal(args...) }
func (t *exampleT) Errorf(format string, args ...any) { log.Fatalf(format, args...) }
func (t *exampleT) Fatal(args ...any)                 { log.Fatal(args...) }
func (t *exampleT) Fatalf(format string, args ...any) { log.Fatalf(format, args...) }
