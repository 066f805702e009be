package redistest

import (
	"net"
	"sync"
	"testing"
	"time"
)

// Proxy passes TCP connections on to a target, and fails at it when told to, in
// one way at a time. It stops when the test ends.
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
	dropAnswers
	blackholeRequests
	blackhole
)

// link is a client's connection and the one to the target that belongs to it.
type link struct {
	client net.Conn
	done   chan struct{} // closed when the link ends

	// Guarded by Proxy.mu:
	target     net.Conn // nil until it is reached
	clientLeft bool
	dropped    bool
	lostAnswer bool // What came next would be taken for the answer that was lost.
	dead       bool // It lost something in a black hole, and passes nothing more.
}

// chunk is what was read at once; without bytes it is the end of what one side
// has to say.
type chunk struct {
	bytes []byte
	at    time.Time
}

// StartProxy starts a proxy to the target, a host:port, on a free port of the
// loopback interface.
func StartProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{target: target, listener: l, changed: make(chan struct{}), links: map[*link]bool{}}
	p.running.Go(p.accept) // Ends when the listener is closed.
	t.Cleanup(func() {
		p.Cut()
		l.Close()
		p.running.Wait()
	})
	return p
}

// Addr is the host:port where the proxy listens.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Cut closes all connections, and new ones at once, until Heal.
func (p *Proxy) Cut() { p.set(cut, 0) }

// Hang lets nothing pass in either direction, until Heal. Connections stay
// open, new ones are accepted and hang too. What was sent meanwhile arrives
// after Heal.
func (p *Proxy) Hang() { p.set(hang, 0) }

// DropResponses lets requests pass, but nothing come back, until Heal. A
// connection that has lost an answer so is closed by Heal: what came next would
// be taken for the answer that was lost.
func (p *Proxy) DropResponses() { p.set(dropAnswers, 0) }

// Blackhole loses what is sent in either direction, until Heal. Connections
// stay open for ever; those that lost something pass nothing more, also after
// Heal.
func (p *Proxy) Blackhole() { p.set(blackhole, 0) }

// BlackholeRequests is Blackhole for what clients send. Responses to what has
// arrived still pass.
func (p *Proxy) BlackholeRequests() { p.set(blackholeRequests, 0) }

// DropSilently lets nothing pass any more on the connections that are open, and
// tells neither side, as a firewall does that has forgotten them. New
// connections work.
func (p *Proxy) DropSilently() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.dropped = true
	}
}

// Delay makes everything arrive later by d, each way, until Heal.
func (p *Proxy) Delay(d time.Duration) { p.set(none, d) }

// Heal ends what Cut, Hang, DropResponses, Blackhole or Delay began.
func (p *Proxy) Heal() { p.set(none, 0) }

// Connections is how many connections clients have open.
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
		if f == cut || f == none && l.lostAnswer {
			p.end(l)
		}
	}
}

// end closes a link; the caller holds mu.
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
			p.running.Go(func() { p.serve(l) })
		}
		p.mu.Unlock()
	}
}

// serve carries a link's bytes until one side closes or the link is cut. Both
// are read even while nothing passes, so that a client's leaving is seen. All
// its goroutines end with the link, whose connections are then closed.
func (p *Proxy) serve(l *link) {
	requests, answers := make(chan chunk, 1024), make(chan chunk, 1024)
	p.running.Go(func() {
		read(l, l.client, requests)
		p.mu.Lock()
		defer p.mu.Unlock()
		l.clientLeft = true
	})
	if target, err := p.dial(l); err == nil {
		p.running.Go(func() { read(l, target, answers) })
		p.running.Go(func() { p.write(l, target, requests, false) })
		p.write(l, l.client, answers, true)
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

// read puts all that comes from a connection into the queue, and its end.
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

// write writes what is in the queue, each chunk when it may pass, and ends the
// link with it.
func (p *Proxy) write(l *link, to net.Conn, queue <-chan chunk, answers bool) {
	for c := range queue {
		if !p.pass(l, c, answers) {
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

// pass waits until a chunk may go on, and is false if it never may.
func (p *Proxy) pass(l *link, c chunk, answer bool) bool {
	for {
		p.mu.Lock()
		changed, due := p.changed, time.After(time.Until(c.at.Add(p.delay)))
		switch drop := p.fault == dropAnswers && answer; {
		case c.bytes != nil && (l.dead || p.fault == blackhole || p.fault == blackholeRequests && !answer):
			l.dead = true
			p.mu.Unlock()
			return false
		case l.dropped:
			p.mu.Unlock()
			return false
		case drop && c.bytes != nil:
			l.lostAnswer = true
			p.mu.Unlock()
			return false
		case drop, p.fault == hang: // The target's closing is an answer too, which Heal lets through.
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
