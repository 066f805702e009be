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
	line("%s, %d cores, which Redis shares; Go %s, Redis %s on the same machine, %s. Medians of %d rounds, by `make bench-sessions`.\n",
		benchtable.Processor(), runtime.NumCPU(), strings.TrimPrefix(runtime.Version(), "go"), redis["redis_version"], time.Now().Format(time.DateOnly), b.rounds)
	line("The tokens are an access token of %d bytes and an ID token of %d, both JWTs signed with RS256, and a refresh token that is %d random characters, or a JWT of %d bytes. "+
		"The claims of the ID token are kept beside it. Each session is another user's and has a `sid`.\n", accessSize, idSize, refreshSize, accessSize)

	line("### Memory of Redis\n")
	line("Bytes a session, of %d:\n", b.sessions)
	line("| refresh token | all | tokens as they are | all without them | sealed record | key `session:` | key `user:` | key `sid:` |")
	line("|---|--:|--:|--:|--:|--:|--:|--:|")
	for _, c := range columns {
		all, tokens := b.Median("memory "+c.name), raw(login(c.refreshIsJWT))
		line("| %s | %.0f | %d | %+.0f | %.0f | %.0f | %.0f | %.0f |", c.name, all, tokens, all-float64(tokens), b.Median("record "+c.name),
			b.Median("session key "+c.name), b.Median("user key "+c.name), b.Median("sid key "+c.name))
	}
	line("\n*All* is by how much `used_memory` grows; that of the keys is what `MEMORY USAGE` says, which leaves out the tables that find them and their ends. " +
		"Records are compressed, so all can be less than the tokens. Opaque tokens compress less.\n")

	line("### Many sessions\n")
	line("| sessions in Redis | signed in within | `used_memory` | a session | a replica's start and first `Get` | `Get` of one among them, p50 | p99 |")
	line("|--:|--:|--:|--:|--:|--:|--:|")
	for _, z := range b.sized {
		what := fmt.Sprint(z.sessions)
		line("| %s | %.1f s | %.0f MB | %.0f bytes | %s | %s | %s |", what, z.seconds, z.bytes/1e6, z.bytes/float64(z.sessions),
			benchtable.Duration(b.Median("start-up "+what)), benchtable.Duration(b.Median("among "+what+" p50")), benchtable.Duration(b.Median("among "+what+" p99")))
	}
	line("\nThe refresh token is random. Nothing is cached.\n")

	line("### Login and refresh\n")
	line("| | p50 | p99 | CPU of the replica | commands of Redis |")
	line("|---|--:|--:|--:|---|")
	for _, what := range []string{"login", "refresh"} {
		line("| %s | %s | %s | %s | %s |", what, benchtable.Duration(b.Median(what+" p50")), benchtable.Duration(b.Median(what+" p99")), benchtable.Duration(b.Median(what+" cpu")), b.lists[what])
	}
	line("\nOne at a time; the provider of the refresh answers at once. Those commands that a script (EVALSHA) runs inside Redis are among the commands.\n")

	line("### Look-up\n")
	line("| | time | allocations | allocated | commands of Redis a call | commands of Redis a second |")
	line("|---|--:|--:|--:|--:|--:|")
	for _, what := range []string{"cold Get", "cold Fresh", "warm Get", "warm Fresh"} {
		temperature, call, _ := strings.Cut(what, " ")
		line("| `%s`, %s | %s | %.0f | %.0f bytes | %.2g | %.0f |", call, temperature, benchtable.Duration(b.Median(what)), b.Median(what+" allocs"), b.Median(what+" bytes"),
			b.Median(what+" commands"), b.Median(what+" commands a second"))
	}
	line("\nOne after the other, as fast as it goes, of %d sessions: `Fresh`, warm, for %v, the others for %v. Cold is without the cache.\n", users, freshFor, lookUpFor)

	line("### Storm\n")
	line("%d requests at once for one session whose access token has expired, at %d replicas; the provider takes %v:\n", stormCallers, replicas, stormWait)
	line("| refreshes | p50 | slowest |")
	line("|--:|--:|--:|")
	line("| %.3g (%.0f at most) | %s | %s |", b.Median("storm refreshes"), slices.Max(b.Results["storm refreshes"]), benchtable.Duration(b.Median("storm p50")), benchtable.Duration(b.Median("storm slowest")))
	return t.String(), nil
}
