package main

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func jsonLines(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, nil) }

// A slow reader loses lines, and a log line has their number.
func TestLogLinesThatDoNotFitAreDroppedAndCounted(t *testing.T) {
	t.Parallel()
	reader, writer := io.Pipe()
	log, stop := newLogger(writer, jsonLines)
	const lines = 3 * logBuffer / 1000
	counted := droppedLines.Load()
	text := strings.Repeat("x", 1000)
	for i := range lines { // without a reader
		log.Info("line", "n", i, "text", text)
	}
	var read bytes.Buffer
	done := make(chan struct{})
	go func() {
		io.Copy(&read, reader)
		close(done)
	}()
	log.Info("the last")
	stop()
	writer.Close()
	<-done
	reports := regexp.MustCompile(`"msg":"log lines dropped","count":(\d+)`).FindAllStringSubmatch(read.String(), -1)
	if len(reports) == 0 {
		t.Fatalf("got no line with the number of dropped lines: %.300s", read.String())
	}
	var dropped, before int
	for _, report := range reports { // two if the first write began late
		var n int
		fmt.Sscan(report[1], &n)
		dropped += n
	}
	if got := droppedLines.Load() - counted; got < uint64(dropped) { // other tests drop lines too
		t.Errorf("lines in the metric: got %d, want at least %d", got, dropped)
	}
	got := regexp.MustCompile(`"msg":"line","n":(\d+),`).FindAllStringSubmatch(read.String(), -1)
	for i, line := range got {
		var n int
		fmt.Sscan(line[1], &n)
		if i > 0 && n <= before {
			t.Fatalf("got line %d after line %d", n, before)
		}
		before = n
	}
	last := strings.Count(read.String(), "the last")
	if len(got)+last+dropped != lines+1 {
		t.Errorf("lines written and dropped: got %d and %d, want %d together", len(got)+last, dropped, lines+1)
	}
	if len(got) < 1000 {
		t.Errorf("lines written: got %d, want at least 1000", len(got))
	}
}

// fullDisk is a file that takes a number of bytes only.
type fullDisk struct {
	mu    sync.Mutex // guards all below
	space int
	text  bytes.Buffer
}

func (d *fullDisk) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := min(len(p), d.space)
	d.space -= n
	d.text.Write(p[:n])
	if n < len(p) {
		return n, syscall.ENOSPC
	}
	return n, nil
}

func (d *fullDisk) free(space int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.space = space
}

// Lines that cannot be written are counted, and do not damage those after them.
func TestLogLinesThatCannotBeWrittenAreCounted(t *testing.T) {
	t.Parallel()
	disk := &fullDisk{space: 15}
	log, stop := newLogger(disk, jsonLines)
	counted := droppedLines.Load()
	log.Info("first")
	eventually(t, 10*time.Second, "a line is lost", func() bool { return droppedLines.Load() > counted })
	disk.free(1 << 20)
	log.Info("second")
	stop()
	lines := strings.Split(strings.TrimSpace(disk.text.String()), "\n")
	if len(lines) != 3 || len(lines[0]) != 15 || !strings.Contains(lines[1], `"msg":"second"}`) ||
		!strings.Contains(lines[2], `"msg":"log lines dropped","count":1}`) {
		t.Errorf("got %q, want the part of a line, the second line, and that one was dropped", lines)
	}
}

func TestStopWritesTheBufferedLog(t *testing.T) {
	t.Parallel()
	var out lockedBuffer
	log, stop := newLogger(&out, jsonLines)
	for i := range 1000 {
		log.Info("line", "n", i)
	}
	stop()
	if got := strings.Count(out.String(), "\n"); got != 1000 {
		t.Errorf("got %d lines, want 1000", got)
	}
	if !strings.Contains(out.String(), `"n":999}`) {
		t.Error("the last line is missing")
	}
	log.Info("after stop") // does not panic
}

// Requests do not depend on the log: nothing may read it, or its reader may
// have closed it.
func TestRequestsDoNotWaitForTheLog(t *testing.T) {
	t.Parallel()
	public := freeAddr(t)
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	cmd := brokerCommand(t, "serve")
	cmd.Stderr = writer
	cmd.Env = append(cmd.Env,
		"CLOAKROOM_SERVER_LISTEN="+public, "CLOAKROOM_SERVER_ADMIN_LISTEN=127.0.0.1:0",
		"CLOAKROOM_SERVER_PUBLIC_URL=http://"+public,
		"CLOAKROOM_OIDC_ISSUER=https://127.0.0.1:1", "CLOAKROOM_OIDC_CLIENT_ID=spa", "CLOAKROOM_OIDC_CLIENT_SECRET=s",
	)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	writer.Close()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // ends with the process
	defer cmd.Process.Kill()
	client := &http.Client{Timeout: 20 * time.Second}
	get := func() error {
		resp, err := client.Get("http://" + public + "/" + strings.Repeat("long/", 100))
		if err == nil {
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		return err
	}
	eventually(t, 20*time.Second, "the broker listens", func() bool { return get() == nil })
	for i := range 1000 { // several times the capacity of a pipe
		if err := get(); err != nil {
			t.Fatalf("request %d without a reader of the log: %v", i, err)
		}
	}
	reader.Close()
	for i := range 100 {
		if err := get(); err != nil {
			t.Fatalf("request %d with the log closed: %v", i, err)
		}
	}
	cmd.Process.Signal(os.Interrupt)
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("broker ended with %v, want status 0", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the broker did not end within 20 s of the interrupt")
	}
}

func BenchmarkLogWriter(b *testing.B) {
	log, stop := newLogger(io.Discard, jsonLines)
	defer stop()
	for b.Loop() {
		log.Info("request", "request", "0123456789abcdef", "client", "203.0.113.7",
			"method", "GET", "path", "/api/orders", "status", 200)
	}
}
