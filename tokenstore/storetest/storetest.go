// Package storetest tests implementations of session.Store:
//
//	func TestStore(t *testing.T) { storetest.Run(t, newStore()) }
package storetest

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
)

// Run tests that store meets the contract of session.Store. It uses random
// keys, so the store need not be empty.
func Run(t *testing.T, store session.Store) {
	c := &contract{store, fmt.Sprintf("storetest:%x:", rand.Uint64())}
	for _, rule := range []struct {
		name string
		test func(*contract, *testing.T)
	}{
		{"AbsentRecordIsNoError", (*contract).absentRecordIsNoError},
		{"GetReturnsWhatWasCreated", (*contract).getReturnsWhatWasCreated},
		{"CreateDoesNotOverwrite", (*contract).createDoesNotOverwrite},
		{"CreateHasOneWinner", (*contract).createHasOneWinner},
		{"ReplaceNeedsOldValueAndKeepsTTL", (*contract).replaceNeedsOldValueAndKeepsTTL},
		{"ReplaceHasOneWinner", (*contract).replaceHasOneWinner},
		{"RepeatedWriteReturnsTheSame", (*contract).repeatedWriteReturnsTheSame},
		{"DeletedRecordIsNotRevived", (*contract).deletedRecordIsNotRevived},
		{"RecordsAreDeletedTogether", (*contract).recordsAreDeletedTogether},
		{"TouchSetsTTL", (*contract).touchSetsTTL},
		{"RecordExpires", (*contract).recordExpires},
		{"OnlyHolderRenewsAndReleasesLease", (*contract).onlyHolderRenewsAndReleasesLease},
		{"AcquireHasOneWinner", (*contract).acquireHasOneWinner},
		{"SetHasEachMemberOnce", (*contract).setHasEachMemberOnce},
		{"SetsAreUsedTogether", (*contract).setsAreUsedTogether},
		{"SetExpiresWithLastMember", (*contract).setExpiresWithLastMember},
		{"ShorterTTLTakesNothingFromOthers", (*contract).shorterTTLTakesNothingFromOthers},
		{"EveryWriteIsAnnounced", (*contract).everyWriteIsAnnounced},
		{"CallerOwnsItsBytes", (*contract).callerOwnsItsBytes},
		{"DoneContextIsNeverAbsence", (*contract).doneContextIsNeverAbsence},
	} {
		t.Run(rule.name, func(t *testing.T) { rule.test(c, t) })
	}
}

// contract is what a store is tested for.
type contract struct {
	store  session.Store
	prefix string // of all keys
}

// key returns the key of a test.
func (c *contract) key(t *testing.T) string { return c.prefix + t.Name() }

func (c *contract) absentRecordIsNoError(t *testing.T) {
	ctx := t.Context()
	wantAbsent(t, c.store, c.key(t))
	if err := c.store.Delete(ctx, c.key(t)); err != nil {
		t.Errorf("Delete of an absent record: %v", err)
	}
	if found, err := c.store.Touch(ctx, c.key(t), time.Minute); found || err != nil {
		t.Errorf("Touch of an absent record: got %v, %v, want false, nil", found, err)
	}
	if replaced, err := c.store.Replace(ctx, c.key(t), []byte("old"), []byte("new")); replaced || err != nil {
		t.Errorf("Replace of an absent record: got %v, %v, want false, nil", replaced, err)
	}
	wantAbsent(t, c.store, c.key(t))
}

func (c *contract) getReturnsWhatWasCreated(t *testing.T) {
	value := []byte("\x00\xff\r\n arbitrary bytes")
	create(t, c.store, c.key(t), value, time.Minute)
	wantValue(t, c.store, c.key(t), value, 30*time.Second, time.Minute)
}

func (c *contract) createDoesNotOverwrite(t *testing.T) {
	ctx := t.Context()
	create(t, c.store, c.key(t), []byte("first"), time.Minute)
	if created, err := c.store.Create(ctx, c.key(t), []byte("second"), time.Hour); created || err != nil {
		t.Errorf("second Create: got %v, %v, want false, nil", created, err)
	}
	wantValue(t, c.store, c.key(t), []byte("first"), 30*time.Second, time.Minute)
}

func (c *contract) createHasOneWinner(t *testing.T) {
	ctx := t.Context()
	var wins atomic.Int32
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			created, err := c.store.Create(ctx, c.key(t), fmt.Append(nil, i), time.Minute)
			if err != nil {
				t.Error(err)
			}
			if created {
				wins.Add(1)
			}
		})
	}
	all.Wait()
	if wins.Load() != 1 {
		t.Errorf("Create returned true to %d of 16 callers, want 1", wins.Load())
	}
}

func (c *contract) replaceNeedsOldValueAndKeepsTTL(t *testing.T) {
	ctx := t.Context()
	create(t, c.store, c.key(t), []byte("one"), time.Minute)
	if replaced, err := c.store.Replace(ctx, c.key(t), []byte("two"), []byte("three")); replaced || err != nil {
		t.Errorf("Replace of another value: got %v, %v, want false, nil", replaced, err)
	}
	wantValue(t, c.store, c.key(t), []byte("one"), 30*time.Second, time.Minute)
	if replaced, err := c.store.Replace(ctx, c.key(t), []byte("one"), []byte("two")); !replaced || err != nil {
		t.Errorf("Replace: got %v, %v, want true, nil", replaced, err)
	}
	wantValue(t, c.store, c.key(t), []byte("two"), 30*time.Second, time.Minute)
}

func (c *contract) replaceHasOneWinner(t *testing.T) {
	ctx := t.Context()
	create(t, c.store, c.key(t), []byte("old"), time.Minute)
	var wins atomic.Int32
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			replaced, err := c.store.Replace(ctx, c.key(t), []byte("old"), fmt.Appendf(nil, "new %d", i))
			if err != nil {
				t.Error(err)
			}
			if replaced {
				wins.Add(1)
			}
		})
	}
	all.Wait()
	if wins.Load() != 1 {
		t.Errorf("Replace returned true to %d of 16 callers, want 1", wins.Load())
	}
}

func (c *contract) repeatedWriteReturnsTheSame(t *testing.T) {
	ctx := t.Context()
	for range 2 {
		create(t, c.store, c.key(t), []byte("one"), time.Minute)
	}
	for range 2 {
		if replaced, err := c.store.Replace(ctx, c.key(t), []byte("one"), []byte("two")); !replaced || err != nil {
			t.Errorf("Replace: got %v, %v, want true, nil", replaced, err)
		}
	}
	if created, err := c.store.Create(ctx, c.key(t), []byte("one"), time.Minute); created || err != nil {
		t.Errorf("Create with the replaced value: got %v, %v, want false, nil", created, err)
	}
	wantValue(t, c.store, c.key(t), []byte("two"), 30*time.Second, time.Minute)
}

func (c *contract) deletedRecordIsNotRevived(t *testing.T) {
	ctx := t.Context()
	create(t, c.store, c.key(t), []byte("old"), time.Minute)
	if err := c.store.Delete(ctx, c.key(t)); err != nil {
		t.Fatal(err)
	}
	if replaced, err := c.store.Replace(ctx, c.key(t), []byte("old"), []byte("new")); replaced || err != nil {
		t.Errorf("Replace after Delete: got %v, %v, want false, nil", replaced, err)
	}
	if found, err := c.store.Touch(ctx, c.key(t), time.Hour); found || err != nil {
		t.Errorf("Touch after Delete: got %v, %v, want false, nil", found, err)
	}
	wantAbsent(t, c.store, c.key(t))
}

func (c *contract) recordsAreDeletedTogether(t *testing.T) {
	ctx := t.Context()
	first, second, third := c.key(t)+" 1", c.key(t)+" 2", c.key(t)+" 3"
	for _, key := range []string{first, second, third} {
		create(t, c.store, key, []byte("value"), time.Minute)
	}
	if err := c.store.Delete(ctx, first, c.key(t)+" absent", second); err != nil {
		t.Fatal(err)
	}
	wantAbsent(t, c.store, first)
	wantAbsent(t, c.store, second)
	wantValue(t, c.store, third, []byte("value"), 30*time.Second, time.Minute)
	if err := c.store.Delete(ctx); err != nil {
		t.Errorf("Delete of no record: %v", err)
	}
}

func (c *contract) touchSetsTTL(t *testing.T) {
	ctx := t.Context()
	create(t, c.store, c.key(t), []byte("value"), time.Minute)
	if found, err := c.store.Touch(ctx, c.key(t), time.Hour); !found || err != nil {
		t.Errorf("Touch: got %v, %v, want true, nil", found, err)
	}
	wantValue(t, c.store, c.key(t), []byte("value"), 30*time.Minute, time.Hour)
	if found, err := c.store.Touch(ctx, c.key(t), time.Minute); !found || err != nil {
		t.Errorf("Touch: got %v, %v, want true, nil", found, err)
	}
	wantValue(t, c.store, c.key(t), []byte("value"), 30*time.Second, time.Minute)
}

func (c *contract) recordExpires(t *testing.T) {
	ctx := t.Context()
	for name, write := range map[string]func(key string){
		"created": func(key string) { create(t, c.store, key, []byte("value"), 80*time.Millisecond) },
		"touched": func(key string) {
			create(t, c.store, key, []byte("value"), time.Hour)
			if _, err := c.store.Touch(ctx, key, 80*time.Millisecond); err != nil {
				t.Fatal(err)
			}
		},
		"with a TTL below the resolution": func(key string) {
			create(t, c.store, key, []byte("value"), time.Nanosecond)
		},
	} {
		k := c.key(t) + name
		write(k)
		time.Sleep(120 * time.Millisecond)
		if replaced, err := c.store.Replace(ctx, k, []byte("value"), []byte("new")); replaced || err != nil {
			t.Errorf("%s: Replace of an expired record: got %v, %v, want false, nil", name, replaced, err)
		}
		wantAbsent(t, c.store, k)
		create(t, c.store, k, []byte("again"), time.Minute)
		wantValue(t, c.store, k, []byte("again"), 30*time.Second, time.Minute)
	}
}

func (c *contract) onlyHolderRenewsAndReleasesLease(t *testing.T) {
	ctx := t.Context()
	acquire := func(owner string, ttl time.Duration, want bool) {
		t.Helper()
		if got, err := c.store.Acquire(ctx, c.key(t), owner, ttl); got != want || err != nil {
			t.Errorf("Acquire by %s: got %v, %v, want %v, nil", owner, got, err, want)
		}
	}
	release := func(owner string) {
		t.Helper()
		if err := c.store.Release(ctx, c.key(t), owner); err != nil {
			t.Errorf("Release by %s: %v", owner, err)
		}
	}
	release("a") // without a holder
	acquire("a", time.Minute, true)
	acquire("b", time.Minute, false)
	release("b")
	acquire("b", time.Minute, false)
	acquire("a", 80*time.Millisecond, true)
	time.Sleep(120 * time.Millisecond)
	acquire("b", time.Minute, true) // the lease of a has expired
	release("a")
	acquire("a", time.Minute, false)
	release("b")
	acquire("a", time.Minute, true)
}

func (c *contract) acquireHasOneWinner(t *testing.T) {
	ctx := t.Context()
	var wins atomic.Int32
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			acquired, err := c.store.Acquire(ctx, c.key(t), fmt.Sprint(i), time.Minute)
			if err != nil {
				t.Error(err)
			}
			if acquired {
				wins.Add(1)
			}
		})
	}
	all.Wait()
	if wins.Load() != 1 {
		t.Errorf("Acquire returned true to %d of 16 callers, want 1", wins.Load())
	}
}

func (c *contract) setHasEachMemberOnce(t *testing.T) {
	ctx := t.Context()
	wantMembers(t, c.store, c.key(t))
	if err := c.store.Remove(ctx, map[string]string{c.key(t): "absent"}); err != nil {
		t.Errorf("Remove from an absent set: %v", err)
	}
	for _, member := range []string{"z", "\x00\xff\r\n", "a", "z"} {
		addMember(t, c.store, c.key(t), member, time.Minute)
	}
	wantMembers(t, c.store, c.key(t), "z", "\x00\xff\r\n", "a")
	for range 2 {
		if err := c.store.Remove(ctx, map[string]string{c.key(t): "a"}); err != nil {
			t.Errorf("Remove: %v", err)
		}
	}
	wantMembers(t, c.store, c.key(t), "\x00\xff\r\n", "z")
}

func (c *contract) setsAreUsedTogether(t *testing.T) {
	ctx := t.Context()
	first, second, third := c.key(t)+" 1", c.key(t)+" 2", c.key(t)+" 3"
	wantMembers(t, c.store, first) // and no key at all is no error
	if got, err := c.store.Members(ctx); len(got) > 0 || err != nil {
		t.Errorf("Members of no set: got %q, %v", got, err)
	}
	members := map[string]string{first: "a", second: "b", third: "a"}
	if err := c.store.Add(ctx, members, time.Minute); err != nil {
		t.Fatal(err)
	}
	addMember(t, c.store, first, "c", time.Minute)
	got, err := c.store.Members(ctx, first, c.key(t)+" absent", second, third)
	if slices.Sort(got); !slices.Equal(got, []string{"a", "a", "b", "c"}) || err != nil {
		t.Errorf("Members of several sets: got %q, %v", got, err)
	}
	if err := c.store.Remove(ctx, members); err != nil {
		t.Fatal(err)
	}
	wantMembers(t, c.store, first, "c")
	wantMembers(t, c.store, second)
	wantMembers(t, c.store, third)
}

func (c *contract) setExpiresWithLastMember(t *testing.T) {
	addMember(t, c.store, c.key(t), "first", 40*time.Millisecond)
	addMember(t, c.store, c.key(t), "second", 80*time.Millisecond)
	time.Sleep(120 * time.Millisecond)
	wantMembers(t, c.store, c.key(t))
}

func (c *contract) shorterTTLTakesNothingFromOthers(t *testing.T) {
	ctx := t.Context()
	addMember(t, c.store, c.key(t), "long", time.Minute)
	addMember(t, c.store, c.key(t), "short", 40*time.Millisecond)
	addMember(t, c.store, c.key(t), "long", 40*time.Millisecond) // the longer TTL stays
	time.Sleep(80 * time.Millisecond)
	addMember(t, c.store, c.key(t), "later", 40*time.Millisecond)
	time.Sleep(80 * time.Millisecond)
	if got, err := c.store.Members(ctx, c.key(t)); !slices.Contains(got, "long") || err != nil {
		t.Errorf("got %q, %v, want the member with a TTL of a minute", got, err)
	}
}

func (c *contract) callerOwnsItsBytes(t *testing.T) {
	ctx := t.Context()
	value := []byte("value")
	create(t, c.store, c.key(t), value, time.Minute)
	copy(value, "VALUE")
	got, _, _, err := c.store.Get(ctx, c.key(t))
	if err != nil || string(got) != "value" {
		t.Errorf("got %q, %v after a change of the caller's slice, want %q", got, err, "value")
	}
	copy(got, "VALUE")
	wantValue(t, c.store, c.key(t), []byte("value"), 0, time.Minute)
}

func (c *contract) doneContextIsNeverAbsence(t *testing.T) {
	ctx := t.Context()
	create(t, c.store, c.key(t), []byte("value"), time.Minute)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, _, found, err := c.store.Get(ended, c.key(t)); !found && err == nil {
		t.Error("Get with a context that is done: got absence, want an error or the record")
	}
}

// everyWriteIsAnnounced writes records and leases and waits for the
// announcement of each.
func (c *contract) everyWriteIsAnnounced(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	changed, valid := make(chan string, 1000), make(chan time.Time, 1000)
	var watching sync.WaitGroup
	watching.Go(func() {
		c.store.Watch(ctx, func(key string) { changed <- key }, func(until time.Time) {
			select {
			case valid <- until:
			default: // the test needs one
			}
		})
	})
	defer watching.Wait()
	defer stop()
	timeout := time.After(10 * time.Second)
	// On a busy machine, a time may be in the past when it arrives here. Later
	// calls have later times.
	for until := (time.Time{}); !until.After(time.Now()); {
		select {
		case until = <-valid:
		case <-timeout:
			t.Fatal("onValid was not called within 10 s with a time that is not in the past")
		}
	}
	record, lease := "session:"+c.prefix, "refresh:"+c.prefix
	for _, write := range []struct {
		name string
		key  string
		do   func() error
	}{
		{"Create", record, func() error {
			_, err := c.store.Create(ctx, record, []byte("one"), time.Minute)
			return err
		}},
		{"Replace", record, func() error {
			_, err := c.store.Replace(ctx, record, []byte("one"), []byte("two"))
			return err
		}},
		{"Touch", record, func() error { _, err := c.store.Touch(ctx, record, time.Hour); return err }},
		{"Delete", record, func() error { return c.store.Delete(ctx, c.key(t), record) }},
		{"Acquire", lease, func() error { _, err := c.store.Acquire(ctx, lease, "me", time.Minute); return err }},
		{"Acquire again", lease, func() error { _, err := c.store.Acquire(ctx, lease, "me", time.Minute); return err }},
		{"Release", lease, func() error { return c.store.Release(ctx, lease, "me") }},
	} {
		if err := write.do(); err != nil {
			t.Fatal(err)
		}
		for announced := ""; announced != write.key; {
			select {
			case announced = <-changed: // others use the store too
			case <-timeout:
				t.Fatalf("%s was not announced", write.name)
			}
		}
	}
}

func addMember(t *testing.T, store session.Store, key, member string, ttl time.Duration) {
	t.Helper()
	if err := store.Add(t.Context(), map[string]string{key: member}, ttl); err != nil {
		t.Fatalf("Add to %s: %v", key, err)
	}
}

// wantMembers checks the members of a set in any order.
func wantMembers(t *testing.T, store session.Store, key string, want ...string) {
	t.Helper()
	got, err := store.Members(t.Context(), key)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) || err != nil {
		t.Errorf("Members of %s: got %q, %v, want %q", key, got, err, want)
	}
}

func create(t *testing.T, store session.Store, key string, value []byte, ttl time.Duration) {
	t.Helper()
	if created, err := store.Create(t.Context(), key, value, ttl); !created || err != nil {
		t.Fatalf("Create %s: got %v, %v, want true, nil", key, created, err)
	}
}

func wantAbsent(t *testing.T, store session.Store, key string) {
	t.Helper()
	if value, _, found, err := store.Get(t.Context(), key); found || err != nil {
		t.Errorf("Get %s: got %q, %v, %v, want none", key, value, found, err)
	}
}

func wantValue(t *testing.T, store session.Store, key string, want []byte, minTTL, maxTTL time.Duration) {
	t.Helper()
	value, ttl, found, err := store.Get(t.Context(), key)
	if !found || err != nil || !bytes.Equal(value, want) {
		t.Errorf("Get %s: got %q, %v, %v, want %q", key, value, found, err, want)
	}
	if ttl < minTTL || ttl > maxTTL {
		t.Errorf("Get %s: got a TTL of %v, want %v to %v", key, ttl, minTTL, maxTTL)
	}
}
