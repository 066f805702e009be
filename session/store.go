package session

import (
	"context"
	"fmt"
	"time"
)

// Store keeps sessions where all replicas find them. A Store is safe for
// concurrent use. Package tokenstore has three of them, and the conformance
// suite in tokenstore/storetest tests everything that is said here.
//
// Every method is atomic, and sees all writes that ended before it began. A
// record, lease or member whose time to live is over does not exist (but see
// Sets.Members). Times to live are positive.
//
// An error is a fault of the store: it is unreachable, full or misconfigured. A
// record that does not exist is not an error. After the error of a writing
// method, the write may or may not have happened. Every writing method can be
// repeated with the same arguments, and then returns what it would have
// returned the first time.
type Store interface {
	Records
	Leases
	Sets
	Watcher
}

// Records are opaque values under a key, each with a time to live.
type Records interface {
	// Get returns the value under key, and its remaining time to live; found is
	// false if there is none.
	Get(ctx context.Context, key string) (value []byte, ttl time.Duration, found bool, err error)
	// Create writes a record under a key that has none. If the key has a record
	// with another value, it writes nothing and returns false. If the record
	// has the same value, an earlier call may have written it: created is true.
	Create(ctx context.Context, key string, value []byte, ttl time.Duration) (created bool, err error)
	// Replace writes value in the place of old, and leaves the time to live as
	// it is. If there is no record, or the record is neither old nor value,
	// Replace writes nothing and returns false: a late writer neither revives
	// nor overwrites a record. If the record is value already, an earlier call
	// may have written it: replaced is true.
	Replace(ctx context.Context, key string, old, value []byte) (replaced bool, err error)
	// Touch sets the time to live of a record, counted from now. It returns
	// false if there is none.
	Touch(ctx context.Context, key string, ttl time.Duration) (found bool, err error)
	// Delete deletes a record. It is not an error if there is none.
	Delete(ctx context.Context, key string) error
}

// Leases are locks that expire, so that a holder that crashes delays others
// for a limited time.
type Leases interface {
	// Acquire makes owner the holder of the lease under key for ttl from now
	// on, unless there is another holder, and reports whether it did. A holder
	// renews its lease by acquiring it again.
	Acquire(ctx context.Context, key, owner string, ttl time.Duration) (acquired bool, err error)
	// Release ends the lease under key if owner holds it. It is not an error if
	// owner does not.
	Release(ctx context.Context, key, owner string) error
}

// Sets are sets of strings under a key. Each member has its own time to live,
// and a set exists as long as it has members.
type Sets interface {
	// Add adds a member to the set under key, for ttl from now on. If the set
	// has the member, its time to live can only become longer.
	Add(ctx context.Context, key, member string, ttl time.Duration) error
	// Members returns the members of the set under key, in any order; none if
	// there is no such set. Members may return an expired member for some
	// minutes, while the set has others that have not expired.
	Members(ctx context.Context, key string) ([]string, error)
	// Remove removes a member from the set under key. It is not an error if the
	// set does not have it.
	Remove(ctx context.Context, key, member string) error
}

// Watcher announces writes of all processes. Caches depend on it.
type Watcher interface {
	// Watch follows the records under "session:" and the leases under
	// "refresh:" until ctx is done.
	//
	// It calls onChange with the key of each such record or lease soon after
	// its write. An empty key means that any of them may have been written
	// without an announcement.
	//
	// It calls onValid with a time until which caches may be used. Before the
	// call it has called onChange for every write that was made before some
	// moment, which is shortly before that time. Later writes may be missing in
	// a cache until that time. So Watch calls onValid repeatedly, with later
	// times, and stops when announcements may be lost. A store that calls
	// onChange before the writing method returns may call onValid once, with a
	// distant time.
	//
	// Watch may announce keys that have not changed, and may call both
	// functions from several goroutines at once.
	Watch(ctx context.Context, onChange func(key string), onValid func(until time.Time))
}

func storeError(op string, err error) error {
	return fmt.Errorf("%w: %s: %w", ErrStore, op, err)
}
