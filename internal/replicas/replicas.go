package replicas

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
)

const (
	interval = 5 * time.Second // between two rounds of Run
	ttl      = 15 * time.Second
	// timeout bounds a round, and the removal of the record at the end.
	timeout = 3 * time.Second
	// missingRounds is in how many rounds a replica has to be missing until it
	// is gone. After an outage of the store all replicas write their records
	// again, within one interval.
	missingRounds = 2
)

// setKey is the set of the ids of replicas, and recordKey the key of the record
// of one.
const setKey = "replicas"

func recordKey(id string) string { return "replica:" + id }

// Watcher publishes a replica to the others, and compares it with them.
type Watcher struct {
	store     session.Store // nil: only this replica can use it
	describe  func() Description
	log       *slog.Logger
	id        string
	startedAt time.Time

	replicas, differing atomic.Int64 // of Counts

	// Run owns all below.
	published []byte           // the record in the store, as far as known
	others    map[string]*peer // :: id
	failed    bool             // the last round failed
	failures  int              // rounds in a row that failed while the store responded
}

// peer is what Run knows of another replica.
type peer struct {
	missing  int               // rounds since it was seen
	logged   map[string]string // :: key of a difference that was logged → its detail
	otherApp bool              // it was logged that the replica serves another app
}

// New returns a Watcher for this process. describe returns what this replica is
// now; the next round publishes a change. A nil store means that no other
// process can use the store: then there is this replica only.
func New(store session.Store, describe func() Description, log *slog.Logger) *Watcher {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	random := make([]byte, 4)
	rand.Read(random)
	w := &Watcher{
		store: store, describe: describe, log: log,
		id:        host + "-" + hex.EncodeToString(random),
		startedAt: time.Now().UTC().Truncate(time.Second),
		others:    make(map[string]*peer),
	}
	w.replicas.Store(1)
	return w
}

// Run publishes the record of this replica until ctx ends, and then removes it.
// It logs each difference between this replica and another one once, and when
// the difference is gone. An outage of the store is logged once.
func (w *Watcher) Run(ctx context.Context) {
	if w.store == nil {
		return
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		w.logOutage(ctx, w.round(ctx))
		select {
		case <-ctx.Done():
			w.remove(context.WithoutCancel(ctx))
			return
		case <-tick.C:
		}
	}
}

// failuresToLog is how many rounds in a row fail before it is logged.
const failuresToLog = 2

// logOutage logs that rounds begin to fail, and that they succeed again. While
// the store does not even respond to a ping, its outage is logged by others.
func (w *Watcher) logOutage(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	w.failed = err != nil
	switch {
	case err == nil:
		if w.failures >= failuresToLog {
			w.log.Info("replicas compared again")
		}
		w.failures = 0
	case w.failures >= failuresToLog:
	case w.storeDown(ctx):
		w.failures = 0
	default:
		if w.failures++; w.failures == failuresToLog {
			w.log.Warn("replicas not compared", "err", err)
		}
	}
}

// storeDown reports whether the store fails as a whole, if it has a way to
// tell.
func (w *Watcher) storeDown(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	store, ok := w.store.(interface{ Ping(context.Context) error })
	return ok && store.Ping(ctx) != nil
}

// round publishes this replica, and compares it with the others.
func (w *Watcher) round(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	self := w.self()
	value, err := json.Marshal(self)
	if err != nil {
		return err
	}
	if err := w.publish(ctx, value); err != nil {
		return fmt.Errorf("write the record of this replica: %w", err)
	}
	others, err := w.read(ctx)
	if err != nil {
		return err
	}
	w.compare(self, others)
	return nil
}

func (w *Watcher) self() record { return newRecord(w.id, w.startedAt, w.describe()) }

// publish writes the record of this replica, or extends its time to live.
func (w *Watcher) publish(ctx context.Context, value []byte) error {
	key := recordKey(w.id)
	if w.published != nil && !bytes.Equal(w.published, value) {
		replaced, err := w.store.Replace(ctx, key, w.published, value)
		if err != nil {
			return err
		}
		if !replaced { // after an error, the store may have a record that is not known
			if err := w.store.Delete(ctx, key); err != nil {
				return err
			}
		}
	}
	w.published = value
	found, err := w.store.Touch(ctx, key, ttl)
	if err == nil && !found {
		_, err = w.store.Create(ctx, key, value, ttl)
	}
	if err != nil {
		return err
	}
	return w.store.Add(ctx, map[string]string{setKey: w.id}, ttl)
}

// remove removes the record of this replica. If the store fails, it expires.
func (w *Watcher) remove(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := w.store.Delete(ctx, recordKey(w.id))
	if err == nil {
		err = w.store.Remove(ctx, map[string]string{setKey: w.id})
	}
	if err != nil && !w.failed {
		w.log.Warn("record of this replica not removed; it expires", "err", err)
	}
}

// found is a record of another replica.
type found struct {
	record
	seenAt time.Time // when it was last written
}

// read returns the records of the other replicas, in the order of their ids.
func (w *Watcher) read(ctx context.Context) ([]found, error) {
	ids, err := w.store.Members(ctx, setKey)
	if err != nil {
		return nil, fmt.Errorf("list replicas: %w", err)
	}
	slices.Sort(ids)
	var others []found
	for _, id := range ids {
		if id == w.id {
			continue
		}
		value, left, ok, err := w.store.Get(ctx, recordKey(id))
		if err != nil {
			return nil, fmt.Errorf("read the record of replica %s: %w", id, err)
		}
		var rec record
		if !ok || json.Unmarshal(value, &rec) != nil || rec.Replica != id {
			continue // it has ended, or no release that is known wrote it
		}
		others = append(others, found{rec, time.Now().Add(left - ttl)})
	}
	return others, nil
}

// compare logs what has changed since the last round.
func (w *Watcher) compare(self record, others []found) {
	for _, p := range w.others {
		p.missing++
	}
	for _, other := range others {
		p := w.others[other.Replica]
		if p == nil {
			p = &peer{logged: make(map[string]string)}
			w.others[other.Replica] = p
		}
		p.missing = 0
		var all []difference
		isOther := !sameApp(self, other.record)
		if isOther && !p.otherApp {
			w.log.Info("replica of another app found; give each app a store.prefix of its own",
				"replica", other.Replica, "issuer", other.Issuer, "client_id", other.ClientID, "origin", other.Origin)
		}
		if p.otherApp = isOther; !isOther {
			all = differences(self, other.record)
		}
		w.logDifferences(other.Replica, p, all)
	}
	replicas, differing := int64(1), int64(0)
	for id, p := range w.others {
		switch {
		case p.missing >= missingRounds:
			w.logDifferences(id, p, nil)
			delete(w.others, id)
		case !p.otherApp:
			replicas++
			if len(p.logged) > 0 {
				differing++
			}
		}
	}
	w.replicas.Store(replicas)
	w.differing.Store(differing)
}

// Counts returns how many replicas the app has, this one included, and how many
// of them differ from this one, as of the last round of Run.
func (w *Watcher) Counts() (replicas, differing int) {
	return int(w.replicas.Load()), int(w.differing.Load())
}

// logDifferences logs the differences that are new, and those that are gone.
func (w *Watcher) logDifferences(id string, p *peer, all []difference) {
	now := make(map[string]string)
	for _, d := range all {
		now[d.key] = d.detail()
		if before, ok := p.logged[d.key]; ok && before == now[d.key] {
			continue
		}
		attrs, values := []any{"replica", id, "key", d.key}, []any{"here", d.here, "there", d.there}
		if d.key == keyConfiguration {
			values = []any{"settings", d.settings}
		}
		w.log.Warn("difference between replicas found; it is normal during a rolling change only",
			append(attrs, values...)...)
	}
	for key := range p.logged {
		if _, ok := now[key]; !ok {
			w.log.Info("difference between replicas ended", "replica", id, "key", key)
		}
	}
	p.logged = now
}

// Replica is a replica as an administrator sees it.
type Replica struct {
	Replica       string    `json:"replica"` // host name and a random part
	Self          bool      `json:"self"`    // the replica that responds
	StartedAt     time.Time `json:"started_at"`
	SeenAt        time.Time `json:"seen_at"` // when its record was last written
	Version       string    `json:"version"`
	Commit        string    `json:"commit"`
	RecordVersion int       `json:"record_version"` // of sessions
	Issuer        string    `json:"issuer"`
	ClientID      string    `json:"client_id"`
	Origin        string    `json:"origin"`
	// KeyFingerprints are those of session.keys, in their order.
	KeyFingerprints []string `json:"key_fingerprints"`
	// ConfigurationHash can be compared between replicas that have a session
	// key in common.
	ConfigurationHash string `json:"configuration_hash"`
	// Differs are the keys in which the replica that responds differs.
	Differs []string `json:"differs"`
	// Settings are the keys that differ, if Differs has configuration.
	Settings []string `json:"settings,omitempty"`
}

// List returns all replicas, this one first. It fails if the store does.
func (w *Watcher) List(ctx context.Context) ([]Replica, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	self := w.self()
	all := []found{{self, time.Now()}}
	if w.store != nil {
		others, err := w.read(ctx)
		if err != nil {
			return nil, err
		}
		all = append(all, others...)
	}
	records := make([]record, len(all))
	for i, r := range all {
		records[i] = r.record
	}
	shown := displayKey(self, records)
	list := make([]Replica, len(all))
	for i, r := range all {
		list[i] = Replica{
			Replica: r.Replica, Self: i == 0,
			StartedAt: r.StartedAt, SeenAt: r.seenAt.UTC().Truncate(time.Millisecond),
			Version: r.Version, Commit: r.Commit, RecordVersion: r.RecordVersion,
			Issuer: r.Issuer, ClientID: r.ClientID, Origin: r.Origin,
			KeyFingerprints: r.fingerprints(), ConfigurationHash: r.configurationHash(shown),
			Differs: []string{},
		}
		for _, d := range differences(self, r.record) {
			list[i].Differs = append(list[i].Differs, d.key)
			list[i].Settings = append(list[i].Settings, d.settings...)
		}
	}
	return list, nil
}
