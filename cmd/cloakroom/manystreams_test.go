package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/redistest"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

func TestManyEventStreamsReconnectWithoutABurst(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	openManyStreams(t, 100)
}

// openManyStreams opens ten streams of session events for each of many users,
// and reloads the replica and shuts it down meanwhile. It fails if a stream
// needs much memory, is not told of an end, or if many reconnect at once.
func openManyStreams(t *testing.T, users int) {
	t.Helper()
	const perUser = 10
	redis := redistest.Start(t)
	f := newFleet(t, nil)
	f.startReplicas(map[string]string{
		"PROGRAM": buildBroker(t), "SERVER_LIMITS_CONNECTIONS": strconv.Itoa(2*perUser*users + 100),
	}, redis.URL())
	at := f.replicas[0]
	var streams []*manyStream
	for range users {
		user := f.signIn(t, "alice", devidp.Hooks{})
		for range perUser {
			streams = append(streams, &manyStream{host: f.host, at: at, user: user})
		}
	}
	before, begun := residentBytes(t, at), time.Now()
	openAll(t, streams)
	each := (residentBytes(t, at) - before) / len(streams)
	t.Logf("%d streams of %d users were opened in %v and need %d KiB each", len(streams), users,
		time.Since(begun), each>>10)
	if each > 64<<10 {
		t.Errorf("memory of a stream: got %d bytes, want at most %d", each, 64<<10)
	}

	resp, err := http.Post("http://"+at.admin+"/admin/reload", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Fatalf("reload: got %d, want 200", resp.StatusCode)
	}
	wantNoBurst(t, "reload", streams)
	var reconnects sync.WaitGroup
	for _, s := range streams {
		reconnects.Go(func() { // until the stream is open
			time.Sleep(s.retry)
			s.open()
		})
	}
	reconnects.Wait()
	wantOpen(t, streams)

	at.terminate()
	wantNoBurst(t, "shutdown", streams)
	at.stop(t)
}

// wantNoBurst waits until all streams have ended. It asserts that each is
// complete and has told its client when to reconnect, about 500 in a second.
func wantNoBurst(t *testing.T, cause string, streams []*manyStream) {
	t.Helper()
	begun := time.Now()
	perSecond := make(map[int]int)
	for _, s := range streams {
		select {
		case err := <-s.ended:
			if err != nil {
				t.Fatalf("%s: the end of a stream: got %v, want a complete response", cause, err)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s: a stream is open after a minute", cause)
		}
		perSecond[int(s.retry/time.Second)]++
		if s.retry < time.Second {
			t.Fatalf("%s: time until the reconnect: got %v, want at least 1s", cause, s.retry)
		}
	}
	t.Logf("%s: the streams ended within %v; reconnects by second: %v", cause, time.Since(begun), perSecond)
	most := max(600, len(streams)/4+len(streams)/10) // up to 2000 streams, in 4 seconds
	for second, n := range perSecond {
		if n > most {
			t.Errorf("%s: reconnects in second %d: got %d, want at most %d", cause, second, n, most)
		}
	}
}

// openAll opens streams, 50 at a time.
func openAll(t *testing.T, streams []*manyStream) {
	t.Helper()
	var opening sync.WaitGroup
	for part := range slices.Chunk(streams, max(1, len(streams)/50)) {
		opening.Go(func() { // until they are open
			for _, s := range part {
				s.open()
			}
		})
	}
	opening.Wait()
	wantOpen(t, streams)
}

func wantOpen(t *testing.T, streams []*manyStream) {
	t.Helper()
	failed := 0
	for _, s := range streams {
		t.Cleanup(s.close)
		if s.err != nil {
			failed++
			if failed == 1 {
				t.Errorf("open: %v", s.err)
			}
		}
	}
	if failed > 0 {
		t.Fatalf("%d of %d streams were not opened", failed, len(streams))
	}
}

// manyStream is a stream of session events on a connection of its own.
type manyStream struct {
	host string
	at   *replica
	user *userSession

	conn  net.Conn
	err   error // of open
	ended chan error
	retry time.Duration // that the stream told last; valid when it has ended
}

// open opens the stream and waits for its first event.
func (s *manyStream) open() {
	s.err = func() (err error) {
		if s.conn, err = net.Dial("tcp", s.at.addr); err != nil {
			return err
		}
		fmt.Fprintf(s.conn, "GET /bff/session/events HTTP/1.1\r\nHost: %s\r\nX-CSRF: 1\r\nCookie: %s\r\n\r\n",
			s.host, s.user.cookies)
		s.conn.SetReadDeadline(time.Now().Add(time.Minute))
		resp, err := http.ReadResponse(bufio.NewReader(s.conn), nil)
		if err != nil {
			return err
		}
		if resp.StatusCode != 200 {
			return fmt.Errorf("got %d, want 200", resp.StatusCode)
		}
		r := bufio.NewReader(resp.Body)
		for line := ""; line != "event: session-changed\n"; {
			if line, err = r.ReadString('\n'); err != nil {
				return err
			}
		}
		s.conn.SetReadDeadline(time.Time{})
		s.ended = make(chan error, 1)
		go s.read(r) // until the stream ends, or close
		return nil
	}()
}

// read reads the stream to its end. A complete one ends without an error.
func (s *manyStream) read(r *bufio.Reader) {
	for {
		line, err := r.ReadString('\n')
		if ms, ok := strings.CutPrefix(line, "retry: "); ok {
			n, _ := strconv.Atoi(strings.TrimSpace(ms))
			s.retry = time.Duration(n) * time.Millisecond
		}
		if err == io.EOF {
			err = nil
		} else if err == nil {
			continue
		}
		s.conn.Close()
		s.ended <- err
		return
	}
}

func (s *manyStream) close() {
	if s.conn != nil {
		s.conn.Close()
	}
}
