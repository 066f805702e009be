package bff_test

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestAnAnswerThatBreaksOffIsNotTakenForAWholeOne(t *testing.T) {
	eachWay(t, func(t *testing.T, w *way) {
		for name, header := range map[string][2]string{
			"with a length": {"Content-Length", "100"}, "in chunks": {"Content-Type", "text/plain"}, "of events": {"Content-Type", "text/event-stream"}, "compressed": {"Content-Encoding", "gzip"},
		} {
			seen := make(chan struct{})
			w.answers(func(rw http.ResponseWriter, r *http.Request) {
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
				t.Errorf("%s: then came %q, %v, want an error", name, rest, err)
			}
		}
	})
}

func TestAnswersWithoutABody(t *testing.T) {
	eachWay(t, func(t *testing.T, w *way) {
		w.answers(func(rw http.ResponseWriter, r *http.Request) {
			h := rw.Header()
			h.Set("ETag", `"v1"`)
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
		}{{"HEAD", "length", 200, "12345"}, {"HEAD", "204", 204, ""}, {"GET", "204", 204, ""}, {"GET", "304", 304, ""}, {"HEAD", "304", 304, ""}, {"POST", "204", 204, ""}, {"DELETE", "204", 204, ""}} {
			resp := w.do(t, w.request(t, test.method, "x?"+test.query, nil))
			text, err := io.ReadAll(resp.Body)
			if resp.StatusCode != test.status || resp.Header.Get("Content-Length") != test.length || resp.Header.Get("ETag") != `"v1"` || len(text) > 0 || err != nil {
				t.Errorf("%s, %s: got %d %v %q, %v", test.method, test.query, resp.StatusCode, resp.Header, text, err)
			}
		}
		if w.browser == 2 {
			return
		}
		// What follows on the same connection is the next answer.
		c, r := w.dial(t)
		for _, query := range []string{"204", "304", "length"} {
			method := map[bool]string{true: "HEAD", false: "GET"}[query == "length"]
			io.WriteString(c, w.head(method, "x?"+query)+"\r\n")
			for line := ""; line != "\r\n"; {
				var err error
				if line, err = r.ReadString('\n'); err != nil {
					t.Fatal(err)
				}
				if lower := strings.ToLower(line); strings.HasPrefix(lower, "transfer-encoding:") || query == "204" && strings.HasPrefix(lower, "content-length:") { // RFC 9110 8.6
					t.Errorf("%s: %s", query, line)
				}
			}
			io.WriteString(c, w.head("GET", "x")+"\r\n")
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatalf("after %s: %v", query, err)
			}
			wantBytes(t, "after "+query, resp.Body, "body")
			wantEnd(t, "after "+query, resp.Body)
		}
	})
}

func TestHintsStayBehindAndTrailersPass(t *testing.T) {
	eachWay(t, func(t *testing.T, w *way) {
		w.answers(func(rw http.ResponseWriter, r *http.Request) {
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
		resp := w.do(t, req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, _ textproto.MIMEHeader) error {
			hints = append(hints, code)
			return nil
		}})))
		if text, err := io.ReadAll(resp.Body); string(text) != "body" || err != nil {
			t.Errorf("got %q, %v", text, err)
		}
		if len(hints) > 0 || resp.Header.Get("Set-Cookie") != "" || resp.Header.Get("Link") != "" {
			t.Errorf("hints got through: %v, %v", hints, resp.Header)
		}
		if got := fmt.Sprint(resp.Trailer); got != "map[X-Checksum:[17] X-Late:[x]]" {
			t.Errorf("the trailer is %s", got)
		}
	})
}

// Browsers see no trailers: gRPC-web has its own in the body.
func TestGRPCWebPassesUnchanged(t *testing.T) {
	frame := func(flags byte, text string) string {
		return string(binary.BigEndian.AppendUint32([]byte{flags}, uint32(len(text)))) + text
	}
	message, trailer := frame(0, "\x0a\x05hello\x00\xff"), frame(0x80, "grpc-status:0\r\ngrpc-message:OK\r\n")
	eachWay(t, func(t *testing.T, w *way) {
		for _, form := range []string{"application/grpc-web+proto", "application/grpc-web-text"} {
			first, second := message, trailer
			if strings.HasSuffix(form, "text") {
				first, second = base64.StdEncoding.EncodeToString([]byte(first)), base64.StdEncoding.EncodeToString([]byte(second))
			}
			seen := make(chan struct{})
			w.answers(func(rw http.ResponseWriter, r *http.Request) {
				text, err := io.ReadAll(r.Body)
				if string(text) != first || err != nil || r.Header.Get("Content-Type") != form || r.Header.Get("X-Grpc-Web") != "1" {
					t.Errorf("%s: the upstream got %v %q, %v", form, r.Header, text, err)
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
			resp := w.do(t, w.request(t, "POST", "greeter.Greeter/Hello", strings.NewReader(first), "Content-Type", form, "X-Grpc-Web", "1", "Accept", form))
			wantBytes(t, form, resp.Body, first)
			close(seen)
			wantBytes(t, form, resp.Body, second)
			wantEnd(t, form, resp.Body)
			if got := resp.Header.Get("Content-Type"); got != form {
				t.Errorf("Content-Type is %s, want %s", got, form)
			}
		}
	})
}

func TestCompressedAnswersPassByteForByte(t *testing.T) {
	eachWay(t, func(t *testing.T, w *way) {
		for _, accepted := range []string{"", "identity", "gzip, br", "gzip;q=0"} {
			for _, coding := range []string{"", "gzip", "br", "zstd"} {
				body := string(block[:5000]) // what it unpacks to is nobody's business
				if coding == "" {
					body = strings.Repeat("compressible ", 1000)
				}
				w.answers(func(rw http.ResponseWriter, r *http.Request) {
					if got := strings.Join(r.Header["Accept-Encoding"], "|"); got != accepted {
						t.Errorf("the upstream got Accept-Encoding %q, want %q", got, accepted)
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
				if string(text) != body || err != nil || resp.Header.Get("Content-Encoding") != coding || resp.Header.Get("Vary") != "Accept-Encoding" || resp.Uncompressed {
					t.Errorf("%s: got %v, %d bytes, %v", coding, resp.Header, len(text), err)
				}
			}
		}
	})
}

func TestPartsOfAFilePass(t *testing.T) {
	eachWay(t, func(t *testing.T, w *way) {
		modified := time.Now().Add(-time.Hour)
		w.answers(func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("ETag", `"v1"`)
			http.ServeContent(rw, r, "x.bin", modified, bytes.NewReader(block[:100000]))
		})
		for _, test := range []struct {
			header          []string
			status          int
			contentRange    string
			from, to        int
			wholeOrSeveral  bool
			acceptsNoRanges bool
		}{
			{header: []string{"Range", "bytes=10-19"}, status: 206, contentRange: "bytes 10-19/100000", from: 10, to: 20},
			{header: []string{"Range", "bytes=-100"}, status: 206, contentRange: "bytes 99900-99999/100000", from: 99900, to: 100000},
			{header: []string{"Range", "bytes=50000-", "If-Range", `"v1"`}, status: 206, contentRange: "bytes 50000-99999/100000", from: 50000, to: 100000},
			{header: []string{"Range", "bytes=50000-", "If-Range", `"v0"`}, status: 200, from: 0, to: 100000},
		} {
			resp := w.do(t, w.request(t, "GET", "x", nil, test.header...))
			text, err := io.ReadAll(resp.Body)
			if resp.StatusCode != test.status || resp.Header.Get("Content-Range") != test.contentRange || !bytes.Equal(text, block[test.from:test.to]) || err != nil ||
				resp.ContentLength != int64(test.to-test.from) || resp.Header.Get("Accept-Ranges") != "bytes" {
				t.Errorf("%q: got %d %v, %d bytes, %v", test.header, resp.StatusCode, resp.Header, len(text), err)
			}
		}
		resp := w.do(t, w.request(t, "GET", "x", nil, "Range", "bytes=200000-"))
		if resp.StatusCode != 416 || resp.Header.Get("Content-Range") != "bytes */100000" {
			t.Errorf("beyond the end: got %d %v", resp.StatusCode, resp.Header)
		}
		resp = w.do(t, w.request(t, "GET", "x", nil, "Range", "bytes=0-9,20-29"))
		text, err := io.ReadAll(resp.Body)
		if resp.StatusCode != 206 || !strings.HasPrefix(resp.Header.Get("Content-Type"), "multipart/byteranges; boundary=") || !bytes.Contains(text, block[20:30]) || err != nil {
			t.Errorf("two parts: got %d %v, %v", resp.StatusCode, resp.Header, err)
		}
	})
}
