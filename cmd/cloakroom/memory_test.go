package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"maps"
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

	"golang.org/x/net/http2"

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
			r := wantBoundedMemory(t, program, nil, func(f *fleet, r *replica, stopped <-chan struct{}) {
				conn, err := net.Dial("tcp", r.addr)
				if err == nil {
					attackSlowly(conn, strings.Replace(request, "HOST", f.host, 1), stopped)
				}
			})
			if log := r.stderr.String(); name != "many fields" && !strings.Contains(log, "without memory") {
				t.Error("the log does not mention the refusals")
			}
		})
	}
	t.Run("slow frames", func(t *testing.T) {
		const settings = "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
		const headers = "\x0f\xff\xff\x01\x04\x00\x00\x00\x01" // of a frame with 1 MiB
		cert, key := newPair(t, 1, time.Now().Add(time.Hour))
		dialer := &tls.Dialer{
			NetDialer: &net.Dialer{Timeout: 10 * time.Second},
			Config:    &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}},
		}
		wantBoundedMemory(t, program, map[string]string{
			"SERVER_TLS_CERT_FILE": writeFile(t, "tls.crt", cert),
			"SERVER_TLS_KEY_FILE":  writeFile(t, "tls.key", key),
		}, func(_ *fleet, r *replica, stopped <-chan struct{}) {
			conn, err := dialer.Dial("tcp", r.addr)
			if err == nil {
				attackSlowly(conn, http2.ClientPreface+settings+headers+strings.Repeat("v", 1<<19), stopped)
			}
		})
	})
}

// wantBoundedMemory starts a replica, and has many clients attack it at once,
// each until stopped is closed. It fails if the replica needs more memory than
// its limit permits, or does not recover.
func wantBoundedMemory(t *testing.T, program string, env map[string]string,
	attack func(f *fleet, r *replica, stopped <-chan struct{}),
) *replica {
	t.Helper()
	const limit, connections = 115, 1200 // MiB; without refusals, they would need more than 300 MiB
	upstream := brokertest.NewEcho(t)
	upstream.Handler = func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }
	f := newFleet(t, nil)
	settings := map[string]string{
		"PROGRAM": program, "GOMEMLIMIT": fmt.Sprint(limit, "MiB"),
		"ROUTES": fmt.Sprintf("[{path: /upload/, upstream: %q, token: none}]", upstream.URL),
	}
	maps.Copy(settings, env)
	f.startReplicas(settings, "memory:")
	r := f.replicas[0]
	stopped := make(chan struct{})
	var attackers sync.WaitGroup
	for range connections {
		attackers.Go(func() { attack(f, r, stopped) }) // until the connection is closed, or stopped
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
	client := f.client
	scheme := "http://"
	if env != nil {
		scheme = "https://"
		client = &http.Client{Transport: &http.Transport{
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true,
		}}
		defer client.CloseIdleConnections()
	}
	eventually(t, 30*time.Second, "requests are served after the flood", func() bool {
		req, err := http.NewRequest("GET", scheme+r.addr+"/bff/session", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = f.host
		req.Header.Set("X-CSRF", "1")
		resp, err := client.Do(req)
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == 200
	})
	return r
}

// attackSlowly sends the beginning of a request, and then a byte now and then.
func attackSlowly(conn net.Conn, request string, stopped <-chan struct{}) {
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
