package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/redistest"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// openEvents opens a stream of session events at a replica. Each event arrives
// as its name and data. The channel is closed at the end of a complete
// response.
func (f *fleet) openEvents(t *testing.T, at *replica, u *userSession) <-chan string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+at.addr+"/bff/session/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = f.host
	req.Header = http.Header{"Cookie": {u.cookies}, "Accept": {"text/event-stream"}, "Sec-Fetch-Site": {"same-origin"}}
	resp, err := f.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 200 {
		resp.Body.Close()
		t.Fatalf("events: got %d, want 200", resp.StatusCode)
	}
	events := make(chan string, 1000)
	go func() { // until the stream ends, at the latest with the test
		defer resp.Body.Close()
		name := ""
		for r := bufio.NewReader(resp.Body); ; {
			line, err := r.ReadString('\n')
			if err == io.EOF {
				close(events)
				return
			}
			if err != nil {
				events <- err.Error()
				return
			}
			if event, ok := strings.CutPrefix(line, "event: "); ok {
				name = strings.TrimSpace(event)
			} else if data, ok := strings.CutPrefix(line, "data: "); ok {
				events <- name + " " + strings.TrimSpace(data)
			}
		}
	}()
	return events
}

// wantEvent waits for an event that begins with want; empty means the end.
func wantEvent(t *testing.T, events <-chan string, want string) {
	t.Helper()
	select {
	case got, open := <-events:
		if open != (want != "") || !strings.HasPrefix(got, want) {
			t.Fatalf("got %q, want %q", got, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("got nothing in 20 s, want %q", want)
	}
}

func TestSessionEventsCrossReplicas(t *testing.T) {
	t.Parallel()
	testenv.Slow(t)
	redis := redistest.Start(t)
	f := startFleet(t, nil, redis.URL(), redis.URL())
	here, there := f.replicas[0], f.replicas[1]
	laptop, phone := f.signIn(t, "alice", devidp.Hooks{}), f.signIn(t, "alice", devidp.Hooks{})
	events := f.openEvents(t, here, laptop)
	wantEvent(t, events, `session-changed {"authenticated":true,`)
	if got := f.call(there, laptop, "POST", "/bff/session/refresh"); got.status != 200 {
		t.Fatalf("refresh: got %v", got)
	}
	wantEvent(t, events, `session-refreshed {"authenticated":true,`)

	redis.Freeze()
	deadline := time.Now().Add(20 * time.Second)
	for f.call(here, laptop, "GET", "/bff/session").status != 503 {
		if time.Now().After(deadline) {
			t.Fatal("no 503 within 20 s, want an outage of the store")
		}
	}
	if got := f.call(here, laptop, "GET", "/bff/session/events"); got.status != 503 {
		t.Errorf("a new stream in the outage: got %v, want 503", got)
	}
	redis.Thaw()
	for f.call(there, phone, "GET", "/bff/session").status != 200 {
		if time.Now().After(deadline) {
			t.Fatal("no 200 within 20 s, want the end of the outage")
		}
	}

	if got := f.call(there, phone, "GET", "/bff/sessions"); strings.Count(got.text, `"id"`) != 2 ||
		!strings.Contains(got.text, laptop.id) {
		t.Errorf("list: got %v %s, want two sessions", got, got.text)
	}
	for _, id := range []string{laptop.id, phone.id} {
		if ttl := redis.Do("TTL", "cloakroom:info:"+id); !strings.HasPrefix(ttl, ":1") {
			t.Errorf("time to live of the info: got %q", ttl)
		}
	}
	if got := f.call(there, phone, "DELETE", "/bff/sessions/"+laptop.id); got.status != 204 {
		t.Errorf("end: got %v, want 204", got)
	}
	wantEvent(t, events, `session-ended {"reason":"revoked"}`)
	wantEvent(t, events, "")
	f.wantEnded(t, laptop)
	f.wantActive(t, phone)
	if n := redis.Do("EXISTS", "cloakroom:info:"+laptop.id); n != ":0" {
		t.Errorf("info of an ended session: got EXISTS %q, want :0", n)
	}
}

// The clients read the first event of their streams and nothing more.
func TestSessionStreamsCostLittle(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	redis := redistest.Start(t)
	f := startFleet(t, map[string]string{"SERVER_LIMITS_CONNECTIONS": "5000"}, redis.URL())
	at := f.replicas[0]
	const sessions, perSession = 20, 100
	const streams = sessions * perSession
	var users []*userSession
	for range sessions {
		users = append(users, f.signIn(t, "alice", devidp.Hooks{}))
	}
	before := residentBytes(t, at)
	for _, u := range users {
		for range perSession {
			f.openIdleEvents(t, at, u)
		}
		if got := f.call(at, u, "GET", "/bff/session/events"); got.status != 429 || got.code != "too_many_streams" {
			t.Errorf("beyond the limit: got %v, want 429 too_many_streams", got)
		}
	}
	limit := 64 << 10
	if build, ok := debug.ReadBuildInfo(); ok && slices.Contains(build.Settings,
		debug.BuildSetting{Key: "-race", Value: "true"}) {
		limit *= 8 // the race detector's own memory
	}
	each := (residentBytes(t, at) - before) / streams
	t.Logf("%d streams of %d sessions take %d bytes each", streams, sessions, each)
	if each > limit {
		t.Errorf("a stream takes %d bytes, want at most %d", each, limit)
	}
	for range 5 {
		for _, u := range users {
			if got := f.call(at, u, "POST", "/bff/session/refresh"); got.status != 200 {
				t.Errorf("refresh: got %v", got)
			}
		}
	}
	after := (residentBytes(t, at) - before) / streams
	t.Logf("after five refreshes that no client has read: %d bytes each", after)
	if after > limit {
		t.Errorf("a stream takes %d bytes after events that are not read, want at most %d", after, limit)
	}
	if got := f.call(at, users[0], "GET", "/api/x"); got.status != 200 {
		t.Errorf("an API call beside the streams: got %v, want 200", got)
	}
}

// openIdleEvents opens a stream of session events on a connection of its own,
// and reads the beginning of its response.
func (f *fleet) openIdleEvents(t *testing.T, at *replica, u *userSession) {
	t.Helper()
	conn, err := net.Dial("tcp", at.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	fmt.Fprintf(conn, "GET /bff/session/events HTTP/1.1\r\nHost: %s\r\nX-CSRF: 1\r\nCookie: %s\r\n\r\n",
		f.host, u.cookies)
	conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	begin := make([]byte, 15)
	if _, err := io.ReadFull(conn, begin); err != nil || string(begin) != "HTTP/1.1 200 OK" {
		t.Fatalf("events: got %q, %v, want 200", begin, err)
	}
}

// residentBytes returns how much memory the process of a replica uses.
func residentBytes(t *testing.T, at *replica) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", at.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, size, _ := strings.Cut(string(text), "VmRSS:")
	var kilobytes int
	if _, err := fmt.Sscan(size, &kilobytes); err != nil {
		t.Fatal(err)
	}
	return kilobytes << 10
}
