package bff

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cloakroom-bff/cloakroom/session"
)

// storeMetrics are the metrics of calls to the store.
type storeMetrics struct {
	duration *prometheus.HistogramVec // of operation
	errors   *prometheus.CounterVec   // of operation
	calls    map[string]storeCall     // :: operation
}

// storeCall has the metrics of an operation.
type storeCall struct {
	duration prometheus.Observer
	errors   prometheus.Counter
}

// Upper bounds of a histogram, in seconds. A store in memory takes less than
// the first one.
var storeBuckets = []float64{.0005, .001, .0025, .005, .025, .1, .5, 2.5}

func newStoreMetrics() storeMetrics {
	m := storeMetrics{
		duration: newHistograms("cloakroom_store_duration_seconds",
			"Time of calls to the session store, retries included.", storeBuckets, "operation"),
		errors: newCounters("cloakroom_store_errors_total",
			"Calls to the session store that failed. A record that does not exist is no error.", "operation"),
		calls: make(map[string]storeCall),
	}
	for _, operation := range []string{
		"get", "create", "replace", "touch", "delete", "acquire", "release", "add", "members", "remove",
	} {
		m.calls[operation] = storeCall{m.duration.WithLabelValues(operation), m.errors.WithLabelValues(operation)}
	}
	return m
}

// measuredStore is a store whose calls are measured, for the metrics of the
// server that an app belongs to.
type measuredStore struct {
	session.Store
	app *app
}

// done records a call that has ended with err. A caller that has left is no
// error of the store.
func (s *measuredStore) done(operation string, began time.Time, err error) {
	call := s.app.server.metrics.store.calls[operation]
	call.duration.Observe(time.Since(began).Seconds())
	if err != nil && !errors.Is(err, context.Canceled) {
		call.errors.Inc()
		if !errors.Is(err, context.DeadlineExceeded) { // which may be that of the caller
			s.app.server.storeOutage.failed(err)
		}
	}
}

// The methods are those of session.Store, except for Watch, which does not end.

func (s *measuredStore) Get(ctx context.Context, key string) ([]byte, time.Duration, bool, error) {
	began := time.Now()
	value, ttl, found, err := s.Store.Get(ctx, key)
	s.done("get", began, err)
	return value, ttl, found, err
}

func (s *measuredStore) Create(ctx context.Context, key string, value []byte, ttl time.Duration) (bool, error) {
	began := time.Now()
	created, err := s.Store.Create(ctx, key, value, ttl)
	s.done("create", began, err)
	return created, err
}

func (s *measuredStore) Replace(ctx context.Context, key string, old, value []byte) (bool, error) {
	began := time.Now()
	replaced, err := s.Store.Replace(ctx, key, old, value)
	s.done("replace", began, err)
	return replaced, err
}

func (s *measuredStore) Touch(ctx context.Context, key string, ttl time.Duration) (bool, error) {
	began := time.Now()
	found, err := s.Store.Touch(ctx, key, ttl)
	s.done("touch", began, err)
	return found, err
}

func (s *measuredStore) Delete(ctx context.Context, keys ...string) error {
	began := time.Now()
	err := s.Store.Delete(ctx, keys...)
	s.done("delete", began, err)
	return err
}

func (s *measuredStore) Acquire(ctx context.Context, key, owner string, ttl time.Duration) (bool, error) {
	began := time.Now()
	acquired, err := s.Store.Acquire(ctx, key, owner, ttl)
	s.done("acquire", began, err)
	return acquired, err
}

func (s *measuredStore) Release(ctx context.Context, key, owner string) error {
	began := time.Now()
	err := s.Store.Release(ctx, key, owner)
	s.done("release", began, err)
	return err
}

func (s *measuredStore) Add(ctx context.Context, members map[string]string, ttl time.Duration) error {
	began := time.Now()
	err := s.Store.Add(ctx, members, ttl)
	s.done("add", began, err)
	return err
}

func (s *measuredStore) Members(ctx context.Context, keys ...string) ([]string, error) {
	began := time.Now()
	members, err := s.Store.Members(ctx, keys...)
	s.done("members", began, err)
	return members, err
}

func (s *measuredStore) Remove(ctx context.Context, members map[string]string) error {
	began := time.Now()
	err := s.Store.Remove(ctx, members)
	s.done("remove", began, err)
	return err
}
