package bff_test

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestTruncatedResponseIsAborted(t *testing.T) {
	eachProtocolPair(t, func(t *testing.T, w *protocolPair) {
		for name, header := range map[string][2]string{
			"with a length": {"Content-Length", "100"}, "chunked": {"Content-Type", "text/plain"},
			"event stream": {"Content-Type", "text/event-stream"}, "compressed": {"Content-Encoding", "gzip"},
		} {
			seen := make(chan struct{})
			w.handle(func(rw http.ResponseWriter, r *http.Request) {
				rw.Header().Set(header[0], header[1])
				io.WriteString(rw, "begun")
				flush(rw)
				select {
				case <-seen:
				case <-r.Context().Done():
				}
				panic(http.ErrAbortHandler)
			})
			resp := w.do(t, w.request(t, "GET", "x", nil))
			wantBytes(t, name, resp.Body, "begun")
			close(seen)
			if rest, err := io.ReadAll(resp.Body); err == nil || len(rest) > 0 {
				t.Errorf("%s: then got %q, %v, want an error", name, rest, err)
			}
		}
	})
}

// A client in HTTP/1.0, such as an nginx, takes an orderly end of the
// connection for the end of a response without a length.
func TestTruncatedResponseResetsHTTP10(t *testing.T) {
	eachUpstreamProtocol(t, 1, func(t *testing.T, w *protocolPair) {
		for _, truncated := range []bool{false, true} {
			seen := make(chan struct{})
			w.handle(func(rw http.ResponseWriter, r *http.Request) {
				io.WriteString(rw, "begun")
				flush(rw)
				select {
				case <-seen:
				case <-r.Context().Done():
				}
				if truncated {
					panic(http.ErrAbortHandler)
				}
			})
			head := strings.Replace(w.head("GET", "x")+"\r\n", "HTTP/1.1", "HTTP/1.0", 1)
			var bodies []io.Reader
			for _, addr := range []string{w.plain, strings.TrimPrefix(w.url, "http://")} { // of NewListener, and of Run
				c, err := net.Dial("tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(testTimeout))
				io.WriteString(c, head)
				resp, err := http.ReadResponse(bufio.NewReader(c), nil)
				if err != nil {
					t.Fatal(err)
				}
				wantBytes(t, "response", resp.Body, "begun")
				bodies = append(bodies, resp.Body)
			}
			close(seen)
			for i, body := range bodies {
				if rest, err := io.ReadAll(body); (err != nil) != truncated || len(rest) > 0 {
					t.Errorf("listener %d, truncated %v: then got %q, %v", i, truncated, rest, err)
				}
			}
		}
	})
}

func TestResponsesWithoutABody(t *testing.T) {
	eachProtocolPair(t, func(t *testing.T, w *protocolPair) {
		w.handle(func(rw http.ResponseWriter, r *http.Request) {
			h := rw.Header()
			h.Set("ETag", `"v1"`)
			if r.URL.Path == w.path+"events" { // it ends an EventSource with 204
				h.Set("Content-Type", "text/event-stream")
			}
			switch status, _ := strconv.Atoi(r.URL.RawQuery); {
			case status > 0:
				rw.WriteHeader(status)
			case r.Method == "HEAD" && r.URL.RawQuery == "length":
				h.Set("Content-Length", "12345")
			default:
				io.WriteString(rw, "body")
			}
		})
		for _, test := range []struct {
			method, query string
			status        int
			length        string
		}{
			{"HEAD", "length", 200, "12345"}, {"HEAD", "204", 204, ""}, {"GET", "204", 204, ""},
			{"GET", "304", 304, ""}, {"HEAD", "304", 304, ""}, {"POST", "204", 204, ""}, {"DELETE", "204", 204, ""},
		} {
			name := test.method + " " + test.query
			resp := w.do(t, w.request(t, test.method, "x?"+test.query, nil))
			if resp.StatusCode != test.status {
				t.Errorf("%s: got %d, want %d", name, resp.StatusCode, test.status)
			}
			wantHeader(t, name, resp, "Content-Length", test.length)
			wantHeader(t, name, resp, "ETag", `"v1"`)
			wantEnd(t, name, resp.Body)
		}
		if w.browser == 2 {
			return
		}
		// The next response follows on the same connection.
		c, r := w.dial(t)
		for _, target := range []string{"x?204", "x?304", "x?length", "events?204"} {
			method := map[bool]string{true: "HEAD", false: "GET"}[target == "x?length"]
			_, query, _ := strings.Cut(target, "?")
			io.WriteString(c, w.head(method, target)+"\r\n")
			for line := ""; line != "\r\n"; {
				var err error
				if line, err = r.ReadString('\n'); err != nil {
					t.Fatal(err)
				}
				// RFC 9110, section 8.6, and RFC 9112, section 6.1.
				name, _, _ := strings.Cut(strings.ToLower(line), ":")
				if name == "transfer-encoding" || query == "204" && name == "content-length" {
					t.Errorf("%s: got %q, want no such header", target, line)
				}
			}
			io.WriteString(c, w.head("GET", "x")+"\r\n")
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatalf("after %s: %v", target, err)
			}
			wantBytes(t, "after "+target, resp.Body, "body")
			wantEnd(t, "after "+target, resp.Body)
		}
	})
}

func TestInformationalResponsesAreDroppedTrailersKept(t *testing.T) {
	eachProtocolPair(t, func(t *testing.T, w *protocolPair) {
		w.handle(func(rw http.ResponseWriter, r *http.Request) {
			h := rw.Header()
			h.Set("Link", "</x.js>; rel=preload")
			h.Set("Set-Cookie", "hint=1")
			rw.WriteHeader(http.StatusProcessing)
			rw.WriteHeader(http.StatusEarlyHints)
			h.Del("Link")
			h.Del("Set-Cookie")
			h.Set("Trailer", "X-Checksum, Set-Cookie")
			io.WriteString(rw, "body")
			flush(rw)
			h.Set("X-Checksum", "17")
			h.Set("Set-Cookie", "theme=dark")
			for _, name := range []string{"X-Late", "Clear-Site-Data", "Location", "Cache-Control", "Server"} {
				h.Set(http.TrailerPrefix+name, "x")
			}
		})
		var hints []int
		req := w.request(t, "GET", "x", nil)
		trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, _ textproto.MIMEHeader) error {
			hints = append(hints, code)
			return nil
		}}
		resp := w.do(t, req.WithContext(httptrace.WithClientTrace(req.Context(), trace)))
		wantBytes(t, "response", resp.Body, "body")
		wantEnd(t, "response", resp.Body)
		if len(hints) > 0 {
			t.Errorf("informational responses: got %v, want none", hints)
		}
		wantHeader(t, "response", resp, "Set-Cookie", "")
		wantHeader(t, "response", resp, "Link", "")
		if got, want := fmt.Sprint(resp.Trailer), "map[X-Checksum:[17] X-Late:[x]]"; got != want {
			t.Errorf("trailer: got %s, want %s", got, want)
		}
	})
}

// Browsers do not expose trailers, so gRPC-Web sends them in the body.
func TestGRPCWebIsUnchanged(t *testing.T) {
	frame := func(flags byte, text string) string {
		return string(binary.BigEndian.AppendUint32([]byte{flags}, uint32(len(text)))) + text
	}
	message := frame(0, "\x0a\x05hello\x00\xff")
	trailer := frame(0x80, "grpc-status:0\r\ngrpc-message:OK\r\n")
	eachProtocolPair(t, func(t *testing.T, w *protocolPair) {
		for _, form := range []string{"application/grpc-web+proto", "application/grpc-web-text"} {
			first, second := message, trailer
			if strings.HasSuffix(form, "text") {
				first = base64.StdEncoding.EncodeToString([]byte(first))
				second = base64.StdEncoding.EncodeToString([]byte(second))
			}
			seen := make(chan struct{})
			w.handle(func(rw http.ResponseWriter, r *http.Request) {
				text, err := io.ReadAll(r.Body)
				if string(text) != first || err != nil {
					t.Errorf("%s: got %q, %v at the upstream, want %q", form, text, err, first)
				}
				if got := r.Header.Get("Content-Type"); got != form {
					t.Errorf("Content-Type at the upstream: got %q, want %q", got, form)
				}
				if got := r.Header.Get("X-Grpc-Web"); got != "1" {
					t.Errorf("X-Grpc-Web at the upstream: got %q, want 1", got)
				}
				rw.Header().Set("Content-Type", form)
				io.WriteString(rw, first)
				flush(rw)
				select {
				case <-seen:
				case <-r.Context().Done():
				}
				io.WriteString(rw, second)
			})
			resp := w.do(t, w.request(t, "POST", "greeter.Greeter/Hello", strings.NewReader(first),
				"Content-Type", form, "X-Grpc-Web", "1", "Accept", form))
			wantBytes(t, form, resp.Body, first)
			close(seen)
			wantBytes(t, form, resp.Body, second)
			wantEnd(t, form, resp.Body)
			wantHeader(t, form, resp, "Content-Type", form)
		}
	})
}

func TestCompressedResponsesAreUnchanged(t *testing.T) {
	eachProtocolPair(t, func(t *testing.T, w *protocolPair) {
		for _, accepted := range []string{"", "identity", "gzip, br", "gzip;q=0"} {
			for _, coding := range []string{"", "gzip", "br", "zstd"} {
				body := string(block[:5000]) // need not be valid
				if coding == "" {
					body = strings.Repeat("compressible ", 1000)
				}
				w.handle(func(rw http.ResponseWriter, r *http.Request) {
					if got := strings.Join(r.Header["Accept-Encoding"], "|"); got != accepted {
						t.Errorf("Accept-Encoding at the upstream: got %q, want %q", got, accepted)
					}
					rw.Header().Set("Content-Type", "text/html")
					rw.Header().Set("Vary", "Accept-Encoding")
					if coding != "" {
						rw.Header().Set("Content-Encoding", coding)
					}
					io.WriteString(rw, body)
				})
				req := w.request(t, "GET", "x", nil)
				if accepted != "" {
					req.Header.Set("Accept-Encoding", accepted)
				}
				resp := w.do(t, req)
				text, err := io.ReadAll(resp.Body)
				if string(text) != body || err != nil {
					t.Errorf("%q: got %d bytes, %v, want the %d bytes of the upstream", coding, len(text),
						err, len(body))
				}
				wantHeader(t, coding, resp, "Content-Encoding", coding)
				wantHeader(t, coding, resp, "Vary", "Accept-Encoding")
				if resp.Uncompressed {
					t.Errorf("%q: the client decompressed the response", coding)
				}
			}
		}
	})
}

func TestRangeRequests(t *testing.T) {
	eachProtocolPair(t, func(t *testing.T, w *protocolPair) {
		modified := time.Now().Add(-time.Hour)
		w.handle(func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("ETag", `"v1"`)
			http.ServeContent(rw, r, "x.bin", modified, bytes.NewReader(block[:100000]))
		})
		for _, test := range []struct {
			header       []string
			status       int
			contentRange string
			from, to     int
		}{
			{[]string{"Range", "bytes=10-19"}, 206, "bytes 10-19/100000", 10, 20},
			{[]string{"Range", "bytes=-100"}, 206, "bytes 99900-99999/100000", 99900, 100000},
			{[]string{"Range", "bytes=50000-", "If-Range", `"v1"`}, 206, "bytes 50000-99999/100000", 50000, 100000},
			{[]string{"Range", "bytes=50000-", "If-Range", `"v0"`}, 200, "", 0, 100000},
		} {
			name := fmt.Sprintf("%q", test.header)
			resp := w.do(t, w.request(t, "GET", "x", nil, test.header...))
			if resp.StatusCode != test.status {
				t.Errorf("%s: got %d, want %d", name, resp.StatusCode, test.status)
			}
			wantHeader(t, name, resp, "Content-Range", test.contentRange)
			wantHeader(t, name, resp, "Accept-Ranges", "bytes")
			if want := int64(test.to - test.from); resp.ContentLength != want {
				t.Errorf("Content-Length of %s: got %d, want %d", name, resp.ContentLength, want)
			}
			text, err := io.ReadAll(resp.Body)
			if !bytes.Equal(text, block[test.from:test.to]) || err != nil {
				t.Errorf("%s: got %d bytes, %v, want bytes %d to %d", name, len(text), err, test.from, test.to)
			}
		}
		resp := w.do(t, w.request(t, "GET", "x", nil, "Range", "bytes=200000-"))
		if resp.StatusCode != 416 {
			t.Errorf("range after the end: got %d, want 416", resp.StatusCode)
		}
		wantHeader(t, "range after the end", resp, "Content-Range", "bytes */100000")
		resp = w.do(t, w.request(t, "GET", "x", nil, "Range", "bytes=0-9,20-29"))
		if resp.StatusCode != 206 {
			t.Errorf("two ranges: got %d, want 206", resp.StatusCode)
		}
		const multipart = "multipart/byteranges; boundary="
		if got := resp.Header.Get("Content-Type"); !strings.HasPrefix(got, multipart) {
			t.Errorf("Content-Type of two ranges: got %q, want %s…", got, multipart)
		}
		text, err := io.ReadAll(resp.Body)
		if !bytes.Contains(text, block[20:30]) || err != nil {
			t.Errorf("two ranges: got %q, %v, want the second one in it", text, err)
		}
	})
}
