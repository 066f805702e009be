package cancel

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var errCause = errors.New("cause")

type key string

func TestCancel(t *testing.T) {
	t.Parallel()
	for name, wrap := range map[string]func(context.Context) context.Context{
		"itself":      func(ctx context.Context) context.Context { return ctx },
		"with values": func(ctx context.Context) context.Context { return context.WithValue(ctx, key("x"), 1) },
		"derived": func(ctx context.Context) context.Context {
			derived, cancel := context.WithCancel(ctx)
			t.Cleanup(cancel)
			return derived
		},
		"derived from values": func(ctx context.Context) context.Context {
			derived, cancel := context.WithTimeout(context.WithValue(ctx, key("x"), 1), time.Hour)
			t.Cleanup(cancel)
			return derived
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			var c Context
			ctx := wrap(&c)
			defer c.Cancel(nil)
			var called, stopped atomic.Int32
			for range 6 {
				AfterFunc(ctx, func() { called.Add(1) })
				registration := AfterFunc(ctx, func() { stopped.Add(1) })
				if !registration.Stop() || registration.Stop() {
					t.Errorf("%s: stop: got false or twice true, want true once", name)
				}
			}
			if err := ctx.Err(); err != nil {
				t.Errorf("%s: got %v before Cancel, want nil", name, err)
			}
			c.Cancel(errCause)
			c.Cancel(errors.New("another"))
			<-ctx.Done()
			synctest.Wait()
			if called.Load() != 6 || stopped.Load() != 0 {
				t.Errorf("%s: got %d and %d calls, want 6 and 0", name, called.Load(), stopped.Load())
			}
			if got := context.Cause(ctx); got != errCause {
				t.Errorf("%s: cause: got %v, want %v", name, got, errCause)
			}
			registration := AfterFunc(ctx, func() { called.Add(1) })
			synctest.Wait()
			if registration.Stop() || called.Load() != 7 {
				t.Errorf("%s: after the end: got %d calls, want 7", name, called.Load())
			}
		})
	}
}

// A context in between that ends earlier counts.
func TestAfterFuncOfDerived(t *testing.T) {
	t.Parallel()
	var c Context
	defer c.Cancel(nil)
	derived, cancel := context.WithCancel(&c)
	called := make(chan bool)
	AfterFunc(context.WithValue(derived, key("x"), 1), func() { close(called) })
	cancel()
	<-called
}

func TestValues(t *testing.T) {
	t.Parallel()
	parent, cancel := context.WithCancelCause(context.WithValue(t.Context(), key("parent"), 1))
	c := Context{Values: WithoutCancel(parent)}
	if !SetValue(&c, key("x"), 2) || SetValue(&c, key("other"), 3) || SetValue(parent, key("x"), 2) {
		t.Error("SetValue: want true for the first value of a Context alone")
	}
	if c.Value(key("parent")) != 1 || c.Value(key("x")) != 2 || c.Value(key("none")) != nil ||
		new(Context).Value(key("none")) != nil {
		t.Errorf("got %v, %v, %v", c.Value(key("parent")), c.Value(key("x")), c.Value(key("none")))
	}
	inner := Context{Values: WithoutCancel(&c)}
	derived, stop := context.WithCancel(&inner)
	defer stop()
	if inner.Value(key("parent")) != 1 || inner.Value(key("x")) != 2 {
		t.Errorf("got %v, %v", inner.Value(key("parent")), inner.Value(key("x")))
	}
	cancel(errCause)
	if c.Err() != nil || context.Cause(&c) != nil {
		t.Errorf("got %v, %v, want nil: the values' context does not matter", c.Err(), context.Cause(&c))
	}
	c.Cancel(errCause)
	if inner.Err() != nil || context.Cause(&inner) != nil || derived.Err() != nil {
		t.Errorf("got %v, %v, want nil: the values' context does not matter", inner.Err(), context.Cause(&inner))
	}
}

// A long request may derive any number of contexts.
func TestStoppedFunctionsAreForgotten(t *testing.T) {
	t.Parallel()
	c := new(Context)
	stop := func() bool { return true }
	for range 1000 {
		last := stop
		stop = AfterFunc(c, func() {}).Stop
		if !last() {
			t.Fatal("the function was not stopped")
		}
	}
	if n := cap(c.funcs); n > 10 {
		t.Errorf("there is room for %d functions, want at most 10", n)
	}
}
