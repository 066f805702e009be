package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestANameThatLeadsToALinkLocalAddressIsRefused(t *testing.T) {
	t.Parallel()
	for address, refused := range map[string]bool{
		"169.254.169.254:80": true, "169.254.0.1:80": true, "[fe80::1]:80": true,
		"[fe80::1%eth0]:80": true, "[fd00:ec2::254]:80": true, "[::ffff:169.254.169.254]:80": true,
		"0.0.0.0:80": true, "[::]:80": true, "224.0.0.1:80": true, "nonsense": true,
		"127.0.0.1:80": false, "10.0.0.1:80": false, "192.0.2.1:443": false, "[::1]:80": false, "[fd00::1]:80": false,
	} {
		if err := refuseLinkLocal("tcp", address, nil); (err != nil) != refused {
			t.Errorf("%s: got %v", address, err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for upstream, checked := range map[string]bool{
		"http://orders.internal": true, "http://localhost:8080": true, "http://10.0.0.1": true,
		"http://169.254.169.254": false, "http://[fe80::1]:80": false,
	} {
		s, err := newServer(upstream, Upstream{}, new(Group))
		if err != nil {
			t.Fatal(err)
		}
		if got := s.dialer.Control("tcp", "169.254.169.254:80", raw) != nil; got != checked {
			t.Errorf("%s: what its name leads to is checked: %v", upstream, got)
		}
	}
}

// The readers of a body that is sent again after its first reader was given up.
func TestABodyIsReadForOneAttemptAtATime(t *testing.T) {
	t.Parallel()
	r, w := io.Pipe()
	b := &requestBody{x: &exchange{p: &Proxy{group: new(Group)}, r: &http.Request{Body: r}}}
	b.waiting = sync.NewCond(&b.mu)
	first, ok := b.reader()
	if !ok {
		t.Fatal("no reader")
	}
	got := make(chan byte)
	go func() {
		var p [1]byte
		first.Read(p[:])
		got <- p[0]
	}()
	for reading := false; !reading; {
		b.mu.Lock()
		reading = b.reading
		b.mu.Unlock()
	}
	second, ok := b.reader()
	if !ok || !b.rewindable() {
		t.Fatal("there is no second reader while the first one waits for the client")
	}
	read := make(chan string)
	go func() {
		var p [2]byte
		n, err := io.ReadFull(second, p[:])
		read <- fmt.Sprint(string(p[:n]), err)
	}()
	go w.Write([]byte("ab"))
	<-got
	if text := <-read; text != "ab<nil>" { // what the first reader was waiting for is in it
		t.Errorf("the second reader got %s", text)
	}
	var p [2]byte
	if _, err := first.Read(p[:]); !errors.Is(err, errLateReader) {
		t.Errorf("the first reader takes from the second: %v", err)
	}
}

// deadlines counts how often a deadline of a connection is set.
type deadlines struct {
	http.ResponseWriter
	set int
}

func (d *deadlines) SetReadDeadline(time.Time) error  { d.set++; return nil }
func (d *deadlines) SetWriteDeadline(time.Time) error { d.set++; return nil }

// When a handler has returned the connection is the server's, and in HTTP/2 it
// is gone: the end of the session at that moment must not touch it.
func TestAnExchangeThatIsOverLeavesItsConnectionAlone(t *testing.T) {
	t.Parallel()
	d := new(deadlines)
	x := &exchange{
		p:    &Proxy{group: new(Group), servers: new(serverSet)},
		body: new(requestBody), // which was not read
	}
	x.conn.Store(http.NewResponseController(d))
	x.abort(errShutdown)
	if d.set != 2 {
		t.Errorf("%d deadlines were set, want one for reading and one for writing", d.set)
	}
	x.end()
	x.abort(errShutdown)
	if d.set != 2 {
		t.Error("a deadline was set when the exchange was over")
	}
}

// unreadBody is the body of a request whose client sends nothing more. A read
// ends some time after its deadline.
type unreadBody struct {
	http.ResponseWriter
	deadline chan struct{}
	reads    atomic.Int32 // in progress
}

func (b *unreadBody) Read([]byte) (int, error) {
	b.reads.Add(1)
	defer b.reads.Add(-1)
	<-b.deadline
	time.Sleep(50 * time.Millisecond)
	return 0, os.ErrDeadlineExceeded
}

func (b *unreadBody) Close() error { return nil }

func (b *unreadBody) SetReadDeadline(time.Time) error {
	b.deadline <- struct{}{} // there is a reader, and only one
	return nil
}

// If a goroutine reads the end of the body when the handler has returned,
// net/http may wait for it forever.
func TestNothingReadsTheBodyAfterTheHandler(t *testing.T) {
	t.Parallel()
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		io.WriteString(w, "early")
	}))
	defer upstream.Close()
	p, err := New(Upstream{URLs: []string{upstream.URL}, Path: "/"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	w := httptest.NewRecorder()
	body := &unreadBody{ResponseWriter: w, deadline: make(chan struct{})}
	r := httptest.NewRequestWithContext(t.Context(), "POST", "/", body)
	if err := p.Forward(body, r, Options{}); err != nil {
		t.Fatal(err)
	}
	if n := body.reads.Load(); n != 0 || w.Body.String() != "early" {
		t.Errorf("%d reads are in progress after the response %q", n, w.Body)
	}
}
