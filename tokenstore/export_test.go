package tokenstore

import (
	"context"
	"time"
)

// MaxIdle returns how long connections to the masters may be idle.
func (s *Redis) MaxIdle(ctx context.Context) ([]time.Duration, error) {
	masters, err := s.masters(ctx)
	var all []time.Duration
	for _, o := range masters {
		all = append(all, o.ConnMaxIdleTime)
	}
	return all, err
}

// FoundDead reports whether an operation has failed on a dead connection.
func (s *Redis) FoundDead() bool { return s.suspect.Load() > 0 }

// TryTimeout limits the first try of an operation.
const TryTimeout = tryTimeout

// WithHint adds a hint for the operator to an error.
var WithHint = withHint

// WarnOfServer logs what the response of INFO shows.
var WarnOfServer = warnOfServer
