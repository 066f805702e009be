package redistest

import (
	"net"
	"sync"
	"testing"
	"time"
)

// Proxy forwards TCP connections to a target, with one fault of the network at
// a time. It stops when the test ends.
type Proxy struct {
	target   string
	listener net.Listener
	running  sync.WaitGroup

	mu      sync.Mutex // guards all below
	fault   fault
	delay   time.Duration
	changed chan struct{} // closed and replaced when fault or delay changes
	links   map[*link]bool
}

type fault int

const (
	none fault = iota
	cut
	hang
	dropResponses
	blackholeRequests
	blackhole
)

// link is a connection of a client and its connection to the target.
type link struct {
	client net.Conn
	done   chan struct{} // closed when the link ends

	// Guarded by Proxy.mu:
	target       net.Conn // nil until it is connected
	clientLeft   bool
	dropped      bool
	lostResponse bool // the next response would be taken for the one that was lost
	dead         bool // it lost something in a black hole: TCP could not continue
}

// chunk is the result of one read. Without bytes it is the end of the stream.
type chunk struct {
	bytes []byte
	at    time.Time
}

// StartProxy starts a proxy for a target, a host:port, on a free port of the
// loopback interface.
func StartProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{target: target, listener: l, changed: make(chan struct{}), links: map[*link]bool{}}
	p.running.Go(p.accept) // until the listener is closed
	t.Cleanup(func() {
		p.Cut()
		l.Close()
		p.running.Wait()
	})
	return p
}

// Addr returns the host:port at which the proxy listens.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Cut closes all connections, and new ones immediately, until Heal.
func (p *Proxy) Cut() { p.set(cut, 0) }

// Hang delays everything in both directions until Heal. Connections stay open,
// and new ones are accepted.
func (p *Proxy) Hang() { p.set(hang, 0) }

// DropResponses forwards requests and loses the responses, until Heal. Heal
// closes a connection that has lost a response: the next response would be
// taken for it.
func (p *Proxy) DropResponses() { p.set(dropResponses, 0) }

// Blackhole loses what is sent in both directions, until Heal. Connections stay
// open. Those that lost something forward nothing more, even after Heal.
func (p *Proxy) Blackhole() { p.set(blackhole, 0) }

// BlackholeRequests is Blackhole for requests only. Responses to requests that
// have arrived are forwarded.
func (p *Proxy) BlackholeRequests() { p.set(blackholeRequests, 0) }

// DropSilently forwards nothing more on the open connections and closes none,
// as a firewall does that has forgotten them. New connections work.
func (p *Proxy) DropSilently() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.dropped = true
	}
}

// Delay makes everything arrive later by d, each way, until Heal.
func (p *Proxy) Delay(d time.Duration) { p.set(none, d) }

// Heal ends Cut, Hang, DropResponses, Blackhole and Delay.
func (p *Proxy) Heal() { p.set(none, 0) }

// Connections returns the number of connections that clients have open.
func (p *Proxy) Connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for l := range p.links {
		if !l.clientLeft {
			n++
		}
	}
	return n
}

func (p *Proxy) set(f fault, delay time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault, p.delay = f, delay
	close(p.changed)
	p.changed = make(chan struct{})
	for l := range p.links {
		if f == cut || f == none && l.lostResponse {
			p.end(l)
		}
	}
}

// end closes a link. The caller holds mu.
func (p *Proxy) end(l *link) {
	if !p.links[l] {
		return
	}
	delete(p.links, l)
	close(l.done)
	l.client.Close()
	if l.target != nil {
		l.target.Close()
	}
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		if p.fault == cut {
			client.Close()
		} else {
			l := &link{client: client, done: make(chan struct{})}
			p.links[l] = true
			p.running.Go(func() { p.serve(l) }) // until the link ends
		}
		p.mu.Unlock()
	}
}

// serve forwards the bytes of a link until one side closes or the link is cut.
// It always reads both sides, so that it notices when a client leaves. All its
// goroutines end with the link.
func (p *Proxy) serve(l *link) {
	requests, responses := make(chan chunk, 1024), make(chan chunk, 1024)
	p.running.Go(func() {
		read(l, l.client, requests)
		p.mu.Lock()
		defer p.mu.Unlock()
		l.clientLeft = true
	})
	if target, err := p.dial(l); err == nil {
		p.running.Go(func() { read(l, target, responses) })
		p.running.Go(func() { p.write(l, target, requests, false) })
		p.write(l, l.client, responses, true)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.end(l)
}

func (p *Proxy) dial(l *link) (net.Conn, error) {
	p.pass(l, chunk{at: time.Now()}, false)
	target, err := net.DialTimeout("tcp", p.target, 5*time.Second)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.links[l] {
		target.Close()
		return nil, net.ErrClosed
	}
	l.target = target
	return target, nil
}

// read puts what a connection receives into the queue, with the end.
func read(l *link, from net.Conn, queue chan<- chunk) {
	defer close(queue)
	for {
		buf := make([]byte, 16<<10)
		n, err := from.Read(buf)
		now := time.Now()
		if n > 0 {
			select {
			case queue <- chunk{buf[:n], now}:
			case <-l.done:
				return
			}
		}
		if err != nil {
			select {
			case queue <- chunk{at: now}:
			case <-l.done:
			}
			return
		}
	}
}

// write writes the chunks of the queue, each when it may pass, and then ends
// the link.
func (p *Proxy) write(l *link, to net.Conn, queue <-chan chunk, responses bool) {
	for c := range queue {
		if !p.pass(l, c, responses) {
			continue
		}
		if c.bytes == nil {
			break
		}
		if _, err := to.Write(c.bytes); err != nil {
			break
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.end(l)
}

// pass waits until a chunk may pass. It returns false if the chunk is lost.
func (p *Proxy) pass(l *link, c chunk, response bool) bool {
	for {
		p.mu.Lock()
		changed, due := p.changed, time.After(time.Until(c.at.Add(p.delay)))
		switch drop := p.fault == dropResponses && response; {
		case c.bytes != nil && (l.dead || p.fault == blackhole || p.fault == blackholeRequests && !response):
			l.dead = true
			p.mu.Unlock()
			return false
		case l.dropped:
			p.mu.Unlock()
			return false
		case drop && c.bytes != nil:
			l.lostResponse = true
			p.mu.Unlock()
			return false
		case drop, p.fault == hang: // the target closes; Heal forwards that
			due = nil
		case time.Since(c.at) >= p.delay:
			p.mu.Unlock()
			return true
		}
		p.mu.Unlock()
		select {
		case <-due:
		case <-changed:
		case <-l.done:
			return false
		}
	}
}
