// Bearerbench measures package bearer beside other verifiers of JWTs, and
// writes the result into a Markdown file:
//
//	go -C internal/bearerbench run . -o ../../docs/performance.md
//
// What is between the lines <!-- bench-bearer --> and <!-- /bench-bearer --> of
// the file is replaced, the rest stays. All verify the same tokens, with keys
// from the same issuer, which they have before the clock starts. Every figure
// is the median of -rounds rounds, in each of which every system verifies all
// tokens once, one system after the other and each round in another order. It
// is a module of its own, so that what it measures is no dependency of anything
// else.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/benchtable"
)

func main() {
	log.SetFlags(0)
	rounds := flag.Int("rounds", 9, "how many `rounds` to take the medians of")
	tokens := flag.Int("n", 2000, "how many `tokens` of each kind are verified in a round; at most 4000, "+
		"which bearer's cache can hold")
	out := flag.String("o", "", "the Markdown `file` to write the tables into; they are printed in any case")
	flag.Parse()
	if flag.NArg() > 0 || *rounds < 1 || *tokens < 1 || *tokens > 4000 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	section, err := run(ctx, *rounds, *tokens)
	if err == nil {
		fmt.Print(section)
		if *out != "" {
			err = benchtable.WriteSection(*out, "bench-bearer", section)
		}
	}
	if err != nil {
		log.Fatal(err)
	}
}

// kind is a kind of token.
type kind struct {
	alg  string
	size size
}

var kinds = []kind{{"RS256", small}, {"PS256", small}, {"ES256", small}, {"EdDSA", small}, {"RS256", large},
	{"EdDSA", large}}

func (k kind) String() string { return fmt.Sprint(k.alg, " ", k.size) }

// run measures everything and returns the tables.
func run(ctx context.Context, rounds, tokens int) (string, error) {
	iss := newIssuer()
	defer iss.close()
	for _, s := range systems {
		for _, alg := range algorithms {
			if err := check(ctx, s, iss, alg); err != nil {
				return "", err
			}
		}
	}
	r := make(benchtable.Results)
	sizes := make(map[kind]int)
	for _, k := range kinds {
		raw := make([]string, tokens)
		for i := range raw {
			raw[i] = iss.token(k.alg, k.size, nil)
		}
		sizes[k] = len(raw[0])
		for round := range rounds {
			log.Printf("%s, round %d of %d", k, round+1, rounds)
			for _, i := range rand.Perm(len(systems)) {
				s := systems[i]
				v, err := s.begin(ctx, iss)
				if err != nil {
					return "", err
				}
				if err := measure(ctx, r, fmt.Sprint(k, s.name), v, raw); err != nil {
					return "", err
				}
				if s.name == ours { // the same tokens again, now cached
					if err := measure(ctx, r, fmt.Sprint(k, s.name, " again"), v, raw); err != nil {
						return "", err
					}
				}
				if v, err = s.begin(ctx, iss); err != nil {
					return "", err
				}
				seconds, err := together(ctx, v, raw)
				if err != nil {
					return "", err
				}
				r.Add(fmt.Sprint(k, s.name, " together"), seconds)
			}
		}
	}
	return tables(r, sizes, rounds, tokens), nil
}

// measure verifies all tokens, one after the other.
func measure(ctx context.Context, r benchtable.Results, what string, v verify, raw []string) error {
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	began := time.Now()
	for _, token := range raw {
		if _, err := v(ctx, token); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	seconds := time.Since(began).Seconds()
	runtime.ReadMemStats(&after)
	n := float64(len(raw))
	r.Add(what, seconds/n)
	r.Add(what+" allocs", float64(after.Mallocs-before.Mallocs)/n)
	r.Add(what+" bytes", float64(after.TotalAlloc-before.TotalAlloc)/n)
	return nil
}

// together verifies all tokens on all cores, and returns how many seconds that
// is for each.
func together(ctx context.Context, v verify, raw []string) (float64, error) {
	runtime.GC()
	cores := runtime.GOMAXPROCS(0)
	errs := make([]error, cores)
	var all sync.WaitGroup
	began := time.Now()
	for core := range cores {
		all.Go(func() {
			for i := core; i < len(raw) && errs[core] == nil; i += cores {
				_, errs[core] = v(ctx, raw[i])
			}
		})
	}
	all.Wait()
	seconds := time.Since(began).Seconds()
	for _, err := range errs {
		if err != nil {
			return 0, err
		}
	}
	return seconds / float64(len(raw)), nil
}

// tables writes down the medians.
func tables(r benchtable.Results, sizes map[kind]int, rounds, tokens int) string {
	var t strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&t, format+"\n", args...) }
	line("## Verifying access tokens\n")
	line("%s, %d cores; Go %s, %s.\nMedians of %d rounds of %d tokens, measured by `make bench-bearer`.\n%s\n",
		benchtable.Processor(), runtime.NumCPU(), strings.TrimPrefix(runtime.Version(), "go"),
		time.Now().Format(time.DateOnly), rounds, tokens, versions())
	line("Each system has the issuer's keys and sees each token for the first time. It checks signature,\n"+
		"algorithm, iss, aud and exp, and returns sub and scope. Only package bearer also checks typ, nbf,\n"+
		"iat, jti, client_id and cnf, and rejects repeated members.\n\n"+
		"- *cached*: a token that bearer has verified before\n"+
		"- *on %d cores*: the time for each token if all of them verify\n"+
		"- *relative*: relative to bearer, the median of the ratios within each round\n", runtime.GOMAXPROCS(0))
	line("| token | system | time | relative | allocations | allocated | on %d cores | relative |",
		runtime.GOMAXPROCS(0))
	line("|---|---|--:|--:|--:|--:|--:|--:|")
	for _, k := range kinds {
		base := fmt.Sprint(k, ours)
		for _, s := range systems {
			what := fmt.Sprint(k, s.name)
			line("| %s, %d bytes | %s | %s | %.2f | %.0f | %.0f bytes | %s | %.2f |", k.alg, sizes[k], s.name,
				benchtable.Duration(r.Median(what)), r.Ratio(what, base),
				r.Median(what+" allocs"), r.Median(what+" bytes"),
				benchtable.Duration(r.Median(what+" together")), r.Ratio(what+" together", base+" together"))
		}
		what := fmt.Sprint(k, ours, " again")
		line("| %s, %d bytes | bearer, cached | %s | %.2f | %.0f | %.0f bytes | | |", k.alg, sizes[k],
			benchtable.Duration(r.Median(what)), r.Ratio(what, base), r.Median(what+" allocs"),
			r.Median(what+" bytes"))
	}
	return t.String()
}

// versions says what was measured.
func versions() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	var named []string
	for _, m := range info.Deps {
		for _, path := range []string{"coreos/go-oidc", "lestrrat-go/jwx", "golang-jwt/jwt", "MicahParks/keyfunc"} {
			if strings.Contains(m.Path, path) {
				named = append(named, path+" "+m.Version)
			}
		}
	}
	return strings.Join(named, ", ") + "."
}
