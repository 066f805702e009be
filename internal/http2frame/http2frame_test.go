package http2frame_test

import (
	"bytes"
	"testing"

	"golang.org/x/net/http2"

	"github.com/cloakroom-bff/cloakroom/internal/http2frame"
)

// A client sends a request with a header in several frames and a body. After
// each byte the scanner says what is complete.
func TestScanner(t *testing.T) {
	t.Parallel()
	type state struct {
		between, awaitsMore bool
		block               int
	}
	var sent bytes.Buffer
	framer := http2.NewFramer(&sent, nil)
	ends := make(map[int]state) // after so many bytes; between them, a frame is incomplete
	sent.WriteString(http2.ClientPreface)
	ends[sent.Len()] = state{}
	for _, step := range []struct {
		write func() error
		after state
	}{
		{func() error { return framer.WriteSettings() }, state{between: true}},
		{func() error {
			return framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte("abc")})
		}, state{awaitsMore: true, block: 12}},
		{func() error { return framer.WriteContinuation(1, false, []byte("de")) }, state{awaitsMore: true, block: 23}},
		{func() error { return framer.WriteContinuation(1, true, nil) }, state{between: true}},
		{func() error { return framer.WriteData(1, false, []byte("body")) }, state{between: true}},
		{func() error { return framer.WriteData(1, true, nil) }, state{between: true}},
		{func() error { return framer.WritePing(false, [8]byte{}) }, state{between: true}},
	} {
		if err := step.write(); err != nil {
			t.Fatal(err)
		}
		ends[sent.Len()] = step.after
	}
	all := sent.Bytes()
	bytewise := http2frame.Scanner{Preface: http2frame.PrefaceLength}
	body := bytes.Index(all, []byte("body"))
	for i := range all {
		bytewise.Scan(all[i : i+1])
		halves := http2frame.Scanner{Preface: http2frame.PrefaceLength}
		halves.Scan(all[:i/2])
		halves.Scan(all[i/2 : i+1])
		for name, s := range map[string]*http2frame.Scanner{"bytewise": &bytewise, "in halves": &halves} {
			got := state{s.Between(), s.AwaitsMore(), s.BlockSize()}
			if want, ok := ends[i+1]; ok && got != want {
				t.Errorf("%s, after %d bytes: got %+v, want %+v", name, i+1, got, want)
			} else if !ok && (got.between || got.awaitsMore == (i+1 >= body && i+1 < body+len("body"))) {
				t.Errorf("%s, within a frame, after %d bytes: got %+v", name, i+1, got)
			}
		}
	}
}
