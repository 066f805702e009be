package bff_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestAnAnswerBeforeTheWholeRequestReachesTheClient(t *testing.T) {
	eachWay(t, func(t *testing.T, w *way) {
		w.answers(func(rw http.ResponseWriter, r *http.Request) {
			if r.Method != "POST" {
				echoNonce(rw, r)
				return
			}
			http.NewResponseController(rw).EnableFullDuplex() // or it would wait for the body
			rw.Header().Set("Content-Length", "9")
			rw.WriteHeader(413)
			io.WriteString(rw, "too large")
			flush(rw)
		})
		for _, length := range []int64{10 << 20, -1} {
			body, client := io.Pipe()
			req := w.request(t, "POST", "x", body)
			req.ContentLength = length
			go io.WriteString(client, "begun") // and never more
			resp := w.do(t, req)
			text, err := io.ReadAll(resp.Body)
			if resp.StatusCode != 413 || string(text) != "too large" || err != nil {
				t.Errorf("length %d: got %d %q, %v", length, resp.StatusCode, text, err)
			}
			client.Close()
			p := probe{method: "GET", nonce: fmt.Sprint("after ", length)}
			if err := p.ask(w, p.request(t, w)); err != nil {
				t.Errorf("the next request: %v", err)
			}
		}
		if w.browser == 2 {
			return
		}
		// Of a client that goes on sending, nothing is taken for a request.
		c, r := w.dial(t)
		smuggled := w.head("GET", "x?smuggled") + "X-Nonce: smuggled\r\n\r\n"
		before := w.calls.Load()
		fmt.Fprintf(c, "%sContent-Length: %d\r\n\r\nbegun", w.head("POST", "x"), 5+100*len(smuggled))
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		wantBytes(t, "the answer", resp.Body, "too large")
		if !resp.Close {
			t.Error("the client is not told that the connection ends")
		}
		go func() {
			for range 100 {
				if _, err := io.WriteString(c, smuggled); err != nil {
					return
				}
			}
		}()
		if rest, _ := io.ReadAll(r); len(rest) > 0 { // it ends with a reset or without
			t.Errorf("after the answer came %q", rest)
		}
		if n := w.calls.Load() - before; n != 1 {
			t.Errorf("the upstream was called %d times", n)
		}
	})
}

func TestABodyIsNotAskedForBeforeItIsWanted(t *testing.T) {
	eachWayOf(t, 1, func(t *testing.T, w *way) { // with HTTP/2 it is the same, but for what the client sees
		for _, test := range []struct {
			name, target, edit string
			want               []int
		}{
			{"the upstream wants it", "wanted", "", []int{100, 200}},
			{"the upstream does not", "unwanted", "", []int{413}},
			{"we do not", "wanted", "Sec-Fetch-Site: same-origin", []int{403}},
			{"nobody is signed in", "wanted", "Cookie: cloakroom", []int{401}},
		} {
			w.answers(func(rw http.ResponseWriter, r *http.Request) {
				if w.kind.proto == 1 && r.Header.Get("Expect") != "100-continue" { // a server of HTTP/2 does not show it
					t.Errorf("the upstream got Expect: %q", r.Header["Expect"])
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
					t.Fatalf("%s: after %v: %v", test.name, got, err)
				}
				if got = append(got, resp.StatusCode); resp.StatusCode == 100 {
					io.WriteString(c, "abc")
					continue
				}
				text, err := io.ReadAll(resp.Body)
				if resp.StatusCode == 200 && string(text) != "abc <nil>" || err != nil {
					t.Errorf("%s: got %q, %v", test.name, text, err)
				}
				if resp.StatusCode != 200 && !resp.Close { // RFC 9110 10.1.1: or else nobody knows whether the body comes
					t.Errorf("%s: the connection stays open, and the body may or may not come", test.name)
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(test.want) {
				t.Errorf("%s: got %v, want %v", test.name, got, test.want)
			}
		}
	})
}
