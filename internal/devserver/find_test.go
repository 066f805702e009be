package devserver

import (
	"context"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// listen listens on a free port.
func listen(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().(*net.TCPAddr).Port
}

func TestURLIsFoundInOutput(t *testing.T) {
	port := listen(t)
	number := strconv.Itoa(port)
	want := "http://localhost:" + number
	for name, output := range map[string]string{
		"Vite": "  \x1b[32m➜\x1b[39m  \x1b[1mLocal\x1b[22m:   \x1b[36mhttp://localhost:\x1b[1m" +
			number + "\x1b[22m/\x1b[39m\n",
		"Next": "   - Local:        http://localhost:" + number +
			"\n   - Network:      http://192.0.2.1:" + number + "\n",
		"webpack": "<i> [webpack-dev-server] Loopback: http://localhost:" + number + "/, http://[::1]:" +
			number + "/\n",
		"Angular":  "  ➜  Local:   http://127.0.0.1:" + number + "/\n",
		"any host": "listening on http://0.0.0.0:" + number + "\n",
		"an API":   "API: http://localhost:1\nApp: http://localhost:" + number + "\n",
	} {
		f := &Finder{Started: true, Exclude: []int{1}}
		if _, err := io.Copy(f.Watch(io.Discard), iotest.OneByteReader(strings.NewReader(output))); err != nil {
			t.Fatal(err)
		}
		if got := f.look(t.Context(), false); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

func TestOutputWithoutUsableURL(t *testing.T) {
	port := listen(t)
	number := strconv.Itoa(port)
	f := &Finder{Started: true, Exclude: []int{port}}
	w := f.Watch(io.Discard)
	for _, output := range []string{
		"http://localhost:" + number + "\n", // excluded
		"http://localhost:1\n",              // nothing listens
		"http://localhost:99999\nhttp://localhost:0\nhttp://example.com:80\n",
		"https://localhost:" + number + "/\n",
		strings.Repeat("x", 100_000), strings.Repeat("http://localhost:1 ", 10_000),
	} {
		io.WriteString(w, output)
		if got := f.look(t.Context(), false); got != "" {
			t.Errorf("%.40q: got %q, want none", output, got)
		}
	}
	if got, want := f.HTTPS(), "https://localhost:"+number; got != want {
		t.Errorf("HTTPS: got %q, want %q", got, want)
	}
	if got, want := f.Excluded(), "http://localhost:"+number; got != want {
		t.Errorf("Excluded: got %q, want %q", got, want)
	}
	if got := len(f.printed); got > maxPrinted {
		t.Errorf("candidates: got %d, want at most %d", got, maxPrinted)
	}
}

func TestWellKnownPortsAreTheLastResort(t *testing.T) {
	before := WellKnownPorts
	defer func() { WellKnownPorts = before }()
	known := listen(t)
	WellKnownPorts = []int{known}
	f := new(Finder)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	url, err := f.Find(ctx, time.Minute, nil)
	if want := "http://localhost:" + strconv.Itoa(known); url != want || err != nil {
		t.Errorf("got %q, %v, want %q", url, err, want)
	}
	f = &Finder{Started: true}
	f.ExcludeListening(ctx) // it is another server
	if got := f.look(ctx, true); got != "" {
		t.Errorf("a server that listened before: got %q, want none", got)
	}
}

func TestServerThatIsNotFoundIsReportedOnce(t *testing.T) {
	before := WellKnownPorts
	defer func() { WellKnownPorts = before }()
	WellKnownPorts = nil
	ctx, cancel := context.WithCancel(t.Context())
	late := 0
	_, err := new(Finder).Find(ctx, time.Millisecond, func() {
		late++
		time.AfterFunc(3*findInterval, cancel)
	})
	if err == nil {
		t.Error("got no error after the end of the context")
	}
	if late != 1 {
		t.Errorf("reports: got %d, want 1", late)
	}
}
