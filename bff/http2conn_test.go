package bff_test

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"net/http/httptest"
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
