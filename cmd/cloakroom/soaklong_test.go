//go:build soak

package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/redistest"
)

// TestSoakFailover kills a master while ten thousand sessions are in use whose
// tokens are due for a refresh: no session ends, and none gets the token of
// another one.
func TestSoakFailover(t *testing.T) {
	for _, topology := range topologies {
		if topology.name != "standalone" {
			t.Run(topology.name, func(t *testing.T) { soakFailover(t, topology.start(t)) })
		}
	}
}

func soakFailover(t *testing.T, store redisStore) {
	const sessions, workers = 10_000, 32
	s := newSoak(t, time.Minute, store.url, store.url)
	began := time.Now()
	var next atomic.Int64
	var running sync.WaitGroup
	for range workers {
		running.Go(func() {
			for n := next.Add(1); n <= sessions && !t.Failed(); n = next.Add(1) {
				if s.login(t.Context(), s.replicas[n%2], soakUser(int(n%soakUsers))) == nil {
					s.fail("sign-in %d failed", n)
				}
			}
		})
	}
	running.Wait()
	if t.Failed() {
		return
	}
	t.Logf("%d sign-ins in %v", sessions, time.Since(began).Round(time.Millisecond))

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	for range workers {
		running.Go(func() {
			for ctx.Err() == nil {
				n := next.Add(1)
				s.request(ctx, s.replicas[n%2], s.sessions[n/2%sessions], "GET", "/api/x")
			}
		})
	}
	sleep(ctx, 5*time.Second)
	s.mu.Lock()
	if !s.outage.first.IsZero() {
		t.Error("got 503 before the master was killed")
	}
	s.mu.Unlock()
	killed := time.Now()
	store.kill("cloakroom:")()
	t.Logf("another master after %v", time.Since(killed).Round(time.Millisecond))
	sleep(ctx, 10*time.Second)
	stop()
	running.Wait()
	s.waitForRecovery()

	for _, x := range s.sessions {
		if !x.refused.IsZero() {
			s.fail("ended: %s", x)
		}
	}
	stats := s.provider.Stats()
	for sid, n := range stats.LiveRefreshTokens {
		if n != 1 {
			s.fail("valid refresh tokens of sid %s: got %d, want 1", sid, n)
		}
	}
	if got := len(stats.LiveRefreshTokens); got != sessions {
		s.fail("sessions with a valid refresh token: got %d, want %d", got, sessions)
	}
	if stats.Reuses != 0 {
		s.fail("reuses of a refresh token: got %d, want 0", stats.Reuses)
	}
	for _, master := range store.masters() {
		s.checkKeys(master)
	}
	s.report()
	if !s.outage.first.IsZero() {
		t.Logf("503 from %v after the kill to %v", s.outage.first.Sub(killed).Round(time.Millisecond),
			s.outage.last.Sub(killed).Round(time.Millisecond))
	}
}

// otherKey is a session key besides goodKey.
const otherKey = "xfGjw3sVQv0d3rC1bV0dC2B0m0q3YJ1kq9pQ1ZqWw2c="

// previousRelease is the commit of the release before this one: the last one
// that records of this release have to be compatible with.
const previousRelease = "4884f061c25a464ec2705e78311241879815c68a"

// buildRelease builds the program of a commit.
func buildRelease(t *testing.T, commit string) string {
	t.Helper()
	source, program := t.TempDir(), filepath.Join(t.TempDir(), "cloakroom")
	archive := exec.Command("sh", "-c", `git archive "$1" | tar -x -C "$2"`, "sh", commit, source)
	archive.Dir = "../.."
	build := exec.Command("go", "build", "-o", program, "./cmd/cloakroom")
	build.Dir = source
	for _, cmd := range []*exec.Cmd{archive, build} {
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", cmd, err, out)
		}
	}
	return program
}

// TestSoakUpgrade rolls three replicas from the release before to this one and
// back, under load.
func TestSoakUpgrade(t *testing.T) {
	old := buildRelease(t, previousRelease)
	l := startRolling(t, old, 3, 200, redistest.Start(t).URL())
	ctx, stop := context.WithCancel(t.Context())
	wait := l.load(ctx)
	for _, program := range []string{"", old} {
		l.program = program
		for i := range l.replicas {
			l.drain(i)
			l.replace(t, i)
		}
		sleep(ctx, 5*time.Second)
	}
	stop()
	wait()
	if n := l.unavailable.Load(); n > 0 {
		t.Errorf("%d calls got 503", n)
	}
	l.report(t)
}

// TestSoakOperations does to three replicas what operators do, while 2,000
// users are signed in: two rolling restarts, ten reloads, rotations of the
// certificate and of the session keys, a failover of Redis, and the kill of a
// replica. No request and no handshake is lost but those at the killed replica,
// no user is signed out, all tokens that the provider issues from the failover
// on are saved, and goroutines and memory do not grow. CLOAKROOM_SOAK is how
// long the load goes on alone before the reloads, and at the end.
func TestSoakOperations(t *testing.T) {
	steady := cmp.Or(soakDuration(t), 10*time.Second)
	redis := redistest.StartSentinel(t)
	certificates := &rotatedCertificate{t: t}
	l := startRolling(t, "", 3, 2000, redis.URL(), certificates.use)
	ctx, stop := context.WithCancel(t.Context())
	wait := l.load(ctx)
	step := func(name string, do func()) {
		began, requests, unavailable := time.Now(), l.requests.Load(), l.unavailable.Load()
		do()
		sleep(ctx, 2*time.Second)
		t.Logf("%s: %v, %d requests, %d of them 503, memory of the replicas %v", name,
			time.Since(began).Round(time.Second), l.requests.Load()-requests,
			l.unavailable.Load()-unavailable, l.memory(t))
	}
	wantAvailable := func() {
		t.Helper()
		if n := l.unavailable.Load(); n > 0 {
			t.Errorf("%d calls got 503", n)
		}
	}

	for range 2 {
		step("rolling restart", func() {
			for i := range l.replicas {
				l.replace(t, i)
			}
		})
	}
	// These two replicas are neither replaced nor killed any more.
	samples := l.sample(ctx, l.replicas[0], l.replicas[2])
	step("load alone", func() { sleep(ctx, steady) })
	reloadsBegin := time.Now()
	step("ten reloads", func() {
		for n := range 10 {
			l.write(t, "cloakroom.yaml", fmt.Sprintf("session: {max_per_user: %d}\n%s", 100+n, l.routes))
			l.reload(t)
		}
	})
	step("key rotation", func() {
		for _, keys := range []string{goodKey + "\n" + otherKey, otherKey + "\n" + goodKey} {
			l.write(t, "keys", keys)
			l.reload(t)
			sleep(ctx, time.Second)
		}
	})
	step("three certificate rotations", func() {
		stop := l.handshake(ctx)
		for range 3 {
			certificates.rotate()
			for _, r := range l.replicas {
				eventually(t, 15*time.Second, "the new certificate is served", func() bool {
					return served(t, r.addr) == certificates.serial
				})
			}
		}
		t.Logf("%d handshakes", stop())
	})
	wantAvailable()
	refreshes := l.recordRefreshes()
	step("failover of Redis", func() {
		master := redis.Master()
		master.Kill()
		redis.WaitForOtherMaster(master)
	})
	step("kill of a replica", func() {
		r := l.replicas[1]
		release := refreshes.hold()
		refreshes.waitSaved(t)
		l.backends[r].killedAt.Store(time.Now().UnixNano())
		r.kill()
		sleep(ctx, killGrace)
		t.Logf("%d refreshes were on their way", release())
		l.balancer.remove(l.backends[r])
		l.replicas[1] = l.startOne(t)
	})
	step("load alone", func() { sleep(ctx, steady) })
	stop()
	wait()
	l.balancer.closeIdle()
	refreshes.waitSaved(t)
	for _, s := range samples() {
		s.wantFlat(t, reloadsBegin)
	}
	l.report(t)
}

// rotatedCertificate is the certificate of all replicas.
type rotatedCertificate struct {
	t      *testing.T
	l      *rolling
	serial int64
}

// use makes the replicas and their clients use TLS.
func (c *rotatedCertificate) use(l *rolling) {
	c.l = l
	c.rotate()
	l.settings["SERVER_TLS_CERT_FILE"] = filepath.Join(l.dir, "tls.crt")
	l.settings["SERVER_TLS_KEY_FILE"] = filepath.Join(l.dir, "tls.key")
	l.scheme = "https"
	l.balancer.secure = &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}
	l.client.Transport.(*http.Transport).TLSClientConfig = l.balancer.secure
}

// rotate replaces the certificate, and then its key.
func (c *rotatedCertificate) rotate() {
	c.serial++
	cert, key := newPair(c.t, c.serial, time.Now().AddDate(1, 0, 0))
	c.l.write(c.t, "tls.crt", cert)
	c.l.write(c.t, "tls.key", key)
}

// handshake connects to the replicas again and again until stop is called,
// which returns how often. Each failure is noted.
func (l *rolling) handshake(ctx context.Context) (stop func() (n int64)) {
	ctx, cancel := context.WithCancel(ctx)
	var n atomic.Int64
	var running sync.WaitGroup
	for _, r := range l.replicas {
		running.Go(func() { // until stop
			for ; ctx.Err() == nil; sleep(ctx, 5*time.Millisecond) {
				conn, err := (&tls.Dialer{Config: l.balancer.secure}).DialContext(ctx, "tcp", r.addr)
				switch {
				case err == nil:
					conn.Close()
					n.Add(1)
				case ctx.Err() == nil:
					l.note("handshake with %s: %v", r.addr, err)
				}
			}
		})
	}
	return func() int64 {
		cancel()
		running.Wait()
		return n.Load()
	}
}

// series are samples of one replica's metrics.
type series struct {
	l                        *rolling
	replica                  *replica
	at                       []time.Time
	goroutines, memory, heap []float64 // in MiB; heap is what was in use after the last collection
}

// sample reads the metrics of replicas every second until ctx ends. samples
// returns them then.
func (l *rolling) sample(ctx context.Context, replicas ...*replica) (samples func() []*series) {
	var all []*series
	var running sync.WaitGroup
	for _, r := range replicas {
		s := &series{l: l, replica: r}
		all = append(all, s)
		running.Go(func() { // until ctx ends
			for ; ctx.Err() == nil; sleep(ctx, time.Second) {
				metrics := l.scrape(r)
				if metrics == nil {
					continue
				}
				s.at = append(s.at, time.Now())
				s.goroutines = append(s.goroutines, metrics["go_goroutines"])
				s.memory = append(s.memory, metrics["process_resident_memory_bytes"]/(1<<20))
				// The next collection is when the heap in use has grown by
				// this percentage.
				growth := 1 + metrics["go_gc_gogc_percent"]/100
				s.heap = append(s.heap, metrics["go_memstats_next_gc_bytes"]/growth/(1<<20))
			}
		})
	}
	return func() []*series {
		running.Wait()
		return all
	}
}

// scrape returns the metrics of a replica, none after an error.
func (l *rolling) scrape(r *replica) brokertest.Metrics {
	resp, err := http.Get("http://" + r.admin + "/metrics")
	if err != nil {
		l.note("metrics of %s: %v", r.addr, err)
		return nil
	}
	defer resp.Body.Close()
	return brokertest.ParseMetrics(l.t, resp.Body)
}

// wantFlat asserts that the heap in use in the last quarter of the samples is
// not much larger than before the reloads: caches fill for about three minutes,
// with some MiB. A configuration that was still in use after a reload would
// need more. The goroutines must be as few again now that the load has ended:
// during the load, idle connections and streams move between the replicas.
func (s *series) wantFlat(t *testing.T, reloads time.Time) {
	t.Helper()
	n, _ := slices.BinarySearchFunc(s.at, reloads, time.Time.Compare)
	if n < 4 || len(s.at) < n+4 {
		t.Fatalf("samples of %s: got %d before the reloads and %d in all; that is too few",
			s.replica.addr, n, len(s.at))
	}
	log := func(name string, samples []float64) (before, after float64) {
		before, after = median(samples[n/2:n]), median(samples[len(samples)*3/4:])
		t.Logf("%s of %s: %.0f before the reloads, %.0f at the end, at most %.0f", name, s.replica.addr,
			before, after, slices.Max(samples))
		return before, after
	}
	log("MiB of memory", s.memory)
	before, after := log("MiB of heap in use", s.heap)
	if most := 1.5*before + 20; after > most {
		t.Errorf("MiB of heap in use of %s at the end: got %.0f, want at most %.0f", s.replica.addr, after, most)
	}
	before, _ = log("goroutines", s.goroutines)
	eventually(t, 2*time.Minute, "there are as few goroutines as before the reloads", func() bool {
		now, scraped := s.l.scrape(s.replica)["go_goroutines"]
		return scraped && now <= 1.2*before
	})
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// memory returns the resident memory of each replica.
func (l *rolling) memory(t *testing.T) (sizes []string) {
	t.Helper()
	for _, r := range l.replicas {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		_, size, _ := strings.Cut(string(text), "VmRSS:")
		size, _, _ = strings.Cut(size, "\n")
		sizes = append(sizes, strings.TrimSpace(size))
	}
	return sizes
}

// reload has all replicas apply their configuration.
func (l *rolling) reload(t *testing.T) {
	t.Helper()
	for _, r := range l.replicas {
		resp, err := http.Post("http://"+r.admin+"/admin/reload", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Errorf("reload of %s: got %d %s", r.addr, resp.StatusCode, body)
		}
	}
}

// drain takes replica i out of the balancer before it is stopped, as releases
// need it that close their listener at once.
func (l *rolling) drain(i int) {
	b := l.backends[l.replicas[i]]
	b.stop()
	time.Sleep(2 * readinessInterval)
	b.ready.Store(false)
	time.Sleep(time.Second)
}
