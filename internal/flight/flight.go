// Package flight shares one call among many callers.
//
// Each caller waits under its own context. The call runs under a context of its
// own, so that it does not end with the caller that happened to start it: a
// refresh that spends a refresh token has to be completed even if the browser
// is gone. Calls of golang.org/x/sync/singleflight run in the context of their
// first caller, and Do waits for them however short another caller's deadline
// is.
package flight

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// Call is a call that is in flight or has finished. It is safe for concurrent
// use.
type Call[T any] struct {
	done  chan struct{} // closed when value and err are set
	value T
	err   error
}

// NewCall returns a Call that is in flight until Finish.
func NewCall[T any]() *Call[T] { return &Call[T]{done: make(chan struct{})} }

// Start runs f in a goroutine, which ends with f. The context of f has the
// values of ctx, and is cancelled after limit, not with ctx.
func Start[T any](ctx context.Context, limit time.Duration, f func(context.Context) (T, error)) *Call[T] {
	c := NewCall[T]()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	go func() { // until f returns
		defer cancel()
		c.Finish(f(ctx))
	}()
	return c
}

// Finish sets the result and wakes all who wait for it. It must be called once.
func (c *Call[T]) Finish(value T, err error) {
	c.value, c.err = value, err
	close(c.done)
}

// Wait returns the result when there is one, or the error of ctx if that is
// done before.
func (c *Call[T]) Wait(ctx context.Context) (T, error) {
	select {
	case <-c.done:
		return c.value, c.err
	case <-ctx.Done():
		var zero T
		return zero, ctx.Err()
	}
}

// Result returns the result; finished is false while the call is in flight.
func (c *Call[T]) Result() (value T, finished bool, err error) {
	select {
	case <-c.done:
		return c.value, true, c.err
	default:
		return value, false, nil
	}
}

// Repeat calls f, and again each interval while no call has returned. It
// returns the result of the first one that does, so that a request that is lost
// delays its caller by an interval only. f may run several times at once. Its
// context ends when Repeat returns.
func Repeat[T any](ctx context.Context, interval time.Duration, f func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	first := NewCall[T]()
	var once sync.Once
	again := time.NewTicker(interval)
	defer again.Stop()
	for {
		go func() { // until f returns
			value, err := f(ctx)
			once.Do(func() { first.Finish(value, err) })
		}()
		select {
		case <-first.done:
			return first.value, first.err
		case <-again.C:
		}
	}
}

// Group shares calls by key. Its zero value has no calls in flight. It is safe
// for concurrent use.
type Group[K comparable, T any] struct {
	mu    sync.Mutex     // guards calls
	calls map[K]*Call[T] // :: key → the call in flight
}

// Do returns the result of f, which it starts as Start does unless there is a
// call for key in flight. A caller that comes after that call starts another
// one.
func (g *Group[K, T]) Do(
	ctx context.Context,
	key K,
	limit time.Duration,
	f func(context.Context) (T, error),
) (T, error) {
	g.mu.Lock()
	call := g.calls[key]
	if call == nil {
		call = Start(ctx, limit, func(ctx context.Context) (T, error) {
			defer g.forget(key)
			return f(ctx)
		})
		if g.calls == nil {
			g.calls = make(map[K]*Call[T])
		}
		g.calls[key] = call
	}
	g.mu.Unlock()
	return call.Wait(ctx)
}

func (g *Group[K, T]) forget(key K) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.calls, key)
}

// Backoff returns how long to wait after a number of failures in a row:
// shortest after the first one, twice as long after each further one, and
// longest at most.
func Backoff(shortest, longest time.Duration, failures int) time.Duration {
	return min(shortest<<min(max(failures-1, 0), 10), longest)
}

// Jitter returns d and up to a quarter more at random, so that those who failed
// at the same time do not retry at the same time.
func Jitter(d time.Duration) time.Duration {
	if d < 4 {
		return d
	}
	return d + rand.N(d/4)
}
