package tokenstore

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cloakroom-bff/cloakroom/internal/configerr"
)

// RedisConfig configures a [Redis] store. Only URL is required.
type RedisConfig struct {
	// URL is the address of a Redis server, of the Sentinels of a master, or of
	// nodes of a Cluster:
	//
	//	redis://user:password@host:6379/0
	//	redis+sentinel://user:password@host:26379,host:26379/master-name/0
	//	redis+cluster://user:password@host:6379,host:6379
	//	unix:///run/redis/redis.sock?db=0
	//
	// The scheme rediss instead of redis uses TLS. User and password are those
	// of the Redis servers. Sentinels have their own: the parameters
	// sentinel_username and sentinel_password. Special characters must be
	// percent-encoded.
	URL string
	// RootCAs verifies the certificates of servers. Nil means the system's CAs.
	RootCAs *x509.CertPool
	// ClientCertificate returns the client certificate for a new TLS
	// connection. Nil means none.
	ClientCertificate func() (*tls.Certificate, error)
	// Password returns the password for a new connection to a Redis server,
	// instead of the one in URL. It does not apply to Sentinels. Nil means the
	// one in URL.
	Password func() (string, error)
	// Prefix is prepended to every key, so that several applications can share
	// a Redis. Empty means "cloakroom:".
	Prefix string
	// Logger receives the state of the connections. Nil means slog.Default().
	Logger *slog.Logger
}

// Redis is a store in Redis 6 or newer. Every key has a time to live. It is
// safe for concurrent use.
//
// An operation takes at most 2.5 s. If a connection fails, or there is no
// response within 750 ms, the operation is retried once. An error of Redis
// includes a hint for the operator. Errors are outages: an absent key is not an
// error.
type Redis struct {
	client  redis.UniversalClient
	masters func(ctx context.Context) ([]*redis.Options, error) // the current masters
	prefix  string
	log     *slog.Logger

	credentials atomic.Pointer[Credentials]
	made        time.Time
	suspect     atomic.Int64 // connections last read before this clock are dropped

	certificates certificates

	untracked sync.Once         // logs that Redis refuses CLIENT TRACKING
	mu        sync.Mutex        // guards checked
	checked   map[string]string // :: address of a master → run_id of the server that was checked
}

// A request waits for every operation, so an unresponsive store is reported
// soon.
const (
	dialTimeout = 2 * time.Second
	ioTimeout   = 2 * time.Second
	opTimeout   = 2500 * time.Millisecond // of one operation, including redirects and the retry
)

// ConfigError is a mistake in one field of a RedisConfig. Its fields are Key,
// which is URL, Value, which is empty because a URL may hold a password, and
// Err.
type ConfigError = configerr.Error

// NewRedis returns a store for cfg. It does no I/O, so Redis may be down at
// start. The error is a *ConfigError. It never contains the URL, which may hold
// a password.
func NewRedis(cfg RedisConfig) (*Redis, error) {
	s := &Redis{prefix: cfg.Prefix, log: cfg.Logger, made: time.Now(), checked: make(map[string]string)}
	if s.prefix == "" {
		s.prefix = "cloakroom:"
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	redis.SetLogger(clientLog{s.log}) // the library has one logger per process
	if err := s.connect(cfg); err != nil {
		return nil, configerr.New("URL", nil, err)
	}
	return s, nil
}

// Errors of URL parsers quote the URL, and with it the password, so they are
// not wrapped.
var (
	errURL     = urlError("redis://user:password@host:6379/0", "or rediss:// for TLS")
	errUnixURL = urlError("unix:///run/redis/redis.sock?db=0",
		"or unix://user:password@/run/redis/redis.sock")
	errSentinelURL = urlError("redis+sentinel://user:password@host:26379,host:26379/master-name/0",
		"or rediss+sentinel:// for TLS")
	errClusterURL = urlError("redis+cluster://user:password@host:6379,host:6379",
		"or rediss+cluster:// for TLS")
)

func (s *Redis) connect(cfg RedisConfig) error {
	scheme, rest, _ := strings.Cut(cfg.URL, ":")
	rest = strings.TrimPrefix(rest, "//")
	scheme, topology, _ := strings.Cut(scheme, "+")
	secure := func(c *tls.Config) *tls.Config {
		if c == nil {
			return nil
		}
		c.RootCAs, c.VerifyConnection = cfg.RootCAs, s.certificates.record
		if cfg.ClientCertificate != nil {
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				cert, err := cfg.ClientCertificate()
				s.certificates.recordOwn(cert)
				return cert, err
			}
		}
		return c
	}
	switch topology {
	case "":
		o, err := redis.ParseURL(cfg.URL)
		switch {
		case err != nil && scheme == "unix":
			return errUnixURL
		case err != nil || scheme != "unix" && !strings.Contains(cfg.URL, "://"):
			return errURL
		}
		tune(o)
		o.Dialer, o.OnConnect = s.dial(secure(o.TLSConfig)), nameConnections(o.ClientName)
		o.CredentialsProviderContext = s.authenticate
		s.credentials.Store(&Credentials{o.Username, o.Password, cfg.Password})
		s.client = redis.NewClient(o)
		s.masters = func(context.Context) ([]*redis.Options, error) { return []*redis.Options{o}, nil }
	case "sentinel":
		o, err := parseSentinelURL(scheme, rest)
		if err != nil {
			return errSentinelURL
		}
		o.Dialer, o.OnConnect = s.dial(secure(o.TLSConfig)), nameConnections(o.ClientName)
		o.CredentialsProviderContext = s.authenticate
		s.credentials.Store(&Credentials{o.Username, o.Password, cfg.Password})
		client := redis.NewFailoverClient(o)
		s.client = client
		// The dialer of these options connects to the master.
		s.masters = func(context.Context) ([]*redis.Options, error) {
			master := *client.Options()
			master.Addr = o.MasterName // for logs: the dialer connects to the master in any case
			return []*redis.Options{&master}, nil
		}
	case "cluster":
		o, err := parseClusterURL(scheme, rest)
		if err != nil {
			return errClusterURL
		}
		o.Dialer, o.OnConnect = s.dial(secure(o.TLSConfig)), nameConnections(o.ClientName)
		o.CredentialsProviderContext = s.authenticate
		s.credentials.Store(&Credentials{o.Username, o.Password, cfg.Password})
		client := redis.NewClusterClient(o)
		s.client = client
		s.masters = func(ctx context.Context) ([]*redis.Options, error) { return clusterMasters(ctx, client) }
	default:
		return fmt.Errorf("scheme %q is not one of redis, redis+sentinel, redis+cluster", topology)
	}
	return nil
}

// Get is part of session.Store.
func (s *Redis) Get(ctx context.Context, key string) (value []byte, ttl time.Duration, found bool, err error) {
	err = s.do(ctx, func(ctx context.Context) error {
		pipe := s.client.Pipeline()
		got := pipe.Get(ctx, s.prefix+key)
		left := pipe.PTTL(ctx, s.prefix+key)
		if _, err := pipe.Exec(ctx); isNil(err) {
			return nil
		} else if err != nil {
			return err
		}
		// The key may have expired between the two commands. A key without a
		// time to live was not written by this package.
		if left.Val() <= 0 {
			return nil
		}
		b, err := got.Bytes()
		value, ttl, found = b, left.Val(), err == nil
		return err
	})
	return value, ttl, found, err
}

// isNil reports whether the response to a command was nil. An error that wraps
// redis.Nil is another one: no Sentinel knows the master, so there was no
// connection for the command.
func isNil(err error) bool { return err == redis.Nil }

// Scripts publish the key of each record and lease that they write, in the same
// step, for the replicas that cannot use CLIENT TRACKING. The last argument of
// a script is the channel, or empty for other keys. A user without the right to
// publish can still write.
func newScript(body string) *redis.Script {
	return redis.NewScript(`
local function announce()
	if ARGV[#ARGV] ~= '' then redis.pcall('PUBLISH', ARGV[#ARGV], KEYS[1]) end
end` + body)
}

// channel returns the channel on which writes of key are published, or "" if
// they are not followed.
func (s *Redis) channel(key string) string {
	if strings.HasPrefix(key, "session:") || strings.HasPrefix(key, "refresh:") {
		return s.prefix + "changes"
	}
	return ""
}

var create = newScript(`
local current = redis.call('GET', KEYS[1])
if current then return current == ARGV[1] end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
announce()
return true`)

// Create is part of session.Store.
func (s *Redis) Create(ctx context.Context, key string, value []byte, ttl time.Duration) (bool, error) {
	return s.run(ctx, create, key, value, milli(ttl))
}

var replace = newScript(`
local current = redis.call('GET', KEYS[1])
if current == ARGV[2] then return true end
if current ~= ARGV[1] then return false end
redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
announce()
return true`)

// Replace is part of session.Store.
func (s *Redis) Replace(ctx context.Context, key string, old, value []byte) (bool, error) {
	return s.run(ctx, replace, key, old, value)
}

var touch = newScript(`
if redis.call('PEXPIRE', KEYS[1], ARGV[1]) == 0 then return false end
announce()
return true`)

// Touch is part of session.Store.
func (s *Redis) Touch(ctx context.Context, key string, ttl time.Duration) (bool, error) {
	return s.run(ctx, touch, key, milli(ttl))
}

var remove = newScript(`
if redis.call('DEL', KEYS[1]) == 1 then announce() end
return true`)

// Delete is part of session.Store.
func (s *Redis) Delete(ctx context.Context, keys ...string) error {
	return s.runAll(ctx, func(ctx context.Context, eval evalFunc, pipe redis.Pipeliner) {
		for _, key := range keys {
			eval(remove, ctx, pipe, []string{s.prefix + key}, s.channel(key))
		}
	})
}

var acquire = newScript(`
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return false end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
announce()
return true`)

// Acquire is part of session.Store.
func (s *Redis) Acquire(ctx context.Context, key, owner string, ttl time.Duration) (bool, error) {
	return s.run(ctx, acquire, key, owner, milli(ttl))
}

var release = newScript(`
if redis.call('GET', KEYS[1]) == ARGV[1] then
	redis.call('DEL', KEYS[1])
	announce()
end
return true`)

// Release is part of session.Store.
func (s *Redis) Release(ctx context.Context, key, owner string) error {
	_, err := s.run(ctx, release, key, owner)
	return err
}

// expiredFor is how long an expired member is kept, because the clocks of
// replicas differ.
const expiredFor = 5 * time.Minute

// A set is stored as a sorted set. The score of a member is its expiry in Unix
// milliseconds by the clock of the replica that added it. The time to live of
// the set never decreases.
var add = newScript(`
local expiry = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not expiry or tonumber(expiry) < tonumber(ARGV[2]) then redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1]) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. ARGV[4])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return true`)

// Add is part of session.Store.
func (s *Redis) Add(ctx context.Context, members map[string]string, ttl time.Duration) error {
	now := time.Now()
	expires, kept := now.Add(ttl).UnixMilli(), now.Add(-expiredFor).UnixMilli()
	return s.runAll(ctx, func(ctx context.Context, eval evalFunc, pipe redis.Pipeliner) {
		for key, member := range members {
			eval(add, ctx, pipe, []string{s.prefix + key}, member, expires, milli(ttl), kept, s.channel(key))
		}
	})
}

// Members is part of session.Store.
func (s *Redis) Members(ctx context.Context, keys ...string) (members []string, err error) {
	lists := make([]*redis.StringSliceCmd, len(keys))
	err = s.do(ctx, func(ctx context.Context) error {
		return s.pipeline(ctx, func(pipe redis.Pipeliner) {
			for i, key := range keys {
				lists[i] = pipe.ZRange(ctx, s.prefix+key, 0, -1)
			}
		})
	})
	if err != nil {
		return nil, err
	}
	for _, list := range lists {
		members = append(members, list.Val()...)
	}
	return members, nil
}

// Remove is part of session.Store.
func (s *Redis) Remove(ctx context.Context, members map[string]string) error {
	return s.do(ctx, func(ctx context.Context) error {
		return s.pipeline(ctx, func(pipe redis.Pipeliner) {
			for key, member := range members {
				pipe.ZRem(ctx, s.prefix+key, member)
			}
		})
	})
}

// pipeline sends the commands that queue adds to a pipeline in one round trip,
// to each server that has some of the keys. The error is that of the first
// command that failed.
func (s *Redis) pipeline(ctx context.Context, queue func(pipe redis.Pipeliner)) error {
	pipe := s.client.Pipeline()
	queue(pipe)
	_, err := pipe.Exec(ctx)
	return err
}

// evalFunc is redis.Script.EvalSha or redis.Script.Eval.
type evalFunc func(
	script *redis.Script, ctx context.Context, c redis.Scripter, keys []string, args ...any,
) *redis.Cmd

// runAll runs the scripts that queue adds to a pipeline with eval.
func (s *Redis) runAll(
	ctx context.Context, queue func(ctx context.Context, eval evalFunc, pipe redis.Pipeliner),
) error {
	run := func(ctx context.Context, eval evalFunc) error {
		return s.pipeline(ctx, func(pipe redis.Pipeliner) { queue(ctx, eval, pipe) })
	}
	return s.do(ctx, func(ctx context.Context) error {
		err := run(ctx, (*redis.Script).EvalSha)
		if redis.HasErrorPrefix(err, "NOSCRIPT") { // Redis has not seen the script yet
			err = run(ctx, (*redis.Script).Eval)
		}
		return err
	})
}

// run runs a script on one key. Scripts are idempotent, since do may retry
// them.
func (s *Redis) run(ctx context.Context, script *redis.Script, key string, args ...any) (bool, error) {
	var ok bool
	args = append(args, s.channel(key))
	err := s.do(ctx, func(ctx context.Context) (err error) {
		ok, err = script.Run(ctx, s.client, []string{s.prefix + key}, args...).Bool()
		if isNil(err) { // Lua's false
			ok, err = false, nil
		}
		return err
	})
	return ok, err
}

// Ping returns an error unless Redis responds.
func (s *Redis) Ping(ctx context.Context) error {
	return s.do(ctx, func(ctx context.Context) error { return s.client.Ping(ctx).Err() })
}

// Close closes the connections.
func (s *Redis) Close() error { return s.client.Close() }

// milli returns ttl in milliseconds, at least 1.
func milli(ttl time.Duration) int64 { return max(ttl.Milliseconds(), 1) }
