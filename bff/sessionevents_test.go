package bff_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// sessionEvent is an event of /bff/session/events.
type sessionEvent struct {
	name string
	data string
}

// eventStream is an open stream of session events.
type eventStream struct {
	t      *testing.T
	events <-chan sessionEvent
	lines  <-chan string // those without a name or data
	ended  <-chan error  // io.EOF: the response is complete
	close  func() error
}

// openEvents opens /bff/session/events with a query.
func openEvents(t *testing.T, b *bfftest.Browser, query string) *eventStream {
	t.Helper()
	resp := b.Open("/bff/session/events" + query)
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		resp.Body.Close()
		t.Fatalf("events: got %d %v, want an event stream", resp.StatusCode, resp.Header)
	}
	if got := resp.Header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("Cache-Control: got %q, want no-store", got)
	}
	return readEvents(t, resp)
}

func readEvents(t *testing.T, resp *http.Response) *eventStream {
	t.Cleanup(func() { resp.Body.Close() })
	events, lines, ended := make(chan sessionEvent, 100), make(chan string, 1000), make(chan error, 1)
	go func() { // until the stream ends
		r := bufio.NewReader(resp.Body)
		for name := ""; ; {
			line, err := r.ReadString('\n')
			if err != nil {
				ended <- err
				return
			}
			line = strings.TrimSuffix(line, "\n")
			if event, ok := strings.CutPrefix(line, "event: "); ok {
				name = event
			} else if data, ok := strings.CutPrefix(line, "data: "); ok {
				events <- sessionEvent{name, data}
			} else {
				lines <- line
			}
		}
	}()
	return &eventStream{t, events, lines, ended, resp.Body.Close}
}

// next returns the data of the next event, which has to have a name.
func (s *eventStream) next(name string) string {
	s.t.Helper()
	e := await(s.t, name, s.events)
	if e.name != name {
		s.t.Fatalf("got %s %s, want %s", e.name, e.data, name)
	}
	return e.data
}

// state returns the session in the data of the next event.
func (s *eventStream) state(name string) (body sessionBody) {
	s.t.Helper()
	if err := json.Unmarshal([]byte(s.next(name)), &body); err != nil {
		s.t.Fatal(err)
	}
	return body
}

// wantEnd waits for the end of the session and of the stream.
func (s *eventStream) wantEnd(reason string) {
	s.t.Helper()
	if got, want := s.next("session-ended"), fmt.Sprintf(`{"reason":%q}`, reason); got != want {
		s.t.Errorf("end: got %s, want %s", got, want)
	}
	s.wantComplete()
}

// wantComplete waits for the end of the stream.
func (s *eventStream) wantComplete() {
	s.t.Helper()
	if err := await(s.t, "the end of the stream", s.ended); err != io.EOF {
		s.t.Errorf("got %v, want a complete response", err)
	}
}

// wantNone fails if there is an event.
func (s *eventStream) wantNone() {
	s.t.Helper()
	select {
	case e := <-s.events:
		s.t.Errorf("got %s %s, want no event", e.name, e.data)
	default:
	}
}

// retry returns the latest time until the client should reconnect.
func (s *eventStream) retry() (ms int) {
	for {
		select {
		case line := <-s.lines:
			fmt.Sscanf(line, "retry: %d", &ms)
		default:
			return ms
		}
	}
}

// wantShown checks that an event has what /bff/session shows. The end of the
// idle time is as exact as a read of the store takes.
func wantShown(t *testing.T, b *bfftest.Browser, event, got string) {
	t.Helper()
	idle := regexp.MustCompile(`"idle_expires_at":"([^"]*)"`)
	end := func(text string) time.Time {
		m := idle.FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("%s: got %s, want idle_expires_at", event, text)
		}
		at, err := time.Parse(time.RFC3339, m[1])
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	shown := strings.TrimSpace(b.Fetch("GET", "/bff/session").Text)
	same := idle.ReplaceAllString(got, "") == idle.ReplaceAllString(shown, "")
	if !same || end(got).Sub(end(shown)).Abs() > time.Minute {
		t.Errorf("%s: got %s, want what /bff/session shows: %s", event, got, shown)
	}
}

func TestSessionEventsTellTheState(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	events := openEvents(t, b, "")
	first := events.next("session-changed")
	wantShown(t, b, "first event", first)
	if ms := events.retry(); ms < 1000 || ms > 5000 {
		t.Errorf("retry: got %d ms, want 1000 to 5000", ms)
	}
	wantOK(t, b.Fetch("POST", "/bff/session/refresh"))
	refreshed := events.next("session-refreshed")
	wantShown(t, b, "refresh", refreshed)
	b.Fetch("POST", "/bff/logout")
	events.wantEnd("logout")
	events.wantNone()
	resp := b.Open("/bff/session/events")
	defer resp.Body.Close()
	if resp.StatusCode != 401 {
		t.Errorf("after the logout: got %d, want 401", resp.StatusCode)
	}
}

func TestSessionEventsTellOfOtherReplicas(t *testing.T) {
	t.Parallel()
	var cfg bff.Config
	a := newApp(t, func(_ *app, c *bff.Config) {
		c.Sessions.IdleTimeout = 2 * time.Minute
		cfg = *c
	})
	other, at := replica(t, cfg)
	if err := other.WaitForProvider(t.Context()); err != nil {
		t.Fatal(err)
	}
	b := a.signedIn()
	host := strings.TrimPrefix(a.url, "http://")
	elsewhere := func(method, path string) *bfftest.Response {
		var cookies []string
		for _, c := range b.Cookies() {
			cookies = append(cookies, c.Name+"="+c.Value)
		}
		return a.browser().Fetch(method, at+path, "Host", host, "Cookie", strings.Join(cookies, "; "))
	}
	events := openEvents(t, b, "")
	before := events.state("session-changed")
	wantOK(t, elsewhere("POST", "/bff/session/refresh"))
	if got := events.state("session-refreshed"); got.User.Sub != "alice" {
		t.Errorf("refresh: got user %q, want alice", got.User.Sub)
	}
	time.Sleep(time.Until(before.Session.IdleExpiresAt.Add(-2*time.Minute + 3*time.Second)))
	wantOK(t, elsewhere("GET", "/api/x"))
	if got := events.state("session-changed"); !got.Session.IdleExpiresAt.After(before.Session.IdleExpiresAt) {
		t.Errorf("activity: got idle end %v, want one after %v", got.Session.IdleExpiresAt,
			before.Session.IdleExpiresAt)
	}
	wantStatus(t, "logout", elsewhere("POST", "/bff/logout"), 200)
	events.wantEnd("logout")
}

// An event stream neither counts as activity nor refreshes tokens.
func TestSessionEventsDoNotExtendTheSession(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, c *bff.Config) { c.Sessions.IdleTimeout = 4 * time.Second })
	b := a.signedIn()
	events := openEvents(t, b, "")
	first := events.state("session-changed")
	var expiring struct {
		SecondsLeft *int `json:"seconds_left"`
		Reason      string
	}
	if err := json.Unmarshal([]byte(events.next("session-expiring")), &expiring); err != nil {
		t.Fatal(err)
	}
	if left := expiring.SecondsLeft; left == nil || *left < 0 || *left > 2 { // half of the idle timeout
		t.Errorf("seconds left: got %v, want 0 to 2", left)
	}
	if expiring.Reason != "idle" {
		t.Errorf("reason: got %q, want idle", expiring.Reason)
	}
	openEvents(t, b, "?warn=1").wantEndWithin("idle")
	events.wantEnd("idle")
	if late := time.Since(first.Session.IdleExpiresAt); late < -time.Second || late > 10*time.Second {
		t.Errorf("got the end %v after the idle end", late)
	}
	if n := a.provider.Refreshes(); n != 0 {
		t.Errorf("got %d refreshes, want none", n)
	}
}

// wantEndWithin is wantEnd after other events.
func (s *eventStream) wantEndWithin(reason string) {
	s.t.Helper()
	for {
		e := await(s.t, "session-ended", s.events)
		if e.name == "session-ended" {
			if want := fmt.Sprintf(`{"reason":%q}`, reason); e.data != want {
				s.t.Errorf("end: got %s, want %s", e.data, want)
			}
			return
		}
	}
}

func TestActivityCancelsAndRepeatsTheWarning(t *testing.T) {
	t.Parallel()
	testenv.Slow(t)
	a := newApp(t, func(_ *app, c *bff.Config) { c.Sessions.IdleTimeout = 8 * time.Second })
	b := a.signedIn()
	events := openEvents(t, b, "?warn=3")
	first := events.state("session-changed")
	events.next("session-expiring")
	wantOK(t, b.Fetch("GET", "/api/x"))
	moved := events.state("session-changed")
	if !moved.Session.IdleExpiresAt.After(first.Session.IdleExpiresAt) {
		t.Errorf("got idle end %v, want one after %v", moved.Session.IdleExpiresAt, first.Session.IdleExpiresAt)
	}
	events.next("session-expiring")
	events.wantEnd("idle")
}

func TestSessionEventsWarnOfTheAbsoluteEnd(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, c *bff.Config) { c.Sessions.MaxLifetime = 6 * time.Second })
	events := openEvents(t, a.signedIn(), "")
	events.next("session-changed")
	if got := events.next("session-expiring"); !strings.Contains(got, `"reason":"lifetime"`) {
		t.Errorf("got %s, want the reason lifetime", got)
	}
	events.wantEnd("lifetime")
}

// requestEvents requests /bff/session/events with a query and headers, and does
// not read a stream.
func (a *app) requestEvents(b *bfftest.Browser, query string, header ...string) *bfftest.Response {
	t := a.t
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", a.url+"/bff/session/events"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	for _, c := range b.Cookies() {
		req.AddCookie(c)
	}
	resp, err := httpClient.Transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var text []byte
	if resp.StatusCode != 200 {
		text, _ = io.ReadAll(resp.Body)
	}
	return &bfftest.Response{Response: resp, Text: string(text)}
}

func TestSessionEventsNeedProofOfOrigin(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	for name, header := range map[string][]string{
		"no proof":                  {},
		"another site":              {"Sec-Fetch-Site", "cross-site"},
		"a neighbour":               {"Sec-Fetch-Site", "same-site"},
		"another site, with X-CSRF": {"Sec-Fetch-Site", "cross-site", "X-CSRF", "1"},
		"another Origin":            {"Sec-Fetch-Site", "same-origin", "Origin", "https://evil.example"},
		"X-CSRF of another value":   {"X-CSRF", "0"},
	} {
		t.Run(name, func(t *testing.T) {
			wantProblem(t, a.requestEvents(b, "", header...), 403, "csrf")
		})
	}
	wantProblem(t, a.browser().Fetch("GET", "/bff/session/events"), 401, "not_signed_in")
	wantProblem(t, b.Fetch("POST", "/bff/session/events"), 405, "method_not_allowed")
	for _, query := range []string{"warn=0", "warn=3601", "warn=x", "warn=", "warn=-1", "warn=1&warn=2", "warn=%zz"} {
		wantProblem(t, a.requestEvents(b, "?"+query, "X-CSRF", "1"), 400, "bad_parameter")
	}
	resp := b.Do("HEAD", "/bff/session/events", "", "X-CSRF", "1")
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Errorf("HEAD: got %d %v, want 200", resp.StatusCode, resp.Header)
	}
	if got := a.browser().Do("HEAD", "/bff/session/events", "", "X-CSRF", "1").StatusCode; got != 401 {
		t.Errorf("HEAD without a session: got %d, want 401", got)
	}
}

func TestSessionEventStreamsAreLimited(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	var all []*eventStream
	for range 100 {
		all = append(all, openEvents(t, b, ""))
	}
	refused := a.requestEvents(b, "", "X-CSRF", "1")
	wantProblem(t, refused, 429, "too_many_streams")
	if refused.Header.Get("Retry-After") == "" {
		t.Error("the refusal has no Retry-After")
	}
	openEvents(t, a.signedIn(), "").next("session-changed") // another session
	all[0].close()
	waitFor(t, "a closed stream makes room", func() bool {
		resp := b.Open("/bff/session/events")
		defer resp.Body.Close()
		return resp.StatusCode == 200
	})
	b.Fetch("POST", "/bff/logout")
	for _, s := range all[1:] {
		s.next("session-changed")
		s.wantEnd("logout")
	}
}

// Two tabs sign out at once.
func TestConcurrentLogoutsEndStreamsOnce(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	tabs := []*eventStream{openEvents(t, b, ""), openEvents(t, b, "")}
	var both sync.WaitGroup
	for range tabs {
		both.Go(func() { wantStatus(t, "logout", b.Fetch("POST", "/bff/logout"), 200) })
	}
	both.Wait()
	for _, s := range tabs {
		s.next("session-changed")
		s.wantEnd("logout")
		s.wantNone()
	}
	if n := len(a.logs.lines(t, "session ended")); n != 1 {
		t.Errorf("got %d events session.ended, want 1", n)
	}
}

func TestSessionEventsInStoreOutage(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, c *bff.Config) { c.Sessions.CacheMaxAge = time.Millisecond })
	b := a.signedIn()
	events := openEvents(t, b, "")
	events.next("session-changed")
	a.store.setDown(errors.New("connection refused"))
	waitFor(t, "a new stream gets 503", func() bool { // once the session is not cached any more
		resp := b.Open("/bff/session/events")
		defer resp.Body.Close()
		return resp.StatusCode == 503
	})
	time.Sleep(300 * time.Millisecond) // several rounds of the watch
	events.wantNone()
	select {
	case err := <-events.ended:
		t.Fatalf("the stream ended in the outage: %v", err)
	default:
	}
	a.store.setDown(nil)
	b.Fetch("POST", "/bff/logout")
	events.wantEnd("logout")
}

func TestSessionEventStreamsEndAtReloadAndShutdown(t *testing.T) {
	t.Parallel()
	var cfg bff.Config
	a := newApp(t, func(_ *app, c *bff.Config) { cfg = *c })
	b := a.signedIn()
	old := openEvents(t, b, "")
	old.next("session-changed")
	if err := reload(t, a.server, cfg); err != nil {
		t.Fatal(err)
	}
	old.wantComplete()
	old.wantNone() // the session has not ended
	if ms := old.retry(); ms < 1000 {
		t.Errorf("retry: got %d ms, want at least 1000", ms)
	}
	young := openEvents(t, b, "")
	young.next("session-changed")
	a.stop()
	young.wantComplete()
	young.wantNone()
}

// The stream is written by net/http if its connection cannot be taken over.
func TestSessionEventsInEveryProtocol(t *testing.T) {
	t.Parallel()
	f := newProtocolServer(t, nil)
	var streams []*eventStream
	for _, w := range f.eachBrowser() {
		req := w.request(t, "GET", "x", nil)
		req.URL.Path = "/bff/session/events"
		resp := w.do(t, req)
		if resp.StatusCode != 200 || resp.ProtoMajor != w.browser {
			t.Fatalf("%s: got %d in %s", w.name, resp.StatusCode, resp.Proto)
		}
		streams = append(streams, readEvents(t, resp))
	}
	body := strings.NewReader("x") // a GET with a body
	req := f.pairs[0].request(t, "GET", "x", body)
	req.URL.Path = "/bff/session/events"
	streams = append(streams, readEvents(t, f.pairs[0].do(t, req)))
	for _, s := range streams {
		s.next("session-changed")
	}
	f.browser.Fetch("POST", "/bff/logout")
	for _, s := range streams {
		s.wantEnd("logout")
	}
}

// Heartbeats also show that a stream goes on while nothing happens. In HTTP/2 a
// write deadline that passes resets the stream.
func TestSessionEventStreamSendsHeartbeats(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	f := newProtocolServer(t, nil)
	var streams []*eventStream
	pairs := f.eachBrowser()
	for _, w := range pairs {
		req := w.request(t, "GET", "x", nil)
		req.URL.Path = "/bff/session/events"
		streams = append(streams, readEvents(t, w.do(t, req.WithContext(t.Context()))))
	}
	deadline := time.After(time.Minute)
	for i, events := range streams {
		name := pairs[i].name
		events.next("session-changed")
		events.retry()
		for line := ""; line != ":"; {
			select {
			case line = <-events.lines:
			case err := <-events.ended:
				t.Fatalf("%s: the stream ended (%v) before a comment", name, err)
			case <-deadline:
				t.Fatalf("%s: got no comment within a minute", name)
			}
		}
	}
}

func TestSessionEventsContainNoToken(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	b := a.signedIn()
	events := openEvents(t, b, "")
	all := events.next("session-changed")
	wantOK(t, b.Fetch("POST", "/bff/session/refresh"))
	all += events.next("session-refreshed")
	a.provider.CheckLeaks(t, "the events", all)
}
