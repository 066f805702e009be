package tokenstore

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// RedisConfig says where the records are kept.
type RedisConfig struct {
	// URL names one Redis, the Sentinels that know the master of several, or nodes of a Cluster:
	//
	//	redis://user:password@host:6379/0
	//	redis+sentinel://user:password@host:26379,host:26379/master-name/0
	//	redis+cluster://user:password@host:6379,host:6379
	//	unix:///run/redis/redis.sock?db=0
	//
	// With rediss in the place of redis the connections are TLS. User and password are Redis's own; those of the Sentinels are the
	// parameters sentinel_username and sentinel_password. Special characters are percent-encoded.
	URL string
	// RootCAs are who may sign a server's certificate; nil means those of the system.
	RootCAs *x509.CertPool
	// ClientCertificate returns the certificate for a new connection with TLS. Nil
	// means that there is none.
	ClientCertificate func() (*tls.Certificate, error)
	// Password returns the password for a new connection, in the place of the one
	// in the URL. The Sentinels' is not meant. Nil means the one in the URL.
	Password func() (string, error)
	// Prefix begins every key, so that several applications can share a Redis; empty means "cloakroom:".
	Prefix string
	// Logger gets what becomes of the connections. Nil means slog.Default().
	Logger *slog.Logger
}

// Redis keeps records in Redis 6 or newer, each under one key with a time to live.
type Redis struct {
	client  redis.UniversalClient
	masters func(ctx context.Context) ([]*redis.Options, error) // the masters there are now
	prefix  string
	log     *slog.Logger

	password func() (string, error)
	made     time.Time
	suspect  atomic.Int64 // clock before which idle connections may have been dropped silently
}

// A store that does not answer is an outage to report, not one to wait out: the request that asks has a user behind it.
const (
	dialTimeout = 2 * time.Second
	ioTimeout   = 2 * time.Second
	opTimeout   = 2500 * time.Millisecond // of one operation with all its redirects
)

// NewRedis returns a store for cfg. It does no I/O: a Redis that is down at start is an outage like any other.
func NewRedis(cfg RedisConfig) (*Redis, error) {
	s := &Redis{prefix: cfg.Prefix, log: cfg.Logger, password: cfg.Password, made: time.Now()}
	if s.prefix == "" {
		s.prefix = "cloakroom:"
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	redis.SetLogger(clientLog{s.log}) // the client has one logger for the whole process
	if err := s.connect(cfg); err != nil {
		return nil, err
	}
	return s, nil
}

// The causes of a URL that cannot be parsed quote it, or what they take for its port, and with it the password: they are not handed on.
var (
	errURL         = errors.New("not a URL such as redis://user:password@host:6379/0, or rediss:// for TLS (special characters in the password must be percent-encoded)")
	errUnixURL     = errors.New("not a URL such as unix:///run/redis/redis.sock?db=0 or unix://user:password@/run/redis/redis.sock (special characters in the password must be percent-encoded)")
	errSentinelURL = errors.New("not a URL such as redis+sentinel://user:password@host:26379,host:26379/master-name/0, or rediss+sentinel:// for TLS (special characters in the password must be percent-encoded)")
	errClusterURL  = errors.New("not a URL such as redis+cluster://user:password@host:6379,host:6379, or rediss+cluster:// for TLS (special characters in the password must be percent-encoded)")
)

func (s *Redis) connect(cfg RedisConfig) error {
	scheme, rest, _ := strings.Cut(cfg.URL, ":")
	rest = strings.TrimPrefix(rest, "//")
	scheme, topology, _ := strings.Cut(scheme, "+")
	secure := func(c *tls.Config) *tls.Config {
		if c == nil {
			return nil
		}
		c.RootCAs = cfg.RootCAs
		if cfg.ClientCertificate != nil {
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cfg.ClientCertificate() }
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
		o.Dialer, o.CredentialsProviderContext = s.dial(secure(o.TLSConfig)), s.credentials(o.Username)
		s.client = redis.NewClient(o)
		s.masters = func(context.Context) ([]*redis.Options, error) { return []*redis.Options{o}, nil }
	case "sentinel":
		o, err := parseSentinelURL(scheme, rest)
		if err != nil {
			return errSentinelURL
		}
		o.Dialer, o.CredentialsProviderContext = s.dial(secure(o.TLSConfig)), s.credentials(o.Username)
		client := redis.NewFailoverClient(o)
		s.client = client
		s.masters = func(context.Context) ([]*redis.Options, error) { return []*redis.Options{client.Options()}, nil } // its dialer goes to the master
	case "cluster":
		o, err := parseClusterURL(scheme, rest)
		if err != nil {
			return errClusterURL
		}
		o.Dialer, o.CredentialsProviderContext = s.dial(secure(o.TLSConfig)), s.credentials(o.Username)
		client := redis.NewClusterClient(o)
		s.client = client
		s.masters = func(ctx context.Context) ([]*redis.Options, error) { return clusterMasters(ctx, client) }
	default:
		return fmt.Errorf("redis+%s is none of redis, redis+sentinel, redis+cluster", topology)
	}
	return nil
}

// credentials returns what a new connection signs in with, as user; nil where
// the URL says so.
func (s *Redis) credentials(user string) func(context.Context) (string, string, error) {
	if s.password == nil {
		return nil
	}
	return func(context.Context) (string, string, error) {
		password, err := s.password()
		return user, password, err
	}
}

// tune sets what the library leaves to us, for one server. The two after it say the same of their kinds of options.
func tune(o *redis.Options) {
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = dialTimeout, ioTimeout, ioTimeout, ioTimeout
	o.ContextTimeoutEnabled = true
	o.DialerRetries = 1
	o.MaxRetries = -1 // do retries
	o.ConnMaxIdleTime = cmp.Or(o.ConnMaxIdleTime, maxIdle)
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
}

// parseSentinelURL reads what comes after the scheme: user:password@host,host/master/db?sentinel_username=&sentinel_password=
func parseSentinelURL(scheme, rest string) (*redis.FailoverOptions, error) {
	first, query, err := firstAddr(scheme, rest)
	if err != nil {
		return nil, err
	}
	if name, db, _ := strings.Cut(strings.Trim(first.Path, "/"), "/"); name != "" && !query.Has("master_name") {
		query.Set("master_name", name)
		first.Path = "/" + db
	}
	user, password := query.Get("sentinel_username"), query.Get("sentinel_password")
	query.Del("sentinel_username")
	query.Del("sentinel_password")
	first.RawQuery = query.Encode()
	o, err := redis.ParseFailoverURL(first.String())
	if err != nil {
		return nil, err
	}
	if o.MasterName == "" {
		return nil, errors.New("the master has no name")
	}
	// The library takes a URL's user for the Sentinels'. Who writes a URL means the server with the data.
	o.Username, o.Password = o.SentinelUsername, o.SentinelPassword
	o.SentinelUsername, o.SentinelPassword = user, password
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = dialTimeout, ioTimeout, ioTimeout, ioTimeout
	o.ContextTimeoutEnabled = true
	o.DialerRetries = 1
	o.MaxRetries = -1
	o.ConnMaxIdleTime = cmp.Or(o.ConnMaxIdleTime, maxIdle)
	return o, nil
}

// parseClusterURL reads what comes after the scheme: user:password@host,host
func parseClusterURL(scheme, rest string) (*redis.ClusterOptions, error) {
	first, query, err := firstAddr(scheme, rest)
	if err != nil {
		return nil, err
	}
	if db := strings.Trim(first.Path, "/"); db != "" && db != "0" {
		return nil, errors.New("a cluster has database 0 alone")
	}
	first.Path = ""
	first.RawQuery = query.Encode()
	o, err := redis.ParseClusterURL(first.String())
	if err != nil {
		return nil, err
	}
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = dialTimeout, ioTimeout, ioTimeout, ioTimeout
	o.ContextTimeoutEnabled = true
	o.DialerRetries = 1
	o.MaxRetries = -1
	o.ConnMaxIdleTime = cmp.Or(o.ConnMaxIdleTime, maxIdle)
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return o, nil
}

// firstAddr returns the URL of the first of several hosts, and a query that names the others as the library wants them.
func firstAddr(scheme, rest string) (*url.URL, url.Values, error) {
	end := strings.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	authority, tail := rest[:end], rest[end:]
	at := strings.LastIndex(authority, "@") + 1
	hosts := strings.Split(authority[at:], ",")
	u, err := url.Parse(scheme + "://" + authority[:at] + hosts[0] + tail)
	if err != nil {
		return nil, nil, err
	}
	query := u.Query()
	for _, host := range hosts[1:] {
		query.Add("addr", host)
	}
	return u, query, nil
}

// Get is part of session.Store.
func (s *Redis) Get(ctx context.Context, key string) (value []byte, ttl time.Duration, found bool, err error) {
	err = s.do(ctx, func(ctx context.Context) error {
		pipe := s.client.Pipeline()
		got := pipe.Get(ctx, s.prefix+key)
		left := pipe.PTTL(ctx, s.prefix+key)
		if _, err := pipe.Exec(ctx); errors.Is(err, redis.Nil) {
			return nil
		} else if err != nil {
			return err
		}
		// The key may have expired between the two, and what has no time to live was
		// not written here.
		if left.Val() <= 0 {
			return nil
		}
		b, err := got.Bytes()
		value, ttl, found = b, left.Val(), err == nil
		return err
	})
	return value, ttl, found, err
}

var create = redis.NewScript(`
local there = redis.call('GET', KEYS[1])
if there then return there == ARGV[1] end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return true`)

// Create is part of session.Store.
func (s *Redis) Create(ctx context.Context, key string, value []byte, ttl time.Duration) (bool, error) {
	return s.run(ctx, create, key, value, milli(ttl))
}

var replace = redis.NewScript(`
local there = redis.call('GET', KEYS[1])
if there == ARGV[2] then return true end
if there ~= ARGV[1] then return false end
redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
return true`)

// Replace is part of session.Store.
func (s *Redis) Replace(ctx context.Context, key string, old, value []byte) (bool, error) {
	return s.run(ctx, replace, key, old, value)
}

// Touch is part of session.Store.
func (s *Redis) Touch(ctx context.Context, key string, ttl time.Duration) (bool, error) {
	var found bool
	err := s.do(ctx, func(ctx context.Context) (err error) {
		found, err = s.client.PExpire(ctx, s.prefix+key, max(ttl, time.Millisecond)).Result()
		return err
	})
	return found, err
}

// Delete is part of session.Store.
func (s *Redis) Delete(ctx context.Context, key string) error {
	return s.do(ctx, func(ctx context.Context) error { return s.client.Del(ctx, s.prefix+key).Err() })
}

var acquire = redis.NewScript(`
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return false end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return true`)

// Acquire is part of session.Store.
func (s *Redis) Acquire(ctx context.Context, key, owner string, ttl time.Duration) (bool, error) {
	return s.run(ctx, acquire, key, owner, milli(ttl))
}

var release = redis.NewScript(`
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return true`)

// Release is part of session.Store.
func (s *Redis) Release(ctx context.Context, key, owner string) error {
	_, err := s.run(ctx, release, key, owner)
	return err
}

// expiredFor is how long a member stays in a set after its time, because the
// clocks of the replicas that write it differ.
const expiredFor = 5 * time.Minute

// A set is a sorted set. The score of a member is when it leaves, in Unix
// milliseconds by the clock of the replica that added it. The time to live of
// the set only ever grows.
var add = redis.NewScript(`
local leaves = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not leaves or tonumber(leaves) < tonumber(ARGV[2]) then redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1]) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. ARGV[4])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return true`)

// Add is part of session.Store.
func (s *Redis) Add(ctx context.Context, key, member string, ttl time.Duration) error {
	now := time.Now()
	_, err := s.run(ctx, add, key, member, now.Add(ttl).UnixMilli(), milli(ttl), now.Add(-expiredFor).UnixMilli())
	return err
}

// Members is part of session.Store.
func (s *Redis) Members(ctx context.Context, key string) ([]string, error) {
	var members []string
	err := s.do(ctx, func(ctx context.Context) (err error) {
		members, err = s.client.ZRange(ctx, s.prefix+key, 0, -1).Result()
		return err
	})
	return members, err
}

// Remove is part of session.Store.
func (s *Redis) Remove(ctx context.Context, key, member string) error {
	return s.do(ctx, func(ctx context.Context) error { return s.client.ZRem(ctx, s.prefix+key, member).Err() })
}

// run runs a script on one key. All of them can be run twice: do may do so.
func (s *Redis) run(ctx context.Context, script *redis.Script, key string, args ...any) (bool, error) {
	var ok bool
	err := s.do(ctx, func(ctx context.Context) (err error) {
		ok, err = script.Run(ctx, s.client, []string{s.prefix + key}, args...).Bool()
		if errors.Is(err, redis.Nil) { // Lua's false
			ok, err = false, nil
		}
		return err
	})
	return ok, err
}

// Ping returns an error unless Redis answers.
func (s *Redis) Ping(ctx context.Context) error {
	return s.do(ctx, func(ctx context.Context) error { return s.client.Ping(ctx).Err() })
}

// Close closes the connections.
func (s *Redis) Close() error { return s.client.Close() }

// milli is a time to live as Redis counts it. One of less than it can say is not none.
func milli(ttl time.Duration) int64 { return max(ttl.Milliseconds(), 1) }

// explain adds to an error of Redis what an operator can do about it.
func explain(err error) error {
	if err == nil {
		return nil
	}
	var todo string
	moved, isMoved := redis.IsMovedError(err)
	switch {
	case redis.IsOOMError(err):
		todo = "Redis is full: raise its maxmemory, or find what else fills it; sign-ins and token refreshes fail until then"
	case redis.IsLoadingError(err):
		todo = "Redis is reading its data from disk and will answer when it is done"
	case redis.IsReadOnlyError(err):
		todo = "this Redis is a replica: after a failover it passes; otherwise point store.url at the master, or at the Sentinels with redis+sentinel:"
	case redis.IsMasterDownError(err), redis.IsNoReplicasError(err):
		todo = "Redis has lost its master or its replicas; look at the state of the replication"
	case redis.IsClusterDownError(err):
		todo = "the Redis Cluster has slots that nobody serves; look at CLUSTER INFO"
	case isMoved:
		todo = "this Redis belongs to a Cluster (the key is at " + strconv.Quote(moved) + "): if store.url does not begin with redis+cluster: or rediss+cluster:, let it"
	case redis.IsMaxClientsError(err):
		todo = "Redis takes no more connections: raise its maxclients, or find who holds so many"
	case redis.IsAuthError(err):
		todo = "Redis does not accept user and password of store.url (or of store.password_file)"
	case redis.IsPermissionError(err):
		todo = "the Redis user may not do this; it needs the commands and the keys that the documentation names"
	case errors.Is(err, syscall.ECONNREFUSED):
		todo = "no Redis listens there: is it down, or is store.url wrong?"
	case errors.Is(err, io.EOF), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET):
		todo = "Redis has hung up: it was restarted, or takes no more connections (maxclients), or expects TLS (rediss:)"
	case errors.Is(err, context.DeadlineExceeded), isTimeout(err):
		todo = "Redis does not answer in time"
	default:
		return err
	}
	return fmt.Errorf("%s: %w", todo, err)
}

type clientLog struct{ log *slog.Logger }

func (l clientLog) Printf(ctx context.Context, format string, v ...any) {
	l.log.DebugContext(ctx, fmt.Sprintf(format, v...))
}
