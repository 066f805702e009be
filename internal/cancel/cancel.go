// Package cancel implements contexts that are a part of what they belong to. A
// request that passes through a proxy needs several of them, and those of
// package context each need four allocations or more.
package cancel

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Context is a context.Context without a deadline, which ends with a call of
// Cancel. Its Err is the cause. It must not be copied. The zero value has no
// values and has not ended.
type Context struct {
	// Values has the values of the context, except for the one of SetValue.
	// None of them may be a context that can end, see WithoutCancel. It may be
	// nil.
	Values context.Context

	key, value any // of SetValue; key is nil before

	mu    sync.Mutex    // guards all below
	done  chan struct{} // nil: not asked for
	err   error
	calls int // of AfterFunc
	funcs []afterFunc
	first [4]afterFunc
}

// afterFunc is a function of AfterFunc that was not stopped.
type afterFunc struct {
	call int // which call of AfterFunc it is of
	f    func()
}

// Cancel ends the context, unless it has ended. A nil cause stands for
// context.Canceled.
func (c *Context) Cancel(cause error) {
	if cause == nil {
		cause = context.Canceled
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = cause
	if c.done != nil {
		close(c.done)
	}
	for _, a := range c.funcs {
		go a.f()
	}
	c.funcs, c.first = nil, [4]afterFunc{}
}

// AfterFunc is context.AfterFunc, which uses it for contexts that are derived
// from c.
func (c *Context) AfterFunc(f func()) (stop func() bool) { return c.register(f).Stop }

func (c *Context) register(f func()) Registration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		go f()
		return Registration{}
	}
	if c.funcs == nil {
		c.funcs = c.first[:0]
	}
	c.calls++
	c.funcs = append(c.funcs, afterFunc{c.calls, f})
	return Registration{ctx: c, call: c.calls}
}

// Registration is a call of the function AfterFunc.
type Registration struct {
	ctx  *Context
	call int
	stop func() bool // instead of these, for another context
}

// Stop is what context.AfterFunc returns. It returns false for the zero value.
func (r Registration) Stop() bool {
	if r.stop != nil {
		return r.stop()
	}
	if r.ctx == nil {
		return false
	}
	c := r.ctx
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.funcs, func(a afterFunc) bool { return a.call == r.call })
	if i < 0 {
		return false
	}
	c.funcs = slices.Delete(c.funcs, i, i+1)
	return true
}

// Done is that of context.Context.
func (c *Context) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		c.done = make(chan struct{})
		if c.err != nil {
			close(c.done)
		}
	}
	return c.done
}

// Err returns nil, or the cause of the end.
func (c *Context) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Deadline reports that there is none.
func (c *Context) Deadline() (deadline time.Time, ok bool) { return time.Time{}, false }

type self struct{}

// Value returns the value for a key, or nil.
func (c *Context) Value(key any) any {
	switch {
	case key == self{}:
		return c
	case c.key != nil && key == c.key:
		return c.value
	case c.Values == nil:
		return nil
	}
	return c.Values.Value(key)
}

// SetValue does what context.WithValue does, without another context. It
// reports whether it did: ctx must be a *Context that has no value yet, and
// nothing else may use it at the same time.
func SetValue(ctx context.Context, key, value any) bool {
	c, ok := ctx.(*Context)
	if !ok || c.key != nil {
		return false
	}
	c.key, c.value = key, value
	return true
}

// AfterFunc is context.AfterFunc. For a *Context, also within values, it
// neither makes a context nor starts a goroutine.
func AfterFunc(ctx context.Context, f func()) Registration {
	if c, ok := ctx.(*Context); ok {
		return c.register(f)
	}
	if c, ok := ctx.Value(self{}).(*Context); ok && ctx.Done() == c.Done() {
		return c.register(f)
	}
	return Registration{stop: context.AfterFunc(ctx, f)}
}

// WithoutCancel is context.WithoutCancel for Context.Values. It returns a
// *Context as it is, since only its values are used there.
func WithoutCancel(ctx context.Context) context.Context {
	if _, ok := ctx.(*Context); ok {
		return ctx // its values have no context that can end
	}
	return context.WithoutCancel(ctx)
}
