package bff_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

func TestEventArrivesBeforeTheNextIsSent(t *testing.T) {
	eachProtocolPair(t, func(t *testing.T, w *protocolPair) {
		arrived := make(chan struct{})
		w.handle(func(rw http.ResponseWriter, r *http.Request) {
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
		wantHeader(t, "response", resp, "Content-Type", "text/event-stream; charset=utf-8")
		wantBytes(t, "first event", resp.Body, "retry: 10\ndata: after 41\n\n")
		for i := range 3 {
			arrived <- struct{}{}
			wantBytes(t, "event", resp.Body, fmt.Sprintf("id: %d\ndata:\n\n", i))
		}
		wantEnd(t, "stream", resp.Body)
	})
}

// To a client that sends a head that is too large, the server would respond,
// which it cannot during a stream. It must notice nevertheless that the client
// leaves, and not read for ever what nothing sends.
func TestAStreamEndsIfItsClientSendsALargeHead(t *testing.T) {
	eachUpstreamProtocol(t, 1, func(t *testing.T, w *protocolPair) {
		ended := make(chan struct{}, 2)
		w.handle(func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Content-Type", "text/event-stream")
			flush(rw)
			<-r.Context().Done()
			ended <- struct{}{}
		})
		for _, connection := range []string{"keep-alive", "keep-alive, X"} { // the latter is left to net/http
			c, r := w.dial(t)
			io.WriteString(c, w.head("GET", "x")+"Connection: "+connection+"\r\n\r\n")
			if _, err := http.ReadResponse(r, nil); err != nil {
				t.Fatal(err)
			}
			io.WriteString(c, "GET / HTTP/1.1\r\n"+strings.Repeat("A:\r\n", 2000))
			c.Close()
			await(t, connection+": the end of the stream", ended)
		}
	})
}

// A response in chunks is sent as it arrives, wherever the upstream pauses: a
// client has the head before the body, and each byte of data before the next.
// One that has arrived as a whole needs no chunks.
func TestAResponseInChunksIsSentAsItArrives(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		parts []string // of the upstream's response, each sent when the client has what precedes it
		want  []string // ends of what the client has then
	}{
		{[]string{"", "4\r\nbody\r\n", "0\r\n\r\n"}, []string{"\r\n\r\n", "body\r\n", "0\r\n\r\n"}},
		{[]string{"4", "\r\nbody\r\n0\r\n\r\n"}, []string{"\r\n\r\n", "body\r\n0\r\n\r\n"}},
		{[]string{"4\r\nbo", "dy\r\n0\r", "\n\r\n"}, []string{"bo\r\n", "dy\r\n", "0\r\n\r\n"}},
		{[]string{"4\r\nbody\r\n0\r\n\r\n"}, []string{"\r\n\r\nbody"}},
	} {
		t.Run(fmt.Sprintf("%q", test.parts), func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			to := []string{"http://" + l.Addr().String()}
			a := newApp(t, func(_ *app, cfg *bff.Config) {
				cfg.Routes = []bff.Route{{Path: "/x/", Upstream: to, Token: "none"}}
			})
			host := strings.TrimPrefix(a.url, "http://")
			client, err := net.Dial("tcp", host)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			client.SetDeadline(time.Now().Add(30 * time.Second))
			fmt.Fprintf(client, "GET /x/ HTTP/1.1\r\nHost: %s\r\nX-CSRF: 1\r\n\r\n", host)
			upstream, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer upstream.Close()
			if _, err := http.ReadRequest(bufio.NewReader(upstream)); err != nil {
				t.Fatal(err)
			}
			head := "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
			var got []byte
			for i, part := range test.parts {
				io.WriteString(upstream, head+part)
				head = ""
				for !strings.HasSuffix(string(got), test.want[i]) {
					b := make([]byte, 4<<10)
					n, err := client.Read(b)
					if got = append(got, b[:n]...); err != nil {
						t.Fatalf("after part %d: got %q and %v, want %q at its end", i, got, err, test.want[i])
					}
				}
			}
		})
	}
}

func TestBodiesAreForwardedInBothDirectionsAtOnce(t *testing.T) {
	eachProtocolPair(t, func(t *testing.T, w *protocolPair) {
		w.handle(func(rw http.ResponseWriter, r *http.Request) {
			enableFullDuplex(rw)
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
		resp := w.do(t, w.request(t, "POST", "x", body)) // returns before the body begins
		for i := range 10 {
			chunk := strings.Repeat(strconv.Itoa(i), 1<<(2*i)/10+1)
			go io.WriteString(client, chunk) // until it is read
			wantBytes(t, "echo", resp.Body, chunk)
		}
		client.Close()
		wantEnd(t, "response", resp.Body)
	})
}

// Bodies are forwarded as they arrive. The header Incremental (RFC 10036) asks
// for that, but it is not needed.
func TestIncrementalBodiesAreNotBuffered(t *testing.T) {
	eachProtocolPair(t, func(t *testing.T, w *protocolPair) {
		const text = "byte by byte"
		seen := make(chan byte, len(text))
		next := make(chan struct{})
		defer close(next)
		w.handle(func(rw http.ResponseWriter, r *http.Request) {
			if got := r.Header.Get("Incremental"); got != "?1" {
				t.Errorf("Incremental at the upstream: got %q, want ?1", got)
			}
			if r.ContentLength != int64(len(text)) {
				t.Errorf("Content-Length at the upstream: got %d, want %d", r.ContentLength, len(text))
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
		responses := make(chan *http.Response, 1)
		go func() { // until the response
			resp, err := w.client.Do(req)
			if err != nil {
				t.Error(err)
			}
			responses <- resp
		}()
		for i := range len(text) {
			io.WriteString(client, text[i:i+1])
			if i == len(text)-1 {
				client.Close() // Go's HTTP/2 client sends the last byte when it sees the end
			}
			if got := await(t, "a byte reaches the upstream", seen); got != text[i] {
				t.Fatalf("got %q at the upstream, want %q", got, text[i])
			}
		}
		resp := await(t, "response", responses)
		if resp == nil {
			return
		}
		defer resp.Body.Close()
		wantHeader(t, "response", resp, "Incremental", "?1")
		if resp.ContentLength != int64(len(text)) {
			t.Errorf("Content-Length of the response: got %d, want %d", resp.ContentLength, len(text))
		}
		for i := range len(text) {
			wantBytes(t, "byte", resp.Body, text[i:i+1])
			next <- struct{}{}
		}
		wantEnd(t, "response", resp.Body)
	})
}

// openExchange is a request in flight, a stream or a WebSocket of a user.
type openExchange struct {
	name     string
	ended    <-chan error // at the client
	canceled <-chan error // at the upstream
}

// openAll opens one exchange of each kind, and returns when all are open.
func (w *protocolPair) openAll(t *testing.T) []openExchange {
	type visit struct{ begun, canceled chan error }
	visits := map[string]visit{}
	for _, target := range []string{"waits", "events", "download", "upload", "socket"} {
		visits[target] = visit{make(chan error, 1), make(chan error, 1)}
	}
	w.handle(func(rw http.ResponseWriter, r *http.Request) {
		target := strings.TrimPrefix(r.URL.Path, w.path)
		v := visits[target]
		var cause error
		defer func() { v.canceled <- cause }()
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
			_, cause = io.Copy(io.Discard, r.Body)
			return
		case "socket":
			conn, rw, err := switchProtocols(rw)
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
		cause = r.Context().Err()
	})
	var all []openExchange
	begin := func(target, method string, body io.Reader) {
		req := w.request(t, method, target, body)
		ended := make(chan error, 1)
		responded := make(chan struct{})
		go func() { // until the exchange ends
			resp, err := w.client.Do(req)
			close(responded)
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
			await(t, target+" has a response", responded)
		}
		all = append(all, openExchange{w.name + ", " + target, ended, visits[target].canceled})
	}
	begin("waits", "GET", nil)
	begin("events", "GET", nil)
	begin("download", "GET", nil)
	body, client := io.Pipe()
	t.Cleanup(func() { client.Close() })
	go io.WriteString(client, "begun") // until it is read
	begin("upload", "POST", body)
	if w.browser == 1 {
		_, r, resp := w.openSocket(t, "socket")
		if resp.StatusCode != 101 {
			t.Fatalf("%s, WebSocket: got %d, want 101", w.name, resp.StatusCode)
		}
		ended := make(chan error, 1)
		go func() { // until the WebSocket ends
			_, err := io.Copy(io.Discard, r)
			ended <- err
		}()
		all = append(all, openExchange{w.name + ", WebSocket", ended, visits["socket"].canceled})
	}
	return all
}

func TestOpenExchangesEndWithTheSession(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name     string
		lifetime time.Duration
		end      func(f *protocolServer) (at time.Time)
	}{
		{"logout", 0, func(f *protocolServer) time.Time {
			f.browser.Submit("/bff/logout", nil)
			return time.Now()
		}},
		{"back-channel logout", 0, func(f *protocolServer) time.Time {
			f.sendLogoutToken(url.Values{"logout_token": {f.logoutToken("", f.sid, devidp.Hooks{})}})
			return time.Now()
		}},
		{"absolute expiry", 10 * time.Second, func(f *protocolServer) time.Time {
			var got sessionBody
			f.browser.Fetch("GET", "/bff/session").Decode(t, &got)
			return got.Session.ExpiresAt
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newProtocolServer(t, func(_ *protocolServer,
				cfg *bff.Config) {
				cfg.Sessions.MaxLifetime = test.lifetime
			})
			var all []openExchange
			for _, w := range f.pairs {
				all = append(all, w.openAll(t)...)
			}
			for _, o := range all {
				select {
				case err := <-o.ended:
					t.Errorf("%s ended before the session: %v", o.name, err)
				default:
				}
			}
			at := test.end(f)
			limit := time.After(time.Until(at.Add(testTimeout)))
			for _, o := range all {
				select {
				case err := <-o.ended:
					switch {
					case strings.HasSuffix(o.name, "WebSocket"):
					case strings.HasSuffix(o.name, "events"):
						if err != nil {
							t.Errorf("%s: got %v, want the end of the response", o.name, err)
						}
					case err == nil:
						t.Errorf("%s: got a complete response, want it to be aborted", o.name)
					}
				case <-limit:
					t.Fatalf("%s is open %v after the end of the session", o.name, testTimeout)
				}
			}
			for _, o := range all {
				err := await(t, o.name+" is canceled at the upstream", o.canceled)
				if err == nil && !strings.HasSuffix(o.name, "WebSocket") {
					t.Errorf("%s: got a complete request at the upstream, want it to be canceled", o.name)
				}
			}
			t.Logf("all had ended %v after the end of the session", time.Since(at))
		})
	}
}

func TestClientDisconnectCancelsTheUpstreamRequest(t *testing.T) {
	eachProtocolPair(t, func(t *testing.T, w *protocolPair) {
		for _, phase := range []struct {
			name, method, body string
			more               bool // the body is not complete
			contentType        string
		}{
			{"before the header", "GET", "", false, ""},
			{"before the header, with a body", "POST", "all of it", false, ""},
			{"during the upload", "POST", "some", true, ""},
			{"during the upload and the download", "POST", "some", true, "text/plain"},
			{"during the download", "GET", "", false, "text/plain"},
			{"during an event stream", "GET", "", false, "text/event-stream"},
		} {
			begun, canceled := make(chan struct{}), make(chan error, 1)
			w.handle(func(rw http.ResponseWriter, r *http.Request) {
				if phase.contentType != "" {
					rw.Header().Set("Content-Type", phase.contentType)
					enableFullDuplex(rw)
				}
				if phase.more {
					io.ReadFull(r.Body, make([]byte, len(phase.body)))
					close(begun)
					_, err := io.Copy(io.Discard, r.Body)
					canceled <- err
					return
				}
				io.Copy(io.Discard, r.Body)
				close(begun)
				<-r.Context().Done()
				canceled <- r.Context().Err()
			})
			var body io.Reader
			r, more := io.Pipe()
			switch {
			case phase.more:
				go io.WriteString(more, phase.body) // until it is read
				body = r
			case phase.body != "":
				body = strings.NewReader(phase.body)
			}
			req := w.request(t, phase.method, "x", body)
			ctx, disconnect := context.WithCancel(req.Context())
			defer disconnect()
			ended := make(chan error, 1)
			go func() { // until the client disconnects
				resp, err := w.client.Do(req.WithContext(ctx))
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				ended <- err
			}()
			await(t, phase.name+": the upstream is called", begun)
			disconnect()
			// The client's transport may wait for more of the body. With HTTP/2
			// it does not notice then that the request was canceled.
			if w.browser == 2 {
				more.CloseWithError(errDisconnect)
			}
			if err := await(t, phase.name+": the upstream's request is canceled", canceled); err == nil {
				t.Errorf("%s: got a complete request at the upstream, want it to be canceled", phase.name)
			}
			more.CloseWithError(errDisconnect)
			if err := await(t, phase.name+": the client has disconnected", ended); err == nil {
				t.Errorf("%s: got a complete response, want it to be aborted", phase.name)
			}
		}
	})
}
