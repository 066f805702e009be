package tokenstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"syscall"

	"github.com/redis/go-redis/v9"
)

// hintedError is an error with what the operator can do about it.
type hintedError struct {
	hint string
	error
}

func (e *hintedError) Error() string { return e.hint + ": " + e.error.Error() }

func (e *hintedError) Unwrap() error { return e.error }

// withHint adds a hint for the operator to an error of Redis.
func withHint(err error) error {
	if err == nil {
		return nil
	}
	var hint string
	moved, isMoved := redis.IsMovedError(err)
	switch {
	case hasCode(err, "OOM"):
		hint = "Redis is full: raise its maxmemory or free memory; sign-ins and token refreshes fail until then"
	case hasCode(err, "MISCONF"):
		hint = "Redis cannot save its data: read its log and free space on its disk; " +
			"sign-ins and token refreshes fail until then"
	case redis.IsLoadingError(err):
		hint = "Redis is loading its data from disk; it responds when that is done"
	case redis.IsReadOnlyError(err):
		hint = "this Redis is a replica: wait if a failover is in progress; otherwise " +
			"set store.url to the master, or to the Sentinels with redis+sentinel:"
	case redis.IsMasterDownError(err), redis.IsNoReplicasError(err):
		hint = "Redis has lost its master or its replicas: check INFO replication"
	case redis.IsClusterDownError(err):
		hint = "slots of the Redis Cluster have no master: check CLUSTER INFO"
	case isMoved:
		hint = "this Redis belongs to a Cluster (the key is at " + strconv.Quote(moved) +
			"): store.url must begin with redis+cluster: or rediss+cluster:"
	case redis.IsMaxClientsError(err):
		hint = "Redis accepts no more connections: raise its maxclients, or close connections of other clients"
	case redis.IsAuthError(err):
		hint = "Redis rejects the user or password: check store.url (or store.password_file)"
	case redis.IsPermissionError(err), isScriptPermission(err):
		hint = "the Redis user lacks a permission: grant the commands and keys of the documentation"
	case errors.Is(err, redis.Nil):
		hint = "a Sentinel knows no master of this name: correct the name in store.url, or configure the Sentinels"
	case errors.Is(err, syscall.ECONNREFUSED):
		hint = "nothing listens at this address: start Redis, or correct store.url"
	case errors.Is(err, io.EOF), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET):
		hint = "Redis closed the connection: it restarted, has no free connections (maxclients) or " +
			"expects TLS (rediss:)"
	case errors.Is(err, net.ErrClosed): // by the Sentinel client
		hint = "Redis has a new master, so the connection to the one before was closed"
	case errors.Is(err, context.DeadlineExceeded), isTimeout(err):
		hint = "Redis did not respond in time"
	default:
		return err
	}
	return &hintedError{hint, err}
}

// hasCode reports whether Redis responded with an error code. In Redis 6, the
// error of a script contains that of the command which failed in it.
func hasCode(err error, code string) bool {
	return redis.HasErrorPrefix(err, code) ||
		redis.HasErrorPrefix(err, "Error running script") && strings.Contains(err.Error(), ": -"+code+" ")
}

// isScriptPermission reports whether the user may not run a command of a
// script, or access its keys. There is no code for that: Redis 8 and Valkey
// write the first text, earlier releases the second.
func isScriptPermission(err error) bool {
	return redis.HasErrorPrefix(err, "ACL failure in script") ||
		isRefusal(err) && strings.Contains(err.Error(), "The user executing the script can't ")
}

type clientLog struct{ log *slog.Logger }

func (l clientLog) Printf(ctx context.Context, format string, v ...any) {
	l.log.DebugContext(ctx, fmt.Sprintf(format, v...))
}
