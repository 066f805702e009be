package bff_test

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// A header in HTTP/2 can consist of any number of frames.
func TestHeaderInHTTP2HasToArriveInTime(t *testing.T) {
	t.Parallel()
	testenv.Slow(t)
	certified := httptest.NewUnstartedServer(nil)
	certified.StartTLS()
	t.Cleanup(certified.Close)
	var cfg bff.Config
	newApp(t, func(_ *app, c *bff.Config) {
		c.TLS = &tls.Config{Certificates: certified.TLS.Certificates, NextProtos: []string{"h2", "http/1.1"}}
		cfg = *c
	})
	l := listen(t)
	_, stop, _ := serve(t, cfg, l)
	t.Cleanup(stop)
	for name, send := range map[string]func(*http2.Framer, net.Conn, []byte){
		"nothing": func(*http2.Framer, net.Conn, []byte) {},
		"a part of a frame": func(_ *http2.Framer, c net.Conn, _ []byte) {
			c.Write([]byte{0, 0, 100, 1, 4, 0, 0, 0, 1, 'x'})
		},
		"a part of a block": func(f *http2.Framer, _ net.Conn, block []byte) {
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:1]})
		},
		"slow parts of a block": func(f *http2.Framer, _ net.Conn, block []byte) {
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:1]})
			for range 40 {
				time.Sleep(time.Second / 2)
				if f.WriteContinuation(1, false, nil) != nil {
					return
				}
			}
		},
		"a part of a second block": func(f *http2.Framer, _ net.Conn, block []byte) {
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndHeaders: true})
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: block[:1]})
		},
		"a part of a ping": func(_ *http2.Framer, c net.Conn, _ []byte) {
			c.Write([]byte{0, 0, 8, 6, 0, 0, 0, 0, 0, 'x'})
		},
		"a body": func(f *http2.Framer, c net.Conn, block []byte) {
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndHeaders: true})
			c.Write([]byte{0, 0, 100, 0, 0, 0, 0, 0, 1, 'x'})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}
			c, err := tls.Dial("tcp", l.Addr().String(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			var block bytes.Buffer
			encoder := hpack.NewEncoder(&block)
			for _, field := range []hpack.HeaderField{
				{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "https"}, {Name: ":path", Value: "/"},
				{Name: ":authority", Value: "localhost"},
			} {
				encoder.WriteField(field)
			}
			io.WriteString(c, http2.ClientPreface)
			framer := http2.NewFramer(c, c)
			framer.WriteSettings()
			began := time.Now()
			go send(framer, c, block.Bytes())
			stays := name == "nothing" || name == "a body"
			if stays {
				c.SetReadDeadline(began.Add(15 * time.Second))
			} else {
				c.SetReadDeadline(began.Add(40 * time.Second))
			}
			_, err = io.Copy(io.Discard, c)
			timeout, _ := err.(net.Error)
			open := timeout != nil && timeout.Timeout()
			if open != stays {
				t.Errorf("after %v: open: got %v (%v), want %v", time.Since(began), open, err, stays)
			}
			if took := time.Since(began); took < 9*time.Second {
				t.Errorf("closed after %v, want at least 10 s", took)
			}
		})
	}
}

// GOAWAY is not the first frame, and is neither within another one nor between
// the parts of a header block.
func TestGOAWAYIsSentBetweenFrames(t *testing.T) {
	t.Parallel()
	var all bytes.Buffer
	framer := http2.NewFramer(&all, &all)
	framer.WriteSettings()
	framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte("a")})
	framer.WriteContinuation(1, true, []byte("b"))
	framer.WriteData(1, false, []byte("c"))
	framer.WriteData(1, true, nil)
	b := all.Bytes()
	for n := range len(b) + 1 {
		framer := http2.NewFramer(nil, bytes.NewReader(bff.WriteWithGoAway(b, n)))
		var got []http2.FrameType
		for {
			frame, err := framer.ReadFrame() // with an error for a part of a header block
			if err != nil {
				if err != io.EOF {
					t.Errorf("after %d bytes: %v", n, err)
				}
				break
			}
			got = append(got, frame.Header().Type)
		}
		rest := slices.DeleteFunc(slices.Clone(got), func(kind http2.FrameType) bool {
			return kind == http2.FrameGoAway
		})
		want := []http2.FrameType{
			http2.FrameSettings, http2.FrameHeaders, http2.FrameContinuation, http2.FrameData, http2.FrameData,
		}
		if len(got) != len(rest)+1 || got[0] != http2.FrameSettings || !slices.Equal(rest, want) {
			t.Errorf("after %d bytes: got %v", n, got)
		}
	}
}
