//go:build unix

// Sessionbench measures the session engine against a Redis of its own and writes the result into a Markdown file:
//
//	go run ./internal/sessionbench -o docs/performance.md
//
// What is between the lines <!-- bench-sessions --> and <!-- /bench-sessions --> of the file is replaced, the rest stays. With
// -million it also measures with a million sessions in Redis, which takes minutes and about 3 GB. Every figure is the median of
// -rounds rounds, in each of which everything is measured once.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
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
			err = writeSection(*out, section)
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
		for _, measure := range []func(context.Context) error{b.memory, b.login, b.refresh, b.lookUp, b.storm, b.startUp} {
			if err := measure(ctx); err != nil {
				return "", err
			}
		}
	}
	return b.tables(ctx)
}

const (
	begin = "<!-- bench-sessions -->\n"
	end   = "<!-- /bench-sessions -->\n"
)

// writeSection replaces what is between the markers of a file. A file without them gets them at its end.
func writeSection(name, section string) error {
	old, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	before, rest, found := strings.Cut(string(old), begin)
	_, after, closed := strings.Cut(rest, end)
	if found && !closed {
		return fmt.Errorf("%s has no line %s", name, strings.TrimSpace(end))
	}
	if !found && before != "" {
		before = strings.TrimRight(before, "\n") + "\n\n"
	}
	return os.WriteFile(name, []byte(before+begin+section+end+after), 0o644)
}

// results are what was measured in each round.
type results map[string][]float64 // :: what → a value for each round

func (r results) add(what string, value float64) { r[what] = append(r[what], value) }

func (r results) median(what string) float64 {
	values := slices.Sorted(slices.Values(r[what]))
	if len(values) == 0 {
		panic("not measured: " + what)
	}
	return (values[(len(values)-1)/2] + values[len(values)/2]) / 2
}
