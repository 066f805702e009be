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

// WarnOfServer logs what the response of INFO shows.
var WarnOfServer = warnOfServer
