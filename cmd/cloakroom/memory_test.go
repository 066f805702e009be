package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// buildBroker builds the program without the race detector, which needs several
// times its memory.
func buildBroker(t *testing.T) (program string) {
	t.Helper()
	program = filepath.Join(t.TempDir(), "cloakroom")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return program
}

// peakMemory returns the highest resident memory of a replica so far, in MiB.
func peakMemory(t *testing.T, r *replica) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(text)
	kB, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return kB >> 10
}

// Each connection needs several times the memory that the limit has for it.
func TestMemoryStaysWithinItsLimitInAFlood(t *testing.T) {
	testenv.Slow(t)
	program := buildBroker(t)
	large := strings.Repeat("v", 60<<10)
	for name, request := range map[string]string{
		"slow headers": "GET / HTTP/1.1\r\nHost: HOST\r\nA: " + large,
		"slow bodies": "POST /upload/x HTTP/1.1\r\nHost: HOST\r\nX-CSRF: 1\r\nA: " + large +
			"\r\nContent-Length: 65000\r\n\r\n" + large,
		"many fields": "POST /upload/x HTTP/1.1\r\nHost: HOST\r\nX-CSRF: 1\r\nContent-Length: 65000\r\n" +
			strings.Repeat("A: \r\n", 10_000) + "\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			const limit, connections = 115, 1200 // MiB; without refusals, they would need more than 300 MiB
			upstream := brokertest.NewEcho(t)
			upstream.Handler = func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }
			f := newFleet(t, nil)
			f.startReplicas(map[string]string{
				"PROGRAM": program, "GOMEMLIMIT": fmt.Sprint(limit, "MiB"),
				"ROUTES": fmt.Sprintf("[{path: /upload/, upstream: %q, token: none}]", upstream.URL),
			}, "memory:")
			r := f.replicas[0]
			stopped := make(chan struct{})
			var attackers sync.WaitGroup
			for range connections {
				attackers.Go(func() { // until the connection is closed, or stopped
					attackSlowly(r.addr, strings.Replace(request, "HOST", f.host, 1), stopped)
				})
			}
			time.Sleep(5 * time.Second) // the flood goes on
			d := &flooded{fleet: f, t: t, at: r, user: new(userSession)}
			d.wantHealthy()
			close(stopped)
			attackers.Wait()
			peak := peakMemory(t, r)
			t.Logf("peak: %d MiB", peak)
			// The limit does not count the program itself, of about 20 MiB.
			if most := limit * 3 / 2; peak > most {
				t.Errorf("resident memory with a limit of %d MiB: got %d MiB, want at most %d", limit, peak, most)
			}
			if log := r.stderr.String(); name != "many fields" && !strings.Contains(log, "without memory") {
				t.Error("the log does not mention the refusals")
			}
			eventually(t, 30*time.Second, "requests are served after the flood", func() bool {
				resp := f.call(r, d.user, "GET", "/bff/session")
				return resp.err == nil && resp.status == 200
			})
		})
	}
}

// attackSlowly sends the beginning of a request, and then a byte now and then.
func attackSlowly(addr, request string, stopped <-chan struct{}) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer conn.Close()
	io.WriteString(conn, request)
	for {
		select {
		case <-stopped:
			return
		case <-time.After(200 * time.Millisecond):
			if _, err := io.WriteString(conn, "x"); err != nil {
				return
			}
		}
	}
}
