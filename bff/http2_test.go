package bff_test

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestManyStreamsOfOneBrowserPassAtOnce(t *testing.T) {
	eachWayOf(t, 2, func(t *testing.T, w *way) {
		const streams, size = 50, 4 << 20
		var arrived atomic.Int32
		allHere := make(chan struct{})
		answer := func(rw http.ResponseWriter, r *http.Request) {
			switch r.URL.RawQuery {
			case "download":
				io.Copy(rw, newSource(size))
			case "upload":
				got, err := summary(r.Body)
				fmt.Fprint(rw, got, " ", err)
			case "left":
				rw.Header().Set("X-Begun", "1")
				flush(rw)
				<-r.Context().Done()
			default:
				if arrived.Add(1) == streams {
					close(allHere)
				}
				select {
				case <-allHere:
					echoNonce(rw, r)
				case <-r.Context().Done():
				}
			}
		}
		first := probe{method: "POST", nonce: "first"} // so that there is a connection
		w.answers(echoNonce)
		if err := first.ask(w, first.request(t, w)); err != nil {
			t.Fatal(err)
		}
		w.answers(answer)
		before := w.front.conns.Load()
		var all sync.WaitGroup
		for i := range streams {
			all.Go(func() {
				p := probe{method: "GET", nonce: fmt.Sprint("stream ", i), more: 100 * i}
				if err := p.ask(w, p.request(t, w)); err != nil {
					t.Error(err)
				}
			})
		}
		for _, query := range []string{"download", "upload", "left"} {
			all.Go(func() {
				src := newSource(size)
				req := w.request(t, map[bool]string{true: "POST", false: "GET"}[query == "upload"], "x?"+query, nil)
				ctx, leave := context.WithCancel(req.Context())
				defer leave()
				if query == "upload" {
					req.Body = io.NopCloser(src)
					req.ContentLength = -1
				}
				resp, err := w.client.Do(req.WithContext(ctx))
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				if query == "left" { // of one stream that is reset the others take no notice
					leave()
					return
				}
				got, err := io.ReadAll(resp.Body)
				if query == "upload" && string(got) != src.summary()+" <nil>" || query == "download" && len(got) != size || err != nil {
					t.Errorf("%s: got %d bytes %.100q, %v", query, len(got), got, err)
				}
			})
		}
		all.Wait()
		if n := w.front.conns.Load() - before; n > 0 {
			t.Errorf("the browser needed %d connections more", n)
		}
	})
}

// frame2 is a frame of HTTP/2 (RFC 9113 4.1).
func frame2(kind, flags byte, stream uint32, payload []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload))<<8|uint32(kind))
	return append(binary.BigEndian.AppendUint32(append(b, flags), stream), payload...)
}

// fields2 are header fields in the plainest way that HTTP/2 has (RFC 7541 6.2.2).
func fields2(nameAndValue ...string) (b []byte) {
	for i, text := range nameAndValue {
		if i%2 == 0 {
			b = append(b, 0)
		}
		if len(text) < 0x7f {
			b = append(b, byte(len(text)))
		} else { // up to what two bytes more can say
			n := len(text) - 0x7f
			b = append(b, 0x7f, 0x80|byte(n), byte(n>>7))
		}
		b = append(b, text...)
	}
	return b
}

// A WebSocket over HTTP/2 (RFC 8441) would have to be looked at as one over HTTP/1.1 is. CONNECT is for nobody.
func TestCONNECTIsRefusedInHTTP2(t *testing.T) {
	f := newFront(t, nil)
	w := f.ways[0]
	w.answers(func(http.ResponseWriter, *http.Request) {})
	host := strings.TrimPrefix(f.url, "http://")
	cookie := f.browser.Cookies()[0]
	common := []string{"cookie", cookie.Name + "=" + cookie.Value, "sec-fetch-site", "same-origin", "origin", f.url}
	for _, test := range []struct {
		name    string
		fields  []string
		refused bool
	}{
		{"a GET", []string{":method", "GET", ":scheme", "https", ":authority", host, ":path", w.path + "x"}, false},
		{"a WebSocket", []string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":authority", host, ":path", w.path + "x"}, true},
		{"a tunnel", []string{":method", "CONNECT", ":authority", host}, true},
		{"a tunnel to the upstream", []string{":method", "CONNECT", ":authority", w.upstream.Listener.Addr().String()}, true},
	} {
		before := w.calls.Load()
		c, err := tls.Dial("tcp", f.tls, &tls.Config{RootCAs: f.trust.RootCAs, ServerName: f.trust.ServerName, NextProtos: []string{"h2"}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
		c.Write(frame2(4, 0, 0, nil))
		end := byte(4) // of the header
		if !test.refused {
			end |= 1 // and of the stream
		}
		c.Write(frame2(1, end, 1, fields2(append(test.fields, common...)...)))
		for head := make([]byte, 9); ; {
			if _, err := io.ReadFull(c, head); err != nil {
				t.Fatalf("%s: %v", test.name, err)
			}
			payload := make([]byte, binary.BigEndian.Uint32(head)>>8)
			io.ReadFull(c, payload)
			kind := head[3]
			if kind != 1 && kind != 3 && kind != 7 {
				continue
			}
			ok := kind == 1 && payload[0] == 0x88 // :status: 200
			if ok == test.refused {
				t.Errorf("%s: got a frame of type %d, %q", test.name, kind, payload)
			}
			break
		}
		if called := w.calls.Load() > before; called == test.refused {
			t.Errorf("%s: the upstream was called: %v", test.name, called)
		}
	}
}
