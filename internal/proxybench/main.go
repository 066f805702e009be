//go:build unix

// Proxybench measures what a proxied call costs, beside others, and writes the
// result into a Markdown file:
//
//	go run ./internal/proxybench -envoy ENVOY -oauth2-proxy OAUTH2-PROXY -o docs/performance.md
//
// What is between the lines <!-- bench --> and <!-- /bench --> of the file is
// replaced, the rest stays. Everything runs on the loopback interface, each
// system in processes of its own: the upstream alone; an httputil.ReverseProxy
// that sends the same headers as Cloakroom and keeps its connections; nginx and
// Envoy that only pass requests on; nginx that sends the same headers and
// writes a log; Envoy with its oauth2 filter; Apache with mod_auth_openidc,
// oauth2-proxy and Cloakroom, all with sessions in Redis. The last four have a
// user who has signed in. In each of -rounds rounds, every system is measured
// in every cell once. Every figure is the median of the rounds, and every ratio
// that of the ratios within each round: what else the machine does at a time
// meets both sides.
//
// The section bench-calls is about the other calls to Cloakroom, such as a
// login or an event of a stream. To measure these alone:
//
//	go run ./internal/proxybench -only Cloakroom -rows 'call: ' -o docs/performance.md
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/benchtable"
)

type options struct {
	rounds  int
	measure time.Duration
	streams int
	only    string
	rows    *regexp.Regexp // of cells; nil: all
	before  string         // another program of ours; empty: none
	max     float64        // of the CPU time relative to the reverse proxy; 0: any
	envoy   string
	oauth2  string
}

func main() {
	log.SetFlags(0)
	if child(os.Args[1:]) {
		return
	}
	var o options
	flag.IntVar(&o.rounds, "rounds", 7, "how many `rounds` to take the medians of")
	flag.DurationVar(&o.measure, "time", 400*time.Millisecond,
		"how `long` to measure each system in each cell in a round")
	flag.IntVar(&o.streams, "streams", 10_000,
		"how many idle event `streams`, and then idle connections, to open at most; 0 omits them")
	flag.StringVar(&o.only, "only", "", "`names` of systems, with commas between; all by default")
	flag.Func("rows",
		"a regular `expression` for the kinds of load, such as '1 KB response, (1|32) ' or 'call: '; all by default",
		func(text string) (err error) {
			o.rows, err = regexp.Compile(text)
			return err
		})
	flag.StringVar(&o.before, "before", "", "another cloakroom `program`, to compare with: an earlier version")
	flag.Float64Var(&o.max, "max", 0, "fail if a row has a larger `ratio` of the CPU time to that of "+bare)
	flag.StringVar(&o.envoy, "envoy", "envoy", "the `program` that is Envoy; make bench-setup installs one")
	flag.StringVar(&o.oauth2, "oauth2-proxy", "oauth2-proxy",
		"the `program` that is oauth2-proxy; make bench-setup installs one")
	out := flag.String("o", "", "the Markdown `file` to write the tables into; they are printed in any case")
	flag.Parse()
	if flag.NArg() > 0 || o.rounds < 1 || o.measure <= 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	sections, err := run(ctx, o)
	for _, s := range sections {
		fmt.Print(s.text)
		if err == nil && *out != "" {
			err = benchtable.WriteSection(*out, s.name, s.text)
		}
	}
	if err != nil {
		log.Fatal(err)
	}
}

// section is a section of the Markdown file.
type section struct{ name, text string }

// cell is one kind of load.
type cell struct {
	name        string
	path        string
	upload      int // bytes
	download    int // bytes
	rate        int // requests per second, on all connections together; 0: as many as possible
	connections int
}

func (c cell) String() string { return fmt.Sprintf("%s, %d connections", c.name, c.connections) }

// Responses that are equal but for their framing.
const sized, chunked = "16 KB response", "16 KB response in chunks"

// cells returns the kinds of load that rows matches.
func cells(rows *regexp.Regexp) []cell {
	var all []cell
	for _, kind := range []cell{
		{name: "1 KB response", path: "/api/1024", download: 1024},
		{name: "1 KB response of a Go server", path: goPath + "1024", download: 1024},
		{name: "1 KB response of nginx", path: nginxPath + "1024", download: 1024},
		{name: "1 KB response, 2000 requests per second", path: "/api/1024", download: 1024, rate: 2_000},
		{name: "1 KB response, 6000 requests per second", path: "/api/1024", download: 1024, rate: 6_000},
		{name: "1 KB response, 10000 requests per second", path: "/api/1024", download: 1024, rate: 10_000},
		{name: sized, path: "/api/16384", download: 16 << 10},
		{name: chunked, path: "/api/chunked/16384", download: 16 << 10},
		{name: "64 KB response", path: "/api/65536", download: 64 << 10},
		{name: "1 MB upload", path: "/api/2", upload: 1 << 20, download: 2},
	} {
		for _, kind.connections = range []int{1, 4, 32, 256} {
			if kind.rate > 0 && kind.connections < 32 {
				continue // few connections may not reach the rate
			}
			if rows == nil || rows.MatchString(kind.String()) {
				all = append(all, kind)
			}
		}
	}
	return all
}

func run(ctx context.Context, o options) (sections []section, err error) {
	rig, err := newRig(ctx, o)
	defer rig.close()
	if err != nil {
		return nil, err
	}
	results := make(benchtable.Results)
	if len(cells(o.rows)) > 0 {
		if err := rig.measureCells(ctx, o, results); err != nil {
			return nil, err
		}
		// A stream needs two files. Cloakroom keeps some free.
		idle, streams := min(o.streams, openFiles()*3/5), min(o.streams, openFiles()*12/25)
		if err := rig.measureConnections(ctx, idle, streams, results); err != nil {
			return nil, err
		}
		sections = append(sections, section{"bench", rig.tables(results, cells(o.rows), idle, streams)})
	}
	if len(o.calls()) > 0 && len(rig.brokers()) > 0 {
		if err := rig.measureCalls(ctx, o, results); err != nil {
			return sections, err
		}
		sections = append(sections, section{"bench-calls", rig.callTables(results, o)})
	}
	return sections, compare(results, o)
}

// measureCells measures the proxied requests in rounds. Each begins with
// another system, because what came before makes a difference.
func (r *rig) measureCells(ctx context.Context, o options, results benchtable.Results) error {
	for round := range o.rounds {
		log.Printf("round %d of %d", round+1, o.rounds)
		for _, c := range cells(o.rows) {
			for i := range r.systems {
				s := r.systems[(i+round)%len(r.systems)]
				if s.name == single && c.path != "/api/1024" {
					continue
				}
				if err := s.measure(ctx, c, o.measure, results); err != nil {
					return fmt.Errorf("%s, %v: %w", s.name, c, err)
				}
			}
		}
	}
	return nil
}

// measureConnections measures open connections at each system that can have so
// many.
func (r *rig) measureConnections(ctx context.Context, idle, streams int, results benchtable.Results) error {
	for _, s := range r.systems {
		if !s.streams || streams == 0 {
			continue
		}
		log.Printf("%d connections and %d streams through %s", idle, streams, s.name)
		if err := s.measureIdle(ctx, idle, streams, results); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// compare returns an error for each row whose ratio is larger than o.max.
func compare(results benchtable.Results, o options) (err error) {
	if o.max == 0 {
		return nil
	}
	for _, c := range cells(o.rows) {
		cpu := func(name string) string { return (&system{name: name}).key(c) + " cpu" }
		if ratio := results.Ratio(cpu(ours), cpu(bare)); ratio > o.max {
			err = errors.Join(err,
				fmt.Errorf("%v: %.2f of the CPU time of %s, want at most %.2f", c, ratio, bare, o.max))
		}
	}
	return err
}

// openFiles returns how many files a process may have open. Root can have more
// than the default.
func openFiles() int {
	const wanted = 1 << 16
	limit := syscall.Rlimit{Cur: wanted, Max: wanted}
	if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit) == nil {
		return wanted
	}
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 1024
	}
	return int(min(limit.Cur, 1<<20))
}
