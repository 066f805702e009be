package main

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
)

// auditEvents returns the events in an audit log.
func auditEvents(t *testing.T, file string) (events []bff.Event) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		return nil // not there yet
	}
	for line := range strings.Lines(string(text)) {
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

// TestFullAuditLogIsReportedOnce writes to a disk that is full.
func TestFullAuditLogIsReportedOnce(t *testing.T) {
	t.Parallel()
	r := startReloadable(t, "log: {audit: /dev/full}\n")
	for range 3 {
		signIn(t, bfftest.NewBrowser(t, r.app), "")
	}
	const line = "audit log not written; events are missing in it"
	eventually(t, 20*time.Second, "the log has an error", func() bool {
		return strings.Contains(r.stderr.String(), line)
	})
	if got := strings.Count(r.stderr.String(), line); got != 1 {
		t.Errorf("got %d errors, want 1", got)
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
