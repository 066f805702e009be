package tokenstore

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Problem is a fault of a Redis server, or of its settings.
type Problem struct {
	Text   string // a sentence without a full stop, or the text of Err
	Advice string // what to do; empty: unknown
	Err    error  // operations fail with it; nil: they succeed for now
}

// Check returns the faults that it finds: it connects to each master, reads its
// settings as far as the user may, and tries each operation on a key that it
// deletes. The key expires in any case.
func (s *Redis) Check(ctx context.Context) []Problem {
	if err := s.Ping(ctx); err != nil {
		return []Problem{problemOf(err)}
	}
	problems := s.checkOperations(ctx)
	if len(problems) == 0 {
		problems = s.checkInvalidation(ctx)
	}
	masters, err := s.masters(ctx)
	if err != nil {
		return append(problems, problemOf(withHint(err)))
	}
	for _, o := range masters {
		problems = append(problems, checkMaster(ctx, o)...)
	}
	return problems
}

// problemOf returns the problem that an operation failed.
func problemOf(err error) Problem {
	p := Problem{Text: err.Error(), Err: err}
	if hinted, ok := errors.AsType[*hintedError](err); ok {
		p.Text, p.Advice = hinted.error.Error(), hinted.hint
	}
	p.Text = strings.ReplaceAll(p.Text, "\n", "; ") // one error of each Sentinel
	return p
}

// scratchLife is the time to live of the keys that checkOperations writes. They
// are deleted before.
const scratchLife = 10 * time.Second

// checkOperations tries the operations of a session.Store. It returns one
// problem for all that Redis refuses, with the error of the first.
func (s *Redis) checkOperations(ctx context.Context) []Problem {
	const owner = "cloakroom check"
	key := "check:" + rand.Text()
	set := key + ":set"
	var failed []string
	var first error
	try := func(operation string, err error) {
		if err == nil {
			return
		}
		failed = append(failed, operation)
		if first == nil || redis.IsPermissionError(err) && !redis.IsPermissionError(first) { // names the command
			first = err
		}
	}
	_, err := s.Create(ctx, key, []byte("1"), scratchLife)
	try("create", err)
	_, _, _, err = s.Get(ctx, key)
	try("read", err)
	_, err = s.Replace(ctx, key, []byte("1"), []byte("2"))
	try("replace", err)
	_, err = s.Touch(ctx, key, scratchLife)
	try("extend", err)
	try("delete", s.Delete(ctx, key))
	_, err = s.Acquire(ctx, key, owner, scratchLife)
	try("acquire", err)
	try("release", s.Release(ctx, key, owner))
	try("add", s.Add(ctx, map[string]string{set: "member"}, scratchLife))
	_, err = s.Members(ctx, set)
	try("list", err)
	try("remove", s.Remove(ctx, map[string]string{set: "member"}))
	if first == nil {
		return nil
	}
	p := problemOf(first)
	if isRefusal(first) {
		p.Text = "not permitted: to " + strings.Join(failed, ", ") + " (" + p.Text + ")"
		p.Advice = "grant the Redis user the commands and keys that docs/sessions.md lists (What Redis needs), for " +
			"the prefix " + s.prefix
	}
	return []Problem{p}
}

// checkInvalidation watches the store until its changes are announced.
func (s *Redis) checkInvalidation(ctx context.Context) []Problem {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	valid := false
	err := s.watch(ctx, true, func(string) {}, func(time.Time) {
		valid = true
		cancel()
	})
	if valid {
		return nil
	}
	return []Problem{{
		Text: "Redis announces no changes, so every request reads the store: " + err.Error(),
		Advice: "allow the Redis user CLIENT TRACKING (+client|tracking), or PUBLISH and SUBSCRIBE on channels " +
			"below the prefix",
	}}
}

// checkMaster reads the settings of a master.
func checkMaster(ctx context.Context, master *redis.Options) []Problem {
	o := *master
	client := redis.NewClient(&o)
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	info, err := client.Info(ctx).Result()
	if redis.IsPermissionError(err) {
		return []Problem{{
			Text:   "the settings of Redis cannot be read: " + err.Error(),
			Advice: "allow the Redis user INFO (+info)",
		}}
	}
	if err != nil {
		return []Problem{problemOf(withHint(err))}
	}
	points := new(string)
	if saved, err := client.ConfigGet(ctx, "save").Result(); err != nil {
		points = nil // most users may not read it
	} else {
		*points = saved["save"]
	}
	return settingProblems(info, points, time.Now())
}

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

// warnOfServer logs the problems of the settings in a response of INFO.
func warnOfServer(ctx context.Context, log *slog.Logger, server, info string, now time.Time) {
	for _, p := range settingProblems(info, nil, now) {
		log.WarnContext(ctx, "Redis setting found that can lose sessions",
			"problem", p.Text, "advice", p.Advice, "server", server)
	}
}

// unsavedFor is how old the last snapshot of changed data is at least before
// Redis counts as one without persistence: the longest interval of its default
// save points.
const unsavedFor = time.Hour

// settingProblems returns the problems of the settings in a response of INFO.
// Managed services hide some of its fields, which cause no problem. points are
// the save points, of which INFO says nothing; nil means that they are unknown.
// Then missing snapshots are recognized by the age of the last one.
func settingProblems(info string, points *string, now time.Time) []Problem {
	var problems []Problem
	limit, policy := infoField(info, "maxmemory"), infoField(info, "maxmemory_policy")
	switch {
	case limit == "0":
		problems = append(problems, Problem{
			Text:   "Redis has no memory limit (maxmemory)",
			Advice: "set its maxmemory, and its maxmemory-policy to noeviction",
		})
	case limit != "" && policy != "" && policy != "noeviction":
		problems = append(problems, Problem{
			Text:   "Redis evicts sessions when it is full (maxmemory-policy " + policy + ")",
			Advice: "set its maxmemory-policy to noeviction",
		})
	}
	if infoField(info, "aof_enabled") != "0" {
		return problems
	}
	unsaved := Problem{
		Text:   "Redis does not save sessions, its restart loses them",
		Advice: "set appendonly to yes, or save points",
	}
	saved, err := strconv.ParseInt(infoField(info, "rdb_last_save_time"), 10, 64)
	age := now.Sub(time.Unix(saved, 0))
	changes := infoField(info, "rdb_changes_since_last_save")
	switch {
	case points != nil && strings.TrimSpace(*points) == "":
		problems = append(problems, unsaved)
	case err != nil || infoField(info, "rdb_bgsave_in_progress") != "0" || changes == "" || changes == "0":
	case age > unsavedFor:
		unsaved.Text += " (unsaved for " + age.Round(time.Second).String() + ")"
		problems = append(problems, unsaved)
	}
	return problems
}
