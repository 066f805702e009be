package tokenstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// RedisConfig says where the records are kept.
type RedisConfig struct {
	// URL is redis://user:password@host:6379/0, or rediss:// for TLS.
	URL string
	// Prefix begins every key, so that several applications can share a Redis; empty means "cloakroom:".
	Prefix string
	// Logger gets what the Redis client has to say of its connections, at level debug: each failed command is an error besides,
	// which the caller handles. Nil means slog.Default().
	Logger *slog.Logger
}

// Redis keeps records in Redis 6 or newer, each under one key with a time to live.
type Redis struct {
	client *redis.Client
	prefix string
}

// A store that does not answer is an outage to report, not one to wait out: the request that asks has a user behind it.
const (
	dialTimeout = 2 * time.Second
	ioTimeout   = 2 * time.Second
)

// NewRedis returns a store for cfg. It does no I/O: a Redis that is down at start is an outage like any other.
func NewRedis(cfg RedisConfig) (*Redis, error) {
	o, err := redis.ParseURL(cfg.URL)
	if err != nil {
		// The cause quotes the URL, or what it takes for the port, and with it the password.
		return nil, errors.New("not a URL such as redis://user:password@host:6379/0, or rediss:// for TLS (special characters in the password must be percent-encoded)")
	}
	o.DialTimeout = dialTimeout
	o.ReadTimeout = ioTimeout
	o.WriteTimeout = ioTimeout
	o.PoolTimeout = ioTimeout
	o.ContextTimeoutEnabled = true
	o.DialerRetries = 1
	o.MaxRetries = -1 // a retry would replay writes whose answer was lost
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	prefix := cfg.Prefix
	if prefix == "" {
		prefix = "cloakroom:"
	}
	log := cfg.Logger
	if log == nil {
		log = slog.Default()
	}
	redis.SetLogger(clientLog{log}) // the client has one logger for the whole process
	return &Redis{client: redis.NewClient(o), prefix: prefix}, nil
}

// Get is part of session.Store.
func (s *Redis) Get(ctx context.Context, key string) ([]byte, time.Duration, bool, error) {
	pipe := s.client.Pipeline()
	value := pipe.Get(ctx, s.prefix+key)
	ttl := pipe.PTTL(ctx, s.prefix+key)
	_, err := pipe.Exec(ctx)
	if errors.Is(err, redis.Nil) {
		return nil, 0, false, nil
	}
	if err != nil {
		return nil, 0, false, err
	}
	// The key may have expired between the two, and what has no time to live was not written here.
	if ttl.Val() <= 0 {
		return nil, 0, false, nil
	}
	b, err := value.Bytes()
	return b, ttl.Val(), err == nil, err
}

// Create is part of session.Store.
func (s *Redis) Create(ctx context.Context, key string, value []byte, ttl time.Duration) (bool, error) {
	err := s.client.SetArgs(ctx, s.prefix+key, value, redis.SetArgs{Mode: "NX", TTL: atLeastMilli(ttl)}).Err()
	if errors.Is(err, redis.Nil) {
		return false, nil
	}
	return err == nil, err
}

var replace = redis.NewScript(`
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
return 1`)

// Replace is part of session.Store.
func (s *Redis) Replace(ctx context.Context, key string, old, value []byte) (bool, error) {
	return replace.Run(ctx, s.client, []string{s.prefix + key}, old, value).Bool()
}

// Touch is part of session.Store.
func (s *Redis) Touch(ctx context.Context, key string, ttl time.Duration) (bool, error) {
	return s.client.PExpire(ctx, s.prefix+key, atLeastMilli(ttl)).Result()
}

// Delete is part of session.Store.
func (s *Redis) Delete(ctx context.Context, key string) error {
	return s.client.Del(ctx, s.prefix+key).Err()
}

var acquire = redis.NewScript(`
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1`)

// Acquire is part of session.Store.
func (s *Redis) Acquire(ctx context.Context, key, owner string, ttl time.Duration) (bool, error) {
	return acquire.Run(ctx, s.client, []string{s.prefix + key}, owner, atLeastMilli(ttl).Milliseconds()).Bool()
}

var release = redis.NewScript(`
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1`)

// Release is part of session.Store.
func (s *Redis) Release(ctx context.Context, key, owner string) error {
	return release.Run(ctx, s.client, []string{s.prefix + key}, owner).Err()
}

// Ping says whether Redis answers.
func (s *Redis) Ping(ctx context.Context) error { return s.client.Ping(ctx).Err() }

// Close closes the connections.
func (s *Redis) Close() error { return s.client.Close() }

// atLeastMilli keeps a time to live of less than Redis can say from being none.
func atLeastMilli(ttl time.Duration) time.Duration { return max(ttl, time.Millisecond) }

type clientLog struct{ log *slog.Logger }

func (l clientLog) Printf(ctx context.Context, format string, v ...any) {
	l.log.DebugContext(ctx, fmt.Sprintf(format, v...))
}
