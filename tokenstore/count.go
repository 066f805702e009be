package tokenstore

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"go.etcd.io/bbolt"
)

// sessionPrefix begins the keys of sessions.
const sessionPrefix = "session:"

// CountSessions returns how many sessions there are. It never fails.
func (m *Memory) CountSessions(context.Context) (int, error) {
	now, n := time.Now(), 0
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, rec := range m.records {
		if strings.HasPrefix(key, sessionPrefix) && now.Before(rec.expires) {
			n++
		}
	}
	return n, nil
}

// CountSessions returns how many sessions there are.
func (f *File) CountSessions(ctx context.Context) (int, error) {
	n := 0
	err := f.db.View(func(tx *bbolt.Tx) error {
		c := tx.Bucket(recordsBucket).Cursor()
		prefix := []byte(sessionPrefix)
		for key, entry := c.Seek(prefix); bytes.HasPrefix(key, prefix) && ctx.Err() == nil; key, entry = c.Next() {
			if _, _, ok := parseEntry(entry); ok {
				n++
			}
		}
		return ctx.Err()
	})
	return n, err
}

const (
	// countSample is how many keys of a server CountSessions looks at. The
	// order of keys in Redis is random, so that so many are a sample of all.
	countSample = 10_000
	// countBatch is how many keys a call of SCAN returns, about.
	countBatch = 1000
)

// CountSessions returns about how many sessions there are. It is exact if no
// server has more than 10,000 keys. Otherwise it looks at so many, and
// estimates the rest: the error is about one percent if most keys are those of
// sessions.
func (s *Redis) CountSessions(ctx context.Context) (int, error) {
	var mu sync.Mutex // guards total
	total := 0.0
	count := func(ctx context.Context, c redis.Cmdable) error {
		n, err := s.countOn(ctx, c)
		mu.Lock()
		defer mu.Unlock()
		total += n
		return err
	}
	var err error
	if cluster, ok := s.client.(*redis.ClusterClient); ok {
		err = cluster.ForEachMaster(ctx, func(ctx context.Context, c *redis.Client) error { return count(ctx, c) })
	} else {
		err = count(ctx, s.client)
	}
	return int(total), err
}

// countOn counts the sessions on a server.
func (s *Redis) countOn(ctx context.Context, c redis.Cmdable) (float64, error) {
	var cursor uint64
	seen, sessions := 0, 0
	for {
		keys, next, err := c.Scan(ctx, cursor, "", countBatch).Result()
		if err != nil {
			return 0, err
		}
		for _, key := range keys {
			seen++
			if strings.HasPrefix(key, s.prefix+sessionPrefix) {
				sessions++
			}
		}
		if next == 0 {
			return float64(sessions), nil
		}
		if cursor = next; seen >= countSample {
			break
		}
	}
	size, err := c.DBSize(ctx).Result()
	return float64(sessions) * float64(size) / float64(seen), err
}
