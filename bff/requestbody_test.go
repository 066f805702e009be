package bff_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestEarlyResponseReachesTheClient(t *testing.T) {
	eachProtocolPair(t, func(t *testing.T, w *protocolPair) {
		w.handle(func(rw http.ResponseWriter, r *http.Request) {
			if r.Method != "POST" {
				echoNonce(rw, r)
				return
			}
			http.NewResponseController(rw).EnableFullDuplex() // do not wait for the body
			rw.Header().Set("Content-Length", "9")
			rw.WriteHeader(413)
			io.WriteString(rw, "too large")
			flush(rw)
		})
		for _, length := range []int64{10 << 20, -1} {
			body, client := io.Pipe()
			req := w.request(t, "POST", "x", body)
			req.ContentLength = length
			go io.WriteString(client, "begun") // and nothing more; until Close
			resp := w.do(t, req)
			if resp.StatusCode != 413 {
				t.Errorf("Content-Length %d: got %d, want 413", length, resp.StatusCode)
			}
			text, err := io.ReadAll(resp.Body)
			if string(text) != "too large" || err != nil {
				t.Errorf("body for Content-Length %d: got %q, %v, want %q", length, text, err, "too large")
			}
			client.Close()
			p := probe{method: "GET", nonce: fmt.Sprint("after ", length)}
			if err := p.send(t, w); err != nil {
				t.Errorf("next request: %v", err)
			}
		}
		if w.browser == 2 {
			return
		}
		// What the client still sends of the body is not parsed as a request.
		c, r := w.dial(t)
		smuggled := w.head("GET", "x?smuggled") + "X-Nonce: smuggled\r\n\r\n"
		before := w.calls.Load()
		fmt.Fprintf(c, "%sContent-Length: %d\r\n\r\nbegun", w.head("POST", "x"), 5+100*len(smuggled))
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		wantBytes(t, "response", resp.Body, "too large")
		if !resp.Close {
			t.Error("got no Connection: close, want it after an early response")
		}
		go func() { // until the connection is closed
			for range 100 {
				if _, err := io.WriteString(c, smuggled); err != nil {
					return
				}
			}
		}()
		if rest, _ := io.ReadAll(r); len(rest) > 0 { // the connection may be reset
			t.Errorf("after the response: got %q, want nothing", rest)
		}
		if got := w.calls.Load() - before; got != 1 {
			t.Errorf("calls of the upstream: got %d, want 1", got)
		}
	})
}

// A body is not requested before the upstream wants it (RFC 9110, section
// 10.1.1). With HTTP/2 only the bytes for the client differ.
func TestExpectContinue(t *testing.T) {
	eachUpstreamProtocol(t, 1, func(t *testing.T, w *protocolPair) {
		for _, test := range []struct {
			name, target, edit string
			want               []int
		}{
			{"upstream reads the body", "wanted", "", []int{100, 200}},
			{"upstream responds at once", "unwanted", "", []int{413}},
			{"broker refuses the request", "wanted", "Sec-Fetch-Site: same-origin", []int{403}},
			{"no session", "wanted", "Cookie: cloakroom", []int{401}},
		} {
			w.handle(func(rw http.ResponseWriter, r *http.Request) {
				// Go's HTTP/2 server removes the header.
				if got := r.Header.Get("Expect"); w.protocol.major == 1 && got != "100-continue" {
					t.Errorf("Expect at the upstream: got %q, want 100-continue", got)
				}
				if strings.HasSuffix(r.URL.Path, "/unwanted") {
					rw.WriteHeader(413)
					return
				}
				text, err := io.ReadAll(r.Body)
				fmt.Fprintf(rw, "%s %v", text, err)
			})
			c, r := w.dial(t)
			head := w.head("POST", test.target)
			if test.edit != "" {
				head = strings.Replace(head, test.edit, "X-Other: x", 1)
			}
			io.WriteString(c, head+"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")
			var got []int
			for len(got) == 0 || got[len(got)-1] == 100 {
				resp, err := http.ReadResponse(r, nil)
				if err != nil {
					t.Fatalf("%s: got %v, then %v", test.name, got, err)
				}
				if got = append(got, resp.StatusCode); resp.StatusCode == 100 {
					io.WriteString(c, "abc")
					continue
				}
				text, err := io.ReadAll(resp.Body)
				if err != nil {
					t.Errorf("%s: %v", test.name, err)
				}
				if want := "abc <nil>"; resp.StatusCode == 200 && string(text) != want {
					t.Errorf("%s: got %q, want %q", test.name, text, want)
				}
				// Otherwise it is unknown whether the body follows.
				if resp.StatusCode != 200 && !resp.Close {
					t.Errorf("%s: got no Connection: close with %d", test.name, resp.StatusCode)
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(test.want) {
				t.Errorf("%s: got %v, want %v", test.name, got, test.want)
			}
		}
	})
}
