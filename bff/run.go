package bff

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cloakroom-bff/cloakroom/internal/backlog"
	"github.com/cloakroom-bff/cloakroom/internal/http1"
)

// Run serves the listeners until ctx ends, and then shuts down. It closes them,
// also if it fails. It is called once, and has to run while the Server serves
// requests: it discovers the provider, and learns what other replicas change.
// While the provider is unreachable, logins fail, and requests in existing
// sessions work.
//
// The shutdown loses no request. From its begin the Server is not ready, and
// each response says that its connection is closed (Connection: close, or
// GOAWAY). After ShutdownDelay the listeners are closed, and event streams and
// WebSockets are aborted, so that their clients connect to another replica.
// Connections in the backlog of a listener are accepted before it is closed. On
// Linux, new ones are ignored meanwhile, for 250 milliseconds, so that their
// clients try again after a second. A listener of net.Listen ignores none,
// because it supports Multipath TCP: net.ListenConfig can switch that off.
// Other requests may take ShutdownGrace. An idle connection is closed after its
// next response, or after 5 seconds: a request may be on its way. In HTTP/2 its
// client gets GOAWAY at once. At last, Run waits up to 10 seconds for token
// refreshes and revocations: a rotated refresh token that is not stored signs
// its user out.
//
// Without listeners, the Server is the handler of another http.Server. End ctx
// when that server's Shutdown begins, and wait for both.
//
// The error says which listener failed, or that refreshes or revocations did
// not end in time. Requests that are aborted are logged.
func (s *Server) Run(ctx context.Context, listeners ...net.Listener) error {
	server := &http.Server{
		Handler: http.HandlerFunc(s.serveChecked),
		// Bodies are bounded by their rate alone (Config.BodyMinRate): uploads
		// and streams may take any time.
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		// The limit of s.checks is half of it, so that they count all refusals
		// but those of HTTP/2 that are more than twice too large.
		MaxHeaderBytes: 2 * s.checks.headerBytes,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams,
			// net/http has a buffer for the largest frame that a client has
			// begun. The smallest maximum of RFC 9113 (section 4.2).
			MaxReadFrameSize: 16 << 10,
		},
		// Of *http2Conn. The preface on another connection is refused by the
		// checks of HTTP/1.1.
		Protocols: new(http.Protocols),
		ErrorLog:  slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ConnState: s.trackConnection,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
		// OPTIONS * is refused by the handler.
		DisableGeneralOptionsHandler: true,
	}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	group, serving := errgroup.WithContext(ctx)
	if err := s.start(serving); err != nil {
		for _, l := range listeners {
			l.Close()
		}
		return err
	}
	other := newHandedOver()
	s.plain = http1.Server{
		HTTP: server, MaxHead: s.checks.headerBytes, Check: s.checks.serverConn, HandOver: other.put,
		Requested: s.conns.requested,
	}
	for _, l := range listeners {
		s.accepting.Add(1)
		group.Go(func() error { // until the shutdown
			defer s.accepting.Add(-1)
			err := s.serveListener(newListener(&limitedListener{l, &s.conns}, s.tls, &s.checks), other)
			if s.stopping() && errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("serve %s: %w", l.Addr(), err)
		})
	}
	group.Go(func() error { // until the shutdown
		if err := server.Serve(other); !s.stopping() {
			return fmt.Errorf("serve: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		<-serving.Done() // ctx has ended, or a listener failed
		return s.shutdown(server, listeners)
	})
	return group.Wait()
}

// serveListener serves a listener until it fails or is closed.
func (s *Server) serveListener(l net.Listener, other *handedOver) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		if _, ok := c.(*http2Conn); ok {
			other.put(c)
			continue
		}
		s.plain.Serve(c)
	}
}

// handedOver is a net.Listener that accepts the connections that it is given.
type handedOver struct {
	conns  chan net.Conn
	closed chan struct{}
	close  func()
}

func newHandedOver() *handedOver {
	h := &handedOver{conns: make(chan net.Conn), closed: make(chan struct{})}
	h.close = sync.OnceFunc(func() { close(h.closed) })
	return h
}

// put has a connection accepted. It closes it if the listener is closed.
func (h *handedOver) put(c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.closed:
		c.Close()
	}
}

func (h *handedOver) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

func (h *handedOver) Close() error {
	h.close()
	return nil
}

func (h *handedOver) Addr() net.Addr { return &net.TCPAddr{} }

// maxStreams is the maximum number of requests in flight of one connection in
// HTTP/2. A client queues those beyond it.
const maxStreams = 100

// start makes the Server ready, and starts the work of the configuration in
// force. Requests that arrive from now on wait in the listeners.
func (s *Server) start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running != nil {
		return errors.New("bff: Run was called before")
	}
	s.running = ctx
	s.draining, s.startDraining = context.WithCancel(context.Background())
	s.closing, s.stopAwaiting = context.WithCancel(context.Background())
	a := s.current.Load()
	s.conns.setLimit(a.limits.Connections)
	s.state.Store(int32(stateReady)) // before a response, and before the provider is found
	a.start()
	close(s.started)
	return nil
}

// serverState says how far a Server is.
type serverState int32

const (
	stateStarting serverState = iota // Run has not begun
	stateReady                       // Run serves
	stateStopping                    // Run ends
)

func (s *Server) stopping() bool { return serverState(s.state.Load()) == stateStopping }

// connKey is the key of a request's connection in HTTP/2 in its context.
type connKey struct{}

// idleTime is when a connection became idle.
type idleTime struct {
	mu    sync.Mutex // guards since
	since time.Time  // zero while it has a request
}

// set is called when the connection becomes idle, or with the zero time when a
// request begins.
func (i *idleTime) set(since time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.since = since
}

func (i *idleTime) get() time.Time {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.since
}

// trackConnection is http.Server.ConnState.
func (s *Server) trackConnection(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.served.Store(c, &idleTime{since: time.Now()})
	case http.StateActive:
		s.conns.requested(c)
		if idle, ok := s.served.Load(c); ok {
			idle.(*idleTime).set(time.Time{})
		}
	case http.StateIdle:
		if idle, ok := s.served.Load(c); ok {
			idle.(*idleTime).set(time.Now())
		}
	case http.StateClosed, http.StateHijacked:
		s.served.Delete(c)
	}
}

// shutdown ends what Run began.
func (s *Server) shutdown(server *http.Server, listeners []net.Listener) error {
	s.state.Store(int32(stateStopping))
	s.mu.Lock() // no Reload begins after this
	a := s.current.Load()
	s.mu.Unlock()
	s.log.Info("shutting down", "delay", a.shutdownDelay.String(), "grace", a.shutdownGrace.String())
	time.Sleep(a.shutdownDelay)
	var closing sync.WaitGroup
	for _, l := range listeners {
		closing.Go(func() { backlog.Close(l) }) // Accept reports an error
	}
	closing.Wait()
	s.startDraining()
	a.endStreams()
	grace, cancel := context.WithTimeout(context.Background(), a.shutdownGrace)
	defer cancel()
	s.awaitConnections(grace)
	err := server.Shutdown(grace)
	if errors.Is(err, net.ErrClosed) { // a listener, which is closed above; all connections are idle
		err = nil
	}
	if err == nil {
		err = a.waitIdle(grace)
	}
	if err == nil && s.plain.CloseIdle(0) > 0 { // the end of a response is not read
		err = grace.Err()
	}
	if err != nil {
		s.log.Warn("requests still open after the grace period are aborted", "err", err)
		server.Close()
		s.plain.CloseIdle(-1)
	}
	defer time.AfterFunc(closeGrace, s.stopAwaiting).Stop()
	err = a.close(s.closing)
	s.retired.Wait() // bounded by ShutdownGrace and closeGrace
	s.stopAwaiting()
	return err
}

// idleGrace is how long an idle connection stays open in a shutdown.
const idleGrace = 5 * time.Second

// awaitConnections waits until no connection is open, of those that have
// completed the TLS handshake within idleGrace. It tells clients in HTTP/2 to
// use another connection, closes connections that are idle for idleGrace, and
// returns if ctx ends.
func (s *Server) awaitConnections(ctx context.Context) {
	begun := time.Now()
	s.served.Range(func(c, _ any) bool {
		if c, ok := c.(*http2Conn); ok {
			go c.sendGoAway() // until the client has read it, or the connection is closed
		}
		return true
	})
	for {
		idle, open := idleGrace, false
		if time.Since(begun) < idleGrace {
			idle, open = time.Hour, s.accepting.Load() > 0 // closes none
		}
		if s.plain.CloseIdle(idle) > 0 { // first: from there a connection may get into served
			open = true
		}
		s.served.Range(func(c, idle any) bool {
			open = true
			since := idle.(*idleTime).get()
			if !since.IsZero() && min(time.Since(since), time.Since(begun)) >= idleGrace {
				go c.(net.Conn).Close() // with TLS it may take a while
			}
			return true
		})
		if !open {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(idleInterval):
		}
	}
}

// closeGrace is how long refreshes and revocations in flight may take after the
// last request.
const closeGrace = 10 * time.Second
