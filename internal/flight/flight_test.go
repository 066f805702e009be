package flight_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/flight"
)

type contextKey struct{}

func TestManyCallersShareACall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string, int]
		var calls atomic.Int32
		f := func(context.Context) (int, error) {
			time.Sleep(time.Second)
			return int(calls.Add(1)), nil
		}
		for round := 1; round <= 2; round++ { // each call is made anew after the one before
			var all sync.WaitGroup
			for range 100 {
				all.Go(func() {
					if got, err := g.Do(t.Context(), "key", time.Minute, f); got != round || err != nil {
						t.Errorf("got %d, %v, want %d", got, err, round)
					}
				})
			}
			all.Wait()
		}
		if n := calls.Load(); n != 2 {
			t.Errorf("%d calls, want 2", n)
		}
	})
}

func TestKeysDoNotShareCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[int, int]
		began := time.Now()
		var all sync.WaitGroup
		for key := range 10 {
			all.Go(func() {
				got, err := g.Do(t.Context(), key, time.Minute, func(context.Context) (int, error) {
					time.Sleep(time.Second)
					return key, nil
				})
				if got != key || err != nil {
					t.Errorf("got %d, %v, want %d", got, err, key)
				}
			})
		}
		all.Wait()
		if took := time.Since(began); took != time.Second {
			t.Errorf("took %v, want 1s", took)
		}
	})
}

func TestEachCallerHasItsOwnContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flight.Group[string, string]
		first, cancel := context.WithCancel(context.WithValue(t.Context(), contextKey{}, "value"))
		f := func(ctx context.Context) (string, error) {
			time.Sleep(time.Second)
			value, _ := ctx.Value(contextKey{}).(string)
			return value, ctx.Err()
		}
		var all sync.WaitGroup
		all.Go(func() {
			if _, err := g.Do(first, "key", time.Minute, f); !errors.Is(err, context.Canceled) {
				t.Errorf("the caller that left: got %v, want context.Canceled", err)
			}
		})
		synctest.Wait()
		all.Go(func() {
			got, err := g.Do(t.Context(), "key", time.Minute, f)
			if err != nil {
				t.Errorf("the caller that waits: got %v, want no error", err)
			}
			if got != "value" {
				t.Errorf("got %q, want the value of the first caller's context", got)
			}
		})
		synctest.Wait()
		cancel()
		all.Wait()
	})
}

func TestACallEndsAtItsLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		call := flight.Start(t.Context(), time.Second, func(ctx context.Context) (int, error) {
			<-ctx.Done()
			return 0, ctx.Err()
		})
		if _, finished, _ := call.Result(); finished {
			t.Error("it has a result while it is in flight")
		}
		if _, err := call.Wait(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want context.DeadlineExceeded", err)
		}
		if took := time.Since(began); took != time.Second {
			t.Errorf("took %v, want 1s", took)
		}
		if _, finished, err := call.Result(); !finished || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the result is %v, %v, want context.DeadlineExceeded", err, finished)
		}
	})
}

func TestBackoffDoublesUpToItsLimit(t *testing.T) {
	for failures, want := range map[int]time.Duration{
		0: time.Second, 1: time.Second, 2: 2 * time.Second, 3: 4 * time.Second, 5: 16 * time.Second,
		6: 20 * time.Second, 100: 20 * time.Second,
	} {
		if got := flight.Backoff(time.Second, 20*time.Second, failures); got != want {
			t.Errorf("after %d failures: got %v, want %v", failures, got, want)
		}
	}
}

func TestJitterAddsUpToAQuarter(t *testing.T) {
	seen := make(map[time.Duration]bool)
	for range 100 {
		got := flight.Jitter(time.Second)
		if got < time.Second || got >= 1250*time.Millisecond {
			t.Errorf("got %v, want 1s to 1.25s", got)
		}
		seen[got] = true
	}
	if len(seen) < 50 {
		t.Errorf("%d different results of 100", len(seen))
	}
	if got := flight.Jitter(0); got != 0 {
		t.Errorf("of nothing: got %v, want 0", got)
	}
}
