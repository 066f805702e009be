package tokenstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Credentials are the user and password for connections to a Redis.
type Credentials struct {
	user, password string
	read           func() (string, error) // nil: password
}

// authPause is the delay before the retry of an operation whose connection was
// refused because of its password. Redis and the file of the password do not
// change at the same moment.
const authPause = 100 * time.Millisecond

// errPassword is wrapped by the error of an operation whose connection got no
// password.
var errPassword = errors.New("read the password of Redis")

// Credentials returns the credentials in cfg. It does no I/O. The error is that
// of NewRedis.
func (cfg RedisConfig) Credentials() (*Credentials, error) {
	var s Redis
	if err := s.connect(cfg); err != nil {
		return nil, err
	}
	return s.credentials.Load(), s.client.Close()
}

// SetCredentials replaces the credentials for new connections. Existing
// connections stay open.
func (s *Redis) SetCredentials(c *Credentials) { s.credentials.Store(c) }

// authenticate returns the user and password for a new connection.
func (s *Redis) authenticate(context.Context) (user, password string, err error) {
	c := s.credentials.Load()
	if c.read == nil {
		return c.user, c.password, nil
	}
	if password, err = c.read(); err != nil {
		return "", "", fmt.Errorf("%w: %w", errPassword, err)
	}
	return c.user, password, nil
}

// nameConnections returns a function that gives a new connection the name that
// CLIENT LIST shows: cloakroom-HOST-PID. It returns nil if the URL sets another
// name. A user without the right to set it still gets the connection.
func nameConnections(other string) func(context.Context, *redis.Conn) error {
	if other != "" {
		return nil
	}
	name := connectionName()
	return func(ctx context.Context, c *redis.Conn) error {
		err := c.ClientSetName(ctx, name).Err()
		if isRefusal(err) {
			return nil
		}
		return err
	}
}

func connectionName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return strings.Map(func(c rune) rune {
		if c <= ' ' || c > '~' { // Redis rejects them in names
			return '-'
		}
		return c
	}, fmt.Sprintf("cloakroom-%s-%d", host, os.Getpid()))
}

// isRefusal reports whether err is an error response of Redis.
func isRefusal(err error) bool {
	_, ok := errors.AsType[redis.Error](err)
	return ok
}
