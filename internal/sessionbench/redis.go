//go:build unix

package main

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// server is a Redis that keeps nothing on disk.
type server struct {
	url     string
	client  *redis.Client
	process *exec.Cmd
}

func startRedis(ctx context.Context, program string) (*server, error) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	_, port, _ := net.SplitHostPort(free.Addr().String())
	free.Close()
	addr := net.JoinHostPort("127.0.0.1", port)
	s := &server{
		url:    "redis://" + addr,
		client: redis.NewClient(&redis.Options{Addr: addr}),
		process: exec.CommandContext(ctx, program, "--bind", "127.0.0.1", "--port", port, "--save", "",
			"--appendonly", "no", "--dir", os.TempDir()),
	}
	if err := s.process.Start(); err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := s.client.Ping(ctx).Err()
		if err == nil {
			return s, nil
		}
		if time.Now().After(deadline) {
			s.stop()
			return nil, fmt.Errorf("%s does not answer: %w", program, err)
		}
	}
}

func (s *server) stop() {
	s.client.Close()
	s.process.Process.Kill()
	s.process.Wait()
}

// info returns the fields of sections of INFO.
func (s *server) info(ctx context.Context, sections ...string) (map[string]string, error) {
	text, err := s.client.Info(ctx, sections...).Result()
	fields := make(map[string]string)
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			fields[name] = value
		}
	}
	return fields, err
}

// usedMemory returns how many bytes Redis has allocated, once it is done with
// rebuilding its hash tables.
func (s *server) usedMemory(ctx context.Context) (float64, error) {
	var last float64
	for range 100 {
		time.Sleep(100 * time.Millisecond)
		fields, err := s.info(ctx, "memory")
		if err != nil {
			return 0, err
		}
		used, err := strconv.ParseFloat(fields["used_memory"], 64)
		if err != nil {
			return 0, err
		}
		if diff := used - last; -20_000 < diff && diff < 20_000 { // tolerance for the buffers of connections
			return used, nil
		}
		last = used
	}
	return last, nil
}

// commands returns how often each command was called, by clients and by
// scripts.
func (s *server) commands(ctx context.Context) (map[string]float64, error) {
	fields, err := s.info(ctx, "commandstats")
	if err != nil {
		return nil, err
	}
	calls := make(map[string]float64)
	for name, value := range fields { // cmdstat_get:calls=3,usec=…
		n, _, _ := strings.Cut(strings.TrimPrefix(value, "calls="), ",")
		if calls[strings.TrimPrefix(name, "cmdstat_")], err = strconv.ParseFloat(n, 64); err != nil {
			return nil, fmt.Errorf("commandstats: %w", err)
		}
	}
	delete(calls, "info") // sent by this program
	return calls, nil
}

// perCall says which commands n calls took each.
func perCall(before, after map[string]float64, n int) (total float64, list string) {
	type command struct {
		name  string
		calls float64
	}
	var commands []command
	for name, calls := range after {
		per := (calls - before[name]) / float64(n)
		total += per
		if per >= 0.05 { // below is the heartbeat of Watch
			commands = append(commands, command{name, per})
		}
	}
	slices.SortFunc(commands, func(a, b command) int {
		return cmp.Or(cmp.Compare(b.calls, a.calls), cmp.Compare(a.name, b.name))
	})
	var names []string
	for _, c := range commands {
		names = append(names, fmt.Sprintf("%.3g %s", c.calls, strings.ToUpper(c.name)))
	}
	return total, strings.Join(names, ", ")
}
