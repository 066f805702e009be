package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
)

// auditEvents returns the events in an audit log, without a line that is being
// written.
func auditEvents(t *testing.T, file string) (events []bff.Event) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		return nil // not there yet
	}
	for line := range strings.Lines(string(text)) {
		if !strings.HasSuffix(line, "\n") {
			break
		}
		var e bff.Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		events = append(events, e)
	}
	return events
}

// waitForEvent waits until an audit log has an event, and returns it.
func waitForEvent(t *testing.T, file string, kind bff.EventKind) (found bff.Event) {
	t.Helper()
	eventually(t, 20*time.Second, string(kind)+" is in "+filepath.Base(file), func() bool {
		for _, e := range auditEvents(t, file) {
			if e.Kind == kind {
				found = e
				return true
			}
		}
		return false
	})
	return found
}

func TestAuditLogHasEventsAndIsRotated(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file, rotated := filepath.Join(dir, "audit.json"), filepath.Join(dir, "audit.1.json")
	r := startReloadable(t, "log: {audit: "+file+"}\n")
	b := bfftest.NewBrowser(t, r.app)
	signIn(t, b, "")
	started := waitForEvent(t, file, "session.started")
	if started.Session == "" || started.User == "" || started.Request == "" || started.App == "" {
		t.Errorf("got %+v, want session, user, request and app", started)
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o600 {
		t.Errorf("mode: got %o, want 600", got)
	}
	if err := os.Rename(file, rotated); err != nil {
		t.Fatal(err)
	}
	if _, stderr, err := r.command("reload"); err != nil {
		t.Fatalf("%v: %s", err, stderr)
	}
	b.Fetch("POST", "/bff/logout")
	ended := waitForEvent(t, file, "session.ended")
	if ended.Session != started.Session {
		t.Errorf("session: got %q, want %q", ended.Session, started.Session)
	}
	if ended.Reason != "logout" {
		t.Errorf("reason: got %q, want logout", ended.Reason)
	}
	for _, e := range auditEvents(t, rotated) {
		if e.Kind == "session.ended" {
			t.Error("the end was written to the file that was moved away")
		}
	}
}

// TestUnusableAuditLogIsAMistake reloads with a file in a folder that is not
// there. The audit log before stays in use.
func TestUnusableAuditLogIsAMistake(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "audit.json")
	r := startReloadable(t, "log: {audit: "+file+"}\n")
	r.write("cloakroom.yaml", r.base+"log: {audit: /nowhere/audit.json}\n")
	_, stderr, err := r.command("reload")
	if err == nil {
		t.Fatal("the reload succeeded, want a mistake")
	}
	if !strings.Contains(stderr, "log.audit: ") {
		t.Errorf("got %q, want it to name log.audit", stderr)
	}
	signIn(t, bfftest.NewBrowser(t, r.app), "")
	waitForEvent(t, file, "session.started")
}

// TestAuditLogIsARegularFile starts and reloads with files to which events
// cannot be appended. To open a pipe without a reader never returns.
func TestAuditLogIsARegularFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pipe, link, socket := filepath.Join(dir, "pipe"), filepath.Join(dir, "link"), filepath.Join(dir, "socket")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(pipe, link); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file := filepath.Join(dir, "audit.json")
	r := startReloadable(t, "log: {audit: "+file+"}\n")
	for name, want := range map[string]string{
		pipe: "it is a pipe: name a regular file, or stdout", link: "it is a pipe", dir: "it is a folder",
		socket: "it is a socket", "/dev/null": "it is a device", file + "/audit.json": "not a directory",
	} {
		r.write("cloakroom.yaml", r.base+"log: {audit: "+name+"}\n")
		_, stderr, err := r.command("reload")
		if err == nil {
			t.Errorf("%s: the reload succeeded, want a mistake", name)
		}
		if !strings.Contains(stderr, "log.audit: ") || !strings.Contains(stderr, want) {
			t.Errorf("%s: reload: got %q, want log.audit: and %q", name, stderr, want)
		}
		if out, _, err := r.command("check", "--offline"); err == nil || !strings.Contains(out, "log.audit") {
			t.Errorf("%s: check: got %v and %q, want it to name log.audit", name, err, out)
		}
	}
	r.write("cloakroom.yaml", r.base+"log: {audit: "+pipe+"}\n")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var stderr bytes.Buffer
	err = run(ctx, []string{"serve", "--config", r.file()}, func(string) string { return "" },
		strings.NewReader(""), io.Discard, &stderr)
	if ctx.Err() != nil || exitCode(err) != 2 {
		t.Errorf("start: got %v, exit code %d, want 2", err, exitCode(err))
	}
	if got := stderr.String(); !strings.Contains(got, "log.audit: ") {
		t.Errorf("start: got %q, want it to name log.audit", got)
	}
	signIn(t, bfftest.NewBrowser(t, r.app), "")
	waitForEvent(t, file, "session.started")
}

// TestFullAuditLogIsReportedOnce writes to a disk that is full.
func TestFullAuditLogIsReportedOnce(t *testing.T) {
	t.Parallel()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	a := newAuditLog(io.Discard, slog.New(slog.NewTextHandler(&log, nil)))
	a.use(full)
	for range 3 {
		if _, err := a.Write([]byte("{}\n")); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("got %v, want %v", err, syscall.ENOSPC)
		}
	}
	a.close()
	const line = "audit log not written; events are missing in it"
	if got := strings.Count(log.String(), line); got != 1 {
		t.Errorf("got %d errors, want 1:\n%s", got, log.String())
	}
}

// TestFullDiskSpoilsNoLaterEvent writes a part of an event to a disk that is
// full, and frees space then.
func TestFullDiskSpoilsNoLaterEvent(t *testing.T) {
	t.Parallel()
	var log lockedBuffer
	disk := &fullDisk{space: 15}
	a := newAuditLog(io.Discard, slog.New(slog.NewTextHandler(&log, nil)))
	a.use(disk)
	a.observe(t.Context(), bff.Event{Kind: bff.CSRFRefused})
	eventually(t, 10*time.Second, "an event is lost", func() bool {
		return strings.Contains(log.String(), "audit log not written")
	})
	disk.free(1 << 20)
	a.observe(t.Context(), bff.Event{Kind: bff.AdminRefused})
	a.close()
	lines := strings.Split(strings.TrimSpace(disk.text.String()), "\n")
	if len(lines) != 2 || len(lines[0]) != 15 || !strings.HasPrefix(lines[1], `{"event":"admin.refused"`) {
		t.Errorf("got %q, want a part of an event, and the next event", lines)
	}
	if want := `msg="events missing in the audit log" count=1`; !strings.Contains(log.String(), want) {
		t.Errorf("the log lacks %q:\n%s", want, log.String())
	}
}

// TestUnreadAuditLogBlocksNoRequest writes to a pipe that is not read.
func TestUnreadAuditLogBlocksNoRequest(t *testing.T) {
	t.Parallel()
	_, unread := io.Pipe()
	a := newAuditLog(unread, slog.New(slog.DiscardHandler))
	a.use(unread)
	done := make(chan struct{})
	go func() { // ends with the last call below
		defer close(done)
		for range 10_000 {
			a.observe(t.Context(), bff.Event{Kind: bff.CSRFRefused})
		}
		a.close()
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("events wait for the reader of the audit log")
	}
}

// replacedFile is a file that is replaced and closed before a write.
type replacedFile struct{ replace func() }

func (f *replacedFile) Write([]byte) (int, error) {
	f.replace()
	return 0, os.ErrClosed
}

// TestReloadDuringAWriteLosesNoEvent replaces the file after a write to it was
// decided, and before it begins.
func TestReloadDuringAWriteLosesNoEvent(t *testing.T) {
	t.Parallel()
	var next bytes.Buffer
	a := newAuditLog(io.Discard, slog.New(slog.DiscardHandler))
	a.use(&replacedFile{func() { a.use(&next) }})
	a.observe(t.Context(), bff.Event{Kind: bff.CSRFRefused})
	a.close()
	if got := strings.Count(next.String(), `"event":"csrf.refused"`); got != 1 {
		t.Errorf("events in the next file: got %d, want 1: %q", got, next.String())
	}
}

func TestAuditLogOnStandardOutput(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	a := newAuditLog(&out, slog.New(slog.DiscardHandler))
	to, err := a.open("stdout")
	if err != nil {
		t.Fatal(err)
	}
	a.use(to)
	a.observe(t.Context(), bff.Event{Kind: bff.CSRFRefused})
	a.close()
	if got := out.String(); !strings.Contains(got, `"event":"csrf.refused"`) {
		t.Errorf("got %q, want csrf.refused", got)
	}
}
