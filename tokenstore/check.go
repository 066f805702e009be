package tokenstore

import (
	"context"
	"log/slog"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// checkServer logs a warning for each setting of the master at addr that can
// lose sessions. It logs nothing if it has checked this server before, or if
// Redis does not allow INFO.
func (s *Redis) checkServer(ctx context.Context, c *redis.Conn, addr, runID string) {
	s.mu.Lock()
	checked, ok := s.checked[addr]
	s.checked[addr] = runID
	s.mu.Unlock()
	if ok && checked == runID {
		return
	}
	if info, err := c.Info(ctx).Result(); err == nil {
		warnOfServer(ctx, s.log, addr, info, time.Now())
	}
}

// unsavedFor is how old the last snapshot of changed data is at least before
// Redis counts as one without persistence: the longest interval of its default
// save points.
const unsavedFor = time.Hour

// warnOfServer logs what the response of INFO shows. Managed services hide some
// of its fields: there is no warning about those. INFO does not show save
// points, so missing snapshots are recognized by the age of the last one.
func warnOfServer(ctx context.Context, log *slog.Logger, server, info string, now time.Time) {
	limit, policy := infoField(info, "maxmemory"), infoField(info, "maxmemory_policy")
	switch {
	case limit == "0":
		log.WarnContext(ctx,
			"Redis has no memory limit; set its maxmemory, and its maxmemory-policy to noeviction",
			"server", server)
	case limit != "" && policy != "" && policy != "noeviction":
		log.WarnContext(ctx, "Redis evicts sessions when it is full; set its maxmemory-policy to noeviction",
			"maxmemory_policy", policy, "server", server)
	}
	saved, err := strconv.ParseInt(infoField(info, "rdb_last_save_time"), 10, 64)
	if err != nil || infoField(info, "aof_enabled") != "0" || infoField(info, "rdb_bgsave_in_progress") != "0" {
		return
	}
	changes := infoField(info, "rdb_changes_since_last_save")
	if age := now.Sub(time.Unix(saved, 0)); age > unsavedFor && changes != "" && changes != "0" {
		log.WarnContext(ctx,
			"Redis does not save sessions, its restart loses them; set appendonly to yes, or save points",
			"unsaved_for", age.Round(time.Second).String(), "server", server)
	}
}
