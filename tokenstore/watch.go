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
	// heartbeat is how often each master is asked whether it has told us everything.
	heartbeat = 250 * time.Millisecond
	// currentFor is how long an answer to that is good. When the connection dies without a word, this is for how long it goes unnoticed.
	currentFor = 2 * heartbeat
	// recheck is how often it is looked whether those that are watched are still the masters.
	recheck = time.Second
	// rewatch is the pause before a connection that was lost is made again.
	rewatch = 200 * time.Millisecond
)

// Watch is part of session.Store. It has each master announce, on a connection of its own, every key under the prefix that is
// written (CLIENT TRACKING in broadcasting mode, Redis 6): 0.1 ms after the fact, without the writers' help, and whoever they are.
func (s *Redis) Watch(ctx context.Context, changed func(key string), current func(until time.Time)) {
	var told string // the error that was logged last
	for first := true; ctx.Err() == nil; {
		vouched := false // guarded by watch
		err := s.watch(ctx, first, changed, func(until time.Time) {
			vouched = true
			if told != "" {
				s.log.InfoContext(ctx, "the store announces changes again: sessions are cached")
				told = ""
			}
			current(until)
		})
		if ctx.Err() != nil {
			return
		}
		if vouched {
			first = false
			changed("") // otherwise there is nothing new that could have been missed
		}
		if err = explain(err); err.Error() != told {
			told = err.Error()
			s.log.WarnContext(ctx, "the store does not announce changes: until it does every request asks it", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(rewatch):
		}
	}
}

// watch watches all masters until one of them is lost or there are others. It returns no nil.
func (s *Redis) watch(ctx context.Context, first bool, changed func(key string), current func(until time.Time)) error {
	masters, err := s.masters(ctx)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	var runID atomic.Value                    // string: which process the last of them is
	var mu sync.Mutex                         // guards all below, and orders the calls of current
	untils := make([]time.Time, len(masters)) // until when each master has told us everything
	for i, o := range masters {
		group.Go(func() error {
			return s.watchMaster(ctx, o, &runID, changed, func(until time.Time) {
				mu.Lock()
				defer mu.Unlock()
				all := !slices.ContainsFunc(untils, time.Time.IsZero)
				untils[i] = until
				if slices.ContainsFunc(untils, time.Time.IsZero) {
					return
				}
				if !all && !first {
					changed("") // what has changed since they were lost was not announced
				}
				current(slices.MinFunc(untils, time.Time.Compare))
			})
		})
	}
	group.Go(func() error {
		if first {
			s.warnOfEviction(ctx)
		}
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
				// One address may lead to another server tomorrow: Sentinels, a virtual address and DNS do that.
				if now, err := serverID(ctx, s.client); err != nil || now != watched {
					return fmt.Errorf("another server has become the master: %w", cmp.Or(err, errOtherServer))
				}
			}
		}
	})
	return group.Wait()
}

var errOtherServer = errors.New("it has another run_id")

// serverID is which process a server is; empty where the user may not know.
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

// warnOfEviction says so where a full Redis would throw sessions away instead of refusing new ones.
func (s *Redis) warnOfEviction(ctx context.Context) {
	info, err := s.client.Info(ctx, "memory").Result()
	if policy := infoField(info, "maxmemory_policy"); err == nil && policy != "noeviction" && infoField(info, "maxmemory") != "0" {
		s.log.WarnContext(ctx, "when this Redis is full it signs users out: set its maxmemory-policy to noeviction", "maxmemory_policy", policy)
	}
}

// watchMaster hands on what one master announces, until the connection is lost.
func (s *Redis) watchMaster(ctx context.Context, master *redis.Options, runID *atomic.Value, changed func(key string), current func(until time.Time)) error {
	o := *master
	o.Protocol = 3
	o.PoolSize = 1
	o.PipelinePoolSize = -1
	o.OnConnect = func(ctx context.Context, c *redis.Conn) error {
		id, err := serverID(ctx, c)
		if err != nil {
			return err
		}
		runID.Store(id)
		return c.ClientTrackingOn(ctx, &redis.ClientTrackingOptions{Bcast: true, Prefixes: []string{s.prefix + "session:", s.prefix + "refresh:"}}).Err()
	}
	o.PushNotificationProcessor = redis.NewPushNotificationProcessor() // of its own: copied options share theirs
	client := redis.NewClient(&o)
	defer client.Close()
	if err := client.RegisterPushNotificationHandler("invalidate", announcement{s.prefix, changed}, false); err != nil {
		return err
	}
	// Nothing is ever published there. A subscription is what has the library read from a connection that has not been asked anything.
	subscription := client.Subscribe(ctx, s.prefix+"heartbeat")
	defer subscription.Close()
	var asked time.Time // when the question was asked that has not been answered; zero: none
	ask := func() error {
		asked = time.Now()
		return subscription.Ping(ctx)
	}
	for ctx.Err() == nil {
		answer, err := subscription.ReceiveTimeout(ctx, heartbeat)
		switch answer.(type) {
		case *redis.Subscription:
			err = ask()
		case *redis.Pong:
			current(asked.Add(currentFor)) // answers come in order: all that had changed by then has been announced
			asked = time.Time{}
		}
		if isTimeout(err) {
			if asked.IsZero() {
				err = ask()
			} else if waited := time.Since(asked); waited > 4*heartbeat {
				err = fmt.Errorf("no answer for %v", waited.Round(time.Millisecond))
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

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// announcement hands on the keys of an invalidation message.
type announcement struct {
	prefix  string
	changed func(key string)
}

// HandlePushNotification is called by the library between other replies. A message without keys says that all of them are gone.
func (a announcement) HandlePushNotification(_ context.Context, _ push.NotificationHandlerContext, message []any) error {
	keys, _ := message[len(message)-1].([]any)
	if len(keys) == 0 {
		a.changed("")
	}
	for _, key := range keys {
		if key, ok := key.(string); ok {
			a.changed(strings.TrimPrefix(key, a.prefix))
		}
	}
	return nil
}

// clusterMasters returns how to connect to each master that serves slots.
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
