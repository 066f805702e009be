//go:build unix

package main

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/benchtable"
)

func addPercentiles(r benchtable.Results, what string, took []float64) {
	slices.Sort(took)
	r.Add(what+" p50", took[len(took)/2])
	r.Add(what+" p99", took[len(took)*99/100])
	r.Add(what+" slowest", took[len(took)-1])
}

// tables writes down the medians.
func (b *bench) tables(ctx context.Context) (string, error) {
	redis, err := b.empty.info(ctx, "server")
	if err != nil {
		return "", err
	}
	var t strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&t, format+"\n", args...) }

	line("## Sessions\n")
	line("%s, %d cores, shared with Redis %s on the same machine;\nGo %s, %s.\nMedians of %d rounds, measured by "+
		"`make bench-sessions`.\n",
		benchtable.Processor(), runtime.NumCPU(), redis["redis_version"],
		strings.TrimPrefix(runtime.Version(), "go"), time.Now().Format(time.DateOnly), b.rounds)
	line("The access token has %d bytes and the ID token %d. Both are JWTs signed with RS256. The refresh\n"+
		"token is %d random characters, or a JWT of %d bytes. The record also has the claims of the ID\n"+
		"token. Each session belongs to another user and has a `sid`.\n", accessSize, idSize, refreshSize, accessSize)

	line("### Memory of Redis\n")
	line("Bytes for each session, with %d sessions:\n", b.sessions)
	line("| refresh token | total | plain tokens | difference | record | key `session:` | key `user:` | key `sid:` |")
	line("|---|--:|--:|--:|--:|--:|--:|--:|")
	for _, c := range columns {
		all, tokens := b.Median("memory "+c.name), raw(login(c.refreshIsJWT))
		line("| %s | %.0f | %d | %+.0f | %.0f | %.0f | %.0f | %.0f |", c.name, all, tokens, all-float64(tokens),
			b.Median("record "+c.name),
			b.Median("session key "+c.name), b.Median("user key "+c.name), b.Median("sid key "+c.name))
	}
	line("\n*Total* is the growth of `used_memory`. The sizes of keys are those of `MEMORY USAGE`. They do not\n" +
		"include the tables for look-up and expiry. Records are compressed, so the total can be less than the\n" +
		"plain tokens. Opaque tokens compress less.\n")

	line("### Many sessions\n")
	line("| sessions in Redis | all logins | `used_memory` | per session | start of a replica and first `Get` | " +
		"`Get`, p50 | `Get`, p99 |")
	line("|--:|--:|--:|--:|--:|--:|--:|")
	for _, z := range b.sized {
		what := fmt.Sprint(z.sessions)
		line("| %s | %.1f s | %.0f MB | %.0f bytes | %s | %s | %s |", what, z.seconds, z.bytes/1e6,
			z.bytes/float64(z.sessions),
			benchtable.Duration(b.Median("start-up "+what)),
			benchtable.Duration(b.Median("among "+what+" p50")), benchtable.Duration(b.Median("among "+what+" p99")))
	}
	line("\nThe refresh token is random. The cache is not used.\n")

	line("### Login and refresh\n")
	line("| operation | p50 | p99 | CPU of the replica | Redis commands |")
	line("|---|--:|--:|--:|---|")
	for _, what := range []string{"login", "refresh"} {
		line("| %s | %s | %s | %s | %s |", what, benchtable.Duration(b.Median(what+" p50")),
			benchtable.Duration(b.Median(what+" p99")), benchtable.Duration(b.Median(what+" cpu")), b.lists[what])
	}
	line("\nOne operation at a time. The provider responds to the refresh at once. The commands include those\n" +
		"that a script (EVALSHA) runs inside Redis.\n")

	line("### Look-up\n")
	line("| call | time | allocations | allocated | Redis commands per call | Redis commands per second |")
	line("|---|--:|--:|--:|--:|--:|")
	for _, what := range []string{"cold Get", "cold Fresh", "warm Get", "warm Fresh"} {
		temperature, call, _ := strings.Cut(what, " ")
		line("| `%s`, %s | %s | %.0f | %.0f bytes | %.2g | %.0f |", call, temperature,
			benchtable.Duration(b.Median(what)), b.Median(what+" allocs"), b.Median(what+" bytes"),
			b.Median(what+" commands"), b.Median(what+" commands a second"))
	}
	line("\nOne call after the other, as fast as possible, on %d sessions. `Fresh`, warm, runs for %v, the\n"+
		"others for %v. Cold means without the cache.\n", users, freshFor, lookUpFor)

	line("### Storm\n")
	line("%d concurrent requests at %d replicas, for one session whose access token has expired. The provider\n"+
		"takes %v:\n", stormCallers, replicas, stormWait)
	line("| refreshes | p50 | slowest |")
	line("|--:|--:|--:|")
	line("| %.3g (%.0f at most) | %s | %s |", b.Median("storm refreshes"), slices.Max(b.Results["storm refreshes"]),
		benchtable.Duration(b.Median("storm p50")), benchtable.Duration(b.Median("storm slowest")))
	return t.String(), nil
}
