package session

import (
	"context"
	"fmt"
	"time"
)

// Store keeps sessions where all replicas find them. A Store is safe for
// concurrent use. Package tokenstore has three Stores, and the conformance
// suite in tokenstore/storetest tests everything that is said here.
//
// Every method is atomic for each key, and sees all writes that ended before
// the method was called. A record, lease or member whose time to live is over
// does not exist (but see Sets.Members). Times to live are positive.
//
// An error is a fault of the store: the store is unreachable, full or
// misconfigured. A record that does not exist is not an error. After the error
// of a writing method, the write may or may not have happened. Every writing
// method can be repeated with the same arguments, and then returns what it
// would have returned the first time.
type Store interface {
	Records
	Leases
	Sets
	Watcher
}

// Records are opaque values under a key, each with a time to live.
type Records interface {
	// Get returns the value of the record under key, and the remaining time to
	// live of the record; found is false if the key has no record.
	Get(ctx context.Context, key string) (value []byte, ttl time.Duration, found bool, err error)
	// Create writes a record under a key that has none. If the key has a record
	// with another value, Create writes nothing and returns false. If the
	// record has the same value, an earlier call may have written it: created
	// is true.
	Create(ctx context.Context, key string, value []byte, ttl time.Duration) (created bool, err error)
	// Replace writes value in the place of old, and leaves the time to live as
	// it is. If there is no record, or the record is neither old nor value,
	// Replace writes nothing and returns false: a late writer neither revives
	// nor overwrites a record. If the record is value already, an earlier call
	// may have written it: replaced is true.
	Replace(ctx context.Context, key string, old, value []byte) (replaced bool, err error)
	// Touch sets the time to live of the record under key, counted from now;
	// found is false if the key has no record.
	Touch(ctx context.Context, key string, ttl time.Duration) (found bool, err error)
	// Delete deletes the records under keys. Deleting a record that does not
	// exist is not an error. Delete is atomic for each record, not for several:
	// after an error, some of the records may still exist. It takes several
	// keys so that a store on another machine needs one round trip for them.
	Delete(ctx context.Context, keys ...string) error
}

// Leases are locks that expire, so that a holder that crashes delays others
// for a limited time.
type Leases interface {
	// Acquire makes owner the holder of the lease under key for ttl from now
	// on, unless there is another holder, and reports whether it did. A holder
	// renews its lease by acquiring it again.
	Acquire(ctx context.Context, key, owner string, ttl time.Duration) (acquired bool, err error)
	// Release ends the lease under key if owner is its holder. If owner is not
	// the holder, Release does nothing, and that is not an error.
	Release(ctx context.Context, key, owner string) error
}

// Sets are sets of strings under a key. Each member has its own time to live,
// and a set exists as long as it has members. The methods are atomic for each
// set, not for several. They take several sets so that a store on another
// machine needs one round trip for them.
type Sets interface {
	// Add adds to each of several sets one member, for ttl from now on. If a
	// set already has the member, Add can only prolong the member's time to
	// live. The keys of members are those of the sets.
	Add(ctx context.Context, members map[string]string, ttl time.Duration) error
	// Members returns the members of the sets under keys, in any order; none if
	// there is no such set. A member of several sets is returned several times.
	// Members may return an expired member for some minutes, while its set has
	// other members that have not expired.
	Members(ctx context.Context, keys ...string) ([]string, error)
	// Remove removes from each of several sets one member. Removing a member
	// that the set does not have is not an error. The keys of members are those
	// of the sets.
	Remove(ctx context.Context, members map[string]string) error
}

// Watcher announces writes of all processes. Caches depend on these
// announcements.
type Watcher interface {
	// Watch follows the records under "session:" and the leases under
	// "refresh:" until ctx is done.
	//
	// Watch calls onChange with the key of each such record or lease soon after
	// the write. An empty key means that any record or lease may have been
	// written without an announcement.
	//
	// Watch calls onValid with a time in the near future. No cache may be used
	// after that time. Such a call means that Watch knew of every write until
	// shortly before the call. A cache may lack later writes. To keep caches in
	// use, Watch calls onValid repeatedly, with later times. When announcements
	// may be lost, Watch stops calling onValid.
	//
	// A store that calls onChange before the writing method returns needs no
	// such limit, and may call onValid once, with a distant time.
	//
	// Watch may announce keys that have not changed, and may call both
	// functions from several goroutines at once.
	Watch(ctx context.Context, onChange func(key string), onValid func(until time.Time))
}

func storeError(op string, err error) error {
	return fmt.Errorf("%w: %s: %w", ErrStore, op, err)
}
