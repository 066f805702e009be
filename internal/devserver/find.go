package devserver

import (
	"cmp"
	"context"
	"io"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// WellKnownPorts are the default ports of development servers: Vite, Angular,
// Next and others, webpack.
var WellKnownPorts = []int{5173, 4200, 3000, 8080}

// Finder finds the URL of a development server: in the output of its command,
// or at one of WellKnownPorts.
type Finder struct {
	// Exclude are ports on which something else listens.
	Exclude []int
	// Started is true if a command starts the server. Then a server that
	// listened before is another one.
	Started bool

	mu      sync.Mutex // guards all below
	printed []candidate
	https   string // a URL with https that was printed; empty: none
}

// candidate is an address that may be that of the server.
type candidate struct {
	url  string
	port int
}

// ExcludeListening excludes the well-known ports on which something listens
// already. Call it before the command starts.
func (f *Finder) ExcludeListening(ctx context.Context) {
	for _, port := range WellKnownPorts {
		if listens(ctx, port) {
			f.Exclude = append(f.Exclude, port)
		}
	}
}

// Watch returns a writer for output of the command, which it writes to to.
func (f *Finder) Watch(to io.Writer) io.Writer { return &watcher{finder: f, to: to} }

// HTTPS returns the URL of a server with https that was printed; empty: none.
func (f *Finder) HTTPS() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.https
}

// Excluded returns a URL that was printed and whose port is one of Exclude;
// empty: none.
func (f *Finder) Excluded() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.printed {
		if slices.Contains(f.Exclude, c.port) {
			return c.url
		}
	}
	return ""
}

const (
	findInterval = 100 * time.Millisecond
	// printGrace is how long the output counts alone: a command may start
	// several servers, and the printed URL is the better hint.
	printGrace = 5 * time.Second
)

// Find waits until a server is found, and returns its URL. late is called once
// when none was found for patience. The error is that of ctx.
func (f *Finder) Find(ctx context.Context, patience time.Duration, late func()) (string, error) {
	began := time.Now()
	tick := time.NewTicker(findInterval)
	defer tick.Stop()
	for {
		if url := f.look(ctx, !f.Started || time.Since(began) > printGrace); url != "" {
			return url, nil
		}
		if late != nil && time.Since(began) > patience {
			late()
			late = nil
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-tick.C:
		}
	}
}

// look returns the URL of the first candidate that listens, or "". wellKnown
// adds the well-known ports.
func (f *Finder) look(ctx context.Context, wellKnown bool) string {
	f.mu.Lock()
	all := slices.Clone(f.printed)
	f.mu.Unlock()
	if wellKnown {
		for _, port := range WellKnownPorts {
			all = append(all, candidate{"http://localhost:" + strconv.Itoa(port), port})
		}
	}
	for _, c := range all {
		if !slices.Contains(f.Exclude, c.port) && listens(ctx, c.port) {
			return c.url
		}
	}
	return ""
}

// Await reports whether something listens at the host and port of an http URL
// within a time.
func Await(ctx context.Context, rawURL string, patience time.Duration) bool {
	u, err := url.Parse(rawURL)
	if err != nil {
		return false
	}
	address := net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "80"))
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(findInterval)
	defer tick.Stop()
	for {
		if conn, err := new(net.Dialer).DialContext(ctx, "tcp", address); err == nil {
			conn.Close()
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}

// listens reports whether a port of the loopback interface accepts connections.
func listens(ctx context.Context, port int) bool {
	d := net.Dialer{Timeout: 500 * time.Millisecond}
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort("localhost", strconv.Itoa(port)))
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

var (
	escapes  = regexp.MustCompile(`\x1b\[[0-9;]*[A-Za-z]`) // colors
	localURL = regexp.MustCompile(`(https?)://(localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1?\]):([0-9]{1,5})\b`)
)

const (
	maxLine    = 8 << 10
	maxPrinted = 20
)

// watcher looks for URLs in lines of output.
type watcher struct {
	finder *Finder
	to     io.Writer
	line   []byte // the begin of a line that has not ended
}

func (w *watcher) Write(p []byte) (int, error) {
	w.line = append(w.line, p...)
	end := strings.LastIndexByte(string(w.line), '\n') + 1
	if end > 0 || len(w.line) > maxLine {
		if end == 0 {
			end = len(w.line)
		}
		w.finder.scan(string(w.line[:end]))
		w.line = append(w.line[:0], w.line[end:]...)
	}
	return w.to.Write(p)
}

// scan notes the URLs in a text.
func (f *Finder) scan(text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range localURL.FindAllStringSubmatch(escapes.ReplaceAllString(text, ""), maxPrinted) {
		port, err := strconv.Atoi(m[3])
		if err != nil || port == 0 || port > 65535 || len(f.printed) >= maxPrinted {
			continue
		}
		if m[1] == "https" {
			f.https = m[0]
			continue
		}
		// A server that listens on all addresses prints one that is none.
		f.printed = append(f.printed, candidate{"http://localhost:" + m[3], port})
	}
}
