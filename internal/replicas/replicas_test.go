package replicas_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/replicas"
	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

// replica is a Watcher that runs in the bubble of a test.
type replica struct {
	*replicas.Watcher
	stop func() // and wait until it has ended

	mu  sync.Mutex // guards all below
	is  replicas.Description
	log bytes.Buffer
}

var (
	keyA = bytes.Repeat([]byte("a"), 32)
	keyB = bytes.Repeat([]byte("b"), 32)
	keyC = bytes.Repeat([]byte("c"), 32)
)

// described returns the description of a replica that edit changes.
func described(edit func(*replicas.Description)) replicas.Description {
	d := replicas.Description{
		Version: "v1.0.0", Commit: "abc",
		App:      session.App{Issuer: "https://id.example", ClientID: "spa", Origin: "https://app.example"},
		Keys:     [][]byte{keyA},
		Settings: map[string]session.Secret{"oidc.client_secret": "hunter2", "session.idle_timeout": "30m0s"},
	}
	if edit != nil {
		edit(&d)
	}
	return d
}

// start starts a replica, and waits until it has made its first round.
func start(t *testing.T, store session.Store, edit func(*replicas.Description)) *replica {
	t.Helper()
	r := &replica{is: described(edit)}
	r.Watcher = replicas.New(store, r.describe, slog.New(slog.NewJSONHandler(r, nil)))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { // until stop
		r.Run(ctx)
		close(done)
	}()
	r.stop = func() {
		cancel()
		<-done
	}
	synctest.Wait()
	return r
}

func (r *replica) describe() replicas.Description {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.is
}

// reload changes the description.
func (r *replica) reload(edit func(*replicas.Description)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.is = described(edit)
}

// Write appends to the log.
func (r *replica) Write(text []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(text)
}

// lines returns level, message up to a semicolon, and key of the lines that
// were logged since the last call.
func (r *replica) lines(t *testing.T) []string {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []string
	for line := range strings.Lines(r.log.String()) {
		var fields struct {
			Level, Msg, Key string
			Settings        []string
		}
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatalf("log line %q: %v", line, err)
		}
		msg, _, _ := strings.Cut(fields.Msg, ";")
		text := strings.TrimSpace(fields.Level + " " + msg + " " + fields.Key)
		if len(fields.Settings) > 0 {
			text += fmt.Sprint(" ", fields.Settings)
		}
		all = append(all, text)
	}
	r.log.Reset()
	slices.Sort(all)
	return all
}

func (r *replica) want(t *testing.T, when string, want ...string) {
	t.Helper()
	if got := r.lines(t); !slices.Equal(got, want) {
		t.Errorf("log %s: got %q, want %q", when, got, want)
	}
}

const (
	differs = "WARN difference between replicas found "
	ended   = "INFO difference between replicas ended "
)

// rounds waits for n more rounds.
func rounds(n int) {
	time.Sleep(time.Duration(n)*5*time.Second + time.Second)
	synctest.Wait()
}

func TestDifferencesAreLoggedOnceOnBothSides(t *testing.T) {
	for name, test := range map[string]struct {
		edit func(*replicas.Description)
		want []string // keys
	}{
		"nothing":        {nil, nil},
		"another key":    {func(d *replicas.Description) { d.Keys = [][]byte{keyB} }, []string{"session.keys"}},
		"one key more":   {func(d *replicas.Description) { d.Keys = [][]byte{keyB, keyA} }, []string{"session.keys"}},
		"another client": {func(d *replicas.Description) { d.App.ClientID = "x" }, []string{"oidc.client_id"}},
		"another issuer": {func(d *replicas.Description) { d.App.Issuer = "https://x" }, []string{"oidc.issuer"}},
		"another origin": {func(d *replicas.Description) { d.App.Origin = "https://x" },
			[]string{"server.public_url"}},
		"another version": {func(d *replicas.Description) { d.Version = "v1.0.1" }, []string{"version"}},
		"another commit":  {func(d *replicas.Description) { d.Commit = "def" }, []string{"version"}},
		"another secret": {func(d *replicas.Description) { d.Settings["oidc.client_secret"] = "x" },
			[]string{"configuration [oidc.client_secret]"}},
		"one setting less": {func(d *replicas.Description) { delete(d.Settings, "session.idle_timeout") },
			[]string{"configuration [session.idle_timeout]"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := new(tokenstore.Memory)
				a := start(t, store, nil)
				b := start(t, store, test.edit)
				var found, gone []string
				for _, key := range test.want {
					found, gone = append(found, differs+key), append(gone, ended+strings.Fields(key)[0])
				}
				rounds(1)
				a.want(t, "of a after a round", found...)
				b.want(t, "of b after a round", found...)
				rounds(20)
				a.want(t, "of a later")
				b.want(t, "of b later")
				b.reload(nil)
				rounds(2)
				a.want(t, "of a after the reload", gone...)
				b.want(t, "of b after the reload", gone...)
				a.stop()
				b.stop()
				if got := store.Len(); got != 0 {
					t.Errorf("records after the end: got %d, want 0", got)
				}
			})
		})
	}
}

// In a rotation, the keys of two replicas are in another order.
func TestOrderOfKeysIsNoDifference(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(tokenstore.Memory)
		a := start(t, store, func(d *replicas.Description) { d.Keys = [][]byte{keyA, keyB} })
		defer a.stop()
		b := start(t, store, func(d *replicas.Description) { d.Keys = [][]byte{keyB, keyA} })
		defer b.stop()
		rounds(2)
		a.want(t, "of a")
		b.want(t, "of b")
		list := listed(t, a)
		if got := list[1].Differs; len(got) > 0 {
			t.Errorf("differs: got %q, want none", got)
		}
		if here, there := list[0].ConfigurationHash, list[1].ConfigurationHash; here != there {
			t.Errorf("configuration hashes: got %s and %s, want the same", here, there)
		}
	})
}

func TestReplicasWithoutCommonKeyCompareNoSettings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(tokenstore.Memory)
		a := start(t, store, nil)
		defer a.stop()
		b := start(t, store, func(d *replicas.Description) {
			d.Keys, d.Settings["oidc.client_secret"] = [][]byte{keyB}, "x"
		})
		defer b.stop()
		rounds(1)
		a.want(t, "of a", differs+"session.keys")
		b.reload(func(d *replicas.Description) {
			d.Keys, d.Settings["oidc.client_secret"] = [][]byte{keyC, keyA}, "x"
		})
		rounds(2)
		a.want(t, "of a with a common key", differs+"configuration [oidc.client_secret]", differs+"session.keys")
	})
}

func TestAnotherAppIsNoWarning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(tokenstore.Memory)
		a := start(t, store, nil)
		defer a.stop()
		b := start(t, store, func(d *replicas.Description) {
			d.App.Origin, d.App.ClientID, d.Keys = "https://other.example", "other", [][]byte{keyB}
		})
		defer b.stop()
		rounds(5)
		a.want(t, "of a", "INFO replica of another app found")
		b.want(t, "of b", "INFO replica of another app found")
		if got, want := listed(t, a)[1].Differs, []string{"oidc.client_id",
			"server.public_url"}; !slices.Equal(got, want) {
			t.Errorf("differs: got %q, want %q", got, want)
		}
	})
}

func TestReplicaThatEndsEndsItsDifferences(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(tokenstore.Memory)
		a := start(t, store, nil)
		defer a.stop()
		b := start(t, store, func(d *replicas.Description) { d.App.ClientID = "x" })
		rounds(1)
		a.want(t, "of a", differs+"oidc.client_id")
		b.stop()
		if got := len(listed(t, a)); got != 1 {
			t.Errorf("replicas after the end of b: got %d, want 1", got)
		}
		rounds(3)
		a.want(t, "of a after the end of b", ended+"oidc.client_id")
	})
}

// An outage is longer than the records live. It ends no difference.
func TestOutageOfTheStoreIsLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &brokenStore{Store: new(tokenstore.Memory)}
		a := start(t, store, nil)
		b := start(t, store, func(d *replicas.Description) { d.App.ClientID = "x" })
		rounds(1)
		a.want(t, "of a before", differs+"oidc.client_id")
		b.lines(t)
		store.broken.Store(true)
		rounds(12)
		a.want(t, "of a in the outage", "WARN replicas not compared")
		b.want(t, "of b in the outage", "WARN replicas not compared")
		if list, err := a.List(t.Context()); err == nil {
			t.Errorf("List in the outage: got %v, want an error", list)
		}
		b.reload(nil) // the record of the old configuration is gone when b writes its new one
		store.broken.Store(false)
		rounds(3)
		a.want(t, "of a after the outage", ended+"oidc.client_id", "INFO replicas compared again")
		b.want(t, "of b after the outage", ended+"oidc.client_id", "INFO replicas compared again")
		store.broken.Store(true)
		a.stop()
		b.stop()
	})
}

func TestReplicaKeepsItsRecordThroughAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &brokenStore{Store: new(tokenstore.Memory)}
		a := start(t, store, nil)
		defer a.stop()
		b := start(t, store, func(d *replicas.Description) { d.App.ClientID = "x" })
		defer b.stop()
		time.Sleep(2 * time.Second) // b makes its rounds between those of a
		rounds(1)
		a.lines(t)
		store.broken.Store(true)
		rounds(12)
		store.broken.Store(false)
		rounds(6)
		a.want(t, "of a", "INFO replicas compared again", "WARN replicas not compared")
		if got := len(listed(t, a)); got != 2 {
			t.Errorf("replicas after the outage: got %d, want 2", got)
		}
	})
}

func TestSingleReplicaNeedsNoStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, nil, nil)
		defer a.stop()
		list := listed(t, a)
		if len(list) != 1 {
			t.Fatalf("replicas: got %d, want 1", len(list))
		}
		if !list[0].Self {
			t.Error("self: got false, want true")
		}
		if got := list[0].Version; got != "v1.0.0" {
			t.Errorf("version: got %q, want v1.0.0", got)
		}
	})
}

func listed(t *testing.T, r *replica) []replicas.Replica {
	t.Helper()
	list, err := r.List(t.Context())
	if err != nil {
		t.Fatalf("List: %v", err)
	}
	return list
}

// brokenStore is a store that fails while broken.
type brokenStore struct {
	session.Store
	broken atomic.Bool
}

var errBroken = errors.New("broken")

func (s *brokenStore) Touch(ctx context.Context, key string, ttl time.Duration) (bool, error) {
	if s.broken.Load() {
		return false, errBroken
	}
	return s.Store.Touch(ctx, key, ttl)
}

func (s *brokenStore) Members(ctx context.Context, keys ...string) ([]string, error) {
	if s.broken.Load() {
		return nil, errBroken
	}
	return s.Store.Members(ctx, keys...)
}

func (s *brokenStore) Delete(ctx context.Context, keys ...string) error {
	if s.broken.Load() {
		return errBroken
	}
	return s.Store.Delete(ctx, keys...)
}

func TestReplicasThatDifferAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(tokenstore.Memory)
		a := start(t, store, nil)
		defer a.stop()
		b := start(t, store, nil)
		defer b.stop()
		other := start(t, store, func(d *replicas.Description) {
			d.App = session.App{Issuer: "https://other.example", ClientID: "other", Origin: "https://other.example"}
		})
		defer other.stop()
		want := func(when string, r *replica, replicas, differing int) {
			t.Helper()
			if got, gotDiffering := r.Counts(); got != replicas || gotDiffering != differing {
				t.Errorf("%s: got %d replicas, %d of which differ, want %d and %d",
					when, got, gotDiffering, replicas, differing)
			}
		}
		rounds(2)
		want("equal ones", a, 2, 0)
		want("another app", other, 1, 0)
		b.reload(func(d *replicas.Description) { d.Keys = [][]byte{keyB} })
		rounds(2)
		want("another key", a, 2, 1)
		want("another key", b, 2, 1)
		b.stop()
		rounds(3)
		want("one has ended", a, 1, 0)
	})
}
