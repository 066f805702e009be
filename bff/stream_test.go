package bff_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

func TestAnEventArrivesBeforeTheNextIsSent(t *testing.T) {
	eachWay(t, func(t *testing.T, w *way) {
		arrived := make(chan struct{})
		w.answers(func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
			fmt.Fprintf(rw, "retry: 10\ndata: after %s\n\n", r.Header.Get("Last-Event-ID"))
			flush(rw)
			for i := range 3 {
				select {
				case <-arrived:
				case <-r.Context().Done():
					return
				}
				fmt.Fprintf(rw, "id: %d\ndata:\n\n", i)
				flush(rw)
			}
		})
		resp := w.do(t, w.request(t, "GET", "x", nil, "Accept", "text/event-stream", "Last-Event-ID", "41"))
		if got := resp.Header.Get("Content-Type"); got != "text/event-stream; charset=utf-8" {
			t.Errorf("Content-Type is %q", got)
		}
		wantBytes(t, "the first event", resp.Body, "retry: 10\ndata: after 41\n\n")
		for i := range 3 {
			arrived <- struct{}{}
			wantBytes(t, "an event", resp.Body, fmt.Sprintf("id: %d\ndata:\n\n", i))
		}
		wantEnd(t, "the stream", resp.Body)
	})
}

func TestChunksPassBothWaysAtOnce(t *testing.T) {
	eachWay(t, func(t *testing.T, w *way) {
		w.answers(func(rw http.ResponseWriter, r *http.Request) {
			bothWays(rw)
			for buf := make([]byte, 64<<10); ; {
				n, err := r.Body.Read(buf)
				rw.Write(buf[:n])
				flush(rw)
				if err != nil {
					return
				}
			}
		})
		body, client := io.Pipe()
		defer client.Close()
		resp := w.do(t, w.request(t, "POST", "x", body)) // the answer begins before there is any of the body
		for i := range 10 {
			chunk := strings.Repeat(strconv.Itoa(i), 1<<(2*i)/10+1)
			go io.WriteString(client, chunk)
			wantBytes(t, "the echo", resp.Body, chunk)
		}
		client.Close()
		wantEnd(t, "the answer", resp.Body)
	})
}

// RFC 10036: what is incremental is handed on as it comes. So is all else.
func TestNoByteIsHeldBack(t *testing.T) {
	eachWay(t, func(t *testing.T, w *way) {
		const text = "byte by byte"
		seen := make(chan byte, len(text))
		next := make(chan struct{})
		defer close(next)
		w.answers(func(rw http.ResponseWriter, r *http.Request) {
			if got := r.Header.Get("Incremental"); got != "?1" || r.ContentLength != int64(len(text)) {
				t.Errorf("the upstream got Incremental: %s, and the length %d", got, r.ContentLength)
			}
			for b := make([]byte, 1); ; {
				if _, err := io.ReadFull(r.Body, b); err != nil {
					break
				}
				seen <- b[0]
			}
			rw.Header().Set("Incremental", "?1")
			rw.Header().Set("Content-Length", strconv.Itoa(len(text)))
			for i := range len(text) {
				io.WriteString(rw, text[i:i+1])
				flush(rw)
				<-next
			}
		})
		body, client := io.Pipe()
		req := w.request(t, "POST", "x", body, "Incremental", "?1")
		req.ContentLength = int64(len(text))
		answered := make(chan *http.Response, 1)
		go func() {
			resp, err := w.client.Do(req)
			if err != nil {
				t.Error(err)
			}
			answered <- resp
		}()
		for i := range len(text) {
			io.WriteString(client, text[i:i+1])
			if i == len(text)-1 {
				client.Close() // the client's own HTTP/2 waits for the end before it sends the last byte
			}
			if got := await(t, "a byte gets to the upstream", seen); got != text[i] {
				t.Fatalf("the upstream got %q, want %q", got, text[i])
			}
		}
		resp := await(t, "an answer", answered)
		if resp == nil {
			return
		}
		defer resp.Body.Close()
		if got := resp.Header.Get("Incremental"); got != "?1" || resp.ContentLength != int64(len(text)) {
			t.Errorf("the client got Incremental: %s, and the length %d", got, resp.ContentLength)
		}
		for i := range len(text) {
			wantBytes(t, "a byte", resp.Body, text[i:i+1])
			next <- struct{}{}
		}
		wantEnd(t, "the answer", resp.Body)
	})
}

// open is something that is under way for a user.
type open struct {
	what  string
	ended <-chan error // at the client
	left  <-chan error // at the upstream
}

// opens begins everything that can be open on a way, and returns when all of it
// is.
func (w *way) opens(t *testing.T) []open {
	type visit struct{ begun, left chan error }
	visits := map[string]visit{}
	for _, target := range []string{"waits", "events", "download", "upload", "socket"} {
		visits[target] = visit{make(chan error, 1), make(chan error, 1)}
	}
	w.answers(func(rw http.ResponseWriter, r *http.Request) {
		target := strings.TrimPrefix(r.URL.Path, w.path)
		v := visits[target]
		var left error
		defer func() { v.left <- left }()
		switch target {
		case "events":
			rw.Header().Set("Content-Type", "text/event-stream")
			flush(rw)
		case "download":
			io.WriteString(rw, "begun")
			flush(rw)
		case "upload":
			io.ReadFull(r.Body, make([]byte, 5))
			v.begun <- nil
			_, left = io.Copy(io.Discard, r.Body)
			return
		case "socket":
			conn, rw, err := switched(rw)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			io.Copy(io.Discard, rw)
			return
		}
		v.begun <- nil
		<-r.Context().Done()
		left = r.Context().Err()
	})
	var all []open
	begin := func(target, method string, body io.Reader) {
		req := w.request(t, method, target, body)
		ended := make(chan error, 1)
		answered := make(chan struct{})
		go func() {
			resp, err := w.client.Do(req)
			close(answered)
			if err == nil {
				if resp.StatusCode == 401 {
					err = errors.New("401")
				} else {
					_, err = io.Copy(io.Discard, resp.Body)
				}
				resp.Body.Close()
			}
			ended <- err
		}()
		await(t, target+" is open", visits[target].begun)
		if target == "events" || target == "download" {
			await(t, target+" is answered", answered)
		}
		all = append(all, open{w.name + ", " + target, ended, visits[target].left})
	}
	begin("waits", "GET", nil)
	begin("events", "GET", nil)
	begin("download", "GET", nil)
	body, client := io.Pipe()
	t.Cleanup(func() { client.Close() })
	go io.WriteString(client, "begun")
	begin("upload", "POST", body)
	if w.browser == 1 {
		_, r, resp := w.openSocket(t, "socket")
		if resp.StatusCode != 101 {
			t.Fatalf("%s: the WebSocket got %d", w.name, resp.StatusCode)
		}
		ended := make(chan error, 1)
		go func() {
			_, err := io.Copy(io.Discard, r)
			ended <- err
		}()
		all = append(all, open{w.name + ", WebSocket", ended, visits["socket"].left})
	}
	return all
}

func TestAllThatIsOpenEndsWithTheSession(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name     string
		lifetime time.Duration
		end      func(f *front) (at time.Time)
	}{
		{"logout", 0, func(f *front) time.Time {
			f.browser.Submit("/bff/logout", nil)
			return time.Now()
		}},
		{"back-channel logout", 0, func(f *front) time.Time {
			f.sendLogoutToken(url.Values{"logout_token": {f.logoutToken("", f.sid, devidp.Hooks{})}})
			return time.Now()
		}},
		{"absolute expiry", 10 * time.Second, func(f *front) time.Time {
			var got sessionBody
			f.browser.Fetch("GET", "/bff/session").Decode(t, &got)
			return got.Session.ExpiresAt
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newFront(t, func(_ *front, cfg *bff.Config) { cfg.Sessions.MaxLifetime = test.lifetime })
			var all []open
			for _, w := range f.ways {
				all = append(all, w.opens(t)...)
			}
			for _, o := range all {
				select {
				case err := <-o.ended:
					t.Errorf("%s has ended before the session: %v", o.what, err)
				default:
				}
			}
			at := test.end(f)
			limit := time.After(time.Until(at.Add(patience)))
			for _, o := range all {
				select {
				case err := <-o.ended:
					if err == nil && !strings.HasSuffix(o.what, "WebSocket") {
						t.Errorf("%s ended as if it were complete", o.what)
					}
				case <-limit:
					t.Fatalf("%s goes on %v after the session has ended", o.what, patience)
				}
			}
			for _, o := range all {
				if err := await(t, "the upstream is told of "+o.what, o.left); err == nil && !strings.HasSuffix(o.what, "WebSocket") {
					t.Errorf("%s: the upstream was not told", o.what)
				}
			}
			t.Logf("all had ended %v after the session", time.Since(at))
		})
	}
}

func TestAClientThatLeavesCancelsTheUpstreamsCallInEveryPhase(t *testing.T) {
	eachWay(t, func(t *testing.T, w *way) {
		for _, phase := range []struct {
			name, method, body string
			more               bool // the body goes on
			contentType        string
		}{
			{"before the header", "GET", "", false, ""},
			{"before the header, with a body", "POST", "all of it", false, ""},
			{"during the upload", "POST", "some", true, ""},
			{"during the upload and the download", "POST", "some", true, "text/plain"},
			{"during the download", "GET", "", false, "text/plain"},
			{"during a stream of events", "GET", "", false, "text/event-stream"},
		} {
			begun, left := make(chan struct{}), make(chan error, 1)
			w.answers(func(rw http.ResponseWriter, r *http.Request) {
				if phase.contentType != "" {
					rw.Header().Set("Content-Type", phase.contentType)
					bothWays(rw)
				}
				if phase.more {
					io.ReadFull(r.Body, make([]byte, len(phase.body)))
					close(begun)
					_, err := io.Copy(io.Discard, r.Body)
					left <- err
					return
				}
				io.Copy(io.Discard, r.Body)
				close(begun)
				<-r.Context().Done()
				left <- r.Context().Err()
			})
			var body io.Reader
			r, more := io.Pipe()
			switch {
			case phase.more:
				go io.WriteString(more, phase.body)
				body = r
			case phase.body != "":
				body = strings.NewReader(phase.body)
			}
			req := w.request(t, phase.method, "x", body)
			ctx, leave := context.WithCancel(req.Context())
			defer leave()
			ended := make(chan error, 1)
			go func() {
				resp, err := w.client.Do(req.WithContext(ctx))
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				ended <- err
			}()
			await(t, phase.name+": the upstream is called", begun)
			leave()
			if w.browser == 2 {
				more.CloseWithError(errors.New("the client leaves")) // its transport may be waiting for more, and then does not see that it should leave
			}
			if err := await(t, phase.name+": the upstream is told", left); err == nil {
				t.Errorf("%s: the upstream took what it had for all", phase.name)
			}
			more.CloseWithError(errors.New("the client leaves")) // or its transport waits for more
			if err := await(t, phase.name+": the client has left", ended); err == nil {
				t.Errorf("%s: the client got all", phase.name)
			}
		}
	})
}
