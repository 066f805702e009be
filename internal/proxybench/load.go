//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cloakroom-bff/cloakroom/internal/benchtable"
)

// request returns a request as a browser's script sends it.
func (s *system) request(method, path string, upload int) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", method, path, s.host)
	b.WriteString("User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) " +
		"Chrome/142.0.0.0 Safari/537.36\r\n" +
		"Accept: application/json\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n" +
		"Accept-Language: en-US,en;q=0.9\r\n" +
		"Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n" +
		"Referer: http://" + s.host + "/orders\r\nX-CSRF: 1\r\n")
	if s.cookie != "" {
		b.WriteString("Cookie: " + s.cookie + "\r\n")
	}
	if upload > 0 {
		fmt.Fprintf(&b, "Content-Type: application/octet-stream\r\nContent-Length: %d\r\n", upload)
	}
	b.WriteString("\r\n")
	b.Write(bytes.Repeat([]byte("u"), upload))
	return b.Bytes()
}

// measure loads a system for a while, and keeps what it took.
func (s *system) measure(ctx context.Context, c cell, long time.Duration, r benchtable.Results) error {
	method := "GET"
	if c.upload > 0 {
		method = "POST"
	}
	request := s.request(method, c.path, c.upload)
	clients, err := s.dial(c.connections, long)
	defer closeAll(clients)
	if err != nil {
		return err
	}
	if _, err := load(ctx, clients, request, c, long/5); err != nil { // warm up
		return err
	}
	before, began := s.cpu(), time.Now()
	took, err := load(ctx, clients, request, c, long)
	if err != nil {
		return err
	}
	elapsed, cpu := time.Since(began), s.cpu()-before
	slices.Sort(took)
	what := s.key(c)
	r.Add(what+" rate", float64(len(took))/elapsed.Seconds())
	r.Add(what+" p50", took[len(took)/2])
	r.Add(what+" p99", took[len(took)*99/100])
	r.Add(what+" cpu", cpu/float64(len(took)))
	r.Add(s.name+" peak", s.memory("VmHWM"))
	return nil
}

func (s *system) key(c cell) string { return fmt.Sprintf("%s %s %d", s.name, c.name, c.connections) }

// dial returns n clients. The caller closes them, also after an error.
func (s *system) dial(n int, long time.Duration) (clients []*client, err error) {
	for range n {
		c, err := s.newClient(long)
		if err != nil {
			return clients, err
		}
		clients = append(clients, c)
	}
	return clients, nil
}

// load sends a request again and again on each connection, at least once, and
// returns how many microseconds each took. It checks each response.
//
// With a rate, the requests are due at equal intervals. The time of a request
// begins when it is due, even if its connection still waits for the response to
// the one before.
func load(ctx context.Context, clients []*client, request []byte, c cell, long time.Duration) ([]float64, error) {
	start := time.Now()
	until := start.Add(long)
	took := make([][]float64, len(clients))
	group, ctx := errgroup.WithContext(ctx)
	for i, client := range clients {
		group.Go(func() error {
			defer context.AfterFunc(ctx, func() { client.conn.Close() })()
			for n := i; len(took[i]) == 0 || time.Now().Before(until); n += len(clients) {
				began := time.Now()
				if c.rate > 0 {
					due := start.Add(time.Duration(n) * time.Second / time.Duration(c.rate))
					if began.Before(due) {
						time.Sleep(due.Sub(began))
						began = time.Now()
					} else {
						began = due
					}
				}
				if _, err := client.conn.Write(request); err != nil {
					return err
				}
				head, err := readHead(client.r)
				if err != nil {
					return err
				}
				length, err := head.readBody(client.r)
				if err != nil {
					return err
				}
				if head.second != "200" || length != c.download {
					return fmt.Errorf("the response is %s with %d bytes", head.second, length)
				}
				took[i] = append(took[i], float64(time.Since(began).Nanoseconds())/1e3)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return slices.Concat(took...), nil
}

// measureIdle opens connections that have had a request and then are idle, and
// event streams that are, and keeps how much memory each takes.
func (s *system) measureIdle(ctx context.Context, idle, streams int, r benchtable.Results) error {
	end := []byte("\r\n\r\nxx")
	err := s.measureOpen(ctx, idle, s.request("GET", "/api/2", 0), end, s.name+" connection", r)
	if err != nil {
		return fmt.Errorf("idle connections: %w", err)
	}
	err = s.measureOpen(ctx, streams, s.request("GET", "/events", 0), []byte("data: an event"), s.name+" stream", r)
	if err != nil {
		return fmt.Errorf("event streams: %w", err)
	}
	return nil
}

// measureOpen sends a request on each of n connections, one after the other,
// and waits for a part of the response. It keeps how much memory a connection
// takes that stays open after that: by the second half of them, because the
// first may use memory that was free.
func (s *system) measureOpen(
	ctx context.Context, n int, request, until []byte, what string, r benchtable.Results,
) error {
	open := func() (net.Conn, error) {
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			return nil, err
		}
		c.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := c.Write(request); err != nil {
			return nil, err
		}
		b := make([]byte, 4096)
		var all []byte
		for !bytes.Contains(all, until) {
			n, err := c.Read(b)
			if err != nil {
				return nil, fmt.Errorf("%w after %.200q", err, all)
			}
			all = append(all, b[:n]...)
		}
		return c, nil
	}
	const settle = 2 * time.Second
	var before float64
	conns := make([]net.Conn, 0, n)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for i := range n {
		if i == n/2 {
			time.Sleep(settle)
			before = s.memory("VmRSS")
		}
		c, err := open()
		if err != nil {
			return fmt.Errorf("the %dth: %w", i+1, err)
		}
		conns = append(conns, c)
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	time.Sleep(settle)
	r.Add(what, (s.memory("VmRSS")-before)/float64(n-n/2))
	for _, c := range conns {
		c.SetReadDeadline(time.Now().Add(time.Microsecond))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("a connection has not stayed open: %v", err)
		}
	}
	return nil
}

// processes returns the system's process and all below it.
func (s *system) processes() []int {
	if s.process == nil {
		return nil
	}
	all := []int{s.process.Process.Pid}
	for i := 0; i < len(all); i++ {
		lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", all[i]))
		for _, list := range lists {
			text, _ := os.ReadFile(list)
			for _, field := range strings.Fields(string(text)) {
				if pid, err := strconv.Atoi(field); err == nil {
					all = append(all, pid)
				}
			}
		}
	}
	return all
}

// cpu returns how many microseconds the system's processes have run.
func (s *system) cpu() float64 {
	var total float64
	for _, pid := range s.processes() {
		stats, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		for _, name := range stats {
			text, _ := os.ReadFile(name)
			if fields := strings.Fields(string(text)); len(fields) > 0 {
				ns, _ := strconv.ParseFloat(fields[0], 64)
				total += ns / 1e3
			}
		}
	}
	return total
}

// memory returns a sum over the system's processes of a field of
// /proc/PID/status, in KiB.
func (s *system) memory(field string) float64 {
	var total float64
	for _, pid := range s.processes() {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		_, rest, _ := strings.Cut(string(text), "\n"+field+":")
		if fields := strings.Fields(rest); len(fields) > 0 {
			kib, _ := strconv.ParseFloat(fields[0], 64)
			total += kib
		}
	}
	return total
}
