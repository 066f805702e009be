package tokenstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/push"
	"golang.org/x/sync/errgroup"
)

const (
	// heartbeat is the interval of pings to each master.
	heartbeat = 250 * time.Millisecond
	// validFor is how long a pong is valid: the time for which a connection
	// that is silently dead goes unnoticed.
	validFor = 2 * heartbeat
	// recheck is the interval at which the set of masters is checked.
	recheck = time.Second
	// rewatch is the delay before reconnecting.
	rewatch = 200 * time.Millisecond
	// failuresToLog is how often watching fails before it is logged.
	failuresToLog = 3
)

// Watch is part of session.Store. Each master announces, on a connection of its
// own, every key under the prefix that is written (CLIENT TRACKING in
// broadcasting mode). That takes about 0.1 ms and covers all writers. If Redis
// refuses that, or the protocol RESP3 that it needs, Watch subscribes to the
// keys that Redis stores publish when they write. Watch reconnects until ctx is
// done.
func (s *Redis) Watch(ctx context.Context, onChange func(key string), onValid func(until time.Time)) {
	failures := 0 // in a row, while Redis responded to other requests
	for first := true; ctx.Err() == nil; {
		valid := false // written by one goroutine of watch at a time
		err := s.watch(ctx, first, onChange, func(until time.Time) {
			valid = true
			if failures >= failuresToLog {
				s.log.InfoContext(ctx, "cache invalidation restored; sessions are cached again")
			}
			failures = 0
			onValid(until)
		})
		if ctx.Err() != nil {
			return
		}
		if valid {
			first = false
			onChange("") // changes may have been missed
		}
		// In an outage of Redis, sessions cannot be read either. The callers of
		// the other methods report that.
		if failures < failuresToLog && s.responds(ctx) {
			if failures++; failures == failuresToLog {
				s.log.WarnContext(ctx,
					"cache invalidation lost; every request reads the store", "err", withHint(err))
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(rewatch):
		}
	}
}

// responds reports whether Redis responds soon.
func (s *Redis) responds(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, recheck)
	defer cancel()
	return s.Ping(ctx) == nil
}

// watch follows all masters until a connection is lost or the set of masters
// changes. It never returns nil.
func (s *Redis) watch(ctx context.Context, first bool, onChange func(key string), onValid func(until time.Time)) error {
	masters, err := s.masters(ctx)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	var runID atomic.Value                    // string: the process of the last master connected to
	var mu sync.Mutex                         // guards untils, and orders the calls of onValid
	untils := make([]time.Time, len(masters)) // until when the announcements of each master are complete
	for i, o := range masters {
		group.Go(func() error {
			return s.watchMaster(ctx, o, &runID, onChange, func(until time.Time) {
				mu.Lock()
				defer mu.Unlock()
				all := !slices.ContainsFunc(untils, time.Time.IsZero)
				untils[i] = until
				if slices.ContainsFunc(untils, time.Time.IsZero) {
					return
				}
				if !all && !first {
					onChange("") // changes may have been missed
				}
				onValid(slices.MinFunc(untils, time.Time.Compare))
			})
		})
	}
	group.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(recheck):
			}
			now, err := s.masters(ctx)
			if err != nil {
				return err
			}
			if !slices.EqualFunc(masters, now, func(a, b *redis.Options) bool { return a.Addr == b.Addr }) {
				return errors.New("other servers have become masters")
			}
			if watched, _ := runID.Load().(string); len(masters) == 1 && watched != "" {
				// One address may lead to another server later, with Sentinels,
				// a virtual address or DNS.
				if now, err := serverID(ctx, s.client); err != nil || now != watched {
					return fmt.Errorf("another server has become the master: %w", cmp.Or(err, errOtherServer))
				}
			}
		}
	})
	return group.Wait()
}

var errOtherServer = errors.New("run_id differs")

// serverID returns the run_id of a server's process, or "" without the right to
// read it.
func serverID(ctx context.Context, c interface {
	Info(ctx context.Context, sections ...string) *redis.StringCmd
}) (string, error) {
	info, err := c.Info(ctx, "server").Result()
	if redis.IsPermissionError(err) {
		return "", nil
	}
	return infoField(info, "run_id"), err
}

func infoField(info, name string) string {
	_, value, _ := strings.Cut(info, "\n"+name+":")
	value, _, _ = strings.Cut(value, "\r")
	return value
}

// watchMaster forwards the announcements of one master until the connection is
// lost.
func (s *Redis) watchMaster(ctx context.Context, master *redis.Options, runID *atomic.Value,
	onChange func(key string), onValid func(until time.Time)) error {
	var refused error // of CLIENT TRACKING on the current connection; used by this goroutine only
	client := redis.NewClient(s.trackingOptions(master, runID, &refused))
	defer client.Close()
	err := client.RegisterPushNotificationHandler("invalidate", announcement{s.prefix, onChange}, false)
	if err != nil {
		return err
	}
	// Nothing is published on this channel. The library only reads from an idle
	// connection if it has a subscription.
	subscription := client.Subscribe(ctx, s.prefix+"heartbeat")
	changes := s.channel("session:")
	following := false // this connection announces changes
	defer subscription.Close()
	var pinged time.Time // when the unanswered ping was sent; zero: none
	ping := func() error {
		pinged = time.Now()
		return subscription.Ping(ctx)
	}
	for ctx.Err() == nil {
		message, err := subscription.ReceiveTimeout(ctx, heartbeat)
		switch message := message.(type) {
		case *redis.Subscription:
			if following = refused == nil || message.Channel == changes; following {
				err = ping()
			} else {
				err = s.subscribe(ctx, subscription, changes, refused)
			}
		case *redis.Message:
			onChange(strings.TrimPrefix(message.Payload, s.prefix))
		case *redis.Pong:
			if following {
				onValid(pinged.Add(validFor)) // responses are ordered: all earlier changes were announced
			}
			pinged = time.Time{}
		}
		if isTimeout(err) {
			if pinged.IsZero() {
				err = ping()
			} else if waited := time.Since(pinged); waited > 4*heartbeat {
				err = fmt.Errorf("no response for %v", waited.Round(time.Millisecond))
			} else {
				err = nil
			}
		}
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// trackingOptions returns the options of a connection to a master that
// announces changes. A connection stores the process that it leads to in runID,
// and in refused whether the master refuses CLIENT TRACKING.
func (s *Redis) trackingOptions(master *redis.Options, runID *atomic.Value, refused *error) *redis.Options {
	o := *master
	o.Protocol = 3
	o.PoolSize = 1
	o.PipelinePoolSize = -1
	o.OnConnect = func(ctx context.Context, c *redis.Conn) error {
		if master.OnConnect != nil {
			if err := master.OnConnect(ctx, c); err != nil {
				return err
			}
		}
		id, err := serverID(ctx, c)
		if err != nil {
			return err
		}
		runID.Store(id)
		s.checkServer(ctx, c, o.Addr, id)
		// Where HELLO fails, the library uses RESP2. Then Redis accepts CLIENT
		// TRACKING, but announces nothing.
		if *refused = c.Hello(ctx, 3, "", "", "").Err(); *refused == nil {
			*refused = c.ClientTrackingOn(ctx,
				&redis.ClientTrackingOptions{Bcast: true,
					Prefixes: []string{s.prefix + "session:", s.prefix + "refresh:"}}).Err()
		}
		if isRefusal(*refused) {
			return nil
		}
		return *refused
	}
	o.PushNotificationProcessor = redis.NewPushNotificationProcessor() // copied options would share one
	return &o
}

// publish publishes to no subscriber, and fails if a script cannot publish.
var publish = redis.NewScript(`return redis.call('PUBLISH', KEYS[1], '')`)

// subscribe follows the published keys, because Redis has refused CLIENT
// TRACKING. It fails if this store cannot publish either: its own writes would
// be missed by others.
func (s *Redis) subscribe(ctx context.Context, subscription *redis.PubSub, changes string, refused error) error {
	if err := publish.Run(ctx, s.client, []string{s.prefix + "probe"}).Err(); err != nil {
		return fmt.Errorf("publish, because CLIENT TRACKING was refused (%w): %w", refused, err)
	}
	s.untracked.Do(func() {
		s.log.InfoContext(ctx,
			"Redis refused CLIENT TRACKING; published keys invalidate cached sessions", "err", refused)
	})
	return subscription.Subscribe(ctx, changes)
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// announcement forwards the keys of invalidation messages.
type announcement struct {
	prefix   string
	onChange func(key string)
}

// HandlePushNotification is called by the library. A message without keys
// invalidates all keys.
func (a announcement) HandlePushNotification(_ context.Context, _ push.NotificationHandlerContext,
	message []any) error {
	keys, _ := message[len(message)-1].([]any)
	if len(keys) == 0 {
		a.onChange("")
	}
	for _, key := range keys {
		if key, ok := key.(string); ok {
			a.onChange(strings.TrimPrefix(key, a.prefix))
		}
	}
	return nil
}

// clusterMasters returns the options of each master that serves slots.
func clusterMasters(ctx context.Context, client *redis.ClusterClient) ([]*redis.Options, error) {
	var mu sync.Mutex
	var masters []*redis.Options
	err := client.ForEachMaster(ctx, func(_ context.Context, master *redis.Client) error {
		mu.Lock()
		defer mu.Unlock()
		masters = append(masters, master.Options())
		return nil
	})
	slices.SortFunc(masters, func(a, b *redis.Options) int { return strings.Compare(a.Addr, b.Addr) })
	if err == nil && len(masters) == 0 {
		err = errors.New("the cluster has no masters")
	}
	return masters, err
}
