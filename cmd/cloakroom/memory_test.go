package main

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

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

// peakMemory returns the highest resident memory of a replica so far, and how
// much of it is the program's file, in MiB.
func peakMemory(t *testing.T, r *replica) (peak, file int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	mib := func(field string) int {
		m := regexp.MustCompile(field + `:\s+(\d+) kB`).FindSubmatch(text)
		kB, err := strconv.Atoi(string(m[1]))
		if err != nil {
			t.Fatal(err)
		}
		return kB >> 10
	}
	return mib("VmHWM"), mib("RssFile")
}

// Each connection needs several times the memory that the limit has for it.
func TestMemoryStaysWithinItsLimitInAFlood(t *testing.T) {
	testenv.Slow(t)
	program := buildBroker(t)
	for name, attack := range floods {
		t.Run("HTTP1 "+name, func(t *testing.T) {
			r := wantBoundedMemory(t, program, "http/1.1", func(host string) []byte {
				return []byte(strings.Replace(attack, "HOST", host, 1))
			})
			if log := r.stderr.String(); name != "many fields" && !strings.Contains(log, "without memory") {
				t.Error("the log does not mention the refusals")
			}
		})
	}
	for name, attack := range floodsHTTP2 {
		t.Run("HTTP2 "+name, func(t *testing.T) { wantBoundedMemory(t, program, "h2", attack) })
	}
}

var large = strings.Repeat("v", 50<<10)

var floods = map[string]string{
	"slow headers": "GET / HTTP/1.1\r\nHost: HOST\r\nA: " + large,
	"slow bodies": "POST /upload/x HTTP/1.1\r\nHost: HOST\r\nX-CSRF: 1\r\nA: " + large +
		"\r\nContent-Length: 65000\r\n\r\n" + large,
	"many fields": "POST /upload/x HTTP/1.1\r\nHost: HOST\r\nX-CSRF: 1\r\nContent-Length: 65000\r\n" +
		strings.Repeat("A: \r\n", 10_000) + "\r\n",
	"large headers": "GET /upload/hang HTTP/1.1\r\nHost: HOST\r\nX-CSRF: 1\r\nA: " + large + "\r\n\r\n",
}

// A client in HTTP/2 has many requests in flight, and can announce more than it
// sends.
var floodsHTTP2 = map[string]func(host string) []byte{
	"many requests": func(host string) []byte { return requestsHTTP2(host, "GET", 250, "v") },
	"large headers": func(host string) []byte { return requestsHTTP2(host, "GET", 250, large) },
	"large bodies": func(host string) []byte {
		var buf bytes.Buffer
		buf.Write(requestsHTTP2(host, "POST", 100, "v"))
		framer := http2.NewFramer(&buf, nil)
		for i := range 64 { // as much as the windows permit
			framer.WriteData(uint32(2*(i%16)+1), false, []byte(large[:maxFrame]))
		}
		return buf.Bytes()
	},
	"unfinished headers": func(host string) []byte {
		var buf bytes.Buffer
		header := headerHTTP2(host, "GET", large)
		framer := http2.NewFramer(&buf, nil)
		framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: header[:maxFrame]})
		for part := range slices.Chunk(header[maxFrame:], maxFrame) {
			framer.WriteContinuation(1, false, part)
		}
		return buf.Bytes()
	},
	"unfinished frames": func(string) []byte {
		const length, headers = 1<<20 - 1, 1 // of a frame, and its type
		return append([]byte{length >> 16, length >> 8 & 0xff, length & 0xff, headers, 4, 0, 0, 0, 1},
			strings.Repeat("v", length-1)...)
	},
}

// maxFrame is how much a frame in HTTP/2 may have.
const maxFrame = 16 << 10

// headerHTTP2 returns the header of a request with a field.
func headerHTTP2(host, method, field string) []byte {
	var header bytes.Buffer
	encoder := hpack.NewEncoder(&header)
	for _, f := range [][2]string{{":method", method}, {":scheme", "https"}, {":authority", host},
		{":path", "/upload/hang"}, {"x-csrf", "1"}, {"a", field}} {
		// Sensitive: none refers to another one, so that each header is
		// complete.
		encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1], Sensitive: true})
	}
	return header.Bytes()
}

// requestsHTTP2 returns requests that are not responded to, each with a field.
// Those of the method POST have no end.
func requestsHTTP2(host, method string, n int, field string) []byte {
	header := headerHTTP2(host, method, field)
	var buf bytes.Buffer
	framer := http2.NewFramer(&buf, nil)
	for i := range n {
		id, rest := uint32(2*i+1), header[min(maxFrame, len(header)):]
		framer.WriteHeaders(http2.HeadersFrameParam{
			StreamID: id, BlockFragment: header[:len(header)-len(rest)], EndStream: method == "GET",
			EndHeaders: len(rest) == 0,
		})
		for len(rest) > 0 {
			part := rest[:min(maxFrame, len(rest))]
			rest = rest[len(part):]
			framer.WriteContinuation(id, len(rest) == 0, part)
		}
	}
	return buf.Bytes()
}

// wantBoundedMemory starts a replica that terminates TLS, and has many clients
// attack it at the same time, each with what attack returns. It fails if the
// replica needs more memory than its limit permits, does not respond to its
// users, or does not recover.
func wantBoundedMemory(t *testing.T, program, protocol string, attack func(host string) []byte) *replica {
	t.Helper()
	const limit, connections = 115, 1200 // MiB; without refusals, they would need more than 300 MiB
	stopped := make(chan struct{})
	upstream := brokertest.NewEcho(t)
	upstream.Handler = func(_ http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/upload/hang") {
			<-stopped
		}
		io.Copy(io.Discard, r.Body)
	}
	f := newFleet(t, nil)
	cert, key := newPair(t, 1, time.Now().Add(time.Hour))
	f.startReplicas(map[string]string{
		"PROGRAM": program, "GOMEMLIMIT": fmt.Sprint(limit, "MiB"),
		"ROUTES":               fmt.Sprintf("[{path: /upload/, upstream: %q, token: none}]", upstream.URL),
		"SERVER_TLS_CERT_FILE": writeFile(t, "tls.crt", cert), "SERVER_TLS_KEY_FILE": writeFile(t, "tls.key", key),
	}, "memory:")
	r := f.replicas[0]
	user := newTLSUser(t, f, r)
	if status, err := user.get(); status != 200 {
		t.Fatalf("before the flood: got %d, %v, want 200", status, err)
	}
	attackers := attackTogether(connections, r.addr, protocol, attack(f.host), stopped)
	statuses := make(map[int]int)
	for begun := time.Now(); time.Since(begun) < 3*time.Second; time.Sleep(5 * time.Millisecond) { // the flood goes on
		ready(t, r.admin)
		status, err := user.get()
		if status != 200 && status != 503 && status != 0 {
			t.Errorf("during the flood: got %d, %v, want 200, 503 or a refused connection", status, err)
		}
		statuses[status]++
	}
	close(stopped)
	attackers.Wait()
	peak, file := peakMemory(t, r)
	t.Logf("peak: %d MiB, %d of them the program's file; requests by status during the flood: %v",
		peak, file, statuses)
	// The limit is 90 % of the memory of a container, and does not count the
	// file of the program, which the kernel can drop.
	if most := limit * 10 / 9; peak-file > most {
		t.Errorf("memory with a limit of %d MiB: got %d MiB, want at most %d", limit, peak-file, most)
	}
	eventually(t, 30*time.Second, "requests are served after the flood", func() bool {
		status, _ := user.get()
		return status == 200
	})
	return r
}

// tlsUser is a user whose browser has HTTP/2.
type tlsUser struct {
	client  http.Client
	request *http.Request
}

func newTLSUser(t *testing.T, f *fleet, at *replica) *tlsUser {
	t.Helper()
	req, err := http.NewRequest("GET", "https://"+at.addr+"/bff/session", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = f.host
	req.Header.Set("X-CSRF", "1")
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &tlsUser{http.Client{Transport: transport, Timeout: 20 * time.Second}, req}
}

// get sends a request. The status is 0 if the connection is refused or closed.
func (u *tlsUser) get() (status int, err error) {
	resp, err := u.client.Do(u.request)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

// attackTogether opens connections with TLS. When all are open or refused, each
// sends data, and stays open until stopped is closed. The WaitGroup waits for
// the end.
func attackTogether(connections int, addr, protocol string, data []byte, stopped <-chan struct{}) *sync.WaitGroup {
	var attackers, dialed sync.WaitGroup
	dialed.Add(connections)
	for range connections {
		attackers.Go(func() { // until stopped is closed
			conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 20 * time.Second}, "tcp", addr,
				&tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}})
			dialed.Done()
			if err != nil {
				return
			}
			defer conn.Close()
			attackers.Go(func() { io.Copy(io.Discard, conn) }) // until conn is closed
			if protocol == "h2" {
				io.WriteString(conn, http2.ClientPreface)
				http2.NewFramer(conn, nil).WriteSettings()
			}
			dialed.Wait()
			conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
			if _, err := conn.Write(data); err == nil {
				<-stopped
			}
		})
	}
	dialed.Wait()
	return &attackers
}
