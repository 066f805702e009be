//go:build unix

// Sessionbench measures the session engine against a Redis of its own and
// writes the result into a Markdown file:
//
//	go run ./internal/sessionbench -o docs/performance.md
//
// It replaces the part of the file between the lines <!-- bench-sessions -->
// and <!-- /bench-sessions -->. With -million it also measures with a million
// sessions in Redis, which takes minutes and about 3 GB. Every figure is the
// median of -rounds rounds, in each of which everything is measured once.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/cloakroom-bff/cloakroom/internal/benchtable"
)

type options struct {
	sessions int
	rounds   int
	million  bool
	redis    string
}

func main() {
	log.SetFlags(0)
	var o options
	flag.IntVar(&o.sessions, "n", 20_000, "how many `sessions` to fill Redis with to see how much memory they take")
	flag.IntVar(&o.rounds, "rounds", 5, "how many `rounds` to take the medians of")
	flag.BoolVar(&o.million, "million", false, "measure with a million sessions too")
	flag.StringVar(&o.redis, "redis-server", "redis-server", "the `program` to start")
	out := flag.String("o", "", "the Markdown `file` to write the tables into; they are printed in any case")
	flag.Parse()
	if flag.NArg() > 0 || o.sessions < 1 || o.rounds < 1 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	section, err := run(ctx, o)
	if err == nil {
		fmt.Print(section)
		if *out != "" {
			err = benchtable.WriteSection(*out, "bench-sessions", section)
		}
	}
	if err != nil {
		log.Fatal(err)
	}
}

// run measures everything and returns the tables.
func run(ctx context.Context, o options) (string, error) {
	b := newBench(o)
	defer b.close()
	if err := b.prepare(ctx); err != nil {
		return "", err
	}
	for round := range o.rounds {
		log.Printf("round %d of %d", round+1, o.rounds)
		for _, measure := range []func(context.Context) error{b.memory, b.login, b.refresh, b.lookUp, b.storm,
			b.startUp} {
			if err := measure(ctx); err != nil {
				return "", err
			}
		}
	}
	return b.tables(ctx)
}
