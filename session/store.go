package session

import (
	"context"
	"fmt"
	"time"
)

// Store keeps records: opaque bytes under a key, each with a time to live; and sets of names, which have one too. A Store is safe for concurrent
// use, and every method is atomic and sees all that was written before it began. What has outlived its time does not exist.
//
// An error is a fault of the store (it is out of reach, full, or misconfigured), never an answer: a record that is not
// there is not an error. After an error of a writing method the write may or may not have happened. Each of them can be called
// again with the same arguments, and then says what it would have said the first time.
type Store interface {
	// Get returns the value under key and how much longer it lives; found is false when there is none.
	Get(ctx context.Context, key string) (value []byte, ttl time.Duration, found bool, err error)
	// Create writes a record under a key that has none, to live for ttl, which is positive. It returns false and writes nothing when there is
	// one with another value.
	Create(ctx context.Context, key string, value []byte, ttl time.Duration) (created bool, err error)
	// Replace writes value in the place of old and leaves the time to live as it is. It returns false and writes nothing
	// when the record is gone or holds neither: a late writer can neither revive nor overwrite.
	Replace(ctx context.Context, key string, old, value []byte) (replaced bool, err error)
	// Touch lets a record live for ttl, which is positive, from now on. It returns false when there is none.
	Touch(ctx context.Context, key string, ttl time.Duration) (found bool, err error)
	// Delete removes a record. That there is none is not an error.
	Delete(ctx context.Context, key string) error

	// Acquire makes owner the holder of the lease under key for ttl from now on, unless somebody else holds it, and says whether it did. The
	// holder renews its lease by acquiring it again. A lease that is not renewed ends by itself.
	Acquire(ctx context.Context, key, owner string, ttl time.Duration) (acquired bool, err error)
	// Release ends the lease under key if owner holds it. That it does not is not an error.
	Release(ctx context.Context, key, owner string) error

	// Add puts a member into the set under key, to be in it for ttl from now on.
	// A member that is in it already stays at least as long as before. The set
	// lives as long as the member that stays longest.
	Add(ctx context.Context, key, member string, ttl time.Duration) error
	// Members returns the members of the set under key, in any order; none when
	// there is no such set. A member whose time is over may be returned for some
	// minutes more while the set has others.
	Members(ctx context.Context, key string) ([]string, error)
	// Remove takes a member out of the set under key. That it is not in it is not an error.
	Remove(ctx context.Context, key, member string) error

	// Watch calls changed with the key of every record under "session:" and every lease under "refresh:" that anybody writes, soon after they
	// did, until ctx ends; with the empty key when any of them may have been written without an announcement. It calls
	// current to vouch, until a moment, that all that was written before the call has been announced; when it
	// cannot, it does not. It may call for what has not changed, and from several goroutines at once.
	Watch(ctx context.Context, changed func(key string), current func(until time.Time))
}

func storeError(op string, err error) error {
	return fmt.Errorf("%w: %s: %w", ErrStore, op, err)
}
