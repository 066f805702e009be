package tokenstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"
)

// FileConfig configures a File.
type FileConfig struct {
	// Dir is the directory of the database. It is created if it does not exist.
	Dir string
	// Logger is slog.Default() if nil.
	Logger *slog.Logger
}

// File is a store in a directory of this machine, for a single replica without
// Redis. Its sessions outlive the process: what a method has written before it
// returned is on the disk, also after a crash of the process or of the machine.
// Leases are in memory, because they belong to this process.
//
// The database is one file that only its owner can read. One process at a time
// can open it. It does not become smaller when sessions end: the space is used
// again.
type File struct {
	db     *bbolt.DB
	memory Memory // leases and watchers

	stopSweeping context.CancelFunc
	sweeping     sync.WaitGroup
}

// Buckets of the database.
var (
	recordsBucket = []byte("records") // key → expiry, value
	setsBucket    = []byte("sets")    // key → a bucket: member → expiry
)

const (
	// databaseName is the name of the database in FileConfig.Dir.
	databaseName = "sessions.db"
	// lockTimeout is how long NewFile waits for a process before it, which may
	// be about to end.
	lockTimeout = 2 * time.Second
	// batchDelay is how long a write waits for others, with which it shares the
	// cost of reaching the disk.
	batchDelay = 2 * time.Millisecond
)

// NewFile opens the database in cfg.Dir, or creates it. The error says if
// another process has it open. Close has to be called at the end.
func NewFile(cfg FileConfig) (*File, error) {
	if cfg.Dir == "" {
		return nil, errors.New("the directory is missing")
	}
	log := cfg.Logger
	if log == nil {
		log = slog.Default()
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	name := filepath.Join(cfg.Dir, databaseName)
	db, err := openDatabase(name)
	switch {
	case errors.Is(err, bbolterrors.ErrTimeout):
		return nil, fmt.Errorf("the directory %s is in use by another process: "+
			"a file store is for one broker; several need Redis", cfg.Dir)
	case err != nil:
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	db.MaxBatchDelay = batchDelay
	f := &File{db: db}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{recordsBucket, setsBucket} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		db.Close()
		return nil, fmt.Errorf("write to %s: %w", name, err)
	}
	ctx, stop := context.WithCancel(context.Background())
	f.stopSweeping = stop
	f.sweeping.Go(func() { f.sweepLoop(ctx, log) }) // until Close
	return f, nil
}

// openDatabase opens the database in a file, or creates it. It removes the
// permissions of others.
func openDatabase(name string) (*bbolt.DB, error) {
	if info, err := os.Stat(name); err == nil && info.Size() > 0 {
		if err := checkComplete(name); err != nil {
			return nil, err
		}
		os.Chmod(name, 0o600) // fails for the file of another user, who has given this one access
	}
	return bbolt.Open(name, 0o600, &bbolt.Options{
		Timeout: lockTimeout, FreelistType: bbolt.FreelistMapType, NoFreelistSync: true,
	})
}

// checkComplete returns an error if the file lacks pages of the database. The
// process would crash when it reads them.
func checkComplete(name string) error {
	db, err := bbolt.Open(name, 0o600, &bbolt.Options{Timeout: lockTimeout, ReadOnly: true})
	if err != nil {
		return err
	}
	defer db.Close()
	return db.View(func(tx *bbolt.Tx) error {
		info, err := os.Stat(name) // not before: another process may have written until now
		if err != nil {
			return err
		}
		if tx.Size() > info.Size() {
			return fmt.Errorf("the database is incomplete: %d of %d bytes (restore it, or delete it, "+
				"which signs all users out)", info.Size(), tx.Size())
		}
		return nil
	})
}

// Close closes the database.
func (f *File) Close() error {
	f.stopSweeping()
	f.sweeping.Wait()
	return f.db.Close()
}

// An entry is a time of expiry, in milliseconds since 1970, before a value.
const expirySize = 8

func newEntry(ttl time.Duration, value []byte) []byte {
	entry := binary.BigEndian.AppendUint64(nil, uint64(time.Now().Add(ttl).UnixMilli()))
	return append(entry, value...)
}

// parseEntry returns the remaining time to live and the value of an entry. The
// value is valid during the transaction only. It returns false if the entry has
// expired, or is nil.
func parseEntry(entry []byte) (ttl time.Duration, value []byte, ok bool) {
	if len(entry) < expirySize {
		return 0, nil, false
	}
	ttl = time.Until(time.UnixMilli(int64(binary.BigEndian.Uint64(entry))))
	return ttl, entry[expirySize:], ttl > 0
}

// Get is part of session.Store.
func (f *File) Get(_ context.Context, key string) (value []byte, ttl time.Duration, found bool, err error) {
	err = f.db.View(func(tx *bbolt.Tx) error {
		var stored []byte
		ttl, stored, found = parseEntry(tx.Bucket(recordsBucket).Get([]byte(key)))
		value = slices.Clone(stored)
		return nil
	})
	return value, ttl, found, err
}

// change runs a transaction that writes to the records, and announces the key
// if it returns true.
func (f *File) change(key string, write func(records *bbolt.Bucket) (written bool, err error)) (bool, error) {
	var written bool
	err := f.db.Batch(func(tx *bbolt.Tx) (err error) { // may run more than once
		written, err = write(tx.Bucket(recordsBucket))
		return err
	})
	if err != nil {
		return false, err
	}
	f.memory.announceIf(&written, key)
	return written, nil
}

// Create is part of session.Store.
func (f *File) Create(_ context.Context, key string, value []byte, ttl time.Duration) (bool, error) {
	return f.change(key, func(records *bbolt.Bucket) (bool, error) {
		if _, stored, found := parseEntry(records.Get([]byte(key))); found {
			return bytes.Equal(stored, value), nil
		}
		return true, records.Put([]byte(key), newEntry(ttl, value))
	})
}

// Replace is part of session.Store.
func (f *File) Replace(_ context.Context, key string, old, value []byte) (bool, error) {
	return f.change(key, func(records *bbolt.Bucket) (bool, error) {
		entry := records.Get([]byte(key))
		_, stored, found := parseEntry(entry)
		if !found || !bytes.Equal(stored, old) {
			return found && bytes.Equal(stored, value), nil
		}
		return true, records.Put([]byte(key), append(slices.Clone(entry[:expirySize]), value...))
	})
}

// Touch is part of session.Store.
func (f *File) Touch(_ context.Context, key string, ttl time.Duration) (bool, error) {
	return f.change(key, func(records *bbolt.Bucket) (bool, error) {
		_, stored, found := parseEntry(records.Get([]byte(key)))
		if !found {
			return false, nil
		}
		return true, records.Put([]byte(key), newEntry(ttl, stored))
	})
}

// Delete is part of session.Store.
func (f *File) Delete(_ context.Context, keys ...string) error {
	found := make([]bool, len(keys))
	err := f.db.Batch(func(tx *bbolt.Tx) error { // may run more than once
		records := tx.Bucket(recordsBucket)
		for i, key := range keys {
			found[i] = records.Get([]byte(key)) != nil
			if err := records.Delete([]byte(key)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i, key := range keys {
		f.memory.announceIf(&found[i], key)
	}
	return nil
}

// Acquire is part of session.Store.
func (f *File) Acquire(ctx context.Context, key, owner string, ttl time.Duration) (bool, error) {
	return f.memory.Acquire(ctx, key, owner, ttl)
}

// Release is part of session.Store.
func (f *File) Release(ctx context.Context, key, owner string) error {
	return f.memory.Release(ctx, key, owner)
}

// Add is part of session.Store.
func (f *File) Add(_ context.Context, members map[string]string, ttl time.Duration) error {
	return f.db.Batch(func(tx *bbolt.Tx) error {
		for key, member := range members {
			set, err := tx.Bucket(setsBucket).CreateBucketIfNotExists([]byte(key))
			if err != nil {
				return err
			}
			if left, _, ok := parseEntry(set.Get([]byte(member))); ok && left > ttl {
				continue
			}
			if err := set.Put([]byte(member), newEntry(ttl, nil)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Members is part of session.Store.
func (f *File) Members(_ context.Context, keys ...string) (members []string, err error) {
	err = f.db.View(func(tx *bbolt.Tx) error {
		for _, key := range keys {
			set := tx.Bucket(setsBucket).Bucket([]byte(key))
			if set == nil {
				continue
			}
			if err := set.ForEach(func(member, entry []byte) error {
				if _, _, ok := parseEntry(entry); ok {
					members = append(members, string(member))
				}
				return nil
			}); err != nil {
				return err
			}
		}
		return nil
	})
	return members, err
}

// Remove is part of session.Store.
func (f *File) Remove(_ context.Context, members map[string]string) error {
	return f.db.Batch(func(tx *bbolt.Tx) error {
		sets := tx.Bucket(setsBucket)
		for key, member := range members {
			set := sets.Bucket([]byte(key))
			if set == nil {
				continue
			}
			if err := set.Delete([]byte(member)); err != nil {
				return err
			}
			if first, _ := set.Cursor().First(); first != nil {
				continue
			}
			if err := sets.DeleteBucket([]byte(key)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Watch is part of session.Store. It calls onChange before the writing method
// returns.
func (f *File) Watch(ctx context.Context, onChange func(key string), onValid func(until time.Time)) {
	f.memory.Watch(ctx, onChange, onValid)
}

// Ping returns nil while the database is open.
func (f *File) Ping(context.Context) error { return f.db.View(func(*bbolt.Tx) error { return nil }) }

// sweepLoop removes what has expired, every sweepEvery until ctx ends.
func (f *File) sweepLoop(ctx context.Context, log *slog.Logger) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for failed := false; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := f.sweep()
		if err != nil && !failed {
			log.WarnContext(ctx, "expired sessions not removed from the file store", "err", err)
		}
		failed = err != nil
	}
}

// sweepSize is how many entries one transaction of sweep removes at most.
// Writes wait for it.
const sweepSize = 1000

// sweep removes expired records and members.
func (f *File) sweep() error {
	for {
		expired, err := f.expired()
		if err != nil || len(expired) == 0 {
			return err
		}
		err = f.db.Update(func(tx *bbolt.Tx) error {
			for _, e := range expired {
				if err := e.remove(tx); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
}

// expiredEntry is a record, or a member of a set.
type expiredEntry struct {
	key    []byte
	member []byte // nil: a record
}

// expired returns up to sweepSize expired entries.
func (f *File) expired() (all []expiredEntry, err error) {
	errFull := errors.New("enough")
	err = f.db.View(func(tx *bbolt.Tx) error {
		add := func(key, member, entry []byte) error {
			if _, _, ok := parseEntry(entry); !ok {
				all = append(all, expiredEntry{slices.Clone(key), slices.Clone(member)})
			}
			if len(all) == sweepSize {
				return errFull
			}
			return nil
		}
		err := tx.Bucket(recordsBucket).ForEach(func(key, entry []byte) error { return add(key, nil, entry) })
		if err != nil {
			return err
		}
		sets := tx.Bucket(setsBucket)
		return sets.ForEachBucket(func(key []byte) error {
			return sets.Bucket(key).ForEach(func(member, entry []byte) error { return add(key, member, entry) })
		})
	})
	if errors.Is(err, errFull) {
		err = nil
	}
	return all, err
}

// remove removes the entry unless it was written again, and a set that has no
// members left.
func (e expiredEntry) remove(tx *bbolt.Tx) error {
	bucket, key := tx.Bucket(recordsBucket), e.key
	if e.member != nil {
		if bucket, key = tx.Bucket(setsBucket).Bucket(e.key), e.member; bucket == nil {
			return nil
		}
	}
	if _, _, ok := parseEntry(bucket.Get(key)); ok {
		return nil
	}
	if err := bucket.Delete(key); err != nil {
		return err
	}
	if e.member != nil {
		if first, _ := bucket.Cursor().First(); first == nil {
			return tx.Bucket(setsBucket).DeleteBucket(e.key)
		}
	}
	return nil
}

// Len returns the number of records and of sets in the database, including
// expired ones that are not removed yet.
func (f *File) Len() (records, sets int) {
	f.db.View(func(tx *bbolt.Tx) error {
		records = tx.Bucket(recordsBucket).Stats().KeyN
		return tx.Bucket(setsBucket).ForEachBucket(func([]byte) error {
			sets++
			return nil
		})
	})
	return records, sets
}
