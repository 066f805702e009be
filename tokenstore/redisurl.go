package tokenstore

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

func urlError(example, other string) error {
	return fmt.Errorf("not a URL such as %s, %s (special characters in the password must be percent-encoded)",
		example, other)
}

// tune sets the options of a single server. parseSentinelURL and
// parseClusterURL set the same for theirs.
func tune(o *redis.Options) {
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = dialTimeout, ioTimeout, ioTimeout, ioTimeout
	o.ContextTimeoutEnabled = true
	o.DialerRetries = 1
	o.MaxRetries = -1 // Redis.do retries
	o.ConnMaxIdleTime = cmp.Or(o.ConnMaxIdleTime, maxIdle)
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
}

// parseSentinelURL parses what follows the scheme:
// user:password@host,host/master/db?sentinel_username=&sentinel_password=
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
		return nil, errors.New("master name missing")
	}
	// The library assigns the URL's user to the Sentinels. Here it is the user
	// of the Redis servers.
	o.Username, o.Password = o.SentinelUsername, o.SentinelPassword
	o.SentinelUsername, o.SentinelPassword = user, password
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = dialTimeout, ioTimeout, ioTimeout, ioTimeout
	o.ContextTimeoutEnabled = true
	o.DialerRetries = 1
	o.MaxRetries = -1
	o.ConnMaxIdleTime = cmp.Or(o.ConnMaxIdleTime, maxIdle)
	return o, nil
}

// parseClusterURL parses what follows the scheme: user:password@host,host
func parseClusterURL(scheme, rest string) (*redis.ClusterOptions, error) {
	first, query, err := firstAddr(scheme, rest)
	if err != nil {
		return nil, err
	}
	if db := strings.Trim(first.Path, "/"); db != "" && db != "0" {
		return nil, errors.New("a cluster has database 0 only")
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

// firstAddr returns the URL of the first of several hosts, and a query that
// lists the others as the library expects.
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
